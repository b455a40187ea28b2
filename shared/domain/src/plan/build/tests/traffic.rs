//! Load balancers in plans.

use super::*;
use crate::{
    plan::{PlanError, segment},
    traffic::{Kind, LoadBalancer, OnDrainTimeout, Share},
};

const DRAINED: &str = r#"flow: web
inputs: { drain: { type: boolean, default: true } }
steps:
  - id: r
    waves: "1 *2"
    steps:
      - { uses: lb.drain, if: inputs.drain }
      - { uses: artifact.fetch }
      - { uses: lb.attach }
rollback:
  normal: [ { uses: lb.drain, with: { lb: edge } }, { uses: release.switch, with: { to: last_known_good } }, { uses: lb.attach } ]
"#;

fn balancer(v: Value) -> LoadBalancer {
    serde_json::from_value(v).unwrap_or_else(|e| panic!("{e}"))
}

fn balanced(flow: &str, hosts: u32) -> World {
    let mut w = world(flow, hosts);
    let edge = balancer(json!({ "kind": "haproxy", "endpoints": ["tcp://10.1.0.1:9999"], "backend": "web" }));
    let inner = balancer(json!({
        "kind": "nginx", "host": "lb-1", "file": "/etc/nginx/members.conf", "test": ["/usr/sbin/nginx", "-t"], "port": 8080,
        "member": "${{ host.address }}", "min_healthy": "50%", "drain_timeout": "2m", "on_drain_timeout": "go_on",
    }));
    let own = balancer(json!({ "kind": "command", "host": "lb-2", "run": ["/opt/lb", "-q"], "attach_timeout": "10s" }));
    w.environment.load_balancers =
        BTreeMap::from([("edge".into(), edge), ("inner".into(), inner), ("own".into(), own)]);
    w
}

#[test]
fn a_load_balancer_reads_as_it_is_written_and_back() {
    for (_, lb) in balanced(DRAINED, 1).environment.load_balancers {
        let stored = serde_json::to_value(&lb).expect("writes");
        assert_eq!(serde_json::from_value::<LoadBalancer>(stored).expect("reads"), lb);
        assert_eq!(lb.problems(), []);
    }
}

#[test]
fn hosts_leave_all_load_balancers_or_the_one_that_is_named() {
    let w = balanced(DRAINED, 3);
    let r = w.rollout();
    let names: Vec<&str> = r.traffic.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["edge", "inner", "own"]);
    assert_eq!(r.steps.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["artifact.fetch"], "not the host's own");
    assert_eq!(r.traffic[0].members, BTreeMap::from([(0, "web-0".into()), (1, "web-1".into()), (2, "web-2".into())]));
    let inner = &r.traffic[1];
    assert!(matches!(inner.kind, Kind::Nginx { .. }));
    assert_eq!((inner.members[&2].as_str(), inner.min_healthy), ("10.0.0.2", Some(Share::Percent(50))));
    assert_eq!((inner.drain_timeout_s, inner.attach_timeout_s), (120, 60));
    assert_eq!(inner.on_drain_timeout, OnDrainTimeout::GoOn);
    let plan = w.build(Some(RollbackMode::Normal)).expect("a plan");
    let PlanStepKind::Rollout(back) = &plan.steps[0].kind else { panic!("a rollout") };
    assert_eq!(back.traffic.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["edge"]);
    let mut w = w;
    w.release.inputs.insert("drain".into(), json!(false));
    assert!(w.rollout().traffic.is_empty(), "the pair hangs on the drain's condition");
    assert_eq!(w.plan().steps[0].note, None);
}

