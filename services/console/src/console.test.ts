// The parts with logic of their own: the stream splitter, the log cleaner, the verbs of each state.
import { describe, expect, test } from "vitest";
import { split } from "./api";
import { verbs, worthShowing } from "./deployment";
import { plain } from "./logs";
import { change, type Field, inputsOf, names } from "./new";
import { ago } from "./parts";

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

describe("buttons", () => {
  const d = { plan_digest: "sha256:1", waiting_on: [], steps: [], actions: [], kind: "normal", rolled_back_by: null };
  const names = (x: Partial<Parameters<typeof verbs>[0]>) => verbs({ ...d, ...x }).map((v) => v.name);
  test("what the server does not allow is not offered", () => {
    expect(names({ actions: ["reject"] })).toEqual(["Reject"]);
    expect(names({})).toEqual([]);
  });
  test("an approval names the plan that was shown", () => {
    expect(verbs({ ...d, actions: ["approve"] })[0]?.body("ok")).toEqual({ digest: "sha256:1", comment: "ok" });
  });
  test("an intervention offers what helps", () => {
    const actions = ["retry", "skip", "ignore", "pause", "resume", "abort", "rollback", "override"];
    expect(names({ actions, waiting_on: [{ on: "intervention", text: "" }] })).toEqual([
      "Retry", "Skip step", "Ignore", "Pause", "Abort", "Roll back",
    ]);
    expect(names({ actions })).toEqual(["Pause", "Abort", "Roll back"]);
  });
  test("an override names the unknown hosts", () => {
    const waiting_on = [{ on: "unknown", text: "", data: { hosts: ["a"] } }];
    expect(verbs({ ...d, actions: ["override"], waiting_on })[0]?.body("gone")).toEqual({ hosts: ["a"], reason: "gone" });
  });
  test("what an expression could not decide is a button a branch", () => {
    const base = { needs: [], state: "waiting", kind: "gateway" as const, action: null, reason: "x", taken: [], runs: null, max_runs: null, waves: [] };
    const steps = [{ ...base, id: "which", choices: ["up", "default"] }, { ...base, id: "other", choices: [] }];
    expect(names({ actions: ["choose"], steps })).toEqual(["which: up", "which: default"]);
    expect(verbs({ ...d, actions: ["choose"], steps })[1]?.body("")).toEqual({ step: "which", branch: "default" });
  });
  test("a way into a subflow is shown only where it asks", () => {
    const step = { id: "sub/enter", kind: "subflow" as const, choices: [] as string[] };
    expect(worthShowing(step)).toBe(false);
    expect(worthShowing({ ...step, choices: ["skip"] })).toBe(true);
    expect(worthShowing({ ...step, id: "sub" })).toBe(true);
  });
  test("a changed plan is accepted by the digest that was shown", () => {
    expect(verbs({ ...d, actions: ["accept"] })[0]?.body("")).toEqual({ digest: "sha256:1" });
  });
  test("a rollback is asked for once", () => {
    expect(names({ actions: ["rollback"], rolled_back_by: "y" })).toEqual([]);
  });
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
