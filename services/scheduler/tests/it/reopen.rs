//! Taking up again what failed or was aborted: only while it is what counts in its environment.

use crate::{ordered::environment, world::World};
use windlass_contracts::command::Verb;
use windlass_domain::{
    catalog::{Environment, Item},
    deployment::State,
    ids::DeploymentId,
    work::Outcome,
};
use windlass_store::{marks::Kind, tasks, works};
use windlass_testkit::databases;

pub(crate) fn retry() -> Verb {
    Verb::Retry { hosts: vec![], step: None, whole_wave: false, inputs: Default::default(), reason: String::new() }
}

impl World {
    /// A deployment of this version that failed on h2 and was aborted by olga.
    async fn aborted(&self, version: &str, people: &[&str]) -> DeploymentId {
        let artifact = self.built("shop", version).await;
        let (id, o) = self.request("hook:github", artifact).await;
        assert!(o.accepted, "{o:?}");
        for p in people {
            let d = self.until(id, State::AwaitingApproval).await;
            assert!(self.command(&format!("person:{p}"), id, crate::approve(id, &d.plan_digest, p)).await.accepted);
        }
        self.settle(id, &[]).await;
        self.settle(id, &[("h2", Outcome::Failed)]).await;
        self.until(id, State::Paused).await;
        assert!(self.command("person:olga", id, Verb::Abort { reason: "later".into() }).await.accepted);
        self.until(id, State::Aborted).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_at_the_failed_host_under_the_plan_that_was_approved() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2", "h3"], 1).await;
        let id = w.aborted("1.0.0", &["bob"]).await;
        let before = w.until(id, State::Aborted).await;
        // The catalog changes: a plan made now would be another one, and would need another approval.
        w.save(Item::Environment(Environment {
            hosts: vec!["h1".into(), "h2".into()],
            ..environment("shop", "beta", "h1")
        }))
        .await;
        let o = w.command("person:olga", id, retry()).await;
        assert!(o.accepted, "{o:?}");
        assert_eq!(w.settle(id, &[]).await, ["h2"], "what succeeded is not repeated");
        let d = w.until(id, State::Succeeded).await;
        assert_eq!((d.run, d.plan_digest == before.plan_digest, d.approvals.len()), (2, true, 1));
        assert_eq!(w.good().await, ["1.0.0"]);
        let mut tx = w.store().read().await.expect("read");
        let all = works::of_deployment(&mut tx, id).await.expect("works");
        let fences: Vec<u64> = all.iter().map(|s| s.work.fence).collect();
        assert_eq!(fences, [1, 1, 2], "the lock was taken anew");
        assert_eq!(tasks::of_deployment(&mut tx, id).await.expect("tasks").len(), 0);
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_newer_stands_in_the_way() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2"], 0).await;
        let old = w.aborted("1.0.0", &[]).await;
        let two = w.built("shop", "2.0.0").await;
        let (new, _) = w.request("person:ann", two).await;
        w.until(new, State::Running).await;
        // While it runs, and after its end.
        for newer in [State::Running, State::Succeeded] {
            w.until(new, newer).await;
            let o = w.command("person:olga", old, retry()).await;
            assert_eq!(o.code, "superseded");
            assert!(o.detail.contains("version 2.0.0") && o.detail.contains(&new.to_string()), "{}", o.detail);
            assert_eq!(w.until(old, State::Aborted).await.run, 1);
            if newer == State::Running {
                w.settle(new, &[]).await;
                w.settle(new, &[]).await;
            }
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_veto_and_a_rollback_stand_in_the_way() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        let (good, _) = w.request("person:ann", one).await;
        w.settle(good, &[]).await;
        w.settle(good, &[]).await;
        w.until(good, State::Succeeded).await;
        let id = w.aborted("2.0.0", &[]).await;
        w.mark(Kind::Veto, "2.0.0", None).await;
        let o = w.command("person:olga", id, retry()).await;
        assert_eq!(o.code, "vetoed", "{o:?}");
        let (back, o) = w.back(id, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        let o = w.command("person:olga", id, retry()).await;
        assert_eq!(o.code, "superseded", "{o:?}");
        w.settle(back, &[]).await;
        w.settle(back, &[]).await;
        w.until(id, State::RolledBack).await;
        assert!(!w.command("person:olga", id, retry()).await.accepted);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_before_those_who_wait_and_a_hold_does_not_bind_a_person() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2"], 0).await;
        let id = w.aborted("1.0.0", &[]).await;
        let mut tx = w.store().write().await.expect("tx");
        let hold = windlass_store::marks::Hold {
            project: "shop".into(),
            environment: "beta".into(),
            by: "zoe".into(),
            reason: "stock-taking".into(),
            at: chrono::Utc::now(),
            deployment: None,
        };
        windlass_store::marks::hold(&mut tx, &hold).await.expect("set");
        tx.commit().await.expect("commit");
        // A hook asked for it; who takes it up again is a person.
        assert!(w.command("person:olga", id, retry()).await.accepted);
        let d = w.until(id, State::Running).await;
        assert_eq!(d.run, 2);
        let two = w.built("shop", "2.0.0").await;
        let (next, _) = w.request("person:ann", two).await;
        w.until(next, State::Queued).await;
        w.settle(id, &[]).await;
        w.until(id, State::Succeeded).await;
        w.settle(next, &[]).await;
        w.settle(next, &[]).await;
        w.until(next, State::Succeeded).await;
        w.stop().await;
    }
}
