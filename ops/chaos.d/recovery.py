"""The losses of ops/recovery, one after the other, each with its clock."""
import argparse
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
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


def sql(text):
    """One row, as text; the clock is ours."""
    out = subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(args.ports + 5), "-U", "windlass", "-d", "windlass", "-Atc", text],
                         capture_output=True, text=True, timeout=20, check=True)
    return out.stdout.strip()


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


def ready(name):
    connection = http.client.HTTPConnection("127.0.0.1", port(name), timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def deploy(version, hold):
    """A deployment whose one step on the first host waits until `hold` is gone; the work's id once it runs."""
    call("POST", "/projects/recovery/artifacts",
         {"version": version, "url": "file:///nowhere.tar.gz", "digest": "sha256:" + uuid.uuid4().hex * 2, "size": 1})
    made = call("POST", "/projects/recovery/deployments", {"environment": "online", "version": version, "inputs": {"hold": str(hold)}})
    id_ = made["new_deployment"]

    def work():
        d = call("GET", f"/deployments/{id_}")
        begun = [h["task"] for s in d["steps"] for w in s["waves"] for h in w["hosts"] if h["task"]]
        if any(t["started_at"] for t in begun):
            return sql(f"SELECT work_id FROM work_claims WHERE deployment_id = '{id_}' AND phase = 'running'")
        return None

    return id_, until(work, 60, f"deployment {id_} does not begin")


CATALOG = f"""kind: project
name: recovery
group: recovery
---
kind: environment
project: recovery
name: online
hosts: [{HOSTS[0]}]
flow: hold
---
kind: flow
project: recovery
flow: hold
inputs:
  hold: {{ type: string }}
steps:
  - id: roll
    waves: "100%"
    steps:
      - id: hold
        uses: script
        timeout: 10m
        with: {{ run: "while [ -e \\"$1\\" ]; do sleep 0.1; done\\n", args: ["${{{{ inputs.hold }}}}"] }}
"""


def takeover(n):
    hold = HERE / f"hold-{n}"
    hold.touch()
    id_, work = deploy(f"{n}.0.0", hold)
    first, second = ("executor-1", "executor-2") if n % 2 else ("executor-2", "executor-1")
    # Both are frozen while the claim is read; whose it is shows in what happens next: renewed by the one that lives, or taken over.
    for name in (first, second):
        os.kill(pid(name), signal.SIGSTOP)
    time.sleep(0.2)
    claim = lambda: sql(f"SELECT epoch, expires_at FROM work_claims WHERE work_id = '{work}'").split("|")  # noqa: E731
    epoch, expires = claim()
    os.kill(pid(first), signal.SIGKILL)
    at = time.monotonic()
    os.kill(pid(second), signal.SIGCONT)
    now = until(lambda: [c for c in [claim()] if c != [epoch, expires]], 60, f"work {work} is not taken over")[0]
    took = time.monotonic() - at if int(now[0]) > int(epoch) else None
    start(first)
    hold.unlink()
    until(lambda: call("GET", f"/deployments/{id_}")["state"] == "succeeded", 60, f"deployment {id_} does not succeed")
    until(lambda: ready(first), 30, f"{first} is not ready")
    return took


def silence(n):
    name = HOSTS[1 + n % (len(HOSTS) - 1)]
    state = lambda: next(h["state"] for h in call("GET", "/hosts?limit=100")["items"] if h["name"] == name)  # noqa: E731
    until(lambda: state() == "connected", 60, f"{name} is not connected")
    os.kill(pid(name), signal.SIGSTOP)
    at = time.monotonic()
    until(lambda: state() == "disconnected", 60, f"{name} is never shown as disconnected")
    took = time.monotonic() - at
    os.kill(pid(name), signal.SIGCONT)
    return took


def serving(n):
    name = [f"{s}-{1 + n % 2}" for s in HEALTH][n % len(HEALTH)]
    os.kill(pid(name), signal.SIGKILL)
    until(lambda: not pathlib.Path(f"/proc/{pid(name)}").exists(), 10, f"{name} does not die")
    at = time.monotonic()
    start(name)
    until(lambda: ready(name), 60, f"{name} is never ready")
    return time.monotonic() - at


call("POST", "/apply", CATALOG.encode(), "application/yaml")
late = False
print(f"{'loss':34} {'rounds':>6} {'median':>8} {'p99':>8} {'worst':>8} {'bound':>8}   (seconds)")
for what, measure, bound in (("service killed, serving again", serving, 5), ("agent silent, shown disconnected", silence, 30),
                             ("executor killed, work taken over", takeover, 20)):
    times = sorted(t for t in (measure(n) for n in range(args.rounds)) if t is not None)
    if not times:
        print(f"{what:34} nothing measured")
        late = True
        continue
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    late |= times[-1] > bound
    print(f"{what:34} {len(times):>6} {times[len(times) // 2]:>8.2f} {p99:>8.2f} {times[-1]:>8.2f} {bound:>8}", flush=True)
sys.exit(1 if late else 0)
