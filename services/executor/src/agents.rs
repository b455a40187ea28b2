//! Frames from agents: opened, checked for shape, and handed to whoever drives the task. Everything in them is hostile
//! until shown otherwise: the sender is who the subject and the signature say, never who the body says.

use crate::{
    allowance::Kind,
    directory::{NotBelieved, QUARANTINE, REFRESH},
    dispatch::Say,
    hello,
    logs::LogItem,
    shared::{Delivery, LateResult, Shared, Signal},
};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use windlass_bus::{Message, Subscription};
use windlass_contracts::{
    frames::{DownBody, LogFrame, MAX_LOG_DATA, MAX_LOGS, Up, UpBody},
    sealed::is_seal_key,
    subjects,
};
use windlass_domain::{
    ids::{AgentId, TaskId},
    reference,
    task::StepReport,
};
use windlass_store::sessions;

/// Of one agent whose session is in doubt, the database is asked, and the agent answered, at most this often.
const DOUBT: Duration = Duration::from_secs(1);
const MAX_STEPS: usize = 1000;
const MAX_MESSAGE: usize = 4096;
const MAX_DETAIL: usize = 1000;
const MAX_NONCE: usize = 128;
const MAX_RELEASE: usize = 255;
/// Another executor may have written down another release meanwhile.
const RELEASE_FRESH: Duration = Duration::from_secs(300);
/// A release that changes faster is written down later.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

/// Which release each agent said it has, and when that was written down.
type Releases = HashMap<AgentId, (String, Instant)>;
/// Outputs of one step. Agents allow 64 KiB.
const MAX_OUTPUTS: usize = 192 * 1024;

/// Opens a message and counts what is not believed, or comes from who has said too much.
async fn open(shared: &Shared, message: &Message, kind: Kind) -> Option<Up> {
    let from = subjects::agent_of(&message.subject);
    let payer = from.filter(|a| shared.directory.knows(*a));
    let bytes = message.payload.len() as f64;
    let paid = shared.allowances.take(payer, kind, 1.0)
        && (kind != Kind::Logs || shared.allowances.take(payer, Kind::LogBytes, bytes));
    if !paid {
        shared.metrics.refused.with_label_values(&["too_much"]).inc();
        return None;
    }
    let opened = match from {
        None => Err(NotBelieved::Subject),
        Some(agent) => {
            if payer.is_none() {
                // Enrolled a moment ago, perhaps.
                shared.directory.refresh_on_demand(&shared.ctx.store).await;
            }
            shared.directory.open(agent, &message.payload)
        }
    };
    match opened {
        Ok(up) => Some(up),
        Err(why) => {
            shared.metrics.refused.with_label_values(&[why.label()]).inc();
            tracing::warn!(subject = message.subject, error = &why as &dyn std::error::Error, "frame not believed");
            None
        }
    }
}

/// Frames about tasks: `up.*.msg`.
pub(crate) async fn tasks(shared: Arc<Shared>, mut from: Subscription) {
    let mut doubts = Doubts::default();
    while let Some(message) = from.next().await {
        let Some(up) = open(&shared, &message, Kind::Tasks).await else { continue };
        if !accepted(&shared, &mut doubts, &up).await {
            continue;
        }
        let (agent, instance) = (up.agent, up.instance);
        let Some((task, kind, say)) = say_of(up.body) else {
            shared.metrics.refused.with_label_values(&["shape"]).inc();
            tracing::warn!(%agent, "frame with values out of bounds, or on the wrong subject");
            continue;
        };
        shared.metrics.frames.with_label_values(&[kind]).inc();
        let report = if let Say::Result(r) = &say { Some(r.clone()) } else { None };
        match shared.router.deliver(Some(agent), task, Signal::Said { task, instance: instance.clone(), say }) {
            Delivery::Taken => {}
            Delivery::WrongAgent => {
                shared.metrics.refused.with_label_values(&["other_task"]).inc();
                tracing::warn!(%agent, %task, "agent speaks about another agent's task");
            }
            Delivery::Full => shared.metrics.refused.with_label_values(&["full"]).inc(),
            Delivery::Foreign => {
                if let Some(report) = report.filter(|_| shared.allowances.take(Some(agent), Kind::Late, 1.0)) {
                    // Full is fine: it comes again.
                    let _ = shared.late.try_send(LateResult { agent, instance, task, report });
                }
            }
        }
    }
}

