//! Who may connect to NATS. The server runs in operator mode: the operator signs three accounts, an account signs its
//! users, and the server needs no change when an agent is enrolled. Keys are made once and kept.
//!
//! SYS is NATS's own, SERVICES has JetStream, AGENTS has none: an agent never reaches the JetStream API.

use crate::{
    jwt::{self, JetStream},
    permissions,
};
use nkeys::{KeyPair, KeyPairType};
use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use windlass_domain::ids::AgentId;
use windlass_runtime::{
    keys::{self, KeyError},
    settings,
};

/// What JetStream may store on disk for the services.
const JETSTREAM_BYTES: i64 = 8 * 1024 * 1024 * 1024;
const REVOKE_WAIT: Duration = Duration::from_secs(5);
/// A plugin may answer this long after it was asked.
const RESPOND_WITHIN_NS: u64 = 3600 * 1_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the key file {0} does not hold an nkey of the right kind; restore it from a backup")]
    Form(PathBuf),
    #[error("`{0}` is not the public key of a NATS user (it starts with U)")]
    PublicKey(String),
    #[error("cannot sign")]
    Sign(#[source] nkeys::error::Error),
    #[error(
        "the revocation is recorded, but no NATS server confirmed it: {0}; it takes effect when it is sent again or the server restarts"
    )]
    NotPushed(String),
}

/// The control plane's NATS identities, in `<state>/keys`.
#[derive(Clone)]
pub struct Identities {
    dir: PathBuf,
    operator: KeyPair,
    system: KeyPair,
    services: KeyPair,
    agents: KeyPair,
    tls: Option<ServerTls>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Where a server listens.
#[derive(Debug, Clone, Copy)]
pub struct ServerPorts {
    pub listen: SocketAddr,
    /// Monitoring, on loopback only.
    pub monitor: Option<u16>,
}

/// A server's certificate (PEM files on the server's machine). With `ca` the nodes of a cluster also prove themselves to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: Option<PathBuf>,
}

/// A server's part in a cluster.
#[derive(Debug, Clone)]
pub struct ClusterNode {
    /// Its own name, unlike every other's.
    pub name: String,
    /// Where it listens for its peers.
    pub listen: SocketAddr,
    /// Where all nodes (itself may be among them) listen for their peers.
    pub routes: Vec<SocketAddr>,
}

impl Identities {
    /// Loads the keys, or makes them on first use, with the credentials files of the control plane's own connections.
    pub fn load_or_create(keys_dir: &Path) -> Result<Identities, IdentityError> {
        let key = |name: &str, kind: KeyPairType| load_key(&keys_dir.join(name), kind);
        let me = Identities {
            dir: keys_dir.to_path_buf(),
            operator: key("operator.nk", KeyPairType::Operator)?,
            system: key("system-account.nk", KeyPairType::Account)?,
            services: key("services-account.nk", KeyPairType::Account)?,
            agents: key("agents-account.nk", KeyPairType::Account)?,
            tls: None,
        };
        let all = || vec![">".to_owned()];
        // It speaks to agents and hears them; for hosts it reaches by SSH it carries both ways. What agents say counts by
        // their signature, so to carry is not to forge.
        let may_publish = vec!["dn.>".to_owned(), "up.>".to_owned()];
        let may_hear = vec!["up.>".to_owned(), "dn.>".to_owned(), "_INBOX.>".to_owned()];
        me.write_creds(&me.services_creds(), &me.services, "services", jwt::user(&all(), &all()))?;
        for name in permissions::SERVICES.into_iter().chain(permissions::OTHERS) {
            let Some(p) = permissions::of(name) else { continue };
            let mut wanted = jwt::user(&p.publish, &p.subscribe);
            if p.respond {
                wanted["resp"] = serde_json::json!({ "max": 1, "ttl": RESPOND_WITHIN_NS });
            }
            me.write_creds(&me.creds_of(name), &me.services, name, wanted)?;
        }
        me.write_creds(&me.agents_creds(), &me.agents, "executor", jwt::user(&may_publish, &may_hear))?;
        let push = vec!["$SYS.REQ.CLAIMS.UPDATE".to_owned()];
        me.write_creds(&me.system_creds(), &me.system, "system", jwt::user(&push, &["_INBOX.>".to_owned()]))?;
        Ok(me)
    }

