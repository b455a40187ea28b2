//! Bundles: order, failure, rollback, and an answer to every verb in every state.

use super::*;
use crate::deployment::State as D;
use proptest::prelude::*;
use uuid::Uuid;

fn t(s: i64) -> Timestamp {
    Timestamp::from_timestamp(1_800_000_000 + s, 0).expect("time")
}

fn id(n: usize) -> DeploymentId {
    Uuid::from_u128(n as u128 + 1).into()
}

/// A bundle with deployments that do as they are told.
struct World {
    b: Bundle,
    /// State, touched, rollback requested, in the order of members.
    d: Vec<(DeploymentId, D, bool, Option<Option<D>>)>,
    released: Vec<String>,
    rolled: Vec<String>,
}

impl World {
    /// `needs[i]`: indices of members before `i`.
    fn new(needs: &[&[usize]], on_failure: OnFailure, rules: bool) -> World {
        let members = needs.iter().enumerate().map(|(i, n)| NewMember {
            name: format!("m{i}"),
            project: format!("p{i}"),
            environment: "beta".into(),
            version: "1".into(),
            needs: n.iter().map(|j| format!("m{j}")).collect(),
            deployment: id(i),
            plan_digest: format!("sha256:{i}"),
            unapproved: rules,
        });
        let new = New {
            id: Uuid::nil().into(),
            title: "all".into(),
            requested_by: "ann".into(),
            note: String::new(),
            on_failure,
            expires_at: t(3600),
            members: members.collect(),
        };
        let state = if rules { D::AwaitingApproval } else { D::Scheduled };
        let (b, effects) = Bundle::request(new, t(0));
        let d = (0..needs.len()).map(|i| (id(i), state, false, None)).collect();
        let mut w = World { b, d, released: vec![], rolled: vec![] };
        w.carry(effects);
        w
    }

    fn name(&self, d: DeploymentId) -> String {
        self.b.members.iter().find(|m| m.deployment == d).map(|m| m.name.clone()).expect("a member")
    }

    fn carry(&mut self, effects: Vec<Effect>) {
        for e in effects {
            match e {
                Effect::Release { deployment } => {
                    let name = self.name(deployment);
                    let m = self.b.member(&name).expect("member").clone();
                    for n in &m.needs {
                        let s = self.b.member(n).expect("need").state;
                        assert!(s.is_settled(), "{name} starts though {n} is {s:?}");
                    }
                    assert!(!self.released.contains(&name), "{name} is let go twice");
                    self.released.push(name);
                    self.set(deployment, D::Running);
                }
                Effect::Cancel { deployment, .. } => {
                    if self.state(deployment).is_before_running() {
                        self.set(deployment, D::Cancelled);
                    }
                }
                Effect::Retry { deployment, .. } => self.set(deployment, D::Running),
                Effect::Redo { member, .. } => {
                    let new = id(100 + self.d.len());
                    self.d.push((new, D::Running, true, None));
                    let plan_digest = "sha256:again".into();
                    let input = Input::Redone { member, deployment: new, plan_digest, unapproved: false };
                    self.go(input).expect("taken");
                }
                Effect::RollBack { deployment, .. } => {
                    let name = self.name(deployment);
                    self.rolled.push(name);
                    let d = self.d.iter_mut().find(|d| d.0 == deployment).expect("deployment");
                    if d.1.is_before_running() {
                        d.1 = D::Cancelled;
                    } else {
                        d.3 = Some(Some(D::Running));
                        if !d.1.is_terminal() {
                            d.1 = D::Aborted;
                        }
                    }
                }
                Effect::Event { what, .. } => assert!(what.starts_with("bundle."), "{what}"),
            }
        }
    }