/// HELLO and heartbeats: `up.*.hb`, each to one executor.
pub(crate) async fn hellos(shared: Arc<Shared>, mut from: Subscription) {
    let mut doubts = Doubts::default();
    let mut releases: Releases = HashMap::new();
    while let Some(message) = from.next().await {
        let Some(up) = open(&shared, &message, Kind::Hello).await else { continue };
        match up.body {
            UpBody::Hello(h) => {
                // What it lists is looked up in one transaction, which holds up whoever else writes.
                if !shared.allowances.take(Some(up.agent), Kind::Settle, 1.0 + h.open.len() as f64) {
                    shared.metrics.refused.with_label_values(&["too_much"]).inc();
                    continue;
                }
                shared.metrics.frames.with_label_values(&["hello"]).inc();
                if let Err(error) = hello::take(&shared, up.agent, up.instance, h).await {
                    // The agent says it again.
                    shared.allowances.untold(up.agent);
                    tracing::warn!(agent = %up.agent, error = &error as &dyn std::error::Error, "HELLO not taken");
                }
            }
            UpBody::Heartbeat { journal_seq, current, .. } => {
                shared.metrics.frames.with_label_values(&["heartbeat"]).inc();
                if !shared.directory.heard(up.agent, &up.instance, Some(journal_seq)) {
                    accepted(
                        &shared,
                        &mut doubts,
                        &Up { body: UpBody::Heartbeat { journal_seq, running: vec![], current: None }, ..up },
                    )
                    .await;
                } else if let Some(current) = current {
                    remember(&shared, &mut releases, up.agent, &up.instance, current).await;
                }
            }
            _ => shared.metrics.refused.with_label_values(&["shape"]).inc(),
        }
    }
}

/// Writes down which release a host has now, when it is another than before: plans and drift compare with it.
async fn remember(shared: &Shared, releases: &mut Releases, agent: AgentId, instance: &str, current: String) {
    let current = tidy(cut(current, MAX_RELEASE));
    let told = releases.get(&agent);
    if told.is_some_and(|(known, at)| *known == current && at.elapsed() < RELEASE_FRESH || at.elapsed() < RELEASE_PAUSE)
    {
        return;
    }
    let stored = async {
        let mut tx = shared.ctx.store.write().await?;
        sessions::set_current(&mut tx, agent, instance, &current).await?;
        tx.commit().await
    };
    match stored.await {
        Ok(()) => drop(releases.insert(agent, (current, Instant::now()))),
        // The next heartbeat brings it again.
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, %agent, "a host's release was not noted")
        }
    }
}

/// Log frames: `up.*.log`.
pub(crate) async fn logs(shared: Arc<Shared>, mut from: Subscription) {
    let mut doubts = Doubts::default();
    while let Some(message) = from.next().await {
        let Some(up) = open(&shared, &message, Kind::Logs).await else { continue };
        if !accepted(&shared, &mut doubts, &up).await {
            continue;
        }
        match up.body {
            UpBody::Log(frame) if fits(&frame) => {
                shared.logs.push(LogItem { agent: up.agent, instance: up.instance, frame });
            }
            UpBody::Logs { frames } if (1..=MAX_LOGS).contains(&frames.len()) && frames.iter().all(fits) => {
                // One was paid for.
                if !shared.allowances.take(Some(up.agent), Kind::Logs, (frames.len() - 1) as f64) {
                    shared.metrics.refused.with_label_values(&["too_much"]).inc();
                    continue;
                }
                for frame in frames {
                    shared.logs.push(LogItem { agent: up.agent, instance: up.instance.clone(), frame });
                }
            }
            _ => shared.metrics.refused.with_label_values(&["shape"]).inc(),
        }
    }
}

