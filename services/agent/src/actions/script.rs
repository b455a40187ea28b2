//! `script`: a text run by an interpreter. Values reach it as arguments, environment or standard input, never as part of a
//! shell line.
//!
//! Parameters: `run` (the text); optional `interpreter` (any program, default `bash`; a list gives it arguments), `args`,
//! `env`, `stdin`, `cwd` (below the root; default: the current release), `user`. What the script writes to the file
//! `$WINDLASS_OUTPUT` becomes the step's outputs.

use super::{
    Failure, Outcome, outcome,
    output::{self, OutputFile},
    params::Params,
};
use crate::{
    files,
    runner::{
        Context,
        process::{self, Spawn},
        stop::Stop,
    },
};
use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

pub(super) async fn run(ctx: &Context, index: u32, p: &Params<'_>, stop: &Stop) -> Outcome {
    let text = p.text("run")?;
    let file = ctx.dir.path().join(format!("script-{index}"));
    let user = p.opt_text("user")?;
    let argv = interpreter(p)?;
    write(&file, &text).map_err(|e| format!("cannot write the script to {}: {e}", file.display()))?;
    let mut argv: Vec<String> = argv.into_iter().chain([file.display().to_string()]).collect();
    argv.extend(p.list("args")?);
    let mut ids = None;
    if let Some(user) = user {
        let (other, uid, gid) = as_user(ctx, &user, &file, argv)?;
        argv = other;
        ids = Some((uid, gid));
    }
    let outputs = OutputFile::create(ctx.dir.path(), index, ids)
        .map_err(|e| format!("cannot make the file for the script's outputs: {e}"))?;
    let mut env = ctx.env();
    env.extend(p.map("env")?);
    env.insert(output::VARIABLE.into(), outputs.path().display().to_string());
    let cwd = match p.opt_text("cwd")? {
        Some(c) => ctx.spec.root.join(c),
        None => working_dir(&ctx.spec.root),
    };
    let stdin = p.opt_text("stdin")?.map(String::into_bytes);
    let ended = process::run(ctx, index, Spawn { argv, cwd: &cwd, env, stdin }, stop).await;
    let _ = std::fs::remove_file(&file);
    let written = outputs.read(ctx.masker());
    match (outcome(ended?), written) {
        (Ok(done), Ok(outputs)) => ctx.gave(&outputs).map(|()| super::Done { outputs, ..done }).map_err(Failure::from),
        (Ok(done), Err(message)) => Err(Failure { message, left: done.left, ..Failure::default() }),
        (Err(f), Ok(outputs)) if ctx.gave(&outputs).is_ok() => Err(Failure { outputs, ..f }),
        (Err(f), _) => Err(f),
    }
}

/// The current release where there is one, else the root.
pub(super) fn working_dir(root: &Path) -> PathBuf {
    root.join("current").canonicalize().ok().filter(|p| p.is_dir()).unwrap_or_else(|| root.to_owned())
}

fn interpreter(p: &Params<'_>) -> Result<Vec<String>, String> {
    match p.get("interpreter") {
        None => Ok(vec!["bash".into()]),
        Some(serde_json::Value::Array(_)) => {
            let list = p.list("interpreter")?;
            if list.is_empty() { Err("`interpreter` is an empty list".into()) } else { Ok(list) }
        }
        Some(_) => {
            let program = p.text("interpreter")?;
            if program.is_empty() || program.contains(char::is_whitespace) {
                return Err(format!(
                    "`interpreter` {program:?} must be one program; write a list to give it arguments"
                ));
            }
            Ok(vec![program])
        }
    }
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut f = OpenOptions::new().write(true).create_new(true).mode(0o700).open(file)?;
    f.write_all(text.as_bytes())
}

/// User and group id of an account that this host's policy lets steps run as.
fn allowed_user(ctx: &Context, user: &str) -> Result<(u32, u32), String> {
    let plain = user.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) && !user.starts_with('-');
    if user.is_empty() || !plain {
        return Err(format!("`user` {user:?} is not a user name"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(format!("`user: {user}` needs an agent that runs as root; this one does not"));
    }
    if !ctx.spec.run_as.iter().any(|u| u == user) {
        return Err(format!("this host's policy does not allow `user: {user}`; add it to `run_as` in policy.yaml"));
    }
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
    let ids = passwd.lines().find_map(|l| {
        let f: Vec<&str> = l.split(':').collect();
        (f.first() == Some(&user)).then(|| Some((f.get(2)?.parse::<u32>().ok()?, f.get(3)?.parse::<u32>().ok()?)))?
    });
    ids.ok_or_else(|| format!("there is no user {user} on this host"))
}

/// A program of the release, run as another user.
pub(super) fn as_account(ctx: &Context, user: &str, argv: Vec<String>) -> Result<Vec<String>, String> {
    let (_, gid) = allowed_user(ctx, user)?;
    Ok(become_user(user, gid).into_iter().chain(argv).collect())
}

fn become_user(user: &str, gid: u32) -> Vec<String> {
    ["setpriv", "--reuid", user, "--regid", &gid.to_string(), "--init-groups", "--"].map(str::to_owned).to_vec()
}

/// Through `setpriv`, which sets ids and groups and then becomes the interpreter: no shell and no session in between.
/// Returns its ids too.
fn as_user(ctx: &Context, user: &str, file: &Path, argv: Vec<String>) -> Result<(Vec<String>, u32, u32), String> {
    let (uid, gid) = allowed_user(ctx, user)?;
    // The state directory is closed to other users: the script moves to a place where this one can read it.
    let shown = std::env::temp_dir().join(format!("windlass-{}", files::random_hex(12)));
    let moved = std::fs::rename(file, &shown).or_else(|_| {
        let text = std::fs::read(file)?;
        OpenOptions::new().write(true).create_new(true).mode(0o700).open(&shown)?.write_all(&text)?;
        std::fs::remove_file(file)
    });
    moved
        .and_then(|()| std::os::unix::fs::chown(&shown, Some(uid), Some(gid)))
        .and_then(|()| std::os::unix::fs::symlink(&shown, file))
        .map_err(|e| format!("cannot hand the script to {user}: {e}"))?;
    let mut out = become_user(user, gid);
    let own = file.display().to_string();
    out.extend(argv.into_iter().map(|a| if a == own { shown.display().to_string() } else { a }));
    Ok((out, uid, gid))
}
