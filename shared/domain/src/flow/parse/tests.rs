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
    assert_eq!(r.budget, Budget { hosts: Some(1), percent: Some(5.0) });
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

/// (text, line, column, a word of the message): the first problem must be this one.
#[test]
fn wrong_flows_are_told_where_and_what_to_do() {
    let central = |step: &str| format!("flow: f\ninputs: {{a: {{type: number, default: 1}}}}\nsteps:\n  - {step}\n");
    let host = |step: &str| rollout(&format!("      - {step}\n"));
    let table: Vec<(String, u32, u32, &str)> = vec![
        ("flow: f\nstep: []\n".into(), 1, 1, "`steps:`"),
        ("flow: f\nstep: []\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 1, "did you mean `steps`?"),
        ("steps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 1, 1, "add `flow: <name>`"),
        ("flow: Web\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 1, 7, "must be a name"),
        ("flow: f\nsteps: []\n".into(), 2, 8, "at least one"),
        ("flow: f\nsteps: {}\n".into(), 2, 8, "must be a list"),
        ("flow: f\non_failure: retry\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 13, "pause, stop, rollback"),
        ("flow: f\nflow: g\n".into(), 2, 1, "keep one"),
        ("flow: f\nsteps: [\n".into(), 2, 8, "not valid YAML"),
        ("- a\n".into(), 1, 1, "must be a map"),
        // inputs
        ("flow: f\ninputs: {a: {type: text}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 20, "string, number"),
        ("flow: f\ninputs: {a: {default: 1}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 13, "`type` is missing"),
        ("flow: f\ninputs: {a: {type: number, default: x}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 37, "must be a number"),
        ("flow: f\ninputs: {a: {type: choice}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 13, "options"),
        ("flow: f\ninputs: {a: {type: choice, options: [x], default: y}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 51, "one of x"),
        ("flow: f\ninputs: {a-b: {type: number}}\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\n".into(), 2, 10, "inputs.<name>"),
        // steps
        (central("{id: a, uses: wait, with: {for: 1s}, need: [b]}"), 4, 42, "did you mean `needs`?"),
        (central("{id: a, uses: wait, with: {for: 1s}, needs: [b]}"), 4, 50, "steps are: a"),
        (central("{id: a, uses: wait, with: {for: 1s}, needs: [a]}"), 4, 50, "cannot need itself"),
        (central("{uses: wait, with: {for: 1s}}"), 4, 5, "add `id: <name>`"),
        (central("{id: a, uses: wait, with: {for: 1s}}\n  - {id: a, uses: wait, with: {for: 1s}}"), 5, 10, "used twice"),
        (central("{id: a, uses: wait, with: {for: 1s}, needs: [b]}\n  - {id: b, uses: wait, with: {for: 1s}, needs: [a]}"), 4, 10, "a -> b -> a"),
        (central("{id: a}"), 4, 5, "`uses: <action>`"),
        (central("{id: a, uses: wait, with: {for: 1s}, waves: \"1\"}"), 4, 49, "two steps"),
        (central("{id: a, uses: waits, with: {for: 1s}}"), 4, 19, "did you mean `wait`?"),
        (central("{id: a, uses: lb.drain}"), 4, 19, "no action `lb.drain`"),
        (central("{id: a, uses: script, with: {run: x}}"), 4, 19, "runs on hosts"),
        (central("{id: a, uses: wait}"), 4, 19, "needs the parameter `for`"),
        (central("{id: a, uses: wait, with: {for: 5}}"), 4, 37, "`30s`"),
        (central("{id: a, uses: wait, with: {for: 1s, until: x}}"), 4, 41, "known keys are: for"),
        (central("{id: a, uses: wait, with: {for: 1s}, timeout: 0s}"), 4, 51, "longer than 0s"),
        (central("{id: a, uses: wait, with: {for: 1s}, timeout: 8d}"), 4, 51, "limit of 7d"),
        (central("{id: a, uses: wait, with: {for: 1s}, phase: deploy}"), 4, 49, "pre-release"),
        (central("{id: a, uses: notify, with: {message: hi, severity: loud}}"), 4, 57, "info, notice, action, alert"),
        (central("{id: a, uses: http.request, with: {url: \"ftp://x\"}}"), 4, 45, "http://"),
        (central("{id: a, uses: http.request, with: {url: \"http://x\", expect_status: ok}}"), 4, 72, "100 to 599"),
        (central("{id: a, uses: http.request, with: {url: \"http://x\", headers: [a]}}"), 4, 66, "map of texts"),
        // expressions
        (central("{id: a, uses: wait, with: {for: 1s}, if: \"inputs.b\"}"), 4, 46, "known: a"),
        (central("{id: a, uses: wait, with: {for: 1s}, if: \"inputs.a ==\"}"), 4, 46, "inputs.a =="),
        (central("{id: a, uses: wait, with: {for: 1s}, if: \"host.name == 'x'\"}"), 4, 46, "only the steps of a rollout"),
        (central("{id: a, uses: wait, with: {for: 1s}, if: \"input.a == 1\"}"), 4, 46, "did you mean `inputs`?"),
        (central("{id: a, uses: wait, with: {for: 1s}, if: 5}"), 4, 46, "must be an expression"),
        (central("{id: a, uses: notify, with: {message: \"${{ artifact.sha }}\"}}"), 4, 43, "artifact.sha"),
        (central("{id: a, uses: notify, with: {message: \"${{ artifact.version\"}}"), 4, 43, "closing"),
        // rollouts
        ("flow: f\nsteps: [{id: r, waves: \"*2\", steps: [{uses: artifact.fetch}]}]\n".into(), 2, 24, "begin with"),
        ("flow: f\nsteps: [{id: r, steps: [{uses: artifact.fetch}]}]\n".into(), 2, 9, "`waves` is missing"),
        ("flow: f\nsteps: [{id: r, waves: 1}]\n".into(), 2, 9, "`steps` is missing"),
        ("flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}], bake: 5}]\n".into(), 2, 66, "`30s`"),
        ("flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}], confirm: yes}]\n".into(), 2, 69, "none, first, each"),
        ("flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}], parallel: -1}]\n".into(), 2, 70, "whole number"),
        ("flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}], budget: {percent: 200}}]\n".into(), 2, 78, "0 to 100"),
        ("flow: f\nsteps: [{id: r, waves: 1, steps: [{uses: artifact.fetch}], budget: {host: 1}}]\n".into(), 2, 69, "did you mean `hosts`?"),
        (host("{uses: http.request, with: {url: \"http://x\"}}"), 6, 16, "all steps of a rollout must be host actions"),
        (host("{uses: artifact.fetch, with: {a: 1}}"), 6, 39, "takes no parameters"),
        (host("{uses: service.restart}"), 6, 16, "`unit: <systemd unit>`"),
        (host("{uses: service.restart, with: {unit: a, command: [b]}}"), 6, 58, "not both"),
        (host("{uses: service.restart, with: {command: \"a b\"}}"), 6, 49, "list of texts"),
        (host("{uses: release.switch, with: {to: last_known_good}}"), 6, 43, "rollback"),
        (host("{uses: script, with: {run: \"echo ${{ inputs.a }}\"}}"), 6, 36, "`env:`"),
        (host("{uses: script, with: {run: a, env: {WINDLASS_HOST: x}}}"), 6, 45, "another name"),
        (host("{uses: script, with: {run: a, env: {\"A-B\": x}}}"), 6, 45, "letters, digits"),
        (host("{uses: file.put, with: {path: ../x, content: a}}"), 6, 39, "without `..`"),
        (host("{uses: file.put, with: {path: x, content: a, mode: rw}}"), 6, 60, "0644"),
        (host("{uses: http.check, with: {url: \"http://x\", status: 99}}"), 6, 60, "100 to 599"),
        (host("{uses: artifact.fetch, always: 1}"), 6, 40, "true or false"),
        (host("{uses: artifact.fetch, id: \"A b\"}"), 6, 36, "must be an id"),
        (host("{uses: artifact.fetch, id: a}\n      - {uses: artifact.fetch, id: a}"), 7, 36, "used twice"),
        (host("{uses: artifact.fetch, if: host.nam == 'a'}"), 6, 36, "did you mean `name`?"),
        ("flow: f\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\nrollback: {norml: []}\n".into(), 3, 12, "did you mean `normal`?"),
        ("flow: f\nsteps: [{id: a, uses: wait, with: {for: 1s}}]\nrollback: {normal: [{uses: wait, with: {for: 1s}}]}\n".into(), 3, 28, "host actions"),
    ];
    assert!(table.len() >= 60);
    for (text, line, column, word) in table {
        let e = parse(&text).expect_err(&text);
        let told = e.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert_eq!(e[0].place, Some(Place { line, column }), "{text}\n{told}");
        assert!(e[0].message.contains(word), "{text}\n{told}");
    }
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
            _ => "{}",
        };
        let central = format!("flow: f\nsteps: [{{id: a, uses: {}, with: {with}}}]\n", a.name);
        let host = rollout(&format!("      - {{uses: {}, with: {with}}}\n", a.name));
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
