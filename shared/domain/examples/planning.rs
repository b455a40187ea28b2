//! What planning costs: build and digest of a rollout of five steps, each with values that differ by host, at 100, 1,000 and
//! 5,000 hosts. Run by `ops/bench plan`. Prints milliseconds, the best of five, and the cost of one host; then the same with
//! groups, a canary, a probe on each host and an nginx that each host leaves (four leaves a host).

use serde_json::json;
use std::{collections::BTreeMap, time::Instant};
use windlass_domain::{
    artifact::Artifact,
    catalog::Environment,
    flow,
    plan::{BuildInput, HostFacts, Surroundings, build},
    release::{Release, ReleaseKind},
};

const STEPS: u32 = 5;
const FLEETS: [u32; 3] = [100, 1_000, 5_000];

/// The rollout alone, or with all that may come with it.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Plain,
    Full,
}

fn flow(shape: Shape) -> flow::Flow {
    let step = |i| {
        format!(
            "      - {{ id: s{i}, uses: script, with: {{ run: \"true\", env: {{ R: \"${{{{ host.values.rack }}}}\", V: \"${{{{ values.a }}}}\" }} }} }}\n"
        )
    };
    let steps: String = (0..STEPS).map(step).collect();
    let head = "flow: web\nsteps:\n  - id: rollout\n    waves: \"1 10% *2\"\n";
    let text = match shape {
        Shape::Plain => format!("{head}    steps:\n{steps}"),
        Shape::Full => format!(
            "{head}    group_by: zone\n    canary: canary=yes\n    bake: {{ for: 1m, probes: [{{ id: page, uses: http.check, \
             with: {{ url: \"http://${{{{ host.address }}}}/\" }} }}] }}\n    steps:\n      - uses: lb.drain\n{steps}      - uses: lb.attach\n"
        ),
    };
    flow::parse(&text).unwrap_or_else(|e| panic!("the program's own flow: {e:#?}"))
}

fn hosts(n: u32) -> Vec<HostFacts> {
    let host = |i| HostFacts {
        name: format!("web-{i}"),
        address: format!("10.0.{}.{}", i / 250, i % 250),
        labels: BTreeMap::from([
            ("zone".into(), if i % 2 == 0 { "a" } else { "b" }.into()),
            ("canary".into(), if i == 0 { "yes" } else { "no" }.into()),
        ]),
        values: BTreeMap::from([("rack".into(), json!(format!("r{i}")))]),
        files: BTreeMap::new(),
        temporary: false,
    };
    (0..n).map(host).collect()
}

#[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
fn main() {
    println!("hosts   build ms   digest ms   µs a host");
    table(Shape::Plain);
    println!("with groups, probes and traffic");
    table(Shape::Full);
}

#[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
fn table(shape: Shape) {
    let built_at = chrono::DateTime::UNIX_EPOCH;
    let nginx =
        json!({ "kind": "nginx", "host": "lb-1", "file": "/etc/nginx/members.conf", "member": "${{ host.address }}" });
    let nginx = serde_json::from_value(nginx).unwrap_or_else(|e| panic!("the program's own load balancer: {e}"));
    let environment = Environment {
        project: "shop".into(),
        name: "beta".into(),
        flow: "web".into(),
        values: BTreeMap::from([("a".into(), json!("1"))]),
        pool: "default".into(),
        load_balancers: BTreeMap::from([("inner".into(), nginx)]),
        ..Environment::default()
    };
    let release = Release {
        id: uuid::Uuid::nil().into(),
        project: "shop".into(),
        version: "1.1.0".into(),
        kind: ReleaseKind::Normal,
        artifact: uuid::Uuid::nil().into(),
        flow_revision: 1,
        flow: flow(shape),
        inputs: BTreeMap::new(),
        values: BTreeMap::new(),
        plugins: BTreeMap::new(),
        add_hosts: vec![],
        exclude_hosts: vec![],
        created_at: built_at,
        created_by: "ann".into(),
    };
    let artifact = Artifact {
        id: uuid::Uuid::nil().into(),
        project: "shop".into(),
        version: "1.1.0".into(),
        digest: format!("sha256:{}", "a".repeat(64)),
        url: "https://ci/x.tar.gz".into(),
        size: Some(1024),
        git_ref: None,
        commit: None,
        committer: None,
        build_url: None,
        built_at,
    };
    let leaves = if shape == Shape::Plain { 1 } else { 4 };
    for n in FLEETS {
        let once = || {
            let input = BuildInput {
                project: "shop",
                environment: &environment,
                release: &release,
                artifact: &artifact,
                hosts: hosts(n),
                rollback: None,
                approvals: vec![],
                surroundings: Surroundings::default(),
                left_out: vec![],
                undoing: Default::default(),
            };
            let begun = Instant::now();
            let plan = build(input).unwrap_or_else(|e| panic!("the program's own plan: {e}"));
            let built = begun.elapsed();
            let digest = plan.digest().unwrap_or_else(|e| panic!("the program's own plan: {e}"));
            assert_eq!(digest.leaves, leaves * u64::from(n), "leaves of every host");
            (begun.elapsed(), built)
        };
        let best = (0..5).map(|_| once()).min().unwrap_or_default();
        let (all, built) = (best.0.as_secs_f64() * 1e3, best.1.as_secs_f64() * 1e3);
        println!("{n:>5} {built:>10.1} {:>11.1} {:>11.1}", all - built, all * 1e3 / f64::from(n));
    }
}
