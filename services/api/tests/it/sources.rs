//! Projects that live in Git, with real repositories and the real `git`.

use crate::world::{PATIENCE, SECRET, World, answer};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use windlass_store::sql;
use windlass_testkit::{databases, eventually};

/// A repository as people have it.
struct Repo {
    dir: PathBuf,
}

impl Repo {
    fn new(root: &Path, name: &str) -> Repo {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).expect("directory");
        let r = Repo { dir };
        r.git(&["init", "--quiet", "--initial-branch=main"]);
        r
    }
    fn git(&self, args: &[&str]) -> String {
        let out = Command::new("git")
            .current_dir(&self.dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .args(["-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"])
            .args(args)
            .output()
            .expect("git is installed");
        assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
    fn write(&self, path: &str, text: &str) {
        let file = self.dir.join(path);
        std::fs::create_dir_all(file.parent().expect("parent")).expect("directory");
        std::fs::write(file, text).expect("writes");
    }
    /// Commits all there is; the answer is the commit.
    fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "change"]);
        self.git(&["rev-parse", "HEAD"])
    }
    fn url(&self) -> String {
        format!("file://{}", self.dir.display())
    }
}

fn flow(name: &str, run: &str) -> String {
    format!(
        "kind: flow\nproject: shop\nflow: {name}\nsteps:\n  - id: rollout\n    waves: \"1\"\n    steps:\n      - id: say\n        uses: script\n        with: {{ run: \"{run}\" }}\n"
    )
}

fn environment(name: &str, flow: &str) -> String {
    format!("kind: environment\nproject: shop\nname: {name}\nhosts: [h1]\nflow: {flow}\n")
}

fn project(git: &str, more: &str) -> String {
    format!(
        "kind: project\nname: shop\ngroup: retail\nhooks: {{ github: {{ secret: gh }} }}\nsource:\n  git: \"{git}\"\n{more}"
    )
}

impl World {
    async fn source(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let last = std::cell::RefCell::new(Value::Null);
        let found = tokio::time::timeout(
            PATIENCE,
            eventually(PATIENCE * 2, what, async || {
                let (_, s) = self.get("/projects/shop/source").await;
                last.replace(s.clone());
                fits(&s).then_some(s)
            }),
        );
        found.await.unwrap_or_else(|_| panic!("{what}: {:#}", last.borrow()))
    }
    async fn at(&self, commit: &str) -> Value {
        self.source("the commit is applied", |s| s["applied_commit"] == commit && s["state"] == "applied").await
    }
    async fn refreshed(&self) {
        assert_eq!(self.post("/projects/shop/source/refresh", json!({})).await.0, 202);
    }
    async fn flow_of(&self, key: &str) -> (u16, Value) {
        self.get(&format!("/catalog/flow/{key}")).await
    }
    /// What was said loudly of a project's source.
    async fn alerts(&self) -> Vec<String> {
        let mut tx = self.ctx.store.read().await.expect("reads");
        let said = "SELECT type || ' ' || CAST(payload AS TEXT) FROM events
                    WHERE type IN ('source.broken', 'source.unreachable') AND severity = 'alert' ORDER BY at";
        let rows: Vec<(String,)> = sql(said).fetch_all(&mut tx).await.expect("asks");
        rows.into_iter().map(|(text,)| text).collect()
    }
}

