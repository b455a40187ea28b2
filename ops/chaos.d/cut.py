"""Cuts the power for ops/power-cut, while clients work (work.py); leaves the evidence that check.py reads.

Windlass runs in a process namespace of its own, so that all of it can be frozen and killed at once. While it is frozen nobody is
answered and no step writes, so what came before the cut and what after is never in doubt.
"""
import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from instance import SHORT
from work import Work

# An end from outside is an end like any other: what was started is ended too.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

args = argparse.ArgumentParser()
args.add_argument("--where", required=True)
args.add_argument("--nats", required=True)
args.add_argument("--cuts", type=int, required=True)
args.add_argument("--agents", type=int, required=True)
args.add_argument("--projects", type=int, required=True)
args.add_argument("--seed", type=int, required=True)
args.add_argument("--port", type=int, required=True)
args.add_argument("--form", choices=["embedded", "scaled"], required=True)
args = args.parse_args()
WHERE = pathlib.Path(args.where)
STATE = WHERE / "disk/state"


def command(*words):
    subprocess.run(words, check=True, timeout=60)


def up():
    """Starts all of it; returns once it is ready."""
    (STATE / "up.json").unlink(missing_ok=True)
    log = open(WHERE / "evidence/up.log", "a", encoding="utf-8")
    if args.form == "embedded":
        form = [str(WHERE / "bin/windlass"), "up", "--state", str(STATE), "--nats-server", args.nats, "--agents", str(args.agents),
                "--allow-private", "--port", str(args.port), "--nats-port", str(args.port + 1), "--agent-ports", str(args.port + 10)]
    else:
        form = [sys.executable, str(pathlib.Path(__file__).with_name("stand.py")), "--state", str(STATE), "--programs", str(WHERE / "bin"),
                "--log", str(WHERE / "evidence"), "--nats", args.nats, "--port", str(args.port), "--agents", str(args.agents)]
    child = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *form], stdout=log, stderr=log,
                             env=os.environ | SHORT)
    # The first start makes it all, on a machine that may have much else to do.
    until = time.monotonic() + (120 if (STATE / "keys").exists() else 400)
    while True:
        if child.poll() is not None:
            raise SystemExit(f"windlass up ended with {child.returncode}: see {WHERE}/evidence/up.log")
        try:
            record = json.loads((STATE / "up.json").read_text())
            if record.get("ready", True):
                return child, record
        except (OSError, ValueError):
            pass
        if time.monotonic() > until:
            raise SystemExit("windlass up is not ready in time")
        time.sleep(0.1)


def members(child):
    """Every process of the namespace that the child's child leads."""
    first = None
    for p in pathlib.Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                if int((p / "stat").read_text().rsplit(")", 1)[1].split()[1]) == child.pid:
                    first = os.readlink(p / "ns/pid")
            except OSError:
                continue
    found = []
    for p in pathlib.Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                if first and os.readlink(p / "ns/pid") == first:
                    found.append(int(p.name))
            except OSError:
                continue
    return found


def cut(child):
    frozen = set()
    # What is forked meanwhile is frozen in the next round.
    while True:
        new = [p for p in members(child) if p not in frozen]
        if not new:
            break
        for p in new:
            try:
                os.kill(p, signal.SIGSTOP)
            except ProcessLookupError:
                pass
            frozen.add(p)
    command("cp", "--reflink=always", str(WHERE / "outer/disk.img"), str(WHERE / "outer/cut.img"))
    child.kill()
    child.wait(30)
    until = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{p}").exists() for p in frozen):
        if time.monotonic() > until:
            raise SystemExit("processes outlive the cut")
        time.sleep(0.02)
    command("umount", str(WHERE / "disk"))
    os.replace(WHERE / "outer/cut.img", WHERE / "outer/disk.img")
    command("mount", "-o", "loop", str(WHERE / "outer/disk.img"), str(WHERE / "disk"))


rng = random.Random(args.seed)
child, record = up()
record["windlass"] = str(WHERE / "bin/windlass")
work = Work(WHERE / "evidence", record, [args.port], args.seed, args.projects, pathlib.Path(__file__).resolve().parent)
work.answers = True
try:
    work.prepare()
    # Until the cuts are over; they take as long as they take.
    clients = work.begin(24 * 60)
    back, start = [], time.monotonic()
    for n in range(args.cuts):
        # Leases are short here, so much happens between two cuts though they come soon.
        time.sleep(0.5 + rng.random() * 3)
        cut(child)
        began = time.monotonic()
        work.note(op="fault", kind="power cut", n=n)
        child, _ = up()
        back.append(time.monotonic() - began)
    work.end = time.monotonic()
    took = time.monotonic() - start
    back.sort()
    print(f"{args.form}: {args.cuts} cuts in {took:.0f} s ({args.cuts * 3600 / took:.0f} an hour); back after a cut: median "
          f"{back[len(back) // 2]:.1f} s, at most {back[-1]:.1f} s")
    work.settle(clients, {"power cut": args.cuts})
finally:
    work.receiver.kill()
    child.kill()
    child.wait(30)