    fn state(&self, d: DeploymentId) -> D {
        self.d.iter().find(|x| x.0 == d).expect("deployment").1
    }
    fn set(&mut self, d: DeploymentId, s: D) {
        let d = self.d.iter_mut().find(|x| x.0 == d).expect("deployment");
        d.1 = s;
        d.2 |= s.is_active() || matches!(s, D::Succeeded | D::Failed);
    }
    fn go(&mut self, input: Input) -> Result<(), Refusal> {
        let (b, effects) = self.b.apply(input, t(1))?;
        self.b = b;
        self.carry(effects);
        Ok(())
    }
    /// One look of the scheduler's at all members, until nothing changes.
    fn look(&mut self) {
        for _ in 0..100 {
            let before = (self.b.clone(), self.d.clone());
            for i in 0..self.b.members.len() {
                let d = self.b.members[i].deployment;
                let (_, state, touched, back) = *self.d.iter().find(|x| x.0 == d).expect("deployment");
                let person = (state == D::Paused).then(|| "a person".to_owned());
                let seen = Seen {
                    deployment: d,
                    state,
                    needs_person: person,
                    digest: self.b.members[i].plan_digest.clone(),
                    touched,
                    rollback: back.map(|b| (id(999), b)),
                    end: None,
                };
                self.go(Input::Seen(Box::new(seen))).expect("seen");
            }
            self.go(Input::Tick).expect("tick");
            if before == (self.b.clone(), self.d.clone()) {
                return;
            }
        }
        panic!("it never comes to rest: {:#?}", self.b);
    }
    fn ends(&mut self, i: usize, s: D) {
        let d = self.b.members[i].deployment;
        self.set(d, s);
        self.look();
    }
    /// The rollback of a member ends so.
    fn back(&mut self, i: usize, s: D) {
        let d = self.b.members[i].deployment;
        let d = self.d.iter_mut().find(|x| x.0 == d).expect("deployment");
        d.3 = Some(Some(s));
        if s == D::Succeeded {
            d.1 = D::RolledBack;
        }
        self.look();
    }
    fn approve_all(&mut self) {
        for d in &mut self.d {
            d.1 = D::Scheduled;
        }
        self.look();
    }
    fn members(&self) -> Vec<MemberState> {
        self.b.members.iter().map(|m| m.state).collect()
    }
}

fn rollback(members: &[&str]) -> Input {
    Input::Rollback {
        by: "olga".into(),
        mode: RollbackMode::Normal,
        reason: "bad".into(),
        members: members.iter().map(|m| m.to_string()).collect(),
    }
}

#[test]
fn members_start_in_order_and_side_by_side_where_they_may() {
    // m0 before m1 and m2, both before m3.
    let mut w = World::new(&[&[], &[0], &[0], &[1, 2]], OnFailure::Pause, true);
    assert_eq!(w.b.state, State::AwaitingApproval);
    assert!(matches!(&w.b.waiting_on()[..], [WaitingOn::Approval { members }] if members.len() == 4));
    w.approve_all();
    assert_eq!(w.released, ["m0"]);
    w.ends(0, D::Succeeded);
    assert_eq!(w.released, ["m0", "m1", "m2"]);
    w.ends(2, D::Succeeded);
    assert_eq!(w.released.len(), 3);
    w.ends(1, D::Succeeded);
    w.ends(3, D::Succeeded);
    assert_eq!(w.b.state, State::Succeeded);
    assert!(w.b.waiting_on().is_empty());
    // Together, the last success first, one at a time.
    w.go(rollback(&[])).expect("taken");
    w.look();
    assert_eq!((w.b.state, w.rolled.as_slice()), (State::RollingBack, &["m3".to_owned()][..]));
    for i in [3, 1, 2, 0] {
        w.back(i, D::Succeeded);
    }
    assert_eq!(w.rolled, ["m3", "m1", "m2", "m0"]);
    assert_eq!(w.b.state, State::RolledBack);
}

