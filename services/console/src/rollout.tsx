// A rollout: its waves with their hosts, budgets, probes and traffic. Built for thousands of hosts: what is as it should be is
// counted, what is not is shown.
import { useState } from "react";
import type { Counts, HostRun, Step, Wave } from "./api";
import { Ago, State, Until } from "./parts";

/** Cards drawn for one wave before somebody asks for the rest. */
const SHOWN = 60;

/** Kinds of hosts in the order people ask about them. */
const KINDS = [
  "failed", "unknown", "running", "succeeded", "waiting", "hand_stopped", "auto_stopped", "not_started", "ignored", "excluded",
];

/** How many hosts are in each state, the states people ask about first in front; states nobody is in are left out. */
export function counted(counts: Record<string, number>): [string, number][] {
  const known = KINDS.filter((k) => (counts[k] ?? 0) > 0).map((k): [string, number] => [k, counts[k] ?? 0]);
  return known;
}

export function HostCounts({ counts }: { counts: Counts }) {
  return (
    <p className="counts" data-testid="counts">
      {counted(counts).map(([state, n]) => (
        <span key={state}>
          <b>{n}</b> <State state={state} />
        </span>
      ))}
      <span className="muted">of {counts.total} hosts</span>
    </p>
  );
}

/** Hosts worth a card first: those that need somebody, then those that run, then the rest. */
export function byNeed(hosts: HostRun[]): HostRun[] {
  const rank = (h: HostRun) => {
    const i = KINDS.indexOf(h.state);
    return i < 0 ? KINDS.length : i;
  };
  return [...hosts].sort((a, b) => rank(a) - rank(b));
}

export function WaveView({ step, wave }: { step: Step; wave: Wave }) {
  const [all, setAll] = useState(false);
  const order = byNeed(wave.hosts);
  const shown = all ? order : order.slice(0, SHOWN);
  const failed = wave.hosts.filter((h) => ["failed", "unknown", "not_started", "hand_stopped"].includes(h.state)).length;
  const budget = wave.max_failures ?? step.max_failures;
  return (
    <div className="wave" data-state={wave.state}>
      <h3>
        {wave.index === 0 ? "Canary" : `Wave ${wave.index + 1}`} {wave.group && <span className="tag">{wave.group}</span>}{" "}
        <State state={wave.state} />
        {wave.bake_until && <Until at={wave.bake_until} />}
        {budget !== undefined && budget !== null && failed > 0 && (
          <span className="muted">
            {" "}
            {failed} failed, {budget} may
          </span>
        )}
      </h3>
      {wave.probe && (
        <ul className="probes">
          {wave.probe.reason && <li className="reason">{wave.probe.reason}</li>}
          {wave.probe.probes.map((p) => (
            <li key={p.probe}>
              <b>{p.probe}</b> <State state={p.verdict} /> {p.value !== undefined && p.value !== null && <code>{brief(p.value)}</code>}{" "}
              <span className="muted">{p.looks} looks</span> {p.reason}
            </li>
          ))}
        </ul>
      )}
      <ul className="hosts">
        {shown.map((h) => (
          <HostView key={h.host} h={h} />
        ))}
      </ul>
      {order.length > shown.length && (
        <button type="button" className="plain" onClick={() => setAll(true)}>
          {order.length - shown.length} more hosts
        </button>
      )}
    </div>
  );
}

/** A value in one short line. */
export function brief(value: unknown): string {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

function HostView({ h }: { h: HostRun }) {
  const traffic = h.task?.traffic;
  return (
    <li className={`host ${h.state}`} title={h.reason ?? h.state}>
      <b>{h.host}</b> <State state={h.state} />
      {h.attempt > 1 && <span className="muted"> attempt {h.attempt}</span>}
      {h.failed_id && <span className="muted"> at {h.failed_id}</span>}
      {traffic && traffic.state !== "attached" && (
        <div className="muted">
          {traffic.state.replaceAll("_", " ")}
          {traffic.reason && `: ${traffic.reason}`}
        </div>
      )}
      {h.reason && <div className="reason">{h.reason}</div>}
      {h.by && (
        <div className="muted">
          {h.by.who}, <Ago at={h.by.at} />: {h.by.reason}
        </div>
      )}
    </li>
  );
}
