//! Decisions on small boards.

use super::*;
use windlass_domain::{
    task::ReportedOutcome,
    work::{Stagger, WorkResult},
};

fn now() -> Timestamp {
    "2026-11-21T00:00:00Z".parse().expect("time")
}

fn board(hosts: usize, parallel: u32, max_failures: u32) -> (Board, Vec<NewTask>) {
    let hosts: Vec<WaveHost> =
        (0..hosts).map(|i| WaveHost { host: format!("h{i}"), attempt: 1, start_at: 0 }).collect();
    let new = hosts
        .iter()
        .map(|h| NewTask {
            stored: StoredTask {
                work: uuid::Uuid::nil().into(),
                deployment: uuid::Uuid::nil().into(),
                step: "roll".into(),
                segment: 0,
                version: 1,
                task: fresh(uuid::Uuid::now_v7().into(), h, None),
            },
            blocked: None,
            stopped: None,
        })
        .collect();
    {
        let wave = WaveWork {
            stagger: None,
            again: false,
            outputs: Default::default(),
            step: "roll".into(),
            wave: 0,
            hosts,
            parallel,
            max_failures,
        };
        (Board::new(wave, 0, BTreeMap::new()), new)
    }
}

fn commit(board: &mut Board, d: &Decision) {
    board.tasks.extend(d.inserted.clone());
    for (id, (row, task)) in &d.changed {
        board.tasks.insert(*id, StoredTask { task: task.clone(), version: row.version + 1, ..row.clone() });
    }
}

fn turn(board: &mut Board, desired: Desired, inputs: Vec<Input>, new: Vec<NewTask>) -> Decision {
    let d = decide(board, desired, now(), inputs, new);
    commit(board, &d);
    d
}

fn said(task: TaskId, say: Say) -> Input {
    Input::Said { task, instance: "i".into(), say }
}

fn report(outcome: ReportedOutcome) -> Say {
    Say::Result(TaskReport { outcome, steps: vec![], log_bytes: 0, log_dropped: 0, log_frames: 0 })
}

fn states(board: &Board) -> Vec<TaskState> {
    board
        .wave
        .hosts
        .iter()
        .map(|h| board.tasks.values().find(|t| t.task.host == h.host).expect("task").task.state)
        .collect()
}

fn id(board: &Board, host: usize) -> TaskId {
    board.tasks.values().find(|t| t.task.host == format!("h{host}")).expect("task").task.id
}

#[test]
fn parallel_and_budget_hold() {
    use TaskState::*;
    let (mut b, new) = board(4, 2, 0);
    turn(&mut b, Desired::Run, vec![], new);
    assert_eq!(states(&b), [Offered, Offered, Pending, Pending]);
    let (h0, h1) = (id(&b, 0), id(&b, 1));
    turn(&mut b, Desired::Run, vec![said(h0, Say::Accept { nonce: "n".into(), seal_to: None })], vec![]);
    assert_eq!(states(&b), [Granted, Offered, Pending, Pending]);
    // The failure and the accept come in one batch: the failure counts first, so h1 is not granted.
    let batch =
        vec![said(h1, Say::Accept { nonce: "m".into(), seal_to: None }), said(h0, report(ReportedOutcome::Failed))];
    let d = turn(&mut b, Desired::Run, batch, vec![]);
    assert_eq!(states(&b), [Failed, NotStarted, NotStarted, NotStarted]);
    assert!(!d.frames.iter().any(|(_, f)| *f == Frame::Grant));
    let Some(WorkResult::Wave { hosts }) = result(&b, &[]) else { panic!("settled") };
    use Outcome as O;
    assert_eq!(
        hosts.iter().map(|h| h.outcome).collect::<Vec<_>>(),
        [O::Failed, O::AutoStopped, O::AutoStopped, O::AutoStopped]
    );
}

