//! A host in wrong hands: an enrolled agent with its real key says everything it should not. Nothing of another host changes,
//! nothing is recorded that was not granted, the others' work goes on, and what the database keeps of it is bounded.

pub(crate) mod table;

use crate::world::{Executor, SOON, World};
use std::time::Duration;
use table::{Attack, Rogue, hello, log, result, step};
use windlass_contracts::{
    frames::{LogFrame, UpBody},
    subjects,
};
use windlass_domain::{
    ids::{TaskId, WorkId},
    task::ReportedOutcome,
    work::Outcome::*,
};
use windlass_store::{logs, sessions, sql, tasks::StoredTask};
use windlass_testkit::{databases, eventually};

/// Names no agent.
const NOBODYS: &str = "up.nobody.msg";

/// How many frames were not believed for this reason.
fn refused(e: &Executor, why: &str) -> f64 {
    let text = e.ctx.health.metrics_text().expect("metrics");
    let line = format!("windlass_agent_frames_refused_total{{why=\"{why}\"}} ");
    text.lines().find_map(|l| l.strip_prefix(&line)).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

impl World {
    /// `hosts` agents that took their task and hold on to it; the first is the rogue.
    async fn held(db: windlass_testkit::Db, hosts: usize) -> (World, Executor, WorkId, Vec<TaskId>) {
        let mut w = World::new(db, hosts, hosts).await;
        // The rogue says that it is of the version before, whose word counts for more.
        w.agent(0).lock().former = true;
        for i in 0..hosts {
            w.agent(i).lock().hang = true;
        }
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(hosts, 0, 0).await;
        let mut tasks = Vec::new();
        for i in 0..hosts {
            eventually(SOON, "it runs", async || (!w.agent(i).running().is_empty()).then_some(())).await;
            tasks.push(w.task(work, i).await);
        }
        eventually(SOON, "all are known to have started", async || {
            w.tasks(work).await.iter().all(|t| t.task.started_at.is_some()).then_some(())
        })
        .await;
        (w, e, work, tasks)
    }

    async fn attack(&self, attacks: &[Attack]) {
        for a in attacks {
            let sent = self.client.publish(a.subject.clone(), a.bytes.clone().into()).await;
            sent.unwrap_or_else(|e| panic!("{}: {e}", a.name));
        }
        self.client.flush().await.expect("flushes");
    }

    /// A frame of each of the three kinds from an honest host, behind all that came before: when they are seen, all that
    /// came before has been dealt with.
    async fn heard_out(&self, work: WorkId, honest: usize, mark: u32) {
        let (a, task) = (self.agent(honest), self.task(work, honest).await);
        a.say(UpBody::Step { task, report: step(mark) }).await;
        a.log(log(task, u64::from(mark), b"honest\n")).await;
        let instance = a.lock().instance.clone();
        let stored = self.session(honest).await.journal_seq;
        let seq = stored.max(a.lock().seq) + 1;
        a.lock().seq = seq;
        a.hello().await;
        assert!(!instance.is_empty());
        eventually(SOON, "an honest STEP, LOG and HELLO are heard", async || {
            // Lost in a flood, they are said again.
            a.log(log(task, u64::from(mark), b"honest\n")).await;
            a.hello().await;
            let rows = self.tasks(work).await;
            let row = rows.iter().find(|t| t.task.id == task)?;
            if !row.task.steps.iter().any(|s| s.index == mark) {
                a.say(UpBody::Step { task, report: step(mark) }).await;
                return None;
            }
            let stored = logs::position(&mut self.store.read().await.ok()?, task).await.ok()?;
            (stored.next > u64::from(mark) && self.session(honest).await.journal_seq >= seq).then_some(())
        })
        .await;
    }

    async fn session(&self, i: usize) -> sessions::Session {
        let mut tx = self.store.read().await.expect("reads");
        sessions::get(&mut tx, self.agent(i).id).await.expect("reads").expect("a session")
    }

    async fn count(&self, of: &'static str) -> i64 {
        let mut tx = self.store.read().await.expect("reads");
        sql(of).fetch_scalar::<i64>(&mut tx).await.expect("counts").unwrap_or(0)
    }

    async fn row(&self, work: WorkId, task: TaskId) -> StoredTask {
        self.tasks(work).await.into_iter().find(|t| t.task.id == task).expect("the row")
    }
}

#[tokio::test]
async fn nothing_a_rogue_agent_says_reaches_beyond_its_own_host() {
    for db in databases().await {
        let (w, e, work, tasks) = World::held(db, 3).await;
        let me = w.agent(0).clone();
        me.lock().seq = table::SEQ;
        let rogue = Rogue { me: &me, instance: me.lock().instance.clone() };
        let before = [w.row(work, tasks[0]).await, w.row(work, tasks[1]).await, w.row(work, tasks[2]).await];
        let others = async || w.events().await.into_iter().filter(|e| e.payload["host"] != "h0").count();
        let events = others().await;

        let mut attacks = rogue.others_task(w.agent(1), tasks[1]);
        attacks.extend(rogue.others_task(w.agent(2), tasks[2]));
        attacks.extend(rogue.no_task());
        attacks.extend(rogue.own_task_misshapen(tasks[0]));
        attacks.extend(rogue.no_frames(tasks[1]));
        w.attack(&attacks).await;
        w.heard_out(work, 1, 0).await;
        assert_eq!(w.row(work, tasks[0]).await, before[0], "its own has not changed either: none of it was well said");
        // Its HELLOs are believed, and may cost it its own task.
        let greetings = rogue.greetings(&tasks[1..]);
        w.attack(&greetings).await;
        w.heard_out(work, 1, 1).await;

        assert_eq!(w.row(work, tasks[2]).await, before[2], "another's");
        let now = w.row(work, tasks[1]).await;
        assert_eq!((now.task.state, &now.task.granted), (before[1].task.state, &before[1].task.granted));
        assert_eq!(now.task.steps.len(), 2, "what it said itself");
        assert_eq!(others().await, events + 2, "of the others the record holds the honest steps alone");
        assert_eq!(w.count("SELECT COUNT(*) FROM log_chunks").await, 2, "and the log the honest lines");
        for i in [1, 2] {
            let s = w.session(i).await;
            assert_eq!(s.instance, w.agent(i).lock().instance);
        }
        let s = w.session(0).await;
        assert!(s.facts.to_string().len() < 20_000, "{} bytes of facts", s.facts.to_string().len());
        let told = w.agent_events(me.id).await;
        assert!(told.iter().filter(|e| *e == "agent.orphan").count() <= 21, "{} events of it", told.len());

        // The others end as they would have.
        w.agent(1).end_running(ReportedOutcome::Succeeded).await;
        w.agent(2).end_running(ReportedOutcome::Succeeded).await;
        w.until_state(work, 1, "succeeded").await;
        w.until_state(work, 2, "succeeded").await;
        me.end_running(ReportedOutcome::Failed).await;
        let ended = w.outcomes(work, 1).await;
        assert_eq!(ended[1..], [Succeeded, Succeeded]);
        assert_ne!(ended[0], Succeeded);

        // What is over stays over, whatever is said of it.
        let over = [w.row(work, tasks[0]).await, w.row(work, tasks[1]).await];
        let mut late = rogue.others_task(w.agent(1), tasks[1]);
        for outcome in table::OUTCOMES {
            late.push(rogue.mine(format!("{outcome:?} after the end"), result(tasks[0], outcome, vec![step(0)])));
        }
        // The last is one that is counted by itself: when it has been, all before it were dealt with.
        let nobodys = late.iter().filter(|a| a.subject == NOBODYS).count() + 1;
        late.push(Attack { name: "the last".into(), subject: NOBODYS.into(), bytes: vec![] });
        let counted = refused(&e, "subject");
        w.attack(&late).await;
        eventually(SOON, "all of it was heard", async || {
            (refused(&e, "subject") >= counted + nobodys as f64).then_some(())
        })
        .await;
        assert_eq!([w.row(work, tasks[0]).await, w.row(work, tasks[1]).await], over);
        eprintln!(
            "{} frames on {}",
            attacks.len() + greetings.len() + late.len(),
            if w.store.dialect() == windlass_store::Dialect::Sqlite { "sqlite" } else { "postgres" }
        );
        assert!(
            attacks.len() + greetings.len() + late.len() >= 600,
            "{}",
            attacks.len() + greetings.len() + late.len()
        );
        e.shut_down().await;
    }
}

/// What it says of its own task is its own business, as long as nobody else's log or record suffers.
#[tokio::test]
async fn lies_about_the_time_and_hostile_texts_stop_nobody_elses_record() {
    for db in databases().await {
        let (w, e, work, tasks) = World::held(db, 2).await;
        let me = w.agent(0).clone();
        let rogue = Rogue { me: &me, instance: me.lock().instance.clone() };
        let times = [chrono::DateTime::<chrono::Utc>::MIN_UTC, chrono::DateTime::<chrono::Utc>::MAX_UTC];
        let mut attacks = Vec::new();
        for (seq, at) in (0..).zip(times) {
            let line = log(tasks[0], seq, table::TEXTS.concat().as_bytes());
            attacks.push(rogue.mine(format!("LOG of {at}"), UpBody::Log(LogFrame { at, ..line })));
        }
        for (index, (from, to)) in (0..).zip([(times[0], times[1]), (times[1], times[0])]) {
            let mut s = step(index);
            (s.started_at, s.ended_at) = (from, to);
            s.message = table::TEXTS.concat().repeat(1000);
            for text in table::TEXTS {
                s.outputs.insert(text.into(), serde_json::json!({ text: [text, { text: text }] }));
            }
            (s.exit_code, s.left_processes) = (Some(i32::MIN), u32::MAX);
            attacks.push(rogue.mine(format!("STEP from {from} to {to}"), UpBody::Step { task: tasks[0], report: s }));
        }
        // Together with an honest host's line in one batch.
        w.attack(&attacks).await;
        w.heard_out(work, 1, 0).await;
        let own = eventually(SOON, "its steps are recorded", async || {
            let row = w.row(work, tasks[0]).await;
            (row.task.steps.len() == 2).then_some(row)
        })
        .await;
        for s in &own.task.steps {
            assert!(s.message.len() <= 5000 && !s.message.chars().any(|c| c == '\0' || c == '\u{1b}'), "cut and clean");
            let text = serde_json::to_string(&s.outputs).expect("json");
            assert!(!text.contains("\\u0000") && !text.contains('\u{FDD0}'), "no reference can be smuggled in: {text}");
        }
        let mut tx = w.store.read().await.expect("reads");
        let lines = logs::after(&mut tx, w.deployment, 0, None, 100).await.expect("the log can be read");
        drop(tx);
        assert_eq!(lines.len(), 3);
        let now = chrono::Utc::now();
        assert!(lines.iter().all(|l| (now - l.chunk.at).num_hours().abs() < 1), "no time that cannot be");
        for i in 0..2 {
            w.agent(i).end_running(ReportedOutcome::Succeeded).await;
        }
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        e.shut_down().await;
    }
}

#[tokio::test]
async fn a_flood_of_one_host_drowns_nobody_and_fills_nothing() {
    for db in databases().await {
        let (w, e, work, tasks) = World::held(db, 3).await;
        let me = w.agent(0).clone();
        let rogue = Rogue { me: &me, instance: me.lock().instance.clone() };
        let (events, rows) =
            (w.count("SELECT COUNT(*) FROM events").await, w.count("SELECT COUNT(*) FROM tasks").await);
        let mut flood = Vec::new();
        for n in 0..5000_u64 {
            let task: TaskId = uuid::Uuid::now_v7().into();
            flood.push(rogue.mine("RESULT of no task", result(task, ReportedOutcome::Succeeded, vec![])));
            flood.push(rogue.mine("STARTED again", UpBody::Started { task: tasks[0] }));
            let beat = UpBody::Heartbeat { journal_seq: 0, running: vec![], current: Some(format!("release-{n}")) };
            flood.push(rogue.mine("another release with each beat", beat));
            if n % 10 == 0 {
                let new = format!("instance{n}");
                let bytes = rogue.signed(me.id, &new, hello(vec![], serde_json::json!({})), &me.key);
                let subject = subjects::agent_hello(me.id);
                flood.push(Attack { name: "HELLO of a new journal".into(), subject, bytes });
                flood.push(rogue.mine("LOG of no task", UpBody::Log(log(task, 0, &[b'x'; 30_000]))));
            }
        }
        let began = std::time::Instant::now();
        let attack = async {
            for part in flood.chunks(500) {
                w.attack(part).await;
            }
        };
        // Meanwhile the others are heard, end, and begin and end something new.
        let others = async {
            w.heard_out(work, 1, 0).await;
            w.agent(1).lock().hang = false;
            w.agent(2).lock().hang = false;
            for i in [1, 2] {
                w.agent(i).end_running(ReportedOutcome::Succeeded).await;
            }
            w.until_state(work, 1, "succeeded").await;
            w.until_state(work, 2, "succeeded").await;
        };
        tokio::join!(attack, others);
        assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
        w.assert_single_starts();
        eventually(Duration::from_secs(10), "the flood is over", async || {
            let m = e.ctx.health.metrics_text().ok()?;
            m.contains("windlass_agent_frames_refused_total{why=\"too_much\"}").then_some(())
        })
        .await;
        let told = w.agent_events(me.id).await;
        let of = |what: &str| told.iter().filter(|e| *e == what).count();
        assert!(of("agent.orphan") <= 21 && of("agent.replaced") <= 10, "{} events", told.len());
        let grown = w.count("SELECT COUNT(*) FROM events").await - events;
        assert!(grown < 60, "{grown} events for {} frames", flood.len());
        assert_eq!(w.count("SELECT COUNT(*) FROM tasks").await, rows);
        assert!(w.count("SELECT COUNT(*) FROM log_chunks").await <= 2);
        e.shut_down().await;
    }
}

/// Between OFFER and GRANT an agent has been asked, and nothing more: whatever it reports of the task is no result.
#[tokio::test]
async fn what_was_never_granted_is_never_a_success() {
    for db in databases().await {
        let mut w = World::new(db, 3, 3).await;
        w.agent(0).lock().no_accept = true;
        w.agent(2).lock().hang = true;
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(3, 0, 3).await;
        w.until_state(work, 0, "offered").await;
        let me = w.agent(0).clone();
        let rogue = Rogue { me: &me, instance: me.lock().instance.clone() };
        let task = w.task(work, 0).await;
        let mut attacks = Vec::new();
        for outcome in table::OUTCOMES.into_iter().filter(|o| *o != ReportedOutcome::Fenced) {
            for steps in [vec![], vec![step(0)], vec![step(0), step(1)]] {
                attacks.push(rogue.mine("RESULT", result(task, outcome, steps)));
            }
        }
        attacks.push(rogue.mine("STARTED", UpBody::Started { task }));
        attacks.push(rogue.mine("STEP", UpBody::Step { task, report: step(0) }));
        w.attack(&attacks).await;
        w.until_state(work, 1, "succeeded").await;
        // At most a person is asked to look: it may be a grant that a restored database forgot.
        let row = w.row(work, task).await;
        assert!(["offered", "unknown"].contains(&row.task.state.as_str()), "{}", row.task.state.as_str());
        assert_eq!((row.task.granted, row.task.report, row.task.steps.len()), (None, None, 0));
        // Another journal of the same host cannot end what this one was granted.
        w.until_state(work, 2, "granted").await;
        let (me, task) = (w.agent(2).clone(), w.task(work, 2).await);
        let forged = Rogue { me: &me, instance: "anotherjournal".into() };
        let all = table::OUTCOMES.map(|o| forged.mine("RESULT of another journal", result(task, o, vec![])));
        w.attack(&all).await;
        me.end_running(ReportedOutcome::Failed).await;
        w.until_state(work, 2, "failed").await;
        e.shut_down().await;
    }
}
