//! What tests stand on: real servers that vanish with the test, databases of both kinds, and waiting with a deadline.
//!
//! Everything here panics with the remedy in the message when the machine lacks a part: a test that silently skips
//! proves nothing.

mod db;
mod nats;
mod port;
mod process;
mod strings;
mod wait;

pub use db::{Db, databases};
pub use nats::{Nats, nats, nats_server_binary, nats_with};
pub use port::free_port;
pub use process::Supervised;
pub use strings::hostile_strings;
pub use wait::{eventually, http_get, wait_http};

use std::path::PathBuf;

/// A directory that is removed when it goes out of scope.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("windlass-test-")
        .tempdir()
        .unwrap_or_else(|e| panic!("cannot make a temporary directory in {}: {e}", std::env::temp_dir().display()))
}

/// The checkout the running test belongs to: the nearest folder upwards that has the migrations.
pub fn workspace() -> PathBuf {
    let start = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let start = PathBuf::from(start);
    start
        .ancestors()
        .find(|d| d.join("migrations").is_dir())
        .unwrap_or_else(|| panic!("no folder above {} has `migrations`", start.display()))
        .to_path_buf()
}
