//! Waiting for a condition, always with a deadline.

use std::{
    panic::Location,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Asks `probe` until it answers `Some`; panics after `deadline`, naming `what` and the caller.
#[track_caller]
pub fn eventually<'a, T, P>(deadline: Duration, what: &'a str, mut probe: P) -> impl Future<Output = T> + use<'a, T, P>
where
    P: AsyncFnMut() -> Option<T> + 'a,
{
    let caller = Location::caller();
    async move {
        let start = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            // A probe that hangs is a failure of the same kind as one that never says yes.
            if let Ok(Some(found)) = tokio::time::timeout(left.max(Duration::from_millis(1)), probe()).await {
                return found;
            }
            if start.elapsed() >= deadline {
                panic!("not within {deadline:?}: {what} (waited for at {caller})");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Waits until `GET url` answers 2xx, at most 20 s.
pub async fn wait_http(url: &str) {
    eventually(Duration::from_secs(20), &format!("GET {url} answers 2xx"), async || {
        http_get(url).await.filter(|(status, _)| (200..300).contains(status))
    })
    .await;
}

/// A plain `GET` of an `http://` URL: status and body, `None` if nobody answers within 5 s.
pub async fn http_get(url: &str) -> Option<(u16, String)> {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("not an http:// URL: {url}"));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let exchange = async {
        let mut c = tokio::net::TcpStream::connect(authority).await.ok()?;
        let ask = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        c.write_all(ask.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        c.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n").map(|(_, b)| b.to_owned()).unwrap_or_default();
        Some((status, body))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.ok().flatten()
}
