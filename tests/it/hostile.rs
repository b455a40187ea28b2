//! Bad input through the whole system: a clear error or a bounded effect, and the service still up. (Hooks, bodies and
//! tokens are tested with the api, archives and runaway steps with the agent; here they meet in one place.)

use crate::world::{Form, PATIENCE, World};
use serde_json::json;
use windlass_testkit::{Db, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn runaway_steps_are_bounded_and_stopped() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    w.agents(&["h1"]).await;

    // 200 MB of output: the step ends, the log is cut in the middle and says so.
    w.version("shop", "1.0.0", "head -c 200000000 /dev/zero | tr '\\0' 'x'; echo; echo the end").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&id, &["succeeded"]).await;
    let tasks = w.get(&format!("/deployments/{id}/tasks")).await;
    let task = tasks["items"].as_array().or(tasks.as_array()).expect("tasks")[0].clone();
    assert!(task["log_bytes"].as_u64().expect("bytes") > 200_000_000, "{task:#}");
    assert!(task["log_dropped"].as_u64().expect("dropped") > 150_000_000, "{task:#}");

    // A step that ignores TERM and forks away: abort ends all of it.
    let pids = w.dir.path().join("pids");
    let go = format!(
        "trap '' TERM\n( trap '' TERM; setsid bash -c 'trap \"\" TERM; echo $$ >> {p}; while :; do sleep 0.2; done' & )\necho $$ >> {p}\nwhile :; do sleep 0.2; done\n",
        p = pids.display()
    );
    w.version("shop", "2.0.0", &go).await;
    let id = w.deploy("shop", "beta", "2.0.0").await;
    let running: Vec<String> = eventually(PATIENCE, "both processes run", async || {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        let all: Vec<String> = text.lines().map(str::to_owned).collect();
        (all.len() == 2).then_some(all)
    })
    .await;
    w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "runs wild" })).await;
    w.until(&id, &["aborted"]).await;
    for pid in running {
        assert!(!std::path::Path::new("/proc").join(&pid).exists(), "process {pid} lives on");
    }

    // A package that reaches outside its directory is refused by the host; the reason reaches the person.
    let evil = w.dir.path().join("evil.tar.gz");
    let made = std::process::Command::new("tar")
        .args(["-czf"])
        .arg(&evil)
        .args(["-P", "--transform", "s,^.*,../../../../escaped,", "/etc/hostname"])
        .status()
        .expect("tar");
    assert!(made.success());
    let bytes = std::fs::read(&evil).expect("package");
    let digest: String = <sha2::Sha256 as sha2::Digest>::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let body = json!({ "version": "3.0.0", "url": format!("file://{}", evil.display()), "digest": format!("sha256:{digest}") });
    w.post("/projects/shop/artifacts", body).await;
    let id = w.deploy("shop", "beta", "3.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    let reason = d["waiting_on"][0]["text"].as_str().expect("text").to_owned();
    assert!(reason.contains(".."), "the reason names the entry: {reason}");
    w.get("/me").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_told_what_is_wrong() {
    let w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h1"], "1", 0, "parallel: 0")).await;
    let a = &w.admin;
    let post = |path: &'static str, body| w.send("POST", path, a, Some(body));
    let (status, p) =
        post("/projects/shop/deployments", json!({ "environment": "beta", "version": "9" })).await.expect("answers");
    assert!((400..500).contains(&status) && p["detail"].to_string().contains('9'), "{status} {p}");
    let (status, p) =
        post("/projects/shop/deployments", json!({ "environment": "beta", "version": "9", "enviroment": 1 }))
            .await
            .expect("answers");
    assert!(status == 400 || status == 422, "{status} {p}");
    assert!(p["detail"].to_string().contains("enviroment"), "names the field: {p}");
    let (status, p) =
        post("/projects/none/deployments", json!({ "environment": "beta", "version": "9" })).await.expect("answers");
    assert_eq!(status, 404, "{p}");
    // Unknown keys in the catalog: line and column.
    let r = w
        .http
        .post(format!("{}/api/v1/apply", w.base))
        .bearer_auth(a)
        .body("kind: project\nname: x\ngroup: y\ncolour: red\n")
        .send()
        .await
        .expect("answers");
    assert!(r.status().is_client_error());
    let p: serde_json::Value = r.json().await.expect("problem");
    assert_eq!(p["errors"][0]["line"], 4, "{p:#}");
    // Ten megabytes.
    let r = w.http.post(format!("{}/api/v1/apply", w.base)).bearer_auth(a).body(vec![b'x'; 10 << 20]).send().await;
    if let Ok(r) = r {
        assert_eq!(r.status().as_u16(), 413);
    }
    w.get("/me").await;
}
