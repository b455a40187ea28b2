//! Where rollbacks go, over which hosts, and when there can be none.

use crate::{
    ordered::{environment, request},
    world::World,
};
use uuid::Uuid;
use windlass_contracts::command::Verb;
use windlass_domain::{
    catalog::{Environment, Host, Item},
    deployment::State,
    event::Aggregate,
    flow::{self, Phase},
    ids::DeploymentId,
    release::{ReleaseKind, RollbackMode},
    work::Outcome,
};
use windlass_store::{deployments, marks};
use windlass_testkit::databases;

/// Fetches on all hosts first, then switches them one after the other.
const PHASES: &str = "
flow: phases
on_failure: ON_FAILURE
steps:
  - id: fetch
    phase: prepare
    waves: '100%'
    steps: [ { id: f, uses: release.switch } ]
  - id: switch
    phase: release
    needs: [fetch]
    waves: '1 100%'
    steps: [ { id: s, uses: release.switch } ]
rollback:
  normal: [ { id: s, uses: release.switch, with: { to: last_known_good } } ]
";

impl World {
    /// An environment of three hosts with the flow of two phases.
    async fn phases(&self, on_failure: &str) -> String {
        let text = PHASES.replace("ON_FAILURE", on_failure);
        let flow = flow::parse(&text).unwrap_or_else(|e| panic!("{e:#?}"));
        self.save(Item::Flow { project: "shop".into(), flow, source: String::new() }).await;
        for h in ["h1", "h2", "h3"] {
            self.save(Item::Host(Host { name: h.into(), address: "127.0.0.1".into(), ..Host::default() })).await;
        }
        let hosts = vec!["h1".into(), "h2".into(), "h3".into()];
        let e = Environment { flow: "phases".into(), hosts, ..environment("shop", "gray", "h1") };
        self.save(Item::Environment(e)).await;
        "gray".into()
    }

