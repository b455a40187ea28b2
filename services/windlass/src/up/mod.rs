//! `up`: the whole control plane in one process, with an embedded database, a NATS server as child, and demo agents.

mod agents;
mod detach;
mod down;
mod error;
mod ports;
mod process;
mod programs;
mod record;

pub(crate) use self::{
    error::Error,
    ports::check_free,
    process::Process,
    programs::{find_nats, find_program},
    record::Record,
};

use crate::{
    cli::UpArgs,
    client::{self, Api, CLIENT_FILE, Target},
    exit::Exit,
    service::{Running, Service, part},
};
use record::{Board, Lock, write_file};
use std::{
    collections::HashMap,
    ffi::OsString,
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use windlass_bus::{Context, EmbeddedServer, Identities, ServerOptions, identity::ServerPorts};
use windlass_runtime::{Health, Settings, keys, shutdown, telemetry};

/// Begins the lines that are meant for people; `up --detach` passes them on from the log.
pub(crate) const PROGRESS: &str = "windlass: ";
const TOKEN_FILE: &str = "admin.token";
const READY: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);

/// Says what is going on, on standard error.
pub(crate) fn progress(text: impl AsRef<str>) {
    eprintln!("{PROGRESS}{}", text.as_ref());
}

pub(crate) async fn run(args: UpArgs) -> Result<Exit, Error> {
    let state = absolute(&args.state.state)?;
    keys::make_private_dir(&state)?;
    // The directory may be older than this: ops/up puts tools there. What comes now is for its owner alone.
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&state, private).map_err(file("close to others", &state))?;
    if args.detach {
        return detached(&args, &state).await;
    }
    let Some(lock) = Lock::take(&state).map_err(file("lock", &state))? else { return already(&state) };
    let ended = Box::pin(foreground(args, &state)).await;
    Record::remove(&state);
    drop(lock);
    ended.map(|()| Exit::Ok)
}

