//! The HTTP client: one place for address, token, deadlines, retries and the error envelope.

use super::{config::Target, error::Error};
use reqwest::{Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::time::{Duration, Instant};
use windlass_contracts::http::{Fault, PREFIX};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// Requests are sent again after a connection failed: reads are harmless, and every write carries an Idempotency-Key.
const TRIES: u32 = 3;
/// How long a request waits for room at a server that has none for it.
const ROOM: Duration = Duration::from_secs(30);
/// Largest answer that is read into memory.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// A server with a token.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    target: Target,
    client: reqwest::Client,
}

impl Api {
    pub(crate) fn new(target: Target) -> Result<Api, Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("windlass/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            // A redirect would carry the token to a place nobody named.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|source| Error::Unreachable { server: target.server.clone(), source })?;
        Ok(Api { target, client })
    }

    pub(crate) fn server(&self) -> &str {
        &self.target.server
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let bytes = self.send(Method::GET, path, None).await?;
        self.decode(path, &bytes)
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let bytes = self.send(Method::POST, path, Some(self.json(path, body)?)).await?;
        self.decode(path, &bytes)
    }

    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Error> {
        let bytes = self.send(Method::PUT, path, Some(self.json(path, body)?)).await?;
        self.decode(path, &bytes)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), Error> {
        self.send(Method::DELETE, path, None).await.map(|_| ())
    }

