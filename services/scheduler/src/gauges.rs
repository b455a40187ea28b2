//! What the whole installation has waiting, as gauges of every scheduler: they read the same rows and say the same.

use crate::Error;
use std::time::Duration;
use windlass_bus::Context;
use windlass_domain::task::TaskState;
use windlass_store::{commands, deployments, events, tasks};

/// Between two looks; alerts are about minutes.
const EVERY: Duration = Duration::from_secs(10);

/// Measures until shutdown. A look that fails is a warning: the gauges stay as they were, and `readyz` tells of the database.
pub(crate) async fn run(ctx: Context) {
    loop {
        if let Err(error) = measure(&ctx).await {
            tracing::warn!(%error, "cannot measure what waits");
        }
        if ctx.shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

async fn measure(ctx: &Context) -> Result<(), Error> {
    let mut tx = ctx.store.read().await?;
    let now = tx.now().await?;
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let age = |t: Option<chrono::DateTime<chrono::Utc>>| t.map_or(0, |t| (now - t).num_seconds().max(0));
    let set = |name: &str, help: &str, label: (&str, &str), n: i64| {
        ctx.health.gauge(name, help, &[label.0]).with_label_values(&[label.1]).set(n);
    };
    for consumer in [events::BUS, events::NOTIFIER, events::AUDITOR] {
        let (n, oldest) = events::backlog(&mut tx, consumer).await?;
        let label = ("consumer", consumer);
        set("windlass_event_queue", "Events a consumer has yet to take", label, whole(n));
        set("windlass_event_queue_age_seconds", "Age of the oldest event not taken", label, age(oldest));
    }
    let (n, oldest) = commands::backlog(&mut tx).await?;
    let plain = |name: &str, help: &str, n: i64| {
        ctx.health.gauge(name, help, &[]).with_label_values::<&str>(&[]).set(n);
    };
    plain("windlass_commands_waiting", "Accepted commands that are not decided yet", whole(n));
    plain("windlass_commands_age_seconds", "Age of the oldest undecided command", age(oldest));
    let open = tasks::count_by_state(&mut tx).await?;
    let unknown = open.iter().find(|(s, _)| s == TaskState::Unknown.as_str()).map_or(0, |(_, n)| *n);
    plain("windlass_unknown_hosts", "Tasks whose outcome nobody knows", unknown);
    for (state, n) in deployments::count_active(&mut tx).await? {
        set(
            "windlass_deployments_active",
            "Deployments that hold an environment, by state",
            ("state", &state),
            whole(n),
        );
    }
    Ok(())
}
