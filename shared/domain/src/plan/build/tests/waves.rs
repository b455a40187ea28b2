//! Which hosts go together, how many of them may fail, and what judges them.

use super::*;
use crate::{
    flow::Inconclusive,
    plan::{PlanProbes, segment},
    work::Stagger,
};

fn rollout(keys: &str) -> String {
    format!("flow: web\nsteps:\n  - id: r\n    steps: [ {{ uses: artifact.fetch }} ]\n{keys}")
}

/// Hosts with these zones, `-` for none.
fn zoned(keys: &str, zones: &[&str]) -> World {
    let mut w = world(&rollout(keys), zones.len() as u32);
    for (h, zone) in w.hosts.iter_mut().zip(zones) {
        h.labels = match *zone {
            "-" => BTreeMap::new(),
            z => BTreeMap::from([("zone".to_string(), z.to_string())]),
        };
    }
    w
}

#[test]
fn groups_share_no_wave_and_the_expression_begins_anew_in_each() {
    let w = zoned("    waves: \"1 *2\"\n    group_by: zone\n", &["b", "a", "b", "-", "a", "b", "a", "b"]);
    let r = w.rollout();
    assert_eq!(r.waves, [vec![1], vec![4, 6], vec![0], vec![2, 5], vec![7], vec![3]]);
    assert_eq!(r.groups, ["zone=a", "zone=a", "zone=b", "zone=b", "zone=b", "no zone"]);
    // As numbers where all are: 9 comes before 10.
    let w = zoned("    waves: 100%\n    group_by: zone\n", &["10", "9", "-", "9", "100"]);
    assert_eq!(w.rollout().waves, [vec![1, 3], vec![0], vec![4], vec![2]]);
    let w = zoned("    waves: 100%\n    group_by: zone\n", &["10", "9", "x"]);
    assert_eq!(w.rollout().waves, [vec![0], vec![1], vec![2]]);
    // Without groups nothing is said of them, so plans are what they were.
    assert!(zoned("    waves: 1\n", &["a", "b"]).rollout().groups.is_empty());
}

#[test]
fn the_canary_goes_first_in_one_wave() {
    let keys = "    waves: \"1 *4\"\n    group_by: zone\n    canary: \"zone in (x, c)\"\n";
    let r = zoned(keys, &["a", "c", "b", "c", "a", "a"]).rollout();
    assert_eq!(r.waves, [vec![1, 3], vec![0], vec![4, 5], vec![2]]);
    assert_eq!(r.groups, ["canary", "zone=a", "zone=a", "zone=b"]);
    let ungrouped = zoned("    waves: 2\n    canary: zone=c\n", &["a", "c", "b"]).rollout();
    assert_eq!((ungrouped.waves, ungrouped.groups), (vec![vec![1], vec![0, 2]], vec!["canary".into(), String::new()]));
    // A canary that fits nobody is no reason to fail, but is said.
    let w = zoned(keys, &["a", "b"]);
    assert_eq!(w.rollout().waves, [vec![0], vec![1]]);
    assert!(w.plan().steps[0].note.as_deref().is_some_and(|n| n.contains("no host fits `canary: zone in (x, c)`")));
}

#[test]
fn waves_of_all_groups_are_counted_together() {
    let zones: Vec<String> = (0..501).map(|i| format!("z{}", i % 2)).collect();
    let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
    assert!(zoned("    waves: 1\n    group_by: zone\n", &zones).error().contains("more than 500 waves"));
    assert_eq!(zoned("    waves: 1\n    group_by: zone\n", &zones[..500]).rollout().waves.len(), 500);
}

#[test]
fn budgets_are_numbers_and_parts_of_the_rollout_and_of_each_wave() {
    let budget = |text: &str| {
        let r = zoned(&format!("    waves: \"1 10 *4\"\n    budget: {text}\n"), &["a"; 127]).rollout();
        (r.max_failures, r.wave_failures)
    };
    assert_eq!(budget("{}"), (0, vec![]));
    assert_eq!(budget("{ hosts: 5 }").0, 5);
    assert_eq!(budget("{ percent: 5% }").0, 6);
    assert_eq!(budget("{ hosts: 2, percent: 5 }").0, 2);
    assert_eq!(budget("{ hosts: 9, percent: 5 }").0, 6);
    assert_eq!(budget("{ percent: 100 }").0, 127);
    assert_eq!(budget("{ hosts: 9, wave: { percent: 30% } }"), (9, vec![0, 3, 12, 22]));
    assert_eq!(budget("{ wave: { hosts: 2 } }").1, [2, 2, 2, 2]);
    assert_eq!(budget("{ wave: { hosts: 5, percent: 30% } }").1, [0, 3, 5, 5]);
    // 7 % of 100 is 7, whatever binary fractions make of it.
    assert_eq!(zoned("    waves: 100%\n    budget: { percent: 7 }\n", &["a"; 100]).rollout().max_failures, 7);
}

