//! What needs a process of its own: signals, and telemetry that is installed for the whole process.

mod ssrf;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_runtime::{
    settings::{LogFormat, Telemetry},
    shutdown, telemetry,
};

/// Set for the process that the signal tests start.
const VICTIM: &str = "WINDLASS_TEST_VICTIM";
const LIMIT: Duration = Duration::from_secs(20);

/// Does nothing by itself: it is the other process of the signal tests. It says when it listens, and when it was told to
/// end; `stuck` has a task that never ends.
#[tokio::test]
async fn victim() {
    let Ok(mode) = std::env::var(VICTIM) else { return };
    let (waiting, tracker) = (TaskTracker::new(), TaskTracker::new());
    let token = shutdown::on_signal(&waiting).expect("listens");
    let ended = token.clone();
    tracker.spawn(async move {
        ended.cancelled().await;
        if mode == "stuck" {
            std::future::pending::<()>().await;
        }
    });
    eprintln!("victim listens");
    token.cancelled().await;
    eprintln!("victim was told");
    let late = shutdown::Sequence::new().group("work", token, tracker, LIMIT).stop().await;
    assert!(late.is_empty());
}

fn start(mode: &str) -> (Child, impl FnMut(&str)) {
    let mut child = Command::new(std::env::current_exe().expect("myself"))
        .args(["victim", "--exact", "--nocapture"])
        .env(VICTIM, mode)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
    let wait_for = move |text: &str| {
        let found = lines.by_ref().map_while(Result::ok).any(|l| l.contains(text));
        assert!(found, "the process ended before it said {text:?}");
    };
    (child, wait_for)
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
}

#[test]
fn a_signal_ends_the_process_in_order() {
    for name in ["TERM", "INT"] {
        let (mut child, mut wait_for) = start("good");
        wait_for("victim listens");
        signal(&child, name);
        wait_for("victim was told");
        assert!(child.wait().expect("ends").success());
    }
}

#[test]
fn a_second_signal_exits_at_once() {
    let (mut child, mut wait_for) = start("stuck");
    wait_for("victim listens");
    signal(&child, "TERM");
    wait_for("victim was told");
    let until = std::time::Instant::now() + LIMIT;
    let status = loop {
        // A person presses again when nothing happens.
        signal(&child, "INT");
        if let Some(status) = child.try_wait().expect("waits") {
            break status;
        }
        assert!(std::time::Instant::now() < until, "still runs");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_the_collector_before_the_process_ends() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let collector = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = collector.local_addr().expect("address");
    let received = tokio::spawn(async move {
        let (mut socket, _) = collector.accept().await.expect("accepts");
        let mut all = vec![];
        let mut buffer = [0; 8192];
        while !all.windows(12).any(|w| w == b"told-to-test") {
            let n = socket.read(&mut buffer).await.expect("reads");
            assert!(n > 0, "closed before the span came: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..n]);
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("answers");
        String::from_utf8_lossy(&all).into_owned()
    });
    let settings = Telemetry {
        log_format: LogFormat::Json,
        log: "info".into(),
        otlp_endpoint: Some(format!("http://{address}")),
        service_name: "windlass-test".into(),
    };
    let guard = telemetry::start(&settings).expect("starts");
    assert!(telemetry::start(&settings).is_err(), "twice");
    let trace = {
        let _span = tracing::info_span!("told-to-test").entered();
        tracing::info!("an event");
        telemetry::traceparent_of_current().expect("has ids")
    };
    assert!(telemetry::is_traceparent(&trace));
    guard.flush();
    let text = tokio::time::timeout(LIMIT, received).await.expect("in time").expect("received");
    assert!(text.starts_with("POST /v1/traces HTTP/1.1"), "{text}");
    assert!(text.contains("windlass-test"), "the service is named");
}

#[test]
fn bad_telemetry_settings_are_refused() {
    let bad = Telemetry { log: "info,=,=".into(), ..windlass_runtime::Settings::default().telemetry };
    assert!(telemetry::start(&bad).expect_err("refused").to_string().contains("telemetry.log"));
}

#[tokio::test]
async fn the_health_server_ends_with_its_token() {
    let stop = CancellationToken::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("address");
    let server =
        tokio::spawn(windlass_runtime::health::serve_on(listener, windlass_runtime::Health::new(), stop.clone()));
    stop.cancel();
    tokio::time::timeout(LIMIT, server).await.expect("in time").expect("joins").expect("ends");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the port is free");
}
