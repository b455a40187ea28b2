//! What a deployment keeps of its plan.

use super::*;
use crate::plan::{Plan, PlanRollout, PlanStep, PlanStepKind, graph};
use std::collections::BTreeMap;

fn wave(plan: &Plan, r: &PlanRollout, own: &BTreeMap<u32, u32>, index: usize, hosts: &[u32]) -> WaveRun {
    let known = hosts.iter().filter_map(|h| Some((*h, plan.hosts.get(*h as usize)?)));
    let steps = |h: u32| own.get(&h).copied().unwrap_or(0);
    let hosts = known.map(|(i, h)| HostRun { steps: steps(i), ..HostRun::waiting(h.name.clone()) });
    WaveRun {
        max_failures: r.wave_failures.get(index).copied(),
        group: r.groups.get(index).filter(|g| !g.is_empty()).cloned(),
        ..WaveRun::waiting(hosts.collect())
    }
}

/// The waves with how many steps each host has, where conditions may take some away; 0: all.
fn waves(plan: &Plan, step: &PlanStep, r: &PlanRollout) -> Vec<WaveRun> {
    // What cannot be computed fails the plan itself, before it comes here.
    let own = if r.conditions.is_empty() { BTreeMap::new() } else { plan.steps_by_host(&step.id).unwrap_or_default() };
    r.waves.iter().enumerate().map(|(i, w)| wave(plan, r, &own, i, w)).collect()
}

impl PlanFacts {
    /// What a deployment keeps of a plan with this digest.
    pub fn of(plan: &Plan, digest: &str) -> PlanFacts {
        let not_taken = graph::not_taken(plan);
        let steps = plan.steps.iter().map(|s| StepRun {
            id: s.id.clone(),
            needs: s.needs.clone(),
            join: s.join.unwrap_or_default(),
            condition: s.condition.clone(),
            on_failure: s.on_failure,
            repeat: s.repeat.as_ref().map(|r| RepeatRun {
                until: r.until.clone(),
                max: r.max,
                every_s: r.every_s,
                runs: 0,
                next_at: None,
            }),
            required: s.required,
            retry: s.retry.clone(),
            on_timeout: s.on_timeout,
            phase: s.phase,
            class: None,
            tries: Tries::default(),
            forced: None,
            left_out: s.skipped,
            reads: graph::reads(plan, s),
            reached: false,
            asks: None,
            chosen: None,
            reason: None,
            state: match s.skipped {
                _ if not_taken.contains(s.id.as_str()) => StepState::NotTaken,
                true => StepState::Skipped,
                false => StepState::Waiting,
            },
            outputs: serde_json::Map::new(),
            kind: match &s.kind {
                PlanStepKind::Gateway(g) => {
                    StepRunKind::Gateway(GatewayRun { gateway: g.clone(), taken: None, chosen_by: None, reason: None })
                }
                PlanStepKind::Enter { scope } => StepRunKind::Enter { scope: scope.clone() },
                PlanStepKind::Leave { scope } => StepRunKind::Leave { scope: scope.clone() },
                PlanStepKind::Central { action, .. } => {
                    StepRunKind::Central { action: action.clone(), attempt: 0, work: None, reason: None }
                }
                PlanStepKind::Rollout(r) => StepRunKind::Rollout(RolloutRun {
                    confirm: r.confirm,
                    bake_s: r.bake_s,
                    max_failures: r.max_failures,
                    parallel: r.parallel,
                    host_steps: r.steps.len() as u32,
                    stagger: r.stagger,
                    probes: r.probes.as_ref().map(|p| p.inconclusive),
                    required: r.required.clone(),
                    waves: waves(plan, s, r),
                }),
            },
        });
        PlanFacts {
            digest: digest.into(),
            rules: plan.approvals.clone(),
            on_failure: plan.on_failure,
            steps: steps.collect(),
            context: graph::run_context(plan),
            patience: plan.patience.unwrap_or_default(),
            automatic: plan.automatic,
        }
    }
}
