//! Tests of inputs: every rule says no with what to give, and files are what they say they are.

use super::*;
use crate::flow::InputRules;

fn input(kind: InputKind, rules: InputRules) -> Input {
    Input { kind, default: None, options: vec!["a".into(), "b".into()], description: String::new(), rules }
}

fn refusal(i: &Input, v: Value) -> String {
    i.check(&v).expect_err("must not fit")
}

#[test]
fn every_rule_says_what_to_give() {
    let none = InputRules::default;
    let text = input(InputKind::String, InputRules { min_length: Some(2), max_length: Some(3), ..none() });
    assert_eq!(text.check(&json!("äöü")), Ok(()), "characters, not bytes");
    assert!(refusal(&text, json!("a")).contains("at least 2 characters, not 1"));
    assert!(refusal(&text, json!("abcd")).contains("at most 3 characters, not 4"));
    assert!(refusal(&text, json!(1)).contains("must be text"));
    assert!(refusal(&text, json!("a\0b")).contains("NUL"));
    let plain = input(InputKind::String, none());
    assert!(refusal(&plain, json!("x".repeat(4097))).contains("4096 bytes"));

    let matched = input(InputKind::String, InputRules { pattern: Some("[a-z]+|9".into()), ..none() });
    assert_eq!(matched.check(&json!("abc")), Ok(()));
    assert!(refusal(&matched, json!("abc1")).contains("`[a-z]+|9`"), "the whole text");
    assert!(refusal(&matched, json!("19")).contains("pattern"), "both sides of `|`");
    assert!(refusal(&matched, json!("abc\n")).contains("pattern"), "also its end");

    let number = input(InputKind::Number, InputRules { min: Some(1.0), max: Some(9.5), ..none() });
    assert_eq!(number.check(&json!(9.5)), Ok(()));
    assert!(refusal(&number, json!(0)).contains("at least 1, not 0"));
    assert!(refusal(&number, json!(10)).contains("at most 9.5, not 10"));
    assert!(refusal(&number, json!("1")).contains("must be a number"));
    assert!(refusal(&input(InputKind::Boolean, none()), json!("true")).contains("true or false"));
    assert!(refusal(&input(InputKind::Choice, none()), json!("c")).contains("one of a, b"));

    let selector = input(InputKind::HostSelector, none());
    assert_eq!(selector.check(&json!("role in (web), !old")), Ok(()));
    assert!(refusal(&selector, json!("role=")).contains("character 6"));
    assert!(refusal(&selector, json!(true)).contains("selector"));
}

#[test]
fn a_secret_is_plain_only_where_it_comes_in_and_never_told() {
    let rules = InputRules { min_length: Some(8), pattern: Some("[a-z]+".into()), ..InputRules::default() };
    let secret = input(InputKind::Secret, rules);
    assert_eq!(secret.check(&json!({ "secret": "input.token" })), Ok(()));
    assert_eq!(secret.check_given(&json!("longenough")), Ok(()));
    for wrong in [json!("hunter2hunter2"), json!({ "secret": 1 }), json!({ "secret": "a", "more": 1 })] {
        let said = refusal(&secret, wrong);
        assert!(said.contains("sealed") && !said.contains("hunter2"), "{said}");
    }
    let said = secret.check_given(&json!("HUNTER2HUNTER2")).expect_err("pattern");
    assert!(said.contains("pattern") && !said.contains("HUNTER2"), "{said}");
}

#[test]
fn files_are_what_they_say_they_are() {
    let file = input(InputKind::File, InputRules::default());
    let good = file_value("app.conf", b"port=1\n");
    assert_eq!(file.check(&good), Ok(()));
    let with = |key: &str, v: Value| {
        let mut f = good.clone();
        f[key] = v;
        refusal(&file, f)
    };
    assert!(with("size", json!(8)).contains("`size`"));
    assert!(with("sha256", json!("0".repeat(64))).contains("`sha256`"));
    assert!(with("content", json!("%")).contains("base64"));
    assert!(with("name", json!("../etc/passwd")).contains("without directories"));
    assert!(with("more", json!(1)).contains("content, name, sha256, size"));
    assert!(refusal(&file, json!("text")).contains("@path"));
    assert!(refusal(&file, file_value("big", &vec![b'x'; 64 * 1024 + 1])).contains("at most 65536 bytes"));
    assert_eq!(file.check(&file_value("most", &vec![b'x'; 64 * 1024])), Ok(()));
    let small =
        input(InputKind::File, InputRules { max_length: Some(3), min_length: Some(2), ..InputRules::default() });
    assert!(refusal(&small, file_value("x", b"abcd")).contains("at most 3 bytes"));
    assert!(refusal(&small, file_value("x", b"a")).contains("at least 2 bytes"));
}

#[test]
fn what_is_optional_may_be_left_out() {
    let optional = input(InputKind::Number, InputRules { optional: true, min: Some(1.0), ..InputRules::default() });
    assert_eq!(optional.value(None), Ok(Value::Null));
    assert_eq!(optional.value(Some(&Value::Null)), Ok(Value::Null));
    assert_eq!(optional.value(Some(&json!(2))), Ok(json!(2)));
    assert!(optional.value(Some(&json!(0))).is_err());
    let needed = input(InputKind::Number, InputRules::default());
    assert_eq!(needed.value(None), Err(None));
}

#[test]
fn patterns_are_bounded() {
    assert!(pattern("a)(b").expect_err("unbalanced").contains("regular expression"));
    assert!(pattern("[").is_err());
    assert!(pattern(&"a".repeat(1001)).expect_err("long").contains("1000"));
    assert!(pattern(r"(\w{1000}){1000}").is_err(), "too much memory");
}
