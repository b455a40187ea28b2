"""The yardstick: a plain OpenSSH fan-out of the same five steps, one connection a host, all steps in one stream.

An own sshd on a loopback port, with its own host key, user key and configuration in a temporary directory; a "host" is a
directory of its own. Nothing of the machine's own SSH set-up is read or changed.
"""
import asyncio
import os
import pathlib
import pwd
import resource
import shutil
import subprocess
import time

from ports import free_port

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"

# As a careful person would write it: digest first, unpack beside, switch by rename, restart, check.
SCRIPT = """set -eu
root={root}; rel=$root/releases/{version}
mkdir -p "$rel" "$root/shared"
cat > "$rel.tar.gz"
echo "{digest}  $rel.tar.gz" | sha256sum --check --quiet
tar -xzf "$rel.tar.gz" -C "$rel" && rm "$rel.tar.gz"
ln -sfn "releases/{version}" "$root/current.new" && mv -T "$root/current.new" "$root/current"
cd "$root/current" && ./bin/restart
curl --fail --silent --show-error --max-time 30 --output /dev/null {check}
"""


class Unavailable(Exception):
    """Why there is no SSH row."""


class Ssh:
    def __init__(self, directory):
        self.dir = pathlib.Path(directory)
        self.process = None

    def start(self):
        if not os.path.exists(SSHD) or not shutil.which("ssh"):
            raise Unavailable("OpenSSH is not installed (Debian: openssh-server, openssh-client)")
        if not shutil.which("curl"):
            raise Unavailable("curl is not installed")
        self.dir.mkdir(mode=0o700, parents=True)
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / name], check=True, timeout=60
            )
        shutil.copy(self.dir / "user.pub", self.dir / "authorized")
        os.chmod(self.dir / "authorized", 0o600)
        self.port = free_port()
        me = self.me = pwd.getpwuid(os.getuid()).pw_name
        (self.dir / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {self.dir}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.dir}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nMaxStartups 2000:30:4000\nMaxSessions 2000\nLogLevel ERROR\n"
            "Subsystem sftp internal-sftp\n"  # pyinfra uploads by SFTP
            # Else bash reads the account's .bashrc: whatever that does on this machine would be most of what is measured, for all rows.
            "SetEnv SHLVL=2\n"
        )
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", self.dir / "sshd_config"], stdin=subprocess.DEVNULL,
            stderr=open(self.dir / "sshd.log", "wb"),
        )
        host_key = (self.dir / "host.pub").read_text().split()[:2]
        (self.dir / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(host_key)}\n")
        # The client's default key exchange costs ten times the CPU of curve25519: the yardstick gets the fast one.
        self.command = [
            "ssh", "-F", "none", "-p", str(self.port), "-i", str(self.dir / "user"), "-l", me, "-T",
            "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={self.dir}/known_hosts", "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", "ConnectTimeout=60",
            "-o", "KexAlgorithms=curve25519-sha256", "127.0.0.1",
        ]
        until = time.monotonic() + 20
        while True:
            probe = subprocess.run(self.command + ["true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            if probe.returncode == 0:
                return
            if self.process.poll() is not None or time.monotonic() > until:
                log = (self.dir / "sshd.log").read_text(errors="replace")[-400:]
                raise Unavailable(f"the own sshd does not answer: {log or probe.stderr.decode(errors='replace')}")
            time.sleep(0.05)

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)

    def run(self, roots, package, digest, version, check, at_once):
        """Releases to every root; returns wall seconds, seconds to the first finished host, controller CPU seconds."""
        scripts = {r: SCRIPT.format(root=r, version=version, digest=digest, check=check) for r in roots}
        return self.fan_out(scripts, pathlib.Path(package).read_bytes(), at_once)

    def fan_out(self, scripts, data, at_once):
        """Runs a script for every root, `data` as its input; the same three figures."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        first, failed = [], []

        async def one(root, gate):
            async with gate:
                p = await asyncio.create_subprocess_exec(
                    *self.command, scripts[root], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
                _, err = await asyncio.wait_for(p.communicate(data), 600)
            if p.returncode != 0:
                failed.append(err.decode(errors="replace").strip())
            elif not first:
                first.append(time.monotonic() - started)

        async def everything():
            gate = asyncio.Semaphore(at_once)
            await asyncio.gather(*(one(r, gate) for r in scripts))

        asyncio.run(everything())
        wall = time.monotonic() - started
        if failed:
            raise Unavailable(f"{len(failed)} of {len(scripts)} hosts failed over SSH, the first with: {failed[0][-300:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
        cpu = sum(a.ru_utime + a.ru_stime - b.ru_utime - b.ru_stime for a, b in zip(after, before))
        return wall, first[0], cpu
