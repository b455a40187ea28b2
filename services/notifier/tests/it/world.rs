//! A database with channels, secrets and events, and notifiers over it.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};
use uuid::Uuid;
use windlass_domain::{
    catalog::{Channel, Item, Provider},
    event::{Aggregate, NewEvent, Severity},
    ids::{EventId, NotificationId},
};
use windlass_notifier::{Knobs, Notifier};
use windlass_runtime::{Health, Outbound, Sealer, Settings};
use windlass_store::{
    Store, Value, events,
    notifications::{self, Notification, State},
    sql,
};
use windlass_testkit::Db;

pub(crate) const KEY: [u8; 32] = [9; 32];

pub(crate) fn install_tls() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Quick knobs: pauses of milliseconds, and a lease that runs out within a test.
pub(crate) fn quick() -> Knobs {
    let mut k = Knobs::of(&Settings::default()).expect("knobs");
    k.timeout = Duration::from_millis(600);
    k.lease = Duration::from_millis(1_500);
    k.tries = 5;
    k.retry_first = Duration::from_millis(5);
    k.retry_max = Duration::from_millis(20);
    k.break_first = Duration::from_millis(5);
    k.break_max = Duration::from_millis(20);
    k.public_url = "https://windlass.example".into();
    k
}

pub(crate) struct World {
    pub(crate) db: Db,
    pub(crate) store: Store,
    pub(crate) sealer: Sealer,
    pub(crate) health: Health,
}

impl World {
    pub(crate) async fn new(db: Db) -> World {
        install_tls();
        let store = Store::open(db.url()).await.expect("opens");
        World { db, store, sealer: Sealer::from_key(&KEY), health: Health::new() }
    }
    pub(crate) async fn sqlite() -> World {
        World::new(Db::sqlite()).await
    }

    /// A notifier that may reach loopback, with a connection pool of its own.
    pub(crate) async fn notifier(&self, knobs: Knobs) -> Notifier {
        let loopback = vec!["127.0.0.0/8".parse().expect("net")];
        self.notifier_with(knobs, Outbound::new(loopback).expect("client")).await
    }
    pub(crate) async fn notifier_with(&self, knobs: Knobs, outbound: Outbound) -> Notifier {
        let roots = lettre::transport::smtp::client::Certificate::from_pem(crate::smtp::CERTIFICATE.as_bytes());
        let (store, sealer) = (self.store.clone(), self.sealer.clone());
        Notifier::new(store, sealer, outbound, self.health.clone(), knobs, vec![roots.expect("certificate")])
            .expect("notifier")
    }

