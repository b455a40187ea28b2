"""A release to a fleet of N agents on this machine, beside a plain OpenSSH fan-out of the same five steps in the same run.

Usage: bench.py BIN-DIR NATS-SERVER N...; started by ops/bench. Every run's result is checked on every host.
"""
import hashlib
import http.server
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile

import fleet as fleets
import ssh as ssh_side

ROUNDS = 3
LATENCY_RUNS = 25
SSH_AT_ONCE = 32


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def machine():
    model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
    memory = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemTotal")) // 1024
    return f"{os.cpu_count()} x {model}, {memory} MiB, load {os.getloadavg()[0]:.1f} at the start"


def busy():
    """CPU seconds the whole machine has used."""
    fields = [int(x) for x in open("/proc/stat").readline().split()[1:]]
    return (sum(fields) - fields[3] - fields[4]) / fleets.TICK


def pack(directory, version):
    """A package of 1 MiB that cannot be compressed."""
    source = pathlib.Path(directory) / f"src-{version}"
    (source / "bin").mkdir(parents=True)
    (source / "VERSION").write_text(version + "\n")
    (source / "payload").write_bytes(os.urandom(1024 * 1024))
    restart = source / "bin" / "restart"
    restart.write_text('#!/bin/sh\n# Stands for a service: each start leaves a line.\necho started >> ../../shared/starts\n')
    restart.chmod(0o755)
    path = pathlib.Path(directory) / "files" / f"{version}.tar.gz"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as t:
        t.add(source, arcname=".")
    shutil.rmtree(source)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Packages, and /health for the check step of both sides."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/health":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request, client_address):
        """A client that hangs up is none of ours to report."""


def serve(directory):
    """In a process of its own, so that its CPU is not counted to either controller."""
    port = free_port()
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        Server(("127.0.0.1", port), Handler).serve_forever()
        os._exit(0)
    return port, pid


def verify(roots, version):
    for root in roots:
        at = pathlib.Path(root) / "current" / "VERSION"
        if not at.exists() or at.read_text().strip() != version:
            raise RuntimeError(f"{root} does not run {version}")


def median(rows, key):
    return statistics.median(r[key] for r in rows)


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


def serve_files(base):
    (base / "files").mkdir()
    return serve(base / "files")


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
        ssh = ssh_side.Ssh(pathlib.Path(work) / "sshd")
        try:
            ssh.start()
        except (ssh_side.Unavailable, OSError, subprocess.SubprocessError) as why:
            print(f"no OpenSSH rows: {why}")
            ssh.stop()
            ssh = None
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
