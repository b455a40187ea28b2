"""Status reads a second and their latency with 1 to 64 connections, while a deployment runs; with live streams open as well.

Usage: api.py BIN-DIR NATS-SERVER; started by `ops/bench api`. The client is wrk on the same machine; what it costs is printed.
"""
import json
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import threading

import fleet as fleets
from parts import end, free_port, heading, judge

HOSTS = 16
SECONDS = 3
CONNECTIONS = (1, 4, 16, 64)
STREAMS = 100
# A wave a host: something changes all the time, and a look costs what it costs in the middle of a release.
CATALOG = """kind: project
name: bench
group: bench
---
kind: environment
project: bench
name: fleet
selector: fleet=bench
flow: slow
---
kind: environment
project: bench
name: one
selector: fleet=bench
flow: quick
---
kind: flow
project: bench
flow: slow
on_failure: stop
steps:
  - id: rollout
    waves: "1"
    steps:
      - { id: first, uses: script, with: { run: "for i in 1 2 3 4 5; do echo line $i; sleep 1; done" } }
      - { id: second, uses: script, with: { run: "for i in 1 2 3 4 5; do echo line $i; sleep 1; done" } }
---
kind: flow
project: bench
flow: quick
on_failure: stop
steps:
  - { id: rollout, waves: "100%", steps: [ { id: only, uses: script, with: { run: "true" } } ] }
"""


class Streams:
    """Open SSE connections that only read."""

    def __init__(self, fleet, paths):
        self.bytes, self.open = 0, True
        self.sockets = []
        for path in paths:
            s = socket.create_connection(("127.0.0.1", fleet.port))
            s.sendall(f"GET /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {fleet.token}\r\n"
                      "Accept: text/event-stream\r\n\r\n".encode())
            s.settimeout(0.5)
            self.sockets.append(s)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        import selectors
        with selectors.DefaultSelector() as ready:
            for s in self.sockets:
                ready.register(s, selectors.EVENT_READ)
            while self.open:
                for key, _ in ready.select(0.2):
                    data = key.fileobj.recv(65536)
                    self.bytes += len(data)
                    if not data:
                        ready.unregister(key.fileobj)

    def close(self):
        self.open = False
        self.thread.join(5)
        for s in self.sockets:
            s.close()


def wrk(fleet, path, connections, seconds=SECONDS):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = fleet.used()
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-H", f"Authorization: Bearer {fleet.token}",
         "-s", pathlib.Path(__file__).resolve().parent / "load.lua", f"http://127.0.0.1:{fleet.port}/api/v1{path}"],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = json.loads(out.stdout.strip().splitlines()[-1])
    row["rate"] = row["requests"] / row["seconds"]
    row["client"] = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / row["seconds"]
    row["control"] = (fleet.used() - used) / row["seconds"]
    row["size"] = row["bytes"] / max(1, row["requests"])
    if row["bad"] or row["broken"]:
        raise RuntimeError(f"{row['bad']} answers were no 2xx and {row['broken']} connections broke: {path}")
    return row


def show(what, connections, row):
    print(f"  {what:<34} {connections:>5} {row['rate']:>9,.0f} {row['p50_ms']:>8.2f} {row['p99_ms']:>8.2f} "
          f"{row['control']:>8.2f} {row['client']:>8.2f} {row['size']:>9,.0f}")
    sys.stdout.flush()


def main():
    bin_dir, nats = sys.argv[1:3]
    heading("status reads while a deployment runs", bin_dir)
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        fleet = None
        try:
            fleet = fleets.Fleet(bin_dir, nats, pathlib.Path(work) / "state", HOSTS, free_port(), free_port(),
                                 api__rate_per_s=1e9, api__rate_burst=1e9)
            fleet.apply(CATALOG + fleet.hosts_yaml())
            fleet.artifact("bench", "1.0.0")
            quick = fleet.request("bench", "one", "1.0.0", [fleet.record["agents"][0]["host"]])
            fleet.wait(quick, ["succeeded"])
            running = fleet.request("bench", "fleet", "1.0.0")
            fleet.wait(running, ["running"])
            paths = {
                "the deployment that runs (16 hosts)": f"/deployments/{running}",
                "one that has ended (1 host)": f"/deployments/{quick}",
                "the newest of the environment": "/deployments?project=bench&environment=fleet&limit=1",
            }
            print(f"  {'read':<34} {'conns':>5} {'a second':>9} {'p50 ms':>8} {'p99 ms':>8} {'ctrl CPU':>8} {'wrk CPU':>8} {'bytes':>9}")
            rows = {}
            for what, path in paths.items():
                for n in CONNECTIONS:
                    rows[what, n] = wrk(fleet, path, n)
                    show(what, n, rows[what, n])
            streams = Streams(fleet, [f"/deployments/{running}/{kind}" for kind in ("events", "logs")] * (STREAMS // 2))
            what = next(iter(paths))
            with_streams = wrk(fleet, paths[what], 16)
            show(f"... with {STREAMS} streams open", 16, with_streams)
            streams.close()
            if not streams.bytes:
                raise RuntimeError("the open streams brought nothing: they were not what they should be")
            d, _ = fleet.call("GET", f"/deployments/{running}")
            if d["state"] != "running":
                raise RuntimeError(f"the deployment is {d['state']}: it did not run all the time")
            for what in paths:
                best = max((rows[what, n] for n in CONNECTIONS), key=lambda r: r["rate"])
                judge(f"reads a second, {what}", best["rate"], "/s", 5000, least=True)
                judge(f"p99 with 64 connections, {what}", rows[what, 64]["p99_ms"], "ms", 20)
            judge(f"p99 with {STREAMS} streams open, 16 connections", with_streams["p99_ms"], "ms", 20)
        finally:
            if fleet:
                fleet.stop()


main()
end()
