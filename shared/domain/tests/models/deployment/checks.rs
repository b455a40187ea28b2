//! What must hold: of every state, of every change, and of every start on a host.

use super::world::{Phase, World};
use windlass_domain::{
    deployment::{
        Bound, Deployment, Effect, HostState, Input, State, StepRunKind, StepState, WaitingOn, WaveState, table::Verb,
    },
    work::{Desired, WaveWork, WorkSpec},
};

macro_rules! must {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Some(format!($($what)+));
        }
    };
}

/// A state by itself.
pub(super) fn state(w: &World) -> Option<String> {
    let d = &w.d;
    let unknown = d.unknown_hosts();
    let open = || w.works.values().filter(|r| r.phase != Phase::Settled);
    must!(w.locked == d.lock.is_some(), "the lock's row and the deployment do not agree");
    let keeps = d.state.is_active() || d.state.is_terminal() && !unknown.is_empty();
    must!(w.locked == keeps, "the lock is {} in {:?} with {unknown:?} unknown", w.locked, d.state);
    must!(!d.state.is_terminal() || open().next().is_none(), "it is {:?}, and a work of it goes on", d.state);
    let stops = d.state != State::Aborting || open().all(|r| r.desired == Desired::Abort);
    must!(stops, "it is aborting, and a work of it may still start hosts");
    let held = d.pause.is_none() || open().all(|r| r.desired != Desired::Run);
    must!(held, "it is paused, and a work of it may still start hosts");
    let lifted = d.pause.is_some() || !d.state.is_active() || open().all(|r| r.desired != Desired::Hold);
    must!(lifted, "nobody pauses it, and a work of it is held");
    for h in d.hosts().filter(|h| h.state == HostState::Succeeded) {
        let known = w.well.contains(&h.host) || w.said.contains(&h.host);
        must!(known, "{} has succeeded, and neither it nor a person has said so", h.host);
    }
    let c = d.host_counts();
    let apart = c.waiting + c.running + c.succeeded + c.failed + c.auto_stopped + c.hand_stopped + c.not_started;
    must!(apart + c.unknown + c.ignored + c.excluded == c.total, "the counts of hosts do not add up: {c:?}");
    if d.state == State::Succeeded {
        must!(c.unknown + c.running + c.waiting == 0, "it succeeded with {c:?}");
        for (_, r) in d.rollouts() {
            let failed = r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_failure()).count() as u32;
            must!(failed <= r.max_failures, "it succeeded with {failed} hosts failed, {} are borne", r.max_failures);
        }
    }
    explained(d)
}

/// What it waits for is said, and somebody or something ends the wait.
fn explained(d: &Deployment) -> Option<String> {
    let waits = d.waiting_on();
    let should = d.state.is_active() || d.state.is_before_running() || d.lock.is_some();
    must!(!should || !waits.is_empty(), "it stands in {:?} and does not say why", d.state);
    for on in &waits {
        if let Bound::Person { owner, deadline } = on.bound() {
            let due = !matches!(on, WaitingOn::Unknown { .. }) || d.state.is_terminal();
            let has = deadline.is_some() || !due || d.state == State::Aborting;
            must!(!owner.is_empty() && has, "nobody answers for {on}");
        }
    }
    let asleep = d.state.is_active() && d.works_in_flight().is_empty() && d.wake_at().is_none();
    must!(!asleep, "nothing runs and nothing wakes it: {waits:?}");
    None
}

