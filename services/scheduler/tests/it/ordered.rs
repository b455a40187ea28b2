//! Promotion, bundles and flows that change meanwhile, on both databases.

use crate::world::World;
use chrono::Utc;
use serde_json::Value;
use uuid::Uuid;
use windlass_contracts::command::{BundleAsk, BundleMember, BundleRequest, Command, CommandOutcome, Request, Verb};
use windlass_domain::{
    approval::{Approval, ApprovalRule, Decision},
    artifact::Artifact,
    bundle::{self, Bundle},
    catalog::{Environment, Item, Kind, Policy, PolicyMatch},
    deployment::{Deployment, State},
    event::Aggregate,
    flow::OnFailure,
    ids::{ArtifactId, BundleId, CommandId, DeploymentId},
    release::{ReleaseKind, RollbackMode},
    work::Outcome,
};
use windlass_store::{artifacts, bundles, catalog, commands, deployments, events};
use windlass_testkit::{databases, eventually};

pub(crate) fn environment(project: &str, name: &str, host: &str) -> Environment {
    Environment {
        project: project.into(),
        name: name.into(),
        hosts: vec![host.into()],
        flow: "web".into(),
        pool: "default".into(),
        ..Environment::default()
    }
}

pub(crate) fn request(environment: &str, artifact: ArtifactId, kind: ReleaseKind, note: &str) -> Request {
    Request {
        deployment: DeploymentId(Uuid::now_v7()),
        environment: environment.into(),
        artifact,
        kind,
        inputs: Default::default(),
        hosts: vec![],
        add_hosts: vec![],
        exclude_hosts: vec![],
        values: Default::default(),
        not_before: None,
        note: note.into(),
    }
}

impl World {
    pub(crate) async fn save(&self, item: Item) {
        let mut tx = self.store().write().await.expect("tx");
        let old = catalog::row(&mut tx, item.kind(), &item.key()).await.expect("row").map_or(0, |r| r.revision);
        catalog::save(&mut tx, &item, old, false, "test", Utc::now()).await.expect("saved");
        tx.commit().await.expect("commit");
    }

    /// A registered artifact with a digest of its own.
    pub(crate) async fn built(&self, project: &str, version: &str) -> ArtifactId {
        let a = Artifact {
            id: ArtifactId(Uuid::now_v7()),
            project: project.into(),
            version: version.into(),
            digest: format!("sha256:{:0>64}", version.bytes().map(|b| format!("{b:02x}")).collect::<String>()),
            url: format!("file:///{version}"),
            size: None,
            git_ref: None,
            commit: None,
            committer: None,
            build_url: None,
            built_at: Utc::now(),
        };
        let mut tx = self.store().write().await.expect("tx");
        artifacts::insert(&mut tx, &a, a.built_at).await.expect("registered");
        tx.commit().await.expect("commit");
        a.id
    }

    pub(crate) async fn send(
        &self,
        project: &str,
        actor: &str,
        deployment: Option<DeploymentId>,
        verb: Verb,
    ) -> CommandOutcome {
        let c = Command {
            id: CommandId(Uuid::now_v7()),
            project: project.into(),
            environment: None,
            deployment,
            actor: actor.into(),
            verb,
            created_at: Utc::now(),
            trace: None,
        };
        let mut tx = self.store().write().await.expect("tx");
        assert!(commands::insert(&mut tx, &c).await.expect("stored"));
        tx.commit().await.expect("commit");
        eventually(std::time::Duration::from_secs(20), "the command's outcome", async || {
            let mut tx = self.store().read().await.expect("read");
            commands::outcome(&mut tx, c.id).await.expect("outcome")
        })
        .await
    }

    pub(crate) async fn ask_for(&self, project: &str, r: Request) -> (DeploymentId, CommandOutcome) {
        let id = r.deployment;
        (id, self.send(project, "person:ann", Some(id), Verb::Request(Box::new(r))).await)
    }

