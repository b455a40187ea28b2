//! Which addresses the guarded client may connect to.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "`{host}` leads to {address}, which is {why}; if that is meant, an administrator adds its network to `allow_private_addresses`"
    )]
    Address { host: String, address: IpAddr, why: &'static str },
    #[error("`{host}` is not a name that can be called: {why}")]
    Name { host: String, why: &'static str },
}

/// The rule: public unicast addresses, and the networks that an administrator allowed.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    allow: Vec<IpNet>,
}

impl Guard {
    pub fn new(allow: Vec<IpNet>) -> Guard {
        Guard { allow }
    }

    pub fn check(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        let real = embedded_v4(address).map_or(address, IpAddr::V4);
        let Some(why) = forbidden(address) else { return Ok(()) };
        if self.allow.iter().any(|net| net.contains(&address) || net.contains(&real)) {
            return Ok(());
        }
        Err(Refused::Address { host: host.to_owned(), address, why })
    }
}

/// Names that never leave the machine or the site, and forms that parsers disagree about.
pub(super) fn check_name(host: &str) -> Result<(), Refused> {
    let refuse = |why| Err(Refused::Name { host: host.to_owned(), why });
    let bare = host.strip_suffix('.').unwrap_or(host);
    if bare.is_empty() || bare.len() > 253 {
        return refuse("its length");
    }
    let label_ok = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            // Underscore hosts are read differently by different parsers, which has been used to pass such checks.
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !bare.split('.').all(label_ok) {
        return refuse("only letters, digits, hyphens and dots are allowed");
    }
    Ok(())
}

/// Why `address` is out of bounds, if it is.
fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(a) => forbidden_v4(a),
        IpAddr::V6(a) => match embedded_v4(address) {
            // An IPv6 form of an IPv4 address reaches what the IPv4 address reaches.
            Some(v4) => forbidden_v4(v4).or(Some("an IPv4 address in an IPv6 form")),
            None => forbidden_v6(a),
        },
    }
}

fn forbidden_v4(a: Ipv4Addr) -> Option<&'static str> {
    let o = a.octets();
    Some(match o {
        [0, ..] => "this network (0.0.0.0/8)",
        [10, ..] | [192, 168, ..] => "private",
        [172, b, ..] if (16..=31).contains(&b) => "private",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local (cloud metadata lives there)",
        [100, b, ..] if (64..=127).contains(&b) => "shared carrier space (100.64.0.0/10)",
        [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "reserved",
        [192, 88, 99, _] => "reserved (6to4 relay)",
        [198, 18 | 19, ..] => "reserved for benchmarks",
        // Azure's metadata and DNS service: a public number that is answered by the machine's own hypervisor.
        [168, 63, 129, 16] => "a cloud platform's internal service",
        [224..=239, ..] => "multicast",
        [240..=255, ..] => "reserved or broadcast",
        _ => return None,
    })
}

fn forbidden_v6(a: Ipv6Addr) -> Option<&'static str> {
    let s = a.segments();
    Some(match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xfc00..=0xfdff, ..] => "unique local (private)",
        [0xff00..=0xffff, ..] => "multicast",
        [0x100, 0, 0, 0, ..] => "discard-only",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "reserved for documentation",
        [0x2001, 0..=0x1ff, ..] => "reserved (protocol assignments, Teredo)",
        [0x5f00, ..] => "reserved (segment routing)",
        // Everything else that is not global unicast (2000::/3).
        [0x2000..=0x3fff, ..] => return None,
        _ => "not a global unicast address",
    })
}

/// The IPv4 address that an IPv6 form carries: mapped, compatible, translated (NAT64, also the local prefix), 6to4, ISATAP.
fn embedded_v4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(a) = address else { return None };
    let s = a.segments();
    let v4 = |hi: u16, lo: u16| {
        let ([a, b], [c, d]) = (hi.to_be_bytes(), lo.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, hi, lo] => v4(hi, lo),
        [0, 0, 0, 0, 0xffff, 0, hi, lo] => v4(hi, lo),
        [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => v4(hi, lo),
        [0x64, 0xff9b, 1, .., hi, lo] => v4(hi, lo),
        [0x2002, hi, lo, ..] => v4(hi, lo),
        [.., 0 | 0x200, 0x5efe, hi, lo] => v4(hi, lo),
        _ => None,
    }
}
