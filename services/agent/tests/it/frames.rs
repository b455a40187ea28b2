//! Frames nobody should obey.

use crate::control::{Control, script};
use nkeys::KeyPair;
use windlass_contracts::frames::{Down, DownBody, RefuseCode, UpBody, seal};
use windlass_domain::task::ReportedOutcome;

#[tokio::test]
async fn forged_misaddressed_and_broken_frames_are_ignored() {
    let mut c = Control::started().await;
    let marker = c.dir.path().join("ran");
    let offer = c.offer_of(vec![script("s", &format!("touch {}", marker.display()))]);
    let body = DownBody::Offer(Box::new(offer.clone()));
    let good = c.frame(body.clone());
    let sealed = seal(&good, &c.executor).expect("seals");
    c.send_raw(seal(&good, &KeyPair::new_user()).expect("seals")).await;
    let other = Down { aud: uuid::Uuid::new_v4().into(), ..good.clone() };
    c.send_raw(seal(&other, &c.executor).expect("seals")).await;
    let former = Down { instance: Some("former".into()), ..good.clone() };
    c.send_raw(seal(&former, &c.executor).expect("seals")).await;
    let nobody = Down { instance: None, ..good };
    c.send_raw(seal(&nobody, &c.executor).expect("seals")).await;
    for i in (0..sealed.len()).step_by(7) {
        let mut bad = sealed.clone();
        bad[i] ^= 1;
        c.send_raw(bad).await;
    }
    c.send_raw(sealed[..sealed.len() - 1].to_vec()).await;
    c.send_raw(vec![]).await;
    c.send_raw(vec![0xff; 1000]).await;
    // A frame that is answered, after all those: nothing of them was taken up.
    c.hello = None;
    c.send(DownBody::WhoAreYou { challenge: None }).await;
    let hello = c.until("HELLO", |c| c.hello.clone().filter(|h| h.journal_seq > 0)).await;
    assert!(hello.open.is_empty(), "{:?}", hello.open);
    assert_eq!(hello.journal_seq, 1, "the journal holds its creation and nothing else");
    assert!(!marker.exists());
    // The same offer, unharmed, is good.
    let task = c.begin(&offer).await;
    assert_eq!(c.result(task).await.outcome, ReportedOutcome::Succeeded);
    assert!(marker.exists());
}

/// Asks, until a HELLO answers so.
async fn answers(c: &mut Control, challenge: Option<&str>, answer: &str) {
    c.hello = None;
    c.send(DownBody::WhoAreYou { challenge: challenge.map(str::to_owned) }).await;
    let answer = Some(answer.to_owned());
    c.until("HELLO with that answer", |c| c.hello.as_ref().is_some_and(|h| h.answers == answer).then_some(())).await;
}

#[tokio::test]
async fn hello_answers_what_was_asked_until_it_is_taken() {
    let mut c = Control::started().await;
    assert_eq!(c.hello.as_ref().and_then(|h| h.answers.as_deref()), Some(""), "nobody asked anything");
    answers(&mut c, Some("a challenge"), "a challenge").await;
    // A frame that is answered: the HELLO_ACK before it has been taken.
    let unknown = uuid::Uuid::new_v4().into();
    c.send(DownBody::Fence { task: unknown, work: uuid::Uuid::from_u128(1).into(), epoch: 1 }).await;
    c.result(unknown).await;
    answers(&mut c, Some(&"x".repeat(129)), "").await;
    answers(&mut c, Some(&"x".repeat(128)), &"x".repeat(128)).await;
}

#[tokio::test]
async fn a_full_disk_and_a_local_policy_refuse() {
    let mut c = Control::new().await;
    std::fs::write(c.state().join("agent.yaml"), "reserve_bytes: 9000000000000000000\n").expect("writes");
    c.start_agent().await;
    let offer = c.offer_of(vec![script("s", "true")]);
    c.send(DownBody::Offer(Box::new(offer.clone()))).await;
    let refused = |b: &UpBody| match b {
        UpBody::Refuse { code, .. } => Some(*code),
        _ => None,
    };
    assert_eq!(c.next("REFUSE", refused).await, RefuseCode::NoResources);
    c.kill_agent();
    std::fs::remove_file(c.state().join("agent.yaml")).expect("removes");
    let policy = c.state().join("policy.yaml");
    std::fs::write(&policy, "protected_environments: { beta: { approvals: 1 } }\n").expect("writes");
    c.start_agent().await;
    c.send(DownBody::Offer(Box::new(offer))).await;
    assert_eq!(c.next("REFUSE", refused).await, RefuseCode::Unproven);
    c.kill_agent();
    windlass_agent::files::private(&policy, 0o666).expect("mode");
    let out = c.command().stderr(std::process::Stdio::piped()).output().expect("runs");
    assert!(String::from_utf8_lossy(&out.stderr).contains("chmod go-w"), "{out:?}");
}
