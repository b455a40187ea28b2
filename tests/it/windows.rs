//! Windows hosts, as far as they can be tested without one: a real sshd, the real control plane, and a stand-in in the place of
//! PowerShell (`windows/standin.py`), which runs scripts with `sh`. The scripts themselves are parsed in the executor's tests.

use crate::{
    ssh::log_of,
    world::{Form, PATIENCE, World},
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use windlass_testkit::{Db, eventually};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

/// Texts that quoting would have to get right.
const NASTY: [&str; 6] =
    ["'; exit 9 #", "\"$(exit 9)`", "two\nlines\r\n", "%PATH% ^& | \\", "日本 \u{1F680} \u{2019}", "--%  {0} ' '"];

struct Windows {
    w: World,
    faults: PathBuf,
}

impl Windows {
    async fn start(db: Db, form: Form) -> Windows {
        let mut w = World::start(db, form).await;
        let faults = w.dir.path().join("faults");
        std::fs::create_dir_all(&faults).expect("directory");
        let standin = repository().join("tests/it/windows/standin.py");
        let bootstrap = repository().join("services/executor/src/ssh/windows/bootstrap.ps1");
        let python =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().expect("python3");
        let python = String::from_utf8_lossy(&python.stdout).trim().to_owned();
        let command = format!("{python} {} {} {}", standin.display(), bootstrap.display(), faults.display());
        w.reach_windows("h1", &command).await;
        w.apply(&Windows::catalog(&w)).await;
        w.version("shop", "1.0.0", "true").await;
        Windows { w, faults }
    }

    /// One script that says who it is, keeps its values, waits for a gate; a question over HTTP; and another script.
    fn catalog(w: &World) -> String {
        let dir = w.dir.path().display().to_string();
        let values: Vec<String> = (0..NASTY.len()).map(|i| format!("$V{i}")).collect();
        let env: serde_json::Map<String, Value> =
            NASTY.iter().enumerate().map(|(i, v)| (format!("V{i}"), json!(v))).collect();
        let flow = json!({
            "kind": "flow", "project": "shop", "flow": "windows", "on_failure": "pause",
            "steps": [{ "id": "rollout", "waves": "1", "steps": [
                { "id": "go", "uses": "script", "timeout": "60s", "with": {
                    "interpreter": "powershell.exe", "env": env,
                    "run": format!(
                        "echo \"$TASK_KEY $WINDLASS_HOST go\" >> {dir}/marks\nprintf '%s|' {} > {dir}/values\necho before the cut\n\
                         while [ ! -e {dir}/gate ]; do sleep 0.05; done\necho after the cut\nexit $(cat {dir}/gate)\n",
                        values.iter().map(|v| format!("\"{v}\"")).collect::<Vec<_>>().join(" ")
                    ),
                } },
                { "id": "check", "uses": "http.check", "with": { "url": format!("{}/healthz", w.base) } },
                { "id": "after", "uses": "script", "with": {
                    "interpreter": "powershell.exe",
                    "run": format!("echo \"$TASK_KEY $WINDLASS_HOST after\" >> {dir}/marks\n"),
                } },
            ] }],
        });
        format!(
            "kind: project\nname: shop\ngroup: retail\n---\nkind: host\nname: h1\naddress: 127.0.0.1\n{}---\nkind: environment\n\
             project: shop\nname: beta\nflow: windows\nhosts: [h1]\n---\n{flow}\n",
            w.ssh_of("h1")
        )
    }

    fn gate(&self, code: u8) {
        let path = self.w.dir.path().join("gate");
        std::fs::write(path.with_extension("new"), code.to_string()).expect("writes");
        std::fs::rename(path.with_extension("new"), path).expect("renames");
    }

    async fn runs(&self, starts: usize) {
        eventually(PATIENCE, "the step runs", async || (self.w.starts().len() == starts).then_some(())).await;
    }

    async fn tasks(&self, id: &str) -> String {
        self.w.get(&format!("/deployments/{id}/tasks")).await.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_on_windows_outlives_its_link_and_is_found_again() {
    let win = Windows::start(Db::sqlite(), Form::Embedded).await;
    let w = &win.w;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    win.runs(1).await;
    let first = w.host("h1").await["agent"]["instance"].clone();
    for _ in 0..2 {
        let before = w.links("h1");
        w.cut("h1");
        eventually(PATIENCE, "another connection", async || {
            w.links("h1").iter().any(|p| !before.contains(p)).then_some(())
        })
        .await;
    }
    win.gate(0);
    w.until(&id, &["succeeded"]).await;
    assert_eq!(w.starts().len(), 2, "{:?}", w.starts());
    w.assert_started_once();
    assert_eq!(w.host("h1").await["agent"]["instance"], first, "the same journal all along");
    let values = std::fs::read_to_string(w.dir.path().join("values")).expect("the step wrote it");
    assert_eq!(values, NASTY.map(|v| format!("{v}|")).concat());
    eventually(PATIENCE, "the whole log, once", async || {
        log_of(w, &id).await.contains("before the cut\nafter the cut\n").then_some(())
    })
    .await;
    assert_eq!(log_of(w, &id).await.matches("the cut").count(), 2);
    // What is over is forgotten there.
    let tasks = w.agent_dir("h1").join("tasks");
    eventually(PATIENCE, "the task's directory is gone", async || {
        (std::fs::read_dir(&tasks).expect("lists").count() == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_stops_and_lost_starts_on_windows_are_told_apart() {
    let win = Windows::start(Db::sqlite(), Form::Embedded).await;
    let w = &win.w;
    // Nothing comes of the start: that is proven, and said.
    std::fs::write(win.faults.join("lose-runner"), "").expect("writes");
    let id = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&id, &["paused"]).await;
    assert!(win.tasks(&id).await.contains("\"not_started\""), "{}", win.tasks(&id).await);
    assert!(w.starts().is_empty());
    std::fs::remove_file(win.faults.join("lose-runner")).expect("removes");
    // It runs, and fails with a code.
    win.gate(3);
    w.post(&format!("/deployments/{id}/retry"), json!({})).await;
    win.runs(1).await;
    eventually(PATIENCE, "the failure with its code", async || {
        win.tasks(&id).await.contains("exited with code 3: after the cut").then_some(())
    })
    .await;
    w.until(&id, &["paused"]).await;
    // It is stopped in mid-run.
    std::fs::remove_file(w.dir.path().join("gate")).expect("removes");
    w.post(&format!("/deployments/{id}/retry"), json!({})).await;
    win.runs(2).await;
    w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "enough" })).await;
    w.until(&id, &["aborted"]).await;
    assert!(win.tasks(&id).await.contains("\"cancelled\""), "{}", win.tasks(&id).await);
    // What is not built is refused before anything happens.
    let other = "kind: flow\nproject: shop\nflow: windows\nsteps:\n  - { id: rollout, waves: \"1\", steps: [ { uses: artifact.fetch } ] }\n";
    w.apply(other).await;
    let body = json!({ "environment": "beta", "version": "1.0.0" });
    let (status, refused) = w.send("POST", "/projects/shop/deployments", &w.admin, Some(body)).await.expect("answers");
    assert!(status == 409 && refused.to_string().contains("reached through PowerShell"), "{status} {refused}");
    w.assert_started_once();
    // The library's flow for it asks for nothing more than there is.
    let library = std::fs::read_to_string(repository().join("ops/flows/dotnet-windows.yaml")).expect("the flow");
    w.apply(&library.replace("project: my-project", "project: shop")).await;
    w.apply("kind: environment\nproject: shop\nname: beta\nflow: dotnet-windows\nhosts: [h1]\n").await;
    let body = json!({ "environment": "beta", "version": "1.0.0" });
    let (status, plan) = w.send("POST", "/projects/shop/plan", &w.admin, Some(body)).await.expect("answers");
    assert!(status == 200 && plan.to_string().contains("powershell.exe"), "{status} {plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_executor_carries_a_windows_host_on() {
    let mut win = Windows::start(Db::postgres().await, Form::Scaled).await;
    let id = win.w.deploy("shop", "beta", "1.0.0").await;
    win.runs(1).await;
    win.w.start_process("executor-2");
    win.w.kill("executor");
    win.gate(0);
    win.w.until(&id, &["succeeded"]).await;
    assert_eq!(win.w.starts().len(), 2, "{:?}", win.w.starts());
    win.w.assert_started_once();
}

#[test]
fn the_stand_in_knows_every_request_of_the_host_script() {
    let read = |p: &str| std::fs::read_to_string(repository().join(p)).expect("reads");
    let script = read("services/executor/src/ssh/windows/host.ps1");
    let standin = read("tests/it/windows/standin.py");
    let asked: Vec<&str> = script
        .lines()
        .filter_map(|l| l.trim().strip_prefix('\'')?.split_once("' {").map(|(verb, _)| verb))
        .filter(|v| v.chars().all(|c| c.is_ascii_lowercase()))
        .collect();
    assert!(asked.len() >= 8, "{asked:?}");
    for verb in asked {
        assert!(standin.contains(&format!("do == \"{verb}\"")), "{verb}");
    }
}
