//! Operator mode on a real server: what each identity may do, and what happens when one is revoked.

use crate::support::SOON;
use async_nats::{Client, ConnectOptions, Event};
use futures::StreamExt;
use nkeys::KeyPair;
use std::{net::SocketAddr, time::Duration};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{
    Bus, BusOptions, EmbeddedServer, Identities, ServerOptions,
    identity::{ServerPorts, creds},
    server,
};
use windlass_domain::ids::AgentId;
use windlass_runtime::{Health, Settings};
use windlass_testkit::nats_server_binary;

pub(crate) struct Site {
    pub(crate) dir: TempDir,
    pub(crate) ids: Identities,
    pub(crate) url: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) health: Health,
}

impl Site {
    pub(crate) async fn start() -> Site {
        let dir = tempfile::tempdir().expect("dir");
        let (shutdown, tracker, health) = (CancellationToken::new(), TaskTracker::new(), Health::new());
        let ids = Identities::load_or_create(&dir.path().join("keys")).expect("keys");
        let options = options(&dir, &ids).await;
        let server = EmbeddedServer::start(options, health.clone(), shutdown.clone(), &tracker).await.expect("starts");
        Site { url: server.url(), dir, ids, shutdown, tracker, health }
    }

    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        self.tracker.close();
        tokio::time::timeout(SOON, self.tracker.wait()).await.expect("the server ends");
    }

    fn settings(&self) -> Settings {
        let mut s = Settings::default();
        s.nats.urls = vec![self.url.clone()];
        s.nats.services_creds = Some(self.ids.services_creds());
        s.nats.agents_creds = Some(self.ids.agents_creds());
        s
    }

    /// An agent's connection, and what the server tells it.
    async fn agent(
        &self,
        id: AgentId,
        key: &KeyPair,
    ) -> Result<(Client, mpsc::UnboundedReceiver<String>), async_nats::ConnectError> {
        let (tell, told) = mpsc::unbounded_channel();
        let jwt = self.ids.agent_jwt(id, &key.public_key()).expect("signs");
        let client = ConnectOptions::with_credentials(&creds(&jwt, &key.seed().expect("seed")))
            .expect("credentials")
            .custom_inbox_prefix(format!("_INBOX_{id}"))
            .event_callback(move |e| {
                if let Event::ServerError(_) | Event::Disconnected | Event::ClientError(_) = e {
                    let _ = tell.send(e.to_string());
                }
                std::future::ready(())
            })
            .connect(&self.url)
            .await?;
        Ok((client, told))
    }
}

pub(crate) async fn options(dir: &TempDir, ids: &Identities) -> ServerOptions {
    let listen = SocketAddr::from(([127, 0, 0, 1], server::free_port([127, 0, 0, 1].into()).await.expect("port")));
    let config = ids
        .write_server_config(dir.path(), ServerPorts { listen, monitor: None }, &dir.path().join("nats/jetstream"))
        .expect("writes");
    ServerOptions { binary: nats_server_binary(), config, listen, log: dir.path().join("nats/log") }
}

fn id() -> AgentId {
    AgentId(uuid::Uuid::now_v7())
}

#[tokio::test]
async fn services_have_jetstream_and_an_agent_has_its_own_subjects_only() {
    let site = Site::start().await;
    let services = Bus::connect(BusOptions::services(&site.settings()), &site.health).await.expect("connects");
    services.ensure_topology().await.expect("JetStream works for services");
    let executor = Bus::connect(BusOptions::agents(&site.settings()), &site.health).await.expect("connects");
    let mut up = executor.subscribe("up.>").await.expect("subscribes");
    executor.flush().await.expect("flushes");

    let (mine, other) = (id(), id());
    let (agent, mut told) = site.agent(mine, &KeyPair::new_user()).await.expect("connects");
    let mut down = agent.subscribe(format!("dn.{mine}.cmd")).await.expect("subscribes");
    agent.publish(format!("up.{mine}.msg"), "hello".into()).await.expect("publishes");
    assert_eq!(&*up.next().await.expect("arrives").payload, b"hello");
    executor.publish(format!("dn.{mine}.cmd"), "offer").await.expect("publishes");
    assert_eq!(&*down.next().await.expect("arrives").payload, b"offer");

    let publishes = [
        format!("up.{other}.msg"),
        format!("dn.{mine}.cmd"),
        format!("dn.{other}.cmd"),
        "$JS.API.INFO".into(),
        "$JS.API.STREAM.NAMES".into(),
        "$JS.API.STREAM.PURGE.WINDLASS_EVT".into(),
        "$SYS.REQ.SERVER.PING".into(),
        "$SYS.REQ.CLAIMS.UPDATE".into(),
        "$KV.x.y".into(),
        "windlass.cmd.deployment.abort".into(),
        "_INBOX.x".into(),
        "up".into(),
    ];
    for subject in publishes {
        agent.publish(subject.clone(), "forged".into()).await.expect("sent");
        let refusal = tokio::time::timeout(SOON, told.recv()).await.expect("refused").expect("told");
        assert!(
            refusal.to_lowercase().contains("permissions violation") && refusal.contains(&subject),
            "{subject}: {refusal}"
        );
    }
    for subject in [
        ">".to_owned(),
        "*.>".into(),
        "dn.>".into(),
        "dn.*.cmd".into(),
        format!("dn.{other}.cmd"),
        "up.>".into(),
        format!("up.{mine}.msg"),
        "_INBOX.>".into(),
        "$SYS.>".into(),
        "windlass.>".into(),
    ] {
        let _sub = agent.subscribe(subject.clone()).await.expect("sent");
        let refusal = tokio::time::timeout(SOON, told.recv()).await.expect("refused").expect("told");
        assert!(refusal.to_lowercase().contains("permissions violation"), "{subject}: {refusal}");
    }
    agent.publish(format!("up.{mine}.msg"), "still here".into()).await.expect("publishes");
    assert_eq!(&*up.next().await.expect("arrives").payload, b"still here", "no forged message came before it");

    // The executor's own identity reaches neither JetStream nor the agents' side of the line.
    assert!(executor.ensure_topology().await.is_err());
    site.end().await;
}

