//! What planning costs: build and digest of a rollout of five steps, each with values that differ by host, at 100, 1,000 and
//! 5,000 hosts. Run by `ops/bench plan`. Prints milliseconds, the best of five, and the cost of one host.

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

fn flow() -> flow::Flow {
    let step = |i| {
        format!(
            "      - {{ id: s{i}, uses: script, with: {{ run: \"true\", env: {{ R: \"${{{{ host.values.rack }}}}\", V: \"${{{{ values.a }}}}\" }} }} }}\n"
        )
    };
    let steps: String = (0..STEPS).map(step).collect();
    let text = format!("flow: web\nsteps:\n  - id: rollout\n    waves: \"1 10% *2\"\n    steps:\n{steps}");
    flow::parse(&text).unwrap_or_else(|e| panic!("the program's own flow: {e:#?}"))
}

fn hosts(n: u32) -> Vec<HostFacts> {
    let host = |i| HostFacts {
        name: format!("web-{i}"),
        address: format!("10.0.{}.{}", i / 250, i % 250),
        labels: BTreeMap::from([("zone".into(), if i % 2 == 0 { "a" } else { "b" }.into())]),
        values: BTreeMap::from([("rack".into(), json!(format!("r{i}")))]),
        files: BTreeMap::new(),
        temporary: false,
    };
    (0..n).map(host).collect()
}

#[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
fn main() {
    let built_at = chrono::DateTime::UNIX_EPOCH;
    let environment = Environment {
        project: "shop".into(),
        name: "beta".into(),
        flow: "web".into(),
        values: BTreeMap::from([("a".into(), json!("1"))]),
        pool: "default".into(),
        ..Environment::default()
    };
    let release = Release {
        id: uuid::Uuid::nil().into(),
        project: "shop".into(),
        version: "1.1.0".into(),
        kind: ReleaseKind::Normal,
        artifact: uuid::Uuid::nil().into(),
        flow_revision: 1,
        flow: flow(),
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
    println!("hosts   build ms   digest ms   µs a host");
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
            };
            let begun = Instant::now();
            let plan = build(input).unwrap_or_else(|e| panic!("the program's own plan: {e}"));
            let built = begun.elapsed();
            let digest = plan.digest().unwrap_or_else(|e| panic!("the program's own plan: {e}"));
            assert_eq!(digest.leaves, u64::from(n), "one leaf a host");
            (begun.elapsed(), built)
        };
        let best = (0..5).map(|_| once()).min().unwrap_or_default();
        let (all, built) = (best.0.as_secs_f64() * 1e3, best.1.as_secs_f64() * 1e3);
        println!("{n:>5} {built:>10.1} {:>11.1} {:>11.1}", all - built, all * 1e3 / f64::from(n));
    }
}
