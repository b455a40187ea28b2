//! A control plane of its own for one measurement: `windlass up` on SQLite, every service its own process on PostgreSQL; and
//! what it has used so far: processor time, rows, bytes.

use crate::{Fail, Kind};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use windlass_store::{Store, Tx, sql};
use windlass_testkit::{Db, Supervised, free_port, nats_server_binary, temp_dir, wait_http};

/// The kernel's unit of processor time.
const TICKS_PER_S: f64 = 100.0;
const SERVICES: [&str; 5] = ["api", "scheduler", "executor", "notifier", "auditor"];
pub(crate) struct Plane {
    pub(crate) base: String,
    pub(crate) token: String,
    pub(crate) http: reqwest::Client,
    pub(crate) store: Store,
    kind: Kind,
    processes: Vec<(&'static str, Supervised)>,
    // After the processes: they write there.
    _dir: tempfile::TempDir,
    _db: Db,
}

/// What was used from the start up to a moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) at: Instant,
    /// Processor seconds by part.
    pub(crate) cpu: BTreeMap<&'static str, f64>,
    /// Rows there are, by table of [`COUNTS`].
    pub(crate) rows: BTreeMap<&'static str, i64>,
    /// PostgreSQL: bytes of write-ahead log. SQLite: bytes the process gave to the disk (its log lines among them).
    pub(crate) written: i64,
    /// PostgreSQL: rows inserted, updated and deleted.
    pub(crate) changed: Option<i64>,
}

/// MiB of the services and of the broker: now, and the sum of the most that each process had.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) now: (f64, f64),
    pub(crate) most: (f64, f64),
}

fn settings(state: &Path, db: &Db, api: u16, nats: u16, creds: &str) -> String {
    format!(
        "state_dir = \"{}\"\n[database]\nurl = \"{}\"\n[nats]\nurls = [\"nats://127.0.0.1:{nats}\"]\n{creds}\
         [api]\nlisten = \"127.0.0.1:{api}\"\nrate_per_s = 100000.0\nrate_burst = 100000.0\n",
        state.display(),
        db.url()
    )
}

impl Plane {
    pub(crate) async fn start(kind: Kind, bin: &Path) -> Result<Plane, Fail> {
        let db = match kind {
            Kind::Sqlite => Db::sqlite(),
            Kind::Postgres => Db::postgres().await,
        };
        let dir = temp_dir();
        let state = dir.path().join("state");
        std::fs::create_dir_all(&state)?;
        let (api, nats) = (free_port(), free_port());
        let config = state.join("windlass.toml");
        let windlass = bin.join("windlass");
        let text = |p: &Path| p.display().to_string();
        let mut processes = Vec::new();
        match kind {
            Kind::Sqlite => {
                std::fs::write(&config, settings(&state, &db, api, nats, ""))?;
                let nats_server = text(&nats_server_binary());
                let (api, nats) = (api.to_string(), nats.to_string());
                let state = text(&state);
                let args =
                    ["up", "--state", &state, "--port", &api, "--nats-port", &nats, "--nats-server", &nats_server];
                processes.push(("up", Supervised::start(&windlass, &args, &dir.path().join("up.log"))));
            }
            Kind::Postgres => {
                let out = std::process::Command::new(&windlass)
                    .args(["init", "--nats-host", "127.0.0.1", "--nats-port", &nats.to_string(), "--nats-store"])
                    .arg(dir.path().join("nats"))
                    .args(["--database", db.url(), "--state"])
                    .arg(&state)
                    .output()?;
                if !out.status.success() {
                    return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
                }
                let at = |name: &str| find(&state, name).ok_or(format!("`windlass init` made no {name}"));
                let creds = format!(
                    "services_creds = \"{}\"\nagents_creds = \"{}\"\n",
                    at("services.creds")?.display(),
                    at("agents.creds")?.display()
                );
                std::fs::write(&config, settings(&state, &db, api, nats, &creds))?;
                let conf = text(&at("nats-server.conf")?);
                let server = nats_server_binary();
                processes.push(("nats", Supervised::start(&server, &["-c", &conf], &dir.path().join("nats.log"))));
                let config = text(&config);
                for s in SERVICES {
                    let log = dir.path().join(format!("{s}.log"));
                    processes.push((s, Supervised::start(&windlass, &[s, "--config", &config], &log)));
                }
            }
        }
        let base = format!("http://127.0.0.1:{api}");
        wait_http(&format!("{base}/readyz")).await;
        let file = state.join("admin.token");
        let token = windlass_testkit::eventually(Duration::from_secs(30), "the admin's token", async || {
            std::fs::read_to_string(&file).ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
        })
        .await;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?;
        let store = Store::open(db.url()).await?;
        Ok(Plane { base, token, http, store, kind, processes, _dir: dir, _db: db })
    }

    pub(crate) async fn apply(&self, yaml: String) -> Result<(), Fail> {
        let r = self.http.post(format!("{}/api/v1/apply", self.base)).bearer_auth(&self.token);
        let r = r.header("content-type", "application/yaml").body(yaml).send().await?;
        let ok = r.status().is_success();
        if ok { Ok(()) } else { Err(r.text().await?.into()) }
    }

    pub(crate) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value, Fail> {
        let r =
            self.http.post(format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token).json(body).send().await?;
        let status = r.status();
        let text = r.text().await?;
        if status.is_success() {
            Ok(serde_json::from_str(&text)?)
        } else {
            Err(format!("{path}: {status} {text}").into())
        }
    }

