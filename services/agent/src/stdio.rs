//! The agent on a host reached by SSH: `windlass-agent stdio` is the ordinary agent whose link to the control plane is its own
//! standard input and output. It ends when they do; its runners go on, and the next one takes them over.

use crate::{
    agent::{self, AgentError},
    files,
    identity::{Identity, IdentityError},
    settings::Settings,
};
use nkeys::KeyPair;
use std::{fs::File, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use windlass_contracts::stdio::{Decoder, Hi, Kind, MAGIC, SILENCE_S, StreamError, Welcome, encode};

/// An earlier process on the same state directory ends within [`SILENCE_S`] when its link is dead; wait a little longer.
const LOCK_WAIT: Duration = Duration::from_secs(SILENCE_S + 10);
const LOCK_LOOK: Duration = Duration::from_millis(50);
const WELCOME_WAIT: Duration = Duration::from_secs(30);
const QUEUE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot make the directory {0}")]
    Dir(String, #[source] std::io::Error),
    #[error("the stream from the control plane cannot be read")]
    Stream(#[from] StreamError),
    #[error("the control plane ended the stream, or said nothing for {} s, before the agent was welcome", WELCOME_WAIT.as_secs())]
    NoWelcome,
    #[error("the control plane's first word cannot be read")]
    Welcome(#[source] serde_json::Error),
    #[error("the control plane's keys are not valid nkeys")]
    Keys,
    #[error(
        "{state} belongs to agent {was} of host {host}, and the control plane wants agent {asked}; set another \
         `ssh.state_dir` for the host, or remove the directory if nothing of it is needed"
    )]
    Other { state: String, was: String, host: String, asked: String },
}

/// The writing half: messages are written by a task of their own, in order.
pub(crate) struct Streams {
    out: mpsc::Sender<Out>,
    _tasks: JoinSet<()>,
}

enum Out {
    Bytes(Vec<u8>),
    Flush(oneshot::Sender<()>),
}

impl Streams {
    pub(crate) async fn send(&self, kind: Kind, payload: &[u8]) {
        // The reader tells of the end.
        let _ = self.out.send(Out::Bytes(encode(kind, payload))).await;
    }

    pub(crate) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.out.send(Out::Flush(done)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// Serves until the input ends, falls silent, or a signal comes.
pub async fn run(state: &Path, settings: Settings) -> Result<(), StdioError> {
    files::private_dir(state).map_err(|e| StdioError::Dir(state.display().to_string(), e))?;
    let lock = wait_for_lock(state).await?;
    let (key, before) = own(state)?;
    let mut stdin = tokio::io::stdin();
    let mut decoder = Decoder::plain();
    let (out, queue) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    tasks.spawn(write(queue));
    let hi = Hi {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        public_key: key.public_key(),
        agent: before.as_ref().map(|i| i.agent_id),
    };
    let hi = serde_json::to_vec(&hi).map_err(StdioError::Welcome)?;
    let mut first = MAGIC.to_vec();
    first.extend(encode(Kind::Hi, &hi));
    let _ = out.send(Out::Bytes(first)).await;
    let welcome = tokio::time::timeout(WELCOME_WAIT, welcome(&mut stdin, &mut decoder));
    let welcome = welcome.await.map_err(|_| StdioError::NoWelcome)??;
    settle_identity(state, &key, before, welcome)?;
    let (to_inbox, inbox) = mpsc::channel(QUEUE);
    tasks.spawn(read(stdin, decoder, to_inbox));
    agent::run_over(state.to_owned(), settings, lock, (Streams { out, _tasks: tasks }, inbox)).await?;
    Ok(())
}

/// One agent a state directory; an earlier `stdio` of a dead link ends by itself.
async fn wait_for_lock(state: &Path) -> Result<File, AgentError> {
    let until = tokio::time::Instant::now() + LOCK_WAIT;
    loop {
        match agent::lock_state(state) {
            Err(AgentError::Running(_)) if tokio::time::Instant::now() < until => tokio::time::sleep(LOCK_LOOK).await,
            other => return other,
        }
    }
}

/// The key of this state directory, made here on first use; its seed never leaves the host.
fn own(state: &Path) -> Result<(KeyPair, Option<Identity>), StdioError> {
    match Identity::load(state) {
        Ok(i) => Ok((Identity::key(state)?, Some(i))),
        Err(IdentityError::Missing(_)) => match Identity::key(state) {
            Ok(k) => Ok((k, None)),
            Err(IdentityError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok((KeyPair::new_user(), None))
            }
            Err(e) => Err(e.into()),
        },
        Err(e) => Err(e.into()),
    }
}

async fn welcome(stdin: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> Result<Welcome, StdioError> {
    let mut piece = vec![0; 16 * 1024];
    loop {
        match decoder.next_message()? {
            Some((Kind::Welcome, text)) => return serde_json::from_slice(&text).map_err(StdioError::Welcome),
            Some(_) => continue,
            None => {}
        }
        match stdin.read(&mut piece).await {
            Ok(n) if n > 0 => decoder.push(&piece[..n]),
            _ => return Err(StdioError::NoWelcome),
        }
    }
}

fn settle_identity(state: &Path, key: &KeyPair, before: Option<Identity>, w: Welcome) -> Result<(), StdioError> {
    if [&w.executor_key, &w.approval_key].iter().any(|k| KeyPair::from_public_key(k).is_err()) {
        return Err(StdioError::Keys);
    }
    if let Some(old) = &before
        && (old.agent_id != w.agent || old.host != w.host)
    {
        return Err(StdioError::Other {
            state: state.display().to_string(),
            was: old.agent_id.to_string(),
            host: old.host.clone(),
            asked: format!("{} of host {}", w.agent, w.host),
        });
    }
    let now = Identity {
        agent_id: w.agent,
        host: w.host,
        nats_urls: vec![],
        jwt: String::new(),
        executor_key: w.executor_key,
        approval_key: w.approval_key,
        nats_ca: None,
    };
    // An agent that was enrolled the ordinary way keeps its address and its JWT.
    let now = match before {
        Some(old) => Identity { nats_urls: old.nats_urls, jwt: old.jwt, ..now },
        None => now,
    };
    Ok(now.save(state, key)?)
}

async fn write(mut queue: mpsc::Receiver<Out>) {
    let mut stdout = tokio::io::stdout();
    while let Some(o) = queue.recv().await {
        match o {
            Out::Bytes(b) => {
                if stdout.write_all(&b).await.is_err() || stdout.flush().await.is_err() {
                    return;
                }
            }
            Out::Flush(done) => drop(done.send(())),
        }
    }
}

/// Ends, and with it the agent, at the end of the input, at what cannot be read, and when nothing was said for too long.
async fn read(mut stdin: impl AsyncRead + Unpin, mut decoder: Decoder, to: mpsc::Sender<Vec<u8>>) {
    let mut piece = vec![0; 64 * 1024];
    loop {
        loop {
            match decoder.next_message() {
                Ok(Some((Kind::Down, frame))) => {
                    if to.send(frame).await.is_err() {
                        return;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(e) => return tracing::warn!(error = %e, "the stream from the control plane cannot be read"),
            }
        }
        match tokio::time::timeout(Duration::from_secs(SILENCE_S), stdin.read(&mut piece)).await {
            Ok(Ok(n)) if n > 0 => decoder.push(&piece[..n]),
            Ok(_) => return tracing::info!("the control plane closed the stream"),
            Err(_) => return tracing::warn!("the control plane has said nothing for {SILENCE_S} s"),
        }
    }
}
