//! An enrolled host in wrong hands, on the real broker as `windlass up` sets it up: its credentials reach its own subjects and
//! nothing else, and what it floods those with stops nobody's deployment.

use crate::world::{Form, PATIENCE, World, program};
use async_nats::{Client, ConnectOptions, Event};
use nkeys::KeyPair;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use windlass_contracts::{
    frames::{self, Hello, MAX_FRAME, Up, UpBody},
    subjects,
};
use windlass_domain::ids::AgentId;
use windlass_testkit::{Db, eventually};

/// What is left of a host that was taken over: everything its agent had.
pub(crate) struct Stolen {
    pub(crate) id: AgentId,
    pub(crate) key: KeyPair,
    pub(crate) identity: Value,
}

impl World {
    /// Enrols a host and hands its credentials over instead of starting its agent.
    pub(crate) async fn stolen(&self, host: &str) -> Stolen {
        let token = self.post("/enroll-tokens", json!({ "host": host })).await;
        let dir = self.agent_dir(host);
        let out = std::process::Command::new(program("windlass-agent"))
            .args(["enroll", "--server", &self.base, "--token", token["token"].as_str().expect("token"), "--state"])
            .arg(&dir)
            .output()
            .expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let identity: Value =
            serde_json::from_slice(&std::fs::read(dir.join("identity.json")).expect("identity")).expect("json");
        let seed = std::fs::read_to_string(dir.join("user.nk")).expect("seed");
        let id: uuid::Uuid = identity["agent_id"].as_str().expect("id").parse().expect("id");
        Stolen { id: id.into(), key: KeyPair::from_seed(seed.trim()).expect("key"), identity }
    }
}

impl Stolen {
    async fn connect(&self) -> (Client, mpsc::UnboundedReceiver<String>) {
        let (tell, told) = mpsc::unbounded_channel();
        let key = Arc::new(self.key.clone());
        let client = ConnectOptions::with_jwt(self.identity["jwt"].as_str().expect("jwt").into(), move |nonce| {
            let key = key.clone();
            async move { key.sign(&nonce).map_err(async_nats::AuthError::new) }
        })
        .custom_inbox_prefix(format!("_INBOX_{}", self.id))
        .event_callback(move |e| {
            if let Event::ServerError(_) | Event::ClientError(_) | Event::Disconnected = e {
                let _ = tell.send(e.to_string());
            }
            std::future::ready(())
        })
        .connect(self.identity["nats_urls"][0].as_str().expect("url"))
        .await
        .expect("connects");
        (client, told)
    }

    fn frame(&self, instance: &str, body: UpBody) -> Vec<u8> {
        let up = Up { agent: self.id, instance: instance.into(), body };
        frames::seal(&up, &self.key).expect("seals")
    }
}

/// Subjects that belong to others, to the services, and to the broker itself.
fn others(me: AgentId, victim: AgentId) -> Vec<String> {
    let nobody = AgentId(uuid::Uuid::nil());
    let mut out = Vec::new();
    for other in [victim, nobody] {
        for kind in ["msg", "hb", "log", "cmd", "x", "msg.x"] {
            out.push(format!("up.{other}.{kind}"));
            out.push(format!("dn.{other}.{kind}"));
        }
        out.push(format!("_INBOX_{other}.x"));
        out.push(format!("_INBOX.{other}"));
    }
    let own = [format!("up.{me}"), format!("up.{me}x.msg"), format!("UP.{me}.msg"), format!("{me}.msg")];
    out.extend(own.into_iter().chain([format!("x.up.{me}.msg"), format!("dn.{me}"), "up".into(), "dn".into()]));
    for api in [
        "INFO",
        "ACCOUNT.INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        "STREAM.CREATE.X",
        "STREAM.DELETE.WINDLASS_EVT",
        "STREAM.PURGE.WINDLASS_EVT",
        "STREAM.PURGE.WINDLASS_CMD",
        "STREAM.UPDATE.WINDLASS_WORK",
        "STREAM.INFO.WINDLASS_IN",
        "STREAM.MSG.GET.WINDLASS_EVT",
        "STREAM.MSG.DELETE.WINDLASS_EVT",
        "STREAM.SNAPSHOT.WINDLASS_EVT",
        "STREAM.RESTORE.WINDLASS_EVT",
        "STREAM.LEADER.STEPDOWN.WINDLASS_EVT",
        "STREAM.PEER.REMOVE.WINDLASS_EVT",
        "CONSUMER.NAMES.WINDLASS_EVT",
        "CONSUMER.CREATE.WINDLASS_EVT",
        "CONSUMER.DELETE.WINDLASS_EVT.notifier",
        "CONSUMER.MSG.NEXT.WINDLASS_EVT.notifier",
        "CONSUMER.PAUSE.WINDLASS_EVT.notifier",
        "DIRECT.GET.WINDLASS_EVT",
        "SERVER.REMOVE",
        "META.LEADER.STEPDOWN",
        "ACCOUNT.PURGE.SERVICES",
    ] {
        out.push(format!("$JS.API.{api}"));
    }
    for system in [
        "REQ.SERVER.PING",
        "REQ.SERVER.PING.CONNZ",
        "REQ.CLAIMS.UPDATE",
        "REQ.CLAIMS.DELETE",
        "REQ.CLAIMS.LIST",
        "REQ.CLAIMS.PACK",
        "REQ.ACCOUNT.PING.CONNZ",
        "REQ.USER.INFO",
        "REQ.SERVER.X.RELOAD",
        "REQ.SERVER.X.KICK",
        "ACCOUNT.X.CONNECT",
        "ACCOUNT.X.CLAIMS.UPDATE",
        "_INBOX.x",
        "DEBUG.SUBSCRIBERS",
    ] {
        out.push(format!("$SYS.{system}"));
    }
    for rest in [
        "$JS.ACK.WINDLASS_EVT.notifier.1.1.1.1.0",
        "$JS.FC.x",
        "$JS.EVENT.ADVISORY.x",
        "$JSC.R.x",
        "$KV.x.y",
        "$KV.x.>",
        "$O.x.C.y",
        "$SRV.PING",
        "$SRV.INFO.x",
        "$MQTT.msgs.x",
        "$GR.x",
        "$LDS.x",
        "$GNR.x",
        "$NRG.x",
        "_R_.x",
        "_SYS_.x",
        "windlass.cmd.deployment.abort",
        "windlass.cmd.deployment.approve",
        "windlass.work.default",
        "windlass.settled",
        "windlass.evt.deployment.x.done",
        "windlass.log.x",
        "windlass.in.artifact",
        "windlass.outcome.x",
        "windlass.dlq.notifier",
        "windlass.plugin.jira.1_0_0.execute",
        "_INBOX.x",
        "x",
    ] {
        out.push(rest.to_owned());
    }
    out
}

