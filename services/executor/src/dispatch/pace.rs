//! The pace of a wave: when each host may start. Drawn from the work and the host alone, so that a new owner keeps it.

use chrono::TimeDelta;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use windlass_domain::{
    Timestamp,
    work::{Stagger, WaveHost},
};

/// Earliest starts by host, and what must lie between two of them.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    every: TimeDelta,
    from: BTreeMap<String, Timestamp>,
}

impl Pace {
    /// Host number `i` starts `i` times `every_s` after the work was made, or up to `jitter_s` later.
    pub(crate) fn of(work: &str, made: Timestamp, hosts: &[WaveHost], s: Stagger) -> Pace {
        let every = TimeDelta::seconds(i64::from(s.every_s));
        let mut offset = TimeDelta::zero();
        let mut from = BTreeMap::new();
        for h in hosts {
            let at = offset + draw(work, &h.host, s.jitter_s);
            from.insert(h.host.clone(), made.checked_add_signed(at).unwrap_or(made));
            offset += every;
        }
        Pace { every, from }
    }

    /// When this host may start, if the last one before it started at `last`. Hosts that are late (a pause, `parallel`) do not
    /// start all at once.
    pub(crate) fn due(&self, host: &str, last: Option<Timestamp>) -> Timestamp {
        let planned = self.from.get(host).copied().unwrap_or_default();
        last.and_then(|l| l.checked_add_signed(self.every)).map_or(planned, |gap| gap.max(planned))
    }
}

fn draw(work: &str, host: &str, jitter_s: u32) -> TimeDelta {
    let digest = Sha256::digest(format!("{work}/{host}"));
    let drawn = digest.iter().take(8).fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let ms = drawn % (u64::from(jitter_s) * 1000 + 1);
    TimeDelta::milliseconds(i64::try_from(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(n: usize) -> Vec<WaveHost> {
        (0..n).map(|i| WaveHost { host: format!("h{i}"), attempt: 1, start_at: 0 }).collect()
    }

    #[test]
    fn starts_are_spread_and_stay_the_same() {
        let made: Timestamp = "2026-11-21T00:00:00Z".parse().expect("time");
        let s = Stagger { every_s: 5, jitter_s: 3 };
        let (a, b) = (Pace::of("w", made, &hosts(20), s), Pace::of("w", made, &hosts(20), s));
        let mut late = 0;
        for i in 0..20_i32 {
            let host = format!("h{i}");
            let at = a.due(&host, None);
            assert_eq!(at, b.due(&host, None), "a new owner draws the same");
            let from = made + TimeDelta::seconds(5 * i64::from(i));
            assert!(at >= from && at <= from + TimeDelta::seconds(3), "{host} at {at}");
            late += i32::from(at > from);
        }
        assert!(late > 10, "there is jitter");
        let last = made + TimeDelta::seconds(1000);
        assert_eq!(a.due("h3", Some(last)), last + TimeDelta::seconds(5), "late hosts do not start at once");
        let other = Pace::of("v", made, &hosts(20), s);
        assert!((0..20).any(|i| other.due(&format!("h{i}"), None) != a.due(&format!("h{i}"), None)));
    }
}
