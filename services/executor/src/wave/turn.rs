//! One turn of a wave: a transaction in which everything that came in meanwhile is decided at once.

use super::{CHUNK, Role, Wave};
use crate::{
    directory::QUARANTINE,
    dispatch::{self, Decision, Draft, Input, NewTask, SERVICE, Say},
    shared::work_event,
};
use std::collections::BTreeMap;
use tokio::time::{Duration, Instant};
use uuid::Uuid;
use windlass_contracts::subjects;
use windlass_domain::{
    Timestamp,
    event::Severity,
    ids::{AgentId, TaskId},
    task::{Refusal, Task, TaskState},
    work::{Desired, FailureClass, WaveHost, WorkResult},
};
use windlass_store::{
    Error, Tx, agents, events, sessions,
    tasks::{self, StoredTask},
    words::{self, Words},
    works,
};

fn over(since: Timestamp, limit: Duration, now: Timestamp) -> bool {
    (now - since).to_std().is_ok_and(|d| d >= limit)
}

impl Wave {
    pub(super) fn anything_due(&self) -> bool {
        let now = chrono::Utc::now();
        self.board.tasks.values().any(|t| self.overdue(t, now).is_some())
    }

    /// What the passing of time does to a task.
    fn overdue(&self, row: &StoredTask, now: Timestamp) -> Option<Input> {
        let t = &row.task;
        let seen = t.agent.and_then(|a| self.shared.directory.seen(a));
        match t.state {
            TaskState::Offered if self.desired == Desired::Hold => None,
            TaskState::Offered => self.offer_overdue(t, now),
            TaskState::Granted => {
                // A revoked agent is not seen any more, whatever it sends.
                if seen.as_ref().zip(t.granted.as_ref()).is_some_and(|(s, g)| g.instance != s.instance) {
                    let reason = format!(
                        "another agent journal answers for host {}: it was installed anew or its agent's state was lost",
                        t.host
                    );
                    return Some(Input::Silent { task: t.id, reason });
                }
                let since = seen.map_or(self.listening_since, |s| s.at).max(t.granted_at?).max(self.listening_since);
                over(since, self.shared.ctx.settings.executor.unknown_s.get(), now).then(|| Input::Silent {
                    task: t.id,
                    reason: format!(
                        "host {} has been silent since {}; it may have run, may still run",
                        t.host,
                        since.format("%H:%M:%S UTC")
                    ),
                })
            }
            _ => None,
        }
    }

    /// Nobody took the offer in time, or the host stays locked.
    fn offer_overdue(&self, t: &Task, now: Timestamp) -> Option<Input> {
        let settings = &self.shared.ctx.settings.executor;
        let refused = |reason| Some(Input::TimedOut { task: t.id, reason, class: FailureClass::Refused });
        if let Some((since, why)) = self.gate.ungranted(t.id).and_then(|u| Some((u.since, u.why?))) {
            let limit = settings.host_wait_s.get();
            let reason = format!("not started: {why}; it was waited for {} s", limit.as_secs());
            return if over(since, limit, now) { refused(reason) } else { None };
        }
        if !over(self.offered_since(t), settings.offer_timeout_s.get(), now) {
            return None;
        }
        if let Some(why) = self.grants.why(t.id) {
            return refused(format!("not started: {why}"));
        }
        let seen = t.agent.and_then(|a| self.shared.directory.seen(a));
        let quiet = seen.is_none_or(|s| over(s.at, settings.suspect_s.get(), now));
        let reason = if let Some(why) = self.shared.ssh.error(&t.host).filter(|_| quiet) {
            format!("host {} is not reachable over SSH: {why}", t.host)
        } else if quiet {
            format!("host {} is not reachable: its agent has not been heard; check `windlass-agent` there", t.host)
        } else {
            format!("the agent of host {} did not take the task in time", t.host)
        };
        Some(Input::TimedOut { task: t.id, reason, class: FailureClass::Unreachable })
    }

    /// Since when an offer can have been taken: not before we listened, nor in a pause, nor while its host was locked.
    pub(super) fn offered_since(&self, t: &Task) -> Timestamp {
        let unlocked = self.gate.ungranted(t.id).map(|u| u.until);
        t.offered_at.into_iter().chain(self.released).chain(unlocked).fold(self.listening_since, Timestamp::max)
    }

