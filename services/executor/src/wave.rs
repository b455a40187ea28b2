//! Drives one claimed wave: turns of one transaction each, in which everything that came in meanwhile is decided at once,
//! and frames that are re-sent from state until the next state is reached.

mod frames;
mod gate;
mod grants;

pub(crate) use grants::{Carried, Fetched, carried};

use crate::{
    directory::QUARANTINE,
    dispatch::{self, Board, Decision, Draft, Input, NewTask, SERVICE, Say},
    error::Stop,
    lease::Lease,
    logs::{LogMeta, step_names},
    plans::{PlanProblem, PlanView},
    shared::{Shared, Signal, work_event},
    ssh,
};
use frames::Timer;
use grants::Grants;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use windlass_contracts::subjects;
use windlass_domain::{
    Timestamp,
    event::Severity,
    ids::TaskId,
    task::{Refusal, TaskState},
    work::{Desired, WaveHost, WaveWork, WorkResult},
};
use windlass_runtime::telemetry;
use windlass_store::{
    Error, Tx, events, sessions,
    tasks::{self, StoredTask},
    works::{self, Claim},
};

/// Rows made in one turn, so that the first hosts of a large wave start before the last ones are written.
const CHUNK: usize = 64;
const INBOX: usize = 4096;
const TURN: usize = 256;

#[derive(Debug)]
pub(crate) struct Wave {
    shared: Arc<Shared>,
    claim: Claim,
    lease: Lease,
    plan: Result<Arc<PlanView>, PlanProblem>,
    board: Board,
    gate: gate::Gate,
    /// Hosts that have no task yet.
    missing: VecDeque<WaveHost>,
    desired: Desired,
    timers: HashMap<TaskId, Timer>,
    grants: Grants,
    /// Tasks to fence at once.
    fences: Vec<TaskId>,
    inbox: mpsc::Receiver<Signal>,
    to_inbox: mpsc::Sender<Signal>,
    /// Nobody is silent before we have listened for a while.
    listening_since: Timestamp,
    trace: Option<String>,
}

impl Drop for Wave {
    fn drop(&mut self) {
        self.shared.router.forget(self.board.tasks.keys().copied());
    }
}

impl Wave {
    /// Loads the wave and drives it until it is settled.
    pub(crate) async fn drive(
        shared: Arc<Shared>,
        claim: Claim,
        wave: WaveWork,
        bell: Arc<Notify>,
        stop: CancellationToken,
    ) -> Result<(), Stop> {
        let mut lease = Lease::new(Arc::clone(&shared), claim.work.id, claim.epoch);
        let plan = loop {
            let loaded = shared.plans.get(&shared.ctx.store, claim.work.deployment, &claim.work.plan_digest).await;
            match loaded {
                Ok(plan) => break plan,
                Err(error) => lease.after_failure(&error).await?,
            }
        };
        let (to_inbox, inbox) = mpsc::channel(INBOX);
        let steps = wave.hosts.iter().filter_map(|h| {
            let view = plan.as_ref().ok()?;
            Some((h.host.clone(), step_names(view, &wave.step, &h.host)))
        });
        let steps: BTreeMap<String, Arc<Vec<String>>> = steps.collect();
        let carried = loop {
            let read = async { carried(&mut shared.ctx.store.read().await?, &claim.work, &wave, &steps).await };
            match read.await {
                Ok(c) => break c,
                Err(error) => lease.after_failure(&error).await?,
            }
        };
        let trace = telemetry::traceparent_of_current().or_else(|| claim.work.trace.clone());
        let mut me = Wave {
            board: Board { wave, steps, carried, tasks: BTreeMap::new(), closed: BTreeMap::new() },
            gate: gate::Gate::default(),
            missing: VecDeque::new(),
            desired: claim.work.desired,
            timers: HashMap::new(),
            grants: Grants::default(),
            fences: Vec::new(),
            listening_since: chrono::Utc::now(),
            shared,
            claim,
            lease,
            plan,
            inbox,
            to_inbox,
            trace,
        };
        let ended = me.run(bell, stop).await;
        match ended {
            Err(Stop::Shutdown) => {
                let placeholder = Lease::new(Arc::clone(&me.shared), me.claim.work.id, me.claim.epoch);
                std::mem::replace(&mut me.lease, placeholder).release().await;
            }
            Err(Stop::Lost) => me.shared.logs.forget(me.board.tasks.keys().copied()),
            _ => {}
        }
        ended
    }

