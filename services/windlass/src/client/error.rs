//! What can go wrong in a client command, and the exit code it leads to.

use crate::exit::{self, Exit};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no server is configured: start one with ./ops/up, or give --server and --token (WINDLASS_SERVER, WINDLASS_TOKEN)"
    )]
    NoServer,
    #[error("the server's address {0:?} is not a URL: write http://host:port or https://host")]
    Address(String),
    #[error("{}: {what}", path.display())]
    File {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: not a client configuration", path.display())]
    ClientFile {
        path: PathBuf,
        #[source]
        source: config::ConfigError,
    },
    #[error("{0}")]
    Usage(String),
    #[error("{server} does not answer; is it running? (./ops/up starts a local one, `windlass doctor` looks closer)")]
    Unreachable {
        server: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{what} took longer than {seconds} s; it goes on at the server")]
    Deadline { what: String, seconds: u64 },
    #[error("{title} ({status}){}{detail}", if detail.is_empty() { "" } else { ": " })]
    Problem {
        status: u16,
        title: String,
        detail: String,
        body: serde_json::Value,
        /// Seconds after which the server would like to be asked again: it has done nothing yet.
        retry_after: Option<u64>,
    },
    #[error("{server} answered {path} with something this version does not understand")]
    Answer {
        server: String,
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Carried out; the outcome is bad.
    #[error("{0}")]
    Negative(String),
    /// The other end of our standard output went away (`windlass logs | head`).
    #[error("standard output is closed")]
    Output(#[source] std::io::Error),
}

impl Error {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Error::NoServer | Error::Address(_) | Error::File { .. } | Error::ClientFile { .. } | Error::Usage(_) => {
                Exit::Usage
            }
            Error::Unreachable { .. } | Error::Deadline { .. } => Exit::Unreachable,
            Error::Problem { status, .. } => exit::of_status(*status),
            Error::Answer { .. } => Exit::Server,
            Error::Negative(_) => Exit::Negative,
            Error::Output(_) => Exit::Ok,
        }
    }
}

/// The error with its causes, one line each: printed once, where the command ends.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !out.contains(&text) {
            out.push_str("\n  because: ");
            out.push_str(&text);
        }
        next = cause.source();
    }
    out
}
