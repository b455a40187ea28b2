//! A broker in wrong hands says old HELLOs again. Nobody is quarantined or replaced by that; a host that really is another one,
//! or another machine's copy, still is.

use crate::{
    agent::{Agent, instance},
    world::{Executor, SOON, World},
};
use futures::StreamExt;
use nkeys::KeyPair;
use windlass_contracts::{
    frames::{self, Hello, Up, UpBody},
    subjects,
};
use windlass_domain::{task::ReportedOutcome, work::Outcome::*};
use windlass_store::sessions::{self, Session};
use windlass_testkit::{databases, eventually};

/// Everything a broker has seen of an agent's HELLOs: the bytes, and what they say.
struct Tap {
    from: async_nats::Subscriber,
    key: KeyPair,
    agent: Agent,
}

impl Tap {
    async fn on(w: &World, agent: &Agent) -> Tap {
        let from = w.client.subscribe(subjects::agent_hello(agent.id)).await.expect("listens");
        w.client.flush().await.expect("flushes");
        let key = KeyPair::from_public_key(&agent.key.public_key()).expect("key");
        Tap { from, key, agent: agent.clone() }
    }

    /// The next HELLO that fits.
    async fn next(&mut self, fits: impl Fn(&str, &Hello) -> bool) -> (Vec<u8>, Hello) {
        let seen = async {
            loop {
                let m = self.from.next().await.expect("a frame");
                let up = frames::open_up(&m.payload, &self.key, self.agent.id).expect("signed by the agent");
                match up.body {
                    UpBody::Hello(h) if fits(&up.instance, &h) => return (m.payload.to_vec(), h),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(SOON, seen).await.expect("such a HELLO")
    }
}

fn counted(e: &Executor, line: &str) -> u64 {
    let text = e.ctx.health.metrics_text().expect("metrics");
    text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse::<f64>().ok()).unwrap_or(0.0) as u64
}
fn asked(e: &Executor) -> u64 {
    counted(e, "windlass_agent_frames_total{kind=\"hello_asked\"}")
}
fn stale(e: &Executor) -> u64 {
    counted(e, "windlass_agent_frames_refused_total{why=\"stale_hello\"}")
}

impl World {
    async fn session_of(&self, a: &Agent) -> Option<Session> {
        sessions::get(&mut self.store.read().await.ok()?, a.id).await.ok()?
    }

    /// Until the session is that of the agent's journal, as far as it has come.
    async fn until_known(&self, a: &Agent) -> Session {
        eventually(SOON, "the agent is known as it is", async || {
            let (instance, seq) = {
                let s = a.lock();
                (s.instance.clone(), s.seq)
            };
            self.session_of(a).await.filter(|s| s.instance == instance && s.journal_seq == seq)
        })
        .await
    }

    async fn until_told(&self, a: &Agent, what: &str) {
        eventually(SOON, what, async || self.agent_events(a.id).await.iter().any(|e| e == what).then_some(())).await;
    }

    /// The journal goes back to what it was some time ago, and that is told.
    async fn restore_disk(&self, a: &Agent) {
        a.lock().seq = 40;
        self.until_known(a).await;
        a.lock().seq = 30;
        a.hello().await;
        self.until_told(a, "agent.journal_lost").await;
    }

    /// Says these again, and waits until each was found wanting.
    async fn say_again(&self, e: &Executor, a: &Agent, hellos: &[&[u8]], times: usize) {
        let before = asked(e);
        for bytes in (0..times).flat_map(|_| hellos) {
            self.client.publish(subjects::agent_hello(a.id), bytes.to_vec().into()).await.expect("publishes");
        }
        self.client.flush().await.expect("flushes");
        let all = before + (times * hellos.len()) as u64;
        eventually(SOON, "each is answered by a question", async || (asked(e) >= all).then_some(())).await;
    }
}

fn challenge(s: &Session) -> Option<&str> {
    s.facts["_asked"]["challenge"].as_str()
}

#[tokio::test]
async fn an_old_hello_said_again_changes_nothing() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        let a = w.agent(0).clone();
        let mut tap = Tap::on(&w, &a).await;
        w.start_agents();
        let e = w.executor().await;
        // A machine that is installed anew, in all order: the broker keeps what it heard of both journals.
        let (first, _) = tap.next(|_, _| true).await;
        w.until_known(&a).await;
        a.reimage();
        let second = a.lock().instance.clone();
        a.hello().await;
        let (begins, _) = tap.next(|i, h| i == second && h.answers.as_deref() == Some("")).await;
        let (answers, _) = tap.next(|i, h| i == second && h.answers.as_deref() != Some("")).await;
        w.until_told(&a, "agent.replaced").await;
        assert_eq!(challenge(&w.until_known(&a).await), None, "it was answered, and no answer counts twice");

        // It works.
        a.lock().hang = true;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "it runs", async || (!a.running().is_empty()).then_some(())).await;
        w.until_state(work, 0, "granted").await;
        let before = w.until_known(&a).await;
        let events = w.agent_events(a.id).await;
        assert!(before.journal_seq > 1);

