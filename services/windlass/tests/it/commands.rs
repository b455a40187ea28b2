//! The client's commands against an installation that runs: what they print, and what came of them.

use super::{PATIENCE, Up, code_and_text};
use serde_json::Value;
use std::{path::PathBuf, process::Command};
use windlass_testkit::eventually;

const CATALOG: &str = r#"
kind: project
name: shop
group: demo
---
kind: project
name: pay
group: demo
---
kind: host
name: h1
address: 127.0.0.1
---
kind: flow
project: shop
flow: quick
steps:
  - { id: rest, uses: wait, with: { for: 1s } }
---
kind: flow
project: shop
flow: slow
steps:
  - { id: rest, uses: wait, with: { for: 10m }, timeout: 20m }
---
kind: flow
project: pay
flow: quick
steps:
  - { id: rest, uses: wait, with: { for: 1s } }
---
kind: environment
project: shop
name: beta
hosts: [h1]
flow: quick
---
kind: environment
project: shop
name: online
hosts: [h1]
flow: slow
---
kind: environment
project: pay
name: beta
hosts: [h1]
flow: quick
"#;

/// The client of an installation.
struct Client {
    program: PathBuf,
    dir: PathBuf,
}

impl Client {
    fn new(up: &Up) -> Client {
        let (code, text) = up.start();
        assert_eq!(code, 0, "{text}");
        let c = Client { program: up.state().join("bin/windlass"), dir: up.dir.path().to_owned() };
        let catalog = c.file("catalog.yaml", CATALOG);
        c.ok(&["apply", "-f", &catalog]);
        c
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.join(name);
        std::fs::write(&path, text).expect("writes");
        path.display().to_string()
    }

    fn ask(&self, args: &[&str]) -> (i32, String) {
        code_and_text(Command::new(&self.program).args(args).current_dir("/").output().expect("runs"))
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, text) = self.ask(args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    }

    fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
    }

    fn release(&self, project: &str, version: &str) {
        let digest = format!("sha256:{}", "a".repeat(64));
        self.ok(&[
            "release",
            project,
            "--version",
            version,
            "--url",
            "https://ci.example/x.tar.gz",
            "--digest",
            &digest,
        ]);
    }

    fn deploy(&self, project: &str, environment: &str, version: &str) -> String {
        let d = self.json(&["deploy", project, environment, "--version", version]);
        d["new_deployment"].as_str().unwrap_or_else(|| panic!("{d}")).to_owned()
    }

    /// The deployment's status once it says this.
    async fn until(&self, id: &str, words: &str) -> String {
        eventually(PATIENCE, words, async || Some(self.ok(&["status", id])).filter(|t| t.contains(words))).await
    }
}

#[tokio::test]
async fn people_step_in_from_the_command_line() {
    let up = Up::new();
    let c = Client::new(&up);
    c.release("shop", "1.0.0");
    let id = c.deploy("shop", "online", "1.0.0");
    let why = ["--reason", "it hangs"];
    c.until(&id, "state       running").await;
    let text = c.ok(&["doctor", "run", &id]);
    assert!(text.contains("Nothing is wrong") && text.contains("step rest"), "{text}");

    c.ok(&[&["fail", &id, "--step", "rest"], &why[..]].concat());
    let text = c.until(&id, "deadline").await;
    assert!(text.contains("rest") && text.contains("waiting     a person"), "{text}");
    let text = c.ok(&["doctor", "run", &id]);
    assert!(text.contains("action  waits_for_person"), "{text}");
    c.ok(&["claim", &id]);
    let text = c.ok(&["status", &id]);
    assert!(text.contains("claimed     by admin"), "{text}");
    c.ok(&["unclaim", &id]);
    c.ok(&["retry", &id, "--step", "rest"]);
    c.until(&id, "state       running").await;
    c.ok(&[&["fail", &id, "--step", "rest"], &why[..]].concat());
    c.until(&id, "deadline").await;
    c.ok(&["succeed", &id, "--step", "rest", "--reason", "seen by eye"]);
    c.until(&id, "state       succeeded").await;
    assert!(c.ok(&["doctor", "run", &id]).contains("it has ended succeeded"));

    // What is asked for in the wrong way is told before anything is sent, or by the server with its reason.
    assert_eq!(c.ask(&["succeed", &id, "--reason", "r"]).0, 2);
    assert_eq!(c.ask(&["claim", &id, "--take-over"]).0, 2);
    assert_eq!(c.ask(&["retry", &id, "--input", "n=3"]).0, 2);
    assert_eq!(c.ask(&["rollback", &id, "--from-phase", "never"]).0, 2);
    let (code, text) = c.ask(&["stop", &id, "--host", "h1", "--reason", "r"]);
    assert_ne!(code, 0, "{text}");
    let (code, text) = c.ask(&["doctor", "run", &id, "--apply"]);
    assert!(code != 0 && text.contains("nothing was found"), "{text}");
}

#[tokio::test]
async fn what_is_said_about_versions_is_set_shown_and_removed() {
    let up = Up::new();
    let c = Client::new(&up);
    c.release("shop", "1.0.0");
    assert!(c.ok(&["hold", "show", "shop"]).contains("no environment is held"));
    c.ok(&["hold", "set", "shop", "beta", "--reason", "db is moving"]);
    assert!(c.ok(&["hold", "show", "shop", "beta"]).contains("db is moving"));
    c.ok(&["veto", "shop", "1.0.0", "--reason", "leaks"]);
    c.ok(&["pin", "shop", "0.9.0", "--environment", "online", "--reason", "fair"]);
    let text = c.ok(&["marks", "shop"]);
    assert!(text.contains("leaks") && text.contains("online") && text.contains("db is moving"), "{text}");
    let (code, text) = c.ask(&["deploy", "shop", "beta", "--version", "1.0.0"]);
    assert!(code != 0 && text.contains("leaks"), "{text}");
    c.ok(&["unveto", "shop", "1.0.0"]);
    c.ok(&["unpin", "shop", "0.9.0", "--environment", "online"]);
    assert_ne!(c.ask(&["unpin", "shop", "0.9.0"]).0, 0, "there is none any more");
    c.ok(&["hold", "release", "shop", "beta"]);
    let text = c.ok(&["marks", "shop"]);
    assert!(text.contains("no version is vetoed or pinned") && !text.contains("db is moving"), "{text}");
    let id = c.deploy("shop", "beta", "1.0.0");
    c.until(&id, "state       succeeded").await;
}

