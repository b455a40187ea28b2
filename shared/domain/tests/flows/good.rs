//! Flows that read as they are meant.

use crate::{folder, project, read, yaml_files};
use windlass_domain::{
    flow::{Flow, GatewayMode, Inconclusive, InputKind, Join, Overdue, StepFailure, StepKind},
    release::RollbackMode,
    work::{FailureClass, Stagger},
};

fn everything() -> Flow {
    let text = std::fs::read_to_string(folder("good").join("everything.yaml")).expect("reads");
    read(&text).unwrap_or_else(|e| panic!("{e:#?}"))
}

#[test]
fn every_good_flow_is_read_and_stored_as_it_is() {
    for (name, text) in yaml_files(&folder("good")) {
        let flow = read(&text).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
        let stored = serde_json::to_string(&flow).expect("writes");
        assert_eq!(serde_json::from_str::<Flow>(&stored).expect("reads"), flow, "{name}");
    }
}

#[test]
fn every_flow_of_the_library_is_read() {
    for (name, text) in yaml_files(&project().join("ops/flows")) {
        read(&text).unwrap_or_else(|e| panic!("{name}: {e:#?}"));
    }
}

#[test]
fn every_key_reaches_the_flow() {
    let f = everything();
    let step = |id: &str| f.steps.iter().find(|s| s.id == id).unwrap_or_else(|| panic!("{id}"));
    let rules = &f.inputs["name"].rules;
    assert_eq!((rules.min_length, rules.max_length, rules.pattern.as_deref()), (Some(1), Some(20), Some("[a-z]+")));
    assert!(rules.optional && f.inputs["mode"].description == "How careful to be");
    assert_eq!((f.inputs["batch"].rules.min, f.inputs["batch"].rules.max), (Some(1.0), Some(500.0)));
    let kinds = ["where", "token", "config"].map(|k| f.inputs[k].kind);
    assert_eq!(kinds, [InputKind::HostSelector, InputKind::Secret, InputKind::File]);
    assert_eq!(f.outputs["version"], "${{ steps.build.outputs.pack.version }}");

    let StepKind::Gateway(g) = &step("which").kind else { panic!("a gateway") };
    assert_eq!((g.mode, g.default.len()), (GatewayMode::Exclusive, 0));
    let branches: Vec<(&str, Option<&str>, &[String])> =
        g.branches.iter().map(|b| (b.name.as_str(), b.condition.as_deref(), b.to.as_slice())).collect();
    assert_eq!(branches[0], ("quick", Some("inputs.mode == 'fast'"), &["rollout".to_string()][..]));
    // Named by its first target, and a single id stands for a list.
    assert_eq!((branches[1].0, branches[1].2), ("slow", &["slow".to_string()][..]));
    // A step that a gateway leads to needs it, written or not.
    assert_eq!(step("slow").needs, ["which"]);
    assert_eq!(step("rollout").needs, ["which"]);
    assert_eq!(step("tell-a").needs, ["more"]);

    let rollout = step("rollout");
    assert_eq!((rollout.join, rollout.on_failure), (Join::Any, Some(StepFailure::Continue)));
    let StepKind::Rollout(r) = &rollout.kind else { panic!("a rollout") };
    assert_eq!((r.on.as_deref(), r.parallel), (Some("${{ inputs.where }}"), 5));
    let StepKind::Gateway(fan) = &step("fan").kind else { panic!("a gateway") };
    assert_eq!((fan.mode, fan.branches.len(), step("fan").join), (GatewayMode::Parallel, 2, Join::Done));
    assert!(fan.branches.iter().all(|b| b.condition.is_none() && b.to.len() == 1));

    let repeat = step("probe").repeat.as_ref().expect("repeats");
    assert_eq!((repeat.until.as_str(), repeat.max, repeat.every_s), ("steps.probe.outputs.status == 200", 10, 30));
    assert_eq!(step("sub").repeat.as_ref().map(|r| r.every_s), Some(10));
    let StepKind::Subflow(sub) = &step("sub").kind else { panic!("a subflow") };
    assert_eq!((sub.flow.as_str(), sub.with.len()), ("common", 3));
    let StepKind::Central(hook) = &step("hook").kind else { panic!("a plugin") };
    assert_eq!((hook.uses.as_str(), hook.timeout_s), ("plugin/jira@1.2.0", 0));
    assert_eq!(hook.with["issue"]["count"], 3);
    let StepKind::Central(chat) = &step("tell-a").kind else { panic!("a plugin") };
    assert_eq!(chat.timeout_s, 10);
}