fn fits(frame: &LogFrame) -> bool {
    frame.data.len() <= MAX_LOG_DATA * 4 / 3 + 4 && (frame.step as usize) < MAX_STEPS
}

/// When each agent in doubt was last looked up.
#[derive(Debug, Default)]
struct Doubts(HashMap<AgentId, Instant>);

/// Whether the frame comes from the journal instance that said HELLO. Otherwise the database is asked (another executor may
/// have taken the HELLO), and then the agent.
async fn accepted(shared: &Shared, doubts: &mut Doubts, up: &Up) -> bool {
    if shared.directory.heard(up.agent, &up.instance, None) {
        return true;
    }
    if doubts.0.get(&up.agent).is_some_and(|at| at.elapsed() < DOUBT) {
        return false;
    }
    doubts.0.insert(up.agent, Instant::now());
    let session = async { sessions::get(&mut shared.ctx.store.read().await?, up.agent).await };
    match session.await {
        Ok(Some(s)) => {
            shared.directory.set_session(up.agent, &s.instance, s.last_seen_at);
            if shared.directory.heard(up.agent, &up.instance, None) {
                doubts.0.remove(&up.agent);
                return true;
            }
            if s.instance.starts_with(QUARANTINE) {
                shared.metrics.refused.with_label_values(&["quarantined"]).inc();
                return false;
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a session");
            return false;
        }
    }
    shared.metrics.refused.with_label_values(&["other_instance"]).inc();
    shared.send(up.agent, None, DownBody::WhoAreYou { challenge: None }).await;
    false
}

/// The frame as one about a task, its texts cut and its numbers checked. `None`: it is none, or beyond all bounds.
fn say_of(body: UpBody) -> Option<(TaskId, &'static str, Say)> {
    Some(match body {
        UpBody::Accept { task, nonce, seal_to, .. } => {
            let fits = (16..=MAX_NONCE).contains(&nonce.len()) && nonce.bytes().all(|b| b.is_ascii_alphanumeric());
            let fits = fits && seal_to.as_deref().is_none_or(is_seal_key);
            (task, "accept", fits.then_some(Say::Accept { nonce, seal_to })?)
        }
        UpBody::Refuse { task, code, detail } => {
            (task, "refuse", Say::Refuse { code, detail: cut(detail, MAX_DETAIL) })
        }
        UpBody::Started { task } => (task, "started", Say::Started),
        UpBody::Step { task, report } => (task, "step", Say::Step(step(report)?)),
        UpBody::Result { task, mut report } => {
            if report.steps.len() > MAX_STEPS {
                return None;
            }
            let steps: Option<Vec<StepReport>> = std::mem::take(&mut report.steps).into_iter().map(step).collect();
            report.steps = steps?;
            let mut indices: Vec<u32> = report.steps.iter().map(|s| s.index).collect();
            indices.sort_unstable();
            indices.dedup();
            if indices.len() != report.steps.len() {
                return None;
            }
            (task, "result", Say::Result(report))
        }
        UpBody::Hello(_) | UpBody::Heartbeat { .. } | UpBody::Log(_) | UpBody::Logs { .. } => return None,
    })
}

fn step(mut s: StepReport) -> Option<StepReport> {
    s.message = cut(s.message, MAX_MESSAGE);
    let text = serde_json::to_string(&s.outputs).ok()?;
    // JSON of control characters is longer than they are.
    if text.len() > MAX_OUTPUTS {
        return None;
    }
    s.outputs = std::mem::take(&mut s.outputs).into_iter().map(|(k, v)| (tidy(k), tidied(v))).collect();
    ((s.index as usize) < MAX_STEPS).then_some(s)
}

/// What a script wrote, without what PostgreSQL would choke on or what stands for a reference.
fn tidied(value: Value) -> Value {
    match value {
        Value::String(s) => Value::String(tidy(s)),
        Value::Array(l) => Value::Array(l.into_iter().map(tidied).collect()),
        Value::Object(m) => Value::Object(m.into_iter().map(|(k, v)| (tidy(k), tidied(v))).collect()),
        other => other,
    }
}

fn tidy(text: String) -> String {
    if text.contains('\0') || reference::is_marked(&text) {
        text.replace(['\0', '\u{FDD0}', '\u{FDD1}'], "\u{FFFD}")
    } else {
        text
    }
}

/// At most `max` bytes, without control characters that PostgreSQL or a terminal would choke on.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let end = (0..=max).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        text = text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect();
    }
    text
}