pub(crate) async fn down(args: &crate::cli::StateArgs) -> Result<Exit, Error> {
    let state = absolute(&args.state)?;
    progress(if down::run(&state).await? { "stopped" } else { "nothing is running" });
    Ok(Exit::Ok)
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(file("use the path", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

/// Another `up` holds the lock: say so, and where it is.
fn already(state: &Path) -> Result<Exit, Error> {
    match Record::read(state).filter(|r| r.process.is_alive()) {
        Some(record) if record.ready => {
            progress(format!("already running (pid {})", record.process.pid));
            banner(&record);
            Ok(Exit::Ok)
        }
        _ => Err(Error::Busy { state: state.to_owned() }),
    }
}

/// Ends what a killed `up` left behind, and refuses ports that others hold, or one for both.
async fn free_ports(args: &UpArgs, state: &Path) -> Result<(), Error> {
    if args.port == args.nats_port {
        return Err(Error::OnePort { port: args.port });
    }
    let ports = [(args.port, "--port"), (args.nats_port, "--nats-port")];
    if let Some(stale) = Record::read(state) {
        down::stop_children(&stale).await?;
        for (port, option) in ports {
            ports::wait_free(port, option).await?;
        }
    }
    ports.into_iter().try_for_each(|(port, option)| check_free(port, option))
}

async fn detached(args: &UpArgs, state: &Path) -> Result<Exit, Error> {
    // Looked at here as well, so that the answer comes at once and the log stays clean.
    match Lock::take(state).map_err(file("lock", state))? {
        None => return already(state),
        Some(lock) => drop(lock),
    }
    free_ports(args, state).await?;
    banner(&detach::run(state)?);
    Ok(Exit::Ok)
}

fn banner(record: &Record) {
    let bin = record.token_file.with_file_name("bin").join("windlass");
    let cwd = std::env::current_dir().unwrap_or_default();
    let short =
        |p: &Path| p.strip_prefix(&cwd).map_or_else(|_| p.display().to_string(), |p| format!("./{}", p.display()));
    println!("Windlass is ready.");
    println!("  console      {}", record.server);
    println!("  admin token  {}", short(&record.token_file));
    if !record.agents.is_empty() {
        println!("  demo agents  {}", record.agents.iter().map(|a| a.host.as_str()).collect::<Vec<_>>().join(" "));
    }
    println!("  try next     ./ops/demo   or   {} hosts", short(&bin));
    println!(
        "  stop it      ./ops/down   or   {} down --state {}",
        short(&bin),
        short(record.token_file.parent().unwrap_or(Path::new(".")))
    );
}

/// The settings file of the state directory with what the command line says on top.
fn settings(args: &UpArgs, state: &Path, identities: &Identities) -> Result<Settings, Error> {
    let text = |(k, v): (OsString, OsString)| Some((k.into_string().ok()?, v.into_string().ok()?));
    let mut vars: HashMap<String, String> = std::env::vars_os().filter_map(text).collect();
    vars.insert("WINDLASS__STATE_DIR".into(), state.display().to_string());
    let mut s = Settings::load_from(None, vars)?;
    state.clone_into(&mut s.state_dir);
    // On a terminal the log is between the lines that are meant for a person: only what is wrong belongs there.
    if std::io::stderr().is_terminal() && s.telemetry.log == Settings::default().telemetry.log {
        s.telemetry.log = "warn".into();
    }
    s.api.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    s.nats.urls = vec![format!("nats://127.0.0.1:{}", args.nats_port)];
    s.nats.services_creds = Some(identities.services_creds());
    s.nats.agents_creds = Some(identities.agents_creds());
    s.nats.system_creds = Some(identities.system_creds());
    s.nats.server_port = args.nats_port;
    if args.allow_private {
        for list in [&mut s.executor.allow_private_addresses, &mut s.notifier.allow_private_addresses] {
            for net in ["127.0.0.0/8", "::1/128"] {
                if let Ok(net) = net.parse() {
                    list.push(net);
                }
            }
        }
    }
    Ok(s)
}

async fn foreground(args: UpArgs, state: &Path) -> Result<(), Error> {
    let started = Instant::now();
    free_ports(&args, state).await?;
    let agent_bin = match args.agents {
        0 => None,
        _ => Some(find_program("windlass-agent", "--agent-bin", args.agent_bin.as_deref())?),
    };
    let nats = find_nats(args.nats_server.as_deref(), state).await?;

    let signals = TaskTracker::new();
    let stop = shutdown::on_signal(&signals).map_err(part("listening for signals"))?;
    let identities = Identities::load_or_create(&state.join("keys")).map_err(part("the keys"))?;
    let settings = Arc::new(settings(&args, state, &identities)?);
    let guard = telemetry::start(&settings.telemetry)?;
    let health = Health::new();
    let (nats_stop, nats_tracker) = (CancellationToken::new(), TaskTracker::new());

    let record = Record {
        process: Process::of("windlass up", std::process::id())
            .ok_or(Error::Part("this process has no /proc entry", "proc".into()))?,
        ready: false,
        server: format!("http://127.0.0.1:{}", args.port),
        token_file: state.join(TOKEN_FILE),
        agents: vec![],
        children: vec![],
    };
    let (server, token_file) = (record.server.clone(), record.token_file.clone());
    let board = Arc::new(Board::new(state, record));
    board.update(|_| ()).map_err(file("write the record of", state))?;

    progress(format!("starting NATS on port {}", args.nats_port));
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.nats_port));
    let ports = ServerPorts { listen, monitor: settings.nats.monitor_port };
    let dir = state.join("nats");
    keys::make_private_dir(&dir)?;
    let config =
        identities.write_server_config(&dir, ports, &dir.join("jetstream")).map_err(part("the NATS configuration"))?;
    let options = ServerOptions { binary: nats, config, listen, log: state.join("log").join("nats.log") };
    EmbeddedServer::start(options, health.clone(), nats_stop.clone(), &nats_tracker).await.map_err(part("NATS"))?;

    progress("starting the services");
    let ctx = Context::open(Arc::clone(&settings), health, stop.clone()).await.map_err(part("the start"))?;
    let mut running = Running::start(&ctx, &Service::ALL);
    let fleet = agents::Fleet::new(state, &args, agent_bin);
    let agents_stop = CancellationToken::new();

    let ready = async {
        until_ready(&Api::new(Target { server: server.clone(), token: None })?, state).await?;
        let token = admin_token(&token_file)?;
        let api = Api::new(Target { server: server.clone(), token: Some(token) })?;
        configure_client(state, &server)?;
        fleet.start(&api, &agents_stop, &board).await?;
        board.update(|r| r.ready = true).map_err(file("write the record of", state))?;
        Ok::<(), Error>(())
    };
    let ended = tokio::select! {
        r = ready => match r {
            Ok(()) => {
                progress(format!("ready after {:.1} s", started.elapsed().as_secs_f64()));
                banner(&board.record());
                running.until(&stop).await
            }
            Err(e) => Err(e),
        },
        r = running.until(&stop) => r,
    };
    progress("stopping");
    stop.cancel();
    let tracker = fleet.tracker();
    shutdown::Sequence::new().group("agents", agents_stop, tracker, STOP).stop().await;
    running.into_sequence().stop().await;
    ctx.bus.close().await;
    ctx.store.close().await;
    shutdown::Sequence::new().group("nats-server", nats_stop, nats_tracker, STOP).stop().await;
    guard.flush();
    ended
}

/// Waits until the api says it is ready.
async fn until_ready(api: &Api, state: &Path) -> Result<(), Error> {
    let until = Instant::now() + READY;
    loop {
        match api.get::<serde_json::Value>("/readyz").await {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() >= until => {
                tracing::error!(error = client::chain(&e), "not ready");
                let log = detach::log_file(state);
                return Err(Error::NotReady { what: "the api".into(), seconds: READY.as_secs(), log });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The first admin's token: the api makes it at its first start.
fn admin_token(path: &Path) -> Result<String, Error> {
    let bytes = keys::load(path)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Puts an already configured client into `<state>/bin`.
fn configure_client(state: &Path, server: &str) -> Result<(), Error> {
    let text = format!("server = {server:?}\ntoken_file = {TOKEN_FILE:?}\n");
    let path = state.join(CLIENT_FILE);
    write_file(&path, text.as_bytes(), 0o644).map_err(file("write", &path))?;
    let bin = state.join("bin");
    std::fs::create_dir_all(&bin).map_err(file("make the directory", &bin))?;
    let own = std::env::current_exe().map_err(file("find the program", &bin))?;
    let target = bin.join("windlass");
    if own == target {
        return Ok(());
    }
    let beside = bin.join("windlass.new");
    let _ = std::fs::remove_file(&beside);
    // A link costs nothing; a copy is for a state directory on another file system.
    if std::fs::hard_link(&own, &beside).is_err() {
        std::fs::copy(&own, &beside).map_err(file("copy the client to", &beside))?;
    }
    std::fs::rename(&beside, &target).map_err(file("write", &target))
}
