//! Many deployments requested at once over many environments: each is accepted, decided and carried out, and nobody who asks meanwhile
//! is turned away. A few connections read the database for all of them, so whoever keeps one while it waits for another stops everybody.

use crate::world::{Form, PATIENCE, World};
use futures::future::join_all;
use windlass_testkit::{databases, eventually};

const ENVIRONMENTS: usize = 20;
const REQUESTS: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_requests_is_decided_and_carried_out() {
    for db in databases().await {
        let w = World::start(db, Form::Embedded).await;
        let url = format!("{}/healthz", w.base);
        let mut yaml = format!(
            "kind: project\nname: crowd\ngroup: crowd\n---\nkind: host\nname: h1\naddress: 127.0.0.1\nlabels: {{ in: crowd }}\n---\n\
             kind: flow\nproject: crowd\nflow: ask\non_failure: stop\nsteps:\n  - {{ id: ask, uses: http.request, with: {{ url: \"{url}\" }} }}\n"
        );
        for e in 0..ENVIRONMENTS {
            yaml += &format!("---\nkind: environment\nproject: crowd\nname: e{e}\nselector: in=crowd\nflow: ask\n");
        }
        w.apply(&yaml).await;
        let digest = format!("sha256:{}", "0".repeat(64));
        let artifact =
            serde_json::json!({ "version": "1.0.0", "url": "http://127.0.0.1:9/p.tgz", "digest": digest, "size": 1 });
        w.post("/projects/crowd/artifacts", artifact).await;
        let w = &w;
        let asked =
            (0..REQUESTS).map(|i| async move { w.deploy("crowd", &format!("e{}", i % ENVIRONMENTS), "1.0.0").await });
        let mut ids = join_all(asked).await;
        let mut ended = eventually(PATIENCE * 2, "all of them", async || {
            let page = w.get("/deployments?project=crowd&state=succeeded&limit=500").await;
            let done: Vec<String> =
                page["items"].as_array()?.iter().map(|d| d["id"].as_str().map(str::to_owned)).collect::<Option<_>>()?;
            (done.len() >= REQUESTS).then_some(done)
        })
        .await;
        ids.sort();
        ended.sort();
        assert_eq!(ids, ended);
    }
}
