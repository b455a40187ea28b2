//! One control plane for a test: database, NATS, a plan, agents, and as many executors as the test wants.

use crate::agent::Agent;
use nkeys::{KeyPair, KeyPairType};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use windlass_bus::{Context, identity};
use windlass_contracts::subjects;
use windlass_domain::{
    event::Event,
    ids::{AgentId, DeploymentId, TaskId, WorkId},
    plan::{Plan, PlanArtifact, PlanHost, PlanRollout, PlanStep, PlanStepKind, Undo},
    plugin::Plugin,
    task::TaskStep,
    work::{CentralWork, Desired, HostResult, Outcome, WaveHost, WaveWork, Work, WorkResult, WorkSpec},
};
use windlass_runtime::{Health, Settings, settings::Seconds};
use windlass_store::{Store, deployments, events, sql, tasks, works};
use windlass_testkit::{Db, Nats, eventually, temp_dir};

pub(crate) const SOON: Duration = Duration::from_secs(25);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Arc<Settings>,
    pub(crate) store: Store,
    pub(crate) nats: Nats,
    pub(crate) agents: BTreeMap<String, Agent>,
    pub(crate) deployment: DeploymentId,
    pub(crate) digest: String,
    pub(crate) client: async_nats::Client,
    pub(crate) control: KeyPair,
    agent_tasks: JoinSet<()>,
    db: Db,
    _dir: tempfile::TempDir,
}

#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) stop: CancellationToken,
    task: JoinHandle<Result<(), windlass_executor::Error>>,
    pub(crate) ctx: Context,
}

impl Executor {
    /// Dies at once; its claims stay until they expire.
    pub(crate) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|e| e.is_cancelled()));
    }
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        self.task.await.expect("joins").expect("ends well");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agent_tasks.abort_all();
    }
}

fn seconds(ms: u64) -> Seconds {
    Duration::from_millis(ms).into()
}

/// A rollout whose one step needs the secret `token`.
pub(crate) const SEALED: &str = "sealed";

pub(crate) fn step(id: &str, run: &str) -> TaskStep {
    let with = serde_json::json!({ "run": run, "interpreter": "bash", "args": [], "env": {} });
    let with = with.as_object().expect("object").clone();
    TaskStep { id: id.into(), action: "script".into(), with, always: false, timeout_s: 60 }
}

impl World {
    /// Agents for the first `with_agents` of `hosts` hosts `h0`, `h1` …
    pub(crate) async fn new(db: Db, hosts: usize, with_agents: usize) -> World {
        Self::with_central(db, hosts, with_agents, vec![]).await
    }

    pub(crate) async fn with_central(
        db: Db,
        hosts: usize,
        with_agents: usize,
        central: Vec<(&str, serde_json::Value)>,
    ) -> World {
        let central = central.into_iter().map(|(action, with)| (action.to_owned(), with, 20)).collect();
        Self::with_plan(db, hosts, with_agents, central, vec![]).await
    }

    /// Central steps `c0`, `c1` … by action, parameters and timeout; they may call these plugins.
    pub(crate) async fn with_plan(
        db: Db,
        hosts: usize,
        with_agents: usize,
        central: Vec<(String, serde_json::Value, u32)>,
        plugins: Vec<Plugin>,
    ) -> World {
        Self::planned(db, hosts, with_agents, central, plugins, None, |_| {}).await
    }

    /// One central step `c0` that takes back a call of this plugin.
    pub(crate) async fn undoing(db: Db, plugin: &Plugin, with: serde_json::Value, undo: Undo) -> World {
        let central = vec![(plugin.action(), with, 20)];
        Self::planned(db, 1, 0, central, vec![plugin.clone()], Some(undo), |_| {}).await
    }

    /// With a rollout `roll` that is made otherwise.
    pub(crate) async fn rolling(db: Db, hosts: usize, change: impl FnOnce(&mut PlanRollout)) -> World {
        Self::planned(db, hosts, hosts, vec![], vec![], None, change).await
    }

