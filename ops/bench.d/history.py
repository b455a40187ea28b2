"""What a million past deployments change: the time of each list and of a release, against the same database with ten in each
environment, so that the pages are as long.

Usage: history.py BIN-DIR NATS-SERVER [N]; started by `ops/bench history`. The past is copies of one real deployment's rows, spread
over projects, environments and three years, put into the SQLite file while nothing runs.
"""
import os
import pathlib
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid

import fleet as fleets
from parts import end, free_port, heading, judge

PROJECTS, ENVIRONMENTS = 200, 5
READS = 40
FEW = PROJECTS * ENVIRONMENTS * 10
PAGE = 10
RELEASES = 20
ENDS = ["succeeded"] * 95 + ["failed"] * 4 + ["aborted"]
DAYS = 3 * 365


def catalog(projects):
    for p in projects:
        yield (f"---\nkind: project\nname: p{p:03}\ngroup: bench\n---\nkind: flow\nproject: p{p:03}\nflow: one\non_failure: stop\n"
               "steps:\n  - { id: rollout, waves: \"100%\", steps: [ { id: only, uses: script, with: { run: \"true\" } } ] }\n")
        for e in range(ENVIRONMENTS):
            yield f"---\nkind: environment\nproject: p{p:03}\nname: e{e}\nselector: fleet=bench\nflow: one\n"


# Tables that keep rows of a past deployment, and the columns that hold ids of rows that are copied along with it.
COPIED = {
    "artifacts": ["id"], "releases": ["id", "artifact_id"], "deployments": ["id", "release_id"], "plans": ["deployment_id"],
    "works": ["id", "deployment_id"], "work_claims": ["work_id", "deployment_id"], "tasks": ["id", "work_id", "deployment_id"],
    "commands": ["id", "deployment_id"], "command_outcomes": ["command_id", "deployment_id"], "log_heads": ["deployment_id"],
}
OF = {
    "artifacts": "id = (SELECT artifact_id FROM releases WHERE id = :release)", "releases": "id = :release", "deployments": "id = :id",
    "command_outcomes": "deployment_id = :id", "commands": "deployment_id = :id", "works": "deployment_id = :id",
}


def insert(path, id_, first, n):
    """Copies of what the deployment left, from the number `first` up to `n`; the seconds it took."""
    db = sqlite3.connect(path, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.create_function("raw", 1, bytes.fromhex, deterministic=True)
    for pragma in ("synchronous = OFF", "cache_size = -800000", "temp_store = MEMORY"):
        db.execute(f"PRAGMA {pragma}")
    release = db.execute("SELECT release_id FROM deployments WHERE id = ?", (id_.bytes,)).fetchone()[0]
    rows = {}
    for table in COPIED:
        where = OF.get(table, "deployment_id = :id")
        rows[table] = [dict(r) for r in db.execute(f"SELECT * FROM {table} WHERE {where}", {"id": id_.bytes, "release": release})]
    rows["events"] = [dict(r) for r in db.execute(
        "SELECT * FROM events WHERE aggregate = 'deployment' AND aggregate_id = ? ORDER BY agg_seq LIMIT 2", (str(id_),))]
    rows["event_heads"] = [dict(r) for r in db.execute("SELECT * FROM event_heads WHERE aggregate_id = ?", (str(id_),))]
    ids = [r[c] for table, columns in COPIED.items() for r in rows[table] for c in columns if isinstance(r[c], bytes)]
    ids = list(dict.fromkeys(ids + [r["id"] for r in rows["events"]]))
    day = rows["deployments"][0]["created_at"][:10]
    began = time.time()
    db.execute("BEGIN")
    # What each copy is: the beginning of its ids (time and number; the last two digits tell the rows apart), place, day, end.
    db.execute("CREATE TEMP TABLE past (head TEXT, dashed TEXT, project TEXT, environment TEXT, day TEXT, version TEXT, end TEXT)")
    now = time.time()

    def past():
        for i in range(first, n):
            at = now - DAYS * 86400 * (n - i) / n - 86400
            stamp = f"{int(at * 1000):012x}"
            digits = f"{stamp}7{i & 0xfff:03x}8{i >> 12 & 0xfff:03x}{i:010x}"
            yield (digits, f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}", f"p{i % PROJECTS:03}",
                   f"e{i // PROJECTS % ENVIRONMENTS}", time.strftime("%Y-%m-%d", time.gmtime(at)), f"0.{i}.0", ENDS[i % 100])

    db.executemany("INSERT INTO past VALUES (?, ?, ?, ?, ?, ?, ?)", past())
    for table, all_rows in rows.items():
        for row in all_rows:
            columns, values = [], []
            for column, v in row.items():
                if isinstance(v, bytes) and v in ids:
                    columns.append(f"raw(p.head || '{ids.index(v):02x}')")
                elif column == "environment":
                    columns.append("p.environment")
                elif table == "deployments" and column == "state":
                    columns.append("p.end")
                elif isinstance(v, str):
                    text = "?"
                    values.append(v)
                    for k, old in enumerate(ids):
                        if str(uuid.UUID(bytes=old)) in v:
                            text = f"replace({text}, '{uuid.UUID(bytes=old)}', p.dashed || '{k:02x}')"
                    for old, new in ((day, "p.day"), ("p000", "p.project"), ("1.0.0", "p.version")):
                        if old in v:
                            text = f"replace({text}, '{old}', {new})"
                    if '"environment":"e0"' in v:
                        text = f"replace({text}, '\"environment\":\"e0\"', '\"environment\":\"' || p.environment || '\"')"
                    if table == "deployments" and column == "doc":
                        text = f"replace({text}, '\"state\":\"succeeded\",\"version', '\"state\":\"' || p.end || '\",\"version')"
                    columns.append(text)
                else:
                    columns.append("?")
                    values.append(v)
            db.execute(f"INSERT INTO {table} ({', '.join(row)}) SELECT {', '.join(columns)} FROM past p", values)
    db.execute("COMMIT")
    took = time.time() - began
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    os.sync()  # what was put in is no load of the measurement
    return took


