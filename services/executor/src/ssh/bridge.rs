//! Carries frames between the agent on a host and the subjects of the agents' NATS account, so that every executor speaks to
//! it as to any other. Frames pass unopened: the agent signs them, and only its own subjects are used.

use super::{
    Fault,
    connect::{self, Session},
    enrol, push, targets, windows,
};
use crate::shared::Shared;
use russh::{Channel, ChannelMsg, client};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windlass_contracts::{
    stdio::{Decoder, Hi, Kind, PING_S, encode},
    subjects,
};
use windlass_domain::{
    catalog::{Host, Shell},
    ids::AgentId,
};

/// The agent's first word comes after it has taken its lock from an earlier process whose link may be dead.
const FIRST_WORD: Duration = Duration::from_secs(40);
/// A host that takes nothing for this long is cut off.
const WRITE: Duration = Duration::from_secs(20);

/// Why a connection was closed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Idle,
    /// The host's entry in the catalog changed: connect anew.
    Changed,
    Stopped,
}

/// Whether a connection is still needed, and still the right one.
pub(super) struct Need {
    idle: Duration,
    needed: Instant,
}

impl Need {
    pub(super) fn new(idle: Duration) -> Need {
        Need { idle, needed: Instant::now() }
    }

    /// How often to [`Need::look`].
    pub(super) fn every(&self) -> Duration {
        (self.idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(2))
    }

    /// `Some`: the connection is to be closed.
    pub(super) fn look(&mut self, shared: &Shared, host: &Host, agent: AgentId) -> Result<Option<End>, Fault> {
        if shared.ssh.wants(&host.name) {
            self.needed = Instant::now();
        }
        match shared.ssh.host(&host.name) {
            Some(now) if now.ssh == host.ssh && now.address == host.address => {}
            _ => return Ok(Some(End::Changed)),
        }
        if !shared.directory.knows(agent) {
            let state_dir = host.ssh.as_ref().map(|s| s.state_dir.clone()).unwrap_or_default();
            return Err(Fault::Revoked { host: host.name.clone(), state_dir });
        }
        Ok((self.needed.elapsed() >= self.idle).then_some(End::Idle))
    }
}

struct Link {
    session: Session,
    channel: Channel<client::Msg>,
    decoder: Decoder,
    stderr: Vec<u8>,
}

/// Connects, and carries until nobody needs it. `met` is called when the host is known and listens.
pub(super) async fn carry(
    shared: &Arc<Shared>,
    host: &Arc<Host>,
    stop: &CancellationToken,
    met: impl FnOnce(),
) -> Result<End, Fault> {
    if let Some(ssh) = host.ssh.as_deref().filter(|s| s.shell == Shell::PowerShell) {
        return windows::carry(shared, host, ssh, stop, met).await;
    }
    let session = log_in(shared, host).await?;
    let turn = shared.ssh.turn().await;
    let mut link = start(shared, host, session).await?;
    let hi = match tokio::time::timeout(FIRST_WORD, link.first()).await {
        Ok(hi) => hi?,
        Err(_) => return Err(Fault::Agent { said: "it said nothing".into() }),
    };
    let welcome = enrol::welcome(shared, host, &hi).await?;
    // Listens before the agent may speak, so that the answer to its HELLO is heard.
    let mut down = shared.agents.subscribe(subjects::agent_down(welcome.agent)).await?;
    let text = serde_json::to_vec(&welcome).map_err(Fault::Hi)?;
    link.write(Kind::Welcome, &text).await?;
    met();
    drop(turn);
    tracing::info!(host = host.name, agent = %welcome.agent, version = hi.version, "reached by SSH");
    let mut ping = tokio::time::interval(Duration::from_secs(PING_S));
    let mut need = Need::new(shared.ctx.settings.ssh.idle_s.get());
    let mut look = tokio::time::interval(need.every());
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break End::Stopped,
            said = link.channel.wait() => link.take(shared, welcome.agent, said).await?,
            frame = down.next() => match frame {
                Some(m) => link.write(Kind::Down, &m.payload).await?,
                None => return Err(Fault::Cut { why: "the subscription to its frames ended".into() }),
            },
            _ = ping.tick() => link.write(Kind::Ping, b"").await?,
            _ = look.tick() => if let Some(end) = need.look(shared, host, welcome.agent)? {
                break end;
            },
        }
    };
    link.session.close().await;
    Ok(ended)
}

async fn log_in(shared: &Shared, host: &Host) -> Result<Session, Fault> {
    let target = targets::target(shared, host).await?;
    connect::connect(&target, shared.ctx.settings.ssh.connect_s.get()).await
}

