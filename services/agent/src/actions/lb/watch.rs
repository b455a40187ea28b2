//! What the kernel says about nginx: which connections lead to a member, and which workers still take new ones.
//!
//! nginx itself tells neither. A reload is done when the master's workers of before are gone or say in their title that they
//! are shutting down; from then on no new request can go where the old file said, but for one whose head was half read.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

/// TCP states in `/proc/net/tcp`: a connection that is being made, or open.
const LIVE: [&str; 2] = ["01", "02"];

/// Open connections from this host to `target`.
pub(super) fn connections(target: SocketAddr) -> io::Result<usize> {
    let mut n = count(&fs::read_to_string("/proc/net/tcp")?, target);
    match fs::read_to_string("/proc/net/tcp6") {
        Ok(text) => n += count(&text, target),
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    Ok(n)
}

fn count(table: &str, target: SocketAddr) -> usize {
    let target = (target.ip().to_canonical(), target.port());
    let leads = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        let (far, state) = (words.next().and_then(address), words.next());
        far == Some(target) && state.is_some_and(|s| LIVE.contains(&s))
    };
    table.lines().skip(1).filter(leads).count()
}

/// `0100007F:1F90`: words of 32 bits in the machine's byte order, the port in the network's.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|i| u32::from_str_radix(ip.get(i * 8..i * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [v4] => IpAddr::V4(Ipv4Addr::from(*v4)),
        [_, _, _, _] => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?)),
        _ => return None,
    };
    Some((ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// The master's workers that take new connections.
pub(super) fn workers(pid_file: &Path) -> Result<BTreeSet<i32>, String> {
    let text = fs::read_to_string(pid_file)
        .map_err(|e| format!("cannot read nginx's pid file {}: {e}; is it running?", pid_file.display()))?;
    let master: i32 =
        text.trim().parse().map_err(|_| format!("nginx's pid file {} holds no number", pid_file.display()))?;
    let entries = fs::read_dir("/proc").map_err(|e| format!("cannot read /proc: {e}"))?;
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter(|p| parent(*p) == Some(master) && takes_connections(*p)).collect())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, also brackets.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// A worker's title is part of what nginx offers to those who look after it (its upgrade is documented by it).
pub(super) fn takes_connections(pid: i32) -> bool {
    let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    title.starts_with(b"nginx: worker process") && !title.windows(8).any(|w| w == b"shutting")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0100007F:9C40 0300007F:1F90 01 00000000:00000000 00:00000000\n\
             1: 0100007F:9C41 0300007F:1F90 06 00000000:00000000 00:00000000\n\
             2: 0100007F:9C42 0300007F:1F90 02 00000000:00000000 00:00000000\n\
             3: 0300007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000\n\
             4: nonsense\n";
        let to = |a: &str| count(table, a.parse().expect("address"));
        if cfg!(target_endian = "little") {
            assert_eq!(to("127.0.0.3:8080"), 2, "not the one in TIME_WAIT, nor the far end's own");
            assert_eq!(to("127.0.0.1:40000"), 1);
            let mapped = "h\n 0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000300007F:1F90 01 0\n";
            assert_eq!(count(mapped, "127.0.0.3:8080".parse().expect("address")), 1);
        }
        assert_eq!(to("10.0.0.1:80"), 0);
        assert_eq!(address("0100007F"), None);
        assert_eq!(address("xx:1"), None);
    }

    #[test]
    fn a_real_connection_is_seen_and_its_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
        let at = listener.local_addr().expect("address");
        assert_eq!(connections(at).expect("readable"), 0);
        let c = std::net::TcpStream::connect(at).expect("connects");
        assert_eq!(connections(at).expect("readable"), 1);
        drop(c);
        assert_eq!(connections(at).expect("readable"), 0);
    }
}
