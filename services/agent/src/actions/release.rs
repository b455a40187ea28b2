//! Release directories: `artifact.verify` and `release.switch`.

use super::{Done, Outcome, archive::MARKER, params::Params};
use crate::{files, runner::Context};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};
use windlass_domain::Timestamp;

const KEEP: u64 = 5;

/// `.windlass-release.json`: the directory is complete, and from where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub digest: String,
    /// Packed bytes.
    pub size: u64,
    pub entries: u64,
    pub unpacked_at: Timestamp,
}

impl Marker {
    pub(super) fn read(release: &Path) -> Result<Option<Marker>, String> {
        let p = release.join(MARKER);
        match fs::read(&p) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("cannot read {}: {e}", p.display())),
            Ok(b) => serde_json::from_slice(&b).map(Some).map_err(|e| format!("{} is not readable: {e}", p.display())),
        }
    }
}

/// `<root>/releases/<name>` for a name that is one plain path component.
pub(super) fn dir(root: &Path, name: &str) -> Result<PathBuf, String> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
    if plain {
        Ok(root.join("releases").join(name))
    } else {
        Err(format!("{name:?} is not the name of a release directory"))
    }
}

/// `artifact.verify`: `dir`, `digest`; optional `size` and `max_age` with `built_at`.
pub(super) fn verify(ctx: &Context, index: u32, p: &Params<'_>) -> Outcome {
    let name = p.text("dir")?;
    let digest = p.text("digest")?;
    let release = dir(&ctx.spec.root, &name)?;
    let m = Marker::read(&release)?
        .ok_or_else(|| format!("{} is not here, or not complete; run artifact.fetch first", release.display()))?;
    if m.digest != digest {
        return Err(format!("{name} was unpacked from {}, the plan says {digest}", m.digest).into());
    }
    if let Some(size) = p.opt_number("size")?
        && size != m.size
    {
        return Err(format!("the package of {name} had {} bytes, the plan says {size}", m.size).into());
    }
    if let (Some(max), Some(built)) = (p.opt_duration("max_age")?, p.opt_text("built_at")?) {
        let built: Timestamp = built.parse().map_err(|_| format!("`built_at` {built:?} is not a time"))?;
        let age = (chrono::Utc::now() - built).to_std().unwrap_or_default();
        if age > max {
            let days = age.as_secs_f64() / 86_400.0;
            return Err(format!("{name} was built {days:.1} days ago, `max_age` allows {} s", max.as_secs()).into());
        }
    }
    ctx.note(index, &format!("{name} is complete and has digest {digest}"));
    Ok(Done::default())
}

/// `release.switch`: `dir`; optional `keep` (default 5, at least 1).
pub(super) fn switch(ctx: &Context, index: u32, p: &Params<'_>) -> Outcome {
    let name = p.text("dir")?;
    let keep = p.opt_number("keep")?.unwrap_or(KEEP).max(1);
    let root = &ctx.spec.root;
    let release = dir(root, &name)?;
    if Marker::read(&release)?.is_none() {
        let what = if release.is_dir() { "is not complete" } else { "does not exist" };
        return Err(format!(
            "{} {what} on this host: it was never fetched here or is older than the releases kept; \
             deploy it with artifact.fetch, or raise `keep`",
            release.display()
        )
        .into());
    }
    let current = root.join("current");
    let before = fs::read_link(&current).ok();
    if fs::symlink_metadata(&current).is_ok_and(|m| !m.is_symlink()) {
        return Err(format!("{} is not a symlink; move it away, the agent makes its own", current.display()).into());
    }
    let target = Path::new("releases").join(&name);
    if before.as_deref() == Some(&target) {
        ctx.note(index, &format!("current is already {name}"));
    } else {
        let say = |e: io::Error| format!("cannot switch {}: {e}", current.display());
        let tmp = files::partial(&current);
        std::os::unix::fs::symlink(&target, &tmp).map_err(say)?;
        if let Err(e) = fs::rename(&tmp, &current) {
            let _ = fs::remove_file(&tmp);
            return Err(say(e).into());
        }
        files::sync_dir(root).map_err(say)?;
        let was = before.as_ref().and_then(|p| p.file_name()).map_or("nothing".into(), |n| n.to_string_lossy());
        ctx.note(index, &format!("current: {was} -> {name}"));
    }
    // The release that was current until now is what a rollback goes to: it stays whatever `keep` says.
    let previous = before.and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
    prune(ctx, index, keep, &name, previous.as_deref());
    Ok(Done::default())
}

fn prune(ctx: &Context, index: u32, keep: u64, current: &str, previous: Option<&str>) {
    let releases = ctx.spec.root.join("releases");
    remove_partials(&releases);
    let Ok(list) = fs::read_dir(&releases) else { return };
    let mut all: Vec<(SystemTime, String)> = list
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            // Only what the agent itself unpacked is the agent's to remove.
            let marker = fs::metadata(e.path().join(MARKER)).ok()?;
            (!name.starts_with('.')).then_some((marker.modified().ok()?, name))
        })
        .collect();
    all.sort();
    for (_, name) in all.iter().rev().skip(usize::try_from(keep).unwrap_or(usize::MAX)) {
        if name == current || Some(name.as_str()) == previous {
            continue;
        }
        // Without its marker a half-removed release can never be taken for a complete one.
        let dir = releases.join(name);
        let gone = fs::remove_file(dir.join(MARKER)).and_then(|()| fs::remove_dir_all(&dir));
        match gone {
            Ok(()) => ctx.note(index, &format!("removed old release {name}")),
            Err(e) => ctx.note(index, &format!("could not remove old release {name}: {e}")),
        }
    }
}

/// What an unpacking that was killed has left; a younger one may still be at work.
fn remove_partials(releases: &Path) {
    let day = std::time::Duration::from_secs(86_400);
    for e in fs::read_dir(releases).into_iter().flatten().flatten() {
        let name = e.file_name().to_string_lossy().into_owned();
        let old = e.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age > day));
        if name.starts_with('.') && name.contains(".partial-") && old {
            let _ = fs::remove_dir_all(e.path());
        }
    }
}
