//! A database, a broker, a scheduler under test, and the parts of api and executor that it meets.

use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use windlass_bus::Context;
use windlass_contracts::{
    command::{Command, CommandOutcome, Request, Verb},
    subjects,
};
use windlass_domain::{
    Timestamp,
    access::{Grant, Role},
    approval::ApprovalRule,
    artifact::Artifact,
    catalog::{Environment, Host, Item, Policy},
    deployment::{Deployment, State},
    flow::{Flow, Phase},
    ids::{ArtifactId, CommandId, DeploymentId},
    release::{ReleaseKind, RollbackMode},
    work::{HostResult, Outcome, WorkResult, WorkSpec},
};
use windlass_runtime::{Health, Settings};
use windlass_store::{
    Store, Tx, artifacts, catalog, commands, deployments,
    people::{self, Person},
    works,
};
use windlass_testkit::{Db, Nats, eventually, nats, temp_dir};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) nats: Nats,
    ctx: Context,
    shutdown: CancellationToken,
    schedulers: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
    db: Db,
}

/// What a rollback may be asked for besides.
#[derive(Default)]
pub(crate) struct Back {
    pub(crate) to: Option<&'static str>,
    pub(crate) veto: bool,
    pub(crate) from_phase: Option<Phase>,
}

impl World {
    pub(crate) async fn start(db: Db, hosts: &[&str], quorum: u32) -> World {
        let dir = temp_dir();
        let nats = nats().await;
        let mut settings = Settings { state_dir: dir.path().into(), ..Settings::default() };
        settings.database.url = Some(db.url().into());
        settings.nats.urls = vec![nats.url()];
        settings.poll_s = Duration::from_millis(300).into();
        let shutdown = CancellationToken::new();
        let ctx = Context::open(Arc::new(settings), Health::new(), shutdown.clone()).await.expect("context");
        let mut w = World { nats, ctx, shutdown, schedulers: vec![], _dir: dir, db };
        w.catalog(hosts, quorum).await;
        for name in ["ann", "bob", "olga", "zoe"] {
            w.person(name, Role::Admin, false).await;
        }
        w.second_scheduler().await;
        w
    }

    pub(crate) fn store(&self) -> &windlass_store::Store {
        &self.ctx.store
    }

    /// A person as they are from now on, with one role everywhere.
    pub(crate) async fn person(&self, name: &str, role: Role, disabled: bool) {
        let p = Person { name: name.into(), display: name.into(), disabled, created_at: chrono::Utc::now() };
        let mut tx = self.ctx.store.write().await.expect("tx");
        if !people::insert(&mut tx, &p).await.expect("person") {
            people::update(&mut tx, name, name, disabled).await.expect("person");
        }
        people::set_grants(&mut tx, name, &[Grant { project_group: "*".into(), role }]).await.expect("grants");
        tx.commit().await.expect("commit");
    }

    /// Another one of the same.
    pub(crate) async fn second_scheduler(&mut self) {
        let mut ctx = self.ctx.for_service();
        // SQLite has no roles, and one writer, which is shared.
        if self.db.kind() == "postgres" {
            ctx.store = Store::open(&self.db.url_of("scheduler").await).await.expect("opens with its own rights");
        }
        self.schedulers.push(tokio::spawn(async move {
            windlass_scheduler::run(ctx).await.expect("ends well");
        }));
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        for s in self.schedulers {
            tokio::time::timeout(PATIENCE, s).await.expect("stops in time").expect("no panic");
        }
        self.ctx.store.close().await;
    }

