//! Windows hosts over OpenSSH: there is no agent for them, so its decisions are made here (`near`) and its journal, runners
//! and records are kept there by a PowerShell script (`host.ps1`). To all other executors the host is an agent like any other.

mod far;
mod generate;
mod journal;
mod log;
mod near;
#[cfg(test)]
mod near_tests;
#[cfg(test)]
mod tests;
mod wire;

use super::{
    Fault,
    bridge::{End, Need},
    connect, enrol, targets,
};
use crate::shared::Shared;
use near::Near;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use windlass_contracts::{frames::UpBody, stdio::Hi, subjects};
use windlass_domain::catalog::{Host, Ssh};

/// Connects, and does an agent's work for the host until nobody needs it. `met` is called when the host is known and listens.
pub(super) async fn carry(
    shared: &Arc<Shared>,
    host: &Arc<Host>,
    ssh: &Ssh,
    stop: &CancellationToken,
    met: impl FnOnce(),
) -> Result<End, Fault> {
    let settings = &shared.ctx.settings.ssh;
    let target = targets::target(shared, host).await?;
    let session = connect::connect(&target, settings.connect_s.get()).await?;
    let turn = shared.ssh.turn().await;
    let mut far = far::Far::start(&session, ssh, settings.push_s.get()).await?;
    let who = near::meet(&mut far).await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let hi = Hi { version, public_key: who.key.public_key(), agent: who.agent };
    let welcome = enrol::welcome(shared, host, &hi).await?;
    let mut down = shared.agents.subscribe(subjects::agent_down(welcome.agent)).await?;
    let mut near = Near::open(far, who, host, ssh, &welcome).await?;
    met();
    drop(turn);
    tracing::info!(host = host.name, agent = %welcome.agent, "reached by SSH, with PowerShell");
    let mut need = Need::new(settings.idle_s.get());
    let mut look = tokio::time::interval(need.every());
    let ended = loop {
        let wait = near.tick().await?;
        say(shared, &mut near).await?;
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            fault = near.far.ended() => return Err(fault),
            frame = down.next() => match frame {
                Some(m) => near.down(&m.payload).await?,
                None => return Err(Fault::Cut { why: "the subscription to its frames ended".into() }),
            },
            _ = look.tick() => if let Some(end) = need.look(shared, host, welcome.agent)? {
                break end;
            },
            () = tokio::time::sleep(wait) => {}
        }
    };
    session.close().await;
    Ok(ended)
}

async fn say(shared: &Shared, near: &mut Near) -> Result<(), Fault> {
    for up in std::mem::take(&mut near.out) {
        let subject = match &up.body {
            UpBody::Hello(_) | UpBody::Heartbeat { .. } => subjects::agent_hello(up.agent),
            UpBody::Log(_) | UpBody::Logs { .. } => subjects::agent_log(up.agent),
            _ => subjects::agent_up(up.agent),
        };
        let frame = near.seal(&up).map_err(Fault::Frame)?;
        if let Err(error) = shared.agents.publish(subject, frame).await {
            // What counts is said again.
            tracing::debug!(agent = %up.agent, error = &error as &dyn std::error::Error, "a frame was not carried");
        }
    }
    Ok(())
}
