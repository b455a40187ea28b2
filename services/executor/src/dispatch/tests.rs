//! Decisions on small boards.

use super::*;
use windlass_domain::task::ReportedOutcome;

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
        (
            Board {
                wave,
                steps: BTreeMap::new(),
                carried: BTreeMap::new(),
                tasks: BTreeMap::new(),
                closed: BTreeMap::new(),
            },
            new,
        )
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
    new[0].blocked = Some("host h0 has no agent".into());
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
