//! The static check is sound: what it tells fails. And no expression costs more than the limits say.

use super::*;
use crate::expression::{Context, Expression, MAX_RESULT, eval};
use proptest::prelude::*;
use serde_json::json;
use std::time::{Duration, Instant};

fn context() -> Context {
    Context::default()
        .with("inputs", json!({"restart": true, "count": 3, "ratio": 0.5, "name": "shop", "given": null}))
        .with("env", json!({"list": [1, 2, 3], "text": "x", "map": {"a": 1}, "yes": true}))
        .with("host", json!({"name": "web-1", "labels": {"zone": "a"}}))
}

fn names() -> Names {
    let inputs = [
        ("restart", Type::Boolean),
        ("count", Type::Number),
        ("ratio", Type::Number),
        ("name", Type::Text),
        ("given", Type::Any),
    ];
    let host = [("name", Type::Text), ("labels", Type::open([]))];
    Names::from([("inputs", Type::open(inputs)), ("env", Type::open([])), ("host", Type::closed(host))])
}

fn told(source: &str) -> (Type, Vec<String>) {
    Expression::compile(source).expect(source).check_types(&names())
}

#[test]
fn what_is_right_is_not_told() {
    for (source, t) in [
        ("inputs.count > 2.5 && inputs.name < 'x'", Type::Boolean),
        ("inputs.count + 1", Type::Number),
        ("inputs.name + string(inputs.count)", Type::Text),
        ("[1] + env.list", Type::List),
        ("inputs.restart ? inputs.name : 'none'", Type::Text),
        ("inputs.restart ? inputs.name : 1", Type::Any),
        ("inputs.given == null || inputs.given == 5", Type::Boolean),
        ("inputs.name != null", Type::Boolean),
        ("env.anything.at.all", Type::Any),
        ("env.a == 1 || env.a == 'b' || env.a.startsWith('c')", Type::Boolean),
        ("'zone' in host.labels && has(host.labels.gpu)", Type::Boolean),
        ("env.list.exists(x, x == 'a' || x > 1)", Type::Boolean),
        ("env.list.filter(x, x > 1)", Type::List),
        ("size(env.list) == 3 && inputs.name.size() > 1", Type::Boolean),
        ("inputs.name.matches('^s')", Type::Boolean),
        ("timestamp('2026-01-01T00:00:00Z').getFullYear() == 2026", Type::Boolean),
    ] {
        assert_eq!(told(source), (t, vec![]), "{source}");
    }
}

#[test]
fn fields_of_closed_maps_are_known() {
    assert!(told("host.nam == 'a'").1[0].contains("did you mean `name`?"));
    assert!(told("host['nam'] == 'a'").1[0].contains("did you mean `name`?"));
    assert!(told("has(host.nam)").1.is_empty());
}

fn leaf() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "inputs.restart",
        "inputs.count",
        "inputs.ratio",
        "inputs.name",
        "inputs.given",
        "env.list",
        "env.text",
        "env.map",
        "env.yes",
        "host.name",
        "host.labels",
        "1",
        "2.5",
        "'a'",
        "true",
        "null",
        "[1, 2]",
        "{'a': 1}",
    ])
    .prop_map(Into::into)
}

/// Only what is computed whatever its parts are: no `&&`, `||`, `?:` and no `==`, which do not fail.
fn strict() -> impl Strategy<Value = String> {
    leaf().prop_recursive(3, 12, 2, |e| {
        let two = prop::sample::select(vec!["+", "-", "*", "/", "%", "<", "<=", ">", ">=", "in"]);
        prop_oneof![
            4 => (e.clone(), two, e.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            1 => e.clone().prop_map(|a| format!("!({a})")),
            1 => e.clone().prop_map(|a| format!("-({a})")),
            1 => e.clone().prop_map(|a| format!("size({a})")),
            1 => e.clone().prop_map(|a| format!("({a}).size()")),
            1 => e.clone().prop_map(|a| format!("string({a})")),
            1 => (e.clone(), e.clone()).prop_map(|(a, b)| format!("({a}).startsWith({b})")),
            1 => e.clone().prop_map(|a| format!("({a}).exists(x, x == 1)")),
            1 => e.clone().prop_map(|a| format!("({a}).first")),
            1 => e.prop_map(|a| format!("({a})[0]")),
        ]
    })
}

fn any_expression() -> impl Strategy<Value = String> {
    strict().prop_recursive(3, 24, 3, |e| {
        let two = prop::sample::select(vec!["&&", "||", "==", "!=", "+"]);
        prop_oneof![
            (e.clone(), two, e.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            (e.clone(), e.clone(), e.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            (e.clone(), prop::sample::select(vec!["all", "exists", "exists_one", "filter"]), e)
                .prop_map(|(a, l, b)| format!("({a}).{l}(x, {b})")),
        ]
    })
}

fn of_type(value: &serde_json::Value) -> Type {
    match value {
        serde_json::Value::Null => Type::Null,
        serde_json::Value::Bool(_) => Type::Boolean,
        serde_json::Value::Number(_) => Type::Number,
        serde_json::Value::String(_) => Type::Text,
        serde_json::Value::Array(_) => Type::List,
        serde_json::Value::Object(_) => Type::open([]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// What is told fails, and what succeeds has the type that was said.
    #[test]
    fn the_check_is_sound(source in strict()) {
        let Ok(e) = Expression::compile(&source) else { return Ok(()) };
        let (t, told) = e.check_types(&names());
        if let Ok(value) = e.eval(&context()) {
            prop_assert!(told.is_empty(), "{source} gives {value}, but was told {told:?}");
            prop_assert!(t.may_be(&of_type(&value)), "{source} gives {value}, not {}", t.name());
        }
    }

    /// A comparison that is told has one answer.
    #[test]
    fn comparisons_that_are_told_have_one_answer(a in leaf(), b in leaf()) {
        for (sign, always) in [("==", false), ("!=", true)] {
            let source = format!("{a} {sign} {b}");
            if !told(&source).1.is_empty() {
                prop_assert_eq!(eval(&source, &context()), Ok(json!(always)), "{}", source);
            }
        }
    }

    /// Whatever is written: it ends soon, and what it gives is small.
    #[test]
    fn no_expression_costs_much(source in any_expression()) {
        let Ok(e) = Expression::compile(&source) else { return Ok(()) };
        let begun = Instant::now();
        let _ = e.check_types(&names());
        if let Ok(value) = e.eval(&context()) {
            prop_assert!(value.to_string().len() <= MAX_RESULT);
        }
        prop_assert!(begun.elapsed() < Duration::from_secs(3), "{source}");
    }
}

/// There is nothing by which an expression could reach the machine it is computed on, the time or chance.
#[test]
fn nothing_reaches_the_host() {
    for name in [
        "now", "random", "uuid", "env", "getenv", "read", "file", "open", "exec", "system", "http", "fetch", "sleep",
        "print",
    ] {
        for source in
            [format!("{name}()"), format!("{name}('x')"), format!("'x'.{name}()"), format!("inputs.{name}('x')")]
        {
            assert!(eval(&source, &context()).is_err(), "{source} can be computed");
        }
    }
}
