//! Subflows in their places, and what keeps a flow from being put together.

use super::*;
use crate::flow::{Branch, Call, GatewayMode, Input, InputKind, OnFailure, Repeat, Rollback, StepFailure};
use serde_json::{Map, Value, json};

fn step(id: &str, needs: &[&str], kind: StepKind) -> Step {
    Step {
        on_timeout: None,
        required: false,
        retry: None,
        id: id.into(),
        phase: None,
        needs: needs.iter().map(|n| n.to_string()).collect(),
        join: Join::All,
        condition: None,
        on_failure: None,
        repeat: None,
        kind,
    }
}

fn call(id: &str, needs: &[&str]) -> Step {
    step(id, needs, StepKind::Central(Call { uses: "wait".into(), with: Map::new(), timeout_s: 60 }))
}

fn uses(id: &str, needs: &[&str], flow: &str, with: Value) -> Step {
    let with = with.as_object().cloned().unwrap_or_default();
    step(id, needs, StepKind::Subflow(Subflow { flow: flow.into(), with }))
}

fn flow(name: &str, steps: Vec<Step>) -> Flow {
    Flow {
        patience: Default::default(),
        name: name.into(),
        inputs: BTreeMap::new(),
        on_failure: OnFailure::Pause,
        steps,
        rollback: Rollback::default(),
        outputs: BTreeMap::new(),
        scopes: BTreeMap::new(),
    }
}

fn linked(main: &Flow, others: &[Flow]) -> Result<Flow, LinkError> {
    link(main, &|name| others.iter().find(|f| f.name == name).map(|f| (f.clone(), 3)))
}

fn ids(f: &Flow) -> Vec<&str> {
    f.steps.iter().map(|s| s.id.as_str()).collect()
}

fn needs<'f>(f: &'f Flow, id: &str) -> Vec<&'f str> {
    f.steps.iter().find(|s| s.id == id).expect("the step").needs.iter().map(String::as_str).collect()
}

#[test]
fn a_subflow_stands_between_its_way_in_and_its_way_out() {
    let mut sub = uses("s", &["a"], "common", json!({}));
    sub.condition = Some("true".into());
    sub.on_failure = Some(StepFailure::Continue);
    sub.repeat = Some(Repeat { until: "true".into(), max: 2, every_s: 1 });
    let main = flow("main", vec![call("a", &[]), sub, call("z", &["s"])]);
    let inner = flow("common", vec![call("x", &[]), call("y", &["x"]), call("w", &["x"])]);
    let f = linked(&main, &[inner]).expect("links");
    assert_eq!(ids(&f), ["a", "s/enter", "s/x", "s/y", "s/w", "s", "z"]);
    assert_eq!(
        (needs(&f, "s/enter"), needs(&f, "s/x"), needs(&f, "s")),
        (vec!["a"], vec!["s/enter"], vec!["s/y", "s/w"])
    );
    let (enter, out) = (&f.steps[1], &f.steps[5]);
    assert!(enter.condition.is_some() && enter.repeat.is_none() && enter.on_failure.is_none());
    assert!(out.condition.is_none() && out.repeat.is_some() && out.on_failure == Some(StepFailure::Continue));
    assert_eq!((f.scopes["s"].flow.as_str(), f.scopes["s"].revision), ("common", 3));
    assert_eq!(linked(&f, &[]).expect("again"), f, "a linked flow stays as it is");
}

#[test]
fn the_same_flow_twice_and_within_another() {
    let leaf = flow("leaf", vec![call("l", &[])]);
    let mid = flow("mid", vec![uses("one", &[], "leaf", json!({})), uses("two", &["one"], "leaf", json!({}))]);
    let main = flow("main", vec![uses("m", &[], "mid", json!({})), uses("n", &["m"], "leaf", json!({}))]);
    let f = linked(&main, &[leaf, mid]).expect("links");
    let want =
        ["m/enter", "m/one/enter", "m/one/l", "m/one", "m/two/enter", "m/two/l", "m/two", "m", "n/enter", "n/l", "n"];
    assert_eq!(ids(&f), want);
    assert_eq!((needs(&f, "m/two/enter"), needs(&f, "m")), (vec!["m/one"], vec!["m/two"]));
}

