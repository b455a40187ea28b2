//! Which secrets a plan's steps name, and whether each exists where it is needed: told when the plan is made, not in the
//! middle of a release. Only names are read here.

use super::Unplannable;
use crate::{Error, Tx, secrets};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use windlass_domain::{
    expression::Template,
    plan::{Plan, PlanStepKind},
    reference::{self, Reference},
};

/// Names in parameters: markers where they are rendered already, references where they wait for a host.
fn named(with: &Map<String, Value>, out: &mut BTreeSet<String>) {
    for value in with.values() {
        out.extend(reference::secrets(value));
        for r in Template::compile(value).iter().flat_map(Template::references) {
            if let Reference::Secret { name } = r {
                out.insert(name.clone());
            }
        }
    }
}

/// Refuses a plan with a secret that no scope holds.
pub(super) async fn check(tx: &mut Tx, plan: &Plan) -> Result<Result<(), Unplannable>, Error> {
    let place = secrets::Place::of(tx, &plan.project, &plan.environment, None, None).await?;
    let running = plan.steps.iter().filter(|s| !s.skipped);
    for (step, on_hosts) in running.flat_map(|s| [(s, true), (s, false)]) {
        let mut names = BTreeSet::new();
        match (&step.kind, on_hosts) {
            (PlanStepKind::Central { with, .. }, false) => named(with, &mut names),
            (PlanStepKind::Rollout(r), true) => {
                let probes = r.probes.iter().flat_map(|p| &p.on_hosts);
                r.steps.iter().chain(probes).for_each(|s| named(&s.with, &mut names));
            }
            // What the executor asks and tells itself is in no host's scope.
            (PlanStepKind::Rollout(r), false) => {
                r.probes.iter().flat_map(|p| &p.central).for_each(|p| named(&p.with, &mut names));
                names.extend(r.traffic.iter().flat_map(|t| t.kind.secrets()));
            }
            _ => {}
        }
        let names: Vec<String> = names.into_iter().collect();
        let missing = secrets::missing(tx, &place, &names).await?;
        if missing.is_empty() {
            continue;
        }
        // What no outer scope has, every host must have itself.
        let hosts = match &step.kind {
            PlanStepKind::Rollout(r) if on_hosts => {
                r.waves.iter().flatten().filter_map(|h| plan.hosts.get(*h as usize)).collect()
            }
            _ => vec![],
        };
        let mut lacking = None;
        for h in &hosts {
            let own = place.on_host(&h.name);
            if let Some(name) = secrets::missing(tx, &own, &missing).await?.into_iter().next() {
                lacking = Some((name, format!(" for host {}", h.name)));
                break;
            }
        }
        if hosts.is_empty() {
            lacking = missing.into_iter().next().map(|n| (n, String::new()));
        }
        if let Some((name, whose)) = lacking {
            let (p, e) = (&plan.project, &plan.environment);
            return Ok(Err(Unplannable(format!(
                "step `{}` needs the secret `{name}`{whose}, which none of its scopes has; set it: windlass secret set \
                 {p}/{name} (or {p}/{e}/{name} for the environment, host/<host>/{name}, or group/<group>/{name})",
                step.id
            ))));
        }
    }
    Ok(Ok(()))
}
