//! Rate limits: token buckets in memory, a bounded number of them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Buckets kept at once; beyond it the full ones are forgotten, then all.
const MOST: usize = 20_000;

/// A bucket a key.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    rate: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(crate) fn new(rate: f64, burst: f64) -> Self {
        Limiter { rate: rate.max(0.001), burst: burst.max(1.0), buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one token. `Err` is after how many seconds there will be one.
    pub(crate) fn take(&self, key: K) -> Result<(), u64> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> Result<(), u64> {
        let mut all = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&key) {
            let (rate, burst) = (self.rate, self.burst);
            all.retain(|_, b| b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * rate < burst);
            if all.len() >= MOST {
                all.clear();
            }
        }
        let b = all.entry(key).or_insert(Bucket { tokens: self.burst, at: now });
        let grown = b.tokens + now.saturating_duration_since(b.at).as_secs_f64() * self.rate;
        *b = Bucket { tokens: grown.min(self.burst), at: now };
        if b.tokens < 1.0 {
            return Err(((1.0 - b.tokens) / self.rate).ceil().max(1.0) as u64);
        }
        b.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_then_the_rate() {
        let l = Limiter::new(2.0, 3.0);
        let t = Instant::now();
        assert_eq!([(); 4].map(|()| l.take_at("a", t)), [Ok(()), Ok(()), Ok(()), Err(1)]);
        assert_eq!(l.take_at("b", t), Ok(()));
        assert_eq!(l.take_at("a", t + Duration::from_millis(500)), Ok(()));
        assert_eq!(l.take_at("a", t + Duration::from_millis(500)), Err(1));
    }

    #[test]
    fn the_number_of_buckets_is_bounded() {
        let l = Limiter::new(1.0, 1.0);
        let t = Instant::now();
        for i in 0..MOST * 2 {
            assert_eq!(l.take_at(i, t), Ok(()));
        }
        assert!(l.buckets.lock().expect("lock").len() <= MOST);
    }
}
