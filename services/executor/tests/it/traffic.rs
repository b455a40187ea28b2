//! Hosts taken off their load balancers and brought back: whatever becomes of the host, of the deployment and of the executor.

use crate::world::{SOON, World};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_domain::{
    ids::WorkId,
    task::ReportedOutcome,
    traffic::{Kind, OnDrainTimeout, PlanTraffic, Share, TrafficState},
    work::{FailureClass, Outcome::*, WaveHost, WaveWork, WorkSpec},
};
use windlass_store::{secrets, tasks};
use windlass_testkit::{Db, databases, eventually};

/// A HAProxy as far as its runtime API goes: states and sessions of servers, and what it was told.
#[derive(Debug, Clone, Default)]
struct Lb(Arc<Mutex<Model>>);

#[derive(Debug, Default)]
struct Model {
    at: String,
    /// State and sessions by server.
    servers: BTreeMap<String, (String, u32)>,
    said: Vec<String>,
    /// What is made ready does not come up.
    ill: bool,
    /// How long it takes to tell its states, which may be others by then.
    slow: Duration,
    /// The least that were up after any command.
    least_up: Option<usize>,
}

impl Lb {
    async fn start(servers: usize) -> Lb {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let lb = Lb::default();
        lb.lock().at = format!("tcp://{}", listener.local_addr().expect("address"));
        lb.lock().servers = (0..servers).map(|i| (format!("h{i}"), ("UP".to_owned(), 0))).collect();
        let me = lb.clone();
        tokio::spawn(async move {
            while let Ok((mut s, _)) = listener.accept().await {
                let me = me.clone();
                tokio::spawn(async move {
                    let mut line = Vec::new();
                    while !line.ends_with(b"\n") && s.read_buf(&mut line).await.is_ok_and(|n| n > 0) {}
                    let line = String::from_utf8_lossy(&line).trim().to_owned();
                    let (answer, slow) = {
                        let mut model = me.lock();
                        (model.answer(&line), model.slow)
                    };
                    if line.starts_with("show") {
                        tokio::time::sleep(slow).await;
                    }
                    let _ = s.write_all(answer.as_bytes()).await;
                });
            }
        });
        lb
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.0.lock().expect("lock")
    }

    fn state(&self, host: usize) -> String {
        self.lock().servers[&format!("h{host}")].0.clone()
    }

    fn sessions(&self, host: usize, n: u32) {
        self.lock().servers.get_mut(&format!("h{host}")).expect("server").1 = n;
    }

    async fn until(&self, host: usize, state: &str) {
        eventually(SOON, state, async || (self.state(host) == state).then_some(())).await;
    }

    fn traffic(&self, hosts: u32, drain_timeout_s: u32) -> PlanTraffic {
        PlanTraffic {
            name: "front".into(),
            kind: Kind::Haproxy { endpoints: vec![self.lock().at.clone()], backend: "shop".into() },
            members: (0..hosts).map(|i| (i, format!("h{i}"))).collect(),
            min_healthy: None,
            drain_timeout_s,
            on_drain_timeout: OnDrainTimeout::Fail,
            attach_timeout_s: 1,
        }
    }
}

impl Model {
    fn answer(&mut self, line: &str) -> String {
        self.said.push(line.to_owned());
        if line.starts_with("show stat shop") {
            let row = |(n, (state, sessions)): (&String, &(String, u32))| {
                let check = if state == "MAINT" { "" } else { "L7OK" };
                format!("shop,{n},0,{sessions},{state},0,2,{check},\n")
            };
            let rows: String = self.servers.iter().map(row).collect();
            return format!("# pxname,svname,qcur,scur,status,bck,type,check_status,\n{rows}\n");
        }
        for command in line.split("; ") {
            let words: Vec<&str> = command.split(' ').collect();
            let up = if self.ill { "DOWN" } else { "UP" };
            let of = words.iter().find_map(|w| w.strip_prefix("shop/")).and_then(|n| self.servers.get_mut(n));
            let (Some(server), Some(what)) = (of, words.last()) else { return format!("Unknown: {command}\n") };
            match *what {
                "drain" => server.0 = "DRAIN".into(),
                "maint" => server.0 = "MAINT".into(),
                "ready" => server.0 = up.into(),
                "down" => server.0 = "DOWN".into(),
                _ => return format!("Unknown: {command}\n"),
            }
        }
        let up = self.servers.values().filter(|s| s.0 == "UP").count();
        self.least_up = self.least_up.min(Some(up)).or(Some(up));
        "\n".into()
    }
}

