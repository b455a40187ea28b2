//! Starting runners and hearing from them.

use super::{Agent, AgentError, Event, io_error};
use crate::{
    secrets,
    taskdir::{RunSpec, TaskDir},
};
use std::{
    fs::OpenOptions,
    io,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{net::unix::pipe, time::Instant};
use windlass_domain::{ids::TaskId, secret::Secrets};

/// One wake-up for all the doorbells within this time: what a short task has to say goes together, and the last of it with the
/// result. Each frame costs the executor a signature, a message and a turn.
const TOGETHER: Duration = Duration::from_millis(20);
/// Written into the doorbell when the runner is gone.
const END: u8 = 2;

impl Agent {
    /// Waits for the doorbell and, on a thread, for the lock that the runner holds as long as it lives.
    pub(super) fn watch_runner(&mut self, task: TaskId, child: Option<Child>) -> Result<(), AgentError> {
        let dir = TaskDir::of(&self.state, task);
        let bell = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(dir.doorbell())
            .map_err(io_error("open the doorbell of", dir.path()))?;
        let events = self.events.clone();
        self.bells.spawn(async move {
            let mut buf = [0; 4096];
            // Set by the first doorbell that nobody was told of.
            let mut tell: Option<Instant> = None;
            while !events.is_closed() {
                tokio::select! {
                    ready = bell.readable() => match ready.and_then(|()| bell.try_read(&mut buf)) {
                        Ok(n) if n == 0 || buf[..n].contains(&END) => return,
                        Ok(_) => tell = tell.or(Some(Instant::now() + TOGETHER)),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    },
                    () = tokio::time::sleep_until(tell.unwrap_or_else(Instant::now)), if tell.is_some() => {
                        tell = None;
                        if events.send(Event::Bell(task)).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let events = self.events.clone();
        let thread = std::thread::Builder::new().name("runner-watch".into()).stack_size(64 * 1024);
        let body = move || {
            if let Some(mut c) = child {
                let _ = c.wait();
            }
            if let Err(e) = dir.wait_unlocked() {
                tracing::error!(%task, error = %e, "cannot wait for the runner's lock");
            }
            let _ = events.send(Event::Ended(task));
            // Ends the doorbell's reader.
            if let Ok(mut f) = OpenOptions::new().read(true).write(true).open(dir.doorbell()) {
                let _ = io::Write::write(&mut f, &[END]);
            }
        };
        thread.spawn(body).map_err(io_error("watch the runner of", &self.state))?;
        Ok(())
    }
}

/// The runner is this very program, also when its file was replaced meanwhile.
pub(super) fn spawn(dir: &TaskDir, spec: &RunSpec, secrets: &Secrets) -> io::Result<Child> {
    let lock = dir.prepare(spec)?;
    let errors = OpenOptions::new().create(true).append(true).open(dir.path().join("runner.err"))?;
    let mut c = Command::new("/proc/self/exe");
    c.arg("runner").arg("--task").arg(dir.path());
    c.env_clear().current_dir("/").stdin(Stdio::from(lock)).stderr(errors);
    c.stdout(if secrets.is_empty() { Stdio::null() } else { Stdio::from(secrets::hand_over(secrets)?) });
    for name in ["HOME", "PATH", "TMPDIR"] {
        if let Some(v) = std::env::var_os(name) {
            c.env(name, v);
        }
    }
    c.spawn()
}
