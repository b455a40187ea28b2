// The parts with logic of their own: the stream splitter, the log cleaner, the verbs of each state.
import { describe, expect, test } from "vitest";
import { type Deployment, split } from "./api";
import { verbs } from "./deployment";
import { plain } from "./logs";
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

describe("verbs", () => {
  const d: Deployment = {
    id: "x", project: "p", environment: "e", version: "1", kind: "normal", state: "awaiting_approval", requested_by: "ann",
    requested_at: "", started_at: null, ended_at: null, waiting_on: [], note: "", plan_digest: "sha256:1", steps: [],
    approvals: [], rolled_back_by: null,
  };
  const names = (x: Partial<Deployment>, me = "bob") => verbs({ ...d, ...x }, me).map((v) => v.name);
  test("nobody is offered to approve their own request", () => {
    expect(names({})).toContain("Approve");
    expect(names({}, "ann")).not.toContain("Approve");
  });
  test("an approval names the plan that was shown", () => {
    expect(verbs(d, "bob")[0]?.body("ok")).toEqual({ digest: "sha256:1", comment: "ok" });
  });
  test("an intervention offers what helps", () => {
    expect(names({ state: "paused", waiting_on: [{ on: "intervention" }] })).toEqual([
      "Retry", "Skip step", "Ignore", "Pause", "Abort", "Roll back",
    ]);
  });
  test("what has ended is only rolled back, once", () => {
    expect(names({ state: "succeeded" })).toEqual(["Roll back"]);
    expect(names({ state: "succeeded", rolled_back_by: "y" })).toEqual([]);
    expect(names({ state: "cancelled" })).toEqual([]);
  });
});
