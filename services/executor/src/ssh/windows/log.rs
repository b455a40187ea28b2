//! A task's log on its way from the host to the executors that store it: numbered as it lies on the host, within the
//! receiver's credit, sent again until acknowledged. The far half bounds a task's log, so all of it fits in memory.

use super::wire::LogLine;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{collections::VecDeque, time::Duration};
use windlass_contracts::frames::{LogFrame, Stream};
use windlass_domain::{Timestamp, ids::TaskId};

/// What may be under way before the receiver has said anything.
const FIRST_WINDOW: u64 = 1 << 20;
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);
const DAMAGED: &str = "[a piece of output was damaged on the host]\n";

#[derive(Debug)]
pub(super) struct Log {
    task: TaskId,
    /// Not acknowledged; the first `sent` of them are under way.
    waiting: VecDeque<LogFrame>,
    sent: usize,
    next: u64,
    bytes: u64,
    window: u64,
    again_at: Duration,
    pause: Duration,
}

impl Log {
    pub(super) fn new(task: TaskId, now: Duration) -> Log {
        let (window, again_at, pause) = (FIRST_WINDOW, now + RETRY, RETRY);
        Log { task, waiting: VecDeque::new(), sent: 0, next: 0, bytes: 0, window, again_at, pause }
    }

    /// One more line of the host's file. One that does not read says so under its number: a gap would hold up all others.
    pub(super) fn push(&mut self, line: Option<LogLine>, now: Timestamp) {
        let read = line.and_then(|l| STANDARD.decode(&l.data).ok().map(|data| (l, data)));
        let (l, data) = read.unwrap_or_else(|| {
            let data = STANDARD.encode(DAMAGED);
            (LogLine { step: 0, stream: Stream::Note, at: now, data }, DAMAGED.as_bytes().to_vec())
        });
        self.bytes += data.len() as u64;
        let crc = crc32c::crc32c(&data);
        let seq = self.next;
        self.next += 1;
        let (step, stream, at) = (l.step, l.stream, l.at);
        self.waiting.push_back(LogFrame { task: self.task, seq, step, stream, at, data: l.data, crc });
    }

    /// What is to be sent now.
    pub(super) fn due(&mut self, now: Duration) -> Vec<LogFrame> {
        let late = now >= self.again_at;
        let mut out = Vec::new();
        if late {
            out.extend(self.waiting.iter().take(self.sent).cloned());
            self.again_at = now + self.pause;
            self.pause = (self.pause * 2).min(RETRY_MAX);
        }
        let mut flying: u64 = self.waiting.iter().take(self.sent).map(size).sum();
        // A credit of nothing whose end was lost would be for ever: one frame asks again.
        while flying < self.window || (late && self.sent == 0) {
            let Some(f) = self.waiting.get(self.sent) else { break };
            if self.sent == 0 {
                // The first under way: pauses begin anew.
                self.pause = RETRY;
                self.again_at = now + RETRY;
            }
            flying += size(f);
            out.push(f.clone());
            self.sent += 1;
        }
        out
    }

    /// Everything up to `seq` is stored.
    pub(super) fn acked(&mut self, seq: u64, window: u64, now: Duration) {
        self.window = window;
        while self.waiting.front().is_some_and(|f| f.seq <= seq) {
            self.waiting.pop_front();
            self.sent = self.sent.saturating_sub(1);
            self.pause = RETRY;
            self.again_at = now + RETRY;
        }
    }

    /// Lines so far.
    pub(super) fn frames(&self) -> u64 {
        self.next
    }

    /// Bytes of output so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn size(f: &LogFrame) -> u64 {
    f.data.len() as u64 / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn log(lines: usize) -> Log {
        let mut log = Log::new(uuid::Uuid::from_u128(1).into(), NOW);
        for _ in 0..lines {
            let data = STANDARD.encode([b'x'; 900]);
            log.push(Some(LogLine { step: 0, stream: Stream::Out, at: chrono::Utc::now(), data }), chrono::Utc::now());
        }
        log
    }

    fn seqs(frames: &[LogFrame]) -> Vec<u64> {
        frames.iter().map(|f| f.seq).collect()
    }

    #[test]
    fn credit_bounds_what_is_under_way_and_what_was_lost_comes_again() {
        let mut l = log(10);
        l.acked(0, 2000, NOW);
        assert_eq!(seqs(&l.due(NOW)), [1, 2, 3]);
        assert!(l.due(NOW).is_empty());
        assert_eq!(seqs(&l.due(NOW + RETRY)), [1, 2, 3]);
        l.acked(2, 2000, NOW);
        assert_eq!(seqs(&l.due(NOW)), [4, 5]);
        // A receiver that knows them all from an earlier connection says so at once.
        l.acked(9, 2000, NOW);
        assert!(l.is_empty() && l.due(NOW + RETRY).is_empty());
        assert_eq!((l.frames(), l.bytes()), (10, 9000));
    }

    #[test]
    fn without_credit_one_frame_asks_now_and_then() {
        let mut l = log(3);
        l.acked(0, 0, NOW);
        assert!(l.due(NOW).is_empty());
        assert_eq!(seqs(&l.due(NOW + RETRY)), [1]);
        assert_eq!(seqs(&l.due(NOW + 4 * RETRY)), [1]);
    }

    #[test]
    fn a_line_that_does_not_read_leaves_no_gap() {
        let mut l = log(1);
        l.push(None, chrono::Utc::now());
        let bad = LogLine { step: 0, stream: Stream::Out, at: chrono::Utc::now(), data: "%".into() };
        l.push(Some(bad), chrono::Utc::now());
        let frames = l.due(NOW);
        assert_eq!(seqs(&frames), [0, 1, 2]);
        assert!(frames[1..].iter().all(|f| f.stream == Stream::Note));
    }
}
