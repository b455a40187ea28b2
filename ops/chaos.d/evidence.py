"""The evidence of a run as the checker reads it: what clients were told (history.jsonl), what hosts wrote themselves (ledger), what the
api shows (world.json) and what the receiver got (received.jsonl)."""
import collections
import datetime
import json
import pathlib

# Which of the flow's steps a host's step belongs to, and its place there.
OF_STEP = {"one": "roll", "two": "roll", "three": "roll", "last": "after"}
INDEX = {"one": 0, "two": 1, "three": 2, "last": 0}


def when(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


class Evidence:
    """Lists and tables of one run."""

    def __init__(self, folder):
        self.here = pathlib.Path(folder)
        self.history = [json.loads(line) for line in self.lines("history.jsonl")]
        self.world = json.loads((self.here / "world.json").read_text())
        self.received = [json.loads(line) for line in self.lines("received.jsonl")]
        self.deployments = self.world["deployments"]
        self.starts, self.ends, self.held = (collections.defaultdict(list) for _ in range(3))
        for line in self.lines("ledger"):
            mark, version, host, step, at, last = line.split()
            {"S": self.starts, "E": self.ends, "V": self.held}[mark][version, host, step].append((float(at), last))
        self.index()

    def lines(self, name):
        path = self.here / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def index(self):
        """Tables over the deployments; made anew after they were changed."""
        self.by_id = {d["id"]: d for d in self.deployments}
        self.tasks = collections.defaultdict(list)
        for d in self.deployments:
            for t in d["tasks"]:
                self.tasks[d["project"], d["version"], t["host"], t["step"]].append(t)
        self.project_of = {(d["version"], t["host"]): d["project"] for d in self.deployments for t in d["tasks"]}
        self.seen = {}
        for h in self.history:
            if h.get("op") == "seen":
                self.seen.setdefault(h["deployment"], h["at"])

    def notes(self, *ops):
        return [h for h in self.history if h.get("op") in ops]

    def over_at(self, d):
        """When a deployment had ended at the latest. With clocks that jump only what a client saw by its own counts."""
        if self.world.get("clocks"):
            return self.seen.get(d["id"])
        return when(d["ended_at"]) + 0.05 if d["ended_at"] else None

    def step_starts(self, d):
        """(host, step, begun) of one deployment."""
        for (version, host, step), begun in self.starts.items():
            if version == d["version"] and self.project_of.get((version, host)) == d["project"]:
                yield host, step, begun
