//! Fresh databases of both kinds. One PostgreSQL cluster serves the whole test process; it starts when first asked for.

use crate::{
    free_port,
    process::{Start, Supervised, User},
    temp_dir,
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use std::{
    ffi::OsStr,
    fmt,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

const ROLES: &str = include_str!("../../../ops/postgres/roles.sql");

/// An empty database of the test's own.
#[derive(Debug)]
pub struct Db {
    url: String,
    kind: &'static str,
    _dir: Option<tempfile::TempDir>,
    /// The server and name to drop: set for a server that outlives us.
    drop: Option<(String, String)>,
}

impl Db {
    /// An SQLite file in a directory that goes when the value does.
    pub fn sqlite() -> Db {
        let dir = temp_dir();
        let url = format!("sqlite://{}", dir.path().join("windlass.db").display());
        Db { url, kind: "sqlite", _dir: Some(dir), drop: None }
    }

    /// A database in the process's PostgreSQL cluster, or on the server that `WINDLASS_TEST_POSTGRES` names
    /// (`postgres://user:password@host:port`, allowed to create databases).
    pub async fn postgres() -> Db {
        let external = std::env::var("WINDLASS_TEST_POSTGRES").ok();
        let server = match &external {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => tokio::task::spawn_blocking(cluster).await.unwrap_or_else(|e| panic!("{e}")),
        };
        let name = format!("windlass_test_{}", uuid::Uuid::now_v7().simple());
        let mut c = PgConnection::connect(&format!("{server}/postgres"))
            .await
            .unwrap_or_else(|e| panic!("cannot reach the test PostgreSQL at {server}: {e}"));
        c.execute(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .await
            .unwrap_or_else(|e| panic!("cannot create a database at {server}: {e}"));
        let _ = c.close().await;
        let url = format!("{server}/{name}");
        Db { url, kind: "postgres", _dir: None, drop: external.map(|_| (server, name)) }
    }

    /// What the store opens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a service opens: on PostgreSQL with the rights of its role (`ops/postgres/roles.sql`) and no others. The schema must be
    /// there already.
    pub async fn url_of(&self, service: &str) -> String {
        if self.kind == "sqlite" {
            return self.url.clone();
        }
        // Roles belong to the server, not to the database.
        static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _turn = ONE.lock().await;
        let mut c = PgConnection::connect(&self.url).await.expect("connects");
        sqlx::raw_sql(ROLES).execute(&mut c).await.expect("the roles are given their rights");
        let _ = c.close().await;
        format!("{}?options[role]=windlass_{service}", self.url)
    }

    /// `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

/// For failure texts.
impl fmt::Display for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        let Some((server, name)) = self.drop.take() else { return };
        // A thread with a runtime of its own: this may be called within one.
        let gone = std::thread::spawn(move || {
            let Ok(rt) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            rt.block_on(async {
                if let Ok(mut c) = PgConnection::connect(&format!("{server}/postgres")).await {
                    let _ = c.execute(AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))).await;
                }
            });
        });
        let _ = gone.join();
    }
}

/// One fresh database of each kind: `for db in databases().await { … }` runs a test on both.
pub async fn databases() -> Vec<Db> {
    vec![Db::sqlite(), Db::postgres().await]
}

/// The server part of the URL of this process's cluster. Never dropped: its supervisor ends it with the process.
fn cluster() -> String {
    static CLUSTER: OnceLock<(String, Mutex<Supervised>)> = OnceLock::new();
    CLUSTER
        .get_or_init(|| {
            let bin = binaries();
            (0..3)
                .find_map(|_| start(&bin))
                .map(|(port, child)| (format!("postgres://windlass@127.0.0.1:{port}"), Mutex::new(child)))
                .unwrap_or_else(|| panic!("three free ports in a row were taken before PostgreSQL could listen"))
        })
        .0
        .clone()
}

