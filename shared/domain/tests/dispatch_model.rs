//! Exhaustive search of the dispatch protocol. The control side is the real `Task::apply`; network, executors and agent are
//! modelled around it: every frame ever sent may arrive any number of times, in any order, or never; the agent may crash, its
//! machine reboot or be installed anew; an executor may pause between deciding and committing while another takes over; a
//! person may abort, override, pause and stop a host; all of it at any moment. Each mutant removes one safeguard, and the
//! search must find out. `WINDLASS_MODELS=long` allows all of it in one search.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};
use windlass_domain::{
    Timestamp,
    deployment::By,
    task::{Grant, ReportedOutcome, Task, TaskInput, TaskReport, TaskState},
};

/// Attempts, ACCEPT nonces in all, executor epochs.
const A: usize = 2;
const N: u8 = 2;
const EPOCHS: u8 = 2;
/// Agent instances at most.
const INSTANCES: u8 = 2;

/// How often what may happen: agent crashes, agent instances, pauses, hosts that a person stops.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    crashes: u8,
    instances: u8,
    holds: u8,
    stops: u8,
}

const BREAKS: Bounds = Bounds { crashes: 1, instances: INSTANCES, holds: 0, stops: 0 };
const PEOPLE: Bounds = Bounds { crashes: 1, instances: 1, holds: 1, stops: 1 };
const ALL: Bounds = Bounds { crashes: 1, instances: INSTANCES, holds: 1, stops: 1 };

/// Safeguards that can be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    Intact,
    NoIntentJournal,
    OnePhaseDispatch,
    RetryOnUnknown,
    AgentIgnoresOlderAttempts,
    GrantWithoutClaimCheck,
    SilenceMeansNotStarted,
    NonceNotChecked,
    GrantToAnotherInstance,
    AnyInstanceIsBelieved,
    GrantUnderHold,
    GrantAfterStop,
}
use Mutant::*;

/// Agent journal of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum J {
    None,
    Accepted,
    Intent,
    ExitOk,
    ExitFail,
    Interrupted,
    Fenced,
    Cancelled,
}

/// A task row: what of `Task` can differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    state: TaskState,
    /// Nonce and instance; 0 for none.
    grant: (u8, u8),
    reported: bool,
    /// A person stopped it.
    stop: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct S {
    // The database. `aborted` is written once every work is settled.
    abort: bool,
    aborted: bool,
    hold: bool,
    holds: u8,
    stops: u8,
    epoch: u8,
    row: [Option<Row>; A],
    /// A grant that a (maybe paused) executor has decided on and not committed: attempt, nonce, its epoch.
    deciding: Option<(u8, u8, u8)>,
    // The host.
    up: bool,
    crashes: u8,
    instance: u8,
    journal: [J; A],
    nonce: [u8; A],
    nonces: u8,
    nonce_instance: [u8; N as usize + 1],
    starting: [bool; A],
    running: [bool; A],
    // What happened in the world, for the invariants.
    starts: [u8; A],
    exit_ok: [bool; A],
    broken: Option<&'static str>,
    // Every frame ever sent.
    net: u64,
}

fn offer(a: usize) -> u64 {
    1 << a
}
fn fence(a: usize) -> u64 {
    1 << (2 + a)
}
fn accept(a: usize, n: u8) -> u64 {
    1 << (4 + a * 4 + n as usize)
}
fn grant(a: usize, n: u8) -> u64 {
    1 << (12 + a * 4 + n as usize)
}
fn report(a: usize, j: J, instance: u8) -> u64 {
    1 << (20 + a * 16 + (instance as usize - 1) * 8 + j as usize)
}

const REPORTS: [(J, ReportedOutcome); 5] = [
    (J::ExitOk, ReportedOutcome::Succeeded),
    (J::ExitFail, ReportedOutcome::Failed),
    (J::Interrupted, ReportedOutcome::Interrupted),
    (J::Fenced, ReportedOutcome::Fenced),
    (J::Cancelled, ReportedOutcome::Cancelled),
];

fn said(n: u8) -> String {
    char::from(b'0' + n).to_string()
}

fn number(text: &str) -> u8 {
    text.as_bytes()[0] - b'0'
}

/// The real transition function on a row.
struct Control {
    task: Task,
    now: Timestamp,
    bounds: Bounds,
}

