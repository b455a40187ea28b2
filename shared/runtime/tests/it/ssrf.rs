//! Addresses that have passed guards elsewhere, by the hundred: each is refused before anything is connected to. A real
//! server listens where they lead, and counts who comes.

use reqwest::Method;
use rustls::crypto::ring;
use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use windlass_runtime::outbound::{Lookup, Outbound, OutboundError, Request};

const PUBLIC: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);

/// Every name leads to these addresses; each question takes the next ones.
struct Names(Vec<Vec<IpAddr>>, AtomicUsize);

impl Names {
    fn all(answers: &[&[IpAddr]]) -> Names {
        Names(answers.iter().map(|a| a.to_vec()).collect(), AtomicUsize::new(0))
    }
}

impl Lookup for Names {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        let n = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
        let all = self.0[n].iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        Box::pin(async move { Ok(all) })
    }
}

fn client(allow: &[&str], names: Names) -> Outbound {
    let _ = ring::default_provider().install_default();
    let allow = allow.iter().map(|n| n.parse().expect("a network")).collect();
    Outbound::with_lookup(allow, Arc::new(names)).expect("builds")
}

async fn server(answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            let _ = socket.read(&mut buffer).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, hits)
}

/// Ways to write an IPv4 address that some reader of addresses takes for it.
fn written(a: Ipv4Addr) -> Vec<String> {
    let [w, x, y, z] = a.octets();
    let n = u32::from(a);
    let wide = |s: &str| {
        s.chars()
            .map(|c| if c == '.' { '.' } else { char::from_u32(u32::from(c) + 0xfee0).unwrap_or(c) })
            .collect::<String>()
    };
    let bold = |s: &str| {
        s.chars().map(|c| c.to_digit(10).and_then(|d| char::from_u32(0x1d7ce + d)).unwrap_or(c)).collect::<String>()
    };
    let plain = a.to_string();
    vec![
        plain.clone(),
        format!("{plain}."),
        n.to_string(),
        format!("0x{n:08x}"),
        format!("0X{n:X}"),
        format!("0{n:o}"),
        format!("{w:#o}.{x:#o}.{y:#o}.{z:#o}").replace("0o", "0"),
        format!("000{w:o}.00{x:o}.0{y:o}.0{z:o}"),
        format!("0x{w:x}.0x{x:x}.0x{y:x}.0x{z:x}"),
        format!("0x{w:x}.{x}.0{y:o}.{z}"),
        format!("{w}.{x}.{}", u32::from(y) << 8 | u32::from(z)),
        format!("{w}.{}", n & 0xff_ffff),
        format!("0x{w:x}.{:#x}", n & 0xff_ffff),
        wide(&plain),
        bold(&plain),
        plain.replace('.', "。"),
        plain.replace('.', "．"),
        plain.replace('.', "｡"),
        plain.bytes().map(|b| format!("%{b:02x}")).collect(),
        plain.replace('.', "%2e"),
        plain.replacen(&w.to_string(), &format!("{w}\u{ad}"), 1),
        plain.replacen('.', ".\u{200b}", 1),
        format!("{w}\t.{x}.{y}.{z}"),
        format!("{w}.{x}\n.{y}.{z}"),
        format!("[::ffff:{plain}]"),
        format!("[::FFFF:{:x}:{:x}]", n >> 16, n & 0xffff),
        format!("[0:0:0:0:0:ffff:{plain}]"),
        format!("[0000:0000:0000:0000:0000:ffff:{:04x}:{:04x}]", n >> 16, n & 0xffff),
        format!("[::{plain}]"),
        format!("[::ffff:0:{plain}]"),
        format!("[64:ff9b::{plain}]"),
        format!("[64:ff9b::{:x}:{:x}]", n >> 16, n & 0xffff),
        format!("[64:ff9b:1::{plain}]"),
        format!("[2002:{:x}:{:x}::]", n >> 16, n & 0xffff),
        format!("[2002:{:x}:{:x}::1]", n >> 16, n & 0xffff),
        format!("[2606:4700::5efe:{:x}:{:x}]", n >> 16, n & 0xffff),
        format!("[2606:4700::200:5efe:{:x}:{:x}]", n >> 16, n & 0xffff),
        format!("[::ffff:{plain}%25eth0]"),
        format!("user@{plain}"),
        format!("user:word@{plain}"),
        format!("{PUBLIC}@{plain}"),
        format!("{PUBLIC}%40{plain}@{plain}"),
    ]
}

