//! Tricks that have passed such guards before, and a resolver that changes its mind.

use super::*;
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

struct Fixed(Vec<IpAddr>);
impl Lookup for Fixed {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        let all = self.0.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
        Box::pin(async move { Ok(all) })
    }
}

/// Public at the first question, loopback from the second on.
#[derive(Default)]
struct Rebinding(AtomicUsize);
impl Lookup for Rebinding {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = std::io::Result<Vec<SocketAddr>>> + Send>> {
        let n = self.0.fetch_add(1, Ordering::SeqCst);
        let ip = if n == 0 { Ipv4Addr::new(93, 184, 216, 34) } else { Ipv4Addr::LOCALHOST };
        Box::pin(async move { Ok(vec![SocketAddr::new(ip.into(), 0)]) })
    }
}

fn client(allow: &[&str], lookup: impl Lookup) -> Outbound {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let allow = allow.iter().map(|n| n.parse().expect("network")).collect();
    Outbound::with_lookup(allow, Arc::new(lookup)).expect("builds")
}

/// Answers every connection with `response`; counts connections.
async fn server(response: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 4096];
            let _ = socket.read(&mut buffer).await;
            let _ = socket.write_all(response.as_bytes()).await;
        }
    });
    (address, hits)
}

#[tokio::test]
async fn tricky_addresses_are_refused() {
    let c = client(&[], Fixed(vec![Ipv4Addr::LOCALHOST.into()]));
    let urls = [
        "http://127.0.0.1/",
        "http://127.0.0.1:22/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://127。0。0。1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://127.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://0.1.2.3/",
        "http://10.0.0.1/",
        "http://10.255.255.255/",
        "http://012.0.0.1/",
        "http://172.16.0.1/",
        "http://172.31.255.255/",
        "http://192.168.0.1/",
        "http://3232235521/",
        "http://100.64.0.1/",
        "http://100.127.255.255/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0xA9FEA9FE/",
        "http://2852039166/",
        "http://169.254.43518/",
        "http://168.63.129.16/",
        "http://192.0.0.192/",
        "http://192.0.2.1/",
        "http://198.18.0.1/",
        "http://198.19.255.255/",
        "http://198.51.100.1/",
        "http://203.0.113.1/",
        "http://192.88.99.1/",
        "http://224.0.0.1/",
        "http://239.255.255.255/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://[::]/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::127.0.0.1]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::10.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://[2002:a00:1::1]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        "http://[fe80::1]/",
        "http://[febf::1]/",
        "http://[fec0::1]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        "http://[100::1]/",
        "http://[2001:db8::1]/",
        "http://[2606:4700::5efe:7f00:1]/",
        "http://[4000::1]/",
        "http://[fe80::1%25eth0]/",
        "http://localhost/",
        "http://LOCALHOST/",
        "http://localhost./",
        "http://app.localhost/",
        "http://metadata.google.internal/",
        "http://a_b.example.com/",
        "http://-a.example.com/",
        "http://a..example.com/",
        "http://127.0.0.1.nip.io/",
        "http://user@127.0.0.1/",
        "http://93.184.216.34@127.0.0.1/",
        "http://user:pass@93.184.216.34/",
        "http://127.0.0.1#@93.184.216.34/",
        "http://127.0.0.1?@93.184.216.34/",
        "http://127.0.0.1\\@93.184.216.34/",
        "http:\\\\127.0.0.1/",
        "http:127.0.0.1",
        "http:///127.0.0.1/",
        "http://\t127.0.0.1/",
        "http://93.184.216.34:0/",
        "https://127.0.0.1/",
        "https://localhost/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/",
        "ftp://127.0.0.1/",
        "unix:/run/docker.sock",
        "data:text/plain,x",
        "//127.0.0.1/",
        "127.0.0.1",
        "http://",
        "",
    ];
    assert!(urls.len() >= 60);
    for url in urls {
        let r = c.send(Request::new(Method::GET, url)).await;
        assert!(matches!(r, Err(OutboundError::Refused(_) | OutboundError::Url { .. })), "{url:?} gave {r:?}");
        assert!(!r.expect_err("refused").retryable());
    }
}

