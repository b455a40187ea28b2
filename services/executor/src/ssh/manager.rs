//! Which hosts are connected to, and when: those with work first, those nobody looked at for long when there is room. Every
//! connection is a task of this one, holds the host's lease, and ends when the lease is lost.

use super::{
    Fault,
    bridge::{self, End},
    enrol::host_event,
};
use crate::shared::Shared;
use chrono::Utc;
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use windlass_bus::wake::Backoff;
use windlass_domain::{
    catalog::{Account, Host, Item, Kind},
    event::Severity,
};
use windlass_store::{Tx, catalog, events, leases, ssh};

const PREFIX: &str = "ssh/";

/// A connection of this process.
struct Link {
    host: String,
    stop: CancellationToken,
    /// The lease was taken; from now on it must be among those that are renewed.
    held: Arc<AtomicBool>,
}

/// How a connection came to its end.
enum Ended {
    /// Another executor carries the host.
    Elsewhere,
    Closed(End),
    Failed {
        fault: Fault,
        was_up: bool,
    },
}

struct Retry {
    at: Instant,
    pause: Backoff,
}

/// Runs until the service ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let settings = &shared.ctx.settings;
    let lease = settings.executor.lease_s.get();
    let every = settings.poll_s.get().min(lease / 3).max(Duration::from_millis(50));
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tasks: JoinSet<Ended> = JoinSet::new();
    let mut links: HashMap<Id, Link> = HashMap::new();
    let mut retries: HashMap<String, Retry> = HashMap::new();
    let mut renewed = Instant::now();
    loop {
        tokio::select! {
            () = shared.ctx.shutdown.cancelled() => break,
            () = shared.ssh.wake.notified() => {}
            Some(done) = tasks.join_next_with_id() => match done {
                Ok((id, ended)) => finish(&shared, &mut links, &mut retries, id, Some(ended)).await,
                Err(e) => finish(&shared, &mut links, &mut retries, e.id(), None).await,
            },
            _ = tick.tick() => {
                renewed = renew(&shared, &links, renewed, lease).await;
                if let Err(error) = look(&shared).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot read which hosts have work");
                }
            }
        }
        connect_due(&shared, &mut tasks, &mut links, &mut retries);
    }
    // The leases go free at once: another executor need not wait for their end.
    links.values().for_each(|l| l.stop.cancel());
    let _ = tokio::time::timeout(Duration::from_secs(3), async { while tasks.join_next().await.is_some() {} }).await;
}

/// Reads the catalog's hosts when it changed.
pub(super) async fn refresh_hosts(shared: &Shared) -> Result<(), windlass_store::Error> {
    let mut tx = shared.ctx.store.read().await?;
    let stamp = catalog::stamp(&mut tx).await?;
    if shared.ssh.lock().stamp == Some(stamp) {
        return Ok(());
    }
    let mut hosts: BTreeMap<String, Arc<Host>> = BTreeMap::new();
    let (mut projects, mut no_account) = (HashMap::new(), HashMap::new());
    for item in catalog::all(&mut tx, Kind::Host).await? {
        let Item::Host(mut h) = item else { continue };
        let Some(ssh) = h.ssh.take() else { continue };
        if let Some(name) = ssh.project.as_ref().filter(|p| !projects.contains_key(*p)) {
            projects.insert(name.clone(), accounts(&mut tx, name).await?);
        }
        let ssh = match ssh.resolved(ssh.project.as_ref().and_then(|p| projects.get(p))) {
            Ok(resolved) => Box::new(resolved),
            Err(why) => {
                no_account.insert(h.name.clone(), why);
                ssh
            }
        };
        h.ssh = Some(ssh);
        hosts.insert(h.name.clone(), Arc::new(h));
    }
    drop(tx);
    let mut inner = shared.ssh.lock();
    inner.status.retain(|h, _| hosts.contains_key(h));
    inner.hosts = hosts;
    inner.no_account = no_account;
    inner.stamp = Some(stamp);
    Ok(())
}

/// The execution accounts of a project; none where there is no such project.
pub(crate) async fn accounts(tx: &mut Tx, project: &str) -> Result<BTreeMap<String, Account>, windlass_store::Error> {
    Ok(match catalog::get(tx, Kind::Project, project).await?.map(|e| e.item) {
        Some(Item::Project(p)) => p.accounts,
        _ => BTreeMap::new(),
    })
}

