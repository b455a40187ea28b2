//! Flows that read, and a table of those that do not, with place and remedy.

use super::*;
use crate::flow::{Budget, Confirm, StepKind, actions::ACTIONS};
use proptest::prelude::*;
use serde_json::json;

pub(crate) const EXAMPLE: &str = r#"flow: web-rolling
inputs:
  restart: { type: boolean, default: true }
on_failure: pause                    # pause (intervention) | stop | rollback
steps:
  - id: verify
    uses: artifact.verify            # name, digest, size, age: mismatch alerts and pauses
    with: { max_age: 7d }
  - id: rollout
    needs: [verify]
    waves: "1 10% *2"                # canary, a tenth, then doubling; last part repeats
    confirm: first                   # a person looks after the first wave
    bake: 2m
    budget: { hosts: 1, percent: 5 }
    parallel: 50
    steps:                           # on every host of the wave, in order
      - uses: artifact.fetch         # digest checked again on the host
      - uses: release.switch         # releases/<name>/, atomic symlink, keep N
      - uses: service.restart
        if: inputs.restart
        with: { unit: shop }
      - uses: http.check
        with: { url: "http://${{ host.address }}:8080/health", within: 60s }
  - id: smoke
    needs: [rollout]
    uses: http.request
    with: { url: "https://${{ env.domain }}/version", expect_body: "${{ artifact.version }}" }
rollback:
  normal:    [ { uses: release.switch, with: { to: last_known_good } }, { uses: service.restart, with: { unit: shop } } ]
  emergency: [ { uses: release.switch, with: { to: last_known_good } }, { uses: service.restart, with: { unit: shop } } ]
"#;

fn good(text: &str) -> Flow {
    parse(text).unwrap_or_else(|e| panic!("{text}\n{e:#?}"))
}

/// A flow with one rollout whose steps are given, each line indented by six.
fn rollout(steps: &str) -> String {
    format!("flow: f\nsteps:\n  - id: r\n    waves: \"1\"\n    steps:\n{steps}")
}

#[test]
fn the_example_of_the_design_is_read() {
    let f = good(EXAMPLE);
    assert_eq!(f.name, "web-rolling");
    assert_eq!(f.inputs["restart"].default, Some(json!(true)));
    assert_eq!(f.steps.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["verify", "rollout", "smoke"]);
    assert_eq!(f.steps[2].needs, ["rollout"]);
    let StepKind::Rollout(r) = &f.steps[1].kind else { panic!("a rollout") };
    assert_eq!((r.waves.to_string().as_str(), r.confirm, r.bake_s, r.parallel), ("1 10% *2", Confirm::First, 120, 50));
    assert_eq!(r.budget, Budget { wave_hosts: None, wave_percent: None, hosts: Some(1), percent: Some(5.0) });
    let ids: Vec<&str> = r.steps.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["artifact.fetch", "release.switch", "service.restart", "http.check"]);
    assert_eq!(r.steps[2].condition.as_deref(), Some("inputs.restart"));
    // What an action may take is at least what its own parameters ask for.
    assert_eq!(r.steps[3].call.timeout_s, 90);
    assert_eq!(f.rollback.normal.len(), 2);
    let text = serde_json::to_string(&f).expect("writes");
    assert_eq!(serde_json::from_str::<Flow>(&text).expect("reads"), f);
}

#[test]
fn small_things_are_taken_as_meant() {
    let f = good(&rollout(
        "      - uses: script\n        with: {run: \"true\", env: {PORT: 8080, V: 1.10, ON: true}, args: [1, x]}\n      \
         - uses: script\n        with: {run: \"true\"}\n        always: true\n      \
         - {id: third, uses: script, with: {run: \"true\"}, timeout: 5m, if: \"${{ host.labels.zone == 'a' }}\"}\n      \
         - {uses: file.put, with: {path: a, content: 5, mode: 0600}}\n",
    ));
    let StepKind::Rollout(r) = &f.steps[0].kind else { panic!("a rollout") };
    assert_eq!(r.steps[0].call.with["env"], json!({"PORT": "8080", "V": "1.10", "ON": "true"}));
    assert_eq!(r.steps[0].call.with["args"], json!(["1", "x"]));
    assert!(r.steps[1].always);
    assert_eq!(r.steps[2].condition.as_deref(), Some("host.labels.zone == 'a'"));
    assert_eq!(r.steps[2].call.timeout_s, 300);
    assert_eq!(r.steps[3].call.with["mode"], "0600");
    let ids: Vec<&str> = r.steps.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids[..2], ["script", "script-2"]);
}

