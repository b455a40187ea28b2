"""How long the links of the chain take on an idle system: approval to first step, a webhook's 2xx, a finished step to the event.

Usage: latency.py BIN-DIR NATS-SERVER [RUNS]; started by `ops/bench latency`.
"""
import base64
import hashlib
import hmac
import http.client
import json
import pathlib
import socket
import statistics
import sys
import tempfile
import threading
import time
import uuid

import fleet as fleets
from parts import end, free_port, heading, judge, share

AGENTS = 4
CATALOG = """kind: project
name: bench
group: bench
hooks:
  generic: { secret: ci, version: "body.version", url: "body.url", digest: "body.digest" }
---
kind: environment
project: bench
name: fleet
selector: fleet=bench
flow: three
---
kind: flow
project: bench
flow: three
on_failure: stop
steps:
  - id: rollout
    waves: "100%"
    steps:
      - { id: a, uses: script, with: { run: "true" } }
      - { id: b, uses: script, with: { run: "sleep 0.05" } }
      - { id: c, uses: script, with: { run: "true" } }
---
kind: policy
name: bench
match: { projects: [bench] }
approvals:
  - { name: somebody, quorum: 1 }
"""
SECRET = b"a secret of the benchmark"


class Events(threading.Thread):
    """Reads a deployment's events as a browser would, and notes when each came."""

    def __init__(self, fleet, id_):
        super().__init__(daemon=True)
        self.seen = []
        self.socket = socket.create_connection(("127.0.0.1", fleet.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(60)
        self.socket.sendall(f"GET /api/v1/deployments/{id_}/events HTTP/1.1\r\nHost: x\r\n"
                            f"Authorization: Bearer {fleet.token}\r\nAccept: text/event-stream\r\n\r\n".encode())
        self.start()

    def run(self):
        rest = b""
        while True:
            data = self.socket.recv(65536)
            at = time.time()
            rest += data
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    self.seen.append((at, json.loads(line[6:])))
                elif line.startswith(b"event: end"):
                    self.socket.close()
                    return
            if not data:
                return


def releases(fleet, runs):
    starts, shown = [], []
    hosts = [a["host"] for a in fleet.record["agents"]]
    for i in range(runs):
        fleet.artifact("bench", f"1.{i}.0")
        id_ = fleet.request("bench", "fleet", f"1.{i}.0", [hosts[i % len(hosts)]])
        d = fleet.wait(id_, ["awaiting_approval"], pause=0.005)
        events = Events(fleet, id_)
        _, approved = fleet.call("POST", f"/deployments/{id_}/approve", {"digest": d["plan_digest"]}, fleet.approver)
        events.join(60)
        d = fleet.wait(id_, ["succeeded"])
        task = d["steps"][0]["waves"][0]["hosts"][0]["task"]
        starts.append((fleets.parse(task["steps"][0]["started_at"]) - approved) * 1000)
        ended = {s["index"]: fleets.parse(s["ended_at"]) for s in task["steps"]}
        for at, event in events.seen:
            if event["what"] == "step.finished":
                shown.append((at - ended[event["payload"]["index"]]) * 1000)
    return starts, shown


def hooks(fleet, runs):
    took = []
    connection = http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=30)
    for i in range(runs):
        digest = "sha256:" + hashlib.sha256(str(i).encode()).hexdigest()
        body = json.dumps({"version": f"9.{i}.0", "url": f"https://packages.example/{i}.tgz", "digest": digest}).encode()
        delivery, stamp = str(uuid.uuid4()), str(int(time.time()))
        mac = hmac.new(SECRET, b".".join([delivery.encode(), stamp.encode(), body]), hashlib.sha256).digest()
        headers = {"Content-Type": "application/json", "webhook-id": delivery, "webhook-timestamp": stamp,
                   "webhook-signature": "v1," + base64.b64encode(mac).decode()}
        began = time.perf_counter()
        connection.request("POST", "/hooks/generic/bench", body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read()
        took.append((time.perf_counter() - began) * 1000)
        if answer.status >= 300:
            raise RuntimeError(f"a webhook was answered with {answer.status}: {text[:300]}")
    return took


def main():
    bin_dir, nats = sys.argv[1:3]
    runs = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    heading(f"latencies, {runs} of each", bin_dir)
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        fleet = None
        try:
            fleet = fleets.Fleet(bin_dir, nats, pathlib.Path(work) / "state", AGENTS, free_port(), free_port(),
                                 api__rate_per_s=1e6, api__rate_burst=1e6, api__hook_rate_per_s=1e6, api__hook_burst=1e6)
            fleet.apply(CATALOG + fleet.hosts_yaml())
            fleet.call("PUT", "/secrets/project.bench/ci", {"value": SECRET.decode()})
            fleet.make_approver()
            releases(fleet, 0)
            starts, shown = releases(fleet, runs)
            took = hooks(fleet, runs)
            print(f"  highest: start {max(starts):.1f} ms, event {max(shown):.1f} ms, webhook {max(took):.1f} ms; "
                  f"event p99 {share(shown, 0.99):.1f} ms over {len(shown)}; webhook p50 {statistics.median(took):.1f} ms")
            judge("approval's 2xx to the first step's start, p50", statistics.median(starts), "ms", 50)
            judge("approval's 2xx to the first step's start, p99", share(starts, 0.99), "ms", 250)
            judge("webhook's 2xx, p99", share(took, 0.99), "ms", 50)
            judge("a host's finished step to its event in an open stream, p50", statistics.median(shown), "ms", 100)
        finally:
            if fleet:
                fleet.stop()


main()
end()