/// Which hosts have work, and what other executors know.
async fn look(shared: &Shared) -> Result<(), windlass_store::Error> {
    refresh_hosts(shared).await?;
    if shared.ssh.lock().hosts.is_empty() {
        return Ok(());
    }
    let mut at_work = HashSet::new();
    let mut tx = shared.ctx.store.read().await?;
    for pool in &shared.ctx.settings.executor.pools {
        at_work.extend(ssh::hosts_at_work(&mut tx, pool).await?);
    }
    let known = ssh::all(&mut tx).await?;
    let settings = &shared.ctx.settings.ssh;
    let check = settings.check_s.get();
    // One that was not reached is looked at again sooner: it may have been one bad moment.
    let good_for = |failed: bool| if failed { check.min(settings.retry_max_s.get()) } else { check };
    let mut inner = shared.ssh.lock();
    let hosts = &inner.hosts;
    at_work.retain(|h| hosts.contains_key(h));
    if !check.is_zero() {
        // Due for a look: asked for once, which is as long as a look takes.
        let fresh: HashSet<&str> = known
            .iter()
            .filter(|k| (Utc::now() - k.checked_at).to_std().is_ok_and(|age| age < good_for(k.error.is_some())))
            .map(|k| k.host.as_str())
            .collect();
        let due: Vec<String> = hosts.keys().filter(|h| !fresh.contains(h.as_str())).cloned().collect();
        for h in due {
            inner.asked.entry(h).or_insert_with(Instant::now);
        }
    }
    inner.at_work = at_work;
    let old = |at: &Instant| at.elapsed() >= super::ASKED;
    inner.asked.retain(|_, at| !old(at));
    Ok(())
}

/// Renews what is held. A connection whose lease is gone ends, as do all when the database has not answered for their time.
async fn renew(shared: &Shared, links: &HashMap<Id, Link>, renewed: Instant, ttl: Duration) -> Instant {
    let held: Vec<&Link> = links.values().filter(|l| l.held.load(Ordering::SeqCst)).collect();
    let now = Instant::now();
    if held.is_empty() {
        return now;
    }
    match leases::renew_all(&shared.ctx.store, PREFIX, &shared.ctx.owner, ttl).await {
        Ok(names) => {
            let names: HashSet<&str> = names.iter().filter_map(|n| n.strip_prefix(PREFIX)).collect();
            for l in held.into_iter().filter(|l| !names.contains(l.host.as_str())) {
                tracing::warn!(host = l.host, "the lease of a host was lost; its connection ends");
                l.stop.cancel();
            }
            now
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the leases of hosts were not renewed");
            if renewed.elapsed() >= ttl {
                held.iter().for_each(|l| l.stop.cancel());
            }
            renewed
        }
    }
}

fn connect_due(
    shared: &Arc<Shared>,
    tasks: &mut JoinSet<Ended>,
    links: &mut HashMap<Id, Link>,
    retries: &mut HashMap<String, Retry>,
) {
    let now = Instant::now();
    let open: HashSet<&str> = links.values().map(|l| l.host.as_str()).collect();
    let mut wanted: Vec<(bool, Arc<Host>)> = {
        let inner = shared.ssh.lock();
        let names = inner.at_work.iter().chain(inner.asked.keys()).collect::<HashSet<_>>();
        let due = names.into_iter().filter(|h| !open.contains(h.as_str()));
        let due = due.filter(|h| retries.get(*h).is_none_or(|r| r.at <= now));
        due.filter_map(|h| Some((!inner.at_work.contains(h), Arc::clone(inner.hosts.get(h)?)))).collect()
    };
    wanted.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    let mut room = shared.ctx.settings.ssh.max_connections.saturating_sub(links.len());
    if wanted.len() > room {
        // Those nobody needs make room; the next turn finds it.
        let spare = links.values().filter(|l| !shared.ssh.wants(&l.host));
        spare.take(wanted.len() - room).for_each(|l| l.stop.cancel());
    }
    for (_, host) in wanted {
        if room == 0 {
            break;
        }
        room -= 1;
        let (stop, held) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let link = Link { host: host.name.clone(), stop: stop.clone(), held: Arc::clone(&held) };
        let task = tasks.spawn(hold(Arc::clone(shared), host, stop, held));
        links.insert(task.id(), link);
    }
}

