//! Rollouts in a plan: which hosts go together, how many may fail, the probes, and what a rollback makes of its steps.

use super::{
    super::{
        Judge, PlanError, PlanProbe, PlanProbes, PlanRollout, PlanStep, PlanStepKind, ROLLBACK_STEP, error::Mode,
        traffic,
    },
    Planner, wrong,
};
use crate::{
    expression::Expression,
    flow::{Budget, Confirm, Flow, HostStep, Probe, Probes, Rollback, RollbackHow, Rollout, actions},
    release::RollbackMode,
    selector::Selector,
    wave::{MAX_WAVES, WaveError, WaveExpression},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Waves of a normal rollback that says nothing else: one host shows that it works, then four times as many each time, so
/// that haste does not take the whole environment down.
const NORMAL_WAVES: &str = "1 *4";
/// Of an emergency: whatever is out there is worse.
const EMERGENCY_WAVES: &str = "100%";

fn how(rollback: &Rollback, mode: RollbackMode) -> (&[HostStep], &RollbackHow, &'static str) {
    match mode {
        RollbackMode::Normal => (&rollback.normal, &rollback.normal_how, NORMAL_WAVES),
        RollbackMode::Emergency => (&rollback.emergency, &rollback.emergency_how, EMERGENCY_WAVES),
    }
}

/// What a rollback of this kind has over all other values.
pub(super) fn values(flow: &Flow, mode: Option<RollbackMode>) -> BTreeMap<String, Value> {
    mode.map(|m| how(&flow.rollback, m).1.values.clone()).unwrap_or_default()
}

/// Where the hosts of a rollout go: the waves, and what those of each have in common, where they are grouped.
struct Split {
    waves: Vec<Vec<u32>>,
    groups: Vec<String>,
    note: Option<String>,
}

impl Planner<'_> {
    pub(super) fn rollback(&self, flow: &Flow, mode: RollbackMode) -> Result<PlanStep, PlanError> {
        let (steps, how, usual) = how(&flow.rollback, mode);
        let waves: Result<WaveExpression, _> = how.waves.clone().map_or_else(|| usual.parse(), Ok);
        let rollout = Rollout {
            waves: waves.map_err(|error| PlanError::Waves { step: ROLLBACK_STEP.into(), error })?,
            confirm: Confirm::None,
            bake_s: 0,
            probes: None,
            group_by: None,
            canary: None,
            stagger: None,
            budget: how.budget.unwrap_or_default(),
            parallel: how.parallel.unwrap_or(0),
            on: None,
            steps: steps.to_vec(),
        };
        let (rollout, note) = self.rollout(ROLLBACK_STEP, &rollout)?;
        if rollout.steps.is_empty() {
            return Err(PlanError::NoRollback(Mode(mode)));
        }
        let kind = PlanStepKind::Rollout(rollout);
        Ok(PlanStep { note, ..PlanStep::new(ROLLBACK_STEP, Vec::new(), kind) })
    }

    /// The rollout, and what people should know about it.
    pub(super) fn rollout(&self, id: &str, r: &Rollout) -> Result<(PlanRollout, Option<String>), PlanError> {
        let own = r.steps.iter().filter(|s| !traffic::is(s)).map(|s| s.id.clone());
        let here = Planner { context: self.context.clone().with_own_steps(own), ..self.clone() };
        let hosts = self.on(id, r.on.as_deref())?;
        let total = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let split = self.split(id, r, hosts)?;
        let mut steps = Vec::new();
        let mut conditions = BTreeMap::new();
        let mut drains = Vec::new();
        for s in &r.steps {
            let place = format!("{id}.{}", s.id);
            let e = s.condition.as_deref().map(Expression::compile).transpose().map_err(wrong(&place))?;
            if traffic::is(s) {
                if let Some(e) = &e {
                    self.no_host_values(&place, &[e])?;
                }
                let kept = e.map_or(Ok(true), |e| e.eval_bool(&self.context)).map_err(wrong(&place))?;
                drains.extend(traffic::drains(s).filter(|_| kept));
                continue;
            }
            if let (Some(e), Some(c)) = (&e, &s.condition) {
                if self.on_host(e) {
                    conditions.insert(s.id.clone(), c.clone());
                } else if !e.eval_bool(&self.context).map_err(wrong(&place))? {
                    continue;
                }
            }
            steps.push(here.host_step(&place, s)?);
        }
        let required = r.steps.iter().filter(|s| s.required && steps.iter().any(|k| k.id == s.id));
        let taken = traffic::of(self.environment, id, &drains, &self.plan.hosts, &split.waves)?;
        let note = (taken.is_empty() && !drains.is_empty()).then(|| traffic::NONE.to_string()).or(split.note);
        let rollout = PlanRollout {
            groups: split.groups,
            confirm: r.confirm,
            bake_s: r.bake_s,
            max_failures: max_failures(r.budget.hosts, r.budget.percent, total).unwrap_or(0),
            wave_failures: wave_failures(&r.budget, &split.waves),
            waves: split.waves,
            parallel: r.parallel,
            stagger: r.stagger,
            probes: r.probes.as_ref().map(|p| self.probes(id, p)).transpose()?,
            traffic: taken,
            required: required.map(|s| s.id.clone()).collect(),
            steps,
            conditions,
        };
        Ok((rollout, note))
    }

    fn split(&self, id: &str, r: &Rollout, hosts: Vec<u32>) -> Result<Split, PlanError> {
        let wrong = |error| PlanError::Waves { step: id.into(), error };
        let total = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let label = |h: &u32, key: &str| self.plan.hosts.get(*h as usize).and_then(|h| h.labels.get(key)).cloned();
        let mut out = Split { waves: Vec::new(), groups: Vec::new(), note: None };
        let mut rest = hosts;
        if let Some(text) = &r.canary {
            let problem = |e| format!("no selector (`canary: {text}`): {e}");
            let canary: Selector = text.parse().map_err(|e| PlanError::On { step: id.into(), problem: problem(e) })?;
            let fits = |h: &u32| self.plan.hosts.get(*h as usize).is_some_and(|h| canary.matches(&h.labels));
            let (first, others): (Vec<u32>, Vec<u32>) = rest.into_iter().partition(fits);
            rest = others;
            if first.is_empty() {
                out.note = Some(format!("no host fits `canary: {text}`, so none goes before the others"));
            } else {
                out.waves.push(first);
                out.groups.push("canary".into());
            }
        }
        let mut groups: BTreeMap<Option<String>, Vec<u32>> = BTreeMap::new();
        for h in rest {
            groups.entry(r.group_by.as_deref().and_then(|key| label(&h, key))).or_default().push(h);
        }
        let mut groups: Vec<(Option<String>, Vec<u32>)> = groups.into_iter().collect();
        let number = |v: &Option<String>| v.as_deref().map(|v| v.parse::<f64>().ok().filter(|n| n.is_finite()));
        if groups.iter().all(|(v, _)| number(v) != Some(None)) {
            let of = |v: &Option<String>| number(v).flatten().unwrap_or(f64::INFINITY);
            groups.sort_by(|(a, _), (b, _)| of(a).total_cmp(&of(b)));
        } else {
            // By text already, but for those without the label.
            groups.sort_by_key(|(v, _)| v.is_none());
        }
        for (value, hosts) in groups {
            let sizes = r.waves.sizes(u32::try_from(hosts.len()).unwrap_or(u32::MAX)).map_err(wrong)?;
            let mut hosts = hosts.into_iter();
            for n in sizes {
                out.waves.push(hosts.by_ref().take(n as usize).collect());
                out.groups.push(match (&r.group_by, &value) {
                    (Some(key), Some(v)) => format!("{key}={v}"),
                    (Some(key), None) => format!("no {key}"),
                    (None, _) => String::new(),
                });
            }
        }
        if out.waves.len() > MAX_WAVES {
            return Err(wrong(WaveError::TooManyWaves { expression: r.waves.to_string(), hosts: total }));
        }
        if out.groups.iter().all(String::is_empty) {
            out.groups.clear();
        }
        Ok(out)
    }

    fn probes(&self, id: &str, probes: &Probes) -> Result<PlanProbes, PlanError> {
        let own = probes.checks.iter().map(|p| p.id.clone());
        let here = Planner { context: self.context.clone().with_own_steps(own), ..self.clone() };
        let mut out = PlanProbes {
            every_s: probes.every_s,
            inconclusive: probes.inconclusive,
            central: Vec::new(),
            on_hosts: Vec::new(),
            judge: BTreeMap::new(),
        };
        for p in &probes.checks {
            let place = format!("{id}.{}", p.id);
            if actions::find(&p.call.uses).is_some_and(actions::Action::on_host) {
                out.on_hosts.push(here.host_step(&place, &on_host(p))?);
            } else {
                let with = self.central(&place, &p.call)?;
                let (id, action) = (p.id.clone(), p.call.uses.clone());
                out.central.push(PlanProbe { id, action, with, timeout_s: p.call.timeout_s });
            }
            let judge = Judge { success: p.success.clone(), fail: p.fail.clone(), failures: p.failures };
            out.judge.insert(p.id.clone(), judge);
        }
        Ok(out)
    }
}

