"""A gigabyte of log from one step, then from twenty at once, while small releases go on elsewhere: memory, time, what was kept and
what was dropped, and how much the others are slowed.

Usage: flood.py BIN-DIR NATS-SERVER [MIB]; started by `ops/bench flood`. MIB: how much in all (default 1000).
"""
import pathlib
import sys
import tempfile
import threading
import time

import fleet as fleets
from parts import end, free_port, heading, judge, share

STEPS = 20
CATALOG = """kind: project
name: bench
group: bench
---
kind: environment
project: bench
name: loud
selector: fleet=bench
flow: loud
---
kind: environment
project: bench
name: quiet
selector: fleet=bench
flow: quiet
---
kind: flow
project: bench
flow: loud
inputs:
  bytes: { type: string }
on_failure: stop
steps:
  - id: rollout
    waves: "100%"
    steps:
      - { id: shout, uses: script, timeout: 30m, with: { args: ["${{ inputs.bytes }}"], run: "yes 'a line of a log that nobody will ever read, but that must not hurt anybody else' | head -c $1" } }
---
kind: flow
project: bench
flow: quiet
on_failure: stop
steps:
  - { id: rollout, waves: "100%", steps: [ { id: only, uses: script, with: { run: "true" } } ] }
"""


class Memory(threading.Thread):
    """The most that the control plane, the broker and all agents with their runners had at once, MiB."""

    def __init__(self, fleet):
        super().__init__(daemon=True)
        self.fleet, self.going, self.peak, self.agents = fleet, True, (0.0, 0.0), 0.0
        self.start()

    def run(self):
        while self.going:
            self.peak = tuple(max(a, b) for a, b in zip(self.peak, self.fleet.resident()))
            below = [p for a in self.fleet.agents for p in [a] + fleets.descendants(a)]
            self.agents = max(self.agents, sum(fleets.memory(p, "VmRSS") for p in below))
            time.sleep(0.5)


def quiet(fleet, host, going, versions):
    """Small releases one after another; how long each took, ms."""
    took = []
    while going():
        began = time.perf_counter()
        id_ = fleet.request("bench", "quiet", next(versions), [host])
        fleet.wait(id_, ["succeeded"], pause=0.01)
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(0.1)
    return took


def flood(fleet, hosts, each, version):
    """One deployment whose steps write; its tasks."""
    body = {"environment": "loud", "version": version, "hosts": hosts, "inputs": {"bytes": str(each)}}
    id_ = fleet.call("POST", "/projects/bench/deployments", body)[0]["new_deployment"]
    d = fleet.wait(id_, ["succeeded"], within=1500, pause=0.25)
    page, _ = fleet.call("GET", f"/deployments/{id_}/tasks")
    return d, page["items"]


def main():
    bin_dir, nats = sys.argv[1:3]
    total = (int(sys.argv[3]) if len(sys.argv) > 3 else 1000) << 20
    heading(f"{total >> 20} MiB of log", bin_dir)
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        fleet = None
        try:
            fleet = fleets.Fleet(bin_dir, nats, pathlib.Path(work) / "state", STEPS + 1, free_port(), free_port(),
                                 api__rate_per_s=1e6, api__rate_burst=1e6)
            fleet.apply(CATALOG + fleet.hosts_yaml())
            names = (f"1.{i}.0" for i in range(100_000))

            def versions():
                for v in names:
                    fleet.artifact("bench", v)
                    yield v

            version = versions()
            hosts = [a["host"] for a in fleet.record["agents"]]
            calm_host, loud = hosts[0], hosts[1:]
            until = time.time() + 8
            calm = quiet(fleet, calm_host, lambda: time.time() < until, version)
            print(f"  small releases with nothing else: p50 {share(calm, 0.5):.0f} ms, p99 {share(calm, 0.99):.0f} ms ({len(calm)})")
            for many in (1, STEPS):
                memory = Memory(fleet)
                done, result = threading.Event(), {}

                def shout():
                    try:
                        other = fleets.Caller(fleet)
                        other.artifact("bench", f"9.{many}.0")
                        result["got"] = flood(other, loud[:many], total // many, f"9.{many}.0")
                    except Exception as e:  # shown below, by the thread that judges
                        result["error"] = e
                    finally:
                        done.set()

                used, began = fleet.used(), time.time()
                thread = threading.Thread(target=shout)
                thread.start()
                meanwhile = quiet(fleet, calm_host, lambda: not done.is_set(), version)
                thread.join()
                took, used = time.time() - began, fleet.used() - used
                memory.going = False
                if "error" in result:
                    raise result["error"]
                _, tasks = result["got"]
                written = sum(t["log_bytes"] or 0 for t in tasks)
                dropped = sum(t["log_dropped"] or 0 for t in tasks)
                print(f"  {many} step(s): {took:.1f} s, {total / 2**20 / took:.0f} MiB/s written, {used:.1f} s of CPU in the control plane; "
                      f"the tasks say {written / 2**20:.0f} MiB, of them {dropped / 2**20:.0f} MiB dropped; "
                      f"agents and runners at most {memory.agents:.0f} MiB")
                judge(f"{many} step(s): bytes that nobody accounts for", abs(max(written, dropped) - total) if many == 1 else abs(written - total),
                      "bytes", 4096 * many)
                judge(f"{many} step(s): memory of control plane and broker", sum(memory.peak), "MiB", 512)
                judge(f"{many} step(s): small releases elsewhere, p99", share(meanwhile, 0.99), "ms", 2000)
        finally:
            if fleet:
                fleet.stop()


main()
end()
