//! A real HTTP server whose answers a test scripts: statuses, headers, silence, resets.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use windlass_testkit::eventually;

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Reads the request and never answers.
    Hang,
    /// Reads the request and drops the connection.
    Reset,
    /// Answers with this status after [`Target::release`].
    Held(u16),
}

impl Reply {
    pub(crate) fn status(status: u16) -> Reply {
        Reply::body(status, "")
    }
    pub(crate) fn body(status: u16, body: &str) -> Reply {
        Reply::Answer { status, headers: vec![], body: body.into() }
    }
    pub(crate) fn later(status: u16, retry_after: &str) -> Reply {
        Reply::Answer { status, headers: vec![("retry-after", retry_after.into())], body: String::new() }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<Seen>>,
    script: Mutex<VecDeque<Reply>>,
    default: Mutex<Reply>,
    gate: Semaphore,
}

/// Ends with the value.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Target {
    /// Answers with `default` once the script is used up.
    pub(crate) async fn start(default: Reply) -> Target {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("binds");
        let port = listener.local_addr().expect("address").port();
        let state = Arc::new(State {
            seen: Mutex::default(),
            script: Mutex::default(),
            default: Mutex::new(default),
            gate: Semaphore::new(0),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((c, _)) = listener.accept().await {
                connections.spawn(serve(c, Arc::clone(&shared)));
            }
        });
        Target { port, state, task }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
    pub(crate) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.script.lock().expect("lock").extend(replies);
    }
    pub(crate) fn then_always(&self, reply: Reply) {
        *self.state.default.lock().expect("lock") = reply;
    }
    pub(crate) fn release(&self, n: usize) {
        self.state.gate.add_permits(n);
    }
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("lock").clone()
    }
    pub(crate) async fn wait_for(&self, n: usize) -> Vec<Seen> {
        eventually(Duration::from_secs(15), &format!("{n} requests at the target"), async || {
            let seen = self.seen();
            (seen.len() >= n).then_some(seen)
        })
        .await
    }
}

async fn serve(mut c: TcpStream, state: Arc<State>) {
    let mut buf = Vec::new();
    let mut chunk = [0u8; 8192];
    let head_end = loop {
        if let Some(i) = buf.windows(4).position(|w| w == b"\r\n\r\n") {
            break i;
        }
        match c.read(&mut chunk).await {
            Ok(n) if n > 0 => buf.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    };
    let head = String::from_utf8_lossy(&buf[..head_end]).into_owned();
    let mut lines = head.lines();
    let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.trim().into(), v.trim().into())).collect();
    let length: usize = headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, v)| v.parse().ok())
        .unwrap_or_default();
    let mut body = buf.split_off(head_end + 4);
    while body.len() < length {
        match c.read(&mut chunk).await {
            Ok(n) if n > 0 => body.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let seen = Seen { path: path.into(), query: query.into(), headers, body: String::from_utf8(body).expect("UTF-8") };
    // The reply is taken with the record, so that order and script agree.
    let reply = {
        let mut all = state.seen.lock().expect("lock");
        all.push(seen);
        let next = state.script.lock().expect("lock").pop_front();
        next.unwrap_or_else(|| state.default.lock().expect("lock").clone())
    };
    let (status, headers, body) = match reply {
        Reply::Hang => std::future::pending().await,
        Reply::Reset => return,
        Reply::Held(status) => {
            if let Ok(p) = state.gate.acquire().await {
                p.forget();
            }
            (status, vec![], "ok".to_owned())
        }
        Reply::Answer { status, headers, body } => (status, headers, body),
    };
    let mut out = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (n, v) in headers {
        out.push_str(&format!("{n}: {v}\r\n"));
    }
    out.push_str("\r\n");
    out.push_str(&body);
    let _ = c.write_all(out.as_bytes()).await;
    let _ = c.shutdown().await;
}