/// A probe as a step of its hosts' task: one that fails keeps none of the others from being asked.
fn on_host(p: &Probe) -> HostStep {
    HostStep { id: p.id.clone(), condition: None, call: p.call.clone(), always: true, required: false }
}

/// The smaller of the two that are given, the part rounded down.
fn max_failures(hosts: Option<u32>, percent: Option<f64>, total: u32) -> Option<u32> {
    let percent = percent.map(|p| (f64::from(total) * p.clamp(0.0, 100.0) / 100.0 + 1e-9).floor() as u32);
    [hosts, percent].into_iter().flatten().min()
}

fn wave_failures(budget: &Budget, waves: &[Vec<u32>]) -> Vec<u32> {
    let of =
        |w: &Vec<u32>| max_failures(budget.wave_hosts, budget.wave_percent, u32::try_from(w.len()).unwrap_or(u32::MAX));
    waves.iter().filter_map(of).collect()
}

/// A rollout that is not planned yet, or never will be.
pub(super) fn without_hosts(r: &Rollout) -> PlanRollout {
    PlanRollout {
        waves: Vec::new(),
        groups: Vec::new(),
        confirm: r.confirm,
        bake_s: r.bake_s,
        max_failures: 0,
        wave_failures: Vec::new(),
        parallel: r.parallel,
        stagger: r.stagger,
        probes: None,
        traffic: Vec::new(),
        required: Vec::new(),
        steps: Vec::new(),
        conditions: BTreeMap::new(),
    }
}