#[test]
fn an_abort_grants_nothing_and_withdraws_the_ungranted() {
    use TaskState::*;
    let (mut b, new) = board(3, 2, 3);
    turn(&mut b, Desired::Run, vec![], new);
    let (h0, h1) = (id(&b, 0), id(&b, 1));
    turn(&mut b, Desired::Run, vec![said(h0, Say::Accept { nonce: "n".into(), seal_to: None })], vec![]);
    let d = turn(&mut b, Desired::Abort, vec![said(h1, Say::Accept { nonce: "m".into(), seal_to: None })], vec![]);
    assert_eq!(states(&b), [Granted, NotStarted, NotStarted]);
    assert_eq!(d.frames, [(h1, Frame::Fence)], "h1's agent is told to forget the offer");
    assert!(result(&b, &[]).is_none(), "a granted host is waited for");
    turn(&mut b, Desired::Abort, vec![said(h0, report(ReportedOutcome::Cancelled))], vec![]);
    assert_eq!(states(&b), [Cancelled, NotStarted, NotStarted]);
    assert!(result(&b, &[]).is_some());
}

#[test]
fn hosts_that_cannot_be_started_count_as_failed() {
    use TaskState::*;
    let (mut b, mut new) = board(3, 1, 0);
    new[0].blocked = Some((FailureClass::Unreachable, "host h0 has no agent".into()));
    turn(&mut b, Desired::Run, vec![], new);
    assert_eq!(states(&b), [NotStarted, NotStarted, NotStarted]);
    let (mut b, new) = board(2, 1, 1);
    turn(&mut b, Desired::Run, vec![], new);
    let h0 = id(&b, 0);
    let busy = Say::Refuse { code: RefuseCode::Busy, detail: "later".into() };
    turn(&mut b, Desired::Run, vec![said(h0, busy)], vec![]);
    assert_eq!(states(&b), [Offered, Pending]);
    let no = Say::Refuse { code: RefuseCode::Policy, detail: "not here".into() };
    turn(&mut b, Desired::Run, vec![said(h0, no)], vec![]);
    assert_eq!(states(&b), [NotStarted, Offered], "one failure is allowed, the next host is offered");
}

#[test]
fn what_a_host_did_in_a_lost_history_is_unknown_and_no_later_report_settles_it() {
    let known = Say::Refuse { code: RefuseCode::Known, detail: "attempt 1 is known here".into() };
    for say in [known, Say::Started, report(ReportedOutcome::Succeeded), report(ReportedOutcome::Failed)] {
        let (mut b, new) = board(1, 0, 0);
        turn(&mut b, Desired::Run, vec![], new);
        let h0 = id(&b, 0);
        turn(&mut b, Desired::Run, vec![said(h0, say.clone())], vec![]);
        assert_eq!(states(&b), [TaskState::Unknown], "{say:?}");
        turn(&mut b, Desired::Run, vec![said(h0, report(ReportedOutcome::Succeeded))], vec![]);
        assert_eq!(states(&b), [TaskState::Unknown], "nobody here granted it");
    }
}

#[test]
fn every_report_of_a_settled_task_is_acknowledged_again() {
    let (mut b, new) = board(1, 0, 0);
    turn(&mut b, Desired::Run, vec![], new);
    let h0 = id(&b, 0);
    turn(&mut b, Desired::Run, vec![said(h0, Say::Accept { nonce: "n".into(), seal_to: None })], vec![]);
    for _ in 0..2 {
        let d = turn(&mut b, Desired::Run, vec![said(h0, report(ReportedOutcome::Succeeded))], vec![]);
        assert_eq!(d.frames, [(h0, Frame::ResultAck)]);
    }
    assert_eq!(states(&b), [TaskState::Succeeded]);
}

#[test]
fn a_closed_host_waits_and_does_not_hold_up_the_others() {
    let (mut board, new) = self::board(3, 1, 0);
    board.closed.insert("h0".into(), "locked".into());
    let d = decide(&board, Desired::Run, now(), vec![], new);
    let offered: Vec<&str> =
        d.inserted.values().filter(|t| t.task.state == TaskState::Offered).map(|t| t.task.host.as_str()).collect();
    assert_eq!(offered, ["h1"], "the next one in order takes its place");
    assert_eq!(d.inserted.values().find(|t| t.task.host == "h0").expect("h0").task.state, TaskState::Pending);
}

fn accept_of(task: TaskId) -> Input {
    said(task, Say::Accept { nonce: "n".into(), seal_to: None })
}

