//! One state of the model: the deployment, the rows of its works, the lock, and what its hosts really did.

use super::{Shape, mutants::Mutant, plan};
use crate::search::{Mix, Model, Steps, key_of_shown};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
};
use windlass_domain::{
    Timestamp,
    deployment::{By, Deployment, Effect, Input, New, Refusal, State, StepRunKind, WaveState},
    ids::WorkId,
    release::ReleaseKind,
    work::{Desired, WorkSpec},
};

/// Every state is told as if it were this moment, so that one that only came later is the same state.
pub(super) fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().expect("time")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Ready,
    /// An executor has granted something of it.
    Started,
    Settled,
}

/// A row of `works` with its claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) spec: WorkSpec,
    pub(super) desired: Desired,
    pub(super) phase: Phase,
    /// Hosts that a person stopped.
    pub(super) stops: BTreeSet<String>,
    /// Hosts that went silent, with their attempt: they may run on, and may speak again.
    pub(super) silent: BTreeMap<String, u32>,
}

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(super) d: Deployment,
    pub(super) works: BTreeMap<WorkId, Row>,
    /// The lock's row says that it is held.
    pub(super) locked: bool,
    /// Acts that people have left.
    pub(super) acts: u8,
    /// Hosts whose last attempt ended well, in truth.
    pub(super) well: BTreeSet<String>,
    /// Hosts that a person called well, or passed over the last step of.
    pub(super) said: BTreeSet<String>,
}

pub(crate) struct Machine {
    pub(super) shape: Shape,
    pub(super) mutant: Option<Mutant>,
}

/// The id of a work follows from what it is about, so that ids do not tell states apart.
fn canonical(spec: &WorkSpec) -> WorkId {
    WorkId(uuid::Uuid::from_u128(u128::from(key_of_shown(spec)) | 1 << 100))
}

impl Machine {
    pub(crate) fn new(shape: Shape, mutant: Option<Mutant>) -> Machine {
        Machine { shape, mutant }
    }

    /// The real transition, under names and times that do not tell states apart.
    pub(super) fn apply(&self, w: &World, input: Input, at: Timestamp) -> Result<(Deployment, Vec<Effect>), Refusal> {
        let mut n = 0_u128;
        let mut mint = || {
            n += 1;
            WorkId(uuid::Uuid::from_u128(n))
        };
        let (mut d, mut effects) = match self.mutant {
            None => w.d.apply(input, at, &mut mint)?,
            Some(m) => m.apply(w, input, at, &mut mint)?,
        };
        for e in &mut effects {
            if let Effect::StartWork { id, spec } = e {
                let name = canonical(spec);
                rename(&mut d, *id, name);
                *id = name;
            }
        }
        settle_times(&mut d, at);
        Ok((d, effects))
    }
}

fn rename(d: &mut Deployment, from: WorkId, to: WorkId) {
    let put = |w: &mut WorkId| {
        if *w == from {
            *w = to;
        }
    };
    for s in &mut d.steps {
        match &mut s.kind {
            StepRunKind::Central { work, .. } => work.iter_mut().for_each(put),
            StepRunKind::Rollout(r) => {
                for w in &mut r.waves {
                    w.work.iter_mut().for_each(put);
                    w.earlier.iter_mut().for_each(put);
                    w.probe.iter_mut().for_each(|p| put(&mut p.work));
                }
            }
            _ => {}
        }
    }
}

/// Moves all times so that `at` is `now()`. What lies before is past, how far does not matter.
fn settle_times(d: &mut Deployment, at: Timestamp) {
    let zero = now();
    let put = |t: &mut Timestamp| *t = zero + (*t - at).max(chrono::Duration::zero());
    let by = |b: &mut By| put(&mut b.at);
    put(&mut d.requested_at);
    put(&mut d.expires_at);
    if !d.state.is_before_running() {
        // Once it runs nobody looks at it, but as the time that another run has.
        d.expires_at = zero + chrono::Duration::hours(1);
    }
    for b in [&mut d.pause, &mut d.claim, &mut d.reopened, &mut d.end] {
        b.iter_mut().for_each(by);
    }
    d.started_at.iter_mut().for_each(put);
    d.ended_at.iter_mut().for_each(put);
    if let Some(a) = &mut d.attention {
        put(&mut a.since);
        put(&mut a.deadline);
        a.reminded = a.reminded.min(1);
    }
    for s in &mut d.steps {
        s.forced.iter_mut().for_each(by);
        s.tries.next_at.iter_mut().for_each(put);
        let StepRunKind::Rollout(r) = &mut s.kind else { continue };
        for w in &mut r.waves {
            match &mut w.state {
                WaveState::Baking { until } | WaveState::Probing { until } | WaveState::Retrying { at: until } => {
                    put(until);
                }
                _ => {}
            }
            w.probe.iter_mut().for_each(|p| put(&mut p.until));
            w.hosts.iter_mut().filter_map(|h| h.by.as_mut()).for_each(by);
        }
    }
}

impl Model for Machine {
    type State = World;

    fn start(&self) -> World {
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
            plan: plan(&self.shape),
        };
        let (d, _) = Deployment::request(new, now(), &mut || WorkId(uuid::Uuid::nil()));
        World {
            d,
            works: BTreeMap::new(),
            locked: false,
            acts: self.shape.acts,
            well: BTreeSet::new(),
            said: BTreeSet::new(),
        }
    }

    fn next(&self, s: &World, out: &mut Steps<World>) {
        self.moves(s, out);
    }

    fn key(&self, s: &World) -> u64 {
        let mut h = Mix::default();
        key_of_shown(&s.d).hash(&mut h);
        for (id, r) in &s.works {
            (id, r.desired as u8, r.phase, &r.stops, &r.silent).hash(&mut h);
        }
        (s.locked, s.acts, &s.well, &s.said).hash(&mut h);
        h.finish()
    }

    fn wrong(&self, s: &World) -> Option<String> {
        super::checks::state(s)
    }

    fn ended(&self, s: &World) -> bool {
        s.d.state.is_terminal() && s.d.state != State::Queued && !s.locked
    }
}