#[test]
fn a_failure_holds_the_rest_until_a_person_answers() {
    let mut w = World::new(&[&[], &[], &[0]], OnFailure::Pause, false);
    w.look();
    assert_eq!(w.released, ["m0", "m1"]);
    w.ends(1, D::Failed);
    w.ends(0, D::Succeeded);
    assert_eq!((w.b.state, w.released.len()), (State::Paused, 2), "m2 does not start");
    assert!(w.b.waiting_on().iter().any(|x| matches!(x, WaitingOn::Intervention { member, .. } if member == "m1")));
    w.go(Input::Retry { by: "olga".into(), members: vec![] }).expect("retried");
    w.look();
    assert_eq!(w.b.members[1].earlier, [id(1)]);
    assert_eq!(w.released, ["m0", "m1", "m2"], "m2 goes on while m1 is tried again");
    w.ends(1, D::Failed);
    let skip = Input::Skip { by: "olga".into(), member: "m1".into(), reason: "not today".into() };
    w.go(skip).expect("skipped");
    w.ends(2, D::Succeeded);
    assert_eq!(w.b.state, State::Succeeded);
}

#[test]
fn policies_of_failure_stop_or_go_back_by_themselves() {
    let mut w = World::new(&[&[], &[0], &[1]], OnFailure::Stop, false);
    w.look();
    w.ends(0, D::Succeeded);
    w.ends(1, D::Failed);
    assert_eq!(w.b.state, State::Failed);
    assert_eq!(w.members(), [MemberState::Succeeded, MemberState::Failed, MemberState::Cancelled]);

    let mut w = World::new(&[&[], &[0], &[1]], OnFailure::Rollback, false);
    w.look();
    w.ends(0, D::Succeeded);
    w.ends(1, D::Failed);
    assert_eq!((w.b.state, w.rolled.as_slice()), (State::RollingBack, &["m1".to_owned()][..]));
    w.back(1, D::Succeeded);
    w.back(0, D::Succeeded);
    assert_eq!((w.b.state, w.rolled.as_slice()), (State::RolledBack, &["m1".to_owned(), "m0".to_owned()][..]));
}

#[test]
fn a_rollback_that_fails_stops_the_walk_back() {
    let mut w = World::new(&[&[], &[0]], OnFailure::Pause, false);
    w.look();
    w.ends(0, D::Succeeded);
    w.ends(1, D::Succeeded);
    w.go(rollback(&[])).expect("taken");
    w.look();
    w.back(1, D::Failed);
    assert_eq!((w.b.state, w.members()[1]), (State::RollingBack, MemberState::RollbackFailed));
    assert_eq!(w.rolled, ["m1"], "m0 is left as it is");
    w.go(Input::Retry { by: "olga".into(), members: vec![] }).expect("again");
    w.look();
    w.back(1, D::Succeeded);
    w.back(0, D::Succeeded);
    assert_eq!(w.b.state, State::RolledBack);
}

#[test]
fn one_member_alone_goes_back_and_holds_what_needs_it() {
    let mut w = World::new(&[&[], &[0], &[1]], OnFailure::Pause, false);
    w.look();
    w.ends(0, D::Succeeded);
    w.go(rollback(&["m0"])).expect("taken");
    w.ends(1, D::Succeeded);
    w.back(0, D::Succeeded);
    assert_eq!(w.b.state, State::Paused);
    assert_eq!(w.members()[0], MemberState::RolledBack);
}

#[test]
fn what_a_person_rejects_cancels_or_lets_expire_never_runs() {
    type Make = fn(String) -> Input;
    let ways: [(Make, State); 2] = [
        (|digest| Input::Reject { by: "bob".into(), digest, comment: String::new() }, State::Rejected),
        (|_| Input::Cancel { by: "ann".into(), reason: String::new() }, State::Cancelled),
    ];
    for (make, end) in ways {
        let mut w = World::new(&[&[], &[0]], OnFailure::Pause, true);
        w.go(make(w.b.digest.clone())).expect("taken");
        w.look();
        assert_eq!((w.b.state, w.released.len()), (end, 0));
        assert!(w.d.iter().all(|d| d.1 == D::Cancelled), "{:?}", w.d);
    }
    let w = World::new(&[&[]], OnFailure::Pause, true);
    assert_eq!(w.b.wake_at(), Some(t(3600)));
    let (b, _) = w.b.apply(Input::Tick, t(3600)).expect("tick");
    assert_eq!(b.state, State::Expired);
    // One member that is rejected by itself ends all.
    let mut w = World::new(&[&[], &[]], OnFailure::Pause, true);
    w.ends(0, D::Rejected);
    assert_eq!((w.b.state, w.state(id(1))), (State::Rejected, D::Cancelled));
}

