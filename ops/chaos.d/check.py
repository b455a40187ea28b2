"""The checker of ops/chaos: compares what clients were told (history.jsonl), what hosts wrote themselves (ledger), what the api
shows (world.json) and what the receiver got (received.jsonl). It knows nothing of the services but their HTTP answers.

Prints one line a promise; exits 1 unless every counter is zero. `--plant` spoils the evidence first and turns the exit round.
"""
import argparse
import collections
import datetime
import json
import pathlib
import sys

args = argparse.ArgumentParser()
args.add_argument("--evidence", required=True)
args.add_argument("--plant", choices=["lost", "double", "false", "late"])
args = args.parse_args()
here = pathlib.Path(args.evidence)


def lines(name):
    path = here / name
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def when(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


history = [json.loads(line) for line in lines("history.jsonl")]
world = json.loads((here / "world.json").read_text())
received = [json.loads(line) for line in lines("received.jsonl")]
deployments = world["deployments"]
starts, ends = collections.defaultdict(list), collections.defaultdict(list)
for line in lines("ledger"):
    mark, version, host, step, at, last = line.split()
    (starts if mark == "S" else ends)[version, host, step].append((float(at), last))

if args.plant == "lost":
    deployments.pop(next(i for i, d in enumerate(deployments) if d["state"] == "succeeded"))
elif args.plant == "double":
    for t in range(2):
        key = next(k for k in starts if k[2] == "one")
        starts[key].append(starts[key][0])
elif args.plant == "false":
    d = next(d for d in deployments if d["state"] == "succeeded")
    for key in [k for k in ends if k[0] == d["version"] and k[2] == "three"][:1]:
        ends[key] = []
elif args.plant == "late":
    d = next(d for d in deployments if d["state"] in ("aborted", "failed", "succeeded") and any(k[0] == d["version"] for k in starts))
    key = next(k for k in starts if k[0] == d["version"])
    starts[key] = starts[key][:-1] + [(when(d["ended_at"]) + 60, starts[key][-1][1])]
    d["state"] = "aborted"

by_id = {d["id"]: d for d in deployments}
by_version = {(d["project"], d["version"]): d for d in deployments if d["kind"] != "rollback"}
rows, wrong = [], 0


def row(promise, what, found, seen, must=False):
    """`found`: what breaks the promise. `seen`: how much was looked at; where there `must` be something, nothing is a fault."""
    global wrong
    wrong += bool(found) or (must and not seen)
    rows.append((promise, what, len(found), seen))
    for f in list(found)[:5]:
        print(f"  {promise}: {f}", file=sys.stderr)


# P1: every 2xx is there. A request that was answered `info` may be there or not; twice it must not be.
asked = [h for h in history if h.get("op") == "request" and h["result"] == "ok"]
row("P1", "accepted requests lost", [h for h in asked if h["answer"]["new_deployment"] not in by_id], len(asked), must=True)
count = collections.Counter((d["project"], d["version"]) for d in deployments if d["kind"] != "rollback")
row("P1", "requests carried out twice", [k for k, n in count.items() if n > 1], len(count))
verbs = [h for h in history if h.get("op") in ("abort", "approve") and h["result"] == "ok" and h["status"] == 200]
never = [h for h in verbs if h["op"] == "abort" and h["deployment"] in by_id
         and by_id[h["deployment"]]["state"] not in ("aborted", "failed", "succeeded", "rolled_back")]
row("P1", "accepted aborts without effect", never, len(verbs))

# P2: a task's step begins at most once; a further attempt is a task of its own.
tasks = collections.defaultdict(list)
for d in deployments:
    for t in d["tasks"]:
        tasks[d["project"], d["version"], t["host"], t["step"]].append(t)
OF_STEP = {"one": "roll", "two": "roll", "three": "roll", "last": "after"}
INDEX = {"one": 0, "two": 1, "three": 2, "last": 0}
project_of = {(d["version"], t["host"]): d["project"] for d in deployments for t in d["tasks"]}
double = []
for (version, host, step), seen in starts.items():
    attempts = tasks.get((project_of.get((version, host)), version, host, OF_STEP[step]), [])
    may = [t for t in attempts if t["state"] not in ("pending", "offered", "not_started")]
    if len(seen) > len(may):
        double.append(f"{version} {host} {step}: begun {len(seen)} times in {len(may)} attempts")
row("P2", "starts beyond one an attempt", double, sum(len(s) for s in starts.values()), must=True)

# P3: after all faults everything ended, or says what it waits for.
row("P3", "runs that stand still", [d["id"] for d in deployments if not d["ended_at"] and not d["waiting_on"]], len(deployments))
row("P3", "runs that did not end in time", [f"{d['id']} {d['state']} {[w['text'] for w in d['waiting_on']]}" for d in deployments
                                            if not d["ended_at"]], len(deployments))

# P4: two releases never run on one host at once, by the hosts' own clock (it is one machine).
spans = collections.defaultdict(list)
for (version, host, step), begun in starts.items():
    begun = sorted(at for at, _ in begun)
    over = sorted(at for at, _ in ends.get((version, host, step), []))
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
    for a, b in zip(list_, list_[1:]):
        if b[0] < a[1] - 0.001:
            overlap.append(f"{host}: {a[2]} {a[3]} and {b[2]} {b[3]}")
row("P4", "steps of two attempts at once on a host", overlap, len(spans))

# P5: what is said of a host is so.
false, unknown, hosts = [], 0, 0
for d in deployments:
    for t in d["tasks"]:
        hosts += 1
        steps = [s for s, of in OF_STEP.items() if of == t["step"]]
        begun = [s for s in steps if (d["version"], t["host"], s) in starts]
        others = [o for o in tasks[d["project"], d["version"], t["host"], t["step"]] if o["id"] != t["id"]]
        if t["state"] == "succeeded":
            # Of a retried host the first steps ran in an earlier attempt.
            for s in steps:
                good = [e for e in ends.get((d["version"], t["host"], s), []) if e[1] == "0"]
                skipped = any(x["index"] == INDEX[s] and x["outcome"] == "skipped" for x in t["steps"])
                if not good and not skipped:
                    false.append(f"{d['version']} {t['host']}: succeeded, but {s} never ended well there")
        elif t["state"] == "not_started" and begun and not others:
            false.append(f"{d['version']} {t['host']}: not started, but {begun} began there")
        unknown += t["state"] in ("unknown", "overridden")
row("P5", "hosts said to be other than they are", false, hosts, must=True)

# P6: nothing begins after ABORTED but on hosts that were listed as unknown.
late = []
aborted = [d for d in deployments if d["state"] == "aborted"]
for d in aborted:
    listed = {t["host"] for t in d["tasks"] if t["state"] in ("unknown", "overridden")}
    after = when(d["ended_at"])
    for (version, host, step), begun in starts.items():
        if version == d["version"] and project_of.get((version, host)) == d["project"] and host not in listed:
            late += [f"{version} {host} {step} began {at - after:.3f} s after the end" for at, _ in begun if at > after + 0.05]
row("P6", "starts after an abort had ended", late, len(aborted))

# P7: every notification was delivered or is in the dead letters, always under its own id.
ids = {r["id"] for r in received}
undelivered = [n["id"] for n in world["notifications"] if n["state"] == "sent" and not any(n["id"] in i or n["event"] in i for i in ids)]
row("P7", "notifications said to be sent, not received", undelivered, len(world["notifications"]))
row("P7", "notifications neither sent nor dead", [n["id"] for n in world["notifications"] if n["state"] == "pending"],
    len(world["notifications"]))

# P8: the audit trail verifies offline.
row("P8", "audit trails that do not verify", [] if world["audit"]["verify"] == 0 else [world["audit"]], 1)

faults = world["faults"]
broken = [h for h in history if h.get("op") == "client"]
row("-", "clients that broke", broken, len(history))
print(f"{'':4} {'counter':48} {'found':>6} {'of':>8}")
for promise, what, found, seen in rows:
    print(f"{promise:4} {what:48} {found:>6} {seen:>8}")
states = collections.Counter(d["state"] for d in deployments)
print(f"\n{len(deployments)} deployments ({', '.join(f'{n} {s}' for s, n in sorted(states.items()))}), {hosts} tasks, unknown "
      f"{unknown} ({100 * unknown / max(hosts, 1):.2f} %), "
      f"unanswered requests {sum(h.get('result') == 'info' for h in history)}, seed {world['seed']}")
print("faults: " + ", ".join(f"{n} x {k}" for k, n in sorted(faults.items())))
if args.plant:
    print(f"planted: {args.plant}; " + ("found" if wrong else "NOT FOUND"))
    sys.exit(0 if wrong else 1)
sys.exit(1 if wrong else 0)