    /// Requests and carries through, one host.
    pub(crate) async fn released(&self, project: &str, environment: &str, artifact: ArtifactId) -> DeploymentId {
        let (id, o) = self.ask_for(project, request(environment, artifact, ReleaseKind::Normal, "")).await;
        assert!(o.accepted, "{o:?}");
        self.settle(id, &[]).await;
        self.until(id, State::Succeeded).await;
        id
    }

    async fn rolled_back(&self, project: &str, id: DeploymentId) {
        let back = DeploymentId(Uuid::now_v7());
        let verb = Verb::Rollback {
            from_phase: None,
            to: None,
            veto: false,
            mode: RollbackMode::Normal,
            reason: "bad".into(),
            rollback: back,
        };
        assert!(self.send(project, "person:olga", Some(id), verb).await.accepted);
        self.settle(back, &[]).await;
        self.until(id, State::RolledBack).await;
    }

    pub(crate) async fn in_environment(&self, project: &str, environment: &str) -> Vec<Deployment> {
        let mut tx = self.store().read().await.expect("read");
        let f = deployments::Filter {
            project: Some(project.into()),
            environment: Some(environment.into()),
            ..Default::default()
        };
        let all = deployments::list(&mut tx, &f, 50).await.expect("list");
        all.into_iter().map(|d| d.deployment).collect()
    }

