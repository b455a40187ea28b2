//! Ports for servers under test: each is handed out once.
//!
//! A port that the system chooses (bind to 0, read the number, let go) is free again at once: the next question may get
//! the same number, and any outgoing connection may take it before the server listens. So these lie below the range
//! from which the system chooses, and each is held by name for as long as the process lives.

use std::{
    net::TcpListener,
    os::{linux::net::SocketAddrExt, unix::net},
    sync::{Mutex, PoisonError},
};

/// Above what well-known services use; the system's own range begins at 32768 (`ip_local_port_range`).
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// What this process holds: one abstract socket a port. The kernel lets go of them when the process ends in any way.
static HELD: Mutex<Vec<net::UnixListener>> = Mutex::new(Vec::new());

/// A port of the loopback interface that nobody listens on, and that no other call gets, in no process of this kind.
pub fn free_port() -> u16 {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin in different places, so that each finds its first one quickly.
    let start = (std::process::id() as u64 * 7919 + held.len() as u64) % u64::from(COUNT);
    for n in 0..COUNT {
        let port = FIRST + ((start + u64::from(n)) % u64::from(COUNT)) as u16;
        let name = net::SocketAddr::from_abstract_name(format!("windlass-test-port-{port}"))
            .unwrap_or_else(|e| panic!("not a name for a socket: {e}"));
        let Ok(hold) = net::UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            held.push(hold);
            return port;
        }
    }
    panic!("all {COUNT} ports from {FIRST} on of 127.0.0.1 are taken: what listens there (`ss -ltn`)?")
}