/// A wave over `hosts` hosts behind this load balancer.
async fn world(db: Db, hosts: u32, lb: &Lb, drain_timeout_s: u32) -> World {
    let traffic = lb.traffic(hosts, drain_timeout_s);
    let mut w = World::rolling(db, hosts as usize, |r| r.traffic = vec![traffic]).await;
    w.start_agents();
    w
}

/// Another attempt of one host, from its step `start_at` on.
async fn again(w: &World, host: usize, start_at: u32) -> WorkId {
    w.insert(WorkSpec::Wave(one(host, start_at))).await
}

fn one(host: usize, start_at: u32) -> WaveWork {
    WaveWork {
        stagger: None,
        again: false,
        outputs: Default::default(),
        step: "roll".into(),
        wave: 0,
        hosts: vec![WaveHost { host: format!("h{host}"), attempt: 2, start_at }],
        parallel: 0,
        max_failures: 0,
    }
}

async fn traffic_of(w: &World, work: WorkId, host: usize) -> Option<TrafficState> {
    let host = format!("h{host}");
    w.tasks(work).await.into_iter().find(|t| t.task.host == host)?.task.traffic.map(|t| t.state)
}

#[tokio::test]
async fn a_host_is_off_while_its_task_runs_and_back_before_the_work_is_settled() {
    for db in databases().await {
        let lb = Lb::start(2).await;
        let w = world(db, 2, &lb, 20).await;
        w.agents.values().for_each(|a| a.lock().hang = true);
        lb.sessions(1, 1);
        let e = w.executor().await;
        let work = w.wave(2, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        assert_eq!(lb.state(0), "MAINT", "it is off when its task runs");
        lb.until(1, "DRAIN").await;
        assert_eq!(w.state(work, 1).await, Some("pending"), "a host with a session left is not offered anything");
        assert!(w.agent(1).lock().offers.is_empty());
        lb.sessions(1, 0);
        eventually(SOON, "h1 runs", async || (!w.agent(1).running().is_empty()).then_some(())).await;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        lb.until(0, "UP").await;
        w.agent(1).end_running(ReportedOutcome::Failed).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Failed]);
        assert_eq!((lb.state(0), lb.state(1)), ("UP".into(), "UP".into()), "a failed host is back as well");
        assert_eq!(traffic_of(&w, work, 1).await, Some(TrafficState::Attached));
        e.shut_down().await;
    }
}

