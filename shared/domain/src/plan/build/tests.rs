//! Plans: what they resolve and what they refuse.

use super::*;
use crate::{
    flow::{self, Confirm},
    plan::{PlanRollout, PlanTree, canonical_json, verify_spec},
    release::ReleaseKind,
    task::TaskSpec,
};

const FLOW: &str = r#"flow: web
inputs:
  restart: { type: boolean, default: true }
  greeting: { type: string, default: hello }
  port: { type: number, default: 8080 }
on_failure: rollback
steps:
  - { id: verify, uses: artifact.verify, with: { max_age: 7d } }
  - id: rollout
    needs: [verify]
    waves: "1 10% *2"
    confirm: first
    bake: 2m
    budget: { hosts: 3, percent: 20 }
    parallel: 50
    steps:
      - uses: artifact.fetch
      - uses: release.switch
      - uses: service.restart
        if: inputs.restart
        with: { command: [./restart, "${{ inputs.port }}"] }
      - uses: script
        if: host.labels.zone == 'a'
        with:
          run: echo "$GREETING from $WHERE"
          args: ["${{ inputs.greeting }}"]
          env: { GREETING: "${{ inputs.greeting }}", WHERE: "${{ host.values.rack }}" }
      - uses: http.check
        with: { url: "http://${{ host.address }}:${{ inputs.port }}/", within: 60s }
  - id: smoke
    needs: [rollout]
    uses: http.request
    with: { url: "https://${{ env.domain }}/version", expect_body: "${{ artifact.version }}" }
  - { id: never, if: "release.kind == 'hotfix'", uses: notify, with: { message: "${{ env.missing }}" } }
rollback:
  emergency: [ { uses: release.switch, with: { to: last_known_good, keep: 3 } }, { uses: service.restart, with: { unit: "shop@${{ host.name }}" } } ]
"#;

struct World {
    environment: Environment,
    release: Release,
    artifact: Artifact,
    hosts: Vec<HostFacts>,
}

fn world(flow: &str, hosts: u32) -> World {
    let time = "2026-11-21T02:03:04Z".parse().expect("time");
    World {
        environment: Environment {
            project: "shop".into(),
            name: "beta".into(),
            flow: "web".into(),
            values: BTreeMap::from([("domain".into(), json!("shop.example"))]),
            pool: "default".into(),
            ..Environment::default()
        },
        release: Release {
            values: Default::default(),
            plugins: Default::default(),
            add_hosts: vec![],
            exclude_hosts: vec![],
            id: uuid::Uuid::nil().into(),
            project: "shop".into(),
            version: "1.1.0".into(),
            kind: ReleaseKind::Normal,
            artifact: uuid::Uuid::nil().into(),
            flow_revision: 3,
            flow: flow::parse(flow).unwrap_or_else(|e| panic!("{e:#?}")),
            inputs: BTreeMap::new(),
            created_at: time,
            created_by: "ann".into(),
        },
        artifact: Artifact {
            id: uuid::Uuid::nil().into(),
            project: "shop".into(),
            version: "1.1.0".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            url: "https://ci/x.tar.gz".into(),
            size: Some(1024),
            git_ref: Some("main".into()),
            commit: None,
            committer: Some("ann".into()),
            build_url: None,
            built_at: time,
        },
        hosts: (0..hosts)
            .map(|i| HostFacts {
                name: format!("web-{i}"),
                address: format!("10.0.0.{i}"),
                labels: BTreeMap::from([("zone".into(), if i % 2 == 0 { "a" } else { "b" }.into())]),
                values: BTreeMap::from([("rack".into(), json!(format!("r{i}")))]),
                files: BTreeMap::new(),
                temporary: false,
            })
            .collect(),
    }
}

