// One deployment: what it waits for, its waves and hosts changing live, the buttons, the log.
import { useCallback, useEffect, useRef, useState } from "react";
import { type Deployment, follow, get, type HostRun, post, type Step, type Wave } from "./api";
import { Logs } from "./logs";
import { Ago, State, WaitingText } from "./parts";

/** Events come in bursts; one reading serves a whole burst. */
const GATHER_MS = 50;

export function DeploymentPage({ id }: { id: string }) {
  const [d, setD] = useState<Deployment | null>(null);
  const [error, setError] = useState("");
  const [live, setLive] = useState(false);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);

  const load = useCallback(async () => {
    try {
      setD(await get<Deployment>(`/deployments/${id}`));
      setError("");
    } catch (e) {
      setError(String(e));
    }
  }, [id]);
  useEffect(() => {
    void load();
    const soon = () => {
      timer.current ??= setTimeout(() => {
        timer.current = undefined;
        void load();
      }, GATHER_MS);
    };
    const stop = follow(`/deployments/${id}/events`, soon, (l) => {
      setLive(l);
      soon();
    });
    return () => {
      stop();
      clearTimeout(timer.current);
      timer.current = undefined;
    };
  }, [id, load]);

  if (!d) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;
  return (
    <article>
      <h1>
        {d.project} {d.version} <span className="muted">to</span> {d.environment} <State state={d.state} />
        {live && <span className="live">live</span>}
      </h1>
      {d.waiting_on.length > 0 && (
        <p className="waiting" data-testid="waiting">
          Waiting for <WaitingText waiting={d.waiting_on} />
        </p>
      )}
      {error && <p role="alert">{error}</p>}
      <Buttons d={d} done={load} />
      <dl>
        <dt>Requested</dt>
        <dd>
          by {d.requested_by}, <Ago at={d.requested_at} />
          {d.note && <> — {d.note}</>}
        </dd>
        <dt>Plan</dt>
        <dd>
          <code title={d.plan_digest}>{d.plan_digest.slice(0, 19)}…</code>
        </dd>
        {d.approvals.length > 0 && (
          <>
            <dt>Decisions</dt>
            <dd>
              {d.approvals.map((a) => (
                <span key={a.person} className={`decision ${a.decision}`}>
                  {a.decision} by {a.person} {a.comment && `(${a.comment})`}
                </span>
              ))}
            </dd>
          </>
        )}
        {d.rolled_back_by && (
          <>
            <dt>Rollback</dt>
            <dd>
              <a href={`#/deployments/${d.rolled_back_by}`}>{d.rolled_back_by}</a>
            </dd>
          </>
        )}
      </dl>
      {d.steps.filter(worthShowing).map((s) => (
        <StepView key={s.id} step={s} />
      ))}
      <Logs id={id} />
    </article>
  );
}

/** The way into a subflow is worth a line only when something is to be decided there. */
export function worthShowing(s: Pick<Step, "id" | "kind" | "choices">): boolean {
  return s.kind !== "subflow" || !s.id.endsWith("/enter") || s.choices.length > 0;
}

function StepView({ step }: { step: Step }) {
  const about = step.action ?? (step.kind === "gateway" || step.kind === "subflow" ? step.kind : "");
  return (
    <section className={step.state === "not_taken" ? "step not-taken" : "step"}>
      <h2>
        {step.id} {about && <span className="muted">{about}</span>} <State state={step.state} />
      </h2>
      {step.taken.length > 0 && <p className="muted">went on to {step.taken.join(", ")}</p>}
      {step.runs !== null && <p className="muted">{`run ${step.runs} of at most ${step.max_runs}`}</p>}
      {step.reason && <p className="reason">{step.reason}</p>}
      {step.waves.map((w) => <WaveView key={w.index} n={w.index} wave={w} />)}
    </section>
  );
}

function WaveView({ n, wave }: { n: number; wave: Wave }) {
  return (
    <div className="wave" data-state={wave.state}>
      <h3>
        {n === 0 ? "Canary" : `Wave ${n + 1}`} <State state={wave.state} />
      </h3>
      <ul className="hosts">
        {wave.hosts.map((h) => (
          <HostView key={h.host} h={h} />
        ))}
      </ul>
    </div>
  );
}

function HostView({ h }: { h: HostRun }) {
  return (
    <li className={`host ${h.state}`} title={h.reason ?? h.state}>
      <b>{h.host}</b> <State state={h.state} />
      {h.attempt > 1 && <span className="muted"> attempt {h.attempt}</span>}
      {h.reason && <div className="reason">{h.reason}</div>}
    </li>
  );
}

