//! A flow whose host steps a test steers by files: each leaves a mark with its time, waits while it is held, and fails with
//! the exit code it is told.

use crate::world::{Form, PATIENCE, World};
use serde_json::{Value, json};
use std::path::PathBuf;
use windlass_testkit::{Db, eventually};

/// The start of a host step: `<task> <host> <step> <nanoseconds>`.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) task: String,
    pub(crate) host: String,
    pub(crate) step: String,
    pub(crate) at: i64,
}

pub(crate) fn now_ns() -> i64 {
    chrono::Utc::now().timestamp_nanos_opt().expect("in range")
}

/// A host step that leaves a mark, is held by `hold-<host>` and fails by `fail-<host>` (its text is the exit code).
fn step(dir: &str, id: &str) -> String {
    format!(
        r#"      - id: {id}
        uses: script
        timeout: 90s
        with:
          run: |
            echo "$TASK_KEY $WINDLASS_HOST {id} $(date +%s%N)" >> {dir}/marks
            while [ -e {dir}/hold-$WINDLASS_HOST-{id} ]; do sleep 0.05; done
            if [ -e {dir}/fail-$WINDLASS_HOST-{id} ]; then exit "$(cat {dir}/fail-$WINDLASS_HOST-{id})"; fi
            echo "$TASK_KEY $WINDLASS_HOST {id}.end $(date +%s%N)" >> {dir}/marks
"#
    )
}

pub(crate) struct Lab {
    pub(crate) w: World,
    pub(crate) hosts: Vec<String>,
}

impl Lab {
    /// Hosts with these labels (`name: label=value,…`), an environment `beta`, agents, and versions 1.0.0 and 1.1.0.
    pub(crate) async fn start(db: Db, hosts: &[(&str, &str)]) -> Lab {
        let mut w = World::start(db, Form::Embedded).await;
        let names: Vec<&str> = hosts.iter().map(|(h, _)| *h).collect();
        let mut y = String::from("kind: project\nname: shop\ngroup: retail\nhooks:\n  cdevents: { secret: ci }\n");
        for (h, labels) in hosts {
            let labels = labels.replace('=', ": ").replace(',', ", ");
            y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\nlabels: {{ {labels} }}\n");
        }
        y += &format!("---\nkind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [{}]\n", names.join(", "));
        y += "---\nkind: flow\nproject: shop\nflow: web\nsteps:\n  - { id: wait, uses: wait, with: { for: 1s } }\n";
        w.apply(&y).await;
        w.agents(&names).await;
        for v in ["1.0.0", "1.1.0", "1.2.0"] {
            w.version("shop", v, "true").await;
        }
        Lab { w, hosts: names.into_iter().map(str::to_owned).collect() }
    }

    pub(crate) fn dir(&self) -> String {
        self.w.dir.path().display().to_string()
    }

    fn file(&self, kind: &str, host: &str, step: &str) -> PathBuf {
        self.w.dir.path().join(format!("{kind}-{host}-{step}"))
    }

    pub(crate) fn hold(&self, host: &str, step: &str) {
        std::fs::write(self.file("hold", host, step), "").expect("file");
    }

    pub(crate) fn let_go(&self, host: &str, step: &str) {
        std::fs::remove_file(self.file("hold", host, step)).expect("it was held");
    }

    pub(crate) fn fail(&self, host: &str, step: &str, code: u8) {
        std::fs::write(self.file("fail", host, step), code.to_string()).expect("file");
    }

    pub(crate) fn mend(&self, host: &str, step: &str) {
        std::fs::remove_file(self.file("fail", host, step)).expect("it failed");
    }

    /// The steered host steps with these ids.
    pub(crate) fn steps(&self, ids: &[&str]) -> String {
        ids.iter().map(|id| step(&self.dir(), id)).collect()
    }

    /// A flow `web` with one rollout: these lines of its own, and these host steps.
    pub(crate) fn rollout(&self, lines: &str, ids: &[&str]) -> String {
        let mut y = String::from("kind: flow\nproject: shop\nflow: web\non_failure: pause\nsteps:\n  - id: rollout\n");
        for l in lines.trim().lines() {
            y += &format!("    {l}\n");
        }
        y + "    steps:\n" + &self.steps(ids)
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        let text = std::fs::read_to_string(self.w.dir.path().join("marks")).unwrap_or_default();
        let mark = |l: &str| {
            let f: Vec<&str> = l.split_whitespace().collect();
            let [task, host, step, at] = f[..] else { return None };
            Some(Mark { task: task.into(), host: host.into(), step: step.into(), at: at.parse().ok()? })
        };
        text.lines().filter_map(mark).collect()
    }

