"""The checker of ops/chaos, ops/power-cut and ops/crash-sweep: compares what was promised with what happened. It knows nothing of the
services but their HTTP answers and shares no code with them.

Prints one line a counter; exits 1 unless every counter is zero. `--plant` spoils the evidence in one way or in all (plants.py), and
then exits 0 only when the counter that each way is meant for sees it.
"""
import argparse
import collections
import copy
import sys

from evidence import INDEX, OF_STEP, Evidence
from plants import PLANTS, Nothing

# Memory that no service may go beyond, whatever comes: MiB.
MEMORY = 768
# What ends a run for good.
OVER = ("aborted", "failed", "succeeded", "rolled_back")


class Table:
    """Counters: `found` is what breaks the promise, `seen` how much was looked at; where there `must` be something, nothing is a fault."""

    def __init__(self):
        self.rows = []

    def row(self, promise, what, found, seen, must=False):
        self.rows.append((promise, what, list(found), seen, must))

    def wrong(self, promise=None):
        return sum(len(found) + (must and not seen) for p, _, found, seen, must in self.rows if promise in (None, p))


def p1_requests(e, t):
    """Every 2xx is there. A request that was answered `info` may be there or not; twice it must not be."""
    asked = [h for h in e.notes("request") if h["result"] == "ok"]
    t.row("P1", "accepted requests lost", [h for h in asked if h["answer"]["new_deployment"] not in e.by_id], len(asked), must=True)
    count = collections.Counter((d["project"], d["version"]) for d in e.deployments if d["kind"] != "rollback")
    t.row("P1", "requests carried out twice", [k for k, n in count.items() if n > 1], len(count))
    aborts = [h for h in e.notes("abort") if h["result"] == "ok" and h["status"] == 200 and h["deployment"] in e.by_id]
    t.row("P1", "accepted aborts without effect", [h for h in aborts if e.by_id[h["deployment"]]["state"] not in OVER], len(aborts))


def p2_starts(e, t):
    """A task's step begins at most once; a further attempt is a task of its own."""
    double = []
    for (version, host, step), seen in e.starts.items():
        attempts = e.tasks.get((e.project_of.get((version, host)), version, host, OF_STEP[step]), [])
        may = [a for a in attempts if a["state"] not in ("pending", "offered", "not_started")]
        if len(seen) > len(may):
            double.append(f"{version} {host} {step}: begun {len(seen)} times in {len(may)} attempts")
    t.row("P2", "starts beyond one an attempt", double, sum(len(s) for s in e.starts.values()), must=True)


def p3_ends(e, t):
    """After all faults everything ended, or says what it waits for."""
    t.row("P3", "runs that stand still", [d["id"] for d in e.deployments if not d["ended_at"] and not d["waiting_on"]], len(e.deployments))
    t.row("P3", "runs that did not end in time", [f"{d['id']} {d['state']} {[w['text'] for w in d['waiting_on']]}" for d in e.deployments
                                                  if not d["ended_at"]], len(e.deployments))


def p4_one_at_a_time(e, t):
    """Two releases never run on one host at once, by the hosts' own clock (it is one machine)."""
    spans = collections.defaultdict(list)
    for (version, host, step), begun in e.starts.items():
        begun = sorted(at for at, _ in begun)
        over = sorted(at for at, _ in e.ends.get((version, host, step), []))
        if len(over) >= len(begun):
            pairs = list(zip(begun, over))
        else:
            # Some were killed. An end belongs to the last beginning before it; until when a killed one ran is not known, so only its
            # beginning is held against others.
            open_, pairs = [], []
            for at, ended in sorted([(at, False) for at in begun] + [(at, True) for at in over]):
                if not ended:
                    open_.append(at)
                elif open_:
                    pairs.append((open_.pop(), at))
            pairs += [(at, at) for at in open_]
        spans[host] += [(at, end, version, step) for at, end in pairs]
    overlap = []
    for host, list_ in spans.items():
        list_.sort()
        overlap += [f"{host}: {a[2]} {a[3]} and {b[2]} {b[3]}" for a, b in zip(list_, list_[1:]) if b[0] < a[1] - 0.001]
    t.row("P4", "steps of two attempts at once on a host", overlap, len(spans))


