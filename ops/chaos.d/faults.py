"""The faults of ops/chaos: two hands at once, one for processes and one for networks, disks and clocks."""
import os
import random
import shutil
import signal
import threading
import time

from world import NATS, SERVICES


class Hand(threading.Thread):
    """Does one fault after the other until the clients' time is over, and undoes each."""

    kinds = {}

    def __init__(self, world, work, seed):
        super().__init__(daemon=True)
        self.world, self.work, self.rng, self.count = world, work, random.Random(f"{seed} {type(self).__name__}"), {}

    def run(self):
        while time.monotonic() < self.work.end:
            time.sleep(self.rng.random() * 4)
            kind = self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
            try:
                getattr(self, kind.replace(" ", "_"))(kind)
            except Exception as e:  # noqa: BLE001 - a fault that fails is told, and the others go on
                self.work.note(op="client", result="broken", project=kind, error=repr(e))

    def rest(self, seconds):
        """How long a fault lasts; the end of the run ends it too."""
        until = min(time.monotonic() + seconds, self.work.end + 1)
        while time.monotonic() < until:
            time.sleep(0.1)

    def note(self, kind, **more):
        self.count[kind] = self.count.get(kind, 0) + 1
        self.work.note(op="fault", kind=kind, **more)


class Processes(Hand):
    """Kills, freezes, wipes."""

    kinds = {"kill service": 20, "freeze service": 12, "kill agent": 16, "freeze agent": 10, "kill broker": 6, "freeze broker": 4,
             "wipe node": 4, "wipe broker": 2, "kill database": 4, "freeze database": 2, "kill many": 4}

    def killed(self, kind, name, rest):
        self.note(kind, name=name, rest=rest)
        self.world.send(name, signal.SIGKILL)
        self.rest(rest)
        self.world.start(name)

    def frozen(self, kind, name, rest):
        self.note(kind, name=name, rest=rest)
        self.world.stopped.add(name)
        self.world.send(name, signal.SIGSTOP)
        self.rest(rest)
        self.world.send(name, signal.SIGCONT)
        self.world.stopped.discard(name)

    def wiped(self, kind, nodes):
        self.note(kind, name=nodes[0])
        for n in nodes:
            self.world.send(n, signal.SIGKILL)
        self.rest(0.3)
        for n in nodes:
            shutil.rmtree(self.world.here / "nats" / n, ignore_errors=True)
        for n in nodes:
            self.world.start(n)

    def some(self, *times):
        # Longer than a lease (15 s) now and then, so that an owner wakes as a stranger.
        return self.rng.choice(times)

    def kill_service(self, kind):
        self.killed(kind, self.rng.choice(SERVICES), self.some(0.1, 1, 3, 8))

    def freeze_service(self, kind):
        self.frozen(kind, self.rng.choice(SERVICES), self.some(1, 3, 8, 25))

    def kill_agent(self, kind):
        self.killed(kind, self.rng.choice(self.work.hosts), self.some(0.1, 1, 3, 8))

    def freeze_agent(self, kind):
        self.frozen(kind, self.rng.choice(self.work.hosts), self.some(1, 3, 8, 25))

    def kill_broker(self, kind):
        self.killed(kind, self.rng.choice(NATS), self.some(0.1, 1, 3))

    def freeze_broker(self, kind):
        self.frozen(kind, self.rng.choice(NATS), self.some(1, 3, 8))

    def wipe_node(self, kind):
        self.wiped(kind, [self.rng.choice(NATS)])

    def wipe_broker(self, kind):
        self.wiped(kind, NATS)

    def kill_database(self, kind):
        self.killed(kind, "postgres", self.some(0.5, 5))

    def freeze_database(self, kind):
        self.note(kind)
        pids = children(self.world.pid("postgres"))
        for p in pids:
            signal_to(p, signal.SIGSTOP)
        self.rest(self.some(1, 5, 12))
        for p in pids:
            signal_to(p, signal.SIGCONT)

    def kill_many(self, kind):
        names = self.rng.sample(SERVICES + self.work.hosts, 6)
        self.note(kind, names=names)
        for name in names:
            self.world.send(name, signal.SIGKILL)
        self.rest(1)
        for name in names:
            if not self.world.alive(name):
                self.world.start(name)