        // Of the journal that was replaced; of this one, when it was younger; the answer to another challenge.
        w.say_again(&e, &a, &[&first, &first, &begins, &begins, &answers], 1).await;
        let s = w.session_of(&a).await.expect("a session");
        let young = challenge(&s).expect("it is asked").to_owned();
        w.say_again(&e, &a, &[&first, &begins, &answers], 12).await;
        let s = w.session_of(&a).await.expect("a session");
        assert_eq!((&s.instance, s.journal_seq), (&before.instance, before.journal_seq));
        assert_eq!(challenge(&s), Some(young.as_str()), "a crowd of them does not outdate what the agent answers");
        // The agent's answer is held up until its journal has gone on.
        let (held_up, h) = tap.next(|_, h| h.answers.as_deref() == Some(young.as_str())).await;
        assert_eq!(h.journal_seq, before.journal_seq);
        a.end_running(ReportedOutcome::Failed).await;
        assert_eq!(w.outcomes(work, 1).await, [Failed], "its report is taken");
        assert!(w.until_known(&a).await.journal_seq > h.journal_seq);
        w.say_again(&e, &a, &[&held_up, &held_up, &first], 4).await;
        let s = w.until_known(&a).await;
        assert_ne!(challenge(&s), Some(young.as_str()), "that answer proves nothing any more");
        assert_eq!(w.agent_events(a.id).await, events, "and no record of any of it");

        a.lock().hang = false;
        let work = w.wave_retry(0, 2).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        w.assert_single_starts();
        e.shut_down().await;
    }
}

/// The last HELLO that a broker let through lists nothing that began since: a task that runs is not stopped by that.
#[tokio::test]
async fn a_list_from_before_a_task_began_does_not_stop_it() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        let a = w.agent(0).clone();
        let mut tap = Tap::on(&w, &a).await;
        w.start_agents();
        let e = w.executor().await;
        let (listless, _) = tap.next(|_, h| h.open.is_empty()).await;
        w.until_known(&a).await;
        a.lock().hang = true;
        let work = w.wave(1, 0, 0).await;
        eventually(SOON, "it runs", async || (!a.running().is_empty()).then_some(())).await;
        w.until_state(work, 0, "granted").await;
        // One of which nothing but the list tells that it is old. For a moment after the grant the two may have crossed, so it is
        // said until it is doubted.
        let before = asked(&e);
        eventually(SOON, "the agent is asked", async || {
            a.hello_without_tasks().await;
            (asked(&e) > before).then_some(())
        })
        .await;
        w.until_known(&a).await;
        // And the old one itself.
        w.say_again(&e, &a, &[&listless], 5).await;
        w.until_known(&a).await;
        assert_eq!(a.lock().fences, 0);
        assert_eq!(a.running().len(), 1, "it goes on");
        a.end_running(ReportedOutcome::Succeeded).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded]);
        e.shut_down().await;
    }
}

