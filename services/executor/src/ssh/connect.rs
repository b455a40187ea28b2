//! One SSH connection: to a host, or through another one; the pinned key or nothing, then the account's private key.

use super::Fault;
use russh::{
    ChannelMsg, ChannelReadHalf, Disconnect, Preferred, client,
    keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
};
use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::AsyncRead, net::TcpStream};

/// Silence on the connection is noticed after about three of these.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Of the output of a short command, more than this is nothing we asked for.
const MAX_OUTPUT: usize = 64 * 1024;

/// Where to and as whom; made from the catalog and the secrets before each connection.
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) account: String,
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) pinned: Vec<PublicKey>,
    pub(crate) jump: Option<Box<Target>>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}", self.account, self.address, self.port)
    }
}

/// An open connection. Dropping it ends it, and what it goes through.
pub(crate) struct Session {
    handle: client::Handle<Pinned>,
    _through: Option<Box<Session>>,
}

/// What a short command said.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) code: Option<u32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Accepts the pinned keys alone, and remembers what else was presented.
pub(crate) struct Pinned {
    pub(super) keys: Vec<PublicKey>,
    pub(super) presented: Arc<Mutex<Option<PublicKey>>>,
}

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        if self.keys.iter().any(|p| p.key_data() == key.key_data()) {
            return Ok(true);
        }
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
        Ok(false)
    }
}

/// Asks the server for keys of the pinned kinds only: a host has several, and only some may be pinned.
pub(super) fn config(kinds: &[Algorithm]) -> Arc<client::Config> {
    let mut wanted: Vec<Algorithm> = Vec::new();
    for kind in kinds {
        match kind {
            Algorithm::Rsa { .. } => {
                wanted.push(Algorithm::Rsa { hash: Some(HashAlg::Sha512) });
                wanted.push(Algorithm::Rsa { hash: Some(HashAlg::Sha256) });
            }
            other => wanted.push(other.clone()),
        }
    }
    Arc::new(client::Config {
        preferred: Preferred { key: Cow::Owned(wanted), ..Preferred::DEFAULT },
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    })
}

/// All kinds of host keys that may be pinned.
pub(super) fn all_kinds() -> [Algorithm; 5] {
    let ecdsa = |curve| Algorithm::Ecdsa { curve };
    [
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        Algorithm::Rsa { hash: None },
    ]
}

/// Connects, checks the host's key and logs in, within `limit` for this host (and as much for each it goes through).
pub(crate) fn connect<'a>(
    target: &'a Target,
    limit: Duration,
) -> Pin<Box<dyn Future<Output = Result<Session, Fault>> + Send + 'a>> {
    Box::pin(async move {
        let through = match &target.jump {
            Some(jump) => {
                let wrap = |e| Fault::Jump { host: jump.host.clone(), source: Box::new(e) };
                Some(Box::new(connect(jump, limit).await.map_err(wrap)?))
            }
            None => None,
        };
        let slow = || Fault::Slow { what: format!("connecting to {}", address(target)), limit };
        let done = tokio::time::timeout(limit, open(target, through)).await;
        done.map_err(|_| slow())?
    })
}

fn address(t: &Target) -> String {
    if t.address.contains(':') { format!("[{}]:{}", t.address, t.port) } else { format!("{}:{}", t.address, t.port) }
}

async fn open(target: &Target, through: Option<Box<Session>>) -> Result<Session, Fault> {
    let presented = Arc::new(Mutex::new(None));
    let handler = Pinned { keys: target.pinned.clone(), presented: Arc::clone(&presented) };
    let kinds: Vec<Algorithm> = target.pinned.iter().map(PublicKey::algorithm).collect();
    let config = config(&kinds);
    let dial = |source| Fault::Dial { address: address(target), source };
    let opened = match &through {
        None => {
            let stream = TcpStream::connect((target.address.as_str(), target.port)).await.map_err(dial)?;
            stream.set_nodelay(true).map_err(dial)?;
            client::connect_stream(config, stream, handler).await
        }
        Some(jump) => {
            let channel = jump
                .handle
                .channel_open_direct_tcpip(target.address.clone(), target.port.into(), "127.0.0.1", 0)
                .await
                .map_err(|source| Fault::Through { address: address(target), source })?;
            client::connect_stream(config, channel.into_stream(), handler).await
        }
    };
    let mut handle = match opened {
        Ok(h) => h,
        Err(source) => {
            let other = presented.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(match other {
                Some(key) => Fault::HostKey {
                    host: target.host.clone(),
                    presented: format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256)),
                },
                None => Fault::Protocol { address: address(target), source },
            });
        }
    };
    let protocol = |source| Fault::Protocol { address: address(target), source };
    let hash = handle.best_supported_rsa_hash().await.map_err(protocol)?.flatten();
    let key = PrivateKeyWithHashAlg::new(Arc::clone(&target.key), hash);
    let login = handle.authenticate_publickey(target.account.as_str(), key).await.map_err(protocol)?;
    if !login.success() {
        return Err(Fault::Login { account: target.account.clone(), address: address(target) });
    }
    Ok(Session { handle, _through: through })
}

impl Session {
    /// A running command and its streams.
    pub(crate) async fn exec(&self, command: &str) -> Result<russh::Channel<client::Msg>, Fault> {
        let failed = |source| Fault::Exec { source };
        let channel = self.handle.channel_open_session().await.map_err(failed)?;
        channel.exec(true, command).await.map_err(failed)?;
        Ok(channel)
    }

    /// Runs a command to its end, with this input.
    pub(crate) async fn output(
        &self,
        command: &str,
        input: impl AsyncRead + Unpin,
        limit: Duration,
    ) -> Result<Output, Fault> {
        let slow = || Fault::Slow { what: "a command on the host".into(), limit };
        let run = async {
            let (mut from, to) = self.exec(command).await?.split();
            let write = async {
                let _ = to.data(input).await;
                let _ = to.eof().await;
            };
            let read = rest(&mut from);
            tokio::pin!(read, write);
            let mut written = false;
            // The command may end, and say why, before it has read everything: nothing would take the rest.
            loop {
                tokio::select! {
                    out = &mut read => return Ok(out),
                    () = &mut write, if !written => written = true,
                }
            }
        };
        tokio::time::timeout(limit, run).await.map_err(|_| slow())?
    }

    /// Says good-bye, so that the host need not find out by itself.
    pub(crate) async fn close(self) {
        let bye = self.handle.disconnect(Disconnect::ByApplication, "", "en");
        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    }
}

/// What a command still says until it has ended.
async fn rest(channel: &mut ChannelReadHalf) -> Output {
    let mut out = Output::default();
    while let Some(m) = channel.wait().await {
        match m {
            ChannelMsg::Data { data } if out.stdout.len() < MAX_OUTPUT => out.stdout.extend_from_slice(&data),
            ChannelMsg::ExtendedData { data, .. } if out.stderr.len() < MAX_OUTPUT => {
                out.stderr.extend_from_slice(&data)
            }
            ChannelMsg::ExitStatus { exit_status } => out.code = Some(exit_status),
            ChannelMsg::Failure | ChannelMsg::Close => break,
            _ => {}
        }
    }
    out
}
