//! Small wrong flows in one table: text, place (0 where there is none) and a word of the first problem.

use crate::read;
use windlass_domain::span::Place;

/// A flow with one rollout whose host steps are given, each line indented by six.
fn rollout(steps: &str) -> String {
    format!("flow: f\nsteps:\n  - id: r\n    waves: \"1\"\n    steps:\n{steps}")
}

pub(crate) fn texts() -> Vec<String> {
    table().into_iter().map(|(t, ..)| t).collect()
}

#[rustfmt::skip]
fn table() -> Vec<(String, u32, u32, &'static str)> {
    let central = |step: &str| format!("flow: f\ninputs: {{a: {{type: number, default: 1}}}}\nsteps:\n  - {step}\n");
    let host = |step: &str| rollout(&format!("      - {step}\n"));
    let when = |e: &str| central(&format!("{{id: a, uses: wait, with: {{for: 1s}}, if: \"{e}\"}}"));
    let selected = |on: &str| format!("flow: f\nsteps:\n  - {{id: r, on: \"{on}\", waves: 1, steps: [{{uses: artifact.fetch}}]}}\n");
    let waves = |w: &str| format!("flow: f\nsteps:\n  - {{id: r, waves: {w}, steps: [{{uses: artifact.fetch}}]}}\n");
    vec![
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
        (central("{id: a, uses: lb.take}"), 4, 19, "no action `lb.take`"),
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
        // what an expression may cost
        (when(&"(".repeat(17)), 4, 46, "brackets nest deeper than 16"),
        (when(&("true?1:".repeat(17) + "1")), 4, 46, "`?` more than 16 times"),
        (when(&vec!["1"; 30].join("*")), 4, 46, "deeper than 20"),
        (when(&(vec!["1"; 18].join("+") + " > 1")), 4, 46, "`+` more than 16 times"),
        (when("[1].map(x, x * 2) == [2]"), 4, 46, "`map` is not offered"),
        (when("[1].all(x, [2].all(y, x == y))"), 4, 46, "a loop may not hold a loop"),
        (when("(values.a + values.b).all(x, x == 1)"), 4, 46, "made with `+`"),
        (when("['a'].all(x, x.matches('a'))"), 4, 46, "not in a loop"),
        (when("release.kind.matches(release.flow)"), 4, 46, "must be a literal"),
        (format!("flow: f\ninputs: {{{}}}\nsteps: []\n", (0..101).map(|i| format!("i{i}: {{type: number}}")).collect::<Vec<_>>().join(", ")), 2, 9, "holds 101 inputs, the limit is 100"),
        (when(""), 4, 46, "the expression is empty"),
        (when(&"a".repeat(1100)), 4, 46, "longer than 1024 bytes"),
        // selectors and waves
        (selected(""), 3, 17, "a label name such as `zone`"),
        (selected("!"), 3, 17, "a label name after `!`"),
        (selected("a="), 3, 17, "a label value after `=`"),
        (selected("a!="), 3, 17, "a label value after `!=`"),
        (selected("a b"), 3, 17, "`notin (...)`"),
        (selected("a in b"), 3, 17, "a list of values"),
        (selected("a in ()"), 3, 17, "a label value"),
        (selected(&"a,".repeat(3000)), 3, 17, "at most 4096 bytes"),
        (waves("\"\""), 3, 20, "at least one part"),
        (waves("two"), 3, 20, "is not a count"),
        (waves("0"), 3, 20, "at least 1"),
        (waves("101%"), 3, 20, "from 1 to 100"),
        (waves("9999999"), 3, 20, "at most 1000000"),
        (waves("\"*2\""), 3, 20, "grows from the wave before"),
        (waves(&"1 ".repeat(2000)), 3, 20, "at most 500 are allowed"),
        // sizes and shapes of the text
        (format!("flow: f\nsteps:\n{}", (0..201).map(|i| format!("  - {{id: s{i}, uses: wait, with: {{for: 1s}}}}\n")).collect::<String>()), 3, 3, "holds 201 steps, the limit is 200"),
        (central(&format!("{{id: a, uses: wait, with: {{for: 1s}}, needs: [{}]}}", "b, ".repeat(201))), 4, 49, "holds 201 step ids"),
        (host("fetch"), 6, 9, "a host step must be a map"),
        (host("{id: a}"), 6, 9, "a step needs `uses: <action>`"),
        (host(&format!("{{uses: artifact.fetch, always: {}}}", "long ".repeat(20))), 6, 40, "not a long text"),
        (host("{uses: http.check, with: {url: \"http://x\", within: [5]}}"), 6, 60, "write `30s`, `2m`"),
        (host("{uses: http.check, with: {url: \"http://x\", within: 31d}}"), 6, 60, "limit of 30d"),
        ("flow: f\nsteps: \"\\0\"\n".into(), 2, 8, "holds a NUL character; remove it"),
        ("flow: f\nsteps: \"\u{fdd0}\"\n".into(), 2, 8, "are no characters; remove them"),
        (format!("flow: f\nsteps:\n  - id: a\n    uses: plugin/x\n    with:\n      l:\n{}", "        - ${{ env.x }}\n".repeat(5001)), 5007, 11, "make several flows of it"),
        ("flow: f\nsteps: .inf\n".into(), 2, 8, "non-finite float"),
        ("flow: f\nsteps: &a {b: 1}\nx: {<<: *a}\n".into(), 3, 5, "write the keys out"),
        (format!("flow: f\nx: &x [1]\nsteps: [{}]\n", "*x, ".repeat(1001)), 3, 4009, "write it flatter"),
        (format!("flow: f\n# {}", "x".repeat(1 << 20)), 0, 0, "split it into several files"),
        ("# nothing\n".into(), 0, 0, "the text is empty"),
        ("flow: a\n---\nflow: b\n".into(), 0, 0, "several documents"),
    ]
}

#[test]
fn small_wrong_flows_are_told_where_and_what_to_do() {
    let table = table();
    assert!(table.len() >= 60);
    let mut failures = Vec::new();
    for (text, line, column, word) in table {
        let Err(e) = read(&text) else {
            failures.push(format!("taken for right: {text}"));
            continue;
        };
        let place = (line > 0).then_some(Place { line, column });
        if e[0].place != place || !e[0].message.contains(word) {
            let told: Vec<String> = e.iter().map(ToString::to_string).collect();
            let text: String = text.chars().take(300).collect();
            failures.push(format!("{text}\nat {line}:{column} {word}\n  {}", told.join("\n  ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
