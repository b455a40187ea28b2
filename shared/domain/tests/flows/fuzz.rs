//! Whatever the text is, the parser answers: without a panic, in bounded time, with places that are in the text; and
//! what it takes, the schema takes too.

use crate::{folder, read, short, yaml_files};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};
use windlass_domain::flow::{actions::ACTIONS, json_schema, parse};

/// Generous, as tests run unoptimised and beside others; without bounds it would be minutes.
const MOST: Duration = Duration::from_secs(10);

static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let files = yaml_files(&folder("good")).into_iter().chain(yaml_files(&folder("wrong")));
    files.map(|(_, t)| t).chain(short::texts().into_iter().filter(|t| t.len() < 4096)).collect()
});

static SCHEMA: LazyLock<jsonschema::Validator> =
    LazyLock::new(|| jsonschema::validator_for(&json_schema()).expect("a schema"));

fn answered(text: &str) -> Result<(), TestCaseError> {
    let begun = Instant::now();
    let answer = read(text);
    let took = begun.elapsed();
    prop_assert!(took < MOST, "{took:?} for {} bytes", text.len());
    match answer {
        Err(problems) => {
            prop_assert!(!problems.is_empty() && problems.len() <= 100);
            let lines = text.lines().count() + 1;
            for p in &problems {
                prop_assert!(!p.message.is_empty() && p.message.len() < 8192, "{p}");
                prop_assert!(p.place.is_none_or(|at| at.line as usize <= lines && at.line > 0 && at.column > 0), "{p}");
            }
            prop_assert!(problems.is_sorted_by_key(|p| p.place));
        }
        Ok(flow) => {
            let stored = serde_json::to_string(&flow).expect("writes");
            prop_assert_eq!(serde_json::from_str::<windlass_domain::flow::Flow>(&stored).expect("reads"), flow);
            // A key without a value counts as absent to the parser, and is one to the schema.
            if let Ok(value) = serde_saphyr::from_str::<Value>(text)
                && !has_null(&value)
            {
                let wrong: Vec<String> = SCHEMA.iter_errors(&value).map(|e| e.to_string()).collect();
                prop_assert!(wrong.is_empty(), "{text}\n{wrong:#?}");
            }
        }
    }
    Ok(())
}

fn has_null(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Array(l) => l.iter().any(has_null),
        Value::Object(m) => m.values().any(has_null),
        _ => false,
    }
}

/// What stands in flows, to be put where it does not belong.
const WORDS: [&str; 60] = [
    "flow:",
    "steps:",
    "inputs:",
    "- ",
    "id: a",
    "needs: [a]",
    "join: any",
    "exclusive:",
    "parallel: [a, b]",
    "default: [a]",
    "if: true",
    "to: [a]",
    "waves: 1",
    "on: \"a=b\"",
    "uses: lb.drain",
    "uses: lb.attach",
    "with: { lb: x }",
    "group_by: zone",
    "canary: \"a=b\"",
    "stagger: {every: 1s}",
    "bake: {for: 5m, probes: [{id: p, uses: http.check}]}",
    "retry: {max: 3, on: exit}",
    "patience: {within: 1h}",
    "required: true",
    "success: value < 1",
    "automatic: normal",
    "uses: flow/x",
    "uses: script",
    "with:",
    "repeat: {until: \"steps.a.outputs.x\", max: 2}",
    "${{ inputs.mode }}",
    "${{",
    "}}",
    "${{ secrets.a }}",
    "${{ steps.a.outputs.b }}",
    "steps.a.outputs.b == 1",
    "host.name",
    "&a",
    "*a",
    "<<: *a",
    "!!binary",
    "|",
    ">",
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "#",
    "---",
    "...",
    "\t",
    "~",
    "0x7f",
    "1e999",
    "\u{feff}",
    "é",
];

#[derive(Debug, Clone)]
enum Damage {
    Cut(usize, usize),
    Put(usize, usize),
    Double(usize),
    Swap(usize, usize),
    Indent(usize, usize),
    Drop(usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), 1..20usize).prop_map(|(a, n)| Damage::Cut(a, n)),
        (any::<usize>(), 0..WORDS.len()).prop_map(|(a, w)| Damage::Put(a, w)),
        any::<usize>().prop_map(Damage::Double),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        (any::<usize>(), 0..8usize).prop_map(|(a, n)| Damage::Indent(a, n)),
        any::<usize>().prop_map(Damage::Drop),
    ]
}

