//! `lb.member`: lets one member of a load balancer go, or takes it back, on the load balancer's own host.
//!
//! Parameters: `kind` (`nginx` or `command`), `op` (`drain` or `attach`), `member`, `drain_timeout`, `attach_timeout`. For nginx
//! also `file`, and optional `test`, `reload` (commands), `pid` (nginx's pid file), `port`, `min_healthy` (`{count}` or
//! `{percent}`), `on_drain_timeout` (`fail` or `go_on`). For a command `run`, called with the operation and the member.
//!
//! Both operations can be done again at any time: what is as it should be stays, and a change whose reload never came (the
//! runner was killed between the two) is known by the word left in the lock file, and is reloaded.

mod upstream;
mod watch;

use super::{Done, Failure, Outcome, outcome, params::Params, stopped};
use crate::{
    files,
    runner::{
        Context,
        process::{self, Ended, Spawn},
        stop::Stop,
    },
};
use rustix::fs::FlockOperation;
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    net::SocketAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use upstream::Upstream;

const DEFAULT_WAIT: Duration = Duration::from_secs(60);
const DEFAULT_PID: &str = "/run/nginx.pid";
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(100);
/// No upstream file is larger.
const MAX_FILE: u64 = 4 << 20;
/// How long no connection may be seen while old workers still shut down: one of them may hold a request half read.
const QUIET: Duration = Duration::from_secs(1);
/// The same where nobody can say which workers are old.
const QUIET_BLIND: Duration = Duration::from_secs(3);
const RESOLVE: Duration = Duration::from_secs(5);

pub(super) async fn run(ctx: &Context, index: u32, p: &Params<'_>, stop: &Stop) -> Outcome {
    let drain = match p.text("op")?.as_str() {
        "drain" => true,
        "attach" => false,
        other => return Err(format!("`op` must be drain or attach, got {other:?}").into()),
    };
    let member = p.text("member")?;
    let wait = p.opt_duration(if drain { "drain_timeout" } else { "attach_timeout" })?.unwrap_or(DEFAULT_WAIT);
    let job = Job { ctx, index, stop, drain, member, wait };
    match p.text("kind")?.as_str() {
        "nginx" => job.nginx(p).await,
        "command" => job.command(p.list("run")?).await,
        other => Err(format!("this agent knows no load balancer of kind {other:?}").into()),
    }
}

struct Job<'a> {
    ctx: &'a Context,
    index: u32,
    stop: &'a Stop,
    drain: bool,
    member: String,
    wait: Duration,
}

/// Held while the file is changed and taken into use. The file's content says that a change was not taken into use yet.
struct Lock(File);

impl Lock {
    /// `None`: somebody else holds it.
    fn take(path: &Path) -> io::Result<Option<Lock>> {
        let f = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match rustix::fs::flock(&f, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(f))),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn pending(&mut self) -> io::Result<bool> {
        self.0.rewind()?;
        let mut one = [0];
        Ok(self.0.read(&mut one)? > 0)
    }

    fn set_pending(&mut self, pending: bool) -> io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        if pending {
            self.0.write_all(b"changed, not reloaded\n")?;
        }
        self.0.sync_all()
    }
}

/// Where things are, and how nginx is spoken to.
struct Nginx {
    /// The file itself, not a link to it.
    file: PathBuf,
    lock: PathBuf,
    test: Vec<String>,
    reload: Vec<String>,
    pid: Option<PathBuf>,
    port: Option<u16>,
    go_on: bool,
}