/// The same as wildcards, which only a subscription can be.
fn wildcards(me: AgentId, victim: AgentId) -> Vec<String> {
    let mut out: Vec<String> = [
        ">",
        "*",
        "*.>",
        "*.*",
        "*.*.*",
        "*.*.cmd",
        "up.>",
        "up.*.msg",
        "up.*.*",
        "up.*.hb",
        "up.*.log",
        "dn.>",
        "dn.*.>",
        "dn.*.cmd",
        "dn.*.*",
        "$JS.>",
        "$JS.API.>",
        "$JS.*.>",
        "$SYS.>",
        "$SYS.*.>",
        "$KV.>",
        "$O.>",
        "$SRV.>",
        "$MQTT.>",
        "_INBOX.>",
        "_INBOX.*",
        "windlass.>",
        "windlass.*.>",
        "windlass.evt.>",
        "windlass.work.*",
        "windlass.plugin.>",
    ]
    .map(str::to_owned)
    .to_vec();
    out.extend([format!("up.{me}.>"), format!("up.{me}.msg"), format!("*.{me}.>"), format!("dn.{victim}.>")]);
    out.extend([
        format!("*.{victim}.cmd"),
        format!("up.{victim}.>"),
        format!("_INBOX_{victim}.>"),
        format!("*.{me}.*"),
    ]);
    out
}

