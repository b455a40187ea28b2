//! Seats of live streams: so many in one process, a quarter of them for one token, so that no page that opens one after the
//! other takes those of all.

use crate::problem::Problem;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use windlass_domain::ids::TokenId;

#[derive(Debug)]
pub(crate) struct Seats {
    most: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    by_token: HashMap<TokenId, u32>,
}

/// One stream's place, free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    of: Arc<Seats>,
    token: TokenId,
}

impl Seats {
    pub(crate) fn new(most: u32) -> Arc<Seats> {
        Arc::new(Seats { most, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a stream of this token. 429: the token has its share; 503: all are taken.
    pub(crate) fn take(self: &Arc<Self>, token: TokenId) -> Result<Seat, Problem> {
        let mut taken = self.lock();
        if taken.all >= self.most {
            return Err(Problem::streams_full(self.most));
        }
        let share = self.most / 4;
        let mine = taken.by_token.get(&token).copied().unwrap_or(0);
        if mine >= share {
            return Err(Problem::streams_of_token(share));
        }
        taken.by_token.insert(token, mine + 1);
        taken.all += 1;
        Ok(Seat { of: Arc::clone(self), token })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        taken.all = taken.all.saturating_sub(1);
        // Tokens without a stream are forgotten.
        let left = taken.by_token.get(&self.token).map_or(0, |n| n.saturating_sub(1));
        match left {
            0 => taken.by_token.remove(&self.token),
            n => taken.by_token.insert(self.token, n),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_token_has_a_quarter_and_what_is_dropped_is_free_again() {
        let seats = Seats::new(8);
        let tokens: Vec<TokenId> = (0..5).map(|n| TokenId(Uuid::from_u128(n))).collect();
        let mut held: Vec<Seat> = (0..2).map(|_| seats.take(tokens[0]).expect("a seat")).collect();
        let refused = seats.take(tokens[0]).expect_err("two are a quarter of eight");
        assert_eq!((refused.status.as_u16(), refused.retry_after.is_some()), (429, true));
        for t in &tokens[1..4] {
            held.extend((0..2).map(|_| seats.take(*t).expect("a seat")));
        }
        let refused = seats.take(tokens[4]).expect_err("all are taken");
        assert_eq!((refused.status.as_u16(), refused.retry_after.is_some()), (503, true));
        held.pop();
        held.push(seats.take(tokens[4]).expect("one is free again"));
        drop(held);
        let left = seats.lock();
        assert_eq!((left.all, left.by_token.len()), (0, 0));
    }
}
