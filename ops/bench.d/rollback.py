"""An emergency rollback of N hosts, from the click (POST rollback) to the last symlink switched, beside a plain OpenSSH fan-out
of the same relink and restart in the same run.

Usage: rollback.py BIN-DIR NATS-SERVER [N]; started by `ops/bench rollback`. Every host's result is checked.
"""
import os
import pathlib
import sys
import tempfile
import time

import fleet as fleets
from parts import busy, end, free_port, machine, median, pack, serve_files, start_ssh, verify

ROUNDS = 5
SSH_AT_ONCE = 32
EMERGENCY = """rollback:
  emergency:
    - { id: switch, uses: release.switch, with: { to: last_known_good } }
    - { id: restart, uses: service.restart, with: { command: ["./bin/restart"] } }
---
kind: policy
"""
# What a careful person would have ready for a bad night.
SCRIPT = """set -eu
root={root}
ln -sfn "releases/{version}" "$root/current.new" && mv -T "$root/current.new" "$root/current"
cd "$root/current" && ./bin/restart
"""


def switched(roots):
    """When the last of the symlinks was made."""
    return max(os.lstat(pathlib.Path(r) / "current").st_mtime for r in roots)


def restarted(roots):
    return max((pathlib.Path(r) / "shared" / "starts").stat().st_mtime for r in roots)


def ours(fleet, roots, good):
    """One emergency rollback of what was released last."""
    page, _ = fleet.call("GET", "/deployments?project=bench&environment=fleet&limit=1")
    bad = page["items"][0]["id"]
    used, control = busy(), sum(fleets.cpu(p) for p in fleet.control)
    clicked = time.time()
    answer, answered = fleet.call("POST", f"/deployments/{bad}/rollback", {"mode": "emergency", "reason": "bench"})
    back = answer["new_deployment"]
    until = time.time() + 300
    while True:
        d, _ = fleet.call("GET", f"/deployments/{back}")
        if d["ended_at"]:
            break
        if time.time() > until:
            raise RuntimeError(f"the rollback does not end: {d['waiting_on']}")
        time.sleep(0.05)
    if d["state"] != "succeeded":
        raise RuntimeError(f"the rollback ended {d['state']}")
    control = sum(fleets.cpu(p) for p in fleet.control) - control
    verify(roots, good)
    return {
        "answer": answered - clicked, "switched": switched(roots) - clicked, "restarted": restarted(roots) - clicked,
        "ended": fleets.parse(d["ended_at"]) - clicked, "control_cpu": control, "machine_cpu": busy() - used,
    }


def theirs(ssh, roots, good):
    used, clicked = busy(), time.time()
    _, _, cpu = ssh.fan_out({r: SCRIPT.format(root=r, version=good) for r in roots}, b"", SSH_AT_ONCE)
    ended = time.time()
    verify(roots, good)
    return {
        "answer": float("nan"), "switched": switched(roots) - clicked, "restarted": restarted(roots) - clicked,
        "ended": ended - clicked, "control_cpu": cpu, "machine_cpu": busy() - used,
    }


def show(n, who, rows):
    cells = "".join(f"{median(rows, k):>11.3f}" for k in
                    ("answer", "switched", "restarted", "ended", "control_cpu", "machine_cpu"))
    worst = max(r["switched"] for r in rows)
    print(f"{n:>5}  {who:<10}{cells}{worst:>11.3f}")
    sys.stdout.flush()


def main():
    bin_dir, nats = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 127
    print(f"machine: {machine()}")
    print(f"emergency rollback of {n} hosts (relink, restart); medians of {ROUNDS}, seconds from the click")
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        base, fleet = pathlib.Path(work), None
        ssh = start_ssh(work)
        port, server = serve_files(base)
        url, check = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port}/health"
        try:
            fleet = fleets.Fleet(bin_dir, nats, base / "state", n, free_port(), free_port(), 20000)
            fleet.prepare(check, lambda yaml: yaml.replace("---\nkind: policy\n", EMERGENCY, 1))
            mine_at = [a["root"] for a in fleet.record["agents"]]
            plain_at = [base / "ssh" / f"host-{i}" for i in range(n)]
            for r in mine_at:
                (pathlib.Path(r) / "shared").mkdir(parents=True, exist_ok=True)
            packages = {}

            def release(version):
                package, digest = packages[version]
                fleet.release(version, f"{url}/{package.name}", f"sha256:{digest}", package.stat().st_size)
                if ssh:
                    ssh.run(plain_at, package, digest, version, check, SSH_AT_ONCE)

            mine, plain, good = [], [], "1.0.0"
            packages[good] = pack(base, good)
            release(good)
            for i in range(ROUNDS):
                version = f"2.{i}.0"
                packages[version] = pack(base, version)
                release(version)
                mine.append(ours(fleet, mine_at, good))
                if ssh:
                    plain.append(theirs(ssh, plain_at, good))
            print(f"{'hosts':>5}  {'':<10}{'answer':>11}{'switched':>11}{'restarted':>11}{'ended':>11}{'ctrl CPU':>11}"
                  f"{'all CPU':>11}{'worst sw.':>11}")
            show(n, "windlass", mine)
            if plain:
                show(n, "openssh", plain)
                print(f"{n:>5}  the last symlink, windlass / openssh: {median(mine, 'switched') / median(plain, 'switched'):.2f}")
        finally:
            if fleet:
                fleet.stop()
            os.kill(server, 15)
            os.waitpid(server, 0)
            if ssh:
                ssh.stop()


main()
end()
