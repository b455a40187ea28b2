"""A release to a fleet of N agents on this machine, beside a plain OpenSSH fan-out of the same five steps in the same run; where asked
for, also by Windlass over SSH, by Ansible and by pyinfra.

Usage: bench.py BIN-DIR NATS-SERVER [--ssh] [--peers] [--tools DIR] N...; started by ops/bench. Every run's result is checked on every
host.
"""
import argparse
import hashlib
import os
import pathlib
import statistics
import sys
import tempfile
import time

import fleet as fleets
import peers
from parts import busy, end, free_port, heading, judge, median, pack, serve_files, start_ssh, verify

ROUNDS = 3
LATENCY_RUNS = 25
SSH_AT_ONCE = 32
# From here on one round without the yardstick: it would take minutes and says nothing that 500 hosts do not.
MANY = 1000


def yardstick_row(ssh, roots, package, digest, version, check):
    used = busy()
    wall, first, cpu = ssh.run(roots, package, digest, version, check, SSH_AT_ONCE)
    verify(roots, version)
    return {"wall": wall, "first": first, "control_cpu": cpu, "machine_cpu": busy() - used}


def agents(n, base, a, ssh):
    port, server = serve_files(base)
    url, check = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/health"
    fleet = None
    try:
        fleet = fleets.Fleet(a.bin_dir, a.nats, base / "state", n, free_port(), free_port())
        fleet.prepare(check)
        ours = [r["root"] for r in fleet.record["agents"]]
        theirs = [base / "ssh" / f"host-{i}" for i in range(n)]
        for r in ours:
            (pathlib.Path(r) / "shared").mkdir(parents=True, exist_ok=True)
        mine, plain, idle = [], [], fleet.idle()
        for i in range(1 if n >= MANY else ROUNDS):
            version = f"1.{i}.0"
            package, digest = pack(base, version)
            if ssh and n < MANY:
                plain.append(yardstick_row(ssh, theirs, package, digest, version, check))
            used = busy()
            row = fleet.release(version, f"{url}/{package.name}", f"sha256:{digest}", package.stat().st_size)
            row["machine_cpu"] = busy() - used
            # What the agents' heartbeats cost meanwhile is no cost of the release.
            row["release_cpu"] = row["control_cpu"] - idle * row["wall"]
            verify(ours, version)
            mine.append(row)
        latencies = []
        if n == min(a.sizes):
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


def over_ssh(n, base, a, ssh):
    """The same by Windlass over SSH: the first contact, which brings the agent, and then with connections made anew each time. The
    yardstick runs before each release: minutes apart the machine is not the same."""
    port, server = serve_files(base)
    url, check = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/health"
    fleet = None
    try:
        fleet = fleets.Fleet(a.bin_dir, a.nats, base / "state", 0, free_port(), free_port(), ssh__idle_s=2, api__rate_per_s=1e6,
                             api__rate_burst=1e6)
        roots = [base / "hosts" / f"host-{i}" for i in range(n)]
        yaml = (fleets.HERE / "catalog.yaml").read_text()
        yaml = yaml.replace("flow: five\n---", f"flow: five\nvalues: {{ check: \"{check}\" }}\n---", 1)
        host_key = " ".join((ssh.dir / "host.pub").read_text().split()[:2])
        for i, r in enumerate(roots):
            (r / "root" / "shared").mkdir(parents=True)
            yaml += (f"---\nkind: host\nname: h{i:04}\naddress: 127.0.0.1\nlabels: {{ fleet: bench }}\nssh:\n  account: {ssh.me}\n  key: fleet\n"
                     f"  port: {ssh.port}\n  host_key: {host_key}\n  root: {r}/root\n  state_dir: {r}/agent\n")
        fleet.call("PUT", "/secrets/ssh/fleet", {"value": (ssh.dir / "user").read_text()})
        began = time.time()
        fleet.apply(yaml)
        fleet.make_approver()
        until_hosts(fleet, n, ("ssh", "connected"), 600)
        contact = time.time() - began
        rows, plain = [], []
        theirs = [base / "ssh" / f"host-{i}" for i in range(n)]
        for i in range(ROUNDS):
            until_hosts(fleet, n, ("ssh",), 120)
            version = f"1.{i}.0"
            package, digest = pack(base, version)
            plain.append(yardstick_row(ssh, theirs, package, digest, version, check))
            used = busy()
            row = fleet.release(version, f"{url}/{package.name}", f"sha256:{digest}", package.stat().st_size)
            row["machine_cpu"] = busy() - used
            verify([r / "root" for r in roots], version)
            rows.append(row)
        return rows, plain, contact
    finally:
        if fleet:
            fleet.stop()
        os.kill(server, 15)
        os.waitpid(server, 0)


def until_hosts(fleet, n, states, within):
    until = time.time() + within
    while True:
        page, _ = fleet.call("GET", "/hosts?limit=500")
        now = [h["state"] for h in page["items"]]
        if len(now) >= min(n, 500) and all(s in states for s in now):
            return
        if time.time() > until:
            raise RuntimeError(f"hosts are {sorted(set(now))} instead of {' or '.join(states)}")
        time.sleep(0.25)