#[test]
fn a_gateway_leads_into_a_subflow() {
    let branch = Branch { name: "b".into(), condition: Some("true".into()), to: vec!["s".into()] };
    let gateway = Gateway { mode: GatewayMode::Exclusive, branches: vec![branch], default: vec!["z".into()] };
    let main = flow(
        "main",
        vec![step("g", &[], StepKind::Gateway(gateway)), uses("s", &["g"], "common", json!({})), call("z", &["g"])],
    );
    let f = linked(&main, &[flow("common", vec![call("x", &[])])]).expect("links");
    let StepKind::Gateway(g) = &f.steps[0].kind else { panic!("a gateway") };
    assert_eq!((g.branches[0].to.clone(), g.default.clone()), (vec!["s/enter".to_owned()], vec!["z".to_owned()]));
    assert_eq!(needs(&f, "s/enter"), ["g"]);
}

#[test]
fn what_cannot_be_put_together_is_named() {
    let leaf = |to: &str| flow("a", vec![uses("s", &[], to, json!({}))]);
    let text = |r: Result<Flow, LinkError>| r.expect_err("refused").to_string();
    assert!(text(linked(&leaf("gone"), &[])).contains("`s` uses flow `gone`"));
    let round = text(linked(&leaf("b"), &[flow("b", vec![uses("t", &[], "a", json!({}))])]));
    assert!(round.contains("a -> b -> a"), "{round}");
    assert!(text(linked(&leaf("a"), &[])).contains("a -> a"));
    let chain: Vec<Flow> =
        (0..9).map(|i| flow(&format!("f{i}"), vec![uses("s", &[], &format!("f{}", i + 1), json!({}))])).collect();
    let ends = |n: usize| {
        let mut chain = chain.clone();
        chain.truncate(n);
        chain.push(flow(&format!("f{n}"), vec![call("x", &[])]));
        linked(&leaf("f0"), &chain)
    };
    assert!(ends(7).is_ok(), "eight subflows within each other");
    assert!(matches!(ends(8), Err(LinkError::TooDeep(_))));
    let wide = flow("w", (0..600).map(|i| call(&format!("x{i}"), &[])).collect());
    let two = flow("m", vec![uses("a", &[], "w", json!({})), uses("b", &[], "w", json!({}))]);
    assert!(matches!(linked(&two, &[wide]), Err(LinkError::TooLarge(at)) if at.starts_with("b/")));
    let odd = flow("o", vec![call("enter", &[])]);
    assert!(matches!(linked(&leaf("o"), &[odd]), Err(LinkError::Reserved(_))));
}

#[test]
fn inputs_are_checked_against_what_the_subflow_declares() {
    let mut inner = flow("common", vec![call("x", &[])]);
    let input =
        |kind, default| Input { kind, default, options: vec![], description: String::new(), rules: Default::default() };
    inner.inputs.insert("n".into(), input(InputKind::Number, None));
    inner.inputs.insert("m".into(), input(InputKind::String, Some(json!("x"))));
    let with = |w: Value| linked(&flow("main", vec![uses("s", &[], "common", w)]), std::slice::from_ref(&inner));
    assert!(with(json!({ "n": 1 })).is_ok());
    assert!(with(json!({ "n": "${{ inputs.k }}" })).is_ok(), "what is computed is checked in the plan");
    assert!(matches!(with(json!({})), Err(LinkError::MissingInput { name, .. }) if name == "n"));
    assert!(matches!(with(json!({ "n": 1, "o": 1 })), Err(LinkError::UnknownInput { known, .. }) if known == "m, n"));
    assert!(matches!(with(json!({ "n": "one" })), Err(LinkError::Input { name, .. }) if name == "n"));
}
