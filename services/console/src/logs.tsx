// The live log of a deployment: host and step before each line, as text and nothing else.
import { useEffect, useRef, useState } from "react";
import { follow } from "./api";

type Chunk = { host: string; step: string; stream: string; data: string };
type Line = { n: number; host: string; step: string; stream: string; text: string };

/** Lines kept on the page; older ones are still in the log. */
const KEPT = 5000;

/** Cursor movements, colours and other control sequences mean nothing on a page. */
export function plain(text: string): string {
  return (
    text
      .replace(/\u001b\[[0-?]*[ -/]*[@-~]/g, "")
      .replace(/\u001b\][^\u0007\u001b]*(\u0007|\u001b\\)/g, "")
      .replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, "")
  );
}

export function Logs({ id }: { id: string }) {
  const [lines, setLines] = useState<Line[]>([]);
  const [host, setHost] = useState("");
  const [live, setLive] = useState(false);
  const box = useRef<HTMLPreElement>(null);
  const pinned = useRef(true);

  useEffect(() => {
    let n = 0;
    const open = new Map<string, { rest: string; decoder: TextDecoder }>();
    return follow(
      `/deployments/${id}/logs`,
      (e) => {
        let c: Chunk;
        try {
          c = JSON.parse(e.data) as Chunk;
        } catch {
          return;
        }
        // A chunk may end in mid-line; the rest of the line comes with the next chunk of the same stream.
        const key = `${c.host}\n${c.step}\n${c.stream}`;
        const from = open.get(key) ?? { rest: "", decoder: new TextDecoder() };
        const bytes = Uint8Array.from(atob(c.data), (b) => b.charCodeAt(0));
        const parts = (from.rest + from.decoder.decode(bytes, { stream: true })).split("\n");
        from.rest = parts.pop() ?? "";
        if (from.rest.length > 4096) {
          parts.push(from.rest);
          from.rest = "";
        }
        open.set(key, from);
        const fresh = parts.map((text) => ({ n: n++, host: c.host, step: c.step, stream: c.stream, text: plain(text) }));
        if (fresh.length > 0) setLines((l) => [...l, ...fresh].slice(-KEPT));
      },
      setLive,
    );
  }, [id]);

  useEffect(() => {
    if (pinned.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, host]);

  const hosts = [...new Set(lines.map((l) => l.host))].sort();
  const shown = host ? lines.filter((l) => l.host === host) : lines;
  return (
    <section>
      <h2>
        Log {live && <span className="live">live</span>}
        <select value={host} onChange={(e) => setHost(e.target.value)} aria-label="Host">
          <option value="">all hosts</option>
          {hosts.map((h) => (
            <option key={h}>{h}</option>
          ))}
        </select>
      </h2>
      <pre
        ref={box}
        className="log"
        onScroll={(e) => {
          const b = e.currentTarget;
          pinned.current = b.scrollHeight - b.scrollTop - b.clientHeight < 40;
        }}
      >
        {shown.map((l) => (
          <div key={l.n} className={l.stream}>
            <span className="from">
              {l.host} {l.step}
            </span>
            {l.text}
          </div>
        ))}
      </pre>
    </section>
  );
}
