"""Thousands of deployments requested at once, over many projects and environments: none may be lost, and the api must go on
answering while they are decided and carried out.

Usage: crowd.py BIN-DIR NATS-SERVER [N]; started by `ops/bench queue`.
"""
import asyncio
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

import fleet as fleets
from parts import end, free_port, heading, judge, share

PROJECTS, ENVIRONMENTS = 100, 10
AT_ONCE = 500
DRAIN_S = 1800


def catalog(check, projects):
    yield "---\nkind: host\nname: nobody\naddress: 127.0.0.1\nlabels: { none: here }\n"
    for p in projects:
        yield (f"---\nkind: project\nname: p{p:03}\ngroup: bench\n---\nkind: flow\nproject: p{p:03}\nflow: one\n"
               "on_failure: stop\nsteps:\n  - { id: call, uses: http.request, with: { url: \"" + check + "\" } }\n")
        for e in range(ENVIRONMENTS):
            yield f"---\nkind: environment\nproject: p{p:03}\nname: e{e}\nselector: none=here\nflow: one\n"


async def target(reader, writer):
    """What every deployment calls: the smallest HTTP server there is."""
    try:
        while (await reader.readuntil(b"\r\n\r\n")):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve():
    """In a process of its own; its port."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        async def forever():
            server = await asyncio.start_server(target, "127.0.0.1", 0, backlog=1024)
            os.write(theirs, str(server.sockets[0].getsockname()[1]).encode())
            await server.serve_forever()
        asyncio.run(forever())
        os._exit(0)
    return int(os.read(ours, 16)), pid


class Client:
    """One kept connection."""

    def __init__(self, fleet):
        self.fleet, self.reader, self.writer = fleet, None, None

    async def send(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.fleet.port)
        self.writer.write(
            f"{method} /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.fleet.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        length = next(int(h.split(":")[1]) for h in head if h.lower().startswith("content-length:"))
        return status, await self.reader.readexactly(length)


async def request_all(fleet, n):
    """Every request at once over `AT_ONCE` connections: ids that were accepted, statuses, and how long each answer took."""
    accepted, statuses, took = [], {}, []
    todo = iter(range(n))

    async def one():
        client = Client(fleet)
        for i in todo:
            project, environment = i % PROJECTS, i // PROJECTS % ENVIRONMENTS
            began = time.perf_counter()
            status, text = await asyncio.wait_for(
                client.send("POST", f"/projects/p{project:03}/deployments", {"environment": f"e{environment}", "version": "1.0.0"}), 120)
            took.append(time.perf_counter() - began)
            statuses[status] = statuses.get(status, 0) + 1
            if status < 300:
                accepted.append(json.loads(text)["new_deployment"])
            elif status not in (429, 503):
                raise RuntimeError(f"a request was answered with {status}: {text[:300]}")

    await asyncio.gather(*(one() for _ in range(min(AT_ONCE, n))))
    return accepted, statuses, took


class Watch(threading.Thread):
    """Asks as a person at the console would, and notes the memory, until told to stop."""

    def __init__(self, fleet):
        super().__init__(daemon=True)
        self.fleet, self.took, self.going = fleet, [], True
        self.peak = (0.0, 0.0)
        self.start()

    def run(self):
        async def ask():
            client, paths = Client(self.fleet), ["/deployments?limit=50", "/me", "/deployments?project=p007&limit=20", "/queue"]
            i = 0
            while self.going:
                began = time.perf_counter()
                status, text = await client.send("GET", paths[i % len(paths)])
                self.took.append((time.perf_counter() - began, paths[i % len(paths)]))
                if status != 200:
                    raise RuntimeError(f"{paths[i % len(paths)]}: {status} {text[:200]}")
                if i % 20 == 0:
                    now = self.fleet.resident()
                    self.peak = tuple(max(a, b) for a, b in zip(self.peak, now))
                i += 1
                await asyncio.sleep(0.02)
        asyncio.run(ask())


def everything(fleet):
    """Id and state of every deployment there is."""
    states, cursor = {}, ""
    while True:
        page, _ = fleet.call("GET", f"/deployments?limit=500{cursor}")
        for d in page["items"]:
            states[d["id"]] = d["state"]
        if not page.get("next"):
            return states
        cursor = f"&cursor={page['next']}"


def open_count(fleet):
    """Deployments that have not ended, as the queue and the pages of unfinished states tell."""
    total = 0
    for state in ("scheduled", "queued", "running", "paused", "aborting"):
        page, _ = fleet.call("GET", f"/deployments?state={state}&limit=1")
        total += len(page["items"])
    return total


def main():
    bin_dir, nats = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
    heading(f"{n} deployments requested at once over {PROJECTS} projects with {ENVIRONMENTS} environments each", bin_dir)
    port, server = serve()
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        fleet = None
        try:
            fleet = fleets.Fleet(bin_dir, nats, pathlib.Path(work) / "state", 0, free_port(), free_port(),
                                 api__rate_per_s=1e6, api__rate_burst=1e6,
                                 executor__allow_private_addresses="127.0.0.0/8")
            for first in range(0, PROJECTS, 10):
                fleet.apply("".join(catalog(f"http://127.0.0.1:{port}/", range(first, first + 10))).removeprefix("---\n"))
            for p in range(PROJECTS):
                fleet.artifact(f"p{p:03}", "1.0.0")
            base = fleet.resident()
            watch = Watch(fleet)
            used, began = fleet.used(), time.time()
            accepted, statuses, took = asyncio.run(request_all(fleet, n))
            answered = time.time() - began
            until = time.time() + DRAIN_S
            # What was accepted and is not decided yet has no row.
            while open_count(fleet) or len(everything(fleet)) < len(accepted):
                if time.time() > until:
                    raise RuntimeError(f"not drained within {DRAIN_S} s")
                time.sleep(0.5)
            drained = time.time() - began
            watch.going = False
            watch.join(30)
            used = fleet.used() - used
            states = everything(fleet)
            lost = [d for d in accepted if d not in states]
            counts = {}
            for s in states.values():
                counts[s] = counts.get(s, 0) + 1
            print(f"  answers: {', '.join(f'{k}: {v}' for k, v in sorted(statuses.items()))}; all answered after {answered:.1f} s "
                  f"({n / answered:,.0f}/s), p50 {share(took, 0.5):.2f} s, p99 {share(took, 0.99):.2f} s")
            print(f"  drained after {drained:.1f} s ({len(accepted) / drained:,.0f}/s): {counts}; {used * 1000 / max(1, len(accepted)):.1f} ms of CPU each")
            print(f"  memory MiB, control plane and broker: {base[0]:.0f} + {base[1]:.0f} before, {watch.peak[0]:.0f} + {watch.peak[1]:.0f} at most")
            slow = sorted(watch.took)[-3:]
            print("  slowest reads: " + ", ".join(f"{s:.2f} s {p}" for s, p in reversed(slow)))
            judge("accepted requests that are not there", len(lost), "", 0)
            judge("accepted requests that did not succeed", sum(states.get(d) != "succeeded" for d in accepted), "", 0)
            judge("requests refused before they were accepted", n - len(accepted), "", 0)
            judge("p99 of reads meanwhile", share([s for s, _ in watch.took], 0.99), "s", 1)
            judge("memory of control plane and broker at most", sum(watch.peak), "MiB", 1536)
        finally:
            if fleet:
                fleet.stop()
            os.kill(server, 15)
            os.waitpid(server, 0)


main()
end()
