//! What is wrong with this installation, and what to do about it.

mod scaled;

use crate::state::State;
use chrono::{DateTime, Utc};
use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};
use windlass_contracts::http::{Check, Doctor};
use windlass_store::{Error, Tx, agents, commands, events, notifications, sessions, sql};

const SKEW: i64 = 5;
/// Events wait this long at most when all is well.
const LAG: i64 = 60;

struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, name: &str, status: &str, detail: impl Into<String>, remedy: &str) {
        let remedy = if status == "ok" { String::new() } else { remedy.to_owned() };
        self.0.push(Check { name: name.into(), status: status.into(), detail: detail.into(), remedy });
    }
}

fn age(t: Option<DateTime<Utc>>, now: DateTime<Utc>) -> i64 {
    t.map_or(0, |t| (now - t).num_seconds())
}

/// Runs every check; a check that cannot run is a fault itself.
pub(crate) async fn examine(state: &State) -> Doctor {
    let mut r = Report(Vec::new());
    if let Err(e) =
        tokio::time::timeout(Duration::from_secs(10), database(state, &mut r)).await.unwrap_or(Err(Error::Closed))
    {
        let text = std::error::Error::source(&e).map_or_else(|| e.to_string(), |s| format!("{e}: {s}"));
        r.add("database", "fault", text, "check that the database runs and that `database.url` is right");
    }
    if state.ctx.bus.is_up() {
        r.add("nats", "ok", "connected", "");
    } else {
        let detail = "not connected: work goes on by polling the database, more slowly; agents cannot be reached";
        r.add(
            "nats",
            "fault",
            detail,
            "check that the NATS server runs and that `nats.urls` and the credentials are right",
        );
    }
    for (name, check) in state.ctx.health.checks() {
        match check {
            windlass_runtime::health::Check::Ok => {}
            windlass_runtime::health::Check::Degraded(why) => {
                r.add(&name, "warning", why, "see the log of this service")
            }
            windlass_runtime::health::Check::Failing(why) => r.add(&name, "fault", why, "see the log of this service"),
        }
    }
    scaled::brokers(state.settings(), &mut r);
    keys(&state.settings().keys_dir(), &mut r);
    Doctor { healthy: r.0.iter().all(|c| c.status != "fault"), checks: r.0 }
}

async fn database(state: &State, r: &mut Report) -> Result<(), Error> {
    let mut tx = state.store().read().await?;
    let now = tx.now().await?;
    r.add("database", "ok", format!("{:?} answers", state.store().dialect()), "");
    // `false` never equals success on either database.
    let failed: Option<i64> =
        sql("SELECT COUNT(*) FROM _sqlx_migrations WHERE success = FALSE").fetch_scalar(&mut tx).await?;
    let applied: Option<i64> = sql("SELECT COUNT(*) FROM _sqlx_migrations").fetch_scalar(&mut tx).await?;
    let status = if failed.unwrap_or(0) > 0 { "fault" } else { "ok" };
    let detail = format!("{} applied, {} failed", applied.unwrap_or(0), failed.unwrap_or(0));
    r.add("migrations", status, detail, "restore the backup from before the upgrade, then start again");
    let skew = (Utc::now() - now).num_seconds();
    let status = if skew.abs() > SKEW { "warning" } else { "ok" };
    r.add(
        "clock",
        status,
        format!("{skew} s from the database's"),
        "run a time service (chrony, systemd-timesyncd) on both machines",
    );
    scaled::processes(&mut tx, now, r).await?;
    scaled::durability(&mut tx, r).await?;
    fleet(state, &mut tx, now, r).await?;
    let limits = [(events::BUS, "relay"), (events::NOTIFIER, "notifier"), (events::AUDITOR, "auditor")];
    for (consumer, service) in limits {
        let (n, oldest) = events::backlog(&mut tx, consumer).await?;
        let (old, name) = (age(oldest, now), format!("events for {service}"));
        let status = if old > LAG { "fault" } else { "ok" };
        let remedy = match consumer {
            events::BUS => "check NATS; what waits is published when it is back",
            events::AUDITOR => "start the auditor, or see its log: what it has not signed is not yet proven",
            _ => "start the notifier, or see its log",
        };
        r.add(&name, status, format!("{n} waiting, the oldest for {old} s"), remedy);
    }
    let (n, oldest) = commands::backlog(&mut tx).await?;
    let old = age(oldest, now);
    let most = state.settings().api.max_queued_commands;
    let status = if old > LAG || n >= most {
        "fault"
    } else if n >= most - most / 5 {
        "warning"
    } else {
        "ok"
    };
    let remedy = "start the scheduler, or see its log; when as many wait as may (`api.max_queued_commands`), requests \
                  are refused, but for those that stop something";
    r.add("commands", status, format!("{n} not decided of at most {most}, the oldest for {old} s"), remedy);
    let backlog = notifications::backlog(&mut tx).await?;
    let status = if backlog.dead > 0 { "warning" } else { "ok" };
    let detail = format!("{} given up, {} pending", backlog.dead, backlog.pending);
    r.add("notifications", status, detail, "see `GET /notifications?state=dead`, mend the channel, then retry them");
    let admins: Option<i64> = sql("SELECT COUNT(*) FROM tokens WHERE label = 'first start' AND revoked_at IS NULL")
        .fetch_scalar(&mut tx)
        .await?;
    let people: Option<i64> = sql("SELECT COUNT(*) FROM people").fetch_scalar(&mut tx).await?;
    if admins.unwrap_or(0) > 0 && people.unwrap_or(0) > 1 {
        r.add(
            "first token",
            "warning",
            "the token of the first start still works",
            "give people their own tokens, then revoke it",
        );
    }
    Ok(())
}

async fn fleet(state: &State, tx: &mut Tx, now: DateTime<Utc>, r: &mut Report) -> Result<(), Error> {
    let limit = state.settings().executor.disconnected_s.get();
    let sessions = sessions::all(tx).await?;
    let live = agents::live(tx).await?;
    let silent: Vec<&str> = live
        .iter()
        .filter(|a| {
            let seen = sessions.iter().find(|s| s.agent.0 == a.id).map(|s| s.last_seen_at);
            seen.is_none_or(|t| (now - t).to_std().unwrap_or_default() >= limit)
        })
        .map(|a| a.host.as_str())
        .collect();
    let status = if silent.is_empty() { "ok" } else { "warning" };
    let some = silent.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    let detail = match silent.len() {
        0 => format!("all {} connected", live.len()),
        n => format!("{n} of {} not connected: {some}{}", live.len(), if n > 10 { " …" } else { "" }),
    };
    r.add(
        "agents",
        status,
        detail,
        "check windlass-agent on those hosts and that they reach NATS; revoke agents of hosts that are gone",
    );
    Ok(())
}

fn keys(dir: &Path, r: &mut Report) {
    let mut exposed = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let mode = entry.metadata().map_or(0, |m| m.permissions().mode());
        if mode & 0o077 != 0 {
            exposed.push(entry.path().display().to_string());
        }
    }
    if exposed.is_empty() {
        r.add("keys", "ok", format!("{} is private", dir.display()), "");
    } else {
        let remedy = "chmod 600 them, and replace those that may have leaked";
        r.add("keys", "fault", format!("others may read {}", exposed.join(", ")), remedy);
    }
}
