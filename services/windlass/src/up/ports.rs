//! Ports are looked at before anything is started, so that a taken one is a clear error and not a half-started system.

use super::error::Error;
use std::net::{Ipv4Addr, TcpListener};

/// An error that names the port and the option when somebody else listens there.
pub(crate) fn check_free(port: u16, option: &'static str) -> Result<(), Error> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::PortTaken { port, option, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_option() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = held.local_addr().expect("address").port();
        let e = check_free(port, "--nats-port").expect_err("taken").to_string();
        assert!(e.contains(&port.to_string()) && e.contains("--nats-port"), "{e}");
        drop(held);
        check_free(port, "--nats-port").expect("free again");
    }
}
