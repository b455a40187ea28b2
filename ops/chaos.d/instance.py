"""Small installations for ops/crash-sweep: `Embedded` is one process on SQLite, `Scaled` one process a service on PostgreSQL.

Each has ports and a folder of its own, so many stand side by side: a point mostly waits for a lease, and while one waits others work.
What is swept runs under `catch`; what waits for time only (leases, polls) is set short.
"""
import json
import os
import pathlib
import socket
import subprocess
import time

import catch
from work import Work

SHORT = {"WINDLASS__POLL_S": "1", "WINDLASS__EXECUTOR__LEASE_S": "3", "WINDLASS__EXECUTOR__UNKNOWN_S": "20",
         "WINDLASS__EXECUTOR__DISCONNECTED_S": "12", "WINDLASS__EXECUTOR__SUSPECT_S": "8", "RUST_LOG": "warn,windlass=info"}
# What makes something last, or takes its name from it, on a file system.
ON_DISK = ["fsync", "fdatasync", "rename", "renameat", "renameat2", "pwrite64", "ftruncate", "fallocate", "unlink", "unlinkat",
           "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"]
ON_WIRE = ["sendto", "sendmsg", "writev", "write"]
HOSTS = ["host-1", "host-2"]
SERVICES = ["api", "scheduler", "executor", "notifier", "auditor"]


