//! Ports are looked at before anything is started, so that a taken one is a clear error and not a half-started system.

use super::error::Error;
use std::{
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

/// How long what a killed `up` left behind may take to let go of its ports.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// An error that names the port and the option when somebody else listens there.
pub(crate) fn check_free(port: u16, option: &'static str) -> Result<(), Error> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::PortTaken { port, option, source }),
    }
}

/// [`check_free`] after an `up` that was killed: its NATS server may just be ending, so its port is waited for.
pub(crate) async fn wait_free(port: u16, option: &'static str) -> Result<(), Error> {
    let until = Instant::now() + LEFT_BEHIND;
    loop {
        match check_free(port, option) {
            Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
            last => return last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_option() {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = held.local_addr().expect("address").port();
        let e = check_free(port, "--nats-port").expect_err("taken").to_string();
        assert!(e.contains(&port.to_string()) && e.contains("--nats-port"), "{e}");
        let waiting = tokio::spawn(wait_free(port, "--nats-port"));
        drop(held);
        waiting.await.expect("no panic").expect("free again");
    }
}
