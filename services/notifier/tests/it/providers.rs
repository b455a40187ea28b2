//! Every provider's request, byte by byte where it matters, with signatures computed here a second time; and what each
//! makes of its answers.

use crate::{
    http::{Reply, Seen, Target},
    world::{World, quick},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use windlass_domain::event::Severity;
use windlass_store::notifications::{Notification, State};

/// HMAC by its definition (RFC 2104), not by the library the code under test uses.
fn hmac(key: &[u8], message: &[u8]) -> String {
    let mut block = [0u8; 64];
    if key.len() > 64 {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::digest([&block.map(|b| b ^ 0x36)[..], message].concat());
    BASE64_STANDARD.encode(Sha256::digest([&block.map(|b| b ^ 0x5c)[..], &inner[..]].concat()))
}

/// Sends one event through a channel to a far end that gives this answer.
async fn once(provider: Value, reply: Reply, payload: Value) -> (Seen, Notification) {
    let w = World::sqlite().await;
    let t = Target::start(reply).await;
    w.secret("u", &t.url("/hook?access_token=abcdefgh")).await;
    w.secret("s", "SEC-signing-secret").await;
    w.secret("w", "whsec_d2luZGxhc3Mtd2luZGxhc3M=").await;
    w.channel("ops", provider).await;
    let mut knobs = quick();
    // One try, however it ends.
    knobs.retry_first = std::time::Duration::from_secs(60);
    knobs.retry_max = knobs.retry_first;
    let n = w.notifier(knobs).await;
    w.emit("deployment.failed", Severity::Alert, payload).await;
    n.take_events().await.expect("takes");
    n.serve("ops").await.expect("serves");
    let row = w.only("ops").await;
    let seen = t.seen();
    assert_eq!(seen.len(), 1, "{row:?}");
    (seen[0].clone(), row)
}

fn plain() -> Value {
    json!({"reason": "web1 <!channel> & [x](http://evil.example) @all", "version": "1.2.0"})
}

const LINK: &str = "https://windlass.example/#/deployments/01930000-0000-7000-8000-000000000001";

fn fresh(ts: i64, unit: i64) -> bool {
    (chrono::Utc::now().timestamp_millis() / (1_000 / unit) - ts).abs() <= 5 * unit
}

#[tokio::test]
async fn slack() {
    let (seen, row) = once(json!({"type": "slack", "url": "u"}), Reply::body(200, "ok"), plain()).await;
    assert_eq!(row.state, State::Sent);
    assert_eq!((seen.path.as_str(), seen.query.as_str()), ("/hook", "access_token=abcdefgh"));
    let text = format!(
        "*🔴 ALERT: shop/prod: deployment FAILED*\n\
         web1 &lt;!channel&gt; &amp; [x](http://evil.example) @all\n\
         *Project:* shop\n*Environment:* prod\n*Version:* 1.2.0\n*By:* ann\n*At:* 1970-01-01 00:00:00 UTC\n\
         ➡ Read the log of the failed host, then retry or roll back.\n\
         <{LINK}|Open in Windlass>"
    );
    let want = json!({
        "text": "shop/prod: deployment FAILED",
        "link_names": false, "unfurl_links": false, "unfurl_media": false,
        "blocks": [
            {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": true}},
            {"type": "context", "elements": [{"type": "plain_text", "text": format!("windlass {}", row.id), "emoji": false}]},
        ],
    });
    assert_eq!(seen.json(), want);
    assert_eq!(seen.header("content-type"), Some("application/json; charset=utf-8"));
}

#[tokio::test]
async fn feishu() {
    let (seen, row) =
        once(json!({"type": "feishu", "url": "u", "sign": "s"}), Reply::body(200, r#"{"code":0}"#), plain()).await;
    assert_eq!(row.state, State::Sent);
    let body = seen.json();
    let ts = body["timestamp"].as_str().expect("timestamp");
    assert!(fresh(ts.parse().expect("number"), 1), "{ts}");
    assert_eq!(body["sign"], json!(hmac(format!("{ts}\nSEC-signing-secret").as_bytes(), b"")));
    assert_eq!(body["msg_type"], "interactive");
    let card = &body["card"];
    assert_eq!(
        card["header"],
        json!({"template": "red", "title": {"tag": "plain_text", "content": "shop/prod: deployment FAILED"}})
    );
    let text = card["elements"][0]["content"].as_str().expect("text");
    assert!(text.contains("&#60;&#33;channel&#62; &#38; &#91;x&#93;&#40;http://evil.example&#41;"), "{text}");
    assert!(text.contains("**Version:** 1.2.0") && text.contains(&format!("]({LINK})")), "{text}");
    assert!(card["elements"][1].to_string().contains(&row.id.to_string()));
    // Without a sign secret there is no signature at all.
    let (seen, _) = once(json!({"type": "feishu", "url": "u"}), Reply::body(200, r#"{"StatusCode":0}"#), plain()).await;
    assert!(seen.json().get("sign").is_none());
}

#[tokio::test]
async fn dingtalk() {
    let provider = json!({"type": "dingtalk", "url": "u", "sign": "s"});
    let (seen, row) = once(provider, Reply::body(200, r#"{"errcode":0,"errmsg":"ok"}"#), plain()).await;
    assert_eq!(row.state, State::Sent);
    let url = reqwest::Url::parse(&format!("http://x/?{}", seen.query)).expect("query");
    let q: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(q["access_token"], "abcdefgh");
    let ts = &q["timestamp"];
    assert!(fresh(ts.parse().expect("number"), 1_000), "{ts}");
    assert_eq!(q["sign"], hmac(b"SEC-signing-secret", format!("{ts}\nSEC-signing-secret").as_bytes()));
    let body = seen.json();
    assert_eq!((&body["msgtype"], &body["at"]), (&json!("markdown"), &json!({"isAtAll": false})));
    let text = body["markdown"]["text"].as_str().expect("text");
    assert!(text.contains("＜!channel＞ ＆ ［x］(http://evil.example) ＠all"), "{text}");
    assert!(text.ends_with(&format!("windlass {}", row.id)), "{text}");
}

#[tokio::test]
async fn wecom() {
    let (seen, row) =
        once(json!({"type": "wecom", "url": "u"}), Reply::body(200, r#"{"errcode":0,"errmsg":"ok"}"#), plain()).await;
    assert_eq!(row.state, State::Sent);
    let body = seen.json();
    assert_eq!(body["msgtype"], "markdown");
    let text = body["markdown"]["content"].as_str().expect("text");
    assert!(text.starts_with("**🔴 ALERT: shop/prod: deployment FAILED**\n"), "{text}");
    assert!(text.contains("＜!channel＞") && text.ends_with(&row.id.to_string()), "{text}");
}

#[tokio::test]
async fn teams() {
    let (seen, row) = once(json!({"type": "teams", "url": "u"}), Reply::status(202), plain()).await;
    assert_eq!(row.state, State::Sent);
    let body = seen.json();
    let card = &body["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    let blocks = &card["content"]["body"];
    assert_eq!(
        (&blocks[0]["text"], &blocks[0]["color"]),
        (&json!("shop/prod: deployment FAILED"), &json!("attention"))
    );
    let text = blocks[1]["text"].as_str().expect("text");
    assert!(text.contains(r"\<\!channel\> &amp; \[x\]\(http://evil.example\)"), "{text}");
    assert!(blocks[2]["text"].as_str().expect("footer").contains(&row.id.to_string()));
    assert_eq!(card["content"]["actions"][0]["url"], LINK);
}

#[tokio::test]
async fn webhook() {
    let provider = json!({"type": "webhook", "url": "u", "sign": "w"});
    let (seen, row) = once(provider, Reply::status(204), plain()).await;
    assert_eq!(row.state, State::Sent);
    let (id, ts) = (seen.header("webhook-id").expect("id"), seen.header("webhook-timestamp").expect("timestamp"));
    assert_eq!(id, row.id.to_string());
    assert!(fresh(ts.parse().expect("number"), 1), "{ts}");
    let want = hmac(b"windlass-windlass", format!("{id}.{ts}.{}", seen.body).as_bytes());
    assert_eq!(seen.header("webhook-signature"), Some(format!("v1,{want}").as_str()));
    let body = seen.json();
    assert_eq!(body["type"], "deployment.failed");
    assert_eq!(body["data"]["specversion"], "1.0");
    assert_eq!(body["data"]["id"], row.event_id.to_string());
    assert_eq!(body["data"]["type"], "io.windlass.deployment.failed.v1");
    assert_eq!(body["data"]["data"]["payload"], plain(), "the event as it is");
    assert_eq!((&body["severity"], &body["link"]), (&json!("alert"), &json!(LINK)));
}

#[tokio::test]
async fn answers_are_judged_by_each_providers_own_words() {
    use State::{Dead, Pending, Sent};
    let slack = json!({"type": "slack", "url": "u"});
    let feishu = json!({"type": "feishu", "url": "u"});
    let dingtalk = json!({"type": "dingtalk", "url": "u"});
    let wecom = json!({"type": "wecom", "url": "u"});
    let teams = json!({"type": "teams", "url": "u"});
    let hook = json!({"type": "webhook", "url": "u", "sign": "w"});
    // Pending with 0 attempts is a rate limit, with 1 a failure that is tried again.
    for (provider, status, body, state, attempts) in [
        (&slack, 200, "ok", Sent, 1),
        (&slack, 200, "<html>sign in</html>", Pending, 1),
        (&slack, 404, "no_service", Dead, 1),
        (&slack, 429, "", Pending, 0),
        (&slack, 503, "", Pending, 1),
        (&feishu, 200, r#"{"code":0,"msg":"success"}"#, Sent, 1),
        (&feishu, 200, r#"{"code":11232,"msg":"frequency limited"}"#, Pending, 0),
        (&feishu, 200, r#"{"code":19001,"msg":"token invalid"}"#, Dead, 1),
        (&feishu, 200, r#"{"code":19021,"msg":"sign match fail"}"#, Dead, 1),
        (&feishu, 200, r#"{"code":7,"msg":"?"}"#, Pending, 1),
        (&feishu, 200, "", Pending, 1),
        (&feishu, 500, r#"{"code":0}"#, Pending, 1),
        (&dingtalk, 200, r#"{"errcode":0,"errmsg":"ok"}"#, Sent, 1),
        (&dingtalk, 200, r#"{"errcode":130101,"errmsg":"send too fast"}"#, Pending, 0),
        (&dingtalk, 200, r#"{"errcode":310000,"errmsg":"sign not match"}"#, Dead, 1),
        (&dingtalk, 200, r#"{"errcode":300001,"errmsg":"token is not exist"}"#, Dead, 1),
        (&dingtalk, 200, r#"{"errcode":-1,"errmsg":"busy"}"#, Pending, 1),
        (&wecom, 200, r#"{"errcode":0,"errmsg":"ok"}"#, Sent, 1),
        (&wecom, 200, r#"{"errcode":45009,"errmsg":"freq out of limit"}"#, Pending, 0),
        (&wecom, 200, r#"{"errcode":93000,"errmsg":"invalid webhook url"}"#, Dead, 1),
        (&wecom, 200, r#"{"errcode":-1,"errmsg":"busy"}"#, Pending, 1),
        (&teams, 202, "", Sent, 1),
        (&teams, 200, "Webhook message delivery failed with error: HTTP error 429", Pending, 0),
        (&teams, 200, "Webhook message delivery failed with error: HTTP error 500", Pending, 1),
        (&teams, 200, "<!DOCTYPE html><p>sign in", Pending, 1),
        (&teams, 400, "bad card", Dead, 1),
        (&hook, 201, "anything", Sent, 1),
        (&hook, 410, "", Dead, 1),
        (&hook, 404, "", Pending, 1),
        (&hook, 429, "", Pending, 0),
    ] {
        let (_, row) = once(provider.clone(), Reply::body(status, body), plain()).await;
        assert_eq!((row.state, row.attempts), (state, attempts), "{provider} {status} {body}: {:?}", row.last_error);
    }
}

#[tokio::test]
async fn a_bad_signing_secret_or_address_is_said_at_once() {
    let w = World::sqlite().await;
    let t = Target::start(Reply::status(200)).await;
    w.secret("u", &t.url("/")).await;
    w.secret("nonsense", "not a whsec").await;
    w.secret("nowhere", "not an address").await;
    w.secret("w", "whsec_d2luZGxhc3Mtd2luZGxhc3M=").await;
    let hook = |u: &str, s: &str| json!({"type": "webhook", "url": u, "sign": s});
    let n = w.notifier(quick()).await;
    for (name, provider, want) in [
        ("a", hook("u", "nonsense"), "whsec_"),
        ("b", hook("nowhere", "w"), "no usable address"),
        ("c", json!({"type": "dingtalk", "url": "nowhere"}), "no URL"),
        ("d", json!({"type": "email", "server": "mail", "from": "a@b", "to": ["c@d"]}), "host:port"),
        ("e", json!({"type": "email", "server": "mail:25", "from": "a@b", "to": []}), "no recipient"),
        ("f", json!({"type": "email", "server": "mail:25", "from": "a b", "to": ["c@d"]}), "no mail address"),
    ] {
        w.channel_with(name, provider, json!([{"events": ["deployment."]}]), None).await;
        w.failed().await;
        n.take_events().await.expect("takes");
        n.serve(name).await.expect("serves");
        let row = w.only(name).await;
        let error = row.last_error.expect("error");
        assert!(row.state == State::Dead && error.contains(want), "{name}: {error}");
        assert!(!error.contains("not an address"), "{error}");
        w.delete_channel(name).await;
    }
    assert!(t.seen().is_empty());
}

#[tokio::test]
async fn the_largest_events_fit_every_provider() {
    let huge = json!({"reason": "\"你\\<&\n*".repeat(60_000), "version": "v".repeat(100_000), "failed_hosts": vec!["web\"<"; 5_000]});
    for (provider, reply, limit) in [
        (json!({"type": "slack", "url": "u"}), Reply::body(200, "ok"), 40_000),
        (json!({"type": "feishu", "url": "u", "sign": "s"}), Reply::body(200, r#"{"code":0}"#), 20_000),
        (json!({"type": "dingtalk", "url": "u", "sign": "s"}), Reply::body(200, r#"{"errcode":0}"#), 20_000),
        (json!({"type": "wecom", "url": "u"}), Reply::body(200, r#"{"errcode":0}"#), 20_000),
        (json!({"type": "teams", "url": "u"}), Reply::status(202), 28_000),
        (json!({"type": "webhook", "url": "u", "sign": "w"}), Reply::status(200), 512_000),
    ] {
        let (seen, row) = once(provider.clone(), reply, huge.clone()).await;
        assert_eq!(row.state, State::Sent, "{provider}");
        assert!(seen.body.len() <= limit, "{provider}: {}", seen.body.len());
        assert!(seen.body.contains(LINK), "{provider}");
        let body = seen.json();
        if let Some(text) = body["markdown"]["content"].as_str() {
            assert!(text.len() <= 4_096, "WeCom: {}", text.len());
        }
        if let Some(text) = body["blocks"][0]["text"]["text"].as_str() {
            assert!(text.chars().count() <= 3_000, "Slack: {}", text.len());
        }
    }
}