    pub(crate) async fn events(&self, aggregate: Aggregate, id: String) -> Vec<(String, Value)> {
        let mut tx = self.store().read().await.expect("read");
        let all = events::after(&mut tx, aggregate, &id, 0, 200).await.expect("events");
        all.into_iter().map(|e| (e.what, e.payload)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_verified_before_is_promoted() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let online = Environment { promote_from: vec!["beta".into()], ..environment("shop", "online", "h1") };
        w.save(Item::Environment(online)).await;
        let one = w.built("shop", "1.0.0").await;
        let (_, o) = w.ask_for("shop", request("online", one, ReleaseKind::Normal, "")).await;
        assert_eq!(o.code, "not_verified");
        assert!(o.detail.contains("verified in beta") && o.detail.contains("windlass promote"), "{}", o.detail);
        // A deployment to some hosts only proves nothing.
        let some = Request { hosts: vec!["h1".into()], ..request("beta", one, ReleaseKind::Normal, "") };
        let (part, _) = w.ask_for("shop", some).await;
        w.settle(part, &[]).await;
        w.until(part, State::Succeeded).await;
        let (_, o) = w.ask_for("shop", request("online", one, ReleaseKind::Normal, "")).await;
        assert_eq!(o.code, "not_verified");
        w.released("shop", "beta", one).await;
        w.released("shop", "online", one).await;

        // Verified when it was requested, rolled back before it starts.
        let two = w.built("shop", "2.0.0").await;
        let proof = w.released("shop", "beta", two).await;
        let at = Utc::now() + chrono::Duration::seconds(4);
        let later = Request { not_before: Some(at), ..request("online", two, ReleaseKind::Normal, "") };
        let (late, o) = w.ask_for("shop", later).await;
        assert!(o.accepted, "{o:?}");
        w.until(late, State::Scheduled).await;
        w.rolled_back("shop", proof).await;
        let d = w.until(late, State::Cancelled).await;
        let end = d.end.expect("a reason");
        assert!(end.who == "windlass" && end.reason.contains("verified in beta"), "{end:?}");
        let (_, o) = w.ask_for("shop", request("online", two, ReleaseKind::Normal, "")).await;
        assert_eq!(o.code, "not_verified");

        // A hotfix passes where the policy says so, and says why.
        let (_, o) = w.ask_for("shop", request("online", two, ReleaseKind::Hotfix, "outage")).await;
        assert_eq!(o.code, "not_verified");
        let policy = Policy { name: "fast".into(), hotfix_skips_promotion: true, ..Policy::default() };
        w.save(Item::Policy(policy)).await;
        let (_, o) = w.ask_for("shop", request("online", two, ReleaseKind::Hotfix, " ")).await;
        assert_eq!(o.code, "invalid", "a hotfix without a reason: {}", o.detail);
        let (fix, o) = w.ask_for("shop", request("online", two, ReleaseKind::Hotfix, "outage")).await;
        assert!(o.accepted, "{o:?}");
        w.settle(fix, &[]).await;
        w.until(fix, State::Succeeded).await;
        let told = w.events(Aggregate::Deployment, fix.to_string()).await;
        let (_, said) = told.iter().find(|(e, _)| e == "deployment.promotion_skipped").expect("it is recorded");
        assert_eq!(said["reason"], "outage");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_promotes_what_was_verified_once_and_after_its_time() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        let online = Environment {
            promote_from: vec!["beta".into()],
            verified_for: Some("2s".into()),
            ..environment("shop", "online", "h1")
        };
        w.save(Item::Environment(online)).await;
        let policy = Policy {
            name: "on".into(),
            matches: PolicyMatch { environments: vec!["beta".into()], ..PolicyMatch::default() },
            on_verified: vec!["online".into()],
            ..Policy::default()
        };
        w.save(Item::Policy(policy)).await;
        let one = w.built("shop", "1.0.0").await;
        let proof = w.released("shop", "beta", one).await;
        let (_, o) = w.ask_for("shop", request("online", one, ReleaseKind::Normal, "")).await;
        assert!(o.code == "not_verified" && o.detail.contains("for 2 s"), "{o:?}");
        let d = eventually(std::time::Duration::from_secs(20), "the promotion", async || {
            w.in_environment("shop", "online").await.into_iter().next()
        })
        .await;
        assert_eq!((d.requested_by.as_str(), d.version.as_str()), ("policy:on", "1.0.0"));
        let good_at = w.until(proof, State::Succeeded).await.ended_at.expect("ended");
        assert!(d.requested_at >= good_at + chrono::Duration::seconds(2), "not before its time");
        w.settle(d.id, &[]).await;
        w.until(d.id, State::Succeeded).await;
        // The same artifact once more proves nothing new; a rollback promotes nothing; what is withdrawn is not asked for.
        w.released("shop", "beta", one).await;
        let two = w.built("shop", "2.0.0").await;
        let bad = w.released("shop", "beta", two).await;
        w.rolled_back("shop", bad).await;
        let three = w.built("shop", "3.0.0").await;
        w.released("shop", "beta", three).await;
        eventually(std::time::Duration::from_secs(20), "the second promotion", async || {
            let all = w.in_environment("shop", "online").await;
            all.iter().any(|d| d.version == "3.0.0").then_some(())
        })
        .await;
        let all: Vec<String> = w.in_environment("shop", "online").await.into_iter().map(|d| d.version).collect();
        assert_eq!(all, ["3.0.0", "1.0.0"], "newest first, each once");
        w.stop().await;
    }
}

/// A bundle over `shop` and `web`, in this order.
struct Two {
    id: BundleId,
    deployments: Vec<DeploymentId>,
}

impl World {
    async fn second_project(&self, quorum: u32) {
        let mut tx = self.store().read().await.expect("read");
        let flow = catalog::get(&mut tx, Kind::Flow, "shop/web").await.expect("read").expect("a flow").item;
        drop(tx);
        let Item::Flow { flow, source, .. } = flow else { panic!("a flow") };
        self.save(Item::Flow { project: "web".into(), flow, source }).await;
        self.save(Item::Environment(environment("web", "beta", "h1"))).await;
        if quorum > 0 {
            let rule = |name: &str, people: &[&str]| ApprovalRule {
                name: name.into(),
                quorum,
                people: people.iter().map(|p| p.to_string()).collect(),
            };
            let policy = Policy {
                name: "webs".into(),
                matches: PolicyMatch { projects: vec!["web".into()], ..PolicyMatch::default() },
                approvals: vec![rule("zoe", &["zoe"])],
                ..Policy::default()
            };
            self.save(Item::Policy(policy)).await;
        }
    }