    async fn planned(
        db: Db,
        hosts: usize,
        with_agents: usize,
        central: Vec<(String, serde_json::Value, u32)>,
        plugins: Vec<Plugin>,
        undo: Option<Undo>,
        change: impl FnOnce(&mut PlanRollout),
    ) -> World {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = temp_dir();
        let nats = windlass_testkit::nats().await;
        let mut s = Settings { state_dir: dir.path().to_path_buf(), ..Settings::default() };
        s.database.url = Some(db.url().to_owned());
        s.nats.urls = vec![nats.url()];
        s.poll_s = seconds(200);
        s.executor.lease_s = seconds(1500);
        s.executor.suspect_s = seconds(600);
        s.executor.disconnected_s = seconds(800);
        // Long enough for a crowded machine; tests of silence shorten them.
        s.executor.unknown_s = seconds(15_000);
        s.executor.offer_timeout_s = seconds(15_000);
        s.executor.resend_first_s = seconds(30);
        s.executor.resend_max_s = seconds(150);
        s.executor.allow_private_addresses = vec!["127.0.0.0/8".parse().expect("network")];
        let settings = Arc::new(s);
        let store = Store::open(db.url()).await.expect("opens");
        let control =
            identity::load_key(&settings.keys_dir().join(windlass_executor::KEY_FILE), KeyPairType::User).expect("key");
        let client = async_nats::connect(nats.url()).await.expect("connects");

        let mut roll = PlanRollout {
            traffic: Vec::new(),
            wave_failures: Vec::new(),
            probes: None,
            required: Vec::new(),
            stagger: None,
            groups: Vec::new(),
            waves: vec![(0..hosts as u32).collect()],
            confirm: Default::default(),
            bake_s: 0,
            max_failures: 0,
            parallel: 0,
            steps: vec![step("first", "true"), step("second", "true")],
            conditions: BTreeMap::new(),
        };
        change(&mut roll);
        let mut steps = vec![PlanStep::new("roll", vec![], PlanStepKind::Rollout(roll))];
        let mut sealed = step("sealed", "true");
        let token = windlass_domain::reference::Reference::Secret { name: "token".into() };
        sealed.with["env"] = serde_json::json!({ "TOKEN": token.marker() });
        let rollout = PlanRollout {
            traffic: Vec::new(),
            wave_failures: Vec::new(),
            probes: None,
            required: Vec::new(),
            stagger: None,
            groups: Vec::new(),
            waves: vec![(0..hosts as u32).collect()],
            confirm: Default::default(),
            bake_s: 0,
            max_failures: 0,
            parallel: 0,
            steps: vec![sealed],
            conditions: BTreeMap::new(),
        };
        steps.push(PlanStep::new(SEALED, vec![], PlanStepKind::Rollout(rollout)));
        for (i, (action, with, timeout_s)) in central.into_iter().enumerate() {
            let with = with.as_object().expect("object").clone();
            let kind = PlanStepKind::Central { action, with, timeout_s };
            steps.push(PlanStep { undo: undo.clone(), ..PlanStep::new(format!("c{i}"), vec![], kind) });
        }
        let plan = Plan {
            automatic: None,
            patience: Default::default(),
            scopes: Default::default(),
            plugins: plugins.into_iter().map(|p| (p.key(), p)).collect(),
            left_out: Default::default(),
            release_values: Default::default(),
            project: "shop".into(),
            environment: "prod".into(),
            release: uuid::Uuid::now_v7().into(),
            kind: serde_json::from_value(serde_json::json!("normal")).expect("kind"),
            rollback: None,
            artifact: PlanArtifact {
                version: "1.0.0".into(),
                url: "file:///nowhere.tar.gz".into(),
                digest: format!("sha256:{}", "0".repeat(64)),
                size: None,
                dir: "d".into(),
                built_at: chrono::Utc::now(),
            },
            flow: "web".into(),
            flow_revision: 1,
            inputs: BTreeMap::new(),
            on_failure: Default::default(),
            context: Default::default(),
            approvals: vec![],
            hosts: (0..hosts)
                .map(|i| PlanHost {
                    name: format!("h{i}"),
                    address: "127.0.0.1".into(),
                    labels: BTreeMap::from([("role".into(), "web".into())]),
                    ..PlanHost::default()
                })
                .collect(),
            steps,
        };
        let deployment: DeploymentId = uuid::Uuid::now_v7().into();
        let digest = plan.digest().expect("digest").digest;
        let mut tx = store.write().await.expect("tx");
        deployments::insert_plan(&mut tx, deployment, &digest, &plan, chrono::Utc::now()).await.expect("plan");
        tx.commit().await.expect("commits");
        let mut w = World {
            settings,
            store,
            nats,
            agents: BTreeMap::new(),
            deployment,
            digest,
            client,
            control,
            agent_tasks: JoinSet::new(),
            db,
            _dir: dir,
        };
        for i in 0..with_agents {
            w.enroll(&format!("h{i}")).await;
        }
        w
    }

