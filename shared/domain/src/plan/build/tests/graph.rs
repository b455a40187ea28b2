//! Graphs in plans: what is decided beforehand, what is left out, what subflows read.

use super::*;
use crate::{
    deployment::{PlanFacts, StepRunKind, StepState},
    flow::{Flow, link::link},
};

fn linked(main: &str, inner: &[&str]) -> World {
    let parsed = |text: &str| -> Flow { flow::parse(text).unwrap_or_else(|e| panic!("{e:?}")) };
    let mut w = world(main, 2);
    let inner: Vec<Flow> = inner.iter().map(|t| parsed(t)).collect();
    w.release.flow = link(&w.release.flow, &|name| inner.iter().find(|f| f.name == name).map(|f| (f.clone(), 7)))
        .unwrap_or_else(|e| panic!("{e}"));
    w
}

fn states(plan: &Plan) -> BTreeMap<String, StepState> {
    PlanFacts::of(plan, "d").steps.into_iter().map(|s| (s.id, s.state)).collect()
}

#[test]
fn branches_that_read_no_steps_are_decided_and_the_others_left_out() {
    let w = linked(
        r#"flow: web
inputs: { fast: { type: boolean, default: true } }
steps:
  - id: g
    exclusive:
      - { name: quick, if: inputs.fast, to: [a] }
      - default: [b]
  - { id: a, needs: [g], uses: wait, with: { for: 1s } }
  - { id: b, needs: [g], waves: "1", steps: [ { uses: script, with: { run: "x", env: { Y: "${{ host.values.none }}" } } } ] }
  - { id: c, needs: [b], uses: wait, with: { for: 1s } }
  - { id: z, needs: [a, c], uses: wait, with: { for: 1s } }
"#,
        &[],
    );
    // What is never reached is not rendered: `b` could not be.
    let p = w.plan();
    let PlanStepKind::Gateway(g) = &p.steps[0].kind else { panic!("a gateway") };
    assert_eq!(g.branches[0].condition.as_deref(), Some("true"));
    let s = states(&p);
    assert_eq!(
        (s["a"], s["b"], s["c"], s["z"]),
        (StepState::Waiting, StepState::NotTaken, StepState::NotTaken, StepState::Waiting)
    );
    assert!(PlanFacts::of(&p, "d").context.is_empty(), "nothing is left to decide");
    assert_eq!(p.digest().expect("digest").leaves, 0, "a step that is not taken cannot be offered");
}

#[test]
fn what_reads_steps_waits_and_says_whose_outputs_it_needs() {
    let w = linked(
        r#"flow: web
steps:
  - { id: probe, uses: http.request, with: { url: "http://127.0.0.1/" } }
  - { id: go, needs: [probe], if: "steps.probe.outputs.status == 200", uses: notify, with: { message: "got ${{ steps.probe.outputs.body }}" } }
  - id: r
    needs: [probe]
    waves: "1 *2"
    steps:
      - { id: say, uses: script, with: { run: "x", env: { A: "${{ steps.probe.outputs.body }}" } } }
      - { id: again, uses: script, with: { run: "x", env: { A: "${{ host.name }} ${{ steps.say.outputs.k }}" } } }
"#,
        &[],
    );
    let facts = PlanFacts::of(&w.plan(), "d");
    assert_eq!(facts.steps[1].condition.as_deref(), Some("steps.probe.outputs.status == 200"));
    assert_eq!((&facts.steps[1].reads, &facts.steps[2].reads), (&vec!["probe".to_owned()], &vec!["probe".to_owned()]));
    assert!(facts.context.contains_key("env"));
}

const PART: &str = r#"flow: part
inputs:
  name: { type: string }
  size: { type: number, default: 3 }
outputs: { said: "${{ steps.work.outputs.say.said }}" }
steps:
  - id: work
    if: inputs.size > 2
    waves: "1 *2"
    steps:
      - { id: say, uses: script, with: { run: "x", env: { N: "${{ inputs.name }} ${{ env.domain }}" } } }
      - { id: then, uses: script, with: { run: "x", env: { N: "${{ steps.say.outputs.said }}", H: "${{ host.name }} ${{ inputs.name }}" } } }
"#;

#[test]
fn a_subflow_reads_its_own_inputs_and_steps() {
    let w = linked(
        r#"flow: web
inputs: { who: { type: string, default: ann } }
steps:
  - { id: one, uses: flow/part, with: { name: "${{ inputs.who }}" } }
  - { id: two, needs: [one], uses: flow/part, with: { name: "${{ steps.one.outputs.said }}", size: 9 } }
  - { id: none, uses: flow/part, with: { name: x, size: 1 } }
  - { id: out, if: "false", uses: flow/part, with: { name: x } }
"#,
        &[PART],
    );
    let p = w.plan();
    assert_eq!(p.scopes["one"].inputs["name"], "ann");
    assert_eq!((&p.scopes["one"].inputs["size"], p.scopes["two"].flow_revision), (&json!(3), 7));
    let spec = |step: &str| serde_json::to_string(&p.task_spec(step, 0).expect("spec").steps).expect("JSON");
    assert!(spec("one/work").contains("ann shop.example"));
    // The host's own step keeps its name; the output of another step is that of the plan.
    assert!(spec("one/work").contains("output:say:said"), "{}", spec("one/work"));
    assert!(spec("two/work").contains("output:one:said"), "{}", spec("two/work"));
    let facts = PlanFacts::of(&p, "d");
    let reads = |id: &str| facts.steps.iter().find(|s| s.id == id).expect("step").reads.clone();
    assert_eq!((reads("one/work"), reads("two/work")), (vec![], vec!["one".to_owned()]));
    let s = states(&p);
    assert_eq!(
        (s["none/work"], s["out/enter"], s["out/work"], s["out"]),
        (StepState::Skipped, StepState::Skipped, StepState::NotTaken, StepState::Skipped)
    );
    assert!(facts.steps.iter().any(|s| matches!(&s.kind, StepRunKind::Leave { scope } if scope == "one")));
    assert_ne!(p.digest().expect("digest"), {
        let mut other = linked("flow: web\nsteps:\n  - { id: one, uses: flow/part, with: { name: bob } }\n", &[PART]);
        other.release.id = w.release.id;
        other.plan().digest().expect("digest")
    });
}

#[test]
fn a_subflow_that_does_not_fit_its_inputs_has_no_plan() {
    let main = "flow: web\nsteps:\n  - { id: one, uses: flow/part, with: { name: \"${{ 1 + 1 }}\" } }\n";
    let e = linked(main, &[PART]).error();
    assert!(e.contains("`one`") && e.contains("`name`") && e.contains("must be text"), "{e}");
}
