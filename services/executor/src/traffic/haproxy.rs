//! HAProxy by its runtime API. Each endpoint is one HAProxy; all of them are told, and all must agree.
//!
//! Draining: `drain` first, so that nothing new comes but what belongs to a client already there; when its last session has
//! ended, `maint`: a server in `drain` still gets the requests of clients that hold its cookie, and its health checks run on
//! while its service restarts. Bringing back: HAProxy takes a server that leaves `maint` for healthy until its first check
//! fails. So it is told that the server is down before it is made ready: it gets its first request after a check that went
//! well. A server without checks is simply made ready.

use super::{Fault, turns::Minimum};
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{Instant, sleep, timeout},
};
use windlass_domain::traffic::{OnDrainTimeout, Share};
use windlass_runtime::Outbound;

/// For one exchange, from the connection to the last byte.
const EXCHANGE: Duration = Duration::from_secs(5);
/// A backend of some ten thousand servers.
const MAX_ANSWER: u64 = 8 << 20;
const LOOK: Duration = Duration::from_millis(100);
/// Between tries of an endpoint that does not answer.
const AGAIN: Duration = Duration::from_millis(500);
/// What cut sessions get to end.
const CUT: Duration = Duration::from_secs(3);
/// `type` of a server in `show stat`.
const SERVER: &str = "2";

/// One load balancer and the member it is about.
pub(super) struct Haproxy<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) endpoints: &'a [String],
    pub(super) backend: &'a str,
    pub(super) server: &'a str,
}

/// A server as `show stat` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    status: String,
    /// Sessions that run, and those that wait for it.
    sessions: u64,
    backup: bool,
    /// Health checks are made.
    checked: bool,
}

impl Server {
    fn is_up(&self) -> bool {
        self.status.starts_with("UP") || self.status == "no check"
    }
    fn in_maintenance(&self) -> bool {
        self.status.starts_with("MAINT")
    }
}

type Servers = BTreeMap<String, Server>;

