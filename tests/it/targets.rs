//! Who takes part and what each host is given, on real agents: groups, selectors, exclusions and temporary hosts; values of
//! every scope; files of hosts; a locked host that waits; and a preview whose digest is the one that runs.

use crate::world::{Form, PATIENCE, World};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use windlass_testkit::{Db, eventually};

const HOSTS: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];

fn catalog(dir: &std::path::Path) -> String {
    let dir = dir.display();
    let mut y = String::from(
        "kind: group\nname: retail\nvalues: { tone: group, size: group, place: group }\n---\n\
         kind: project\nname: shop\ngroup: retail\nvalues: { size: project }\n",
    );
    for (h, role) in HOSTS.iter().zip(["web", "web", "db", "web", "spare"]) {
        y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\nlabels: {{ role: {role} }}\n");
        y += &format!("files: {{ motd: \"this is {h}\\n\" }}\n");
        if *h == "h2" {
            y += "values: { place: rack-2 }\n";
        }
    }
    y + &format!(
        r#"---
kind: host_group
name: front
hosts: [h2, h1]
---
kind: environment
project: shop
name: sdk_beta
hosts: [h3]
groups: [front]
selector: role=web
exclude: [h4]
values: {{ tone: "of ${{env}}" }}
flow: web
---
kind: flow
project: shop
flow: web
inputs:
  greeting: {{ type: string, min_length: 3, pattern: "[a-z ]+" }}
steps:
  - id: everywhere
    waves: "1 *4"
    steps:
      - id: tell
        uses: script
        with:
          env:
            TEXT: "${{{{ inputs.greeting }}}}|${{{{ values.tone }}}}|${{{{ values.size }}}}|${{{{ values.place }}}}|${{{{ env.service }}}}|${{{{ env.tier }}}}"
          run: printf '%s' "$TEXT" > {dir}/told-$WINDLASS_HOST
      - uses: file.put
        with: {{ path: motd, content: "${{{{ host.files.motd }}}}" }}
  - id: webs
    needs: [everywhere]
    on: role=web
    waves: "100%"
    steps:
      - {{ id: touch, uses: script, with: {{ run: "touch {dir}/web-$WINDLASS_HOST" }} }}
  - id: nobody
    needs: [webs]
    on: role=mail
    waves: "100%"
    steps:
      - {{ id: touch, uses: script, with: {{ run: "touch {dir}/mail-$WINDLASS_HOST" }} }}
"#
    )
}

fn hosts_of(w: &Value) -> Vec<&str> {
    w.as_array().expect("hosts").iter().filter_map(|h| h["name"].as_str()).collect()
}

async fn hosts_get_what_is_theirs(db: Db) {
    let mut w = World::start(db, Form::Embedded).await;
    let dir = w.dir.path().join("said");
    std::fs::create_dir_all(&dir).expect("directory");
    w.apply(&catalog(&dir)).await;
    w.agents(&HOSTS).await;
    w.version("shop", "1.0.0", "true").await;

    let mut body = json!({
        "environment": "sdk_beta", "version": "1.0.0", "inputs": { "greeting": "NO" },
        "values": { "size": "release" }, "exclude_hosts": ["h1"], "add_hosts": ["h5"],
    });
    let sent = w.send("POST", "/projects/shop/deployments", &w.admin, Some(body.clone())).await;
    let (status, refused) = sent.expect("answers");
    assert_eq!(status, 422, "{refused}");
    assert!(refused.to_string().contains("greeting"), "{refused}");
    body["inputs"]["greeting"] = json!("good day");

    let plan = w.post("/projects/shop/plan", body.clone()).await;
    assert_eq!(hosts_of(&plan["plan"]["hosts"]), ["h3", "h2", "h5"], "named, then of groups, then temporary");
    w.post("/hosts/h5/lock", json!({ "reason": "disk swap" })).await;
    let made = w.post("/projects/shop/deployments", body).await;
    let id = made["new_deployment"].as_str().or(made["deployment"].as_str()).expect("id").to_owned();
    eventually(PATIENCE, "the locked host is waited for", async || {
        let d = w.get(&format!("/deployments/{id}")).await;
        d["waiting_on"].to_string().contains("disk swap").then_some(())
    })
    .await;
    assert!(!dir.join("told-h5").exists(), "nothing runs on a locked host");
    w.post("/hosts/h5/unlock", json!({})).await;
    let d = w.until(&id, &["succeeded"]).await;
    assert_eq!(d["plan_digest"], plan["digest"], "what was shown is what ran");

    let said: BTreeMap<&str, String> =
        HOSTS.iter().filter_map(|h| Some((*h, std::fs::read_to_string(dir.join(format!("told-{h}"))).ok()?))).collect();
    let plain = "good day|of ${env}|release|group|sdk|beta".to_owned();
    let rack = "good day|of ${env}|release|rack-2|sdk|beta".to_owned();
    assert_eq!(said, BTreeMap::from([("h2", rack), ("h3", plain.clone()), ("h5", plain)]));
    for h in ["h2", "h3", "h5"] {
        let motd = std::fs::read_to_string(w.root(h).join("shared/motd")).expect("the host's own file");
        assert_eq!(motd, format!("this is {h}\n"));
    }
    let touched: Vec<&str> = HOSTS.into_iter().filter(|h| dir.join(format!("web-{h}")).exists()).collect();
    assert_eq!(touched, ["h2"], "of the hosts that take part, those of the selector");
    let step =
        |name: &str| d["steps"].as_array().and_then(|s| s.iter().find(|s| s["id"] == name)).expect("step").clone();
    assert_eq!(step("nobody")["state"], "skipped", "nobody fits");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_get_what_is_theirs_on_sqlite() {
    hosts_get_what_is_theirs(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_get_what_is_theirs_on_postgres() {
    hosts_get_what_is_theirs(Db::postgres().await).await;
}