#[test]
fn a_decision_names_the_bundle_it_was_made_on() {
    let mut w = World::new(&[&[]], OnFailure::Pause, true);
    let old = w.b.digest.clone();
    let seen = Seen {
        deployment: id(0),
        state: D::AwaitingApproval,
        needs_person: None,
        digest: "sha256:other".into(),
        touched: false,
        rollback: None,
        end: None,
    };
    w.go(Input::Seen(Box::new(seen))).expect("seen");
    assert_ne!(w.b.digest, old);
    let approve = |digest: &str| Input::Approve {
        by: "bob".into(),
        digest: digest.into(),
        members: vec!["m0".into()],
        comment: String::new(),
    };
    assert_eq!(w.b.apply(approve(&old), t(1)).expect_err("stale").code(), "plan_changed");
    assert!(w.b.apply(approve(&w.b.digest), t(1)).is_ok());
}

#[test]
fn the_digest_holds_order_and_plans() {
    let none: &[String] = &[];
    let needs = ["a".to_owned()];
    let of = |n: &[String], d: &str| Bundle::digest_of([("a", "p", "e", none, "x"), ("b", "p", "f", n, d)].into_iter());
    assert_ne!(of(none, "y"), of(&needs, "y"));
    assert_ne!(of(none, "y"), of(none, "z"));
    assert_eq!(of(&needs, "y"), of(&needs, "y"));
}

#[test]
fn members_that_cannot_be_a_bundle_are_refused_with_the_reason() {
    let none: &[String] = &[];
    let (a, b) = (["b".to_owned()], ["a".to_owned()]);
    let check = |m: Vec<(&str, &str, &str, &[String])>| {
        check_members(m.iter().map(|(n, p, e, w)| (*n, *p, *e, *w))).expect_err("refused")
    };
    assert!(check(vec![]).contains("1 to 50"));
    assert!(check(vec![("a", "p", "e", none), ("a", "q", "e", none)]).contains("twice"));
    assert!(check(vec![("a", "p", "e", none), ("b", "p", "e", none)]).contains("p/e stands twice"));
    assert!(check(vec![("a", "p", "e", &a)]).contains("needs \"b\""));
    assert!(check(vec![("a", "p", "e", &a), ("b", "q", "e", &b)]).contains("circle: a, b"));
    assert!(check(vec![("A b", "p", "e", none)]).contains("a-z"));
}

