//! The deployment machine: two waves of two hosts and a central step, two people with every verb that bears on a run, and
//! executors that give hosts whatever end they may have. `Deployment::apply` is the real one.

mod checks;
mod moves;
mod mutants;
mod world;

use crate::{Limits, holds, is_caught, long};
use mutants::Mutant;
use windlass_domain::{
    deployment::{HostRun, PlanFacts, RolloutRun, StepRun, StepRunKind, WaveRun},
    flow::{Confirm, Inconclusive, OnFailure, Overdue, Patience, Retry},
    work::FailureClass,
};
use world::Machine;

/// One plan and how far people go with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    name: &'static str,
    budget: u32,
    stops: bool,
    /// A policy that tries once more what failed.
    retries: bool,
    /// The first wave is confirmed, and bakes under probes.
    probes: bool,
    /// Nobody came: it is aborted.
    impatient: bool,
    /// Acts of people that lead no nearer to an end.
    acts: u8,
    waves: u8,
}

const PLAIN: Shape = Shape {
    name: "no failure is borne",
    budget: 0,
    stops: false,
    retries: false,
    probes: false,
    impatient: false,
    acts: 1,
    waves: 2,
};

fn shapes(acts: u8) -> Vec<Shape> {
    let waves = if acts > 1 { 2 } else { 1 };
    vec![
        Shape { acts, waves, ..PLAIN },
        Shape { name: "one failure is borne", budget: 1, acts, waves: 2, ..PLAIN },
        Shape { name: "a failure ends it, after a retry", stops: true, retries: true, acts, waves, ..PLAIN },
        Shape { name: "probes", probes: true, acts, waves, ..PLAIN },
        Shape { name: "nobody comes", impatient: true, acts, waves, ..PLAIN },
    ]
}

fn plan(shape: &Shape) -> PlanFacts {
    let names: &[&[&str]] = if shape.waves == 2 { &[&["a", "b"], &["c", "d"]] } else { &[&["a", "b"]] };
    let waves = names.iter().map(|w| WaveRun::waiting(w.iter().map(|h| HostRun::waiting(*h)).collect())).collect();
    let rollout = RolloutRun {
        confirm: if shape.probes { Confirm::First } else { Confirm::None },
        bake_s: if shape.probes { 7 } else { 0 },
        max_failures: shape.budget,
        parallel: 1,
        host_steps: 2,
        stagger: None,
        probes: shape.probes.then_some(Inconclusive::Ask),
        required: Vec::new(),
        waves,
    };
    let mut go = StepRun::waiting("go", Vec::new(), StepRunKind::Rollout(rollout));
    let central = StepRunKind::Central { action: "http.request".into(), attempt: 0, work: None, reason: None };
    let mut smoke = StepRun::waiting("smoke", vec!["go".into()], central);
    if shape.retries {
        let (on, exit_codes) = (vec![FailureClass::Exit], Vec::new());
        let retry = Retry { max: 1, on, exit_codes, backoff_s: 5, factor: 2, max_backoff_s: 30 };
        (go.retry, smoke.retry) = (Some(retry.clone()), Some(retry));
    }
    let then = if shape.impatient { Overdue::Abort } else { Overdue::Remind };
    PlanFacts {
        digest: "d1".into(),
        rules: Vec::new(),
        on_failure: if shape.stops { OnFailure::Stop } else { OnFailure::Pause },
        steps: vec![go, smoke],
        context: serde_json::Map::new(),
        patience: Patience { within_s: 300, then },
        automatic: None,
    }
}

#[test]
fn a_deployment_keeps_its_promises_in_every_state() {
    // Acts of people beside those that lead on, and the states to look at. What is not looked at whole says so.
    let forms: &[(u8, usize)] =
        if long() { &[(0, 600_000), (1, 600_000), (2, 600_000)] } else { &[(0, 2_500), (1, 1_500)] };
    let mut all = 0;
    for (acts, states) in forms.iter().copied() {
        for shape in shapes(acts) {
            let name = format!("deployment, {} (acts: {acts}, waves: {})", shape.name, shape.waves);
            all += holds(&name, &Machine::new(shape, None), Limits { states, traps: true }).states;
        }
    }
    assert!(all > 10_000, "a search that gets nowhere proves nothing: {all} states");
}

#[test]
fn each_safeguard_of_a_deployment_is_needed() {
    for m in Mutant::ALL {
        let shape = m.shape(Shape { waves: 1, ..PLAIN });
        let name = format!("{m:?}");
        is_caught(&name, &Machine::new(shape, Some(m)), Limits { states: 20_000, traps: false });
    }
    eprintln!("{} of {} mutants of the deployment machine are caught", Mutant::ALL.len(), Mutant::ALL.len());
}
