// The parts with logic of their own: the stream splitter, the log cleaner, the verbs of each state.
import { describe, expect, test } from "vitest";
import { split } from "./api";
import { standing } from "./board";
import { inOrder } from "./bundles";
import { worthShowing } from "./deployment";
import { Chosen, pairs } from "./extra";
import { matching } from "./hosts";
import { plain } from "./logs";
import { change, type Field, inputsOf, names } from "./new";
import { ago, span } from "./parts";
import { brief, byNeed, counted } from "./rollout";
import { verbs } from "./verbs";

describe("event streams", () => {
  test("a cut event waits for its rest", () => {
    const first = split("id: 1\nevent: a\ndata: x\n\nid: 2\nda");
    expect(first.events).toEqual([{ id: "1", event: "a", data: "x" }]);
    expect(split(`${first.rest}ta: y\ndata: z\n\n`).events).toEqual([{ id: "2", event: "message", data: "y\nz" }]);
  });
  test("heartbeats are not events", () => {
    expect(split(": still here\n\n").events).toEqual([]);
  });
});

test("log text cannot steer the page", () => {
  expect(plain("\u001b[31mred\u001b[0m \u001b]8;;http://x\u0007link\u001b]8;;\u0007 \u202eback")).toBe("red link back");
});

test("ages", () => {
  const now = new Date("2026-11-21T00:00:00Z");
  expect(ago(new Date("2026-11-20T23:59:30Z"), now)).toBe("30 s ago");
  expect(ago(new Date("2026-11-18T23:00:00Z"), now)).toBe("2 d ago");
});

describe("what hosts write to the log", () => {
  const kept = "before after";
  // Of a sequence that is cut off, letters may stay: on a page they are text.
  const gone: [string, string][] = [
    ["colours", "before\u001b[1;31m after\u001b[0m"],
    ["a cleared screen", "before\u001b[2J\u001b[10;10H after"],
    ["a title", "before\u001b]0;owned\u0007 after"],
    ["a link (OSC 8)", "before\u001b]8;;http://evil\u001b\\\u001b]8;;\u001b\\ after"],
    ["the clipboard (OSC 52)", "before\u001b]52;c;ZXZpbA==\u0007 after"],
    ["modes and queries", "before\u001b[?25l\u001b[>4;2m\u001b[6n after"],
    ["turned directions", "be\u202efore\u2066 after\u2069"],
    ["backspaces, bells, NUL", "before\b\u0007\u0000\u007f after\r"],
    ["8-bit controls", "before\u0085\u009c after"],
  ];
  test.each(gone)("%s do nothing", (_, line) => expect(plain(line)).toBe(kept));

  test("whatever is written, no control character is left, and markup is left as the text it is", () => {
    const all = Array.from({ length: 0x300 }, (_, c) => String.fromCharCode(c)).join("\u001b");
    for (const text of [all, all.split("").reverse().join(""), "\u001b]8;;" + all, "\u001b[" + all]) {
      const bad = [...plain(text)].filter((c) => (c < " " && c !== "\t" && c !== "\n") || (c >= "\u007f" && c <= "\u009f"));
      expect(bad).toEqual([]);
    }
    expect(plain("<script>alert(1)</script>&amp;")).toBe("<script>alert(1)</script>&amp;");
  });

  test("a line of 100 kB, and one of nothing but beginnings, takes no time", () => {
    for (const text of ["x".repeat(100_000), "\u001b[".repeat(50_000), "\u001b]".repeat(50_000), "\u001b[0".repeat(30_000)]) {
      const begun = performance.now();
      plain(text);
      expect(performance.now() - begun).toBeLessThan(2000);
    }
  });
});