impl World {
    fn build(&self, rollback: Option<RollbackMode>) -> Result<Plan, PlanError> {
        build(BuildInput {
            project: "shop",
            environment: &self.environment,
            release: &self.release,
            artifact: &self.artifact,
            hosts: self.hosts.clone(),
            rollback,
            approvals: vec![ApprovalRule { name: "ops".into(), quorum: 1, people: vec!["zoe".into()] }],
            surroundings: Default::default(),
            left_out: vec![],
            undoing: Default::default(),
        })
    }
    fn plan(&self) -> Plan {
        self.build(None).unwrap_or_else(|e| panic!("{e}"))
    }
    /// The one rollout of the plan.
    fn rollout(&self) -> PlanRollout {
        let rollout = |s: super::super::PlanStep| match s.kind {
            PlanStepKind::Rollout(r) => Some(r),
            _ => None,
        };
        self.plan().steps.into_iter().find_map(rollout).expect("a rollout")
    }
    fn error(&self) -> String {
        self.build(None).expect_err("no plan").to_string()
    }
}

fn with(spec: &TaskSpec, action: &str) -> Value {
    Value::Object(spec.steps.iter().find(|s| s.action == action).unwrap_or_else(|| panic!("{action}")).with.clone())
}

#[test]
fn the_whole_plan_is_computed() {
    let p = world(FLOW, 20).plan();
    let ids: Vec<(&str, bool)> = p.steps.iter().map(|s| (s.id.as_str(), s.skipped)).collect();
    assert_eq!(ids, [("verify", false), ("rollout", false), ("smoke", false), ("never", true)]);
    let PlanStepKind::Central { action, with, timeout_s } = &p.steps[0].kind else { panic!("central") };
    assert_eq!((action.as_str(), *timeout_s), ("artifact.verify", 300));
    assert_eq!(with["max_age_s"], 604_800);
    assert_eq!(with["built_at"], "2026-11-21T02:03:04.000000Z");
    let PlanStepKind::Central { with, .. } = &p.steps[2].kind else { panic!("central") };
    let smoke = json!({"url": "https://shop.example/version", "expect_body": "1.1.0", "method": "GET", "headers": {},
        "expect_status": 200, "within_s": 30});
    assert_eq!(json!(with), smoke);
    let PlanStepKind::Rollout(r) = &p.steps[1].kind else { panic!("rollout") };
    assert_eq!(r.waves.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 4, 8, 5]);
    assert_eq!(r.waves.concat(), (0..20).collect::<Vec<u32>>());
    // 20 % of 20 hosts is 4, and the smaller of 4 and 3 counts.
    assert_eq!((r.max_failures, r.bake_s, r.parallel, r.confirm), (3, 120, 50, Confirm::First));
}

#[test]
fn a_task_spec_is_complete_for_its_host() {
    let p = world(FLOW, 3).plan();
    let s = p.task_spec("rollout", 2).expect("spec");
    assert_eq!((s.host.as_str(), s.step.as_str(), s.version.as_str(), s.segment), ("web-2", "rollout", "1.1.0", 0));
    let dir = "shop_beta_1.1.0_main_20261121T020304Z_ann";
    let fetch = json!({"url": "https://ci/x.tar.gz", "digest": p.artifact.digest, "size": 1024, "dir": dir});
    assert_eq!(with(&s, "artifact.fetch"), fetch);
    assert_eq!(with(&s, "release.switch"), json!({"dir": dir, "keep": 5}));
    let env = json!({"WINDLASS_PROJECT": "shop", "WINDLASS_ENVIRONMENT": "beta", "WINDLASS_VERSION": "1.1.0",
        "WINDLASS_HOST": "web-2", "WINDLASS_RELEASE_DIR": dir});
    assert_eq!(with(&s, "service.restart"), json!({"command": ["./restart", "8080"], "env": env}));
    let script = with(&s, "script");
    assert_eq!(script["env"]["WHERE"], "r2");
    assert_eq!(script["env"]["GREETING"], "hello");
    assert_eq!(script["env"]["WINDLASS_HOST"], "web-2");
    assert_eq!((&script["interpreter"], &script["args"]), (&json!("bash"), &json!(["hello"])));
    let check = json!({"url": "http://10.0.0.2:8080/", "status": 200, "within_s": 60, "interval_s": 1});
    assert_eq!(with(&s, "http.check"), check);
    // A host for which the condition is false has no such step.
    let other = p.task_spec("rollout", 1).expect("spec");
    assert_eq!((s.steps.len(), other.steps.len()), (5, 4));
    assert!(other.steps.iter().all(|s| s.action != "script"));
    assert_eq!(p.steps_by_host("rollout"), Ok(BTreeMap::from([(0, 5), (1, 4), (2, 5)])));
    assert!(matches!(p.task_spec("rollout", 3), Err(PlanError::UnknownHost { .. })));
    assert!(matches!(p.task_spec("smoke", 0), Err(PlanError::UnknownStep(_))));
}

