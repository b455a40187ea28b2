//! What goes in comes out the same on both databases: the aggregates that the api writes, and logs and sessions.

use chrono::{DateTime, Duration, Utc};
use sqlx::types::Json;
use uuid::Uuid;
use windlass_contracts::command::{Command, CommandOutcome, Verb};
use windlass_domain::{
    access::{Grant, Permission, Role},
    artifact::Artifact,
    catalog::{Host, Item, Kind},
    ids::{AgentId, DeploymentId, TaskId},
};
use windlass_store::{
    Error, Store, Tx, agents, artifacts, catalog, commands, decisions, deployments, idempotency, intake, logs, people,
    secrets, sessions, tokens,
};
use windlass_testkit::databases;

fn at(second: i64) -> DateTime<Utc> {
    let start: DateTime<Utc> = "2026-11-21T00:00:00.123456Z".parse().expect("time");
    start + Duration::seconds(second)
}

/// Runs `test` in one transaction on each database, and commits it.
async fn on_both(test: impl AsyncFn(&mut Tx)) {
    for db in databases().await {
        let store = Store::open(db.url()).await.expect("opens");
        let mut tx = store.write().await.expect("tx");
        test(&mut tx).await;
        tx.commit().await.expect("commit");
        store.close().await;
    }
}

#[tokio::test]
async fn people_grants_and_tokens() {
    on_both(async |tx| {
        assert!(!people::any(tx).await.expect("any"));
        let person = |name: &str| people::Person {
            name: name.into(),
            display: "Zoë".into(),
            disabled: false,
            created_at: at(0),
        };
        for name in ["ann", "bob", "cat"] {
            assert!(people::insert(tx, &person(name)).await.expect("insert"));
        }
        assert!(!people::insert(tx, &person("ann")).await.expect("insert"), "a name is taken once");
        people::update(tx, "bob", "Bob", true).await.expect("update");
        assert!(matches!(people::update(tx, "nobody", "", false).await, Err(Error::Conflict)));
        assert!(people::get(tx, "bob").await.expect("get").expect("bob").disabled);
        let names: Vec<String> =
            people::list(tx, Some("ann"), 1).await.expect("list").into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["bob"]);
        let admin = [Grant { project_group: "*".into(), role: Role::Admin }];
        people::set_grants(tx, "ann", &admin).await.expect("grants");
        people::set_grants(tx, "ann", &admin).await.expect("the same again");
        assert_eq!(people::grants(tx, "ann").await.expect("grants"), admin);
        assert_eq!(people::count_admins(tx).await.expect("count"), 1);

        let token = |n: i64, person: &str| tokens::Token {
            id: Uuid::now_v7().into(),
            hash: vec![0, 255, u8::try_from(n).expect("small")],
            person: person.into(),
            label: "ci".into(),
            scopes: vec![Permission::View, Permission::Trigger],
            project: (n == 1).then(|| "shop".into()),
            created_at: at(n),
            expires_at: Some(at(100)),
            revoked_at: None,
        };
        let (a, b) = (token(1, "ann"), token(2, "bob"));
        tokens::insert(tx, &a).await.expect("insert");
        tokens::insert(tx, &b).await.expect("insert");
        let got = tokens::get(tx, a.id).await.expect("get").expect("there");
        assert_eq!((got.hash, got.scopes, got.project, got.expires_at), (a.hash, a.scopes, a.project, a.expires_at));
        assert_eq!(tokens::list(tx, None, None, 10).await.expect("list").len(), 2);
        assert_eq!(tokens::list(tx, Some("bob"), None, 10).await.expect("list").len(), 1);
        assert_eq!(tokens::list(tx, None, Some(b.id), 10).await.expect("list")[0].id, a.id);
        assert!(tokens::revoke(tx, a.id, at(5)).await.expect("revoke"));
        assert!(!tokens::revoke(tx, a.id, at(6)).await.expect("revoke"), "once");
        assert_eq!(tokens::get(tx, a.id).await.expect("get").expect("there").revoked_at, Some(at(5)));
    })
    .await;
}

