//! Values in scopes, hosts by selector, accounts and files of hosts, and what a plan of thousands of hosts costs.

use super::*;
use crate::catalog::Account;

const FLOW: &str = r#"
flow: web
steps:
  - id: rollout
    waves: "1 *2"
    steps:
      - id: say
        uses: script
        with:
          run: echo "$A"
          env: { A: "${{ values.a }}", B: "${{ values.b }}", G: "${{ values.g }}" }
"#;

fn env_of(plan: &Plan, host: u32) -> Value {
    with(&plan.task_spec("rollout", host).expect("spec"), "script")["env"].clone()
}

fn scoped(w: &World, around: Surroundings<'_>) -> Result<Plan, PlanError> {
    build(BuildInput {
        project: "shop",
        environment: &w.environment,
        release: &w.release,
        artifact: &w.artifact,
        hosts: w.hosts.clone(),
        rollback: None,
        approvals: vec![],
        surroundings: around,
        left_out: vec![],
        undoing: Default::default(),
    })
}

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect()
}

#[test]
fn a_step_on_a_host_reads_the_innermost_scope() {
    let mut w = world(FLOW, 2);
    let (group, project) = (values(&[("a", "group"), ("b", "group"), ("g", "group")]), values(&[("a", "project")]));
    w.environment.values = values(&[("a", "environment"), ("b", "environment")]);
    w.hosts[1].values = values(&[("a", "host"), ("b", "host")]);
    w.release.values = values(&[("b", "release")]);
    let around = Surroundings { group_values: Some(&group), project_values: Some(&project), accounts: None };
    let plan = scoped(&w, around).expect("plan");
    let seen = |host| {
        let env = env_of(&plan, host);
        [env["A"].clone(), env["B"].clone(), env["G"].clone()]
    };
    assert_eq!(seen(0), [json!("environment"), json!("release"), json!("group")]);
    assert_eq!(seen(1), [json!("host"), json!("release"), json!("group")]);
    // The same plan read back from the database gives the same specs.
    let back: Plan = serde_json::from_value(serde_json::to_value(&plan).expect("json")).expect("plan");
    assert_eq!(back.digest(), plan.digest());
}

#[test]
fn what_only_hosts_define_is_no_value_of_a_central_step() {
    let flow = "flow: web\nsteps:\n  - { id: tell, uses: notify, with: { message: \"${{ values.rack }}\" } }\n";
    let w = world(flow, 2);
    let said = scoped(&w, Surroundings::default()).expect_err("no plan").to_string();
    assert!(said.contains("`tell`") && said.contains("`values.rack`") && said.contains("web-0"), "{said}");
    let project = values(&[("rack", "any")]);
    let around = Surroundings { project_values: Some(&project), ..Surroundings::default() };
    assert!(scoped(&w, around).is_ok(), "a scope above the hosts has it");
}

#[test]
fn a_rollout_goes_to_the_hosts_that_on_picks() {
    let flow = FLOW
        .replace("    waves:", "    on: \"${{ inputs.where }}\"\n    waves:")
        .replace("          env: { A: \"${{ values.a }}\", B: \"${{ values.b }}\", G: \"${{ values.g }}\" }\n", "");
    let flow =
        flow.replace("steps:\n  - id", "inputs:\n  where: { type: host_selector, optional: true }\nsteps:\n  - id");
    let mut w = world(&flow, 4);
    let waves = |w: &World| match &w.plan().steps[0] {
        crate::plan::PlanStep { kind: PlanStepKind::Rollout(r), skipped, note, .. } => {
            (r.waves.clone(), *skipped, note.clone())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(waves(&w).0, [vec![0], vec![1, 2], vec![3]], "not given: every host");
    w.release.inputs.insert("where".into(), json!("zone=b"));
    assert_eq!(waves(&w).0, [vec![1], vec![3]]);
    let plan = w.plan();
    assert!(plan.task_spec("rollout", 1).is_ok() && plan.task_spec("rollout", 0).is_err());
    w.release.inputs.insert("where".into(), json!("zone=c"));
    let (none, skipped, note) = waves(&w);
    assert!(none.is_empty() && skipped && note.is_some_and(|n| n.contains("no host")), "skipped, and it says why");
    w.release.inputs.insert("where".into(), json!("zone="));
    assert!(w.error().contains("`where`"), "{}", w.error());
}

#[test]
fn accounts_stand_for_users_and_unknown_ones_are_told() {
    let flow = "flow: web\nsteps:\n  - id: rollout\n    waves: \"1\"\n    steps:\n      - { uses: script, with: { run: id, account: deploy } }\n";
    let w = world(flow, 1);
    let accounts = BTreeMap::from([("deploy".to_owned(), Account { user: "web".into(), ..Account::default() })]);
    let around = Surroundings { accounts: Some(&accounts), ..Surroundings::default() };
    let plan = scoped(&w, around).expect("plan");
    let script = with(&plan.task_spec("rollout", 0).expect("spec"), "script");
    assert_eq!((&script["user"], script.get("account")), (&json!("web"), None));
    let said = scoped(&w, Surroundings::default()).expect_err("no plan").to_string();
    assert!(said.contains("no account `deploy`") && said.contains("none"), "{said}");
}

#[test]
fn files_come_with_the_host_or_with_the_request() {
    let flow = r#"
flow: web
inputs:
  extra: { type: file }
steps:
  - id: rollout
    waves: "1"
    steps:
      - { id: own, uses: file.put, with: { path: app.conf, content: "${{ host.files.app }}" } }
      - { id: given, uses: file.put, with: { path: extra.conf, content: "${{ inputs.extra.text }}" } }
"#;
    let mut w = world(flow, 2);
    w.release.inputs.insert("extra".into(), crate::flow::input::file_value("x.conf", b"one=1\n"));
    for (i, h) in w.hosts.iter_mut().enumerate() {
        h.files.insert("app".into(), format!("rank={i}\n"));
    }
    let plan = w.plan();
    let content = |host, n: usize| plan.task_spec("rollout", host).expect("spec").steps[n].with["content"].clone();
    assert_eq!((content(0, 0), content(1, 0)), (json!("rank=0\n"), json!("rank=1\n")));
    assert_eq!(content(0, 1), json!("one=1\n"));
}

/// The same request gives the same digest, whoever the release becomes: a preview shows what will be approved.
#[test]
fn the_digest_knows_no_release_id() {
    let mut w = world(FLOW, 1);
    w.environment.values = values(&[("a", "1"), ("b", "1"), ("g", "1")]);
    let before = w.plan().digest().expect("digest");
    w.release.id = uuid::Uuid::from_u128(7).into();
    assert_eq!(w.plan().digest().expect("digest"), before);
    w.release.values = values(&[("unused", "1")]);
    assert_ne!(w.plan().digest().expect("digest"), before, "values are a part of it");
}
