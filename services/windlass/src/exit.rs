//! Exit codes: the same for every sub-command, documented in `--help` and in the README.

use std::process::ExitCode;

/// How a command ended, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, or the answer is yes.
    Ok = 0,
    /// It was carried out and the outcome is bad: the deployment failed, the audit trail does not verify, a check found a fault.
    Negative = 1,
    /// The command line, a settings file or a local file is wrong; nothing was sent.
    Usage = 2,
    /// The server understood and refused: wrong state, conflict, invalid document.
    Refused = 3,
    /// No such thing, or not yours to see.
    Denied = 4,
    /// No answer: the server cannot be reached, or a deadline passed.
    Unreachable = 5,
    /// The server failed, or answered what this version does not understand.
    Server = 6,
}

/// Shown below `--help`.
pub(crate) const HELP: &str = "Exit codes:
  0  done
  1  carried out, with a bad outcome (deployment failed, audit does not verify, doctor found a fault)
  2  wrong usage, settings or local file; nothing was sent
  3  the server refused: wrong state, conflict, invalid document
  4  not found, or not allowed
  5  the server cannot be reached, or a deadline passed
  6  the server failed or answered something unexpected

Client commands find their server and token in this order: --server/--token, WINDLASS_SERVER and
WINDLASS_TOKEN (or WINDLASS_TOKEN_FILE), then client.toml in the state directory beside the binary, in the
checkout, or in ./.windlass.";

impl From<Exit> for ExitCode {
    fn from(e: Exit) -> ExitCode {
        ExitCode::from(e as u8)
    }
}

/// The code an HTTP status leads to.
pub(crate) fn of_status(status: u16) -> Exit {
    match status {
        401 | 403 | 404 => Exit::Denied,
        408 | 429 => Exit::Unreachable,
        400..=499 => Exit::Refused,
        _ => Exit::Server,
    }
}
