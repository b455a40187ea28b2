// Reading what changes by itself: again and again while the page is looked at.
import { useCallback, useEffect, useState } from "react";
import { get } from "./api";

const REFRESH_MS = 5000;

/** What `path` answers, why it does not, and a way to read it again now. A page that is not looked at reads nothing. */
export function useLoad<T>(path: string | null): { value: T | null; error: string; again: () => Promise<void> } {
  const [value, setValue] = useState<T | null>(null);
  const [error, setError] = useState("");
  const again = useCallback(async () => {
    if (!path) return;
    try {
      setValue(await get<T>(path));
      setError("");
    } catch (e) {
      setError(e instanceof Error ? e.message : String(e));
    }
  }, [path]);
  useEffect(() => {
    setValue(null);
    void again();
    const timer = setInterval(() => document.visibilityState === "visible" && void again(), REFRESH_MS);
    return () => clearInterval(timer);
  }, [again]);
  return { value, error, again };
}
