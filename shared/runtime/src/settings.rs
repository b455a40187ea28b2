//! One typed `Settings` for every service: what can be set, and its default. How it is read is in `load`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

mod load;

pub use load::{CONFIG_VARIABLE, SettingsError};

/// A duration written as a number of seconds, fractions allowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seconds(pub Duration);

impl Seconds {
    pub const fn new(s: u64) -> Seconds {
        Seconds(Duration::from_secs(s))
    }
    pub const fn get(self) -> Duration {
        self.0
    }
}
impl From<Duration> for Seconds {
    fn from(d: Duration) -> Self {
        Seconds(d)
    }
}
impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.0.as_secs_f64())
    }
}
impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = f64::deserialize(d)?;
        Duration::try_from_secs_f64(s)
            .map(Seconds)
            .map_err(|_| serde::de::Error::custom(format!("{s} is not a number of seconds from 0 up")))
    }
}

/// Everything that can be set. Secrets are never here, only the paths of files that hold them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Keys, the SQLite database, the embedded NATS server's store and artifacts live under it.
    pub state_dir: PathBuf,
    /// Every service looks in the database for work at least this often, whatever messages say.
    pub poll_s: Seconds,
    pub database: Database,
    pub nats: Nats,
    pub api: Api,
    pub health: HealthListen,
    pub executor: Executor,
    pub environments: Environments,
    pub ssh: Ssh,
    pub vault: Vault,
    pub source: Source,
    pub notifier: Notifier,
    pub telemetry: Telemetry,
    pub retention: Retention,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `sqlite:///path/windlass.db` or `postgres://…`. Unset: SQLite in the state directory.
    pub url: Option<String>,
    /// A file that holds the URL, for one with a password. Wins over `url`.
    pub url_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    pub urls: Vec<String>,
    /// Certificates, where the servers speak TLS.
    pub tls: NatsTls,
    /// Credentials in the services account: of this service (`keys/api.creds` and so on), or of a process that runs them all
    /// (`keys/services.creds`). Unset: connect without any (tests).
    pub services_creds: Option<PathBuf>,
    /// Credentials of the executor's connection into the agents account.
    pub agents_creds: Option<PathBuf>,
    /// Credentials of the system account, needed only to revoke agents.
    pub system_creds: Option<PathBuf>,
    /// The `nats-server` binary that `windlass up` starts. Unset: `<state_dir>/tools/bin`, then PATH.
    pub server_binary: Option<PathBuf>,
    /// Address the embedded server listens on; agents on other hosts need one they can reach.
    pub server_host: IpAddr,
    /// Client port of the embedded server; 0 lets the system choose.
    pub server_port: u16,
    /// Monitoring port of the embedded server, on loopback. Unset: off.
    pub monitor_port: Option<u16>,
    /// NATS URLs that agents are told at enrolment. Empty: `urls`.
    pub agent_urls: Vec<String>,
    /// Copies of each stream on a NATS cluster.
    pub replicas: usize,
}

/// TLS to NATS. All are PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsTls {
    /// The authority that signed the servers' certificates; agents are given it at enrolment. Named, it makes TLS a must. Unset: those
    /// of the system, where a URL says `tls://`.
    pub ca_file: Option<PathBuf>,
    /// A certificate of our own and its key, for servers that ask for one. Both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    pub listen: SocketAddr,
    /// How people and agents reach the api; links in notifications start with it. Unset: `http://<listen>`.
    pub public_url: Option<String>,
    /// Largest JSON or YAML body.
    pub max_body_bytes: u64,
    /// Largest webhook body.
    pub max_hook_bytes: u64,
    /// How long a request waits for the outcome of its command before it answers 202.
    pub command_wait_s: Seconds,
    /// Worker threads of the HTTP server.
    pub workers: usize,
    /// Requests of one token a second, and at once.
    pub rate_per_s: f64,
    pub rate_burst: f64,
    /// Webhooks of one address a second, and at once.
    pub hook_rate_per_s: f64,
    pub hook_burst: f64,
    /// Accepted commands that may wait for the scheduler. Beyond it requests are refused with 503; a tenth more is kept for
    /// commands that stop something.
    pub max_queued_commands: u64,
    /// Live streams of one api process; one token may have a quarter of them. Beyond it 503 or 429 with `Retry-After`.
    pub max_streams: u32,
}