def free(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Armed:
    """A fault that waits for its call."""

    def __init__(self, process, matches, n, verdict):
        self.process, self.matches, self.n, self.verdict = process, matches, n, verdict
        self.count, self.hit = 0, None


class Instance:
    """What both forms have in common: agents, clients, and the one armed fault."""

    def __init__(self, where, programs, nats, port):
        self.where, self.programs, self.nats, self.port = pathlib.Path(where), pathlib.Path(programs), nats, port
        self.state, self.evidence = self.where / "state", self.where / "evidence"
        self.evidence.mkdir(parents=True, exist_ok=True)
        self.running, self.armed, self.watched = {}, None, True

    def log(self, name):
        return open(self.evidence / f"{name}.log", "a", encoding="utf-8")

    def spawn(self, name, command, calls=None):
        out = self.log(name)
        os.environ.update(SHORT)
        if calls and self.watched:
            self.running[name] = catch.Caught(calls, command, lambda caught, call: self.decide(name, caught, call), out)
        else:
            self.running[name] = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def arm(self, process, matches, n, verdict):
        self.armed = Armed(process, matches, n, verdict)

    def decide(self, name, caught, call):
        armed = self.armed
        if armed is None or armed.process != name or not armed.matches(caught, call):
            return None
        armed.count += 1
        if armed.count != armed.n:
            return None
        armed.hit = f"{call.name} {call.what()}"
        return armed.verdict

    @staticmethod
    def is_of(caught, call):
        """Whether a call is of the program itself, not of one it started. Numbers of threads come back, so it is asked each time."""
        return os.path.exists(f"/proc/{caught.pid}/task/{call.thread}")

    def own_file(self, name, call):
        what = call.what()
        return what == "-" or what.startswith(str(self.where / name))

    def agents(self):
        for host in HOSTS:
            (self.where / host / "root").mkdir(parents=True)
            token = self.work.call("POST", "/enroll-tokens", {"host": host})[1]["token"]
            subprocess.run([str(self.programs / "windlass-agent"), "enroll", "--server", f"http://127.0.0.1:{self.port}", "--token-file",
                            "-", "--state", str(self.where / host / "state")], input=token, text=True, check=True, timeout=60,
                           stdout=subprocess.DEVNULL, stderr=self.log(host))
            self.start(host)

    def start_agent(self, host):
        self.spawn(host, [str(self.programs / "windlass-agent"), "run", "--state", str(self.where / host / "state"), "--root",
                          str(self.where / host / "root")], [*ON_DISK, "write"] if host == HOSTS[0] else None)

    def clients(self, admin):
        up = {"token_file": admin, "agents": [{"host": h} for h in HOSTS], "windlass": str(self.programs / "windlass")}
        self.work = Work(self.evidence, up, [self.port], 0, 1, pathlib.Path(__file__).resolve().parent)
        self.work.pace, self.work.fails = 0, 0
        self.work.prepare()

    def mend(self):
        """Starts again what has died; whether something had."""
        died = [name for name, p in self.running.items() if p.poll() is not None]
        for name in died:
            self.start(name)
        return bool(died)

    def agent_only(self, caught, call):
        return self.is_of(caught, call) and self.own_file(HOSTS[0], call)

    def runner_only(self, caught, call):
        if self.is_of(caught, call):
            return False
        try:
            program = os.path.basename(os.readlink(f"/proc/{call.process()}/exe"))
        except OSError:
            return False
        return program.startswith("windlass-agent") and self.own_file(HOSTS[0], call)

    def end(self):
        for p in self.running.values():
            p.kill()
        if hasattr(self, "work"):
            self.work.receiver.kill()


class Embedded(Instance):
    """`windlass up`: five services in one process on SQLite, which writes to its disk."""

    # Small ones first: of a run that ends early most are whole.
    TARGETS = {target: ["kill", "after", "eio", "enospc"] for target in ("agent", "runner", "server")}

    def prepare(self):
        self.up()
        self.clients(str(self.state / "admin.token"))
        self.agents()

    def start(self, name):
        if name in HOSTS:
            self.start_agent(name)
        else:
            self.up()

    def up(self):
        for _ in range(20):
            # The broker of before ends with whoever started it, a moment later.
            until = time.monotonic() + 20
            while not (free(self.port) and free(self.port + 1)) and time.monotonic() < until:
                time.sleep(0.02)
            (self.state / "up.json").unlink(missing_ok=True)
            self.spawn("server", [str(self.programs / "windlass"), "up", "--state", str(self.state), "--nats-server", self.nats,
                                  "--allow-private", "--port", str(self.port), "--nats-port", str(self.port + 1)], ON_DISK)
            until = time.monotonic() + 90
            while self.running["server"].poll() is None and time.monotonic() < until:
                try:
                    if json.loads((self.state / "up.json").read_text())["ready"]:
                        return
                except (OSError, ValueError, KeyError):
                    pass
                time.sleep(0.02)
        raise RuntimeError(f"the server does not start: see {self.evidence}/server.log")

    def target(self, target):
        """Which process, and which of its calls count."""
        if target == "server":
            return "server", lambda caught, call: self.is_of(caught, call) and self.own_file("state", call)
        return HOSTS[0], self.agent_only if target == "agent" else self.runner_only


class Scaled(Instance):
    """One process a service on PostgreSQL: what a service makes last it sends to the database, so its sends are the points."""

    TARGETS = {"agent": ["kill", "after"], "runner": ["kill", "after"]} | {
        s: ["kill", "after", "reset"] for s in ("auditor", "api", "scheduler", "executor", "notifier")}

    def __init__(self, *where, database):
        super().__init__(*where)
        self.database, self.sockets = database, {}

    def prepare(self):
        self.init()
        self.clients(str(self.services()))
        self.agents()

    def init(self):
        """Keys, schema, settings; once."""
        name = f"sweep_{self.port}"
        self.database.sql(f"CREATE DATABASE {name}", "postgres")
        url = f"postgres://windlass@127.0.0.1:{self.database.port}/{name}"
        subprocess.run([str(self.programs / "windlass"), "init", "--state", str(self.state), "--nats-host", "127.0.0.1", "--nats-port",
                        str(self.port + 1), "--nats-store", str(self.state / "nats"), "--database", url], check=True, timeout=120,
                       stdout=subprocess.DEVNULL, stderr=self.log("init"))
        for n, service in enumerate(SERVICES):
            keys = "".join(f'{k}_creds = "{self.state}/keys/{k}.creds"\n' for k in ("services", "agents", "system"))
            text = f"""state_dir = "{self.state}"
[database]
url = "{url}"
[nats]
urls = ["nats://127.0.0.1:{self.port + 1}"]
{keys}[api]
listen = "127.0.0.1:{self.port}"
[executor]
allow_private_addresses = ["127.0.0.0/8"]
[notifier]
allow_private_addresses = ["127.0.0.0/8"]
"""
            if service != "api":
                text += f'[health]\n{service} = "127.0.0.1:{self.port + 2 + n}"\n'
            (self.state / f"{service}.toml").write_text(text)

    def services(self):
        """Starts the broker and the services; where the admin's token is."""
        self.start("nats")
        for service in SERVICES:
            self.start(service)
        admin = self.state / "admin.token"
        until = time.monotonic() + 90
        while not admin.exists() or not admin.read_text():
            if time.monotonic() > until:
                raise RuntimeError(f"the api does not start: see {self.evidence}/api.log")
            self.mend()
            time.sleep(0.05)
        return admin

    def start(self, name):
        if name in HOSTS:
            self.start_agent(name)
        elif name == "nats":
            self.spawn(name, [self.nats, "-c", str(self.state / "nats-server.conf")])
        else:
            self.spawn(name, [str(self.programs / "windlass"), name, "--config", str(self.state / f"{name}.toml")], ON_WIRE)

    def to_database(self, _, call):
        """Whether a call goes to the database's port; asked once a socket, whose number in the kernel is its name."""
        what = call.what()
        if not what.startswith("socket:["):
            return False
        if what not in self.sockets:
            inode, goes = what[8:-1], False
            for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] == inode:
                    goes = int(fields[2].rsplit(":", 1)[1], 16) == self.database.port
            self.sockets[what] = goes
        return self.sockets[what]

    def target(self, target):
        if target in SERVICES:
            return target, self.to_database
        return HOSTS[0], self.agent_only if target == "agent" else self.runner_only


