//! The auditor: one leaf of the Merkle tree for every event, signed checkpoints, and an alarm when an event is missing,
//! comes twice, or the stored trail is not the one that was signed. One auditor at a time, by lease.

mod auditor;
mod order;
mod sink;
mod trail;

pub use auditor::Auditor;

use std::{path::PathBuf, sync::Arc};
use tokio::sync::Notify;
use windlass_bus::Context;
use windlass_contracts::{audit::note::NoteError, subjects};
use windlass_runtime::keys::KeyError;

/// Why the auditor cannot go on. Each names what to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{0} does not hold an nkey seed; restore it from a backup")]
    Seed(PathBuf),
    #[error("the store did not take the audit trail's step")]
    Store(#[from] windlass_store::Error),
    #[error("a checkpoint cannot be made or read")]
    Note(#[from] NoteError),
    #[error("an event cannot be written as a leaf")]
    Leaf(#[source] serde_json::Error),
    #[error("another auditor has taken over")]
    Superseded,
    #[error(
        "the audit trail is cut short: checkpoint {signed} was signed, the database has {stored} leaves. If an old backup \
         was restored on purpose, keep {witness} as evidence under another name and start again"
    )]
    CutShort { signed: u64, stored: u64, witness: String },
    #[error(
        "the audit trail was changed: leaf {leaf} is missing or does not have its hash; restore table audit_leaves"
    )]
    Changed { leaf: u64 },
    #[error(
        "the audit trail was rewritten: the root signed for size {size} is not the stored one; compare with {witness}"
    )]
    Rewritten { size: u64, witness: String },
    #[error("cannot {action} {path}")]
    Sink {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Runs until `ctx.shutdown` is cancelled; fails only if its signing key cannot be read.
pub async fn run(ctx: Context) -> Result<(), Error> {
    let doorbell = Arc::new(Notify::new());
    let (bell, bus, shutdown) = (doorbell.clone(), ctx.bus.clone(), ctx.shutdown.clone());
    // Without the subscription the poll finds the same events, later.
    ctx.spawn(async move {
        let listen = async {
            match bus.subscribe(subjects::ALL_EVENTS).await {
                Ok(mut events) => {
                    while events.next().await.is_some() {
                        bell.notify_one();
                    }
                }
                Err(error) => tracing::warn!(%error, "no doorbell for the auditor; it polls"),
            }
        };
        shutdown.run_until_cancelled(listen).await;
    });
    let auditor = Auditor {
        store: ctx.store.clone(),
        state_dir: ctx.settings.state_dir.clone(),
        key_file: ctx.settings.keys_dir().join("auditor.nk"),
        owner: ctx.owner.clone(),
        poll: ctx.settings.poll_s.get(),
        health: ctx.health.clone(),
        shutdown: ctx.shutdown.clone(),
        doorbell,
    };
    let result = auditor.run().await;
    // On a failure too: the listener must not outlive its service.
    ctx.shutdown.cancel();
    ctx.tracker.close();
    ctx.tracker.wait().await;
    result
}
