//! Texts that somebody else's shell, database, page or template would obey, in every text field of the api: each is refused with
//! a reason, or comes back byte for byte. What scripts make of them is tested with the agent, what chats do with the notifier.

use crate::world::{CATALOG, SECRET, World, answer, digest, signed};
use futures::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};
use uuid::Uuid;
use windlass_store::sql;
use windlass_testkit::{databases, hostile_strings};

const AT_ONCE: usize = 8;

/// Where the text is given, and where it must be found again.
struct Field {
    name: &'static str,
    method: Method,
    /// `{}` is the text, encoded for a path; `#` a number of its own.
    path: &'static str,
    /// `@@`, as a value or key, is the text; `#` in other texts a number of its own.
    body: Value,
    back: Back,
}

enum Back {
    /// In the answer itself.
    Answer,
    /// In what this address says afterwards.
    At(&'static str),
    /// In the command that was stored.
    Command,
    /// Nowhere: it names what is there, or nothing.
    Named,
    /// In the trigger log, or in the artifact that it made.
    Hook,
}

fn fields() -> Vec<Field> {
    let f = |name, method, path, body, back| Field { name, method, path, body, back };
    let artifact = |field: &str| {
        let mut a = json!({ "version": "1.0.#", "digest": digest('a'), "url": "https://ci.example/#.tar.gz" });
        a[field] = json!("@@");
        a
    };
    let deployment = |field: &str, value: Value| {
        let mut d = json!({ "environment": "beta", "version": "1.0.0" });
        d[field] = value;
        d
    };
    let mut all: Vec<Field> = ["version", "digest", "url", "git_ref", "commit", "committer", "build_url"]
        .into_iter()
        .map(|n| f(n, Method::POST, "/projects/shop/artifacts", artifact(n), Back::Answer))
        .collect();
    for (name, value) in [
        ("environment", json!("@@")),
        ("version", json!("@@")),
        ("inputs", json!({ "word": "@@" })),
        ("inputs", json!({ "@@": "x" })),
        ("hosts", json!(["@@"])),
        ("add_hosts", json!(["@@"])),
        ("exclude_hosts", json!(["@@"])),
        ("values", json!({ "v": "@@" })),
        ("values", json!({ "@@": 1 })),
        ("values", json!({ "v": { "@@": ["@@"] } })),
        ("note", json!("@@")),
        ("kind", json!("@@")),
    ] {
        let back = if name == "version" { Back::Named } else { Back::Command };
        all.push(f(name, Method::POST, "/projects/shop/deployments", deployment(name, value), back));
    }
    let host = |field: &str, value: Value| {
        let mut h = json!({ "kind": "host", "name": "h#", "address": "127.0.0.1" });
        h[field] = value;
        h
    };
    for (name, value) in [
        ("name", json!("@@")),
        ("address", json!("@@")),
        ("labels", json!({ "l": "@@" })),
        ("labels", json!({ "@@": "x" })),
        ("values", json!({ "v": "@@" })),
        ("values", json!({ "@@": "x" })),
    ] {
        all.push(f(name, Method::PUT, "/catalog/host/h#", host(name, value), Back::At("/catalog/host/h#")));
    }
    let project = |field: &str| {
        let mut p = json!({ "kind": "project", "name": "p#", "group": "retail" });
        p[field] = json!("@@");
        p
    };
    for name in ["name", "group", "title"] {
        all.push(f(name, Method::PUT, "/catalog/project/p#", project(name), Back::At("/catalog/project/p#")));
    }
    let step = |with: Value| {
        json!({ "kind": "flow", "project": "shop", "flow": "f#", "steps": [
            { "id": "r", "waves": 1, "steps": [{ "id": "s", "uses": "script", "with": with }] }] })
    };
    for with in [
        json!({ "run": "@@" }),
        json!({ "run": "true", "args": ["@@"] }),
        json!({ "run": "true", "env": { "V": "@@" } }),
        json!({ "run": "true", "env": { "@@": "x" } }),
        json!({ "run": "true", "stdin": "@@" }),
    ] {
        all.push(f("with", Method::PUT, "/catalog/flow/shop/f#", step(with), Back::At("/catalog/flow/shop/f#")));
    }
    let person = |name: &str, display: &str| json!({ "name": name, "display": display });
    all.push(f("name", Method::POST, "/people", person("@@", "x"), Back::Answer));
    all.push(f("display", Method::POST, "/people", person("n#", "@@"), Back::Answer));
    all.push(f(
        "label",
        Method::POST,
        "/tokens",
        json!({ "person": "admin", "label": "@@" }),
        Back::At("/tokens?limit=500"),
    ));
    all.push(f("person", Method::POST, "/tokens", json!({ "person": "@@" }), Back::Answer));
    all.push(f(
        "group",
        Method::POST,
        "/people/admin/grants",
        json!({ "grants": [{ "project_group": "@@", "role": "admin" }, { "project_group": "*", "role": "admin" }] }),
        Back::Answer,
    ));
    let mark = |version: &str, reason: &str| json!({ "kind": "veto", "version": version, "reason": reason });
    all.push(f("reason", Method::POST, "/projects/shop/marks", mark("9.#", "@@"), Back::Answer));
    all.push(f("version", Method::POST, "/projects/shop/marks", mark("@@", "why"), Back::Answer));
    all.push(f("secret", Method::PUT, "/secrets/project.shop/s#", json!({ "value": "@@" }), Back::At("/secrets")));
    all.push(f("enroll", Method::POST, "/enroll-tokens", json!({ "host": "@@" }), Back::Answer));
    for path in [
        "/catalog/host/{}",
        "/projects/{}/artifacts",
        "/projects/shop/artifacts/{}",
        "/deployments/{}",
        "/deployments?project={}",
        "/deployments?cursor={}",
        "/hosts/{}/lock",
    ] {
        all.push(f(
            "path",
            if path.ends_with("lock") { Method::POST } else { Method::GET },
            path,
            json!({ "reason": "x" }),
            Back::Answer,
        ));
    }
    for field in ["version", "url", "digest", "commit", "committer", "ref", "build_url"] {
        let mut custom = json!({ "version": "2.0.#", "url": "https://ci.example/#.tar.gz", "digest": digest('b') });
        custom[field] = json!("@@");
        let event = json!({ "context": { "version": "0.4.1", "id": "e#", "source": "/ci", "type": "dev.cdevents.artifact.published.0.2.0" },
            "subject": { "id": "x", "type": "artifact", "content": {} }, "customData": custom });
        all.push(f("hook", Method::POST, "/hooks/cdevents/shop", event, Back::Hook));
    }
    all
}

fn put(v: &Value, text: &str, n: usize) -> Value {
    match v {
        Value::String(s) if s == "@@" => json!(text),
        Value::String(s) => json!(s.replace('#', &n.to_string())),
        Value::Array(l) => l.iter().map(|v| put(v, text, n)).collect(),
        Value::Object(m) => Value::Object(
            m.iter().map(|(k, v)| (if k == "@@" { text.to_owned() } else { k.clone() }, put(v, text, n))).collect(),
        ),
        other => other.clone(),
    }
}

/// Whether the text is a value or a key in it, whole.
fn holds(v: &Value, text: &str) -> bool {
    match v {
        Value::String(s) => s == text,
        Value::Array(l) => l.iter().any(|v| holds(v, text)),
        Value::Object(m) => m.iter().any(|(k, v)| k == text || holds(v, text)),
        _ => false,
    }
}

async fn one(w: &World, f: &Field, text: &str, n: usize) -> &'static str {
    let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
    let path = f.path.replace('#', &n.to_string()).replace("{}", &encoded);
    let body = put(&f.body, text, n);
    let what = || format!("{} {} with {text:?}", f.path, f.name);
    let (status, got) = match f.back {
        Back::Hook => {
            let bytes = body.to_string().into_bytes();
            w.hook(&path, &signed(&format!("m{n}"), &bytes), bytes).await
        }
        _ if f.method == Method::GET => w.get(&path).await,
        // An address that no server would read; the client sees it first.
        _ => match w.request(f.method.clone(), &path, &w.admin).json(&body).send().await {
            Ok(r) => answer(r).await,
            Err(e) => panic!("{}: {e}", what()),
        },
    };
    assert!(status < 500, "{}: {status} {got}", what());
    if status >= 400 {
        return "refused";
    }
    if f.path.contains("{}") {
        return "carried";
    }
    let found = match &f.back {
        Back::Named => true,
        Back::Answer => holds(&got, text),
        Back::At("/secrets") => {
            let (_, names) = w.get("/secrets").await;
            !holds(&names, text) || text.len() < 3
        }
        Back::At(path) => holds(&w.get(&path.replace('#', &n.to_string())).await.1, text),
        Back::Command => {
            let id: Uuid =
                got["id"].as_str().and_then(|i| i.parse().ok()).unwrap_or_else(|| panic!("{}: {got}", what()));
            let mut tx = w.ctx.store.read().await.expect("reads");
            let stored = sql("SELECT payload FROM commands WHERE id = $1")
                .bind(id)
                .fetch_scalar::<sqlx::types::Json<Value>>(&mut tx);
            holds(&stored.await.expect("reads").expect("the command").0, text)
        }
        Back::Hook => {
            // What is only for people is shown without control characters and cut.
            let shown: String = text.chars().filter(|c| !c.is_control()).take(500).collect();
            let id = got["artifact"].as_str();
            let (_, all) = w.get("/projects/shop/artifacts?limit=500").await;
            let a = all["items"].as_array().and_then(|l| l.iter().find(|a| a["id"].as_str() == id)).cloned();
            a.is_none_or(|a| holds(&a, &shown) || shown.is_empty())
        }
    };
    // White space around a reason is left out.
    let found = found || text.trim() != text && holds(&got, text.trim());
    assert!(found, "{}: taken and changed: {got}", what());
    "carried"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_text_in_every_field_is_refused_or_carried() {
    let mut tried = 0;
    for (third, db) in databases().await.into_iter().enumerate() {
        let w = World::start(db).await;
        // One more input, so that a text can be given; and no policy, which would request more than is asked for here.
        let catalog = CATALOG
            .replace("flow: rolling\nsteps:", "flow: rolling\ninputs:\n  word: { type: string, default: x }\nsteps:");
        let catalog = catalog.split("---\nkind: policy").next().expect("the part before");
        let (status, p) = w.apply(&w.admin, catalog).await;
        assert_eq!(status, 200, "{p}");
        let secret = w.request(Method::PUT, "/secrets/project.shop/ci", &w.admin).json(&json!({ "value": SECRET }));
        assert_eq!(secret.send().await.expect("answers").status(), 200);
        let first = json!({ "version": "1.0.0", "digest": digest('a'), "url": "https://ci.example/x.tar.gz" });
        assert_eq!(w.post("/projects/shop/artifacts", first).await.0, 201);
        let (fields, texts) = (fields(), hostile_strings());
        let number = AtomicUsize::new(1);
        let pairs: Vec<(&Field, &String)> = fields.iter().flat_map(|f| texts.iter().map(move |t| (f, t))).collect();
        // Each database gets its own third, in which every field meets many texts and every text many fields.
        let step = texts.len();
        let mine = |n: &usize| (n / step + n % step) % 3 == third;
        let pairs: Vec<(&Field, &String)> = (0..pairs.len()).filter(mine).map(|n| pairs[n]).collect();
        let done: Vec<(&'static str, &'static str)> = stream::iter(&pairs)
            .map(|(f, t)| {
                let n = number.fetch_add(1, Ordering::SeqCst);
                let w = &w;
                async move { (f.path, one(w, f, t, n).await) }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (path, how) in &done {
            counts.entry(path).or_default()[usize::from(*how == "carried")] += 1;
        }
        let (refused, carried) = counts.values().fold((0, 0), |(r, c), [a, b]| (r + a, c + b));
        for (path, [refused, carried]) in &counts {
            eprintln!("injection: {refused:5} refused {carried:5} carried {path}");
        }
        eprintln!(
            "injection: {} of {} fields x {} texts: {refused} refused, {carried} carried, 0 changed",
            done.len(),
            fields.len(),
            texts.len()
        );
        assert!(carried > 500 && refused > 500, "{refused} {carried}");
        tried += done.len();
        // All is still there and works.
        assert_eq!(w.get("/me").await.1["person"], "admin");
        assert!(w.count("artifacts").await > 50 && w.count("tokens").await > 50);
        w.stop().await;
    }
    assert!(tried >= 5000, "{tried}");
}