class Database:
    """One PostgreSQL for all installations of a sweep; each has a database of its own."""

    def __init__(self, where, port, log=None):
        self.where, self.port = pathlib.Path(where), port
        self.user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
        found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
        if not found:
            raise SystemExit("PostgreSQL is not installed")
        self.programs = found[-1].parent
        data = str(self.where / "data")
        if not (self.where / "data").exists():
            if self.user:
                subprocess.run(["chown", "postgres:postgres", str(where)], check=True, timeout=10)
            subprocess.run([*self.user, str(self.programs / "initdb"), "-U", "windlass", "-A", "trust", "-E", "UTF8", "--locale=C", "-D",
                            data], check=True, timeout=120, cwd="/", stdout=subprocess.DEVNULL)
            settings = f"listen_addresses='127.0.0.1'\nport={port}\nunix_socket_directories=''\nmax_connections=1000\n"
            subprocess.run([*self.user, "tee", f"{data}/postgresql.auto.conf"], input=settings, text=True, check=True, timeout=10,
                           cwd="/", stdout=subprocess.DEVNULL)
        log = open(log or self.where.parent / "postgres.log", "a", encoding="utf-8")
        self.child = subprocess.Popen([*self.user, str(self.programs / "postgres"), "-D", data], cwd="/", stdout=log, stderr=log,
                                      start_new_session=True)
        until = time.monotonic() + 60
        while subprocess.run(self.psql("SELECT 1", "postgres"), capture_output=True, timeout=10, check=False).returncode:
            if time.monotonic() > until or self.child.poll() is not None:
                raise SystemExit("PostgreSQL does not start")
            time.sleep(0.1)

    def psql(self, text, name):
        return ["psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "windlass", "-d", name, "-Atqc", text]

    def sql(self, text, name):
        subprocess.run(self.psql(text, name), check=True, timeout=30, stdout=subprocess.DEVNULL)

    def end(self):
        # An immediate end; the data goes away with it.
        self.child.send_signal(3)
        self.child.wait(30)
