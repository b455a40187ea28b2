// Requesting a deployment: the environment's own form, the plan it leads to, and then the request.
import { type FormEvent, useEffect, useState } from "react";
import { get, type Page, post, Problem } from "./api";

export type Field = {
  name: string;
  label: string;
  widget: "text" | "number" | "checkbox" | "select" | "host_selector" | "password" | "file";
  description: string;
  required: boolean;
  default: unknown;
  options: string[];
  hint: string;
};

type Form = { flow: string; fields: Field[]; hosts: string[]; versions: string[]; ships: boolean };
type Place = { project: string; name: string };
type HostPlan = { name: string; agent: string; from: string | null; to: string; change: string; temporary: boolean; locked: string | null };
type StepPlan = { id: string; kind: string; action: string | null; skipped: boolean; note: string | null; waves: string[][] };
type Report = { hosts: HostPlan[]; steps: StepPlan[]; gates: string[]; warnings: string[]; lock: { holder: string | null; queue: string[] } };
type Preview = { digest: string; report: Report };

/** What was typed: texts, ticks and files as they will be sent. */
export type Typed = Record<string, string | boolean | object>;

/** The request's inputs. What was left empty is left out, so that its default counts. */
export function inputsOf(fields: Field[], typed: Typed): Record<string, unknown> {
  const out: Record<string, unknown> = {};
  for (const f of fields) {
    const v = typed[f.name];
    if (v === undefined || v === "") continue;
    out[f.name] = f.widget === "number" ? Number(v) : v;
  }
  return out;
}

/** `1.0.0 → 1.1.0`, `same`, `unknown`. */
export function change(h: Pick<HostPlan, "change" | "from" | "to">): string {
  return h.change === "changes" ? `${h.from ?? "another release"} → ${h.to}` : h.change;
}

/** Names separated by commas or spaces. */
export function names(text: string): string[] {
  return text.split(/[\s,]+/).filter((n) => n !== "");
}

const hex = (bytes: ArrayBuffer) => [...new Uint8Array(bytes)].map((b) => b.toString(16).padStart(2, "0")).join("");

async function fileValue(file: File): Promise<object> {
  const bytes = await file.arrayBuffer();
  // Browsers digest only on pages that came over a safe way.
  if (!crypto.subtle) throw new Error("Files can be given only where the console is opened over https or on this machine.");
  const sha256 = hex(await crypto.subtle.digest("SHA-256", bytes));
  let text = "";
  for (const b of new Uint8Array(bytes)) text += String.fromCharCode(b);
  return { name: file.name, content: btoa(text), sha256, size: bytes.byteLength };
}

export function NewDeployment() {
  const [places, setPlaces] = useState<Place[]>([]);
  const [place, setPlace] = useState("");
  const [form, setForm] = useState<Form | null>(null);
  const [version, setVersion] = useState("");
  const [typed, setTyped] = useState<Typed>({});
  const [only, setOnly] = useState("");
  const [exclude, setExclude] = useState("");
  const [note, setNote] = useState("");
  const [preview, setPreview] = useState<Preview | null>(null);
  const [error, setError] = useState("");
  const [project, environment] = place.split("/");

  useEffect(() => {
    get<Page<{ doc: Place }>>("/catalog/environment?limit=200")
      .then((p) => setPlaces(p.items.map((i) => i.doc)))
      .catch((e) => setError(String(e)));
  }, []);
  useEffect(() => {
    setForm(null);
    setPreview(null);
    setTyped({});
    if (!project || !environment) return;
    get<Form>(`/projects/${project}/environments/${environment}/form`)
      .then((f) => {
        setForm(f);
        setVersion(f.ships ? (f.versions[0] ?? "") : "");
        setError("");
      })
      .catch((e) => setError(e instanceof Problem ? e.message : String(e)));
  }, [project, environment]);

  const body = () => ({
    environment,
    ...(version && { version }),
    inputs: inputsOf(form?.fields ?? [], typed),
    hosts: names(only),
    exclude_hosts: names(exclude),
    note,
  });
  const set = (name: string, v: string | boolean | object) => {
    setPreview(null);
    setTyped((t) => ({ ...t, [name]: v }));
  };
  const attempt = async (what: () => Promise<void>) => {
    try {
      await what();
      setError("");
    } catch (e) {
      setError(e instanceof Problem ? e.message : String(e));
    }
  };
  const show = (e: FormEvent) => {
    e.preventDefault();
    void attempt(async () => setPreview((await post(`/projects/${project}/plan`, body())) as unknown as Preview));
  };
  const request = () =>
    attempt(async () => {
      const done = (await post(`/projects/${project}/deployments`, body())) as { new_deployment?: string };
      location.hash = done.new_deployment ? `#/deployments/${done.new_deployment}` : "#/";
    });

  return (
    <form className="new" onSubmit={show}>
      <h1>New deployment</h1>
      <label>
        Environment
        <select name="place" value={place} onChange={(e) => setPlace(e.target.value)} required>
          <option value="">Choose …</option>
          {places.map((p) => (
            <option key={`${p.project}/${p.name}`}>{`${p.project}/${p.name}`}</option>
          ))}
        </select>
      </label>
      {form && (
        <>
          <label>
            Version
            <select name="version" value={version} onChange={(e) => { setVersion(e.target.value); setPreview(null); }} required={form.ships}>
              {!form.ships && <option value="">no artifact</option>}
              {form.versions.map((v) => (
                <option key={v}>{v}</option>
              ))}
            </select>
          </label>
          {form.fields.map((f) => (
            <Input key={`${place} ${f.name}`} field={f} value={typed[f.name]} set={(v) => set(f.name, v)} failed={setError} />
          ))}
          <label>
            Only these hosts <span className="muted">of {form.hosts.join(", ")}</span>
            <input name="only" value={only} onChange={(e) => { setOnly(e.target.value); setPreview(null); }} />
          </label>
          <label>
            Without these hosts
            <input name="exclude" value={exclude} onChange={(e) => { setExclude(e.target.value); setPreview(null); }} />
          </label>
          <label>
            Note
            <input name="note" value={note} onChange={(e) => setNote(e.target.value)} />
          </label>
          <p>
            <button type="submit">Show plan</button>{" "}
            {preview && (
              <button type="button" onClick={() => void request()}>
                Request
              </button>
            )}
          </p>
        </>
      )}
      {error && <p role="alert">{error}</p>}
      {preview && <PlanView preview={preview} />}
    </form>
  );
}

