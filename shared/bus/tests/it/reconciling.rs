//! The reconciler: coalescing, one run an id at a time, retries, timers, polls. All of it works without a broker.

use crate::support::{NOWHERE, SOON, context, end};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::{Semaphore, mpsc};
use windlass_bus::{Wake, run_reconciler};
use windlass_testkit::{Db, eventually};

#[derive(Debug, thiserror::Error)]
#[error("it failed")]
struct Failed;

#[derive(Default)]
struct Seen {
    running: HashMap<u32, u32>,
    most: u32,
    runs: HashMap<u32, u32>,
    overlap: bool,
}

#[tokio::test]
async fn an_id_is_never_handled_twice_at_once_and_a_ring_meanwhile_runs_it_once_more() {
    let db = Db::sqlite();
    let (ctx, _dir) = context(db.url(), NOWHERE).await;
    let wake: Wake<u32> = Wake::new();
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let (entered, mut enter) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let (s, g) = (Arc::clone(&seen), Arc::clone(&gate));
    let handle = move |id: u32| {
        let (s, g, entered) = (Arc::clone(&s), Arc::clone(&g), entered.clone());
        async move {
            {
                let mut seen = s.lock().expect("lock");
                *seen.runs.entry(id).or_default() += 1;
                let n = seen.running.entry(id).or_default();
                *n += 1;
                let twice = *n > 1;
                seen.overlap |= twice;
                seen.most = seen.most.max(seen.running.values().sum());
            }
            entered.send(id).expect("sends");
            g.acquire().await.expect("gate").forget();
            *s.lock().expect("lock").running.entry(id).or_default() -= 1;
            Ok::<(), Failed>(())
        }
    };
    ctx.spawn(run_reconciler(ctx.clone(), wake.clone(), 2, || async { Ok(vec![]) }, handle));
    wake.ring(1);
    assert_eq!(enter.recv().await, Some(1));
    for _ in 0..50 {
        wake.ring(1);
        wake.ring(2);
        wake.ring(3);
    }
    // 2 takes the second place, although 1 was rung before it; 3 and the second run of 1 wait.
    let second = enter.recv().await.expect("enters");
    assert_eq!(second, 2);
    gate.add_permits(4);
    let mut rest = vec![enter.recv().await.expect("enters"), enter.recv().await.expect("enters"), second];
    rest.sort_unstable();
    assert_eq!(rest, [1, 2, 3]);
    eventually(SOON, "all have ended", async || {
        seen.lock().expect("lock").running.values().all(|n| *n == 0).then_some(())
    })
    .await;
    end(ctx).await;
    let seen = seen.lock().expect("lock");
    assert!(!seen.overlap);
    assert_eq!(seen.most, 2);
    assert_eq!(seen.runs, [(1, 2), (2, 1), (3, 1)].into());
}

#[tokio::test]
async fn failures_and_panics_are_tried_again_and_polls_find_what_was_not_rung() {
    let db = Db::sqlite();
    let (ctx, _dir) = context(db.url(), NOWHERE).await;
    assert!(!ctx.bus.is_up());
    let wake: Wake<u32> = Wake::new();
    let runs: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let r = Arc::clone(&runs);
    let handle = move |id: u32| {
        let n = {
            let mut runs = r.lock().expect("lock");
            let n = runs.entry(id).or_default();
            *n += 1;
            *n
        };
        async move {
            match (id, n) {
                (1, 1 | 2) => Err(Failed),
                (2, 1) => panic!("poisoned"),
                _ => Ok(()),
            }
        }
    };
    let polls = Arc::new(Mutex::new(0));
    let p = Arc::clone(&polls);
    let due = move || {
        let n = {
            let mut n = p.lock().expect("lock");
            *n += 1;
            *n
        };
        // The first poll fails; a later one finds 3, once.
        async move {
            match n {
                1 => Err(Failed),
                2 => Ok(vec![3]),
                _ => Ok(vec![]),
            }
        }
    };
    ctx.spawn(run_reconciler(ctx.clone(), wake.clone(), 4, due, handle));
    wake.ring(1);
    wake.ring(2);
    wake.ring_after(4, Duration::from_millis(300));
    wake.ring_after(4, Duration::from_secs(3600));
    wake.ring_after(5, Duration::from_secs(3600));
    wake.ring_after(5, Duration::from_millis(300));
    eventually(SOON, "every id was handled to its end", async || {
        let runs = runs.lock().expect("lock");
        (*runs == [(1, 3), (2, 2), (3, 1), (4, 1), (5, 1)].into()).then_some(())
    })
    .await;
    let before = *polls.lock().expect("lock");
    wake.poll();
    eventually(SOON, "polls go on", async || (*polls.lock().expect("lock") > before).then_some(())).await;
    end(ctx).await;
}

#[tokio::test]
async fn an_id_that_keeps_failing_is_not_hammered_by_the_poll() {
    let db = Db::sqlite();
    let (mut ctx, _dir) = context(db.url(), NOWHERE).await;
    let mut settings = (*ctx.settings).clone();
    settings.poll_s = Duration::from_millis(5).into();
    ctx.settings = Arc::new(settings);
    let runs = Arc::new(Mutex::new(0u32));
    let polls = Arc::new(Mutex::new(0u32));
    let (r, p) = (Arc::clone(&runs), Arc::clone(&polls));
    let handle = move |_: u32| {
        *r.lock().expect("lock") += 1;
        async { Err::<(), _>(Failed) }
    };
    let due = move || {
        *p.lock().expect("lock") += 1;
        async { Ok(vec![1]) }
    };
    ctx.spawn(run_reconciler(ctx.clone(), Wake::new(), 1, due, handle));
    eventually(SOON, "a hundred polls", async || (*polls.lock().expect("lock") >= 100).then_some(())).await;
    let n = *runs.lock().expect("lock");
    assert!((1..=8).contains(&n), "{n} runs in a hundred polls");
    end(ctx).await;
}
