// One deployment: what it waits for, its waves and hosts changing live, the buttons, the log.
import { useCallback, useEffect, useRef, useState } from "react";
import { type Deployment, follow, get, type Step } from "./api";
import { DiagnosisPanel } from "./diagnosis";
import { Logs } from "./logs";
import { Ago, State, Until, WaitingText } from "./parts";
import { brief, HostCounts, WaveView } from "./rollout";
import { Buttons } from "./verbs";

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
      {d.attention && (
        <p className="muted">
          It has waited for a person since <Ago at={d.attention.since} />
          {d.attention.owner && <>; {d.attention.owner} answers for it</>}; too late in
          <Until at={d.attention.deadline} />.
        </p>
      )}
      {d.hosts && <HostCounts counts={d.hosts} />}
      {error && <p role="alert">{error}</p>}
      <Buttons d={d} done={load} />
      <dl>
        <dt>Requested</dt>
        <dd>
          by {d.requested_by}, <Ago at={d.requested_at} />
          {d.note && <> — {d.note}</>}
        </dd>
        {(d.run ?? 1) > 1 && (
          <>
            <dt>Run</dt>
            <dd>
              {d.run}
              {d.reopened && (
                <>
                  , taken up again by {d.reopened.who}, <Ago at={d.reopened.at} />
                </>
              )}
            </dd>
          </>
        )}
        {d.claim && (
          <>
            <dt>Claimed</dt>
            <dd>
              by {d.claim.who}, <Ago at={d.claim.at} />
            </dd>
          </>
        )}
        {d.amendment && (
          <>
            <dt>Other inputs</dt>
            <dd>
              {Object.entries(d.amendment.inputs).map(([k, v]) => (
                <code key={k}>
                  {k}={brief(v)}{" "}
                </code>
              ))}
              asked for by {d.amendment.by.who}
              {d.amendment.missing?.map((m) => ` — approval ${m.have} of ${m.quorum} for ${m.rule}`)}
            </dd>
          </>
        )}
        {d.end && (
          <>
            <dt>Ended</dt>
            <dd>
              by {d.end.who}, <Ago at={d.end.at} />: {d.end.reason}
            </dd>
          </>
        )}
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
        {d.rollback_of && (
          <>
            <dt>Goes back from</dt>
            <dd>
              <a href={`#/deployments/${d.rollback_of}`}>{d.rollback_of}</a>
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
      {!["succeeded", "rolled_back"].includes(d.state) && <DiagnosisPanel id={d.id} may={d.actions.length > 0} />}
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
        {step.phase && <span className="tag">{step.phase}</span>}
        {step.required && <span className="tag">required</span>}
      </h2>
      {step.taken.length > 0 && <p className="muted">went on to {step.taken.join(", ")}</p>}
      {step.runs !== null && <p className="muted">{`run ${step.runs} of at most ${step.max_runs}`}</p>}
      {step.reason && <p className="reason">{step.reason}</p>}
      {step.forced && (
        <p className="muted">
          {step.forced.who} said how it came out, <Ago at={step.forced.at} />: {step.forced.reason}
        </p>
      )}
      {step.waves.map((w) => (
        <WaveView key={w.index} step={step} wave={w} />
      ))}
    </section>
  );
}
