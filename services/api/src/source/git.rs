//! The `git` program, kept on a short leash: no prompt, no configuration but ours, no hooks, no submodules, no checkout, only
//! the transports that are allowed, a cap on what it may write, and one deadline after which it and its children are killed.

use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command, time::Instant};
use windlass_domain::catalog::Source;
use windlass_runtime::keys;

/// Most bytes of git's own words that are kept.
const MOST_TEXT: u64 = 64 << 10;

/// Why a repository could not be read; the text is for the project's people and holds no secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GitError {
    #[error("{0}")]
    Refused(String),
    #[error("git {verb} failed: {said}")]
    Failed { verb: &'static str, said: String },
    #[error("git {verb} cannot be run: {source}; is `git` installed on the api's machine?")]
    Run { verb: &'static str, source: std::io::Error },
    #[error("the repository did not answer within {0:?}")]
    Late(Duration),
}

/// Limits, from the settings.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) hosts: Vec<String>,
    pub(crate) allow_file: bool,
    pub(crate) known_hosts: PathBuf,
    /// In place of the machine's authorities.
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) max_pack_bytes: u64,
    pub(crate) max_document_bytes: u64,
    pub(crate) max_files: usize,
}

/// A file of the commit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TreeFile {
    pub(crate) path: String,
    pub(crate) bytes: Vec<u8>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fetched {
    pub(crate) commit: String,
    pub(crate) files: Vec<TreeFile>,
}

/// A temporary bare repository; gone when dropped.
pub(crate) struct Repository<'a> {
    dir: PathBuf,
    source: &'a Source,
    limits: &'a Limits,
    secret: Option<&'a [u8]>,
    /// All of it must be done by then.
    until: Instant,
}

impl Drop for Repository<'_> {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.dir)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = %e, dir = %self.dir.display(), "a fetched repository could not be removed");
        }
    }
}