#[test]
fn every_key_of_rolling_out_reaches_the_flow() {
    let text = std::fs::read_to_string(folder("good").join("rolling.yaml")).expect("reads");
    let f = read(&text).unwrap_or_else(|e| panic!("{e:#?}"));
    let step = |id: &str| f.steps.iter().find(|s| s.id == id).unwrap_or_else(|| panic!("{id}"));
    let rollout = |id: &str| match &step(id).kind {
        StepKind::Rollout(r) => r.clone(),
        other => panic!("{other:?}"),
    };
    let patience = f.patience.expect("patience");
    assert_eq!((patience.within_s, patience.then), (4 * 3600, Overdue::Rollback));

    let short = step("package").retry.clone().expect("a policy");
    assert_eq!((short.max, short.backoff_s, short.factor, short.max_backoff_s), (3, 5, 2, 300));
    assert!(short.on.is_empty() && short.exit_codes.is_empty() && step("package").required);
    let rate = step("rate");
    let retry = rate.retry.clone().expect("a policy");
    assert_eq!(retry.on, [FailureClass::Timeout, FailureClass::Unreachable]);
    // A pause that is longer than the usual longest is kept.
    assert_eq!((retry.backoff_s, retry.max_backoff_s, rate.on_timeout), (600, 600, Some(StepFailure::Continue)));
    let full = step("rollout").retry.clone().expect("a policy");
    assert_eq!((full.max, full.exit_codes.as_slice()), (5, &[75, 111][..]));
    assert_eq!((full.backoff_s, full.factor, full.max_backoff_s), (1, 3, 60));

    let r = rollout("rollout");
    assert_eq!((r.group_by.as_deref(), r.canary.as_deref()), (Some("zone"), Some("canary=yes")));
    assert_eq!(r.stagger, Some(Stagger { every_s: 5, jitter_s: 10 }));
    assert_eq!(rollout("side").stagger, Some(Stagger { every_s: 2, jitter_s: 0 }));
    let b = r.budget;
    assert_eq!((b.hosts, b.percent, b.wave_hosts, b.wave_percent), (Some(3), Some(10.0), Some(1), Some(50.0)));
    let probes = r.probes.expect("probes");
    assert_eq!((r.bake_s, probes.every_s, probes.inconclusive), (300, 20, Inconclusive::Pass));
    let (first, last) = (&probes.checks[0], &probes.checks[4]);
    assert_eq!(
        (first.success.as_deref(), first.fail.as_deref(), first.failures),
        (Some("value < 1"), Some("value > 5"), 3)
    );
    assert_eq!((last.id.as_str(), last.call.timeout_s, last.failures), ("disk", 120, 1));
    assert_eq!(probes.checks[3].call.timeout_s, 60, "a look is over within a minute");
    assert_eq!((rollout("side").bake_s, rollout("side").probes), (60, None));
    let names: Vec<&str> = r.steps.iter().map(|s| s.call.uses.as_str()).collect();
    let framed = ["lb.drain", "lb.drain", "artifact.fetch", "release.switch", "script", "lb.attach", "lb.attach"];
    assert_eq!(names, framed);
    assert!(r.steps[3].required && !r.steps[2].required);

    let (normal, how) = (&f.rollback.normal, &f.rollback.normal_how);
    assert_eq!((normal.len(), f.rollback.emergency.len(), f.rollback.automatic), (3, 1, Some(RollbackMode::Emergency)));
    assert_eq!((how.waves.as_ref().map(ToString::to_string).as_deref(), how.parallel), (Some("1 *4"), Some(10)));
    assert_eq!(how.budget.and_then(|b| b.wave_hosts), Some(2));
    assert_eq!((&how.values["drain_seconds"], how.values["list"][1].as_str()), (&serde_json::json!(5), Some("b")));
    assert!(f.rollback.emergency_how.is_default());
}

/// The language reference shows flows and fragments; those that begin with `flow:` must read.
#[test]
fn the_examples_of_the_reference_are_read() {
    let text = std::fs::read_to_string(project().join("ops/docs/flows.md")).expect("reads");
    let mut found = 0;
    for block in text.split("```yaml\n").skip(1) {
        let example = block.split("```").next().unwrap_or_default();
        let flow = if example.lines().any(|l| l.starts_with("flow:")) {
            example.to_string()
        } else {
            format!("flow: example\n{example}")
        };
        read(&flow).unwrap_or_else(|e| panic!("{flow}\n{e:#?}"));
        found += 1;
    }
    assert!(found >= 8, "{found} examples");
}