#[tokio::test]
async fn sessions_that_stay_fail_the_host_before_anything_ran_on_it() {
    for db in databases().await {
        let lb = Lb::start(2).await;
        let w = world(db, 2, &lb, 1).await;
        lb.sessions(0, 3);
        let e = w.executor().await;
        let work = w.wave(2, 0, 5).await;
        let hosts = w.hosts(work, 1).await;
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [NotStarted, Succeeded]);
        assert_eq!(hosts[0].class, Some(FailureClass::Traffic));
        let reason = hosts[0].reason.clone().unwrap_or_default();
        assert!(reason.contains("`front`") && reason.contains("3 sessions of h0"), "{reason}");
        assert!(w.agent(0).lock().offers.is_empty(), "it was never offered anything");
        assert_eq!(lb.state(0), "UP");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_host_that_does_not_come_back_has_failed_and_its_retry_repeats_nothing() {
    for db in databases().await {
        let lb = Lb::start(1).await;
        let w = world(db, 1, &lb, 20).await;
        lb.lock().ill = true;
        let e = w.executor().await;
        let work = w.wave(1, 0, 5).await;
        let hosts = w.hosts(work, 1).await;
        assert_eq!((hosts[0].outcome, hosts[0].class), (Failed, Some(FailureClass::Traffic)));
        assert!(hosts[0].reason.as_deref().is_some_and(|r| r.contains("h0 is DOWN")), "{hosts:?}");
        assert_eq!(hosts[0].failed_step, Some(2), "all of its two steps went well");
        assert_eq!(w.state(work, 0).await, Some("succeeded"), "and that stays true");
        // Its next attempt may start, although this one succeeded.
        lb.lock().ill = false;
        let retry = again(&w, 0, 2).await;
        assert_eq!(w.outcomes(retry, 1).await, [Succeeded]);
        assert_eq!(lb.state(0), "UP");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_unknown_host_stays_off_until_it_speaks_or_a_person_does() {
    for db in databases().await {
        let lb = Lb::start(2).await;
        let w = world(db, 2, &lb, 20).await;
        w.agents.values().for_each(|a| a.lock().hang = true);
        let e = w.impatient_executor().await;
        let work = w.wave(2, 0, 5).await;
        for i in 0..2 {
            eventually(SOON, "it runs", async || (!w.agent(i).running().is_empty()).then_some(())).await;
        }
        w.agents.values().for_each(|a| a.lock().deaf = true);
        assert_eq!(w.outcomes(work, 1).await, [Unknown, Unknown]);
        assert_eq!((lb.state(0), lb.state(1)), ("MAINT".into(), "MAINT".into()), "they may still run");
        w.agent(0).lock().deaf = false;
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 2).await, [Succeeded, Unknown]);
        assert_eq!((lb.state(0), lb.state(1)), ("UP".into(), "MAINT".into()));
        let o = tasks::Override {
            task: w.task(work, 1).await,
            by: "ann".into(),
            reason: "looked".into(),
            at: chrono::Utc::now(),
        };
        let mut tx = w.store.write().await.expect("tx");
        tasks::insert_override(&mut tx, work, &o).await.expect("inserts");
        tx.commit().await.expect("commits");
        assert_eq!(w.outcomes(work, 3).await, [Succeeded, Failed]);
        assert_eq!(lb.state(1), "UP");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_new_owner_goes_on_with_what_was_begun() {
    for db in databases().await {
        let lb = Lb::start(3).await;
        let w = world(db, 3, &lb, 20).await;
        w.agent(0).lock().hang = true;
        lb.sessions(1, 1);
        let first = w.executor().await;
        let work = w.wave(3, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        lb.until(1, "DRAIN").await;
        first.crash().await;
        // Whoever was off stays off until somebody knows what became of it.
        assert_eq!((lb.state(0), lb.state(1)), ("MAINT".into(), "DRAIN".into()));
        let second = w.executor().await;
        w.until_owned(work, &second).await;
        lb.sessions(1, 0);
        w.agent(0).end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 3]);
        assert_eq!((lb.state(0), lb.state(1), lb.state(2)), ("UP".into(), "UP".into(), "UP".into()));
        w.assert_single_starts();
        second.shut_down().await;
    }
}

#[tokio::test]
async fn an_abort_brings_back_who_was_being_taken_off_and_who_ran() {
    for db in databases().await {
        let lb = Lb::start(2).await;
        let w = world(db, 2, &lb, 60).await;
        w.agent(0).lock().hang = true;
        lb.sessions(1, 1);
        let e = w.executor().await;
        let work = w.wave(2, 0, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        lb.until(1, "DRAIN").await;
        w.abort().await;
        eventually(SOON, "h1 is back", async || (lb.state(1) == "UP").then_some(())).await;
        if w.state(work, 0).await == Some("granted") {
            w.agent(0).end_running(ReportedOutcome::Cancelled).await;
        }
        assert_eq!(w.outcomes(work, 1).await, [Cancelled, NotStarted]);
        assert_eq!((lb.state(0), lb.state(1)), ("UP".into(), "UP".into()));
        assert!(w.agent(1).lock().offers.is_empty());
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_pause_keeps_a_host_that_is_off_from_being_offered_anything() {
    for db in databases().await {
        let lb = Lb::start(1).await;
        let w = world(db, 1, &lb, 60).await;
        lb.sessions(0, 1);
        let e = w.executor().await;
        let work = w.wave(1, 0, 0).await;
        lb.until(0, "DRAIN").await;
        w.hold(work, true).await;
        lb.sessions(0, 0);
        lb.until(0, "MAINT").await;
        let drained = async || (traffic_of(&w, work, 0).await? == TrafficState::Drained).then_some(());
        eventually(SOON, "it is off", drained).await;
        assert_eq!(w.state(work, 0).await, Some("pending"));
        assert!(w.agent(0).lock().offers.is_empty());
        w.hold(work, false).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        assert_eq!(lb.state(0), "UP");
        e.shut_down().await;
    }
}

#[tokio::test]
async fn the_minimum_of_healthy_members_makes_hosts_take_turns() {
    for db in databases().await {
        let lb = Lb::start(4).await;
        let mut traffic = lb.traffic(4, 20);
        traffic.min_healthy = Some(Share::Percent(50));
        let mut w = World::rolling(db, 4, |r| r.traffic = vec![traffic]).await;
        w.agents.values().for_each(|a| a.lock().hang = true);
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(4, 0, 0).await;
        let off = |w: &World| (0..4).filter(|i| !w.agent(*i).running().is_empty()).collect::<Vec<_>>();
        let mut done = 0;
        while done < 4 {
            let two = eventually(SOON, "two run", async || Some(off(&w)).filter(|o| o.len() == 2)).await;
            let up = lb.lock().servers.values().filter(|s| s.0 == "UP").count();
            assert_eq!(up, 2, "half of them stay");
            for i in two {
                w.agent(i).lock().hang = false;
                w.agent(i).end_running(ReportedOutcome::Succeeded).await;
                done += 1;
            }
        }
        assert_eq!(w.outcomes(work, 1).await, [Succeeded; 4]);
        let states: Vec<String> = lb.lock().servers.values().map(|s| s.0.clone()).collect();
        assert_eq!(states, ["UP"; 4]);
        e.shut_down().await;
    }
}

/// Two deployments onto one back end, each by an executor of its own, that count at the same moment.
#[tokio::test]
async fn two_executors_do_not_count_the_same_members() {
    for db in databases().await {
        let lb = Lb::start(2).await;
        lb.lock().slow = Duration::from_millis(150);
        let mut traffic = lb.traffic(2, 20);
        traffic.min_healthy = Some(Share::Count(1));
        let mut w = World::rolling(db, 2, |r| r.traffic = vec![traffic]).await;
        w.start_agents();
        let pools = |name: &str| vec![name.to_owned()];
        let first = w.executor_with(|s| s.executor.pools = pools("default")).await;
        let second = w.executor_with(|s| s.executor.pools = pools("other")).await;
        let works = [again(&w, 0, 0).await, w.insert_in("other", WorkSpec::Wave(one(1, 0))).await];
        for work in works {
            assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        }
        assert_eq!(lb.lock().least_up, Some(1), "they took turns");
        first.shut_down().await;
        second.shut_down().await;
    }
}

/// What the agent of a load balancer's host was asked to do, in order.
fn asked(w: &World, host: usize) -> Vec<String> {
    let state = w.agent(host).lock();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let of = |o: &windlass_contracts::frames::Offer| {
        let with = &o.spec.steps[0].with;
        format!("{} {}", text(&with["op"]), text(&with["member"]))
    };
    state.offers.values().map(of).collect()
}

/// Hosts `h0` and `h1` behind a load balancer that the agent of `h2` looks after.
async fn by_command(db: Db) -> World {
    let traffic = PlanTraffic {
        name: "pool".into(),
        kind: Kind::Command { host: "h2".into(), run: vec!["/usr/local/bin/pool".into()] },
        members: [(0, "a".to_owned()), (1, "b".to_owned())].into(),
        min_healthy: None,
        drain_timeout_s: 20,
        on_drain_timeout: OnDrainTimeout::Fail,
        attach_timeout_s: 20,
    };
    let mut w = World::rolling(db, 3, |r| {
        r.waves = vec![vec![0, 1]];
        r.traffic = vec![traffic];
    })
    .await;
    w.start_agents();
    w
}

#[tokio::test]
async fn a_load_balancers_own_host_is_told_by_tasks_of_the_plan() {
    for db in databases().await {
        let w = by_command(db).await;
        let e = w.executor().await;
        let work = w.wave(2, 1, 0).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        assert_eq!(asked(&w, 2), ["drain a", "attach a", "drain b", "attach b"]);
        w.assert_single_starts();
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_abort_does_not_keep_a_load_balancers_host_from_taking_a_member_back() {
    for db in databases().await {
        let w = by_command(db).await;
        w.agent(0).lock().hang = true;
        let e = w.executor().await;
        let work = w.wave(2, 1, 0).await;
        eventually(SOON, "h0 runs", async || (!w.agent(0).running().is_empty()).then_some(())).await;
        w.abort().await;
        eventually(SOON, "h0 is stopped", async || {
            if !w.agent(0).running().is_empty() {
                w.agent(0).end_running(ReportedOutcome::Cancelled).await;
            }
            (w.state(work, 0).await == Some("cancelled")).then_some(())
        })
        .await;
        assert_eq!(w.outcomes(work, 1).await, [Cancelled, NotStarted]);
        assert_eq!(asked(&w, 2), ["drain a", "attach a"]);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_load_balancers_host_that_fails_is_told_of_with_its_own_words() {
    for db in databases().await {
        let w = by_command(db).await;
        w.agent(2).lock().fail = true;
        let e = w.executor().await;
        let work = w.wave(2, 1, 5).await;
        let hosts = w.hosts(work, 1).await;
        // Neither taken off nor surely back: that is a failure, not only a host that was not started.
        assert_eq!(hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(), [Failed, Failed]);
        let reason = hosts[0].reason.clone().unwrap_or_default();
        assert!(
            reason.contains("`pool`") && reason.contains("on host h2") && reason.contains("exit code 3"),
            "{reason}"
        );
        assert_eq!(hosts[0].class, Some(FailureClass::Traffic));
        assert!(w.agent(0).lock().offers.is_empty());
        e.shut_down().await;
    }
}

/// A load balancer with an HTTP API: who is on, with how many connections, and what was asked with which token.
#[derive(Debug, Default)]
struct Api {
    at: String,
    on: BTreeMap<String, bool>,
    connections: u32,
    asked: Vec<String>,
    /// How often it answers 503 before it does what it is told.
    busy: u32,
}

async fn api() -> Arc<Mutex<Api>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let api = Arc::new(Mutex::new(Api {
        at: format!("http://{}", listener.local_addr().expect("address")),
        ..Api::default()
    }));
    let me = Arc::clone(&api);
    tokio::spawn(async move {
        while let Ok((mut s, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") && s.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            let head = String::from_utf8_lossy(&head).into_owned();
            let (status, body) = me.lock().expect("lock").answer(&head);
            let text =
                format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            let _ = s.write_all(text.as_bytes()).await;
        }
    });
    api
}

impl Api {
    fn answer(&mut self, head: &str) -> (u16, String) {
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        let (_, member) = path.rsplit_once('/').unwrap_or_default();
        if !head.contains("Bearer s3cret") {
            return (401, String::new());
        }
        let on = |a: &Api| a.on.values().filter(|on| **on).count();
        if method == "POST" {
            if self.busy > 0 {
                self.busy -= 1;
                return (503, String::new());
            }
            self.asked.push(path.clone());
            self.on.insert(member.to_owned(), path.starts_with("/on/"));
            return (204, String::new());
        }
        let is = self.on.get(member).copied().unwrap_or_default();
        let body = serde_json::json!({ "on": is, "connections": self.connections, "healthy": on(self) });
        (200, body.to_string())
    }
}

#[tokio::test]
async fn an_http_api_is_asked_until_it_says_so_with_the_environments_secret() {
    for db in databases().await {
        let api = api().await;
        let at = api.lock().expect("lock").at.clone();
        api.lock().expect("lock").on = (0..2).map(|i| (format!("h{i}"), true)).collect();
        let call = |path: &str| {
            serde_json::json!({ "url": format!("{at}/{path}/{{member}}"),
                                "headers": { "authorization": "Bearer ${{ secrets.token }}" } })
        };
        let kind = serde_json::json!({
            "kind": "http", "drain": call("off"), "attach": call("on"), "state": call("state"),
            "drained": "!json.on && json.connections == 0", "up": "status == 200 && json.on", "healthy": "json.healthy",
        });
        let traffic = PlanTraffic {
            name: "edge".into(),
            kind: serde_json::from_value(kind).expect("a kind"),
            members: (0..2).map(|i| (i, format!("h{i}"))).collect(),
            min_healthy: Some(Share::Count(1)),
            drain_timeout_s: 20,
            on_drain_timeout: OnDrainTimeout::Fail,
            attach_timeout_s: 20,
        };
        let mut w = World::rolling(db, 2, |r| r.traffic = vec![traffic]).await;
        w.start_agents();
        let e = w.executor().await;
        let scope = "environment/shop/prod";
        let sealed = e.ctx.sealer.seal(scope, "token", b"s3cret").expect("seals");
        let mut tx = w.store.write().await.expect("tx");
        secrets::put(&mut tx, scope, "token", &sealed, "ann", chrono::Utc::now()).await.expect("stores");
        tx.commit().await.expect("commits");
        api.lock().expect("lock").connections = 1;
        api.lock().expect("lock").busy = 1;
        let work = w.wave(2, 0, 0).await;
        eventually(SOON, "one is off", async || (api.lock().expect("lock").asked.len() == 1).then_some(())).await;
        assert!(w.agents.values().all(|a| a.lock().offers.is_empty()), "a connection is left");
        api.lock().expect("lock").connections = 0;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        let asked = api.lock().expect("lock").asked.clone();
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert!(
            asked[0].starts_with("/off/") && asked[1].starts_with("/on/"),
            "one must stay, so they take turns: {asked:?}"
        );
        assert!(api.lock().expect("lock").on.values().all(|on| *on));
        let tasks =
            serde_json::to_string(&w.tasks(work).await.into_iter().map(|t| t.task).collect::<Vec<_>>()).expect("JSON");
        assert!(!tasks.contains("s3cret"));
        e.shut_down().await;
    }
}