#[tokio::test]
async fn strangers_are_refused_and_a_revoked_agent_is_cut_off_for_good() {
    let site = Site::start().await;
    assert!(async_nats::connect(&site.url).await.is_err(), "no credentials");
    let (a, b) = (id(), id());
    let (key_a, key_b) = (KeyPair::new_user(), KeyPair::new_user());
    // Signed by an account the operator never signed.
    let stranger = windlass_bus::identity::agent_jwt(&KeyPair::new_account(), a, &key_a.public_key()).expect("signs");
    let stranger =
        ConnectOptions::with_credentials(&creds(&stranger, &key_a.seed().expect("seed"))).expect("credentials");
    assert!(stranger.connect(&site.url).await.is_err());
    // A good JWT with somebody else's key.
    let jwt = site.ids.agent_jwt(a, &key_a.public_key()).expect("signs");
    let thief = ConnectOptions::with_credentials(&creds(&jwt, &key_b.seed().expect("seed"))).expect("credentials");
    assert!(thief.connect(&site.url).await.is_err());

    let (_kept, mut told_a) = site.agent(a, &key_a).await.expect("connects");
    let (client_b, mut told_b) = site.agent(b, &key_b).await.expect("connects");
    site.ids.revoke(&site.settings().nats, &[key_a.public_key()]).await.expect("revokes");
    let heard = tokio::time::timeout(SOON, told_a.recv()).await.expect("cut off").expect("told");
    assert!(!heard.is_empty());
    // JWTs are dated in whole seconds; one from before the revocation stays void for ever.
    assert!(
        ConnectOptions::with_credentials(&creds(&jwt, &key_a.seed().expect("seed")))
            .expect("credentials")
            .connect(&site.url)
            .await
            .is_err()
    );
    client_b.publish(format!("up.{b}.msg"), "x".into()).await.expect("publishes");
    client_b.flush().await.expect("the other agent's connection is untouched");
    assert!(told_b.try_recv().is_err());

    // The revocation outlives the server and its account store.
    site.shutdown.cancel();
    site.tracker.close();
    tokio::time::timeout(SOON, site.tracker.wait()).await.expect("ends");
    std::fs::remove_dir_all(site.dir.path().join("nats")).expect("removes");
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    let ids = Identities::load_or_create(&site.dir.path().join("keys")).expect("keys");
    let again = EmbeddedServer::start(options(&site.dir, &ids).await, Health::new(), shutdown.clone(), &tracker)
        .await
        .expect("starts");
    let connect = |jwt: String, key: &KeyPair| {
        ConnectOptions::with_credentials(&creds(&jwt, &key.seed().expect("seed")))
            .expect("credentials")
            .connect(again.url())
    };
    assert!(connect(jwt, &key_a).await.is_err());
    assert!(connect(ids.agent_jwt(b, &key_b.public_key()).expect("signs"), &key_b).await.is_ok());
    shutdown.cancel();
    tracker.close();
    tracker.wait().await;
}

#[tokio::test]
async fn wrong_credentials_do_not_stop_a_service_and_show_in_its_health() {
    let site = Site::start().await;
    let other = tempfile::tempdir().expect("dir");
    let strangers = Identities::load_or_create(&other.path().join("keys")).expect("keys");
    let mut settings = site.settings();
    settings.nats.services_creds = Some(strangers.services_creds());
    let options = BusOptions { first_wait: Duration::from_millis(300), ..BusOptions::services(&settings) };
    let health = Health::new();
    let bus = Bus::connect(options, &health).await.expect("goes on without");
    assert!(!bus.is_up());
    assert!(format!("{:?}", health.checks()["nats"]).contains("Degraded"));
    tokio::time::timeout(SOON, bus.ring("windlass.settled", "x")).await.expect("returns");
    site.end().await;
}
