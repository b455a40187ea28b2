//! Who this agent is: `identity.json` and `user.nk` of the state directory, written by `enroll`.

use crate::files;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use windlass_domain::ids::AgentId;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{0} holds no identity: run `windlass-agent enroll` first")]
    Missing(PathBuf),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is not readable; enrol this host again with a new token")]
    Parse(PathBuf, #[source] serde_json::Error),
    #[error("{0} does not hold a valid nkey; enrol this host again with a new token")]
    Key(PathBuf),
}

/// What the control plane gave at enrolment. Nothing of it is secret; the seed is in `user.nk`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    pub agent_id: AgentId,
    pub host: String,
    pub nats_urls: Vec<String>,
    pub jwt: String,
    /// Public nkey that signs frames to this agent.
    pub executor_key: String,
    /// Public nkey that signs approvals.
    pub approval_key: String,
    /// Certificates (PEM) of the authority behind the NATS servers' own; with it nothing but TLS is spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_ca: Option<String>,
}

fn path(state: &Path) -> PathBuf {
    state.join("identity.json")
}
/// Where the certificates of [`Identity::nats_ca`] lie for the TLS library.
pub(crate) fn ca_path(state: &Path) -> PathBuf {
    state.join("nats-ca.pem")
}
fn key_path(state: &Path) -> PathBuf {
    state.join("user.nk")
}

impl Identity {
    pub fn load(state: &Path) -> Result<Identity, IdentityError> {
        let p = path(state);
        match fs::read(&p) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(IdentityError::Missing(state.to_owned())),
            Err(source) => Err(IdentityError::Io { what: "read", path: p, source }),
            Ok(b) => serde_json::from_slice(&b).map_err(|e| IdentityError::Parse(p, e)),
        }
    }

    /// Writes the key first: an identity without its key would be useless.
    pub fn save(&self, state: &Path, key: &KeyPair) -> Result<(), IdentityError> {
        let p = key_path(state);
        let seed = key.seed().map_err(|_| IdentityError::Key(p.clone()))?;
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { what, path, source }
        };
        files::write_atomic(&p, seed.as_bytes(), 0o600).map_err(io("write", &p))?;
        if let Some(ca) = &self.nats_ca {
            let p = ca_path(state);
            files::write_atomic(&p, ca.as_bytes(), 0o600).map_err(io("write", &p))?;
        }
        let p = path(state);
        let text = serde_json::to_vec_pretty(self).map_err(|e| IdentityError::Parse(p.clone(), e))?;
        files::write_atomic(&p, &text, 0o600).map_err(io("write", &p))
    }

    /// The agent's own key.
    pub fn key(state: &Path) -> Result<KeyPair, IdentityError> {
        let p = key_path(state);
        let seed =
            fs::read_to_string(&p).map_err(|source| IdentityError::Io { what: "read", path: p.clone(), source })?;
        KeyPair::from_seed(seed.trim())
            .ok()
            .filter(|k| k.key_pair_type() == KeyPairType::User)
            .ok_or(IdentityError::Key(p))
    }

    pub fn executor_key(&self, state: &Path) -> Result<KeyPair, IdentityError> {
        KeyPair::from_public_key(&self.executor_key).map_err(|_| IdentityError::Key(path(state)))
    }
    pub fn approval_key(&self, state: &Path) -> Result<KeyPair, IdentityError> {
        KeyPair::from_public_key(&self.approval_key).map_err(|_| IdentityError::Key(path(state)))
    }
}
