//! Bytes that were once sent must be read for ever. A difference here is a broken contract: the remedy is to change the code
//! so that the file still reads and is written as before, never to change the file. New shapes get new files
//! (`WINDLASS_UPDATE_GOLDEN=1` writes those that do not exist, and only those).

use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, path::PathBuf};
use uuid::Uuid;
use windlass_contracts::{
    command::{CommandOutcome, Request, Verb},
    envelope::CloudEvent,
    frames::{Down, DownBody, Hello, LogFrame, Offer, OpenState, OpenTask, RefuseCode, Stream, Up, UpBody},
};
use windlass_domain::{
    approval::{Approval, Decision},
    event::{Event, Severity},
    plan::{PlanDigest, SpecProof},
    release::{ReleaseKind, RollbackMode},
    task::{ReportedOutcome, StepOutcome, StepReport, TaskReport, TaskSpec, TaskStep},
    work::{CentralWork, HostResult, Outcome, WaveHost, WaveWork, WorkResult, WorkSpec},
};

fn golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(value).expect("serializes") + "\n";
    if !path.exists() && std::env::var_os("WINDLASS_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(text, stored, "{name} is written differently than it once was");
    assert_eq!(*value, serde_json::from_str(&stored).expect("still reads"), "{name} reads differently");
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}
fn at() -> windlass_domain::Timestamp {
    "2026-11-21T02:03:04.000005Z".parse().expect("time")
}

fn approval() -> Approval {
    Approval {
        deployment: id(1).into(),
        plan_digest: "sha256:aa".into(),
        person: "bob".into(),
        decision: Decision::Approve,
        comment: "fine".into(),
        at: at(),
        signature: "c2ln".into(),
    }
}

fn step_report() -> StepReport {
    StepReport {
        outputs: Default::default(),
        index: 3,
        outcome: StepOutcome::Failed,
        exit_code: Some(7),
        started_at: at(),
        ended_at: at(),
        message: "exit 7".into(),
        left_processes: 1,
    }
}

#[test]
fn frames_to_agents() {
    let spec = TaskSpec {
        project: "shop".into(),
        environment: "beta".into(),
        version: "1.0".into(),
        host: "h1".into(),
        step: "rollout".into(),
        segment: 0,
        steps: vec![TaskStep {
            id: "go".into(),
            action: "script".into(),
            with: serde_json::from_str(r#"{"run":"true"}"#).expect("map"),
            always: false,
            timeout_s: 60,
        }],
    };
    let proof = SpecProof {
        digest: PlanDigest { digest: "sha256:aa".into(), body: "bb".into(), root: "cc".into(), leaves: 1 },
        index: 0,
        path: vec!["dd".into()],
    };
    let offer = Offer {
        outputs: Default::default(),
        task: id(2).into(),
        work: id(3).into(),
        deployment: id(1).into(),
        attempt: 1,
        epoch: 4,
        fence: 5,
        start_at: 0,
        spec,
        proof,
        approvals: vec![approval()],
        not_after: at(),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    };
    let down = |body| Down { aud: id(9).into(), instance: Some("inst".into()), body };
    golden("down-offer-v1", &down(DownBody::Offer(Box::new(offer))));
    golden(
        "down-grant-v1",
        &down(DownBody::Grant { secrets: None, task: id(2).into(), nonce: "ab".into(), epoch: 4, lease_s: 10 }),
    );
    golden("down-fence-v1", &down(DownBody::Fence { task: id(2).into(), work: id(3).into(), epoch: 4 }));
    golden("down-result-ack-v1", &down(DownBody::ResultAck { task: id(2).into() }));
    golden("down-log-ack-v1", &down(DownBody::LogAck { task: id(2).into(), seq: 6, window: 1_048_576 }));
    golden("down-who-are-you-v1", &down(DownBody::WhoAreYou { challenge: None }));
    golden("down-who-are-you-v2", &down(DownBody::WhoAreYou { challenge: Some("c0ffee".into()) }));
}

/// An agent of the version before knows no challenge, and still says HELLO.
#[test]
fn a_challenge_is_understood_by_who_does_not_know_of_it() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(tag = "t", rename_all = "snake_case")]
    enum Former {
        WhoAreYou,
    }
    let asked = serde_json::to_string(&DownBody::WhoAreYou { challenge: Some("c0ffee".into()) }).expect("json");
    assert_eq!(serde_json::from_str::<Former>(&asked).expect("reads"), Former::WhoAreYou);
}