    /// The same, for servers that speak TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<ServerTls>) -> Identities {
        self.tls = tls;
        self
    }

    /// Credentials of one service's own connection: what it needs and no more.
    pub fn creds_of(&self, service: &str) -> PathBuf {
        self.dir.join(format!("{service}.creds"))
    }

    /// Credentials of a process that runs all services: everything in their account.
    pub fn services_creds(&self) -> PathBuf {
        self.dir.join("services.creds")
    }

    /// Credentials of the executor's connection into the agents account.
    pub fn agents_creds(&self) -> PathBuf {
        self.dir.join("agents.creds")
    }

    /// Credentials that may push account changes, which revoking an agent needs.
    pub fn system_creds(&self) -> PathBuf {
        self.dir.join("system.creds")
    }

    /// The JWT of an agent whose public key is `public_key`.
    pub fn agent_jwt(&self, agent: AgentId, public_key: &str) -> Result<String, IdentityError> {
        agent_jwt(&self.agents, agent, public_key)
    }

    /// Writes `nats-server.conf` into `dir` and returns its path. `store` is JetStream's directory.
    pub fn write_server_config(&self, dir: &Path, ports: ServerPorts, store: &Path) -> Result<PathBuf, IdentityError> {
        self.write_config(&dir.join("nats-server.conf"), ports, None, store)
    }

    /// Writes `nats-server-<name>.conf` of one node of a cluster into `dir` and returns its path. Nodes know each other by a
    /// password that is made here once, so the file is as secret as a key.
    pub fn write_node_config(
        &self,
        dir: &Path,
        ports: ServerPorts,
        node: &ClusterNode,
        store: &Path,
    ) -> Result<PathBuf, IdentityError> {
        self.write_config(&dir.join(format!("nats-server-{}.conf", node.name)), ports, Some(node), store)
    }

    fn write_config(
        &self,
        path: &Path,
        ports: ServerPorts,
        node: Option<&ClusterNode>,
        store: &Path,
    ) -> Result<PathBuf, IdentityError> {
        let mut text = String::from("# Written by windlass at every start; changes here are lost.\n");
        let resolver = store.with_file_name("accounts");
        keys::make_private_dir(&resolver)?;
        keys::make_private_dir(store)?;
        let quoted = |p: &Path| serde_json::Value::from(p.display().to_string()).to_string();
        let system = self.system.public_key();
        let operator = self.sign(&self.operator, &self.operator.public_key(), "windlass", jwt::operator(&system))?;
        let _ = writeln!(text, "listen: \"{}\"", ports.listen);
        if let Some(port) = ports.monitor {
            let _ = writeln!(text, "http: \"127.0.0.1:{port}\"");
        }
        let tls = self.tls.as_ref().map(|t| {
            let ca = t.ca.as_ref().map(|ca| format!("  ca_file: {}\n", quoted(ca))).unwrap_or_default();
            (format!("  cert_file: {}\n  key_file: {}\n", quoted(&t.cert), quoted(&t.key)), ca)
        });
        if let Some((own, _)) = &tls {
            let _ = writeln!(text, "tls {{\n{own}}}");
        }
        let _ = writeln!(text, "server_name: \"{}\"", node.map_or("windlass", |n| n.name.as_str()));
        if let Some(node) = node {
            let made = || uuid::Uuid::new_v4().simple().to_string().into_bytes();
            let password = keys::load_or_create(&self.dir.join("cluster.password"), made)?;
            let password = String::from_utf8_lossy(&password);
            let _ = writeln!(text, "cluster {{\n  name: \"windlass\"\n  listen: \"{}\"", node.listen);
            let _ = writeln!(text, "  authorization {{ user: \"route\", password: \"{password}\" }}\n  routes: [");
            for route in &node.routes {
                let _ = writeln!(text, "    \"nats://route:{password}@{route}\"");
            }
            let _ = writeln!(text, "  ]");
            if let Some((own, ca)) = tls.as_ref().filter(|(_, ca)| !ca.is_empty()) {
                let _ = writeln!(text, "  tls {{\n{own}{ca}  }}");
            }
            let _ = writeln!(text, "}}");
        }
        let _ = writeln!(text, "pid_file: {}", quoted(&store.with_file_name("nats.pid")));
        let _ = writeln!(text, "max_payload: 1MB");
        let _ = writeln!(text, "max_connections: 64K");
        // The database has the truth, so a second's worth of doorbells may be lost to a power cut.
        // Without a number of its own the server takes a part of what is free on the disk, and on a small disk that is less than
        // the account may use: JetStream would then be refused to it as a whole.
        let _ = writeln!(
            text,
            "jetstream {{\n  store_dir: {}\n  sync_interval: \"1s\"\n  max_file_store: {JETSTREAM_BYTES}\n}}",
            quoted(store)
        );
        let _ = writeln!(text, "operator: {operator}");
        let _ = writeln!(text, "system_account: {system}");
        let _ = writeln!(text, "resolver: {{\n  type: full\n  dir: {}\n  allow_delete: false\n}}", quoted(&resolver));
        let _ = writeln!(text, "resolver_preload: {{");
        for (key, jwt) in [
            (&self.system, self.account_jwt(&self.system, "SYS", JetStream::Off, &BTreeMap::new())?),
            (
                &self.services,
                self.account_jwt(&self.services, "SERVICES", JetStream::Disk(JETSTREAM_BYTES), &BTreeMap::new())?,
            ),
            (&self.agents, self.account_jwt(&self.agents, "AGENTS", JetStream::Off, &self.revocations()?)?),
        ] {
            let _ = writeln!(text, "  {}: {jwt}", key.public_key());
        }
        let _ = writeln!(text, "}}");
        keys::replace(path, text.as_bytes())?;
        Ok(path.to_path_buf())
    }

    /// Cuts agents off: their connections end at once and their JWTs are void for ever (a new enrolment has a new key).
    /// The revocation is recorded first, so it also holds for servers that start later.
    pub async fn revoke(&self, nats: &settings::Nats, public_keys: &[String]) -> Result<(), IdentityError> {
        let mut revoked = self.revocations()?;
        for key in public_keys {
            check_user_key(key)?;
            revoked.insert(key.clone(), now());
        }
        keys::replace(&self.revocations_path(), serde_json::to_vec(&revoked).unwrap_or_default().as_slice())?;
        let jwt = self.account_jwt(&self.agents, "AGENTS", JetStream::Off, &revoked)?;
        let text = keys::load(&self.system_creds())?;
        let failed = |e: &dyn std::fmt::Display| IdentityError::NotPushed(e.to_string());
        let push = async {
            let options = async_nats::ConnectOptions::with_credentials(&String::from_utf8_lossy(&text))
                .map_err(|e| failed(&e))?
                .name("windlass-revoke");
            let client = crate::connect::with_tls(options, &nats.tls)
                .connect(nats.urls.clone())
                .await
                .map_err(|e| failed(&e))?;
            let answer = client.request("$SYS.REQ.CLAIMS.UPDATE", jwt.into()).await.map_err(|e| failed(&e))?;
            let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            match answer.get("error") {
                None if answer.get("data").is_some() => Ok(()),
                other => Err(failed(&other.unwrap_or(&answer))),
            }
        };
        tokio::time::timeout(REVOKE_WAIT, push).await.unwrap_or_else(|_| Err(failed(&"no answer in time")))
    }

    fn revocations_path(&self) -> PathBuf {
        self.dir.join("revoked-agents.json")
    }

    fn revocations(&self) -> Result<BTreeMap<String, i64>, IdentityError> {
        let path = self.revocations_path();
        match keys::load(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| IdentityError::Form(path)),
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(e.into()),
        }
    }

    fn account_jwt(
        &self,
        account: &KeyPair,
        name: &str,
        js: JetStream,
        revoked: &BTreeMap<String, i64>,
    ) -> Result<String, IdentityError> {
        self.sign(&self.operator, &account.public_key(), name, jwt::account(js, revoked))
    }

    fn sign(
        &self,
        issuer: &KeyPair,
        subject: &str,
        name: &str,
        nats: serde_json::Value,
    ) -> Result<String, IdentityError> {
        jwt::sign(issuer, subject, name, now(), nats).map_err(IdentityError::Sign)
    }

    /// A credentials file holds a user's seed as well, so it is kept as long as it fits: same account, same rights.
    fn write_creds(
        &self,
        path: &Path,
        account: &KeyPair,
        name: &str,
        wanted: serde_json::Value,
    ) -> Result<(), IdentityError> {
        match keys::load(path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let claims = text.lines().nth(1).and_then(jwt::claims).unwrap_or_default();
                if claims["iss"] == account.public_key() && claims["nats"] == wanted {
                    return Ok(());
                }
            }
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        let user = KeyPair::new_user();
        let jwt = self.sign(account, &user.public_key(), name, wanted)?;
        let seed = user.seed().map_err(IdentityError::Sign)?;
        Ok(keys::replace(path, creds(&jwt, &seed).as_bytes())?)
    }
}