    async fn bundle(&self, one: ArtifactId, two: ArtifactId, on_failure: OnFailure) -> Two {
        let id = BundleId(Uuid::now_v7());
        let member = |name: &str, needs: &[&str], artifact| BundleMember {
            name: name.into(),
            project: name.into(),
            needs: needs.iter().map(|n| n.to_string()).collect(),
            request: request("beta", artifact, ReleaseKind::Normal, ""),
        };
        let members = vec![member("shop", &[], one), member("web", &["shop"], two)];
        let deployments = members.iter().map(|m| m.request.deployment).collect();
        let r = BundleRequest { title: "both".into(), note: String::new(), on_failure, members };
        let o = self.to_bundle("person:ann", id, BundleAsk::Request(Box::new(r))).await;
        assert!(o.accepted, "{o:?}");
        Two { id, deployments }
    }

    async fn to_bundle(&self, actor: &str, bundle: BundleId, ask: BundleAsk) -> CommandOutcome {
        self.send("shop", actor, None, Verb::Bundle { bundle, ask }).await
    }

    async fn bundle_until(&self, id: BundleId, what: &str, fits: impl Fn(&Bundle) -> bool) -> Bundle {
        eventually(std::time::Duration::from_secs(20), what, async || {
            let mut tx = self.store().read().await.expect("read");
            let b = bundles::get(&mut tx, id).await.expect("read")?.bundle;
            fits(&b).then_some(b)
        })
        .await
    }

    async fn in_state(&self, id: BundleId, state: bundle::State) -> Bundle {
        self.bundle_until(id, state.as_str(), |b| b.state == state).await
    }

    /// As the api makes it: one approval a member that asks.
    async fn approve(&self, id: BundleId, person: &str, members: &[&str]) -> CommandOutcome {
        let b = self.bundle_until(id, "a bundle", |_| true).await;
        let approvals = b.members.iter().filter(|m| members.contains(&m.name.as_str())).map(|m| Approval {
            deployment: m.deployment,
            plan_digest: m.plan_digest.clone(),
            person: person.into(),
            decision: Decision::Approve,
            comment: String::new(),
            at: Utc::now(),
            signature: "test".into(),
        });
        let ask = BundleAsk::Approve {
            digest: b.digest,
            approvals: approvals.collect(),
            comment: String::new(),
            token: None,
        };
        self.to_bundle(&format!("person:{person}"), id, ask).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_approved_together_runs_in_order_and_goes_back_together() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 1).await;
        w.second_project(1).await;
        let (s1, w1) = (w.built("shop", "1.0.0").await, w.built("web", "1.0.0").await);
        let first = w.bundle(s1, w1, OnFailure::Pause).await;
        let b = w.in_state(first.id, bundle::State::AwaitingApproval).await;
        // bob answers the rule of both; web asks for zoe besides: each rule is met by itself.
        assert_eq!(w.approve(first.id, "ann", &["shop", "web"]).await.code, "own_request");
        assert!(w.approve(first.id, "bob", &["shop", "web"]).await.accepted);
        let held = w.until(first.deployments[0], State::Scheduled).await;
        assert!(held.waiting_on()[0].to_string().contains("its turn as shop"), "{:?}", held.waiting_on());
        assert_eq!(w.in_state(first.id, bundle::State::AwaitingApproval).await.digest, b.digest);
        assert!(w.approve(first.id, "zoe", &["shop", "web"]).await.accepted);
        // In order: web is held until shop succeeded, though it is approved and its lock is free.
        w.until(first.deployments[0], State::Running).await;
        assert_eq!(w.until(first.deployments[1], State::Scheduled).await.turn.expect("a turn").member, "web");
        assert_eq!(w.works(first.deployments[1]).await, 0);
        w.settle(first.deployments[0], &[]).await;
        w.settle(first.deployments[1], &[]).await;
        w.in_state(first.id, bundle::State::Succeeded).await;

