//! The notifier: decides which channels hear an event, and delivers each message at least once with the same dedupe key,
//! until the far end took it or it is given up where people see it.

mod deliver;
mod intake;
mod markup;
mod mask;
mod message;
mod providers;
mod rules;
mod template;

use lettre::transport::smtp::client::Certificate;
use std::{path::PathBuf, sync::Arc, time::Duration};
use windlass_bus::{ConsumerSpec, Context, Outcome, Wake, consume, run_reconciler};
use windlass_contracts::subjects;
use windlass_runtime::{Health, Outbound, Sealer, Settings, outbound::OutboundError};
use windlass_store::{Store, notifications};

/// Name of the durable consumer, and of the rows in `event_queue`.
const SERVICE: &str = "notifier";
/// Beyond a delivery's deadline: time to record its outcome before anybody else may try.
const LEASE_MARGIN: Duration = Duration::from_secs(20);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// Events of one burst are taken together: a message may leave this much later, and each round is a turn on the database
/// that the work itself waits for.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the notifier cannot use the database")]
    Store(#[from] windlass_store::Error),
    #[error("setting `notifier.{key}` is not usable: {reason}")]
    Setting { key: &'static str, reason: String },
    #[error("setting `notifier.mail_ca_file`: {} cannot be read as PEM certificates", path.display())]
    CaFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("setting `notifier.mail_ca_file`: {} holds a certificate that cannot be used", path.display())]
    CaCertificate {
        path: PathBuf,
        #[source]
        source: lettre::transport::smtp::Error,
    },
    #[error("the HTTP client cannot be made")]
    Outbound(#[source] OutboundError),
}

/// How patiently and how hard it delivers.
#[derive(Debug, Clone)]
pub struct Knobs {
    /// One try's deadline.
    pub timeout: Duration,
    /// A try belongs to one process this long; longer than `timeout`.
    pub lease: Duration,
    pub tries: u32,
    pub retry_first: Duration,
    pub retry_max: Duration,
    /// Tries at once to one channel, over all processes.
    pub per_channel: u32,
    /// First and longest pause of a far end that failed several times in a row.
    pub break_first: Duration,
    pub break_max: Duration,
    /// A notification that is only ever told to come later is given up after this long.
    pub patience: Duration,
    /// Waiting notifications a channel may have; what is beyond is dead at once, and seen.
    pub max_pending: u64,
    /// Links start with it.
    pub public_url: String,
}

impl Knobs {
    pub fn of(s: &Settings) -> Result<Knobs, Error> {
        let bad = |key, reason: &str| Err(Error::Setting { key, reason: reason.into() });
        let (n, timeout) = (&s.notifier, s.notifier.timeout_s.get());
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            return bad("timeout_s", "it must be more than 0 and at most 120");
        }
        if n.tries == 0 {
            return bad("tries", "it must be at least 1");
        }
        if n.retry_first_s.get().is_zero() || n.retry_first_s.get() > n.retry_max_s.get() {
            return bad("retry_first_s", "it must be more than 0 and at most retry_max_s");
        }
        Ok(Knobs {
            timeout,
            lease: timeout + LEASE_MARGIN,
            tries: n.tries,
            retry_first: n.retry_first_s.get(),
            retry_max: n.retry_max_s.get(),
            per_channel: 4,
            break_first: Duration::from_secs(5),
            break_max: Duration::from_secs(300),
            patience: Duration::from_secs(24 * 3600),
            max_pending: 10_000,
            public_url: s.public_url(),
        })
    }
}

/// The notifier's work, apart from what wakes it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Notifier {
    store: Store,
    sealer: Sealer,
    outbound: Outbound,
    health: Health,
    knobs: Arc<Knobs>,
    mail_roots: Arc<Vec<Certificate>>,
}

impl Notifier {
    /// Refuses knobs under which two processes could try the same notification at once.
    pub fn new(
        store: Store,
        sealer: Sealer,
        outbound: Outbound,
        health: Health,
        knobs: Knobs,
        mail_roots: Vec<Certificate>,
    ) -> Result<Notifier, Error> {
        if knobs.lease <= knobs.timeout {
            return Err(Error::Setting { key: "timeout_s", reason: "a try's lease must outlast its deadline".into() });
        }
        Ok(Notifier { store, sealer, outbound, health, knobs: Arc::new(knobs), mail_roots: Arc::new(mail_roots) })
    }
}

