//! What a rollback takes back besides hosts, and in which order.

use super::*;
use crate::{
    deployment::{Deployment, HostState, New, PlanFacts, StepRunKind},
    ids::{DeploymentId, WorkId},
    plan::Undoing,
    work::{CentralWork, Desired, Work, WorkSpec},
};
use uuid::Uuid;

const FLOW: &str = r#"
flow: web
steps:
  - { id: last, needs: [roll], uses: plugin/page, with: { path: "${{ steps.first.outputs.path }}", token: "${{ secrets.t }}" } }
  - { id: early, phase: prepare, uses: plugin/page, with: { path: /e } }
  - { id: first, needs: [early], uses: plugin/page, with: { path: /f } }
  - { id: cannot, needs: [first], uses: plugin/other, with: { path: /c } }
  - { id: roll, needs: [cannot], waves: 1, steps: [{ uses: artifact.fetch }] }
  - { id: never, needs: [last], uses: plugin/page, with: { path: /n } }
rollback:
  normal: [{ uses: release.switch, with: { to: last_known_good } }]
  emergency: [{ uses: release.switch, with: { to: last_known_good } }]
"#;

fn plugin(name: &str, verbs: &[&str]) -> crate::plugin::Plugin {
    serde_json::from_value(json!({ "name": name, "version": "1.0.0", "transport": { "type": "nats" },
        "verbs": verbs, "secrets": ["token"], "inputs": { "type": "object", "properties": { "token": {} } } }))
    .expect("a definition")
}

/// The world, its plan, and the deployment with these steps executed.
fn ran(steps: &[&str]) -> (World, Deployment, Vec<Work>, BTreeMap<String, Plan>) {
    let mut w = world(FLOW, 2);
    w.release.plugins.insert("plugin/page".into(), plugin("page", &["execute", "undo"]));
    w.release.plugins.insert("plugin/other".into(), plugin("other", &["execute"]));
    let plan = w.plan();
    let digest = plan.digest().expect("digest").digest;
    let new = New {
        id: DeploymentId(Uuid::from_u128(1)),
        project: "shop".into(),
        environment: "beta".into(),
        release: w.release.id,
        version: "1.1.0".into(),
        kind: ReleaseKind::Normal,
        rollback: None,
        requested_by: "person:ann".into(),
        note: String::new(),
        trace: None,
        pool: "default".into(),
        only_hosts: vec![],
        not_before: None,
        expires_at: w.release.created_at,
        plan: PlanFacts::of(&plan, &digest),
    };
    let (mut d, _) = Deployment::request(new, w.release.created_at, &mut || WorkId(Uuid::nil()));
    let mut works = Vec::new();
    for (n, id) in (1..).zip(steps) {
        // A step that was tried twice has two works.
        for attempt in 1..=2 {
            let outputs = json!({ "first": { "path": "/from-first" } }).as_object().expect("object").clone();
            works.push(Work {
                id: WorkId(Uuid::from_u128(n * 10 + u128::from(attempt))),
                deployment: d.id,
                project: "shop".into(),
                environment: "beta".into(),
                pool: "default".into(),
                desired: Desired::Run,
                fence: 1,
                plan_digest: digest.clone(),
                spec: WorkSpec::Central(CentralWork { step: (*id).into(), attempt, outputs }),
                trace: None,
            });
        }
        d.steps.iter_mut().find(|s| s.id == *id).expect("step").outputs.insert("made".into(), json!(id));
    }
    let touch = d.steps.iter_mut().find_map(|s| match &mut s.kind {
        StepRunKind::Rollout(r) => Some(r),
        _ => None,
    });
    touch.expect("a rollout").waves[0].hosts[0].state = HostState::Failed;
    (w, d, works, BTreeMap::from([(digest, plan)]))
}

fn back(w: &World, mode: RollbackMode, undoing: Undoing) -> Plan {
    build(BuildInput {
        project: "shop",
        environment: &w.environment,
        release: &w.release,
        artifact: &w.artifact,
        hosts: w.hosts.clone(),
        rollback: Some(mode),
        approvals: vec![],
        surroundings: Default::default(),
        left_out: vec![],
        undoing,
    })
    .unwrap_or_else(|e| panic!("{e}"))
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|s| s.id.as_str()).collect()
}

#[test]
fn the_last_call_is_taken_back_first_and_the_hosts_in_their_place() {
    let (w, d, works, plans) = ran(&["early", "first", "cannot", "last"]);
    let of = |mode, from| back(&w, mode, Undoing::of(&d, from, mode, &works, &plans));
    let normal = of(RollbackMode::Normal, None);
    assert_eq!(ids(&normal), ["undo-last", "rollback", "undo-first"]);
    assert_eq!(normal.steps[1].needs, ["undo-last"]);
    assert_eq!(normal.steps[2].needs, ["rollback"]);
    let all = of(RollbackMode::Normal, Some(crate::flow::Phase::Prepare));
    assert_eq!(ids(&all), ["undo-last", "rollback", "undo-first", "undo-early"]);
    assert_eq!(ids(&of(RollbackMode::Emergency, None)), ["rollback", "undo-last", "undo-first"]);
    // The definition is in the plan, and so in its digest.
    assert!(normal.plugins.contains_key("page@1.0.0"));

    let last = &normal.steps[0];
    let undo = last.undo.as_ref().expect("what it takes back");
    assert_eq!((undo.step.as_str(), undo.attempt, undo.call), ("last", 2, WorkId(Uuid::from_u128(42))));
    assert_eq!(undo.outputs["made"], "last");
    let PlanStepKind::Central { action, with, .. } = &last.kind else { panic!("central") };
    assert_eq!((action.as_str(), &with["path"]), ("plugin/page@1.0.0", &json!("/from-first")));
    assert!(crate::reference::secrets(&with["token"]).contains("t"), "a secret stays a name");
    assert!(last.note.as_deref().is_some_and(|n| n.contains("takes back step `last`")), "{:?}", last.note);

    // A plan that is made anew keeps them.
    assert_eq!(back(&w, RollbackMode::Normal, Undoing::in_plan(&normal)).digest(), normal.digest());
}

#[test]
fn what_was_never_asked_is_not_taken_back() {
    let (_, d, works, plans) = ran(&["early", "cannot"]);
    assert!(Undoing::of(&d, None, RollbackMode::Normal, &works, &plans).is_empty());
    let (_, mut d, works, plans) = ran(&["last"]);
    // Without hosts that are taken back there is nothing it ran behind.
    for s in &mut d.steps {
        if let StepRunKind::Rollout(r) = &mut s.kind {
            r.waves[0].hosts[0].state = HostState::NotStarted;
        }
    }
    let u = Undoing::of(&d, None, RollbackMode::Normal, &works, &plans);
    assert_eq!((u.before.len(), u.after.len()), (0, 1));
}
