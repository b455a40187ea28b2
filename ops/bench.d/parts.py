"""What the benchmarks share: the machine, packages, and the server that has them."""
import datetime
import hashlib
import http.server
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

import fleet as fleets
import ssh as ssh_side
from ports import free_port


def machine():
    model = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "unknown CPU")
    memory = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemTotal")) // 1024
    return f"{os.cpu_count()} x {model}, {memory} MiB, load {os.getloadavg()[0]:.1f} at the start"


def heading(what, bin_dir):
    """What every benchmark says first: what, where, when, of which commit, and who else was working."""
    here = pathlib.Path(__file__).resolve().parent
    commit = subprocess.run(["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    profile = {"release": "release", "debug": "dev"}.get(pathlib.Path(bin_dir).name, str(bin_dir))
    print(f"{what}\n{now}, commit {commit or 'unknown'}, {profile} profile, {machine()}")
    others = busy()
    time.sleep(2)
    print(f"cores in use by others before it began: {(busy() - others) / 2:.1f}")
    sys.stdout.flush()


MISSED = []


def judge(what, value, unit, limit, least=False):
    """Prints a figure beside its target and whether it holds."""
    good = value >= limit if least else value <= limit
    sign = ">=" if least else "<="
    if not good:
        MISSED.append(what)
    print(f"  {what}: {value:,.4g} {unit} (target {sign} {limit:,.4g}: {'holds' if good else 'MISSED'})")
    sys.stdout.flush()


def end():
    """Ends the program: with 1 when a target was missed, so that a script sees it too."""
    if MISSED:
        print(f"missed: {'; '.join(MISSED)}")
    sys.exit(1 if MISSED else 0)


def share(values, part):
    """The value below which this part of all lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1))]


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


def serve_files(base):
    (base / "files").mkdir()
    return serve(base / "files")


def start_ssh(work):
    """The yardstick's sshd, or None with the reason printed."""
    ssh = ssh_side.Ssh(pathlib.Path(work) / "sshd")
    try:
        ssh.start()
    except (ssh_side.Unavailable, OSError, subprocess.SubprocessError) as why:
        print(f"no OpenSSH rows: {why}")
        ssh.stop()
        return None
    return ssh
