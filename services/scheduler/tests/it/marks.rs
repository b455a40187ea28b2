//! Vetoes and pins: asked when something is requested, and again when it would start.

use crate::{
    ordered::{environment, request},
    world::World,
};
use chrono::Utc;
use windlass_contracts::command::Request;
use windlass_domain::{catalog::Item, deployment::State, event::Aggregate, release::ReleaseKind};
use windlass_store::marks::{self, Kind, Mark};
use windlass_testkit::databases;

/// What zoe says about a version of shop, in one environment or all.
pub(crate) fn mark(kind: Kind, version: &str, environment: Option<&str>) -> Mark {
    Mark {
        project: "shop".into(),
        environment: environment.map(Into::into),
        kind,
        version: version.into(),
        by: "zoe".into(),
        reason: "breaks the till".into(),
        at: Utc::now(),
    }
}

impl World {
    pub(crate) async fn mark(&self, kind: Kind, version: &str, environment: Option<&str>) {
        let mut tx = self.store().write().await.expect("tx");
        marks::set(&mut tx, &mark(kind, version, environment)).await.expect("set");
        tx.commit().await.expect("commit");
    }

    async fn unmark(&self, kind: Kind, version: &str, environment: Option<&str>) {
        let mut tx = self.store().write().await.expect("tx");
        marks::remove(&mut tx, "shop", environment, kind, version).await.expect("removed").expect("it was there");
        tx.commit().await.expect("commit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vetoes_and_pins_are_asked_when_it_is_requested() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        w.save(Item::Environment(environment("shop", "online", "h1"))).await;
        let (one, two) = (w.built("shop", "1.0.0").await, w.built("shop", "2.0.0").await);
        w.mark(Kind::Veto, "2.0.0", Some("beta")).await;
        let (id, o) = w.request("person:ann", two).await;
        assert_eq!(o.code, "vetoed");
        for word in ["2.0.0", "shop/beta", "zoe", "breaks the till"] {
            assert!(o.detail.contains(word), "{word} in {}", o.detail);
        }
        let told = w.events(Aggregate::Deployment, id.to_string()).await;
        assert!(told.iter().any(|(e, p)| e == "deployment.refused" && p["code"] == "vetoed"), "{told:?}");
        assert_eq!(w.request("hook:github", two).await.1.code, "vetoed");
        let fix = request("beta", two, ReleaseKind::Hotfix, "outage");
        assert_eq!(w.ask_for("shop", fix).await.1.code, "vetoed", "a hotfix is no way around it");
        // Elsewhere it may run, until it is vetoed in all environments.
        w.released("shop", "online", two).await;
        w.mark(Kind::Veto, "2.0.0", None).await;
        let o = w.ask_for("shop", request("online", two, ReleaseKind::Normal, "")).await.1;
        assert_eq!(o.code, "vetoed");
        assert!(o.detail.contains("all environments of shop"), "{}", o.detail);

        w.mark(Kind::Pin, "1.0.0", None).await;
        let three = w.built("shop", "3.0.0").await;
        let o = w.request("person:ann", three).await.1;
        assert_eq!(o.code, "pinned");
        assert!(o.detail.contains("pinned to version 1.0.0"), "{}", o.detail);
        // The environment's own pin takes the place of the project's.
        w.mark(Kind::Pin, "3.0.0", Some("beta")).await;
        assert_eq!(w.request("person:ann", one).await.1.code, "pinned");
        w.released("shop", "beta", three).await;
        w.unmark(Kind::Pin, "3.0.0", Some("beta")).await;
        w.released("shop", "beta", one).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_vetoed_or_pinned_meanwhile_does_not_start() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        let (first, _) = w.request("person:ann", one).await;
        w.until(first, State::Running).await;
        let (two, three) = (w.built("shop", "2.0.0").await, w.built("shop", "3.0.0").await);
        let (vetoed, o) = w.request("person:ann", two).await;
        assert!(o.accepted, "{o:?}");
        let later = Request {
            not_before: Some(Utc::now() + chrono::Duration::seconds(2)),
            ..request("beta", three, ReleaseKind::Hotfix, "outage")
        };
        let (pinned, o) = w.ask_for("shop", later).await;
        assert!(o.accepted, "{o:?}");
        w.mark(Kind::Veto, "2.0.0", Some("beta")).await;
        w.mark(Kind::Pin, "1.0.0", None).await;
        w.settle(first, &[]).await;
        w.until(first, State::Succeeded).await;
        for (id, code) in [(vetoed, "vetoed"), (pinned, "pinned")] {
            let d = w.until(id, State::Cancelled).await;
            let end = d.end.expect("a reason");
            assert!(end.who == "windlass" && end.reason.contains("zoe") && d.started_at.is_none(), "{end:?}");
            let told = w.events(Aggregate::Deployment, id.to_string()).await;
            assert!(told.iter().any(|(e, p)| e == "deployment.refused" && p["code"] == code), "{told:?}");
            assert_eq!(w.works(id).await, 0);
        }
        w.stop().await;
    }
}