/// One connection, from taking the lease to giving it back.
async fn hold(shared: Arc<Shared>, host: Arc<Host>, stop: CancellationToken, held: Arc<AtomicBool>) -> Ended {
    let (name, ttl) = (format!("{PREFIX}{}", host.name), shared.ctx.settings.executor.lease_s.get());
    let lease = match leases::acquire(&shared.ctx.store, &name, &shared.ctx.owner, ttl).await {
        Ok(Some(l)) => l,
        Ok(None) => return Ended::Elsewhere,
        Err(e) => return Ended::Failed { fault: e.into(), was_up: false },
    };
    held.store(true, Ordering::SeqCst);
    let up = AtomicBool::new(false);
    let met = || {
        up.store(true, Ordering::SeqCst);
        shared.ssh.set_status(&host.name, None);
    };
    let ended = tokio::select! {
        ended = bridge::carry(&shared, &host, &stop, met) => ended,
        // Also while it is still connecting.
        () = stop.cancelled() => Ok(End::Stopped),
    };
    held.store(false, Ordering::SeqCst);
    if let Err(error) = leases::release(&shared.ctx.store, &lease).await {
        tracing::debug!(host = host.name, error = &error as &dyn std::error::Error, "lease not released; it expires");
    }
    match ended {
        Ok(end) => Ended::Closed(end),
        Err(fault) => Ended::Failed { fault, was_up: up.load(Ordering::SeqCst) },
    }
}

async fn finish(
    shared: &Shared,
    links: &mut HashMap<Id, Link>,
    retries: &mut HashMap<String, Retry>,
    id: Id,
    ended: Option<Ended>,
) {
    let Some(Link { host, .. }) = links.remove(&id) else { return };
    let settings = &shared.ctx.settings.ssh;
    let (first, max) = (settings.retry_first_s.get(), settings.retry_max_s.get());
    let retry =
        retries.entry(host.clone()).or_insert_with(|| Retry { at: Instant::now(), pause: Backoff::new(first, max) });
    match ended {
        Some(Ended::Closed(End::Idle | End::Stopped | End::Changed)) => {
            retry.pause.reset();
            retry.at = Instant::now();
            let mut inner = shared.ssh.lock();
            if !inner.at_work.contains(&host) {
                inner.asked.remove(&host);
            }
        }
        Some(Ended::Elsewhere) => {
            retry.at = Instant::now() + shared.ctx.settings.executor.lease_s.get() / 3;
            // Its failures are ours to tell.
            let known = async { ssh::get(&mut shared.ctx.store.read().await?, &host).await };
            if let Ok(Some(k)) = known.await {
                shared.ssh.set_status(&host, k.error);
            }
        }
        Some(Ended::Failed { fault, was_up }) => {
            if was_up {
                retry.pause.reset();
            }
            retry.at = Instant::now() + retry.pause.next();
            failed(shared, &host, &fault).await;
        }
        None => {
            tracing::error!(host, "a connection broke");
            retry.at = Instant::now() + retry.pause.next();
        }
    }
}

/// Says once why a host is not reached; loudly when somebody may be in between.
async fn failed(shared: &Shared, host: &str, fault: &Fault) {
    let story = crate::agents::cut(fault.story(), 1000);
    tracing::warn!(host, error = story, "not reached by SSH");
    let news = shared.ssh.set_status(host, Some(story.clone()));
    let saved = async {
        let mut tx = shared.ctx.store.write().await?;
        let now = tx.now().await?;
        ssh::put(&mut tx, host, None, Some(&story), now).await?;
        if news && fault.is_host_key() {
            let payload = json!({ "host": host, "reason": &story });
            events::append(&mut tx, host_event(host, "agent.host_key_refused", Severity::Alert, payload)).await?;
        }
        tx.commit().await
    };
    if let Err(error) = saved.await {
        tracing::warn!(
            host,
            error = &error as &dyn std::error::Error,
            "why a host is not reached was not written down"
        );
    }
}
