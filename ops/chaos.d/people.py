"""Those who come to Windlass beside its clients in ops/chaos: strangers, a crowd, and somebody who only watches. Each leaves what it saw
in the history, where the checker finds it."""
import json
import pathlib
import random
import threading
import time
import uuid


class Beside(threading.Thread):
    """Does its turn again and again until the clients' time is over; what goes wrong in it is written down."""

    every = 1.0

    def __init__(self, work):
        super().__init__(daemon=True)
        self.work, self.random = work, random.Random(f"{work.seed} {type(self).__name__}")

    def run(self):
        while time.monotonic() < self.work.end:
            try:
                self.turn()
            except Exception as e:  # noqa: BLE001 - one that dies would hide what it saw
                self.work.note(op="client", result="broken", project=type(self).__name__, error=repr(e))
            time.sleep(self.every)


class Stranger(Beside):
    """Somebody with rights on another group of projects, and somebody with none: nothing of this is theirs."""

    every = 2.0

    def prepare(self):
        status, answer = self.work.call("POST", "/people", {"name": "eve", "display": "Eve",
                                        "grants": [{"project_group": "elsewhere", "role": "operator"}]})
        if status >= 300:
            raise SystemExit(f"a person was refused: {status} {answer}")
        self.token = self.work.call("POST", "/tokens", {"person": "eve", "label": "chaos"})[1]["token"]
        return self

    def turn(self):
        project = f"chaos-{self.random.randrange(self.work.projects)}"
        status, page = self.work.call("GET", "/deployments?limit=5", patience=5)
        ids = [d["id"] for d in page["items"]] if status == 200 else []
        tries = [("POST", f"/projects/{project}/artifacts", {"version": "6.6.6", "url": "file:///evil", "digest": "sha256:" + "6" * 64, "size": 1}),
                 ("POST", f"/projects/{project}/deployments", {"environment": "online", "version": "6.6.6"}),
                 ("GET", f"/projects/{project}/artifacts", None), ("PUT", f"/secrets/project.{project}/canary", {"value": "mine"}),
                 ("POST", "/tokens", {"person": "admin", "label": "mine"}), ("GET", "/audit/checkpoint", None), ("GET", "/doctor", None)]
        for id_ in ids[:2]:
            tries += [("GET", f"/deployments/{id_}", None), ("POST", f"/deployments/{id_}/abort", {"reason": "mine"}),
                      ("GET", f"/deployments/{id_}/logs", None), ("POST", f"/deployments/{id_}/override", {"hosts": [], "reason": "mine"})]
        method, path, body = self.random.choice(tries)
        who = self.random.choice([self.token, "wdl_nobody", self.token[:-1] + ("A" if self.token[-1] != "A" else "B")])
        try:
            status, text = self.work.once(self.random.choice(self.work.ports), method, path, json.dumps(body).encode() if body else None,
                                          who, str(uuid.uuid4()) if body else None, "application/json")
        except OSError:
            return
        # An empty list says nothing of anybody; everything else that is granted is a fault.
        granted = status < 300 and not (method == "GET" and json.loads(text or b"{}").get("items") == [])
        self.work.note(op="stranger", status=status, granted=granted, what=f"{method} {path}")


class Crowd(Beside):
    """Hundreds of requests at once now and then: what is refused is refused with a time to come back, what is accepted is kept."""

    every = 30.0

    def turn(self):
        status, answer = self.work.call("POST", "/tokens", {"person": "bob", "label": "crowd"}, patience=10)
        if status >= 300 or not answer:
            return
        token = answer["token"]
        born = [threading.Thread(target=self.one, args=(token,), daemon=True) for _ in range(64)]
        for t in born:
            t.start()
        for t in born:
            t.join(60)

    def one(self, token):
        for _ in range(12):
            try:
                status, _ = self.work.once(self.random.choice(self.work.ports), "GET", "/deployments?limit=1", None, token, None,
                                           "application/json")
            except OSError:
                continue
            self.work.note(op="crowd", status=status)


class Watcher(Beside):
    """Sees when deployments have ended by its own clock, how much memory services have, and what stands in command lines."""

    def __init__(self, work, world):
        super().__init__(work)
        self.world, self.ended, self.most = world, set(), {}

    def turn(self):
        status, page = self.work.call("GET", "/deployments?limit=100", patience=3)
        for d in page["items"] if status == 200 and page else []:
            if d["ended_at"] and d["id"] not in self.ended:
                self.ended.add(d["id"])
                self.work.note(op="seen", deployment=d["id"], state=d["state"])
        needles = [c.encode() for c in self.work.canaries]
        for p in pathlib.Path("/proc").iterdir():
            if not p.name.isdigit():
                continue
            try:
                line = (p / "cmdline").read_bytes()
            except OSError:
                continue
            if any(n in line for n in needles):
                self.work.note(op="leak", where="a command line", what=line[:40].decode(errors="replace"))
        for name in [n for n in self.world.children if n not in self.world.port_of]:
            try:
                text = pathlib.Path(f"/proc/{self.world.pid(name)}/status").read_text()
                kib = int(next(line for line in text.splitlines() if line.startswith("VmRSS:")).split()[1])
            except (OSError, StopIteration, ValueError):
                continue
            if kib // 1024 > self.most.get(name, 0):
                self.most[name] = kib // 1024
                self.work.note(op="memory", service=name, mib=kib // 1024)
