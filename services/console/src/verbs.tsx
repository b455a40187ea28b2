// The verbs: what this person may do to a deployment now, what each will do in a sentence, and the form that asks for the
// rest. What may be pressed is the server's word (`actions`); what is sent is bound to what the page showed.
import { useState } from "react";
import { type Deployment, post } from "./api";
import { Ask } from "./ask";
import { Chosen, Extra, pairs } from "./extra";

export type Shown = Pick<
  Deployment,
  "plan_digest" | "waiting_on" | "steps" | "actions" | "kind" | "rolled_back_by" | "claim" | "amendment"
>;

export type Verb = {
  name: string;
  path: string;
  says: string;
  reason?: "needed" | "welcome";
  danger?: boolean;
  /** What else the form asks for. */
  extra?: Extra;
  body: (reason: string, chosen: Chosen) => unknown;
};

/** Hosts in one of these states, each once. */
export function hostsIn(d: Pick<Deployment, "steps">, states: string[]): string[] {
  const found = d.steps.flatMap((s) => s.waves.flatMap((w) => w.hosts)).filter((h) => states.includes(h.state));
  return [...new Set(found.map((h) => h.host))];
}

const FAILED = ["failed", "hand_stopped", "not_started"];
const LATER = [...FAILED, "waiting", "auto_stopped"];

