//! A load generator: so many requests a second, however long each takes, over kept connections and new ones.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};

/// Between two requests: 250 a second.
const EVERY: Duration = Duration::from_millis(4);
/// Every so many requests one takes long, so that each member has one under way at nearly any time: longer than it takes from
/// the beginning of a drain to a careless restart.
const SLOW: u64 = 25;

#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    ok: AtomicU64,
    again: AtomicU64,
    failed: Mutex<Vec<String>>,
}

pub(super) struct Load {
    seen: Arc<Seen>,
    begun: Instant,
    stop: tokio::sync::watch::Sender<bool>,
    run: JoinHandle<()>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) ok: u64,
    /// Requests on a kept connection that the far side was just closing, asked again as every client does.
    pub(super) again: u64,
    pub(super) failed: Vec<String>,
    pub(super) a_second: f64,
}

impl Load {
    /// `again`: a kept connection may be closed under a request (nginx does so when it is reloaded).
    pub(super) fn on(url: String, again: bool) -> Load {
        let client = |idle: usize| {
            reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(15))
                .pool_max_idle_per_host(idle)
                .build()
                .expect("client")
        };
        let (kept, fresh) = (client(16), client(0));
        let seen = Arc::new(Seen::default());
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let s = Arc::clone(&seen);
        let run = tokio::spawn(async move {
            let mut tick = tokio::time::interval(EVERY);
            let mut open = JoinSet::new();
            for n in 0u64.. {
                tokio::select! {
                    _ = tick.tick() => {}
                    _ = stopped.changed() => break,
                }
                while open.try_join_next().is_some() {}
                let keep = n % 2 == 0;
                let (client, fresh) = (if keep { kept.clone() } else { fresh.clone() }, fresh.clone());
                let url = if n % SLOW == 0 { format!("{url}slow") } else { url.clone() };
                let s = Arc::clone(&s);
                s.sent.fetch_add(1, Ordering::Relaxed);
                open.spawn(async move {
                    let mut got = ask(&client, &url).await;
                    if keep && again && matches!(&got, Err((true, _))) {
                        s.again.fetch_add(1, Ordering::Relaxed);
                        got = ask(&fresh, &url).await;
                    }
                    match got {
                        Ok(()) => drop(s.ok.fetch_add(1, Ordering::Relaxed)),
                        Err((_, why)) => s.failed.lock().expect("lock").push(why),
                    }
                });
            }
            while open.join_next().await.is_some() {}
        });
        Load { seen, begun: Instant::now(), stop, run }
    }

    /// Stops, and waits for every answer.
    pub(super) async fn end(self) -> Told {
        let length = self.begun.elapsed().as_secs_f64();
        let _ = self.stop.send(true);
        self.run.await.expect("runs");
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let failed = self.seen.failed.lock().expect("lock").clone();
        let told = Told {
            ok: count(&self.seen.ok),
            again: count(&self.seen.again),
            failed,
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            a_second: count(&self.seen.sent) as f64 / length,
        };
        assert_eq!(told.ok + told.failed.len() as u64, count(&self.seen.sent), "every request has its end");
        told
    }
}

/// `Err((true, _))`: the connection ended before any of the answer came.
async fn ask(client: &reqwest::Client, url: &str) -> Result<(), (bool, String)> {
    let broke = |e: reqwest::Error| {
        let mut text = e.to_string();
        let mut cause = std::error::Error::source(&e);
        while let Some(c) = cause {
            text += &format!(": {c}");
            cause = c.source();
        }
        (e.is_request() && !e.is_timeout() && !e.is_connect(), text)
    };
    let r = client.get(url).send().await.map_err(broke)?;
    let status = r.status();
    let body = r.text().await.map_err(|e| (false, broke(e).1))?;
    if status != 200 || !body.starts_with("version ") {
        return Err((false, format!("{status}: {body}")));
    }
    Ok(())
}

impl Told {
    /// Not one failed, and it was a load.
    pub(super) fn assert_served(&self, what: &str) {
        let first: Vec<&String> = self.failed.iter().take(5).collect();
        assert!(self.failed.is_empty(), "{what}: {} of {} requests failed: {first:?}", self.failed.len(), self.ok);
        assert!(self.a_second >= 200.0, "{what}: only {:.0} requests a second were sent", self.a_second);
        assert!(self.again * 100 <= self.ok, "{what}: {} of {} had to be asked again", self.again, self.ok);
    }
}
