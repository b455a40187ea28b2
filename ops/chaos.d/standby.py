"""A synchronous standby of the run's PostgreSQL, and what a failover is made of: the primary dies, the standby is promoted, its address
moves, and what was primary is made anew as the standby of the other."""
import pathlib
import signal
import subprocess
import time

PLAIN = {"timeout": 120, "check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}


class Standby:
    """Two servers on ports of their own; clients know one address, behind which stands whichever is primary."""

    def __init__(self, world):
        self.world, self.address = world, world.first + 5
        data = pathlib.Path((world.here / "postgres.dir").read_text().strip())
        # (data, port) of the primary and of the standby.
        self.places = [(data, self.address), (data.with_name("standby"), world.first + 6)]
        self.programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parts[-2]))[-1]
        self.user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        self.child, self.original = None, data
        self.follow()

    def psql(self, text, port, **more):
        words = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "windlass", "-d", "windlass", "-Atqc", text]
        return subprocess.run(words, **(PLAIN | {"stdout": subprocess.PIPE, "text": True} | more)).stdout

    def sql(self, text, port, seconds=120):
        """Asks until there is an answer; a server that starts refuses for a while."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self.psql(text, port, timeout=30, stderr=subprocess.DEVNULL).strip()
            except subprocess.SubprocessError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def follow(self):
        """The second place becomes the standby of the first; from then on no commit is told before both have it."""
        (_, primary), (place, port) = self.places
        subprocess.run(["rm", "-rf", str(place)], **PLAIN)
        subprocess.run([*self.user, str(self.programs / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(primary), "-U", "windlass", "-D",
                        str(place), "-R", "-X", "stream", "-c", "fast"], **PLAIN, stderr=subprocess.DEVNULL)
        with open(place / "postgresql.auto.conf", "a", encoding="utf-8") as f:
            f.write(f"port={port}\nsynchronous_standby_names=''\n")
        log = open(self.world.here / "log/standby", "a", encoding="utf-8")
        self.child = subprocess.Popen([*self.user, str(self.programs / "postgres"), "-D", str(place)], cwd="/", stdout=log, stderr=log,
                                      start_new_session=True)
        log.close()
        self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", primary)
        self.sql("SELECT pg_reload_conf()", primary)
        until = time.monotonic() + 60
        while self.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", primary) != "1":
            if time.monotonic() > until:
                raise RuntimeError("the standby does not follow")
            time.sleep(0.2)

    def alone(self):
        """Without a standby for now, so that nothing waits for one that is gone."""
        self.sql("ALTER SYSTEM SET synchronous_standby_names = ''", self.places[0][1])
        self.sql("SELECT pg_reload_conf()", self.places[0][1])

    def follows(self):
        """Whether every commit that was told is on the standby: only then may it be promoted."""
        try:
            state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            return self.child.poll() is None and self.psql(state, self.places[0][1], timeout=10, stderr=subprocess.DEVNULL).strip() == "1"
        except subprocess.SubprocessError:
            return False

    def fail_over(self):
        world = self.world
        world.send("postgres", signal.SIGKILL)
        until = time.monotonic() + 30
        while world.alive("postgres") and time.monotonic() < until:
            time.sleep(0.02)
        self.places.reverse()
        place, port = self.places[0]
        subprocess.run([*self.user, str(self.programs / "pg_ctl"), "promote", "-w", "-t", "60", "-D", str(place)], **PLAIN)
        (world.here / "postgres.dir").write_text(f"{place}\n")
        (world.here / "run/postgres.pid").write_text(f"{self.child.pid}\n")
        world.children["postgres"] = self.child
        # The address moves: who connects from now on reaches the new primary.
        rules = "flush chain ip world moved\nflush chain ip world moved_in\n"
        if port != self.address:
            rules += f"add rule ip world moved ip daddr 127.0.0.1 tcp dport {self.address} dnat to 127.0.0.1:{port}\n"
            rules += f'add rule ip world moved_in iifname "w*" tcp dport {self.address} dnat to 127.0.0.1:{port}\n'
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, timeout=30, check=True)

    def rejoin(self):
        self.alone()
        self.follow()

    def heal(self):
        """Made anew where it does not follow: three times at most, for a machine may be busy."""
        for last in (False, False, True):
            if self.child.poll() is None and self.follows():
                return
            self.child.kill()
            self.child.wait(30)
            try:
                self.rejoin()
            except (RuntimeError, subprocess.SubprocessError):
                if last:
                    raise

    def end(self):
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGQUIT)
        # Where ops/cluster made it, and removes it.
        (self.world.here / "postgres.dir").write_text(f"{self.original}\n")