    pub(crate) async fn channel(&self, name: &str, provider: serde_json::Value) {
        self.channel_with(name, provider, serde_json::json!([{}]), None).await;
    }
    pub(crate) async fn channel_with(
        &self,
        name: &str,
        provider: serde_json::Value,
        rules: serde_json::Value,
        template: Option<&str>,
    ) {
        let provider: Provider = serde_json::from_value(provider).expect("provider");
        let rules = serde_json::from_value(rules).expect("rules");
        let c = Channel { name: name.into(), provider, rules, template: template.map(Into::into) };
        let mut tx = self.store.write().await.expect("write");
        sql("INSERT INTO catalog (kind, key, project, revision, doc, deleted, updated_at, updated_by)
             VALUES ('channel', $1, NULL, 1, $2, FALSE, $3, 'test')
             ON CONFLICT (kind, key) DO UPDATE SET doc = $2, deleted = FALSE")
        .bind(name)
        .bind(Value::json(&Item::Channel(c)))
        .bind(chrono::Utc::now())
        .execute(&mut tx)
        .await
        .expect("stores the channel");
        tx.commit().await.expect("commit");
    }
    pub(crate) async fn delete_channel(&self, name: &str) {
        self.exec("UPDATE catalog SET deleted = TRUE WHERE key = $1", name).await;
    }
    async fn exec(&self, text: &'static str, arg: &str) {
        let mut tx = self.store.write().await.expect("write");
        sql(text).bind(arg).execute(&mut tx).await.expect("runs");
        tx.commit().await.expect("commit");
    }
    pub(crate) async fn delete_rows(&self) {
        self.exec("DELETE FROM notifications WHERE channel <> $1", "").await;
    }
    pub(crate) async fn secret(&self, name: &str, value: &str) {
        let sealed = self.sealer.seal("channel", name, value.as_bytes()).expect("seals");
        let mut tx = self.store.write().await.expect("write");
        sql("INSERT INTO secrets (scope, name, sealed, updated_at, updated_by) VALUES ('channel', $1, $2, $3, 'test')
             ON CONFLICT (scope, name) DO UPDATE SET sealed = $2")
        .bind(name)
        .bind(sealed)
        .bind(chrono::Utc::now())
        .execute(&mut tx)
        .await
        .expect("stores the secret");
        tx.commit().await.expect("commit");
    }

    /// A webhook channel `hook` that sends to `url`.
    pub(crate) async fn hook(&self, name: &str, url: &str) {
        self.secret(&format!("{name}-url"), url).await;
        self.secret(&format!("{name}-sign"), "whsec_d2luZGxhc3Mtd2luZGxhc3M=").await;
        let p = serde_json::json!({"type": "webhook", "url": format!("{name}-url"), "sign": format!("{name}-sign")});
        self.channel(name, p).await;
    }

    pub(crate) async fn emit(&self, what: &str, severity: Severity, payload: serde_json::Value) -> EventId {
        let id = EventId(Uuid::now_v7());
        let mut tx = self.store.write().await.expect("write");
        let e = NewEvent {
            id,
            aggregate: Aggregate::Deployment,
            aggregate_id: "01930000-0000-7000-8000-000000000001".into(),
            what: what.into(),
            project: Some("shop".into()),
            environment: Some("prod".into()),
            severity,
            actor: "person:ann".into(),
            at: chrono::DateTime::UNIX_EPOCH,
            payload,
            trace: None,
        };
        events::append(&mut tx, e).await.expect("appends");
        tx.commit().await.expect("commit");
        id
    }
    pub(crate) async fn failed(&self) -> EventId {
        self.emit("deployment.failed", Severity::Alert, serde_json::json!({"reason": "boom", "version": "1.2.0"})).await
    }

    pub(crate) async fn all(&self) -> Vec<Notification> {
        let mut tx = self.store.read().await.expect("read");
        notifications::list(&mut tx, None, None, None, 1_000).await.expect("lists")
    }
    pub(crate) async fn of(&self, channel: &str) -> Vec<Notification> {
        self.all().await.into_iter().filter(|n| n.channel == channel).collect()
    }
    pub(crate) async fn only(&self, channel: &str) -> Notification {
        let mut all = self.of(channel).await;
        assert_eq!(all.len(), 1, "one notification on {channel}: {all:?}");
        all.remove(0)
    }
    pub(crate) async fn get(&self, id: NotificationId) -> Notification {
        let mut tx = self.store.read().await.expect("read");
        notifications::get(&mut tx, id).await.expect("gets").expect("is there")
    }
    pub(crate) async fn queued(&self) -> u64 {
        let mut tx = self.store.read().await.expect("read");
        events::backlog(&mut tx, events::NOTIFIER).await.expect("backlog").0
    }
    /// Events about a channel's notifications, by name and severity.
    pub(crate) async fn told(&self, channel: &str) -> Vec<(String, Severity)> {
        let mut tx = self.store.read().await.expect("read");
        let all = events::after(&mut tx, Aggregate::Notification, channel, 0, 1_000).await.expect("events");
        all.into_iter().map(|e| (e.what, e.severity)).collect()
    }
    /// Makes everything on a channel due, whatever its backoff or its far end's block.
    pub(crate) async fn hurry(&self, channel: &str) {
        self.exec("UPDATE notifications SET next_at = created_at WHERE channel = $1 AND state = 'pending'", channel)
            .await;
        self.exec("UPDATE channel_rates SET blocked_until = NULL WHERE channel <> $1", "").await;
    }
}

/// Serves a channel, waiting out its pauses, until nothing of it is pending.
pub(crate) async fn drain(w: &World, n: &Notifier, channel: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let pause = n.serve(channel).await.expect("serves");
        if !w.of(channel).await.iter().any(|n| n.state == State::Pending) {
            return;
        }
        assert!(Instant::now() < until, "still pending: {:?}", w.of(channel).await);
        tokio::time::sleep(pause.unwrap_or(Duration::from_millis(5)).min(Duration::from_secs(3))).await;
    }
}