/// Starts the agent; puts it there first when it is not.
async fn start(shared: &Shared, host: &Host, mut session: Session) -> Result<Link, Fault> {
    let settings = &shared.ctx.settings.ssh;
    let Some(ssh) = host.ssh.as_deref() else { return Err(Fault::NoJump { jump: host.name.clone() }) };
    let binary = settings.agent_binary.as_deref();
    let mut agent = shared.ssh.agents.of(binary, std::env::consts::ARCH).await?;
    // The first start finds no agent; the second, when the host has another processor, neither.
    for _ in 0..3 {
        let channel = session.exec(&push::start_command(ssh, &agent)).await?;
        let mut link = Link { session, channel, decoder: Decoder::after_magic(), stderr: Vec::new() };
        let out = match tokio::time::timeout(FIRST_WORD, link.started()).await {
            Ok(Started::Speaks) => return Ok(link),
            Ok(Started::Ended(out)) => out,
            Err(_) => return Err(Fault::Agent { said: "it said nothing".into() }),
        };
        if out.code != Some(push::NOT_THERE) {
            return Err(Fault::Agent {
                said: push::text(if out.stderr.is_empty() { &out.stdout } else { &out.stderr }),
            });
        }
        let machine = push::machine(&host.name, &out)?;
        agent = shared.ssh.agents.of(binary, &machine).await?;
        tracing::info!(host = host.name, digest = agent.digest, "the agent is put on the host");
        let pushed = {
            let _turn = shared.ssh.push_turn().await;
            push::push(&link.session, ssh, &agent, push::unpacks(&out), settings.push_s.get()).await
        };
        if matches!(pushed, Err(Fault::Digest { .. })) {
            // The file here may have been replaced since it was hashed.
            shared.ssh.agents.forget().await;
        }
        pushed?;
        session = link.session;
    }
    Err(Fault::Agent { said: "it is not there although it was put there".into() })
}

enum Started {
    Speaks,
    Ended(connect::Output),
}

impl Link {
    /// Reads until the agent speaks or the command has ended.
    async fn started(&mut self) -> Started {
        let mut out = connect::Output::default();
        while let Some(m) = self.channel.wait().await {
            match m {
                ChannelMsg::Data { data } => {
                    self.decoder.push(&data);
                    if self.decoder.speaks() {
                        return Started::Speaks;
                    }
                    if out.stdout.len() < 4096 {
                        out.stdout.extend_from_slice(&data);
                    }
                }
                ChannelMsg::ExtendedData { data, .. } if out.stderr.len() < 4096 => out.stderr.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => out.code = Some(exit_status),
                ChannelMsg::Failure | ChannelMsg::Close => break,
                _ => {}
            }
        }
        Started::Ended(out)
    }

    async fn first(&mut self) -> Result<Hi, Fault> {
        loop {
            if let Some((kind, text)) = self.decoder.next_message()? {
                if kind == Kind::Hi {
                    return serde_json::from_slice(&text).map_err(Fault::Hi);
                }
                continue;
            }
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => self.decoder.push(&data),
                Some(ChannelMsg::ExtendedData { data, .. }) => self.note(&data),
                Some(ChannelMsg::Close) | None => return Err(Fault::Agent { said: push::text(&self.stderr) }),
                Some(_) => {}
            }
        }
    }

    /// What the host said: its frames go on under the agent's own subjects.
    async fn take(&mut self, shared: &Shared, agent: AgentId, said: Option<ChannelMsg>) -> Result<(), Fault> {
        match said {
            Some(ChannelMsg::Data { data }) => self.decoder.push(&data),
            Some(ChannelMsg::ExtendedData { data, .. }) => self.note(&data),
            Some(ChannelMsg::Close) | None => {
                let why = if self.stderr.is_empty() { "it ended".into() } else { push::text(&self.stderr) };
                return Err(Fault::Cut { why });
            }
            Some(_) => {}
        }
        while let Some((kind, frame)) = self.decoder.next_message()? {
            let subject = match kind {
                Kind::Msg => subjects::agent_up(agent),
                Kind::Hello => subjects::agent_hello(agent),
                Kind::Log => subjects::agent_log(agent),
                _ => continue,
            };
            if let Err(error) = shared.agents.publish(subject, frame).await {
                // The agent says again what counts.
                tracing::debug!(%agent, error = &error as &dyn std::error::Error, "a frame was not carried");
            }
        }
        Ok(())
    }

    /// The end of what the agent wrote to its log, for texts about failures.
    fn note(&mut self, data: &[u8]) {
        self.stderr.extend_from_slice(data);
        let extra = self.stderr.len().saturating_sub(4096);
        self.stderr.drain(..extra);
    }

    async fn write(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Fault> {
        let write = self.channel.data_bytes(encode(kind, payload));
        match tokio::time::timeout(WRITE, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Fault::Cut { why: e.to_string() }),
            Err(_) => Err(Fault::Cut { why: format!("it took nothing for {} s", WRITE.as_secs()) }),
        }
    }
}