    pub(crate) async fn enroll(&mut self, host: &str) {
        let key = KeyPair::new_user();
        let id: AgentId = uuid::Uuid::now_v7().into();
        let mut tx = self.store.write().await.expect("tx");
        sql("INSERT INTO agents (id, host, public_key, enrolled_at, revoked_at) VALUES ($1, $2, $3, $4, NULL)")
            .bind(id)
            .bind(host)
            .bind(key.public_key())
            .bind(chrono::Utc::now())
            .execute_one(&mut tx)
            .await
            .expect("agent");
        tx.commit().await.expect("commits");
        let client = async_nats::connect(self.nats.url()).await.expect("connects");
        self.agents.insert(host.into(), Agent::new(id, host, key, &self.control, client));
    }

    /// Starts every agent.
    pub(crate) fn start_agents(&mut self) {
        for a in self.agents.values() {
            self.agent_tasks.spawn(a.clone().run());
        }
    }

    pub(crate) fn agent(&self, i: usize) -> &Agent {
        &self.agents[&format!("h{i}")]
    }

    pub(crate) async fn executor(&self) -> Executor {
        self.executor_with(|_| {}).await
    }

    /// One that soon calls a host silent.
    pub(crate) async fn impatient_executor(&self) -> Executor {
        self.executor_with(|s| s.executor.unknown_s = seconds(900)).await
    }

    pub(crate) async fn executor_with(&self, change: impl FnOnce(&mut Settings)) -> Executor {
        let mut settings = (*self.settings).clone();
        change(&mut settings);
        settings.database.url = Some(self.db.url_of("executor").await);
        let stop = CancellationToken::new();
        let ctx = Context::open(Arc::new(settings), Health::new(), stop.clone()).await.expect("context");
        let task = tokio::spawn(windlass_executor::run(ctx.clone()));
        Executor { stop, task, ctx }
    }

    pub(crate) async fn insert(&self, spec: WorkSpec) -> WorkId {
        self.insert_in("default", spec).await
    }

    /// In a pool of its own.
    pub(crate) async fn insert_in(&self, pool: &str, spec: WorkSpec) -> WorkId {
        let id: WorkId = uuid::Uuid::now_v7().into();
        let work = Work {
            id,
            deployment: self.deployment,
            project: "shop".into(),
            environment: "prod".into(),
            pool: pool.into(),
            desired: Desired::Run,
            fence: 1,
            plan_digest: self.digest.clone(),
            spec,
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        };
        let mut tx = self.store.write().await.expect("tx");
        works::insert(&mut tx, &work).await.expect("inserts");
        tx.commit().await.expect("commits");
        self.ring(id).await;
        id
    }

    pub(crate) async fn ring(&self, id: WorkId) {
        self.client.publish(subjects::work("default"), id.to_string().into()).await.expect("rings");
        self.client.flush().await.expect("flushes");
    }

    /// A wave over hosts `h0`… `n`, first attempts.
    pub(crate) async fn wave(&self, hosts: usize, parallel: u32, max_failures: u32) -> WorkId {
        let hosts = (0..hosts).map(|i| WaveHost { host: format!("h{i}"), attempt: 1, start_at: 0 }).collect();
        self.insert(WorkSpec::Wave(WaveWork {
            stagger: None,
            again: false,
            outputs: Default::default(),
            step: "roll".into(),
            wave: 0,
            hosts,
            parallel,
            max_failures,
        }))
        .await
    }

    /// Pauses or resumes, as the scheduler does.
    pub(crate) async fn hold(&self, work: WorkId, hold: bool) {
        let mut tx = self.store.write().await.expect("tx");
        works::hold(&mut tx, self.deployment, hold).await.expect("holds");
        tx.commit().await.expect("commits");
        self.ring(work).await;
    }

