//! `lb.member` through the whole agent: the upstream's file is changed, tested, taken into use or put back.

use crate::control::{Control, Ran, step};
use serde_json::{Value, json};
use std::path::PathBuf;
use windlass_domain::task::{ReportedOutcome, StepOutcome};

const FILE: &str = "# shop\nserver 127.0.0.1:1;\nserver 127.0.0.1:2 weight=2;\n";

/// An agent on a host whose nginx is two small scripts: the test refuses a file that holds `broken`, the reload leaves a line.
struct Host {
    c: Control,
}

impl Host {
    async fn start(text: &str) -> Host {
        let c = Control::started().await;
        let h = Host { c };
        std::fs::write(h.file(), text).expect("writes");
        h
    }

    fn dir(&self) -> PathBuf {
        self.c.dir.path().to_owned()
    }

    fn file(&self) -> PathBuf {
        self.dir().join("upstream.conf")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).expect("file")
    }

    fn reloads(&self) -> usize {
        std::fs::read_to_string(self.dir().join("reloads")).unwrap_or_default().lines().count()
    }

    async fn run(&mut self, op: &str, member: &str, more: Value) -> Ran {
        let dir = self.dir();
        let at = |name: &str| dir.join(name).display().to_string();
        let test =
            format!("echo 'nginx: [emerg] it is broken' >&2; ! grep -q broken {} {}", at("upstream.conf"), at("else"));
        let mut with = json!({
            "kind": "nginx", "op": op, "member": member, "file": at("upstream.conf"),
            "test": ["/bin/sh", "-c", test], "reload": ["/bin/sh", "-c", format!("echo reload >> {}", at("reloads"))],
            "drain_timeout_s": 3, "attach_timeout_s": 3,
        });
        with.as_object_mut().expect("map").extend(more.as_object().expect("map").clone());
        self.c.run(vec![step("member", "lb.member", with)]).await
    }
}

fn failure(ran: &Ran) -> &str {
    assert_eq!(ran.report.outcome, ReportedOutcome::Failed, "{:?}", ran.report);
    let failed = ran.report.steps.iter().find(|s| s.outcome == StepOutcome::Failed);
    failed.map(|s| s.message.as_str()).expect("a failed step")
}

fn well(ran: &Ran) {
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?}", ran.report);
}

#[tokio::test]
async fn a_member_goes_and_comes_back_and_what_is_so_already_is_not_reloaded() {
    let mut h = Host::start(FILE).await;
    std::fs::write(h.dir().join("else"), "").expect("writes");
    well(&h.run("drain", "127.0.0.1:2", json!({})).await);
    assert_eq!(h.text(), FILE.replace("weight=2;", "weight=2 down;"));
    assert_eq!(h.reloads(), 1);
    well(&h.run("drain", "127.0.0.1", json!({ "port": 2 })).await);
    assert_eq!(h.reloads(), 1, "it is off already");
    well(&h.run("attach", "127.0.0.1:2", json!({})).await);
    assert_eq!((h.text().as_str(), h.reloads()), (FILE, 2));

    let why = h.run("drain", "127.0.0.1:9", json!({})).await;
    let why = failure(&why).to_owned();
    assert!(why.contains("upstream.conf") && why.contains("127.0.0.1:9"), "{why}");
    let ran = h.run("drain", "127.0.0.1:2", json!({ "file": "/nowhere/upstream.conf" })).await;
    assert!(failure(&ran).contains("/nowhere/upstream.conf"), "{}", failure(&ran));
    assert_eq!((h.text().as_str(), h.reloads()), (FILE, 2));
}

#[tokio::test]
async fn a_file_that_nginx_refuses_is_put_back() {
    let mut h = Host::start(FILE).await;
    std::fs::write(h.dir().join("else"), "broken").expect("writes");
    let ran = h.run("drain", "127.0.0.1:1", json!({})).await;
    assert!(failure(&ran).contains("nginx: [emerg] it is broken"), "{}", failure(&ran));
    assert_eq!((h.text().as_str(), h.reloads()), (FILE, 0));
    std::fs::write(h.dir().join("else"), "").expect("writes");
    well(&h.run("attach", "127.0.0.1:1", json!({})).await);
    assert_eq!((h.text().as_str(), h.reloads()), (FILE, 0), "it was never off");
}

