// Small parts that several pages show.
import type { Waiting } from "./api";

export function State({ state }: { state: string }) {
  return <span className={`state ${state}`}>{state.replaceAll("_", " ")}</span>;
}

export function Ago({ at }: { at: string | null }) {
  if (!at) return <>–</>;
  return (
    <time dateTime={at} title={at}>
      {ago(new Date(at), new Date())}
    </time>
  );
}

/** Whole units, the largest that fits: `12 s`, `3 min`, `5 h`, `2 d`. */
export function ago(then: Date, now: Date): string {
  const s = Math.max(0, Math.round((now.getTime() - then.getTime()) / 1000));
  return `${span(s)} ago`;
}

/** A time that is still to come: how long until then. */
export function Until({ at }: { at: string }) {
  const s = Math.round((new Date(at).getTime() - Date.now()) / 1000);
  return (
    <time className="muted" dateTime={at} title={at}>
      {s > 0 ? ` for another ${span(s)}` : " due"}
    </time>
  );
}

/** Whole units, the largest that fits. */
export function span(s: number): string {
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} d`;
}

export function WaitingText({ waiting }: { waiting: Waiting[] }) {
  return (
    <>
      {waiting.map((w, i) => (
        <span key={i} className={`wait ${w.on}`}>
          {w.text}
        </span>
      ))}
    </>
  );
}