/// Reads the answer to `show stat`. Columns are found by their names: their number differs between versions.
fn parse(text: &str) -> Result<Servers, String> {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let head = lines.next().unwrap_or_default();
    let Some(head) = head.strip_prefix("# ").filter(|h| h.starts_with("pxname,")) else {
        return Err(if head.is_empty() {
            "it answered nothing".into()
        } else {
            format!("it answered {:?}", cut(head))
        });
    };
    let columns: Vec<&str> = head.split(',').collect();
    let at = |name: &str| {
        columns.iter().position(|c| *c == name).ok_or_else(|| format!("its statistics have no column `{name}`"))
    };
    let (name, status, now, queued) = (at("svname")?, at("status")?, at("scur")?, at("qcur")?);
    let (kind, backup, check) = (at("type")?, at("bck")?, at("check_status")?);
    let mut out = Servers::new();
    for line in lines {
        // Only the columns after those read here can hold quoted texts.
        let fields: Vec<&str> = line.split(',').collect();
        let field = |i: usize| fields.get(i).copied().unwrap_or_default();
        if field(kind) != SERVER {
            continue;
        }
        let number = |i: usize| match field(i) {
            "" => Ok(0),
            n => n.parse::<u64>().map_err(|_| format!("its statistics are not understood: {:?}", cut(line))),
        };
        let server = Server {
            status: field(status).to_owned(),
            sessions: number(now)?.saturating_add(number(queued)?),
            backup: field(backup) == "1",
            checked: !field(check).is_empty(),
        };
        out.insert(field(name).to_owned(), server);
    }
    Ok(out)
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

/// Members that are up beside this one, how many must be, and whether that holds.
fn enough(servers: &Servers, server: &str, least: Share) -> Result<(), String> {
    let real = || servers.iter().filter(|(_, s)| !s.backup);
    let all = u32::try_from(real().count()).unwrap_or(u32::MAX);
    let others = real().filter(|(name, s)| *name != server && s.is_up()).count();
    let least = super::least(least, all);
    // One that is down already takes nothing with it.
    if others >= least as usize || servers.get(server).is_some_and(|s| !s.is_up()) {
        return Ok(());
    }
    Err(format!("{others} of {all} members would be left up, min_healthy asks for {least}"))
}

impl Haproxy<'_> {
    pub(super) async fn drain(
        &self,
        least: Option<Minimum<'_>>,
        limit: Duration,
        late: OnDrainTimeout,
        says: &super::Says,
    ) -> Result<(), Fault> {
        let until = Instant::now() + limit;
        self.take_off(least, until, limit, says).await?;
        let mut open: Vec<&String> = self.endpoints.iter().collect();
        loop {
            let mut left = Vec::new();
            let mut last = String::new();
            for at in open {
                match self.look(at, until).await?.sessions {
                    // From here on not even those that hold its cookie; who slipped in before is waited for as well.
                    0 => {
                        self.set(at, &["state maint"], until).await?;
                        if self.look(at, until).await?.sessions > 0 {
                            left.push(at);
                        }
                    }
                    n => {
                        last = format!("{n} sessions of {} run on at {at}", self.server);
                        left.push(at);
                    }
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!("{last} after {} s", limit.as_secs());
                match late {
                    OnDrainTimeout::Fail => return Err(Fault::Timeout(text)),
                    OnDrainTimeout::GoOn => return self.cut_off(&left, &text).await,
                }
            }
            says.waits(&last);
            open = left;
            sleep(LOOK).await;
        }
    }

    /// Takes the server off; where a minimum is asked for, before anybody else counts.
    async fn take_off(
        &self,
        least: Option<Minimum<'_>>,
        until: Instant,
        limit: Duration,
        says: &super::Says,
    ) -> Result<(), Fault> {
        let Some(least) = least else {
            for at in self.endpoints {
                self.off(at, until).await?;
            }
            return Ok(());
        };
        loop {
            let Some(short) = self.try_off(least, until, says).await? else { return Ok(()) };
            if Instant::now() >= until {
                return Err(Fault::Timeout(format!("{short}, for {} s", limit.as_secs())));
            }
            says.waits(&short);
            sleep(LOOK * 3).await;
        }
    }

    /// What keeps the server on, or `None`: it was told to go.
    async fn try_off(&self, least: Minimum<'_>, until: Instant, says: &super::Says) -> Result<Option<String>, Fault> {
        let names = self.endpoints.iter().map(|e| format!("{e} {}", self.backend));
        let here = least.turns.here(names, until).await?;
        if let Some(short) = self.short(least.share, until).await? {
            return Ok(Some(short));
        }
        let turn = here.everywhere(until, says).await?;
        let off = async {
            if let Some(short) = self.short(least.share, turn.ends).await? {
                return Ok(Some(short));
            }
            for at in self.endpoints {
                if turn.is_over() {
                    return Ok(Some(format!("the turn at {at} ended before the server was taken off")));
                }
                self.off(at, turn.ends).await?;
            }
            Ok(None)
        };
        match off.await {
            // It could have been the turn that was too short, not the time.
            Err(Fault::Broken(why)) if turn.is_over() => Ok(Some(why)),
            done => done,
        }
    }

    /// What keeps the server on at any of the endpoints.
    async fn short(&self, least: Share, until: Instant) -> Result<Option<String>, Fault> {
        let mut short = None;
        for at in self.endpoints {
            let servers = self.servers(at, until).await?;
            self.mine(at, &servers)?;
            short = short.or(enough(&servers, self.server, least).err().map(|e| format!("at {at} {e}")));
        }
        Ok(short)
    }

    async fn off(&self, at: &str, until: Instant) -> Result<(), Fault> {
        match self.look(at, until).await?.in_maintenance() {
            true => Ok(()),
            false => self.set(at, &["state drain"], until).await,
        }
    }

    async fn cut_off(&self, endpoints: &[&String], why: &str) -> Result<(), Fault> {
        tracing::info!(server = self.server, backend = self.backend, why, "its last connections are cut");
        let until = Instant::now() + CUT;
        for at in endpoints {
            self.set(at, &["state maint"], until).await?;
            self.command(at, &format!("shutdown sessions server {}/{}", self.backend, self.server), until).await?;
        }
        for at in endpoints {
            while self.look(at, until).await?.sessions > 0 && Instant::now() < until {
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    pub(super) async fn attach(&self, limit: Duration, says: &super::Says) -> Result<(), Fault> {
        let until = Instant::now() + limit;
        // Every HAProxy is told before any is waited for, and one that does not answer keeps none of the others from it.
        let mut faults = Vec::new();
        for at in self.endpoints {
            if let Err(fault) = self.ready(at, until).await {
                faults.push(fault);
            }
        }
        for at in self.endpoints {
            let up = async {
                loop {
                    let now = self.look(at, until).await?;
                    if now.is_up() {
                        return Ok(());
                    }
                    let text = format!("{} is {} at {at}", self.server, now.status);
                    if Instant::now() >= until {
                        return Err(Fault::Timeout(format!(
                            "{text} {} s after it was made ready; it takes traffic again when its health check succeeds",
                            limit.as_secs()
                        )));
                    }
                    says.waits(&text);
                    sleep(LOOK).await;
                }
            };
            if faults.is_empty()
                && let Err(fault) = up.await
            {
                faults.push(fault);
            }
        }
        faults.into_iter().next().map_or(Ok(()), Err)
    }

    async fn ready(&self, at: &str, until: Instant) -> Result<(), Fault> {
        if self.look(at, until).await?.in_maintenance() {
            self.set(at, &["state drain"], until).await?;
            // Only out of maintenance it says whether the server is checked.
            if self.look(at, until).await?.checked {
                return self.set(at, &["health down", "state ready"], until).await;
            }
        }
        self.set(at, &["state ready"], until).await
    }

    fn mine(&self, at: &str, servers: &Servers) -> Result<Server, Fault> {
        servers.get(self.server).cloned().ok_or_else(|| {
            let known: Vec<&str> = servers.keys().map(String::as_str).take(20).collect();
            Fault::Refused(format!(
                "backend {} at {at} has no server {}, only {}; see `member` of the load balancer",
                self.backend,
                self.server,
                known.join(", ")
            ))
        })
    }

    async fn look(&self, at: &str, until: Instant) -> Result<Server, Fault> {
        self.mine(at, &self.servers(at, until).await?)
    }

    async fn servers(&self, at: &str, until: Instant) -> Result<Servers, Fault> {
        let text = self.command(at, &format!("show stat {} 4 -1", self.backend), until).await?;
        parse(&text).map_err(|e| Fault::Refused(format!("HAProxy at {at}, asked for backend {}: {e}", self.backend)))
    }

    /// Sets what is said of the server, in one line. HAProxy answers nothing to what it does.
    async fn set(&self, at: &str, what: &[&str], until: Instant) -> Result<(), Fault> {
        let one = |w: &&str| format!("set server {}/{} {w}", self.backend, self.server);
        let line = what.iter().map(one).collect::<Vec<_>>().join("; ");
        let answer = self.command(at, &line, until).await?;
        match answer.trim() {
            "" => Ok(()),
            words => Err(Fault::Refused(format!("HAProxy at {at} refuses `{line}`: {}", cut(words)))),
        }
    }

    /// One line and its answer. An endpoint that does not answer is asked again until `until`, and once at least.
    async fn command(&self, at: &str, line: &str, until: Instant) -> Result<String, Fault> {
        if [self.backend, self.server].iter().any(|n| n.is_empty() || !n.chars().all(plain)) {
            return Err(Fault::Refused(format!("{}/{} is no name of a server", self.backend, self.server)));
        }
        loop {
            let why = match timeout(EXCHANGE, exchange(self.outbound, at, line)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Fault::Broken(why))) => why,
                Ok(Err(fault)) => return Err(fault),
                Err(_) => format!("no answer within {} s", EXCHANGE.as_secs()),
            };
            if Instant::now() + AGAIN >= until {
                return Err(Fault::Broken(format!("HAProxy at {at} cannot be asked: {why}")));
            }
            sleep(AGAIN).await;
        }
    }
}

/// What could end a command or begin another is no part of a name.
fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:-[]@".contains(c)
}

async fn exchange(outbound: &Outbound, at: &str, line: &str) -> Result<String, Fault> {
    let broken = |e: std::io::Error| Fault::Broken(e.to_string());
    if let Some(path) = at.strip_prefix("unix://") {
        return talk(UnixStream::connect(path).await.map_err(broken)?, line).await;
    }
    let address = at.strip_prefix("tcp://").and_then(|a| a.rsplit_once(':'));
    let Some((host, port)) = address.and_then(|(h, p)| Some((h, p.parse::<u16>().ok()?))) else {
        return Err(Fault::Refused(format!("`{at}` is no endpoint: write tcp://host:port or unix:///path")));
    };
    let addresses: Vec<SocketAddr> = outbound.resolve(host, port).await.map_err(|e| match e.retryable() {
        true => Fault::Broken(crate::central::chain(&e)),
        false => Fault::Refused(crate::central::chain(&e)),
    })?;
    talk(TcpStream::connect(addresses.as_slice()).await.map_err(broken)?, line).await
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> Result<String, Fault> {
    let broken = |e: std::io::Error| Fault::Broken(e.to_string());
    stream.write_all(format!("{line}\n").as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER + 1).read_to_end(&mut answer).await.map_err(broken)?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(Fault::Refused(format!("it answered with more than {MAX_ANSWER} bytes")));
    }
    String::from_utf8(answer).map_err(|_| Fault::Refused("its answer is no text".into()))
}

#[cfg(test)]
#[path = "haproxy_tests.rs"]
mod tests;
