//! Random plans. Graphs come from the generator of the unit tests (`plans/random.rs`), which finds what it builds with here
//! under the names that it has there.

mod random;

use windlass_domain::{
    approval::ApprovalRule,
    deployment::*,
    flow::{Confirm, OnFailure},
};

pub(super) use random::plan_of;

mod graph {
    //! Steps of graphs.

    use super::*;
    use windlass_domain::flow::{Branch, Gateway, GatewayMode};

    pub(super) fn gateway(
        id: &str,
        needs: &[&str],
        mode: GatewayMode,
        branches: &[(&str, &str, &[&str])],
        default: &[&str],
    ) -> StepRun {
        let named = |(name, condition, to): &(&str, &str, &[&str])| Branch {
            name: (*name).to_owned(),
            condition: (mode != GatewayMode::Parallel).then(|| (*condition).to_owned()),
            to: names(to),
        };
        let gateway = Gateway { mode, branches: branches.iter().map(named).collect(), default: names(default) };
        let run = GatewayRun { gateway, taken: None, chosen_by: None, reason: None };
        StepRun::waiting(id, names(needs), StepRunKind::Gateway(run))
    }

    pub(super) fn enter(scope: &str, needs: &[&str]) -> StepRun {
        StepRun::waiting(format!("{scope}/enter"), names(needs), StepRunKind::Enter { scope: scope.into() })
    }

    pub(super) fn leave(scope: &str, needs: &[&str]) -> StepRun {
        StepRun::waiting(scope, names(needs), StepRunKind::Leave { scope: scope.into() })
    }
}

fn names(n: &[&str]) -> Vec<String> {
    n.iter().map(|n| (*n).to_owned()).collect()
}

fn rollout(id: &str, needs: &[&str], waves: &[&[&str]], max_failures: u32, confirm: Confirm, bake_s: u32) -> StepRun {
    let waves = waves.iter().map(|w| WaveRun::waiting(w.iter().map(|h| HostRun::waiting(*h)).collect())).collect();
    let kind = StepRunKind::Rollout(RolloutRun {
        probes: None,
        required: Vec::new(),
        stagger: None,
        confirm,
        bake_s,
        max_failures,
        parallel: 0,
        host_steps: 5,
        waves,
    });
    StepRun::waiting(id, names(needs), kind)
}

fn central(id: &str, needs: &[&str]) -> StepRun {
    let kind = StepRunKind::Central { action: "http.request".into(), attempt: 0, work: None, reason: None };
    StepRun::waiting(id, names(needs), kind)
}

fn facts(steps: Vec<StepRun>, quorum: u32) -> PlanFacts {
    let rule = || ApprovalRule { name: "ops".into(), quorum, people: Vec::new() };
    PlanFacts {
        automatic: None,
        patience: Default::default(),
        digest: "d1".into(),
        rules: (quorum > 0).then(rule).into_iter().collect(),
        on_failure: OnFailure::Pause,
        steps,
        context: Default::default(),
    }
}

/// What a rollback does: one rollout over these hosts.
pub(super) fn back_to(hosts: &[String]) -> PlanFacts {
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    facts(vec![rollout("back", &[], &[&hosts], 0, Confirm::None, 0)], 0)
}