#[test]
fn frames_from_agents() {
    let up = |body| Up { agent: id(9).into(), instance: "inst".into(), body };
    let hello = Hello {
        boot_id: "boot".into(),
        journal_seq: 12,
        version: "0.1.0".into(),
        open: vec![OpenTask { task: id(2).into(), state: OpenState::Running }],
        facts: serde_json::json!({ "os": "linux" }),
        answers: None,
    };
    golden("up-hello-v1", &up(UpBody::Hello(hello.clone())));
    golden("up-hello-v2", &up(UpBody::Hello(Hello { answers: Some("c0ffee".into()), ..hello })));
    golden("up-heartbeat-v1", &up(UpBody::Heartbeat { journal_seq: 12, running: vec![id(2).into()], current: None }));
    golden(
        "up-accept-v1",
        &up(UpBody::Accept { seal_to: None, task: id(2).into(), nonce: "ab".into(), journal_seq: 13 }),
    );
    let refuse = UpBody::Refuse { task: id(2).into(), code: RefuseCode::Policy, detail: "no".into() };
    golden("up-refuse-v1", &up(refuse));
    golden("up-started-v1", &up(UpBody::Started { task: id(2).into() }));
    golden("up-step-v1", &up(UpBody::Step { task: id(2).into(), report: step_report() }));
    let report = TaskReport {
        outcome: ReportedOutcome::Failed,
        steps: vec![step_report()],
        log_bytes: 10,
        log_dropped: 0,
        log_frames: 1,
    };
    golden("up-result-v1", &up(UpBody::Result { task: id(2).into(), report }));
    let log =
        LogFrame { task: id(2).into(), seq: 0, step: 1, stream: Stream::Err, at: at(), data: "aGk=".into(), crc: 7 };
    golden("up-log-v1", &up(UpBody::Log(log.clone())));
    golden("up-logs-v1", &up(UpBody::Logs { frames: vec![log.clone(), LogFrame { seq: 1, ..log }] }));
}

#[test]
fn commands_and_outcomes() {
    let request = Request {
        add_hosts: vec![],
        exclude_hosts: vec![],
        values: Default::default(),
        deployment: id(1).into(),
        environment: "beta".into(),
        artifact: id(4).into(),
        kind: ReleaseKind::Normal,
        inputs: [("restart".to_owned(), serde_json::json!(true))].into(),
        hosts: vec!["h1".into()],
        not_before: Some(at()),
        note: "n".into(),
    };
    golden("command-request-v1", &Verb::Request(Box::new(request)));
    golden("command-decide-v1", &Verb::Decide { approval: approval(), token: None });
    golden(
        "command-retry-v1",
        &Verb::Retry {
            whole_wave: false,
            inputs: Default::default(),
            reason: String::new(),
            step: None,
            hosts: vec![],
        },
    );
    let back = Verb::Rollback {
        from_phase: None,
        to: None,
        veto: false,
        mode: RollbackMode::Emergency,
        reason: "bad".into(),
        rollback: id(5).into(),
    };
    golden("command-rollback-v1", &back);
    let outcome = CommandOutcome {
        accepted: false,
        code: "wrong_state".into(),
        detail: "d".into(),
        deployment: Some(id(1).into()),
        decided_at: at(),
    };
    golden("command-outcome-v1", &outcome);
}

#[test]
fn works_and_results() {
    let wave = WaveWork {
        stagger: None,
        again: false,
        outputs: Default::default(),
        step: "rollout".into(),
        wave: 0,
        hosts: vec![WaveHost { host: "h1".into(), attempt: 2, start_at: 3 }],
        parallel: 1,
        max_failures: 0,
    };
    golden("work-wave-v1", &WorkSpec::Wave(wave));
    golden(
        "work-central-v1",
        &WorkSpec::Central(CentralWork { outputs: Default::default(), step: "smoke".into(), attempt: 1 }),
    );
    let host = HostResult {
        class: None,
        exit_code: None,
        failed_id: None,
        outputs: Default::default(),
        host: "h1".into(),
        attempt: 2,
        outcome: Outcome::AutoStopped,
        failed_step: Some(3),
        reason: Some("r".into()),
    };
    golden("result-wave-v1", &WorkResult::Wave { hosts: vec![host] });
    let central = WorkResult::Central {
        class: None,
        succeeded: true,
        reason: None,
        output: serde_json::json!({ "status": 200 }),
    };
    golden("result-central-v1", &central);
}

#[test]
fn events_leave_as_cloud_events() {
    let e = Event {
        id: id(6).into(),
        aggregate: "deployment".into(),
        aggregate_id: id(1).to_string(),
        agg_seq: 7,
        what: "deployment.approved".into(),
        project: Some("shop".into()),
        environment: Some("beta".into()),
        severity: Severity::Info,
        actor: "person:bob".into(),
        at: at(),
        payload: serde_json::json!({ "digest": "sha256:aa" }),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
    };
    golden("event-v1", &CloudEvent::of(&e));
}