/// Runs until `ctx.shutdown`.
pub async fn run(ctx: Context) -> Result<(), Error> {
    let s = &ctx.settings;
    let outbound = Outbound::new(s.notifier.allow_private_addresses.clone()).map_err(Error::Outbound)?;
    let roots = mail_roots(s)?;
    let (store, health) = (ctx.store.clone(), ctx.health.clone());
    let notifier = Notifier::new(store, ctx.sealer.clone(), outbound, health, Knobs::of(s)?, roots)?;

    let intake: Wake<()> = Wake::new();
    let channels: Wake<String> = Wake::new();
    let on_message =
        consume(ctx.clone(), ConsumerSpec::new(SERVICE, subjects::STREAM_EVENTS, SERVICE, subjects::ALL_EVENTS), {
            let intake = intake.clone();
            // A message only wakes: what there is to do is in the database.
            move |_| {
                intake.ring_after((), GATHER);
                std::future::ready(Outcome::Ack)
            }
        });
    let on_commit = listen(ctx.clone(), intake.clone());
    let take = run_reconciler(ctx.clone(), intake, 1, async || Ok(vec![()]), {
        let (notifier, channels) = (notifier.clone(), channels.clone());
        move |()| {
            let (notifier, channels) = (notifier.clone(), channels.clone());
            async move {
                for channel in notifier.take_events().await? {
                    channels.ring(channel);
                }
                Ok::<(), Error>(())
            }
        }
    });
    let due = {
        let notifier = notifier.clone();
        move || {
            let notifier = notifier.clone();
            async move { notifier.due_channels().await }
        }
    };
    let serve = run_reconciler(ctx.clone(), channels.clone(), s.notifier.parallel, due, {
        let notifier = notifier.clone();
        move |channel: String| {
            let (notifier, channels) = (notifier.clone(), channels.clone());
            async move {
                if let Some(pause) = notifier.serve(&channel).await? {
                    channels.ring_after(channel, pause);
                }
                Ok::<(), Error>(())
            }
        }
    });
    ctx.health.ok(SERVICE);
    tokio::join!(on_message, on_commit, take, serve);
    Ok(())
}

/// What this very process commits is heard without the way over NATS.
async fn listen(ctx: Context, intake: Wake<()>) {
    use tokio::sync::broadcast::error::RecvError;
    let mut committed = ctx.store.committed();
    loop {
        let heard = tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            heard = committed.recv() => heard,
        };
        match heard {
            Ok(_) | Err(RecvError::Lagged(_)) => intake.ring_after((), GATHER),
            Err(RecvError::Closed) => return,
        }
    }
}

impl Notifier {
    /// Channels with something to send, and the gauges, which are as old as the poll.
    async fn due_channels(&self) -> Result<Vec<String>, Error> {
        let mut tx = self.store.read().await?;
        let now = tx.now().await?;
        let backlog = notifications::backlog(&mut tx).await?;
        let gauge =
            |name, help, value: i64| self.health.gauge(name, help, &[]).with_label_values::<&str>(&[]).set(value);
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        gauge("windlass_notifications_pending", "Notifications that wait", count(backlog.pending));
        gauge("windlass_notifications_dead", "Notifications given up and not retried", count(backlog.dead));
        let age = backlog.oldest_pending.map_or(0, |t| (now - t).num_seconds().max(0));
        gauge("windlass_notifications_oldest_seconds", "Age of the oldest notification that waits", age);
        Ok(notifications::due_channels(&mut tx, now).await?)
    }
}

fn mail_roots(s: &Settings) -> Result<Vec<Certificate>, Error> {
    let Some(path) = &s.notifier.mail_ca_file else { return Ok(vec![]) };
    let pem = std::fs::read(path).map_err(|source| Error::CaFile { path: path.clone(), source })?;
    let c = Certificate::from_pem(&pem).map_err(|source| Error::CaCertificate { path: path.clone(), source })?;
    Ok(vec![c])
}