/// A change.
pub(super) fn transition(w: &World, input: &Input, after: &Deployment, effects: &[Effect]) -> Option<String> {
    let before = &w.d;
    for e in effects {
        match e {
            Effect::StartWork { spec, .. } => {
                must!(after.pause.is_none(), "a work begins under a pause");
                let over = |s: State| s.is_terminal() || s == State::Aborting;
                must!(!over(before.state) && !over(after.state), "a work begins in {:?}", after.state);
                match spec {
                    WorkSpec::Central(c) => {
                        let was = central_attempt(before, &c.step);
                        must!(c.attempt == was + 1, "attempt {} of {} comes after {was}", c.attempt, c.step);
                    }
                    WorkSpec::Wave(v) => {
                        if let Some(wrong) = wave(before, after, v, matches!(input, Input::Override { .. })) {
                            return Some(wrong);
                        }
                    }
                    WorkSpec::Probe(_) => {}
                }
            }
            Effect::FreeLock => {
                let free = after.state.is_terminal() && after.unknown_hosts().is_empty();
                must!(free, "the lock is freed in {:?}", after.state);
            }
            _ => {}
        }
    }
    let theirs = before.claim.as_ref().filter(|c| by(input).is_some_and(|b| b != c.who));
    if let (Some(c), Some(verb)) = (theirs, Verb::of(input)) {
        // To look at a wave that ended well is to step into nothing.
        let plain = matches!(input, Input::Confirm { .. })
            && before.rollouts().flat_map(|(_, r)| &r.waves).all(|w| w.probe.is_none());
        let again = verb == Verb::Retry && before.state.is_terminal();
        must!(!verb.claims() || plain || again, "{} steps in though {} has claimed it", verb.as_str(), c.who);
    }
    None
}

fn by(input: &Input) -> Option<&str> {
    match input {
        Input::Retry { by, .. }
        | Input::Skip { by, .. }
        | Input::Ignore { by, .. }
        | Input::Exclude { by, .. }
        | Input::Confirm { by, .. }
        | Input::Fail { by, .. }
        | Input::Succeed { by, .. } => Some(by),
        _ => None,
    }
}

fn central_attempt(d: &Deployment, step: &str) -> u32 {
    let kind = d.steps.iter().find(|s| s.id == step).map(|s| &s.kind);
    if let Some(StepRunKind::Central { attempt, .. }) = kind { *attempt } else { 0 }
}

fn wave(before: &Deployment, after: &Deployment, v: &WaveWork, overrides: bool) -> Option<String> {
    let (Some((_, r)), Some((_, was))) = (after.rollouts().next(), before.rollouts().next()) else { return None };
    let earlier = &r.waves[..v.wave as usize];
    must!(earlier.iter().all(|w| w.state == WaveState::Succeeded), "wave {} begins before its turn", v.wave);
    let failed: u32 = r.waves.iter().flat_map(|w| &w.hosts).filter(|h| h.state.is_failure()).count() as u32;
    let borne = v.max_failures <= r.max_failures.saturating_sub(failed);
    must!(borne, "the work may fail on {} hosts, {failed} of {} have", v.max_failures, r.max_failures);
    for h in &v.hosts {
        let Some(stood) = was.waves[v.wave as usize].hosts.iter().find(|x| x.host == h.host) else { continue };
        must!(h.attempt == stood.attempt + 1, "attempt {} of {} comes after {}", h.attempt, h.host, stood.attempt);
        let may_run = matches!(stood.state, HostState::Unknown | HostState::Running);
        must!(!may_run || overrides, "{} may still be running", h.host);
        let tried = !matches!(stood.state, HostState::AutoStopped) && stood.attempt > 0;
        must!(failed <= r.max_failures || tried, "{} starts though the budget is used up", h.host);
    }
    None
}

/// The first grant of a work.
pub(super) fn start(w: &World, spec: &WorkSpec) -> Option<String> {
    let d = &w.d;
    must!(d.pause.is_none(), "an executor starts {spec:?} under a pause");
    must!(d.state.is_active() && d.state != State::Aborting, "an executor starts {spec:?} in {:?}", d.state);
    if let WorkSpec::Wave(v) = spec {
        for h in &v.hosts {
            let stopped = d.hosts().find(|x| x.host == h.host).and_then(|x| x.by.as_ref());
            let heeded = w.works.values().any(|r| r.phase == Phase::Ready && r.stops.contains(&h.host));
            must!(stopped.is_none() || heeded, "{} starts though a person stopped it", h.host);
        }
    }
    let waits = |s: &str| d.steps.iter().any(|x| x.id == s && x.state == StepState::Running);
    let step = match spec {
        WorkSpec::Wave(v) => &v.step,
        WorkSpec::Central(c) => &c.step,
        WorkSpec::Probe(p) => &p.step,
    };
    must!(waits(step), "an executor starts {step}, which does not run");
    None
}