impl Control {
    fn new(bounds: Bounds) -> Control {
        let task = Task {
            class: None,
            stop: None,
            traffic: None,
            id: "00000000-0000-0000-0000-000000000000".parse().expect("id"),
            host: String::new(),
            agent: None,
            attempt: 1,
            start_at: 0,
            state: TaskState::Pending,
            granted: None,
            report: None,
            steps: vec![],
            reason: None,
            auto_stopped: false,
            offered_at: None,
            granted_at: None,
            started_at: None,
            settled_at: None,
        };
        Control { task, now: "2026-11-21T00:00:00Z".parse().expect("time"), bounds }
    }

    fn apply(&self, row: Row, input: TaskInput) -> Option<Row> {
        let mut t = self.task.clone();
        t.state = row.state;
        t.granted = (row.grant.1 != 0).then(|| Grant { nonce: said(row.grant.0), instance: said(row.grant.1) });
        t.report = row.reported.then(|| Self::report(ReportedOutcome::Interrupted));
        t.stop = row.stop.then(|| self.by());
        let next = t.apply(input, self.now).ok()?;
        let grant = next.granted.as_ref().map_or((0, 0), |g| (number(&g.nonce), number(&g.instance)));
        // A report matters later only on an unknown task.
        let reported = next.report.is_some() && next.state == TaskState::Unknown;
        Some(Row { state: next.state, grant, reported, stop: next.stop.is_some() })
    }

    fn by(&self) -> By {
        By { who: String::new(), reason: String::new(), at: self.now }
    }

    fn allows_next(&self, row: Row) -> bool {
        Task { state: row.state, ..self.task.clone() }.allows_next_attempt()
    }

    fn report(outcome: ReportedOutcome) -> TaskReport {
        TaskReport { outcome, steps: vec![], log_bytes: 0, log_dropped: 0, log_frames: 0 }
    }
}

fn start() -> S {
    S {
        abort: false,
        aborted: false,
        hold: false,
        holds: 0,
        stops: 0,
        epoch: 1,
        row: [None; A],
        deciding: None,
        up: true,
        crashes: 0,
        instance: 1,
        journal: [J::None; A],
        nonce: [0; A],
        nonces: 0,
        nonce_instance: [0; N as usize + 1],
        starting: [false; A],
        running: [false; A],
        starts: [0; A],
        exit_ok: [false; A],
        broken: None,
        net: 0,
    }
}

const PENDING: Row = Row { state: TaskState::Pending, grant: (0, 0), reported: false, stop: false };

/// Every step anything can take from `s`.
fn successors(c: &Control, s: &S, m: Mutant, out: &mut Vec<S>) {
    control(c, s, m, out);
    deployment(c, s, out);
    if s.up {
        agent(c, s, m, out);
    } else {
        out.push(S { up: true, ..*s });
    }
    for a in (0..A).filter(|a| s.running[*a]) {
        // The process ends by itself; the runner records it whether the agent is up or not.
        for ok in [true, false] {
            let mut n = *s;
            n.running[a] = false;
            n.exit_ok[a] = ok;
            n.journal[a] = if ok { J::ExitOk } else { J::ExitFail };
            out.push(n);
        }
    }
    out.retain(|n| n != s);
}

