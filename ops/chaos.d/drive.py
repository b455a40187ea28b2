"""Faults for ops/chaos (faults.py), while clients (work.py) and others (people.py) are at work; leaves the evidence that check.py reads."""
import argparse
import base64
import json
import os
import pathlib
import signal
import subprocess
import sys
import urllib.parse

from faults import Processes, Surroundings
from people import Crowd, Stranger, Watcher
from work import Work
from world import World

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
WORK.full = True
WORLD = World(HERE, args.ops, UP, FIRST)


def forms(secret):
    """How a secret may look where it must not be: as it is, in Base64 (whatever stands before it), hex, a URL, JSON."""
    raw = secret.encode()
    found = {secret, raw.hex(), raw.hex().upper(), urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret), json.dumps(secret)[1:-1]}
    for before in range(3):
        code = base64.b64encode(bytes(before) + raw).decode()
        # Only the signs that the secret alone decides.
        found.add(code[(0, 2, 3)[before]:len(code.rstrip("=")) - 1 - len(code.rstrip("=")) % 4])
    return found


def leaks():
    """Every place where a secret lies open: database, brokers, agents, logs, evidence. A list of files."""
    data = pathlib.Path((HERE / "postgres.dir").read_text().strip())
    patterns = HERE / "patterns"
    needles = sorted(f for c in WORK.canaries for f in forms(c))
    patterns.write_text("\n".join(needles) + "\n")
    # The last of it is written out first.
    subprocess.run(["psql", "-h", "127.0.0.1", "-p", str(FIRST + 5), "-U", "windlass", "-d", "windlass", "-qc", "CHECKPOINT"],
                   check=False, timeout=120)
    found = subprocess.run(["grep", "-raFl", "-f", str(patterns), "--exclude=patterns", "--exclude=canaries.json", "--exclude-dir=bin",
                            str(HERE), str(data), str(WORK.evidence)], capture_output=True, text=True, timeout=900, check=False)
    return found.stdout.splitlines(), len(needles)


# The grep must be able to find: see that it does, each time.
def grep_sees():
    probe = HERE / "probe"
    probe.write_text(f"xx{WORK.canaries[0]}xx")
    seen, _ = leaks()
    probe.unlink()
    return str(probe) in seen


WORLD.make()
for text in WORLD.cannot:
    print(f"this machine cannot do {text}", flush=True)
try:
    WORK.prepare()
    clients = WORK.begin(args.minutes)
    beside = [Stranger(WORK).prepare(), Crowd(WORK), Watcher(WORK, WORLD)]
    hands = [Processes(WORLD, WORK, args.seed), Surroundings(WORLD, WORK, args.seed)]
    if not hands[1].kinds:
        hands.pop()
    for thread in [*beside, *hands]:
        thread.start()
    for thread in hands:
        thread.join(args.minutes * 60 + 300)
    WORLD.heal()
    for thread in beside:
        thread.join(120)
    counts = {}
    for hand in hands:
        for kind, n in hand.count.items():
            counts[kind] = counts.get(kind, 0) + n
    WORK.settle(clients, counts)
    found, needles = leaks()
    world = json.loads((WORK.evidence / "world.json").read_text())
    world |= {"leaks": found, "needles": needles, "grep_sees": grep_sees(), "cannot": WORLD.cannot, "clocks": bool(WORLD.clocks)}
    (WORK.evidence / "world.json").write_text(json.dumps(world))
finally:
    if hasattr(WORK, "receiver"):
        WORK.receiver.kill()
    WORLD.end()