def p5_outcomes(e, t):
    """What is said of a host is so."""
    false, hosts = [], 0
    for d in e.deployments:
        for task in d["tasks"]:
            if task["step"] not in OF_STEP.values():
                continue
            hosts += 1
            steps = [s for s, of in OF_STEP.items() if of == task["step"]]
            begun = [s for s in steps if (d["version"], task["host"], s) in e.starts]
            others = [o for o in e.tasks[d["project"], d["version"], task["host"], task["step"]] if o["id"] != task["id"]]
            if task["state"] == "succeeded":
                # Of a retried host the first steps ran in an earlier attempt.
                for s in steps:
                    good = [x for x in e.ends.get((d["version"], task["host"], s), []) if x[1] == "0"]
                    skipped = any(x["index"] == INDEX[s] and x["outcome"] == "skipped" for x in task["steps"])
                    if not good and not skipped:
                        false.append(f"{d['version']} {task['host']}: succeeded, but {s} never ended well there")
            elif task["state"] == "not_started" and begun and not others:
                false.append(f"{d['version']} {task['host']}: not started, but {begun} began there")
    t.row("P5", "hosts said to be other than they are", false, hosts, must=True)


def p6_aborts(e, t):
    """Nothing begins after ABORTED but on hosts that were listed as unknown."""
    late, aborted = [], [d for d in e.deployments if d["state"] == "aborted"]
    for d in aborted:
        listed = {x["host"] for x in d["tasks"] if x["state"] in ("unknown", "overridden")}
        after = e.over_at(d)
        for host, step, begun in e.step_starts(d):
            if after and host not in listed:
                late += [f"{d['version']} {host} {step} began {at - after:.3f} s after the end" for at, _ in begun if at > after]
    t.row("P6", "starts after an abort had ended", late, len(aborted))


def p7_notifications(e, t):
    """Every notification was delivered or is in the dead letters, always under its own id."""
    ids, all_ = {r["id"] for r in e.received}, e.world["notifications"]
    missing = [n["id"] for n in all_ if n["state"] == "sent" and not any(n["id"] in i or n["event"] in i for i in ids)]
    t.row("P7", "notifications said to be sent, not received", missing, len(all_))
    t.row("P7", "notifications neither sent nor dead", [n["id"] for n in all_ if n["state"] == "pending"], len(all_))


def p8_audit(e, t):
    """The audit trail verifies offline."""
    t.row("P8", "audit trails that do not verify", [] if e.world["audit"]["verify"] == 0 else [e.world["audit"]], 1)


def was_taken(e, h):
    """An approval that had to be refused. 202 says that nobody had decided yet: then the deployment's approvals tell."""
    if h["result"] != "ok" or h["status"] != 202:
        return h["result"] == "ok"
    d = e.by_id.get(h["deployment"], {})
    if "given" not in d:
        return True
    own = h["op"] == "approve_own"
    return any(a["person"] == d["requested_by"] if own else a["plan_digest"] == h["digest"] for a in d["given"])


def p10_approvals(e, t):
    """What needs an approval has one of its plan, by somebody else than who asked; others were refused."""
    tried = [h for h in e.notes("approve_other", "approve_own") if h["result"] in ("ok", "no")]
    t.row("P10", "approvals of another plan or of one's own taken", [h for h in tried if was_taken(e, h)], len(tried))
    ran = [d for d in e.deployments if "given" in d and any(True for _ in e.step_starts(d))]
    bare = [d["id"] for d in ran if not any(a["decision"] == "approve" and a["plan_digest"] == d["plan_digest"]
                                            and a["person"] != d["requested_by"] for a in d["given"])]
    t.row("P10", "runs without an approval of their plan", bare, len(ran))


def p11_artifacts(e, t):
    """A step only ever saw the package that was registered: the package says itself which one it is."""
    packages = {h["version"]: h["id"] for h in e.notes("package")}
    seen = [(version, host, held) for (version, host, held) in e.held if held != "none"]
    wrong = [s for s in seen if packages.get(s[0]) != s[2]]
    t.row("P11", "steps that ran on another package", wrong, len(seen))


def p12_rights(e, t):
    """Strangers get nothing."""
    tries = e.notes("stranger")
    t.row("P12", "requests of strangers that were granted", [h for h in tries if h["granted"]], len(tries))


