// The list of deployments, newest first, refreshed while the page is looked at.
import { useCallback, useEffect, useState } from "react";
import { get, type Page, type Summary } from "./api";
import { Ago, State, WaitingText } from "./parts";

const REFRESH_MS = 3000;

export function Deployments() {
  const [items, setItems] = useState<Summary[] | null>(null);
  const [next, setNext] = useState<string | null>(null);
  const [error, setError] = useState("");
  const [older, setOlder] = useState<Summary[]>([]);

  const load = useCallback(async () => {
    try {
      const page = await get<Page<Summary>>("/deployments?limit=50");
      setItems(page.items);
      setNext((n) => n ?? page.next ?? null);
      setError("");
    } catch (e) {
      setError(String(e));
    }
  }, []);
  useEffect(() => {
    void load();
    const timer = setInterval(() => document.visibilityState === "visible" && void load(), REFRESH_MS);
    return () => clearInterval(timer);
  }, [load]);

  const more = async () => {
    if (!next) return;
    const page = await get<Page<Summary>>(`/deployments?limit=50&cursor=${encodeURIComponent(next)}`);
    setOlder((o) => [...o, ...page.items]);
    setNext(page.next ?? null);
  };

  if (!items) return error ? <p role="alert">{error}</p> : <p className="muted">Loading…</p>;
  const shown = new Set(items.map((d) => d.id));
  const rows = [...items, ...older.filter((d) => !shown.has(d.id))];
  if (rows.length === 0) {
    return <p className="empty">No deployment yet. Register an artifact and request one, or let your CI post “build ready”.</p>;
  }
  return (
    <>
      {error && <p role="alert">{error}</p>}
      <table>
        <thead>
          <tr>
            <th>State</th>
            <th>Project</th>
            <th>Environment</th>
            <th>Version</th>
            <th>Waiting for</th>
            <th>By</th>
            <th>Requested</th>
          </tr>
        </thead>
        <tbody>
          {rows.map((d) => (
            <tr key={d.id}>
              <td>
                <a href={`#/deployments/${d.id}`}>
                  <State state={d.state} />
                </a>
              </td>
              <td>{d.project}</td>
              <td>{d.environment}</td>
              <td>
                <a href={`#/deployments/${d.id}`}>{d.version}</a>
                {d.kind === "rollback" && <span className="tag">rollback</span>}
              </td>
              <td className="waiting">
                <WaitingText waiting={d.waiting_on} />
              </td>
              <td>{d.requested_by}</td>
              <td>
                <Ago at={d.requested_at} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {next && rows.length >= 50 && (
        <button type="button" className="plain" onClick={() => void more()}>
          Older
        </button>
      )}
    </>
  );
}
