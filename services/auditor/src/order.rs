//! In what order waiting events become leaves: each stream by its own numbers, without a gap and without a repeat.

use std::collections::HashMap;
use windlass_domain::event::Event;

/// The aggregate and its id.
pub(crate) type Stream = (String, String);

pub(crate) fn stream(e: &Event) -> Stream {
    (e.aggregate.clone(), e.aggregate_id.clone())
}

/// A break in a stream's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anomaly {
    pub(crate) stream: Stream,
    pub(crate) expected: u64,
    pub(crate) got: u64,
}

impl Anomaly {
    /// `gap`: numbers were skipped; `repeat`: one came that had its turn before.
    pub(crate) fn kind(&self) -> &'static str {
        if self.got > self.expected { "gap" } else { "repeat" }
    }
}

/// What to do with a batch.
#[derive(Debug, Default)]
pub(crate) struct Arranged {
    /// To be appended, in this order.
    pub(crate) take: Vec<Event>,
    /// Alarms that the taken ones raise.
    pub(crate) anomalies: Vec<Anomaly>,
    /// Streams whose events wait for a missing predecessor.
    pub(crate) held: Vec<Stream>,
}

/// Brings a batch into order. `last` is the number of each stream's last leaf (0: none). The events of a stream keep the
/// places that the stream had in the batch, sorted among themselves. Behind a gap a stream is held, unless `overdue` says that
/// it was held long enough: then its events are taken with an alarm, because an event must never be lost to the trail.
pub(crate) fn arrange(batch: Vec<Event>, last: &HashMap<Stream, u64>, overdue: impl Fn(&Stream) -> bool) -> Arranged {
    let places: Vec<Stream> = batch.iter().map(stream).collect();
    let mut streams: HashMap<Stream, Vec<Event>> = HashMap::new();
    for e in batch {
        streams.entry(stream(&e)).or_default().push(e);
    }
    for events in streams.values_mut() {
        // Taken from the end below.
        events.sort_by_key(|e| std::cmp::Reverse(e.agg_seq));
    }
    let mut next: HashMap<Stream, u64> = HashMap::new();
    let mut out = Arranged::default();
    for place in places {
        if out.held.contains(&place) {
            continue;
        }
        let Some(e) = streams.get_mut(&place).and_then(Vec::pop) else { continue };
        let next = next.entry(place.clone()).or_insert_with(|| last.get(&place).copied().unwrap_or(0) + 1);
        if e.agg_seq != *next {
            if e.agg_seq > *next && !overdue(&place) {
                out.held.push(place);
                continue;
            }
            out.anomalies.push(Anomaly { stream: place, expected: *next, got: e.agg_seq });
        }
        *next = (*next).max(e.agg_seq + 1);
        out.take.push(e);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_domain::event::Severity;

    fn event(id: &str, agg_seq: u64) -> Event {
        Event {
            id: uuid::Uuid::now_v7().into(),
            aggregate: "deployment".into(),
            aggregate_id: id.into(),
            agg_seq,
            what: "x".into(),
            project: None,
            environment: None,
            severity: Severity::Info,
            actor: "service:test".into(),
            at: "2026-11-21T00:00:00Z".parse().expect("time"),
            payload: serde_json::Value::Null,
            trace: None,
        }
    }
    fn places(a: &Arranged) -> Vec<(&str, u64)> {
        a.take.iter().map(|e| (e.aggregate_id.as_str(), e.agg_seq)).collect()
    }
    fn key(id: &str) -> Stream {
        ("deployment".into(), id.into())
    }

    #[test]
    fn each_stream_is_sorted_in_its_own_places() {
        let batch = vec![event("a", 3), event("b", 8), event("a", 1), event("a", 2)];
        let out = arrange(batch, &HashMap::from([(key("b"), 7)]), |_| false);
        assert_eq!(places(&out), [("a", 1), ("b", 8), ("a", 2), ("a", 3)]);
        assert!(out.anomalies.is_empty() && out.held.is_empty());
    }

    #[test]
    fn a_gap_holds_its_stream_alone_until_it_is_overdue() {
        let batch = || vec![event("a", 1), event("a", 3), event("b", 1), event("a", 4)];
        let out = arrange(batch(), &HashMap::new(), |_| false);
        assert_eq!(places(&out), [("a", 1), ("b", 1)]);
        assert_eq!(out.held, [key("a")]);
        let out = arrange(batch(), &HashMap::new(), |_| true);
        assert_eq!(places(&out), [("a", 1), ("a", 3), ("b", 1), ("a", 4)]);
        assert_eq!(out.anomalies, [Anomaly { stream: key("a"), expected: 2, got: 3 }]);
        assert_eq!(out.anomalies[0].kind(), "gap");
    }

    #[test]
    fn a_repeat_is_taken_with_an_alarm() {
        let out = arrange(vec![event("a", 2), event("a", 4)], &HashMap::from([(key("a"), 3)]), |_| false);
        assert_eq!(places(&out), [("a", 2), ("a", 4)]);
        assert_eq!(out.anomalies, [Anomaly { stream: key("a"), expected: 4, got: 2 }]);
        assert_eq!(out.anomalies[0].kind(), "repeat");
    }
}
