"""Work and faults for ops/chaos. Writes what clients saw (history.jsonl) and what the api shows at the end (world.json).

Every request of a client is one line in the history: `ok` with what was accepted, or `info` when no answer came, which says
nothing about whether it happened. Requests carry an Idempotency-Key and are repeated with it until they are answered, as a
careful client does. Hosts write into the ledger themselves: one line as a step begins, one as it ends.
"""
import argparse
import base64
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid

args = argparse.ArgumentParser()
args.add_argument("--cluster", required=True)
args.add_argument("--evidence", required=True)
args.add_argument("--ops", required=True)
args.add_argument("--minutes", type=float, required=True)
args.add_argument("--projects", type=int, required=True)
args.add_argument("--seed", type=int, required=True)
args = args.parse_args()

HERE = pathlib.Path(args.cluster)
EVIDENCE = pathlib.Path(args.evidence)
LEDGER = EVIDENCE / "ledger"
HISTORY = open(EVIDENCE / "history.jsonl", "a", encoding="utf-8")
UP = json.loads((HERE / "up.json").read_text())
ADMIN = pathlib.Path(UP["token_file"]).read_text().strip()
FIRST_PORT = int(UP["server"].rsplit(":", 1)[1])
HOSTS = [a["host"] for a in UP["agents"]]
END = time.monotonic() + args.minutes * 60
lock = threading.Lock()


def note(**entry):
    with lock:
        HISTORY.write(json.dumps({"at": time.time(), **entry}) + "\n")
        HISTORY.flush()


def once(port, method, path, body, token, key, kind):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        if key:
            headers["Idempotency-Key"] = key
        connection.request(method, f"/api/v1{path}", body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def call(method, path, body=None, token=None, kind="application/json", patience=120.0, **what):
    """Asks until there is an answer that is not `try again`; the status and the decoded answer. Status 0: none came in time."""
    token = token or ADMIN
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    key = str(uuid.uuid4()) if method != "GET" else None
    until = time.monotonic() + patience
    attempt = 0
    while True:
        attempt += 1
        status, text = 0, b""
        try:
            status, text = once(FIRST_PORT + attempt % 2, method, path, data, token, key, kind)
        except (OSError, http.client.HTTPException):
            pass
        if status in (0, 429, 500, 502, 503, 504):
            if what:
                note(result="info", status=status, **what)
            if time.monotonic() > until:
                return 0, None
            time.sleep(min(0.2 * attempt, 2))
            continue
        decoded = None
        try:
            decoded = json.loads(text) if text else None
        except ValueError:
            pass
        if what:
            note(result="ok" if status < 300 else "no", status=status, answer=decoded, **what)
        return status, decoded


STEP = """
set -u
# One write each, so that lines of many hosts never mix.
printf 'S %s %s %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" "$(date +%s.%N)" "$WINDLASS_ENVIRONMENT" >>"$LEDGER"
sleep "$(( (RANDOM % 12) )).$(( RANDOM % 10 ))e-1"
code=0
[ "$(( RANDOM % 100 ))" -ge "$FAILS" ] || code=3
printf 'E %s %s %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" "$(date +%s.%N)" "$code" >>"$LEDGER"
exit $code
"""


def catalog():
    out = []
    shares = [HOSTS[i::args.projects] for i in range(args.projects)]
    for p, hosts in enumerate(shares):
        name = f"chaos-{p}"
        on_failure = ["pause", "stop"][p % 2]
        steps = "\n".join(
            f"      - {{ id: {s}, uses: script, with: {{ run: *step, args: [{s}], env: {{ LEDGER: \"{LEDGER}\", FAILS: \"{f}\" }} }} }}"
            for s, f in (("one", 0), ("two", 4), ("three", 0)))
        steps = steps.replace("*step", json.dumps(STEP.strip() + "\n"))
        out.append(f"""kind: project
name: {name}
group: chaos
---
kind: environment
project: {name}
name: online
hosts: [{", ".join(hosts)}]
flow: work
---
kind: flow
project: {name}
flow: work
on_failure: {on_failure}
steps:
  - id: roll
    waves: "1 50%"
    budget: {{ percent: 30 }}
    parallel: 3
    steps:
{steps}
  - id: after
    needs: [roll]
    waves: "100%"
    steps:
      - {{ id: last, uses: script, with: {{ run: {json.dumps(STEP.strip() + chr(10))}, args: [last], env: {{ LEDGER: "{LEDGER}", FAILS: "0" }} }} }}
""")
        if p % 3 == 0:
            out.append(f"""kind: policy
name: {name}
match: {{ projects: [{name}] }}
approvals:
  - {{ name: somebody, quorum: 1 }}
""")
    out.append(f"""kind: channel
name: chaos
provider: {{ type: webhook, url: chaos-url, sign: chaos-sign }}
rules:
  - {{ projects: [{", ".join(f"chaos-{p}" for p in range(args.projects))}], severity: notice }}
""")
    return "---\n".join(out)


class Client(threading.Thread):
    """Releases to one project, one after the other, and does to them what people do."""

    def __init__(self, p):
        super().__init__(daemon=True)
        self.random = random.Random(args.seed * 1000 + p)
        self.project, self.n = f"chaos-{p}", 0

    def run(self):
        while time.monotonic() < END:
            try:
                self.release()
            except Exception as e:  # noqa: BLE001 - a client that dies would hide what it saw
                note(op="client", result="broken", project=self.project, error=repr(e))

    def release(self):
        self.n += 1
        version = f"{self.n}.0.{self.random.randrange(10**6)}"
        digest = "sha256:" + uuid.uuid4().hex * 2
        made = call("POST", f"/projects/{self.project}/artifacts",
                    {"version": version, "url": "file:///nowhere.tar.gz", "digest": digest, "size": 1},
                    op="artifact", project=self.project, version=version)
        if made[0] >= 300 or made[0] == 0:
            return
        status, answer = call("POST", f"/projects/{self.project}/deployments", {"environment": "online", "version": version},
                              op="request", project=self.project, version=version)
        if status not in (200, 201, 202) or not answer or not answer.get("new_deployment"):
            return
        id_ = answer["new_deployment"]
        plan = self.random.random()
        until = min(time.monotonic() + 90, END + 30)
        acted = False
        while time.monotonic() < until:
            status, d = call("GET", f"/deployments/{id_}", patience=30)
            if status == 404:
                time.sleep(0.3)
                continue
            if status != 200:
                return
            if d["ended_at"]:
                return
            if d["state"] == "awaiting_approval":
                call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, APPROVER, op="approve", deployment=id_)
            waits = [w["on"] for w in d["waiting_on"]]
            if "intervention" in waits:
                verb = self.random.choice(["retry", "skip", "abort", "ignore"])
                body = {"retry": {"hosts": []}, "skip": {"hosts": []}, "abort": {"reason": "chaos"},
                        "ignore": {"hosts": [], "reason": "chaos"}}[verb]
                call("POST", f"/deployments/{id_}/{verb}", body, op=verb, deployment=id_)
            elif d["state"] == "running" and not acted and plan < 0.35:
                acted = True
                time.sleep(self.random.random() * 3)
                if plan < 0.2:
                    call("POST", f"/deployments/{id_}/abort", {"reason": "chaos"}, op="abort", deployment=id_)
                else:
                    call("POST", f"/deployments/{id_}/pause", {"reason": "chaos"}, op="pause", deployment=id_)
                    time.sleep(self.random.random() * 4)
                    call("POST", f"/deployments/{id_}/resume", {}, op="resume", deployment=id_)
            time.sleep(0.5)
        # Not over in time, as when a host is unknown: nobody waits for ever.
        call("POST", f"/deployments/{id_}/abort", {"reason": "too slow"}, op="abort", deployment=id_)


