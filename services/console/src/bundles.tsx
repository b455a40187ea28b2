// Bundles: several releases as one. The list, and one bundle with its members in their order.
import { useState } from "react";
import { type By, type Page, post, type Summary, type Waiting } from "./api";
import { Ask, type Question } from "./ask";
import { useLoad } from "./load";
import { Ago, State, WaitingText } from "./parts";

type Member = {
  name: string;
  project: string;
  environment: string;
  version: string;
  needs: string[];
  state: string;
  reason: string | null;
  deployment: string;
};

type Bundle = {
  id: string;
  title: string;
  state: string;
  requested_by: string;
  requested_at: string;
  ended_at: string | null;
  waiting_on: Waiting[];
  members: Member[];
};

type Detail = Bundle & {
  note: string;
  on_failure: string;
  digest: string;
  end: By | null;
  deployments: Summary[];
  actions: string[];
};

export function Bundles() {
  const { value, error } = useLoad<Page<Bundle>>("/bundles?limit=100");
  if (!value) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;
  return (
    <>
      <h1>Bundles</h1>
      {value.items.length === 0 && (
        <p className="empty">No bundle yet. “windlass bundle create” makes one: several releases, approved and carried out as one.</p>
      )}
      {value.items.map((b) => (
        <section key={b.id} className="wave">
          <h3>
            <a href={`#/bundles/${b.id}`}>{b.title}</a> <State state={b.state} />
          </h3>
          <p className="muted">
            {b.members.map((m) => `${m.project} ${m.version}`).join(", ")} — by {b.requested_by}, <Ago at={b.requested_at} />
          </p>
          <p className="waiting">
            <WaitingText waiting={b.waiting_on} />
          </p>
        </section>
      ))}
    </>
  );
}

/** Members in the order they can run: each after all it needs. A circle (the server refuses them) ends up last as it is. */
export function inOrder<M extends { name: string; needs: string[] }>(members: M[]): M[] {
  const out: M[] = [];
  let left = [...members];
  while (left.length > 0) {
    const ready = left.filter((m) => m.needs.every((n) => out.some((o) => o.name === n)));
    if (ready.length === 0) return [...out, ...left];
    out.push(...ready);
    left = left.filter((m) => !ready.includes(m));
  }
  return out;
}

export function BundlePage({ id }: { id: string }) {
  const { value: b, error, again } = useLoad<Detail>(`/bundles/${id}`);
  const [asking, setAsking] = useState<Question | null>(null);
  if (!b) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;

  const send = (verb: string, body: (reason: string) => unknown) => async (reason: string) => {
    await post(`/bundles/${id}/${verb}`, body(reason));
    await again();
  };
  const all: (Question & { verb: string })[] = [
    { verb: "approve", title: "Approve", says: "All members' plans are approved as they are now.", reason: "welcome", send: send("approve", (comment) => ({ digest: b.digest, comment })) },
    { verb: "reject", title: "Reject", says: "No member will run.", reason: "needed", danger: true, send: send("reject", (comment) => ({ digest: b.digest, comment })) },
    { verb: "pause", title: "Pause", says: "No further member starts; what runs goes on.", reason: "needed", send: send("pause", (reason) => ({ reason })) },
    { verb: "resume", title: "Resume", says: "Members whose turn has come start.", send: send("resume", () => ({})) },
    { verb: "retry", title: "Retry", says: "Members that failed are tried again.", send: send("retry", () => ({ members: [] })) },
    { verb: "cancel", title: "Cancel", says: "Members that have not started will not run.", reason: "needed", danger: true, send: send("cancel", (reason) => ({ reason })) },
    { verb: "rollback", title: "Roll back all", says: "Members that ended well go back to what was known good before, in the reverse order.", reason: "needed", danger: true, send: send("rollback", (reason) => ({ reason, members: [] })) },
  ];
  const member = (m: Member): (Question & { verb: string })[] => [
    { verb: "skip", title: `Skip ${m.name}`, says: "The bundle goes on as if this member had succeeded.", reason: "needed", danger: true, send: send("skip", (reason) => ({ member: m.name, reason })) },
    { verb: "rollback", title: `Roll back ${m.name}`, says: "This member alone goes back to what was known good before.", reason: "needed", danger: true, send: send("rollback", (reason) => ({ reason, members: [m.name] })) },
  ];
  const wants = (m: Member, verb: string) =>
    verb === "skip" ? m.state === "failed" || m.state === "stuck" : m.state === "succeeded" || m.state === "failed";
  return (
    <article>
      <h1>
        {b.title} <State state={b.state} />
      </h1>
      {b.waiting_on.length > 0 && (
        <p className="waiting">
          Waiting for <WaitingText waiting={b.waiting_on} />
        </p>
      )}
      {error && <p role="alert">{error}</p>}
      <div className="buttons">
        {all
          .filter((q) => b.actions.includes(q.verb))
          .map((q) => (
            <button type="button" key={q.verb} className={q.danger ? "danger" : ""} onClick={() => setAsking(q)}>
              {q.title}
            </button>
          ))}
      </div>
      <p className="muted">
        Requested by {b.requested_by}, <Ago at={b.requested_at} />
        {b.note && ` — ${b.note}`}. A member that fails: {b.on_failure}.
        {b.end && ` Ended by ${b.end.who}: ${b.end.reason}`}
      </p>
      <ol className="members">
        {inOrder(b.members).map((m) => (
          <li key={m.name} className={`host ${m.state}`}>
            <a href={`#/deployments/${m.deployment}`}>
              <b>{m.name}</b>
            </a>{" "}
            {m.project} {m.version} to {m.environment} <State state={m.state} />
            {m.needs.length > 0 && <span className="muted"> after {m.needs.join(", ")}</span>}
            {m.reason && <div className="reason">{m.reason}</div>}
            <div className="waiting">
              <WaitingText waiting={b.deployments.find((d) => d.id === m.deployment)?.waiting_on ?? []} />
            </div>
            <div className="buttons">
              {member(m)
                .filter((q) => b.actions.includes(q.verb) && wants(m, q.verb))
                .map((q) => (
                  <button type="button" key={q.verb} className="plain" onClick={() => setAsking(q)}>
                    {q.title}
                  </button>
                ))}
            </div>
          </li>
        ))}
      </ol>
      {asking && <Ask q={asking} close={() => setAsking(null)} />}
    </article>
  );
}
