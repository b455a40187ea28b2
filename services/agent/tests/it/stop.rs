//! Ends: aborts, timeouts, daemons, floods of output.

use crate::control::{Control, processes_with, script, step, wait_for};
use serde_json::json;
use windlass_contracts::frames::DownBody;
use windlass_domain::task::{ReportedOutcome, StepOutcome, TaskStep};

/// Ignores TERM, forks twice into sessions of its own, and closes its pipes.
const STUBBORN: &str = "trap '' TERM HUP INT
(trap '' TERM; setsid bash -c 'trap \"\" TERM; setsid sleep \"$0\" >/dev/null 2>&1 </dev/null & sleep \"$0\"' \"$1\" >/dev/null 2>&1 </dev/null &)
echo ready
while true; do sleep \"$1\"; done";

fn stubborn(token: &str, timeout_s: u32) -> TaskStep {
    TaskStep { timeout_s, ..step("stubborn", "script", json!({ "run": STUBBORN, "args": [token] })) }
}

/// A duration no other process sleeps for.
fn token() -> String {
    format!("9{}.{}", std::process::id(), rand::random_range(100_000..999_999))
}

fn grace(c: &Control, seconds: f64) {
    std::fs::write(c.state().join("agent.yaml"), format!("grace_s: {seconds}\n")).expect("writes");
}

#[tokio::test]
async fn an_abort_leaves_no_process_whatever_it_did() {
    let mut c = Control::new().await;
    grace(&c, 0.3);
    c.start_agent().await;
    let token = token();
    let clean = TaskStep { always: true, ..script("clean", "echo cleaned") };
    let offer = c.offer_of(vec![stubborn(&token, 60), script("never", "echo never"), clean]);
    let task = c.begin(&offer).await;
    wait_for("its three sleepers", || (processes_with(&format!("sleep {token}")).len() >= 3).then_some(())).await;
    c.send(DownBody::Fence { task, work: offer.work, epoch: 1 }).await;
    let ran = c.end(task).await;
    assert_eq!(processes_with(&token), Vec::<i32>::new());
    assert_eq!(ran.report.outcome, ReportedOutcome::Cancelled);
    let outcomes: Vec<_> = ran.report.steps.iter().map(|s| s.outcome).collect();
    assert_eq!(outcomes, [StepOutcome::Cancelled, StepOutcome::Skipped, StepOutcome::Succeeded]);
    assert_eq!(ran.text(), "ready\ncleaned\n");
}

#[tokio::test]
async fn an_abort_reaches_a_runner_through_a_new_agent() {
    let mut c = Control::new().await;
    grace(&c, 0.2);
    c.start_agent().await;
    let token = token();
    let offer = c.offer_of(vec![stubborn(&token, 60)]);
    let task = c.begin(&offer).await;
    wait_for("its sleepers", || (processes_with(&format!("sleep {token}")).len() >= 3).then_some(())).await;
    c.kill_agent();
    c.start_agent().await;
    c.send(DownBody::Fence { task, work: offer.work, epoch: 1 }).await;
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Cancelled);
    assert_eq!(processes_with(&token), Vec::<i32>::new());
}

#[tokio::test]
async fn a_step_over_its_time_is_stopped_and_the_clean_up_runs() {
    let mut c = Control::new().await;
    grace(&c, 0.1);
    c.start_agent().await;
    let token = token();
    let clean = TaskStep { always: true, ..script("clean", "echo cleaned") };
    let ran = c.run(vec![stubborn(&token, 1), script("never", "echo never"), clean]).await;
    assert_eq!(processes_with(&token), Vec::<i32>::new());
    assert_eq!(ran.report.outcome, ReportedOutcome::Failed);
    let outcomes: Vec<_> = ran.report.steps.iter().map(|s| s.outcome).collect();
    assert_eq!(outcomes, [StepOutcome::TimedOut, StepOutcome::Skipped, StepOutcome::Succeeded]);
}

#[tokio::test]
async fn a_daemon_of_a_step_that_went_well_is_counted_and_left_alone() {
    let mut c = Control::new().await;
    grace(&c, 0.1);
    c.start_agent().await;
    let (daemon, stubborn_token) = (token(), token());
    let run = "setsid sleep \"$1\" & echo started";
    let offer = c.offer_of(vec![
        step("daemon", "script", json!({ "run": run, "args": [daemon] })),
        stubborn(&stubborn_token, 60),
    ]);
    let task = c.begin(&offer).await;
    let sleeper = format!("sleep {stubborn_token}");
    wait_for("the second step", || (processes_with(&sleeper).len() >= 3).then_some(())).await;
    c.send(DownBody::Fence { task, work: offer.work, epoch: 1 }).await;
    let report = c.result(task).await;
    assert_eq!(report.steps[0].left_processes, 1);
    assert_eq!(report.outcome, ReportedOutcome::Cancelled);
    assert_eq!(processes_with(&stubborn_token), Vec::<i32>::new());
    let left = processes_with(&format!("sleep {daemon}"));
    assert_eq!(left.len(), 1, "the service that the first step started still serves");
    for pid in left {
        let pid = rustix::process::Pid::from_raw(pid).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kills");
    }
}

#[tokio::test]
async fn two_hundred_megabytes_of_output_are_bounded_and_counted() {
    let mut c = Control::started().await;
    let offer = c.offer_of(vec![script("flood", "echo first; yes flood | head -c 200000000; echo last")]);
    let task = c.begin(&offer).await;
    let mut most = 0;
    let dir = c.task_dir(task).join("log");
    let report = c
        .next("RESULT", |b| match b {
            windlass_contracts::frames::UpBody::Result { report, .. } => Some(report.clone()),
            _ => None,
        })
        .await;
    for e in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        most += e.metadata().map_or(0, |m| m.len());
    }
    assert_eq!(report.outcome, ReportedOutcome::Succeeded);
    assert_eq!(report.log_bytes, 200_000_000 + 6 + 5);
    assert!(most <= 18 << 20, "{most} bytes on disk");
    let frames = report.log_frames;
    c.until("the whole log", |c| (c.logs.len() as u64 >= frames).then_some(())).await;
    use base64::{Engine, engine::general_purpose::STANDARD};
    let data = |f: &windlass_contracts::frames::LogFrame| STANDARD.decode(&f.data).expect("base64");
    let notes = |f: &&windlass_contracts::frames::LogFrame| f.stream != windlass_contracts::frames::Stream::Note;
    let got: u64 = c.logs.iter().filter(notes).map(|f| data(f).len() as u64).sum();
    assert_eq!(c.logs.len() as u64, frames);
    assert_eq!(got + report.log_dropped, report.log_bytes, "every byte is kept or counted");
    assert!(report.log_dropped > 100_000_000);
    let all: Vec<u8> = c.logs.iter().filter(notes).flat_map(data).collect();
    assert!(all.starts_with(b"first\nflood\n") && all.ends_with(b"last\n"));
}

#[tokio::test]
async fn any_bytes_are_output() {
    let mut c = Control::started().await;
    let run = "printf 'a\\0b\\377\\376\\n'; printf '\\033[31mred\\033[0m' >&2; head -c 100000 /dev/zero";
    let ran = c.run(vec![script("bytes", run)]).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded);
    assert_eq!(ran.out.len(), 6 + 12 + 100_000);
    assert!(ran.out.windows(6).any(|w| w == b"a\0b\xff\xfe\n"));
}