describe("buttons", () => {
  const d = { plan_digest: "sha256:1", waiting_on: [], steps: [], actions: [], kind: "normal", rolled_back_by: null };
  const names = (x: Partial<Parameters<typeof verbs>[0]>) => verbs({ ...d, ...x }).map((v) => v.name);
  test("what the server does not allow is not offered", () => {
    expect(names({ actions: ["reject"] })).toEqual(["Reject"]);
    expect(names({})).toEqual([]);
  });
  test("an approval names the plan that was shown", () => {
    expect(verbs({ ...d, actions: ["approve"] })[0]?.body("ok", new Chosen())).toEqual({ digest: "sha256:1", comment: "ok" });
  });
  test("an intervention offers what helps", () => {
    const actions = ["retry", "skip", "ignore", "pause", "resume", "abort", "rollback", "override"];
    expect(names({ actions, waiting_on: [{ on: "intervention", text: "" }] })).toEqual([
      "Retry", "Retry with other inputs", "Skip step", "Ignore", "Pause", "Abort", "Roll back",
    ]);
    expect(names({ actions })).toEqual(["Retry", "Pause", "Abort", "Roll back"]);
  });
  test("an override names the unknown hosts", () => {
    const waiting_on = [{ on: "unknown", text: "", data: { hosts: ["a"] } }];
    expect(verbs({ ...d, actions: ["override"], waiting_on })[0]?.body("gone", new Chosen())).toEqual({ hosts: ["a"], reason: "gone" });
  });
  test("what an expression could not decide is a button a branch", () => {
    const base = { needs: [], state: "waiting", kind: "gateway" as const, action: null, reason: "x", taken: [], runs: null, max_runs: null, waves: [] };
    const steps = [{ ...base, id: "which", choices: ["up", "default"] }, { ...base, id: "other", choices: [] }];
    expect(names({ actions: ["choose"], steps })).toEqual(["which: up", "which: default"]);
    expect(verbs({ ...d, actions: ["choose"], steps })[1]?.body("", new Chosen())).toEqual({ step: "which", branch: "default" });
  });
  test("a way into a subflow is shown only where it asks", () => {
    const step = { id: "sub/enter", kind: "subflow" as const, choices: [] as string[] };
    expect(worthShowing(step)).toBe(false);
    expect(worthShowing({ ...step, choices: ["skip"] })).toBe(true);
    expect(worthShowing({ ...step, id: "sub" })).toBe(true);
  });
  test("a changed plan is accepted by the digest that was shown", () => {
    expect(verbs({ ...d, actions: ["accept"] })[0]?.body("", new Chosen())).toEqual({ digest: "sha256:1" });
  });
  test("a rollback is asked for once", () => {
    expect(names({ actions: ["rollback"], rolled_back_by: "y" })).toEqual([]);
  });
});

describe("stepping in", () => {
  const host = (name: string, state: string) => ({ host: name, state, attempt: 1, failed_step: null, reason: null });
  const wave = { index: 0, state: "failed", bake_until: null, hosts: [host("a", "succeeded"), host("b", "failed"), host("c", "running")] };
  const step = {
    id: "roll", state: "running", kind: "rollout" as const, action: null, reason: null, taken: [], choices: [], runs: null, max_runs: null,
    waves: [wave],
  };
  const d = { plan_digest: "sha256:1", waiting_on: [], steps: [step], actions: [] as string[], kind: "normal", rolled_back_by: null };
  const offered = (x: Partial<Parameters<typeof verbs>[0]>) => verbs({ ...d, ...x });
  test("who has not claimed it may take it over, who has may give it back", () => {
    const claim = { who: "ann", reason: "", at: "" };
    expect(offered({ actions: ["claim"] }).map((v) => v.name)).toEqual(["Claim"]);
    expect(offered({ actions: ["claim"], claim })[0]?.body("asleep", new Chosen())).toEqual({ take_over: true, reason: "asleep" });
    expect(offered({ actions: ["claim", "unclaim"], claim }).map((v) => v.name)).toEqual(["Give back"]);
  });
  test("only hosts that run can be stopped", () => {
    expect(offered({ actions: ["stop"] })[0]?.extra?.hosts).toEqual(["c"]);
    expect(offered({ actions: ["retry"] })[0]?.extra?.hosts).toEqual(["b"]);
  });
  test("a rollback says how far and whether for good", () => {
    const c = new Chosen().with({ mode: "emergency", to: "1.2.0", veto: true, phase: "release" });
    const v = offered({ actions: ["rollback"] })[0];
    expect(v?.body("bad", c)).toEqual({ mode: "emergency", reason: "bad", to: "1.2.0", veto: true, from_phase: "release" });
    expect(v?.body("bad", new Chosen())).toEqual({ mode: "normal", reason: "bad" });
  });
  test("an amendment is approved by its own digest", () => {
    const amendment = { by: { who: "ann", reason: "", at: "" }, inputs: {}, digest: "sha256:2" };
    expect(offered({ actions: ["approve"], amendment })[0]?.body("", new Chosen())).toEqual({ digest: "sha256:2", comment: "" });
  });
  test("other inputs are what they read as", () => {
    expect(pairs("batch = 5\nfast=true\n\nname=a=b\nnonsense")).toEqual({ batch: 5, fast: true, name: "a=b" });
  });
  test("hosts that need somebody come first", () => {
    expect(byNeed(wave.hosts).map((h) => h.host)).toEqual(["b", "c", "a"]);
    expect(counted({ total: 3, succeeded: 1, failed: 2, unknown: 0 })).toEqual([["failed", 2], ["succeeded", 1]]);
  });
});