    /// Removes something; the answer is what was there.
    pub(crate) async fn delete_for<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let bytes = self.send(Method::DELETE, path, None).await?;
        self.decode(path, &bytes)
    }

    pub(crate) async fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: &'static str,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let bytes = self.send(Method::POST, path, Some((kind, body))).await?;
        self.decode(path, &bytes)
    }

    /// The body as it comes, for what is too large for memory or not JSON.
    pub(crate) async fn download(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut response = self.check(path, self.request(Method::GET, path).send().await).await?;
        loop {
            match tokio::time::timeout(ANSWER, response.chunk()).await {
                Ok(Ok(Some(bytes))) => each(&bytes)?,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(source)) => return Err(self.unreachable(source)),
                Err(_) => return Err(Error::Deadline { what: format!("GET {path}"), seconds: ANSWER.as_secs() }),
            }
        }
    }

    /// An event stream, after `last_id`.
    pub(super) async fn stream(&self, path: &str, last_id: Option<&str>) -> Result<reqwest::Response, Error> {
        let mut request = self.request(Method::GET, path).header(header::ACCEPT, "text/event-stream");
        if let Some(id) = last_id {
            request = request.header("Last-Event-ID", id);
        }
        let sent = tokio::time::timeout(ANSWER, request.send()).await;
        let sent = sent.map_err(|_| Error::Deadline { what: format!("GET {path}"), seconds: ANSWER.as_secs() })?;
        self.check(path, sent).await
    }

    fn json(&self, path: &str, body: &impl Serialize) -> Result<(&'static str, Vec<u8>), Error> {
        let bytes = serde_json::to_vec(body).map_err(|e| self.answer(path, e.into()))?;
        Ok(("application/json", bytes))
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        // Health and metrics live outside the versioned prefix.
        let prefix = if path.starts_with("/healthz") || path.starts_with("/readyz") { "" } else { PREFIX };
        let mut r = self.client.request(method, format!("{}{prefix}{path}", self.target.server));
        if let Some(token) = &self.target.token {
            r = r.bearer_auth(token);
        }
        r
    }

    async fn send(&self, method: Method, path: &str, body: Option<(&'static str, Vec<u8>)>) -> Result<Vec<u8>, Error> {
        let key = (method == Method::POST).then(|| uuid::Uuid::now_v7().to_string());
        let mut tried = 0;
        let began = Instant::now();
        loop {
            tried += 1;
            let mut request = self.request(method.clone(), path).timeout(ANSWER);
            if let Some(key) = &key {
                request = request.header("Idempotency-Key", key);
            }
            if let Some((kind, bytes)) = &body {
                request = request.header(header::CONTENT_TYPE, *kind).body(bytes.clone());
            }
            match self.check(path, request.send().await).await {
                Ok(response) => return self.body(response).await,
                Err(Error::Unreachable { .. }) if tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(200) * tried).await;
                }
                // Over its rate limit, or with no room for another command, the server did nothing and says when to come again.
                Err(Error::Problem { status: 429 | 503, retry_after: Some(wait), .. })
                    if began.elapsed() + Duration::from_secs(wait) <= ROOM =>
                {
                    tokio::time::sleep(Duration::from_secs(wait.max(1))).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn check(
        &self,
        path: &str,
        sent: Result<reqwest::Response, reqwest::Error>,
    ) -> Result<reqwest::Response, Error> {
        let response = match sent {
            Ok(r) => r,
            Err(e) if e.is_timeout() && !e.is_connect() => {
                return Err(Error::Deadline { what: path.to_owned(), seconds: ANSWER.as_secs() });
            }
            Err(source) => return Err(self.unreachable(source)),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse().ok());
        let bytes = self.body(response).await.unwrap_or_default();
        Err(problem(status, &bytes, retry_after))
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|e| self.unreachable(e))? {
            out.extend_from_slice(&bytes);
            if out.len() > MAX_BODY {
                return Err(self.answer(response.url().path(), "more than 64 MiB".into()));
            }
        }
        Ok(out)
    }

    fn decode<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, Error> {
        // 204 and friends read as `null`.
        let text: &[u8] = if bytes.is_empty() { b"null" } else { bytes };
        serde_json::from_slice(text).map_err(|e| self.answer(path, e.into()))
    }

    fn answer(&self, path: &str, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
        Error::Answer { server: self.target.server.clone(), path: path.to_owned(), source }
    }

    fn unreachable(&self, source: reqwest::Error) -> Error {
        Error::Unreachable { server: self.target.server.clone(), source }
    }
}

/// RFC 9457 where the answer is one, else the status and the start of the text.
fn problem(status: StatusCode, bytes: &[u8], retry_after: Option<u64>) -> Error {
    let body: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let text = |k: &str| body.get(k).and_then(Value::as_str).map(|s| super::text::clean(s, false));
    let title = text("title").unwrap_or_else(|| status.canonical_reason().unwrap_or("error").to_owned());
    let mut detail = text("detail").unwrap_or_default();
    if body.is_null() && !bytes.is_empty() {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        detail = super::text::clean(start.lines().next().unwrap_or(""), false);
    }
    let faults = body.get("errors").cloned().and_then(|e| serde_json::from_value::<Vec<Fault>>(e).ok());
    for f in faults.unwrap_or_default() {
        let place = match (f.line, f.column) {
            (Some(l), Some(c)) => format!("line {l}, column {c}: "),
            (Some(l), None) => format!("line {l}: "),
            _ => String::new(),
        };
        let at = f.at.trim_end_matches([':', ' ']);
        let at = if at.is_empty() { String::new() } else { format!("{at}: ") };
        detail.push_str("\n  ");
        detail.push_str(&super::text::clean(&format!("{place}{at}{}", f.detail), false));
    }
    if status == StatusCode::UNAUTHORIZED && detail.is_empty() {
        detail = "give a token with --token-file or WINDLASS_TOKEN".into();
    }
    Error::Problem { status: status.as_u16(), title, detail, body, retry_after }
}

/// Percent-encodes one path segment or query value.
pub(crate) fn encode(s: &str) -> String {
    s.bytes().fold(String::new(), |mut out, b| {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
        out
    })
}

/// `path?name=value&…` of the values that are there.
pub(crate) fn query(path: &str, pairs: &[(&str, Option<&str>)]) -> String {
    let mut out = path.to_owned();
    for (n, (k, v)) in pairs.iter().filter_map(|(k, v)| v.map(|v| (k, v))).enumerate() {
        out.push(if n == 0 { '?' } else { '&' });
        out.push_str(k);
        out.push('=');
        out.push_str(&encode(v));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn queries_are_encoded() {
        assert_eq!(query("/x", &[("a", Some("1 &é")), ("b", None), ("c", Some("z"))]), "/x?a=1%20%26%C3%A9&c=z");
    }

    /// A server that has no room for `full` requests, then answers; how often it was asked, and the keys it was given.
    async fn full_server(full: usize, wait: u64) -> (Api, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let server = format!("http://{}", listener.local_addr().expect("address"));
        let keys = Arc::new(Mutex::new(Vec::new()));
        let heard = keys.clone();
        tokio::spawn(async move {
            while let Ok((mut c, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                    if c.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let key = head.lines().find_map(|l| l.strip_prefix("idempotency-key: ")).unwrap_or_default().to_owned();
                let asked = {
                    let mut keys = heard.lock().expect("lock");
                    keys.push(key);
                    keys.len()
                };
                let answer = if asked <= full {
                    format!(
                        "HTTP/1.1 503 Full\r\nretry-after: {wait}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    )
                } else {
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".to_owned()
                };
                let _ = c.write_all(answer.as_bytes()).await;
            }
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = Api::new(Target { server, token: None }).expect("client");
        (api, keys)
    }

    #[tokio::test]
    async fn a_full_server_is_asked_again_when_it_says_and_not_for_ever() {
        let (api, keys) = full_server(2, 0).await;
        let _: Value = api.post("/x", &Value::Null).await.expect("there is room at last");
        let keys = keys.lock().expect("lock").clone();
        assert!(keys.len() == 3 && !keys[0].is_empty() && keys.iter().all(|k| *k == keys[0]), "one request: {keys:?}");

        let (api, keys) = full_server(usize::MAX, ROOM.as_secs() + 1).await;
        let e = api.post::<Value>("/x", &Value::Null).await.expect_err("no room");
        assert_eq!((e.exit(), keys.lock().expect("lock").len()), (Exit::Server, 1), "{e}");
    }

    #[test]
    fn a_problem_keeps_its_words_and_its_code() {
        let e = problem(
            StatusCode::CONFLICT,
            br#"{"title":"Refused","detail":"ann requested\u001b[2J this","errors":[{"at":"hosts","detail":"no","line":1,"column":2}]}"#,
            None,
        );
        assert_eq!(e.to_string(), "Refused (409): ann requested this\n  line 1, column 2: hosts: no");
        assert_eq!(e.exit(), Exit::Refused);
        assert_eq!(problem(StatusCode::NOT_FOUND, b"", None).exit(), Exit::Denied);
        assert_eq!(problem(StatusCode::BAD_GATEWAY, b"<html>", None).exit(), Exit::Server);
    }
}
