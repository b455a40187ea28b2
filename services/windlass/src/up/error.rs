//! What keeps an `up` or a service from running.

use crate::exit::Exit;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "port {port} of 127.0.0.1 is taken by another program; choose another one with {option} N, or stop that program"
    )]
    PortTaken {
        port: u16,
        option: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("--port and --nats-port are both {port}: NATS and the services each need one of their own")]
    OnePort { port: u16 },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the program {program} was not found beside this one, nor on PATH; build it with `cargo build -p {program}`, or name it with {option}"
    )]
    NoProgram { program: &'static str, option: &'static str },
    #[error("no usable nats-server (./ops/up fetches one)")]
    Nats(#[source] Box<windlass_bus::ServerError>),
    #[error("cannot start {program}")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} did not become ready within {seconds} s; look into {}", log.display())]
    NotReady { what: String, seconds: u64, log: PathBuf },
    #[error("{what} ended early{detail}; look into {}", log.display())]
    Ended { what: String, detail: String, log: PathBuf },
    #[error("process {pid} does not end, not even by KILL")]
    Undying { pid: u32 },
    #[error("another `windlass up` is starting or stopping on {}; wait for it", state.display())]
    Busy { state: PathBuf },
    #[error("settings")]
    Settings(#[source] Box<windlass_runtime::settings::SettingsError>),
    #[error("telemetry")]
    Telemetry(#[from] windlass_runtime::telemetry::TelemetryError),
    #[error("keys")]
    Keys(#[from] windlass_runtime::keys::KeyError),
    #[error("the own api")]
    Client(#[source] Box<crate::client::Error>),
    #[error("service {name} ended")]
    Service {
        name: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{0}")]
    Part(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<windlass_runtime::settings::SettingsError> for Error {
    fn from(e: windlass_runtime::settings::SettingsError) -> Error {
        Error::Settings(Box::new(e))
    }
}

impl From<crate::client::Error> for Error {
    fn from(e: crate::client::Error) -> Error {
        Error::Client(Box::new(e))
    }
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Error::PortTaken { .. }
            | Error::OnePort { .. }
            | Error::NoProgram { .. }
            | Error::Nats(_)
            | Error::Settings(_)
            | Error::Keys(_)
            | Error::Busy { .. } => Exit::Usage,
            Error::NotReady { .. } => Exit::Unreachable,
            _ => Exit::Negative,
        }
    }
}
