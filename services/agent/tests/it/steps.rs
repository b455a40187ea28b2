//! What each action does, through the whole agent.

use crate::control::{Control, Ran, script, sha256, step};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_domain::task::{ReportedOutcome, StepOutcome, TaskStep};

fn package(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, text) in files {
        let mut h = tar::Header::new_gnu();
        h.set_size(text.len() as u64);
        h.set_mode(0o4755);
        tar.append_data(&mut h, name, text.as_bytes()).expect("appends");
    }
    tar.into_inner().expect("tar").finish().expect("gzip")
}

/// Answers every request with this body; redirects `/moved`.
async fn serve(body: Vec<u8>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let mut buf = [0; 4096];
            let n = s.read(&mut buf).await.unwrap_or(0);
            let head = if buf[..n].starts_with(b"GET /moved") {
                "HTTP/1.1 302 Found\r\nLocation: /package\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
            } else {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
            };
            let _ = s.write_all(head.as_bytes()).await;
            if !head.contains("302") {
                let _ = s.write_all(&body).await;
            }
        }
    });
    url
}

fn failure(ran: &Ran) -> &str {
    assert_eq!(ran.report.outcome, ReportedOutcome::Failed, "{:?}", ran.report);
    let failed = ran.report.steps.iter().find(|s| s.outcome == StepOutcome::Failed);
    failed.map(|s| s.message.as_str()).expect("a failed step")
}

#[tokio::test]
async fn a_release_of_five_steps() {
    let mut c = Control::new().await;
    c.env = vec!["PORT=7501".into()];
    c.start_agent().await;
    let names: Vec<String> = (0..40).map(|n| format!("lib/{n}")).collect();
    let mut files = vec![("bin/start", "#!/bin/sh\necho \"restart on $PORT in $(pwd)\"\n"), ("VERSION", "1.0.0\n")];
    files.extend(names.iter().map(|n| (n.as_str(), "x")));
    let bytes = package(&files);
    let (digest, size) = (sha256(&bytes), bytes.len());
    let url = serve(bytes).await;
    let dir = "shop_beta_1.0.0_main_20261121T000000Z_ann";
    let release = |dir: &str| {
        vec![
            step(
                "fetch",
                "artifact.fetch",
                json!({ "url": format!("{url}/moved"), "digest": digest, "size": size, "dir": dir }),
            ),
            step(
                "verify",
                "artifact.verify",
                json!({ "dir": dir, "digest": digest, "size": size, "max_age_s": 60, "built_at": chrono::Utc::now() }),
            ),
            step("switch", "release.switch", json!({ "dir": dir, "keep": 2 })),
            step("restart", "service.restart", json!({ "command": ["bin/start"] })),
            step(
                "check",
                "http.check",
                json!({ "url": url, "status": 200, "expect_body": "", "within_s": 5, "interval_s": 1 }),
            ),
        ]
    };
    let ran = c.run(release(dir)).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?}", ran.report);
    let root = c.root();
    let there = root.join("releases").join(dir);
    assert_eq!(std::fs::read_link(root.join("current")).expect("link"), std::path::Path::new("releases").join(dir));
    assert_eq!(ran.text(), format!("restart on 7501 in {}\n", there.display()));
    let mode = std::fs::metadata(there.join("bin/start")).expect("file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "set-uid is gone");
    // Again, and with more releases than are kept.
    for dir in [dir, "b", "c", "d"] {
        assert_eq!(c.run(release(dir)).await.report.outcome, ReportedOutcome::Succeeded);
    }
    let mut names: Vec<String> = std::fs::read_dir(root.join("releases"))
        .expect("dir")
        .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["c", "d"]);
    let ran = c.run(vec![step("switch", "release.switch", json!({ "dir": dir }))]).await;
    assert!(failure(&ran).contains("does not exist on this host"), "{}", failure(&ran));
    assert_eq!(std::fs::read_link(root.join("current")).expect("link"), std::path::Path::new("releases/d"));
}