        // The second time the second member fails, and both go back, the last success last.
        let (s2, w2) = (w.built("shop", "2.0.0").await, w.built("web", "2.0.0").await);
        let second = w.bundle(s2, w2, OnFailure::Pause).await;
        assert!(w.approve(second.id, "bob", &["shop", "web"]).await.accepted);
        assert!(w.approve(second.id, "zoe", &["web"]).await.accepted);
        w.settle(second.deployments[0], &[]).await;
        w.settle(second.deployments[1], &[("h1", Outcome::Failed)]).await;
        let b = w.in_state(second.id, bundle::State::Paused).await;
        assert!(b.waiting_on().iter().any(|x| x.to_string().contains("a person: web")), "{:?}", b.waiting_on());
        let ask = BundleAsk::Rollback { mode: RollbackMode::Normal, reason: "web fails".into(), members: vec![] };
        assert!(w.to_bundle("person:olga", second.id, ask).await.accepted);
        let of_web = w.until(second.deployments[1], State::Aborted).await.rolled_back_by.expect("its rollback");
        let shop = w.until(second.deployments[0], State::Succeeded).await;
        assert_eq!(shop.rolled_back_by, None, "one at a time");
        w.settle(of_web, &[]).await;
        let of_shop = eventually(std::time::Duration::from_secs(20), "the rollback of shop", async || {
            w.until(second.deployments[0], State::Succeeded).await.rolled_back_by
        })
        .await;
        w.settle(of_shop, &[]).await;
        let b = w.in_state(second.id, bundle::State::RolledBack).await;
        assert!(b.members.iter().all(|m| m.state == bundle::MemberState::RolledBack));
        w.until(second.deployments[0], State::RolledBack).await;
        assert_eq!(w.good().await[0], "1.0.0");
        let told: Vec<String> =
            w.events(Aggregate::Bundle, second.id.to_string()).await.into_iter().map(|e| e.0).collect();
        for e in [
            "bundle.requested",
            "bundle.approval_given",
            "bundle.started",
            "bundle.member_failed",
            "bundle.rolled_back",
        ] {
            assert!(told.iter().any(|t| t == e), "{e} in {told:?}");
        }
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_member_is_retried_or_skipped_and_a_cancelled_bundle_starts_nothing() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 0).await;
        w.second_project(0).await;
        let (s1, w1) = (w.built("shop", "1.0.0").await, w.built("web", "1.0.0").await);
        let b = w.bundle(s1, w1, OnFailure::Pause).await;
        w.settle(b.deployments[0], &[("h1", Outcome::Failed)]).await;
        w.in_state(b.id, bundle::State::Paused).await;
        // The deployment waits for a person: retrying the member is retrying it.
        assert!(w.to_bundle("person:olga", b.id, BundleAsk::Retry { members: vec![] }).await.accepted);
        w.settle(b.deployments[0], &[("h1", Outcome::Failed)]).await;
        w.in_state(b.id, bundle::State::Paused).await;
        let abort = Verb::Abort { reason: "no".into() };
        assert!(w.send("shop", "person:olga", Some(b.deployments[0]), abort).await.accepted);
        w.until(b.deployments[0], State::Aborted).await;
        w.bundle_until(b.id, "the member failed", |b| b.members[0].state == bundle::MemberState::Failed).await;
        // It has ended: now a retry is a new deployment of the same release.
        assert!(w.to_bundle("person:olga", b.id, BundleAsk::Retry { members: vec!["shop".into()] }).await.accepted);
        let again = w.bundle_until(b.id, "another deployment", |x| !x.members[0].earlier.is_empty()).await;
        let again = again.members[0].deployment;
        assert_ne!(again, b.deployments[0]);
        w.settle(again, &[]).await;
        w.settle(b.deployments[1], &[]).await;
        w.in_state(b.id, bundle::State::Succeeded).await;

