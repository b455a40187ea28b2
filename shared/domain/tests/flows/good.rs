//! Flows that read as they are meant.

use crate::{folder, project, read, yaml_files};
use windlass_domain::flow::{Flow, GatewayMode, InputKind, Join, StepFailure, StepKind};

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