#[tokio::test]
async fn a_change_that_was_not_taken_into_use_is_reloaded_the_next_time() {
    let mut h = Host::start(FILE).await;
    std::fs::write(h.dir().join("else"), "").expect("writes");
    let ran = h.run("drain", "127.0.0.1:1", json!({ "reload": ["/bin/sh", "-c", "echo not now; exit 1"] })).await;
    assert!(failure(&ran).contains("not now"), "{}", failure(&ran));
    assert!(h.text().contains("127.0.0.1:1 down;"));
    // The file is as it should be; nginx is not.
    well(&h.run("drain", "127.0.0.1:1", json!({})).await);
    assert_eq!(h.reloads(), 1);
    well(&h.run("drain", "127.0.0.1:1", json!({})).await);
    assert_eq!(h.reloads(), 1);
}

#[tokio::test]
async fn the_minimum_is_counted_in_the_file() {
    let mut h = Host::start(FILE).await;
    std::fs::write(h.dir().join("else"), "").expect("writes");
    let ran = h.run("drain", "127.0.0.1:1", json!({ "min_healthy": { "count": 2 }, "drain_timeout_s": 1 })).await;
    let why = failure(&ran);
    assert!(why.contains("1 of 2 members") && why.contains("asks for 2"), "{why}");
    assert_eq!(h.text(), FILE);
    well(&h.run("drain", "127.0.0.1:1", json!({ "min_healthy": { "percent": 50 } })).await);
    let ran = h.run("drain", "127.0.0.1:2", json!({ "min_healthy": { "percent": 50 }, "drain_timeout_s": 1 })).await;
    assert!(failure(&ran).contains("0 of 2 members"), "{}", failure(&ran));
}

#[tokio::test]
async fn open_connections_are_waited_for_or_passed_over() {
    let member = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let at = member.local_addr().expect("address").to_string();
    let mut h = Host::start(&format!("server {at};\n")).await;
    std::fs::write(h.dir().join("else"), "").expect("writes");
    let held = tokio::net::TcpStream::connect(&at).await.expect("connects");
    let ran = h.run("drain", &at, json!({ "drain_timeout_s": 1 })).await;
    assert!(failure(&ran).contains("1 connections"), "{}", failure(&ran));
    well(&h.run("drain", &at, json!({ "drain_timeout_s": 1, "on_drain_timeout": "go_on" })).await);
    drop(held);
    well(&h.run("drain", &at, json!({ "drain_timeout_s": 20 })).await);
}

#[tokio::test]
async fn a_command_is_told_what_and_whom() {
    let mut h = Host::start(FILE).await;
    let out = h.dir().join("told");
    let mut run = async |op: &str, text: String, more: Value| {
        let mut with = json!({
            "kind": "command", "op": op, "member": "web1", "run": ["/bin/sh", "-c", text, "pool"], "drain_timeout_s": 1,
        });
        with.as_object_mut().expect("map").extend(more.as_object().expect("map").clone());
        h.c.run(vec![step("member", "lb.member", with)]).await
    };
    let say = format!("echo \"$@\" >> {}", out.display());
    well(&run("drain", say.clone(), json!({})).await);
    well(&run("attach", say, json!({})).await);
    assert_eq!(std::fs::read_to_string(&out).expect("told"), "drain web1\nattach web1\n");
    let ran = run("drain", "echo cannot; exit 7".into(), json!({})).await;
    assert!(failure(&ran).contains("exited with code 7: cannot"), "{}", failure(&ran));
    let ran = run("drain", "sleep 30".into(), json!({})).await;
    assert_eq!(ran.report.steps[0].outcome, StepOutcome::TimedOut, "{:?}", ran.report);
    let ran = run("leave", "true".into(), json!({})).await;
    assert!(failure(&ran).contains("drain or attach"), "{}", failure(&ran));
    let ran = run("drain", "true".into(), json!({ "kind": "lvs" })).await;
    assert!(failure(&ran).contains("lvs"), "{}", failure(&ran));
}
