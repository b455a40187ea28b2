// Why a run stands still: what was found, the evidence, and the repairs that are safe.
import { useState } from "react";
import { get, post } from "./api";
import { Ask, type Question } from "./ask";
import { State } from "./parts";

type Finding = { cause: string; severity: string; text: string; evidence: string[]; remedy: string; repair?: { does: string } | null };
type Diagnosis = { findings: Finding[]; summary: string; never: string[] };

export function DiagnosisPanel({ id, may }: { id: string; may: boolean }) {
  const [found, setFound] = useState<Diagnosis | null>(null);
  const [error, setError] = useState("");
  const [asking, setAsking] = useState<Question | null>(null);
  const look = async () => {
    try {
      setFound(await get<Diagnosis>(`/deployments/${id}/diagnosis`));
      setError("");
    } catch (e) {
      setError(e instanceof Error ? e.message : String(e));
    }
  };
  const repair = (f: Finding): Question => ({
    title: "Repair",
    says: f.repair?.does ?? "",
    send: async () => {
      await post(`/deployments/${id}/repair`, { cause: f.cause, apply: true });
      await look();
    },
  });
  return (
    <details onToggle={(e) => (e.currentTarget as HTMLDetailsElement).open && void look()}>
      <summary>What is it waiting for? Look into it</summary>
      {error && <p role="alert">{error}</p>}
      {found && (
        <>
          <p>{found.summary}</p>
          <ul className="findings">
            {found.findings.map((f, i) => (
              <li key={i}>
                <State state={f.cause} /> {f.text}
                <ul>
                  {f.evidence.map((e) => (
                    <li key={e} className="muted">
                      {e}
                    </li>
                  ))}
                </ul>
                {f.remedy}
                {f.repair && may && (
                  <button type="button" className="plain" onClick={() => setAsking(repair(f))}>
                    {f.repair.does}
                  </button>
                )}
              </li>
            ))}
          </ul>
        </>
      )}
      {asking && <Ask q={asking} close={() => setAsking(null)} />}
    </details>
  );
}