    /// The state of a deployment, read from its row: what asks often must cost next to nothing.
    pub(crate) async fn state(&self, id: uuid::Uuid) -> Result<String, Fail> {
        let mut c = self.store.read().await?;
        let row: Option<(String,)> =
            sql("SELECT state FROM deployments WHERE id = $1").bind(id).fetch_optional(&mut c).await?;
        Ok(row.ok_or("the deployment is not there")?.0)
    }

    /// What became of the tasks: how many are in each state, and one of them.
    pub(crate) async fn tasks(&self, id: uuid::Uuid) -> Result<String, Fail> {
        let mut c = self.store.read().await?;
        let rows: Vec<(String, i64, String)> =
            sql("SELECT state, COUNT(*), MIN(CAST(doc AS TEXT)) FROM tasks WHERE deployment_id = $1 GROUP BY state")
                .bind(id)
                .fetch_all(&mut c)
                .await?;
        Ok(rows.into_iter().map(|(state, n, one)| format!("\n    {n} {state}, such as {one}")).collect())
    }

    pub(crate) fn memory(&self) -> Memory {
        let mut m = Memory::default();
        for (name, p) in &self.processes {
            let own = (resident(p.pid(), "VmRSS:"), resident(p.pid(), "VmHWM:"));
            let broker = *name == "nats";
            *(if broker { &mut m.now.1 } else { &mut m.now.0 }) += own.0;
            *(if broker { &mut m.most.1 } else { &mut m.most.0 }) += own.1;
            for child in below(p.pid()) {
                m.now.1 += resident(child, "VmRSS:");
                m.most.1 += resident(child, "VmHWM:");
            }
        }
        m
    }

    /// How many agents have been heard of.
    pub(crate) async fn sessions(&self) -> Result<i64, Fail> {
        let mut c = self.store.read().await?;
        number(&mut c, "SELECT count(*) FROM agent_sessions").await
    }

    pub(crate) async fn reading(&self) -> Result<Reading, Fail> {
        let mut rows = BTreeMap::new();
        let mut c = self.store.read().await?;
        for (table, query) in COUNTS {
            rows.insert(table, number(&mut c, query).await?);
        }
        let (written, changed, server) = match self.kind {
            Kind::Postgres => {
                let lsn = number(&mut c, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").await?;
                let changed =
                    "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables";
                let changed = number(&mut c, changed).await?;
                let pid = number(&mut c, "SELECT pg_backend_pid()::bigint").await?;
                (lsn, Some(changed), u32::try_from(pid).ok().and_then(parent))
            }
            Kind::Sqlite => (self.processes.iter().map(|(_, p)| given_to_disk(p.pid())).sum(), None, None),
        };
        drop(c);
        let mut cpu = BTreeMap::new();
        for (name, p) in &self.processes {
            cpu.insert(*name, cpu_s(p.pid()));
            for child in below(p.pid()) {
                *cpu.entry("nats").or_default() += cpu_s(child);
            }
        }
        if let Some(server) = server {
            let all = std::iter::once(server).chain(below(server));
            cpu.insert("postgres", all.map(cpu_s).sum());
        }
        Ok(Reading { at: Instant::now(), cpu, rows, written, changed })
    }
}

/// One number.
async fn number(c: &mut Tx, query: &'static str) -> Result<i64, Fail> {
    let row: Option<(i64,)> = sql(query).fetch_optional(c).await?;
    Ok(row.ok_or("no row")?.0)
}

/// Tables whose growth is shown.
const COUNTS: [(&str, &str); 7] = [
    ("tasks", "SELECT count(*) FROM tasks"),
    ("events", "SELECT count(*) FROM events"),
    ("event_queue", "SELECT count(*) FROM event_queue"),
    ("log_chunks", "SELECT count(*) FROM log_chunks"),
    ("audit_leaves", "SELECT count(*) FROM audit_leaves"),
    ("works", "SELECT count(*) FROM works"),
    ("plans", "SELECT count(*) FROM plans"),
];

fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(')')?.1;
    Some(rest.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect())
}

/// Processor seconds of a process and of its children that have ended.
fn cpu_s(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |f| f.iter().skip(11).take(4).sum::<u64>() as f64 / TICKS_PER_S)
}

/// MiB, by a line of `/proc/<pid>/status`.
fn resident(pid: u32, line: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().find_map(|l| l.strip_prefix(line)?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid).and_then(|f| u32::try_from(*f.get(1)?).ok())
}

/// All processes below one.
fn below(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for e in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(p) = e.file_name().to_str().and_then(|n| n.parse().ok())
            && let Some(of) = parent(p)
        {
            children.entry(of).or_default().push(p);
        }
    }
    let mut all = children.get(&pid).cloned().unwrap_or_default();
    let mut i = 0;
    while let Some(p) = all.get(i).copied() {
        all.extend(children.get(&p).into_iter().flatten());
        i += 1;
    }
    all
}

fn given_to_disk(pid: u32) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut open = vec![dir.to_path_buf()];
    while let Some(d) = open.pop() {
        for e in std::fs::read_dir(&d).into_iter().flatten().flatten() {
            if e.file_name() == name {
                return Some(e.path());
            }
            if e.path().is_dir() {
                open.push(e.path());
            }
        }
    }
    None
}
