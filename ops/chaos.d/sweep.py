"""The sweep of ops/crash-sweep: one deployment a point, a fault at its n-th durable call, and what became of it.

The tracer is attached to the process once it stands, so a point is counted within the deployment and not within the start. With
`kill` the process dies inside the call; with `eio` and `enospc` the call fails, and what the process makes of that is its own
business as long as nothing that was promised is lost.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from work import Work

# An end from outside is an end like any other: what was started is ended too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

args = argparse.ArgumentParser()
args.add_argument("--where", required=True)
args.add_argument("--nats", required=True)
args.add_argument("--points", type=int, required=True)
args.add_argument("--target", choices=["server", "agent", "all"], required=True)
args.add_argument("--fault", choices=["kill", "eio", "enospc"], required=True)
args.add_argument("--port", type=int, required=True)
args = args.parse_args()
WHERE = pathlib.Path(args.where)
STATE = WHERE / "state"
HOSTS = ["host-1", "host-2", "host-3"]
INJECT = {
    "kill": "fsync,fdatasync,rename,renameat,renameat2:signal=SIGKILL",
    "eio": "fsync,fdatasync:error=EIO",
    "enospc": "pwrite64,write:error=ENOSPC",
}[args.fault]
TRACED = INJECT.split(":")[0]
running = {}


def log(name):
    return open(WHERE / "evidence" / f"{name}.log", "a", encoding="utf-8")


def start(name):
    if name == "server":
        command = [str(WHERE / "bin/windlass"), "up", "--state", str(STATE), "--nats-server", args.nats, "--allow-private", "--port",
                   str(args.port), "--nats-port", str(args.port + 1)]
    else:
        command = [str(WHERE / "bin/windlass-agent"), "run", "--state", str(WHERE / name / "state"), "--root",
                   str(WHERE / name / "root")]
    out = log(name)
    running[name] = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def up():
    """Starts the server until it is ready; its own start is not swept."""
    for _ in range(20):
        (STATE / "up.json").unlink(missing_ok=True)
        start("server")
        until = time.monotonic() + 60
        while running["server"].poll() is None and time.monotonic() < until:
            try:
                record = json.loads((STATE / "up.json").read_text())
                if record["ready"]:
                    return record
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.05)
        time.sleep(0.5)
    raise SystemExit(f"the server does not start: see {WHERE}/evidence/server.log")


def trace(name, n):
    """Attaches the tracer; returns once it is attached."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-e", f"trace={TRACED}", "-e", f"inject={INJECT}:when={n}", "-p",
         str(running[name].pid)], stderr=subprocess.PIPE, text=True)
    line = tracer.stderr.readline()
    if "attached" not in line:
        raise SystemExit(f"cannot trace {name}: {line.strip()}")
    return tracer


def detach(tracer):
    tracer.send_signal(signal.SIGINT)
    try:
        tracer.wait(10)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait(10)


def point(work, name, n):
    """One deployment with a fault at the n-th call. False: the deployment did not come as far as that."""
    version = f"1.{n}.{int(time.time() * 1000)}"
    tracer = trace(name, n)
    digest = "sha256:" + os.urandom(32).hex()
    hit = False

    def mend():
        nonlocal hit
        if running[name].poll() is not None:
            hit = True
            detach(tracer)
            if name == "server":
                up()
            else:
                start(name)

    until = time.monotonic() + 150
    id_ = None
    try:
        while id_ is None:
            if time.monotonic() > until:
                raise SystemExit(f"{name} at call {n}: the request is not accepted in time")
            mend()
            made = work.call("POST", "/projects/chaos-0/artifacts",
                             {"version": version, "url": "file:///nowhere.tar.gz", "digest": digest, "size": 1}, patience=1)
            if made[0] not in (200, 201, 409):
                continue
            status, answer = work.call("POST", "/projects/chaos-0/deployments", {"environment": "online", "version": version},
                                       patience=1, key=version, op="request", project="chaos-0", version=version)
            if status in (200, 201, 202):
                id_ = answer["new_deployment"]
        while True:
            mend()
            status, d = work.call("GET", f"/deployments/{id_}", patience=1)
            if status == 200 and d["ended_at"]:
                break
            if status == 200:
                for w in d["waiting_on"]:
                    if w["on"] == "approval":
                        work.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, work.approver, patience=1)
                    if w["on"] == "unknown":
                        work.call("POST", f"/deployments/{id_}/override", {"hosts": w["data"]["hosts"], "reason": "sweep"}, patience=1)
                    if w["on"] == "intervention":
                        work.call("POST", f"/deployments/{id_}/retry", {"hosts": []}, patience=1)
            if time.monotonic() > until:
                raise SystemExit(f"{name} at call {n}: deployment {id_} does not end: {d and d['waiting_on']}")
            time.sleep(0.1)
    finally:
        detach(tracer)
    mend()
    # A call that fails kills nobody: how many there are is then not seen, and the limit ends the sweep.
    return hit or args.fault != "kill"


record = None
try:
    (WHERE / "evidence").mkdir(exist_ok=True)
    record = up()
    record["windlass"] = str(WHERE / "bin/windlass")
    record["agents"] = [{"host": h} for h in HOSTS]
    work = Work(WHERE / "evidence", record, [args.port], 0, 1, pathlib.Path(__file__).resolve().parent)
    work.prepare()
    for h in HOSTS:
        (WHERE / h / "root").mkdir(parents=True)
        token = work.call("POST", "/enroll-tokens", {"host": h})[1]["token"]
        subprocess.run([str(WHERE / "bin/windlass-agent"), "enroll", "--server", f"http://127.0.0.1:{args.port}", "--token-file", "-",
                        "--state", str(WHERE / h / "state")], input=token, text=True, check=True, timeout=60,
                       stdout=subprocess.DEVNULL, stderr=log(h))
        start(h)
    counts = {}
    for name, what in (("server", "server"), ("host-1", "agent")):
        if args.target not in (what, "all"):
            continue
        began = time.monotonic()
        n = 1
        while n <= args.points and point(work, name, n):
            n += 1
        counts[f"{args.fault} {what}"] = n - 1
        print(f"{what}: {n - 1} points in {time.monotonic() - began:.0f} s" + ("" if n <= args.points else " (more are left)"), flush=True)
    work.settle([], counts)
finally:
    for p in running.values():
        p.kill()
    if record:
        work.receiver.kill()
