//! What ships nothing: a script, a switchover of databases, a build.

use super::{Lab, PROJECT, digest, environment, flow, run, told};
use serde_json::{Value, json};
use std::process::Command;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_its_script_on_the_chosen_hosts() {
    let lab = Lab::start("script-job", "").await;
    lab.release("1.0.0", &[]).await;
    let d = lab.deploy("1.0.0", Value::Null).await;
    let logs = lab.w.get(&format!("/deployments/{}/logs?limit=200", d["id"].as_str().expect("id"))).await;
    assert!(told(&logs).contains("2 files would be removed"), "{}", told(&logs));
    assert!(lab.shared(0, "tmp/old").exists(), "a dry run removes nothing");
    // One host is taken by another job: it is left alone, its mark too.
    std::fs::write(lab.shared(0, ".cleaning"), "another").expect("mark");
    let id = lab.request("online", json!({ "version": "1.0.0", "inputs": { "dry_run": false } })).await;
    let reason = super::stops(&lab, &id).await;
    assert!(reason.contains("another job cleans here"), "{reason}");
    assert!(lab.shared(0, ".cleaning").exists() && lab.shared(0, "tmp/old").exists());
    std::fs::remove_file(lab.shared(0, ".cleaning")).expect("mark");
    lab.w.post(&format!("/deployments/{id}/retry"), json!({})).await;
    lab.w.until(&id, &["succeeded"]).await;
    for h in [0, 1] {
        assert!(!lab.shared(h, "tmp/old").exists() && !lab.shared(h, "tmp/deep/old").exists());
        assert!(lab.shared(h, "tmp/new").exists(), "young files stay");
        assert!(!lab.shared(h, ".cleaning").exists(), "the mark is gone");
    }
}

impl Lab {
    fn sql(&self, host: usize, sql: &str) -> Result<String, String> {
        let bin = std::fs::read_to_string(self.shared(host, "postgres.bin")).expect("where PostgreSQL is");
        let mut c = Command::new(format!("{}/psql", bin.trim()));
        let port = self.port.to_string();
        c.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-p", &port, "-h"]);
        let out = c.arg(&self.hosts[host].address).args(["-c", sql]).output().expect("psql");
        let text = |b: &[u8]| String::from_utf8_lossy(b).trim().to_owned();
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_change_places_and_lose_nothing() {
    let lab = Lab::start("database-switchover", "").await;
    lab.release("1.0.0", &[]).await;
    let bin = std::fs::read_to_string(lab.shared(0, "postgres.bin")).expect("where PostgreSQL is");
    let mut inputs = json!({ "bin_dir": bin.trim(), "data_dir": "shared/postgres", "port": lab.port });
    lab.sql(0, "CREATE TABLE orders (n int); INSERT INTO orders SELECT generate_series(1, 1000)").expect("writes");
    super::eventually(super::PATIENCE, "the replica has the table, and takes no writes", async || {
        lab.sql(1, "INSERT INTO orders VALUES (0)").expect_err("a replica").contains("read-only").then_some(())
    })
    .await;
    lab.deploy("1.0.0", inputs.clone()).await;
    // Writes go on at the new one; the old one has everything, and takes none.
    assert_eq!(lab.sql(1, "INSERT INTO orders VALUES (1001); SELECT count(*) FROM orders").as_deref(), Ok("1001"));
    assert!(lab.sql(0, "INSERT INTO orders VALUES (0)").expect_err("fenced").contains("read-only"));
    super::eventually(super::PATIENCE, "the old primary follows", async || {
        (lab.sql(0, "SELECT count(*) FROM orders").as_deref() == Ok("1001")).then_some(())
    })
    .await;
    let told = std::fs::read_to_string(lab.shared(2, "database.env")).expect("the client was told");
    assert_eq!(told, format!("PGHOST=127.0.0.2\nPGPORT={}\n", lab.port));
    // Once more the same way is refused before anything is stopped: the roles have changed.
    let id = lab.request("online", json!({ "version": "1.0.0", "inputs": inputs })).await;
    let reason = super::stops(&lab, &id).await;
    assert!(reason.contains("127.0.0.2 is no replica"), "{reason}");
    lab.sql(1, "INSERT INTO orders VALUES (1002)").expect("still the primary");
    lab.w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "wrong way" })).await;
    lab.w.until(&id, &["aborted"]).await;
    // And back, with the selectors exchanged.
    inputs["primary"] = json!("role=replica");
    inputs["replica"] = json!("role=primary");
    lab.deploy("1.0.0", inputs).await;
    assert_eq!(lab.sql(0, "INSERT INTO orders VALUES (1003); SELECT count(*) FROM orders").as_deref(), Ok("1003"));
    assert!(lab.sql(1, "INSERT INTO orders VALUES (0)").expect_err("fenced").contains("read-only"));
    let told = std::fs::read_to_string(lab.shared(2, "database.env")).expect("the client was told");
    assert!(told.contains("PGHOST=127.0.0.1\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_built_is_registered_and_shipped() {
    let more = format!("---\n{}{}", flow("static-site"), environment("web", "static-site", &["h2"]));
    let lab = Lab::start("build-on-a-host", &more).await;
    lab.release("recipe", &[]).await;
    let token = lab.w.person("builder", "developer").await;
    lab.w.secret(&format!("project.{PROJECT}"), "windlass_token", &token).await;
    let repository = |kind: &str| format!("file://{}", lab.shared(0, &format!("source.{kind}")).display());
    let git = json!({ "version": "1.0.0", "repository": repository("git"), "api": lab.w.base });
    lab.deploy("recipe", git).await;
    let svn = json!({ "version": "1.0.1", "repository": repository("svn"), "kind": "subversion", "ref": "trunk", "api": lab.w.base });
    lab.deploy("recipe", svn).await;
    for (version, commit) in [("1.0.0", 40), ("1.0.1", 2)] {
        let a = lab.w.get(&format!("/projects/{PROJECT}/artifacts/{version}")).await;
        let package = lab.shared(0, &format!("packages/{PROJECT}-{version}.tar.gz"));
        assert_eq!(a["digest"], digest(&package), "what is registered is what was built: {a:#}");
        assert_eq!(a["commit"].as_str().map(str::len), Some(commit), "{a:#}");
        assert_eq!(a["size"], package.metadata().expect("package").len(), "{a:#}");
        // It ships like any other.
        let inputs = json!({ "index": "bin/hello", "port": lab.port });
        let id = lab.request("web", json!({ "version": version, "inputs": inputs })).await;
        lab.ends(&id, "succeeded").await;
        assert_eq!(lab.get(1, "/VERSION").await, version);
        let said = run(&mut Command::new(lab.root(1).join("current/bin/hello")));
        assert_eq!(said.trim(), format!("hello from {version}"));
    }
    // A version never changes: another build of the same one is refused where it is packed.
    let source = json!({ "version": "1.0.0", "repository": repository("svn"), "kind": "subversion", "ref": "trunk",
                         "command": "make; echo more >out/MORE", "api": lab.w.base });
    let id = lab.request("online", json!({ "version": "recipe", "inputs": source })).await;
    let reason = super::stops(&lab, &id).await;
    assert!(reason.contains("give another version"), "{reason}");
    let left: Vec<_> = std::fs::read_dir(lab.root(0)).expect("root").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with("build-")), "the checkout is cleaned up: {left:?}");
}