const PROBED: &str = r#"flow: web
steps:
  - { id: before, uses: http.request, with: { url: "http://x/" } }
  - id: r
    needs: before
    waves: "1 *2"
    stagger: { every: 2s, jitter: 3s }
    bake:
      for: 2m
      every: 15s
      inconclusive: fail
      probes:
        - { id: errors, uses: prometheus.query, with: { url: "http://prom:9090", query: "rate(e{v='${{ artifact.version }}'}[1m])" }, success: value < 0.5, fail: value > 2, failures: 3 }
        - { id: page, uses: http.check, with: { url: "http://${{ host.address }}/", expect_body: "${{ steps.before.outputs.body }}" } }
        - { id: disk, uses: script, with: { run: df }, success: value.ok == value.total, timeout: 5s }
    steps:
      - { uses: artifact.fetch, required: true }
      - { id: never, uses: script, with: { run: x }, if: "false", required: true }
      - { uses: release.switch }
"#;

#[test]
fn probes_are_planned_where_they_are_asked() {
    let w = world(PROBED, 3);
    let (plan, r) = (w.plan(), w.rollout());
    assert_eq!((r.bake_s, r.stagger), (120, Some(Stagger { every_s: 2, jitter_s: 3 })));
    assert_eq!(r.required, ["artifact.fetch"], "a step that is not there is not required");
    let PlanProbes { every_s, inconclusive, central, on_hosts, judge } = r.probes.expect("probes");
    assert_eq!((every_s, inconclusive), (15, Inconclusive::Fail));
    assert_eq!((central.len(), central[0].id.as_str(), central[0].timeout_s), (1, "errors", 60));
    assert_eq!(central[0].with["query"], "rate(e{v='1.1.0'}[1m])");
    assert_eq!(central[0].with["within_s"], 30);
    assert!(on_hosts.iter().all(|s| s.always), "one that fails does not keep the others from being asked");
    let ids: Vec<(&str, u32)> = on_hosts.iter().map(|s| (s.id.as_str(), s.timeout_s)).collect();
    assert_eq!(ids, [("page", 60), ("disk", 5)]);
    assert_eq!((judge["errors"].failures, judge["errors"].fail.as_deref()), (3, Some("value > 2")));
    assert_eq!((judge["page"].failures, &judge["page"].success), (1, &None));
    // What probes refer to travels with the rollout's works.
    assert_eq!(crate::plan::graph::reads(&plan, &plan.steps[1]), ["before"]);

    let tree = PlanTree::new(&plan).expect("tree");
    assert_eq!(tree.digest().leaves, 6, "the hosts' steps and their probes");
    for h in 0..3 {
        let (spec, proof) = tree.offer_at(&plan, "r", segment::PROBES, h).expect("offer");
        assert_eq!((spec.segment, spec.host.as_str(), spec.steps.len()), (1, plan.hosts[h as usize].name.as_str(), 2));
        assert_eq!(spec.steps[0].with["url"], format!("http://10.0.0.{h}/"));
        assert_eq!(Ok(&spec), plan.task_spec_at("r", segment::PROBES, h).as_ref());
        assert!(verify_spec(&spec, &proof));
        assert_eq!(proof.index, u64::from(3 + h), "after the host steps of the rollout");
        let (main, of_main) = tree.offer(&plan, "r", h).expect("offer");
        assert!(verify_spec(&main, &of_main) && !verify_spec(&spec, &of_main) && !verify_spec(&main, &proof));
    }
    let e = tree.offer_at(&plan, "r", 16, 0).expect_err("no load balancers").to_string();
    assert!(e.contains("no task of segment 16 for host number 0"), "{e}");
}

#[test]
fn a_probe_that_fits_no_host_fails_the_plan_by_name() {
    let w = world(&PROBED.replace("http://${{ host.address }}/", "http://${{ host.values.port }}/"), 2);
    assert!(w.error().contains("step `r.page` on host `web-0`"), "{}", w.error());
}

#[test]
fn the_digests_of_plans_without_these_things_are_what_they_were() {
    let flow = FLOW
        .replace("rollback:\n", "rollback:\n  normal: [ { uses: release.switch, with: { to: last_known_good } } ]\n");
    let digest = |mode, n| world(&flow, n).build(mode).expect("a plan").digest().expect("a digest").digest;
    assert_eq!(digest(None, 3), "sha256:969d9ee314f5a5edbcaf4a5c622d84e798e81e27e1b6beaca90a31c7ab20de1a");
    let normal = digest(Some(RollbackMode::Normal), 7);
    assert_eq!(normal, "sha256:23028be133010f963bd001ef3636e61e062fb0da8ff1f186cebafb6b4119d8b5");
}
