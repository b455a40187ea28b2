//! What is sent to a Windows host: the scripts are held against a parser of PowerShell, the rest is taken apart again and must
//! give what went in. No PowerShell runs here.

use super::{
    generate::{BOOTSTRAP, HOST, b64, digest, encoded, first_line, run_spec, start_command},
    wire::{LogLine, lines},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_domain::{
    catalog::{Item, read},
    task::{TaskSpec, TaskStep},
};

fn syntax_errors(script: &str) -> Vec<String> {
    let mut parser = tree_sitter::Parser::new();
    parser.set_language(&tree_sitter_powershell::LANGUAGE.into()).expect("the grammar fits the library");
    let tree = parser.parse(script, None).expect("parses");
    let (mut open, mut wrong) = (vec![tree.root_node()], Vec::new());
    while let Some(n) = open.pop() {
        if n.is_error() || n.is_missing() {
            wrong.push(format!("line {}: {}", n.start_position().row + 1, n.kind()));
        }
        let mut children = n.walk();
        open.extend(n.children(&mut children));
    }
    wrong
}

#[test]
fn the_scripts_are_powershell_that_reads_the_same_everywhere() {
    for (name, script) in [("bootstrap.ps1", BOOTSTRAP), ("host.ps1", HOST)] {
        assert_eq!(syntax_errors(script), Vec::<String>::new(), "{name}");
        assert!(script.is_ascii(), "{name}: PowerShell 5.1 reads other characters in the machine's code page");
        // PowerShell reads standard input itself for a script that names this variable.
        assert!(!script.to_lowercase().contains("$input"), "{name}");
        assert!(!script.contains("Invoke-Expression") && !script.contains("iex "), "{name}: no text becomes code");
    }
    // The parser is one that finds mistakes.
    assert!(!syntax_errors(&HOST.replacen("if (", "if ", 1)).is_empty());
    assert!(!syntax_errors(&HOST.replacen('}', "", 1)).is_empty());
}

#[test]
fn the_flow_for_net_on_windows_is_powershell() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops/flows/dotnet-windows.yaml");
    let items = read(&std::fs::read_to_string(path).expect("the flow library")).expect("reads");
    let Item::Flow { flow, .. } = &items[0].item else { panic!("a flow") };
    let (mut open, mut scripts) = (vec![serde_json::to_value(flow).expect("JSON")], 0);
    while let Some(v) = open.pop() {
        if let Some(run) = v.get("run").and_then(Value::as_str) {
            assert_eq!(syntax_errors(run), Vec::<String>::new(), "{run}");
            scripts += 1;
        }
        match v {
            Value::Object(m) => open.extend(m.into_iter().map(|(_, v)| v)),
            Value::Array(a) => open.extend(a),
            _ => {}
        }
    }
    assert_eq!(scripts, 4);
}

/// What PowerShell makes of the argument of `-EncodedCommand`.
fn decoded(argument: &str) -> String {
    let bytes = STANDARD.decode(argument).expect("base64");
    let units: Vec<u16> = bytes.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
    String::from_utf16(&units).expect("UTF-16")
}

#[test]
fn the_start_command_is_constant_and_holds_nothing_a_shell_would_act_on() {
    let command = start_command().expect("short enough");
    let plain = |c: char| c.is_ascii_alphanumeric() || " .-+/=".contains(c);
    assert!(command.chars().all(plain), "{command}");
    assert_eq!(decoded(command.rsplit(' ').next().expect("an argument")), BOOTSTRAP);
    assert_eq!(encoded("dir \"c:\\\""), "ZABpAHIAIAAiAGMAOgBcACIA");
}

#[test]
fn the_first_line_names_the_places_and_the_script() {
    let text = "kind: host\nname: h\naddress: a\nssh: { account: me, key: k, host_key: ssh-ed25519 \
                AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ, root: C:/srv/a, shell: powershell, untested: true }\n";
    let items = read(text).expect("reads");
    let Item::Host(h) = &items[0].item else { panic!("a host") };
    let line = first_line(h.ssh.as_ref().expect("ssh"));
    let parts: Vec<&str> = line.split(' ').collect();
    assert_eq!(parts, [b64(".windlass-agent"), b64("C:/srv/a"), digest()]);
}

fn spec(steps: Vec<TaskStep>) -> TaskSpec {
    TaskSpec {
        project: "p".into(),
        environment: "e".into(),
        version: "1".into(),
        host: "h".into(),
        step: "rollout".into(),
        segment: 0,
        steps,
    }
}