/// Transactions about tasks, each one atomic commit.
fn control(c: &Control, s: &S, m: Mutant, out: &mut Vec<S>) {
    for a in 0..A {
        let with = |row: Row, frames: u64| {
            let mut n = *s;
            n.row[a] = Some(row);
            n.net |= frames;
            n
        };
        let Some(row) = s.row[a] else {
            let earlier = a == 0
                || s.row[a - 1]
                    .is_some_and(|p| c.allows_next(p) || (m == RetryOnUnknown && p.state == TaskState::Unknown));
            if !s.abort
                && !s.hold
                && earlier
                && let Some(offered) = c.apply(PENDING, TaskInput::Offer)
            {
                let row = if m == OnePhaseDispatch {
                    Row { state: TaskState::Granted, grant: (0, 1), reported: false, stop: false }
                } else {
                    offered
                };
                out.push(with(row, offer(a)));
            }
            continue;
        };
        if s.stops < c.bounds.stops
            && let Some(r) = c.apply(row, TaskInput::Stop { by: c.by() })
        {
            out.push(S { stops: s.stops + 1, ..with(r, fence(a)) });
        }
        if row.stop && !row.state.is_final() {
            out.push(with(row, fence(a)));
        }
        // Withdrawn for any reason: time, budget, abort.
        out.extend(c.apply(row, TaskInput::Withdraw { reason: String::new() }).map(|r| with(r, fence(a))));
        if let Some(mut r) = c.apply(row, TaskInput::Silent { reason: String::new() }) {
            if m == SilenceMeansNotStarted {
                r.state = TaskState::NotStarted;
            }
            out.push(with(r, fence(a)));
        }
        let over = TaskInput::Override { by: String::new(), reason: String::new() };
        out.extend(c.apply(row, over).map(|r| with(r, 0)));
        for n in (1..=N).filter(|n| s.net & accept(a, *n) != 0) {
            if s.deciding.is_none() && !s.abort && matches!(row.state, TaskState::Offered | TaskState::Granted) {
                out.push(S { deciding: Some((a as u8, n, s.epoch)), ..*s });
            }
        }
        for (j, outcome) in REPORTS {
            for i in (1..=INSTANCES).filter(|i| s.net & report(a, j, *i) != 0) {
                let believed = if m == AnyInstanceIsBelieved && row.grant.1 != 0 { row.grant.1 } else { i };
                let input = TaskInput::Reported { instance: said(believed), report: Control::report(outcome) };
                out.extend(c.apply(row, input).map(|r| with(r, 0)));
            }
        }
    }
    if let Some((a, nonce, epoch)) = s.deciding {
        let a = a as usize;
        let mut n = S { deciding: None, ..*s };
        let row = s.row[a].unwrap_or(PENDING);
        let stopped = row.stop && m != GrantAfterStop;
        let held = epoch == s.epoch && !s.abort && (!s.hold || m == GrantUnderHold) && !stopped;
        let instance = s.nonce_instance[nonce as usize];
        if held || m == GrantWithoutClaimCheck {
            let to = if m == GrantToAnotherInstance && row.grant.1 != 0 { row.grant.1 } else { instance };
            let input = TaskInput::Accepted(Grant { nonce: said(nonce), instance: said(to) });
            match c.apply(row, input) {
                Some(r) => {
                    n.row[a] = Some(Row { grant: (nonce, instance), ..r });
                    n.net |= grant(a, nonce);
                    if m != GrantWithoutClaimCheck && s.hold {
                        n.broken = Some("I8: granted under a pause");
                    } else if m != GrantWithoutClaimCheck && row.stop {
                        n.broken = Some("I9: granted after a person stopped it");
                    }
                }
                // Without the check the zombie's frame goes out, whatever the row says.
                None if m == GrantWithoutClaimCheck => n.net |= grant(a, nonce),
                None => {}
            }
        }
        out.push(n);
    }
    if s.epoch < EPOCHS {
        out.push(S { epoch: s.epoch + 1, ..*s });
    }
}

/// Abort and its end.
fn deployment(c: &Control, s: &S, out: &mut Vec<S>) {
    if !s.abort {
        out.push(S { abort: true, hold: false, ..*s });
    }
    if s.hold {
        out.push(S { hold: false, ..*s });
    } else if !s.abort && s.holds < c.bounds.holds {
        out.push(S { hold: true, holds: s.holds + 1, ..*s });
    }
    if s.abort {
        for a in 0..A {
            if s.row[a].is_some_and(|r| matches!(r.state, TaskState::Granted | TaskState::Unknown)) {
                out.push(S { net: s.net | fence(a), ..*s });
            }
        }
        let settled = |r: &Option<Row>| r.is_none_or(|r| Task { state: r.state, ..c.task.clone() }.state.is_settled());
        if !s.aborted && s.row.iter().all(settled) {
            out.push(S { aborted: true, ..*s });
        }
    }
}