impl<'a> Repository<'a> {
    /// In a fresh directory below `root`.
    pub(crate) fn new(
        root: &Path,
        name: &str,
        source: &'a Source,
        limits: &'a Limits,
        secret: Option<&'a [u8]>,
    ) -> Result<Repository<'a>, GitError> {
        allowed(source, limits)?;
        let dir = root.join(format!("{name}.{}", uuid::Uuid::now_v7().simple()));
        let run = |source| GitError::Run { verb: "init", source };
        std::fs::create_dir_all(&dir).map_err(run)?;
        let r = Repository { dir, source, limits, secret, until: Instant::now() + limits.timeout };
        if let (Some(key), true) = (secret, is_ssh(&source.git)) {
            // OpenSSH reads no key without a last line break.
            let mut key = key.to_vec();
            key.push(b'\n');
            keys::replace(&r.key_file(), &key).map_err(|e| GitError::Refused(e.to_string()))?;
        }
        Ok(r)
    }

    fn key_file(&self) -> PathBuf {
        self.dir.join("key")
    }

    /// The commit that the branch or tag names now, and the full name it has there.
    pub(crate) async fn head(&self) -> Result<(String, String), GitError> {
        let name = &self.source.reference;
        let (branch, tag) = (format!("refs/heads/{name}"), format!("refs/tags/{name}"));
        let args = ["ls-remote", "--exit-code", "--", &self.source.git, &branch, &tag, &format!("{tag}^{{}}")];
        let out = self.git("ls-remote", &args, MOST_TEXT).await;
        let out = match out {
            Err(GitError::Failed { said, .. }) if said.trim().is_empty() => {
                return Err(GitError::Refused(format!("there is no branch or tag {name:?}; correct `ref`")));
            }
            other => other?,
        };
        let text = String::from_utf8_lossy(&out).into_owned();
        let of = |wanted: &str| {
            text.lines().filter_map(|l| l.split_once('\t')).find(|(_, r)| *r == wanted).map(|(c, _)| c.to_owned())
        };
        let found = match of(&branch) {
            Some(c) => Some((c, branch)),
            None => of(&format!("{tag}^{{}}")).or_else(|| of(&tag)).map(|c| (c, tag)),
        };
        found
            .filter(|(c, _)| is_commit(c))
            .ok_or_else(|| GitError::Refused(format!("there is no branch or tag {name:?}; correct `ref`")))
    }

    /// The documents of the newest commit. Nothing is checked out: a hostile path or link is only ever a name.
    pub(crate) async fn fetch(&self, reference: &str) -> Result<Fetched, GitError> {
        self.git("init", &["init", "--bare", "--quiet", "--initial-branch=none", "--template="], MOST_TEXT).await?;
        let fetch = [
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--",
            &self.source.git,
            &format!("+{reference}:refs/windlass/source"),
        ];
        self.git("fetch", &fetch, MOST_TEXT).await?;
        let commit = self.git("rev-parse", &["rev-parse", "--verify", "refs/windlass/source^{commit}"], 256).await?;
        let commit = String::from_utf8_lossy(&commit).trim().to_owned();
        if !is_commit(&commit) {
            return Err(GitError::Refused("what was fetched is no commit".into()));
        }
        let files = self.files(&commit).await?;
        Ok(Fetched { commit, files })
    }

    async fn files(&self, commit: &str) -> Result<Vec<TreeFile>, GitError> {
        let path = self.source.path.trim_matches('/');
        let path = if path == "." { "" } else { path.trim_start_matches("./") };
        let below = format!("{path}/");
        let mut args = vec!["ls-tree", "-r", "-z", "-l", "--full-tree", commit];
        if !path.is_empty() {
            args.extend(["--", &below]);
        }
        let list = self.git("ls-tree", &args, 16 << 20).await?;
        let mut wanted: Vec<(String, String)> = Vec::new();
        let mut total: u64 = 0;
        for line in list.split(|b| *b == 0).filter(|l| !l.is_empty()) {
            let Some((meta, name)) = std::str::from_utf8(line).ok().and_then(|l| l.split_once('\t')) else {
                // A name that is no text can be none of ours.
                continue;
            };
            if !(name.ends_with(".yaml") || name.ends_with(".yml")) {
                continue;
            }
            let mut meta = meta.split_ascii_whitespace();
            let (mode, _, oid, size) = (meta.next(), meta.next(), meta.next(), meta.next());
            match mode {
                Some("100644" | "100755") => {}
                Some("120000") => {
                    return Err(GitError::Refused(format!("{name} is a symbolic link; commit the file itself")));
                }
                _ => return Err(GitError::Refused(format!("{name} is no plain file"))),
            }
            total += size.and_then(|s| s.parse::<u64>().ok()).unwrap_or(u64::MAX / 2);
            if total > self.limits.max_document_bytes {
                let most = self.limits.max_document_bytes;
                return Err(GitError::Refused(format!(
                    "its documents are larger than {most} bytes in all; the setting `source.max_document_bytes` says so"
                )));
            }
            wanted.push((name.to_owned(), oid.unwrap_or_default().to_owned()));
            if wanted.len() > self.limits.max_files {
                let most = self.limits.max_files;
                return Err(GitError::Refused(format!(
                    "it has more than {most} documents' files; the setting `source.max_files` says so"
                )));
            }
        }
        let mut files = Vec::new();
        for (path, oid) in wanted {
            let bytes = self.git("cat-file", &["cat-file", "blob", &oid], self.limits.max_document_bytes).await?;
            files.push(TreeFile { path, bytes });
        }
        Ok(files)
    }

    fn command(&self, args: &[&str]) -> Command {
        let off = ["protocol.allow=never", "protocol.https.allow=always", "protocol.ssh.allow=always"];
        let file = if self.limits.allow_file { "protocol.file.allow=always" } else { "protocol.file.allow=never" };
        let rest = [
            "http.followRedirects=false",
            "http.lowSpeedLimit=1",
            "http.lowSpeedTime=30",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "credential.helper=",
            // What arrives stays one pack, so that the cap on a file's size is a cap on all of it.
            "fetch.unpackLimit=1",
            "transfer.unpackLimit=1",
            "fetch.fsckObjects=true",
            "gc.auto=0",
            "maintenance.auto=false",
        ];
        let mut c = Command::new("/bin/sh");
        // POSIX: `ulimit -f` counts blocks of 512 bytes. Without the signal, git says itself that a file is too large.
        c.arg("-c").arg("ulimit -f \"$1\" && trap '' XFSZ && shift && exec git \"$@\"").arg("git");
        c.arg((self.limits.max_pack_bytes / 512).max(1).to_string());
        for v in off.iter().chain([&file]).chain(&rest) {
            c.arg("-c").arg(v);
        }
        c.args(args);
        c.current_dir(&self.dir).env_clear();
        c.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin")));
        for (k, v) in [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_ASKPASS", "/bin/false"),
            ("SSH_ASKPASS", "/bin/false"),
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ] {
            c.env(k, v);
        }
        c.env("HOME", &self.dir).env("GIT_CEILING_DIRECTORIES", &self.dir);
        if is_ssh(&self.source.git) {
            // Without a key of the project none is tried: those in the api's own home are not the project's to use.
            let key = match self.secret {
                Some(_) => format!("-i {}", quote(&self.key_file())),
                None => "-o IdentityFile=none".into(),
            };
            // A server whose key nobody wrote down is refused, never trusted at first sight.
            let ssh = format!(
                "ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=15 \
                 -o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile={} {key}",
                quote(&self.limits.known_hosts)
            );
            c.env("GIT_SSH_COMMAND", ssh).env("GIT_SSH_VARIANT", "ssh");
        } else if let Some(file) = &self.limits.ca_file {
            c.env("GIT_SSL_CAINFO", file);
        }
        if let (false, Some(token)) = (is_ssh(&self.source.git), self.secret) {
            // By the environment: an argument is seen by everybody on the machine.
            let mut pair = b"x-access-token:".to_vec();
            pair.extend(token.trim_ascii());
            c.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "http.extraHeader");
            c.env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {}", STANDARD.encode(pair)));
        }
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
        c
    }

    /// Runs git; its output up to `most` bytes, more is a refusal.
    async fn git(&self, verb: &'static str, args: &[&str], most: u64) -> Result<Vec<u8>, GitError> {
        let run = |source| GitError::Run { verb, source };
        let left = self.until.saturating_duration_since(Instant::now());
        let mut child = self.command(args).spawn().map_err(run)?;
        let group = child.id();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let talk = async {
            let hear = async {
                if let Some(pipe) = stdout {
                    pipe.take(most + 1).read_to_end(&mut out).await?;
                }
                Ok::<(), std::io::Error>(())
            };
            let words = async {
                if let Some(mut pipe) = stderr {
                    (&mut pipe).take(MOST_TEXT).read_to_end(&mut err).await?;
                    // Whatever else it says is let go, so that it does not wait for a reader.
                    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
                }
                Ok(())
            };
            tokio::try_join!(hear, words)?;
            child.wait().await
        };
        let status = match tokio::time::timeout(left, talk).await {
            Ok(done) => done.map_err(run)?,
            Err(_) => {
                kill_group(group).await;
                return Err(GitError::Late(self.limits.timeout));
            }
        };
        if out.len() as u64 > most {
            return Err(GitError::Refused(format!("git {verb} gave more than {most} bytes")));
        }
        if status.success() {
            return Ok(out);
        }
        let mut said: String =
            String::from_utf8_lossy(&err).chars().filter(|c| !c.is_control() || *c == '\n').collect();
        if said.contains("File too large") {
            let most = self.limits.max_pack_bytes;
            said = format!("the repository is larger than {most} bytes; the setting `source.max_pack_bytes` says so");
        }
        let said: String = said.trim().chars().take(1000).collect();
        Err(GitError::Failed { verb, said })
    }
}

