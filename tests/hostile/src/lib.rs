//! The readers of bytes that somebody else wrote, each with what must hold whatever the bytes are. The corpora in
//! `tests/corpora` are replayed by this crate's test; `./ops/fuzz` searches on from them, guided by coverage.
//!
//! Readers that no library shows are compiled here from their own files, as they stand: a library would bring a service with
//! it, and the fuzzer would take an hour to build.
//!
//! An input that broke a rule once stays in the corpus of its target, so it is tried for ever.

#[path = "../../../services/agent/src/files.rs"]
#[allow(dead_code, unreachable_pub, reason = "the agent uses all of it")]
mod files;
mod flows;
mod hooks;
mod host;
#[cfg(feature = "api")]
mod intake;
pub mod plant;
mod terminal;
mod wire;

/// A reader with its rules. `run` panics when one is broken.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `tests/corpora`.
    pub name: &'static str,
    pub run: fn(&[u8]),
}

/// Every target. The header of its function says how the bytes are taken.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: wire::frame },
    Target { name: "envelope", run: wire::envelope },
    Target { name: "stdio", run: wire::stdio },
    Target { name: "flow", run: flows::flow },
    Target { name: "catalog", run: flows::catalog },
    Target { name: "expression", run: flows::expression },
    Target { name: "template", run: flows::template },
    Target { name: "wave", run: flows::wave },
    Target { name: "selector", run: flows::selector },
    Target { name: "archive", run: host::archive },
    Target { name: "journal", run: host::journal },
    Target { name: "outputs", run: host::outputs },
    Target { name: "upstream", run: host::upstream },
    Target { name: "mask", run: host::mask },
    Target { name: "signature", run: hooks::signature },
    Target { name: "purl", run: hooks::purl },
    Target { name: "jwt", run: hooks::jwt },
    #[cfg(feature = "api")]
    Target { name: "hook", run: intake::hook },
    #[cfg(feature = "api")]
    Target { name: "token", run: intake::token },
    Target { name: "terminal", run: terminal::terminal },
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|t| t.name == name).copied()
}

/// The first byte and the rest; a target uses it to choose between ways to take the rest.
fn choice(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// The bytes as text, if they are.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
