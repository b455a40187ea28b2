//! `service.restart`: by systemd where it runs, else by a command of the release.
//!
//! Parameters: `unit` and/or `command` (a list); optional `args` and `user` (of the command), `env`, `within` (for the unit to become
//! active, default 30s).

use super::{
    Failure, Outcome, outcome,
    params::Params,
    script::{as_account, working_dir},
};
use crate::runner::{
    Context,
    process::{self, Spawn},
    stop::Stop,
};
use std::{path::Path, time::Duration};
use tokio::time::Instant;

pub(super) async fn restart(ctx: &Context, index: u32, p: &Params<'_>, stop: &Stop) -> Outcome {
    let unit = p.opt_text("unit")?;
    let command = p.list("command")?;
    let systemd = Path::new("/run/systemd/system").is_dir();
    let cwd = working_dir(&ctx.spec.root);
    let user = p.opt_text("user")?;
    match unit {
        Some(unit) if systemd && user.is_some() => Err(format!(
            "unit {unit} runs as the user that its own file names: `account` is for `command`, remove it or the unit"
        )
        .into()),
        Some(unit) if systemd => by_systemd(ctx, index, p, &unit, &cwd, stop).await,
        Some(unit) if command.is_empty() => Err(format!(
            "systemd does not run on this host, so unit {unit} cannot be restarted; give `command` as well"
        )
        .into()),
        _ if command.is_empty() => Err("`unit` or `command` is missing".into()),
        _ => {
            let mut argv = command;
            argv.extend(p.list("args")?);
            if let Some(user) = user {
                argv = as_account(ctx, &user, argv)?;
            }
            let mut env = ctx.env();
            env.extend(p.map("env")?);
            outcome(process::run(ctx, index, Spawn { argv, cwd: &cwd, env, stdin: None }, stop).await?)
        }
    }
}

async fn by_systemd(ctx: &Context, index: u32, p: &Params<'_>, unit: &str, cwd: &Path, stop: &Stop) -> Outcome {
    let plain = unit.bytes().all(|b| b.is_ascii_alphanumeric() || b"@._:\\-".contains(&b)) && !unit.starts_with('-');
    if unit.is_empty() || !plain {
        return Err(format!("`unit` {unit:?} is not the name of a systemd unit").into());
    }
    let within = p.opt_duration("within")?.unwrap_or(Duration::from_secs(30));
    let call = |args: &[&str]| Spawn {
        argv: std::iter::once("systemctl").chain(args.iter().copied()).chain([unit]).map(str::to_owned).collect(),
        cwd,
        env: ctx.env(),
        stdin: None,
    };
    outcome(process::run(ctx, index, call(&["restart", "--"]), stop).await?)?;
    let until = Instant::now() + within;
    loop {
        let e = process::run(ctx, index, call(&["is-active", "--"]), stop).await?;
        if e.stopped.is_some() || e.code == Some(0) {
            return outcome(e);
        }
        if e.last_line == "failed" || Instant::now() >= until {
            let _ = process::run(ctx, index, call(&["status", "--no-pager", "--lines=20", "--"]), stop).await;
            return Err(Failure {
                message: format!("unit {unit} is {} after its restart", e.last_line),
                exit_code: e.code,
                ..Failure::default()
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