/// A bundle in each state, and what each verb comes to there.
#[test]
fn every_verb_is_answered_in_every_state() {
    let verbs = ["approve", "reject", "cancel", "pause", "resume", "retry", "skip", "rollback"];
    // Columns as `verbs`: `+` taken, `w` wrong state, `n` nothing to do.
    let wanted = [
        (State::AwaitingApproval, "+++wwwww"),
        (State::Running, "+w++nn++"),
        (State::Paused, "+w++n+++"),
        (State::RollingBack, "wwwwwnin"),
        (State::Succeeded, "wwwwwww+"),
        (State::Failed, "wwwwwww+"),
        (State::RolledBack, "wwwwwwww"),
        (State::Cancelled, "wwwwwww+"),
        (State::Rejected, "wwwwwwww"),
        (State::Expired, "wwwwwwww"),
    ];
    for (state, answers) in wanted {
        let mut w = World::new(&[&[], &[0]], OnFailure::Pause, state == State::AwaitingApproval);
        w.look();
        w.b.state = state;
        w.b.members[0].touched = true;
        match state {
            State::Paused => w.b.members[0].state = MemberState::Failed,
            State::RollingBack => {
                w.b.rollback = Some(RollingBack {
                    by: By { who: "x".into(), reason: String::new(), at: t(0) },
                    mode: RollbackMode::Normal,
                });
                w.b.members[0].state = MemberState::RollingBack;
            }
            State::Succeeded | State::Failed | State::Cancelled => w.b.members[0].state = MemberState::Succeeded,
            _ => {}
        }
        for (verb, answer) in verbs.iter().zip(answers.chars()) {
            let (by, digest, comment, reason) =
                ("bob".to_owned(), w.b.digest.clone(), String::new(), "because".to_owned());
            let member = if state == State::RollingBack { "m0" } else { "m1" }.to_owned();
            let input = match *verb {
                "approve" => Input::Approve { by, digest, comment, members: vec!["m0".into()] },
                "reject" => Input::Reject { by, digest, comment },
                "cancel" => Input::Cancel { by, reason },
                "pause" => Input::Pause { by, reason },
                "resume" => Input::Resume { by },
                "retry" => Input::Retry { by, members: vec![] },
                "skip" => Input::Skip { by, member, reason },
                _ => rollback(&[]),
            };
            let got = match w.b.apply(input, t(1)) {
                Ok(_) => '+',
                Err(e) if e.code() == "wrong_state" => 'w',
                Err(e) if e.code() == "nothing_to_do" => 'n',
                Err(_) => 'i',
            };
            if state == State::RollingBack && *verb == "skip" {
                assert_ne!(got, '+', "a member that goes back is not skipped");
                continue;
            }
            assert_eq!(got, answer, "{verb} when {state:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens, it ends or says what it waits for; nothing starts before what it needs (checked in `carry`).
    #[test]
    fn it_ends_or_says_what_it_waits_for(
        size in 1usize..6,
        edges in proptest::collection::vec((0usize..6, 0usize..6), 0..8),
        policy in 0u8..3,
        moves in proptest::collection::vec((0u8..12, 0usize..6), 0..60),
    ) {
        let needs: Vec<Vec<usize>> = (0..size)
            .map(|i| {
                let mut n: Vec<usize> = edges.iter().filter(|(a, b)| *b == i && *a < i).map(|(a, _)| *a).collect();
                n.dedup();
                n
            })
            .collect();
        let needs: Vec<&[usize]> = needs.iter().map(Vec::as_slice).collect();
        let on_failure = [OnFailure::Pause, OnFailure::Stop, OnFailure::Rollback][policy as usize];
        let mut w = World::new(&needs, on_failure, policy == 0);
        w.approve_all();
        for (verb, i) in moves {
            let i = i % size;
            let m = w.b.members[i].clone();
            let state = w.state(m.deployment);
            let (by, reason) = ("olga".to_owned(), "r".to_owned());
            match verb {
                0..=2 if state.is_active() => w.ends(i, D::Succeeded),
                3 if state.is_active() => w.ends(i, D::Failed),
                4 if state == D::Running => w.ends(i, D::Paused),
                5 => drop(w.go(Input::Retry { by, members: vec![m.name] })),
                6 => drop(w.go(Input::Skip { by, member: m.name, reason })),
                7 => drop(w.go(rollback(&[]))),
                8 => drop(w.go(rollback(&[m.name.as_str()]))),
                9 => drop(w.go(Input::Pause { by, reason })),
                10 => drop(w.go(Input::Resume { by })),
                11 => drop(w.go(Input::Cancel { by, reason })),
                _ => {}
            }
            w.look();
            if m.state == MemberState::RollingBack {
                w.back(i, if verb == 3 { D::Failed } else { D::Succeeded });
            }
            prop_assert_eq!(w.b.state.is_terminal(), w.b.waiting_on().is_empty(), "{:#?}", w.b);
            prop_assert_eq!(w.b.state.is_terminal(), w.b.ended_at.is_some());
        }
    }
}
