//! Following a deployment: waiting for its end, its events and its log.

use super::{
    error::Error,
    http::Api,
    out::Out,
    sse::{self, Next},
    text::{Lines, clean},
    view,
};
use base64::Engine;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;
use windlass_contracts::http::SSE_END;
use windlass_domain::deployment::State;

/// Between two looks at the state; the streams are what shows things at once.
const LOOK: Duration = Duration::from_millis(300);

pub(crate) fn state_of(deployment: &Value) -> Option<State> {
    serde_json::from_value(view::at(deployment, "state")?.clone()).ok()
}

/// Waits until the deployment ends, or reaches `until`; gives its last status.
pub(crate) async fn wait(api: &Api, id: Uuid, until: Option<&str>, seconds: u64) -> Result<Value, Error> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match api.get::<Value>(&format!("/deployments/{id}")).await {
            Ok(d) => {
                let ended = state_of(&d).is_some_and(State::is_terminal);
                if ended || until.is_some_and(|u| u == view::text(&d, "state")) {
                    return Ok(d);
                }
            }
            // A server that restarts is waited for, like everything else here.
            Err(Error::Unreachable { .. }) => {}
            Err(e) => return Err(e),
        }
        if Instant::now() >= deadline {
            return Err(Error::Deadline { what: format!("deployment {id}"), seconds });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Shows events and log until both streams have ended; gives the deployment's last status.
pub(crate) async fn follow(api: &Api, id: Uuid, seconds: u64, out: Out) -> Result<Value, Error> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let events_path = format!("/deployments/{id}/events");
    let events = sse::read(api, &events_path, deadline, |m| {
        match serde_json::from_str::<Value>(&m.data) {
            Ok(v) if m.event == SSE_END => return ended(&v),
            Ok(v) if out.json => out.json_line(&v)?,
            Ok(v) => event_line(&v).map_or(Ok(()), |line| out.line(line))?,
            Err(_) => {}
        }
        Ok(Next::More)
    });
    let log = log_until_end(api, id, deadline, LogFilter::default(), out);
    tokio::try_join!(events, log)?;
    api.get(&format!("/deployments/{id}")).await
}

/// Shows the log until the deployment has ended and all of it was shown.
pub(crate) async fn log_until_end(
    api: &Api,
    id: Uuid,
    deadline: Instant,
    filter: LogFilter,
    out: Out,
) -> Result<(), Error> {
    let mut printer = LogPrinter::new(filter, out);
    let path = format!("/deployments/{id}/logs");
    let got = sse::read(api, &path, deadline, |m| {
        match serde_json::from_str::<Value>(&m.data) {
            Ok(v) if m.event == SSE_END => return ended(&v),
            Ok(v) => printer.chunk(&v)?,
            Err(_) => {}
        }
        Ok(Next::More)
    });
    got.await?;
    printer.finish()
}

/// The last message of a stream.
fn ended(end: &Value) -> Result<Next, Error> {
    if view::text(end, "state") == "unauthorized" {
        let title = "the token was revoked".to_owned();
        return Err(Error::Problem { status: 401, title, detail: String::new(), body: end.clone(), retry_after: None });
    }
    Ok(Next::Done)
}

/// One line for people; `None` for what the log shows better.
fn event_line(event: &Value) -> Option<String> {
    let what = view::text(event, "what");
    if what.is_empty() || ["step.", "command.", "work."].iter().any(|p| what.starts_with(p)) {
        return None;
    }
    let payload = view::at(event, "payload")?;
    let mut parts = vec![];
    for key in [
        "step",
        "wave",
        "host",
        "hosts",
        "state",
        "outcome",
        "by",
        "waiting_on",
        "owner",
        "deadline",
        "version",
        "reason",
        "comment",
    ] {
        let text = match (key, view::at(payload, key)) {
            // People count waves from one.
            ("wave", Some(Value::Number(n))) => n.as_u64().map(|n| (n + 1).to_string()).unwrap_or_default(),
            (_, Some(Value::Array(_))) => some(&view::joined(payload, key)),
            _ => view::text(payload, key),
        };
        if !text.is_empty() {
            parts.push(format!("{key} {text}"));
        }
    }
    let time = view::time(event, "at");
    Some(clean(&format!("* {}  {what}  {}", time.get(11..).unwrap_or(&time), parts.join(", ")), false))
}

/// The start of a long list.
fn some(text: &str) -> String {
    const SHOWN: usize = 120;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Which lines to show; empty shows all.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogFilter {
    pub(crate) host: Option<String>,
    pub(crate) step: Option<String>,
}

/// Turns chunks into lines with the name of host and step before them.
#[derive(Debug)]
pub(crate) struct LogPrinter {
    filter: LogFilter,
    out: Out,
    streams: BTreeMap<(String, String, String), Lines>,
}

impl LogPrinter {
    pub(crate) fn new(filter: LogFilter, out: Out) -> LogPrinter {
        LogPrinter { filter, out, streams: BTreeMap::new() }
    }

    pub(crate) fn chunk(&mut self, chunk: &Value) -> Result<(), Error> {
        let (host, step) = (view::text(chunk, "host"), view::text(chunk, "step"));
        let unwanted = |want: &Option<String>, have: &str| want.as_ref().is_some_and(|w| w != have);
        if unwanted(&self.filter.host, &host) || unwanted(&self.filter.step, &step) {
            return Ok(());
        }
        if self.out.json {
            return self.out.json_line(chunk);
        }
        let encoded = view::text(chunk, "data");
        let data = base64::engine::general_purpose::STANDARD.decode(&encoded).unwrap_or_else(|_| encoded.into_bytes());
        let key = (host, step, view::text(chunk, "stream"));
        let lines = self.streams.entry(key.clone()).or_default().push(&data);
        lines.iter().try_for_each(|line| self.print(&key, line))
    }

    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        for (key, mut lines) in std::mem::take(&mut self.streams) {
            if let Some(line) = lines.finish() {
                self.print(&key, &line)?;
            }
        }
        Ok(())
    }

    fn print(&self, (host, step, stream): &(String, String, String), line: &str) -> Result<(), Error> {
        let mark = match stream.as_str() {
            "err" => "!",
            "note" => "#",
            _ => " ",
        };
        let prefix = clean(&format!("{host}|{step}|"), false);
        self.out.line(format!("{prefix}{mark}{}", clean(line, self.out.colours)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_become_lines_for_people() {
        let e = json!({"what": "wave.settled", "at": "2026-11-21T05:06:07Z",
            "payload": {"step": "rollout", "wave": 0, "state": "failed", "reason": "no\u{1b}[2J"}});
        assert_eq!(
            event_line(&e).as_deref(),
            Some("* 05:06:07  wave.settled  step rollout, wave 1, state failed, reason no")
        );
        assert_eq!(event_line(&json!({"what": "step.finished", "payload": {}})), None);
        let e = json!({"what": "deployment.hosts_stopped", "at": "2026-11-21T05:06:07Z",
            "payload": {"hosts": ["h1", "h2"], "by": "ann", "reason": "smoke"}});
        let line = event_line(&e).unwrap_or_default();
        assert!(line.ends_with("deployment.hosts_stopped  hosts h1, h2, by ann, reason smoke"), "{line}");
        let many: Vec<String> = (0..5000).map(|n| format!("h{n}")).collect();
        let e = json!({"what": "deployment.forced", "at": "", "payload": {"hosts": many}});
        assert!(event_line(&e).is_some_and(|l| l.len() < 200));
    }
}
