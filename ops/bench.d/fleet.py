"""A Windlass of its own for measuring: `windlass up` with N agents in a temporary state directory, driven through the API."""
import http.client
import json
import os
import pathlib
import subprocess
import time
import urllib.parse

TICK = os.sysconf("SC_CLK_TCK")
HERE = pathlib.Path(__file__).resolve().parent


def cpu(pid, with_children=False):
    """CPU seconds a process has used; 0 when it is gone."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(x) for x in stat[11:15 if with_children else 13]) / TICK


def memory(pid, key):
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def descendants(pid):
    """Pids below a process."""
    parents = {}
    for p in pathlib.Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                parents[int(p.name)] = int((p / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, todo = [], [pid]
    while todo:
        at = todo.pop()
        below = [c for c, p in parents.items() if p == at]
        found += below
        todo += below
    return found


class Refused(RuntimeError):
    """An answer that is no 2xx."""

    def __init__(self, text, status):
        super().__init__(text)
        self.status = status


class Fleet:
    def __init__(self, bin_dir, nats, state, n, port, nats_port, agent_ports=20000, **settings):
        """`settings`: what differs from the defaults, as `api__rate_per_s=1e6`."""
        self.state, self.n, self.port = pathlib.Path(state), n, port
        self.windlass = str(pathlib.Path(bin_dir) / "windlass")
        env = dict(os.environ, **{f"WINDLASS__{k.upper()}": str(v) for k, v in settings.items()})
        self.command = [self.windlass, "up", "--detach", "--state", state, "--agents", str(n), "--port", str(port), "--nats-port",
                        str(nats_port), "--agent-ports", str(agent_ports), "--nats-server", nats, "--allow-private"]
        self.env = env
        self.start()

    def start(self):
        """Again after `stop`, too: with what was there."""
        up = subprocess.run(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=900, env=self.env)
        if up.returncode != 0:
            raise SystemExit(f"bench: `windlass up` did not come up:\n{up.stderr.strip()}")
        self.record = json.loads((self.state / "up.json").read_text())
        self.token = pathlib.Path(self.record["token_file"]).read_text().strip()
        self.pid = self.record["process"]["pid"]
        agents = {c["pid"] for c in self.record["children"]}
        self.agents = agents
        # The control plane: this process and the broker below it, but not the demo agents.
        self.control = [self.pid] + [p for p in descendants(self.pid) if p not in agents and not self._below(p, agents)]
        self.connections = {}

    @staticmethod
    def _below(pid, agents):
        while pid > 1:
            try:
                pid = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                return False
            if pid in agents:
                return True
        return False

    def stop(self):
        subprocess.run([self.windlass, "down", "--state", str(self.state)], check=False, timeout=120,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def call(self, method, path, body=None, token=None, kind="application/json"):
        """One request on a kept connection; the decoded answer and the moment it was there."""
        token = token or self.token
        connection = self.connections.get(token)
        if connection is None:
            connection = self.connections[token] = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        for attempt in (1, 2):
            try:
                connection.request(method, f"/api/v1{path}", body=data, headers=headers)
                answer = connection.getresponse()
                text = answer.read()
                break
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                if attempt == 2:
                    raise
        at = time.time()
        if answer.status >= 300:
            raise Refused(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}", answer.status)
        return (json.loads(text) if text else None), at

    def apply(self, yaml):
        self.call("POST", "/apply", yaml.encode(), kind="application/yaml")

    def hosts_yaml(self):
        return "".join(f"---\nkind: host\nname: {a['host']}\naddress: 127.0.0.1\nlabels: {{ fleet: bench }}\n"
                       for a in self.record["agents"])

    def prepare(self, check, change=lambda yaml: yaml):
        yaml = change((HERE / "catalog.yaml").read_text())
        yaml = yaml.replace("flow: five\n---", f"flow: five\nvalues: {{ check: \"{check}\" }}\n---", 1)
        self.apply(yaml + self.hosts_yaml())
        self.make_approver()

    def make_approver(self):
        grants = [{"project_group": "*", "role": "approver"}]
        self.call("POST", "/people", {"name": "bob", "display": "Bob", "grants": grants})
        self.approver = self.call("POST", "/tokens", {"person": "bob", "label": "bench"})[0]["token"]

    def request(self, project, environment, version, hosts=()):
        """A deployment that nobody need approve; its id."""
        body = {"environment": environment, "version": version, "hosts": list(hosts)}
        return self.call("POST", f"/projects/{project}/deployments", body)[0]["new_deployment"]

    def artifact(self, project, version):
        """A package nobody fetches."""
        digest = "sha256:" + "0" * 64
        self.call("POST", f"/projects/{project}/artifacts",
                  {"version": version, "url": "http://127.0.0.1:9/p.tgz", "digest": digest, "size": 1})

    def wait(self, id_, wanted, within=120, pause=0.02):
        """The deployment once it is in one of the states."""
        until = time.time() + within
        while True:
            try:
                d, _ = self.call("GET", f"/deployments/{id_}")
            except Refused as e:
                # Accepted and not decided yet.
                if e.status != 404 or time.time() > until:
                    raise
                time.sleep(pause)
                continue
            if d["state"] in wanted:
                return d
            if d["ended_at"] or time.time() > until:
                raise RuntimeError(f"deployment {id_} is {d['state']}, not {' or '.join(wanted)}: {d['waiting_on']}")
            time.sleep(pause)

    def used(self):
        """CPU seconds of the control plane and its broker."""
        return sum(cpu(p) for p in self.control)

    def resident(self, key="VmRSS"):
        """MiB of the control plane and of its broker."""
        return memory(self.pid, key), sum(memory(p, key) for p in self.control if p != self.pid)

    def idle(self, seconds=4):
        """CPU seconds a second of the control plane while nothing is released: heartbeats, mostly."""
        before = self.used()
        time.sleep(seconds)
        return (self.used() - before) / seconds

    def release(self, version, url, digest, size, hosts=()):
        """One release; what it took."""
        self.call("POST", "/projects/bench/artifacts", {"version": version, "url": url, "digest": digest, "size": size})
        made, _ = self.call("POST", "/projects/bench/deployments",
                            {"environment": "fleet", "version": version, "hosts": list(hosts)})
        id_ = made["new_deployment"]
        until = time.time() + 60
        while True:
            d, _ = self.call("GET", f"/deployments/{id_}")
            if d["state"] == "awaiting_approval":
                break
            if time.time() > until:
                raise RuntimeError(f"deployment {id_} does not ask for approval: {d['state']}")
            time.sleep(0.01)
        before = [sum(cpu(p) for p in self.control), sum(cpu(p, True) for p in self.agents)]
        _, approved = self.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, self.approver)
        query = urllib.parse.urlencode({"project": "bench", "environment": "fleet", "limit": 1})
        pause, until = 0.01, time.time() + 900
        while True:
            page, now = self.call("GET", f"/deployments?{query}")
            if page["items"][0]["ended_at"]:
                break
            if now > until:
                raise RuntimeError(f"deployment {id_} does not end: {page['items'][0]['waiting_on']}")
            time.sleep(pause)
            pause = min(pause * 1.2, 0.1)
        after = [sum(cpu(p) for p in self.control), sum(cpu(p, True) for p in self.agents)]
        d, _ = self.call("GET", f"/deployments/{id_}")
        if d["state"] != "succeeded":
            bad = [f"{h['host']}: {h['reason']}" for s in d["steps"] for w in s["waves"] for h in w["hosts"] if h["reason"]]
            raise RuntimeError(f"deployment {id_} ended {d['state']} on {len(bad)} host(s), {bad[:3]}")
        tasks = [h["task"] for s in d["steps"] for w in s["waves"] for h in w["hosts"]]
        first = min(parse(s["started_at"]) for t in tasks for s in t["steps"])
        return {
            "wall": parse(d["ended_at"]) - approved, "first": first - approved,
            "control_cpu": after[0] - before[0], "agents_cpu": after[1] - before[1],
            "rss": sum(memory(p, "VmRSS") for p in self.control), "peak": sum(memory(p, "VmHWM") for p in self.control),
            "own_peak": memory(self.pid, "VmHWM"),
        }


class Caller(Fleet):
    """The same Windlass, for a second thread: connections of its own."""

    def __init__(self, fleet):
        self.__dict__.update(fleet.__dict__, connections={})


def parse(text):
    from datetime import datetime
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
