"""ops/rolling: clients that release without a break, one process after the other restarted or upgraded, and what came of it."""
import argparse
import collections
import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import uuid

args = argparse.ArgumentParser()
args.add_argument("--cluster", required=True)
args.add_argument("--evidence", required=True)
args.add_argument("--ops", required=True)
args.add_argument("--ports", type=int, required=True)
args.add_argument("--minutes", type=float, required=True)
args.add_argument("--projects", type=int, required=True)
args.add_argument("--to", required=True)
args.add_argument("--upgrade", action="store_true")
args = args.parse_args()
sys.path.insert(0, str(pathlib.Path(args.ops) / "chaos.d"))
from work import STEP, Work  # noqa: E402

HERE = pathlib.Path(args.cluster)
UP = json.loads((HERE / "up.json").read_text()) | {"windlass": str(HERE / "bin/windlass")}
SERVICES = ("scheduler", "executor", "notifier", "auditor", "api")
HEALTH = {"api": -1, "scheduler": 29, "executor": 32, "notifier": 35, "auditor": 38}


class Steady(Work):
    """Clients to whose releases nothing goes wrong by itself, and who see every answer of the api."""

    def __init__(self, *given):
        super().__init__(*given)
        self.answered = collections.Counter()
        self.rude = []

    def once(self, port, method, path, body, token, key, kind):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            if key:
                headers["Idempotency-Key"] = key
            connection.request(method, f"/api/v1{path}", body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as e:
            with self.lock:
                self.answered["refused" if isinstance(e, ConnectionRefusedError) else "cut off"] += 1
            raise
        finally:
            connection.close()
        with self.lock:
            self.answered[answer.status] += 1
            if answer.status >= 500 and not (answer.status == 503 and answer.headers.get("Retry-After")):
                self.rude.append(f"{method} {path}: {answer.status} {text[:200]!r}")
        return answer.status, text

    def catalog(self):
        out = ["".join(f"kind: host\nname: {h}\naddress: 127.0.0.1\n---\n" for h in self.hosts).removesuffix("---\n")]
        run = json.dumps(STEP.strip() + "\n")
        for p in range(self.projects):
            steps = "".join(
                f'      - {{ id: {s}, uses: script, with: {{ run: {run}, args: [{s}], env: {{ LEDGER: "{self.ledger}", FAILS: "0" }} }} }}\n'
                for s in ("one", "two"))
            out.append(f"kind: project\nname: steady-{p}\ngroup: steady\n")
            out.append(f"kind: environment\nproject: steady-{p}\nname: online\nhosts: [{', '.join(self.hosts[p::self.projects])}]\nflow: work\n")
            out.append(f"kind: flow\nproject: steady-{p}\nflow: work\nsteps:\n  - id: roll\n    waves: \"1 50%\"\n    parallel: 3\n"
                       f"    steps:\n{steps}")
            if p == 0:
                out.append(f"kind: policy\nname: steady\nmatch: {{ projects: [steady-{p}] }}\napprovals:\n  - {{ name: somebody, quorum: 1 }}\n")
        out.append("kind: channel\nname: steady\nprovider: { type: webhook, url: chaos-url, sign: chaos-sign }\n"
                   f"rules:\n  - {{ projects: [{', '.join(f'steady-{p}' for p in range(self.projects))}], severity: notice }}\n")
        return "---\n".join(out)


class Client(threading.Thread):
    """One release after the other to one project; each must end well by itself."""

    def __init__(self, work, p):
        super().__init__(daemon=True)
        self.work, self.project, self.n = work, f"steady-{p}", 0
        self.took, self.wrong = [], []

    def run(self):
        while time.monotonic() < self.work.end:
            try:
                self.release()
            except Exception as e:  # noqa: BLE001 - a client that dies would hide what it saw
                self.wrong.append(repr(e))

    def release(self):
        self.n += 1
        version, begun = f"{self.n}.0.0", time.monotonic()
        made = self.work.call("POST", f"/projects/{self.project}/artifacts", {
            "version": version, "url": "file:///nowhere.tar.gz", "digest": "sha256:" + uuid.uuid4().hex * 2, "size": 1})
        status, answer = self.work.call("POST", f"/projects/{self.project}/deployments", {"environment": "online", "version": version})
        if made[0] >= 300 or status >= 300 or not (answer or {}).get("new_deployment"):
            self.wrong.append(f"{self.project} {version}: {made} {status} {answer}")
            time.sleep(1)
            return
        id_, asked = answer["new_deployment"], set()
        while True:
            status, d = self.work.call("GET", f"/deployments/{id_}", patience=30)
            # 202: the release is made a moment later.
            if status == 200:
                if d["ended_at"]:
                    break
                if d["state"] == "awaiting_approval":
                    self.work.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, self.work.approver)
                for w in d["waiting_on"]:
                    if w["on"] in ("intervention", "choice", "operator", "unknown") and w["on"] not in asked:
                        asked.add(w["on"])
                        self.wrong.append(f"{self.project} {version} ({id_}) asks a person: {json.dumps(w)[:400]}")
            if time.monotonic() - begun > 240:
                self.wrong.append(f"{self.project} {version} ({id_}) does not end: {json.dumps((d or {}).get('waiting_on'))[:400]}")
                self.work.call("POST", f"/deployments/{id_}/abort", {"reason": "too slow"})
                return
            time.sleep(0.2)
        self.took.append(time.monotonic() - begun)
        if d["state"] != "succeeded":
            self.wrong.append(f"{self.project} {version} ({id_}) ended as {d['state']}")