fn quick(s: &mut windlass_runtime::Settings) {
    s.poll_s = Duration::from_millis(200).into();
    s.source.allow_file = true;
    s.source.timeout_s = Duration::from_secs(10).into();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_commits_are_applied_and_wrong_ones_change_nothing() {
    for db in databases().await {
        let mut w = World::start_with(db, quick).await;
        w.fill().await;
        // Of two apis one looks; what it does is seen by both.
        w.another_api().await;
        let repo = Repo::new(w.dir.path(), "shop.git.d");
        repo.write(".windlass/flows/web.yaml", &flow("web", "echo one"));
        repo.write(".windlass/gray.yml", &environment("gray", "web"));
        repo.write("other/not-ours.yaml", "kind: host\nname: h9\naddress: a\n");
        repo.write(".windlass/readme.md", "not a document");
        let one = repo.commit();
        let (status, p) = w.apply(&w.admin, &project(&repo.url(), "")).await;
        assert_eq!(status, 200, "{p}");
        let s = w.at(&one).await;
        assert_eq!(s["items"].as_array().map(Vec::len), Some(2), "{s:#}");
        let (_, entry) = w.flow_of("shop/web").await;
        assert_eq!((&entry["updated_by"], &entry["revision"]), (&json!(format!("git:{one}")), &json!(1)), "{entry:#}");
        assert_eq!(w.get("/catalog/host/h9").await.0, 404, "what is not below the path is not ours");

        // A broken file: the good one beside it is not applied either, and the alert names file, line and column.
        repo.write(".windlass/flows/web.yaml", &flow("web", "echo two"));
        repo.write(".windlass/gray.yml", "kind: environment\nproject: shop\nname: gray\nhosts: [h1]\nflo: web\n");
        let bad = repo.commit();
        w.refreshed().await;
        let s = w.source("it is broken", |s| s["state"] == "broken").await;
        assert_eq!((&s["applied_commit"], &s["fetched_commit"]), (&json!(one), &json!(bad)));
        let faults = s["faults"].as_array().expect("faults");
        assert!(faults[0]["at"].as_str().is_some_and(|a| a.starts_with(".windlass/gray.yml")), "{s:#}");
        assert!(faults.iter().any(|f| f["line"] == 5 && f["column"].is_u64()), "{s:#}");
        assert_eq!(w.flow_of("shop/web").await.1["revision"], 1);
        w.refreshed().await;
        w.source("it was looked at again", |s| s["fetched_at"] != faults[0]["never"] && s["state"] == "broken").await;
        let said = w.alerts().await;
        assert_eq!(said.len(), 1, "said once: {said:#?}");

        // A name that leads nowhere is found when it is applied; the file is named all the same.
        repo.write(".windlass/gray.yml", &environment("gray", "nowhere"));
        let lost = repo.commit();
        w.refreshed().await;
        let s = w.source("its faults", |s| s["fetched_commit"] == lost.as_str()).await;
        assert!(
            s["faults"][0]["at"].as_str().is_some_and(|a| a.starts_with(".windlass/gray.yml: environment shop/gray")),
            "{s:#}"
        );
        assert_eq!(w.flow_of("shop/web").await.1["revision"], 1);

        // History that was written anew (a force-push) is a commit like any other.
        repo.write(".windlass/gray.yml", &environment("gray", "web"));
        repo.git(&["add", "--all"]);
        repo.git(&["commit", "--quiet", "--amend", "--message", "again"]);
        let forced = repo.git(&["rev-parse", "HEAD"]);
        w.refreshed().await;
        w.at(&forced).await;
        assert_eq!(w.flow_of("shop/web").await.1["revision"], 2);

        // What is gone from the repository stays, until pruning is asked for; what is still used is not pruned.
        repo.write(".windlass/flows/extra.yaml", &flow("extra", "echo x"));
        let more = repo.commit();
        w.refreshed().await;
        w.at(&more).await;
        std::fs::remove_file(repo.dir.join(".windlass/flows/extra.yaml")).expect("removes");
        let less = repo.commit();
        w.refreshed().await;
        w.at(&less).await;
        assert_eq!(w.flow_of("shop/extra").await.0, 200, "kept");
        let (status, p) = w.apply(&w.admin, &project(&repo.url(), "  prune: true\n")).await;
        assert_eq!(status, 200, "{p}");
        w.refreshed().await;
        eventually(PATIENCE, "it is pruned", async || (w.flow_of("shop/extra").await.0 == 404).then_some(())).await;
        assert_eq!(w.flow_of("shop/web").await.0, 200);
        std::fs::remove_file(repo.dir.join(".windlass/flows/web.yaml")).expect("removes");
        let used = repo.commit();
        w.refreshed().await;
        let s = w.source("its faults", |s| s["fetched_commit"] == used.as_str() && s["state"] == "broken").await;
        assert!(
            s["detail"].as_str().is_some_and(|d| d.contains("environment shop/gray") || d.contains("there is no flow")),
            "{s:#}"
        );
        assert_eq!(w.flow_of("shop/web").await.0, 200);
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_speaks_for_its_own_project_only_and_within_its_bounds() {
    for db in databases().await {
        let w = World::start_with(db, |s| {
            quick(s);
            s.source.max_pack_bytes = 1 << 20;
            s.source.max_document_bytes = 64 << 10;
            s.source.max_files = 5;
            s.source.timeout_s = Duration::from_secs(3).into();
        })
        .await;
        w.fill().await;
        let catalog = w.count("catalog_revisions").await;
        let repo = Repo::new(w.dir.path(), "hostile.d");
        let first = |s: &Value| s["faults"][0]["detail"].as_str().unwrap_or_default().to_owned();
        let foreign = [
            "kind: host\nname: h7\naddress: a\n".to_owned(),
            environment("beta", "rolling").replace("project: shop", "project: bank"),
            "kind: project\nname: shop\ngroup: money\n".to_owned(),
            "kind: policy\nname: none\n".to_owned(),
        ];
        repo.write(".windlass/a.yaml", &foreign[0]);
        repo.commit();
        let (status, p) = w.apply(&w.admin, &project(&repo.url(), "")).await;
        assert_eq!(status, 200, "{p}");
        for text in &foreign {
            repo.write(".windlass/a.yaml", text);
            repo.git(&["add", "--all"]);
            repo.git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
            let commit = repo.git(&["rev-parse", "HEAD"]);
            w.refreshed().await;
            let s = w.source("refused", |s| s["fetched_commit"] == commit.as_str()).await;
            assert!(first(&s).contains("and nothing else"), "{s:#}");
        }
        let unreachable = async |what: &str| {
            w.refreshed().await;
            let says = |s: &Value| s["detail"].as_str().is_some_and(|d| d.contains(what));
            w.source(what, |s| s["state"] == "unreachable" && says(s)).await;
        };
        // A link is never followed, wherever it leads; nor is a path.
        let secret = w.dir.path().join("outside.yaml");
        std::fs::write(&secret, flow("stolen", "x")).expect("writes");
        std::os::unix::fs::symlink(&secret, repo.dir.join(".windlass/b.yaml")).expect("links");
        std::fs::remove_file(repo.dir.join(".windlass/a.yaml")).expect("removes");
        repo.commit();
        unreachable("symbolic link").await;
        std::fs::remove_file(repo.dir.join(".windlass/b.yaml")).expect("removes");
        // Too many documents, too large ones, and a repository that is too large altogether.
        for n in 0..6 {
            repo.write(&format!(".windlass/n{n}.yaml"), &flow(&format!("n{n}"), "x"));
        }
        repo.commit();
        unreachable("more than 5 documents").await;
        (1..6).for_each(|n| std::fs::remove_file(repo.dir.join(format!(".windlass/n{n}.yaml"))).expect("removes"));
        repo.write(".windlass/n0.yaml", &format!("{}# {}\n", flow("n0", "x"), "x".repeat(70 << 10)));
        repo.commit();
        unreachable("larger than 65536 bytes in all").await;
        let mut noise = vec![0u8; 4 << 20];
        let mut x: u32 = 1;
        noise.iter_mut().for_each(|b| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            *b = x.to_le_bytes()[0];
        });
        std::fs::write(repo.dir.join("huge.bin"), &noise).expect("writes");
        repo.write(".windlass/n0.yaml", &flow("n0", "x"));
        repo.commit();
        unreachable("the repository is larger than 1048576 bytes").await;
        // A branch that is not there; a server that never answers; a transport that is not allowed.
        let set = async |git: &str, more: &str| {
            let (status, p) = w.apply(&w.admin, &project(git, more)).await;
            assert_eq!(status, 200, "{p}");
        };
        set(&repo.url(), "  ref: nope\n").await;
        unreachable("no branch or tag \"nope\"").await;
        let silent = TcpListener::bind("127.0.0.1:0").expect("port");
        set(&format!("https://{}/x.git", silent.local_addr().expect("address")), "").await;
        unreachable("did not answer within 3s").await;
        for bad in ["ext::sh -c id", "http://127.0.0.1/x", "--upload-pack=id"] {
            assert_eq!(w.apply(&w.admin, &project(bad, "")).await.0, 422, "{bad}");
        }
        assert_eq!(w.count("catalog_revisions").await, catalog + 3, "only the project itself was saved");
        let left = std::fs::read_dir(w.dir.path().join("sources")).map(|d| d.count()).unwrap_or(0);
        assert_eq!(left, 0, "nothing that was fetched stays");
        w.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_push_is_looked_at_at_once() {
    for db in databases().await {
        let w = World::start_with(db, quick).await;
        w.fill().await;
        let repo = Repo::new(w.dir.path(), "shop.d");
        repo.write("deploy/web.yaml", &flow("web", "echo one"));
        repo.git(&["checkout", "--quiet", "-b", "release/1"]);
        let one = repo.commit();
        let more = "  ref: release/1\n  path: deploy\n  poll: 1h\n  hook: gh\n";
        assert_eq!(w.apply(&w.admin, &project(&repo.url(), more)).await.0, 200);
        w.at(&one).await;
        repo.write("deploy/web.yaml", &flow("web", "echo two"));
        let two = repo.commit();
        let body = br#"{"ref":"refs/heads/release/1"}"#.to_vec();
        let sign = |key: &[u8]| {
            let mut m = Hmac::<Sha256>::new_from_slice(key).expect("key");
            m.update(&body);
            let hex: String = m.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
            vec![("x-hub-signature-256".to_owned(), format!("sha256={hex}"))]
        };
        let (status, _) = w.hook("/hooks/git/shop", &sign(b"wrong"), body.clone()).await;
        assert_eq!(status, 403);
        assert_eq!(w.hook("/hooks/git/bank", &sign(SECRET.as_bytes()), body.clone()).await.0, 403, "it has no source");
        assert_eq!(w.get("/projects/shop/source").await.1["applied_commit"], json!(one));
        assert_eq!(w.hook("/hooks/git/shop", &sign(SECRET.as_bytes()), body.clone()).await.0, 202);
        w.at(&two).await;
        // Who may only look may not make it look.
        let viewer = w.person("vic", &[("retail", "viewer")]).await;
        let r = w.request(Method::POST, "/projects/shop/source/refresh", &viewer).send().await.expect("answers");
        assert_eq!(answer(r).await.0, 403);
        w.stop().await;
    }
}