    async fn catalog(&self, hosts: &[&str], quorum: u32) {
        let flow: Flow = serde_json::from_value(json!({
            "name": "web", "inputs": {}, "on_failure": "pause",
            "steps": [{
                "id": "rollout", "phase": null, "needs": [], "condition": null,
                "kind": { "kind": "rollout", "waves": "1 *4", "confirm": "none", "bake_s": 0, "budget": { "hosts": null, "percent": null },
                          "parallel": 0, "steps": [{ "id": "switch", "condition": null, "always": false,
                          "call": { "uses": "release.switch", "with": {}, "timeout_s": 60 } }] }
            }],
            "rollback": { "emergency": [], "normal": [{ "id": "switch", "condition": null, "always": false,
                          "call": { "uses": "release.switch", "with": { "to": "last_known_good" }, "timeout_s": 60 } }] }
        }))
        .expect("flow");
        let mut items = vec![Item::Flow { project: "shop".into(), flow, source: String::new() }];
        for h in hosts {
            let name = (*h).to_owned();
            items.push(Item::Host(Host { name, address: "127.0.0.1".into(), ..Host::default() }));
        }
        items.push(Item::Environment(Environment {
            project: "shop".into(),
            name: "beta".into(),
            hosts: hosts.iter().map(|h| h.to_string()).collect(),
            flow: "web".into(),
            pool: "default".into(),
            ..Environment::default()
        }));
        if quorum > 0 {
            items.push(Item::Policy(Policy {
                name: "p".into(),
                approvals: vec![ApprovalRule { name: "ops".into(), quorum, people: vec![] }],
                ..Policy::default()
            }));
        }
        let mut tx = self.ctx.store.write().await.expect("tx");
        for i in items {
            catalog::save(&mut tx, &i, 0, false, "test", chrono::Utc::now()).await.expect("saved");
        }
        tx.commit().await.expect("commit");
    }

    pub(crate) async fn artifact(&self, version: &str) -> ArtifactId {
        let a = Artifact {
            id: ArtifactId(Uuid::now_v7()),
            project: "shop".into(),
            version: version.into(),
            digest: format!("sha256:{}", "0".repeat(64)),
            url: format!("file:///{version}"),
            size: None,
            git_ref: None,
            commit: None,
            committer: None,
            build_url: None,
            built_at: chrono::Utc::now(),
        };
        let mut tx = self.ctx.store.write().await.expect("tx");
        artifacts::insert(&mut tx, &a, a.built_at).await.expect("registered");
        tx.commit().await.expect("commit");
        a.id
    }

    pub(crate) async fn request(&self, actor: &str, artifact: ArtifactId) -> (DeploymentId, CommandOutcome) {
        self.ask(actor, "beta", artifact, None).await
    }
    pub(crate) async fn request_to(&self, environment: &str, artifact: ArtifactId) -> (DeploymentId, CommandOutcome) {
        self.ask("person:ann", environment, artifact, None).await
    }
    pub(crate) async fn request_at(&self, artifact: ArtifactId, at: Timestamp) -> DeploymentId {
        self.ask("person:ann", "beta", artifact, Some(at)).await.0
    }

    async fn ask(
        &self,
        actor: &str,
        environment: &str,
        artifact: ArtifactId,
        not_before: Option<Timestamp>,
    ) -> (DeploymentId, CommandOutcome) {
        let id = DeploymentId(Uuid::now_v7());
        let request = Request {
            add_hosts: vec![],
            exclude_hosts: vec![],
            values: Default::default(),
            deployment: id,
            environment: environment.into(),
            artifact,
            kind: ReleaseKind::Normal,
            inputs: Default::default(),
            hosts: vec![],
            not_before,
            note: String::new(),
        };
        let outcome = self.command(actor, id, Verb::Request(Box::new(request))).await;
        (id, outcome)
    }

    pub(crate) async fn command(&self, actor: &str, deployment: DeploymentId, verb: Verb) -> CommandOutcome {
        let tx = self.ctx.store.write().await.expect("tx");
        self.command_with(tx, actor, deployment, verb).await
    }

    /// A command that is stored along with what this transaction holds already.
    pub(crate) async fn command_with(
        &self,
        mut tx: Tx,
        actor: &str,
        deployment: DeploymentId,
        verb: Verb,
    ) -> CommandOutcome {
        let id = CommandId(Uuid::now_v7());
        let name = verb.name();
        let c = Command {
            id,
            project: "shop".into(),
            environment: Some("beta".into()),
            deployment: Some(deployment),
            actor: actor.into(),
            verb,
            created_at: chrono::Utc::now(),
            trace: None,
        };
        assert!(commands::insert(&mut tx, &c).await.expect("stored"));
        tx.commit().await.expect("commit");
        self.ctx.bus.ring(subjects::command(name), id.to_string()).await;
        eventually(PATIENCE, "the command's outcome", async || {
            let mut tx = self.ctx.store.read().await.expect("read");
            commands::outcome(&mut tx, id).await.expect("outcome")
        })
        .await
    }

