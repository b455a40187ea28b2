// The HTTP API as the console uses it: types, one request function, and a reader of event streams that can resume.

export type Waiting = { on: string; text: string; data?: { hosts?: string[]; owner?: string | null; deadline?: string | null } };

/** Who did something, why and when. */
export type By = { who: string; reason: string; at: string };

// Fields marked `?` are left out where there is nothing to say.

export type HostRun = {
  host: string;
  state: string;
  attempt: number;
  failed_step: number | null;
  failed_id?: string | null;
  reason: string | null;
  /** What kind of failure it was. */
  class?: string | null;
  /** Retries that a policy made. */
  retried?: number;
  /** A person stopped it, or said how it came out. */
  by?: By | null;
  task?: { traffic?: Traffic | null } | null;
};

/** Where a host stands with the load balancers. */
export type Traffic = { state: string; reason?: string | null; since?: string };

export type ProbeResult = { probe: string; verdict: string; looks: number; value?: unknown; reason?: string | null };

export type Wave = {
  index: number;
  state: string;
  bake_until: string | null;
  group?: string | null;
  max_failures?: number | null;
  probe?: { verdict: string | null; reason?: string | null; probes: ProbeResult[] } | null;
  hosts: HostRun[];
};

/** Of the hosts, each counted once. */
export type Counts = Record<string, number> & { total: number };

export type Step = {
  id: string;
  state: string;
  kind: "central" | "rollout" | "gateway" | "subflow";
  action: string | null;
  reason: string | null;
  /** Gateways: where it went on. */
  taken: string[];
  /** What a person may answer where an expression failed. */
  choices: string[];
  phase?: string | null;
  required?: boolean;
  forced?: By | null;
  /** Of a rollout: hosts that may fail in all. */
  max_failures?: number | null;
  /** Repeated steps. */
  runs: number | null;
  max_runs: number | null;
  waves: Wave[];
};

export type Summary = {
  id: string;
  project: string;
  environment: string;
  version: string;
  kind: string;
  state: string;
  requested_by: string;
  requested_at: string;
  started_at: string | null;
  ended_at: string | null;
  waiting_on: Waiting[];
  hosts?: Counts;
};

export type Deployment = Summary & {
  note: string;
  plan_digest: string;
  steps: Step[];
  approvals: { person: string; decision: string; at: string; comment: string }[];
  rolled_back_by: string | null;
  pause?: By | null;
  end?: By | null;
  claim?: By | null;
  /** It waits for a person: since when, until when, and who answers for it. */
  attention?: { since: string; deadline: string; owner?: string | null } | null;
  run?: number;
  reopened?: By | null;
  amendment?: { by: By; inputs: Record<string, unknown>; digest: string; missing?: { rule: string; have: number; quorum: number }[] } | null;
  rollback_of?: string | null;
  /** What this person may press now, by right and by state. */
  actions: string[];
};

export type Page<T> = { items: T[]; next?: string | null };

/** A problem document (RFC 9457), or what stands in for one when the answer is not readable. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail || title);
  }
}

const TOKEN = "windlass.token";
// Kept for the tab only: closing it signs out.
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (t: string) => sessionStorage.setItem(TOKEN, t),
  clear: () => sessionStorage.removeItem(TOKEN),
};

function headers(extra: Record<string, string> = {}): Record<string, string> {
  return { authorization: `Bearer ${token.get() ?? ""}`, ...extra };
}

async function problem(r: Response): Promise<Problem> {
  const body = (await r.json().catch(() => ({}))) as { title?: string; detail?: string };
  return new Problem(r.status, body.title ?? `status ${r.status}`, body.detail ?? "");
}

export async function get<T>(path: string): Promise<T> {
  const r = await fetch(`/api/v1${path}`, { headers: headers({ accept: "application/json" }) });
  if (!r.ok) throw await problem(r);
  return (await r.json()) as T;
}

async function send(method: string, path: string, body?: unknown): Promise<{ accepted?: boolean; detail?: string }> {
  const r = await fetch(`/api/v1${path}`, {
    method,
    headers: headers({ "content-type": "application/json", "idempotency-key": crypto.randomUUID() }),
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  if (!r.ok) throw await problem(r);
  return (await r.json().catch(() => ({}))) as { accepted?: boolean; detail?: string };
}

/** Sends a verb. The key makes a double click or a lost answer harmless. */
export const post = (path: string, body: unknown) => send("POST", path, body);
export const put = (path: string, body: unknown) => send("PUT", path, body);
export const remove = (path: string) => send("DELETE", path);

export type StreamEvent = { id: string; event: string; data: string };

/** Splits a server-sent event stream; keeps what is not yet a whole event for the next piece. */
export function split(buffer: string): { events: StreamEvent[]; rest: string } {
  const events: StreamEvent[] = [];
  const text = buffer.replaceAll("\r\n", "\n");
  const blocks = text.split("\n\n");
  const rest = blocks.pop() ?? "";
  for (const block of blocks) {
    const e: StreamEvent = { id: "", event: "message", data: "" };
    const data: string[] = [];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      if (colon <= 0) continue;
      const value = line.slice(colon + 1).replace(/^ /, "");
      const field = line.slice(0, colon);
      if (field === "id") e.id = value;
      else if (field === "event") e.event = value;
      else if (field === "data") data.push(value);
    }
    e.data = data.join("\n");
    if (data.length > 0) events.push(e);
  }
  return { events, rest };
}

/**
 * Follows a stream until `stop`, resuming after the last event seen. `EventSource` cannot send a token, so this reads
 * the body itself.
 */
export function follow(path: string, seen: (e: StreamEvent) => void, status: (live: boolean) => void): () => void {
  const abort = new AbortController();
  let last = "";
  let wait = 500;
  const run = async () => {
    while (!abort.signal.aborted) {
      try {
        const extra: Record<string, string> = { accept: "text/event-stream" };
        if (last) extra["last-event-id"] = last;
        const r = await fetch(`/api/v1${path}`, { headers: headers(extra), signal: abort.signal });
        if (r.status === 401 || r.status === 404) return status(false);
        if (!r.ok || !r.body) throw await problem(r);
        status(true);
        wait = 500;
        const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
        let buffer = "";
        for (;;) {
          const { value, done } = await reader.read();
          if (done) break;
          const cut = split(buffer + value);
          buffer = cut.rest;
          for (const e of cut.events) {
            if (e.id) last = e.id;
            if (e.event === "end") return status(false);
            seen(e);
          }
        }
      } catch {
        if (abort.signal.aborted) return;
      }
      status(false);
      await new Promise((r) => setTimeout(r, wait));
      wait = Math.min(wait * 2, 10_000);
    }
  };
  void run();
  return () => abort.abort();
}
