//! Programs that the executor runs for central steps: in a private directory, with an environment of their own, as a process
//! group that ends with the step, with the executor, or with the time that is left, whichever comes first.
//!
//! A small shell leads the group. It hands the first line of its input to the program, and ends the whole group when the
//! input ends: a killed executor leaves nothing running. It ends the group as well when the program is through, so what the
//! program left behind goes too (but for what made itself a session of its own).

use crate::steplog::{StepLog, Stream};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    ffi::OsString,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

/// Largest answer of a program.
pub(crate) const MAX_OUTPUT: usize = 1024 * 1024;
/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);
const MAX_LINE: u64 = 16 * 1024;
const LEADER: &str = r#"
exit_file=$1; shift
trap : TERM
exec 3<&0 </dev/null
IFS= read -r request <&3
printf '%s\n' "$request" | "$@" 3<&- &
child=$!
{ cat <&3; kill -KILL 0; } >/dev/null 2>&1 &
exec 3<&-
while :; do
  wait "$child"; code=$?
  kill -0 "$child" 2>/dev/null || break
done
printf '%s\n' "$code" >"$exit_file"
kill -KILL 0
"#;

/// A directory for one run that only the executor's account can read; it is gone with this value.
#[derive(Debug)]
pub(crate) struct PrivateDir(PathBuf);

impl PrivateDir {
    pub(crate) fn new(state_dir: &Path) -> std::io::Result<PrivateDir> {
        let parent = state_dir.join("runs");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent)?;
        let dir = parent.join(uuid::Uuid::now_v7().to_string());
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(PrivateDir(std::path::absolute(dir)?))
    }
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    /// Writes a file that only its owner may read.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> std::io::Result<PathBuf> {
        use std::{io::Write, os::unix::fs::OpenOptionsExt};
        let path = self.0.join(name);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content)?;
        Ok(path)
    }
    /// Puts a copy of a program here. Another process copies it: a descriptor that this one has open for writing could be
    /// inherited by a child of another thread, and the copy could not be run then.
    pub(crate) async fn copy(&self, from: &Path, name: &str) -> std::io::Result<PathBuf> {
        let to = self.0.join(name);
        let done =
            Command::new("cp").arg("--").args([from, &to]).kill_on_drop(true).stdin(Stdio::null()).output().await?;
        if !done.status.success() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
        }
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o500))?;
        Ok(to)
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(dir = %self.0.display(), error = &error as &dyn std::error::Error, "a private directory stays behind");
        }
    }
}

#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Name on the fixed PATH, or a path.
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// Working directory, home and place for temporary files.
    pub(crate) dir: &'a PrivateDir,
    /// One line, given to it on standard input.
    pub(crate) input: String,
    /// What it writes to standard output goes to the log instead of being its answer.
    pub(crate) log_output: bool,
}

#[derive(Debug)]
pub(crate) enum End {
    Exited(i32),
    /// It, or the whole group, was killed.
    Killed,
    /// By `halt`.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) end: End,
    /// At most [`MAX_OUTPUT`] bytes and one.
    pub(crate) output: Vec<u8>,
}

impl Program<'_> {
    /// Runs it to its end. When `halt` is ready, the group gets TERM, and KILL after a grace.
    pub(crate) async fn run(self, log: &StepLog, halt: impl Future<Output = ()>) -> std::io::Result<Ran> {
        let exit_file = self.dir.path().join("exit");
        let _ = std::fs::remove_file(&exit_file);
        let dir = self.dir.path();
        let mut child = Command::new("/bin/sh")
            .args(["-c", LEADER, "sh"])
            .arg(&exit_file)
            .arg(&self.program)
            .args(&self.args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("HOME", dir)
            .env("TMPDIR", dir)
            .envs(self.env)
            .current_dir(dir)
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let (Some(mut input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(std::io::Error::other("the program has no pipes"));
        };
        let line = format!("{}\n", self.input.replace(['\n', '\r', '\0'], " "));
        let feed = async move {
            // A program that ends early does not read it all.
            let _ = input.write_all(line.as_bytes()).await;
            let _ = input.flush().await;
            input
        };
        let work = async {
            // The input stays open until everything else is over: its end is the end of the group.
            let read = async {
                let mut answer = Vec::new();
                if self.log_output {
                    lines(output, Stream::Out, log).await;
                } else {
                    // What failed to be read is missing in the answer, which then is none.
                    let _ = output.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut answer).await;
                }
                answer
            };
            let (held, answer, ()) = tokio::join!(feed, read, lines(errors, Stream::Err, log));
            (held, answer)
        };
        tokio::pin!(work, halt);
        let mut stopped = false;
        let done = tokio::select! {
            done = &mut work => Some(done),
            () = &mut halt => {
                stopped = true;
                signal(group, Signal::TERM);
                let graceful = tokio::time::timeout(GRACE, &mut work).await.ok();
                signal(group, Signal::KILL);
                graceful
            }
        };
        // Whatever still holds a pipe goes with the group.
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
        let (held, output) = done.map_or((None, Vec::new()), |(held, output)| (Some(held), output));
        drop(held);
        let code = std::fs::read_to_string(&exit_file).ok().and_then(|t| t.trim().parse().ok());
        let end = match code {
            _ if stopped => End::Stopped,
            Some(code) => End::Exited(code),
            None => End::Killed,
        };
        Ok(Ran { end, output })
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // It may be over already.
        let _ = kill_process_group(group, signal);
    }
}

async fn lines(from: impl AsyncRead + Unpin, stream: Stream, log: &StepLog) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        // In pieces, so that a line without an end takes no more memory than this.
        match (&mut from).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => log.write(stream, &line).await,
        }
    }
}