        let (s2, w2) = (w.built("shop", "2.0.0").await, w.built("web", "2.0.0").await);
        let c = w.bundle(s2, w2, OnFailure::Pause).await;
        w.until(c.deployments[0], State::Running).await;
        assert!(w.to_bundle("person:ann", c.id, BundleAsk::Cancel { reason: "stop".into() }).await.accepted);
        w.until(c.deployments[1], State::Cancelled).await;
        w.settle(c.deployments[0], &[]).await;
        let ended = w.in_state(c.id, bundle::State::Cancelled).await;
        assert_eq!(ended.members[0].state, bundle::MemberState::Succeeded, "what ran went to its end");
        assert_eq!(w.works(c.deployments[1]).await, 0);

        // A member that cannot be planned refuses all of it.
        let id = BundleId(Uuid::now_v7());
        let member = |p: &str, e: &str, a| BundleMember {
            name: p.into(),
            project: p.into(),
            needs: vec![],
            request: request(e, a, ReleaseKind::Normal, ""),
        };
        let members = vec![member("shop", "beta", s2), member("web", "nowhere", w2)];
        let first = members[0].request.deployment;
        let r = BundleRequest { title: "x".into(), note: String::new(), on_failure: OnFailure::Pause, members };
        let o = w.to_bundle("person:ann", id, BundleAsk::Request(Box::new(r))).await;
        assert!(o.code == "invalid" && o.detail.starts_with("member web:"), "{o:?}");
        let mut tx = w.store().read().await.expect("read");
        assert!(deployments::get(&mut tx, first).await.expect("read").is_none(), "nothing of it was made");
        drop(tx);
        w.stop().await;
    }
}

/// Two schedulers look at the same bundle; each member starts once.
#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_carry_one_bundle() {
    for db in databases().await {
        let mut w = World::start(db, &["h1"], 0).await;
        w.second_scheduler().await;
        w.second_project(0).await;
        for n in 1..4 {
            let v = format!("{n}.0.0");
            let (s, b) = (w.built("shop", &v).await, w.built("web", &v).await);
            let two = w.bundle(s, b, OnFailure::Stop).await;
            for d in &two.deployments {
                w.settle(*d, &[]).await;
                assert_eq!(w.works(*d).await, 1);
            }
            w.in_state(two.id, bundle::State::Succeeded).await;
        }
        w.stop().await;
    }
}

/// A flow that is saved while a deployment of it runs changes nothing of that deployment.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_deployment_keeps_its_flow() {
    for db in databases().await {
        let w = World::start(db, &["h1", "h2"], 0).await;
        let one = w.built("shop", "1.0.0").await;
        let (id, _) = w.ask_for("shop", request("beta", one, ReleaseKind::Normal, "")).await;
        let before = w.until(id, State::Running).await;
        let mut tx = w.store().read().await.expect("read");
        let item = catalog::get(&mut tx, Kind::Flow, "shop/web").await.expect("read").expect("a flow").item;
        drop(tx);
        let mut doc = serde_json::to_value(&item).expect("json");
        doc["flow"]["steps"][0]["id"] = "another".into();
        w.save(serde_json::from_value(doc).expect("a flow")).await;
        assert_eq!(w.settle(id, &[]).await, ["h1"]);
        assert_eq!(w.settle(id, &[]).await, ["h2"]);
        let after = w.until(id, State::Succeeded).await;
        assert_eq!(after.plan_digest, before.plan_digest);
        assert_eq!(after.steps[0].id, "rollout");
        // The next one has the new flow.
        let (next, _) = w.ask_for("shop", request("beta", one, ReleaseKind::Normal, "")).await;
        assert_eq!(w.until(next, State::Running).await.steps[0].id, "another");
        w.stop().await;
    }
}
