//! The command line of `windlass-agent`.

use clap::{Parser, Subcommand};
use std::{io::Read, path::PathBuf, process::ExitCode};
use windlass_agent::{
    agent, dispatch::Dispatch, enroll, identity::Identity, journal, runner, settings::Settings, stdio,
};

#[derive(Debug, Parser)]
#[command(name = "windlass-agent", version, about = "Carries out Windlass deployments on this host")]
struct Cli {
    /// Log as JSON lines
    #[arg(long, global = true, env = "WINDLASS_LOG_JSON")]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trade a one-time token for an identity
    Enroll {
        /// Address of the console: an https URL, or http on this machine
        #[arg(long)]
        server: String,
        /// The token; visible to other users of the machine, so prefer --token-file
        #[arg(long, env = "WINDLASS_ENROLL_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
        token: Option<String>,
        /// File that holds the token; `-` reads standard input
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// Where the agent keeps its identity, journal and tasks
        #[arg(long)]
        state: PathBuf,
        /// Deployment root, to report the release that is current
        #[arg(long)]
        root: Option<PathBuf>,
        /// Allow plain HTTP to a server that is not on this machine
        #[arg(long)]
        allow_http: bool,
    },
    /// Serve this host until SIGTERM; tasks that run go on without the agent
    Run {
        #[arg(long)]
        state: PathBuf,
        /// Deployment root (releases/, current, shared/); overrides agent.yaml
        #[arg(long)]
        root: Option<PathBuf>,
        /// KEY=VALUE for the environment of every step; may be repeated
        #[arg(long)]
        env: Vec<String>,
    },
    /// Serve this host over standard input and output, for an executor that reached it by SSH
    Stdio {
        #[arg(long)]
        state: PathBuf,
        /// Deployment root (releases/, current, shared/); overrides agent.yaml
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Run one task (started by the agent)
    #[command(hide = true)]
    Runner {
        #[arg(long)]
        task: PathBuf,
    },
    /// Say who this agent is and what it has not finished
    Status {
        #[arg(long)]
        state: PathBuf,
    },
}

fn main() -> ExitCode {
    // Only fails when a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut text = format!("windlass-agent: {e}");
            let mut source = e.source();
            while let Some(s) = source {
                text = format!("{text}: {s}");
                source = s.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

type Error = Box<dyn std::error::Error>;

fn start(cli: Cli) -> Result<(), Error> {
    match cli.command {
        // First and without logging: it is started for every task.
        Command::Runner { task } => Ok(runner::main(task)?),
        Command::Enroll { server, token, token_file, state, root, allow_http } => {
            let token = match (token, token_file) {
                (Some(t), _) => t,
                (None, Some(p)) if p.as_os_str() == "-" => {
                    let mut t = String::new();
                    std::io::stdin().read_to_string(&mut t)?;
                    t
                }
                (None, Some(p)) => std::fs::read_to_string(&p)
                    .map_err(|e| format!("cannot read the token file {}: {e}", p.display()))?,
                (None, None) => return Err("no token: give --token-file FILE (or `-` for standard input)".into()),
            };
            let done = runtime()?.block_on(enroll::enroll(&server, &token, &state, root.as_deref(), allow_http))?;
            println(&format!("enrolled as host {} (agent {})", done.host, done.agent_id));
            Ok(())
        }
        Command::Run { state, root, env } => {
            logging(cli.log_json);
            let settings = Settings::load(&state)?.with_args(&state, root, &env)?;
            let runtime = runtime()?;
            let done = runtime.block_on(agent::run(state, settings));
            runtime.shutdown_background();
            Ok(done?)
        }
        Command::Stdio { state, root } => {
            logging(cli.log_json);
            // Runners work elsewhere, and find their directory by this name.
            let state = std::path::absolute(&state)?;
            let settings = Settings::load(&state)?.with_args(&state, root, &[])?;
            let runtime = runtime()?;
            let done = runtime.block_on(stdio::run(&state, settings));
            // A write that nobody reads any more must not hold the process.
            runtime.shutdown_background();
            Ok(done?)
        }
        Command::Status { state } => status(&state),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

fn logging(json: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("WINDLASS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
}

fn status(state: &std::path::Path) -> Result<(), Error> {
    let identity = Identity::load(state)?;
    let entries = journal::peek(&state.join("journal"))?;
    let instance = entries.iter().find_map(|e| match &e.r {
        journal::Record::Created { instance } => Some(instance.clone()),
        _ => None,
    });
    let text = serde_json::json!({
        "agent": identity.agent_id,
        "host": identity.host,
        "nats_urls": identity.nats_urls,
        "instance": instance,
        "journal_seq": entries.last().map(|e| e.seq),
        "open": Dispatch::open_in(&entries),
    });
    println(&serde_json::to_string_pretty(&text)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "it is what the command is for")]
fn println(text: &str) {
    println!("{text}");
}