#[test]
fn a_written_id_that_a_numbered_one_took_is_told() {
    let text = rollout(
        "      - {uses: script, with: {run: a}}\n      - {uses: script, with: {run: a}}\n      \
         - {id: script-2, uses: script, with: {run: a}}\n",
    );
    let e = parse(&text).expect_err("script-2 twice");
    assert!(e[0].message.contains("`script-2` is used twice"), "{e:?}");
}

#[test]
fn all_problems_are_told_at_once() {
    let e = parse("flow: F\nsteps:\n  - {id: a, uses: wait}\n  - {id: b, uses: nothing, needs: [c]}\nx: 1\n")
        .expect_err("bad");
    let lines: Vec<u32> = e.iter().filter_map(|p| p.place).map(|p| p.line).collect();
    assert_eq!(lines, [1, 3, 4, 4, 5], "{e:#?}");
    assert_eq!(e[2].path, "steps[1].uses");
}

#[test]
fn every_action_can_be_used_where_it_runs() {
    for a in ACTIONS {
        let with = match a.name {
            "service.restart" => "{unit: x}",
            "script" => "{run: x}",
            "file.put" => "{path: x, content: y}",
            "http.check" | "http.request" => "{url: \"http://x\"}",
            "notify" => "{message: x}",
            "wait" => "{for: 1s}",
            "ansible.playbook" => "{playbook: x}",
            "prometheus.query" => "{url: \"http://x\", query: up}",
            _ => "{}",
        };
        let central = format!("flow: f\nsteps: [{{id: a, uses: {}, with: {with}}}]\n", a.name);
        let pair = match a.name {
            // Each only with the other, and with something between them.
            "lb.drain" => "      - {uses: artifact.fetch}\n      - {uses: lb.attach}\n",
            _ => "",
        };
        let before = match a.name {
            "lb.attach" => "      - {uses: lb.drain}\n      - {uses: artifact.fetch}\n",
            _ => "",
        };
        let host = rollout(&format!("{before}      - {{uses: {}, with: {with}}}\n{pair}", a.name));
        assert_eq!(parse(&central).is_ok(), a.central(), "{}", a.name);
        assert_eq!(parse(&host).is_ok(), a.on_host(), "{}", a.name);
    }
}

#[test]
fn long_circles_are_found_without_recursion() {
    let mut text = String::from("flow: f\nsteps:\n");
    for i in 0..200 {
        text += &format!("  - {{id: s{i}, uses: wait, with: {{for: 1s}}, needs: [s{}]}}\n", (i + 1) % 200);
    }
    let e = parse(&text).expect_err("a circle");
    assert!(e[0].message.contains("s0 -> s1 ->"), "{}", e[0].message);
    assert!(
        parse(&(text + "  - {id: x, uses: wait, with: {for: 1s}}\n")).expect_err("201")[0]
            .message
            .contains("limit is 200")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_text_is_answered(text in "\\PC{0,300}") {
        let _ = parse(&text);
    }

    /// One line of the example is changed, dropped or doubled.
    #[test]
    fn damaged_flows_are_answered(line in 0usize..33, what in 0usize..4, put in "[-:{}\\[\\], a-z0-9&*!|>'\"#%$?]{0,12}", at in 0usize..60) {
        let mut lines: Vec<String> = EXAMPLE.lines().map(Into::into).collect();
        let line = line.min(lines.len() - 1);
        match what {
            0 => { lines.remove(line); }
            1 => { let l = lines[line].clone(); lines.insert(line, l); }
            _ => {
                let at = at.min(lines[line].len());
                if lines[line].is_char_boundary(at) { lines[line].insert_str(at, &put); }
            }
        }
        if let Err(e) = parse(&lines.join("\n")) {
            prop_assert!(!e.is_empty() && e.iter().all(|p| !p.message.is_empty()));
        }
    }
}
