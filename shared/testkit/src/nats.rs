//! A real nats-server of the test's own.

use crate::{
    free_port,
    process::{Start, Supervised},
    temp_dir, workspace,
};
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::io::AsyncReadExt;

/// A nats-server with JetStream; ends with its value.
#[derive(Debug)]
pub struct Nats {
    // Before `dir`: the server ends before its directory goes.
    child: Option<Supervised>,
    port: u16,
    config: PathBuf,
    dir: tempfile::TempDir,
}

/// Where the nats-server binary is: `WINDLASS_NATS_SERVER`, the checkout's tools, then PATH.
pub fn nats_server_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("WINDLASS_NATS_SERVER") {
        return path.into();
    }
    let ours = workspace().join(".windlass/tools/bin/nats-server");
    if ours.is_file() {
        return ours;
    }
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|d| d.join("nats-server"))
        .find(|p| p.is_file())
        .unwrap_or_else(|| {
            panic!("no nats-server: run ./ops/test, which installs one, or set WINDLASS_NATS_SERVER to its path")
        })
}

/// Starts an open nats-server (no accounts) on a free loopback port.
pub async fn nats() -> Nats {
    nats_with("").await
}

/// Starts a nats-server with `extra` lines in its configuration file (operator, resolver, accounts …). The file already
/// holds `listen`, `jetstream` with its store directory, and nothing else.
pub async fn nats_with(extra: &str) -> Nats {
    let dir = temp_dir();
    for _ in 0..3 {
        let port = free_port();
        let config = dir.path().join("nats.conf");
        let store = dir.path().join("store");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: test_{port}\njetstream {{ store_dir: {:?} }}\n{extra}\n",
            store.display().to_string()
        );
        std::fs::write(&config, text).unwrap_or_else(|e| panic!("cannot write {}: {e}", config.display()));
        let child = launch(dir.path(), &config);
        match ready(port).await {
            Ok(()) => return Nats { child: Some(child), port, config, dir },
            // Somebody else may have taken the port in between; anything else is final.
            Err(_) if child.log_tail().contains("address already in use") => continue,
            Err(e) => panic!("nats-server is not ready: {e}\n{}", child.log_tail()),
        }
    }
    panic!("three free ports in a row were taken by others before nats-server could listen");
}

fn launch(dir: &Path, config: &Path) -> Supervised {
    Supervised::launch(Start {
        program: &nats_server_binary(),
        args: vec![OsStr::new("-c"), config.as_os_str()],
        log: dir.join("log"),
        dir,
        clean: Some(dir),
        signal: "TERM",
        user: None,
    })
}

/// The server greets with INFO when it serves.
async fn ready(port: u16) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(10);
    let mut last = String::new();
    while Instant::now() < until {
        let greet = async {
            let mut c = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            let mut b = [0; 5];
            c.read_exact(&mut b).await.map(|_| b)
        };
        match tokio::time::timeout(Duration::from_secs(2), greet).await {
            Ok(Ok(b)) if &b == b"INFO " => return Ok(()),
            Ok(Ok(b)) => last = format!("greeted with {b:?}"),
            Ok(Err(e)) => last = e.to_string(),
            Err(_) => last = "no greeting".into(),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(last)
}

impl Nats {
    /// `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port; every start uses the same.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory with `nats.conf`, `store` and `log`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// SIGKILL. [`Nats::restart`] brings it back.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill();
        }
    }

    /// SIGKILL if it runs, then starts it again on the same port and store.
    pub async fn restart(&mut self) {
        self.kill();
        let child = launch(self.dir.path(), &self.config);
        if let Err(e) = ready(self.port).await {
            panic!("nats-server is not ready again on port {}: {e}\n{}", self.port, child.log_tail());
        }
        self.child = Some(child);
    }

    /// SIGKILL, everything JetStream stored is deleted, and a start on the same port.
    pub async fn wipe_store(&mut self) {
        self.kill();
        match std::fs::remove_dir_all(self.dir.path().join("store")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("cannot wipe the broker's store: {e}"),
            _ => {}
        }
        self.restart().await;
    }
}