#[test]
fn what_is_done_on_a_load_balancers_host_is_a_leaf_of_the_plan() {
    let plan = balanced(DRAINED, 3).plan();
    let tree = PlanTree::new(&plan).expect("tree");
    // Three hosts; nginx and the command take each off and back. HAProxy is spoken to by the executor.
    assert_eq!(tree.digest().leaves, 3 + 2 * 2 * 3);
    let mut indices = BTreeSet::new();
    for (lb, on, action) in [(1, "lb-1", "nginx"), (2, "lb-2", "command")] {
        for (h, attach) in (0..3).flat_map(|h| [(h, false), (h, true)]) {
            let segment = segment::traffic(lb, h, attach).expect("a segment");
            assert_eq!(segment::of_traffic(segment), Some((lb, h, attach)));
            let (spec, proof) = tree.offer_at(&plan, "r", segment, h).expect("offer");
            assert_eq!((spec.host.as_str(), spec.step.as_str(), spec.segment), (on, "r", segment));
            let [step] = &spec.steps[..] else { panic!("one step") };
            assert_eq!((step.action.as_str(), &step.with["kind"]), ("lb.member", &json!(action)));
            assert_eq!(step.with["op"], if attach { "attach" } else { "drain" });
            assert!(verify_spec(&spec, &proof));
            indices.insert(proof.index);
            // Of another host there is no such task.
            assert!(matches!(plan.task_spec_at("r", segment, (h + 1) % 3), Err(PlanError::UnknownSegment { .. })));
            assert!(matches!(tree.offer_at(&plan, "r", segment, (h + 1) % 3), Err(PlanError::UnknownSegment { .. })));
        }
    }
    assert_eq!(indices, (3..15).collect(), "after the host steps");
    let nginx = plan.task_spec_at("r", segment::traffic(1, 2, false).expect("segment"), 2).expect("spec");
    let with = json!({
        "kind": "nginx", "name": "inner", "op": "drain", "member": "10.0.0.2", "address": "10.0.0.2",
        "file": "/etc/nginx/members.conf", "test": ["/usr/sbin/nginx", "-t"], "port": 8080, "drain_timeout_s": 120,
        "attach_timeout_s": 60, "on_drain_timeout": "go_on", "min_healthy": { "percent": 50 },
    });
    assert_eq!(json!(nginx.steps[0].with), with);
    assert_eq!((nginx.steps[0].timeout_s, nginx.steps[0].id.as_str()), (180, "drain.inner"));
    assert!(tree.offer_at(&plan, "r", segment::traffic(0, 0, false).expect("segment"), 0).is_err(), "HAProxy has none");
    assert_eq!(segment::traffic(8, 0, false), None, "eight at most");
}

#[test]
fn a_plan_with_load_balancers_survives_storage_with_its_digest() {
    let plan = balanced(DRAINED, 3).plan();
    let text = serde_json::to_string_pretty(&plan).expect("writes");
    let back: Plan = serde_json::from_str(&text).expect("reads");
    assert_eq!(back, plan);
    assert_eq!(back.digest(), plan.digest());
}

#[test]
fn calls_of_a_load_balancer_say_which_secrets_they_hold() {
    let lb = balancer(json!({
        "kind": "http", "drain": { "url": "http://x/{member}?t=${{ secrets.a }}", "headers": { "x": "B ${{secrets.b}}" } },
        "attach": { "url": "http://x/{member}", "body": "${{ secrets.a }} ${{ secrets.c }}" },
        "state": { "url": "http://x", "body": "${{ secrets.d }}" },
    }));
    assert_eq!(lb.problems(), []);
    assert_eq!(lb.kind.secrets().into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

#[test]
fn without_load_balancers_the_steps_do_nothing_and_the_plan_says_so() {
    let w = world(DRAINED, 2);
    let plan = w.plan();
    assert!(
        plan.steps[0].note.as_deref().is_some_and(|n| n.contains("has no `load_balancers`")),
        "{:?}",
        plan.steps[0]
    );
    assert!(w.rollout().traffic.is_empty());
    assert_eq!(plan.digest().expect("digest").leaves, 2);
}

#[test]
fn what_cannot_be_taken_off_fails_the_plan_by_name() {
    let named = DRAINED.replace("uses: lb.drain, if: inputs.drain", "uses: lb.drain, with: { lb: front }");
    let e = balanced(&named, 1).error();
    assert!(e.contains("step `r`: the environment has no load balancer `front`; it has: edge, inner, own"), "{e}");

    let member = |text: &str| {
        let mut w = balanced(DRAINED, 3);
        w.environment.load_balancers.get_mut("edge").expect("edge").member = Some(text.into());
        w.error()
    };
    let e = member("${{ host.labels.zone }}");
    assert!(e.contains("load balancer `edge` on host `web-2`: host `web-0` is called `a` there too"), "{e}");
    let e = member("${{ host.labels.none }}");
    assert!(e.contains("load balancer `edge` on host `web-0`"), "{e}");
    let e = member("${{ host.labels }}");
    assert!(e.contains("gives a map, not a name"), "{e}");
    let e = member("a b ${{ host.name }}");
    assert!(e.contains("gives \"a b web-0\"; a member's name has 1 to 253"), "{e}");

    let mut w = balanced(DRAINED, 1);
    let edge = w.environment.load_balancers["edge"].clone();
    for i in 0..6 {
        w.environment.load_balancers.insert(format!("more-{i}"), edge.clone());
    }
    assert!(w.error().contains("one more than the 8 that a rollout can take hosts off"), "{}", w.error());
}