    /// One transaction. `fresh`: look for words of people. `true`: all is settled.
    pub(super) async fn turn(&mut self, mut inputs: Vec<Input>, overdue: bool, fresh: bool) -> Result<bool, Error> {
        let making: Vec<WaveHost> = self.missing.iter().take(CHUNK).cloned().collect();
        if let Ok(view) = &self.plan {
            // Specs are rendered and hashed here, outside of the transaction; what fails, fails again below.
            let (step, segment) = (&self.board.wave.step, self.board.segment);
            making.iter().for_each(|h| drop(view.offer_at(step, segment, &h.host)));
        }
        let mut tx = self.shared.ctx.store.write().await?;
        let desired = works::lock_claimed(&mut tx, self.claim.work.id, self.lease.epoch).await?;
        let desired = self.role.heeded(desired);
        let now = tx.now().await?;
        let changed = desired != self.desired;
        if changed && self.desired == Desired::Hold {
            self.released = Some(now);
        }
        // Timers look at it too: a turn that fails has heard the same.
        self.desired = desired;
        let overridden = self.overridden(&mut tx, &inputs).await?;
        inputs.splice(0..0, overridden);
        // Before a grant too: a word that has committed is never passed by it, whoever has not been rung for yet.
        let accepts = inputs.iter().any(|i| matches!(i, Input::Said { say: Say::Accept { .. }, .. }));
        let words = match fresh || accepts || overdue || !making.is_empty() {
            true => Some(words::of_work(&mut tx, self.claim.work.id).await?),
            false => None,
        };
        if accepts {
            self.leave_out_revoked(&mut tx, &mut inputs).await?;
        }
        if let Some(words) = &words {
            self.hear(words, &mut inputs, now);
        }
        for row in self.board.tasks.values().filter(|_| overdue) {
            if let Some(due) = self.overdue(row, now)
                && self.still_due(&mut tx, row, now).await?
            {
                inputs.push(due);
            }
        }
        // What runs beside the wave is not stopped with it.
        let stops = words.map(|w| w.host_stops).filter(|_| self.role == Role::Main).unwrap_or_default();
        for row in self.board.tasks.values().filter(|t| t.task.stop.is_none() && !t.task.state.is_final()) {
            if let Some(by) = stops.get(&row.task.host) {
                inputs.push(Input::Stop { task: row.task.id, by: by.clone() });
            }
        }
        let mut new = Vec::with_capacity(making.len());
        for h in &making {
            let made = self.new_task(&mut tx, h).await?;
            new.push(NewTask { stopped: stops.get(&h.host).cloned(), ..made });
        }
        let closed = {
            let waiting = self.board.tasks.values().chain(new.iter().map(|n| &n.stored));
            let pending: Vec<(TaskId, &str)> = waiting
                .filter(|t| t.task.state == TaskState::Pending && desired == Desired::Run)
                .map(|t| (t.task.id, t.task.host.as_str()))
                .collect();
            let closed = self.gate.closed(&mut tx, &pending).await?;
            let patience = self.shared.ctx.settings.executor.host_wait_s.get();
            inputs.extend(self.gate.given_up(&pending, &closed, patience));
            closed
        };
        self.board.closed = closed;
        let work = &self.claim.work;
        let d = dispatch::decide(&self.board, desired, now, inputs, new);
        let mut stored = Vec::with_capacity(d.inserted.len() + d.changed.len());
        for row in d.inserted.values() {
            tasks::insert(&mut tx, row, now).await?;
            stored.push(row.clone());
        }
        for (row, next) in d.changed.values() {
            stored.push(tasks::store(&mut tx, row, next.clone(), self.lease.epoch, now).await?);
        }
        events::append_all(&mut tx, d.events.iter().map(|draft| work_event(work, draft.clone(), now)).collect())
            .await?;
        let result = if making.len() == self.missing.len() { dispatch::result(&self.board, &stored) } else { None };
        if let Some(result) = result.as_ref().filter(|_| self.role == Role::Main) {
            let version = works::settle(&mut tx, work.id, self.lease.epoch, result).await?;
            let draft = self.settled(result, version);
            events::append(&mut tx, work_event(work, draft, now)).await?;
        }
        tx.commit().await?;

        self.missing.drain(..making.len());
        for row in stored {
            let id = row.task.id;
            let before = self.board.tasks.insert(id, row);
            self.observe(before.as_ref(), id);
            if self.board.tasks.get(&id).is_some_and(|t| t.task.started_at.is_some() || t.task.state.is_settled()) {
                self.grants.forget(id);
            }
            if before.is_none() {
                self.adopt(id);
            }
            self.set_timer(id, false);
            self.begin_traffic(id);
        }
        let next = self.board.next_start().filter(|at| *at > now && desired == Desired::Run);
        self.next_start = next.map(|at| Instant::now() + (at - now).to_std().unwrap_or_default());
        if changed {
            let ids: Vec<TaskId> = self.board.tasks.keys().copied().collect();
            ids.into_iter().for_each(|id| self.set_timer(id, true));
        }
        self.report(&d);
        for (id, frame) in &d.frames {
            self.send(*id, *frame).await;
        }
        if result.is_some() && self.role == Role::Main {
            self.shared.ctx.bus.ring(subjects::WORK_SETTLED, self.claim.work.deployment.to_string()).await;
        }
        Ok(result.is_some())
    }

