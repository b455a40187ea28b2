//! What people write: flows, catalog documents, expressions, templates, waves, selectors.

use crate::{choice, plant::planted, text};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};
use windlass_domain::{
    catalog,
    expression::{Context, Expression, MAX_RESULT, Template, render},
    flow::{self, Flow, link},
    selector::Selector,
    span::Place,
    wave::{MAX_WAVES, WaveExpression},
};

static SCHEMA: LazyLock<jsonschema::Validator> =
    LazyLock::new(|| jsonschema::validator_for(&flow::json_schema()).expect("a schema"));

/// What subflows are linked with, besides the flow itself.
static INNER: LazyLock<Flow> = LazyLock::new(|| {
    flow::parse("flow: g\ninputs: {n: {type: number, default: 1}}\nsteps:\n  - {id: a, uses: wait, with: {for: 1s}}\n")
        .expect("a flow")
});

fn in_text(place: Option<Place>, source: &str) -> bool {
    // YAML ends lines with CR alone, too.
    let lines = source.matches(['\n', '\r']).count() + 1;
    place.is_none_or(|at| at.line > 0 && at.column > 0 && at.line as usize <= lines)
}

/// The bytes are the text of a flow.
///
/// Every answer is the same the second time. Problems have a place in the text, at most a hundred are told. What is taken
/// survives being stored, fits the published schema, and can be linked: with unique ids, and needs that exist.
pub(crate) fn flow(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let answer = flow::parse(source);
    assert_eq!(answer, flow::parse(source));
    let flow = match answer {
        Err(mut problems) => {
            // The plant: lines counted from the end of the text.
            if planted()
                && let Some(p) = problems.last_mut().and_then(|p| p.place.as_mut())
            {
                p.line += u32::try_from(source.lines().count()).expect("a short text");
            }
            assert!((1..=100).contains(&problems.len()));
            for p in &problems {
                assert!(!p.message.is_empty() && p.message.len() < 8192 && in_text(p.place, source), "{p}");
            }
            return assert!(problems.is_sorted_by_key(|p| p.place));
        }
        Ok(flow) => flow,
    };
    stored(&flow);
    if let Ok(value) = serde_saphyr::from_str::<Value>(source)
        && !has_null(&value)
    {
        let wrong: Vec<String> = SCHEMA.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    let find = |name: &str| match name {
        "g" => Some((INNER.clone(), 1)),
        _ => Some((flow.clone(), 2)),
    };
    if let Ok(linked) = link::link(&flow, &find) {
        stored(&linked);
        assert!(linked.steps.len() <= link::MAX_STEPS);
        let ids: BTreeSet<&str> = linked.steps.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids.len(), linked.steps.len(), "an id is there twice");
        for s in &linked.steps {
            assert!(s.needs.iter().all(|n| ids.contains(n.as_str())), "{} needs what is not there", s.id);
        }
    }
}

fn stored(flow: &Flow) {
    let text = serde_json::to_string(flow).expect("writes");
    assert_eq!(&serde_json::from_str::<Flow>(&text).expect("reads"), flow);
}

/// A key without a value counts as absent to the parser, and is one to the schema.
fn has_null(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Array(l) => l.iter().any(has_null),
        Value::Object(m) => m.values().any(has_null),
        _ => false,
    }
}

/// The bytes are catalog documents. What is taken reads the same alone as among the others, and survives being stored;
/// what is not is told with a place in the text.
pub(crate) fn catalog(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    match catalog::read(source) {
        Ok(documents) => {
            for d in &documents {
                let alone =
                    catalog::read(&d.source).unwrap_or_else(|e| panic!("alone it is refused: {e:?}\n{}", d.source));
                assert_eq!(alone.len(), 1);
                // A flow keeps the text it was read from, which is this one.
                assert_eq!(alone[0].item.key(), d.item.key());
                assert_eq!(alone[0].item.kind(), d.item.kind());
                let text = serde_json::to_string(&d.item).expect("writes");
                // The plant: a store that shortens long texts.
                let text = if planted() { text.replace("name", "nam") } else { text };
                assert_eq!(serde_json::from_str::<windlass_domain::catalog::Item>(&text).expect("reads"), d.item);
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.len() <= 200);
            for e in &errors {
                assert!(!e.message.is_empty() && in_text(e.place, source), "{e}");
            }
        }
    }
}

fn context(values: Value) -> Context {
    Context::default()
        .with("inputs", values)
        .with("env", json!({ "list": [1, 2, 3], "text": "a${{b", "map": { "a": 1 }, "n": -1, "f": 0.5, "none": null }))
        .with("host", json!({ "name": "web-1", "labels": { "zone": "a" } }))
}