fn agent(c: &Control, s: &S, m: Mutant, out: &mut Vec<S>) {
    for a in 0..A {
        if s.net & offer(a) != 0 && matches!(s.journal[a], J::None | J::Accepted) && s.nonces < N {
            let newer = (a + 1..A).any(|b| s.journal[b] != J::None);
            let older_runs = (0..a).any(|b| s.running[b] || s.starting[b]);
            if !newer && (!older_runs || m == AgentIgnoresOlderAttempts) {
                let mut n = *s;
                for b in (0..a).filter(|_| m != AgentIgnoresOlderAttempts) {
                    if matches!(n.journal[b], J::None | J::Accepted) {
                        n.journal[b] = J::Fenced;
                        n.nonce[b] = 0;
                    }
                }
                n.nonces += 1;
                n.nonce[a] = n.nonces;
                n.nonce_instance[n.nonces as usize] = s.instance;
                n.journal[a] = J::Accepted;
                n.net |= accept(a, n.nonces);
                if m == OnePhaseDispatch {
                    n.journal[a] = J::Intent;
                    n.starting[a] = true;
                }
                out.push(n);
            }
        }
        for k in (1..=N).filter(|k| s.net & grant(a, *k) != 0) {
            let current = s.nonce[a] == k || m == NonceNotChecked;
            let takes = s.journal[a] == J::Accepted && current;
            if takes || (m == NoIntentJournal && !s.running[a] && s.journal[a] <= J::Intent) {
                let mut n = *s;
                if m != NoIntentJournal {
                    n.journal[a] = J::Intent;
                }
                n.nonce[a] = 0;
                n.starting[a] = true;
                out.push(n);
            }
        }
        if s.starting[a] {
            let mut n = *s;
            n.starting[a] = false;
            n.running[a] = true;
            n.starts[a] += 1;
            if n.starts[a] > 1 {
                n.broken = Some("I1: an attempt started twice");
            } else if (0..A).any(|b| b != a && n.running[b]) {
                n.broken = Some("I2: two attempts run at once");
            } else if n.aborted
                && !n.row[a].is_some_and(|r| matches!(r.state, TaskState::Unknown | TaskState::Overridden))
            {
                n.broken = Some("I3: started after ABORTED on a host neither unknown nor overridden");
            }
            out.push(n);
        }
        if s.net & fence(a) != 0 {
            let mut n = *s;
            n.nonce[a] = 0;
            match s.journal[a] {
                J::None | J::Accepted => n.journal[a] = J::Fenced,
                J::Intent if s.starting[a] => {
                    n.starting[a] = false;
                    n.journal[a] = J::Fenced;
                }
                // Stopped and reaped, then recorded.
                _ if s.running[a] => {
                    n.running[a] = false;
                    n.journal[a] = J::Cancelled;
                }
                _ => {}
            }
            out.push(n);
        }
        if s.journal[a] == J::Intent && !s.running[a] && !s.starting[a] {
            let mut n = *s;
            n.journal[a] = J::Interrupted;
            out.push(n);
        }
        if s.journal[a] >= J::ExitOk {
            out.push(S { net: s.net | report(a, s.journal[a], s.instance), ..*s });
        }
    }
    if s.crashes < c.bounds.crashes {
        // The agent's process dies; then the whole machine.
        let crashed = S { up: false, crashes: s.crashes + 1, nonce: [0; A], starting: [false; A], ..*s };
        out.push(crashed);
        out.push(S { running: [false; A], ..crashed });
    }
    if s.instance < c.bounds.instances && !s.running.contains(&true) {
        out.push(S { instance: s.instance + 1, journal: [J::None; A], nonce: [0; A], starting: [false; A], ..*s });
    }
}

fn violation(s: &S) -> Option<&'static str> {
    if s.broken.is_some() {
        return s.broken;
    }
    for a in 0..A {
        let Some(row) = s.row[a] else { continue };
        use TaskState::*;
        match row.state {
            NotStarted if s.starts[a] > 0 => return Some("I4: not started, and yet it started"),
            Succeeded if !s.exit_ok[a] => return Some("I5: succeeded without an exit 0"),
            Succeeded | Failed | Cancelled if s.running[a] => return Some("I6: final, and yet it runs"),
            _ => {}
        }
        if a > 0
            && s.starts[a] > 0
            && !s.row[a - 1].is_some_and(|p| matches!(p.state, NotStarted | Failed | Cancelled | Overridden))
        {
            return Some("I7: a retry started though the attempt before is neither settled nor overridden");
        }
    }
    None
}

/// A fast hash: the default one takes most of the time of the search.
#[derive(Default)]
struct Fx(u64);

