//! Plugins: real programs in three languages and a NATS service, through crashes, aborts and lies.

use crate::world::{SOON, World};
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use windlass_domain::{
    catalog::{Item, read},
    ids::WorkId,
    plugin::Plugin,
    work::WorkResult,
};
use windlass_store::{logs, plugins, works};
use windlass_testkit::{Db, databases, eventually, temp_dir, workspace};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Puts a program into a plugins directory; gives its digest.
fn install(dir: &Path, name: &str, content: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("writes");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    format!("sha256:{}", hex(content))
}

/// The definition of an example, as an admin applies it.
fn example(language: &str, digest: &str) -> Plugin {
    let path = workspace().join("ops/plugins").join(language).join("plugin.yaml");
    let text = std::fs::read_to_string(&path).expect("definition").replace("DIGEST", digest);
    match read(&text).expect("a good document").remove(0).item {
        Item::Plugin(p) => p,
        other => panic!("not a plugin: {other:?}"),
    }
}

fn source(path: &str) -> Vec<u8> {
    std::fs::read(workspace().join("ops/plugins").join(path)).expect("example")
}

/// The Rust example, compiled once.
fn tcp_wait() -> Vec<u8> {
    static BINARY: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BINARY
        .get_or_init(|| {
            let dir = temp_dir();
            let out = dir.path().join("tcp-wait");
            let from = workspace().join("ops/plugins/rust/tcp_wait.rs");
            let done =
                Command::new("rustc").args(["--edition", "2024", "-D", "warnings", "-o"]).args([&out, &from]).output();
            let done = done.expect("rustc runs");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            std::fs::read(out).expect("the program")
        })
        .clone()
}

/// A plugin of a test's own: a shell script that is given `$verb` and `$call` and may read `$request`.
fn shell(dir: &Path, name: &str, more: Value, body: &str) -> Plugin {
    let head = "#!/bin/bash\nread -r request\nverb=$(sed -n 's/.*\"verb\":\"\\([a-z]*\\)\".*/\\1/p' <<<\"$request\")\n\
                call=$(sed -n 's/.*\"call\":\"\\([^\"]*\\)\".*/\\1/p' <<<\"$request\")\n";
    let digest = install(dir, name, format!("{head}{body}\n").as_bytes());
    let mut doc =
        json!({ "name": name, "version": "1.0.0", "transport": { "type": "exec", "path": name, "digest": digest } });
    for (k, v) in more.as_object().expect("object") {
        doc[k] = v.clone();
    }
    let p: Plugin = serde_json::from_value(doc).expect("a definition");
    assert_eq!(p.problems(), vec![]);
    p
}

async fn world(db: Db, steps: Vec<(&Plugin, Value, u32)>) -> World {
    let plugins = steps.iter().map(|(p, ..)| (*p).clone()).collect();
    let central = steps.into_iter().map(|(p, with, timeout)| (p.action(), with, timeout)).collect();
    World::with_plan(db, 1, 0, central, plugins).await
}

async fn result(w: &World, work: WorkId) -> (bool, String, Value) {
    match w.result(work, 1).await {
        WorkResult::Central { succeeded, reason, output, .. } => (succeeded, reason.unwrap_or_default(), output),
        other => panic!("not central: {other:?}"),
    }
}