def p13_broker(e, t):
    """Of what was under way when the whole broker was erased, nothing is lost, stuck or done twice; each end was made known."""
    wipes = [h["at"] for h in e.notes("fault") if h["kind"] == "wipe broker"]
    asked = {h["answer"]["new_deployment"]: h["at"] for h in e.notes("request") if h["result"] == "ok"}
    through = [i for i, at in asked.items() if any(at < w < e.seen.get(i, float("inf")) for w in wipes)]
    lost = [i for i in through if i not in e.by_id or not e.by_id[i]["ended_at"]]
    told = {r["body"].get("data", {}).get("deployment") or r["body"].get("deployment") for r in e.received}
    # A receiver that names no deployment shows nothing.
    silent = [i for i in through if i not in told and i in e.by_id and e.by_id[i]["state"] == "failed"] if any(told) else []
    t.row("P13", "releases that did not outlive a wiped broker", lost + silent, len(through))


def p14_overload(e, t):
    """What is refused says when to come back; services stay within their memory."""
    refused = e.notes("refusal")
    t.row("P14", "refusals without a time to come back", [h for h in refused if not h["after"]], len(refused))
    memory = e.notes("memory")
    t.row("P14", f"services beyond {MEMORY} MiB", [h for h in memory if h["mib"] > MEMORY], len({h["service"] for h in memory}))


def p16_secrets(e, t):
    """Secrets in clear: in files of database, brokers, agents, logs, and in command lines. A search that finds nothing must be able to."""
    if "leaks" not in e.world:
        return
    found = [*e.world["leaks"], *e.notes("leak")]
    t.row("P16", "places where a secret lies open", found, e.world["needles"] if e.world["grep_sees"] else 0, must=True)


def broken(e, t):
    t.row("-", "clients that broke", [h for h in e.history if h.get("op") == "client"], len(e.history))


COUNTERS = [p1_requests, p2_starts, p3_ends, p4_one_at_a_time, p5_outcomes, p6_aborts, p7_notifications, p8_audit, p10_approvals,
            p11_artifacts, p12_rights, p13_broker, p14_overload, p16_secrets, broken]
ELSEWHERE = {"P9": "ops/recovery", "P15": "ops/backup drill"}


def count(e):
    t = Table()
    for counter in COUNTERS:
        counter(e, t)
    return t


def show(e, t):
    for promise, _, found, _, _ in t.rows:
        for f in found[:5]:
            print(f"  {promise}: {f}", file=sys.stderr)
    print(f"{'':4} {'counter':48} {'found':>6} {'of':>8}")
    for promise, what, found, seen, _ in t.rows:
        print(f"{promise:4} {what:48} {len(found):>6} {seen:>8}")
    print("counted elsewhere: " + ", ".join(f"{p} by {who}" for p, who in ELSEWHERE.items()))
    tasks = [x for d in e.deployments for x in d["tasks"]]
    unknown = sum(x["state"] in ("unknown", "overridden") for x in tasks)
    states = collections.Counter(d["state"] for d in e.deployments)
    print(f"\n{len(e.deployments)} deployments ({', '.join(f'{n} {s}' for s, n in sorted(states.items()))}), {len(tasks)} tasks, unknown "
          f"{unknown} ({100 * unknown / max(len(tasks), 1):.2f} %), "
          f"unanswered requests {sum(h.get('result') == 'info' for h in e.history)}, seed {e.world['seed']}")
    print("faults: " + ", ".join(f"{n} x {k}" for k, n in sorted(e.world["faults"].items())))
    for text in e.world.get("cannot", []):
        print(f"NOT DONE on this machine: {text}")


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--evidence", required=True)
    args.add_argument("--plant", choices=[*PLANTS, "all"])
    options = args.parse_args()
    e = Evidence(options.evidence)
    t = count(e)
    if not options.plant:
        show(e, t)
        sys.exit(1 if t.wrong() else 0)
    missed = 0
    for name in PLANTS if options.plant == "all" else [options.plant]:
        promise, spoil = PLANTS[name]
        spoilt = copy.deepcopy(e)
        try:
            spoil(spoilt)
            spoilt.index()
            found = count(spoilt).wrong(promise) > t.wrong(promise)
            missed += not found
            print(f"{promise:4} {name:12} {'found' if found else 'NOT FOUND'}")
        except Nothing as none:
            # A short run need not hold everything; the one plant that was asked for must be possible.
            missed += options.plant != "all"
            print(f"{promise:4} {name:12} cannot be planted: {none}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
