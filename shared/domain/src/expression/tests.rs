//! What expressions give, what they refuse, and that they end.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn context() -> Context {
    Context::default()
        .with("inputs", json!({"restart": true, "count": 3, "ratio": 0.5, "name": "a${{b}}c", "none": null}))
        .with("env", json!({"domain": "shop.example", "list": [1, 2, 3], "words": ["a", "bb"], "port": 8080}))
        .with("host", json!({"name": "web-1", "labels": {"zone": "a"}, "values": {}}))
}

#[test]
fn conditions() {
    for (source, expected) in [
        ("inputs.restart", true),
        ("!inputs.restart || inputs.count > 2", true),
        ("host.labels.zone == 'a'", true),
        ("has(host.labels.gpu)", false),
        ("'gpu' in host.labels", false),
        ("env.list.exists(x, x == 2)", true),
        ("env.list.all(x, x < inputs.count)", false),
        ("env.list.exists_one(x, x > 2)", true),
        ("size(env.words.filter(w, size(w) > 1)) == 1", true),
        ("env.domain.startsWith('shop')", true),
        ("env.domain.matches('^s.*e$')", true),
        ("inputs.count == 3.0", true),
        ("inputs['restart']", true),
    ] {
        assert_eq!(eval_bool(source, &context()), Ok(expected), "{source}");
    }
}

#[test]
fn roots_and_fields_are_found() {
    let e = Expression::compile("inputs.a == host.name && env['b'] == 1 && env.list.exists(host2, host2 == inputs.c)")
        .expect("compiles");
    assert_eq!(e.roots().iter().map(String::as_str).collect::<Vec<_>>(), ["env", "host", "inputs"]);
    let fields: Vec<String> = e.fields().iter().map(|(r, f)| format!("{r}.{f}")).collect();
    assert_eq!(fields, ["env.b", "env.list", "host.name", "inputs.a", "inputs.c"]);
    assert!(references("host.name", "host") && !references("env.host", "host") && !references("((", "host"));
    assert_eq!(check("1 + 1"), Ok(BTreeSet::new()));
}

#[test]
fn errors_name_the_expression_and_the_reason() {
    let c = context();
    let error = |s: &str| eval_bool(s, &c).expect_err(s).to_string();
    assert!(error("inputs.restart ==").contains("inputs.restart =="));
    assert!(error("inputs.missing").contains("inputs.missing"), "{}", error("inputs.missing"));
    assert!(error("nothing.here").contains("there is no `nothing` here; there are: env, host, inputs"));
    assert!(error("inputs.count").contains("must be true or false, but is the number 3"));
    assert!(error("1 / 0 == 1").contains("cannot be computed"));
    assert!(error("now() == 1").contains("now"));
    assert!(error("").contains("empty"));
    assert!(error(&"a".repeat(1025)).contains("longer than"));
    assert!(render("x ${{ env.list }}", &c).expect_err("list").to_string().contains("cannot be written into text"));
    assert!(render("ab ${{ env.list", &c).expect_err("open").to_string().contains("character 4"));
}

#[test]
fn one_expression_keeps_its_type_and_several_make_text() {
    let c = context();
    for (template, expected) in [
        ("${{ inputs.count }}", json!(3)),
        ("${{inputs.restart}}", json!(true)),
        ("${{ env.list }}", json!([1, 2, 3])),
        ("${{ inputs.none }}", json!(null)),
        ("${{ 'x' }}", json!("x")),
        (" ${{ inputs.count }}", json!(" 3")),
        ("http://${{ host.name }}:${{ env.port }}/", json!("http://web-1:8080/")),
        ("${{ {'a': {'b': '}}'}}.a.b }}", json!("}}")),
        ("plain $ {{ }}", json!("plain $ {{ }}")),
        ("$${{ literal }}", json!("${{ literal }}")),
        ("$$${{ literal }}", json!("$${{ literal }}")),
        // What a value holds is never read as an expression.
        ("<${{ inputs.name }}>", json!("<a${{b}}c>")),
        ("", json!("")),
    ] {
        assert_eq!(render(template, &c), Ok(expected), "{template}");
    }
    let deep = json!({"a": ["${{ inputs.count }}", {"b": "x${{ env.port }}"}], "c": 1});
    assert_eq!(render_value(&deep, &c), Ok(json!({"a": [3, {"b": "x8080"}], "c": 1})));
}