#[tokio::test]
async fn catalog_revisions() {
    on_both(async |tx| {
        let host = |name: &str, address: &str| {
            Item::Host(Host {
                name: name.into(),
                address: address.into(),
                labels: [("zone".into(), "a".into())].into(),
                ..Host::default()
            })
        };
        for n in 0..5 {
            let item = host(&format!("h{n}"), "one");
            assert_eq!(catalog::save(tx, &item, 0, false, "ann", at(n)).await.expect("save"), 1);
        }
        assert!(matches!(catalog::save(tx, &host("h0", "x"), 0, false, "bob", at(9)).await, Err(Error::Conflict)));
        assert_eq!(catalog::save(tx, &host("h0", "two"), 1, false, "bob", at(10)).await.expect("save"), 2);
        assert!(matches!(catalog::save(tx, &host("h0", "x"), 1, false, "cat", at(11)).await, Err(Error::Conflict)));
        assert_eq!(catalog::save(tx, &host("h4", "one"), 1, true, "bob", at(12)).await.expect("save"), 2);
        let entry = catalog::get(tx, Kind::Host, "h0").await.expect("get").expect("there");
        assert_eq!((entry.revision, entry.item), (2, host("h0", "two")));
        assert_eq!(catalog::get(tx, Kind::Host, "h4").await.expect("get"), None, "deleted");
        assert!(catalog::row(tx, Kind::Host, "h4").await.expect("row").expect("its row stays").deleted);
        let page = catalog::page(tx, Kind::Host, None, Some("h0"), 2).await.expect("page");
        assert_eq!(page.iter().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["h1", "h2"]);
        assert!(catalog::page(tx, Kind::Host, Some("shop"), None, 9).await.expect("page").is_empty());
        let revisions = catalog::revisions(tx, Kind::Host, "h0", None, 9).await.expect("revisions");
        assert_eq!(
            revisions.iter().map(|r| (r.revision, r.author.as_str())).collect::<Vec<_>>(),
            [(2, "bob"), (1, "ann")]
        );
        assert_eq!(catalog::revisions(tx, Kind::Host, "h0", Some(2), 9).await.expect("revisions").len(), 1);
        assert_eq!(catalog::all(tx, Kind::Host).await.expect("all").len(), 4);
        assert_eq!(catalog::keys(tx, Kind::Host, None).await.expect("keys").len(), 4);
        let stamp = catalog::stamp(tx).await.expect("stamp");
        catalog::save(tx, &host("h9", "x"), 0, false, "ann", at(20)).await.expect("save");
        assert_ne!(catalog::stamp(tx).await.expect("stamp"), stamp, "the stamp tells of every save");
    })
    .await;
}

#[tokio::test]
async fn artifacts_commands_and_their_queue() {
    on_both(async |tx| {
        let artifact = |version: &str| Artifact {
            id: Uuid::now_v7().into(),
            project: "shop".into(),
            version: version.into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            url: "https://example.org/a.tar.gz".into(),
            size: Some(1 << 40),
            git_ref: None,
            commit: Some("abc".into()),
            committer: None,
            build_url: None,
            built_at: at(0),
        };
        let (one, two) = (artifact("1.0.0"), artifact("1.1.0"));
        assert!(artifacts::insert(tx, &one, at(1)).await.expect("insert"));
        assert!(artifacts::insert(tx, &two, at(2)).await.expect("insert"));
        assert!(
            !artifacts::insert(tx, &artifact("1.0.0"), at(3)).await.expect("insert"),
            "a version is registered once"
        );
        let found = artifacts::by_version(tx, "shop", "1.0.0").await.expect("by version").expect("there");
        assert_eq!((found.artifact, found.created_at), (one.clone(), at(1)));
        assert_eq!(artifacts::by_id(tx, two.id).await.expect("by id"), Some(two.clone()));
        assert_eq!(artifacts::list(tx, "shop", None, 9).await.expect("list").len(), 2);
        let older = artifacts::list(tx, "shop", Some((at(2), two.id)), 9).await.expect("list");
        assert_eq!(older.iter().map(|r| r.artifact.id).collect::<Vec<_>>(), [one.id]);

        let deployment: DeploymentId = Uuid::now_v7().into();
        let command = Command {
            id: Uuid::now_v7().into(),
            project: "shop".into(),
            environment: Some("beta".into()),
            deployment: Some(deployment),
            actor: "person:ann".into(),
            verb: Verb::Pause { reason: "lunch \u{1F35C}".into() },
            created_at: at(4),
            trace: None,
        };
        assert!(commands::insert(tx, &command).await.expect("insert"));
        assert!(!commands::insert(tx, &command).await.expect("insert"), "an id is accepted once");
        assert_eq!(commands::get(tx, command.id).await.expect("get"), Some(command.clone()));
        assert_eq!(commands::backlog(tx).await.expect("backlog"), (1, Some(at(4))));
        assert_eq!(commands::outcome(tx, command.id).await.expect("outcome"), None);
        assert_eq!(decisions::queued(tx, deployment).await.expect("queued"), std::slice::from_ref(&command));
        assert_eq!(decisions::deployment_of(tx, command.id).await.expect("deployment"), Some(deployment));
        let outcome = CommandOutcome {
            accepted: true,
            code: "ok".into(),
            detail: String::new(),
            deployment: Some(deployment),
            decided_at: at(5),
        };
        decisions::decide(tx, command.id, &outcome).await.expect("decide");
        assert_eq!(commands::outcome(tx, command.id).await.expect("outcome"), Some(outcome));
        assert_eq!(commands::backlog(tx).await.expect("backlog").0, 0);
        assert!(deployments::list(tx, &deployments::Filter::default(), 9).await.expect("list").is_empty());
    })
    .await;
}