pub(crate) async fn log(w: &World) -> String {
    let chunks = logs::after(&mut w.store.read().await.expect("reads"), w.deployment, 0, Some("-"), 1000).await;
    chunks.expect("logs").into_iter().map(|c| String::from_utf8_lossy(&c.chunk.data).into_owned()).collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Processes whose command line holds a text.
fn running(text: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("proc").flatten();
    all.filter(|e| std::fs::read(e.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(text)))
        .count()
}

#[tokio::test]
async fn plugins_in_three_languages_do_their_work() {
    for db in databases().await {
        let dir = temp_dir();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let page = example("python", &install(dir.path(), "maintenance.py", &source("python/maintenance.py")));
        let changes = example("shell", &install(dir.path(), "changelog.sh", &source("shell/changelog.sh")));
        let port = example("rust", &install(dir.path(), "tcp-wait", &tcp_wait()));
        let listen = windlass_testkit::free_port();
        let open = json!({ "path": at("down.html"), "action": "open", "text": "Back at <b>noon</b>" });
        let close = json!({ "path": at("down.html"), "action": "close" });
        let note = json!({ "file": at("CHANGES"), "text": "shop 1.0.0 is out" });
        let wait = json!({ "address": format!("127.0.0.1:{listen}") });
        let steps = vec![(&page, open, 20), (&page, close, 20), (&changes, note, 20), (&port, wait, 20)];
        let w = world(db, steps).await;
        let e = w.executor_with(|s| s.executor.plugins_dir = Some(dir.path().into())).await;

        let (ok, reason, output) = result(&w, w.central("c0").await).await;
        assert!(ok && output == json!({ "open": true }), "{reason} {output}");
        assert_eq!(std::fs::read_to_string(at("down.html")).expect("page"), "Back at <b>noon</b>");
        assert!(log(&w).await.contains(&format!("open: {}", at("down.html"))), "{}", log(&w).await);
        let (ok, reason, output) = result(&w, w.central("c1").await).await;
        assert!(ok && output == json!({ "open": false }) && !Path::new(&at("down.html")).exists(), "{reason}");

        let (ok, reason, output) = result(&w, w.central("c2").await).await;
        assert!(ok && output == json!({ "lines": 1 }), "{reason} {output}");
        assert!(lines(Path::new(&at("CHANGES")))[0].contains("shop 1.0.0 is out"));

        let work = w.central("c3").await;
        eventually(SOON, "it has looked in vain", async || log(&w).await.contains("does not answer").then_some(()))
            .await;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", listen)).await.expect("binds");
        let (ok, reason, output) = result(&w, work).await;
        assert!(ok && output["attempts"].as_u64().is_some_and(|n| n >= 2), "{reason} {output}");
        drop(listener);
        let left: Vec<PathBuf> =
            std::fs::read_dir(w.settings.state_dir.join("runs")).expect("runs").flatten().map(|e| e.path()).collect();
        assert_eq!(left, Vec::<PathBuf>::new(), "private directories stay behind");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn only_the_program_that_was_pinned_is_run_and_only_what_fits_goes_in_and_out() {
    for db in databases().await {
        let dir = temp_dir();
        let marks = dir.path().join("marks");
        let mark = format!("echo run >> {}", marks.display());
        let out = |body: &str| format!("{mark}\nprintf '%s' '{body}'");
        let d = dir.path();
        let schema = json!({ "inputs": { "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } },
            "outputs": { "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } } });
        let swapped = shell(d, "swapped", json!({}), &out(r#"{"status":"succeeded"}"#));
        install(d, "swapped", b"#!/bin/sh\necho '{\"status\":\"succeeded\"}'\n");
        let absent = shell(d, "absent", json!({}), "");
        std::fs::remove_file(d.join("absent")).expect("removes");
        let typed = shell(d, "typed", schema, &out(r#"{"status":"succeeded","outputs":{"n":"many"}}"#));
        let garbage = shell(d, "garbage", json!({}), &out("all is well"));
        let silent = shell(d, "silent", json!({}), &format!("{mark}; exit 3"));
        let huge = shell(d, "huge", json!({}), "head -c 3000000 /dev/zero | tr '\\0' ' '; sleep 60");
        let said = shell(
            d,
            "said",
            json!({}),
            &format!("{}; exit 7", out(r#"{"status":"failed","message":"the moon is wrong"}"#)),
        );
        let lost = shell(d, "lost", json!({}), &out(r#"{"status":"running"}"#));
        let nosy = shell(
            d,
            "nosy",
            json!({}),
            "env | cut -d= -f1 | sort | tr '\\n' ' ' >&2; printf '{\"status\":\"succeeded\",\"outputs\":{\"home\":\"%s\"}}' \"$HOME\"",
        );
        let n = || json!({ "n": 1 });
        let steps = vec![
            (&swapped, json!({}), 20),
            (&absent, json!({}), 20),
            (&typed, json!({ "n": "one" }), 20),
            (&typed, n(), 20),
            (&garbage, n(), 20),
            (&silent, n(), 20),
            (&huge, n(), 20),
            (&said, n(), 20),
            (&lost, n(), 20),
            (&nosy, n(), 20),
        ];
        let w = world(db, steps).await;
        let off = w.executor().await;
        let (ok, reason, _) = result(&w, w.central("c4").await).await;
        assert!(!ok && reason.contains("executor.plugins_dir"), "{reason}");
        off.shut_down().await;
        let e = w.executor_with(|s| s.executor.plugins_dir = Some(dir.path().into())).await;
        for (step, runs, says) in [
            ("c0", 0, "but the release was made with sha256:"),
            ("c1", 0, "cannot read"),
            ("c2", 0, "`with/n` does not fit the plugin typed@1.0.0"),
            ("c3", 1, "its outputs/n do not fit its own schema"),
            ("c4", 2, "not the JSON of one"),
            ("c5", 3, "ended with code 3; it gave no answer"),
            ("c6", 3, "larger than"),
            ("c7", 4, "the moon is wrong"),
            ("c8", 5, "no verb `poll`"),
        ] {
            let (ok, reason, _) = result(&w, w.central(step).await).await;
            assert!(!ok && reason.contains(says), "{step}: {reason}");
            assert_eq!(lines(&marks).len(), runs, "{step}");
        }
        let (ok, reason, output) = result(&w, w.central("c9").await).await;
        assert!(ok && output["home"].as_str().is_some_and(|h| h.contains("/runs/")), "{reason} {output}");
        let told = log(&w).await;
        assert!(told.contains("HOME LANG") && !told.contains("CARGO"), "the environment is a clean one: {told}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn nothing_is_executed_twice_that_must_not_be() {
    for db in databases().await {
        let dir = temp_dir();
        let d = dir.path();
        let gate = d.join("gate");
        // The first run of `execute` blocks until the test has made the gate, so the executor dies in the middle of it.
        let body = |name: &str| {
            format!(
                "echo \"$verb $call\" >> {0}/{name}.calls\ncase $verb in\n check) if [ -e {0}/{name}.done ]; then echo \
                 '{{\"status\":\"succeeded\",\"outputs\":{{\"by\":\"check\"}}}}'; else echo '{{\"status\":\"failed\"}}'; fi;;\n execute) touch \
                 {0}/{name}.done; while [ ! -e {1} ]; do sleep 0.02; done; echo '{{\"status\":\"succeeded\",\"outputs\":{{\"by\":\"execute\"}}}}';;\nesac",
                d.display(),
                gate.display()
            )
        };
        let careful = shell(d, "careful", json!({ "verbs": ["check", "execute"] }), &body("careful"));
        let blunt = shell(d, "blunt", json!({}), &body("blunt"));
        let safe = shell(d, "safe", json!({ "retry_safe": true }), &body("safe"));
        let w = world(db, vec![(&careful, json!({}), 30), (&blunt, json!({}), 30), (&safe, json!({}), 30)]).await;
        let with_plugins = |s: &mut windlass_runtime::Settings| s.executor.plugins_dir = Some(d.into());
        let first = w.executor_with(with_plugins).await;
        let mut all = Vec::new();
        for (i, name) in ["careful", "blunt", "safe"].into_iter().enumerate() {
            all.push(w.central(&format!("c{i}")).await);
            let done = d.join(format!("{name}.done"));
            eventually(SOON, "it is being executed", async || done.exists().then_some(())).await;
        }
        first.crash().await;
        let runs = w.settings.state_dir.join("runs").to_string_lossy().into_owned();
        eventually(SOON, "what it ran has ended with it", async || (running(&runs) == 0).then_some(())).await;
        std::fs::write(&gate, "").expect("opens the gate");
        let second = w.executor_with(with_plugins).await;

        let calls = |name: &str| -> Vec<String> { lines(&d.join(format!("{name}.calls"))) };
        let (ok, reason, output) = result(&w, all[0]).await;
        assert!(ok && output == json!({ "by": "check" }), "{reason} {output}");
        let key = all[0].to_string();
        assert_eq!(calls("careful"), [format!("check {key}"), format!("execute {key}"), format!("check {key}")]);
        let (ok, reason, _) = result(&w, all[1]).await;
        assert!(!ok && reason.contains("nobody knows whether"), "{reason}");
        assert_eq!(calls("blunt"), [format!("execute {}", all[1])]);
        let (ok, reason, output) = result(&w, all[2]).await;
        assert!(ok && output == json!({ "by": "execute" }), "{reason}");
        assert_eq!(calls("safe"), vec![format!("execute {}", all[2]); 2], "the same key at both tries");
        second.shut_down().await;
    }
}

#[tokio::test]
async fn an_undo_is_asked_again_after_a_crash_with_the_call_it_takes_back() {
    for db in databases().await {
        let dir = temp_dir();
        let d = dir.path();
        let gate = d.join("gate");
        let body = format!(
            "echo \"$verb\" >> {0}/calls; echo \"$request\" >> {0}/seen\ncase $verb in\n undo) while [ ! -e {1} ]; do sleep 0.02; done; if [ -e \
             {0}/polled ]; then echo '{{\"status\":\"failed\",\"message\":\"it is locked\"}}'; else echo \
             '{{\"status\":\"running\",\"poll_after_s\":0.1}}'; fi;;\n poll) touch {0}/polled; echo \
             '{{\"status\":\"succeeded\",\"outputs\":{{\"n\":\"no number\"}}}}';;\nesac",
            d.display(),
            gate.display()
        );
        let more = json!({ "verbs": ["check", "execute", "poll", "undo"],
            "outputs": { "type": "object", "properties": { "n": { "type": "integer" } } } });
        let p = shell(d, "job", more, &body);
        let call = WorkId(uuid::Uuid::now_v7());
        let undo = windlass_domain::plan::Undo {
            deployment: uuid::Uuid::now_v7().into(),
            step: "before".into(),
            attempt: 2,
            call,
            outputs: json!({ "job": 17 }).as_object().expect("object").clone(),
        };
        let w = World::undoing(db, &p, json!({ "a": "b" }), undo).await;
        let with_plugins = |s: &mut windlass_runtime::Settings| s.executor.plugins_dir = Some(d.into());
        let first = w.executor_with(with_plugins).await;
        let work = w.central("c0").await;
        eventually(SOON, "it is asked", async || d.join("seen").exists().then_some(())).await;
        first.crash().await;
        std::fs::write(&gate, "").expect("opens the gate");
        let second = w.executor_with(with_plugins).await;
        let (ok, reason, output) = result(&w, work).await;
        assert!(ok && output == json!({ "n": "no number" }), "the schema is that of `execute`: {reason}");
        assert_eq!(lines(&d.join("calls")), ["undo", "undo", "poll"]);
        for line in lines(&d.join("seen")) {
            let r: Value = serde_json::from_str(&line).expect("JSON");
            assert_eq!((&r["inputs"], &r["call"]), (&json!({ "a": "b" }), &json!(work)));
            let u = &r["undo"];
            assert_eq!((&u["call"], &u["step"], &u["attempt"]), (&json!(call), &json!("before"), &json!(2)));
            assert_eq!(u["outputs"], json!({ "job": 17 }));
        }
        // The next one fails, and is no success.
        let (ok, reason, _) = result(&w, w.central("c0").await).await;
        assert!(!ok && reason.contains("failed at `undo`: it is locked"), "{reason}");
        second.shut_down().await;
    }
}

#[tokio::test]
async fn polling_goes_on_at_another_executor_with_the_state_it_was_given() {
    for db in databases().await {
        let dir = temp_dir();
        let d = dir.path();
        let body = format!(
            "echo \"$verb\" >> {0}/calls\ncase $verb in\n execute) echo '{{\"status\":\"running\",\"state\":{{\"job\":\"j-17\"}},\"poll_after_s\":0.1}}';;\n \
             poll) if [ -e {0}/gate ] && grep -q '\"state\":{{\"job\":\"j-17\"}}' <<<\"$request\"; then echo '{{\"status\":\"succeeded\"}}'; else \
             echo '{{\"status\":\"running\",\"poll_after_s\":0.1}}'; fi;;\nesac",
            d.display()
        );
        let job = shell(d, "job", json!({ "verbs": ["execute", "poll"] }), &body);
        let w = world(db, vec![(&job, json!({}), 30)]).await;
        let with_plugins = |s: &mut windlass_runtime::Settings| s.executor.plugins_dir = Some(d.into());
        let first = w.executor_with(with_plugins).await;
        let work = w.central("c0").await;
        eventually(SOON, "it polls", async || (lines(&d.join("calls")).len() >= 3).then_some(())).await;
        first.crash().await;
        std::fs::write(d.join("gate"), "").expect("opens");
        let second = w.executor_with(with_plugins).await;
        let (ok, reason, _) = result(&w, work).await;
        assert!(ok, "{reason}");
        assert_eq!(lines(&d.join("calls")).iter().filter(|l| *l == "execute").count(), 1);
        second.shut_down().await;
    }
}

#[tokio::test]
async fn a_callback_is_waited_for_also_by_the_next_executor() {
    for db in databases().await {
        let dir = temp_dir();
        let d = dir.path();
        let body = format!(
            "case $verb in\n execute) sed -n 's/.*\"callback_url\":\"\\([^\"]*\\)\".*/\\1/p' <<<\"$request\" > {0}/url; echo \
             '{{\"status\":\"waiting\",\"state\":{{\"ticket\":4}}}}';;\n callback) echo \"$request\" > {0}/seen; echo \
             '{{\"status\":\"succeeded\",\"outputs\":{{\"decided\":true}}}}';;\nesac",
            d.display()
        );
        let ask = shell(d, "ask", json!({ "verbs": ["execute", "callback"] }), &body);
        let w = world(db, vec![(&ask, json!({}), 60)]).await;
        let with_plugins = |s: &mut windlass_runtime::Settings| s.executor.plugins_dir = Some(d.into());
        let first = w.executor_with(with_plugins).await;
        let work = w.central("c0").await;
        let waits = async || {
            let call = plugins::call(&mut w.store.read().await.ok()?, work).await.ok()??;
            (call.answer?["status"] == "waiting").then_some(())
        };
        eventually(SOON, "it waits", waits).await;
        first.crash().await;
        let second = w.executor_with(with_plugins).await;

        let url = lines(&d.join("url")).remove(0);
        let token = url.rsplit('/').next().expect("token");
        assert!(url.contains("/api/v1/plugin-callbacks/") && token.len() == 64, "{url}");
        let hash = Sha256::digest(token.as_bytes());
        let mut tx = w.store.write().await.expect("tx");
        let (found, pool) = plugins::waiting_for(&mut tx, &hash).await.expect("reads").expect("an open call");
        assert_eq!((found, pool.as_str()), (work, "default"));
        let body = json!({ "approved": "yes" });
        assert!(plugins::put_callback(&mut tx, &hash, work, &body, chrono::Utc::now()).await.expect("stores"));
        assert!(
            !plugins::put_callback(&mut tx, &hash, work, &json!(2), chrono::Utc::now()).await.expect("asks"),
            "once"
        );
        tx.commit().await.expect("commits");
        w.ring(work).await;
        let (ok, reason, output) = result(&w, work).await;
        assert!(ok && output == json!({ "decided": true }), "{reason}");
        let seen: Value = serde_json::from_str(&lines(&d.join("seen"))[0]).expect("JSON");
        assert_eq!((&seen["callback"], &seen["state"]["ticket"]), (&body, &json!(4)));
        let mut tx = w.store.read().await.expect("reads");
        assert_eq!(plugins::waiting_for(&mut tx, &hash).await.expect("reads"), None, "a settled call takes none");
        drop(tx);
        second.shut_down().await;
    }
}

#[tokio::test]
async fn an_abort_and_a_timeout_end_all_that_was_started_and_cancel() {
    for db in databases().await {
        let dir = temp_dir();
        let d = dir.path();
        let body = |name: &str| {
            format!(
                "echo \"$verb\" >> {0}/{name}.calls\ncase $verb in\n execute) trap 'echo term >> {0}/{name}.calls; exit 1' TERM; sleep 3133 & \
                 touch {0}/{name}.on; wait;;\n cancel) echo '{{\"status\":\"succeeded\"}}';;\nesac",
                d.display()
            )
        };
        let more = || json!({ "verbs": ["execute", "cancel"] });
        let slow = shell(d, "slow", more(), &body("slow"));
        let late = shell(d, "late", more(), &body("late"));
        let deaf = shell(d, "deaf", json!({}), "trap '' TERM; sleep 3144");
        let w = world(db, vec![(&late, json!({}), 1), (&deaf, json!({}), 1), (&slow, json!({}), 60)]).await;
        let e = w.executor_with(|s| s.executor.plugins_dir = Some(d.into())).await;
        let (deaf_work, late_work) = (w.central("c1").await, w.central("c0").await);
        let (ok, reason, _) = result(&w, late_work).await;
        assert!(!ok && reason.contains("timeout of 1 s; its work was cancelled"), "{reason}");
        assert_eq!(lines(&d.join("late.calls")), ["execute", "term", "cancel"]);
        let (ok, reason, _) = result(&w, deaf_work).await;
        assert!(!ok && reason.contains("timeout of 1 s"), "{reason}");
        let work = w.central("c2").await;
        eventually(SOON, "it runs", async || d.join("slow.on").exists().then_some(())).await;
        w.abort().await;
        let (ok, reason, _) = result(&w, work).await;
        assert!(!ok && reason.contains("aborted; its work was cancelled"), "{reason}");
        assert_eq!(lines(&d.join("slow.calls")), ["execute", "term", "cancel"]);
        for left in ["sleep\x003133", "sleep\x003144"] {
            eventually(Duration::from_secs(5), "its children are gone", async || (running(left) == 0).then_some(()))
                .await;
        }
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_service_on_nats_is_a_plugin_too() {
    for db in databases().await {
        let dir = temp_dir();
        let program = dir.path().join("tcp-wait");
        install(dir.path(), "tcp-wait", &tcp_wait());
        let mut port = example("rust", &format!("sha256:{}", "0".repeat(64)));
        port.transport = serde_json::from_value(json!({ "type": "nats" })).expect("nats");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let with = json!({ "address": listener.local_addr().expect("address").to_string() });
        let w = world(db, vec![(&port, with.clone(), 20), (&port, with, 2)]).await;
        let e = w.executor().await;
        let work = w.central("c0").await;
        let waits = async || {
            log(&w).await.contains("no service listens on windlass.plugin.tcp-wait.1_0_0.execute").then_some(())
        };
        eventually(SOON, "nobody is there yet", waits).await;

        // The service: the same program behind a subscription.
        let client = async_nats::connect(w.nats.url()).await.expect("connects");
        let mut requests =
            client.queue_subscribe("windlass.plugin.tcp-wait.1_0_0.*", "tcp-wait".into()).await.expect("subscribes");
        let service = tokio::spawn(async move {
            while let Some(m) = requests.next().await {
                let mut child = tokio::process::Command::new(&program)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("starts");
                tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().expect("stdin"), &m.payload)
                    .await
                    .expect("asks");
                let answer = child.wait_with_output().await.expect("answers").stdout;
                client.publish(m.reply.expect("a request"), answer.into()).await.expect("replies");
            }
        });
        let (ok, reason, output) = result(&w, work).await;
        assert!(ok && output["attempts"] == 1, "{reason} {output}");
        service.abort();
        assert!(service.await.is_err_and(|e| e.is_cancelled()));
        let (ok, reason, _) = result(&w, w.central("c1").await).await;
        assert!(!ok && reason.contains("timeout of 2 s"), "{reason}");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_claim_that_is_lost_stores_nothing() {
    for db in databases().await {
        let dir = temp_dir();
        let p = shell(dir.path(), "p", json!({}), "echo '{\"status\":\"succeeded\"}'");
        let w = world(db, vec![(&p, json!({}), 20)]).await;
        let work = w.central("c0").await;
        let pools = ["default".to_owned()];
        let mut tx = w.store.write().await.expect("tx");
        let claim =
            works::claim(&mut tx, &pools, "me", Duration::from_secs(60), 10, &[]).await.expect("claims").remove(0);
        plugins::begin(&mut tx, work, claim.epoch, "p@1.0.0", "execute", None).await.expect("mine");
        let old = plugins::begin(&mut tx, work, claim.epoch + 1, "p@1.0.0", "execute", None).await;
        assert!(matches!(old, Err(windlass_store::Error::Conflict)), "{old:?}");
        let old = plugins::answered(&mut tx, work, claim.epoch + 1, &json!({})).await;
        assert!(matches!(old, Err(windlass_store::Error::Conflict)), "{old:?}");
        plugins::answered(&mut tx, work, claim.epoch, &json!({ "status": "running" })).await.expect("mine");
        tx.commit().await.expect("commits");
    }
}
