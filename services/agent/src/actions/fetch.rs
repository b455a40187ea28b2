//! `artifact.fetch`: download (or read) the artifact, check its digest, unpack it into `releases/<dir>`.
//!
//! Parameters: `url`, `digest` (`sha256:…`), `dir`; optional `size`, `max_bytes` (unpacked), `max_entries`.

use super::{
    Done, Outcome,
    archive::{self, Limits, MARKER},
    http::client,
    params::Params,
    release::Marker,
};
use crate::{files, runner::Context};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use windlass_domain::artifact::is_digest;

/// Packed artifacts kept for a retry.
const KEEP_CACHED: usize = 2;
const MAX_PACKED: u64 = 2 << 30;
const REDIRECTS: usize = 5;

/// Tells the blocking part when its step is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) async fn run(ctx: &Context, index: u32, p: &Params<'_>) -> Outcome {
    let url = p.text("url")?;
    let digest = p.text("digest")?;
    let dir = p.text("dir")?;
    let size = p.opt_number("size")?;
    let mut limits = Limits::default();
    if let Some(n) = p.opt_number("max_bytes")? {
        limits.bytes = n;
    }
    if let Some(n) = p.opt_number("max_entries")? {
        limits.entries = n;
    }
    if !is_digest(&digest) {
        return Err(format!("`digest` must be sha256: and 64 hex digits, got {digest:?}").into());
    }
    let release = super::release::dir(&ctx.spec.root, &dir)?;
    if let Some(m) = Marker::read(&release)? {
        if m.digest == digest {
            ctx.note(index, &format!("{dir} is already here with this digest"));
            return Ok(Done::default());
        }
        return Err(format!(
            "{} holds an artifact with digest {}, not {digest}; remove that directory if it is not in use",
            release.display(),
            m.digest
        )
        .into());
    }
    let cache = ctx.spec.state.join("cache");
    files::private_dir(&cache).map_err(|e| format!("cannot make {}: {e}", cache.display()))?;
    let packed = cache.join(digest.trim_start_matches("sha256:"));
    let stop = Arc::new(AtomicBool::new(false));
    let _guard = StopOnDrop(stop.clone());
    if hashed(&packed).is_none_or(|(have, _)| have != digest) {
        let tmp = files::partial(&packed);
        let got = download(&url, &tmp, size).await;
        let checked = got.and_then(|(have, bytes)| {
            if have != digest {
                return Err(format!("{url} has digest {have}, the plan says {digest}; nothing was unpacked"));
            }
            if size.is_some_and(|s| s != bytes) {
                return Err(format!("{url} has {bytes} bytes, the plan says {}", size.unwrap_or(0)));
            }
            fs::rename(&tmp, &packed).map_err(|e| format!("cannot keep {}: {e}", packed.display()))?;
            ctx.note(index, &format!("fetched {bytes} bytes, digest fits"));
            Ok(())
        });
        if checked.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        checked?;
    }
    let root = ctx.spec.root.clone();
    let unpacked = tokio::task::spawn_blocking(move || place(&root, &packed, &release, &digest, limits, &stop));
    let n = unpacked.await.map_err(|e| format!("unpacking did not end: {e}"))??;
    ctx.note(index, &format!("unpacked {} entries, {} bytes into {dir}", n.entries, n.bytes));
    prune(&cache);
    Ok(Done::default())
}

/// Digest and size of a file that is there.
fn hashed(path: &Path) -> Option<(String, u64)> {
    let mut f = File::open(path).ok()?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match f.read(&mut buf).ok()? {
            0 => return Some((text(hash), bytes)),
            n => {
                hash.update(&buf[..n]);
                bytes += n as u64;
            }
        }
    }
}

fn text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

async fn download(url: &str, to: &Path, size: Option<u64>) -> Result<(String, u64), String> {
    let max = size.unwrap_or(MAX_PACKED).min(MAX_PACKED);
    let mut sink = Sink { file: None, hash: Sha256::new(), bytes: 0, max, url };
    sink.file = Some(File::create(to).map_err(|e| format!("cannot write {}: {e}", to.display()))?);
    if let Some(path) = url.strip_prefix("file://") {
        let mut f = File::open(path).map_err(|e| format!("cannot read {path}: {e}"))?;
        if !f.metadata().is_ok_and(|m| m.is_file()) {
            return Err(format!("{path} is not a file"));
        }
        let mut buf = vec![0; 64 * 1024];
        loop {
            let n = f.read(&mut buf).map_err(|e| format!("cannot read {path}: {e}"))?;
            if n == 0 {
                break;
            }
            sink.take(&buf[..n])?;
            tokio::task::yield_now().await;
        }
    } else {
        let mut response = get(url).await?;
        loop {
            let chunk = tokio::time::timeout(Duration::from_secs(30), response.chunk());
            match chunk.await {
                Err(_) => return Err(format!("{url} sent nothing for 30 s after {} bytes", sink.bytes)),
                Ok(Err(e)) => return Err(format!("{url} broke off after {} bytes: {}", sink.bytes, chain(&e))),
                Ok(Ok(None)) => break,
                Ok(Ok(Some(c))) => sink.take(&c)?,
            }
        }
    }
    Ok((text(sink.hash), sink.bytes))
}