#[tokio::test]
async fn deliveries_and_idempotency_keys() {
    on_both(async |tx| {
        let delivery = |id: &str, n: i64| intake::Delivery {
            source: "github".into(),
            project: "shop".into(),
            delivery_id: id.into(),
            outcome: "pending".into(),
            reason: String::new(),
            kind: "release".into(),
            artifact_id: None,
            command_id: None,
            answer: Json(serde_json::json!({})),
            trace: None,
            received_at: at(n),
        };
        for n in 0..4 {
            assert!(intake::claim(tx, &delivery(&format!("d{n}"), n)).await.expect("claim"));
        }
        assert!(!intake::claim(tx, &delivery("d0", 9)).await.expect("claim"), "a delivery is claimed once");
        let settled = intake::Delivery {
            outcome: "matched".into(),
            artifact_id: Some(Uuid::now_v7()),
            answer: Json(serde_json::json!({ "id": [1, 2] })),
            ..delivery("d0", 0)
        };
        intake::settle(tx, &settled).await.expect("settle");
        let got = intake::get(tx, "github", "shop", "d0").await.expect("get").expect("there");
        assert_eq!(
            (got.outcome, got.artifact_id, got.answer.0),
            (settled.outcome, settled.artifact_id, settled.answer.0)
        );
        let ids = |rows: Vec<intake::Delivery>| rows.into_iter().map(|d| d.delivery_id).collect::<Vec<_>>();
        assert_eq!(ids(intake::list(tx, None, None, 2).await.expect("list")), ["d3", "d2"]);
        assert_eq!(ids(intake::list(tx, Some("shop"), Some((at(2), "d2")), 9).await.expect("list")), ["d1", "d0"]);
        assert_eq!(intake::forget(tx, at(3), 2).await.expect("forget"), 2, "a bounded number");
        assert_eq!(ids(intake::list(tx, None, None, 9).await.expect("list")), ["d3", "d2"]);

        use idempotency::Claim;
        assert_eq!(idempotency::claim(tx, "ann", "k", b"hash", at(0)).await.expect("claim"), Claim::New);
        let answer = serde_json::json!({ "id": "x" });
        idempotency::store(tx, "ann", "k", 201, &answer).await.expect("store");
        let again = idempotency::claim(tx, "ann", "k", b"hash", at(1)).await.expect("claim");
        assert_eq!(again, Claim::Answered { status: 201, response: answer });
        assert_eq!(idempotency::claim(tx, "ann", "k", b"other", at(1)).await.expect("claim"), Claim::OtherRequest);
        assert_eq!(idempotency::claim(tx, "bob", "k", b"hash", at(1)).await.expect("claim"), Claim::New);
        assert_eq!(idempotency::forget(tx, at(1), 9).await.expect("forget"), 1);
    })
    .await;
}