type Verb = { name: string; path: string; body: (reason: string) => unknown; ask?: string; danger?: boolean };

/** The buttons: what the server says this person may do now, and only where it can help. */
export function verbs(d: Pick<Deployment, "plan_digest" | "waiting_on" | "steps" | "actions" | "kind" | "rolled_back_by">): Verb[] {
  const waits = (on: string) => d.waiting_on.some((w) => w.on === on);
  const unknown = d.waiting_on.filter((w) => w.on === "unknown").flatMap((w) => w.data?.hosts ?? []);
  // Bound to the plan that this page shows: if it changes in the meantime, the server refuses.
  const decide = (comment: string) => ({ digest: d.plan_digest, comment });
  const why = (reason: string) => ({ reason });
  const all: (Verb & { when?: boolean })[] = [
    { name: "Approve", path: "approve", body: decide },
    { name: "Reject", path: "reject", body: decide, ask: "Why?", danger: true },
    { name: "Cancel", path: "cancel", body: why, ask: "Why?", danger: true },
    ...d.steps.flatMap((s) =>
      s.waves
        .filter((w) => w.state === "confirming")
        .map((w) => ({ name: `Confirm wave ${w.index + 1}`, path: "confirm", body: () => ({ wave: w.index }) })),
    ),
    ...d.steps.flatMap((s) =>
      s.choices.map((branch) => ({ name: `${s.id}: ${branch}`, path: "choose", body: () => ({ step: s.id, branch }) })),
    ),
    { name: "Accept the changed plan", path: "accept", body: () => ({ digest: d.plan_digest }) },
    { name: "Retry", path: "retry", body: () => ({ hosts: [] }), when: waits("intervention") },
    { name: "Skip step", path: "skip", body: () => ({ hosts: [] }), when: waits("intervention") },
    {
      name: "Ignore",
      path: "ignore",
      body: (reason) => ({ hosts: [], reason }),
      ask: "Why may it be ignored?",
      when: waits("intervention"),
    },
    { name: "Resume", path: "resume", body: () => ({}), when: waits("operator") },
    { name: "Pause", path: "pause", body: why, ask: "Why?", when: !waits("operator") },
    { name: "Abort", path: "abort", body: why, ask: "Why?", danger: true },
    {
      name: "Override unknown",
      path: "override",
      body: (reason) => ({ hosts: unknown, reason }),
      ask: `What do you know about ${unknown.join(", ")}?`,
      danger: true,
      when: unknown.length > 0,
    },
    {
      name: "Roll back",
      path: "rollback",
      body: (reason) => ({ mode: "normal", reason }),
      ask: "Why?",
      danger: true,
      when: d.kind !== "rollback" && !d.rolled_back_by,
    },
  ];
  return all.filter((v) => d.actions.includes(v.path) && v.when !== false);
}

function Buttons({ d, done }: { d: Deployment; done: () => Promise<void> }) {
  const [busy, setBusy] = useState("");
  const [asking, setAsking] = useState<Verb | null>(null);
  const [reason, setReason] = useState("");
  const [answer, setAnswer] = useState<{ ok: boolean; text: string } | null>(null);

  const send = async (v: Verb) => {
    setBusy(v.name);
    setAsking(null);
    try {
      const r = await post(`/deployments/${d.id}/${v.path}`, v.body(reason));
      setAnswer({ ok: true, text: r.detail ?? "done" });
    } catch (e) {
      setAnswer({ ok: false, text: e instanceof Error ? e.message : String(e) });
    }
    setBusy("");
    setReason("");
    await done();
  };

  return (
    <div className="buttons">
      {verbs(d).map((v) => (
        <button
          type="button"
          key={v.name}
          className={v.danger ? "danger" : ""}
          disabled={busy !== ""}
          onClick={() => (v.ask ? setAsking(v) : void send(v))}
        >
          {busy === v.name ? "…" : v.name}
        </button>
      ))}
      {asking && (
        <form
          onSubmit={(e) => {
            e.preventDefault();
            void send(asking);
          }}
        >
          <input value={reason} onChange={(e) => setReason(e.target.value)} placeholder={asking.ask} autoFocus required />
          <button type="submit">{asking.name}</button>
          <button type="button" className="plain" onClick={() => setAsking(null)}>
            Back
          </button>
        </form>
      )}
      {answer && <p role={answer.ok ? "status" : "alert"}>{answer.text}</p>}
    </div>
  );
}
