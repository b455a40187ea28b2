//! The executor: claims works of its pools and carries them out, waves through the agents of their hosts and central steps
//! itself. All it knows is in the database; a process that dies is followed by any other.

mod agents;
mod allowance;
mod ansible;
mod central;
mod claims;
mod directory;
mod dispatch;
mod error;
mod hello;
mod late;
mod lease;
mod logs;
mod metrics;
mod plans;
mod plugins;
mod probes;
mod program;
mod secrets;
mod shared;
mod single;
mod ssh;
mod steplog;
mod traffic;
mod wave;

pub use error::Error;
pub use ssh::{ScanError, scan};

use allowance::Allowances;
use directory::Directory;
use logs::Logs;
use metrics::Metrics;
use nkeys::KeyPairType;
use plans::Plans;
use shared::{Router, Shared};
use std::sync::Arc;
use tokio::{sync::mpsc, task::JoinSet};
use windlass_bus::{Bus, BusOptions, Context, identity};
use windlass_contracts::subjects;
use windlass_runtime::Outbound;

/// Name of the key file that signs frames to agents; its public half is given to agents at enrolment.
pub const KEY_FILE: &str = "executor.nk";

/// Runs until `ctx.shutdown`. Dropping the future stops everything at once without releasing claims, as a crash would.
pub async fn run(ctx: Context) -> Result<(), Error> {
    let settings = Arc::clone(&ctx.settings);
    let key = identity::load_key(&settings.keys_dir().join(KEY_FILE), KeyPairType::User)?;
    let agents_bus = Bus::connect(BusOptions::agents(&settings), &ctx.health).await?;
    let (logs, log_items) = Logs::new();
    let (late, late_results) = mpsc::channel(1024);
    let shared = Arc::new(Shared {
        metrics: Metrics::new(&ctx.health),
        outbound: Outbound::new(settings.executor.allow_private_addresses.clone())?,
        agents: agents_bus.clone(),
        key,
        directory: Directory::default(),
        allowances: Allowances::default(),
        router: Router::default(),
        plans: Plans::default(),
        vault: windlass_runtime::Vault::new(&settings.vault)?,
        logs,
        late,
        ssh: ssh::Ssh::new(&ctx.settings.ssh),
        turns: traffic::Turns::new(ctx.store.clone(), ctx.owner.clone()),
        ctx: ctx.clone(),
    });
    let up = agents_bus.subscribe(subjects::ALL_AGENT_UP).await.map_err(Error::Subscribe)?;
    let hb =
        agents_bus.subscribe_shared(subjects::ALL_AGENT_HELLO, subjects::EXECUTORS).await.map_err(Error::Subscribe)?;
    let log = agents_bus.subscribe(subjects::ALL_AGENT_LOG).await.map_err(Error::Subscribe)?;
    let mut bells = Vec::new();
    for pool in &settings.executor.pools {
        bells.push(ctx.bus.subscribe(subjects::work(pool)).await.map_err(Error::Subscribe)?);
    }
    shared.directory.refresh_on_demand(&ctx.store).await;
    let mut parts: JoinSet<&'static str> = JoinSet::new();
    macro_rules! part {
        ($name:literal, $future:expr) => {{
            let future = $future;
            parts.spawn(async move {
                future.await;
                $name
            });
        }};
    }
    part!("frames", agents::tasks(Arc::clone(&shared), up));
    part!("hello", agents::hellos(Arc::clone(&shared), hb));
    part!("log frames", agents::logs(Arc::clone(&shared), log));
    part!("log writer", logs::run(Arc::clone(&shared), log_items, logs::CAP));
    part!("late results", late::results(Arc::clone(&shared), late_results));
    part!("hosts reached by SSH", ssh::run(Arc::clone(&shared)));
    part!("housekeeping", agents::housekeeping(Arc::clone(&shared)));
    ctx.health.ok("executor");
    // In this task, so that its end releases the claims before the parts they need are stopped.
    let claims = claims::run(Arc::clone(&shared), bells);
    tokio::pin!(claims);
    let ended = loop {
        tokio::select! {
            () = &mut claims => break None,
            part = parts.join_next(), if !parts.is_empty() => {
                // A part that ends because of the shutdown must not take the release of the claims with it.
                if !ctx.shutdown.is_cancelled() {
                    break Some(match part {
                        Some(Ok(name)) => name,
                        _ => "a part that broke",
                    });
                }
            }
        }
    };
    parts.shutdown().await;
    agents_bus.close().await;
    match ended {
        Some(name) => {
            ctx.health.failing("executor", format!("{name} ended"));
            Err(Error::Ended(name))
        }
        None => Ok(()),
    }
}
