"""The rehearsal of ops/backup: an old backup is put back while hosts have gone on.

The hosts' own ledger counts how often each step began there; the checker below knows nothing else of them.
"""
import base64
import collections
import http.client
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid

HOSTS = ["drill-1", "drill-2", "drill-3"]
STEP = """
set -u
printf 'S %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" >>"$LEDGER"
while [ -e "$HOLD" ]; do sleep 0.1; done
printf 'E %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" >>"$LEDGER"
"""


class Drill:
    def __init__(self, args, root):
        self.args, self.root = args, root
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="windlass-drill."))
        self.api, self.nats = args.ports, args.ports + 1
        self.ledger, self.hold = self.dir / "ledger", self.dir / "hold"
        self.ledger.touch()
        self.bin = pathlib.Path(args.bin) if args.bin else root / "target/debug"
        self.children, self.wrong = {}, []
        self.begun = time.monotonic()

    def say(self, text):
        print(f"==> {text} ({time.monotonic() - self.begun:.0f} s)", flush=True)

    def check(self, good, text):
        print(f"    {'ok   ' if good else 'WRONG'}  {text}", flush=True)
        if not good:
            self.wrong.append(text)

    # ------------------------------------------------------------------------------------------------------------- processes
    def start(self, name, *command, **env):
        log = open(self.dir / f"{name}.log", "ab")
        self.children[name] = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                               env=os.environ | env, start_new_session=True)

    def kill(self, name):
        child = self.children.pop(name)
        child.kill()
        child.wait()

    def end(self):
        self.hold.unlink(missing_ok=True)
        for child in self.children.values():
            child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
        if not self.args.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
        else:
            print(f"    its folder is {self.dir}")

    def up(self, state):
        self.state = state
        tools = os.environ.get("WINDLASS_TOOLS") or self.root / ".windlass/tools"
        nats = os.environ.get("NATS_SERVER") or shutil.which("nats-server") or pathlib.Path(tools) / "bin/nats-server"
        self.start("up", self.bin / "windlass", "up", "--state", state, "--port", self.api, "--nats-port", self.nats, "--allow-private",
                   "--nats-server", nats)
        self.until(lambda: (state / "up.json").exists() and json.loads((state / "up.json").read_text()).get("ready"), 60,
                   "windlass up is not ready")

    def until(self, what, seconds, problem):
        end = time.monotonic() + seconds
        while True:
            try:
                if found := what():
                    return found
            except (OSError, ValueError, KeyError):
                pass
            if time.monotonic() > end:
                raise SystemExit(f"{problem}; logs are in {self.dir}")
            time.sleep(0.1)

    # ------------------------------------------------------------------------------------------------------------------- api
    def call(self, method, path, body=None, kind="application/json"):
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        for _ in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=15)
            try:
                connection.request(method, f"/api/v1{path}", body=data,
                                   headers={"Authorization": f"Bearer {self.token}", "Content-Type": kind})
                answer = connection.getresponse()
                text = answer.read()
            except OSError:
                time.sleep(0.1)
                continue
            finally:
                connection.close()
            if answer.status not in (429, 503):
                return answer.status, json.loads(text) if text else None
            time.sleep(0.1)
        raise SystemExit(f"{method} {path}: no answer")

    def windlass(self, *command):
        return subprocess.run([str(self.bin / "windlass"), *command, "--server", f"http://127.0.0.1:{self.api}", "--token-file",
                               str(self.dir / "token")], capture_output=True, text=True, timeout=60, check=False)

    def release(self, version):
        self.call("POST", "/projects/drill/artifacts", {
            "version": version, "url": "file:///nowhere.tar.gz", "digest": "sha256:" + uuid.uuid4().hex * 2, "size": 1})
        status, made = self.call("POST", "/projects/drill/deployments", {"environment": "online", "version": version})
        if status >= 300:
            raise SystemExit(f"release {version} was refused: {made}")
        return made["new_deployment"]

    def deployment(self, id_):
        return self.call("GET", f"/deployments/{id_}")[1]

    def ended(self, id_):
        return self.until(lambda: (d := self.deployment(id_))["ended_at"] and d, 60, f"deployment {id_} does not end")

    def starts(self, version):
        lines = (line.split() for line in self.ledger.read_text().splitlines())
        return collections.Counter((host, step) for kind, v, host, step in lines if kind == "S" and v == version)

    def unknown_of(self, id_):
        return {h for w in self.deployment(id_)["waiting_on"] if w["on"] == "unknown" for h in w["data"]["hosts"]}

    def hosts_of(self, id_):
        return {h["host"]: h["task"] for s in self.deployment(id_)["steps"] for w in s["waves"] for h in w["hosts"] if h["task"]}

    # ----------------------------------------------------------------------------------------------------------------- story
    def prepare(self):
        (self.dir / "sign").write_text("whsec_" + base64.b64encode(os.urandom(24)).decode())
        self.start("receiver", sys.executable, self.root / "ops/demo.d/receiver.py", self.dir / "port", self.dir / "sign",
                   self.dir / "received")
        self.up(self.dir / "old")
        shutil.copy(self.dir / "old/admin.token", self.dir / "token")
        self.token = (self.dir / "token").read_text().strip()
        self.until((self.dir / "port").exists, 10, "the receiver does not start")
        self.call("PUT", "/secrets/channel/url", {"value": f"http://127.0.0.1:{(self.dir / 'port').read_text().strip()}/"})
        self.call("PUT", "/secrets/channel/sign", {"value": (self.dir / "sign").read_text()})
        env = f'{{ LEDGER: "{self.ledger}", HOLD: "{self.hold}" }}'
        # Tried again by itself whatever a policy may name: that must not become a second run either.
        run = json.dumps(STEP.strip() + "\n")
        catalog = "---\n".join([f"kind: host\nname: {h}\naddress: 127.0.0.1\n" for h in HOSTS] + [
            "kind: project\nname: drill\ngroup: drill\n",
            f"kind: environment\nproject: drill\nname: online\nhosts: [{', '.join(HOSTS)}]\nflow: roll\n",
            f"""kind: flow
project: drill
flow: roll
steps:
  - id: roll
    waves: "1 100%"
    budget: {{ hosts: 3 }}
    retry: {{ max: 2, on: [unreachable, refused], backoff: 1s }}
    steps:
      - {{ id: work, uses: script, timeout: 10m, with: {{ run: {run}, args: [work], env: {env} }} }}
""",
            "kind: channel\nname: people\nprovider: { type: webhook, url: url, sign: sign }\nrules:\n  - { severity: alert }\n"])
        status, said = self.call("POST", "/apply", catalog.encode(), "application/yaml")
        if status != 200:
            raise SystemExit(f"the catalog was refused: {said}")
        for host in HOSTS:
            token = self.windlass("enroll", host, "--quiet").stdout
            done = subprocess.run([str(self.bin / "windlass-agent"), "enroll", "--server", f"http://127.0.0.1:{self.api}", "--token-file",
                                   "-", "--state", str(self.dir / host / "state")], input=token, text=True, capture_output=True,
                                  timeout=60, check=False)
            if done.returncode:
                raise SystemExit(f"{host} cannot be enrolled: {done.stderr}")
            (self.dir / host / "root").mkdir()
            self.start(host, self.bin / "windlass-agent", "run", "--state", self.dir / host / "state", "--root", self.dir / host / "root")
        self.until(lambda: sum(h["state"] == "connected" for h in self.call("GET", "/hosts")[1]["items"]) == 3, 30, "agents do not connect")

    def story(self):
        self.say("an installation, three hosts, a release")
        self.prepare()
        self.ended(self.release("1.0.0"))
        self.say("a backup in the middle of release 2.0.0: its first host works, the others have yet to begin")
        self.hold.touch()
        two = self.release("2.0.0")
        self.until(lambda: self.starts("2.0.0"), 30, "release 2.0.0 does not begin")
        self.until(lambda: any(t["started_at"] for t in self.hosts_of(two).values()), 30, "no host of 2.0.0 is seen to work")
        (self.dir / "key").write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        backup = [sys.executable, str(self.root / "ops/backup")]
        made = subprocess.run([*backup, "create", "--state", str(self.dir / "old"), "--to", str(self.dir / "backup"), "--key",
                               str(self.dir / "key")], capture_output=True, text=True, timeout=60, check=False)
        self.check(made.returncode == 0, f"made while all runs: {made.stdout.strip() or made.stderr.strip()}")
        text = (self.dir / "backup").read_bytes()
        self.check(oct((self.dir / "backup").stat().st_mode & 0o777) == "0o600" and b"SQLite format" not in text and b"nkey" not in text.lower(),
                   "its file is private, and nothing in it is readable")
        self.say("history goes on: 2.0.0 ends, 3.0.0 is released, 4.0.0 runs on its first host")
        self.hold.unlink()
        self.check(self.ended(two)["state"] == "succeeded", "2.0.0 ended well")
        self.check(self.ended(self.release("3.0.0"))["state"] == "succeeded", "3.0.0 ended well")
        self.hold.touch()
        self.release("4.0.0")
        self.until(lambda: self.starts("4.0.0"), 30, "release 4.0.0 does not begin")
        before = {v: self.starts(v) for v in ("1.0.0", "2.0.0", "3.0.0", "4.0.0")}
        # What is kept elsewhere knows more than the backup: a checkpoint that covers what came later.
        def later():
            self.windlass("audit", "export", "--output", str(self.dir / "all.ndjson"), "--key", str(self.dir / "audit.key"))
            return "4.0.0" in (self.dir / "all.ndjson").read_text()
        self.until(later, 30, "the audit trail cannot be exported")
        self.say("the control plane and its database are lost")
        self.kill("up")
        self.until(lambda: not self.answers(self.nats), 20, "its broker does not end")
        witness = self.dir / "witness"
        shutil.copy(self.dir / "old/audit/checkpoints", witness)
        os.rename(self.dir / "old", self.dir / "lost")
        for what, args in (("with another key", ["--key", str(self.dir / "token")]), ("without its key", [])):
            no = subprocess.run([*backup, "restore", str(self.dir / "backup"), "--state", str(self.dir / "no"), *args], capture_output=True,
                                text=True, timeout=60, check=False)
            self.check(no.returncode != 0 and not (self.dir / "no/keys").exists(), f"the backup does not open {what}")
        back = subprocess.run([*backup, "restore", str(self.dir / "backup"), "--state", str(self.dir / "new"), "--key", str(self.dir / "key"),
                               "--checkpoints", str(witness), "--bin", str(self.bin)], capture_output=True, text=True, timeout=60,
                              check=False)
        self.check(back.returncode == 0, f"put back: {(back.stdout or back.stderr).strip().splitlines()[0]}")
        self.say("the services start on the backup, the hosts come back")
        self.up(self.dir / "new")
        self.until(lambda: self.deployment(two)["state"] == "paused", 30, "release 2.0.0 is not paused")
        self.check(True, "release 2.0.0 is paused, not continued")
        self.until(lambda: {"audit.restored", "agent.orphan"} <= self.told(), 60, f"people are not told: {self.told()}")
        self.check(True, "people are told: history went back, and a host holds a task that nobody knows")
        self.check(self.call("GET", "/projects/drill/environments/online/hold")[0] == 200, "automation is held")
        # The runner of 4.0.0 was fenced: it ends without the hold being lifted.
        self.until(lambda: not list((self.dir / HOSTS[0] / "state/tasks").glob("*/doorbell.alive")) and self.fenced(), 30,
                   "the unknown task is not fenced")
        self.check(not any(line.startswith("E 4.0.0") for line in self.ledger.read_text().splitlines()),
                   "the task nobody knows was stopped")
        self.hold.unlink()
        self.say("a person resumes 2.0.0: its hosts have done it already, and say so")
        self.call("POST", f"/deployments/{two}/resume", {})
        # One after the other: each says so when it is offered the task.
        self.until(lambda: self.unknown_of(two) == set(HOSTS[1:]), 120, "hosts that did it before are not called unknown")
        self.check(True, f"unknown, for a person to look at: {', '.join(sorted(self.unknown_of(two)))}")
        first = self.hosts_of(two)[HOSTS[0]]
        self.check(first["state"] == "succeeded", f"the host that worked during the backup: {first['state']}")
        time.sleep(3)
        after = {v: self.starts(v) for v in before}
        self.check(after == before and all(n == 1 for c in after.values() for n in c.values()),
                   f"no step began twice: {sum(sum(c.values()) for c in after.values())} starts in the hosts' own ledger")
        self.call("POST", f"/deployments/{two}/override", {"hosts": HOSTS[1:], "reason": "they have 2.0.0"})
        self.call("POST", f"/deployments/{two}/abort", {"reason": "the drill is over"})
        self.ended(two)
        self.say("life goes on")
        self.check(self.ended(self.release("5.0.0"))["state"] == "succeeded" and len(self.starts("5.0.0")) == 3,
                   "5.0.0 was released to all three hosts")
        export = [str(self.dir / "now.ndjson"), "--key", str(self.dir / "audit.key")]
        def whole():
            self.windlass("audit", "export", "--output", *export)
            return self.windlass("audit", "verify", *export).returncode == 0
        self.until(whole, 30, "the new trail does not verify")
        self.check(True, "the audit trail verifies as it is now")
        since = self.windlass("audit", "verify", *export, "--since", str(witness))
        self.check(since.returncode != 0, f"the checkpoint kept elsewhere shows that history went back: "
                                          f"{(since.stderr or since.stdout).strip().splitlines()[-1][:160]}")
        self.check("audit.restored" in (self.dir / "now.ndjson").read_text(), "and the trail itself says so")

    def answers(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.connect()
            return True
        except OSError:
            return False
        finally:
            connection.close()

    def told(self):
        try:
            text = (self.dir / "received").read_text()
        except OSError:
            return set()
        return {what for what in ("audit.restored", "agent.orphan") if what in text}

    def fenced(self):
        """No step of 4.0.0 is at work any more: its shell is gone."""
        for p in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"LEDGER={self.ledger}".encode() in p.read_bytes():
                    return False
            except OSError:
                continue
        return True


def run(args, root):
    drill = Drill(args, root)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        drill.story()
    finally:
        drill.end()
    print(f"wrong: {len(drill.wrong)} ({time.monotonic() - drill.begun:.0f} s)")
    return 1 if drill.wrong else 0
