//! What each service may do in PostgreSQL with the rights of `ops/postgres/roles.sql`: its own business, also where that locks what
//! others write, and nothing else.

use chrono::Utc;
use uuid::Uuid;
use windlass_domain::ids::{AgentId, WorkId};
use windlass_store::{
    Error, Store, agents, deployments, hosts,
    latches::{self, Latch},
    marks::{self, Hold, Kind, Mark},
    promotions, sql, words, works,
};
use windlass_testkit::Db;

async fn of(db: &Db, service: &str) -> Store {
    Store::open(&db.url_of(service).await).await.expect("opens with few rights")
}

fn denied(e: &Error) -> bool {
    matches!(e, Error::Database(sqlx::Error::Database(e)) if e.code().as_deref() == Some("42501"))
}

#[tokio::test]
async fn every_service_may_lock_what_it_decides_by() {
    let db = Db::postgres().await;
    Store::open(db.url()).await.expect("the schema").close().await;
    let api = of(&db, "api").await;
    let mut tx = api.write().await.expect("begins");
    let (project, environment, by, reason) = ("shop", "beta", "zoe", "stock-taking");
    let hold = Hold {
        project: project.into(),
        environment: environment.into(),
        by: by.into(),
        reason: reason.into(),
        at: Utc::now(),
        deployment: None,
    };
    marks::hold(&mut tx, &hold).await.expect("holds an environment that nobody has locked yet");
    let veto = Mark {
        project: project.into(),
        environment: Some(environment.into()),
        kind: Kind::Veto,
        version: "1.0.0".into(),
        by: by.into(),
        reason: reason.into(),
        at: Utc::now(),
    };
    marks::set(&mut tx, &veto).await.expect("vetoes behind the same row");
    let lock =
        hosts::HostLock { host: "h1".into(), reason: reason.into(), locked_by: by.into(), locked_at: Utc::now() };
    hosts::lock(&mut tx, &lock).await.expect("locks a host");
    assert!(!agents::revoke(&mut tx, AgentId(Uuid::now_v7()), Utc::now()).await.expect("revokes"));
    for latch in [Latch::Catalog, Latch::Access] {
        latches::take(&mut tx, latch).await.expect("takes");
    }
    tx.commit().await.expect("commits");
    let mut tx = api.write().await.expect("begins");
    let steal = sql("UPDATE locks SET deployment_id = $1").bind(Uuid::now_v7()).execute(&mut tx).await;
    assert!(steal.as_ref().is_err_and(denied), "{steal:?}");
    drop(tx);

    let scheduler = of(&db, "scheduler").await;
    let mut tx = scheduler.write().await.expect("begins");
    for latch in [Latch::Catalog, Latch::Access] {
        latches::share(&mut tx, latch).await.expect("shares");
    }
    deployments::lock_row(&mut tx, project, environment).await.expect("locks the row");
    deployments::lock_row(&mut tx, project, "online").await.expect("makes a row");
    promotions::of_digest(&mut tx, project, "sha256:aa").await.expect("reads proofs that stay");
    tx.commit().await.expect("commits");

    let executor = of(&db, "executor").await;
    let mut tx = executor.write().await.expect("begins");
    let heard = words::of_work(&mut tx, WorkId(Uuid::now_v7())).await.expect("hears");
    assert!(heard.locks.contains_key("h1"));
    agents::revoked(&mut tx, &[AgentId(Uuid::now_v7())]).await.expect("asks who was revoked");
    latches::take(&mut tx, Latch::Offers).await.expect("takes");
    let begun = works::begin(&mut tx, WorkId(Uuid::now_v7()), 1).await;
    assert!(matches!(begun, Err(Error::Conflict)), "no such claim, and no lack of rights: {begun:?}");
    drop(tx);
    for store in [api, scheduler, executor] {
        store.close().await;
    }
}
