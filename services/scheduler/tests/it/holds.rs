//! Holds: after a rollback nothing is released by itself until a person lets it.

use crate::{ordered::request, world::World};
use windlass_domain::{deployment::State, event::Aggregate, release::ReleaseKind};
use windlass_store::{artifacts, marks};
use windlass_testkit::databases;

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_refused_until_a_person_releases_the_hold() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        w.released("shop", "beta", one).await;
        let two = w.built("shop", "2.0.0").await;
        let bad = w.released("shop", "beta", two).await;
        let (back, o) = w.back(bad, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        w.settle(back, &[]).await;
        w.until(bad, State::RolledBack).await;

        let three = w.built("shop", "3.0.0").await;
        let (id, o) = w.request("hook:github", three).await;
        assert_eq!(o.code, "held");
        for word in ["shop/beta", "olga", "it is slow", "releases the hold"] {
            assert!(o.detail.contains(word), "{word} in {}", o.detail);
        }
        let told = w.events(Aggregate::Deployment, id.to_string()).await;
        assert!(told.iter().any(|(e, p)| e == "deployment.refused" && p["code"] == "held"), "{told:?}");
        // Nothing is lost: a person requests what the hook could not.
        let (id, o) = w.request("person:ann", three).await;
        assert!(o.accepted, "{o:?}");
        let told = w.events(Aggregate::Deployment, id.to_string()).await;
        let (_, said) = told.iter().find(|(e, _)| e == "deployment.requested_despite_hold").expect("it is recorded");
        assert_eq!((said["by"].as_str(), said["held_by"].as_str()), (Some("ann"), Some("olga")));
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        // A success does not release it.
        let four = w.built("shop", "4.0.0").await;
        assert_eq!(w.request("hook:github", four).await.1.code, "held");

        let mut tx = w.store().write().await.expect("tx");
        let was = marks::release(&mut tx, "shop", "beta").await.expect("released").expect("there was one");
        assert_eq!((was.by.as_str(), was.deployment), ("olga", Some(bad)));
        assert_eq!(marks::release(&mut tx, "shop", "beta").await.expect("again"), None);
        tx.commit().await.expect("commit");
        let (id, o) = w.request("hook:github", four).await;
        assert!(o.accepted, "{o:?}");
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hook_asked_for_before_does_not_follow_the_rollback() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        w.released("shop", "beta", one).await;
        let two = w.built("shop", "2.0.0").await;
        let (bad, _) = w.request("person:ann", two).await;
        w.until(bad, State::Running).await;
        let three = w.built("shop", "3.0.0").await;
        let (by_hook, o) = w.request("hook:github", three).await;
        assert!(o.accepted, "{o:?}");
        let (by_person, _) = w.request("person:ann", three).await;
        w.until(by_person, State::Queued).await;
        let (back, o) = w.back(bad, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        w.settle(bad, &[("h1", windlass_domain::work::Outcome::Cancelled)]).await;
        w.settle(back, &[]).await;
        w.until(bad, State::RolledBack).await;
        let d = w.until(by_hook, State::Cancelled).await;
        assert!(d.started_at.is_none() && d.end.expect("a reason").reason.contains("is held since"));
        let mut tx = w.store().read().await.expect("read");
        assert!(artifacts::by_version(&mut tx, "shop", "3.0.0").await.expect("reads").is_some(), "the artifact stays");
        drop(tx);
        w.settle(by_person, &[]).await;
        w.until(by_person, State::Succeeded).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promotions_are_refused_where_it_is_held() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        w.asked_for_by_beta(&["beta"], None).await;
        let mut tx = w.store().write().await.expect("tx");
        let hold = marks::Hold {
            project: "shop".into(),
            environment: "online".into(),
            by: "zoe".into(),
            reason: "stock-taking".into(),
            at: chrono::Utc::now(),
            deployment: None,
        };
        marks::hold(&mut tx, &hold).await.expect("set");
        tx.commit().await.expect("commit");
        let one = w.built("shop", "1.0.0").await;
        w.released("shop", "beta", one).await;
        let (_, reason) = w.promotion("refused").await;
        assert!(reason.contains("stock-taking") && reason.contains("zoe"), "{reason}");
        assert!(w.in_environment("shop", "online").await.is_empty());
        let (id, o) = w.ask_for("shop", request("online", one, ReleaseKind::Normal, "by hand")).await;
        assert!(o.accepted, "{o:?}");
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        w.stop().await;
    }
}