# ---------------------------------------------------------------------------------------------------------------- faults
SERVICES = [f"{s}-{n}" for s in ("api", "scheduler", "executor", "notifier", "auditor") for n in (1, 2)]
NATS = ["nats-1", "nats-2", "nats-3"]
stopped = set()


def pid(name):
    try:
        return int((HERE / "run" / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None


def send(name, sig):
    p = pid(name)
    if p:
        try:
            os.kill(p, sig)
        except ProcessLookupError:
            pass


def start(name):
    subprocess.run([f"{args.ops}/cluster", "start", name], check=False, timeout=60, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


def killed(name, rest):
    send(name, signal.SIGKILL)
    time.sleep(rest)
    start(name)


def frozen(name, rest):
    send(name, signal.SIGSTOP)
    stopped.add(name)
    time.sleep(rest)
    send(name, signal.SIGCONT)
    stopped.discard(name)


def wiped(nodes):
    for n in nodes:
        send(n, signal.SIGKILL)
    time.sleep(0.3)
    for n in nodes:
        for found in list((HERE / "nats").glob(f"*{n}*")) + list((HERE / f"nats-{n}").glob("*")):
            shutil.rmtree(found, ignore_errors=True)
    for n in nodes:
        start(n)


def faults(rng):
    count = {}
    while time.monotonic() < END:
        time.sleep(rng.random() * 4)
        kind = rng.choices(
            ["kill service", "freeze service", "kill agent", "freeze agent", "kill broker", "freeze broker", "wipe node",
             "wipe broker", "kill database", "kill many"],
            [20, 12, 16, 10, 6, 4, 4, 2, 4, 4])[0]
        service, agent, node = rng.choice(SERVICES), rng.choice(HOSTS), rng.choice(NATS)
        # Frozen longer than a lease (15 s) now and then, so that the owner wakes as a stranger.
        rest = rng.choice([0.1, 1, 3, 3, 8, 25])
        note(op="fault", kind=kind, service=service, agent=agent, node=node, rest=rest)
        count[kind] = count.get(kind, 0) + 1
        if kind == "kill service":
            killed(service, min(rest, 8))
        elif kind == "freeze service":
            frozen(service, rest)
        elif kind == "kill agent":
            killed(agent, min(rest, 8))
        elif kind == "freeze agent":
            frozen(agent, rest)
        elif kind == "kill broker":
            killed(node, min(rest, 3))
        elif kind == "freeze broker":
            frozen(node, min(rest, 8))
        elif kind == "wipe node":
            wiped([node])
        elif kind == "wipe broker":
            wiped(NATS)
        elif kind == "kill database":
            killed("postgres", 0.5)
        else:
            for name in rng.sample(SERVICES + HOSTS, 6):
                send(name, signal.SIGKILL)
            time.sleep(1)
            heal()
    return count


def heal():
    for name in list(stopped):
        send(name, signal.SIGCONT)
    for name in ["postgres", *NATS, *SERVICES, *HOSTS]:
        p = pid(name)
        try:
            os.kill(p or 2**22, 0)
        except OSError:
            start(name)


# ------------------------------------------------------------------------------------------------------------- the run
(EVIDENCE / "sign").write_text("whsec_" + base64.b64encode(os.urandom(24)).decode())
received = subprocess.Popen(["python3", f"{args.ops}/demo.d/receiver.py", str(EVIDENCE / "port"), str(EVIDENCE / "sign"),
                             str(EVIDENCE / "received.jsonl")])
try:
    until = time.monotonic() + 10
    while not (EVIDENCE / "port").exists():
        if time.monotonic() > until:
            raise SystemExit("the receiver does not start")
        time.sleep(0.05)
    port = (EVIDENCE / "port").read_text().strip()
    call("PUT", "/secrets/channel/chaos-url", {"value": f"http://127.0.0.1:{port}/"})
    call("PUT", "/secrets/channel/chaos-sign", {"value": (EVIDENCE / "sign").read_text()})
    status, answer = call("POST", "/apply", catalog().encode(), kind="application/yaml")
    if status != 200:
        raise SystemExit(f"the catalog was refused: {status} {answer}")
    call("POST", "/people", {"name": "bob", "display": "Bob", "grants": [{"project_group": "*", "role": "approver"}]})
    APPROVER = call("POST", "/tokens", {"person": "bob", "label": "chaos"})[1]["token"]
    LEDGER.touch()
    clients = [Client(p) for p in range(args.projects)]
    for c in clients:
        c.start()
    count = faults(random.Random(args.seed))
    heal()
    for c in clients:
        c.join(180)

    # Everything runs again: whatever was accepted must end, or say what it waits for.
    settled = time.monotonic() + 240
    while True:
        open_, cursor = [], ""
        deployments = []
        while True:
            _, page = call("GET", f"/deployments?limit=100{cursor}")
            deployments += page["items"]
            if not page.get("next"):
                break
            cursor = f"&cursor={page['next']}"
        open_ = [d for d in deployments if not d["ended_at"]]
        if not open_ or time.monotonic() > settled:
            break
        for d in open_:
            asked = [w["on"] for w in d["waiting_on"]]
            if "intervention" in asked or "operator" in asked or "approval" in asked:
                verb = "cancel" if d["state"] in ("awaiting_approval", "scheduled", "queued") else "abort"
                call("POST", f"/deployments/{d['id']}/{verb}", {"reason": "the run is over"}, op=verb, deployment=d["id"])
        time.sleep(2)
    # Notifications and signatures may take a few polls more.
    time.sleep(15)
    world = {"faults": count, "deployments": [], "seed": args.seed}
    for d in deployments:
        _, detail = call("GET", f"/deployments/{d['id']}")
        _, tasks = call("GET", f"/deployments/{d['id']}/tasks?limit=1000")
        detail["tasks"] = tasks["items"]
        world["deployments"].append(detail)
    cursor = ""
    world["notifications"] = []
    while True:
        _, page = call("GET", f"/notifications?limit=100{cursor}")
        world["notifications"] += page["items"]
        if not page.get("next"):
            break
        cursor = f"&cursor={page['next']}"
    export = subprocess.run([str(HERE / "bin/windlass"), "audit", "export", "--output", str(EVIDENCE / "audit.ndjson"), "--key",
                             str(EVIDENCE / "audit.key"), "--server", UP["server"], "--token-file", UP["token_file"]],
                            capture_output=True, text=True, timeout=120, check=False)
    verify = subprocess.run([str(HERE / "bin/windlass"), "audit", "verify", str(EVIDENCE / "audit.ndjson"), "--key",
                             str(EVIDENCE / "audit.key")], capture_output=True, text=True, timeout=120, check=False)
    world["audit"] = {"export": export.returncode, "verify": verify.returncode, "said": (verify.stdout + verify.stderr)[-500:],
                      "export_said": (export.stdout + export.stderr)[-500:]}
    (EVIDENCE / "world.json").write_text(json.dumps(world))
finally:
    received.kill()