def reads(fleet, id_):
    paths = {
        "deployments": f"/deployments?limit={PAGE}", "… of a project": f"/deployments?project=p007&limit={PAGE}",
        "… of an environment": f"/deployments?project=p007&environment=e3&limit={PAGE}", "… that failed": f"/deployments?state=failed&limit={PAGE}",
        "… that run": f"/deployments?state=running&limit={PAGE}", "… of a project that failed": f"/deployments?project=p007&state=failed&limit={PAGE}",
        "… of an environment that run": f"/deployments?project=p007&environment=e3&state=running&limit={PAGE}",
        "one deployment": f"/deployments/{id_}", "its tasks": f"/deployments/{id_}/tasks", "its log": f"/deployments/{id_}/logs?limit=50",
        "artifacts of a project": f"/projects/p007/artifacts?limit={PAGE}", "queue": "/queue", "hosts": "/hosts", "bundles": "/bundles",
        "triggers": "/triggers?project=p007", "promotions": "/projects/p007/promotions", "drift": "/drift?project=p007",
        "notifications": "/notifications", "projects": "/catalog/project", "doctor": "/doctor", "diagnosis": f"/deployments/{id_}/diagnosis",
    }
    out = {}
    for what, path in paths.items():
        took = []
        for _ in range(READS):
            began = time.perf_counter()
            fleet.call("GET", path)
            took.append((time.perf_counter() - began) * 1000)
        out[what] = statistics.median(took)
    return out


def release(fleet, versions):
    took = []
    for v in versions:
        began = time.perf_counter()
        fleet.artifact("p000", v)
        id_ = fleet.request("p000", "e0", v)
        d = fleet.wait(id_, ["succeeded"], pause=0.005)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took), d["id"]


def idle(fleet, seconds=15):
    used = fleet.used()
    time.sleep(seconds)
    return (fleet.used() - used) / seconds


def main():
    bin_dir, nats = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 1_000_000
    heading(f"{n:,} past deployments against {FEW:,}, SQLite", bin_dir)
    with tempfile.TemporaryDirectory(prefix="windlass-bench-") as work:
        fleet = None
        try:
            fleet = fleets.Fleet(bin_dir, nats, pathlib.Path(work) / "state", 1, free_port(), free_port(),
                                 api__rate_per_s=1e6, api__rate_burst=1e6)
            for first in range(0, PROJECTS, 20):
                fleet.apply("".join(catalog(range(first, first + 20))).removeprefix("---\n") + fleet.hosts_yaml())
            _, past = release(fleet, ["1.0.0"])
            fleet.stop()
            insert(fleet.state / "windlass.db", uuid.UUID(past), 0, FEW)
            fleet.start()
            release(fleet, ["2.0.0"])
            empty = reads(fleet, past)
            empty_release, _ = release(fleet, [f"3.{i}.0" for i in range(RELEASES)])
            empty_idle, empty_memory = idle(fleet), fleet.resident()[0]
            fleet.stop()
            took = insert(fleet.state / "windlass.db", uuid.UUID(past), FEW, n)
            size = os.path.getsize(fleet.state / "windlass.db") / 2**30
            print(f"  {n:,} deployments with {len(COPIED) + 1} tables' rows inserted in {took:.0f} s; the file has {size:.1f} GiB")
            began = time.time()
            fleet.start()
            up = time.time() - began
            release(fleet, ["4.0.0"])
            full = reads(fleet, past)
            full_release, _ = release(fleet, [f"5.{i}.0" for i in range(RELEASES)])
            full_idle, full_memory = idle(fleet), fleet.resident()[0]
            print(f"  start to ready: {up:.1f} s; cores in use while idle: {empty_idle:.3f} with few, {full_idle:.3f} with many; "
                  f"memory {empty_memory:.0f} MiB with few, {full_memory:.0f} MiB with many")
            print(f"  {'read':<30} {'few ms':>9} {'many ms':>9} {'ratio':>6}")
            worst = (0, "")
            for what, ms in full.items():
                # What takes less than a millisecond anyway is not slow at half as much again.
                ratio = ms / empty[what]
                felt = ratio if ms - empty[what] > 0.5 else min(ratio, 1.5)
                worst = max(worst, (felt, what))
                print(f"  {what:<30} {empty[what]:>9.2f} {ms:>9.2f} {ratio:>6.2f}")
            print(f"  {'a release':<30} {empty_release:>9.1f} {full_release:>9.1f} {full_release / empty_release:>6.2f}")
            judge(f"slowest list against few ({worst[1]})", worst[0], "x", 1.5)
            judge("a release against few", full_release / empty_release, "x", 1.5)
        finally:
            if fleet:
                fleet.stop()


main()
end()
