//! How each kind of rollback goes over the hosts.

use super::*;

const BACK: &str = r#"flow: web
steps: [ { id: r, waves: 1, steps: [ { uses: artifact.fetch } ] } ]
rollback:
  automatic: emergency
  normal:
    waves: "2 50%"
    parallel: 3
    budget: { hosts: 2, wave: { hosts: 1 } }
    values: { wait: 9, mode: gentle }
    steps: [ { uses: script, with: { run: x, args: ["${{ values.wait }}", "${{ values.mode }}"] } } ]
  emergency:
    - { uses: release.switch, with: { to: last_known_good } }
"#;

fn back(w: &World, mode: RollbackMode) -> (Plan, PlanRollout) {
    let plan = w.build(Some(mode)).unwrap_or_else(|e| panic!("{e}"));
    let PlanStepKind::Rollout(r) = plan.steps[0].kind.clone() else { panic!("a rollout") };
    (plan, r)
}

#[test]
fn a_rollback_has_waves_a_budget_and_values_of_its_own() {
    let mut w = world(BACK, 8);
    w.release.values.insert("wait".into(), json!(1));
    w.release.values.insert("other".into(), json!("kept"));
    for h in &mut w.hosts {
        h.values.insert("mode".into(), json!("of the host"));
    }
    let (plan, r) = back(&w, RollbackMode::Normal);
    assert_eq!(r.waves.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4, 2]);
    assert_eq!((r.parallel, r.max_failures, r.wave_failures), (3, 2, vec![1, 1, 1]));
    let spec = plan.task_spec("rollback", 0).expect("spec");
    assert_eq!(spec.steps[0].with["args"], json!(["9", "gentle"]), "over those of the release and of the host");
    assert_eq!(plan.release_values["other"], "kept");
    // Only in a rollback of that kind.
    assert_eq!(w.plan().release_values["wait"], 1);
    assert_eq!(back(&w, RollbackMode::Emergency).0.release_values["wait"], 1);
    assert_eq!(w.plan().automatic, Some(RollbackMode::Emergency));
}

#[test]
fn an_emergency_goes_to_all_hosts_at_once_unless_it_says_otherwise() {
    let w = world(BACK, 8);
    assert_eq!(back(&w, RollbackMode::Emergency).1.waves.len(), 1);
    let slow = BACK.replace("  emergency:\n    - {", "  emergency:\n    waves: 4\n    steps:\n    - {");
    assert_eq!(back(&world(&slow, 8), RollbackMode::Emergency).1.waves.len(), 2);
}
