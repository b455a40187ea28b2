//! The kit itself: servers come, restart, and are gone with the process.

use std::time::Duration;
use windlass_testkit::{Db, Supervised, databases, eventually, http_get, nats, temp_dir};

async fn greets(port: u16) -> bool {
    use tokio::io::AsyncReadExt;
    let Ok(mut c) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { return false };
    let mut b = [0; 4];
    c.read_exact(&mut b).await.is_ok() && &b == b"INFO"
}

#[tokio::test]
async fn nats_comes_back_on_its_port_and_can_lose_its_store() {
    let mut server = nats().await;
    let port = server.port();
    assert!(greets(port).await);
    let mark = server.dir().join("store/jetstream/mark");
    std::fs::create_dir_all(mark.parent().expect("parent")).expect("dir");
    std::fs::write(&mark, "x").expect("mark");
    server.kill();
    assert!(!greets(port).await);
    server.restart().await;
    assert!(greets(port).await && mark.exists());
    server.wipe_store().await;
    assert!(greets(port).await && !mark.exists());
    let dir = server.dir().to_path_buf();
    drop(server);
    assert!(!greets(port).await && !dir.exists());
}

#[tokio::test]
async fn databases_are_fresh_and_apart() {
    use sqlx::{Connection, Executor};
    let kinds: Vec<_> = databases().await.iter().map(Db::kind).collect();
    assert_eq!(kinds, ["sqlite", "postgres"]);
    let (a, b) = tokio::join!(Db::postgres(), Db::postgres());
    assert_ne!(a.url(), b.url());
    for db in [&a, &b] {
        let mut c = sqlx::PgConnection::connect(db.url()).await.expect("connects");
        c.execute("CREATE TABLE only_here (n bigint)").await.expect("is empty");
        let (fsync,): (String,) = sqlx::query_as("SHOW fsync").fetch_one(&mut c).await.expect("reads");
        assert_eq!(fsync, "on");
    }
}

#[tokio::test]
async fn a_supervised_child_goes_with_its_owner() {
    let dir = temp_dir();
    let mut child = Supervised::start("/bin/sleep".as_ref(), &["1000"], &dir.path().join("log"));
    let proc = std::path::PathBuf::from(format!("/proc/{}", child.pid()));
    assert!(proc.exists());
    child.kill();
    assert!(!proc.exists());
    // Leaked, as by a killed test process: only the pipe tells.
    let child = Supervised::start("/bin/sleep".as_ref(), &["1000"], &dir.path().join("log"));
    let proc = std::path::PathBuf::from(format!("/proc/{}", child.pid()));
    assert!(proc.exists());
    drop(child);
    eventually(Duration::from_secs(5), "the child is gone", async || (!proc.exists()).then_some(())).await;
}

#[tokio::test]
#[should_panic(expected = "not within 50ms: the moon is green")]
async fn waiting_ends() {
    eventually(Duration::from_millis(50), "the moon is green", async || None::<()>).await;
}

#[tokio::test]
async fn nobody_home_is_no_answer() {
    assert_eq!(http_get(&format!("http://127.0.0.1:{}/", windlass_testkit::free_port())).await, None);
}

/// What the system itself chooses may come twice in a row, and may be taken by any connection before it is used.
#[test]
fn a_port_is_given_once_and_not_by_the_system() {
    let ports: Vec<u16> = std::thread::scope(|s| {
        let ask = || (0..100).map(|_| windlass_testkit::free_port()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| s.spawn(ask)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("ports")).collect()
    });
    let different: std::collections::BTreeSet<_> = ports.iter().collect();
    assert_eq!(different.len(), 400);
    assert!(ports.iter().all(|p| (10_000..32_000).contains(p)), "{ports:?}");
}