class Surroundings(Hand):
    """Networks, disks, clocks: what of it this machine can do."""

    def __init__(self, world, work, seed):
        super().__init__(world, work, seed)
        self.kinds = {}
        if world.nets:
            self.kinds |= {"cut rack": 10, "rack hears nothing": 4, "rack is not heard": 4, "rack loses packets": 5,
                           "cut half from nats": 5, "cut half from database": 5, "cut half": 4, "half is not heard": 3,
                           "half loses packets": 4}
        if world.disks:
            self.kinds |= {"agent disk full": 6, "broker disk full": 3, "database disk full": 3, "auditors disk full": 3}
        if world.standby:
            self.kinds |= {"database fails over": 3}
        if world.clocks:
            self.kinds |= {"clock jumps": 10}

    def cut(self, kind, name, what, way, percent, times):
        net, rest = self.world.nets[name], self.rng.choice(times)
        self.note(kind, name=name, what=what, way=way, percent=percent, rest=rest)
        net.cut(self.world.ports(what), way, percent)
        self.rest(rest)
        net.mend()

    def rack(self):
        return self.rng.choice([n for n in self.world.nets if n != "half"])

    def cut_rack(self, kind):
        # 100 s: beyond the 90 s after which a host that was granted is unknown.
        self.cut(kind, self.rack(), "all", "both", 100, [2, 8, 20, 35, 100])

    def rack_hears_nothing(self, kind):
        self.cut(kind, self.rack(), "all", "in", 100, [3, 12, 35])

    def rack_is_not_heard(self, kind):
        self.cut(kind, self.rack(), "all", "out", 100, [3, 12, 35])

    def rack_loses_packets(self, kind):
        self.cut(kind, self.rack(), "all", "both", self.rng.choice([5, 20, 40]), [8, 20])

    def cut_half_from_nats(self, kind):
        self.cut(kind, "half", "nats", "both", 100, [3, 12, 30])

    def cut_half_from_database(self, kind):
        self.cut(kind, "half", "database", self.rng.choice(["both", "in", "out"]), 100, [3, 12, 30])

    def cut_half(self, kind):
        self.cut(kind, "half", "all", "both", 100, [3, 12, 30])

    def half_is_not_heard(self, kind):
        self.cut(kind, "half", "nats", self.rng.choice(["out", "in"]), 100, [3, 12, 30])

    def half_loses_packets(self, kind):
        self.cut(kind, "half", "all", "both", self.rng.choice([5, 20, 40]), [8, 20])

    def full(self, kind, name):
        rest = self.rng.choice([2, 6, 15])
        self.note(kind, name=name, rest=rest)
        self.world.fill(name)
        self.rest(rest)
        self.world.empty(name)

    def agent_disk_full(self, kind):
        self.full(kind, self.rng.choice([n for n in self.world.disks if n in self.work.hosts]))

    def broker_disk_full(self, kind):
        self.full(kind, "nats-2")
        # A node that met a full disk keeps its streams switched off until it is started anew.
        self.world.send("nats-2", signal.SIGKILL)
        self.rest(0.3)
        self.world.start("nats-2")

    def database_disk_full(self, kind):
        self.full(kind, "postgres")
        # PostgreSQL ends where it cannot write its log; whoever keeps it running starts it again.
        self.rest(2)
        if not self.world.alive("postgres"):
            self.world.start("postgres")

    def database_fails_over(self, kind):
        standby = self.world.standby
        # Only what follows may be promoted; one that fell behind is made anew, which is no fault.
        if not standby.follows():
            standby.heal()
            return
        self.note(kind)
        standby.fail_over()
        self.rest(self.rng.choice([1, 6]))
        standby.rejoin()

    def auditors_disk_full(self, kind):
        self.full(kind, "auditors")

    def clock_jumps(self, kind):
        name, seconds = self.rng.choice(list(self.world.clocks)), self.rng.choice([-86400, -3600, -90, -5, 5, 90, 3600, 86400])
        rest = self.rng.choice([2, 8, 20])
        self.note(kind, name=name, seconds=seconds, rest=rest)
        self.world.set_clock(name, seconds)
        self.rest(rest)
        self.world.set_clock(name, 0)


def children(pid):
    """A process and what it has forked."""
    if not pid:
        return []
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [pid, *(int(p) for p in f.read().split())]
    except OSError:
        return [pid]


def signal_to(pid, sig):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass
