// The board: what is known good in each environment, what came from where, who holds the lock, and what people have said
// about versions: holds, vetoes, pins.
import { useState } from "react";
import { type Page, post, put, remove, type Summary } from "./api";
import { Ask, type Question } from "./ask";
import { useLoad } from "./load";
import { Ago, State, WaitingText } from "./parts";

type Place = { environment: string; promote_from: string[]; verified_for_s: number; good: string | null };
type Proof = { environment: string; deployment: string; at: string; withdrawn: boolean; reason: string | null };
type Board = { environments: Place[]; artifacts: { version: string; digest: string; verified: Proof[] }[] };
type Lock = { project: string; environment: string; holder: Summary | null; waiting: Summary[] };
type Hold = { environment: string; by: string; reason: string; at: string };
type Mark = { kind: "veto" | "pin"; version: string; environment: string | null; by: string; reason: string; at: string };
type Marks = { items: Mark[]; holds: Hold[] };

export function Board() {
  const { value, error } = useLoad<Page<{ key: string }>>("/catalog/project?limit=500");
  const queue = useLoad<{ locks: Lock[] }>("/queue");
  if (!value) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;
  return (
    <>
      <h1>Environments</h1>
      {value.items.length === 0 && <p className="empty">No project yet. “windlass apply” brings projects, environments and hosts.</p>}
      {value.items.map((p) => (
        <Project key={p.key} name={p.key} locks={(queue.value?.locks ?? []).filter((l) => l.project === p.key)} />
      ))}
    </>
  );
}

function Project({ name, locks }: { name: string; locks: Lock[] }) {
  const board = useLoad<Board>(`/projects/${name}/promotions`);
  const marks = useLoad<Marks>(`/projects/${name}/marks`);
  const [asking, setAsking] = useState<Question | null>(null);
  if (!board.value) return board.error ? <p role="alert">{`${name}: ${board.error}`}</p> : null;
  const again = async () => {
    await Promise.all([board.again(), marks.again()]);
  };
  const hold = (environment: string): Question => ({
    title: `Hold ${name} ${environment}`,
    says: "Hooks and promotions release nothing here until somebody releases the hold. People still can.",
    reason: "needed",
    send: async (reason) => {
      await put(`/projects/${name}/environments/${environment}/hold`, { reason });
      await again();
    },
  });
  const release = (h: Hold): Question => ({
    title: `Release ${name} ${h.environment}`,
    says: `Automation may release here again. It was held by ${h.by}: ${h.reason}`,
    send: async () => {
      await remove(`/projects/${name}/environments/${h.environment}/hold`);
      await again();
    },
  });
  return (
    <section>
      <h2>{name}</h2>
      <table>
        <thead>
          <tr>
            <th>Environment</th>
            <th>Known good</th>
            <th>Takes what is verified in</th>
            <th>Running or waiting</th>
            <th>Hold, pins, vetoes</th>
            <th />
          </tr>
        </thead>
        <tbody>
          {board.value.environments.map((e) => {
            const lock = locks.find((l) => l.environment === e.environment);
            const held = marks.value?.holds.find((h) => h.environment === e.environment);
            const said = marks.value?.items.filter((m) => !m.environment || m.environment === e.environment) ?? [];
            return (
              <tr key={e.environment}>
                <td>
                  <b>{e.environment}</b>
                </td>
                <td>{e.good ?? "–"}</td>
                <td>{e.promote_from.join(", ") || "anything"}</td>
                <td>
                  {[lock?.holder ?? null, ...(lock?.waiting ?? [])].map(
                    (d) =>
                      d && (
                        <div key={d.id}>
                          <a href={`#/deployments/${d.id}`}>{d.version}</a> <State state={d.state} />{" "}
                          <span className="muted">
                            <WaitingText waiting={d.waiting_on} />
                          </span>
                        </div>
                      ),
                  )}
                </td>
                <td>
                  {held && (
                    <div className="reason">
                      held by {held.by}, <Ago at={held.at} />: {held.reason}
                    </div>
                  )}
                  {said.map((m) => (
                    <div key={`${m.kind}${m.version}${m.environment}`}>
                      {m.kind} {m.version}{" "}
                      <span className="muted">
                        by {m.by}: {m.reason}
                      </span>
                    </div>
                  ))}
                </td>
                <td>
                  <button type="button" className="plain" onClick={() => setAsking(held ? release(held) : hold(e.environment))}>
                    {held ? "Release" : "Hold"}
                  </button>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {board.value.artifacts.length > 0 && <Versions name={name} board={board.value} marks={marks.value?.items ?? []} again={again} />}
      {asking && <Ask q={asking} close={() => setAsking(null)} />}
    </section>
  );
}

/** How an artifact stands in an environment. */
export function standing(proofs: Proof[], environment: string): "verified" | "withdrawn" | "" {
  const proof = proofs.find((p) => p.environment === environment);
  return proof ? (proof.withdrawn ? "withdrawn" : "verified") : "";
}

function Versions({ name, board, marks, again }: { name: string; board: Board; marks: Mark[]; again: () => Promise<void> }) {
  const [asking, setAsking] = useState<Question | null>(null);
  const veto = (version: string): Question => ({
    title: `Veto ${version}`,
    says: `${name} ${version} is never released again, anywhere, until the veto is taken back.`,
    reason: "needed",
    danger: true,
    send: async (reason) => {
      await post(`/projects/${name}/marks`, { kind: "veto", version, reason });
      await again();
    },
  });
  const lift = (m: Mark): Question => ({
    title: `Take back the ${m.kind} of ${m.version}`,
    says: `${m.by} gave it: ${m.reason}`,
    send: async () => {
      const where = m.environment ? `&environment=${encodeURIComponent(m.environment)}` : "";
      await remove(`/projects/${name}/marks?kind=${m.kind}&version=${encodeURIComponent(m.version)}${where}`);
      await again();
    },
  });
  return (
    <details>
      <summary>Versions that were verified somewhere ({board.artifacts.length})</summary>
      <table>
        <thead>
          <tr>
            <th>Version</th>
            {board.environments.map((e) => (
              <th key={e.environment}>{e.environment}</th>
            ))}
            <th />
          </tr>
        </thead>
        <tbody>
          {board.artifacts.map((a) => {
            const mine = marks.filter((m) => m.version === a.version);
            return (
              <tr key={a.digest}>
                <td>
                  {a.version}
                  {mine.map((m) => (
                    <button type="button" className="plain" key={m.kind + m.environment} onClick={() => setAsking(lift(m))}>
                      {m.kind}
                      {m.environment && ` in ${m.environment}`}
                    </button>
                  ))}
                </td>
                {board.environments.map((e) => {
                  const proof = a.verified.find((p) => p.environment === e.environment);
                  const how = standing(a.verified, e.environment);
                  return (
                    <td key={e.environment}>
                      {proof ? (
                        <a href={`#/deployments/${proof.deployment}`} className={how === "withdrawn" ? "reason" : ""}>
                          {how}
                        </a>
                      ) : (
                        "–"
                      )}
                    </td>
                  );
                })}
                <td>
                  <button type="button" className="plain" onClick={() => setAsking(veto(a.version))}>
                    Veto
                  </button>
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {asking && <Ask q={asking} close={() => setAsking(null)} />}
    </details>
  );
}