#[test]
fn conditions_that_read_no_host_are_decided_at_once() {
    let mut w = world(FLOW, 2);
    w.release.inputs.insert("restart".into(), json!(false));
    let p = w.plan();
    assert!(p.task_spec("rollout", 0).expect("spec").steps.iter().all(|s| s.action != "service.restart"));
    w.release.kind = ReleaseKind::Hotfix;
    assert!(w.error().contains("step `never`: `env.missing`"), "{}", w.error());
    let none = "flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch, if: \"false\"}]}]\n";
    let p = world(none, 2).plan();
    assert!(p.steps[0].skipped);
    assert_eq!(p.digest().expect("digest").leaves, 0);
}

#[test]
fn what_a_value_holds_is_never_an_expression() {
    let mut w = world(FLOW, 2);
    w.release.inputs.insert("greeting".into(), json!("${{ host.name }} $${{ x"));
    w.artifact.url = "https://ci/${{host.name}}.tar.gz".into();
    w.environment.values.insert("domain".into(), json!("${{inputs.port}}"));
    let p = w.plan();
    let s = p.task_spec("rollout", 0).expect("spec");
    assert_eq!(with(&s, "script")["env"]["GREETING"], "${{ host.name }} $${{ x");
    assert_eq!(with(&s, "script")["args"], json!(["${{ host.name }} $${{ x"]));
    assert_eq!(with(&s, "artifact.fetch")["url"], "https://ci/${{host.name}}.tar.gz");
    let PlanStepKind::Central { with, .. } = &p.steps[2].kind else { panic!("central") };
    assert_eq!(with["url"], "https://${{inputs.port}}/version");
}

