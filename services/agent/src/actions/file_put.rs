//! `file.put`: write a file whole or not at all.
//!
//! Parameters: `path` (relative to `<root>/shared`, or absolute below the root or a directory that the host's policy lists
//! in `writable`), `content` (or `content_base64`); optional `mode` (octal text, default `0644`) and `encoding` of the content
//! (`text` or `base64`).

use super::{Done, Outcome, params::Params};
use crate::{files, runner::Context};
use base64::{Engine, engine::general_purpose::STANDARD};
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, PermissionsExt};
use std::{
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

pub(super) fn run(ctx: &Context, index: u32, p: &Params<'_>) -> Outcome {
    let path = p.text("path")?;
    let content = match (p.opt_text("content")?, p.opt_text("content_base64")?) {
        (Some(c), None) => match p.opt_text("encoding")?.as_deref() {
            None | Some("text") => c.into_bytes(),
            // The decoder's own words would show a part of what may be a secret.
            Some("base64") => {
                STANDARD.decode(c.split_whitespace().collect::<String>()).map_err(|_| "`content` is not base64")?
            }
            Some(other) => return Err(format!("`encoding` must be text or base64, got {other:?}").into()),
        },
        (None, Some(b)) => STANDARD.decode(b).map_err(|_| "`content_base64` is not base64")?,
        _ => return Err("give exactly one of `content` and `content_base64`".into()),
    };
    let mode = match p.opt_text("mode")? {
        None => 0o644,
        Some(m) => u32::from_str_radix(&m, 8)
            .ok()
            .filter(|m| *m <= 0o777)
            .ok_or_else(|| format!("`mode` {m:?} must be octal, 0000 to 0777, as a text"))?,
    };
    let (base, rest) = place(ctx, Path::new(&path))?;
    put(&base, &rest, &content, mode).map_err(|e| format!("cannot write {path}: {e}"))?;
    ctx.note(index, &format!("wrote {} bytes to {path}", content.len()));
    Ok(Done::default())
}

/// The directory that confines the write, and the path in it.
fn place(ctx: &Context, path: &Path) -> Result<(PathBuf, PathBuf), String> {
    if path.components().any(|c| matches!(c, Component::ParentDir)) || path.file_name().is_none() {
        return Err(format!("`path` {} may not hold `..` and must name a file", path.display()));
    }
    if let Ok(rest) = path.strip_prefix(&ctx.spec.root) {
        return Ok((ctx.spec.root.clone(), rest.to_owned()));
    }
    if !path.is_absolute() {
        return Ok((ctx.spec.root.clone(), Path::new("shared").join(path)));
    }
    ctx.spec
        .writable
        .iter()
        .find_map(|w| Some((PathBuf::from(w), path.strip_prefix(w).ok()?.to_owned())))
        .filter(|(_, rest)| rest.file_name().is_some())
        .ok_or_else(|| {
            format!(
                "{} is outside the deployment root {}; the host's policy.yaml can allow it under `writable`",
                path.display(),
                ctx.spec.root.display()
            )
        })
}

/// Every component is resolved inside `base`: a link that leads out of it is an error, not a way.
fn put(base: &Path, rest: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let base = Dir::open_ambient_dir(base, cap_std::ambient_authority())?;
    let name = rest.file_name().ok_or_else(|| io::Error::other("no file name"))?;
    let dir = match rest.parent().filter(|d| !d.as_os_str().is_empty()) {
        Some(d) => {
            base.create_dir_all(d)?;
            base.open_dir(d)?
        }
        None => base,
    };
    let tmp = format!(".windlass-{}", files::random_hex(8));
    let mut opts = OpenOptions::new();
    opts.write(true).create_new(true).mode(0o600);
    let written = (|| {
        let mut f = dir.open_with(&tmp, &opts)?;
        f.write_all(content)?;
        f.set_permissions(cap_std::fs::Permissions::from_mode(mode))?;
        f.sync_all()?;
        // The rename replaces a link that stands in the file's place; it does not write through it.
        dir.rename(&tmp, &dir, name)
    })();
    if written.is_err() {
        let _ = dir.remove_file(&tmp);
    }
    written?;
    // The directory handle is for paths only; a sync needs one that is open.
    dir.open(".")?.sync_all()
}
