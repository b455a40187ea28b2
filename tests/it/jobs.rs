//! Deployments that ship nothing: a flow without a package needs no version, and everything says so.

use crate::world::{Form, World};
use serde_json::json;
use windlass_testkit::{Db, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_needs_no_version() {
    for db in [Db::sqlite(), Db::postgres().await] {
        let mut w = World::start(db, Form::Embedded).await;
        let said = w.dir.path().join("said");
        let flow = |steps: &str| {
            format!(
                "kind: flow\nproject: shop\nflow: job\nsteps:\n  - id: work\n    waves: 1\n    steps: [{steps}]\nrollback:\n  normal: \
                 [{{ uses: script, with: {{ run: 'true' }} }}]\n"
            )
        };
        let script =
            format!("{{ uses: script, with: {{ run: 'echo \"<$WINDLASS_VERSION>\" > {}' }} }}", said.display());
        let around = "kind: project\nname: shop\ngroup: retail\n---\nkind: host\nname: h1\naddress: 127.0.0.1\n---\n\
                      kind: environment\nproject: shop\nname: beta\nflow: job\nhosts: [h1]\n---\n\
                      kind: environment\nproject: shop\nname: live\nflow: job\nhosts: [h1]\npromote_from: [beta]\n---\n";
        w.apply(&format!("{around}{}", flow(&script))).await;
        w.agents(&["h1"]).await;

        let form = w.get("/projects/shop/environments/beta/form").await;
        assert_eq!((&form["ships"], &form["versions"]), (&json!(false), &json!([])), "{form:#}");
        let body = json!({ "environment": "beta" });
        let preview = w.post("/projects/shop/plan", body.clone()).await;
        assert_eq!(preview["report"]["version"], "no artifact", "{preview:#}");
        let made = |a: serde_json::Value| {
            a["new_deployment"].as_str().or(a["deployment"].as_str()).expect("a deployment").to_owned()
        };
        let id = made(w.post("/projects/shop/deployments", body.clone()).await);
        let d = w.until(&id, &["succeeded"]).await;
        assert_eq!(d["version"], "no artifact", "{d:#}");
        let plan = w.get(&format!("/deployments/{id}/plan")).await;
        assert_eq!(plan["digest"], preview["digest"], "the preview is of the same plan");
        assert_eq!(std::fs::read_to_string(&said).expect("it ran"), "<>\n");
        let logged = eventually(crate::world::PATIENCE, "the audit log has it", async || {
            let all = w.http.get(format!("{}/api/v1/audit/export?from=0", w.base)).bearer_auth(&w.admin).send().await;
            let text = all.ok()?.text().await.ok()?;
            text.lines().any(|l| l.contains(&id) && l.contains("no artifact")).then_some(())
        });
        logged.await;
        // It proves nothing and asks for no proof, and there is nothing to go back to.
        let body = json!({ "environment": "live" });
        let live = made(w.post("/projects/shop/deployments", body).await);
        w.until(&live, &["succeeded"]).await;
        let (status, refused) = w
            .send("POST", &format!("/deployments/{id}/rollback"), &w.admin, Some(json!({ "reason": "no" })))
            .await
            .expect("answers");
        assert_eq!((status, refused["code"].as_str()), (409, Some("no_last_known_good")), "{refused}");

        // A flow that ships a package still asks for the version, by the step.
        w.apply(&flow(&format!("{{ uses: artifact.fetch }}, {script}"))).await;
        let body = json!({ "environment": "beta" });
        let (status, refused) =
            w.send("POST", "/projects/shop/deployments", &w.admin, Some(body)).await.expect("answers");
        let text = refused.to_string();
        assert!(status == 409 && text.contains("ships a package (step `work.artifact.fetch`)"), "{status} {text}");
        assert_eq!(w.get("/projects/shop/environments/beta/form").await["ships"], true);
    }
}
