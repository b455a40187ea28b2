"""The scaled form below one folder, for ops/power-cut: PostgreSQL (fsync on), a broker, one process a service, agents.

Made at the first start, taken up as it lies there at every further one. Writes up.json when it is ready and then waits; whoever started
it ends all of it by ending its process namespace.
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.request

import instance

args = argparse.ArgumentParser()
args.add_argument("--state", required=True)
args.add_argument("--programs", required=True)
args.add_argument("--log", required=True)
args.add_argument("--nats", required=True)
args.add_argument("--port", type=int, required=True)
args.add_argument("--agents", type=int, required=True)
args = args.parse_args()
STATE = pathlib.Path(args.state)
instance.HOSTS[:] = [f"host-{n + 1}" for n in range(args.agents)]


class Stand(instance.Scaled):
    """Its log lies where no cut reaches it; nothing of it is watched."""

    def log(self, name):
        return open(pathlib.Path(args.log) / f"{name}.log", "a", encoding="utf-8")

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False


first = not (STATE / "made").exists()
for folder in (STATE, STATE / "postgres"):
    folder.mkdir(exist_ok=True)
STATE.chmod(0o711)
# Left by a server whose power was cut.
(STATE / "postgres/data/postmaster.pid").unlink(missing_ok=True)
database = instance.Database(STATE / "postgres", args.port + 9, pathlib.Path(args.log) / "postgres.log")
stand = Stand(STATE, args.programs, args.nats, args.port, database=database)
stand.watched = False
if first:
    stand.init()
admin = stand.services()
until = time.monotonic() + 180
while not stand.ready():
    if time.monotonic() > until:
        raise SystemExit("the api is not ready in time")
    stand.mend()
    time.sleep(0.05)
token = admin.read_text().strip()
for host in instance.HOSTS:
    if not (STATE / host / "state/identity.json").exists():
        (STATE / host / "root").mkdir(parents=True, exist_ok=True)
        ask = urllib.request.Request(f"http://127.0.0.1:{args.port}/api/v1/enroll-tokens", json.dumps({"host": host}).encode(),
                                     {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        given = json.loads(urllib.request.urlopen(ask, timeout=30).read())["token"]
        subprocess.run([f"{args.programs}/windlass-agent", "enroll", "--server", f"http://127.0.0.1:{args.port}", "--token-file", "-",
                        "--state", str(STATE / host / "state")], input=given, text=True, check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
    stand.start_agent(host)
if first:
    (STATE / "made").touch()
    # Who installs writes settings long before the power fails. What the programs write is theirs to bring to disk.
    os.sync()
(STATE / "up.json").write_text(json.dumps({"ready": True, "token_file": str(admin), "agents": [{"host": h} for h in instance.HOSTS]}))
signal.signal(signal.SIGTERM, lambda *_: exit(0))
while True:
    # Whatever ends by itself is started again, as by systemd.
    stand.mend()
    time.sleep(0.2)