/// Around an authority: schemes, slashes, and what may hide it.
fn around(host: &str, port: u16) -> Vec<String> {
    vec![
        format!("http://{host}:{port}/"),
        format!("HTTP://{host}:{port}/"),
        format!("hTTps://{host}:{port}/"),
        format!("http:\\\\{host}:{port}\\"),
        format!("http:{host}:{port}/"),
        format!("http:/{host}:{port}/"),
        format!("http:////{host}:{port}/"),
        format!(" \t http://{host}:{port}/ "),
        format!("ht\ntp://{host}:{port}/"),
        format!("http://{host}:{port}#@{PUBLIC}/"),
        format!("http://{host}:{port}?@{PUBLIC}/"),
        format!("http://{host}:{port}\\@{PUBLIC}/"),
        format!("http://{host}:{port};@{PUBLIC}/"),
        format!("http://{PUBLIC}@{host}:{port}/"),
        format!("http://{PUBLIC}:80@{host}:{port}/"),
        format!("http://{host}:{port}/..;/"),
        format!("http://{host}:{port}/%2e%2e/"),
    ]
}

#[tokio::test]
async fn every_way_to_write_an_inside_address_is_refused_and_nothing_is_connected_to() {
    let (target, hits) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into()).await;
    let inside: Vec<Ipv4Addr> = [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.5.4",
        "172.31.255.254",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "192.88.99.1",
        "224.0.0.1",
        "255.255.255.255",
    ]
    .iter()
    .map(|a| a.parse().expect("an address"))
    .collect();
    let mut urls: Vec<String> = Vec::new();
    for a in &inside {
        urls.extend(written(*a).iter().map(|h| format!("http://{h}:{}/latest", target.port())));
    }
    for host in ["127.0.0.1", "[::1]", "localhost", "0"] {
        urls.extend(around(host, target.port()));
    }
    for host in [
        "[::]",
        "[::1]",
        "[0::1]",
        "[::0001]",
        "[0:0:0:0:0:0:0:1]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[febf::1]",
        "[fec0::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fdff::1]",
        "[ff02::1]",
        "[100::1]",
        "[2001::1]",
        "[2001:db8::1]",
        "[2001:10::1]",
        "[3fff::1]",
        "[5f00::1]",
        "[4000::1]",
        "[::ffff:0:0]",
        "[64:ff9b::]",
        "[2001:0:7f00:1::]",
        "localhost",
        "LocalHost",
        "localhost.",
        "localhost.localdomain",
        "app.localhost",
        "ip6-localhost",
        "metadata",
        "metadata.google.internal",
        "instance-data",
        "kubernetes.default.svc",
        "host.docker.internal",
        "router.lan",
        "printer.local",
        "127.0.0.1.nip.io",
        "www.127.0.0.1.sslip.io",
        "7f000001.rbndr.example",
        "a_b.example.com",
        "_dmarc.example.com",
        "-a.example.com",
        "a-.example.com",
        "a..example.com",
        ".example.com",
        "example..",
        "exa mple.com",
        "exam$ple.com",
        "ⓛocalhost",
        "ｌｏｃａｌｈｏｓｔ",
        "loc\u{ad}alhost",
        "xn--",
        "xn--a",
        "0x",
        "08.0.0.1",
        "256.256.256.256",
        "1.2.3.4.5",
        "0x1ffffffff",
        "[::1",
        "::1",
        "[v1.a]",
        "[1:2]",
    ] {
        urls.push(format!("http://{host}:{}/", target.port()));
        urls.push(format!("https://{host}/"));
    }
    urls.push(format!("http://{}/", "a".repeat(64)));
    urls.push(format!("http://{}example.com/", "a.".repeat(130)));
    for scheme in [
        "file",
        "gopher",
        "ftp",
        "dict",
        "ldap",
        "jar",
        "netdoc",
        "ws",
        "unix",
        "data",
        "javascript",
        "phar",
        "tftp",
        "http+unix",
        "view-source:http",
    ] {
        urls.push(format!("{scheme}://127.0.0.1:{}/", target.port()));
    }
    for url in [
        "",
        "/",
        "//127.0.0.1/",
        "127.0.0.1",
        "http",
        "http:",
        "http://",
        "http:///",
        "http://:80/",
        "http://@/",
        "http://#",
        "\u{0}http://x/",
    ] {
        urls.push(url.to_owned());
    }
    urls.sort();
    urls.dedup();
    assert!(urls.len() >= 700, "{}", urls.len());
    let c = client(&[], Names::all(&[&[Ipv4Addr::LOCALHOST.into()]]));
    let mut by = [0; 2];
    for url in &urls {
        match c.send(Request::new(Method::GET, url.as_str())).await {
            Err(e @ OutboundError::Refused(_)) => {
                by[0] += 1;
                assert!(!e.retryable() && !e.maybe_received());
            }
            Err(e @ OutboundError::Url { .. }) => {
                by[1] += 1;
                assert!(!e.retryable() && !e.maybe_received());
            }
            other => panic!("{url:?} gave {other:?}"),
        }
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
    eprintln!(
        "ssrf: {} addresses, {} refused by what they lead to, {} by their form, 0 connections",
        urls.len(),
        by[0],
        by[1]
    );
}