    /// What people have said of unknown tasks whose hosts now say what became of them: that stands.
    async fn overridden(&self, tx: &mut Tx, inputs: &[Input]) -> Result<Vec<Input>, Error> {
        let mut words = Vec::new();
        for input in inputs {
            let Input::Said { task, say: Say::Result(_), .. } = input else { continue };
            let unknown = self.board.tasks.get(task).is_some_and(|t| t.task.state == TaskState::Unknown);
            if unknown && let Some(o) = tasks::override_of(tx, *task).await? {
                words.push(Input::Override { task: *task, by: o.by, reason: o.reason });
            }
        }
        Ok(words)
    }

    /// Takes in who is to stop, and whose hosts were locked after their task was offered.
    fn hear(&mut self, words: &Words, inputs: &mut Vec<Input>, now: Timestamp) {
        for (task, by) in &words.stops {
            let open = |t: &&StoredTask| t.task.stop.is_none() && !t.task.state.is_final();
            if self.board.tasks.get(task).filter(open).is_some() {
                inputs.push(Input::Stop { task: *task, by: by.clone() });
            }
        }
        let offered = self.board.tasks.values().filter(|t| t.task.state == TaskState::Offered);
        let offered: Vec<(TaskId, &str)> = offered.map(|t| (t.task.id, t.task.host.as_str())).collect();
        if !offered.is_empty() {
            self.board.locked = self.gate.locked(&words.locks, &offered, now);
        }
    }

    /// A revoked agent is granted nothing, whoever has not heard of it yet. Asked behind the latch that revocations wait for.
    async fn leave_out_revoked(&self, tx: &mut Tx, inputs: &mut Vec<Input>) -> Result<(), Error> {
        let agent = |i: &Input| match i {
            Input::Said { task, say: Say::Accept { .. }, .. } => self.board.tasks.get(task)?.task.agent,
            _ => None,
        };
        let asking: Vec<AgentId> = inputs.iter().filter_map(agent).collect();
        let revoked = agents::revoked(tx, &asking).await?;
        inputs.retain(|i| agent(i).is_none_or(|a| !revoked.contains(&a)));
        Ok(())
    }

    /// Looks at the stored session before a host is called silent: another executor may have heard it.
    async fn still_due(&self, tx: &mut Tx, row: &StoredTask, now: Timestamp) -> Result<bool, Error> {
        let Some(agent) = row.task.agent.filter(|_| row.task.state == TaskState::Granted) else { return Ok(true) };
        if let Some(s) = sessions::get(tx, agent).await? {
            let own = self.shared.directory.seen(agent).filter(|o| o.instance == s.instance).map(|o| o.at);
            self.shared.directory.set_session(
                agent,
                &s.instance,
                own.map_or(s.last_seen_at, |o| o.max(s.last_seen_at)),
            );
        }
        Ok(self.overdue(row, now).is_some())
    }

