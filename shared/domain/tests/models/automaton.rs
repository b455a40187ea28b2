//! A small deployment as a finite machine: every state that the real `Deployment` can be in under a few inputs, numbered, and
//! what each input does to it. Models of several deployments at once use the numbers; what they mean is decided by the code.

use crate::search::key_of_shown;
use std::collections::HashMap;
use windlass_domain::{
    Timestamp,
    deployment::{
        Deployment, Effect, HostRun, HostState, Input, New, PlanFacts, RolloutRun, State, StepRun, StepRunKind, WaveRun,
    },
    flow::{Confirm, OnFailure, Patience},
    ids::WorkId,
    release::ReleaseKind,
    work::{FailureClass, HostResult, Outcome, WorkResult},
};

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Does {
    TakeLock,
    Succeed,
    Fail,
    GoSilent,
    SpeakLate,
    Abort,
    Override,
    Cancel,
    TakeUpAgain,
}

impl Does {
    pub(crate) const ALL: [Does; 9] = [
        Does::TakeLock,
        Does::Succeed,
        Does::Fail,
        Does::GoSilent,
        Does::SpeakLate,
        Does::Abort,
        Does::Override,
        Does::Cancel,
        Does::TakeUpAgain,
    ];
}

/// One state of it, as far as others can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) state: State,
    /// It believes to hold the lock.
    pub(crate) holds: bool,
    pub(crate) unknown: bool,
    /// A work of it is under way.
    pub(crate) flies: bool,
}

/// Where an input leads, and whether the lock is freed and a work begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leads {
    pub(crate) to: u8,
    pub(crate) frees: bool,
    pub(crate) starts: bool,
}

pub(crate) struct Automaton {
    pub(crate) nodes: Vec<Node>,
    pub(crate) leads: Vec<[Option<Leads>; Does::ALL.len()]>,
}

impl Automaton {
    pub(crate) fn after(&self, node: u8, does: Does) -> Option<Leads> {
        self.leads[node as usize][does as usize]
    }

    pub(crate) fn node(&self, node: u8) -> Node {
        self.nodes[node as usize]
    }
}

fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().expect("time")
}

fn queued() -> Deployment {
    let rollout = RolloutRun {
        confirm: Confirm::None,
        bake_s: 0,
        max_failures: 0,
        parallel: 0,
        host_steps: 1,
        stagger: None,
        probes: None,
        required: Vec::new(),
        waves: vec![WaveRun::waiting(vec![HostRun::waiting("a")])],
    };
    let new = New {
        id: uuid::Uuid::from_u128(7).into(),
        project: "shop".into(),
        environment: "beta".into(),
        release: uuid::Uuid::from_u128(8).into(),
        version: "1.0".into(),
        kind: ReleaseKind::Normal,
        rollback: None,
        requested_by: "ann".into(),
        note: String::new(),
        trace: None,
        pool: "default".into(),
        only_hosts: Vec::new(),
        not_before: None,
        expires_at: now() + chrono::Duration::hours(1),
        plan: PlanFacts {
            digest: "d1".into(),
            rules: Vec::new(),
            on_failure: OnFailure::Pause,
            steps: vec![StepRun::waiting("go", Vec::new(), StepRunKind::Rollout(rollout))],
            context: serde_json::Map::new(),
            patience: Patience::default(),
            automatic: None,
        },
    };
    Deployment::request(new, now(), &mut || WorkId(uuid::Uuid::nil())).0
}

fn input(d: &Deployment, does: Does) -> Option<Input> {
    let (by, reason) = ("olga".to_owned(), "r".to_owned());
    let (_, r) = d.rollouts().next()?;
    let wave = &r.waves[0];
    let host = &wave.hosts[0];
    let result = |outcome, class| -> Option<Input> {
        let result = HostResult {
            host: host.host.clone(),
            attempt: host.attempt,
            outcome,
            failed_step: None,
            reason: None,
            failed_id: None,
            class,
            exit_code: None,
            outputs: serde_json::Map::new(),
        };
        Some(Input::WorkSettled { work: wave.work?, result: WorkResult::Wave { hosts: vec![result] } })
    };
    let flies = !d.works_in_flight().is_empty();
    match does {
        Does::TakeLock => Some(Input::LockTaken { fence: 1 }),
        Does::Succeed if flies => result(Outcome::Succeeded, None),
        Does::Fail if flies => result(Outcome::Failed, Some(FailureClass::Exit)),
        Does::GoSilent if flies => result(Outcome::Unknown, Some(FailureClass::Unknown)),
        Does::SpeakLate if host.state == HostState::Unknown => result(Outcome::Succeeded, None),
        Does::Succeed | Does::Fail | Does::GoSilent | Does::SpeakLate => None,
        Does::Abort => Some(Input::Abort { by, reason }),
        Does::Override => Some(Input::Override { by, hosts: Vec::new(), reason }),
        Does::Cancel => Some(Input::Cancel { by, reason }),
        // Twice is as good as for ever.
        Does::TakeUpAgain if d.run > 1 || !d.state.is_terminal() => None,
        Does::TakeUpAgain => Some(Input::Retry { by, hosts: Vec::new(), step: None, whole_wave: false }),
    }
}

/// All of it. The first node is a deployment that waits for its lock.
pub(crate) fn explore() -> Automaton {
    let mut states = vec![queued()];
    let mut index = HashMap::from([(key_of_shown(&states[0]), 0_u8)]);
    let mut leads = Vec::new();
    while leads.len() < states.len() {
        let d = states[leads.len()].clone();
        let mut row = [None; Does::ALL.len()];
        for does in Does::ALL {
            let Some(input) = input(&d, does) else { continue };
            let mut mint = || WorkId(uuid::Uuid::from_u128(u128::from(d.run) * 10 + 1));
            let Ok((next, effects)) = d.apply(input, now(), &mut mint) else { continue };
            if next == d {
                continue;
            }
            let to = *index.entry(key_of_shown(&next)).or_insert_with(|| {
                states.push(next.clone());
                u8::try_from(states.len() - 1).expect("a small machine")
            });
            let frees = effects.contains(&Effect::FreeLock);
            let starts = effects.iter().any(|e| matches!(e, Effect::StartWork { .. }));
            row[does as usize] = Some(Leads { to, frees, starts });
        }
        leads.push(row);
    }
    let node = |d: &Deployment| Node {
        state: d.state,
        holds: d.lock.is_some(),
        unknown: !d.unknown_hosts().is_empty(),
        flies: !d.works_in_flight().is_empty(),
    };
    Automaton { nodes: states.iter().map(node).collect(), leads }
}