def other(n, base, peer):
    """One release by another tool, after one that warms it up is not made: each starts as it does in life."""
    port, server = serve_files(base)
    try:
        roots = [base / peer.name / f"host-{i}" for i in range(n)]
        package, digest = pack(base, "1.0.0")
        facts = {"package": package, "digest": digest, "version": "1.0.0", "check": f"http://127.0.0.1:{port}/health",
                 "sha1": hashlib.sha1(package.read_bytes()).hexdigest()}
        used = busy()
        wall, cpu = peer.run(roots, facts)
        verify(roots, "1.0.0")
        return {"wall": wall, "first": float("nan"), "control_cpu": cpu, "machine_cpu": busy() - used}
    finally:
        os.kill(server, 15)
        os.waitpid(server, 0)


def show(n, who, rows, yardstick):
    ratio = f"{median(rows, 'wall') / yardstick:>7.2f}" if yardstick else f"{'-':>7}"
    memory = [f"{max(r[k] for r in rows):>9.0f}" if k in rows[0] else f"{'-':>9}" for k in ("own_peak", "peak")]
    print(f"{n:>5}  {who:<14} {median(rows, 'wall'):>8.2f} {ratio} {median(rows, 'first'):>9.3f} {median(rows, 'control_cpu'):>9.2f} "
          f"{median(rows, 'machine_cpu'):>9.2f} {' '.join(memory)}")
    sys.stdout.flush()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("bin_dir")
    p.add_argument("nats")
    p.add_argument("--ssh", action="store_true")
    p.add_argument("--peers", action="store_true")
    p.add_argument("--tools")
    p.add_argument("sizes", type=int, nargs="*")
    a = p.parse_intermixed_args()
    a.sizes = a.sizes or [16, 127, 500]
    heading("a release of a 1 MiB package in five steps to a fleet", a.bin_dir)
    print(f"each figure: median of {ROUNDS} releases (other tools: one); memory: the highest seen, MiB")
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        ssh = start_ssh(work)
        try:
            print(f"{'hosts':>5}  {'':<14} {'wall s':>8} {'x plain':>7} {'first s':>9} {'ctrl CPU':>9} {'all CPU':>9} {'ctrl MiB':>9} {'+broker':>9}")
            latencies, ratios = [], {}
            for n in a.sizes:
                base = pathlib.Path(work) / f"n{n}"
                base.mkdir()
                mine, plain, more = agents(n, base, a, ssh)
                latencies += more
                yardstick = median(plain, "wall") if plain else None
                show(n, "windlass", mine, yardstick)
                if plain:
                    show(n, "openssh", plain, yardstick)
                    ratios[n] = median(mine, "wall") / yardstick
                    judge(f"{n} agents: wall against OpenSSH", ratios[n], "x", 0.55)
                if n >= 127:  # below that, what a release costs by itself outweighs its hosts
                    judge(f"{n} agents: controller CPU a host, without heartbeats", median(mine, "release_cpu") / n * 1000, "ms", 5)
                if n == 127:
                    judge(f"{n} agents: memory of the control plane", max(r["own_peak"] for r in mine), "MiB", 150)
                if a.ssh and ssh and n < MANY:
                    base = pathlib.Path(work) / f"s{n}"
                    base.mkdir()
                    rows, beside, contact = over_ssh(n, base, a, ssh)
                    beside_s = median(beside, "wall")
                    show(n, "windlass (ssh)", rows, beside_s)
                    show(n, "openssh beside", beside, beside_s)
                    print(f"       the first contact, which puts the agent on every host, took {contact:.1f} s")
                    judge(f"{n} hosts over SSH: wall against OpenSSH", median(rows, "wall") / beside_s, "x", 1.0)
                    if n == 1:
                        judge("one host over SSH: wall", median(rows, "wall"), "s", 0.3)
                for peer in peers.found(ssh, pathlib.Path(work), a.tools) if a.peers and ssh and n < MANY else []:
                    base = pathlib.Path(work) / f"{peer.name}{n}"
                    base.mkdir()
                    try:
                        show(n, peer.name, [other(n, base, peer)], yardstick)
                    except RuntimeError as e:
                        print(f"{n:>5}  {peer.name:<14} no figure: {e}")
                    peer.done()
            # Of few hosts most is what a release costs by itself.
            grown = [n for n in ratios if n >= 127]
            if len(grown) > 1:
                small, large = min(grown), max(grown)
                judge(f"the ratio at {large} agents against that at {small}", ratios[large] / ratios[small], "x", 1.25)
            if latencies:
                latencies.sort()
                print(f"approval's 2xx to the first step's start, one host, {len(latencies)} releases: "
                      f"median {statistics.median(latencies):.0f} ms, highest {latencies[-1]:.0f} ms")
            print("first: approval's 2xx to the first step's start; for OpenSSH the first host that is done")
        finally:
            if ssh:
                ssh.stop()


main()
end()
