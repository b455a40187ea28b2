//! Drives one claimed wave: turns of one transaction each, in which everything that came in meanwhile is decided at once,
//! and frames that are re-sent from state until the next state is reached.

mod frames;
mod gate;
mod grants;
pub(crate) mod side;
mod turn;

pub(crate) use grants::{Carried, Fetched, carried};

use crate::{
    dispatch::{Board, Input, Pace, Say},
    error::Stop,
    lease::Lease,
    logs::{LogMeta, step_names},
    plans::{PlanProblem, PlanView},
    shared::{Shared, Signal},
    ssh,
    traffic::{Told, Traffic, Way},
};
use frames::Timer;
use grants::Grants;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use windlass_contracts::frames::DownBody;
use windlass_domain::{
    Timestamp,
    ids::{AgentId, TaskId},
    plan::segment,
    task::TaskState,
    traffic::TrafficState,
    work::{Desired, WaveHost, WaveWork},
};
use windlass_runtime::telemetry;
use windlass_store::{
    tasks,
    works::{self, Claim},
};

/// Rows made in one turn, so that the first hosts of a large wave start before the last ones are written.
const CHUNK: usize = 64;
const INBOX: usize = 4096;
const TURN: usize = 256;
/// After a turn, what only tells how far a host is waits this long for more: nothing follows from it, so a crowd of hosts pays
/// for one transaction instead of one a step. Anything else in the inbox, and the first word after a pause, goes at once.
const TOGETHER: Duration = Duration::from_millis(50);

/// Whose tasks are driven, and what they heed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The hosts of the wave: their results are the work's.
    Main,
    /// Beside the work's owner, in another segment.
    Side(side::Heeds),
}

