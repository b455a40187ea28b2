//! The bound on commands that wait for the scheduler. What is refused here was never accepted: nothing of it is stored.
//!
//! To count the queue for each command would cost the more the fuller it is, and on SQLite it would cost the one writer's turn.
//! So a process counts now and then, and between two counts only what it lets in itself; what the scheduler takes off meanwhile
//! is seen at the next count. It counts when it has let in its *allowance* (half a percent of the bound, 256 at most), and when
//! the queue seems full, though not more often than every [`AGAIN`].
//!
//! The bound holds for one api on SQLite. With more of them: whoever counted last saw all there was, and since then no other has
//! let in more than its allowance. So `n` apis go beyond the bound by `n - 1` allowances at most, and on PostgreSQL also by the
//! transactions that were open during a count (`db.rs`: 16 a process).

use crate::problem::{Fail, Problem};
use prometheus::IntCounterVec;
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use windlass_contracts::command::Verb;
use windlass_runtime::Health;
use windlass_store::{Tx, commands};

/// Between two counts of a queue that seems full.
const AGAIN: Duration = Duration::from_millis(100);
const MOST_ALLOWANCE: u64 = 256;

pub(crate) struct Queue {
    most: u64,
    seen: Mutex<Seen>,
    refused: IntCounterVec,
}

/// What a process knows of the queue.
#[derive(Debug)]
struct Seen {
    allowance: u64,
    /// Commands this process has let in, ever. One whose transaction failed after all is corrected by the next count.
    let_in: u64,
    /// Counts begun, ever.
    begun: u64,
    last: Option<Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    number: u64,
    at: Instant,
    /// `let_in` when it began: what came later may be missing in it.
    let_in: u64,
    waiting: u64,
}

impl Queue {
    pub(crate) fn new(most: u64, health: &Health) -> Queue {
        let bound = health.gauge("windlass_commands_bound", "Accepted commands that may wait", &[]);
        bound.with_label_values::<&str>(&[]).set(i64::try_from(most).unwrap_or(i64::MAX));
        let refused =
            health.counter("windlass_api_commands_refused_total", "Commands refused because too many wait", &[]);
        // A counter that begins with its first refusal would hide it from `increase`.
        refused.with_label_values::<&str>(&[]).inc_by(0);
        Queue { most, seen: Mutex::new(Seen::new(most)), refused }
    }

    /// How many may wait when this verb is asked for: what reduces harm has a tenth more, so that it gets through a queue that
    /// is full of all else, and is bounded too.
    fn most_for(&self, verb: &Verb) -> u64 {
        if verb.reduces_harm() { self.most.saturating_add((self.most / 10).max(1)) } else { self.most }
    }