#[tokio::test]
async fn no_redirect_leads_inside() {
    let (target, hits) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into()).await;
    let port = target.port();
    let places: Vec<String> = written(Ipv4Addr::LOCALHOST)
        .into_iter()
        .take(13)
        .map(|h| format!("http://{h}:{port}/"))
        .chain(around("127.0.0.1", port))
        .collect();
    let c = client(&["127.0.0.1/32"], Names::all(&[&[Ipv4Addr::LOCALHOST.into()]]));
    let mut tried = 0;
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent", "300 Many"] {
        for place in places.iter().filter(|p| p.is_ascii() && !p.contains(['\n', '\0'])) {
            for header in if status.starts_with("302") { &["location", "refresh"][..] } else { &["location"] } {
                let place = if *header == "refresh" { format!("0; url={place}") } else { place.clone() };
                let answer =
                    format!("HTTP/1.1 {status}\r\n{header}: {place}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let (outside, _) = server(answer).await;
                // A space or tab in the place may make the answer unreadable: that is no call either.
                match c.send(Request::new(Method::POST, format!("http://{outside}/"))).await {
                    Ok(r) => assert_eq!(r.status.to_string(), status[..3]),
                    Err(OutboundError::Exchange { .. }) => {}
                    Err(e) => panic!("{place}: {e:?}"),
                }
                tried += 1;
            }
        }
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
    eprintln!("ssrf: {tried} redirects by a real server, none followed");
}

#[tokio::test]
async fn a_name_that_changes_its_mind_reaches_nothing() {
    let (target, hits) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into()).await;
    let url = format!("http://rebind.example:{}/", target.port());
    let outside: IpAddr = PUBLIC.into();
    let inside: [IpAddr; 6] = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00::1"]
        .map(|a| a.parse().expect("an address"));
    let mut tried = 0;
    for bad in inside {
        // Good when asked before the call, bad when the call asks; bad beside good, first or last.
        let later = client(&[], Names::all(&[&[outside], &[bad]]));
        assert!(later.resolve("rebind.example", target.port()).await.is_ok());
        for c in [later, client(&[], Names::all(&[&[outside, bad]])), client(&[], Names::all(&[&[bad, outside]]))] {
            let e = c.send(Request::new(Method::GET, &url)).await.expect_err("refused");
            assert!(matches!(e, OutboundError::Refused(_)), "{bad}: {e:?}");
            assert!(c.resolve("rebind.example", 25).await.is_err(), "mail takes the same way");
            tried += 2;
        }
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0);
    eprintln!("ssrf: {tried} names that point inside later or beside, all refused");
}
