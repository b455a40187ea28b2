"""A release to a fleet of N agents on this machine, beside a plain OpenSSH fan-out of the same five steps in the same run.

Usage: bench.py BIN-DIR NATS-SERVER N...; started by ops/bench. Every run's result is checked on every host.
"""
import os
import pathlib
import statistics
import sys
import tempfile

import fleet as fleets
from parts import busy, free_port, machine, median, pack, serve_files, start_ssh, verify

ROUNDS = 3
LATENCY_RUNS = 25
SSH_AT_ONCE = 32


def measure(n, work, bin_dir, nats, ssh):
    base = pathlib.Path(work) / f"n{n}"
    base.mkdir()
    port, server = serve_files(base)
    url, check = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/health"
    fleet = None
    try:
        fleet = fleets.Fleet(bin_dir, nats, base / "state", n, free_port(), free_port(), 20000)
        fleet.prepare(check)
        ours = [a["root"] for a in fleet.record["agents"]]
        theirs = [base / "ssh" / f"host-{i}" for i in range(n)]
        for r in ours:
            (pathlib.Path(r) / "shared").mkdir(parents=True, exist_ok=True)
        mine, plain = [], []
        for i in range(ROUNDS):
            version = f"1.{i}.0"
            package, digest = pack(base, version)
            if ssh:
                used = busy()
                wall, first, cpu = ssh.run(theirs, package, digest, version, check, SSH_AT_ONCE)
                verify(theirs, version)
                plain.append({"wall": wall, "first": first, "control_cpu": cpu, "machine_cpu": busy() - used})
            used = busy()
            row = fleet.release(version, f"{url}/{package.name}", f"sha256:{digest}", package.stat().st_size)
            row["machine_cpu"] = busy() - used
            verify(ours, version)
            mine.append(row)
        latencies = []
        if n == min(SIZES):
            for i in range(LATENCY_RUNS):
                version = f"2.{i}.0"
                package, digest = pack(base, version)
                row = fleet.release(version, f"{url}/{package.name}", f"sha256:{digest}", package.stat().st_size,
                                    [fleet.record["agents"][i % n]["host"]])
                latencies.append(row["first"] * 1000)
        return mine, plain, latencies
    finally:
        if fleet:
            fleet.stop()
        os.kill(server, 15)
        os.waitpid(server, 0)


def show(n, mine, plain):
    print(f"{n:>5}  {'windlass':<10} {median(mine, 'wall'):>8.2f} {median(mine, 'first'):>9.3f} "
          f"{median(mine, 'control_cpu'):>9.2f} {median(mine, 'machine_cpu'):>9.2f} {max(r['own_peak'] for r in mine):>9.0f} "
          f"{max(r['peak'] for r in mine):>9.0f}")
    if plain:
        print(f"{n:>5}  {'openssh':<10} {median(plain, 'wall'):>8.2f} {median(plain, 'first'):>9.3f} "
              f"{median(plain, 'control_cpu'):>9.2f} {median(plain, 'machine_cpu'):>9.2f} {'-':>9} {'-':>9}")
        print(f"{n:>5}  wall ratio windlass / openssh: {median(mine, 'wall') / median(plain, 'wall'):.2f}")
    sys.stdout.flush()


SIZES = [int(x) for x in sys.argv[3:]] or [16, 127, 500]


def main():
    bin_dir, nats = sys.argv[1:3]
    print(f"machine: {machine()}")
    print(f"each figure: median of {ROUNDS} releases of a 1 MiB package in five steps; memory: the highest seen, MiB")
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        ssh = start_ssh(work)
        try:
            print(f"{'hosts':>5}  {'':<10} {'wall s':>8} {'first s':>9} {'ctrl CPU':>9} {'all CPU':>9} {'ctrl MiB':>9} {'+broker':>9}")
            latencies = []
            for n in SIZES:
                mine, plain, more = measure(n, work, bin_dir, nats, ssh)
                show(n, mine, plain)
                latencies += more
            if latencies:
                latencies.sort()
                print(f"approval's 2xx to the first step's start, one host, {len(latencies)} releases: "
                      f"median {statistics.median(latencies):.0f} ms, highest {latencies[-1]:.0f} ms")
            print("first: approval's 2xx to the first step's start; for OpenSSH the first host that is done")
        finally:
            if ssh:
                ssh.stop()


main()
