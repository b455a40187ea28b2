"""What clients do to Windlass while something is being done to it; shared by ops/chaos and ops/power-cut.

Every request of a client is one line in the history: `ok` with what was accepted, or `info` when no answer came, which says
nothing about whether it happened. Requests carry an Idempotency-Key and are repeated with it until they are answered, as a
careful client does. Hosts write into the ledger themselves: one line as a step begins, one as it ends.
"""
import base64
import concurrent.futures
import hashlib
import http.client
import io
import json
import os
import pathlib
import random
import subprocess
import tarfile
import threading
import time
import uuid

STEP = """
set -u
# One write each, so that lines of many hosts never mix.
printf 'S %s %s %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" "$(date +%s.%N)" "$WINDLASS_ENVIRONMENT" >>"$LEDGER"
[ "${PACE:-1}" = 0 ] || sleep "$(( (RANDOM % 12) )).$(( RANDOM % 10 ))e-1"
# What a release holds, by its own word; and a secret that must not be seen.
if [ -n "${HELD:-}" ]; then
  printf 'V %s %s %s %s -\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$(cat "$WINDLASS_ROOT/releases/$WINDLASS_RELEASE_DIR/id" || echo none)" \
    "$(date +%s.%N)" >>"$LEDGER"
fi
[ -z "${CANARY:-}" ] || printf 'the secret is %s, in other words %s\\n' "$CANARY" "$(printf %s "$CANARY" | base64)"
code=0
[ "$(( RANDOM % 100 ))" -ge "$FAILS" ] || code=3
printf 'E %s %s %s %s %s\\n' "$WINDLASS_VERSION" "$WINDLASS_HOST" "$1" "$(date +%s.%N)" "$code" >>"$LEDGER"
exit $code
"""