impl Hasher for Fx {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

#[derive(Debug)]
enum Found {
    /// What was broken, and the number of steps of the shortest way there.
    Violation(&'static str, usize),
    /// States; of them those from which no settled state can be reached; how often each outcome was seen.
    Holds { states: usize, traps: usize, seen: HashMap<TaskState, usize>, retried: usize, aborted: usize },
}

fn search(m: Mutant, bounds: Bounds) -> Found {
    let c = Control::new(bounds);
    let mut index: HashMap<S, u32, BuildHasherDefault<Fx>> = HashMap::default();
    let (mut states, mut parent) = (vec![start()], vec![u32::MAX]);
    index.insert(start(), 0);
    let mut queue = VecDeque::from([0_u32]);
    let mut back: Vec<(u32, u32)> = vec![];
    let mut next = vec![];
    while let Some(i) = queue.pop_front() {
        let s = states[i as usize];
        if let Some(what) = violation(&s) {
            let steps =
                std::iter::successors(Some(i), |i| Some(parent[*i as usize]).filter(|p| *p != u32::MAX)).count();
            return Found::Violation(what, steps - 1);
        }
        next.clear();
        successors(&c, &s, m, &mut next);
        for n in &next {
            let k = *index.entry(*n).or_insert_with(|| {
                let k = states.len() as u32;
                states.push(*n);
                parent.push(i);
                queue.push_back(k);
                k
            });
            back.push((k, i));
        }
    }
    let mut seen: HashMap<TaskState, usize> = HashMap::new();
    states.iter().flat_map(|s| s.row.iter().flatten()).for_each(|r| *seen.entry(r.state).or_default() += 1);
    Found::Holds {
        states: states.len(),
        traps: traps(&states, back),
        seen,
        retried: states.iter().filter(|s| s.starts[1] > 0).count(),
        aborted: states.iter().filter(|s| s.aborted).count(),
    }
}

/// How many states have no way to a settled one.
fn traps(states: &[S], mut back: Vec<(u32, u32)>) -> usize {
    let settled = |s: &S| s.row.iter().flatten().all(|r| r.state.is_settled()) && !s.running.contains(&true);
    back.sort_unstable();
    let mut good: Vec<bool> = states.iter().map(settled).collect();
    let mut todo: Vec<u32> = (0..states.len() as u32).filter(|i| good[*i as usize]).collect();
    while let Some(k) = todo.pop() {
        let from = back.partition_point(|(to, _)| *to < k);
        for (_, i) in back[from..].iter().take_while(|(to, _)| *to == k) {
            if !std::mem::replace(&mut good[*i as usize], true) {
                todo.push(*i);
            }
        }
    }
    good.iter().filter(|g| !**g).count()
}

#[test]
fn the_seven_invariants_hold_in_every_reachable_state() {
    let long = std::env::var("WINDLASS_MODELS").is_ok_and(|v| v == "long");
    let forms = if long { vec![BREAKS, PEOPLE, ALL] } else { vec![BREAKS] };
    forms.into_iter().for_each(holds);
}

/// The same with a pause and a stop, on one instance of the agent.
#[test]
fn they_hold_when_people_pause_and_stop() {
    holds(PEOPLE);
}

fn holds(bounds: Bounds) {
    match search(Intact, bounds) {
        Found::Violation(what, steps) => panic!("{what}, after {steps} steps"),
        Found::Holds { states, traps, seen, retried, aborted } => {
            eprintln!(
                "model dispatch, {bounds:?}: {states} states (all of them), {retried} with a retry, {aborted} aborted, {seen:?}"
            );
            assert_eq!(traps, 0, "every state has a way to a settled one");
            // A search that never gets anywhere proves nothing.
            use TaskState::*;
            for state in [Offered, Granted, Succeeded, Failed, Cancelled, NotStarted, Unknown, Overridden] {
                assert!(seen.get(&state).is_some_and(|n| *n > 100), "{state:?} in {seen:?}");
            }
            assert!(states > 100_000 && retried > 1000 && aborted > 1000);
        }
    }
}

#[test]
fn every_safeguard_is_needed() {
    let all = [
        NoIntentJournal,
        OnePhaseDispatch,
        RetryOnUnknown,
        AgentIgnoresOlderAttempts,
        GrantWithoutClaimCheck,
        SilenceMeansNotStarted,
        NonceNotChecked,
        GrantToAnotherInstance,
        AnyInstanceIsBelieved,
        GrantUnderHold,
        GrantAfterStop,
    ];
    for mutant in all {
        let bounds = if matches!(mutant, GrantUnderHold | GrantAfterStop) { PEOPLE } else { BREAKS };
        match search(mutant, bounds) {
            Found::Violation(what, steps) => eprintln!("{mutant:?}: {what}, after {steps} steps"),
            Found::Holds { states, .. } => panic!("{mutant:?} was not caught in {states} states"),
        }
    }
}
