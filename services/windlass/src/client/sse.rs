//! Server-sent events: the parser, and a stream that reconnects where it stopped.

use super::{error::Error, http::Api};
use futures::StreamExt;
use std::time::Duration;
use tokio::time::Instant;

/// The server sends a comment every few seconds; silence for this long is a dead connection.
const SILENCE: Duration = Duration::from_secs(45);
/// An event larger than this is not one of ours.
const MAX_EVENT: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Message {
    pub(crate) event: String,
    pub(crate) data: String,
}

/// Incremental parser, fed with bytes as they come.
#[derive(Debug, Default)]
struct Parser {
    buffer: Vec<u8>,
    current: Message,
    has_data: bool,
    /// Of the event that is being read; it counts once the event is whole.
    id: Option<String>,
    last_id: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.buffer.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(n) = self.buffer.iter().position(|b| *b == b'\n') {
            let raw: Vec<u8> = self.buffer.drain(..=n).collect();
            let line = String::from_utf8_lossy(&raw);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let m = std::mem::take(&mut self.current);
                self.last_id = self.id.take().or(self.last_id.take());
                if std::mem::take(&mut self.has_data) {
                    out.push(m);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => self.current.event = value.to_owned(),
                "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
                "data" => {
                    if std::mem::replace(&mut self.has_data, true) {
                        self.current.data.push('\n');
                    }
                    self.current.data.push_str(value);
                }
                _ => {}
            }
        }
        out
    }
}

/// What the reader of a stream says about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    More,
    Done,
}

/// Reads `path` until `each` is done or the deadline passes. A broken connection is taken up again after the last event
/// that was seen, with a growing pause; what was handed to `each` once is not handed to it again.
pub(crate) async fn read(
    api: &Api,
    path: &str,
    deadline: Instant,
    mut each: impl FnMut(Message) -> Result<Next, Error>,
) -> Result<(), Error> {
    let started = Instant::now();
    let late = || Error::Deadline { what: "following".into(), seconds: started.elapsed().as_secs() };
    let mut parser = Parser::default();
    let mut pause = Duration::from_millis(250);
    loop {
        let opened = tokio::time::timeout_at(deadline, api.stream(path, parser.last_id.as_deref())).await;
        match opened.map_err(|_| late())? {
            Ok(response) => {
                let mut body = response.bytes_stream();
                loop {
                    let until = deadline.min(Instant::now() + SILENCE);
                    match tokio::time::timeout_at(until, body.next()).await {
                        Ok(Some(Ok(bytes))) => {
                            for message in parser.push(&bytes) {
                                pause = Duration::from_millis(250);
                                if each(message)? == Next::Done {
                                    return Ok(());
                                }
                            }
                            if parser.buffer.len() + parser.current.data.len() > MAX_EVENT {
                                return Err(Error::Answer {
                                    server: api.server().to_owned(),
                                    path: path.to_owned(),
                                    source: "an event larger than 4 MiB".into(),
                                });
                            }
                        }
                        Ok(Some(Err(_)) | None) => break,
                        Err(_) if Instant::now() >= deadline => return Err(late()),
                        Err(_) => break,
                    }
                }
            }
            // Before anything was seen a refused connection is an error, later it is an interruption.
            Err(e @ Error::Unreachable { .. }) if parser.last_id.is_none() => return Err(e),
            Err(Error::Unreachable { .. }) => {}
            Err(Error::Problem { status: 429 | 502..=504, .. }) if parser.last_id.is_some() => {}
            Err(e) => return Err(e),
        }
        // Half an event of the broken connection is nothing: the server sends it again.
        parser.buffer.clear();
        parser.current = Message::default();
        parser.has_data = false;
        parser.id = None;
        tokio::time::timeout_at(deadline, tokio::time::sleep(pause)).await.map_err(|_| late())?;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::client::config::Target;
    use std::io::{BufRead, BufReader, Write};

    /// A server that answers each connection with the next of `parts` and then hangs up; gives what ids it was asked after.
    fn server(parts: Vec<&'static str>) -> (String, std::thread::JoinHandle<Vec<Option<String>>>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let thread = std::thread::spawn(move || {
            let one = |part: &str| {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut asked = None;
                for line in BufReader::new(stream.try_clone().expect("clone")).lines() {
                    let line = line.expect("a line");
                    if let Some(id) = line.to_lowercase().strip_prefix("last-event-id: ") {
                        asked = Some(id.to_owned());
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
                stream.write_all(format!("{head}{part}").as_bytes()).expect("answer");
                asked
            };
            parts.into_iter().map(one).collect()
        });
        (url, thread)
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_after_the_last_whole_event() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let parts =
            vec!["id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: ha", "id: 3\ndata: c\n\nevent: end\ndata: {}\n\n"];
        let (server, thread) = server(parts);
        let api = Api::new(Target { server, token: None }).expect("client");
        let mut got = vec![];
        let deadline = Instant::now() + Duration::from_secs(30);
        let ended = read(&api, "/x", deadline, |m| {
            if m.event == "end" {
                return Ok(Next::Done);
            }
            got.push(m.data);
            Ok(Next::More)
        });
        ended.await.expect("reads to the end");
        assert_eq!(got, ["a", "b", "c"]);
        assert_eq!(thread.join().expect("server"), [None, Some("2".to_owned())]);
    }

    const TEXT: &[u8] =
        b": hello\nretry: 5\n\nid: 7\nevent: log\ndata: {\"a\":\ndata: 1}\n\nid: 8\r\ndata: x\r\n\r\nevent: empty\n\n";

    #[test]
    fn events_survive_any_cut() {
        let wanted = [
            Message { event: "log".into(), data: "{\"a\":\n1}".into() },
            Message { event: String::new(), data: "x".into() },
        ];
        for cut in 0..TEXT.len() {
            let mut p = Parser::default();
            let mut got = p.push(&TEXT[..cut]);
            got.extend(p.push(&TEXT[cut..]));
            assert_eq!(got, wanted, "cut at {cut}");
            assert_eq!(p.last_id.as_deref(), Some("8"));
        }
    }
}