function Input(p: { field: Field; value: Typed[string] | undefined; set: (v: Typed[string]) => void; failed: (e: string) => void }) {
  const { field: f, value, set } = p;
  const hint = [f.description, f.hint].filter((t) => t !== "").join(" · ");
  const head = (
    <>
      {f.label}
      {f.required ? " *" : ""} {hint && <span className="muted">{hint}</span>}
    </>
  );
  if (f.widget === "checkbox") {
    return (
      <label>
        <input type="checkbox" name={f.name} checked={Boolean(value ?? f.default)} onChange={(e) => set(e.target.checked)} /> {head}
      </label>
    );
  }
  if (f.widget === "select") {
    return (
      <label>
        {head}
        <select name={f.name} value={String(value ?? f.default ?? "")} onChange={(e) => set(e.target.value)} required={f.required}>
          {f.default === null && <option value="" />}
          {f.options.map((o) => (
            <option key={o}>{o}</option>
          ))}
        </select>
      </label>
    );
  }
  if (f.widget === "file") {
    const read = (file?: File) => file && fileValue(file).then(set, (e) => p.failed(String(e)));
    return (
      <label>
        {head}
        <input type="file" name={f.name} required={f.required} onChange={(e) => void read(e.target.files?.[0])} />
      </label>
    );
  }
  const type = { number: "number", password: "password" }[f.widget as string] ?? "text";
  const placeholder = f.default === null ? (f.widget === "host_selector" ? "role=web" : "") : String(f.default);
  return (
    <label>
      {head}
      <input
        type={type}
        name={f.name}
        step="any"
        autoComplete="off"
        placeholder={placeholder}
        value={String(value ?? "")}
        onChange={(e) => set(e.target.value)}
        required={f.required}
      />
    </label>
  );
}

function PlanView({ preview: { digest, report: r } }: { preview: Preview }) {
  return (
    <section className="plan">
      <p className="muted">Plan {digest}</p>
      {r.lock.holder && (
        <p>
          Waits for <a href={`#/deployments/${r.lock.holder}`}>the deployment that holds the environment</a>, {r.lock.queue.length} ahead.
        </p>
      )}
      <ul>
        {r.gates.map((g) => (
          <li key={g}>{g}</li>
        ))}
        {r.warnings.map((w) => (
          <li key={w} className="warning">
            {w}
          </li>
        ))}
      </ul>
      <table>
        <thead>
          <tr>
            <th>Host</th>
            <th>Agent</th>
            <th>Change</th>
          </tr>
        </thead>
        <tbody>
          {r.hosts.map((h) => (
            <tr key={h.name}>
              <td>
                {h.name} {h.temporary && <span className="tag">temporary</span>}
              </td>
              <td>{h.agent.replaceAll("_", " ")}</td>
              <td>
                {change(h)} {h.locked && <span className="tag">{h.locked}</span>}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <ol>
        {r.steps.map((s) => (
          <li key={s.id} className={s.skipped ? "muted" : ""}>
            {s.id} {s.action ?? s.kind} {s.skipped && `(skipped${s.note ? `: ${s.note}` : ""})`}
            {s.waves.length > 0 && `: ${s.waves.map((w, i) => `wave ${i + 1} ${w.length > 5 ? `${w.length} hosts` : w.join(", ")}`).join("; ")}`}
          </li>
        ))}
      </ol>
    </section>
  );
}
