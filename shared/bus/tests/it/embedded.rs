//! The embedded server: it comes back when it dies, goes when we go, and says what is wrong when it cannot start.

use crate::{
    identities::{Site, options},
    support::SOON,
};
use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{EmbeddedServer, Identities, ServerError, server::find_binary};
use windlass_runtime::Health;
use windlass_testkit::eventually;

/// Set for the process that [`a_killed_process_leaves_no_server`] starts and kills.
const VICTIM: &str = "WINDLASS_TEST_VICTIM_DIR";

fn pid(dir: &Path) -> Option<String> {
    let pid = std::fs::read_to_string(dir.join("nats/nats.pid")).ok()?.trim().to_owned();
    Path::new("/proc").join(&pid).exists().then_some(pid)
}

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-KILL", pid]).status().expect("kill").success());
}

async fn connects(site: &Site) -> Option<()> {
    let creds = async_nats::ConnectOptions::with_credentials_file(site.ids.services_creds()).await.ok()?;
    creds.connect(&site.url).await.ok().map(drop)
}

#[tokio::test]
async fn a_dead_server_is_started_again_and_shutdown_ends_it() {
    let site = Site::start().await;
    connects(&site).await.expect("serves");
    let first = pid(site.dir.path()).expect("runs");
    kill(&first);
    let second = eventually(SOON, "another server", async || pid(site.dir.path()).filter(|p| *p != first)).await;
    eventually(SOON, "it serves", async || connects(&site).await).await;
    eventually(SOON, "health says so", async || {
        site.health.checks()["nats-server"].eq(&windlass_runtime::health::Check::Ok).then_some(())
    })
    .await;
    site.end().await;
    assert!(!Path::new("/proc").join(second).exists(), "ended with us");
}

#[tokio::test]
async fn a_taken_port_and_a_bad_configuration_are_told() {
    let site = Site::start().await;
    let dir = tempfile::tempdir().expect("dir");
    let ids = Identities::load_or_create(&dir.path().join("keys")).expect("keys");
    let mut o = options(&dir, &ids).await;
    let text = std::fs::read_to_string(&o.config).expect("reads");
    let taken = site.url.trim_start_matches("nats://").to_owned();
    std::fs::write(&o.config, text.replace(&o.listen.to_string(), &taken)).expect("writes");
    o.listen = taken.parse().expect("address");
    let start = |o| async move {
        EmbeddedServer::start(o, Health::new(), CancellationToken::new(), &TaskTracker::new())
            .await
            .expect_err("refused")
    };
    let e = start(o.clone()).await.to_string();
    assert!(e.contains("address already in use"), "{e}");
    std::fs::write(&o.config, "no_such_option: 1\n").expect("writes");
    let e = start(o).await.to_string();
    assert!(e.contains("no_such_option"), "{e}");
    site.end().await;
}

#[tokio::test]
async fn an_old_or_missing_binary_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().expect("dir");
    let fake = dir.path().join("nats-server");
    std::fs::write(&fake, "#!/bin/sh\necho 'nats-server: v2.9.10'\n").expect("writes");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let e = find_binary(Some(&fake), dir.path()).await.expect_err("refused");
    assert!(matches!(&e, ServerError::TooOld { version, .. } if version == "2.9.10"));
    assert!(e.to_string().contains("pip install"), "{e}");
    assert!(find_binary(Some(&dir.path().join("absent")), dir.path()).await.is_err());
    let real = windlass_testkit::nats_server_binary();
    assert_eq!(find_binary(Some(&real), dir.path()).await.expect("good"), real);
}

/// Does nothing by itself: it is the other process of the next test, which runs it with [`VICTIM`] set.
#[tokio::test]
async fn victim() {
    let Some(dir) = std::env::var_os(VICTIM) else { return };
    let dir = tempfile::Builder::new().tempdir_in(dir).expect("dir");
    let ids = Identities::load_or_create(&dir.path().join("keys")).expect("keys");
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    let _server =
        EmbeddedServer::start(options(&dir, &ids).await, Health::new(), shutdown, &tracker).await.expect("starts");
    std::fs::write(dir.path().parent().expect("parent").join("ready"), dir.path().display().to_string())
        .expect("writes");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_process_leaves_no_server() {
    let dir = tempfile::tempdir().expect("dir");
    let mut victim = Command::new(std::env::current_exe().expect("myself"))
        .args(["embedded::victim", "--exact", "--nocapture"])
        .env(VICTIM, dir.path())
        .spawn()
        .expect("starts");
    let ready = dir.path().join("ready");
    let home = eventually(SOON, "the victim's server", async || {
        std::fs::read_to_string(&ready).ok().filter(|t| !t.is_empty())
    })
    .await;
    let server = eventually(SOON, "its pid", async || pid(Path::new(&home))).await;
    kill(&victim.id().to_string());
    victim.wait().expect("waits");
    eventually(SOON, "the server is gone", async || (!Path::new("/proc").join(&server).exists()).then_some(())).await;
}
