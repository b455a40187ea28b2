"""Where ops/chaos lets its processes live: a network of their own with racks of agents and one half of the services cut off from the
rest at will, small disks that can be filled, clocks that can be put.

All of it lies within namespaces that ops/chaos made for itself (network, mounts, processes). The machine's own network and mounts are
never touched, and whatever is left over goes away with the last process. What this machine cannot do is in `cannot`.
"""
import os
import pathlib
import shutil
import signal
import subprocess
import time

from standby import Standby

SERVICES = [f"{s}-{n}" for s in ("api", "scheduler", "executor", "notifier", "auditor") for n in (1, 2)]
NATS = ["nats-1", "nats-2", "nats-3"]
HALF = [s for s in SERVICES if s.endswith("-2")]
# Where ops/cluster lets a service listen, as distance from the first port.
LISTEN = {"api": -1, "scheduler": 29, "executor": 32, "notifier": 35, "auditor": 38}
RACKS = 4
FAKETIME = [f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1"]


def run(*words, **more):
    return subprocess.run(words, check=True, timeout=60, stdout=subprocess.DEVNULL, **more)


class Net:
    """A network namespace on a cable to the world's. Whatever a process in it connects to on 127.0.0.1 is the world's."""

    def __init__(self, number, own):
        self.number, self.own = number, own
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        here = os.readlink("/proc/self/ns/net")
        until = time.monotonic() + 10
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == here:
            if time.monotonic() > until or self.holder.poll() is not None:
                raise RuntimeError("a network namespace could not be made")
            time.sleep(0.01)
        self.enter = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        out, inside = f"w{number}", f"10.77.{number}.2"
        run("ip", "link", "add", out, "type", "veth", "peer", "name", "v0", "netns", str(self.holder.pid))
        run("ip", "addr", "add", f"10.77.{number}.1/30", "dev", out)
        run("ip", "link", "set", out, "up")
        for words in (["ip", "link", "set", "lo", "up"], ["ip", "addr", "add", f"{inside}/30", "dev", "v0"],
                      ["ip", "link", "set", "v0", "up"], ["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"]):
            run(*self.enter, *words)
        but = f"tcp dport != {{ {', '.join(map(str, own))} }}" if own else "meta l4proto tcp"
        self.rules(f"""table ip cable {{
 chain out {{ type nat hook output priority -100; ip daddr 127.0.0.1 {but} dnat to 10.77.{number}.1 ; }}
 chain in {{ type nat hook prerouting priority -100; iifname "v0" ip daddr {inside} dnat to 127.0.0.1 ; }}
 chain post {{ type nat hook postrouting priority 100; oifname "v0" masquerade ; }}
}}
table inet cut {{
 chain out {{ type filter hook postrouting priority 200; }}
 chain in {{ type filter hook prerouting priority -300; }}
}}""")

    def rules(self, text):
        run(*self.enter, "nft", "-f", "-", input=text, text=True)

    def cut(self, ports, way, percent):
        """Drops what goes out, comes in, or both; to some ports of the world or (none given) to all."""
        luck = f"numgen random mod 100 < {percent} " if percent < 100 else ""
        many = ", ".join(map(str, ports))
        text = "flush chain inet cut out\nflush chain inet cut in\n"
        if way in ("out", "both"):
            text += f'add rule inet cut out oifname "v0" {f"tcp dport {{ {many} }} " if ports else ""}{luck}drop\n'
        if way in ("in", "both"):
            text += f'add rule inet cut in iifname "v0" {f"tcp sport {{ {many} }} " if ports else ""}{luck}drop\n'
        self.rules(text)

    def mend(self):
        self.rules("flush chain inet cut out\nflush chain inet cut in\n")


class World:
    """Every process by name: where it lives, how it is started, harmed and mended."""

    def __init__(self, here, ops, up, first):
        self.here, self.ops, self.first = pathlib.Path(here), ops, first
        self.hosts = [a["host"] for a in up["agents"]]
        self.port_of = {a["host"]: a["port"] for a in up["agents"]}
        self.children, self.nets, self.disks, self.clocks = {}, {}, {}, {}
        self.racks, self.cannot, self.stopped = {}, [], set()
        self.standby = None

    # ------------------------------------------------------------------------------------------------------------- processes
    def pid(self, name):
        try:
            return int((self.here / "run" / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None

    def alive(self, name):
        child = self.children.get(name)
        if child is not None:
            return child.poll() is None
        p = self.pid(name)
        try:
            os.kill(p or 2**22, 0)
            return True
        except OSError:
            return False

    def send(self, name, sig):
        p = self.pid(name)
        if p and self.alive(name):
            try:
                os.kill(p, sig)
            except ProcessLookupError:
                pass

    def start(self, name):
        if name == "postgres" or name in NATS:
            child = self.children.pop(name, None)
            # What is not waited for looks alive to others.
            if child:
                child.poll()
            subprocess.run([f"{self.ops}/cluster", "start", name], check=False, timeout=60, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            return
        if self.alive(name):
            return
        here = self.here
        if name in self.port_of:
            command = [f"{here}/bin/windlass-agent", "run", "--state", f"{here}/agents/{name}/state", "--root",
                       f"{here}/agents/{name}/root", "--env", f"PORT={self.port_of[name]}"]
        else:
            command = [f"{here}/bin/windlass", name.rsplit("-", 1)[0], "--config", f"{here}/{name}.toml"]
        net = self.nets.get(self.racks.get(name))
        environment = dict(os.environ)
        if name in self.clocks:
            environment |= {"LD_PRELOAD": self.faketime, "FAKETIME_TIMESTAMP_FILE": str(self.clocks[name]), "FAKETIME_CACHE_DURATION": "1",
                            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        log = open(here / "log" / name, "a", encoding="utf-8")
        child = subprocess.Popen([*(net.enter if net else []), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 start_new_session=True, env=environment)
        log.close()
        self.children[name] = child
        (here / "run" / f"{name}.pid").write_text(f"{child.pid}\n")

    def quit(self, name):
        """Ends it as an administrator does, and waits until it has ended."""
        self.send(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        until = time.monotonic() + 40
        while self.alive(name):
            if time.monotonic() > until:
                self.send(name, signal.SIGKILL)
            time.sleep(0.05)

    # --------------------------------------------------------------------------------------------------------------- making it
    def make(self):
        for what, made in (("partitions", self.cables), ("full disks", self.small_disks),
                           ("failovers of the database", self.second_database), ("clocks that jump", self.own_clocks)):
            try:
                made()
            except (OSError, RuntimeError, subprocess.SubprocessError) as e:
                self.cannot.append(f"{what}: {e}")
        for name in [*self.hosts, *SERVICES]:
            self.quit(name)
        for name in [*SERVICES, *self.hosts]:
            self.start(name)

    def cables(self):
        if os.environ.get("WINDLASS_CHAOS_WORLD") != "own":
            raise RuntimeError("no namespaces without root")
        own = [self.first + LISTEN[n.rsplit("-", 1)[0]] + 2 for n in HALF]
        own[0] = self.first + 1
        nets = {"half": Net(9, own)} | {f"rack-{n}": Net(n + 1, []) for n in range(RACKS)}
        run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
        run("nft", "-f", "-", text=True, input=f"""table ip world {{
 chain in {{ type nat hook prerouting priority -100; iifname "w*" ip daddr 10.77.0.0/16 dnat to 127.0.0.1 ; }}
 chain out {{ type nat hook output priority -100; ip daddr 127.0.0.1 tcp dport {{ {", ".join(map(str, own))} }} dnat to 10.77.9.2 ; }}
 chain post {{ type nat hook postrouting priority 100; oifname "w*" masquerade ; }}
 chain moved {{ type nat hook output priority -110; }}
 chain moved_in {{ type nat hook prerouting priority -110; }}
}}""")
        # PostgreSQL sees the racks' own addresses; it is started anew below.
        with open(pathlib.Path((self.here / "postgres.dir").read_text().strip()) / "pg_hba.conf", "a", encoding="utf-8") as f:
            f.write("host all all 10.77.0.0/16 trust\n")
        self.nets = nets
        self.racks = {name: "half" for name in HALF} | {h: f"rack-{n % RACKS}" for n, h in enumerate(self.hosts)}

    def second_database(self):
        if not self.nets:
            raise RuntimeError("no address that could move without a network of its own")
        self.standby = Standby(self)

    def small_disks(self):
        """A file system of its own for the database, for one broker, for the auditors' files and for every tenth agent."""
        if os.environ.get("WINDLASS_CHAOS_WORLD") != "own":
            raise RuntimeError("no mounts without root")
        data = pathlib.Path((self.here / "postgres.dir").read_text().strip())
        (self.here / "audit").mkdir(exist_ok=True)
        # The log that is kept for crashes would fill a small disk by itself.
        with open(data / "postgresql.auto.conf", "a", encoding="utf-8") as f:
            f.write("max_wal_size='96MB'\nmin_wal_size='32MB'\n")
        places = {"postgres": (data.parent, "1600m"), "nats-2": (self.here / "nats/nats-2", "300m"), "auditors": (self.here / "audit", "2m")}
        places |= {h: (self.here / "agents" / h / "state", "24m") for h in self.hosts[::10]}
        for name, (place, size) in places.items():
            if name != "auditors":
                self.quit(name)
            aside = self.here / "aside"
            run("cp", "-a", f"{place}/.", str(aside))
            run("mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(place))
            run("cp", "-a", f"{aside}/.", str(place))
            shutil.rmtree(aside)
            self.disks[name] = place
            if name in NATS or name == "postgres":
                self.start(name)

    def own_clocks(self):
        found = [p for p in FAKETIME if os.path.exists(p)]
        if not found:
            raise RuntimeError("libfaketime is not installed")
        self.faketime = found[0]
        (self.here / "clocks").mkdir()
        for name in ["scheduler-1", "executor-1", "api-2", "executor-2", "notifier-2", "auditor-1", *self.hosts[3::4]]:
            self.clocks[name] = self.here / "clocks" / name
            self.clocks[name].write_text("+0\n")

    # ------------------------------------------------------------------------------------------------------------------- harm
    def set_clock(self, name, seconds):
        new = self.clocks[name].with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self.clocks[name])

    def fill(self, name):
        """Writes until nothing fits any more."""
        with open(self.disks[name] / "filler", "wb", buffering=0) as f:
            block = bytes(1 << 20)
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        f.write(block[:size])
                except OSError:
                    continue

    def empty(self, name):
        (self.disks[name] / "filler").unlink(missing_ok=True)

    def heal(self):
        """Everything runs, reaches everything, has room and the right time."""
        for net in self.nets.values():
            net.mend()
        for name in self.disks:
            self.empty(name)
        for name in self.clocks:
            self.set_clock(name, 0)
        for name in list(self.stopped):
            self.send(name, signal.SIGCONT)
        self.stopped.clear()
        for name in ["postgres", *NATS, *SERVICES, *self.hosts]:
            if not self.alive(name):
                self.start(name)
        if self.standby:
            self.standby.heal()

    def end(self):
        for child in self.children.values():
            if child.poll() is None:
                child.kill()
        if self.standby:
            self.standby.end()
        for net in self.nets.values():
            net.holder.kill()

    def ports(self, what):
        nats = [self.first + 9 + n + 1 for n in range(3)]
        return {"nats": nats, "database": [self.first + 5], "all": []}[what]