test("hosts are found by every word", () => {
  const hosts = [
    { name: "web-1", address: "10.0.0.1", labels: { zone: "a" } },
    { name: "web-2", address: "10.0.0.2", labels: { zone: "b" } },
  ];
  expect(matching(hosts, "WEB zone=b").map((h) => h.name)).toEqual(["web-2"]);
  expect(matching(hosts, "").length).toBe(2);
});

test("members stand in the order they can run, and a circle is shown all the same", () => {
  const m = (name: string, ...needs: string[]) => ({ name, needs });
  expect(inOrder([m("c", "b"), m("b", "a"), m("a")]).map((x) => x.name)).toEqual(["a", "b", "c"]);
  expect(inOrder([m("x", "y"), m("y", "x")]).map((x) => x.name)).toEqual(["x", "y"]);
});

test("a withdrawn proof is no proof", () => {
  const proof = { environment: "beta", deployment: "", at: "", withdrawn: true, reason: null };
  expect(standing([proof], "beta")).toBe("withdrawn");
  expect(standing([{ ...proof, withdrawn: false }], "beta")).toBe("verified");
  expect(standing([], "beta")).toBe("");
});

test("short texts", () => {
  expect(span(59)).toBe("59 s");
  expect(span(90_000)).toBe("1 d");
  expect(brief("x".repeat(100)).length).toBe(80);
  expect(brief(0.25)).toBe("0.25");
});

describe("the form of a request", () => {
  const field = (name: string, widget: Field["widget"]): Field => ({
    name, label: name, widget, description: "", required: false, default: null, options: [], hint: "",
  });
  test("numbers are numbers, and what is empty is left to its default", () => {
    const fields = [field("batch", "number"), field("mode", "select"), field("fast", "checkbox"), field("name", "text")];
    expect(inputsOf(fields, { batch: "5", mode: "", fast: false, stranger: "x" })).toEqual({ batch: 5, fast: false });
    expect(inputsOf(fields, { name: "5" })).toEqual({ name: "5" });
  });
  test("a change says from what to what", () => {
    expect(change({ change: "changes", from: "1.0.0", to: "1.1.0" })).toBe("1.0.0 → 1.1.0");
    expect(change({ change: "changes", from: null, to: "1.1.0" })).toBe("another release → 1.1.0");
    expect(change({ change: "unknown", from: null, to: "1.1.0" })).toBe("unknown");
  });
  test("hosts are separated by commas or spaces", () => {
    expect(names(" web-1, web-2  web-3,")).toEqual(["web-1", "web-2", "web-3"]);
    expect(names("")).toEqual([]);
  });
});