impl Nginx {
    fn of(p: &Params<'_>) -> Result<Nginx, String> {
        let given = p.text("file")?;
        let file = fs::canonicalize(&given).map_err(|e| format!("cannot find the upstream file {given}: {e}"))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let or = |list: Vec<String>, default: &[&str]| match list.is_empty() {
            true => default.iter().map(|s| (*s).to_owned()).collect(),
            false => list,
        };
        let pid = match p.opt_text("pid")? {
            Some(p) => Some(PathBuf::from(p)),
            None => Some(PathBuf::from(DEFAULT_PID)).filter(|p| p.exists()),
        };
        let port = p.opt_number("port")?.map(u16::try_from).transpose().map_err(|_| "`port` is not a port")?;
        Ok(Nginx {
            // A name that the usual `include` patterns do not match.
            lock: file.with_file_name(format!(".{name}.windlass")),
            test: or(p.list("test")?, &["nginx", "-t"]),
            reload: or(p.list("reload")?, &["nginx", "-s", "reload"]),
            pid,
            port,
            go_on: p.opt_text("on_drain_timeout")?.as_deref() == Some("go_on"),
            file,
        })
    }

    fn read(&self) -> Result<String, String> {
        let at = |e: io::Error| format!("cannot read {}: {e}", self.file.display());
        let size = fs::metadata(&self.file).map_err(at)?.len();
        if size > MAX_FILE {
            return Err(format!("{} has {size} bytes: that is no upstream file", self.file.display()));
        }
        fs::read_to_string(&self.file).map_err(at)
    }

    /// Keeps the file's mode and, where it may, its owner.
    fn write(&self, text: &str) -> Result<(), String> {
        let put = || {
            let meta = fs::metadata(&self.file)?;
            files::write_atomic(&self.file, text.as_bytes(), meta.mode() & 0o7777)?;
            if rustix::process::geteuid().is_root() {
                std::os::unix::fs::chown(&self.file, Some(meta.uid()), Some(meta.gid()))?;
            }
            Ok(())
        };
        put().map_err(|e: io::Error| format!("cannot write {}: {e}", self.file.display()))
    }
}

/// Members that must stay up; `min_healthy: {count: 3}` or `{percent: 50}`.
fn minimum(p: &Params<'_>, members: u32) -> Result<u32, String> {
    let Some(v) = p.get("min_healthy") else { return Ok(0) };
    let number = |key: &str| v.get(key).and_then(serde_json::Value::as_u64).and_then(|n| u32::try_from(n).ok());
    if let Some(n) = number("count") {
        return Ok(n);
    }
    let percent = number("percent").filter(|p| *p <= 100).ok_or("`min_healthy` must have `count` or `percent`")?;
    Ok(members.saturating_mul(percent).div_ceil(100))
}