    async fn new_task(&self, tx: &mut Tx, h: &WaveHost) -> Result<NewTask, Error> {
        let work = &self.claim.work;
        let agent = self.shared.directory.agent_of_host(&h.host);
        let step = &self.board.wave.step;
        let segment = self.board.segment;
        let refused = |why: &dyn std::fmt::Display| Some((FailureClass::Refused, format!("not started: {why}")));
        let mut blocked = match &self.plan {
            Err(e) => refused(e),
            Ok(view) => view.offer_at(step, segment, &h.host).err().and_then(|e| refused(&e)),
        };
        match agent {
            None => {
                let why = match self.shared.ssh.error(&h.host) {
                    Some(why) => format!("host {} is not reachable over SSH: {why}", h.host),
                    None => format!("host {0} has no agent: run `windlass enroll {0}`, or give it `ssh`", h.host),
                };
                blocked = Some((FailureClass::Unreachable, why));
            }
            Some(a) if self.shared.directory.seen(a).is_some_and(|s| s.instance.starts_with(QUARANTINE)) => {
                let why = format!("the agent of host {} is quarantined: revoke it and enroll the host anew", h.host);
                blocked = Some((FailureClass::Refused, why));
            }
            Some(_) => {}
        }
        if h.attempt > 1 {
            // I7. The scheduler asks for a retry only of what allows it; here it is made sure of.
            let earlier = tasks::earlier_in_the_way(tx, work.deployment, step, segment, &h.host, h.attempt).await?;
            // A repeated step runs again after a success.
            let again = |s: TaskState| self.board.wave.again && s == TaskState::Succeeded;
            if let Some(e) = earlier.iter().find(|e| !e.task.allows_next_attempt() && !again(e.task.state)) {
                let state = e.task.state.as_str();
                let remedy = match e.task.state {
                    TaskState::Succeeded => ": say so (`succeed`), or retry the whole wave to run it again",
                    _ => "",
                };
                blocked = refused(&format!("attempt {} on this host is {state}{remedy}", e.task.attempt));
            }
        }
        let task = dispatch::fresh(TaskId(Uuid::now_v7()), h, agent);
        let stored =
            StoredTask { work: work.id, deployment: work.deployment, step: step.clone(), segment, version: 1, task };
        Ok(NewTask { stored, blocked, stopped: None })
    }

    fn settled(&self, result: &WorkResult, version: u64) -> Draft {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        if let WorkResult::Wave { hosts } = result {
            for h in hosts {
                let name = serde_json::to_value(h.outcome).ok().and_then(|v| v.as_str().map(str::to_owned));
                *counts.entry(name.unwrap_or_default()).or_default() += 1;
            }
        }
        let wave = &self.board.wave;
        let payload = serde_json::json!({
            "work": self.claim.work.id, "step": wave.step, "wave": wave.wave, "version": version, "hosts": counts,
        });
        Draft { what: "work.settled", severity: Severity::Info, actor: SERVICE.into(), payload }
    }

    fn observe(&self, before: Option<&StoredTask>, id: TaskId) {
        let Some(after) = self.board.tasks.get(&id) else { return };
        let m = &self.shared.metrics;
        let was = before.map(|b| b.task.state);
        let seconds = |from: Option<Timestamp>, to: Option<Timestamp>| {
            from.zip(to).and_then(|(f, t)| (t - f).to_std().ok()).map(|d| d.as_secs_f64())
        };
        let t = &after.task;
        if was == Some(TaskState::Offered) && t.state == TaskState::Granted {
            seconds(t.offered_at, t.granted_at)
                .into_iter()
                .for_each(|s| m.dispatch.with_label_values(&["accept"]).observe(s));
        }
        if before.is_some_and(|b| b.task.started_at.is_none()) && t.started_at.is_some() {
            seconds(t.granted_at, t.started_at)
                .into_iter()
                .for_each(|s| m.dispatch.with_label_values(&["start"]).observe(s));
        }
        if was != Some(t.state) && t.state.is_settled() {
            m.settled.with_label_values(&[t.state.as_str()]).inc();
        }
    }

    fn report(&self, d: &Decision) {
        for (task, why) in &d.refused {
            match why {
                Refusal::OtherInstance => {
                    self.shared.metrics.refused.with_label_values(&["other_instance"]).inc();
                    tracing::warn!(%task, "an agent journal that does not hold the grant speaks about the task");
                }
                why => tracing::debug!(%task, %why, "nothing changed"),
            }
        }
    }
}
