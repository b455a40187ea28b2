//! What a load balancer of the catalog must be, one clear text a fault.

use super::{HttpCall, Kind, LoadBalancer, Share};
use crate::{
    expression::{Expression, Template},
    flow::actions::parse_duration,
};
use serde_json::json;
use std::collections::BTreeSet;

/// Seconds, where a load balancer does not say.
const DRAIN_S: u32 = 60;
const ATTACH_S: u32 = 60;
/// Longest of both: nobody watches a host for longer.
const LONGEST_S: u64 = 86_400;

/// What a member's name may hold: it becomes part of commands, files and addresses.
pub const MEMBER_RULE: &str =
    "1 to 253 letters, digits, `.`, `_`, `-`, `:`, `@`, `[` and `]`, beginning with a letter, a digit or `[`";

/// Whether this can be a member's name.
pub fn is_member(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '@' | '[' | ']'))
}

/// What a load balancer says as text, read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    pub drain_s: u32,
    pub attach_s: u32,
    pub min_healthy: Option<Share>,
}

/// The key and what is wrong with it.
type Fault = (&'static str, String);

impl LoadBalancer {
    /// The keys that each kind has, by its word.
    pub const KEYS: [(&'static str, &'static [&'static str]); 4] = [
        ("haproxy", &["endpoints", "backend"]),
        ("nginx", &["host", "file", "test", "reload", "port", "pid"]),
        ("http", &["drain", "attach", "state", "drained", "up", "healthy"]),
        ("command", &["host", "run"]),
    ];
    /// Those that all kinds have.
    pub const COMMON_KEYS: [&'static str; 6] =
        ["kind", "member", "min_healthy", "drain_timeout", "on_drain_timeout", "attach_timeout"];

    /// The numbers in it, or the first key that holds none.
    pub fn times(&self) -> Result<Times, Fault> {
        let time = |key: &'static str, text: &Option<String>, usual: u32| match text.as_deref().map(parse_duration) {
            None => Ok(usual),
            Some(Ok(s)) if (1..=LONGEST_S).contains(&s) => Ok(u32::try_from(s).unwrap_or(usual)),
            Some(Ok(_)) => Err((key, "must be longer than 0s and at most 1d".to_string())),
            Some(Err(e)) => Err((key, format!("is wrong: {e}"))),
        };
        Ok(Times {
            drain_s: time("drain_timeout", &self.drain_timeout, DRAIN_S)?,
            attach_s: time("attach_timeout", &self.attach_timeout, ATTACH_S)?,
            min_healthy: self.min_healthy.as_deref().map(share).transpose()?,
        })
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<Fault> {
        let mut out: Vec<Fault> = self.times().err().into_iter().collect();
        out.extend(self.member.as_deref().and_then(|m| member(m).err()).map(|e| ("member", e)));
        match &self.kind {
            Kind::Haproxy { endpoints, backend } => {
                if endpoints.is_empty() {
                    out.push(("endpoints", "must name at least one: `tcp://host:port` or `unix:///path`".into()));
                }
                out.extend(endpoints.iter().filter_map(|e| endpoint(e).err()).map(|e| ("endpoints", e)));
                if !is_member(backend) {
                    out.push(("backend", format!("must be the name of a backend ({MEMBER_RULE}), not {backend:?}")));
                }
            }
            Kind::Nginx { host, file, test, reload, port, pid } => {
                out.extend(of_host(host));
                for (key, path) in [("file", Some(file)), ("pid", pid.as_ref())] {
                    let Some(path) = path else { continue };
                    if !path.starts_with('/') || path.ends_with('/') || path.split('/').any(|p| p == "..") {
                        out.push((key, format!("must be the absolute path of a file without `..`, not {path:?}")));
                    }
                }
                for (key, command) in [("test", test), ("reload", reload)] {
                    // As nginx's own: found on the PATH of the agent.
                    if command.as_ref().is_some_and(|c| c.first().is_none_or(String::is_empty)) {
                        out.push((key, "must hold a program and its arguments, such as [nginx, -t]".into()));
                    }
                }
                if *port == Some(0) {
                    out.push(("port", "must be 1 to 65535".into()));
                }
            }
            Kind::Http { drain, attach, state, drained, up, healthy } => {
                for (key, c) in [("drain", Some(drain)), ("attach", Some(attach)), ("state", state.as_ref())] {
                    out.extend(c.and_then(|c| call(c).err()).map(|e| (key, e)));
                    if key != "state" && !c.is_some_and(names_member) {
                        let text = "does not say which member: write `{member}` into the url, a header or the body";
                        out.push((key, text.into()));
                    }
                }
                for (key, e) in [("drained", drained), ("up", up), ("healthy", healthy)] {
                    let Some(e) = e else { continue };
                    out.extend(answer(e).err().map(|e| (key, e)));
                    if state.is_none() {
                        out.push((key, "reads what `state` answers; add `state: { url: ... }`".into()));
                    }
                }
                if self.min_healthy.is_some() && healthy.is_none() {
                    let text = "needs `healthy`: an expression that says how many members are well";
                    out.push(("min_healthy", text.into()));
                }
            }
            Kind::Command { host, run } => {
                out.extend(of_host(host));
                out.extend(argv(run).err().map(|e| ("run", e)));
                if self.min_healthy.is_some() {
                    let text = "is not known of a load balancer that only has a command; let the command refuse";
                    out.push(("min_healthy", text.into()));
                }
            }
        }
        out
    }
}

impl Kind {
    /// Names of the secrets that calls to it hold.
    pub fn secrets(&self) -> BTreeSet<String> {
        let Kind::Http { drain, attach, state, .. } = self else { return BTreeSet::new() };
        let calls = [Some(drain), Some(attach), state.as_ref()].into_iter().flatten();
        let texts = calls.flat_map(|c| std::iter::once(&c.url).chain(c.headers.values()).chain(&c.body));
        let parts = texts.flat_map(|t| t.split("${{").skip(1).filter_map(|p| p.split_once("}}")));
        parts.filter_map(|(inside, _)| inside.trim().strip_prefix("secrets.")).map(Into::into).collect()
    }
}

fn of_host(host: &str) -> Option<Fault> {
    let text = || format!("must be the name of a host with an agent, not {host:?}");
    (!crate::artifact::is_name(host)).then(|| ("host", text()))
}

/// `3` or `50%`.
fn share(text: &str) -> Result<Share, Fault> {
    let wrong =
        || ("min_healthy", format!("must be a number of members such as `3`, or a part such as `50%`, not {text:?}"));
    let digits = text.strip_suffix('%').unwrap_or(text);
    let n: u32 = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit())).ok_or_else(wrong)?;
    match text.ends_with('%') {
        true if n <= 100 => Ok(Share::Percent(n)),
        true => Err(wrong()),
        false => Ok(Share::Count(n)),
    }
}

/// A template over `host` alone, that gives a name for some host at least.
fn member(text: &str) -> Result<(), String> {
    let template = Template::compile(&json!(text)).map_err(|e| e.to_string())?;
    if let Some(fixed) = template.fixed() {
        let said = fixed.as_str().unwrap_or_default();
        return Err(match is_member(said) {
            true => format!("is the same for all hosts ({said:?}); read the host: `${{{{ host.name }}}}`"),
            false => format!("is no name of a member: it has {MEMBER_RULE}"),
        });
    }
    if !template.references().is_empty() {
        return Err("holds no secrets and no outputs; read `host`".into());
    }
    let stranger = template.expressions().into_iter().flat_map(|e| e.roots()).find(|r| *r != "host").cloned();
    match stranger {
        Some(r) => Err(format!("reads `{r}`; only `host` exists here: its name, address, labels and values")),
        None => Ok(()),
    }
}

fn endpoint(text: &str) -> Result<(), String> {
    let wrong = || format!("must be `tcp://host:port` or `unix:///absolute/path`, not {text:?}");
    if let Some(path) = text.strip_prefix("unix://") {
        let fits = path.len() > 1 && path.starts_with('/') && !path.contains(|c: char| c.is_control());
        return if fits { Ok(()) } else { Err(wrong()) };
    }
    let (host, port) = text.strip_prefix("tcp://").and_then(|a| a.rsplit_once(':')).ok_or_else(wrong)?;
    let fits = !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']'))
        && port.parse::<u16>().is_ok_and(|p| p > 0);
    if fits { Ok(()) } else { Err(wrong()) }
}