impl Job<'_> {
    fn note(&self, text: &str) {
        self.ctx.note(self.index, text);
    }

    async fn pause(&self, length: Duration) -> Result<(), Failure> {
        tokio::select! {
            () = tokio::time::sleep(length) => Ok(()),
            reason = self.stop.requested() => Err(stopped(reason)),
        }
    }

    async fn call(&self, argv: Vec<String>, stop: &Stop) -> Result<Ended, Failure> {
        let spawn = Spawn { argv, cwd: Path::new("/"), env: self.ctx.env(), stdin: None };
        Ok(process::run(self.ctx, self.index, spawn, stop).await?)
    }

    async fn command(&self, mut argv: Vec<String>) -> Outcome {
        argv.extend([if self.drain { "drain" } else { "attach" }.to_owned(), self.member.clone()]);
        outcome(self.call(argv, &self.stop.within(self.wait)).await?)
    }

    async fn nginx(&self, p: &Params<'_>) -> Outcome {
        let n = Nginx::of(p)?;
        let until = Instant::now() + self.wait;
        let (address, old) = self.turn(&n, p, until).await?;
        if self.drain {
            self.connections_gone(&n, &address, old, until).await?;
        }
        Ok(Done::default())
    }

    /// The file as it should be, and in use. Gives the member's address as it stands there and the workers that were told
    /// to shut down, where they are known.
    async fn turn(
        &self,
        n: &Nginx,
        p: &Params<'_>,
        until: Instant,
    ) -> Result<(String, Option<BTreeSet<i32>>), Failure> {
        let mut said = false;
        loop {
            let mut lock = self.lock(n, until).await?;
            let text = n.read()?;
            let u = Upstream::parse(&text, &self.member, n.port).map_err(|e| {
                format!("the upstream file {} cannot be used for member {}: {e}", n.file.display(), self.member)
            })?;
            let least = minimum(p, u.members)?;
            if self.drain && !u.down && u.others_up < least {
                drop(lock);
                let why = format!(
                    "{} of {} members of {} would be left, min_healthy asks for {least}",
                    u.others_up,
                    u.members,
                    n.file.display()
                );
                if Instant::now() >= until {
                    return Err(
                        format!("{} was not taken off: {why}, for {} s", self.member, self.wait.as_secs()).into()
                    );
                }
                if !std::mem::replace(&mut said, true) {
                    self.note(&format!("waits: {why}"));
                }
                self.pause(LOOK * 3).await?;
                continue;
            }
            let word = if self.drain { "down" } else { "up" };
            let wanted = u.with(self.drain);
            let io = |e: io::Error| format!("cannot write {}: {e}", n.lock.display());
            let was_pending = lock.pending().map_err(io)?;
            if wanted == text && !was_pending {
                self.note(&format!("{} is {word} in {} already", u.address, n.file.display()));
                return Ok((u.address, None));
            }
            lock.set_pending(true).map_err(io)?;
            if wanted != text {
                n.write(&wanted)?;
            }
            if let Err(f) = self.test(n).await {
                n.write(&text)?;
                lock.set_pending(was_pending).map_err(io)?;
                return Err(f);
            }
            let old = self.reload(n, until).await?;
            lock.set_pending(false).map_err(io)?;
            self.note(&format!("{} is {word} in {}, and nginx has taken it", u.address, n.file.display()));
            return Ok((u.address, old));
        }
    }

    async fn lock(&self, n: &Nginx, until: Instant) -> Result<Lock, Failure> {
        loop {
            let taken = Lock::take(&n.lock).map_err(|e| format!("cannot lock {}: {e}", n.lock.display()))?;
            if let Some(lock) = taken {
                return Ok(lock);
            }
            if Instant::now() >= until {
                return Err(format!("{} was held by others for {} s", n.lock.display(), self.wait.as_secs()).into());
            }
            self.pause(LOOK / 4).await?;
        }
    }

    async fn test(&self, n: &Nginx) -> Result<(), Failure> {
        let ended = self.call(n.test.clone(), self.stop).await?;
        let words = ended.last_lines.join(" | ");
        outcome(ended).map(|_| ()).map_err(|f| match f.stopped {
            Some(_) => f,
            None => {
                Failure { message: format!("nginx refuses its configuration, the file is as it was: {words}"), ..f }
            }
        })
    }

    /// Until the workers of before take no new connections.
    async fn reload(&self, n: &Nginx, until: Instant) -> Result<Option<BTreeSet<i32>>, Failure> {
        let old = n.pid.as_deref().map(watch::workers).transpose()?;
        let ended = self.call(n.reload.clone(), self.stop).await?;
        let words = ended.last_lines.join(" | ");
        outcome(ended).map_err(|f| match f.stopped {
            Some(_) => f,
            None => Failure { message: format!("nginx was not reloaded: {words}"), ..f },
        })?;
        let Some(old) = old else {
            self.note("no pid file: whether the new file is in use cannot be seen; name it as `pid`");
            return Ok(None);
        };
        while old.iter().any(|p| watch::takes_connections(*p)) {
            if Instant::now() >= until {
                return Err(format!(
                    "nginx's workers of before still take connections {} s after the reload; see its error log, and whether {} \
                     is its pid file",
                    self.wait.as_secs(),
                    n.pid.as_deref().unwrap_or(Path::new("")).display()
                )
                .into());
            }
            self.pause(LOOK / 4).await?;
        }
        Ok(Some(old))
    }

    async fn connections_gone(
        &self,
        n: &Nginx,
        address: &str,
        old: Option<BTreeSet<i32>>,
        until: Instant,
    ) -> Result<(), Failure> {
        let Some(targets) = targets(address).await? else {
            self.note(&format!("{address} is a local socket: its connections cannot be counted"));
            return Ok(());
        };
        let quiet = if n.pid.is_some() { QUIET } else { QUIET_BLIND };
        let mut since: Option<Instant> = None;
        loop {
            let mut open = 0;
            for t in &targets {
                open += watch::connections(*t).map_err(|e| format!("cannot read the connections of this host: {e}"))?;
            }
            if open == 0 {
                // When the old workers are gone, nothing can connect any more.
                let gone = old.as_ref().is_some_and(|o| o.iter().all(|p| !Path::new(&format!("/proc/{p}")).exists()));
                if gone || since.get_or_insert_with(Instant::now).elapsed() >= quiet {
                    return Ok(());
                }
            } else {
                since = None;
            }
            if Instant::now() >= until && open > 0 {
                let text = format!("{open} connections to {address} are still open after {} s", self.wait.as_secs());
                if n.go_on {
                    self.note(&format!("{text}; going on, as on_drain_timeout says"));
                    return Ok(());
                }
                return Err(format!("{} was not drained: {text}", self.member).into());
            }
            self.pause(LOOK).await?;
        }
    }
}

