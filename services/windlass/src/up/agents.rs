//! Demo agents: each a process of its own with its own state, root directory and port, enrolled through the api with a
//! one-time token like any other agent, and started again when it ends.

use super::{
    error::Error,
    process::Process,
    record::{AgentRecord, Board},
};
use crate::{cli::UpArgs, client::Api};
use futures::{TryStreamExt, stream};
use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_contracts::http::{EnrollToken, EnrollTokenNew, Host, Page};
use windlass_runtime::keys::make_private_dir;

const ENROLL: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);
/// Enrolments at once.
const PARALLEL: usize = 8;
const RESTART: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// An agent that ran this long is not in a crash loop.
const STABLE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
struct Agent {
    host: String,
    port: u16,
    dir: PathBuf,
}

impl Agent {
    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }
    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }
    fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }
    fn file_error(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = self.dir.clone();
        move |source| Error::File { action, path, source }
    }
}

/// The demo agents of one `up`.
#[derive(Debug)]
pub(crate) struct Fleet {
    agents: Vec<Agent>,
    program: PathBuf,
    tracker: TaskTracker,
}

impl Fleet {
    pub(crate) fn new(state: &Path, args: &UpArgs, program: Option<PathBuf>) -> Fleet {
        let agent = |n: u16| {
            let host = format!("demo-{n}");
            let dir = state.join("agents").join(&host);
            Agent { host, port: args.agent_ports.saturating_add(n), dir }
        };
        let agents = (1..=args.agents).filter(|_| program.is_some()).map(agent).collect();
        Fleet { agents, program: program.unwrap_or_default(), tracker: TaskTracker::new() }
    }

    pub(crate) fn tracker(&self) -> TaskTracker {
        self.tracker.clone()
    }

    /// Enrols those that are new, starts all, and waits until the control plane sees every one of them.
    pub(crate) async fn start(&self, api: &Api, stop: &CancellationToken, board: &Arc<Board>) -> Result<(), Error> {
        if self.agents.is_empty() {
            return Ok(());
        }
        super::progress(format!("starting {} demo agents", self.agents.len()));
        stream::iter(self.agents.iter().map(Ok)).try_for_each_concurrent(PARALLEL, |a| self.enroll(a, api)).await?;
        for agent in &self.agents {
            let child = self.spawn(agent, board)?;
            let (agent, board, program, stop) = (agent.clone(), Arc::clone(board), self.program.clone(), stop.clone());
            self.tracker.spawn(supervise(agent, child, program, board, stop));
        }
        self.until_connected(api).await
    }

    async fn enroll(&self, agent: &Agent, api: &Api) -> Result<(), Error> {
        for dir in [agent.state(), agent.root()] {
            make_private_dir(&dir)?;
        }
        if agent.state().join("identity.json").is_file() {
            return Ok(());
        }
        // The database may know the host from a state directory that is gone: its old agent is replaced.
        let wanted = EnrollTokenNew { host: agent.host.clone(), replace: true };
        let made: EnrollToken = api.post("/enroll-tokens", &wanted).await?;
        let mut child = Command::new(&self.program)
            .args(["enroll", "--server", api.server(), "--token-file", "-", "--state"])
            .arg(agent.state())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| Error::Spawn { program: self.program.display().to_string(), source })?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may have ended already; its own words say why.
            let _ = stdin.write_all(made.token.as_bytes()).await;
        }
        let output = tokio::time::timeout(ENROLL, child.wait_with_output())
            .await
            .map_err(|_| Error::NotReady {
                what: format!("enrolling {}", agent.host),
                seconds: ENROLL.as_secs(),
                log: agent.log(),
            })?
            .map_err(agent.file_error("watch the enrolment in"))?;
        if output.status.success() {
            return Ok(());
        }
        let detail = format!(" ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        Err(Error::Ended { what: format!("enrolling {}", agent.host), detail, log: agent.log() })
    }

    fn spawn(&self, agent: &Agent, board: &Board) -> Result<Child, Error> {
        spawn(agent, &self.program, board)
    }

    async fn until_connected(&self, api: &Api) -> Result<(), Error> {
        let until = Instant::now() + CONNECT;
        loop {
            let mut missing: BTreeSet<&str> = self.agents.iter().map(|a| a.host.as_str()).collect();
            let mut cursor = String::new();
            loop {
                let page: Page<Host> = api.get(&format!("/hosts?limit=200{cursor}")).await?;
                for host in page.items.iter().filter(|h| h.state == "connected") {
                    missing.remove(host.name.as_str());
                }
                match page.next {
                    Some(next) => cursor = format!("&cursor={}", crate::client::encode(&next)),
                    None => break,
                }
            }
            let Some(first) = missing.first() else { return Ok(()) };
            if Instant::now() >= until {
                let what = format!("{} of {} agents, {first} among them,", missing.len(), self.agents.len());
                let log = self.agents.iter().find(|a| a.host == *first).map(Agent::log).unwrap_or_default();
                return Err(Error::NotReady { what, seconds: CONNECT.as_secs(), log });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn spawn(agent: &Agent, program: &Path, board: &Board) -> Result<Child, Error> {
    let log =
        OpenOptions::new().create(true).append(true).open(agent.log()).map_err(agent.file_error("write the log in"))?;
    let second = log.try_clone().map_err(agent.file_error("write the log in"))?;
    let child = Command::new(program)
        .arg("run")
        .arg("--state")
        .arg(agent.state())
        .arg("--root")
        .arg(agent.root())
        .arg("--env")
        .arg(format!("PORT={}", agent.port))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second)
        // Ctrl-C is for `up`, which stops its agents in order.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;
    if let Some(process) = child.id().and_then(|pid| Process::of(format!("agent {}", agent.host), pid)) {
        board.agent(AgentRecord { host: agent.host.clone(), port: agent.port, root: agent.root() }, process);
    }
    Ok(child)
}

async fn supervise(agent: Agent, mut child: Child, program: PathBuf, board: Arc<Board>, stop: CancellationToken) {
    let mut pause = RESTART.0;
    loop {
        let since = Instant::now();
        tokio::select! {
            () = stop.cancelled() => break,
            status = child.wait() => tracing::warn!(host = agent.host, ?status, "a demo agent ended; starting it again"),
        }
        if since.elapsed() > STABLE {
            pause = RESTART.0;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RESTART.1);
        match spawn(&agent, &program, &board) {
            Ok(again) => child = again,
            Err(error) => {
                tracing::error!(
                    host = agent.host,
                    error = crate::client::chain(&error),
                    "a demo agent cannot be started again"
                );
                return;
            }
        }
    }
    if let Some(process) = child.id().and_then(|pid| Process::of("agent", pid)) {
        process.terminate();
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}
