//! HELLO: which journal speaks for an agent, and what to do about the tasks it lists and those it does not.
//!
//! A new journal instance takes over: what was granted to the old one becomes UNKNOWN, because the drivers see a grant to an
//! instance that is no longer the session's. An instance that speaks again after it was replaced means two machines hold one
//! identity; a journal that is behind what was heard of it means a restored disk. Neither can be believed about anything, so
//! the agent is quarantined until it is enrolled anew. All that needs a HELLO that is known to be fresh (`fresh`).

mod fresh;

use crate::{
    agents::cut,
    allowance::{Kind, Tell},
    directory::QUARANTINE,
    shared::{Shared, Signal, agent_event},
};
use fresh::Kept;
use std::collections::{HashMap, HashSet};
use windlass_contracts::frames::{DownBody, Hello, OpenState};
use windlass_domain::{
    Timestamp,
    event::Severity,
    ids::{AgentId, TaskId, WorkId},
    plan::segment,
    task::{Task, TaskState},
    work::Desired,
};
use windlass_store::{
    Error, Tx, events,
    sessions::{self, Session},
    tasks, works,
};

const MAX_OPEN: usize = 2000;
const MAX_FACTS: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    First,
    Same,
    /// A new journal: the machine was installed anew, or its state directory was lost.
    Replaces,
    Cloned,
    /// The journal is behind what was heard of it.
    RolledBack,
    Quarantined,
}

fn judge(old: Option<&Session>, replaced: &[String], instance: &str, journal_seq: u64) -> Verdict {
    match old {
        None => Verdict::First,
        Some(s) if s.instance.starts_with(QUARANTINE) => Verdict::Quarantined,
        Some(s) if s.instance == instance && journal_seq < s.journal_seq => Verdict::RolledBack,
        Some(s) if s.instance == instance => Verdict::Same,
        Some(_) if replaced.iter().any(|r| r == instance) => Verdict::Cloned,
        Some(_) => Verdict::Replaces,
    }
}

/// Takes a HELLO.
pub(crate) async fn take(shared: &Shared, agent: AgentId, instance: String, mut h: Hello) -> Result<(), Error> {
    let fits = (1..=64).contains(&instance.len()) && instance.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let Some(host) = shared.directory.host_of(agent).filter(|_| fits) else {
        shared.metrics.refused.with_label_values(&["shape"]).inc();
        return Ok(());
    };
    h.open.truncate(MAX_OPEN);
    let mut tx = shared.ctx.store.write().await?;
    let now = tx.now().await?;
    let old = sessions::lock(&mut tx, agent).await?;
    let mut kept = old.as_ref().map(|s| Kept::of(&s.facts)).unwrap_or_default();
    let verdict = judge(old.as_ref(), &kept.replaced, &instance, h.journal_seq);
    if let Some(s) = old.as_ref().filter(|_| !kept.believes(verdict, &h, now)) {
        return ask(shared, tx, s, kept, verdict, &h, now).await;
    }
    if verdict == Verdict::Replaces && !shared.allowances.take(Some(agent), Kind::Replace, 1.0) {
        // Each is a record for ever. A machine that is really installed anew says it again.
        shared.metrics.refused.with_label_values(&["too_much"]).inc();
        tracing::warn!(%agent, host, "an agent's journal changes all the time; its HELLO waits");
        return Ok(());
    }
    let payload = |reason: &str| serde_json::json!({ "host": host, "instance": instance, "reason": reason });
    let mut stored_instance = instance.clone();
    match verdict {
        Verdict::Quarantined => {
            shared.metrics.refused.with_label_values(&["quarantined"]).inc();
            if let Some(s) = &old {
                shared.directory.set_session(agent, &s.instance, s.last_seen_at);
            }
            return Ok(());
        }
        Verdict::First => {
            let event = agent_event(agent, "agent.connected", Severity::Info, payload("first HELLO"));
            events::append(&mut tx, event).await?;
        }
        Verdict::Replaces => {
            let reason = "another journal answers for the host; what was granted to the earlier one is unknown";
            events::append(&mut tx, agent_event(agent, "agent.replaced", Severity::Notice, payload(reason))).await?;
            kept.replace(old.as_ref().map(|s| s.instance.clone()).unwrap_or_default());
        }
        Verdict::Cloned => {
            stored_instance = format!("{QUARANTINE}cloned-{instance}");
            let reason = "two machines use one agent identity; revoke it (`windlass hosts`) and enroll each host anew";
            events::append(&mut tx, agent_event(agent, "agent.cloned", Severity::Alert, payload(reason))).await?;
        }
        Verdict::RolledBack => {
            stored_instance = format!("{QUARANTINE}rolled-back-{instance}");
            let reason = "the agent's journal is behind what it reported before, so its disk was restored; revoke the agent \
                          and enroll the host anew";
            events::append(&mut tx, agent_event(agent, "agent.journal_lost", Severity::Alert, payload(reason))).await?;
        }
        Verdict::Same => {}
    }
    let complete_since = kept.complete_since(&h, now);
    if verdict == Verdict::Same {
        kept.same(&h, now);
    } else {
        kept.changed(&h);
    }
    let mut found = Found::default();
    if !stored_instance.starts_with(QUARANTINE) {
        found = settle(&mut tx, shared, agent, &host, &instance, &h, complete_since, now).await?;
    }
    let asked = found.doubted.map(|since| kept.ask_since(since, h.journal_seq, now));
    sessions::upsert(&mut tx, &session(agent, &host, &stored_instance, &h, &kept, now)).await?;
    tx.commit().await?;
    shared.directory.set_session(agent, &stored_instance, now);
    if stored_instance.starts_with(QUARANTINE) {
        return Ok(());
    }
    shared.send(agent, None, DownBody::HelloAck { instance: instance.clone() }).await;
    for (task, work, epoch) in found.fences {
        shared.send(agent, None, DownBody::Fence { task, work, epoch }).await;
    }
    for task in found.nudges {
        shared.router.deliver(None, task, Signal::Nudge(task));
    }
    // After the acknowledgement, which ends what was asked before.
    if let Some(asked) = asked {
        shared.metrics.frames.with_label_values(&["hello_asked"]).inc();
        shared.send(agent, None, DownBody::WhoAreYou { challenge: Some(asked.challenge) }).await;
    }
    Ok(())
}