    pub(crate) async fn central(&self, step: &str) -> WorkId {
        self.insert(WorkSpec::Central(CentralWork { outputs: Default::default(), step: step.into(), attempt: 1 })).await
    }

    pub(crate) async fn abort(&self) {
        let mut tx = self.store.write().await.expect("tx");
        let rung = works::abort(&mut tx, self.deployment).await.expect("aborts");
        tx.commit().await.expect("commits");
        for (id, _) in rung {
            self.ring(id).await;
        }
    }

    pub(crate) async fn result(&self, work: WorkId, version: u64) -> WorkResult {
        self.result_within(work, version, SOON).await
    }

    pub(crate) async fn result_within(&self, work: WorkId, version: u64, limit: Duration) -> WorkResult {
        let found = eventually(limit, "the work is settled", async || {
            let mut tx = self.store.read().await.ok()?;
            let c = works::claim_state(&mut tx, work).await.ok()??;
            (c.phase == "settled" && c.result_version >= version).then_some(c.result)?
        });
        found.await
    }

    /// The results of a wave's hosts.
    pub(crate) async fn hosts(&self, work: WorkId, version: u64) -> Vec<HostResult> {
        match self.result(work, version).await {
            WorkResult::Wave { hosts } => hosts,
            other => panic!("not a wave: {other:?}"),
        }
    }

    /// Waits until this executor has the claim.
    pub(crate) async fn until_owned(&self, work: WorkId, by: &Executor) {
        eventually(SOON, "the claim is taken", async || {
            let c = works::claim_state(&mut self.store.read().await.ok()?, work).await.ok()??;
            (c.owner.as_deref() == Some(by.ctx.owner.as_str())).then_some(())
        })
        .await;
    }

    pub(crate) async fn outcomes(&self, work: WorkId, version: u64) -> Vec<Outcome> {
        match self.result(work, version).await {
            WorkResult::Wave { hosts } => hosts.into_iter().map(|h| h.outcome).collect(),
            other => panic!("not a wave: {other:?}"),
        }
    }

    pub(crate) async fn tasks(&self, work: WorkId) -> Vec<tasks::StoredTask> {
        tasks::of_work(&mut self.store.read().await.expect("reads"), work).await.expect("tasks")
    }

    /// State of the one task of a host, by text.
    pub(crate) async fn state(&self, work: WorkId, host: usize) -> Option<&'static str> {
        let host = format!("h{host}");
        self.tasks(work).await.into_iter().find(|t| t.task.host == host).map(|t| t.task.state.as_str())
    }

    pub(crate) async fn until_state(&self, work: WorkId, host: usize, state: &str) {
        eventually(SOON, state, async || (self.state(work, host).await? == state).then_some(())).await;
    }

    pub(crate) async fn task(&self, work: WorkId, host: usize) -> TaskId {
        let host = format!("h{host}");
        eventually(SOON, "the task exists", async || {
            self.tasks(work).await.into_iter().find(|t| t.task.host == host).map(|t| t.task.id)
        })
        .await
    }

    pub(crate) async fn events(&self) -> Vec<Event> {
        let mut tx = self.store.read().await.expect("reads");
        events::after(&mut tx, windlass_domain::event::Aggregate::Deployment, &self.deployment.to_string(), 0, 10_000)
            .await
            .expect("events")
    }

    pub(crate) async fn agent_events(&self, agent: AgentId) -> Vec<String> {
        let mut tx = self.store.read().await.expect("reads");
        events::after(&mut tx, windlass_domain::event::Aggregate::Agent, &agent.to_string(), 0, 100)
            .await
            .expect("events")
            .into_iter()
            .map(|e| e.what)
            .collect()
    }

    /// I1: no task started twice on any host.
    pub(crate) fn assert_single_starts(&self) {
        for a in self.agents.values() {
            for (task, n) in &a.lock().starts {
                assert_eq!(*n, 1, "task {task} on {} started {n} times", a.host);
            }
        }
    }

    pub(crate) fn starts(&self) -> usize {
        self.agents.values().map(|a| a.lock().starts.len()).sum()
    }
}
