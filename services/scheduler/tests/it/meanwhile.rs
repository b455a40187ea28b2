//! What is said while something is being decided: once it is answered with yes, nothing is decided without it. On PostgreSQL
//! transactions run beside each other, so one of the two has to wait; SQLite has one writer.

use crate::{
    marks::mark,
    ordered::{environment, request},
    world::World,
};
use chrono::{TimeDelta, Utc};
use std::{future::Future, time::Duration};
use windlass_contracts::command::CommandOutcome;
use windlass_domain::{
    catalog::{Environment, Item},
    deployment::State,
    ids::DeploymentId,
    release::ReleaseKind,
};
use windlass_store::{
    Store, Tx, deployments,
    marks::{self, Hold, Kind},
    promotions, sql,
};
use windlass_testkit::databases;

/// Long enough for the other to come as far as it gets.
const BESIDE: Duration = Duration::from_millis(600);

/// Does `other` while this transaction is open, which commits a little later.
pub(crate) async fn beside<T>(tx: Tx, other: impl Future<Output = T>) -> T {
    let commit = async {
        tokio::time::sleep(BESIDE).await;
        tx.commit().await.expect("commits");
    };
    tokio::join!(other, commit).0
}

impl World {
    /// What was asked for was refused at once, or cancelled before it started.
    async fn kept_out(&self, id: DeploymentId, o: CommandOutcome, code: &str, word: &str) {
        if o.accepted {
            let d = self.until(id, State::Cancelled).await;
            let end = d.end.expect("a reason");
            assert!(d.started_at.is_none() && end.reason.contains(word), "{end:?}");
        } else {
            assert_eq!(o.code, code, "{o:?}");
        }
        assert_eq!(self.works(id).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_past_a_mark_or_a_hold_that_is_being_set() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        for (version, place) in [("1.0.0", Some("beta")), ("2.0.0", None)] {
            let built = w.built("shop", version).await;
            let mut tx = w.store().write().await.expect("tx");
            marks::set(&mut tx, &mark(Kind::Veto, version, place)).await.expect("set");
            let (id, o) = beside(tx, w.request("person:ann", built)).await;
            w.kept_out(id, o, "vetoed", "zoe").await;
        }
        let three = w.built("shop", "3.0.0").await;
        let mut tx = w.store().write().await.expect("tx");
        let (project, environment) = ("shop".to_owned(), "beta".to_owned());
        let (by, reason) = ("zoe".to_owned(), "stock-taking".to_owned());
        let hold = Hold { project, environment, by, reason, at: Utc::now(), deployment: None };
        marks::hold(&mut tx, &hold).await.expect("held");
        let (id, o) = beside(tx, w.request("hook:github", three)).await;
        w.kept_out(id, o, "held", "stock-taking").await;
        w.stop().await;
    }
}

async fn veto_in(store: &Store, place: Option<&str>) {
    let mut tx = store.write().await.expect("tx");
    marks::set(&mut tx, &mark(Kind::Veto, "9.0.0", place)).await.expect("set");
    tx.commit().await.expect("commits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_waits_for_what_is_being_started() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        for place in [Some("beta"), None] {
            let mut start = w.store().write().await.expect("tx");
            deployments::lock_row(&mut start, "shop", "beta").await.expect("locks");
            let store = w.store().clone();
            let mut marking = tokio::spawn(async move { veto_in(&store, place).await });
            assert!(tokio::time::timeout(BESIDE, &mut marking).await.is_err(), "it did not wait");
            start.commit().await.expect("commits");
            tokio::time::timeout(crate::world::PATIENCE, marking).await.expect("it goes on").expect("it is set");
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_next_is_asked_behind_the_lock() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let (one, two) = (w.built("shop", "1.0.0").await, w.built("shop", "2.0.0").await);
        let first = w.request_at(one, Utc::now() + TimeDelta::hours(1)).await;
        let mut tx = w.store().write().await.expect("tx");
        deployments::lock_row(&mut tx, "shop", "beta").await.expect("locks");
        let queued = "UPDATE deployments SET state = 'queued' WHERE id = $1";
        sql(queued).bind(first).execute_one(&mut tx).await.expect("it stands in the queue");
        let (id, o) = beside(tx, w.request("person:ann", two)).await;
        assert!(o.accepted, "{o:?}");
        assert_eq!(w.until_any(id).await, State::Queued, "another one was before it");
        assert_eq!(w.works(id).await, 0);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_sees_what_started_while_it_was_asked_for() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let mut last = None;
        for version in ["1.0.0", "2.0.0"] {
            let a = w.built("shop", version).await;
            last = Some(w.released("shop", "beta", a).await);
        }
        let three = w.built("shop", "3.0.0").await;
        let newer = w.request_at(three, Utc::now() + TimeDelta::hours(1)).await;
        let mut tx = w.store().write().await.expect("tx");
        deployments::lock_row(&mut tx, "shop", "beta").await.expect("locks");
        let started = sql("UPDATE deployments SET started_at = $2 WHERE id = $1").bind(newer).bind(Utc::now());
        started.execute_one(&mut tx).await.expect("it starts");
        let (_, o) = beside(tx, w.back(last.expect("released"), |_| ())).await;
        assert_eq!((o.accepted, o.code.as_str()), (false, "superseded"), "{o:?}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_by_a_proof_that_is_being_taken_back() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let online = environment("shop", "online", "h1");
        w.save(Item::Environment(Environment { promote_from: vec!["beta".into()], ..online })).await;
        let one = w.built("shop", "1.0.0").await;
        let proof = w.released("shop", "beta", one).await;
        let mut tx = w.store().write().await.expect("tx");
        let back = promotions::withdraw(&mut tx, proof, "zoe", "it lied", Utc::now()).await;
        assert!(back.expect("withdraws"));
        let (id, o) = beside(tx, w.ask_for("shop", request("online", one, ReleaseKind::Normal, ""))).await;
        w.kept_out(id, o, "not_verified", "beta").await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_not_started_past_a_catalog_that_is_being_saved() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        let mut tx = w.store().write().await.expect("tx");
        windlass_store::latches::take(&mut tx, windlass_store::latches::Latch::Catalog).await.expect("takes");
        let more = Item::Environment(environment("shop", "more", "h1"));
        windlass_store::catalog::save(&mut tx, &more, 0, false, "test", Utc::now()).await.expect("saves");
        let before = Utc::now();
        let (id, o) = beside(tx, w.request("person:ann", one)).await;
        assert!(o.accepted, "{o:?}");
        // It starts by a plan that knows the catalog as it is now.
        let d = w.until(id, State::Running).await;
        let waited = d.started_at.expect("it started") - before;
        assert!(waited > TimeDelta::milliseconds(400), "it started after {waited}");
        w.stop().await;
    }
}