#[test]
fn public_addresses_pass_and_only_allowed_private_ones() {
    let c = client(&["10.1.0.0/16", "fd00::/8", "127.0.0.1/32"], Fixed(vec![]));
    for url in [
        "https://93.184.216.34/",
        "http://8.8.8.8:8080/x?y=z",
        "http://172.15.0.1/",
        "http://172.32.0.1/",
        "http://100.63.255.255/",
        "http://100.128.0.0/",
        "http://[2606:4700::1111]/",
        "http://10.1.2.3/",
        "http://[::ffff:10.1.2.3]/",
        "http://[fd12::1]/",
        "http://127.0.0.1:9/",
        "https://hooks.example.com/services/x",
        "https://bücher.example/",
    ] {
        c.check_url(url).unwrap_or_else(|e| panic!("{url}: {e}"));
    }
    for url in ["http://10.2.0.1/", "http://127.0.0.2/", "http://[fc00::1]/"] {
        assert!(c.check_url(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn the_connected_address_is_the_checked_one() {
    let (address, hits) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
    let url = format!("http://rebind.example:{}/", address.port());

    // A check before the call sees the public address; the connection's own look-up sees loopback and is refused.
    let c = client(&[], Rebinding::default());
    assert!(c.resolve("rebind.example", address.port()).await.is_ok());
    let e = c.send(Request::new(Method::GET, &url)).await.expect_err("refused");
    assert!(matches!(&e, OutboundError::Refused(Refused::Address { why: "loopback", .. })), "{e:?}");
    assert!(c.resolve("rebind.example", address.port()).await.is_err());

    // One bad address among good ones is enough.
    let both = vec![Ipv4Addr::new(93, 184, 216, 34).into(), Ipv4Addr::LOCALHOST.into()];
    let e = client(&[], Fixed(both)).send(Request::new(Method::GET, &url)).await.expect_err("refused");
    assert!(matches!(e, OutboundError::Refused(_)), "{e:?}");
    assert_eq!(hits.load(Ordering::SeqCst), 0, "nothing was connected to");

    // Allowed by an administrator, the same name works.
    let r = client(&["127.0.0.0/8"], Fixed(vec![Ipv4Addr::LOCALHOST.into()]))
        .send(Request::new(Method::GET, &url))
        .await
        .expect("answers");
    assert_eq!((r.status, r.body.as_slice(), r.truncated), (200, b"ok".as_slice(), false));
    assert_eq!(hits.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let (inside, hits) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let response: &'static str = Box::leak(
        format!("HTTP/1.1 302 Found\r\nlocation: http://{inside}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .into_boxed_str(),
    );
    let (outside, _) = server(response).await;
    let c = client(&["127.0.0.1/32"], Fixed(vec![]));
    let r = c.send(Request::new(Method::POST, format!("http://{outside}/"))).await.expect("answers");
    assert_eq!(r.status, 302);
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn long_answers_are_cut_and_silent_ones_time_out() {
    let body: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\nconnection: close\r\n\r\n{}", "x".repeat(5000))
            .into_boxed_str(),
    );
    let (address, _) = server(body).await;
    let c = client(&["127.0.0.1/32"], Fixed(vec![]));
    let mut request = Request::new(Method::GET, format!("http://{address}/"));
    request.max_response = 1000;
    let r = c.send(request).await.expect("answers");
    assert_eq!((r.body.len(), r.truncated), (1000, true));

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let mut request = Request::new(Method::GET, format!("http://{}/secret", silent.local_addr().expect("address")));
    request.timeout = Duration::from_millis(100);
    let e = c.send(request).await.expect_err("times out");
    assert!(matches!(e, OutboundError::Timeout { .. }) && e.maybe_received() && e.retryable(), "{e:?}");
    assert!(!format!("{e:?} {e}").contains("secret"), "the address must not reach a log");
}