struct Sink<'a> {
    file: Option<File>,
    hash: Sha256,
    bytes: u64,
    max: u64,
    url: &'a str,
}

impl Sink<'_> {
    fn take(&mut self, data: &[u8]) -> Result<(), String> {
        self.bytes += data.len() as u64;
        if self.bytes > self.max {
            return Err(format!("{} is larger than the {} bytes it may have", self.url, self.max));
        }
        self.hash.update(data);
        match &mut self.file {
            Some(f) => f.write_all(data).map_err(|e| format!("cannot write the download: {e}")),
            None => Ok(()),
        }
    }
}

/// Follows redirects by hand, so that every hop is an http or https URL.
async fn get(url: &str) -> Result<reqwest::Response, String> {
    let mut at = reqwest::Url::parse(url).map_err(|e| format!("`url` {url:?} is not a URL: {e}"))?;
    for _ in 0..=REDIRECTS {
        let tls = match at.scheme() {
            "http" => false,
            "https" => true,
            other => return Err(format!("{at}: scheme {other} is not supported; use http, https or file")),
        };
        let r = client(tls)?.get(at.clone()).send().await.map_err(|e| format!("cannot fetch {at}: {}", chain(&e)))?;
        if r.status().is_redirection()
            && let Some(next) = r.headers().get(reqwest::header::LOCATION).and_then(|v| v.to_str().ok())
        {
            at = at.join(next).map_err(|e| format!("{at} redirects to {next:?}, which is not a URL: {e}"))?;
            continue;
        }
        if !r.status().is_success() {
            return Err(format!("{at} answered {}", r.status()));
        }
        return Ok(r);
    }
    Err(format!("{url} redirects more than {REDIRECTS} times"))
}

/// An error with its causes, for a message that people read.
pub(super) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let more = s.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = s.source();
    }
    text
}

/// Unpacks beside the final name and renames: a release directory is complete or not there.
fn place(
    root: &Path,
    packed: &Path,
    release: &Path,
    digest: &str,
    limits: Limits,
    stop: &AtomicBool,
) -> Result<archive::Unpacked, String> {
    let say = |what: &str, e: &io::Error| format!("cannot {what} {}: {e}", release.display());
    let releases = root.join("releases");
    fs::create_dir_all(&releases).map_err(|e| say("make the parent of", &e))?;
    let tmp: PathBuf = files::partial(release);
    fs::create_dir(&tmp).map_err(|e| say("make a directory beside", &e))?;
    let done = (|| {
        let f = File::open(packed).map_err(|e| say("read the package of", &e))?;
        let size = f.metadata().map_err(|e| say("read the package of", &e))?.len();
        let dir = cap_std::fs::Dir::open_ambient_dir(&tmp, cap_std::ambient_authority())
            .map_err(|e| say("open the directory of", &e))?;
        let n = archive::unpack(io::BufReader::new(f), size, &dir, limits, stop).map_err(|e| chain(&e))?;
        let marker = Marker { digest: digest.to_owned(), size, entries: n.entries, unpacked_at: chrono::Utc::now() };
        // Everything of the release is durable before the marker's directory gets its name.
        if !n.synced {
            let open = File::open(&tmp).map_err(|e| say("sync", &e))?;
            rustix::fs::syncfs(open).map_err(|e| say("sync", &e.into()))?;
        }
        let text = serde_json::to_vec(&marker).map_err(|e| format!("cannot write the marker: {e}"))?;
        files::write_atomic(&tmp.join(MARKER), &text, 0o644).map_err(|e| say("mark", &e))?;
        files::private(&tmp, 0o755).map_err(|e| say("set the mode of", &e))?;
        if release.exists() {
            return Err(format!(
                "{} exists without the agent's marker: it was not put there by a deployment; move it away",
                release.display()
            ));
        }
        fs::rename(&tmp, release).map_err(|e| say("put in place", &e))?;
        files::sync_dir(&releases).map_err(|e| say("sync the parent of", &e))?;
        Ok(n)
    })();
    if done.is_err() {
        let _ = fs::remove_dir_all(&tmp);
    }
    done
}

fn prune(cache: &Path) {
    let Ok(dir) = fs::read_dir(cache) else { return };
    let mut all: Vec<(std::time::SystemTime, PathBuf)> =
        dir.flatten().filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path()))).collect();
    all.sort();
    let hour = Duration::from_secs(3600);
    // A fresh partial file may belong to another task that is fetching right now.
    let partial = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    all.retain(|(t, p)| !partial(p) || t.elapsed().is_ok_and(|age| age > hour));
    for (_, p) in all.iter().rev().skip(KEEP_CACHED) {
        let _ = fs::remove_file(p);
    }
}