    /// Lets in the command that this transaction has just put into the queue, or says that there is no room for it; then the
    /// transaction must not be committed.
    pub(crate) async fn admit(&self, tx: &mut Tx, verb: &Verb) -> Result<(), Fail> {
        let most = self.most_for(verb);
        let begun = self.seen().begin(most, Instant::now());
        if let Some(count) = begun {
            // The command's own row is among them.
            let waiting = commands::waiting(tx).await?.saturating_sub(1);
            self.seen().end(Count { waiting, ..count });
        }
        let taken = self.seen().take(most);
        taken.map_err(|waiting| {
            self.refused.with_label_values::<&str>(&[]).inc();
            Problem::queue_full(waiting, most).into()
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn new(most: u64) -> Seen {
        Seen { allowance: (most / 200).clamp(1, MOST_ALLOWANCE), let_in: 0, begun: 0, last: None }
    }

    /// How many wait as far as is known: never less than there are, but for what other processes let in.
    fn waiting(&self) -> u64 {
        self.last.map_or(0, |c| c.waiting.saturating_add(self.let_in - c.let_in))
    }

    /// A count to be made now, if one is due.
    fn begin(&mut self, most: u64, now: Instant) -> Option<Count> {
        let due = self.last.is_none_or(|c| {
            let old = now.saturating_duration_since(c.at) >= AGAIN;
            self.let_in - c.let_in >= self.allowance || (old && self.waiting() >= most)
        });
        if !due {
            return None;
        }
        self.begun += 1;
        Some(Count { number: self.begun, at: now, let_in: self.let_in, waiting: 0 })
    }

    /// Of two counts at the same time the one that began later holds.
    fn end(&mut self, count: Count) {
        if self.last.is_none_or(|c| c.number < count.number) {
            self.last = Some(count);
        }
    }

    /// `Err` is how many wait.
    fn take(&mut self, most: u64) -> Result<(), u64> {
        let waiting = self.waiting();
        if waiting >= most {
            return Err(waiting);
        }
        self.let_in += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`Queue::admit`] does, with a number in the table's place.
    fn admit(seen: &mut Seen, table: &mut u64, most: u64, now: Instant) -> bool {
        if let Some(count) = seen.begin(most, now) {
            seen.end(Count { waiting: *table, ..count });
        }
        let taken = seen.take(most).is_ok();
        *table += u64::from(taken);
        taken
    }

    #[test]
    fn one_process_holds_the_bound_and_several_its_slack() {
        for (most, apis) in [(1, 1), (5, 1), (5, 3), (1_000, 1), (1_000, 4), (50_000, 1), (50_000, 3)] {
            let mut all: Vec<Seen> = (0..apis).map(|_| Seen::new(most)).collect();
            let slack = all[0].allowance * (apis - 1);
            let (mut table, mut highest, mut refused) = (0u64, 0u64, 0u64);
            let (mut now, mut random) = (Instant::now(), 1u64);
            for i in 0..8 * most.max(1_000) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let dice = random >> 33;
                // Long runs of one api, then all of them in turn; the scheduler works in fits.
                let which = if (i / 97).is_multiple_of(2) { i / 97 } else { dice };
                now += Duration::from_micros(dice % 2_000);
                if i / (most + 50) % 4 == 3 {
                    table = table.saturating_sub(dice % 4);
                }
                let at = usize::try_from(which % apis).expect("small");
                refused += u64::from(!admit(&mut all[at], &mut table, most, now));
                highest = highest.max(table);
            }
            assert!(highest <= most + slack, "{highest} waited, {most} may, with {apis} apis and a slack of {slack}");
            assert!(highest >= most && refused > 0, "{most} {apis}: the bound was never met: {highest}");
        }
    }

    #[test]
    fn a_full_queue_is_counted_again_when_it_may_have_drained() {
        let (mut s, t) = (Seen::new(2), Instant::now());
        let mut table = 0;
        assert_eq!([(); 3].map(|()| admit(&mut s, &mut table, 2, t)), [true, true, false]);
        table = 0;
        assert!(!admit(&mut s, &mut table, 2, t + AGAIN / 2), "counted a moment ago");
        assert!(admit(&mut s, &mut table, 2, t + AGAIN * 2));
    }

    #[test]
    fn an_older_count_does_not_replace_a_newer_one() {
        let (mut s, t) = (Seen::new(10), Instant::now());
        let first = s.begin(10, t).expect("due");
        let second = s.begin(10, t).expect("due");
        s.end(Count { waiting: 9, ..second });
        s.end(Count { waiting: 1, ..first });
        assert_eq!((s.waiting(), s.take(10), s.take(10)), (9, Ok(()), Err(10)));
    }

    #[test]
    fn a_long_queue_is_counted_once_an_allowance() {
        let mut s = Seen::new(50_000);
        let (mut table, mut counts, t) = (0, 0, Instant::now());
        for _ in 0..10_000 {
            let before = s.begun;
            assert!(admit(&mut s, &mut table, 50_000, t));
            counts += s.begun - before;
        }
        assert_eq!(counts, 10_000 / s.allowance);
    }
}