/// Where the member listens; `None` for a local socket.
async fn targets(address: &str) -> Result<Option<Vec<SocketAddr>>, String> {
    if address.starts_with("unix:") {
        return Ok(None);
    }
    if let Ok(a) = address.parse() {
        return Ok(Some(vec![a]));
    }
    let has_port = address.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    let name = if has_port { address.to_owned() } else { format!("{address}:80") };
    match timeout(RESOLVE, tokio::net::lookup_host(&name)).await {
        Ok(Ok(all)) => Ok(Some(all.collect())),
        Ok(Err(e)) => Err(format!("the member's name {name} has no address: {e}")),
        Err(_) => Err(format!("the member's name {name} was not resolved within {} s", RESOLVE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_minimum_is_a_number_or_a_part_rounded_up() {
        let of = |v: serde_json::Value| {
            let with = json!({ "min_healthy": v });
            minimum(&Params::new(with.as_object().expect("map")), 5)
        };
        assert_eq!(of(json!({ "count": 3 })), Ok(3));
        assert_eq!(of(json!({ "percent": 50 })), Ok(3));
        assert_eq!(of(json!(null)), Ok(0));
        assert!(of(json!({ "percent": 101 })).is_err());
        assert!(of(json!("half")).is_err());
    }

    #[test]
    fn a_lock_is_held_by_one_and_remembers_what_was_not_reloaded() {
        let dir = windlass_testkit::temp_dir();
        let path = dir.path().join(".x.windlass");
        let mut first = Lock::take(&path).expect("opens").expect("free");
        assert!(Lock::take(&path).expect("opens").is_none());
        assert!(!first.pending().expect("reads"));
        first.set_pending(true).expect("writes");
        drop(first);
        let mut second = Lock::take(&path).expect("opens").expect("free again");
        assert!(second.pending().expect("reads"));
        second.set_pending(false).expect("writes");
        assert!(!second.pending().expect("reads"));
    }

    #[tokio::test]
    async fn members_are_addresses_names_or_sockets() {
        assert_eq!(targets("unix:/run/x").await, Ok(None));
        assert_eq!(targets("127.0.0.1:8080").await, Ok(Some(vec!["127.0.0.1:8080".parse().expect("address")])));
        assert_eq!(targets("127.0.0.1").await, Ok(Some(vec!["127.0.0.1:80".parse().expect("address")])));
    }
}
