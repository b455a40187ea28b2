"""The sweep of ops/crash-sweep: one deployment a point, a fault at its n-th durable call, and what became of it.

A fault is armed once everything stands, so a point is counted within the deployment and not within the start. `kill` dies before the
call, `after` when it is done and nobody has learned of it; `eio`, `enospc` and `reset` let the call fail, and what the process makes of
that is its own business as long as nothing that was promised is lost. A sweep is over where deployments pass without reaching the next point.
"""
import argparse
import errno
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import time
import traceback
import uuid

from instance import Database, Embedded, Scaled

# Other processes end by themselves when their sweep does.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
FORMS = {"embedded": Embedded, "scaled": Scaled}
VERDICTS = {"kill": "kill", "after": "after", "eio": errno.EIO, "enospc": errno.ENOSPC, "reset": errno.ECONNRESET}
# Calls that a fault makes no sense for are no points of it.
ONLY = {"eio": {"fsync", "fdatasync", "rename", "renameat", "renameat2"},
        "enospc": {"pwrite64", "write", "ftruncate", "fallocate", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"}}
# So many deployments in a row must pass untouched before a sweep is over: not every one makes exactly as many calls.
QUIET = 3


class Plan:
    """Which point is next; shared by all instances of one form."""

    def __init__(self, sweeps, points, every, until, lock):
        self.lock, self.points, self.every, self.until = lock, points, every, until
        self.sweeps = sweeps
        # Not from the first when only some are taken: those are the request's, every time.
        first = 1 if every == 1 else every // 2
        self.next = [multiprocessing.Value("i", first, lock=False) for _ in sweeps]
        self.quiet = [multiprocessing.Value("i", 0, lock=False) for _ in sweeps]

    def take(self):
        with self.lock:
            if time.time() > self.until:
                return None
            for i in range(len(self.sweeps)):
                if self.quiet[i].value < QUIET and self.next[i].value <= self.points:
                    self.next[i].value += self.every
                    return i, self.next[i].value - self.every
        return None

    def quiet_at(self, i):
        with self.lock:
            self.quiet[i].value += 1

    def over(self, i):
        return self.quiet[i].value >= QUIET


def point(instance, target, fault, n):
    """One deployment with a fault at the n-th call; what is written down of it."""
    version = f"1.{n}.{time.time_ns() // 1000}"
    work = instance.work
    process, matches = instance.target(target)
    only = ONLY.get(fault)
    instance.arm(process, (lambda caught, call: call.name in only and matches(caught, call)) if only else matches, n, VERDICTS[fault])
    began, until = time.monotonic(), time.monotonic() + 240
    id_, d = None, None
    try:
        while id_ is None:
            if time.monotonic() > until:
                raise RuntimeError("the request is not accepted in time")
            instance.mend()
            made = work.call("POST", "/projects/chaos-0/artifacts", {"version": version, "url": "file:///nowhere.tar.gz",
                             "digest": "sha256:" + uuid.UUID(int=n).hex * 2, "size": 1}, patience=1)
            if made[0] not in (200, 201, 409):
                continue
            status, answer = work.call("POST", "/projects/chaos-0/deployments", {"environment": "online", "version": version},
                                       patience=1, key=version, op="request", project="chaos-0", version=version)
            if status in (200, 201, 202):
                id_ = answer["new_deployment"]
        while True:
            instance.mend()
            status, d = work.call("GET", f"/deployments/{id_}", patience=1)
            if status == 200 and d["ended_at"]:
                break
            for w in d["waiting_on"] if status == 200 else []:
                if w["on"] == "approval":
                    work.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, work.approver, patience=1,
                              op="approve", deployment=id_)
                elif w["on"] == "unknown":
                    work.call("POST", f"/deployments/{id_}/override", {"hosts": w["data"]["hosts"], "reason": "sweep"}, patience=1)
                elif w["on"] == "intervention":
                    work.call("POST", f"/deployments/{id_}/retry", {"hosts": []}, patience=1)
            if time.monotonic() > until:
                raise RuntimeError(f"deployment {id_} does not end: {d and d['waiting_on']}")
            time.sleep(0.05)
    finally:
        armed, instance.armed = instance.armed, None
    instance.mend()
    return {"n": n, "hit": armed.hit, "calls": armed.count, "state": d["state"], "seconds": round(time.monotonic() - began, 2),
            "deployment": id_}


def worker(form, plan, options, database, number):
    """One installation, point after point until there are no more."""
    where = pathlib.Path(options.where) / f"{form}-{number}"
    rest = [where, pathlib.Path(options.where) / "bin", options.nats, options.port + 20 * number + (0 if form == "embedded" else 10)]
    instance = FORMS[form](*rest, **({"database": database} if form == "scaled" else {}))
    counts, problem = {}, None
    try:
        instance.prepare()
        with open(where / "evidence/points.jsonl", "a", encoding="utf-8") as points:
            while (taken := plan.take()) is not None:
                i, n = taken
                target, fault = plan.sweeps[i]
                entry = {"form": form, "target": target, "fault": fault}
                try:
                    entry |= point(instance, target, fault, n)
                except RuntimeError as e:
                    problem = f"{form} {target} {fault} at call {n}: {e}"
                    print(problem, file=sys.stderr, flush=True)
                    entry |= {"n": n, "hit": None, "state": "stuck", "problem": str(e)}
                points.write(json.dumps(entry) + "\n")
                points.flush()
                if entry["hit"]:
                    counts[f"{form} {target} {fault}"] = counts.get(f"{form} {target} {fault}", 0) + 1
                elif "problem" not in entry:
                    plan.quiet_at(i)
        instance.work.settle([], counts)
    except BaseException:
        traceback.print_exc()
        problem = problem or "broken"
    finally:
        instance.end()
    sys.exit(1 if problem else 0)


def lines_of(entries):
    """The list that is kept: one line a point, without what is different in every run."""
    rows = set()
    for e in entries:
        call, _, place = e["hit"].partition(" ")
        place = re.sub(r".*/(embedded|scaled)-\d+/", "", place)
        place = re.sub(r"socket:\[\d+\]", "database", place)
        place = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]+", "ID", place)
        rows.add((e["form"], e["target"], e["fault"], e["n"], call, place, e["state"]))
    return ["# form target fault n-th-call call place outcome", *(" ".join(map(str, r)) for r in sorted(rows))]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--where", required=True)
    args.add_argument("--nats", required=True)
    args.add_argument("--points", type=int, required=True)
    args.add_argument("--every", type=int, required=True)
    args.add_argument("--minutes", type=float, required=True)
    args.add_argument("--form", choices=["embedded", "scaled", "all"], required=True)
    args.add_argument("--target", required=True)
    args.add_argument("--fault", required=True)
    args.add_argument("--instances", type=int, required=True)
    args.add_argument("--port", type=int, required=True)
    options = args.parse_args()
    where = pathlib.Path(options.where)
    until = time.time() + options.minutes * 60
    began = time.monotonic()
    database = None
    workers, plans = [], []
    try:
        for form, kind in FORMS.items():
            if options.form not in (form, "all"):
                continue
            # All kills first: of a sweep that runs out of time the strongest part is done.
            sweeps = [(t, f) for f in VERDICTS for t, faults in kind.TARGETS.items() if f in faults
                      and options.target in (t, "all") and options.fault in (f, "all")]
            if not sweeps:
                continue
            plan = Plan(sweeps, options.points, options.every, until, multiprocessing.Lock())
            plans.append((form, plan))
            if form == "scaled":
                (where / "postgres").mkdir()
                where.chmod(0o711)
                database = Database(where / "postgres", options.port - 1)
            for number in range(options.instances):
                p = multiprocessing.Process(target=worker, args=(form, plan, options, database, number))
                p.start()
                workers.append(p)
        if not workers:
            raise SystemExit("there is nothing to sweep: see --help for forms, targets and faults")
        for p in workers:
            p.join()
    finally:
        for p in workers:
            if p.is_alive():
                p.terminate()
                p.join(60)
        if database:
            database.end()
    entries = [json.loads(line) for f in sorted(where.glob("*/evidence/points.jsonl")) for line in f.read_text().splitlines()]
    hits = [e for e in entries if e["hit"]]
    (where / "points.txt").write_text("\n".join(lines_of(hits)) + "\n")
    print(f"{'form':9} {'target':10} {'fault':7} {'points':>7} {'ended':>7}  of all")
    for form, plan in plans:
        for i, (target, fault) in enumerate(plan.sweeps):
            mine = [e for e in hits if (e["form"], e["target"], e["fault"]) == (form, target, fault)]
            ended = [e for e in mine if e["state"] != "stuck"]
            reach = f"every {plan.every}th" if plan.every > 1 else "yes"
            if not plan.over(i):
                reach = f"no: stopped before call {plan.next[i].value}"
            print(f"{form:9} {target:10} {fault:7} {len(mine):7} {len(ended):7}  {reach}")
    states = {}
    for e in hits:
        states[e["state"]] = states.get(e["state"], 0) + 1
    print(f"{len(hits)} points in {time.monotonic() - began:.0f} s; deployments ended {states}; stuck: "
          f"{sum(e['state'] == 'stuck' for e in entries)}")
    sys.exit(1 if any(p.exitcode for p in workers) else 0)


if __name__ == "__main__":
    main()
