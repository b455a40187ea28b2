//! Texts that shells obey, on every way into a script of a real bash and into a file: each arrives byte for byte, or the step is
//! refused with a reason. None of them runs.

use crate::control::{Control, step};
use serde_json::{Map, Value, json};
use windlass_domain::task::{ReportedOutcome, StepOutcome};
use windlass_testkit::hostile_strings;

/// Writes each argument, each `V<n>` and what is typed as hex, a line each.
const SHOW: &str = r#"
show() { printf '%s' "$1" | od -An -v -tx1 | tr -d ' \n'; echo; }
for a in "$@"; do show "$a"; done
for ((n = 0; n < $#; n++)); do v="V$n"; show "${!v}"; done
od -An -v -tx1 | tr -d ' \n'; echo
"#;

/// Gives each argument back as an output, in the form for values of many lines.
const GIVE: &str = r#"
n=0
for a in "$@"; do printf 'k%d<<END-OF-%d\n%s\nEND-OF-%d\n' "$n" "$n" "$a" "$n" >>"$WINDLASS_OUTPUT"; n=$((n + 1)); done
"#;

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test]
async fn every_text_reaches_bash_and_files_as_it_is() {
    let mut c = Control::started().await;
    // What marks references is refused in everything people write; a task with such a text waits for a secret.
    let all = hostile_strings().into_iter().filter(|t| !t.contains('\u{fdd0}'));
    let (nul, texts): (Vec<String>, Vec<String>) = all.partition(|t| t.contains('\0'));
    let mut carried = 0;

    let env: Map<String, Value> = texts.iter().enumerate().map(|(n, t)| (format!("V{n}"), json!(t))).collect();
    let typed = texts.concat();
    let with = json!({ "run": SHOW, "args": &texts, "env": env, "stdin": &typed });
    let ran = c.run(vec![step("s", "script", with)]).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?} {}", ran.report, ran.text());
    let text = ran.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), texts.len() * 2 + 1);
    for (n, t) in texts.iter().enumerate() {
        assert_eq!(lines[n], hex(t), "argument {t:?}");
        assert_eq!(lines[texts.len() + n], hex(t), "environment {t:?}");
        carried += 2;
    }
    assert_eq!(lines[texts.len() * 2], hex(&typed));
    carried += texts.len();

    // Outputs: line ends are one kind; nothing else changes.
    for some in texts.iter().filter(|t| t.len() <= 4096).collect::<Vec<_>>().chunks(60) {
        let ran = c.run(vec![step("s", "script", json!({ "run": GIVE, "args": some }))]).await;
        assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?}", ran.report);
        let outputs = serde_json::to_value(&ran.report.steps[0].outputs).expect("writes");
        for (n, t) in some.iter().enumerate() {
            let wanted = t.replace("\r\n", "\n");
            let wanted = wanted.strip_suffix('\r').unwrap_or(&wanted);
            assert_eq!(outputs[format!("k{n}")], json!(wanted), "output {t:?}");
            carried += 1;
        }
    }

    for (i, some) in texts.chunks(40).enumerate() {
        let put = |n: usize, t: &String| {
            step(&format!("p{n}"), "file.put", json!({ "path": format!("f{i}-{n}"), "content": t }))
        };
        let ran = c.run(some.iter().enumerate().map(|(n, t)| put(n, t)).collect()).await;
        assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?}", ran.report);
        for (n, t) in some.iter().enumerate() {
            let found = std::fs::read(c.root().join("shared").join(format!("f{i}-{n}"))).expect("the file");
            assert_eq!(found, t.as_bytes(), "content {t:?}");
            carried += 1;
        }
    }

    // As names of files: written below the root under exactly that name, or refused.
    let (mut refused, top) = (0, c.root().join("shared"));
    let before = std::fs::read_dir(&top).expect("the folder").count();
    for t in texts.iter().filter(|t| !t.starts_with('/')) {
        let ran = c.run(vec![step("p", "file.put", json!({ "path": format!("names/{t}"), "content": "x" }))]).await;
        match ran.report.outcome {
            ReportedOutcome::Succeeded => {
                let found = std::fs::read_to_string(top.join("names").join(t));
                assert_eq!(found.as_deref().ok(), Some("x"), "path {t:?}");
                carried += 1;
            }
            _ => {
                assert!(!ran.report.steps[0].message.is_empty(), "path {t:?}");
                refused += 1;
            }
        }
    }
    assert_eq!(std::fs::read_dir(&top).expect("the folder").count(), before + 1, "all of them are below `names`");

    // NUL cannot be an argument, a variable or a path: the step says so.
    for t in &nul {
        for with in [
            json!({ "run": "true", "args": [t] }),
            json!({ "run": "true", "env": { "V": t } }),
            json!({ "run": "true", "cwd": t }),
        ] {
            let ran = c.run(vec![step("s", "script", with)]).await;
            assert_eq!(ran.report.steps[0].outcome, StepOutcome::Failed, "{t:?}: {:?}", ran.report);
            assert!(!ran.report.steps[0].message.is_empty());
            refused += 1;
        }
    }
    for at in [c.root(), c.state(), c.dir.path().to_owned(), std::env::current_dir().expect("a directory")] {
        assert!(!at.join("windlass-pwned").exists(), "a text ran in {}", at.display());
    }
    eprintln!("injection: {carried} carried to bash, outputs and files, {refused} refused, 0 ran");
    assert!(carried > 900 && refused > 5);
}