/// Two executors take the HELLOs in turns, so the one that asked is often not the one that hears the answer.
#[tokio::test]
async fn a_host_that_is_another_one_is_still_seen() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        let a = w.agent(0).clone();
        w.start_agents();
        let (e, other) = (w.executor().await, w.executor().await);
        w.until_known(&a).await;
        for _ in 0..5 {
            let before = w.agent_events(a.id).await.len();
            a.reimage();
            a.hello().await;
            w.until_known(&a).await;
            assert_eq!(w.agent_events(a.id).await[before..], ["agent.replaced"]);
        }
        w.restore_disk(&a).await;
        let s = w.session_of(&a).await.expect("a session");
        assert!(s.instance.starts_with("!rolled-back-"), "{}", s.instance);
        e.shut_down().await;
        other.shut_down().await;
    }
}

#[tokio::test]
async fn a_copy_is_found_although_the_other_machine_answers_too() {
    for db in databases().await {
        let mut w = World::new(db, 1, 1).await;
        let a = w.agent(0).clone();
        w.start_agents();
        let e = w.executor().await;
        let former = w.until_known(&a).await.instance;
        a.reimage();
        a.hello().await;
        w.until_known(&a).await;
        // The same identity, with the journal that was taken over from.
        let key = KeyPair::from_seed(&a.key.seed().expect("seed")).expect("key");
        let client = async_nats::connect(w.nats.url()).await.expect("connects");
        let copy = Agent::new(a.id, &a.host, key, &w.control, client);
        copy.lock().instance = former;
        let runs = tokio::spawn(copy.run());
        w.until_told(&a, "agent.cloned").await;
        let s = w.session_of(&a).await.expect("a session");
        assert!(s.instance.starts_with("!cloned-"), "{}", s.instance);
        runs.abort();
        e.shut_down().await;
    }
}

#[tokio::test]
async fn an_agent_of_the_version_before_is_taken_at_its_word_until_it_is_upgraded() {
    for db in databases().await {
        let mut w = World::new(db, 2, 2).await;
        for i in 0..2 {
            w.agent(i).lock().former = true;
        }
        w.start_agents();
        let e = w.executor().await;
        let work = w.wave(2, 0, 0).await;
        assert_eq!(w.outcomes(work, 1).await, [Succeeded, Succeeded]);
        let (a, b) = (w.agent(0).clone(), w.agent(1).clone());
        a.reimage();
        a.hello().await;
        w.until_told(&a, "agent.replaced").await;
        w.restore_disk(&a).await;
        assert_eq!(stale(&e), 0);

        // After its upgrade, what was said before counts for nothing.
        let old = w.until_known(&b).await;
        b.lock().former = false;
        b.hello().await;
        eventually(SOON, "it is known to answer", async || {
            (w.session_of(&b).await?.facts["_answers"] == true).then_some(())
        })
        .await;
        let told = w.agent_events(b.id).await;
        let hello = |instance: &str, journal_seq| {
            let (open, facts) = (vec![], serde_json::json!({}));
            let body = Hello { boot_id: "b".into(), journal_seq, version: "0".into(), open, facts, answers: None };
            let up = Up { agent: b.id, instance: instance.into(), body: UpBody::Hello(body) };
            frames::seal(&up, &b.key).expect("seals")
        };
        let (behind, another, same) =
            (hello(&old.instance, 0), hello(&instance(), 9), hello(&old.instance, old.journal_seq));
        w.say_again(&e, &b, &[&behind, &behind, &another], 5).await;
        assert_eq!(stale(&e), 15);
        // Nor does it make the agent one of the version before again.
        w.client.publish(subjects::agent_hello(b.id), same.into()).await.expect("publishes");
        w.say_again(&e, &b, &[&behind, &another], 2).await;
        assert_eq!(stale(&e), 19);
        assert_eq!(w.until_known(&b).await.instance, old.instance);
        assert_eq!(w.agent_events(b.id).await, told);
        e.shut_down().await;
    }
}