/// Git starts helpers of its own; they are of its process group.
async fn kill_group(group: Option<u32>) {
    let Some(group) = group else { return };
    let mut kill = Command::new("/bin/sh");
    kill.arg("-c").arg("kill -KILL -- \"-$1\" 2>/dev/null").arg("kill").arg(group.to_string());
    kill.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    if let Err(error) = kill.status().await {
        tracing::warn!(%error, "a git that took too long could not be killed");
    }
}

fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn is_ssh(url: &str) -> bool {
    url.starts_with("ssh://") || !url.contains("://")
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Only the transports and hosts that the settings allow.
fn allowed(source: &Source, limits: &Limits) -> Result<(), GitError> {
    // Checked when the project was saved; what was saved by an older version is checked again here.
    if let Some((key, text)) = source.problems().into_iter().next() {
        return Err(GitError::Refused(format!("`source.{key}` {text}")));
    }
    if source.git.starts_with("file://") {
        return match limits.allow_file {
            true => Ok(()),
            false => Err(GitError::Refused(
                "repositories on the api's own machine are not allowed; the setting `source.allow_file` would".into(),
            )),
        };
    }
    let host = host_of(&source.git);
    if host.is_empty() || host.starts_with('-') {
        return Err(GitError::Refused(format!("{:?} names no host", source.git)));
    }
    if !limits.hosts.is_empty() && !limits.hosts.iter().any(|h| h.eq_ignore_ascii_case(host)) {
        let all = limits.hosts.join(", ");
        return Err(GitError::Refused(format!("host {host:?} is not one of `source.hosts`: {all}")));
    }
    Ok(())
}

/// The host of `scheme://user@host:port/path` or `user@host:path`.
fn host_of(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.split('/').next().unwrap_or_default(),
        None => url.split(':').next().unwrap_or_default(),
    };
    let rest = rest.rsplit('@').next().unwrap_or_default();
    match rest.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => rest.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