#[test]
fn a_rollback_switches_to_the_given_artifact() {
    let w = world(FLOW, 30);
    let p = w.build(Some(RollbackMode::Emergency)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(p.steps.len(), 1);
    assert_eq!(p.on_failure, OnFailure::Pause);
    let PlanStepKind::Rollout(r) = &p.steps[0].kind else { panic!("rollout") };
    assert_eq!((r.waves.iter().map(Vec::len).collect::<Vec<_>>(), r.max_failures), (vec![30], 0));
    let s = p.task_spec(crate::plan::ROLLBACK_STEP, 7).expect("spec");
    assert_eq!(with(&s, "release.switch"), json!({"dir": p.artifact.dir, "keep": 3}));
    assert_eq!(with(&s, "service.restart")["unit"], "shop@web-7");
    let both = FLOW.replace(
        "  emergency: [",
        "  normal: [ { uses: release.switch, with: { to: last_known_good } } ]\n  emergency: [",
    );
    let normal = world(&both, 30).build(Some(RollbackMode::Normal)).unwrap_or_else(|e| panic!("{e}"));
    let PlanStepKind::Rollout(r) = &normal.steps[0].kind else { panic!("rollout") };
    assert_eq!(r.waves.iter().map(Vec::len).collect::<Vec<_>>(), [1, 4, 16, 9], "a normal one shows on one host first");
    let e = w.build(Some(RollbackMode::Normal)).expect_err("none").to_string();
    assert!(e.contains("`normal:`") || e.contains("`normal`"), "{e}");
}

#[test]
fn what_does_not_fit_is_named() {
    let set = |name: &str, value: Value| {
        let mut w = world(FLOW, 2);
        w.release.inputs.insert(name.into(), value);
        w.error()
    };
    assert_eq!(set("nope", json!(1)), "the flow has no input `nope`; it has: greeting, port, restart");
    assert_eq!(set("restart", json!("yes")), "the input `restart` must be true or false, not the text \"yes\"");
    assert!(set("greeting", json!("x".repeat(5000))).contains("4096"));
    assert!(set("greeting", json!("a\0")).contains("NUL"));
    let needy = "flow: f\ninputs: {a: {type: number}}\nsteps: [{id: w, uses: wait, with: {for: 1s}}]\n";
    assert_eq!(world(needy, 1).error(), "the input `a` has no default and was not given");
    assert!(world(FLOW, 0).error().contains("no host"));
    let mut w = world(FLOW, 2);
    w.hosts[1].name = "web-0".into();
    assert!(w.error().contains("`web-0` is selected twice"));
    // One bad host among many is found, by name.
    let mut w = world(FLOW, 100);
    w.hosts[84].values.clear();
    assert!(w.error().starts_with("step `rollout.script` on host `web-84`: `host.values.rack`"), "{}", w.error());
    let mut w = world(FLOW, 100);
    w.hosts[83].address = "a b".into();
    assert!(
        w.error().starts_with("step `rollout.http.check` on host `web-83`: the parameter `url` must be"),
        "{}",
        w.error()
    );
    let some = "flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch, if: host.name == 'web-0'}]}]\n";
    assert!(world(some, 2).error().contains("on host `web-1` the conditions leave out every step"));
    let waves = "flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}]}]\n";
    assert!(world(waves, 501).error().contains("500 waves"));
}

/// Every value of the JSON text with one leaf changed, or an element more or less in a list.
fn mutants(v: &Value) -> Vec<Value> {
    let mut out = match v {
        Value::Null => vec![json!(1), json!("x"), json!("normal")],
        Value::Bool(b) => vec![json!(!b)],
        Value::Number(n) => vec![json!(n.as_f64().unwrap_or_default() as i64 + 1)],
        Value::String(s) => vec![
            json!(format!("{s}x")),
            json!("stop"),
            json!("each"),
            json!("hotfix"),
            json!("emergency"),
            json!("11111111-1111-1111-1111-111111111111"),
            json!("2026-11-22T02:03:04Z"),
        ],
        _ => Vec::new(),
    };
    match v {
        Value::Array(l) => {
            for (i, x) in l.iter().enumerate() {
                out.extend(mutants(x).into_iter().map(|m| {
                    let mut l = l.clone();
                    l[i] = m;
                    Value::Array(l)
                }));
                let mut less = l.clone();
                less.remove(i);
                out.push(Value::Array(less));
            }
        }
        Value::Object(o) => {
            for (k, x) in o {
                out.extend(mutants(x).into_iter().map(|m| {
                    let mut o = o.clone();
                    o.insert(k.clone(), m);
                    Value::Object(o)
                }));
            }
        }
        _ => {}
    }
    out.retain(|m| m != v);
    out
}

fn paths(v: &Value, path: &str, out: &mut BTreeSet<String>) {
    match v {
        Value::Object(o) => o.iter().for_each(|(k, x)| paths(x, &format!("{path}.{k}"), out)),
        _ => {
            out.insert(path.into());
        }
    }
}

#[test]
fn any_change_of_the_plan_changes_its_digest() {
    let p = world(FLOW, 3).plan();
    let tree = PlanTree::new(&p).expect("tree");
    let json = serde_json::to_value(&p).expect("writes");
    let (mut changed, mut seen) = (0, BTreeSet::new());
    for m in mutants(&json) {
        // Not every mutant is a plan.
        let Ok(other) = serde_json::from_value::<Plan>(m.clone()) else { continue };
        if other == p {
            continue;
        }
        let Ok(digest) = other.digest() else { continue };
        assert_ne!(digest.digest, tree.digest().digest, "{m}");
        changed += 1;
        let (mut a, mut b) = (BTreeSet::new(), BTreeSet::new());
        for (k, v) in m.as_object().expect("a map") {
            if json[k] != *v {
                seen.insert(k.clone());
            }
            paths(v, k, &mut a);
            paths(&json[k], k, &mut b);
        }
    }
    assert!(changed > 150, "{changed}");
    // Every field of a plan was among those changed.
    let all: BTreeSet<String> = json.as_object().expect("a map").keys().cloned().collect();
    assert_eq!(seen, all);
}

#[test]
fn a_plan_survives_storage_with_its_digest() {
    let mut w = world(FLOW, 3);
    w.release.inputs.insert("port".into(), json!(1e16));
    w.environment.values.insert("ratio".into(), json!(1.028283047911337e171));
    let p = w.plan();
    let back: Plan = serde_json::from_str(&serde_json::to_string_pretty(&p).expect("writes")).expect("reads");
    assert_eq!(back.digest(), p.digest());
    let spec = |p: &Plan| canonical_json(&p.task_spec("rollout", 1).expect("spec"));
    assert_eq!(spec(&back), spec(&p));
    // The same input gives the same plan.
    assert_eq!(w.plan(), p);
}

#[test]
fn each_spec_is_proven_and_no_other_is() {
    for hosts in [1, 2, 3, 7, 8, 33] {
        let p = world(FLOW, hosts).plan();
        let tree = PlanTree::new(&p).expect("tree");
        assert_eq!(tree.digest().leaves, u64::from(hosts));
        assert_eq!(p.digest().as_ref(), Ok(tree.digest()));
        for h in 0..hosts {
            let (spec, proof) = tree.offer(&p, "rollout", h).expect("offer");
            assert_eq!(Ok(&spec), p.task_spec("rollout", h).as_ref());
            assert_eq!(Ok(&proof), p.proof("rollout", h).as_ref());
            assert!(verify_spec(&spec, &proof));
            let next = p.task_spec("rollout", (h + 1) % hosts).expect("spec");
            assert!(hosts == 1 || !verify_spec(&next, &proof));
        }
    }
    let p = world(FLOW, 5).plan();
    let (spec, proof) = PlanTree::new(&p).expect("tree").offer(&p, "rollout", 2).expect("offer");
    let mut tried = 0;
    for m in mutants(&serde_json::to_value(&spec).expect("writes")) {
        if let Ok(other) = serde_json::from_value::<TaskSpec>(m) {
            assert!(other == spec || !verify_spec(&other, &proof), "{other:?}");
            tried += 1;
        }
    }
    for m in mutants(&serde_json::to_value(&proof).expect("writes")) {
        if let Ok(other) = serde_json::from_value(m) {
            assert!(!verify_spec(&spec, &other), "{other:?}");
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn a_job_is_planned_without_an_artifact() {
    const JOB: &str = "flow: job\nsteps: [{ id: r, waves: 1, steps: [{ uses: script, with: { run: x, args: [\"${{ release.version }}\"] } }] }]\n";
    let mut w = world(JOB, 2);
    w.artifact = Artifact::none("shop");
    (w.release.artifact, w.release.version) = (w.artifact.id, w.artifact.version.clone());
    let p = w.plan();
    assert!(p.artifact.is_none() && p.artifact.dir.is_empty());
    assert_eq!(p.artifact.version, "no artifact");
    assert!(!crate::artifact::is_version(&p.artifact.version), "no artifact can be registered under it");
    let s = p.task_spec("r", 0).expect("spec");
    assert_eq!(s.version, "");
    let env = &with(&s, "script")["env"];
    assert_eq!((&env["WINDLASS_VERSION"], &env["WINDLASS_RELEASE_DIR"]), (&json!(""), &json!("")));
    // What reads the artifact cannot be planned without one.
    let mut reads = world(&JOB.replace("release.version", "artifact.version"), 1);
    reads.artifact = Artifact::none("shop");
    assert!(reads.error().contains("artifact"), "{}", reads.error());
}

mod graph;
mod references;
mod rollback;
mod traffic;
mod undo;
mod values;
mod waves;

const PLUGINS: &str = r#"
flow: web
inputs: { n: { type: number, default: 3 } }
steps:
  - { id: a, uses: plugin/page, with: { path: "/x/${{ artifact.version }}", n: "${{ inputs.n }}", token: "${{ secrets.t }}" } }
  - { id: b, needs: [a], uses: plugin/page@1.0.0, timeout: 7s, with: { path: "${{ steps.a.outputs.path }}", n: "${{ steps.a.outputs.n }}" } }
  - { id: c, needs: [b], uses: plugin/page, if: "inputs.n == 0", with: { nothing: fits } }
"#;

fn plugin(version: &str, secrets: &[&str]) -> crate::plugin::Plugin {
    serde_json::from_value(json!({
        "name": "page", "version": version, "transport": { "type": "nats" }, "secrets": secrets, "timeout_s": 40,
        "inputs": { "type": "object", "additionalProperties": false, "required": ["path"], "properties": {
            "path": { "type": "string", "pattern": "^/" }, "n": { "type": "integer", "maximum": 9 }, "token": { "type": "string" } } },
    }))
    .expect("a definition")
}

#[test]
fn a_plugin_step_is_planned_with_the_frozen_definition_or_refused() {
    let mut w = world(PLUGINS, 1);
    let missing = w.build(None).expect_err("nothing is frozen");
    assert!(missing.to_string().contains("`plugin/page`, which the release does not hold"), "{missing}");
    let put = |w: &mut World, new: &str, secrets: &[&str]| {
        w.release.plugins.insert("plugin/page".into(), plugin(new, secrets));
        w.release.plugins.insert("plugin/page@1.0.0".into(), plugin("1.0.0", secrets));
    };
    put(&mut w, "1.2.0", &["token"]);
    let plan = w.plan();
    let of = |id: &str| match &plan.steps.iter().find(|s| s.id == id).expect("step").kind {
        PlanStepKind::Central { action, with, timeout_s } => (action.clone(), with.clone(), *timeout_s),
        other => panic!("{other:?}"),
    };
    let (action, with, timeout_s) = of("a");
    assert_eq!(
        (action.as_str(), &with["path"], &with["n"], timeout_s),
        ("plugin/page@1.2.0", &json!("/x/1.1.0"), &json!(3), 40)
    );
    assert_eq!((of("b").0.as_str(), of("b").2), ("plugin/page@1.0.0", 7));
    assert!(of("c").1.is_empty(), "a skipped step is not checked");
    let keys: Vec<&str> = plan.plugins.keys().map(String::as_str).collect();
    assert_eq!(keys, ["page@1.0.0", "page@1.2.0"]);
    // Another definition is another plan.
    let digest = plan.digest().expect("digest").digest;
    w.release.plugins.get_mut("plugin/page").expect("there").timeout_s = 41;
    assert_ne!(w.plan().digest().expect("digest").digest, digest);

    put(&mut w, "1.2.0", &[]);
    let e = w.build(None).expect_err("no secret here").to_string();
    assert!(e.contains("`token` takes no secret, but holds `secrets.t`"), "{e}");
    put(&mut w, "1.2.0", &["token"]);
    w.release.inputs.insert("n".into(), json!(10));
    let e = w.build(None).expect_err("too large").to_string();
    assert!(e.contains("step `a`: `with` does not fit the plugin page@1.2.0: /n"), "{e}");
}