#[tokio::test]
async fn a_package_that_is_not_the_planned_one_is_never_unpacked() {
    let mut c = Control::started().await;
    let bytes = package(&[("a", "1")]);
    let file = c.dir.path().join("p.tar.gz");
    std::fs::write(&file, &bytes).expect("writes");
    let url = format!("file://{}", file.display());
    let good = sha256(&bytes);
    let fetch = |with: Value| {
        let mut w = json!({ "url": url, "digest": good, "dir": "r1" });
        w.as_object_mut().expect("map").extend(with.as_object().expect("map").clone());
        vec![step("fetch", "artifact.fetch", w)]
    };
    for (with, why) in [
        (json!({ "digest": sha256(b"other") }), "nothing was unpacked"),
        (json!({ "size": bytes.len() + 1 }), "the plan says"),
        (json!({ "size": 5 }), "larger than"),
        (json!({ "dir": "../r1" }), "not the name of a release directory"),
        (json!({ "dir": ".hidden" }), "not the name of a release directory"),
        (json!({ "url": "ftp://x/y" }), "scheme ftp"),
        (json!({ "url": "file:///nowhere" }), "cannot read"),
        (json!({ "url": "http://127.0.0.1:1/x" }), "cannot fetch"),
        (json!({ "max_bytes": 0 }), "exceeds the limit"),
    ] {
        let ran = c.run(fetch(with)).await;
        assert!(failure(&ran).contains(why), "{why}: {}", failure(&ran));
        assert_eq!(std::fs::read_dir(c.root().join("releases")).expect("dir").count(), 0, "{why}");
    }
    assert_eq!(c.run(fetch(json!({}))).await.report.outcome, ReportedOutcome::Succeeded);
    let verify = step("verify", "artifact.verify", json!({ "dir": "r1", "digest": sha256(b"other") }));
    assert!(failure(&c.run(vec![verify]).await).contains("the plan says"));
    let old = json!({ "dir": "r1", "digest": good, "max_age_s": 60, "built_at": "2020-01-01T00:00:00Z" });
    assert!(failure(&c.run(vec![step("verify", "artifact.verify", old)]).await).contains("days ago"));
}

#[tokio::test]
async fn values_reach_a_script_as_values_and_its_environment_is_clean() {
    let mut c = Control::started().await;
    let nasty = "$(touch pwned) `id` '\"; \n -oX @/etc/passwd \u{202e}";
    let with = json!({
        "run": "import os, sys\nprint(sys.argv[1:])\nprint(sorted(os.environ))\nprint(os.environ['V'], os.environ['TASK_KEY'], os.environ['TRACEPARENT'][:2])\nprint(sys.stdin.read())",
        "interpreter": "python3",
        "args": [nasty, "--flag"],
        "env": { "V": nasty },
        "stdin": "typed",
    });
    let offer = c.offer_of(vec![step("s", "script", with)]);
    let task = c.begin(&offer).await;
    let ran = c.end(task).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?} {}", ran.report, ran.text());
    let text = ran.text();
    assert!(text.contains(&format!("{nasty} {task} 00")), "{text}");
    assert!(text.trim_end().ends_with("typed"));
    let names = text.lines().find(|l| l.starts_with("['HOME'")).expect("environment");
    assert_eq!(
        names,
        "['HOME', 'LANG', 'PATH', 'TASK_KEY', 'TRACEPARENT', 'V', 'WINDLASS_ENVIRONMENT', 'WINDLASS_HOST', \
         'WINDLASS_OUTPUT', 'WINDLASS_PROJECT', 'WINDLASS_ROOT', 'WINDLASS_VERSION']"
    );
    assert!(!c.root().join("pwned").exists());
    assert!(!c.task_dir(task).join("script-0").exists());
}

#[tokio::test]
async fn failures_say_what_happened() {
    let mut c = Control::started().await;
    for (s, why) in [
        (script("s", "echo oh no >&2; exit 3"), "exited with code 3: oh no"),
        (script("s", "kill -9 $$"), "was killed by signal 9"),
        (
            step("s", "script", json!({ "run": "x", "interpreter": "no-such-program" })),
            "cannot start \"no-such-program\"",
        ),
        (step("s", "script", json!({ "run": "x", "interpreter": "bash -e" })), "write a list"),
        (step("s", "script", json!({ "run": "x", "user": "nobody" })), "user"),
        (step("s", "script", json!({ "run": "x", "args": "a b" })), "must be a list of texts"),
        (step("s", "script", json!({})), "`run` is missing"),
        (step("s", "service.restart", json!({ "command": ["id"], "user": "nobody" })), "user"),
        (step("s", "service.restart", json!({})), "`unit` or `command` is missing"),
        (step("s", "http.check", json!({ "url": "http://127.0.0.1:1/", "within_s": 0.2 })), "cannot be asked"),
    ] {
        let ran = c.run(vec![s]).await;
        assert!(failure(&ran).contains(why), "{why}: {}", failure(&ran));
    }
}

/// What restarts a service must never run as somebody else than the flow's account says.
#[tokio::test]
async fn a_restart_runs_as_its_account() {
    use std::os::unix::fs::MetadataExt;
    let mut c = Control::new().await;
    std::fs::write(c.state().join("policy.yaml"), "run_as: [nobody]\n").expect("writes");
    c.start_agent().await;
    let ran = c.run(vec![step("s", "service.restart", json!({ "command": ["id", "-un"], "user": "nobody" }))]).await;
    if std::fs::metadata("/proc/self").expect("own process").uid() == 0 {
        assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{:?}", ran.report);
        assert_eq!(ran.text().trim(), "nobody");
    } else {
        assert!(failure(&ran).contains("runs as root"), "{}", failure(&ran));
    }
}