#[test]
fn in_a_pause_nothing_is_offered_or_granted() {
    use TaskState::*;
    let (mut b, new) = board(4, 2, 0);
    turn(&mut b, Desired::Run, vec![], new);
    let (h0, h1) = (id(&b, 0), id(&b, 1));
    turn(&mut b, Desired::Run, vec![accept_of(h0)], vec![]);
    let d = turn(&mut b, Desired::Hold, vec![accept_of(h1), accept_of(h0)], vec![]);
    assert_eq!((states(&b), d.frames.len()), (vec![Granted, Offered, Pending, Pending], 0));
    turn(&mut b, Desired::Hold, vec![said(h0, report(ReportedOutcome::Succeeded))], vec![]);
    assert_eq!(
        states(&b),
        [Succeeded, Offered, Pending, Pending],
        "what was granted goes on, and gives its place to nobody"
    );
    turn(&mut b, Desired::Run, vec![accept_of(h1)], vec![]);
    assert_eq!(states(&b), [Succeeded, Granted, Offered, Pending]);
}

#[test]
fn whom_a_person_stops_does_not_count_and_never_starts() {
    use TaskState::*;
    let by = |why: &str| By { who: "ann".into(), reason: why.into(), at: now() };
    let (mut b, new) = board(4, 2, 0);
    turn(&mut b, Desired::Run, vec![], new);
    let ids: Vec<TaskId> = (0..4).map(|i| id(&b, i)).collect();
    turn(&mut b, Desired::Run, vec![accept_of(ids[0])], vec![]);
    let stops = |i: usize| Input::Stop { task: ids[i], by: by("disk") };
    let d = turn(&mut b, Desired::Run, vec![stops(0), stops(1), stops(2)], vec![]);
    assert_eq!(states(&b), [Granted, NotStarted, NotStarted, Offered], "the budget of none is not used up");
    assert!(d.frames.contains(&(ids[0], Frame::Fence)) && d.frames.contains(&(ids[1], Frame::Fence)));
    let d = turn(&mut b, Desired::Run, vec![accept_of(ids[0]), accept_of(ids[1])], vec![]);
    assert!(!d.frames.iter().any(|(_, f)| *f == Frame::Grant), "{:?}", d.frames);
    turn(&mut b, Desired::Run, vec![said(ids[0], report(ReportedOutcome::Cancelled)), accept_of(ids[3])], vec![]);
    turn(&mut b, Desired::Run, vec![said(ids[3], report(ReportedOutcome::Succeeded))], vec![]);
    let Some(WorkResult::Wave { hosts }) = result(&b, &[]) else { panic!("settled") };
    let class = Some(FailureClass::Stopped);
    assert_eq!(hosts.iter().map(|h| h.class).collect::<Vec<_>>(), [class, class, class, None]);
    assert!(hosts[..3].iter().all(|h| h.reason.as_deref() == Some("stopped by ann: disk")), "{hosts:?}");
}

#[test]
fn a_stagger_spreads_the_starts() {
    let (mut b, new) = board(3, 0, 0);
    let stagger = Stagger { every_s: 10, jitter_s: 0 };
    b.pace = Some(Pace::of("w", now(), &b.wave.hosts, stagger));
    let at = |s: i64| now() + chrono::TimeDelta::seconds(s);
    let look = |b: &mut Board, s: i64, new: Vec<NewTask>| {
        let d = decide(b, Desired::Run, at(s), vec![], new);
        commit(b, &d);
        states(b).into_iter().filter(|s| *s == TaskState::Offered).count()
    };
    assert_eq!(look(&mut b, 0, new), 1);
    assert_eq!((look(&mut b, 9, vec![]), b.next_start()), (1, Some(at(10))));
    assert_eq!((look(&mut b, 10, vec![]), b.next_start()), (2, Some(at(20))));
    // Late: the plan's time has passed long ago, the others do not start together for that.
    let (mut b, new) = board(3, 0, 0);
    b.pace = Some(Pace::of("w", now(), &b.wave.hosts, stagger));
    assert_eq!((look(&mut b, 100, new), look(&mut b, 109, vec![]), look(&mut b, 110, vec![])), (1, 1, 2));
}

fn told(task: TaskId, state: TrafficState) -> Input {
    Input::Traffic(Told { task, state, reason: None })
}

fn traffic(b: &Board, host: usize) -> Option<TrafficState> {
    b.tasks.get(&id(b, host)).and_then(|t| t.task.traffic.as_ref()).map(|t| t.state)
}