fn script(run: &str, env: &[(String, String)]) -> TaskStep {
    let env: serde_json::Map<String, Value> = env.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let Value::Object(with) = json!({ "run": run, "interpreter": "powershell.exe", "args": [], "env": env }) else {
        panic!("a map")
    };
    TaskStep { id: "s".into(), action: "script".into(), with, always: true, timeout_s: 9 }
}

fn text(v: &Value) -> String {
    String::from_utf8(STANDARD.decode(v.as_str().expect("text")).expect("base64")).expect("UTF-8")
}

/// Texts as somebody would write who wants to leave the quotes.
fn hostile() -> impl Strategy<Value = String> {
    let nasty = prop::sample::select(vec![
        "'",
        "''",
        "\"",
        "`",
        "$(calc)",
        "${x}",
        "\r\n",
        "\n",
        ";",
        "|",
        "&",
        "--",
        "-",
        "%PATH%",
        "^",
        "@'\n",
        "\n'@",
        "#>",
        "<#",
        "\u{2018}",
        "\u{2019}",
        "\u{201C}",
        "\u{FEFF}",
        "\u{1F680}",
        "\u{85}",
        "\u{2028}",
        "\\",
        " ",
        "\t",
        "日本",
        "{0}",
        "{{",
        "",
    ]);
    prop::collection::vec(prop_oneof![nasty.prop_map(str::to_owned), "[^\0\u{FDD0}\u{FDD1}]{0,6}"], 0..12)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn every_text_reaches_the_host_as_it_was_written(run in hostile(), key in "[A-Za-z_][A-Za-z0-9_() ]{0,8}", value in hostile()) {
        let made = run_spec(&spec(vec![script(&run, &[(key.clone(), value.clone())])]), 0, &[("WL".into(), value.clone())]);
        let sent = serde_json::to_string(&made.expect("fits")).expect("JSON");
        // One line of plain ASCII whatever was written: nothing in it could be taken for the end of it.
        prop_assert!(sent.is_ascii() && !sent.contains('\n') && !sent.contains('\''));
        let read: Value = serde_json::from_str(&sent).expect("JSON");
        let step = &read["steps"][0];
        prop_assert_eq!(text(&step["script"]), run);
        let env: Vec<(String, String)> = step["env"].as_array().expect("a list").iter().map(|e| (text(&e["k"]), text(&e["v"]))).collect();
        prop_assert!(env.contains(&(key, value.clone())) && env.contains(&("WL".into(), value)));
        prop_assert_eq!((&step["always"], &step["timeout_s"], &step["kind"]), (&json!(true), &json!(9), &json!("script")));
    }

    #[test]
    fn nul_is_refused_wherever_it_stands(before in hostile(), after in hostile()) {
        let bad = format!("{before}\0{after}");
        let in_script = run_spec(&spec(vec![script(&bad, &[])]), 0, &[]);
        let in_value = run_spec(&spec(vec![script("exit 0", &[("A".into(), bad)])]), 0, &[]);
        prop_assert!(in_script.is_err_and(|e| e.contains("NUL")) && in_value.is_err_and(|e| e.contains("NUL")));
    }

    #[test]
    fn an_encoded_script_decodes_to_itself(text in hostile()) {
        prop_assert_eq!(decoded(&encoded(&text)), text);
    }

    #[test]
    fn lines_come_whole_however_they_are_cut(cut in 0usize..400) {
        let one = |n: u32| format!("{{\"step\":{n},\"stream\":\"out\",\"at\":\"2026-11-21T01:02:03Z\",\"data\":\"\"}}\n");
        let all = one(0) + &one(1) + "damaged\n" + &one(2);
        let cut = cut.min(all.len());
        let (first, length) = lines::<LogLine>(&all.as_bytes()[..cut]);
        let (rest, more) = lines::<LogLine>(&all.as_bytes()[length..]);
        prop_assert_eq!(length + more, all.len());
        let steps: Vec<Option<u32>> = first.into_iter().chain(rest).map(|l| l.map(|l| l.step)).collect();
        prop_assert_eq!(steps, [Some(0), Some(1), None, Some(2)]);
    }
}

#[test]
fn a_script_s_own_environment_wins_and_what_is_not_built_is_refused() {
    let own = run_spec(&spec(vec![script("", &[("A".into(), "own".into())])]), 0, &[("A".into(), "given".into())]);
    let read = serde_json::to_value(own.expect("fits")).expect("JSON");
    assert_eq!(read["steps"][0]["env"].as_array().map(Vec::len), Some(1));
    assert_eq!(text(&read["steps"][0]["env"][0]["v"]), "own");
    let mut fetch = script("", &[]);
    fetch.action = "artifact.fetch".into();
    let refused = run_spec(&spec(vec![fetch]), 0, &[]).expect_err("refused");
    assert!(refused.contains("`artifact.fetch` is not built"), "{refused}");
}