/// Where a service without an HTTP interface of its own answers `/healthz`, `/readyz` and `/metrics`, in the scaled
/// form. Unset: it does not. `windlass up` serves them on the api's port.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthListen {
    pub scheduler: Option<SocketAddr>,
    pub executor: Option<SocketAddr>,
    pub notifier: Option<SocketAddr>,
    pub auditor: Option<SocketAddr>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Executor {
    /// Pools whose works this executor takes.
    pub pools: Vec<String>,
    /// A work's lease; renewed at a third of it.
    pub lease_s: Seconds,
    /// An agent silent this long is suspect.
    pub suspect_s: Seconds,
    /// … is disconnected.
    pub disconnected_s: Seconds,
    /// … and its granted tasks are UNKNOWN.
    pub unknown_s: Seconds,
    /// An offer nobody takes for this long is settled as not started.
    pub offer_timeout_s: Seconds,
    /// First and longest pause between re-sent frames; it doubles in between.
    pub resend_first_s: Seconds,
    pub resend_max_s: Seconds,
    /// How long a task waits for its host, when that is locked or busy with others; then it is not started.
    pub host_wait_s: Seconds,
    /// Works driven at once by one executor.
    pub max_works: usize,
    /// Networks that `http.request` steps may reach although they are private (CIDR).
    pub allow_private_addresses: Vec<IpNet>,
    /// Where the programs of plugins are. Unset: none is run.
    pub plugins_dir: Option<PathBuf>,
    /// The program that `ansible.playbook` steps run. Unset: such a step fails, because a playbook can run commands on the
    /// executor's own machine.
    pub ansible_playbook: Option<PathBuf>,
}

/// Vault (KV version 2), for secrets that are kept there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vault {
    /// `https://vault.example.com:8200`. Unset: no secret can be kept there.
    pub address: Option<String>,
    /// A file that holds the token; read at every use, so it can be replaced.
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) of the authority that signed Vault's own; unset: those of the system.
    pub ca_file: Option<PathBuf>,
    /// For one answer.
    pub timeout_s: Seconds,
}

impl Default for Vault {
    fn default() -> Self {
        Vault { address: None, token_file: None, ca_file: None, timeout_s: Seconds::new(5) }
    }
}

/// Projects whose documents live in Git.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// Hosts that may be fetched from. Empty: every host the api can reach, so whoever may define a project may make the
    /// api connect there.
    pub hosts: Vec<String>,
    /// Repositories on this machine (`file://…`) may be named.
    pub allow_file: bool,
    /// Host keys of SSH servers, as in `~/.ssh/known_hosts`; a server that is not in it is refused. Unset:
    /// `<state_dir>/known_hosts`.
    pub known_hosts: Option<PathBuf>,
    /// PEM certificates of the authorities that HTTPS servers are trusted by. Unset: those of the machine.
    pub ca_file: Option<PathBuf>,
    /// For one look at one repository, all in all.
    pub timeout_s: Seconds,
    /// Largest pack that is fetched, and largest sum of the documents in it.
    pub max_pack_bytes: u64,
    pub max_document_bytes: u64,
    /// Most documents' files.
    pub max_files: usize,
}

impl Default for Source {
    fn default() -> Self {
        Source {
            hosts: vec![],
            allow_file: false,
            known_hosts: None,
            ca_file: None,
            timeout_s: Seconds::new(60),
            max_pack_bytes: 256 << 20,
            max_document_bytes: 8 << 20,
            max_files: 500,
        }
    }
}

/// Hosts that executors reach by SSH.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The `windlass-agent` that is put on the hosts; unset: the one beside this program. For hosts of another processor
    /// `<agent_binary>-<what uname -m says there>` is taken.
    pub agent_binary: Option<PathBuf>,
    /// Connections of one executor at the same time.
    pub max_connections: usize,
    /// On how many hosts one executor starts the agent at the same time; the others wait for their turn.
    pub starts_at_once: usize,
    /// On how many of these it puts the agent at the same time.
    pub pushes_at_once: usize,
    /// A connection nobody needs is closed after this long.
    pub idle_s: Seconds,
    /// For one connection, with its handshake and login.
    pub connect_s: Seconds,
    /// For putting the agent on a host.
    pub push_s: Seconds,
    /// Hosts nobody needed are connected to this often, so that it is known before a release whether they answer; 0: never.
    pub check_s: Seconds,
    /// First and longest pause between two tries; it doubles in between.
    pub retry_first_s: Seconds,
    pub retry_max_s: Seconds,
}

/// How names of environments are read as they are applied: `sdk_beta` and `beta_sdk` are the tier `beta` of the service
/// `sdk`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Environments {
    pub separator: String,
    pub tiers: Vec<String>,
}