#[test]
fn escaped_values_render_to_themselves() {
    for s in ["${{ host.name }}", "$${{ a }}", "a $$$${{ b", "${{", "$", "${{${{"] {
        let v = json!({ "k": [s] });
        assert_eq!(render_value(&template::escape(&v), &context()), Ok(v), "{s}");
    }
}

/// Runs on half the stack of a worker thread.
fn on_small_stack<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(f).expect("a thread");
    thread.join().expect("no panic and no overflow")
}

#[test]
fn costly_expressions_are_refused_or_cheap() {
    let list = format!("[{}]", vec!["1"; 60].join(","));
    let nested = format!("{list}.all(a, {list}.all(b, {list}.all(c, true)))");
    let c = context();
    for (source, word) in [
        (nested, "loop"),
        ("[1,2].map(x, x * 2)".into(), "map"),
        ("[1,2].map(x, x > 1, x * 2)".into(), "map"),
        (vec!["env.domain"; 18].join("+"), "more than 16"),
        ("env.list.all(x, x + x + x + x > 1)".into(), "twice in loops"),
        ("(env.list + env.list).all(x, x > 1)".into(), "made with `+`"),
        ("env.words.all(w, w.matches('a'))".into(), "loop"),
        (vec!["1"; 30].join("*"), "deeper than 20"),
        ("env.domain.matches(env.domain)".into(), "literal"),
        ("env.domain.matches('(a{1000}){1000}')".into(), "literal"),
        ("(".repeat(500), "deeper"),
        ("true?1:".repeat(100) + "1", "`?`"),
    ] {
        let e = eval(&source, &c).expect_err(&source);
        assert!(e.to_string().contains(word), "{source}: {e}");
    }
    type Shape = fn(usize) -> String;
    let shapes: [Shape; 10] = [
        |n| "!".repeat(n) + "true",
        |n| "-".repeat(n) + "1",
        |n| vec!["1"; n].join("*"),
        |n| "env".to_string() + &".b".repeat(n),
        |n| vec!["true"; n].join("&&"),
        |n| "[".repeat(n) + &"]".repeat(n),
        |n| "env".to_string() + &".b()".repeat(n),
        |n| vec!["1"; n].join("=="),
        |n| "true?1:".repeat(n) + "1",
        |n| "(".repeat(n) + "1" + &")".repeat(n),
    ];
    for shape in shapes {
        for n in (1..60).chain([100, 250, 500]) {
            let (c, source) = (c.clone(), shape(n));
            let begun = std::time::Instant::now();
            on_small_stack(move || drop(eval(&source, &c)));
            assert!(begun.elapsed().as_secs() < 3);
        }
    }
}

#[test]
fn large_values_are_not_looped_over() {
    let big = Context::default().with("env", json!({"l": vec![1; 2000], "t": "x".repeat(40_000)}));
    assert!(eval("env.l.exists(x, x == 2)", &big).expect_err("many").to_string().contains("1000"));
    assert_eq!(eval("env.l[3]", &big), Ok(json!(1)));
    assert!(eval("env.t + env.t", &big).expect_err("large").to_string().contains("larger than"));
    let huge = Context::default().with("env", json!({"t": "x".repeat(5 << 20)}));
    assert!(eval("size(env.t)", &huge).expect_err("huge").to_string().contains("limit"));
}

#[test]
fn compiled_templates_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Template>();
    shared::<Context>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        let _ = eval(&text, &context());
        let _ = render(&text, &context());
    }

    #[test]
    fn near_texts_are_answered(text in "(inputs|env|host|[a-z]|[0-9]|\\.|\\(|\\)|\\[|\\]|\\{|\\}|\\?|:|,|'|\"|\\+|-|!|&&|==| in |exists|all|\\$\\{\\{|\\}\\}| ){0,40}") {
        let _ = eval(&text, &context());
        let _ = render(&text, &context());
    }
}
