// A question before something is done: what will happen, what else is needed, and the button that does it.
import { type FormEvent, type ReactNode, useEffect, useRef, useState } from "react";

export type Question = {
  title: string;
  /** What will happen, in a sentence. */
  says: string;
  /** The reason that the record will show; absent where none is asked for. */
  reason?: "needed" | "welcome";
  danger?: boolean;
  /** What else can be chosen. */
  children?: ReactNode;
  /** May throw: the message is shown, and the question stays. */
  send: (reason: string) => Promise<void>;
};

export function Ask({ q, close }: { q: Question; close: () => void }) {
  const box = useRef<HTMLDialogElement>(null);
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  useEffect(() => box.current?.showModal(), []);

  const submit = async (e: FormEvent) => {
    e.preventDefault();
    setBusy(true);
    try {
      await q.send(reason.trim());
      close();
    } catch (e) {
      setError(e instanceof Error ? e.message : String(e));
      setBusy(false);
    }
  };
  return (
    <dialog ref={box} onClose={close} aria-labelledby="ask-title">
      <form onSubmit={(e) => void submit(e)}>
        <h2 id="ask-title">{q.title}</h2>
        <p>{q.says}</p>
        {q.children}
        {q.reason && (
          <label>
            Reason
            <input value={reason} onChange={(e) => setReason(e.target.value)} required={q.reason === "needed"} autoFocus />
          </label>
        )}
        {error && <p role="alert">{error}</p>}
        <div className="buttons">
          <button type="submit" className={q.danger ? "danger" : ""} disabled={busy}>
            {q.title}
          </button>
          <button type="button" className="plain" onClick={close}>
            Back
          </button>
        </div>
      </form>
    </dialog>
  );
}