#[tokio::test]
async fn a_retry_starts_where_it_is_told_and_clean_up_runs_after_a_failure() {
    let mut c = Control::started().await;
    let always = TaskStep { always: true, ..script("clean", "echo clean") };
    let steps =
        vec![script("one", "echo one"), script("two", "echo two; exit 1"), script("three", "echo three"), always];
    let mut offer = c.offer_of(steps);
    offer.start_at = 1;
    let task = c.begin(&offer).await;
    let ran = c.end(task).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Failed);
    assert_eq!(ran.text(), "two\nclean\n");
    use StepOutcome::{Failed, Skipped, Succeeded};
    let outcomes: Vec<_> = ran.report.steps.iter().map(|s| s.outcome).collect();
    assert_eq!(outcomes, [Skipped, Failed, Skipped, Succeeded]);
    assert_eq!(ran.report.steps[1].exit_code, Some(1));
}

#[tokio::test]
async fn files_are_put_whole_and_only_where_allowed() {
    let mut c = Control::new().await;
    let allowed = c.dir.path().join("allowed");
    std::fs::create_dir(&allowed).expect("dir");
    let outside = c.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("dir");
    std::fs::write(c.state().join("policy.yaml"), format!("writable: [{:?}]\n", allowed.display().to_string()))
        .expect("writes");
    c.start_agent().await;
    let put = |path: &str| vec![step("put", "file.put", json!({ "path": path, "content": "new", "mode": "0640" }))];
    let root = c.root();
    std::fs::create_dir(root.join("shared")).expect("dir");
    std::os::unix::fs::symlink(&outside, root.join("shared/escape")).expect("link");
    std::fs::write(outside.join("victim"), "old").expect("writes");
    std::os::unix::fs::symlink(outside.join("victim"), root.join("shared/link")).expect("link");
    for (path, at) in [
        ("etc/app.conf".to_owned(), root.join("shared/etc/app.conf")),
        (root.join("x").display().to_string(), root.join("x")),
        (allowed.join("y").display().to_string(), allowed.join("y")),
        ("link".to_owned(), root.join("shared/link")),
    ] {
        let ran = c.run(put(&path)).await;
        assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded, "{path}: {:?}", ran.report);
        assert_eq!(std::fs::read_to_string(&at).expect("reads"), "new");
        let meta = std::fs::symlink_metadata(&at).expect("file");
        assert!(meta.is_file() && meta.permissions().mode() & 0o777 == 0o640);
    }
    for path in ["escape/z", "../up", "a/../../up", "/etc/windlass-test", &outside.join("z").display().to_string()] {
        failure(&c.run(put(path)).await);
    }
    assert_eq!(std::fs::read_to_string(outside.join("victim")).expect("reads"), "old");
    assert_eq!(std::fs::read_dir(&outside).expect("dir").count(), 1);
}

#[tokio::test]
async fn enrolment_makes_a_key_and_keeps_what_it_is_given() {
    let key = nkeys::KeyPair::new_user().public_key();
    let answer = json!({
        "agent_id": uuid::Uuid::nil(), "host": "web-1", "nats_urls": ["nats://127.0.0.1:4222"], "jwt": "j",
        "executor_key": key, "approval_key": key,
    });
    let url = serve(answer.to_string().into_bytes()).await;
    let dir = windlass_testkit::temp_dir();
    let enroll = |state: &str, url: &str| {
        let mut c = tokio::process::Command::new(env!("CARGO_BIN_EXE_windlass-agent"));
        c.args(["enroll", "--server", url, "--token-file", "-", "--state"]).arg(dir.path().join(state));
        c.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = c.spawn().expect("starts");
        async move {
            let mut stdin = child.stdin.take().expect("stdin");
            let _ = stdin.write_all(b"token\n").await;
            drop(stdin);
            let out = child.wait_with_output().await.expect("ends");
            (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
        }
    };
    let (ok, said) = enroll("a", &url).await;
    assert!(ok, "{said}");
    let state = dir.path().join("a");
    let id = windlass_agent::identity::Identity::load(&state).expect("identity");
    assert_eq!((id.host.as_str(), id.jwt.as_str()), ("web-1", "j"));
    let mode = |p: &str| std::fs::metadata(state.join(p)).expect("file").permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("user.nk"), mode("identity.json")), (0o700, 0o600, 0o600));
    let (ok, said) = enroll("a", &url).await;
    assert!(!ok && said.contains("already holds the identity"), "{said}");
    let (ok, said) = enroll("b", "http://192.0.2.1:80").await;
    assert!(!ok && said.contains("--allow-http"), "{said}");
    assert!(!dir.path().join("b").exists());
}
