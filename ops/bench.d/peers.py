"""What other people release with, on the same hosts: Ansible and pyinfra over the yardstick's own sshd, the same five steps.

A "host" is a directory, as for the plain OpenSSH fan-out. Each tool is told what its own manual says makes it fast.
"""
import os
import pathlib
import resource
import shutil
import subprocess
import time

# Digest first, unpack beside, switch by rename, restart, check: five tasks, as a careful person would write them.
PLAYBOOK = """- hosts: all
  gather_facts: false
  strategy: free
  tasks:
    - copy: { src: "%(package)s", dest: "{{ root }}/releases/%(version)s.tgz", checksum: "%(sha1)s" }
    - shell: 'set -e; d="{{ root }}/releases/%(version)s"; mkdir -p "$d" "{{ root }}/shared"; echo "%(digest)s  $d.tgz" | sha256sum --check --quiet; tar -xzf "$d.tgz" -C "$d"; rm "$d.tgz"'
    - shell: 'ln -sfn "releases/%(version)s" "{{ root }}/current.new" && mv -T "{{ root }}/current.new" "{{ root }}/current"'
    - shell: './bin/restart'
      args: { chdir: "{{ root }}/current" }
    - uri: { url: "%(check)s" }
"""

DEPLOY = """from pyinfra import host
from pyinfra.operations import files, server
root = host.data.root
release = f"{root}/releases/%(version)s"
files.put(name="package", src="%(package)s", dest=f"{release}.tgz", create_remote_dir=True)
server.shell(name="unpack", commands=[f'set -e; mkdir -p "{release}" "{root}/shared"; echo "%(digest)s  {release}.tgz" | sha256sum --check --quiet; tar -xzf "{release}.tgz" -C "{release}"; rm "{release}.tgz"'])
server.shell(name="switch", commands=[f'ln -sfn "releases/%(version)s" "{root}/current.new" && mv -T "{root}/current.new" "{root}/current"'])
server.shell(name="restart", commands=[f'cd "{root}/current" && ./bin/restart'])
server.shell(name="check", commands=["curl --fail --silent --show-error --max-time 30 --output /dev/null %(check)s"])
"""


class Peer:
    def __init__(self, name, ssh, work):
        self.name, self.ssh, self.dir = name, ssh, pathlib.Path(work) / f"peer-{name}"
        self.dir.mkdir()

    def measure(self, command, env):
        """Wall seconds and the controller's CPU seconds."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(command, env={**os.environ, **env}, cwd=self.dir, capture_output=True, text=True, timeout=1500)
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"{self.name} failed: {(done.stdout + done.stderr)[-800:]}")
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def done(self):
        """Removes its own files, so that it can be made again."""
        shutil.rmtree(self.dir, ignore_errors=True)

    def options(self):
        """For OpenSSH, as the yardstick's, but the host key's alias."""
        return (f"-o UserKnownHostsFile={self.ssh.dir}/known_hosts -o GlobalKnownHostsFile=none -o StrictHostKeyChecking=yes "
                f"-o IdentitiesOnly=yes -o HostKeyAlias=[127.0.0.1]:{self.ssh.port} -o KexAlgorithms=curve25519-sha256")


class Ansible(Peer):
    def __init__(self, ssh, work):
        super().__init__("ansible", ssh, work)
        self.program = shutil.which("ansible-playbook")

    def run(self, roots, facts):
        me = self.ssh.me
        lines = [f"h{i} ansible_host=127.0.0.1 ansible_port={self.ssh.port} ansible_user={me} root={r}" for i, r in enumerate(roots)]
        (self.dir / "inventory").write_text("\n".join(lines) + "\n")
        (self.dir / "play.yml").write_text(PLAYBOOK % facts)
        for r in roots:
            pathlib.Path(r, "releases").mkdir(parents=True, exist_ok=True)
        env = {"ANSIBLE_PIPELINING": "True", "ANSIBLE_FORKS": str(len(roots)), "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
               "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60s {self.options()}",
               "ANSIBLE_PRIVATE_KEY_FILE": str(self.ssh.dir / "user"), "ANSIBLE_LOCAL_TEMP": str(self.dir / "tmp"),
               "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.dir / "cp"), "ANSIBLE_REMOTE_TEMP": str(self.dir / "remote"),
               "ANSIBLE_DEPRECATION_WARNINGS": "False", "HOME": str(self.dir)}
        return self.measure([self.program, "-i", "inventory", "play.yml"], env)


class Pyinfra(Peer):
    def __init__(self, ssh, work, tools):
        super().__init__("pyinfra", ssh, work)
        self.tools = tools

    def run(self, roots, facts):
        hosts = [(f"h{i}", {"ssh_hostname": "127.0.0.1", "ssh_port": self.ssh.port, "ssh_user": self.ssh.me,
                            "ssh_key": str(self.ssh.dir / "user"), "ssh_known_hosts_file": str(self.ssh.dir / "known_hosts"),
                            "ssh_strict_host_key_checking": "yes", "root": str(r)}) for i, r in enumerate(roots)]
        (self.dir / "inventory.py").write_text(f"hosts = {hosts!r}\n")
        (self.dir / "deploy.py").write_text(DEPLOY % facts)
        env = {"PYTHONPATH": str(self.tools), "HOME": str(self.dir)}
        command = ["python3", "-m", "pyinfra", "-y", "--parallel", "32", "inventory.py", "deploy.py"]
        return self.measure(command, env)


def found(ssh, work, tools):
    """Those that are installed."""
    peers = []
    if shutil.which("ansible-playbook"):
        peers.append(Ansible(ssh, work))
    if tools and (pathlib.Path(tools) / "pyinfra").is_dir():
        peers.append(Pyinfra(ssh, work, tools))
    return peers
