//! The deployment machine with one safeguard missing: its inputs or its outputs are bent, as if the code that guards them
//! were not there.

use super::{Shape, world::World};
use windlass_domain::{
    Timestamp,
    deployment::{Deployment, Effect, HostState, Input, Refusal, State, StepRunKind},
    ids::WorkId,
    work::{Outcome, WorkResult, WorkSpec},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    AbortIsForgotten,
    HoldIsForgotten,
    HeldForEver,
    StopIsForgotten,
    LockIsKept,
    LockIsFreedWithUnknownHosts,
    AbortedBeforeItsWorksEnded,
    StartsUnderAPause,
    ClaimsAreNotChecked,
    BudgetIsForgotten,
    AttemptsAreUsedAgain,
    UnknownCountsAsGood,
    UnknownIsRetried,
    ResultsOfEarlierAttemptsCount,
    LateWordsAreLost,
    NobodyIsAsked,
    WavesAreNotAwaited,
}
use Mutant::*;

impl Mutant {
    pub(crate) const ALL: [Mutant; 17] = [
        AbortIsForgotten,
        HoldIsForgotten,
        HeldForEver,
        StopIsForgotten,
        LockIsKept,
        LockIsFreedWithUnknownHosts,
        AbortedBeforeItsWorksEnded,
        StartsUnderAPause,
        ClaimsAreNotChecked,
        BudgetIsForgotten,
        AttemptsAreUsedAgain,
        UnknownCountsAsGood,
        UnknownIsRetried,
        ResultsOfEarlierAttemptsCount,
        LateWordsAreLost,
        NobodyIsAsked,
        WavesAreNotAwaited,
    ];

    /// Where its absence can show.
    pub(crate) fn shape(self, shape: Shape) -> Shape {
        match self {
            BudgetIsForgotten | WavesAreNotAwaited => Shape { waves: 2, ..shape },
            ClaimsAreNotChecked | ResultsOfEarlierAttemptsCount => Shape { acts: 2, ..shape },
            _ => shape,
        }
    }

    pub(super) fn apply(
        self,
        w: &World,
        input: Input,
        at: Timestamp,
        mint: &mut dyn FnMut() -> WorkId,
    ) -> Result<(Deployment, Vec<Effect>), Refusal> {
        let mut d = w.d.clone();
        let pause = d.pause.clone();
        let input = match self {
            StartsUnderAPause if !matches!(input, Input::Resume { .. } | Input::Pause { .. }) => {
                d.pause = None;
                input
            }
            ClaimsAreNotChecked => {
                d.claim = d.claim.filter(|_| matches!(input, Input::Claim { .. } | Input::Unclaim { .. }));
                input
            }
            BudgetIsForgotten => {
                budgets(&mut d, 99);
                input
            }
            UnknownIsRetried if matches!(input, Input::Retry { .. }) => {
                each_host(&mut d, |h| {
                    if h.state == HostState::Unknown {
                        h.state = HostState::Failed;
                    }
                });
                input
            }
            UnknownCountsAsGood => good(input),
            ResultsOfEarlierAttemptsCount => current(&w.d, input),
            LateWordsAreLost => match input {
                Input::WorkSettled { work, .. } if !w.d.works_in_flight().contains(&work) => {
                    return Err(Refusal::NothingToDo(String::new()));
                }
                other => other,
            },
            _ => input,
        };
        let asked_to_abort = matches!(input, Input::Abort { .. });
        let (mut next, mut effects) = d.apply(input, at, mint)?;
        match self {
            StartsUnderAPause if next.state.is_active() && w.d.pause.is_some() => next.pause = next.pause.or(pause),
            BudgetIsForgotten => budgets(&mut next, 0),
            LockIsFreedWithUnknownHosts if next.state.is_terminal() && next.lock.take().is_some() => {
                effects.push(Effect::FreeLock);
            }
            AbortedBeforeItsWorksEnded if asked_to_abort && next.state == State::Aborting => {
                next.state = State::Aborted;
                next.lock = None;
                effects.push(Effect::FreeLock);
            }
            AttemptsAreUsedAgain => {
                for e in &mut effects {
                    if let Effect::StartWork { spec: WorkSpec::Wave(v), .. } = e {
                        for h in v.hosts.iter_mut().filter(|h| h.attempt > 1) {
                            h.attempt -= 1;
                        }
                    }
                }
            }
            NobodyIsAsked => next.attention = None,
            WavesAreNotAwaited => effects = without_waiting(&next, effects),
            _ => {}
        }
        Ok((next, effects))
    }
}

fn each_host(d: &mut Deployment, f: impl Fn(&mut windlass_domain::deployment::HostRun)) {
    for s in &mut d.steps {
        if let StepRunKind::Rollout(r) = &mut s.kind {
            r.waves.iter_mut().flat_map(|w| &mut w.hosts).for_each(&f);
        }
    }
}

fn budgets(d: &mut Deployment, to: u32) {
    for s in &mut d.steps {
        if let StepRunKind::Rollout(r) = &mut s.kind {
            r.max_failures = to;
        }
    }
}

fn good(input: Input) -> Input {
    match input {
        Input::WorkSettled { work, result: WorkResult::Wave { mut hosts } } => {
            for h in hosts.iter_mut().filter(|h| h.outcome == Outcome::Unknown) {
                h.outcome = Outcome::Succeeded;
            }
            Input::WorkSettled { work, result: WorkResult::Wave { hosts } }
        }
        other => other,
    }
}

/// Whatever attempt a result is of, it is taken for the one that runs.
fn current(d: &Deployment, input: Input) -> Input {
    match input {
        Input::WorkSettled { work, result: WorkResult::Wave { mut hosts } } => {
            let known = d.works_in_flight().contains(&work);
            let wave = d
                .rollouts()
                .flat_map(|(_, r)| &r.waves)
                .find(|w| w.hosts.iter().any(|h| h.host == hosts[0].host) && w.work.is_some());
            let work = wave.filter(|_| !known).and_then(|w| w.work).unwrap_or(work);
            for r in &mut hosts {
                r.attempt = d.hosts().find(|h| h.host == r.host).map_or(r.attempt, |h| h.attempt);
            }
            Input::WorkSettled { work, result: WorkResult::Wave { hosts } }
        }
        other => other,
    }
}

/// The second wave begins with the first.
fn without_waiting(d: &Deployment, mut effects: Vec<Effect>) -> Vec<Effect> {
    let both = effects.iter().find_map(|e| match e {
        Effect::StartWork { spec: WorkSpec::Wave(v), .. } if v.wave == 0 => {
            let mut v = v.clone();
            v.wave = 1;
            let second = d.rollouts().next().map(|(_, r)| &r.waves[1].hosts)?;
            v.hosts = second
                .iter()
                .map(|h| windlass_domain::work::WaveHost { host: h.host.clone(), attempt: h.attempt + 1, start_at: 0 })
                .collect();
            Some(Effect::StartWork { id: WorkId(uuid::Uuid::from_u128(99)), spec: WorkSpec::Wave(v) })
        }
        _ => None,
    });
    effects.extend(both);
    effects
}
