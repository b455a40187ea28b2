//! Plugins and playbooks from the catalog to the step: frozen with the release, checked with the plan, called back over the
//! API, with secrets and outputs of earlier steps, and with a log that can be followed.

use crate::{
    ssh::Reach,
    world::{Form, PATIENCE, World},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{path::Path, time::Duration};
use windlass_testkit::{Db, eventually, workspace};

const SECRET: &str = "correct-horse-battery";

/// Asks somebody outside and waits for the answer; says too much on purpose.
const ASK: &str = r#"#!/usr/bin/python3
import json, sys
r = json.load(sys.stdin)
i = r["inputs"]
if r["verb"] == "execute":
    open(i["file"], "w").write(r["callback_url"])
    assert isinstance(i["lines"], int), i
    print("the token is", i["token"], file=sys.stderr)
    print(json.dumps({"status": "waiting", "message": "asked with " + i["token"]}))
else:
    print(json.dumps({"status": "succeeded", "outputs": {"by": r["callback"]["by"], "token": i["token"]}}))
"#;

fn install(dir: &Path, name: &str, content: &[u8]) -> String {
    std::fs::write(dir.join(name), content).expect("writes");
    format!("sha256:{}", Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect::<String>())
}

fn flow(dir: &Path, extra: &str) -> String {
    let dir = dir.display();
    format!(
        r#"kind: flow
project: shop
flow: web
steps:
  - id: note
    uses: plugin/changelog
    with: {{ file: "{dir}/CHANGES", text: "shop ${{{{ artifact.version }}}}"{extra} }}
  - id: ask
    needs: [note]
    uses: plugin/ask@1.0.0
    with: {{ file: "{dir}/url", token: "${{{{ secrets.chat }}}}", lines: "${{{{ steps.note.outputs.lines }}}}" }}
  - id: book
    needs: [ask]
    uses: ansible.playbook
    with:
      connection: local
      vars: {{ by: "${{{{ steps.ask.outputs.by }}}}", token: "${{{{ secrets.chat }}}}" }}
      playbook: |
        - hosts: role_web
          gather_facts: false
          tasks:
            - copy: {{ dest: "{dir}/book", content: "{{{{ by }}}} {{{{ windlass_version }}}}" }}
            - debug: {{ msg: "{{{{ token }}}}" }}
"#
    )
}

async fn journey(db: Db) {
    let w = World::start(db, Form::Embedded).await;
    let programs = w.state().join("plugins");
    std::fs::create_dir_all(&programs).expect("directory");
    let out = w.dir.path().join("out");
    std::fs::create_dir_all(&out).expect("directory");
    let example = workspace().join("ops/plugins/shell");
    let script = std::fs::read(example.join("changelog.sh")).expect("example");
    let changelog = std::fs::read_to_string(example.join("plugin.yaml")).expect("definition");
    let one = changelog.replace("DIGEST", &install(&programs, "changelog.sh", &script));
    let ask = format!(
        "kind: plugin\nname: ask\nversion: 1.0.0\ntransport: {{ type: exec, path: ask.py, digest: \"{}\" }}\n\
         verbs: [execute, callback]\nsecrets: [token]\ninputs:\n  type: object\n  additionalProperties: false\n  required: [file, token, lines]\n  \
         properties: {{ file: {{ type: string }}, token: {{ type: string }}, lines: {{ type: integer }} }}\n",
        install(&programs, "ask.py", ASK.as_bytes())
    );
    let around = "kind: project\nname: shop\ngroup: retail\n---\nkind: host\nname: h1\naddress: 127.0.0.1\nlabels: { role: web }\n---\n\
                  kind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [h1]\n";
    w.apply(&format!("{around}---\n{one}---\n{ask}---\n{}", flow(&out, ", colour: red"))).await;
    w.secret("project.shop", "chat", SECRET).await;
    w.version("shop", "1.0.0", "true").await;

    let body = json!({ "environment": "beta", "version": "1.0.0" });
    let (status, refused) =
        w.send("POST", "/projects/shop/deployments", &w.admin, Some(body.clone())).await.expect("answers");
    let text = refused.to_string();
    assert!(
        status >= 400 && text.contains("does not fit the plugin changelog@1.0.0") && text.contains("`colour`"),
        "{status} {text}"
    );

    w.apply(&flow(&out, "")).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let url = eventually(PATIENCE, "it asks", async || {
        let waits = w.get(&format!("/deployments/{id}")).await.to_string();
        assert!(!waits.contains("\"failed\"") || waits.contains("\"running\""), "{waits}");
        std::fs::read_to_string(out.join("url")).ok().filter(|u| !u.is_empty())
    })
    .await;
    // A newer version comes while the deployment runs; its program is not what it says.
    let two = changelog.replace("DIGEST", &format!("sha256:{}", "0".repeat(64))).replace("1.0.0", "1.1.0");
    w.apply(&two).await;
    let plan = w.get(&format!("/deployments/{id}/plan")).await.to_string();
    assert!(plan.contains("plugin/changelog@1.0.0") && !plan.contains(SECRET), "{plan}");

    let call = async || {
        let r = w.http.post(&url).json(&json!({ "by": "ann" })).send().await.expect("answers");
        r.status().as_u16()
    };
    assert_eq!(call().await, 202);
    w.until(&id, &["succeeded"]).await;
    assert!(matches!(call().await, 404 | 409), "an address is good for one callback");
    assert!(std::fs::read_to_string(out.join("CHANGES")).expect("written").contains("shop 1.0.0 ["));
    assert_eq!(std::fs::read_to_string(out.join("book")).expect("written"), "ann 1.0.0");

    let logs = w.http.get(format!("{}/api/v1/deployments/{id}/logs?host=-", w.base)).bearer_auth(&w.admin);
    let logs = logs.header("accept", "application/json").send().await.expect("answers");
    let logs: Value = serde_json::from_str(&logs.text().await.expect("text")).expect("JSON");
    let decoded = |c: &Value| String::from_utf8(STANDARD.decode(c["data"].as_str()?).ok()?).ok();
    let text: String = logs["items"].as_array().expect("chunks").iter().filter_map(decoded).collect();
    for part in ["written to", "the token is ***", "TASK [copy]", "\"msg\": \"***\""] {
        assert!(text.contains(part), "{part}: {text} {logs}");
    }
    let told = w.get(&format!("/deployments/{id}")).await.to_string() + &logs.to_string();
    assert!(!told.contains(SECRET) && !text.contains(SECRET), "{told}");

    let id = w.deploy("shop", "beta", "1.0.0").await;
    let failed = eventually(PATIENCE, "the newest version is taken, and refused", async || {
        let d = w.get(&format!("/deployments/{id}")).await.to_string();
        d.contains("but the release was made with").then_some(d)
    })
    .await;
    assert!(failed.contains("changelog@1.1.0"), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_calls_plugins_and_a_playbook() {
    for db in [Db::sqlite(), Db::postgres().await] {
        journey(db).await;
    }
}

/// Says what it is asked, and to take back what.
const TRACE: &str = r#"#!/usr/bin/python3
import json, sys
r = json.load(sys.stdin)
u, i = r.get("undo", {}), r["inputs"]
with open(i["trace"], "a") as f:
    print(r["verb"], r["step"], u.get("step"), i["lines"], i["token"] == "correct-horse-battery",
          u.get("outputs", {}).get("made") == u.get("call"), u.get("state"), file=f)
print(json.dumps({"status": "succeeded", "outputs": {"made": r["call"]}, "state": 7}))
"#;

/// The verbs that a rollback of each kind asks, and in which place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_takes_back_what_plugins_did() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    let programs = w.state().join("plugins");
    std::fs::create_dir_all(&programs).expect("directory");
    let out = w.dir.path().join("out");
    std::fs::create_dir_all(&out).expect("directory");
    let example = workspace().join("ops/plugins/shell");
    let script = std::fs::read(example.join("changelog.sh")).expect("example");
    let changelog = std::fs::read_to_string(example.join("plugin.yaml")).expect("definition");
    let changelog = changelog.replace("DIGEST", &install(&programs, "changelog.sh", &script));
    let trace = format!(
        "kind: plugin\nname: trace\nversion: 1.0.0\ntransport: {{ type: exec, path: trace.py, digest: \"{}\" }}\nverbs: [execute, undo]\nsecrets: [token]\n\
         inputs: {{ type: object, properties: {{ trace: {{ type: string }}, lines: {{ type: integer }}, token: {{ type: string }} }} }}\n",
        install(&programs, "trace.py", TRACE.as_bytes())
    );
    let dir = out.display();
    let host = format!("{{ uses: script, with: {{ run: 'echo $WINDLASS_VERSION >> {dir}/trace' }} }}");
    let y = format!(
        r#"kind: project
name: shop
group: retail
---
kind: host
name: h1
address: 127.0.0.1
labels: {{ role: web }}
---
kind: environment
project: shop
name: beta
flow: web
hosts: [h1]
---
{changelog}---
{trace}---
kind: flow
project: shop
flow: web
steps:
  - id: note
    uses: plugin/changelog
    with: {{ file: "{dir}/CHANGES", text: "shop ${{{{ artifact.version }}}}" }}
  - {{ id: roll, needs: [note], waves: 1, steps: [{host}] }}
  - id: tell
    needs: [roll]
    uses: plugin/trace
    with: {{ trace: "{dir}/trace", token: "${{{{ secrets.chat }}}}", lines: "${{{{ steps.note.outputs.lines }}}}" }}
rollback:
  normal: [{host}]
  emergency: [{host}]
"#
    );
    w.apply(&y).await;
    w.agents(&["h1"]).await;
    w.secret("project.shop", "chat", SECRET).await;
    let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("written");
    let mut seen = Vec::new();
    for v in ["1.0.0", "1.1.0", "1.2.0"] {
        w.version("shop", v, "true").await;
    }
    let first = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&first, &["succeeded"]).await;
    for (version, lines, body) in
        [("1.1.0", 2, json!({ "reason": "slow" })), ("1.2.0", 2, json!({ "reason": "down", "mode": "emergency" }))]
    {
        std::fs::remove_file(out.join("trace")).expect("there");
        let id = w.deploy("shop", "beta", version).await;
        w.until(&id, &["succeeded"]).await;
        assert_eq!(read("CHANGES").lines().count(), lines);
        let answer = w.post(&format!("/deployments/{id}/rollback"), body).await;
        let back = answer["new_deployment"].as_str().expect("the rollback's id").to_owned();
        let plan = w.get(&format!("/deployments/{back}/plan")).await;
        let note = plan.to_string();
        assert!(note.contains(&format!("undo: takes back step `tell` (attempt 1) of deployment {id}")), "{note}");
        w.until(&back, &["succeeded"]).await;
        assert_eq!(read("CHANGES").lines().count(), 1, "the line of {version} is out, and no other");
        assert!(read("CHANGES").contains("shop 1.0.0 ["));
        seen.push(read("trace"));
    }
    let did = "execute tell None 2 True True None";
    let undid = "undo undo-tell tell 2 True True 7";
    assert_eq!(seen[0], format!("1.1.0\n{did}\n{undid}\n1.0.0\n"), "behind the hosts, so before them");
    assert_eq!(seen[1], format!("1.2.0\n{did}\n1.0.0\n{undid}\n"), "in an emergency the hosts go first");
}

/// Over real SSH: both hosts, one of them through the other, each with its pinned key; and never with a wrong one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_playbook_reaches_hosts_as_the_catalog_says() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.reach(Reach::Ssh, &["h1", "h2"]).await;
    let out = w.dir.path().join("out");
    std::fs::create_dir_all(&out).expect("directory");
    let dir = out.display();
    let flow = format!(
        r#"kind: flow
project: shop
flow: web
steps:
  - id: book
    uses: ansible.playbook
    timeout: 110s
    with:
      vars: {{ word: "{{{{ evil }}}} ${{{{ artifact.version }}}}" }}
      playbook: |
        - hosts: role_web
          gather_facts: false
          tasks:
            - command: printenv SSH_CONNECTION
              register: way
            - copy: {{ dest: "{dir}/{{{{ inventory_hostname }}}}", content: "{{{{ word }}}} {{{{ way.stdout | length > 9 }}}}" }}
"#
    );
    let host = |name: &str, ssh: String| {
        format!("kind: host\nname: {name}\naddress: 127.0.0.1\nlabels: {{ role: web }}\n{ssh}---\n")
    };
    let rest = format!(
        "kind: project\nname: shop\ngroup: retail\n---\nkind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [h1, h2]\n---\n{flow}"
    );
    let through = w.ssh_of("h1") + "  jump: h2\n";
    w.apply(&(host("h1", through) + &host("h2", w.ssh_of("h2")) + &rest)).await;
    w.version("shop", "1.0.0", "true").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let d = w.until(&id, &["succeeded"]).await;
    for name in ["h1", "h2"] {
        assert_eq!(std::fs::read_to_string(out.join(name)).expect("written"), "{{ evil }} 1.0.0 True", "{d:#}");
    }
    // A host's tasks share one connection. By itself it would stay for 30 idle seconds.
    let runs = w.state().join("runs").display().to_string();
    eventually(Duration::from_secs(20), "no connection stays", async || {
        let lines = std::fs::read_dir("/proc").expect("processes").flatten();
        let mut lines = lines.filter_map(|p| std::fs::read_to_string(p.path().join("cmdline")).ok());
        (!lines.any(|l| l.contains(&runs))).then_some(())
    })
    .await;

    // h2 presents another key than the one that is pinned now.
    let pinned = |text: String| text.lines().find(|l| l.contains("host_key:")).expect("a key").to_owned();
    let wrong = w.ssh_of("h2").replace(&pinned(w.ssh_of("h2")), &pinned(w.ssh_of("h1")));
    w.apply(&(host("h1", w.ssh_of("h1")) + &host("h2", wrong))).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    let said = eventually(PATIENCE, "the step has failed", async || {
        let d = w.get(&format!("/deployments/{id}")).await.to_string();
        d.contains("did not come through").then_some(d)
    })
    .await;
    assert!(said.contains("1 of 2 hosts") && said.contains("h2 unreachable"), "{said}");
    let left = std::fs::read_dir(w.state().join("runs")).expect("runs").count();
    assert_eq!(left, 0, "keys stay behind");
}