/// Up to the first line end an expression, then the inputs as JSON.
///
/// It is computed the same twice and from its own source again; what it reads are roots it says it reads; its value is
/// bounded; a condition is true or false or refused.
pub(crate) fn expression(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let (source, values) = source.split_once('\n').unwrap_or((source, "{}"));
    let context = context(serde_json::from_str(values).unwrap_or_else(|_| json!({})));
    let Ok(e) = Expression::compile(source) else { return };
    let again = Expression::compile(e.source()).expect("its own source");
    assert_eq!((e.roots(), e.paths()), (again.roots(), again.paths()));
    assert!(e.paths().iter().all(|p| p.first().is_some_and(|r| e.roots().contains(r))));
    let value = e.eval(&context);
    // The plant: a cache that gives what was computed for others.
    let again = if planted() && e.reads("env") { Ok(json!(1)) } else { again.eval(&context) };
    // What is wrong may be told in other words: they show maps in the evaluator's order.
    assert_eq!(value.as_ref().ok(), again.as_ref().ok());
    match value {
        Ok(v) => {
            assert!(v.to_string().len() <= 2 * MAX_RESULT, "{} bytes", v.to_string().len());
            assert_eq!(e.eval_bool(&context).ok(), v.as_bool());
        }
        Err(wrong) => assert!(!wrong.to_string().is_empty() && e.eval_bool(&context).is_err()),
    }
}

/// The bytes are a template.
///
/// A text without `${{` is itself, and any text is what its escaped form renders to. What is computed is put in as it is: it
/// is never read as a template again.
pub(crate) fn template(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let context = context(json!({ "any": source }));
    if !source.contains("${{") {
        assert_eq!(render(source, &context).as_ref().map(Value::as_str), Ok(Some(source)));
    }
    let escaped = source.replace("${{", "$${{");
    let literal = render(&escaped, &context);
    assert_eq!(literal.as_ref().map(Value::as_str), Ok(Some(source)));
    if source.len() < 4096 {
        // The plant: what came in is rendered once more.
        let twice =
            |v: Value| if planted() { render(v.as_str().unwrap_or_default(), &context).unwrap_or_default() } else { v };
        let carried = render("<${{ inputs.any }}>", &context).map(twice);
        assert_eq!(carried, Ok(json!(format!("<{source}>"))));
    }
    if let Ok(t) = Template::compile(&json!({ "a": [source] })) {
        assert_eq!(t.render(&context).ok(), t.render(&context).ok());
        assert!(t.fixed().is_none() || (t.expressions().is_empty() && t.references().is_empty()));
    }
}

/// Two bytes: how many hosts. The rest is a wave expression.
///
/// It is read from what it is shown as; its waves add up, none is empty, and there are no more than allowed.
pub(crate) fn wave(bytes: &[u8]) {
    let (high, rest) = choice(bytes);
    let (low, rest) = choice(rest);
    let total = u32::from(high) << 8 | u32::from(low);
    let Some(Ok(e)) = text(rest).map(str::parse::<WaveExpression>) else { return };
    let again: WaveExpression = e.to_string().parse().expect("reads what it shows");
    assert_eq!(again, e);
    let Ok(mut sizes) = e.sizes(total) else { return };
    // The plant: the last host is forgotten where waves double.
    if planted()
        && e.to_string().contains('*')
        && let Some(last) = sizes.last_mut()
    {
        *last -= 1;
    }
    assert!(sizes.len() <= MAX_WAVES && sizes.iter().all(|s| *s > 0));
    assert_eq!(sizes.iter().sum::<u32>(), total);
}

/// The bytes are a selector. It is read from what it is shown as, and picks the same hosts.
pub(crate) fn selector(bytes: &[u8]) {
    let Some(source) = text(bytes) else { return };
    let Ok(s) = source.parse::<Selector>() else { return };
    let mut shown = s.to_string();
    // The plant: `!=` written as `=`.
    if planted() {
        shown = shown.replace("!=", "=");
    }
    let again: Selector = shown.parse().unwrap_or_else(|e| panic!("{shown:?}, from {source:?}: {e}"));
    assert_eq!(again, s, "{shown:?}");
    let words: Vec<&str> = source.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    for pair in words.windows(2) {
        let labels = BTreeMap::from([(pair[0].to_owned(), pair[1].to_owned())]);
        assert_eq!(s.matches(&labels), again.matches(&labels));
    }
}