/// Keeps the directory fresh and writes down who was heard.
pub(crate) async fn housekeeping(shared: Arc<Shared>) {
    let settings = &shared.ctx.settings.executor;
    let every =
        REFRESH.min(shared.ctx.settings.poll_s.get()).min(settings.suspect_s.get() / 3).max(Duration::from_millis(50));
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let saved = async {
            let unsaved = shared.directory.take_unsaved();
            if !unsaved.is_empty() {
                let mut tx = shared.ctx.store.write().await?;
                for (agent, instance, seq, at) in unsaved {
                    sessions::touch(&mut tx, agent, &instance, seq, at).await?;
                }
                tx.commit().await?;
            }
            shared.directory.refresh(&shared.ctx.store).await?;
            shared.allowances.keep(|a| shared.directory.knows(a));
            let mut tx = shared.ctx.store.read().await?;
            windlass_store::tasks::count_by_state(&mut tx).await
        };
        match saved.await {
            Ok(counts) => {
                for state in ["pending", "offered", "granted", "unknown"] {
                    let n = counts.iter().find(|(s, _)| s == state).map_or(0, |(_, n)| *n);
                    shared.metrics.tasks.with_label_values(&[state]).set(n);
                }
                shared.directory.count(settings, &shared.metrics);
            }
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot refresh the agents"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_texts_are_cut_and_cleaned() {
        assert_eq!(cut("é".repeat(10), 5), "éé…");
        assert_eq!(cut("a\0b\u{1b}[31m\n".into(), 100), "a\u{fffd}b\u{fffd}[31m\n");
    }

    #[test]
    fn values_out_of_bounds_are_no_frames() {
        let task: TaskId = uuid::Uuid::nil().into();
        let accept = |nonce: &str| say_of(UpBody::Accept { seal_to: None, task, nonce: nonce.into(), journal_seq: 0 });
        assert!(accept(&"a".repeat(32)).is_some());
        for bad in ["", "short", &"a".repeat(129), "aaaaaaaaaaaaaaaa\n", "'; drop table tasks"] {
            assert!(accept(bad).is_none(), "{bad:?}");
        }
        let at = chrono::Utc::now();
        let step = |index| StepReport {
            outputs: Default::default(),
            index,
            outcome: windlass_domain::task::StepOutcome::Succeeded,
            exit_code: Some(0),
            started_at: at,
            ended_at: at,
            message: String::new(),
            left_processes: 0,
        };
        let report = |steps| windlass_domain::task::TaskReport {
            outcome: windlass_domain::task::ReportedOutcome::Succeeded,
            steps,
            log_bytes: 0,
            log_dropped: 0,
            log_frames: 0,
        };
        let result = |steps| say_of(UpBody::Result { task, report: report(steps) });
        assert!(result(vec![step(0), step(1)]).is_some());
        assert!(result(vec![step(0), step(0)]).is_none());
        assert!(result(vec![step(u32::MAX)]).is_none());
        assert!(say_of(UpBody::Heartbeat { journal_seq: 0, running: vec![], current: None }).is_none());
    }
}