    async fn run(&mut self, bell: Arc<Notify>, stop: CancellationToken) -> Result<(), Stop> {
        let settings = self.shared.ctx.settings.executor.clone();
        let poll = self.shared.ctx.settings.poll_s.get();
        let check = (settings.unknown_s.get().min(settings.offer_timeout_s.get()) / 10)
            .clamp(Duration::from_millis(10), Duration::from_secs(1));
        self.shared.directory.refresh_on_demand(&self.shared.ctx.store).await;
        self.reload().await?;
        self.first_contact().await?;
        let mut signals = Vec::new();
        let mut turn = true;
        let mut look = false;
        let (mut next_poll, mut next_check) = (Instant::now() + poll, Instant::now() + check);
        loop {
            let inputs = self.read(&mut signals);
            let overdue = std::mem::take(&mut look) && self.anything_due();
            if turn || !inputs.is_empty() || !self.missing.is_empty() || overdue {
                turn = false;
                match self.turn(inputs, overdue).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => {
                        // Nothing of the turn happened. What agents said they say again.
                        self.lease.after_failure(&error).await?;
                        self.reload().await?;
                        turn = true;
                    }
                }
            }
            self.send_fences().await;
            self.send_due().await;
            if turn || !self.missing.is_empty() {
                // More to do at once, but not without looking at what came in.
                while signals.len() < TURN
                    && let Ok(s) = self.inbox.try_recv()
                {
                    signals.push(s);
                }
                if stop.is_cancelled() {
                    return Err(Stop::Shutdown);
                }
                if self.lease.due() <= Instant::now() {
                    self.lease.renew().await?;
                }
                continue;
            }
            let timer = self.timers.values().map(|t| t.at).min().unwrap_or(next_poll).min(next_check).min(next_poll);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Stop::Shutdown),
                () = tokio::time::sleep_until(self.lease.due()) => self.lease.renew().await?,
                () = bell.notified() => turn = true,
                _ = self.inbox.recv_many(&mut signals, TURN) => {}
                () = tokio::time::sleep_until(timer) => {
                    let now = Instant::now();
                    if next_poll <= now {
                        next_poll = now + poll;
                        turn = true;
                    }
                    if next_check <= now {
                        next_check = now + check;
                        look = true;
                    }
                }
            }
        }
    }

    /// A host that is reached by SSH for the first time has no identity yet; it gets one now, or the reason why not.
    async fn first_contact(&mut self) -> Result<(), Stop> {
        let hosts = self.missing.iter().map(|h| h.host.clone()).collect();
        let limit = self.shared.ctx.settings.executor.offer_timeout_s.get();
        let mut contact = ssh::FirstContact::of(&self.shared, hosts).await;
        while contact.goes_on(limit) {
            contact.wait(&self.shared).await;
            if self.lease.due() <= Instant::now() {
                self.lease.renew().await?;
            }
            let desired =
                async { works::desired_now(&mut self.shared.ctx.store.read().await?, self.claim.work.id).await };
            match desired.await {
                Ok(Some(Desired::Run)) => {}
                Ok(_) => break,
                Err(error) => self.lease.after_failure(&error).await?,
            }
        }
        Ok(())
    }

    /// Everything from the database, as after a takeover.
    async fn reload(&mut self) -> Result<(), Stop> {
        let rows = loop {
            let rows = async { tasks::of_work(&mut self.shared.ctx.store.read().await?, self.claim.work.id).await };
            match rows.await {
                Ok(rows) => break rows,
                Err(error) => self.lease.after_failure(&error).await?,
            }
        };
        self.shared.router.forget(self.board.tasks.keys().copied());
        self.board.tasks = rows.into_iter().map(|t| (t.task.id, t)).collect();
        let have: std::collections::HashSet<&str> = self.board.tasks.values().map(|t| t.task.host.as_str()).collect();
        self.missing = self.board.wave.hosts.iter().filter(|h| !have.contains(h.host.as_str())).cloned().collect();
        self.timers.clear();
        let ids: Vec<TaskId> = self.board.tasks.keys().copied().collect();
        for id in ids {
            self.adopt(id);
            self.set_timer(id, true);
        }
        Ok(())
    }

    /// Takes the task's frames from now on.
    fn adopt(&self, id: TaskId) {
        let Some(row) = self.board.tasks.get(&id) else { return };
        self.shared.router.register(id, row.task.agent, &self.to_inbox);
        if let Some(agent) = row.task.agent {
            let meta = LogMeta {
                deployment: row.deployment,
                agent,
                host: row.task.host.clone(),
                steps: self.board.steps.get(&row.task.host).cloned().unwrap_or_default(),
            };
            self.shared.logs.adopt(id, meta);
        }
    }

    fn read(&mut self, signals: &mut Vec<Signal>) -> Vec<Input> {
        let mut inputs = Vec::with_capacity(signals.len());
        for s in signals.drain(..) {
            match s {
                Signal::Said { task, instance, say: Say::Accept { nonce, seal_to } } => {
                    inputs.extend(self.accept(task, instance, nonce, seal_to));
                }
                Signal::Secrets { task, instance, nonce, fetched } => {
                    inputs.extend(self.fetched(task, instance, nonce, fetched));
                }
                Signal::Said { task, instance, say } => {
                    let host = self.board.tasks.get(&task).map(|t| t.task.host.as_str());
                    let steps = host.and_then(|h| self.board.steps.get(h)).map_or(0, |s| s.len());
                    let fits = match &say {
                        Say::Step(s) => (s.index as usize) < steps,
                        Say::Result(r) => r.steps.iter().all(|s| (s.index as usize) < steps),
                        _ => true,
                    };
                    if fits {
                        inputs.push(Input::Said { task, instance, say });
                    } else {
                        self.shared.metrics.refused.with_label_values(&["shape"]).inc();
                        tracing::warn!(%task, "report about a step the task does not have");
                    }
                }
                Signal::Override { task, by, reason } => inputs.push(Input::Override { task, by, reason }),
                Signal::Traffic(_) => {}
                Signal::Nudge(task) => {
                    if let Some(t) = self.timers.get_mut(&task) {
                        t.at = Instant::now();
                        t.pause.reset();
                    }
                }
            }
        }
        inputs
    }

    fn anything_due(&self) -> bool {
        let now = chrono::Utc::now();
        self.board.tasks.values().any(|t| self.overdue(t, now).is_some())
    }

    /// What the passing of time does to a task.
    fn overdue(&self, row: &StoredTask, now: Timestamp) -> Option<Input> {
        let settings = &self.shared.ctx.settings.executor;
        let t = &row.task;
        let over = |since: Timestamp, limit: Duration| (now - since).to_std().is_ok_and(|d| d >= limit);
        let seen = t.agent.and_then(|a| self.shared.directory.seen(a));
        match t.state {
            TaskState::Offered if over(t.offered_at?, settings.offer_timeout_s.get()) => {
                if let Some(why) = self.grants.why(t.id) {
                    return Some(Input::TimedOut { task: t.id, reason: format!("not started: {why}") });
                }
                let quiet = seen.is_none_or(|s| over(s.at, settings.suspect_s.get()));
                let reason = if let Some(why) = self.shared.ssh.error(&t.host).filter(|_| quiet) {
                    format!("host {} is not reachable over SSH: {why}", t.host)
                } else if quiet {
                    format!(
                        "host {} is not reachable: its agent has not been heard; check `windlass-agent` there",
                        t.host
                    )
                } else {
                    format!("the agent of host {} did not take the task in time", t.host)
                };
                Some(Input::TimedOut { task: t.id, reason })
            }
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
                over(since, settings.unknown_s.get()).then(|| Input::Silent {
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

    /// One transaction. `true`: the work is settled.
    async fn turn(&mut self, mut inputs: Vec<Input>, overdue: bool) -> Result<bool, Error> {
        let work = &self.claim.work;
        let making: Vec<WaveHost> = self.missing.iter().take(CHUNK).cloned().collect();
        if let Ok(view) = &self.plan {
            // Specs are rendered and hashed here, outside of the transaction; what fails, fails again below.
            making.iter().for_each(|h| drop(view.offer(&self.board.wave.step, &h.host)));
        }
        let mut tx = self.shared.ctx.store.write().await?;
        let desired = works::lock_desired(&mut tx, work.id).await?;
        works::check(&mut tx, work.id, self.lease.epoch).await?;
        let now = tx.now().await?;
        for row in self.board.tasks.values().filter(|_| overdue) {
            if let Some(due) = self.overdue(row, now)
                && self.still_due(&mut tx, row, now).await?
            {
                inputs.push(due);
            }
        }
        let mut new = Vec::with_capacity(making.len());
        for h in &making {
            new.push(self.new_task(&mut tx, h).await?);
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
        for draft in &d.events {
            events::append(&mut tx, work_event(work, draft.clone(), now)).await?;
        }
        let result = if making.len() == self.missing.len() { dispatch::result(&self.board, &stored) } else { None };
        if let Some(result) = &result {
            let version = works::settle(&mut tx, work.id, self.lease.epoch, result).await?;
            let draft = self.settled(result, version);
            events::append(&mut tx, work_event(work, draft, now)).await?;
        }
        tx.commit().await?;

        self.missing.drain(..making.len());
        let abort_is_new = desired != self.desired;
        self.desired = desired;
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
        }
        if abort_is_new {
            let ids: Vec<TaskId> = self.board.tasks.keys().copied().collect();
            ids.into_iter().for_each(|id| self.set_timer(id, true));
        }
        self.report(&d);
        for (id, frame) in &d.frames {
            self.send(*id, *frame).await;
        }
        if result.is_some() {
            self.shared.ctx.bus.ring(subjects::WORK_SETTLED, self.claim.work.deployment.to_string()).await;
        }
        Ok(result.is_some())
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
        let mut segment = 0;
        let mut blocked = match &self.plan {
            Err(e) => Some(format!("not started: {e}")),
            Ok(view) => match view.offer(step, &h.host) {
                Ok(offer) => {
                    segment = offer.0.segment;
                    None
                }
                Err(e) => Some(format!("not started: {e}")),
            },
        };
        match agent {
            None => {
                blocked = Some(match self.shared.ssh.error(&h.host) {
                    Some(why) => format!("host {} is not reachable over SSH: {why}", h.host),
                    None => format!("host {0} has no agent: run `windlass enroll {0}`, or give it `ssh`", h.host),
                });
            }
            Some(a) if self.shared.directory.seen(a).is_some_and(|s| s.instance.starts_with(QUARANTINE)) => {
                blocked =
                    Some(format!("the agent of host {} is quarantined: revoke it and enroll the host anew", h.host));
            }
            Some(_) => {}
        }
        if h.attempt > 1 {
            // I7. The scheduler asks for a retry only of what allows it; here it is made sure of.
            let earlier = tasks::earlier_attempts(tx, work.deployment, step, segment, &h.host, h.attempt).await?;
            // A repeated step runs again after a success.
            let again = |s: TaskState| self.board.wave.again && s == TaskState::Succeeded;
            if let Some(e) = earlier.iter().find(|e| !e.task.allows_next_attempt() && !again(e.task.state)) {
                let state = e.task.state.as_str();
                blocked = Some(format!("not started: attempt {} on this host is {state}", e.task.attempt));
            }
        }
        let task = dispatch::fresh(TaskId(Uuid::now_v7()), h, agent);
        let stored =
            StoredTask { work: work.id, deployment: work.deployment, step: step.clone(), segment, version: 1, task };
        Ok(NewTask { stored, blocked })
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