#[tokio::test]
async fn bundles_promotion_and_history_are_used_from_the_command_line() {
    let up = Up::new();
    let c = Client::new(&up);
    c.release("shop", "1.0.0");
    c.release("pay", "2.0.0");

    let members = "title: both\nmembers:\n  - { name: pay, project: pay, environment: beta, version: 2.0.0 }\n  \
                   - { name: shop, project: shop, environment: beta, version: 1.0.0, needs: [pay] }\n";
    let file = c.file("bundle.yaml", members);
    let made = c.json(&["bundle", "create", "--file", &file]);
    let id = made["bundle"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    let ended = async || Some(c.ok(&["bundle", "show", &id])).filter(|t| t.contains("both  succeeded"));
    let text = eventually(PATIENCE, "the bundle succeeds", ended).await;
    assert!(text.contains("shop/beta") && text.contains("pay/beta"), "{text}");
    assert!(c.ok(&["bundle", "list"]).contains("shop:succeeded"));
    for verb in ["cancel", "pause"] {
        let (code, text) = c.ask(&["bundle", verb, &id, "--reason", "r"]);
        assert!(code != 0 && !text.is_empty(), "{verb} of what has ended: {text}");
    }

    assert!(c.ok(&["promote", "shop", "--board"]).contains("1.0.0"));
    let promoted = c.json(&["promote", "shop", "--from", "beta", "--to", "online"]);
    let next = promoted["new_deployment"].as_str().unwrap_or_else(|| panic!("{promoted}")).to_owned();
    c.until(&next, "state       running").await;
    c.ok(&["abort", &next, "--reason", "enough"]);
    c.until(&next, "state       aborted").await;

    let flow = CATALOG.replace("for: 1s", "for: 2s");
    let changed = c.file("changed.yaml", &flow);
    c.ok(&["apply", "-f", &changed]);
    assert!(c.ok(&["flow", "history", "shop/quick"]).contains("admin"));
    let text = c.ok(&["flow", "diff", "shop/quick"]);
    assert!(text.contains("2s") && text.contains("1s"), "{text}");
    c.ok(&["flow", "revert", "shop/quick", "1"]);
    assert_eq!(c.json(&["flow", "history", "shop/quick"])["items"].as_array().map(Vec::len), Some(3));
}

const BUNDLES: &str = r#"
kind: flow
project: pay
flow: broken
on_failure: stop
steps:
  - { id: ask, uses: http.request, with: { url: "http://127.0.0.1:1/" }, timeout: 2s }
---
kind: environment
project: pay
name: gray
hosts: [h1]
flow: broken
---
kind: policy
name: two
match: { projects: [shop] }
approvals: [{ name: ops, quorum: 1 }]
"#;

#[tokio::test]
async fn bundles_are_decided_mended_and_taken_back_from_the_command_line() {
    let up = Up::new();
    let c = Client::new(&up);
    c.release("shop", "1.0.0");
    c.release("pay", "2.0.0");
    let more = c.file("bundles.yaml", BUNDLES);
    c.ok(&["apply", "-f", &more]);
    let bundle = |member: &str| {
        let file = c.file("bundle.yaml", &format!("title: one\nmembers:\n  - {{ {member} }}\n"));
        let made = c.json(&["bundle", "create", "--file", &file]);
        made["bundle"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    };
    let until = async |id: &str, words: &str| {
        let shown = async || Some(c.ok(&["bundle", "show", id])).filter(|t| t.contains(words));
        eventually(PATIENCE, words, shown).await
    };

    let asked = bundle("name: shop, project: shop, environment: beta, version: 1.0.0");
    until(&asked, "one  awaiting_approval").await;
    // Nobody can be asked here, and who requested it may not approve it.
    let (code, text) = c.ask(&["bundle", "approve", &asked]);
    assert!(code == 2 && text.contains("--digest"), "{text}");
    let (code, text) = c.ask(&["bundle", "approve", &asked, "--yes"]);
    assert!(code == 3 && text.contains("may not approve"), "{text}");
    c.ok(&["bundle", "reject", &asked, "--yes", "--comment", "not today"]);
    assert!(until(&asked, "one  rejected").await.contains("not today"));

    let breaks = bundle("name: pay, project: pay, environment: gray, version: 2.0.0");
    let first = until(&breaks, "waiting for a person: pay").await;
    c.ok(&["bundle", "retry", &breaks, "--member", "pay"]);
    // The retry is another deployment; it fails alike.
    let second = async || {
        let shown = c.ok(&["bundle", "show", &breaks]);
        (shown.contains("waiting for a person: pay") && shown != first).then_some(())
    };
    eventually(PATIENCE, "the retry has failed too", second).await;
    c.ok(&["bundle", "skip", &breaks, "pay", "--reason", "later"]);
    until(&breaks, "every member was skipped").await;
    let (code, text) = c.ask(&["bundle", "rollback", &breaks, "--reason", "r"]);
    assert!(code == 3 && text.contains("nothing of that has run"), "{text}");
}