impl Default for Environments {
    fn default() -> Self {
        let tiers = ["dev", "test", "beta", "gray", "pre", "online", "prod"];
        Environments { separator: "_".into(), tiers: tiers.map(str::to_owned).to_vec() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notifier {
    /// Networks that channels may reach although they are private (CIDR).
    pub allow_private_addresses: Vec<IpNet>,
    /// One delivery's deadline.
    pub timeout_s: Seconds,
    /// Channels served at once by one notifier.
    pub parallel: usize,
    /// Tries before a notification is given up, and the first and longest pause between them; it grows fourfold in between.
    pub tries: u32,
    pub retry_first_s: Seconds,
    pub retry_max_s: Seconds,
    /// Extra CA certificates (PEM) that mail servers may be signed by.
    pub mail_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// `tracing` filter, as in `RUST_LOG`: `info,windlass_scheduler=debug`.
    pub log: String,
    /// OTLP/HTTP endpoint, e.g. `http://127.0.0.1:4318`. Unset: no traces leave the process.
    pub otlp_endpoint: Option<String>,
    pub service_name: String,
}

/// For how many days things are kept that history does not need; 0: for ever. Deployments, events and the audit trail stay.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Logs of steps, after the end of their deployment.
    pub logs_days: u32,
    /// Messages that were sent or given up.
    pub notifications_days: u32,
    /// Incoming deliveries: the trigger log, and what tells a repeated delivery from a new one.
    pub intake_days: u32,
    /// `Idempotency-Key`s and their answers, and what was brought to calls of plugins.
    pub idempotency_days: u32,
    /// Tasks of probes, after the end of their deployment.
    pub probe_tasks_days: u32,
    /// What was last heard of revoked agents.
    pub agents_days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            logs_days: 365,
            notifications_days: 90,
            intake_days: 30,
            idempotency_days: 30,
            probe_tasks_days: 30,
            agents_days: 90,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            state_dir: PathBuf::from(".windlass"),
            poll_s: Seconds::new(5),
            database: Database::default(),
            nats: Nats::default(),
            api: Api::default(),
            health: HealthListen::default(),
            executor: Executor::default(),
            environments: Environments::default(),
            ssh: Ssh::default(),
            vault: Vault::default(),
            source: Source::default(),
            notifier: Notifier::default(),
            telemetry: Telemetry::default(),
            retention: Retention::default(),
        }
    }
}
impl Default for Nats {
    fn default() -> Self {
        Nats {
            urls: vec!["nats://127.0.0.1:4222".into()],
            tls: NatsTls::default(),
            services_creds: None,
            agents_creds: None,
            system_creds: None,
            server_binary: None,
            server_host: Ipv4Addr::LOCALHOST.into(),
            server_port: 4222,
            monitor_port: None,
            agent_urls: vec![],
            replicas: 1,
        }
    }
}
impl Default for Api {
    fn default() -> Self {
        Api {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            max_body_bytes: 1024 * 1024,
            max_hook_bytes: 1024 * 1024,
            command_wait_s: Seconds::new(5),
            workers: 2,
            rate_per_s: 50.0,
            rate_burst: 200.0,
            hook_rate_per_s: 20.0,
            hook_burst: 100.0,
            max_queued_commands: 50_000,
            max_streams: 2_000,
        }
    }
}
impl Default for Executor {
    fn default() -> Self {
        Executor {
            pools: vec!["default".into()],
            lease_s: Seconds::new(15),
            suspect_s: Seconds::new(15),
            // Below the 30 s within which it has to be shown.
            disconnected_s: Seconds::new(28),
            unknown_s: Seconds::new(90),
            offer_timeout_s: Seconds::new(60),
            resend_first_s: Seconds(Duration::from_millis(250)),
            resend_max_s: Seconds::new(15),
            host_wait_s: Seconds::new(600),
            max_works: 64,
            allow_private_addresses: vec![],
            plugins_dir: None,
            ansible_playbook: None,
        }
    }
}
impl Default for Ssh {
    fn default() -> Self {
        Ssh {
            agent_binary: None,
            max_connections: 200,
            starts_at_once: 32,
            pushes_at_once: 8,
            idle_s: Seconds::new(60),
            connect_s: Seconds::new(15),
            push_s: Seconds::new(300),
            check_s: Seconds::new(900),
            retry_first_s: Seconds::new(1),
            retry_max_s: Seconds::new(60),
        }
    }
}
impl Default for Notifier {
    fn default() -> Self {
        Notifier {
            allow_private_addresses: vec![],
            timeout_s: Seconds::new(10),
            parallel: 32,
            // 10 tries with these pauses take about 20 hours.
            tries: 10,
            retry_first_s: Seconds::new(5),
            retry_max_s: Seconds::new(6 * 3600),
            mail_ca_file: None,
        }
    }
}
impl Default for Telemetry {
    fn default() -> Self {
        Telemetry {
            log_format: LogFormat::Text,
            log: "info".into(),
            otlp_endpoint: None,
            service_name: "windlass".into(),
        }
    }
}

impl Settings {
    /// The database to open.
    pub fn database_url(&self) -> Result<String, SettingsError> {
        if let Some(file) = &self.database.url_file {
            return std::fs::read_to_string(file).map(|s| s.trim().to_owned()).map_err(|e| SettingsError::Value {
                key: "database.url_file",
                reason: format!("{}: {e}", file.display()),
            });
        }
        if let Some(url) = &self.database.url {
            return Ok(url.clone());
        }
        let path = std::path::absolute(self.state_dir.join("windlass.db"))
            .map_err(|e| SettingsError::Value { key: "state_dir", reason: e.to_string() })?;
        Ok(format!("sqlite://{}", path.display()))
    }

    /// `<state_dir>/keys`.
    pub fn keys_dir(&self) -> PathBuf {
        self.state_dir.join("keys")
    }

    /// The address in links, without a slash at its end.
    pub fn public_url(&self) -> String {
        match &self.api.public_url {
            Some(u) => u.trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.api.listen),
        }
    }
}

#[cfg(test)]
mod tests;