    /// When a step of a host began; it must have begun once.
    pub(crate) fn began(&self, host: &str, step: &str) -> i64 {
        let all = self.marks();
        let mine: Vec<&Mark> = all.iter().filter(|m| m.host == host && m.step == step).collect();
        assert_eq!(mine.len(), 1, "{step} of {host}: {all:#?}");
        mine[0].at
    }

    pub(crate) fn times(&self, host: &str, step: &str) -> usize {
        self.marks().iter().filter(|m| m.host == host && m.step == step).count()
    }

    pub(crate) fn assert_started_once(&self) {
        let mut seen = std::collections::BTreeSet::new();
        for m in self.marks() {
            let what = (m.task, m.host, m.step);
            assert!(!seen.contains(&what), "{what:?} was started twice");
            seen.insert(what);
        }
    }

    pub(crate) async fn until_began(&self, host: &str, step: &str) {
        let what = format!("{step} of {host} begins");
        eventually(PATIENCE, &what, async || (self.times(host, step) > 0).then_some(())).await;
    }

    pub(crate) async fn get(&self, id: &str) -> Value {
        self.w.get(&format!("/deployments/{id}")).await
    }

    /// Waits until this is so of the deployment.
    pub(crate) async fn sees(&self, id: &str, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let last = std::sync::Mutex::new(Value::Null);
        let seen = tokio::time::timeout(PATIENCE, async {
            loop {
                let d = self.get(id).await;
                if so(&d) {
                    return d;
                }
                *last.lock().expect("lock") = d;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        });
        match seen.await {
            Ok(d) => d,
            Err(_) => panic!("{what}: not so in time: {:#}", last.lock().expect("lock")),
        }
    }

    /// Waits until the deployment asks a person for this.
    pub(crate) async fn asks(&self, id: &str, on: &str) -> Value {
        self.sees(id, on, |d| {
            assert!(d["ended_at"].is_null(), "it ended: {d:#}");
            d["waiting_on"].as_array().is_some_and(|w| w.iter().any(|w| w["on"] == on))
        })
        .await
    }

    /// A verb as the admin; it must be taken.
    pub(crate) async fn verb(&self, id: &str, verb: &str, body: Value) -> Value {
        self.w.post(&format!("/deployments/{id}/{verb}"), body).await
    }

    /// A verb that must be refused with this code.
    pub(crate) async fn refused(&self, token: &str, id: &str, verb: &str, body: Value, code: &str) -> Value {
        let (status, answer) =
            self.w.send("POST", &format!("/deployments/{id}/{verb}"), token, Some(body)).await.expect("answers");
        assert_eq!((status, answer["code"].as_str()), (409, Some(code)), "{verb}: {answer:#}");
        answer
    }

    pub(crate) async fn deploy(&self, version: &str) -> String {
        self.w.deploy("shop", "beta", version).await
    }

    /// A deployment that starts by itself a little later.
    pub(crate) async fn schedule(&self, version: &str) -> String {
        let at = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
        let body = json!({ "environment": "beta", "version": version, "not_before": at.to_rfc3339() });
        let answer = self.w.post("/projects/shop/deployments", body).await;
        answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned()
    }

    /// Deploys, and sees it succeed.
    pub(crate) async fn released(&self, version: &str) -> String {
        let id = self.deploy(version).await;
        self.w.until(&id, &["succeeded"]).await;
        id
    }
}

/// The hosts of a wave of a step with their states.
pub(crate) fn wave(d: &Value, step: &str, wave: usize) -> Vec<(String, String)> {
    let steps = d["steps"].as_array().expect("steps");
    let step = steps.iter().find(|s| s["id"] == step).unwrap_or_else(|| panic!("no step {step}: {d:#}"));
    let hosts = step["waves"][wave]["hosts"].as_array().unwrap_or_else(|| panic!("no wave {wave}: {d:#}"));
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    hosts.iter().map(|h| (text(&h["host"]), text(&h["state"]))).collect()
}

/// The state of a host in any wave of a step.
pub(crate) fn host(d: &Value, step: &str, name: &str) -> Value {
    let steps = d["steps"].as_array().expect("steps");
    let step = steps.iter().find(|s| s["id"] == step).unwrap_or_else(|| panic!("no step {step}: {d:#}"));
    let waves = step["waves"].as_array().expect("waves");
    let mut all = waves.iter().filter_map(|w| w["hosts"].as_array()).flatten();
    all.find(|h| h["host"] == name).unwrap_or_else(|| panic!("no host {name}: {d:#}")).clone()
}