class Work:
    """The clients' side: where the api is, who they are, and the evidence they leave."""

    def __init__(self, evidence, up, ports, seed, projects, here):
        self.evidence, self.ports, self.seed, self.projects = pathlib.Path(evidence), ports, seed, projects
        self.ledger = self.evidence / "ledger"
        self.history = open(self.evidence / "history.jsonl", "a", encoding="utf-8")
        self.admin = pathlib.Path(up["token_file"]).read_text().strip()
        self.hosts = [a["host"] for a in up["agents"]]
        self.up, self.scripts = up, pathlib.Path(here).parent
        self.lock = threading.Lock()
        self.end = time.monotonic()
        self.approver = None
        # Whether clients answer for unknown hosts: only where what ran there is known to be dead.
        self.answers = False
        # How long steps take (0: not at all) and how many percent of those that may fail do.
        self.pace, self.fails = 1, 4
        # With everything that ops/chaos counts: secrets, packages that were changed on their way.
        self.full = False
        self.canaries = []
        self.accepted = set()

    def note(self, **entry):
        with self.lock:
            self.history.write(json.dumps({"at": time.time(), **entry}) + "\n")
            self.history.flush()

    def once(self, port, method, path, body, token, key, kind):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            if key:
                headers["Idempotency-Key"] = key
            connection.request(method, f"/api/v1{path}", body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status in (429, 503):
                self.note(op="refusal", status=answer.status, after=answer.headers.get("Retry-After"), path=path)
            return answer.status, text
        finally:
            connection.close()

    def call(self, method, path, body=None, token=None, kind="application/json", patience=120.0, key=None, **what):
        """Asks until there is an answer that is not `try again`; its status and decoded body. Status 0: none came in time."""
        token = token or self.admin
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        key = key or (str(uuid.uuid4()) if method != "GET" else None)
        until = time.monotonic() + patience
        attempt = 0
        while True:
            attempt += 1
            status, text = 0, b""
            try:
                status, text = self.once(self.ports[attempt % len(self.ports)], method, path, data, token, key, kind)
            except (OSError, http.client.HTTPException):
                pass
            if status in (0, 429, 500, 502, 503, 504):
                if what:
                    self.note(result="info", status=status, **what)
                if time.monotonic() > until:
                    return 0, None
                time.sleep(min(0.2 * attempt, 2))
                continue
            try:
                decoded = json.loads(text) if text else None
            except ValueError:
                decoded = None
            if what:
                self.note(result="ok" if status < 300 else "no", status=status, answer=decoded, **what)
            return status, decoded

    def pages(self, path):
        """All items of a list."""
        items, cursor = [], ""
        while True:
            status, page = self.call("GET", f"{path}{'&' if '?' in path else '?'}limit=100{cursor}")
            if status != 200:
                raise SystemExit(f"GET {path}: {status} {page}")
            items += page["items"]
            if not page.get("next"):
                return items
            cursor = f"&cursor={page['next']}"

    def prepare(self):
        """The catalog, the receiver's secrets, and the person who approves."""
        (self.evidence / "sign").write_text("whsec_" + base64.b64encode(os.urandom(24)).decode())
        self.receiver = subprocess.Popen(
            ["python3", str(self.scripts / "demo.d/receiver.py"), str(self.evidence / "port"), str(self.evidence / "sign"),
             str(self.evidence / "received.jsonl")])
        until = time.monotonic() + 60
        while not (self.evidence / "port").exists():
            if time.monotonic() > until:
                raise SystemExit("the receiver does not start")
            time.sleep(0.05)
        port = (self.evidence / "port").read_text().strip()
        self.call("PUT", "/secrets/channel/chaos-url", {"value": f"http://127.0.0.1:{port}/"})
        self.call("PUT", "/secrets/channel/chaos-sign", {"value": (self.evidence / "sign").read_text()})
        if self.full:
            for p in range(self.projects):
                # Of signs that look different in a URL and in JSON.
                self.canaries.append("c4n/" + base64.b64encode(os.urandom(18)).decode() + '"+')
            (self.evidence / "canaries.json").write_text(json.dumps(self.canaries))
            (self.evidence / "packages").mkdir(exist_ok=True)
        status, answer = self.call("POST", "/apply", self.catalog().encode(), kind="application/yaml")
        if status != 200:
            raise SystemExit(f"the catalog was refused: {status} {answer}")
        for p, canary in enumerate(self.canaries):
            status, answer = self.call("PUT", f"/secrets/project.chaos-{p}/canary", {"value": canary})
            if status >= 300:
                raise SystemExit(f"a secret was refused: {status} {answer}")
        self.call("POST", "/people", {"name": "bob", "display": "Bob", "grants": [{"project_group": "*", "role": "approver"}]})
        self.approver = self.call("POST", "/tokens", {"person": "bob", "label": "chaos"})[1]["token"]
        self.ledger.touch()

    def catalog(self):
        out = []
        shares = [self.hosts[i::self.projects] for i in range(self.projects)]
        run = json.dumps(STEP.strip() + "\n")

        def step(name, fails, more=""):
            env = f'{{ LEDGER: "{self.ledger}", FAILS: "{fails}", PACE: "{self.pace}"{more} }}'
            return f"      - {{ id: {name}, uses: script, with: {{ run: {run}, args: [{name}], env: {env} }} }}\n"

        for p, hosts in enumerate(shares):
            name = f"chaos-{p}"
            fetch = self.full and p % 3 == 1
            more = ', CANARY: "${{ secrets.canary }}"' if self.full else ""
            more += ', HELD: "yes"' if fetch else ""
            get = """  - id: get
    waves: "100%"
    parallel: 5
    steps:
      - { id: fetch, uses: artifact.fetch }
""" if fetch else ""
            out.append(f"""kind: project
name: {name}
group: chaos
---
kind: environment
project: {name}
name: online
hosts: [{", ".join(hosts)}]
flow: work
---
kind: flow
project: {name}
flow: work
on_failure: {["pause", "stop"][p % 2]}
steps:
{get}  - id: roll
    {"needs: [get]" if fetch else "phase: release"}
    waves: "1 50%"
    budget: {{ percent: 30 }}
    parallel: 3
    steps:
{step("one", 0, more)}{step("two", self.fails)}{step("three", 0)}
  - id: after
    needs: [roll]
    waves: "100%"
    steps:
{step("last", 0)}""")
            if p % 3 == 0:
                out.append(f"""kind: policy
name: {name}
match: {{ projects: [{name}] }}
approvals:
  - {{ name: somebody, quorum: 1 }}
""")
        missing = "".join(f"kind: host\nname: {h}\naddress: 127.0.0.1\n---\n" for h in self.hosts)
        out.append(f"""kind: channel
name: chaos
provider: {{ type: webhook, url: chaos-url, sign: chaos-sign }}
rules:
  - {{ projects: [{", ".join(f"chaos-{p}" for p in range(self.projects))}], severity: notice }}
""")
        return missing + "---\n".join(out)

    def begin(self, minutes):
        """The clients, at work until the time is over."""
        self.end = time.monotonic() + minutes * 60
        clients = [Client(self, p) for p in range(self.projects)]
        for c in clients:
            c.start()
        return clients

    def settle(self, clients, faults):
        """Everything runs again: whatever was accepted must end, or say what it waits for. Writes world.json."""
        for c in clients:
            c.join(180)
        until = time.monotonic() + 240
        while True:
            deployments = self.pages("/deployments")
            open_ = [d for d in deployments if not d["ended_at"]]
            # What was accepted and is not yet there is not over either.
            missing = self.accepted - {d["id"] for d in deployments}
            if not (open_ or missing) or time.monotonic() > until:
                break
            # An unknown host keeps its environment's lock, also after the end: a person has to answer for it.
            for d in deployments:
                if any(w["on"] == "unknown" for w in d["waiting_on"]):
                    hosts = [h for w in d["waiting_on"] if w["on"] == "unknown" for h in w["data"]["hosts"]]
                    self.call("POST", f"/deployments/{d['id']}/override", {"hosts": hosts, "reason": "the run is over"},
                              op="override", deployment=d["id"])
            for d in open_:
                if {"intervention", "operator", "approval"} & {w["on"] for w in d["waiting_on"]}:
                    verb = "cancel" if d["state"] in ("awaiting_approval", "scheduled", "queued") else "abort"
                    self.call("POST", f"/deployments/{d['id']}/{verb}", {"reason": "the run is over"}, op=verb, deployment=d["id"])
            time.sleep(2)
        # A run of many releases leaves many messages, and the receiver is one small program. The message of the last event may not be
        # in the list yet, and a notifier whose database was cut off comes back after seconds: one look at it is not enough.
        until, quiet = time.monotonic() + 300, 0
        while True:
            notifications = self.pages("/notifications")
            quiet = 0 if any(n["state"] == "pending" for n in notifications) else quiet + 1
            if quiet == 5 or time.monotonic() > until:
                break
            time.sleep(1)
        world = {"faults": faults, "deployments": [], "seed": self.seed, "notifications": notifications}
        # Several at once: on a busy machine each waits long and costs little.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            world["deployments"] = list(pool.map(self.detail, deployments))
        world["audit"] = self.audit()
        (self.evidence / "world.json").write_text(json.dumps(world))

    def detail(self, d):
        """Everything about one deployment, its tasks and (where one is needed) its approvals."""
        _, detail = self.call("GET", f"/deployments/{d['id']}")
        if self.full and int(d["project"].rsplit("-", 1)[1]) % 3 == 0:
            detail["given"] = self.call("GET", f"/deployments/{d['id']}/approvals")[1]["items"]
        detail["tasks"] = self.call("GET", f"/deployments/{d['id']}/tasks?limit=1000")[1]["items"]
        return detail

    def audit(self):
        """Exports the trail and verifies it offline; repeated while the newest records have yet to be signed."""
        program = self.up["windlass"]
        files = [str(self.evidence / "audit.ndjson"), "--key", str(self.evidence / "audit.key")]
        until = time.monotonic() + 60
        while True:
            export = subprocess.run(
                [program, "audit", "export", "--output", *files, "--server", f"http://127.0.0.1:{self.ports[0]}", "--token-file",
                 self.up["token_file"]], capture_output=True, text=True, timeout=120, check=False)
            verify = subprocess.run([program, "audit", "verify", *files], capture_output=True, text=True, timeout=120, check=False)
            if (export.returncode == 0 and verify.returncode == 0) or time.monotonic() > until:
                return {"export": export.returncode, "verify": verify.returncode, "said": (verify.stdout + verify.stderr)[-500:],
                        "export_said": (export.stdout + export.stderr)[-500:]}
            time.sleep(2)


def pack(text):
    """A package with one file, `id`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        entry = tarfile.TarInfo("id")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


class Client(threading.Thread):
    """Releases to one project, one after the other, and does to them what people do."""

    def __init__(self, work, p):
        super().__init__(daemon=True)
        self.work, self.random = work, random.Random(work.seed * 1000 + p)
        self.project, self.n = f"chaos-{p}", 0

    def run(self):
        while time.monotonic() < self.work.end:
            try:
                self.release()
            except Exception as e:  # noqa: BLE001 - a client that dies would hide what it saw
                self.work.note(op="client", result="broken", project=self.project, error=repr(e))

    def hasty(self, id_, digest):
        """Approvals that must not be taken: of another plan than this, and by whoever asked for it."""
        other = digest[:-4] + ("0000" if digest[-4:] != "0000" else "1111")
        self.work.call("POST", f"/deployments/{id_}/approve", {"digest": other}, self.work.approver, patience=20, op="approve_other",
                       deployment=id_, digest=other)
        self.work.call("POST", f"/deployments/{id_}/approve", {"digest": digest}, patience=20, op="approve_own", deployment=id_)

    def package(self, version):
        """What is registered. Now and then the package that lies there is another one than the digest says."""
        if not (self.work.full and int(self.project.rsplit("-", 1)[1]) % 3 == 1):
            return {"url": "file:///nowhere.tar.gz", "digest": "sha256:" + uuid.uuid4().hex * 2, "size": 1}
        path = self.work.evidence / "packages" / f"{self.project}-{version}.tar.gz"
        good = uuid.UUID(int=self.random.getrandbits(128)).hex
        packed = pack(good)
        changed = self.random.random() < 0.25
        path.write_bytes(pack(uuid.uuid4().hex) if changed else packed)
        self.work.note(op="package", project=self.project, version=version, id=good, changed=changed)
        return {"url": f"file://{path}", "digest": "sha256:" + hashlib.sha256(packed).hexdigest(), "size": len(packed)}

    def release(self):
        self.n += 1
        version = f"{self.n}.0.{self.random.randrange(10**6)}"
        package = self.package(version)
        made = self.work.call("POST", f"/projects/{self.project}/artifacts", {"version": version} | package, op="artifact",
                              project=self.project, version=version)
        if made[0] >= 300 or made[0] == 0:
            return
        status, answer = self.work.call("POST", f"/projects/{self.project}/deployments", {"environment": "online", "version": version},
                              op="request", project=self.project, version=version)
        if status not in (200, 201, 202) or not answer or not answer.get("new_deployment"):
            return
        id_ = answer["new_deployment"]
        self.work.accepted.add(id_)
        plan = self.random.random()
        until = min(time.monotonic() + 90, self.work.end + 30)
        acted, gone = False, 0
        while time.monotonic() < until:
            status, d = self.work.call("GET", f"/deployments/{id_}", patience=30)
            if status == 404:
                # Accepted, so it must come; the checker says so if it does not.
                gone += 1
                if gone > 20:
                    return
                time.sleep(0.3)
                continue
            if status != 200:
                return
            if d["ended_at"]:
                self.work.note(op="seen", deployment=id_, state=d["state"])
                return
            if d["state"] == "awaiting_approval" and d["plan_digest"]:
                if self.work.full:
                    self.hasty(id_, d["plan_digest"])
                self.work.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, self.work.approver, op="approve", deployment=id_)
            waits = [w["on"] for w in d["waiting_on"]]
            if "unknown" in waits and self.work.answers:
                hosts = [h for w in d["waiting_on"] if w["on"] == "unknown" for h in w["data"]["hosts"]]
                self.work.call("POST", f"/deployments/{id_}/override", {"hosts": hosts, "reason": "the power was cut"}, op="override",
                               deployment=id_)
            elif "intervention" in waits:
                verb = self.random.choice(["retry", "skip", "abort", "ignore"])
                body = {"retry": {"hosts": []}, "skip": {"hosts": []}, "abort": {"reason": "chaos"},
                        "ignore": {"hosts": [], "reason": "chaos"}}[verb]
                self.work.call("POST", f"/deployments/{id_}/{verb}", body, op=verb, deployment=id_)
            elif d["state"] == "running" and not acted and plan < 0.35:
                acted = True
                time.sleep(self.random.random() * 3)
                if plan < 0.2:
                    self.work.call("POST", f"/deployments/{id_}/abort", {"reason": "chaos"}, op="abort", deployment=id_)
                else:
                    self.work.call("POST", f"/deployments/{id_}/pause", {"reason": "chaos"}, op="pause", deployment=id_)
                    time.sleep(self.random.random() * 4)
                    self.work.call("POST", f"/deployments/{id_}/resume", {}, op="resume", deployment=id_)
            time.sleep(0.5)
        # Not over in time, as when a host is unknown: nobody waits for ever.
        self.work.call("POST", f"/deployments/{id_}/abort", {"reason": "too slow"}, op="abort", deployment=id_)