/** The buttons: what the server says this person may do now, and only where it can help. */
export function verbs(d: Shown): Verb[] {
  const waits = (on: string) => d.waiting_on.some((w) => w.on === on);
  const unknown = d.waiting_on.filter((w) => w.on === "unknown").flatMap((w) => w.data?.hosts ?? []);
  // Bound to the plan that this page shows: if it changes in the meantime, the server refuses.
  const digest = d.amendment?.digest ?? d.plan_digest;
  const decide = (comment: string) => ({ digest, comment });
  const why = (reason: string) => ({ reason });
  const some = (reason: string, c: Chosen) => ({ hosts: c.hosts, reason });
  const failed = hostsIn(d, FAILED);
  const running = hostsIn(d, ["running"]);
  const central = (state: string) => d.steps.filter((s) => s.kind === "central" && s.state === state).map((s) => s.id);
  const all: (Verb & { when?: boolean })[] = [
    { name: "Approve", path: "approve", says: "Your approval counts for the plan shown here, and for no other.", reason: "welcome", body: decide },
    { name: "Reject", path: "reject", says: "It will not run as it is.", reason: "needed", danger: true, body: decide },
    { name: "Accept the changed plan", path: "accept", says: "The plan changed since it was asked for; it may run as it is now.", body: () => ({ digest: d.plan_digest }) },
    { name: "Cancel", path: "cancel", says: "Nothing of it has run, and nothing will.", reason: "needed", danger: true, body: why },
    ...d.steps.flatMap((s) =>
      s.waves
        .filter((w) => w.state === "confirming")
        .map((w) => ({
          name: `Confirm wave ${w.index + 1}`,
          path: "confirm",
          says: `You looked at the hosts of wave ${w.index + 1}: the next wave may go.`,
          body: () => ({ wave: w.index }),
        })),
    ),
    ...d.steps.flatMap((s) =>
      s.choices.map((branch) => ({
        name: `${s.id}: ${branch}`,
        path: "choose",
        says: `An expression of ${s.id} could not be computed: it goes on with “${branch}”.`,
        body: () => ({ step: s.id, branch }),
      })),
    ),
    { name: "Claim", path: "claim", says: "You answer for it: nobody else steps in unless they take it over.", when: !d.claim, body: () => ({}) },
    {
      name: "Take over",
      path: "claim",
      says: `${d.claim?.who} has claimed it. From now on you answer for it.`,
      reason: "needed",
      when: !!d.claim && !d.actions.includes("unclaim"),
      body: (reason) => ({ take_over: true, reason }),
    },
    { name: "Give back", path: "unclaim", says: "Somebody else may step in.", when: !!d.claim, body: () => ({}) },
    {
      name: "Retry",
      path: "retry",
      says: "Failed hosts run again from the step that failed; failed steps run again. What succeeded is not repeated.",
      extra: { hosts: failed, wholeWave: failed.length > 0 },
      body: (_, c) => ({ hosts: c.hosts, ...(c.wholeWave ? { whole_wave: true } : {}) }),
    },
    {
      name: "Retry with other inputs",
      path: "retry",
      says: "A new plan is made with these inputs. It goes on where it stands once that plan is approved.",
      reason: "needed",
      extra: { inputs: true, hosts: failed },
      when: waits("intervention"),
      body: (reason, c) => ({ hosts: c.hosts, inputs: pairs(c.inputs), reason }),
    },
    {
      name: "Skip step",
      path: "skip",
      says: "Failed hosts go on after the step that failed, as if it were done.",
      extra: { hosts: failed },
      when: waits("intervention"),
      body: (_, c) => ({ hosts: c.hosts }),
    },
    {
      name: "Ignore",
      path: "ignore",
      says: "The deployment goes on as if these hosts were well. They are left as they are.",
      reason: "needed",
      extra: { hosts: failed },
      when: waits("intervention"),
      body: some,
    },
    {
      name: "Exclude hosts",
      path: "exclude",
      says: "These hosts take no further part.",
      reason: "needed",
      extra: { hosts: hostsIn(d, LATER), must: true },
      when: hostsIn(d, LATER).length > 0,
      body: some,
    },
    {
      name: "Stop hosts",
      path: "stop",
      says: "What runs on these hosts is ended with all its processes; they count as stopped by hand.",
      reason: "needed",
      danger: true,
      extra: { hosts: running, must: true },
      when: running.length > 0,
      body: some,
    },
    ...central("running").map((step) => ({
      name: `Fail ${step}`,
      path: "fail",
      says: `${step} is stopped and counts as failed, whatever it says later.`,
      reason: "needed" as const,
      danger: true,
      body: (reason: string) => ({ step, reason }),
    })),
    ...central("failed").map((step) => ({
      name: `Call ${step} well`,
      path: "succeed",
      says: `${step} counts as succeeded on your word. This is an alert in the record.`,
      reason: "needed" as const,
      danger: true,
      body: (reason: string) => ({ step, reason }),
    })),
    {
      name: "Call hosts well",
      path: "succeed",
      says: "These hosts count as succeeded on your word. This is an alert in the record.",
      reason: "needed",
      danger: true,
      extra: { hosts: failed, must: true },
      when: failed.length > 0,
      body: some,
    },
    { name: "Resume", path: "resume", says: "It goes on where it stands.", when: waits("operator"), body: () => ({}) },
    {
      name: "Pause",
      path: "pause",
      says: "Nothing further starts on any host; what runs goes to its end.",
      reason: "needed",
      when: !waits("operator"),
      body: why,
    },
    { name: "Abort", path: "abort", says: "Nothing further starts, and what runs is stopped.", reason: "needed", danger: true, body: why },
    {
      name: "Override unknown",
      path: "override",
      says: `You answer for ${unknown.join(", ")}: nobody knows what they did. They count as failed from now on.`,
      reason: "needed",
      danger: true,
      when: unknown.length > 0,
      body: (reason) => ({ hosts: unknown, reason }),
    },
    {
      name: "Roll back",
      path: "rollback",
      says: "The hosts it ran on go back to a version that was good. Automation is held here afterwards, until somebody releases it.",
      reason: "needed",
      danger: true,
      extra: { rollback: true },
      when: d.kind !== "rollback" && !d.rolled_back_by,
      body: (reason, c) => ({
        mode: c.mode,
        reason,
        ...(c.to ? { to: c.to } : {}),
        ...(c.veto ? { veto: true } : {}),
        ...(c.phase ? { from_phase: c.phase } : {}),
      }),
    },
  ];
  return all.filter((v) => d.actions.includes(v.path) && v.when !== false);
}

export function Buttons({ d, done }: { d: Deployment; done: () => Promise<void> }) {
  const [asking, setAsking] = useState<Verb | null>(null);
  const [chosen, setChosen] = useState<Chosen>(new Chosen());
  const [answer, setAnswer] = useState("");

  const send = async (v: Verb, reason: string, c: Chosen) => {
    const r = await post(`/deployments/${d.id}/${v.path}`, v.body(reason, c));
    setAnswer(r.detail ?? "done");
    await done();
  };
  const open = (v: Verb) => {
    setAnswer("");
    setChosen(new Chosen());
    setAsking(v);
  };
  return (
    <div className="buttons">
      {verbs(d).map((v) => (
        <button type="button" key={v.name} className={v.danger ? "danger" : ""} title={v.says} onClick={() => open(v)}>
          {v.name}
        </button>
      ))}
      {asking && (
        <Ask
          close={() => setAsking(null)}
          q={{
            title: asking.name,
            says: asking.says,
            reason: asking.reason,
            danger: asking.danger,
            children: asking.extra && <Extra d={d} extra={asking.extra} chosen={chosen} set={setChosen} />,
            send: (reason) => send(asking, reason, chosen),
          }}
        />
      )}
      {answer && <p role="status">{answer}</p>}
    </div>
  );
}
