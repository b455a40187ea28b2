// What a verb's form asks for besides the reason: which hosts, the whole wave, and how to roll back.
import type { Deployment } from "./api";

export type Extra = {
  /** Hosts to choose from; none chosen means all of them, unless `must`. */
  hosts?: string[];
  must?: boolean;
  wholeWave?: boolean;
  inputs?: boolean;
  rollback?: boolean;
};

/** What was chosen. */
export class Chosen {
  hosts: string[] = [];
  wholeWave = false;
  inputs = "";
  mode: "normal" | "emergency" = "normal";
  to = "";
  veto = false;
  phase = "";

  with(change: Partial<Chosen>): Chosen {
    return Object.assign(new Chosen(), this, change);
  }
}

/** `name=value` lines. What reads as JSON (a number, true, a list) is that, anything else is text. */
export function pairs(text: string): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const line of text.split("\n")) {
    const at = line.indexOf("=");
    if (at <= 0) continue;
    const value = line.slice(at + 1).trim();
    try {
      out[line.slice(0, at).trim()] = JSON.parse(value);
    } catch {
      out[line.slice(0, at).trim()] = value;
    }
  }
  return out;
}

const PHASES = ["prepare", "pre-release", "release", "post-release"];

export function Extra({ d, extra, chosen, set }: { d: Deployment; extra: Extra; chosen: Chosen; set: (c: Chosen) => void }) {
  const toggle = (h: string) =>
    set(chosen.with({ hosts: chosen.hosts.includes(h) ? chosen.hosts.filter((x) => x !== h) : [...chosen.hosts, h] }));
  return (
    <>
      {extra.hosts && extra.hosts.length > 0 && (
        <fieldset>
          <legend>{extra.must ? "Hosts" : "Hosts (none chosen: all of these)"}</legend>
          <div className="pick">
            {extra.hosts.map((h) => (
              <label key={h}>
                <input type="checkbox" checked={chosen.hosts.includes(h)} onChange={() => toggle(h)} /> {h}
              </label>
            ))}
          </div>
          {extra.must && (
            <button type="button" className="plain" onClick={() => set(chosen.with({ hosts: extra.hosts ?? [] }))}>
              All
            </button>
          )}
        </fieldset>
      )}
      {extra.wholeWave && (
        <label>
          <input type="checkbox" checked={chosen.wholeWave} onChange={(e) => set(chosen.with({ wholeWave: e.target.checked }))} /> The
          whole wave from its first step, hosts that succeeded too
        </label>
      )}
      {extra.inputs && (
        <label>
          Inputs that change, one `name=value` a line
          <textarea rows={4} value={chosen.inputs} onChange={(e) => set(chosen.with({ inputs: e.target.value }))} required />
        </label>
      )}
      {extra.rollback && (
        <>
          <label>
            How
            <select value={chosen.mode} onChange={(e) => set(chosen.with({ mode: e.target.value as Chosen["mode"] }))}>
              <option value="normal">normal: out of the load balancer, switch, test, back</option>
              <option value="emergency">emergency: switch and restart only</option>
            </select>
          </label>
          <label>
            To version
            <input value={chosen.to} onChange={(e) => set(chosen.with({ to: e.target.value }))} placeholder="last known good" />
          </label>
          <label>
            From phase
            <select value={chosen.phase} onChange={(e) => set(chosen.with({ phase: e.target.value }))}>
              <option value="">release and later</option>
              {PHASES.map((p) => (
                <option key={p}>{p}</option>
              ))}
            </select>
          </label>
          <label>
            <input type="checkbox" checked={chosen.veto} onChange={(e) => set(chosen.with({ veto: e.target.checked }))} /> Never release{" "}
            {d.version} again
          </label>
        </>
      )}
    </>
  );
}
