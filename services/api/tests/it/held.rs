//! A hook while automation is held off, or while its version is kept out: the build is registered, the log says why nothing
//! was requested, and the other environments get it.

use crate::world::{World, cdevent, digest, signed};
use serde_json::json;
use windlass_store::marks::{self, Hold, Kind, Mark};
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_or_vetoed_is_registered_and_not_requested() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let hold = Hold {
            project: "shop".into(),
            environment: "beta".into(),
            by: "zoe".into(),
            reason: "stock-taking".into(),
            at: chrono::Utc::now(),
            deployment: None,
        };
        let mut tx = w.ctx.store.write().await.expect("tx");
        marks::hold(&mut tx, &hold).await.expect("held");
        tx.commit().await.expect("commit");
        let body = cdevent("e1", "1.0.0", &digest('a'));
        let (status, a) = w.hook("/hooks/cdevents/shop", &signed("m1", &body), body).await;
        assert_eq!((status, &a["outcome"], a["commands"].as_array().map(Vec::len)), (200, &json!("matched"), Some(1)));
        let said = a["reason"].as_str().expect("a reason");
        for word in ["requested 1 deployment(s)", "not requested: shop/beta is held since", "zoe", "stock-taking"] {
            assert!(said.contains(word), "{word} in {said}");
        }
        let (_, log) = w.get("/triggers?project=shop").await;
        assert_eq!(log["items"][0]["reason"], a["reason"]);
        assert_eq!((w.count("artifacts").await, w.count("commands").await), (1, 1));

        let mut tx = w.ctx.store.write().await.expect("tx");
        marks::release(&mut tx, "shop", "beta").await.expect("released").expect("it was held");
        let veto = Mark {
            project: "shop".into(),
            environment: None,
            kind: Kind::Veto,
            version: "2.0.0".into(),
            by: "zoe".into(),
            reason: "breaks the till".into(),
            at: chrono::Utc::now(),
        };
        marks::set(&mut tx, &veto).await.expect("vetoed");
        tx.commit().await.expect("commit");
        let body = cdevent("e2", "2.0.0", &digest('b'));
        let (_, a) = w.hook("/hooks/cdevents/shop", &signed("m2", &body), body).await;
        assert_eq!(a["commands"], json!([]));
        let said = a["reason"].as_str().expect("a reason");
        assert!(said.contains("requested 0 deployment(s)") && said.contains("version 2.0.0 is vetoed"), "{said}");
        let body = cdevent("e3", "3.0.0", &digest('c'));
        let (_, a) = w.hook("/hooks/cdevents/shop", &signed("m3", &body), body).await;
        assert_eq!(a["commands"].as_array().map(Vec::len), Some(2));
        w.stop().await;
    }
}
