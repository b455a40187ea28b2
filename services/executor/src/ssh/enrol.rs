//! The identity of a host that is reached by SSH: its agent made a key there, and shows the public half over a connection
//! that only the pinned host can have answered. So the executor may write the agent's row itself.

use super::Fault;
use crate::shared::Shared;
use nkeys::KeyPair;
use serde_json::json;
use uuid::Uuid;
use windlass_contracts::stdio::{Hi, Welcome};
use windlass_domain::{
    catalog::Host,
    event::{Aggregate, NewEvent, Severity},
    ids::{AgentId, EventId},
};
use windlass_store::{agents, events, ssh};

/// An event about a host, in the stream where enrolments are.
pub(super) fn host_event(host: &str, what: &str, severity: Severity, payload: serde_json::Value) -> NewEvent {
    NewEvent {
        id: EventId(Uuid::now_v7()),
        aggregate: Aggregate::Agent,
        aggregate_id: host.to_owned(),
        what: what.into(),
        project: None,
        environment: None,
        severity,
        actor: crate::dispatch::SERVICE.into(),
        at: chrono::Utc::now(),
        payload,
        trace: None,
    }
}

pub(super) async fn welcome(shared: &Shared, host: &Host, hi: &Hi) -> Result<Welcome, Fault> {
    let is_user = KeyPair::from_public_key(&hi.public_key).is_ok() && hi.public_key.starts_with('U');
    if !is_user {
        return Err(Fault::Agent { said: "its public key is not a user nkey".into() });
    }
    let state_dir = host.ssh.as_ref().map(|s| s.state_dir.clone()).unwrap_or_default();
    let mut tx = shared.ctx.store.write().await?;
    let now = tx.now().await?;
    let approval_key = ssh::control_key(&mut tx, ssh::APPROVAL_KEY).await?.ok_or(Fault::NoApprovalKey)?;
    let known = ssh::get(&mut tx, &host.name).await?;
    let live = agents::live_of_host(&mut tx, &host.name).await?;
    let (agent, news) = match live {
        Some(a) if a.public_key == hi.public_key => (AgentId(a.id), false),
        Some(a) if known.as_ref().is_some_and(|k| k.agent == Some(AgentId(a.id))) => {
            // Its state directory is gone. What the earlier identity was granted becomes UNKNOWN by its silence.
            agents::revoke(&mut tx, AgentId(a.id), now).await?;
            let payload = json!({ "agent": a.id, "host": &host.name, "reason": "its state on the host is gone" });
            events::append(&mut tx, host_event(&host.name, "agent.revoked", Severity::Notice, payload)).await?;
            (AgentId(Uuid::now_v7()), true)
        }
        Some(_) => return Err(Fault::HasAgent { host: host.name.clone() }),
        None if agents::key_known(&mut tx, &hi.public_key).await? => {
            return Err(Fault::Revoked { host: host.name.clone(), state_dir });
        }
        None => {
            // The database may be older than the host: its journal stays good when it keeps its name.
            let old = match hi.agent {
                Some(id) if agents::get(&mut tx, id).await?.is_none() => Some(id),
                _ => None,
            };
            (old.unwrap_or_else(|| AgentId(Uuid::now_v7())), true)
        }
    };
    if news {
        let row = agents::Agent {
            id: agent.0,
            host: host.name.clone(),
            public_key: hi.public_key.clone(),
            enrolled_at: now,
            revoked_at: None,
        };
        agents::insert(&mut tx, &row).await?;
        let payload = json!({ "agent": agent, "host": &host.name, "public_key": &hi.public_key, "by": "ssh" });
        events::append(&mut tx, host_event(&host.name, "agent.enrolled", Severity::Notice, payload)).await?;
    }
    ssh::put(&mut tx, &host.name, Some(agent), None, now).await?;
    tx.commit().await?;
    if news || !shared.directory.knows(agent) {
        shared.directory.refresh(&shared.ctx.store).await?;
    }
    Ok(Welcome { agent, host: host.name.clone(), executor_key: shared.key.public_key(), approval_key })
}
