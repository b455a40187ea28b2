//! Whoever wants to be a host that they are not: stolen, used, guessed and expired enrolment tokens, and taken names.

use crate::world::{World, answer};
use nkeys::KeyPair;
use serde_json::{Value, json};
use windlass_store::sql;
use windlass_testkit::databases;

impl World {
    async fn enrol_token(&self, host: &str, replace: bool) -> String {
        let (status, t) = self.post("/enroll-tokens", json!({ "host": host, "replace": replace })).await;
        assert_eq!(status, 201, "{t}");
        t["token"].as_str().expect("token").to_owned()
    }

    async fn enrol(&self, body: Value) -> (u16, Value) {
        let r = self.http.post(format!("{}/api/v1/enroll", self.base)).json(&body);
        answer(r.send().await.expect("answers")).await
    }

    async fn live(&self) -> i64 {
        self.count("agents WHERE revoked_at IS NULL").await
    }
}

fn key() -> String {
    KeyPair::new_user().public_key()
}

/// What stands before the secret of a token, and the secret, which may hold the sign between them itself.
fn parts(token: &str) -> (&str, &str) {
    let (at, _) = token.match_indices('_').nth(1).expect("a token");
    (&token[..at], &token[at + 1..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_thief_gets_nothing() {
    for db in databases().await {
        let w = World::start(db).await;
        w.fill().await;
        let mut tried = 0;
        let good = w.enrol_token("h1", false).await;
        let second = w.enrol_token("h1", false).await;
        let other = w.enrol_token("h1", false).await;
        let (id, secret) = parts(&good);
        let other_secret = parts(&other).1;

        // Guessed, cut, mixed, of another kind.
        let mut guesses: Vec<String> = vec![
            String::new(),
            "we".into(),
            "we__".into(),
            format!("{id}_"),
            format!("{id}_{}", "A".repeat(43)),
            format!("{id}_{other_secret}"),
            format!("wl{}", &good[2..]),
            format!("{good}A"),
            format!(" {good}"),
            format!("{good}\n"),
            good.to_uppercase(),
            good.replace('_', "-"),
            format!("we_{}_{secret}", uuid::Uuid::nil().simple()),
            format!("{id}_{secret}' OR '1'='1"),
            w.admin.clone(),
        ];
        // One character of the secret after the other.
        let begin = id.len() + 1;
        for at in begin..good.len() - 1 {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            guesses.push(String::from_utf8(bytes).expect("text"));
        }
        for token in &guesses {
            let (status, p) = w.enrol(json!({ "token": token, "public_key": key() })).await;
            assert!(status == 401 || status == 429, "{token:?}: {status} {p}");
            tried += 1;
        }
        // A key that is none, or of another kind: the token is not used up by it.
        let keys = [
            String::new(),
            "x".into(),
            KeyPair::new_account().public_key(),
            KeyPair::new_operator().public_key(),
            KeyPair::new_user().seed().expect("seed"),
            key().to_lowercase(),
            format!("{} ", key()),
        ];
        for k in keys {
            let (status, p) = w.enrol(json!({ "token": good, "public_key": k })).await;
            assert_eq!(status, 400, "{k:?}: {p}");
            tried += 1;
        }
        // Facts that no database would take, or too much of them.
        for facts in [json!({ "a": "\0" }), json!({ "\0": 1 }), json!({ "a": "x".repeat(1 << 20) })] {
            let (status, p) = w.enrol(json!({ "token": good, "public_key": key(), "facts": facts })).await;
            assert!(status == 400 || status == 413, "{status} {p}");
            tried += 1;
        }
        // Another name than the token's.
        for (field, value) in
            [("host", "h2"), ("agent_id", "00000000-0000-0000-0000-000000000000"), ("replace", "true")]
        {
            let (status, p) = w.enrol(json!({ "token": good, "public_key": key(), field: value })).await;
            assert_eq!(status, 400, "{p}");
            tried += 1;
        }
        assert_eq!(w.live().await, 0, "nobody got in");

        // The host itself.
        let mine = key();
        let (status, a) = w.enrol(json!({ "token": good, "public_key": mine, "facts": { "os": "linux" } })).await;
        assert_eq!((status, &a["host"]), (201, &json!("h1")), "{a}");
        // Used; over a live host; with the key of somebody known.
        for (token, key, wanted) in
            [(&good, key(), 401), (&good, mine.clone(), 401), (&second, key(), 409), (&second, mine.clone(), 409)]
        {
            let (status, p) = w.enrol(json!({ "token": token, "public_key": key })).await;
            assert_eq!(status, wanted, "{p}");
            tried += 1;
        }
        assert_eq!(w.live().await, 1);
        let (status, p) = w.post("/enroll-tokens", json!({ "host": "h1" })).await;
        assert_eq!((status, &p["code"]), (409, &json!("host_taken")));
        // One that replaces: too late, it replaces nobody.
        let late = w.enrol_token("h1", true).await;
        let mut tx = w.ctx.store.write().await.expect("begins");
        let past = chrono::Utc::now() - chrono::TimeDelta::seconds(1);
        sql("UPDATE enroll_tokens SET expires_at = $1 WHERE replaces = TRUE")
            .bind(past)
            .execute(&mut tx)
            .await
            .expect("ages");
        tx.commit().await.expect("commits");
        let (status, p) = w.enrol(json!({ "token": late, "public_key": key() })).await;
        assert_eq!(status, 401, "{p}");
        tried += 1;
        let first = a["agent_id"].as_str().expect("id").to_owned();
        let (_, hosts) = w.get("/hosts").await;
        assert_eq!(hosts["items"][0]["agent"]["id"], json!(first), "the host is still who it was");

        // Revoked: neither its key nor any token of before makes it a host again.
        let r = w.request(reqwest::Method::POST, &format!("/agents/{first}/revoke"), &w.admin);
        assert_eq!(r.send().await.expect("answers").status(), 204);
        let again = w.enrol_token("h1", false).await;
        for (token, key, wanted) in [(&good, key(), 401), (&again, mine, 409)] {
            let (status, p) = w.enrol(json!({ "token": token, "public_key": key })).await;
            assert_eq!(status, wanted, "{p}");
            tried += 1;
        }
        assert_eq!(w.live().await, 0);
        assert!(tried >= 70, "{tried}");
        eprintln!("{tried} thefts on {}", w.db);
        w.stop().await;
    }
}
