//! A child server that cannot outlive the test process, whatever ends it.
//!
//! A tiny shell holds the server and reads from a pipe whose other end only the test process has. The pipe breaks when
//! the test process ends, even by SIGKILL, and the shell then stops the server and removes its directory. (The kernel's
//! parent-death signal will not do: it fires when the *thread* that started the child ends, and each test is a thread.)

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

const SCRIPT: &str = r#"
log=$1 clean=$2 signal=$3
shift 3
"$@" </dev/null >>"$log" 2>&1 &
pid=$!
echo $pid
read -r line
if [ "$line" = kill ]; then kill -KILL $pid; else kill -"$signal" $pid; fi
wait $pid
[ -z "$line" ] && [ -n "$clean" ] && rm -rf "$clean"
exit 0
"#;

/// Whose name a server runs under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) args: Vec<&'a OsStr>,
    pub(crate) log: PathBuf,
    /// Working directory.
    pub(crate) dir: &'a Path,
    /// Removed when the test process has ended.
    pub(crate) clean: Option<&'a Path>,
    /// The signal that ends the server in order.
    pub(crate) signal: &'static str,
    pub(crate) user: Option<User>,
}

/// A running child. Dropping it ends the child and waits for that.
#[derive(Debug)]
pub struct Supervised {
    shell: Child,
    stdin: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
}

impl Supervised {
    /// Starts `program` with its output in `log`; it gets SIGTERM when the test process ends.
    pub fn start<S: AsRef<OsStr>>(program: &Path, args: &[S], log: &Path) -> Supervised {
        Supervised::launch(Start {
            program,
            args: args.iter().map(AsRef::as_ref).collect(),
            log: log.into(),
            dir: Path::new("/"),
            clean: None,
            signal: "TERM",
            user: None,
        })
    }

    pub(crate) fn launch(s: Start<'_>) -> Supervised {
        let mut c = Command::new("/bin/sh");
        // A group of its own: Ctrl-C goes to the tests, and the broken pipe tells us.
        c.args(["-c", SCRIPT, "sh"]).arg(&s.log).arg(s.clean.unwrap_or(Path::new(""))).arg(s.signal);
        c.arg(s.program).args(&s.args).current_dir(s.dir).process_group(0);
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(user) = s.user {
            c.gid(user.gid).uid(user.uid);
        }
        let mut shell = c.spawn().unwrap_or_else(|e| panic!("cannot start /bin/sh for {}: {e}", s.program.display()));
        let mut line = String::new();
        if let Some(out) = shell.stdout.take() {
            let _ = BufReader::new(out).read_line(&mut line);
        }
        let pid = line.trim().parse().unwrap_or_else(|_| panic!("cannot start {}", s.program.display()));
        let stdin = shell.stdin.take();
        Supervised { shell, stdin, pid, log: s.log }
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGKILL, and returns when the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(b"kill\n");
        }
        let _ = self.shell.wait();
    }

    /// Stops in order, and returns when the process is gone.
    pub fn stop(&mut self) {
        drop(self.stdin.take());
        let _ = self.shell.wait();
    }

    /// The last lines the server wrote, for failure texts.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop();
    }
}