impl Role {
    /// What is wanted of these tasks, when `desired` is wanted of the work.
    fn heeded(self, desired: Desired) -> Desired {
        match self {
            Role::Main | Role::Side(side::Heeds::Work) => desired,
            Role::Side(side::Heeds::Nothing) => Desired::Run,
            Role::Side(side::Heeds::End) => Desired::Abort,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Wave {
    role: Role,
    shared: Arc<Shared>,
    claim: Claim,
    lease: Lease,
    plan: Result<Arc<PlanView>, PlanProblem>,
    board: Board,
    gate: gate::Gate,
    /// Hosts that have no task yet.
    missing: VecDeque<WaveHost>,
    /// What was wanted at the last turn.
    desired: Desired,
    /// The end of the last pause: what nobody took meanwhile has its whole time again.
    released: Option<Timestamp>,
    /// When a host may start that only its time keeps back.
    next_start: Option<Instant>,
    /// What takes hosts off their load balancers; absent where there are none.
    traffic: Option<Traffic>,
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
        self.shared.router.forget(self.board.tasks.keys().copied(), &self.to_inbox);
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
        let mut board = Wave::board(&plan, wave, segment::MAIN);
        board.pace =
            board.wave.stagger.map(|s| Pace::of(&claim.work.id.to_string(), claim.created_at, &board.wave.hosts, s));
        board.carried = loop {
            let (wave, steps) = (&board.wave, &board.steps);
            let read = async { carried(&mut shared.ctx.store.read().await?, &claim.work, wave, steps).await };
            match read.await {
                Ok(c) => break c,
                Err(error) => lease.after_failure(&error).await?,
            }
        };
        let mut me = Wave::new(Role::Main, shared, claim, lease, plan, board);
        if let Ok(view) = &me.plan {
            me.traffic = Traffic::of(&me.shared, &me.claim, view, &me.board.wave.step, &me.to_inbox);
            me.board.drains = me.traffic.is_some();
        }
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

    /// The tasks of a segment over these hosts, none of them loaded yet.
    fn board(plan: &Result<Arc<PlanView>, PlanProblem>, wave: WaveWork, segment: u32) -> Board {
        let steps = wave.hosts.iter().filter_map(|h| {
            let view = plan.as_ref().ok()?;
            Some((h.host.clone(), step_names(view, &wave.step, segment, &h.host)))
        });
        let steps: BTreeMap<String, Arc<Vec<String>>> = steps.collect();
        let artifact_steps = plan.as_ref().map(|v| v.artifact_steps(&wave.step)).unwrap_or_default();
        Board { artifact_steps, ..Board::new(wave, segment, steps) }
    }

    fn new(
        role: Role,
        shared: Arc<Shared>,
        claim: Claim,
        lease: Lease,
        plan: Result<Arc<PlanView>, PlanProblem>,
        board: Board,
    ) -> Wave {
        let (to_inbox, inbox) = mpsc::channel(INBOX);
        let trace = telemetry::traceparent_of_current().or_else(|| claim.work.trace.clone());
        Wave {
            role,
            board,
            released: None,
            next_start: None,
            traffic: None,
            gate: gate::Gate::default(),
            missing: VecDeque::new(),
            desired: role.heeded(claim.work.desired),
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
        }
    }

    async fn run(&mut self, bell: Arc<Notify>, stop: CancellationToken) -> Result<(), Stop> {
        let settings = self.shared.ctx.settings.executor.clone();
        let mut poll = self.shared.ctx.settings.poll_s.get();
        if self.role != Role::Main {
            // Nobody rings for it.
            poll = poll.min(Duration::from_secs(1));
        }
        let check = (settings.unknown_s.get().min(settings.offer_timeout_s.get()) / 10)
            .clamp(Duration::from_millis(10), Duration::from_secs(1));
        self.shared.directory.refresh_on_demand(&self.shared.ctx.store).await;
        self.reload().await?;
        self.first_contact().await?;
        let mut signals = Vec::new();
        let mut turn = true;
        let mut look = false;
        let (mut next_poll, mut next_check) = (Instant::now() + poll, Instant::now() + check);
        let mut together = Instant::now();
        loop {
            let more = turn || look || !self.missing.is_empty() || signals.len() >= TURN;
            let gathers = !more && Instant::now() < together && signals.iter().all(Signal::is_progress);
            let inputs = if gathers { Vec::new() } else { self.read(&mut signals) };
            let overdue = std::mem::take(&mut look) && self.anything_due();
            if turn || !inputs.is_empty() || !self.missing.is_empty() || overdue {
                // Somebody rang, or nobody has for a while: there may be a word of a person in the database.
                let fresh = std::mem::take(&mut turn);
                match self.turn(inputs, overdue, fresh).await {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(error) => {
                        // Nothing of the turn happened. What agents said they say again.
                        self.lease.after_failure(&error).await?;
                        self.reload().await?;
                        turn = true;
                    }
                }
                together = Instant::now() + TOGETHER;
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
            let timer = self.next_start.map_or(timer, |at| at.min(timer));
            let timer = if signals.is_empty() { timer } else { timer.min(together) };
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
                    if self.next_start.is_some_and(|at| at <= now) {
                        self.next_start = None;
                        turn = true;
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
                Ok(Some(Desired::Run | Desired::Hold)) => {}
                Ok(Some(Desired::Abort) | None) => break,
                Err(error) => self.lease.after_failure(&error).await?,
            }
        }
        Ok(())
    }

    /// Everything from the database, as after a takeover.
    async fn reload(&mut self) -> Result<(), Stop> {
        let (segment, from) = (self.board.segment, self.board.wave.hosts.iter().map(|h| h.attempt).min().unwrap_or(1));
        let rows = loop {
            let work = self.claim.work.id;
            let rows = async { tasks::of_segment(&mut self.shared.ctx.store.read().await?, work, segment, from).await };
            match rows.await {
                Ok(rows) => break rows,
                Err(error) => self.lease.after_failure(&error).await?,
            }
        };
        self.shared.router.forget(self.board.tasks.keys().copied(), &self.to_inbox);
        let ours: HashMap<&str, u32> = self.board.wave.hosts.iter().map(|h| (h.host.as_str(), h.attempt)).collect();
        let rows = rows.into_iter().filter(|t| ours.get(t.task.host.as_str()) == Some(&t.task.attempt));
        self.board.tasks = rows.map(|t| (t.task.id, t)).collect();
        let have: std::collections::HashSet<&str> = self.board.tasks.values().map(|t| t.task.host.as_str()).collect();
        self.missing = self.board.wave.hosts.iter().filter(|h| !have.contains(h.host.as_str())).cloned().collect();
        self.timers.clear();
        let ids: Vec<TaskId> = self.board.tasks.keys().copied().collect();
        for id in ids {
            self.adopt(id);
            self.set_timer(id, true);
            self.begin_traffic(id);
        }
        self.ask_hosts().await;
        Ok(())
    }

    /// Lets the agents of what was granted say HELLO, which compares both sides: a result that an agent takes for known is said
    /// again only then. It is not known here where the database was restored from a backup.
    async fn ask_hosts(&self) {
        let granted =
            self.board.tasks.values().filter(|t| matches!(t.task.state, TaskState::Granted | TaskState::Unknown));
        let agents: BTreeSet<AgentId> = granted.filter_map(|t| t.task.agent).collect();
        for agent in agents {
            self.shared.send(agent, None, DownBody::WhoAreYou { challenge: None }).await;
        }
    }

    /// What the task says was begun with its host's load balancers goes on.
    fn begin_traffic(&mut self, id: TaskId) {
        let Some(row) = self.board.tasks.get(&id) else { return };
        let way = match row.task.traffic.as_ref().map(|t| t.state) {
            Some(TrafficState::Draining) => Way::Drain,
            Some(TrafficState::Attaching | TrafficState::DrainFailed) => Way::Attach,
            Some(TrafficState::Drained | TrafficState::Attached | TrafficState::AttachFailed) | None => return,
        };
        match (&mut self.traffic, &self.plan) {
            (Some(traffic), _) => traffic.begin(id, &row.task.host, row.task.attempt, way),
            (None, plan) => {
                let why = plan.as_ref().err().map_or("the plan names no load balancer".into(), ToString::to_string);
                let state = match way {
                    Way::Drain => TrafficState::DrainFailed,
                    Way::Attach => TrafficState::AttachFailed,
                };
                let told = Told { task: id, state, reason: Some(format!("its load balancers cannot be told: {why}")) };
                if self.to_inbox.try_send(Signal::Traffic(told)).is_err() {
                    tracing::warn!(task = %id, "the wave does not keep up; it is told at the next look");
                }
            }
        }
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
                Signal::Traffic(told) => inputs.push(Input::Traffic(told)),
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
}