/// The HELLO would change something to the worse, and may be one that somebody says again: nothing of it is taken, and the
/// agent is asked to say it in answer to a challenge.
async fn ask(
    shared: &Shared,
    mut tx: Tx,
    old: &Session,
    mut kept: Kept,
    verdict: Verdict,
    h: &Hello,
    now: Timestamp,
) -> Result<(), Error> {
    if kept.answers && h.answers.is_none() {
        shared.metrics.refused.with_label_values(&["stale_hello"]).inc();
    }
    let (asked, new) = kept.ask(verdict, h, old.journal_seq, now);
    if new {
        let mut facts = old.facts.as_object().cloned().unwrap_or_default();
        kept.write(&mut facts);
        sessions::upsert(&mut tx, &Session { facts: facts.into(), ..old.clone() }).await?;
        tx.commit().await?;
    } else {
        drop(tx);
    }
    shared.metrics.frames.with_label_values(&["hello_asked"]).inc();
    shared.send(old.agent, None, DownBody::WhoAreYou { challenge: Some(asked.challenge) }).await;
    Ok(())
}

fn session(agent: AgentId, host: &str, instance: &str, h: &Hello, kept: &Kept, now: Timestamp) -> Session {
    let mut facts = match &h.facts {
        serde_json::Value::Object(f) if h.facts.to_string().len() <= MAX_FACTS => f.clone(),
        _ => serde_json::Map::new(),
    };
    kept.write(&mut facts);
    // PostgreSQL's jsonb holds no NUL.
    if serde_json::Value::Object(facts.clone()).to_string().contains("\\u0000") {
        facts.clear();
        kept.write(&mut facts);
    }
    Session {
        agent,
        host: host.to_owned(),
        instance: instance.to_owned(),
        boot_id: cut(h.boot_id.clone(), 128),
        journal_seq: h.journal_seq,
        agent_version: cut(h.version.clone(), 64),
        last_seen_at: now,
        facts: facts.into(),
    }
}

/// What a comparison of the agent's list with the database leads to.
#[derive(Debug, Default)]
struct Found {
    fences: Vec<(TaskId, WorkId, u64)>,
    nudges: Vec<TaskId>,
    /// Tasks are not listed that were granted up to then, but the list may be older than that.
    doubted: Option<Timestamp>,
}