#[test]
fn a_host_is_off_before_its_task_and_back_after_it() {
    use TaskState::*;
    use TrafficState as T;
    let (mut b, new) = board(3, 1, 3);
    b.drains = true;
    let d = turn(&mut b, Desired::Run, vec![], new);
    assert_eq!((states(&b), d.frames.len(), traffic(&b, 0)), (vec![Pending; 3], 0, Some(T::Draining)));
    let ids: Vec<TaskId> = (0..3).map(|i| id(&b, i)).collect();
    let d = turn(&mut b, Desired::Run, vec![told(ids[0], T::Drained)], vec![]);
    assert_eq!(d.frames, [(ids[0], Frame::Offer)]);
    turn(&mut b, Desired::Run, vec![accept_of(ids[0])], vec![]);
    turn(&mut b, Desired::Run, vec![said(ids[0], report(ReportedOutcome::Failed))], vec![]);
    assert_eq!((states(&b)[0], traffic(&b, 0)), (Failed, Some(T::Attaching)));
    assert_eq!(traffic(&b, 1), None, "one at a time, until it is back");
    assert!(result(&b, &[]).is_none());
    turn(&mut b, Desired::Run, vec![told(ids[0], T::Attached)], vec![]);
    // The second one cannot be taken off, the third is caught by an abort while it is being taken off.
    assert_eq!(traffic(&b, 1), Some(T::Draining));
    turn(&mut b, Desired::Run, vec![told(ids[1], T::DrainFailed)], vec![]);
    assert_eq!((states(&b)[1], traffic(&b, 2)), (NotStarted, None));
    turn(&mut b, Desired::Run, vec![told(ids[1], T::Attached)], vec![]);
    assert_eq!(traffic(&b, 2), Some(T::Draining));
    turn(&mut b, Desired::Abort, vec![], vec![]);
    assert_eq!((states(&b)[2], traffic(&b, 2)), (NotStarted, Some(T::Attaching)));
    assert!(result(&b, &[]).is_none(), "the last one is not back yet");
    turn(&mut b, Desired::Abort, vec![told(ids[2], T::AttachFailed)], vec![]);
    let Some(WorkResult::Wave { hosts }) = result(&b, &[]) else { panic!("settled") };
    use FailureClass::{Exit, Traffic};
    let ends: Vec<_> = hosts.iter().map(|h| (h.outcome, h.class)).collect();
    use Outcome as O;
    assert_eq!(ends, [(O::Failed, Some(Exit)), (O::NotStarted, Some(Traffic)), (O::Failed, Some(Traffic))]);
}

#[test]
fn failures_have_a_class() {
    use windlass_domain::task::StepOutcome;
    let step = |index, outcome, exit_code| StepReport {
        index,
        outcome,
        exit_code,
        started_at: now(),
        ended_at: now(),
        message: String::new(),
        left_processes: 0,
        outputs: Default::default(),
    };
    let one = |index, outcome| {
        let (mut b, new) = board(1, 0, 0);
        b.steps.insert("h0".into(), Arc::new(vec!["fetch".into(), "restart".into()]));
        b.artifact_steps.insert("fetch".into());
        turn(&mut b, Desired::Run, vec![], new);
        let h0 = id(&b, 0);
        turn(&mut b, Desired::Run, vec![accept_of(h0)], vec![]);
        let mut steps = vec![step(0, StepOutcome::Succeeded, None); index as usize];
        steps.push(step(index, outcome, Some(75)));
        let report =
            TaskReport { outcome: ReportedOutcome::Failed, steps, log_bytes: 0, log_dropped: 0, log_frames: 0 };
        turn(&mut b, Desired::Run, vec![said(h0, Say::Result(report))], vec![]);
        let Some(WorkResult::Wave { hosts }) = result(&b, &[]) else { panic!("settled") };
        (hosts[0].class, hosts[0].failed_id.clone(), hosts[0].exit_code)
    };
    let failed = |class, id: &str| (Some(class), Some(id.to_owned()), Some(75));
    assert_eq!(one(0, StepOutcome::Failed), failed(FailureClass::Artifact, "fetch"));
    assert_eq!(one(1, StepOutcome::Failed), failed(FailureClass::Exit, "restart"));
    assert_eq!(one(0, StepOutcome::TimedOut), failed(FailureClass::Timeout, "fetch"));
}