#[tokio::test]
async fn secrets_agents_sessions_and_logs() {
    on_both(async |tx| {
        secrets::put(tx, "project.shop", "hook", &[0, 1, 255], "ann", at(0)).await.expect("put");
        secrets::put(tx, "project.shop", "hook", &[9], "bob", at(1)).await.expect("put");
        assert_eq!(secrets::sealed(tx, "project.shop", "hook").await.expect("sealed"), Some(vec![9]));
        assert_eq!(secrets::sealed(tx, "project.shop", "none").await.expect("sealed"), None);
        let names = secrets::names(tx).await.expect("names");
        assert_eq!((names.len(), names[0].updated_by.as_str(), names[0].updated_at), (1, "bob", at(1)));

        let token = agents::EnrollToken {
            id: Uuid::now_v7(),
            hash: vec![7; 32],
            host: "h1".into(),
            replaces: false,
            created_by: "ann".into(),
            created_at: at(0),
            expires_at: at(900),
            used_at: None,
        };
        agents::insert_token(tx, &token).await.expect("insert");
        assert_eq!(agents::token(tx, token.id).await.expect("token"), Some(token.clone()));
        assert!(agents::use_token(tx, token.id, at(1)).await.expect("use"));
        assert!(!agents::use_token(tx, token.id, at(2)).await.expect("use"), "once");
        let agent = |host: &str, key: &str| agents::Agent {
            id: Uuid::now_v7(),
            host: host.into(),
            public_key: key.into(),
            enrolled_at: at(1),
            revoked_at: None,
        };
        let (first, second) = (agent("h1", "U1"), agent("h1", "U2"));
        agents::insert(tx, &first).await.expect("insert");
        let id = AgentId(first.id);
        assert!(agents::key_known(tx, "U1").await.expect("key") && !agents::key_known(tx, "U2").await.expect("key"));
        assert_eq!(agents::live_of_host(tx, "h1").await.expect("live"), Some(first.clone()));
        assert!(agents::revoke(tx, id, at(2)).await.expect("revoke"));
        assert!(!agents::revoke(tx, id, at(3)).await.expect("revoke"), "once");
        agents::insert(tx, &second).await.expect("one live agent a host, and the first is not");
        assert_eq!(agents::live(tx).await.expect("live"), std::slice::from_ref(&second));
        assert_eq!(agents::get(tx, id).await.expect("get").expect("kept").revoked_at, Some(at(2)));
        assert_eq!(sessions::live_agents(tx).await.expect("live").len(), 1);
        assert_eq!(agents::forget_tokens(tx, at(10_000)).await.expect("forget"), 1);

        let session = |instance: &str, seq: u64| sessions::Session {
            agent: AgentId(second.id),
            host: "h1".into(),
            instance: instance.into(),
            boot_id: "b".into(),
            journal_seq: seq,
            agent_version: "0.1.0".into(),
            last_seen_at: at(3),
            facts: serde_json::json!({ "os": "linux" }),
        };
        let agent = AgentId(second.id);
        sessions::upsert(tx, &session("i1", 5)).await.expect("upsert");
        assert!(sessions::touch(tx, agent, "i1", 6, at(4)).await.expect("touch"));
        assert!(!sessions::touch(tx, agent, "i2", 7, at(5)).await.expect("touch"), "another instance says HELLO first");
        assert!(sessions::set_current(tx, agent, "i1", "shop_beta_1.0.0").await.expect("notes"));
        assert!(!sessions::set_current(tx, agent, "i2", "x").await.expect("notes"), "not of another instance");
        let noted = sessions::get(tx, agent).await.expect("get").expect("there").facts;
        assert_eq!(noted["current_release"], "shop_beta_1.0.0");
        let got = sessions::lock(tx, agent).await.expect("lock").expect("there");
        assert_eq!((got.journal_seq, got.last_seen_at), (6, at(4)));
        assert_eq!(sessions::get(tx, agent).await.expect("get"), Some(got));
        assert_eq!(
            (sessions::all(tx).await.expect("all").len(), sessions::seen(tx).await.expect("seen").len()),
            (1, 1)
        );

        let (deployment, task): (DeploymentId, TaskId) = (Uuid::now_v7().into(), Uuid::now_v7().into());
        let chunk = |seq: u64, host: &str| logs::Chunk {
            task,
            seq,
            host: host.into(),
            step: "fetch".into(),
            stream: "out".into(),
            at: at(6),
            data: vec![0, b'\n', 255],
        };
        assert_eq!(logs::position(tx, task).await.expect("position"), logs::Position::default());
        logs::append(tx, deployment, &[chunk(0, "h1"), chunk(1, "h2")]).await.expect("append");
        logs::append(tx, deployment, &[chunk(2, "h1")]).await.expect("append");
        assert_eq!(logs::position(tx, task).await.expect("position"), logs::Position { next: 3, bytes: 9 });
        let all = logs::after(tx, deployment, 0, None, 9).await.expect("after");
        assert_eq!(all.iter().map(|c| c.n).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(all[0].chunk, chunk(0, "h1"));
        let of_host = logs::after(tx, deployment, 1, Some("h1"), 9).await.expect("after");
        assert_eq!(of_host.iter().map(|c| c.n).collect::<Vec<_>>(), [3]);
    })
    .await;
}

#[tokio::test]
async fn an_environment_remembers_twenty_artifacts_however_often_one_is_released() {
    on_both(async |tx| {
        let good = |n: u128, second: i64| deployments::Good {
            release: Uuid::from_u128(n).into(),
            artifact: Uuid::from_u128(n).into(),
            deployment: Uuid::from_u128(1000 + second.unsigned_abs() as u128).into(),
            version: format!("{n}"),
            at: at(second),
        };
        for n in 0..25 {
            deployments::record_good(tx, "shop", "beta", good(n, n as i64)).await.expect("recorded");
        }
        for second in 30..180 {
            deployments::record_good(tx, "shop", "beta", good(24, second)).await.expect("recorded");
        }
        let kept = deployments::environment_state(tx, "shop", "beta").await.expect("state").good;
        let artifacts: std::collections::BTreeSet<_> = kept.iter().map(|g| g.artifact).collect();
        assert_eq!((kept.len(), artifacts.len()), (100, 20));
        assert_eq!((kept[0].at, kept.last().map(|g| g.version.as_str())), (at(179), Some("5")));
    })
    .await;
}