    async fn deployment(&self, id: DeploymentId) -> windlass_domain::deployment::Deployment {
        let mut tx = self.store().read().await.expect("read");
        deployments::get(&mut tx, id).await.expect("read").expect("there").deployment
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_to_the_version_that_was_named_and_was_good_here() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        for v in ["1.0.0", "2.0.0", "3.0.0"] {
            let a = w.built("shop", v).await;
            w.released("shop", "beta", a).await;
        }
        w.built("shop", "9.0.0").await;
        let four = w.built("shop", "4.0.0").await;
        let (bad, _) = w.request("person:ann", four).await;
        w.settle(bad, &[("h1", Outcome::Failed)]).await;
        w.until(bad, State::Paused).await;

        let (_, o) = w.back(bad, |b| b.to = Some("9.0.0")).await;
        assert_eq!(o.code, "not_known_good");
        assert!(o.detail.contains("9.0.0 was never good") && o.detail.contains("3.0.0, 2.0.0, 1.0.0"), "{}", o.detail);
        let (_, o) = w.back(bad, |b| b.to = Some("4.0.0")).await;
        assert_eq!(o.code, "not_known_good");
        assert!(o.detail.contains("is what would be rolled back"), "{}", o.detail);
        assert_eq!(w.until(bad, State::Paused).await.rolled_back_by, None, "nothing was stopped for what cannot be");

        let (back, o) = w.back(bad, |b| (b.to, b.veto) = (Some("2.0.0"), true)).await;
        assert!(o.accepted, "{o:?}");
        w.settle(back, &[]).await;
        w.until(bad, State::RolledBack).await;
        let r = w.until(back, State::Succeeded).await;
        assert_eq!(r.version, "2.0.0");
        assert!(r.note.contains("rollback of 4.0.0") && r.note.contains("it is slow"), "{}", r.note);
        assert_eq!(w.good().await[0], "2.0.0");
        // The version that was left is vetoed, by whom and why.
        let mut tx = w.store().read().await.expect("read");
        let veto = marks::against(&mut tx, "shop", "beta", "4.0.0").await.expect("reads").expect("a veto");
        assert_eq!((veto.kind, veto.by.as_str(), veto.reason.as_str()), (marks::Kind::Veto, "olga", "it is slow"));
        drop(tx);
        let (_, o) = w.request("person:ann", four).await;
        assert_eq!(o.code, "vetoed");
        let told: Vec<String> =
            w.events(Aggregate::Environment, "shop/beta".into()).await.into_iter().map(|e| e.0).collect();
        assert_eq!(told, ["environment.held", "environment.vetoed"]);
        // It is not rolled back itself.
        let (_, o) = w.back(back, |_| ()).await;
        assert!(!o.accepted, "{o:?}");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_is_rolled_back_while_nothing_newer_ran() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let mut ids = Vec::new();
        for v in ["1.0.0", "2.0.0", "3.0.0"] {
            let a = w.built("shop", v).await;
            ids.push(w.released("shop", "beta", a).await);
        }
        let (_, o) = w.back(ids[1], |_| ()).await;
        assert_eq!(o.code, "superseded");
        assert!(o.detail.contains("version 3.0.0") && o.detail.contains(&ids[2].to_string()), "{}", o.detail);
        assert_eq!(w.deployment(ids[1]).await.state, State::Succeeded);

        // What started later and ran nowhere stands in nobody's way, what still runs does.
        let four = w.built("shop", "4.0.0").await;
        let (nothing, _) = w.request("person:ann", four).await;
        w.until(nothing, State::Running).await;
        let (_, o) = w.back(ids[2], |_| ()).await;
        assert_eq!(o.code, "superseded", "{o:?}");
        assert!(w.command("person:ann", nothing, Verb::Abort { reason: "no".into() }).await.accepted);
        w.settle(nothing, &[("h1", Outcome::NotStarted)]).await;
        w.until(nothing, State::Aborted).await;
        // Nor does what failed on hosts that would be taken back as well.
        let (failed, _) = w.request("person:ann", four).await;
        w.until(failed, State::Running).await;
        w.settle(failed, &[("h1", Outcome::Failed)]).await;
        assert!(w.command("person:ann", failed, Verb::Abort { reason: "no".into() }).await.accepted);
        w.until(failed, State::Aborted).await;
        let (_, o) = w.back(ids[2], |b| b.to = Some("3.0.0")).await;
        assert_eq!(o.code, "not_known_good", "good as it was, it is what would be left: {o:?}");
        let (back, o) = w.back(ids[2], |_| ()).await;
        assert!(o.accepted, "{o:?}");
        w.settle(back, &[]).await;
        w.until(ids[2], State::RolledBack).await;
        assert_eq!(w.deployment(back).await.version, "2.0.0");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_back_the_hosts_of_the_phase_that_failed() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let gray = w.phases("pause").await;
        let one = w.built("shop", "1.0.0").await;
        let (id, o) = w.ask_for("shop", request(&gray, one, ReleaseKind::Normal, "")).await;
        assert!(o.accepted, "{o:?}");
        for _ in 0..3 {
            w.settle(id, &[]).await;
        }
        w.until(id, State::Succeeded).await;

        // It failed while it was prepared: nothing was released, unless that phase is named.
        let two = w.built("shop", "2.0.0").await;
        let (early, _) = w.ask_for("shop", request(&gray, two, ReleaseKind::Normal, "")).await;
        w.settle(early, &[("h3", Outcome::Failed)]).await;
        w.until(early, State::Paused).await;
        let (_, o) = w.back(early, |_| ()).await;
        assert_eq!(o.code, "nothing_to_do");
        assert!(o.detail.contains("fetch (prepare)"), "{}", o.detail);
        let (back, o) = w.back(early, |b| b.from_phase = Some(Phase::Prepare)).await;
        assert!(o.accepted, "{o:?}");
        let first = w.settle(back, &[]).await;
        assert_eq!([first, w.settle(back, &[]).await].concat(), ["h1", "h2", "h3"]);
        w.until(early, State::RolledBack).await;

        // It failed while it was released: only the host that was.
        let (late, _) = w.ask_for("shop", request(&gray, two, ReleaseKind::Normal, "")).await;
        w.settle(late, &[]).await;
        w.settle(late, &[("h1", Outcome::Failed)]).await;
        w.until(late, State::Paused).await;
        let (back, o) = w.back(late, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        assert_eq!(w.settle(back, &[]).await, ["h1"]);
        w.until(late, State::RolledBack).await;
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_planned_is_refused_and_stops_nothing() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let gray = w.phases("pause").await;
        let one = w.built("shop", "1.0.0").await;
        let (id, _) = w.ask_for("shop", request(&gray, one, ReleaseKind::Normal, "")).await;
        for _ in 0..3 {
            w.settle(id, &[]).await;
        }
        w.until(id, State::Succeeded).await;
        let two = w.built("shop", "2.0.0").await;
        let (bad, _) = w.ask_for("shop", request(&gray, two, ReleaseKind::Normal, "")).await;
        w.settle(bad, &[]).await;
        w.settle(bad, &[("h1", Outcome::Failed)]).await;
        w.until(bad, State::Paused).await;
        // The flow has steps for a normal rollback only.
        let verb = Verb::Rollback {
            mode: RollbackMode::Emergency,
            reason: "fast".into(),
            rollback: DeploymentId(Uuid::now_v7()),
            to: None,
            veto: true,
            from_phase: None,
        };
        let o = w.command("person:olga", bad, verb).await;
        assert!(!o.accepted && o.detail.contains("no emergency rollback"), "{o:?}");
        assert_eq!(w.until(bad, State::Paused).await.rolled_back_by, None);
        let mut tx = w.store().read().await.expect("read");
        assert_eq!(marks::held(&mut tx, "shop", "gray").await.expect("reads"), None);
        assert_eq!(marks::list(&mut tx, "shop").await.expect("reads"), []);
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_did_not_work_out_may_be_asked_for_again() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        w.released("shop", "beta", one).await;
        let two = w.built("shop", "2.0.0").await;
        let bad = w.released("shop", "beta", two).await;
        let (first, _) = w.back(bad, |_| ()).await;
        w.settle(first, &[("h1", Outcome::Failed)]).await;
        w.until(first, State::Paused).await;
        let (_, o) = w.back(bad, |_| ()).await;
        assert!(!o.accepted && o.detail.contains("requested already"), "{o:?}");
        assert!(w.command("person:olga", first, Verb::Abort { reason: "stuck".into() }).await.accepted);
        w.until(first, State::Aborted).await;
        let (second, o) = w.back(bad, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        assert_eq!(w.settle(second, &[]).await, ["h1"]);
        let d = w.until(bad, State::RolledBack).await;
        assert_eq!(d.rolled_back_by, Some(second));
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_leaves_out_what_is_vetoed_and_keeps_to_the_pin() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        for v in ["1.0.0", "2.0.0"] {
            let a = w.built("shop", v).await;
            w.released("shop", "beta", a).await;
        }
        let three = w.built("shop", "3.0.0").await;
        let (bad, _) = w.request("person:ann", three).await;
        w.settle(bad, &[("h1", Outcome::Failed)]).await;
        w.until(bad, State::Paused).await;
        w.mark(marks::Kind::Veto, "2.0.0", None).await;
        let (_, o) = w.back(bad, |b| b.to = Some("2.0.0")).await;
        assert_eq!(o.code, "vetoed", "{o:?}");
        w.mark(marks::Kind::Pin, "0.9.0", Some("beta")).await;
        let (_, o) = w.back(bad, |_| ()).await;
        assert_eq!(o.code, "vetoed", "the newest one is vetoed, and the other is not the pinned one: {o:?}");
        let (_, o) = w.back(bad, |b| b.to = Some("1.0.0")).await;
        assert_eq!(o.code, "pinned", "{o:?}");
        w.mark(marks::Kind::Pin, "1.0.0", Some("beta")).await;
        let (back, o) = w.back(bad, |_| ()).await;
        assert!(o.accepted, "{o:?}");
        w.settle(back, &[]).await;
        w.until(bad, State::RolledBack).await;
        assert_eq!(w.deployment(back).await.version, "1.0.0");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_happens_by_itself_holds_the_environment_too() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let gray = w.phases("rollback").await;
        let one = w.built("shop", "1.0.0").await;
        let (id, _) = w.ask_for("shop", request(&gray, one, ReleaseKind::Normal, "")).await;
        for _ in 0..3 {
            w.settle(id, &[]).await;
        }
        w.until(id, State::Succeeded).await;
        let two = w.built("shop", "2.0.0").await;
        let (bad, _) = w.ask_for("shop", request(&gray, two, ReleaseKind::Normal, "")).await;
        w.settle(bad, &[]).await;
        w.settle(bad, &[("h1", Outcome::Failed)]).await;
        let back = windlass_testkit::eventually(std::time::Duration::from_secs(20), "its rollback", async || {
            w.deployment(bad).await.rolled_back_by
        })
        .await;
        assert_eq!(w.settle(back, &[]).await, ["h1"]);
        w.until(bad, State::RolledBack).await;
        let mut tx = w.store().read().await.expect("read");
        let held = marks::held(&mut tx, "shop", "gray").await.expect("reads").expect("a hold");
        assert_eq!((held.by.as_str(), held.deployment), ("windlass", Some(bad)));
        assert!(held.reason.contains("2.0.0"), "{}", held.reason);
        drop(tx);
        // A rollback with nothing to do leaves no hold behind.
        let (_, o) = w.back(back, |_| ()).await;
        assert!(!o.accepted, "{o:?}");
        let verb = Verb::Rollback {
            mode: RollbackMode::Normal,
            reason: "again".into(),
            rollback: DeploymentId(Uuid::now_v7()),
            to: None,
            veto: true,
            from_phase: None,
        };
        assert!(!w.command("person:olga", bad, verb).await.accepted, "it was rolled back before");
        let mut tx = w.store().read().await.expect("read");
        assert_eq!(marks::list(&mut tx, "shop").await.expect("reads"), [], "a refused rollback vetoes nothing");
        drop(tx);
        w.stop().await;
    }
}
