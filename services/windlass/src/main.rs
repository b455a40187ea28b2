//! `windlass`: the control plane's services, `up` which runs them all, and the client, in one binary.
#![expect(clippy::print_stdout, reason = "a command line program prints")]

mod cli;
mod client;
mod exit;
mod housekeeping;
mod restored;
mod service;
mod up;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use exit::Exit;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Ring is the one TLS provider of the build; whoever comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(&e, Exit::Server),
    };
    runtime.block_on(run(cli))
}

async fn run(cli: Cli) -> ExitCode {
    let ended = match cli.command {
        Command::Up(args) => up::run(args).await.map_err(|e| (e.exit(), client::chain(&e))),
        Command::Down(args) => up::down(&args).await.map_err(|e| (e.exit(), client::chain(&e))),
        Command::Init(args) => service::init(args).await.map_err(|e| (e.exit(), client::chain(&e))),
        Command::Restored(args) => restored::run(args).await.map_err(|e| (e.exit(), client::chain(&e))),
        Command::Api(args) => service(service::Service::Api, args).await,
        Command::Scheduler(args) => service(service::Service::Scheduler, args).await,
        Command::Executor(args) => service(service::Service::Executor, args).await,
        Command::Notifier(args) => service(service::Service::Notifier, args).await,
        Command::Auditor(args) => service(service::Service::Auditor, args).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "windlass", &mut std::io::stdout());
            Ok(Exit::Ok)
        }
        command => {
            client::run(command, &cli.connection).await.map(|()| Exit::Ok).map_err(|e| (e.exit(), client::chain(&e)))
        }
    };
    match ended {
        Ok(exit) => exit.into(),
        // The reader of our output has gone: it has seen enough.
        Err((Exit::Ok, _)) => Exit::Ok.into(),
        Err((exit, text)) => {
            eprintln!("error: {text}");
            exit.into()
        }
    }
}

async fn service(which: service::Service, args: cli::ServiceArgs) -> Result<Exit, (Exit, String)> {
    service::run(which, args).await.map(|()| Exit::Ok).map_err(|e| (e.exit(), client::chain(&e)))
}

fn fail(e: &dyn std::error::Error, exit: Exit) -> ExitCode {
    eprintln!("error: {}", client::chain(e));
    exit.into()
}
