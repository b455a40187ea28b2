//! Retrying with other inputs: the same release, planned anew, approved anew.

use crate::{
    approve,
    ordered::{environment, request},
    world::World,
};
use serde_json::{Value, json};
use windlass_contracts::command::{CommandOutcome, Request, Verb};
use windlass_domain::{
    catalog::{Environment, Host, Item},
    deployment::{Amendment, State},
    flow,
    ids::DeploymentId,
    release::ReleaseKind,
    work::Outcome,
};
use windlass_store::{deployments, works};
use windlass_testkit::{databases, eventually};

const FLOW: &str = "
flow: speak
inputs:
  word: { type: string, default: hello }
  key: { type: secret, optional: true }
steps:
  - id: all
    waves: '1 100%'
    steps:
      - { id: say, uses: script, with: { run: 'echo $WORD', env: { WORD: '${{ inputs.word }}' } } }
";

impl World {
    /// A deployment of the flow above that failed on h2; bob has approved it.
    async fn failed(&self) -> DeploymentId {
        let flow = flow::parse(FLOW).unwrap_or_else(|e| panic!("{e:#?}"));
        self.save(Item::Flow { project: "shop".into(), flow, source: String::new() }).await;
        self.hosts(&["h1", "h2"]).await;
        let one = self.built("shop", "1.0.0").await;
        let (id, o) = self.ask_for("shop", request("gray", one, ReleaseKind::Normal, "")).await;
        assert!(o.accepted, "{o:?}");
        let d = self.until(id, State::AwaitingApproval).await;
        assert!(self.command("person:bob", id, approve(id, &d.plan_digest, "bob")).await.accepted);
        self.settle(id, &[]).await;
        self.settle(id, &[("h2", Outcome::Failed)]).await;
        self.until(id, State::Paused).await;
        id
    }

    async fn hosts(&self, names: &[&str]) {
        for h in names {
            self.save(Item::Host(Host { name: (*h).into(), address: "127.0.0.1".into(), ..Host::default() })).await;
        }
        let hosts = names.iter().map(|h| (*h).to_owned()).collect();
        let e = Environment { flow: "speak".into(), hosts, ..environment("shop", "gray", "h1") };
        self.save(Item::Environment(e)).await;
    }

    async fn retry_with(&self, id: DeploymentId, inputs: Value) -> CommandOutcome {
        let inputs = inputs.as_object().expect("inputs").clone().into_iter().collect();
        let reason = "the word was wrong".into();
        self.command("person:olga", id, Verb::Retry { hosts: vec![], step: None, whole_wave: false, inputs, reason })
            .await
    }

    async fn amendment(&self, id: DeploymentId) -> Amendment {
        let d = self.until(id, State::Paused).await;
        *d.amendment.expect("an amendment waits")
    }

    async fn inputs(&self, id: DeploymentId) -> (windlass_domain::ids::ReleaseId, Value) {
        let mut tx = self.store().read().await.expect("read");
        let d = deployments::get(&mut tx, id).await.expect("read").expect("there").deployment;
        let r = deployments::release(&mut tx, d.release).await.expect("read").expect("its release");
        (r.id, json!(r.inputs))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_inputs_run_once_their_own_plan_is_approved() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 1).await;
        let id = w.failed().await;
        let first = w.until(id, State::Paused).await;
        let (before, _) = w.inputs(id).await;
        let o = w.retry_with(id, json!({ "word": "bonjour" })).await;
        assert!(o.accepted, "{o:?}");
        let a = w.amendment(id).await;
        assert_ne!(a.facts.digest, first.plan_digest);
        assert_eq!(w.works(id).await, 2, "nothing runs under a plan nobody approved");
        // Whoever asks for it does not approve it; the old plan's approval counts for nothing.
        assert!(!w.command("person:olga", id, approve(id, &a.facts.digest, "olga")).await.accepted);
        assert!(!w.command("person:zoe", id, approve(id, &first.plan_digest, "zoe")).await.accepted);
        assert_eq!(w.inputs(id).await.0, before, "until then its release is the one that was requested");
        assert!(w.command("person:zoe", id, approve(id, &a.facts.digest, "zoe")).await.accepted);
        assert_eq!(w.settle(id, &[]).await, ["h2"]);
        let d = w.until(id, State::Succeeded).await;
        assert_eq!(d.plan_digest, a.facts.digest);
        let mut tx = w.store().read().await.expect("read");
        let digests: Vec<String> =
            works::of_deployment(&mut tx, id).await.expect("works").into_iter().map(|s| s.work.plan_digest).collect();
        assert_eq!(digests, [first.plan_digest.clone(), first.plan_digest, d.plan_digest.clone()]);
        assert!(deployments::plan(&mut tx, id, &d.plan_digest).await.expect("read").is_some());
        let approvals = windlass_store::tasks::approvals(&mut tx, id, &d.plan_digest).await.expect("read");
        assert_eq!(approvals.iter().map(|a| a.person.as_str()).collect::<Vec<_>>(), ["zoe"]);
        drop(tx);
        // The record shows with what inputs it ended, and with what it began.
        let (after, inputs) = w.inputs(id).await;
        assert_eq!(inputs["word"], "bonjour");
        assert_ne!(after, before);
        let mut tx = w.store().read().await.expect("read");
        let old = deployments::release(&mut tx, before).await.expect("read").expect("kept");
        assert!(old.inputs.is_empty());
        drop(tx);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_amended_is_refused_with_the_reason() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 1).await;
        let id = w.failed().await;
        for (inputs, code, says) in [
            (json!({ "key": "s3cret" }), "invalid", "input `key` is secret"),
            (json!({ "wrd": "x" }), "invalid", "wrd"),
            (json!({ "word": 7 }), "invalid", "word"),
            (json!({ "word": "hello" }), "nothing_to_do", "retry without inputs"),
        ] {
            let o = w.retry_with(id, inputs).await;
            assert_eq!(o.code, code, "{o:?}");
            assert!(o.detail.contains(says) && !o.detail.contains("s3cret"), "{}", o.detail);
        }
        // The environment has other hosts by now.
        w.hosts(&["h1", "h3"]).await;
        let o = w.retry_with(id, json!({ "word": "bonjour" })).await;
        assert_eq!(o.code, "invalid");
        assert!(o.detail.contains("it would also go to h3; it would leave out h2"), "{}", o.detail);
        assert!(w.until(id, State::Paused).await.amendment.is_none());
        w.hosts(&["h1", "h2"]).await;
        // A new request with the same inputs stays as possible as before.
        assert!(w.retry_with(id, json!({ "word": "bonjour" })).await.accepted);
        let digest = w.amendment(id).await.facts.digest;
        let Verb::Decide { mut approval, token } = approve(id, &digest, "zoe") else { panic!("a decision") };
        approval.decision = windlass_domain::approval::Decision::Reject;
        assert!(w.command("person:zoe", id, Verb::Decide { approval, token }).await.accepted);
        eventually(std::time::Duration::from_secs(20), "the plan is dropped", async || {
            w.until(id, State::Paused).await.amendment.is_none().then_some(())
        })
        .await;
        let ask = Request { hosts: vec![], ..request("gray", w.built("shop", "2.0.0").await, ReleaseKind::Normal, "") };
        assert!(w.ask_for("shop", ask).await.1.accepted);
        w.stop().await;
    }
}
