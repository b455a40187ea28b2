// Sign-in and the frame around every page. The page is named by the hash, so the server needs no routes of its own.
import { type FormEvent, useCallback, useEffect, useState } from "react";
import { get, Problem, token } from "./api";
import { Board } from "./board";
import { BundlePage, Bundles } from "./bundles";
import { DeploymentPage } from "./deployment";
import { Hosts } from "./hosts";
import { Deployments } from "./list";
import { NewDeployment } from "./new";

type Me = { person: string };

function useHash(): string {
  const [hash, set] = useState(location.hash);
  useEffect(() => {
    const changed = () => set(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return hash;
}

export function App() {
  const [me, setMe] = useState<Me | null>(null);
  const [checked, setChecked] = useState(false);
  const hash = useHash();

  const signIn = useCallback(async () => setMe(await get<Me>("/me")), []);
  useEffect(() => {
    if (!token.get()) return setChecked(true);
    signIn()
      .catch(() => token.clear())
      .finally(() => setChecked(true));
  }, [signIn]);

  if (!checked) return null;
  if (!me) return <SignIn done={signIn} />;
  const signOut = () => {
    token.clear();
    setMe(null);
  };
  return (
    <>
      <header>
        <a className="brand" href="#/">
          <img src="/icon.svg" alt="" width="24" height="24" /> Windlass
        </a>
        <nav>
          <a href="#/">Deployments</a> <a href="#/new">New</a> <a href="#/environments">Environments</a>{" "}
          <a href="#/bundles">Bundles</a> <a href="#/hosts">Hosts</a>
        </nav>
        <span className="grow" />
        <span className="muted">{me.person}</span>
        <button type="button" className="plain" onClick={signOut}>
          Sign out
        </button>
      </header>
      <main>
        <PageOf hash={hash} />
      </main>
    </>
  );
}

function PageOf({ hash }: { hash: string }) {
  const [, place, id] = /^#\/([a-z]*)(?:\/([0-9a-f-]{36}))?$/.exec(hash) ?? [];
  if (place === "deployments" && id) return <DeploymentPage key={id} id={id} />;
  if (place === "bundles") return id ? <BundlePage key={id} id={id} /> : <Bundles />;
  if (place === "environments") return <Board />;
  if (place === "hosts") return <Hosts />;
  return place === "new" ? <NewDeployment /> : <Deployments />;
}

function SignIn({ done }: { done: () => Promise<void> }) {
  const [text, setText] = useState("");
  const [error, setError] = useState("");
  const submit = async (e: FormEvent) => {
    e.preventDefault();
    token.set(text.trim());
    try {
      await done();
    } catch (e) {
      token.clear();
      setError(e instanceof Problem && e.status === 401 ? "This token is not valid, has expired or was revoked." : String(e));
    }
  };
  return (
    <form className="sign-in" onSubmit={submit}>
      <h1>
        <img src="/icon.svg" alt="" width="32" height="32" /> Windlass
      </h1>
      <label>
        Token
        <input
          type="password"
          name="token"
          autoComplete="current-password"
          placeholder="wl_…"
          value={text}
          onChange={(e) => setText(e.target.value)}
          autoFocus
          required
        />
      </label>
      <button type="submit">Sign in</button>
      {error && <p role="alert">{error}</p>}
      <p className="muted">An administrator makes tokens with “windlass token create”.</p>
    </form>
  );
}