WORK = Steady(args.evidence, UP, [args.ports, args.ports + 1], 1, args.projects, pathlib.Path(args.ops) / "chaos.d")


def cluster(*what):
    done = subprocess.run([f"{args.ops}/cluster", *what], check=False, timeout=180, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ops/cluster {' '.join(what)}: {done.stderr[-1000:]}")


def until(what, seconds, problem):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise SystemExit(f"{problem}; its log is in {HERE}/log")
        time.sleep(0.02)


def ready(name):
    kind, n = name.rsplit("-", 1)
    connection = http.client.HTTPConnection("127.0.0.1", args.ports + HEALTH[kind] + int(n), timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def sql(text):
    done = subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(args.ports + 5), "-U", "windlass", "-d", "windlass", "-Atc", text],
                          capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def seen(host, since):
    """Whether the executors have heard of an agent after a moment of the database's clock."""
    return sql("SELECT COUNT(*) FROM agent_sessions s JOIN agents a ON a.id = s.agent_id "
               f"WHERE a.host = '{host}' AND a.revoked_at IS NULL AND s.last_seen_at > '{since}'") == "1"


def streams(name):
    """Whether a NATS node serves: it greets, and everybody who is connected to the cluster says so."""
    import socket
    try:
        with socket.create_connection(("127.0.0.1", args.ports + 9 + int(name[-1])), timeout=2) as s:
            return s.recv(5) == b"INFO "
    except OSError:
        return False


def turn(name):
    """Asks one process to end, starts it, waits until it works. Seconds to end, and to work again."""
    now = sql("SELECT clock_timestamp()") if name.startswith("host-") else None
    begun = time.monotonic()
    cluster("quit", name)
    ended = time.monotonic()
    cluster("start", name)
    if name == "postgres":
        until(lambda: sql("SELECT 1") == "1", 60, "PostgreSQL does not answer")
    elif name.startswith("nats-"):
        until(lambda: streams(name), 60, f"{name} does not answer")
    elif name.startswith("host-"):
        until(lambda: seen(name, now), 60, f"the agent of {name} is not heard of again")
    else:
        until(lambda: ready(name), 60, f"{name} is never ready")
    if name.startswith(("postgres", "nats-")):
        until(lambda: all(ready(f"{s}-{n}") for s in SERVICES for n in (1, 2)), 60, f"not every service is ready after {name} came back")
    return ended - begun, time.monotonic() - ended


def version_of(name):
    pid = int((HERE / "run" / f"{name}.pid").read_text())
    return os.stat(f"/proc/{pid}/exe").st_ino


times = collections.defaultdict(list)


def roll(names):
    for name in names:
        WORK.note(op="restart", name=name)
        took = turn(name)
        times[name.rsplit("-", 1)[0]].append(took)
        print(f"    {name:14} ended after {took[0]:5.2f} s, worked again after {took[1]:5.2f} s", flush=True)


SERVED = [f"{s}-{n}" for n in (1, 2) for s in SERVICES]
BROKERS = ["nats-1", "nats-2", "nats-3"]
WORK.prepare()
try:
    # Clients go on for as long as it takes; the time that was given is for going round once more.
    WORK.end = float("inf")
    deadline = time.monotonic() + args.minutes * 60
    clients = [Client(WORK, p) for p in range(args.projects)]
    for c in clients:
        c.start()
    rounds = 0
    # Something must be going on before anything is taken away.
    until(lambda: all(c.took for c in clients), 120, "no release ends")
    before = sum(len(c.took) for c in clients)
    if args.upgrade:
        print("the schema, while the old version runs", flush=True)
        old = {n: version_of(n) for n in SERVED}
        cluster("install", args.to)
        cluster("migrate")
        done = {c: len(c.took) for c in clients}
        until(lambda: all(len(c.took) > done[c] for c in clients), 240, "the old version does not release on the new schema")
        print("    releases went on", flush=True)
        roll(SERVED + WORK.hosts)
        if any(version_of(n) == old[n] for n in SERVED):
            raise SystemExit("a service still runs the old program")
        rounds = 1
    while rounds == 0 or time.monotonic() < deadline:
        roll(BROKERS + ["postgres"] + SERVED + WORK.hosts)
        rounds += 1
    WORK.end = time.monotonic()
    for c in clients:
        c.join(260)
    until(lambda: not any(n["state"] == "pending" for n in WORK.pages("/notifications")), 90, "notifications do not go out")
    audit = WORK.audit()
finally:
    WORK.receiver.kill()

# ------------------------------------------------------------------------------------------------------------ what came of it
wrong = [w for c in clients for w in c.wrong] + WORK.rude
starts, ends = collections.Counter(), collections.Counter()
for line in WORK.ledger.read_text().splitlines():
    kind, version, host, step = line.split()[:4]
    # Hosts belong to one project each, and versions are counted by project.
    (starts if kind == "S" else ends)[version, host, step] += 1
wrong += [f"step {k} started {n} times" for k, n in starts.items() if n > 1]
wrong += [f"step {k} began and has no end" for k in starts if not ends[k]]
dead = [n for n in WORK.pages("/notifications") if n["state"] == "dead"]
wrong += [f"notification {n['id']} was given up" for n in dead]
if audit["export"] or audit["verify"]:
    wrong.append(f"the audit trail does not verify: {audit}")
took = sorted(t for c in clients for t in c.took)
print(f"\n{'process':12} {'restarts':>8} {'to end':>8} {'worst':>8} {'to work':>8} {'worst':>8}   (seconds; median and worst)")
for kind, all_ in times.items():
    down, up = sorted(t[0] for t in all_), sorted(t[1] for t in all_)
    print(f"{kind:12} {len(all_):>8} {down[len(down) // 2]:>8.2f} {down[-1]:>8.2f} {up[len(up) // 2]:>8.2f} {up[-1]:>8.2f}")
print(f"releases: {len(took)} ended well ({len(took) - before} while processes came and went), median {took[len(took) // 2]:.1f} s, "
      f"worst {took[-1]:.1f} s; steps on hosts: {len(starts)}")
print("answers: " + ", ".join(f"{k}: {v}" for k, v in sorted(WORK.answered.items(), key=str)))
print(f"wrong: {len(wrong)}")
for w in wrong[:40]:
    print(f"    {w}")
sys.exit(1 if wrong else 0)