/// The JWT of an agent, signed with the agents account's key alone. It may publish what comes from it and hear what is
/// meant for it, and nothing else: no JetStream, no other agent's subjects, no wildcard over agents.
pub fn agent_jwt(agents_account: &KeyPair, agent: AgentId, public_key: &str) -> Result<String, IdentityError> {
    check_user_key(public_key)?;
    let publish = [format!("up.{agent}.>")];
    let subscribe = [format!("dn.{agent}.>"), format!("_INBOX_{agent}.>")];
    jwt::sign(agents_account, public_key, &format!("agent {agent}"), now(), jwt::agent(&publish, &subscribe))
        .map_err(IdentityError::Sign)
}

/// Loads `agents-account.nk`, for a process that enrols agents and holds no other key.
pub fn load_agents_account(keys_dir: &Path) -> Result<KeyPair, IdentityError> {
    load_key(&keys_dir.join("agents-account.nk"), KeyPairType::Account)
}

/// The text of a `.creds` file.
pub fn creds(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// Loads the nkey in a file, or makes one of this kind.
pub fn load_key(path: &Path, kind: KeyPairType) -> Result<KeyPair, IdentityError> {
    let form = || IdentityError::Form(path.to_path_buf());
    let fresh = KeyPair::new(kind);
    let (prefix, seed) = (fresh.public_key().chars().next(), fresh.seed().map_err(IdentityError::Sign)?);
    let bytes = keys::load_or_create(path, || seed.into_bytes())?;
    let text = String::from_utf8(bytes).map_err(|_| form())?;
    let key = KeyPair::from_seed(text.trim()).map_err(|_| form())?;
    if key.public_key().chars().next() == prefix { Ok(key) } else { Err(form()) }
}

fn check_user_key(public_key: &str) -> Result<(), IdentityError> {
    let bad = || IdentityError::PublicKey(public_key.chars().take(80).collect());
    let key = KeyPair::from_public_key(public_key).map_err(|_| bad())?;
    if key.public_key() == public_key && public_key.starts_with('U') { Ok(()) } else { Err(bad()) }
}

fn now() -> i64 {
    let s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(s).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_and_credentials_are_kept_and_private() {
        let dir = tempfile::tempdir().expect("dir");
        let keys_dir = dir.path().join("keys");
        let one = Identities::load_or_create(&keys_dir).expect("makes");
        let read = |i: &Identities| {
            [i.services_creds(), i.agents_creds(), i.system_creds()].map(|p| std::fs::read_to_string(p).expect("reads"))
        };
        let first = read(&one);
        let two = Identities::load_or_create(&keys_dir).expect("loads");
        assert_eq!(first, read(&two));
        assert_eq!(one.agents.public_key(), two.agents.public_key());
        assert_eq!(load_agents_account(&keys_dir).expect("loads").public_key(), one.agents.public_key());
        for f in std::fs::read_dir(&keys_dir).expect("dir") {
            let f = f.expect("file");
            assert_eq!(f.metadata().expect("meta").permissions().mode() & 0o777, 0o600, "{:?}", f.path());
        }
    }

    #[test]
    fn only_user_keys_become_agents() {
        let account = KeyPair::new_account();
        let id = AgentId(uuid::Uuid::nil());
        let user = KeyPair::new_user().public_key();
        let jwt = agent_jwt(&account, id, &user).expect("signs");
        let claims = jwt::claims(&jwt).expect("claims");
        assert_eq!(claims["sub"], user);
        assert_eq!(claims["nats"]["pub"]["allow"], serde_json::json!([format!("up.{id}.>")]));
        for bad in [
            KeyPair::new_account().public_key(),
            KeyPair::new_operator().public_key(),
            String::new(),
            "U".repeat(56),
            user.to_lowercase(),
        ] {
            assert!(agent_jwt(&account, id, &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("operator.nk");
        load_key(&path, KeyPairType::Account).expect("makes");
        assert!(matches!(load_key(&path, KeyPairType::Operator), Err(IdentityError::Form(_))));
    }
}
