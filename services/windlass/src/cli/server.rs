//! Arguments of the commands that run the control plane.

use std::path::PathBuf;

/// Default port of the api and console.
pub(crate) const API_PORT: u16 = 7400;
/// Default port of the NATS server that `up` starts.
pub(crate) const NATS_PORT: u16 = 7422;
/// Demo agent n gets `PORT` = this + n.
pub(crate) const AGENT_PORTS: u16 = 7500;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StateArgs {
    /// State directory
    #[arg(long, env = "WINDLASS_STATE", default_value = ".windlass", value_name = "DIR")]
    pub(crate) state: PathBuf,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Port of the api and console, on loopback
    #[arg(long, env = "WINDLASS_PORT", default_value_t = API_PORT)]
    pub(crate) port: u16,
    /// Port of the NATS server, on loopback
    #[arg(long, env = "WINDLASS_NATS_PORT", default_value_t = NATS_PORT)]
    pub(crate) nats_port: u16,
    /// Demo agents to run on this machine, each a process of its own
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=2000))]
    pub(crate) agents: u16,
    /// Demo agent n gives its services the port base + n
    #[arg(long, default_value_t = AGENT_PORTS, value_name = "BASE")]
    pub(crate) agent_ports: u16,
    /// Let hooks, channels and HTTP steps reach loopback and private addresses
    #[arg(long)]
    pub(crate) allow_private: bool,
    /// Return when everything is ready and keep running in the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// The nats-server program; found on PATH or in the state directory when not given
    #[arg(long, env = "WINDLASS_NATS_SERVER", value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,
    /// The windlass-agent program; found beside this one or on PATH when not given
    #[arg(long, env = "WINDLASS_AGENT_BIN", value_name = "FILE")]
    pub(crate) agent_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServiceArgs {
    /// Settings file (TOML, YAML or JSON); WINDLASS_ variables win over it
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `n1=10.0.0.1:4222,6222`
#[derive(Debug, Clone)]
pub(crate) struct NatsNode {
    pub(crate) name: String,
    pub(crate) clients: std::net::SocketAddr,
    pub(crate) peers: std::net::SocketAddr,
}

impl std::str::FromStr for NatsNode {
    type Err = String;
    fn from_str(text: &str) -> Result<NatsNode, String> {
        let wrong = || "write NAME=HOST:PORT,CLUSTER_PORT, for example n1=10.0.0.1:4222,6222".to_owned();
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (clients, cluster) = rest.split_once(',').ok_or_else(wrong)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err("a node's name has letters, digits, `-` and `_`".into());
        }
        let clients: std::net::SocketAddr = clients.parse().map_err(|_| wrong())?;
        let port = cluster.parse().map_err(|_| wrong())?;
        Ok(NatsNode { name: name.into(), clients, peers: std::net::SocketAddr::new(clients.ip(), port) })
    }
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Address the NATS server listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub(crate) nats_host: std::net::IpAddr,
    /// Port the NATS server listens on
    #[arg(long, default_value_t = 4222)]
    pub(crate) nats_port: u16,
    /// A node of a NATS cluster, once for each: its name, its address, its ports for clients and for the other nodes. Writes
    /// one configuration a node instead of one for a server that stands alone
    #[arg(long, value_name = "NAME=HOST:PORT,CLUSTER_PORT", conflicts_with_all = ["nats_host", "nats_port"])]
    pub(crate) nats_node: Vec<NatsNode>,
    /// Where the NATS server keeps its JetStream data; a cluster's node in a folder of its name beneath
    #[arg(long, default_value = "/data", value_name = "DIR")]
    pub(crate) nats_store: PathBuf,
    /// Certificate of the NATS servers (PEM, as the servers' machines know the file); with it they speak TLS
    #[arg(long, value_name = "FILE", requires = "nats_tls_key")]
    pub(crate) nats_tls_cert: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires = "nats_tls_cert")]
    pub(crate) nats_tls_key: Option<PathBuf>,
    /// The authority that signed it; with it the nodes of a cluster speak TLS among themselves too
    #[arg(long, value_name = "FILE", requires = "nats_tls_cert")]
    pub(crate) nats_tls_ca: Option<PathBuf>,
    /// Also bring the schema of this database up to date
    #[arg(long, env = "WINDLASS__DATABASE__URL", value_name = "URL", hide_env_values = true)]
    pub(crate) database: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RestoredArgs {
    /// Settings file (TOML); WINDLASS_ variables win over it
    #[arg(long, short, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// State directory, where no settings name one
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Which backup it was; shown in the audit trail
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) backup: String,
}
