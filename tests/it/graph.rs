//! A flow that is a graph, on real agents: parallel branches, a gateway decided by an output, a subflow twice with other
//! inputs, a repeat, a retry within a subflow, an expression that fails and the person who chooses; and a plan that
//! changes where nobody has to approve it.

use crate::world::{Form, PATIENCE, World};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use windlass_testkit::{Db, eventually};

/// Answers `{"ready": false}` a few times, then true.
fn warming_up(times: usize) -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for mut c in listener.incoming().flatten() {
            let _ = c.set_read_timeout(Some(std::time::Duration::from_secs(2)));
            let mut head = Vec::new();
            let mut byte = [0; 1];
            while !head.ends_with(b"\r\n\r\n") && matches!(c.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let ready = count.fetch_add(1, Ordering::SeqCst) >= times;
            let body = json!({ "ready": ready }).to_string();
            let _ = c.write_all(
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
    });
    (url, asked)
}

/// The subflow says hello on every host, unless a file forbids it.
fn part(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"---
kind: flow
project: shop
flow: part
inputs:
  name: {{ type: string }}
outputs:
  said: "${{{{ steps.work.outputs.say.said }}}}"
steps:
  - id: work
    waves: "1 *4"
    steps:
      - id: say
        uses: script
        with:
          env: {{ NAME: "${{{{ inputs.name }}}}" }}
          run: |
            echo "$TASK_KEY $WINDLASS_HOST $NAME" >> {dir}/marks
            test ! -e {dir}/fail-$NAME || exit 3
            echo "said=hello $NAME" >> "$WINDLASS_OUTPUT"
"#
    )
}

fn graph(dir: &Path, url: &str) -> String {
    let dir = dir.display();
    format!(
        r#"---
kind: flow
project: shop
flow: web
steps:
  - id: probe
    uses: http.request
    with: {{ url: "{url}/ready" }}
    repeat: {{ until: "steps.probe.outputs.json.ready == true", max: 10, every: 1s }}
  - id: which
    needs: [probe]
    exclusive:
      - {{ name: up, if: "steps.probe.outputs.status == 200", to: [left, right] }}
      - default: [never]
  - id: never
    needs: [which]
    uses: http.request
    with: {{ url: "{url}/never" }}
  - id: left
    needs: [which]
    uses: flow/part
    with: {{ name: left }}
  - id: right
    needs: [which]
    uses: flow/part
    with: {{ name: "right" }}
  - id: both
    needs: [left, right]
    waves: "2"
    steps:
      - id: write
        uses: script
        with:
          env:
            LEFT: "${{{{ steps.left.outputs.said }}}}"
            RIGHT: "${{{{ steps.right.outputs.said }}}}"
          run: |
            echo "$LEFT, $RIGHT" > {dir}/both-$WINDLASS_HOST
            echo "host=$WINDLASS_HOST" >> "$WINDLASS_OUTPUT"
  - id: count
    needs: [both]
    waves: "1 *4"
    repeat: {{ until: "steps.count.outputs.tick.n == '2'", max: 4, every: 1s }}
    steps:
      - id: tick
        uses: script
        with:
          run: |
            echo "$TASK_KEY $WINDLASS_HOST tick" >> {dir}/marks
            echo x >> {dir}/ticks-$WINDLASS_HOST
            echo "n=$(wc -l < {dir}/ticks-$WINDLASS_HOST)" >> "$WINDLASS_OUTPUT"
  - id: ask
    needs: [count]
    exclusive:
      # Hosts differ in it, so nobody but a person can tell.
      - {{ name: first, if: "steps.both.outputs.write.host == 'h1'", to: [end] }}
      - default: [other]
  - id: end
    needs: [ask]
    uses: wait
    with: {{ for: 1s }}
  - id: other
    needs: [ask]
    uses: http.request
    with: {{ url: "{url}/never" }}
rollback:
  normal:
    - uses: release.switch
      with: {{ to: last_known_good }}
"#
    )
}

fn around(hosts: &[&str]) -> String {
    let mut y = String::from("kind: project\nname: shop\ngroup: retail\n");
    for h in hosts {
        y += &format!("---\nkind: host\nname: {h}\naddress: 127.0.0.1\nlabels: {{ role: web }}\n");
    }
    y + &format!("---\nkind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [{}]\n", hosts.join(", "))
}

fn state<'d>(d: &'d Value, step: &str) -> &'d Value {
    let steps = d["steps"].as_array().expect("steps");
    steps.iter().find(|s| s["id"] == step).unwrap_or_else(|| panic!("no step {step}: {d:#}"))
}

/// Waits until a person is asked for this; panics when it is something else that they are asked for.
async fn asks(w: &World, id: &str, on: &str) -> Value {
    eventually(PATIENCE, on, async || {
        let d = w.get(&format!("/deployments/{id}")).await;
        let waits: Vec<&str> = d["waiting_on"].as_array()?.iter().filter_map(|w| w["on"].as_str()).collect();
        let other = waits.iter().any(|w| ["intervention", "choice"].contains(w) && *w != on);
        assert!(!other && d["ended_at"].is_null(), "{d:#}");
        (waits == [on]).then_some(d)
    })
    .await
}