/// The next thing the server says against `subject`.
async fn refusal(told: &mut mpsc::UnboundedReceiver<String>, subject: &str) -> String {
    let heard = async {
        loop {
            let text = told.recv().await.expect("the connection lives");
            if text.contains(subject) {
                return text;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("nobody refused {subject}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_identity_reaches_its_own_subjects_and_stops_nobody() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h2"], "1", 0, "parallel: 0")).await;
    w.apply("kind: host\nname: h1\naddress: 127.0.0.1\n").await;
    let thief = w.stolen("h1").await;
    let victim = w.stolen("h2").await.id;
    std::fs::create_dir_all(w.root("h2")).expect("root");
    w.start_process("h2");
    w.until_host("h2", "connected").await;
    w.version("shop", "1.0.0", "true").await;

    // 1. Where it may not speak or listen.
    let (client, mut told) = thief.connect().await;
    let mut tried = 0;
    for subject in others(thief.id, victim) {
        client.publish(subject.clone(), "forged".into()).await.expect("sent");
        let text = refusal(&mut told, &subject).await.to_lowercase();
        assert!(text.contains("permissions violation"), "{subject}: {text}");
        tried += 1;
    }
    for subject in others(thief.id, victim).into_iter().chain(wildcards(thief.id, victim)) {
        let _sub = client.subscribe(subject.clone()).await.expect("sent");
        let text = refusal(&mut told, &subject).await.to_lowercase();
        assert!(text.contains("permissions violation"), "{subject}: {text}");
        tried += 1;
    }
    for group in ["executors", "thieves"] {
        for subject in wildcards(thief.id, victim) {
            let _sub = client.queue_subscribe(subject.clone(), group.into()).await.expect("sent");
            let text = refusal(&mut told, &subject).await.to_lowercase();
            assert!(text.contains("permissions violation"), "{subject} in {group}: {text}");
            tried += 1;
        }
    }
    // More subscriptions than an agent needs.
    let mut many = Vec::new();
    for _ in 0..20 {
        many.push(client.subscribe(subjects::agent_down(thief.id)).await.expect("sent"));
    }
    let text = refusal(&mut told, "aximum").await.to_lowercase();
    assert!(text.contains("subscriptions"), "{text}");
    drop(many);
    tried += 1;
    eprintln!("{tried} subjects refused");
    assert!(tried >= 250, "{tried}");

    // 2. Larger than a frame: the server ends the connection.
    let (large, mut said) = thief.connect().await;
    for size in [MAX_FRAME + 1, 1_000_000] {
        let sent = large.publish(subjects::agent_up(thief.id), vec![b'x'; size].into()).await;
        if sent.is_ok() {
            let _ = tokio::time::timeout(Duration::from_secs(5), large.flush()).await;
            let heard = tokio::time::timeout(PATIENCE, said.recv()).await.expect("told").expect("a word");
            assert!(!heard.is_empty());
        }
    }
    drop(large);

    // 3. Two connections with one identity, each with a journal of its own, and floods on both; the other host deploys.
    let (twin, _said) = thief.connect().await;
    let hello = |instance: &str| {
        let body = Hello {
            boot_id: "b".into(),
            journal_seq: 1,
            version: "0".into(),
            open: vec![],
            facts: json!({ "os": "<b>linux</b>" }),
            // As one of the version before: it is taken at its word, and asks nobody.
            answers: None,
        };
        thief.frame(instance, UpBody::Hello(body))
    };
    client.publish(subjects::agent_hello(thief.id), hello("one").into()).await.expect("sent");
    client.flush().await.expect("flushes");
    w.until_host("h1", "connected").await;
    let stop: Arc<AtomicBool> = Arc::default();
    let flood = |c: Client, stop: Arc<AtomicBool>| {
        let large = vec![b'W'; 800_000];
        let beat = thief.frame("one", UpBody::Heartbeat { journal_seq: 1, running: vec![], current: Some("x".into()) });
        let id = thief.id;
        tokio::spawn(async move {
            let mut sent = 0_u64;
            while !stop.load(Ordering::Relaxed) && sent < 400 {
                let _ = c.publish(subjects::agent_log(id), large.clone().into()).await;
                for _ in 0..50 {
                    let _ = c.publish(subjects::agent_hello(id), beat.clone().into()).await;
                    let _ = c.publish(subjects::agent_up(id), beat.clone().into()).await;
                }
                let _ = tokio::time::timeout(Duration::from_secs(5), c.flush()).await;
                sent += 1;
            }
        })
    };
    let floods = [flood(client.clone(), stop.clone()), flood(twin.clone(), stop.clone())];
    let began = Instant::now();
    for _ in 0..3 {
        let id = w.deploy("shop", "beta", "1.0.0").await;
        w.until(&id, &["succeeded"]).await;
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    for f in floods {
        f.await.expect("no panic");
    }
    assert!(took < PATIENCE, "three deployments took {took:?} beside the flood");
    w.assert_started_once();
    // The two journals are told apart: nothing of that identity is believed from then on.
    for instance in ["two", "one"] {
        eventually(PATIENCE, "its HELLO is heard", async || {
            twin.publish(subjects::agent_hello(thief.id), hello(instance).into()).await.ok()?;
            let all = w.get("/hosts").await.to_string();
            let text = audit_text(&w).await;
            let seen = if instance == "two" { text.contains("agent.replaced") } else { text.contains("agent.cloned") };
            (seen && !all.is_empty()).then_some(())
        })
        .await;
    }
    let growth = audit_text(&w).await.lines().filter(|l| l.contains("\\\"agent.")).count();
    assert!(growth < 60, "{growth} records of agents");
    assert_eq!(w.get("/me").await["person"], "admin");
}

async fn audit_text(w: &World) -> String {
    let r = w.http.get(format!("{}/api/v1/audit/export", w.base)).bearer_auth(&w.admin).send().await.expect("answers");
    r.text().await.unwrap_or_default()
}

impl World {
    pub(crate) async fn until_host(&self, host: &str, state: &str) {
        eventually(PATIENCE, &format!("{host} is {state}"), async || {
            let hosts = self.get("/hosts").await;
            let items = hosts["items"].as_array()?;
            items.iter().any(|h| h["name"] == host && h["state"] == state).then_some(())
        })
        .await;
    }
}
