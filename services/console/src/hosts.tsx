// Every host: how it is reached, what it runs, what it should run, and whether it takes tasks.
import { useState } from "react";
import { type Page, post } from "./api";
import { Ask, type Question } from "./ask";
import { useLoad } from "./load";
import { Ago, State } from "./parts";

type Host = {
  name: string;
  address: string;
  labels: Record<string, string>;
  in_catalog: boolean;
  state: string;
  ssh: { account: string; error: string | null } | null;
  agent: { version: string | null; last_seen_at: string | null } | null;
  current: string | null;
  lock: { reason: string; by: string; at: string } | null;
  tasks: number;
  max_tasks: number;
};

type Drift = {
  project: string;
  environment: string;
  host: string;
  state: string;
  intended: string;
  reported: string | null;
};

/** Hosts whose name, address or a label holds every word. */
export function matching<H extends Pick<Host, "name" | "address" | "labels">>(hosts: H[], words: string): H[] {
  const wanted = words.toLowerCase().split(/\s+/).filter((w) => w !== "");
  const text = (h: H) => [h.name, h.address, ...Object.entries(h.labels).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();
  return hosts.filter((h) => wanted.every((w) => text(h).includes(w)));
}

/** Rows drawn at once: a page of ten thousand rows would not scroll. */
const SHOWN = 300;

export function Hosts() {
  const { value, error, again } = useLoad<Page<Host>>("/hosts?limit=10000");
  const [words, setWords] = useState("");
  const [asking, setAsking] = useState<Question | null>(null);
  if (!value) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;
  const found = matching(value.items, words);

  const lock = (h: Host): Question => ({
    title: `Lock ${h.name}`,
    says: "It takes no new tasks until it is unlocked; what runs there goes on.",
    reason: "needed",
    send: async (reason) => {
      await post(`/hosts/${h.name}/lock`, { reason });
      await again();
    },
  });
  const unlock = (h: Host): Question => ({
    title: `Unlock ${h.name}`,
    says: "It takes tasks again, those that wait for it first.",
    send: async () => {
      await post(`/hosts/${h.name}/unlock`, {});
      await again();
    },
  });
  return (
    <>
      <h1>Hosts</h1>
      {error && <p role="alert">{error}</p>}
      <input
        type="search"
        value={words}
        onChange={(e) => setWords(e.target.value)}
        placeholder="name, address, label=value"
        aria-label="Find hosts"
      />
      <p className="muted" role="status">
        {found.length} of {value.items.length} hosts
        {found.length > SHOWN && `, the first ${SHOWN} are shown`}
      </p>
      <table>
        <thead>
          <tr>
            <th>Host</th>
            <th>Reached</th>
            <th>Last seen</th>
            <th>Current release</th>
            <th>Tasks</th>
            <th>Labels</th>
            <th />
          </tr>
        </thead>
        <tbody>
          {found.slice(0, SHOWN).map((h) => (
            <tr key={h.name}>
              <td>
                <b>{h.name}</b>
                <div className="muted">{h.address}</div>
                {!h.in_catalog && <div className="reason">not in the catalog</div>}
              </td>
              <td>
                <State state={h.state} />
                {h.ssh?.error && <div className="reason">{h.ssh.error}</div>}
              </td>
              <td>
                <Ago at={h.agent?.last_seen_at ?? null} />
                {h.agent?.version && <div className="muted">agent {h.agent.version}</div>}
              </td>
              <td className="dir">{h.current ?? "–"}</td>
              <td>
                {h.tasks} of {h.max_tasks}
                {h.lock && (
                  <div className="reason">
                    locked by {h.lock.by}, <Ago at={h.lock.at} />: {h.lock.reason}
                  </div>
                )}
              </td>
              <td className="muted">
                {Object.entries(h.labels)
                  .map(([k, v]) => `${k}=${v}`)
                  .join(" ")}
              </td>
              <td>
                <button type="button" className="plain" onClick={() => setAsking(h.lock ? unlock(h) : lock(h))}>
                  {h.lock ? "Unlock" : "Lock"}
                </button>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <DriftTable />
      {asking && <Ask q={asking} close={() => setAsking(null)} />}
    </>
  );
}

/** Hosts that do not run what is intended. */
function DriftTable() {
  const { value, error } = useLoad<Page<Drift>>("/drift");
  if (!value) return error ? <p role="alert">{error}</p> : null;
  const off = value.items.filter((d) => d.state !== "same");
  return (
    <section>
      <h2>Drift</h2>
      {off.length === 0 ? (
        <p className="muted">Every host that reports runs what was last known good where it belongs.</p>
      ) : (
        <table>
          <thead>
            <tr>
              <th>Host</th>
              <th>Environment</th>
              <th>State</th>
              <th>Intended</th>
              <th>Reported</th>
            </tr>
          </thead>
          <tbody>
            {off.slice(0, SHOWN).map((d) => (
              <tr key={`${d.project}/${d.environment}/${d.host}`}>
                <td>{d.host}</td>
                <td>
                  {d.project} {d.environment}
                </td>
                <td>
                  <State state={d.state} />
                </td>
                <td>{d.intended}</td>
                <td>{d.reported ?? "nothing"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