/// The newest installed server's programs.
fn binaries() -> PathBuf {
    let version = |p: &PathBuf| p.file_name().and_then(OsStr::to_str).and_then(|v| v.parse::<u32>().ok());
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|d| d.flatten().map(|e| e.path()).filter(|p| p.join("bin/initdb").is_file()).collect())
        .unwrap_or_default();
    found.sort_by_key(version);
    found.pop().map(|p| p.join("bin")).unwrap_or_else(|| {
        panic!(
            "no PostgreSQL in /usr/lib/postgresql: run ./ops/test, which installs it, or `apt-get install postgresql`, \
             or set WINDLASS_TEST_POSTGRES to the URL of a server"
        )
    })
}

fn start(bin: &Path) -> Option<(u16, Supervised)> {
    let user = unprivileged();
    let dir = tempfile::Builder::new()
        .prefix("windlass-pg-")
        .tempdir_in(public_temp())
        .unwrap_or_else(|e| panic!("cannot make a directory for PostgreSQL: {e}"));
    if let Some(u) = user {
        std::os::unix::fs::chown(dir.path(), Some(u.uid), Some(u.gid))
            .unwrap_or_else(|e| panic!("cannot give {} to uid {}: {e}", dir.path().display(), u.uid));
    }
    let data = dir.path().join("data");
    let mut init = Command::new(bin.join("initdb"));
    init.args(["-U", "windlass", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
    init.current_dir(dir.path()).env("LC_ALL", "C");
    if let Some(u) = user {
        init.gid(u.gid).uid(u.uid);
    }
    let out = init.output().unwrap_or_else(|e| panic!("cannot run initdb in {}: {e}", bin.display()));
    if !out.status.success() {
        panic!("initdb failed: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
    let port = free_port();
    let settings = format!(
        "listen_addresses='127.0.0.1'\nport={port}\nunix_socket_directories=''\nmax_connections=300\n\
         shared_buffers=64MB\nwal_level=minimal\nmax_wal_senders=0\nautovacuum_naptime=10s\n"
    );
    let conf = data.join("postgresql.auto.conf");
    std::fs::write(&conf, settings).unwrap_or_else(|e| panic!("cannot write {}: {e}", conf.display()));
    let child = Supervised::launch(Start {
        program: &bin.join("postgres"),
        args: vec![OsStr::new("-D"), data.as_os_str()],
        log: dir.path().join("log"),
        dir: dir.path(),
        clean: Some(dir.path()),
        // Immediate shutdown: nobody needs the data any more.
        signal: "QUIT",
        user,
    });
    let ready = data.join("postmaster.pid");
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        if std::fs::read_to_string(&ready).is_ok_and(|t| t.lines().nth(7).is_some_and(|l| l.trim() == "ready")) {
            // From here on the supervisor removes the directory.
            let _ = dir.keep();
            return Some((port, child));
        }
        if child.log_tail().contains("Address already in use") {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("PostgreSQL is not ready within 30 s:\n{}", child.log_tail());
}

/// PostgreSQL refuses to run as root; then it runs as `postgres`, or `nobody`.
fn unprivileged() -> Option<User> {
    let me = std::fs::metadata("/proc/self").map(|m| m.uid()).unwrap_or(0);
    if me != 0 {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        passwd.lines().find_map(|l| {
            let f: Vec<&str> = l.split(':').collect();
            (f.first() == Some(&name))
                .then(|| Some(User { uid: f.get(2)?.parse().ok()?, gid: f.get(3)?.parse().ok()? }))?
        })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    Some(user.unwrap_or_else(|| panic!("tests run as root and neither user `postgres` nor `nobody` exists")))
}

/// A temporary directory that another user can reach into.
fn public_temp() -> PathBuf {
    let open = |p: &Path| p.ancestors().all(|d| d.metadata().is_ok_and(|m| m.is_dir() && m.mode() & 0o001 != 0));
    [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into()]
        .into_iter()
        .find(|p| open(p))
        .unwrap_or_else(|| panic!("no temporary directory that other users can enter"))
}
