"""The losses of ops/recovery, each with its clock.

Losses overlap where they do not touch each other: many agents are silent at once, one executor's end is the takeover of all its
works, and while the brokers are down many releases go their way by polling. So hundreds of samples cost minutes.
"""
import argparse
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid

args = argparse.ArgumentParser()
args.add_argument("--cluster", required=True)
args.add_argument("--ops", required=True)
args.add_argument("--rounds", type=int, required=True)
args.add_argument("--ports", type=int, required=True)
args = args.parse_args()
HERE = pathlib.Path(args.cluster)
UP = json.loads((HERE / "up.json").read_text())
TOKEN = pathlib.Path(UP["token_file"]).read_text().strip()
HOSTS = [a["host"] for a in UP["agents"]]
HEALTH = {"api": -1, "scheduler": 29, "executor": 32, "notifier": 35, "auditor": 38}


def port(name):
    service, n = name.rsplit("-", 1)
    return args.ports + HEALTH[service] + int(n)


def call(method, path, body=None, kind="application/json"):
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    for n in range(40):
        connection = http.client.HTTPConnection("127.0.0.1", args.ports + n % 2, timeout=10)
        try:
            connection.request(method, f"/api/v1{path}", body=data,
                               headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status in (429, 503):
                time.sleep(0.2)
                continue
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
            return json.loads(text) if text else None
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise RuntimeError(f"{method} {path}: no answer")


class Sql:
    """One session of psql: a question every few milliseconds must not cost a process each."""

    def __init__(self):
        self.psql = subprocess.Popen(["psql", "-h", "127.0.0.1", "-p", str(args.ports + 5), "-U", "windlass", "-d", "windlass", "-At", "-F", "|"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def __call__(self, text):
        self.psql.stdin.write(text + ";\n\\echo .\n")
        self.psql.stdin.flush()
        rows = []
        while (line := self.psql.stdout.readline()) != ".\n":
            if not line:
                raise SystemExit("the session with PostgreSQL ended")
            rows.append(line.rstrip("\n").split("|"))
        return rows


sql = Sql()


def until(what, seconds, problem):
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > end:
            raise SystemExit(problem)
        time.sleep(0.02)


def pid(name):
    return int((HERE / "run" / f"{name}.pid").read_text())


def start(name):
    subprocess.run([f"{args.ops}/cluster", "start", name], check=True, timeout=60, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(name):
    """Kill -9, and the moment at which it was dead (one that nobody has waited for yet is)."""
    p = pathlib.Path(f"/proc/{pid(name)}/stat")
    os.kill(pid(name), signal.SIGKILL)

    def dead():
        try:
            return p.read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    until(dead, 10, f"{name} does not die")
    return time.monotonic()


def ready(name):
    connection = http.client.HTTPConnection("127.0.0.1", port(name), timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def whole():
    until(lambda: all(ready(f"{s}-{n}") for s in HEALTH for n in (1, 2)), 60, "not every service is ready")


def deploy(project, environment, version, inputs):
    call("POST", f"/projects/{project}/artifacts",
         {"version": version, "url": "file:///nowhere.tar.gz", "digest": "sha256:" + uuid.uuid4().hex * 2, "size": 1})
    return call("POST", f"/projects/{project}/deployments", {"environment": environment, "version": version, "inputs": inputs})["new_deployment"]


def ended(ids):
    """All of them, well."""
    ids = ", ".join(f"'{i}'" for i in ids)
    states = {row[0] for row in sql(f"SELECT state FROM deployments WHERE id IN ({ids})")}
    bad = states & {"failed", "rolled_back", "aborted", "rejected", "expired", "cancelled"}
    if bad:
        raise SystemExit(f"a release that nothing was wrong with ended as {bad}")
    return states == {"succeeded"}


HOLD = HERE / "hold"
CATALOG = "---\n".join(f"""kind: project
name: recovery-{n}
group: recovery
---
kind: environment
project: recovery-{n}
name: online
hosts: [{host}]
flow: hold
---
kind: environment
project: recovery-{n}
name: beta
hosts: [{host}]
flow: central
---
kind: flow
project: recovery-{n}
flow: central
steps:
  - {{ id: look, uses: wait, with: {{ for: 0s }} }}
---
kind: flow
project: recovery-{n}
flow: hold
steps:
  - id: roll
    waves: "100%"
    steps:
      - id: hold
        uses: script
        timeout: 60m
        with: {{ run: "while [ -e \\"$1\\" ]; do sleep 0.2; done\\n", args: ["{HOLD}"] }}
""" for n, host in enumerate(HOSTS))


def serving(rounds):
    """A service is killed and started at once, as systemd does."""
    times = []
    for n in range(rounds):
        name = [f"{s}-{1 + n // len(HEALTH) % 2}" for s in HEALTH][n % len(HEALTH)]
        at = kill(name)
        start(name)
        until(lambda name=name: ready(name), 60, f"{name} is never ready")
        times.append(time.monotonic() - at)
    whole()
    return times


def silence(rounds):
    """Agents fall silent one after the other, while the first ones still are."""
    def states():
        return {h["name"]: h["state"] for h in call("GET", "/hosts?limit=500")["items"]}

    times = []
    while len(times) < rounds:
        until(lambda: all(s == "connected" for s in states().values()), 60, "not every agent is connected")
        batch = HOSTS[:rounds - len(times)]
        since, seen = {}, {}
        begun = time.monotonic()
        try:
            while len(seen) < len(batch):
                due = batch[len(since):1 + int((time.monotonic() - begun) / 0.37)]
                for name in due:
                    os.kill(pid(name), signal.SIGSTOP)
                    since[name] = time.monotonic()
                now = states()
                for name in [n for n in since if n not in seen and now[n] == "disconnected"]:
                    seen[name] = time.monotonic() - since[name]
                if time.monotonic() - begun > 60 + 0.37 * len(batch):
                    raise SystemExit(f"never shown as disconnected: {[n for n in since if n not in seen]}")
                time.sleep(0.05)
        finally:
            for name in since:
                os.kill(pid(name), signal.SIGCONT)
        times += seen.values()
    return times


def takeover(rounds):
    """One work on each host, all of them carried by one executor, which is killed; then by the other one, which is killed."""
    HOLD.touch()
    ids = [deploy(f"recovery-{n}", "online", f"1.0.{uuid.uuid4().int % 10**6}", {}) for n in range(len(HOSTS))]
    list_ = ", ".join(f"'{i}'" for i in ids)
    held = lambda: {w: int(e) for w, e in sql(  # noqa: E731
        f"SELECT work_id, epoch FROM work_claims WHERE deployment_id IN ({list_}) AND phase = 'running'")}
    granted = lambda: sql(f"SELECT COUNT(*) FROM tasks WHERE deployment_id IN ({list_}) AND state = 'granted'")[0][0]  # noqa: E731
    until(lambda: len(held()) == len(ids) and int(granted()) == len(ids), 90, "not every release begins")
    times, n = [], 0
    while len(times) < rounds:
        # The first of them may own nothing: then nothing is measured, and all is the other one's from then on.
        name = f"executor-{1 + n % 2}"
        n += 1
        owners = lambda: {w: o for w, o in sql(f"SELECT work_id, owner FROM work_claims WHERE deployment_id IN ({list_})")}  # noqa: E731
        before, owned = held(), owners()
        at = kill(name)
        # Whose works were the dead one's shows in the leases: the living one goes on renewing its own.
        time.sleep(6)
        lease = dict(sql(f"SELECT work_id, expires_at > clock_timestamp() + interval '9.5 seconds' FROM work_claims WHERE deployment_id IN ({list_})"))
        lost = {w for w in before if lease[w] == "f" or owners()[w] != owned[w]}
        taken = {}

        def look():
            for w, e in held().items():
                if w in lost and w not in taken and e > before[w]:
                    taken[w] = time.monotonic() - at
            return len(taken) == len(lost)

        look_first = len(taken)
        until(look, 60, f"works of {name} are not taken over: {len(lost) - len(taken)} of {len(lost)}")
        assert look_first == 0
        times += taken.values()
        start(name)
        until(lambda name=name: ready(name), 60, f"{name} is not ready")
        if n > 3 + 3 * rounds:
            raise SystemExit("no work is ever taken over")
    HOLD.unlink()
    until(lambda: ended(ids), 120, "what was taken over does not end well")
    return times


def hops(rounds):
    """Each hop of a release that is carried by doorbells: command decided, work claimed, result applied. Seconds each."""
    times = {"command decided": [], "work claimed": [], "result applied": []}
    while len(times["command decided"]) < rounds:
        batch = min(len(HOSTS), rounds - len(times["command decided"]))
        ids, threads = [], []

        def one(n):
            # Spread over a poll, so that every phase of it is met.
            time.sleep(n * 5.0 / batch)
            ids.append(deploy(f"recovery-{n}", "beta", f"2.0.{uuid.uuid4().int % 10**6}", {}))

        for n in range(batch):
            threads.append(threading.Thread(target=one, args=(n,), daemon=True))
            threads[-1].start()
        claimed, settled, applied = {}, {}, {}
        until_ = time.monotonic() + 90
        while True:
            known = list(ids)
            if known:
                for work, phase, done, age, since in sql(
                        "SELECT w.id, c.phase, w.applied, extract(epoch FROM clock_timestamp() - w.created_at), "
                        "extract(epoch FROM clock_timestamp() - c.updated_at) FROM works w JOIN work_claims c ON c.work_id = w.id "
                        f"WHERE w.deployment_id IN ({', '.join(repr(i) for i in known)})"):
                    if phase != "ready":
                        claimed.setdefault(work, float(age))
                    if phase == "settled":
                        settled[work] = True
                        if int(done) > 0:
                            applied.setdefault(work, float(since))
            if not any(t.is_alive() for t in threads) and ended(ids):
                break
            if time.monotonic() > until_:
                raise SystemExit("releases without doorbells do not end")
            time.sleep(0.02)
        list_ = ", ".join(repr(i) for i in ids)
        times["command decided"] += [float(r[0]) for r in sql(
            "SELECT extract(epoch FROM o.decided_at - c.created_at) FROM commands c JOIN command_outcomes o ON o.command_id = c.id "
            f"WHERE o.deployment_id IN ({list_}) AND c.verb = 'request'")]
        times["work claimed"] += claimed.values()
        times["result applied"] += applied.values()
    return times


def print_one(what, times, bound):
    times = sorted(times)
    if not times:
        print(f"{what:44} nothing measured", flush=True)
        return True
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    print(f"{what:44} {len(times):>6} {times[len(times) // 2]:>8.2f} {p99:>8.2f} {times[-1]:>8.2f} {bound:>8}", flush=True)
    return times[-1] > bound


call("POST", "/apply", CATALOG.encode(), "application/yaml")
late = False
print(f"{'loss':44} {'rounds':>6} {'median':>8} {'p99':>8} {'worst':>8} {'bound':>8}   (seconds)")
late |= print_one("service killed, serving again", serving(args.rounds), 5)
late |= print_one("agent silent, shown disconnected", silence(args.rounds), 30)
late |= print_one("executor killed, work taken over", takeover(args.rounds), 20)
usual = hops(min(args.rounds, len(HOSTS)))
for n in (1, 2, 3):
    kill(f"nats-{n}")
try:
    without = hops(args.rounds)
finally:
    for n in (1, 2, 3):
        start(f"nats-{n}")
for what, times in without.items():
    least = sorted(usual[what])[len(usual[what]) // 2]
    late |= print_one(f"NATS down, added: {what}", [max(0.0, t - least) for t in times], 5)
sys.exit(1 if late else 0)
