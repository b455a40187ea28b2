//! Approvals that waited in the queue while their maker lost the right to give them.

use crate::{approve, meanwhile::beside, world::World};
use chrono::{TimeDelta, Utc};
use uuid::Uuid;
use windlass_contracts::command::{CommandOutcome, Verb};
use windlass_domain::{
    access::{Permission, Role},
    deployment::State,
    ids::{DeploymentId, TokenId},
};
use windlass_store::{
    latches::{self, Latch},
    sql,
    tokens::{self, Token},
};
use windlass_testkit::databases;

impl World {
    async fn token(&self, change: impl FnOnce(&mut Token)) -> TokenId {
        let mut t = Token {
            id: TokenId(Uuid::now_v7()),
            hash: Uuid::now_v7().as_bytes().to_vec(),
            person: "bob".into(),
            label: "test".into(),
            scopes: vec![],
            project: None,
            created_at: Utc::now(),
            expires_at: None,
            revoked_at: None,
        };
        change(&mut t);
        let mut tx = self.store().write().await.expect("tx");
        tokens::insert(&mut tx, &t).await.expect("token");
        tx.commit().await.expect("commit");
        t.id
    }

    async fn decide_with(&self, id: DeploymentId, digest: &str, token: TokenId) -> CommandOutcome {
        let Verb::Decide { approval, .. } = approve(id, digest, "bob") else { panic!("a decision") };
        self.command("person:bob", id, Verb::Decide { approval, token: Some(token) }).await
    }

    async fn stored_approvals(&self) -> i64 {
        let mut tx = self.store().read().await.expect("read");
        sql("SELECT COUNT(*) FROM approvals").fetch_scalar(&mut tx).await.expect("counts").expect("a row")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_counts_only_while_its_maker_may_give_it() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 1).await;
        let one = w.artifact("1.0.0").await;
        let (id, _) = w.request("person:ann", one).await;
        let digest = w.until(id, State::AwaitingApproval).await.plan_digest;
        let past = Some(Utc::now() - TimeDelta::seconds(1));

        let mut tried = 0;
        let bad = [
            w.token(|t| t.revoked_at = past).await,
            w.token(|t| t.expires_at = past).await,
            w.token(|t| t.person = "zoe".into()).await,
            w.token(|t| t.scopes = vec![Permission::View, Permission::Operate]).await,
            w.token(|t| t.project = Some("bank".into())).await,
            TokenId(Uuid::now_v7()),
        ];
        for token in bad {
            let o = w.decide_with(id, &digest, token).await;
            assert_eq!((o.accepted, o.code.as_str()), (false, "not_asked"), "{o:?}");
            tried += 1;
        }
        let token = w.token(|_| {}).await;
        for (role, disabled) in [
            (Role::Viewer, false),
            (Role::Developer, false),
            (Role::Operator, false),
            (Role::Approver, true),
            (Role::Admin, true),
        ] {
            w.person("bob", role, disabled).await;
            let o = w.decide_with(id, &digest, token).await;
            assert_eq!((o.accepted, o.code.as_str()), (false, "not_asked"), "{role:?}: {o:?}");
            // Nor with a command of a version that kept no token.
            let o = w.command("person:bob", id, approve(id, &digest, "bob")).await;
            assert_eq!((o.accepted, o.code.as_str()), (false, "not_asked"), "{role:?}: {o:?}");
            tried += 2;
        }
        let o = w.command("person:ghost", id, approve(id, &digest, "ghost")).await;
        assert_eq!((o.accepted, o.code.as_str()), (false, "not_asked"), "{o:?}");
        assert_eq!(tried, 16);
        assert_eq!(w.stored_approvals().await, 0);
        w.until(id, State::AwaitingApproval).await;

        // With the right back, the same token approves.
        w.person("bob", Role::Approver, false).await;
        let o = w.decide_with(id, &digest, token).await;
        assert!(o.accepted, "{o:?}");
        w.until(id, State::Running).await;
        assert_eq!(w.stored_approvals().await, 1);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_approval_is_taken_past_a_right_that_is_being_taken_away() {
    for db in databases().await {
        let w = World::start(db, &["h1"], 1).await;
        let one = w.artifact("1.0.0").await;
        let (id, _) = w.request("person:ann", one).await;
        let digest = w.until(id, State::AwaitingApproval).await.plan_digest;
        let token = w.token(|_| {}).await;
        let mut tx = w.store().write().await.expect("tx");
        latches::take(&mut tx, Latch::Access).await.expect("takes");
        assert!(tokens::revoke(&mut tx, token, Utc::now()).await.expect("revokes"));
        let o = beside(tx, w.decide_with(id, &digest, token)).await;
        assert_eq!((o.accepted, o.code.as_str()), (false, "not_asked"), "{o:?}");
        assert_eq!(w.stored_approvals().await, 0);
        w.stop().await;
    }
}