/// A program by its absolute path, and its arguments: no shell reads them and no PATH is searched.
fn argv(command: &[String]) -> Result<(), String> {
    match command.first() {
        None => Err("must hold a program and its arguments, such as [/usr/local/bin/members]".into()),
        Some(p) if !p.starts_with('/') || p.ends_with('/') => {
            Err(format!("must begin with the absolute path of a program, not {p:?}"))
        }
        Some(_) if command.iter().any(|a| a.contains('\0')) => Err("holds a NUL character".into()),
        Some(_) => Ok(()),
    }
}

fn call(c: &HttpCall) -> Result<(), String> {
    let url = ["http://", "https://"].iter().any(|p| c.url.len() > p.len() && c.url.starts_with(p));
    if !url || secrets_alone(&c.url)?.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("`url` must begin with http:// or https:// and hold no spaces, not {:?}", c.url));
    }
    c.headers.values().chain(&c.body).try_for_each(|t| secrets_alone(t).map(drop))?;
    let methods = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    match &c.method {
        Some(m) if !methods.contains(&m.as_str()) => Err(format!("`method` must be one of {}", methods.join(", "))),
        _ => Ok(()),
    }
}

/// The text without its `${{ secrets.<name> }}`; nothing else can be filled in there.
fn secrets_alone(text: &str) -> Result<String, String> {
    let mut parts = text.split("${{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (inside, after) = part.split_once("}}").ok_or("has `${{` without a closing `}}`")?;
        let name = inside.trim().strip_prefix("secrets.").filter(|n| crate::artifact::is_name(n));
        if name.is_none() {
            return Err(format!(
                "holds `{}`; only `${{{{ secrets.<name> }}}}` and `{{member}}` are filled in",
                inside.trim()
            ));
        }
        out.push_str(after);
    }
    Ok(out)
}

/// Whether the call says whom it is about.
fn names_member(c: &HttpCall) -> bool {
    std::iter::once(&c.url).chain(c.headers.values()).chain(&c.body).any(|t| t.contains("{member}"))
}

/// CEL over what the load balancer answered.
fn answer(source: &str) -> Result<(), String> {
    let e = Expression::compile(source).map_err(|e| e.to_string())?;
    match e.roots().iter().find(|r| !["json", "status"].contains(&r.as_str())) {
        Some(r) => Err(format!("`{}` reads `{r}`; only `json` and `status` exist here", e.source())),
        None => Ok(()),
    }
}
