// The HTTP API as the console uses it: types, one request function, and a reader of event streams that can resume.

export type Waiting = { on: string; text: string; data?: { hosts?: string[] } };

export type HostRun = {
  host: string;
  state: string;
  attempt: number;
  failed_step: number | null;
  reason: string | null;
};

export type Wave = { index: number; state: string; bake_until: string | null; hosts: HostRun[] };

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
};

export type Deployment = Summary & {
  note: string;
  plan_digest: string;
  steps: Step[];
  approvals: { person: string; decision: string; at: string; comment: string }[];
  rolled_back_by: string | null;
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

/** Sends a verb. The key makes a double click or a lost answer harmless. */
export async function post(path: string, body: unknown): Promise<{ accepted?: boolean; detail?: string }> {
  const r = await fetch(`/api/v1${path}`, {
    method: "POST",
    headers: headers({ "content-type": "application/json", "idempotency-key": crypto.randomUUID() }),
    body: JSON.stringify(body),
  });
  if (!r.ok) throw await problem(r);
  return (await r.json()) as { accepted?: boolean; detail?: string };
}

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