/// Compares what the agent lists with what the database holds. The list holds all that was granted before `complete_since`;
/// `None`: nobody knows how old it is.
#[expect(clippy::too_many_arguments, reason = "what a HELLO is compared with, each once")]
async fn settle(
    tx: &mut Tx,
    shared: &Shared,
    agent: AgentId,
    host: &str,
    instance: &str,
    h: &Hello,
    complete_since: Option<Timestamp>,
    now: Timestamp,
) -> Result<Found, Error> {
    let mut found = Found::default();
    let listed: HashMap<TaskId, OpenState> = h.open.iter().map(|o| (o.task, o.state)).collect();
    let rows = tasks::open_of_agent(tx, agent).await?;
    let mine: HashSet<TaskId> = rows.iter().map(|r| r.task.id).collect();
    for r in rows {
        // What brings a host back to its load balancer goes on in an abort.
        let clean_up = segment::of_traffic(r.segment).is_some_and(|(_, _, attach)| attach);
        let abort = !clean_up && works::desired_now(tx, r.work).await? == Some(Desired::Abort);
        match fence_open(&r.task, instance, listed.get(&r.task.id).copied(), abort, now) {
            Fence::Yes => {}
            Fence::Unlisted { granted } if complete_since.is_some_and(|since| granted < since) => {}
            Fence::Unlisted { granted } => {
                found.doubted = found.doubted.max(Some(granted));
                found.nudges.push(r.task.id);
                continue;
            }
            Fence::No => {
                found.nudges.push(r.task.id);
                continue;
            }
        }
        let epoch = works::claim_state(tx, r.work).await?.map_or(0, |c| c.epoch);
        found.fences.push((r.task.id, r.work, epoch));
    }
    for (task, state) in listed.into_iter().filter(|(t, _)| !mine.contains(t)) {
        match tasks::get(tx, task).await?.filter(|r| r.task.agent == Some(agent)) {
            // Settled here: its report is still to come and to be acknowledged, or it holds an offer that was withdrawn.
            Some(r) if state != OpenState::Ended => found.fences.push((task, r.work, 0)),
            Some(_) => {}
            None => {
                // The database was restored, or somebody forged a task: nothing here ever granted it.
                let reason = "the agent holds a task the database does not know; it is told to stop it. \
                              If the database was restored from a backup, check the host by hand";
                orphan(
                    tx,
                    shared,
                    agent,
                    task,
                    serde_json::json!({ "host": host, "task": task, "state": state, "reason": reason }),
                )
                .await?;
                found.fences.push((task, WorkId(uuid::Uuid::nil()), 0));
            }
        }
    }
    shared.metrics.frames.with_label_values(&["hello_settled"]).inc();
    Ok(found)
}

/// Records a task that nobody granted: once, and only so many of one agent an hour, because an agent can make them up.
pub(crate) async fn orphan(
    tx: &mut Tx,
    shared: &Shared,
    agent: AgentId,
    task: TaskId,
    mut payload: serde_json::Value,
) -> Result<(), Error> {
    match shared.allowances.orphan(agent, task) {
        Tell::No => return Ok(()),
        Tell::Yes => {}
        Tell::More => {
            payload["reason"] =
                "the agent speaks of more tasks the database does not know; those of the next hour are not \
                                 recorded one by one. Check the host by hand"
                    .into();
        }
    }
    events::append(tx, agent_event(agent, "agent.orphan", Severity::Alert, payload)).await.map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    No,
    Yes,
    /// The same journal does not know it: it never accepted it, or has it only as fenced. Only its own FENCED report proves
    /// that. But a list that is older than the grant says nothing, and a fence stops what runs.
    Unlisted {
        granted: Timestamp,
    },
}

/// Whether an open task of the database is to be fenced, given how the agent lists it.
fn fence_open(t: &Task, instance: &str, listed: Option<OpenState>, abort: bool, now: Timestamp) -> Fence {
    let granted_here = t.granted.as_ref().is_some_and(|g| g.instance == instance);
    let unlisted = || t.granted_at.map_or(Fence::No, |granted| Fence::Unlisted { granted });
    match t.state {
        TaskState::Granted | TaskState::Unknown if !granted_here => Fence::No,
        TaskState::Granted | TaskState::Unknown if abort || t.stop.is_some() => Fence::Yes,
        // A grant of this very moment may have crossed the HELLO.
        TaskState::Granted if t.granted_at.is_some_and(|at| now - at <= chrono::Duration::seconds(1)) => Fence::No,
        TaskState::Granted if listed.is_none() => unlisted(),
        TaskState::Unknown if listed.is_none() && t.report.is_none() => unlisted(),
        _ => Fence::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session_of(instance: &str, journal_seq: u64) -> Session {
        Session {
            agent: uuid::Uuid::nil().into(),
            host: "h".into(),
            instance: instance.into(),
            boot_id: "b".into(),
            journal_seq,
            agent_version: "1".into(),
            last_seen_at: "2026-11-21T00:00:00Z".parse().expect("time"),
            facts: serde_json::json!({}),
        }
    }

    #[test]
    fn which_journal_is_believed() {
        let s = session_of("b", 7);
        assert_eq!(judge(None, &[], "a", 0), Verdict::First);
        assert_eq!(judge(Some(&s), &[], "b", 7), Verdict::Same);
        assert_eq!(judge(Some(&s), &[], "b", 6), Verdict::RolledBack);
        assert_eq!(judge(Some(&s), &[], "c", 0), Verdict::Replaces);
        assert_eq!(judge(Some(&s), &["a".into()], "a", 99), Verdict::Cloned);
        assert_eq!(judge(Some(&session_of("!cloned-a", 1)), &[], "z", 0), Verdict::Quarantined);
    }
}