    /// Asks for a rollback as olga; `ask` makes it another one than the plain one.
    pub(crate) async fn back(&self, of: DeploymentId, ask: impl FnOnce(&mut Back)) -> (DeploymentId, CommandOutcome) {
        let rollback = DeploymentId(Uuid::now_v7());
        let mut back = Back::default();
        ask(&mut back);
        let Back { to, veto, from_phase } = back;
        let (to, reason) = (to.map(str::to_owned), "it is slow".into());
        let verb = Verb::Rollback { mode: RollbackMode::Normal, reason, rollback, to, veto, from_phase };
        (rollback, self.command("person:olga", of, verb).await)
    }

    pub(crate) async fn until(&self, id: DeploymentId, state: State) -> Deployment {
        eventually(PATIENCE, state.as_str(), async || {
            let mut tx = self.ctx.store.read().await.expect("read");
            let d = deployments::get(&mut tx, id).await.expect("read")?.deployment;
            (d.state == state).then_some(d)
        })
        .await
    }

    /// The state it is in once what was settled has been applied.
    pub(crate) async fn until_any(&self, id: DeploymentId) -> State {
        eventually(PATIENCE, "all results are applied", async || {
            let mut tx = self.ctx.store.read().await.expect("read");
            let open = works::results_to_apply(&mut tx, Some(id), 1).await.expect("reads");
            let d = deployments::get(&mut tx, id).await.expect("read").expect("there").deployment;
            open.is_empty().then_some(d.state)
        })
        .await
    }

    /// Plays the executor for the deployment's open wave; the answer is its hosts.
    pub(crate) async fn settle(&self, id: DeploymentId, bad: &[(&str, Outcome)]) -> Vec<String> {
        // The work before it stays in flight until the scheduler has applied its result, so ask for one that can be claimed.
        let (mut tx, mine) = eventually(PATIENCE, "an open work", async || {
            let mut tx = self.ctx.store.write().await.expect("tx");
            let lease = Duration::from_secs(60);
            let claims = works::claim(&mut tx, &["default".into()], "test", lease, 100, &[]).await.expect("claims");
            let mine = claims.into_iter().find(|c| c.work.deployment == id)?;
            Some((tx, mine))
        })
        .await;
        let WorkSpec::Wave(wave) = &mine.work.spec else { panic!("a wave") };
        let outcome = |h: &str| bad.iter().find(|b| b.0 == h).map_or(Outcome::Succeeded, |b| b.1);
        let hosts: Vec<HostResult> = wave
            .hosts
            .iter()
            .map(|h| HostResult {
                class: None,
                exit_code: None,
                failed_id: None,
                outputs: Default::default(),
                host: h.host.clone(),
                attempt: h.attempt,
                outcome: outcome(&h.host),
                failed_step: None,
                reason: None,
            })
            .collect();
        let names = hosts.iter().map(|h| h.host.clone()).collect();
        works::settle(&mut tx, mine.work.id, mine.epoch, &WorkResult::Wave { hosts }).await.expect("settled");
        tx.commit().await.expect("commit");
        self.ctx.bus.ring(subjects::WORK_SETTLED, id.to_string()).await;
        names
    }

    pub(crate) async fn works(&self, id: DeploymentId) -> usize {
        let mut tx = self.ctx.store.read().await.expect("read");
        works::of_deployment(&mut tx, id).await.expect("works").len()
    }

    /// Versions known good in `shop/beta`, newest first.
    pub(crate) async fn good(&self) -> Vec<String> {
        let mut tx = self.ctx.store.read().await.expect("read");
        let state = deployments::environment_state(&mut tx, "shop", "beta").await.expect("state");
        state.good.into_iter().map(|g| g.version).collect()
    }
}
