//! A man in the middle between a host and the broker, on a real deployment: he sees every frame, and changes, cuts, repeats,
//! drops and swaps them. The deployment takes longer, ends as it would have, and starts nothing twice.

use crate::world::{Form, World};
use serde_json::json;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use windlass_testkit::Db;

const KINDS: usize = 6;
/// Of ten frames so many pass unharmed.
const PASS: u64 = 6;

#[derive(Default)]
struct Middle {
    seen: AtomicU64,
    done: [AtomicU64; KINDS],
    /// Frames of before, to be said again.
    old: Mutex<VecDeque<(String, Vec<u8>)>>,
    dice: AtomicU64,
}

impl Middle {
    fn roll(&self, n: u64) -> u64 {
        let mut z = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    /// What becomes of a frame: `head` is the protocol's line without the length.
    fn take(&self, head: &str, payload: &[u8]) -> Vec<(String, Vec<u8>)> {
        let one = (head.to_owned(), payload.to_vec());
        if !payload.starts_with(b"WF1") {
            return vec![one];
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
        let mut old = self.old.lock().expect("no poison");
        let before = (!old.is_empty()).then(|| old[self.roll(old.len() as u64) as usize].clone());
        // An old HELLO looks like a restored disk, and has the agent quarantined: that is a delay for people to end.
        if !head.ends_with(".hb") {
            old.push_back(one.clone());
        }
        if old.len() > 200 {
            old.pop_front();
        }
        drop(old);
        if self.roll(10) < PASS {
            return vec![one];
        }
        let kind = self.roll(KINDS as u64) as usize;
        self.done[kind].fetch_add(1, Ordering::Relaxed);
        let mut bytes = payload.to_vec();
        let at = self.roll(bytes.len() as u64) as usize;
        match kind {
            0 => bytes[at] ^= 1 << self.roll(8),
            1 => bytes.truncate(at),
            2 => return vec![],
            3 => return vec![one.clone(), one],
            // A true frame of before, of whichever direction of this host, besides.
            4 => return before.map(|(_, b)| vec![(head.to_owned(), b), one.clone()]).unwrap_or_else(|| vec![one]),
            // The signature of this one before the words of another.
            _ => {
                let words = before.map_or_else(Vec::new, |(_, b)| b);
                bytes = [&payload[..67.min(payload.len())], words.get(67..).unwrap_or_default()].concat();
            }
        }
        vec![(head.to_owned(), bytes)]
    }
}

/// Copies one direction of the NATS protocol, frame by frame.
async fn carry(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, m: Arc<Middle>) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        while let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let carries = line.starts_with("PUB ") || line.starts_with("MSG ");
            let Some((head, length)) = line.rsplit_once(' ').filter(|_| carries) else {
                let rest = buffer.split_off(end + 2);
                if to.write_all(&buffer).await.is_err() {
                    return;
                }
                buffer = rest;
                continue;
            };
            let length: usize = length.parse().expect("a length");
            if buffer.len() < end + 2 + length + 2 {
                break;
            }
            let payload = buffer[end + 2..end + 2 + length].to_vec();
            buffer.drain(..end + 2 + length + 2);
            for (head, bytes) in m.take(head, &payload) {
                let mut out = format!("{head} {}\r\n", bytes.len()).into_bytes();
                out.extend_from_slice(&bytes);
                out.extend_from_slice(b"\r\n");
                if to.write_all(&out).await.is_err() {
                    return;
                }
            }
        }
        match from.read(&mut chunk).await {
            Ok(n) if n > 0 => buffer.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
}

/// Listens, and leads whoever comes to the broker; the answer is its port.
async fn stand_between(to: String, m: Arc<Middle>, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = listener.local_addr().expect("address").port();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((host, _)) = listener.accept().await {
            let Ok(broker) = TcpStream::connect(&to).await else { continue };
            let ((hr, hw), (br, bw)) = (host.into_split(), broker.into_split());
            open.spawn(carry(hr, bw, Arc::clone(&m)));
            open.spawn(carry(br, hw, Arc::clone(&m)));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_man_in_the_middle_can_only_delay() {
    let mut w = World::start(Db::sqlite(), Form::Embedded).await;
    w.apply(&w.catalog(&["h1", "h2"], "1", 0, "parallel: 0")).await;
    let (m, mut tasks) = (Arc::new(Middle::default()), JoinSet::new());
    for host in ["h1", "h2"] {
        let mut stolen = w.stolen(host).await;
        let url = stolen.identity["nats_urls"][0].as_str().expect("url").to_owned();
        let real = url.trim_start_matches("nats://").to_owned();
        let port = stand_between(real, Arc::clone(&m), &mut tasks).await;
        stolen.identity["nats_urls"] = json!([format!("nats://127.0.0.1:{port}")]);
        std::fs::write(w.agent_dir(host).join("identity.json"), stolen.identity.to_string()).expect("writes");
        std::fs::create_dir_all(w.root(host)).expect("root");
        w.start_process(host);
    }
    for host in ["h1", "h2"] {
        w.until_host(host, "connected").await;
    }
    w.version("shop", "1.0.0", "head -c 200000 /dev/zero | tr '\\0' 'x'").await;
    w.version("shop", "2.0.0", "exit 3").await;
    for _ in 0..2 {
        let id = w.deploy("shop", "beta", "1.0.0").await;
        w.until(&id, &["succeeded"]).await;
    }
    // What fails, fails: nothing the man says makes it a success.
    let id = w.deploy("shop", "beta", "2.0.0").await;
    let d = w.until(&id, &["paused"]).await;
    assert!(d["waiting_on"].to_string().contains("h1"), "{d:#}");
    w.post(&format!("/deployments/{id}/abort"), json!({ "reason": "as planned" })).await;
    w.until(&id, &["aborted"]).await;
    w.assert_started_once();
    let marks = std::fs::read_to_string(w.marks()).expect("marks");
    let of = |what: &str| marks.lines().filter(|l| l.ends_with(what)).count();
    assert_eq!((of("go"), of("after")), (5, 4), "two hosts twice, and the first once more:\n{marks}");
    let done: Vec<u64> = m.done.iter().map(|d| d.load(Ordering::Relaxed)).collect();
    eprintln!(
        "{} frames, {done:?} of them flipped, cut, dropped, doubled, said again, spliced",
        m.seen.load(Ordering::Relaxed)
    );
    assert!(done.iter().all(|d| *d > 0), "every kind of harm was done: {done:?}");
}
