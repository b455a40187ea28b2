"""Faults for ops/chaos, while clients work (work.py); leaves the evidence that check.py reads."""
import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from work import Work

# An end from outside is an end like any other: what was started is ended too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

args = argparse.ArgumentParser()
args.add_argument("--cluster", required=True)
args.add_argument("--evidence", required=True)
args.add_argument("--ops", required=True)
args.add_argument("--minutes", type=float, required=True)
args.add_argument("--projects", type=int, required=True)
args.add_argument("--seed", type=int, required=True)
args = args.parse_args()

HERE = pathlib.Path(args.cluster)
UP = json.loads((HERE / "up.json").read_text()) | {"windlass": str(HERE / "bin/windlass")}
FIRST = int(UP["server"].rsplit(":", 1)[1])
WORK = Work(args.evidence, UP, [FIRST, FIRST + 1], args.seed, args.projects, pathlib.Path(__file__).resolve().parent)

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
        shutil.rmtree(HERE / "nats" / n, ignore_errors=True)
    for n in nodes:
        start(n)


def faults(rng):
    count = {}
    while time.monotonic() < WORK.end:
        time.sleep(rng.random() * 4)
        kind = rng.choices(
            ["kill service", "freeze service", "kill agent", "freeze agent", "kill broker", "freeze broker", "wipe node",
             "wipe broker", "kill database", "kill many"],
            [20, 12, 16, 10, 6, 4, 4, 2, 4, 4])[0]
        service, agent, node = rng.choice(SERVICES), rng.choice(WORK.hosts), rng.choice(NATS)
        # Frozen longer than a lease (15 s) now and then, so that the owner wakes as a stranger.
        rest = rng.choice([0.1, 1, 3, 3, 8, 25])
        WORK.note(op="fault", kind=kind, service=service, agent=agent, node=node, rest=rest)
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
            for name in rng.sample(SERVICES + WORK.hosts, 6):
                send(name, signal.SIGKILL)
            time.sleep(1)
            heal()
    return count


def heal():
    for name in list(stopped):
        send(name, signal.SIGCONT)
    for name in ["postgres", *NATS, *SERVICES, *WORK.hosts]:
        p = pid(name)
        try:
            os.kill(p or 2**22, 0)
        except OSError:
            start(name)


WORK.prepare()
try:
    clients = WORK.begin(args.minutes)
    count = faults(random.Random(args.seed))
    heal()
    WORK.settle(clients, count)
finally:
    WORK.receiver.kill()
