//! Reconcilers: a coalescing queue of ids, rung by messages, filled by a poll of the database, handled one run an id at a
//! time. A ring says which id to look at and nothing more; the handler decides from the state it loads.

use crate::Context;
use std::{
    any::Any,
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::{Id as TaskId, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tracing::Instrument;
use windlass_runtime::telemetry::chain;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// How long running handlers get to end at shutdown.
const DRAIN: Duration = Duration::from_secs(10);

/// Growing pauses, with jitter, up to a limit.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Backoff {
        Backoff { first, max, failures: 0 }
    }

    /// The pause after one more failure.
    #[expect(clippy::should_implement_trait, reason = "not a sequence to be iterated")]
    pub fn next(&mut self) -> Duration {
        let pause = self.first.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(rand::random_range(0.75..1.0))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

/// The bell of one reconciler. Cheap to clone; ring it from anywhere.
#[derive(Debug)]
pub struct Wake<Id> {
    inner: Arc<Inner<Id>>,
}

impl<Id> Clone for Wake<Id> {
    fn clone(&self) -> Self {
        Wake { inner: Arc::clone(&self.inner) }
    }
}

#[derive(Debug)]
struct Inner<Id> {
    rung: Mutex<Rung<Id>>,
    notify: Notify,
}

#[derive(Debug)]
struct Rung<Id> {
    /// In the order of their first ring.
    now: VecDeque<Id>,
    known: HashSet<Id>,
    later: HashMap<Id, Instant>,
    poll: bool,
}

impl<Id: Eq + Hash + Clone> Default for Wake<Id> {
    fn default() -> Self {
        Wake::new()
    }
}

impl<Id: Eq + Hash + Clone> Wake<Id> {
    pub fn new() -> Wake<Id> {
        let rung = Rung { now: VecDeque::new(), known: HashSet::new(), later: HashMap::new(), poll: false };
        Wake { inner: Arc::new(Inner { rung: Mutex::new(rung), notify: Notify::new() }) }
    }

    fn rung(&self) -> MutexGuard<'_, Rung<Id>> {
        self.inner.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Look at this id soon. Rings for an id that is already waiting fall together; one that rings while the id is being
    /// handled makes it run once more.
    pub fn ring(&self, id: Id) {
        let mut rung = self.rung();
        if rung.known.insert(id.clone()) {
            rung.now.push_back(id);
        }
        drop(rung);
        self.inner.notify.notify_one();
    }

    /// Look at this id after `pause`; the earliest of several wins.
    pub fn ring_after(&self, id: Id, pause: Duration) {
        let at = Instant::now() + pause;
        let mut rung = self.rung();
        // What comes later than the id's own time, which stands already, moves no timer: nobody need be woken.
        let sooner = rung.later.get(&id).is_none_or(|before| at < *before);
        if sooner {
            rung.later.insert(id, at);
        }
        drop(rung);
        if sooner {
            self.inner.notify.notify_one();
        }
    }

    /// Ask the database at once what is due: for a doorbell whose id is unknown or was missed.
    pub fn poll(&self) {
        self.rung().poll = true;
        self.inner.notify.notify_one();
    }
}

/// Runs until shutdown: asks `due` at start and every `settings.poll_s`, and calls `handle` for every id that is due or was
/// rung, up to `concurrency` at once and never twice at once for the same id. An id whose handling fails or panics is tried
/// again with growing pauses; a ring tries it at once.
pub async fn run_reconciler<Id, D, DF, H, HF, E>(ctx: Context, wake: Wake<Id>, concurrency: usize, due: D, handle: H)
where
    Id: Eq + Hash + Clone + Debug + Send + 'static,
    D: Fn() -> DF + Send,
    DF: Future<Output = Result<Vec<Id>, E>> + Send,
    H: Fn(Id) -> HF + Send,
    HF: Future<Output = Result<(), E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
{
    let mut driver = Driver {
        concurrency: concurrency.max(1),
        ready: VecDeque::new(),
        waiting: HashSet::new(),
        running: HashMap::new(),
        again: HashSet::new(),
        failed: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut tick = tokio::time::interval(ctx.settings.poll_s.get());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poll_failures = Backoff::new(FIRST_RETRY, ctx.settings.poll_s.get());
    let mut poll_at: Option<Instant> = None;
    let mut asked = false;
    loop {
        asked |= driver.take_rings(&wake);
        while driver.running.len() < driver.concurrency
            && let Some(id) = driver.start()
        {
            let span = tracing::debug_span!("reconcile", id = ?id);
            let task = driver.tasks.spawn(handle(id.clone()).instrument(span));
            driver.running.insert(task.id(), id);
        }
        let next = [driver.next_timer(&wake), poll_at].into_iter().flatten().min();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let poll = tokio::select! {
            () = ctx.shutdown.cancelled() => break,
            Some(ended) = driver.tasks.join_next_with_id(), if !driver.tasks.is_empty() => {
                driver.ended(ended);
                false
            }
            () = std::future::ready(()), if asked => true,
            _ = tick.tick() => true,
            () = wake.inner.notify.notified() => false,
            () = timer => poll_at.is_some_and(|at| at <= Instant::now()),
        };
        if poll {
            (poll_at, asked) = (None, false);
            let found = tokio::select! {
                () = ctx.shutdown.cancelled() => break,
                found = due() => found,
            };
            match found {
                Ok(ids) => {
                    poll_failures.reset();
                    ids.into_iter().for_each(|id| driver.due(id));
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot ask what is due");
                    poll_at = Some(Instant::now() + poll_failures.next());
                }
            }
        }
    }
    let drained = tokio::time::timeout(DRAIN, async { while driver.tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(left = driver.tasks.len(), "handlers still ran at shutdown and were stopped");
        driver.tasks.shutdown().await;
    }
}

/// What the loop knows of its ids. An id is in `ready` or running or neither; `again` are running ids rung meanwhile.
struct Driver<Id, E> {
    concurrency: usize,
    ready: VecDeque<Id>,
    waiting: HashSet<Id>,
    running: HashMap<TaskId, Id>,
    again: HashSet<Id>,
    failed: HashMap<Id, Failure>,
    tasks: JoinSet<Result<(), E>>,
}

struct Failure {
    backoff: Backoff,
    at: Instant,
}

impl<Id: Eq + Hash + Clone + Debug + Send + 'static, E: std::error::Error + Send + 'static> Driver<Id, E> {
    /// Moves what was rung, and whose time has come, into the queue. Returns whether a poll was asked for.
    fn take_rings(&mut self, wake: &Wake<Id>) -> bool {
        let now = Instant::now();
        let (rung, poll) = {
            let mut r = wake.rung();
            r.known.clear();
            let mut ids: Vec<Id> = r.now.drain(..).collect();
            ids.extend(r.later.extract_if(|_, at| *at <= now).map(|(id, _)| id));
            (ids, std::mem::take(&mut r.poll))
        };
        rung.into_iter().for_each(|id| self.enqueue(id));
        let retry: Vec<Id> = self.failed.iter().filter(|(_, f)| f.at <= now).map(|(id, _)| id.clone()).collect();
        for id in retry {
            if let Some(f) = self.failed.get_mut(&id) {
                // Out of the timers until this try has ended.
                f.at = now + MAX_RETRY * 100;
            }
            self.enqueue(id);
        }
        poll
    }

    fn is_running(&self, id: &Id) -> bool {
        self.running.values().any(|r| r == id)
    }

    fn enqueue(&mut self, id: Id) {
        if self.is_running(&id) {
            self.again.insert(id);
        } else if self.waiting.insert(id.clone()) {
            self.ready.push_back(id);
        }
    }

    /// An id the database calls due. Unlike a ring it says nothing new about an id that runs or just failed.
    fn due(&mut self, id: Id) {
        if !self.is_running(&id) && !self.failed.contains_key(&id) {
            self.enqueue(id);
        }
    }

    fn start(&mut self) -> Option<Id> {
        let id = self.ready.pop_front()?;
        self.waiting.remove(&id);
        Some(id)
    }

    fn next_timer(&self, wake: &Wake<Id>) -> Option<Instant> {
        let later = wake.rung().later.values().min().copied();
        later.into_iter().chain(self.failed.values().map(|f| f.at)).min()
    }

    fn ended(&mut self, ended: Result<(TaskId, Result<(), E>), tokio::task::JoinError>) {
        let (task, failure) = match ended {
            Ok((task, Ok(()))) => (task, None),
            Ok((task, Err(error))) => (task, Some(chain(&error))),
            Err(join) => {
                let task = join.id();
                let said = join.try_into_panic().map(|p| panic_text(p.as_ref()));
                (task, Some(said.map_or_else(|_| "stopped".to_owned(), |t| format!("panicked: {t}"))))
            }
        };
        let Some(id) = self.running.remove(&task) else { return };
        match failure {
            None => drop(self.failed.remove(&id)),
            Some(error) => {
                let new = || Failure { backoff: Backoff::new(FIRST_RETRY, MAX_RETRY), at: Instant::now() };
                let f = self.failed.entry(id.clone()).or_insert_with(new);
                let pause = f.backoff.next();
                f.at = Instant::now() + pause;
                tracing::warn!(?id, error, retry_ms = pause.as_millis() as u64, "handling failed");
            }
        }
        if self.again.remove(&id) {
            self.enqueue(id);
        }
    }
}
