//! The way of requests and events through the database: a client that repeats what it got no answer to, an api whose commits
//! may fail before or after they took effect, two schedulers that decide, a relay, and two processes of a consumer; a broker
//! that loses, repeats and reorders. Said in the words of `store::commands`, `store::decisions` and `store::events`: this
//! crate has no code for it, so the model is of the semantics alone.

use crate::{
    Limits, holds, is_caught, long,
    search::{Model, Steps, key_of},
};

const REQUESTS: usize = 3;
const EVENTS: usize = 4;
const PROCESSES: usize = 2;

/// A scheduler between its reading and its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Look {
    /// From 1; 0: it looks at nothing.
    command: u8,
    version: u8,
    /// The next place in the stream, as it was read.
    seq: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct S {
    /// Requests that were sent, and those that a client got a 2xx for, as bits.
    sent: u8,
    answered: u8,
    /// Rows of each request in `commands`, and those of them that wait in `command_queue`.
    made: [u8; REQUESTS],
    queued: [u8; REQUESTS],
    applied: [u8; REQUESTS],
    /// Of the aggregate that the commands are about.
    version: u8,
    next_seq: u8,
    looks: [Look; PROCESSES],
    /// `agg_seq` of each event from 1; 0: there is none yet.
    seq: [u8; EVENTS],
    /// Rows of `event_queue` as bits.
    for_bus: u8,
    for_notifier: u8,
    /// Doorbells under way.
    bells: u8,
    published: u8,
    /// Events that a relay has read, has published; that a notifier has read, whose row it has taken off.
    relay: (u8, bool),
    takes: [(u8, bool); PROCESSES],
    effects: [u8; EVENTS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    IdempotencyKey,
    AnswerAfterCommit,
    VersionCheck,
    CommandTakenOffWithItsDecision,
    CommandTakenOffAfterItsDecision,
    EventInTheSameTransaction,
    SeqUnderTheRowLock,
    RowTakenOffWithItsEffect,
    LookAtHowManyRowsWereTakenOff,
    Polling,
    PublishedBeforeItIsTakenOff,
}
use Without::*;

struct Outbox {
    requests: usize,
    without: Without,
}

fn bit(n: usize) -> u8 {
    1 << n
}

impl Outbox {
    fn is(&self, w: Without) -> bool {
        self.without == w
    }

    /// The event of a change, with its rows for each consumer.
    fn append(&self, s: &mut S, seq: u8) {
        let Some(e) = s.seq.iter().position(|q| *q == 0) else { return };
        s.seq[e] = seq;
        s.for_bus |= bit(e);
        s.for_notifier |= bit(e);
        s.next_seq = s.next_seq.max(seq);
    }

    fn requests(&self, s: &S, out: &mut Steps<S>) {
        for r in 0..self.requests {
            if s.answered & bit(r) != 0 {
                continue;
            }
            let sent = S { sent: s.sent | bit(r), ..*s };
            let (mut stored, mut known) = (sent, false);
            if s.made[r] == 0 || self.is(IdempotencyKey) && s.made[r] < 2 {
                stored.made[r] += 1;
                stored.queued[r] += 1;
            } else {
                known = true;
            }
            let answered = S { answered: s.answered | bit(r), ..stored };
            out.go(|| format!("request {r} is stored and answered"), answered);
            if !known {
                out.go(|| format!("request {r} is stored, and the answer is lost"), stored);
            }
            if self.is(AnswerAfterCommit) {
                let lie = S { answered: s.answered | bit(r), ..sent };
                out.go(|| format!("request {r} is answered, and its commit fails"), lie);
            }
        }
    }

    fn schedulers(&self, s: &S, out: &mut Steps<S>) {
        for k in 0..PROCESSES {
            let l = s.looks[k];
            if l.command == 0 {
                for r in (0..self.requests).filter(|r| s.queued[*r] > 0) {
                    let mut n = *s;
                    n.looks[k] = Look { command: r as u8 + 1, version: s.version, seq: s.next_seq + 1 };
                    if self.is(CommandTakenOffWithItsDecision) {
                        n.queued[r] -= 1;
                    }
                    out.go(|| format!("scheduler {k} reads command {r}"), n);
                }
                continue;
            }
            let r = l.command as usize - 1;
            let mut n = *s;
            n.looks[k] = Look::default();
            out.go(|| format!("scheduler {k} dies, or its commit fails"), n);
            // The row of the aggregate is saved at the version that was read; so whoever read before another's commit
            // decides nothing.
            let unchecked = self.is(VersionCheck) || self.is(SeqUnderTheRowLock);
            if s.version != l.version && !unchecked {
                continue;
            }
            if self.is(SeqUnderTheRowLock) && s.queued[r] == 0 {
                continue;
            }
            n.version = (n.version + 1) % 8;
            n.applied[r] += 1;
            let keeps = self.is(CommandTakenOffAfterItsDecision) || self.is(CommandTakenOffWithItsDecision);
            if !keeps {
                n.queued[r] = n.queued[r].saturating_sub(1);
            }
            if self.is(EventInTheSameTransaction) {
                out.go(|| format!("scheduler {k} decides {r}, and dies before it tells"), n);
            }
            let seq = if self.is(SeqUnderTheRowLock) { l.seq } else { s.next_seq + 1 };
            self.append(&mut n, seq);
            if self.is(CommandTakenOffAfterItsDecision) {
                let mut off = n;
                off.queued[r] = off.queued[r].saturating_sub(1);
                out.go(|| format!("scheduler {k} decides {r}, then takes it off"), off);
            }
            out.go(|| format!("scheduler {k} decides {r}"), n);
        }
    }

    fn relay(&self, s: &S, out: &mut Steps<S>) {
        let (at, published) = s.relay;
        if at == 0 {
            for e in (0..EVENTS).filter(|e| s.for_bus & bit(*e) != 0) {
                let mut n = S { relay: (e as u8 + 1, false), ..*s };
                if self.is(PublishedBeforeItIsTakenOff) {
                    n.for_bus &= !bit(e);
                }
                out.go(|| format!("the relay reads event {e}"), n);
            }
            return;
        }
        let e = at as usize - 1;
        out.go(|| "the relay dies".into(), S { relay: (0, false), ..*s });
        if published {
            let n = S { relay: (0, false), for_bus: s.for_bus & !bit(e), ..*s };
            out.go(|| format!("the relay takes event {e} off"), n);
        } else {
            let n = S { relay: (at, true), published: s.published | bit(e), bells: s.bells | bit(e), ..*s };
            out.go(|| format!("the relay publishes event {e}"), n);
        }
    }

    fn notifiers(&self, s: &S, out: &mut Steps<S>) {
        for k in 0..PROCESSES {
            let (at, off) = s.takes[k];
            if at == 0 {
                for e in (0..EVENTS).filter(|e| s.for_notifier & bit(*e) != 0) {
                    if self.is(Polling) && s.bells & bit(e) == 0 {
                        continue;
                    }
                    let mut n = *s;
                    n.takes[k] = (e as u8 + 1, false);
                    out.go(|| format!("notifier {k} reads event {e}"), n);
                }
                continue;
            }
            let e = at as usize - 1;
            let mut n = *s;
            n.takes[k] = (0, false);
            out.go(|| format!("notifier {k} dies, or its commit fails"), n);
            let there = s.for_notifier & bit(e) != 0;
            if self.is(RowTakenOffWithItsEffect) {
                if off {
                    n.effects[e] += 1;
                    out.go(|| format!("notifier {k} does event {e}"), n);
                } else if there {
                    n.for_notifier &= !bit(e);
                    n.takes[k] = (at, true);
                    out.go(|| format!("notifier {k} takes event {e} off"), n);
                }
                continue;
            }
            // Effect and deletion are one transaction; a row that another took meanwhile is not there to be deleted.
            if there || self.is(LookAtHowManyRowsWereTakenOff) {
                n.for_notifier &= !bit(e);
                n.effects[e] += 1;
                out.go(|| format!("notifier {k} does event {e} and takes it off"), n);
            }
        }
        for e in (0..EVENTS).filter(|e| s.bells & bit(*e) != 0) {
            out.go(|| format!("the doorbell of event {e} is lost"), S { bells: s.bells & !bit(e), ..*s });
        }
    }
}

impl Model for Outbox {
    type State = S;

    fn start(&self) -> S {
        S::default()
    }

    fn next(&self, s: &S, out: &mut Steps<S>) {
        self.requests(s, out);
        self.schedulers(s, out);
        self.relay(s, out);
        self.notifiers(s, out);
    }

    fn key(&self, s: &S) -> u64 {
        key_of(s)
    }

    fn wrong(&self, s: &S) -> Option<String> {
        for r in 0..self.requests {
            if s.applied[r] > 1 {
                return Some(format!("request {r} is carried out twice"));
            }
            if s.answered & bit(r) != 0 && s.made[r] == 0 {
                return Some(format!("request {r} was answered and is not there"));
            }
        }
        let mut places = 0_u8;
        for q in s.seq.into_iter().filter(|q| *q > 0) {
            if places & bit(q as usize) != 0 {
                return Some(format!("two events have the place {q}"));
            }
            places |= bit(q as usize);
        }
        let told = s.seq.iter().filter(|q| **q > 0).count() as u8;
        if told != s.applied.iter().sum::<u8>() {
            return Some("a change has no event".into());
        }
        (0..EVENTS).find(|e| s.effects[*e] > 1).map(|e| format!("event {e} is done twice"))
    }

    fn ended(&self, s: &S) -> bool {
        let told = (0..EVENTS).filter(|e| s.seq[*e] > 0);
        (0..self.requests).all(|r| s.answered & bit(r) != 0 && s.applied[r] == 1)
            && told.clone().all(|e| s.effects[e] == 1 && s.published & bit(e) != 0)
    }
}

#[test]
fn what_was_accepted_is_carried_out_and_told_once() {
    let quick = Limits { states: 40_000, traps: false };
    holds("outbox, 1 request", &Outbox { requests: 1, without: Nothing }, Limits { states: 200_000, traps: true });
    holds("outbox, 2 requests", &Outbox { requests: 2, without: Nothing }, quick);
    if long() {
        let far = Limits { states: 45_000_000, traps: false };
        holds("outbox, 2 requests, whole", &Outbox { requests: 2, without: Nothing }, Limits { traps: true, ..far });
        holds("outbox, 3 requests", &Outbox { requests: 3, without: Nothing }, far);
    }
}

#[test]
fn each_safeguard_of_the_outbox_is_needed() {
    let mutants = [
        IdempotencyKey,
        AnswerAfterCommit,
        VersionCheck,
        CommandTakenOffWithItsDecision,
        CommandTakenOffAfterItsDecision,
        EventInTheSameTransaction,
        SeqUnderTheRowLock,
        RowTakenOffWithItsEffect,
        LookAtHowManyRowsWereTakenOff,
        Polling,
        PublishedBeforeItIsTakenOff,
    ];
    for without in mutants {
        // What is lost shows where no end can be reached any more; what comes of two at once needs two.
        let traps = matches!(
            without,
            CommandTakenOffWithItsDecision | RowTakenOffWithItsEffect | Polling | PublishedBeforeItIsTakenOff
        );
        let requests = if without == SeqUnderTheRowLock { 2 } else { 1 };
        is_caught(&format!("{without:?}"), &Outbox { requests, without }, Limits { states: 2_000_000, traps });
    }
    eprintln!("{} of {} mutants of the outbox are caught", mutants.len(), mutants.len());
}
