//! Crashes: of the agent, of the runner; and what a new agent makes of it.

use crate::control::{Control, script, step, wait_for};
use serde_json::json;
use windlass_contracts::frames::{DownBody, OpenState, UpBody};
use windlass_domain::task::{ReportedOutcome, StepOutcome};

/// Appends to a file, then waits for another to appear.
/// Ends with the test's directory too: after its runner was killed nobody else would stop it.
fn waits(dir: &std::path::Path) -> windlass_domain::task::TaskStep {
    let run = "echo start >> \"$1/starts\"; while [ -d \"$1\" ] && ! [ -e \"$1/go\" ]; do sleep 0.05; done; echo done";
    step("wait", "script", json!({ "run": run, "args": [dir.display().to_string()] }))
}
fn starts(dir: &std::path::Path) -> usize {
    std::fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_killed_agent_leaves_its_runner_and_the_next_one_adopts_it() {
    let mut c = Control::started().await;
    let dir = c.dir.path().to_owned();
    let offer = c.offer_of(vec![waits(&dir), script("after", "echo after")]);
    let task = c.begin(&offer).await;
    wait_for("the step's start", || (starts(&dir) == 1).then_some(())).await;
    c.kill_agent();
    let hello = c.start_agent().await;
    assert_eq!(hello.open.iter().map(|o| (o.task, o.state)).collect::<Vec<_>>(), [(task, OpenState::Running)]);
    // The executor repeats itself; the agent must not.
    c.send(DownBody::Offer(Box::new(offer))).await;
    c.next("STARTED", |b| matches!(b, UpBody::Started { .. }).then_some(())).await;
    std::fs::write(dir.join("go"), "").expect("writes");
    let ran = c.end(task).await;
    assert_eq!(ran.report.outcome, ReportedOutcome::Succeeded);
    assert_eq!(ran.text(), "done\nafter\n");
    assert_eq!(starts(&dir), 1);
}

#[tokio::test]
async fn a_task_that_ends_while_the_agent_is_away_is_reported_once_it_is_back() {
    let mut c = Control::started().await;
    let dir = c.dir.path().to_owned();
    let offer = c.offer_of(vec![waits(&dir)]);
    let task = c.begin(&offer).await;
    wait_for("the step's start", || (starts(&dir) == 1).then_some(())).await;
    c.kill_agent();
    std::fs::write(dir.join("go"), "").expect("writes");
    wait_for("the runner's end", || c.task_dir(task).join("exit.json").exists().then_some(())).await;
    c.ack_results = false;
    c.start_agent().await;
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Succeeded);
    // Unacknowledged, it comes again, also from yet another process.
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Succeeded);
    c.kill_agent();
    c.start_agent().await;
    c.ack_results = true;
    assert_eq!(c.end(task).await.text(), "done\n");
    assert_eq!(starts(&dir), 1);
    let task_dir = c.task_dir(task);
    c.until("the end of the task's directory", |_| (!task_dir.exists()).then_some(())).await;
    c.kill_agent();
    let hello = c.start_agent().await;
    assert!(hello.open.is_empty(), "{:?}", hello.open);
}

#[tokio::test]
async fn a_killed_runner_is_interrupted_and_never_started_again() {
    let mut c = Control::started().await;
    let dir = c.dir.path().to_owned();
    let offer = c.offer_of(vec![script("first", "echo one"), waits(&dir)]);
    let task = c.begin(&offer).await;
    wait_for("the step's start", || (starts(&dir) == 1).then_some(())).await;
    let pid = std::fs::read_to_string(c.task_dir(task).join("pid")).expect("pid");
    let pid = pid.split(' ').next().and_then(|p| p.parse().ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.expect("pid"), rustix::process::Signal::KILL).expect("kills");
    let report = c.result(task).await;
    assert_eq!(report.outcome, ReportedOutcome::Interrupted);
    assert_eq!(report.steps.iter().map(|s| s.outcome).collect::<Vec<_>>(), [StepOutcome::Succeeded]);
    c.send(DownBody::Offer(Box::new(offer))).await;
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Interrupted);
    std::fs::write(dir.join("go"), "").expect("writes");
    assert_eq!(starts(&dir), 1);
}

#[tokio::test]
async fn the_broker_may_go_and_come_back() {
    let mut c = Control::started().await;
    let dir = c.dir.path().to_owned();
    let offer = c.offer_of(vec![waits(&dir)]);
    let task = c.begin(&offer).await;
    wait_for("the step's start", || (starts(&dir) == 1).then_some(())).await;
    c.nats.kill();
    std::fs::write(dir.join("go"), "").expect("writes");
    wait_for("the runner's end", || c.task_dir(task).join("exit.json").exists().then_some(())).await;
    c.hello = None;
    c.nats.restart().await;
    c.until("HELLO after the reconnect", |c| c.hello.clone()).await;
    assert_eq!(c.end(task).await.text(), "done\n");
}

#[tokio::test]
async fn one_state_directory_serves_one_agent() {
    let c = Control::started().await;
    let second = c.command().stderr(std::process::Stdio::piped()).output().expect("runs");
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another agent runs on the state directory"), "{said}");
}

#[tokio::test]
async fn a_damaged_journal_keeps_the_agent_from_starting() {
    let mut c = Control::started().await;
    c.run(vec![script("s", "true")]).await;
    c.kill_agent();
    let journal = c.state().join("journal");
    let mut bytes = std::fs::read(&journal).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&journal, bytes).expect("writes");
    let out = c.command().stderr(std::process::Stdio::piped()).output().expect("runs");
    assert!(!out.status.success());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("is damaged at byte"), "{said}");
}