fn damaged(text: &str, damages: &[Damage]) -> String {
    let mut text = text.to_string();
    for d in damages {
        let mut lines: Vec<String> = text.lines().map(Into::into).collect();
        if lines.is_empty() {
            break;
        }
        let count = lines.len();
        let line = |i: usize| i % count;
        match *d {
            Damage::Cut(a, n) => {
                let chars: Vec<char> = text.chars().collect();
                let at = a % chars.len().max(1);
                text = chars[..at].iter().chain(chars.iter().skip(at + n)).collect();
                continue;
            }
            Damage::Put(a, w) => {
                let chars: Vec<char> = text.chars().collect();
                let at = a % (chars.len() + 1);
                text = chars[..at].iter().copied().chain(WORDS[w].chars()).chain(chars[at..].iter().copied()).collect();
                continue;
            }
            Damage::Double(i) => lines.insert(line(i), lines[line(i)].clone()),
            Damage::Swap(a, b) => lines.swap(line(a), line(b)),
            Damage::Indent(i, n) => {
                let i = line(i);
                lines[i] = " ".repeat(n) + lines[i].trim_start();
            }
            Damage::Drop(i) => drop(lines.remove(line(i))),
        }
        text = lines.join("\n");
    }
    text
}

/// Values that are nearly what the key takes.
fn value() -> impl Strategy<Value = Value> {
    let id = prop::sample::select(vec!["a", "b", "c", "d", "x y", ""]);
    let expression = prop::sample::select(vec![
        "true",
        "inputs.n > 1",
        "inputs.s == 'x'",
        "steps.a.outputs.status == 200",
        "steps.b.outputs.x",
        "${{ steps.a.outputs.body }}",
        "${{ secrets.k }}",
        "${{ inputs.f.text }}",
        "host.name",
        "1 +",
    ]);
    let leaf = prop_oneof![
        id.prop_map(|s| json!(s)),
        expression.prop_map(|s| json!(s)),
        (-5i64..2000).prop_map(|n| json!(n)),
        any::<bool>().prop_map(|b| json!(b)),
        prop::sample::select(vec!["1s", "10%", "role=web", "http://x/", "plugin/p@1", "flow/g"]).prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(key(), inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    let keys = [
        "id", "needs", "if", "to", "default", "name", "until", "max", "every", "uses", "with", "type", "options",
        "run", "args", "env", "url", "headers", "x", "for", "probes", "success", "fail", "jitter", "wave", "hosts",
        "on", "percent", "backoff",
    ];
    prop::sample::select(keys.to_vec()).prop_map(Into::into)
}

fn step() -> impl Strategy<Value = Value> {
    let names: Vec<&str> = ACTIONS.iter().map(|a| a.name).chain(["flow/g", "plugin/p@1"]).collect();
    let ids = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let list = move || prop::collection::vec(ids(), 0..3);
    let optional = [
        "join",
        "phase",
        "on_failure",
        "repeat",
        "if",
        "with",
        "timeout",
        "waves",
        "parallel",
        "steps",
        "on",
        "exclusive",
        "budget",
        "group_by",
        "canary",
        "stagger",
        "bake",
        "retry",
        "on_timeout",
        "required",
    ];
    (
        ids(),
        list(),
        prop::option::weighted(0.7, prop::sample::select(names)),
        prop::option::of((prop::sample::select(vec!["exclusive", "conditional"]), list(), list())),
        prop::option::of(list()),
        prop::collection::btree_map(prop::sample::select(optional.to_vec()), value(), 0..2),
    )
        .prop_map(|(id, needs, uses, gateway, parallel, more)| {
            let mut step = json!({ "id": id });
            if !needs.is_empty() {
                step["needs"] = json!(needs);
            }
            match (uses, gateway, parallel) {
                (Some(u), ..) => step["uses"] = json!(u),
                (_, Some((mode, a, b)), _) => {
                    step[mode] = json!([{ "if": "inputs.n > 1", "to": a }, { "default": b }]);
                }
                (_, _, Some(l)) => step["parallel"] = json!(l),
                _ => step["waves"] = json!(1),
            }
            if let (Value::Object(s), more) = (&mut step, more) {
                more.into_iter().for_each(|(k, v)| drop(s.insert(k.into(), v)));
            }
            step
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        answered(&String::from_utf8_lossy(&bytes))?;
    }

    #[test]
    fn damaged_flows_are_answered(seed in any::<usize>(), damages in prop::collection::vec(damage(), 1..6)) {
        answered(&damaged(&SEEDS[seed % SEEDS.len()], &damages))?;
    }

    /// Beyond the reader of YAML: flows with keys and values in places that are nearly right.
    #[test]
    fn made_up_flows_are_answered(steps in prop::collection::vec(step(), 1..7)) {
        let inputs = json!({ "n": { "type": "number", "default": 1 }, "s": { "type": "string", "default": "x" }, "f": { "type": "file" } });
        answered(&json!({ "flow": "f", "inputs": inputs, "steps": steps }).to_string())?;
    }
}

/// Texts made to cost much: they are answered, and soon.
#[test]
fn hostile_texts_are_answered_soon() {
    let flow = |steps: String| format!("flow: f\nsteps:\n{steps}");
    let wait = |id: &str, more: &str| format!("  - {{id: {id}, uses: wait, with: {{for: 1s}}{more}}}\n");
    let all = |n: usize| (0..n).map(|i| format!("s{i}")).collect::<Vec<_>>().join(", ");
    let long = |i: usize| format!("{i:03}{}", "x".repeat(60));
    let unknown = (0..80).map(|i| format!("{i:03}{}", "y".repeat(60))).collect::<Vec<_>>().join(", ");
    let texts = [
        (
            "each step needs all before",
            flow((0..200).map(|i| wait(&format!("s{i}"), &format!(", needs: [{}]", all(i)))).collect()),
        ),
        (
            "each step needs all",
            flow((0..200).map(|i| wait(&format!("s{i}"), &format!(", needs: [{}]", all(200)))).collect()),
        ),
        (
            "needs of long unknown names",
            flow((0..150).map(|i| wait(&long(i), &format!(", needs: [{unknown}]"))).collect()),
        ),
        ("unknown keys", (0..40_000).map(|i| format!("kkkkkkkkkkkkkkk{i}: 1\n")).collect()),
        (
            "gateways to everywhere",
            flow((0..200).map(|i| format!("  - {{id: s{i}, parallel: [{}]}}\n", all(200))).collect()),
        ),
        (
            "many expressions",
            flow(
                "  - id: a\n    uses: plugin/x\n    with:\n      l:\n".to_string()
                    + &"        - ${{ env.x }}\n".repeat(30_000),
            ),
        ),
        (
            "many wrong expressions",
            flow(
                "  - id: a\n    uses: plugin/x\n    with:\n      l:\n".to_string()
                    + &"        - ${{ inputs.x }}\n".repeat(30_000),
            ),
        ),
        (
            "long expressions",
            flow(
                (0..200)
                    .map(|i| wait(&format!("s{i}"), &format!(", if: \"{}\"", vec!["env.a == 1"; 16].join(" || "))))
                    .collect(),
            ),
        ),
        ("deep lists", format!("flow: f\nsteps: {}", "[".repeat(100_000))),
        ("deep maps", format!("flow: f\nsteps: {}", "{a: ".repeat(100_000))),
        (
            "anchors",
            "a: &a [x,x,x,x,x,x,x,x,x]\n".to_string()
                + &(0..900).map(|i| format!("k{i}: &b{i} [*a, *a, *a]\n")).collect::<String>(),
        ),
        (
            "an anchor used a thousand times",
            format!(
                "flow: f\nx: &x {{{}}}\nsteps: [{}]\n",
                (0..500).map(|i| format!("k{i}: 1")).collect::<Vec<_>>().join(", "),
                "*x, ".repeat(1000)
            ),
        ),
        ("a long line", format!("flow: f\nsteps: [{}]", "1.5, ".repeat(150_000))),
        ("documents", "a: 1\n---\n".repeat(20_000)),
        (
            "large input rules",
            format!(
                "flow: f\ninputs: {{{}}}\nsteps: []\n",
                (0..2000)
                    .map(|i| format!("i{i}: {{type: string, pattern: \"([a-z]{{0,200}}){{0,20}}\"}}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ),
    ];
    for (what, text) in texts {
        let begun = Instant::now();
        let answer = parse(&text);
        let took = begun.elapsed();
        assert!(took < MOST, "{what}: {took:?}");
        if let Err(e) = answer {
            assert!(!e.is_empty() && e.len() <= 100, "{what}");
        }
    }
}