async fn a_graph(db: Db) {
    let mut w = World::start(db, Form::Embedded).await;
    let hosts = ["h1", "h2"];
    let (url, asked) = warming_up(2);
    let dir = w.dir.path().to_path_buf();
    std::fs::write(dir.join("fail-right"), "").expect("file");
    // A flow must find its subflows: without `part` the request is refused by name.
    w.apply(&(around(&hosts) + &graph(&dir, &url))).await;
    w.agents(&hosts).await;
    w.version("shop", "1.0.0", "true").await;
    let body = json!({ "environment": "beta", "version": "1.0.0" });
    let (status, refused) = w.send("POST", "/projects/shop/deployments", &w.admin, Some(body)).await.expect("answers");
    assert_eq!(status, 409, "{refused}");
    assert!(refused.to_string().contains("`left` uses flow `part`"), "{refused}");

    w.apply(&part(&dir)).await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    // The right branch fails on its first host, within the subflow; the left one is not held up by it.
    let d = asks(&w, &id, "intervention").await;
    assert_eq!(asked.load(Ordering::SeqCst), 3, "the probe ran until its answer was right");
    assert_eq!((state(&d, "probe")["runs"].as_u64(), state(&d, "probe")["attempt"].as_u64()), (Some(3), Some(3)));
    assert_eq!(state(&d, "never")["state"], "not_taken", "{d:#}");
    assert_eq!(state(&d, "which")["taken"], json!(["left/enter", "right/enter"]));
    assert_eq!(d["waiting_on"][0]["data"]["step"], "right/work", "{d:#}");
    assert_eq!(state(&d, "left")["outputs"], json!({ "said": "hello left" }), "{d:#}");
    // A changed flow is nothing to what runs already.
    w.apply(&part(&dir).replace("hello", "goodbye")).await;
    std::fs::remove_file(dir.join("fail-right")).expect("removed");
    w.post(&format!("/deployments/{id}/retry"), json!({})).await;

    let d = asks(&w, &id, "choice").await;
    for h in hosts {
        let text = std::fs::read_to_string(dir.join(format!("both-{h}"))).expect("written");
        assert_eq!(text, "hello left, hello right\n");
    }
    // Each run of a repeated rollout is a new attempt on every host, though the one before succeeded.
    let count = state(&d, "count");
    assert_eq!((&count["runs"], &count["waves"][0]["hosts"][0]["attempt"]), (&json!(2), &json!(2)), "{d:#}");
    assert_eq!((&d["state"], &state(&d, "ask")["choices"]), (&json!("paused"), &json!(["first", "default"])));
    assert!(d["actions"].as_array().expect("actions").contains(&json!("choose")), "{d:#}");
    let choose = format!("/deployments/{id}/choose");
    let wrong = json!({ "step": "ask", "branch": "second" });
    let (status, refused) = w.send("POST", &choose, &w.admin, Some(wrong)).await.expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("invalid")), "{refused}");
    w.post(&choose, json!({ "step": "ask", "branch": "first" })).await;
    let d = w.until(&id, &["succeeded"]).await;
    assert_eq!((&state(&d, "end")["state"], &state(&d, "other")["state"]), (&json!("succeeded"), &json!("not_taken")));
    w.assert_started_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_runs_on_sqlite() {
    a_graph(Db::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_runs_on_postgres() {
    a_graph(Db::postgres().await).await;
}

/// Nobody has to approve; still, what was asked for is what runs, or somebody says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_changes_without_approvals_waits_until_it_is_accepted() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h1"], "1 *4", 0, "parallel: 0")).await;
    w.agents(&["h1"]).await;
    w.version("shop", "1.0.0", "true").await;
    let at = chrono::Utc::now() + chrono::TimeDelta::seconds(4);
    let body = json!({ "environment": "beta", "version": "1.0.0", "not_before": at.to_rfc3339() });
    let answer = w.post("/projects/shop/deployments", body).await;
    let id = answer["new_deployment"].as_str().or(answer["deployment"].as_str()).expect("id").to_owned();
    w.until(&id, &["scheduled"]).await;
    w.apply(&w.catalog(&["h1"], "1 *4", 0, "parallel: 7")).await;
    w.apply("kind: environment\nproject: shop\nname: beta\nflow: web\nhosts: [h1]\nvalues: { a: 1 }\n").await;
    let d = w.until(&id, &["awaiting_approval"]).await;
    assert_eq!(d["waiting_on"][0]["on"], "acceptance", "{d:#}");
    assert!(w.starts().is_empty(), "nothing ran");
    let accept = format!("/deployments/{id}/accept");
    let (status, refused) =
        w.send("POST", &accept, &w.admin, Some(json!({ "digest": "sha256:00" }))).await.expect("answers");
    assert_eq!((status, refused["code"].as_str()), (409, Some("plan_changed")), "{refused}");
    w.post(&accept, json!({ "digest": d["plan_digest"] })).await;
    w.until(&id, &["succeeded"]).await;
}
