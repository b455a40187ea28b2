//! Sending a task's log: numbered frames within the receiver's credit, sent again until acknowledged.

use crate::{
    spool::{Cursor, Piece, Reader},
    taskdir::TaskDir,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, io, time::Duration};
use windlass_contracts::frames::{LogFrame, MAX_LOGS, MAX_LOGS_DATA, Stream, UpBody};
use windlass_domain::ids::TaskId;

/// What may be under way before the receiver has said anything.
const FIRST_WINDOW: u64 = 1 << 20;
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// After something was sent, what comes within this time goes together: each frame costs the executor a signature, a message
/// and a turn. Nobody who reads along sees so little.
const TOGETHER: Duration = Duration::from_millis(50);

/// Kept in the task's directory, so that a restarted agent gives the same pieces the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursors {
    acked: Cursor,
    sent: Cursor,
}

/// One task's log on its way.
#[derive(Debug)]
pub struct LogStream {
    task: TaskId,
    dir: TaskDir,
    reader: Reader,
    at: Cursors,
    unacked: VecDeque<(u64, Piece, Cursor)>,
    window: u64,
    retry_at: Duration,
    retry: Duration,
    /// New pieces are not looked for before.
    new_at: Duration,
    /// There was no look for new pieces the last time.
    held: bool,
}

/// Frames to send now.
#[derive(Debug, Default)]
pub struct Due {
    /// Without an acknowledgement for too long.
    pub again: Vec<LogFrame>,
    pub new: Vec<LogFrame>,
}

impl Due {
    /// As they are said: new ones together, as far as one frame may hold them; the others one by one, for receivers that know
    /// no other way.
    pub fn bodies(self) -> Vec<UpBody> {
        let mut out: Vec<UpBody> = self.again.into_iter().map(UpBody::Log).collect();
        let mut together: Vec<LogFrame> = Vec::new();
        let mut bytes = 0;
        for f in self.new {
            if together.len() >= MAX_LOGS || (!together.is_empty() && bytes + f.data.len() > MAX_LOGS_DATA) {
                out.push(body(std::mem::take(&mut together)));
                bytes = 0;
            }
            bytes += f.data.len();
            together.push(f);
        }
        if !together.is_empty() {
            out.push(body(together));
        }
        out
    }
}

fn body(mut frames: Vec<LogFrame>) -> UpBody {
    match (frames.len(), frames.pop()) {
        (1, Some(only)) => UpBody::Log(only),
        (_, last) => {
            frames.extend(last);
            UpBody::Logs { frames }
        }
    }
}

impl LogStream {
    /// Takes up where an earlier process stopped: what it had sent without an acknowledgement is sent again.
    pub fn open(task: TaskId, dir: TaskDir, now: Duration) -> io::Result<LogStream> {
        let at = dir.cursors().unwrap_or_default();
        let mut s = LogStream {
            task,
            reader: Reader::new(&dir.log()),
            dir,
            at: Cursors { acked: at.acked, sent: at.acked },
            unacked: VecDeque::new(),
            window: FIRST_WINDOW,
            retry_at: now,
            retry: RETRY,
            new_at: now,
            held: false,
        };
        let mut replayed = VecDeque::new();
        while s.at.sent.seq < at.sent.seq {
            match s.reader.next(&mut s.at.sent)? {
                Some(p) => replayed.push_back((s.at.sent.seq - 1, p, s.at.sent)),
                None => break,
            }
        }
        if s.at.sent != at.sent {
            // The writer has cut pieces that were sent already: their numbers are used up.
            replayed.clear();
            for seq in at.acked.seq..at.sent.seq {
                let data = b"[this piece of output was cut while the agent was away]\n".to_vec();
                let p = Piece { step: 0, stream: Stream::Note, at: chrono::Utc::now(), data };
                let mut after = at.acked;
                after.seq = seq + 1;
                let after = if after.seq == at.sent.seq { at.sent } else { after };
                replayed.push_back((seq, p, after));
            }
            s.at.sent = at.sent;
        }
        s.unacked = replayed;
        Ok(s)
    }

    fn in_flight(&self) -> u64 {
        self.unacked.iter().map(|(_, p, _)| p.data.len() as u64).sum()
    }

    /// Old ones whose time has come, then new ones within the window. `last`: nothing comes any more that could go together.
    pub fn due(&mut self, now: Duration, last: bool) -> io::Result<Due> {
        let mut out = Due::default();
        let late = now >= self.retry_at;
        if late && !self.unacked.is_empty() {
            out.again.extend(self.unacked.iter().map(|(seq, p, _)| frame(self.task, *seq, p)));
            self.retry_at = now + self.retry;
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
        self.held = !last && now < self.new_at;
        if self.held {
            return Ok(out);
        }
        let mut flying = self.in_flight();
        let before = self.at.sent;
        // An empty window with nothing under way would be for ever if the message that opens it were lost: probe.
        while flying < self.window || (self.unacked.is_empty() && late) {
            let Some(p) = self.reader.next(&mut self.at.sent)? else { break };
            if self.unacked.is_empty() {
                self.retry = RETRY;
                self.retry_at = now + RETRY;
            }
            flying += p.data.len() as u64;
            let seq = self.at.sent.seq - 1;
            out.new.push(frame(self.task, seq, &p));
            self.unacked.push_back((seq, p, self.at.sent));
        }
        if self.at.sent != before {
            self.new_at = now + TOGETHER;
            self.remember();
        }
        if late && self.unacked.is_empty() {
            self.retry_at = now + RETRY;
        }
        Ok(out)
    }

    /// When `due` should be asked again, if nothing else happens.
    pub fn next_retry(&self) -> Option<Duration> {
        let again = (!self.unacked.is_empty() || self.window == 0).then_some(self.retry_at);
        again.into_iter().chain(self.held.then_some(self.new_at)).min()
    }

    /// All new frames will be sent again at once: the connection is new.
    pub fn reconnected(&mut self, now: Duration) {
        self.retry = RETRY;
        self.retry_at = now;
    }

    pub fn acked(&mut self, seq: u64, window: u64, now: Duration) {
        self.window = window;
        let mut moved = false;
        while self.unacked.front().is_some_and(|(s, _, _)| *s <= seq) {
            if let Some((_, _, after)) = self.unacked.pop_front() {
                self.at.acked = after;
                moved = true;
            }
        }
        if moved {
            self.retry = RETRY;
            self.retry_at = now + RETRY;
            self.remember();
        }
    }

    /// A full disk must not stop the agent: at worst a restart sends some pieces again under other numbers.
    fn remember(&self) {
        if let Err(e) = self.dir.write_cursors(&self.at) {
            tracing::warn!(task = %self.task, error = %e, "cannot note how far the log was sent");
        }
    }

    /// Frames and cut bytes in all; exact once the runner has ended.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut c = self.at.sent;
        Reader::new(&self.dir.log()).skip_to_end(&mut c)?;
        Ok(Totals { frames: c.seq, dropped: c.dropped, seen: c.offset() })
    }

    /// Everything there is has been acknowledged.
    pub fn is_done(&self, frames: u64) -> bool {
        self.at.acked.seq >= frames
    }
}

/// Counters of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    pub frames: u64,
    pub dropped: u64,
    /// Output bytes passed, cut ones included.
    pub seen: u64,
}

fn frame(task: TaskId, seq: u64, p: &Piece) -> LogFrame {
    LogFrame {
        task,
        seq,
        step: p.step,
        stream: p.stream,
        at: p.at,
        data: STANDARD.encode(&p.data),
        crc: crc32c::crc32c(&p.data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{LogCaps, Writer};

    fn setup() -> (tempfile::TempDir, TaskDir, Writer, TaskId) {
        let d = tempfile::tempdir().expect("dir");
        let task: TaskId = uuid::Uuid::from_u128(1).into();
        let dir = TaskDir::of(d.path(), task);
        crate::files::private_dir(dir.path()).expect("dir");
        let caps = LogCaps { head_bytes: 64 << 10, tail_bytes: 128 << 10 };
        let w = Writer::create(&dir.log(), caps).expect("log");
        (d, dir, w, task)
    }
    fn put(w: &mut Writer, n: usize, text: &str) {
        for _ in 0..n {
            w.write(0, Stream::Out, chrono::Utc::now(), text.as_bytes());
        }
    }
    const NOW: Duration = Duration::from_secs(100);
    fn now_due(s: &mut LogStream) -> Vec<LogFrame> {
        s.due(NOW, true).expect("reads").new
    }
    fn note() -> Piece {
        Piece { step: 0, stream: Stream::Note, at: chrono::Utc::now(), data: vec![] }
    }

    #[test]
    fn the_window_bounds_what_is_under_way_and_lost_frames_are_sent_again() {
        let (_d, dir, mut w, task) = setup();
        put(&mut w, 20, &"x".repeat(1000));
        let mut s = LogStream::open(task, dir, NOW).expect("opens");
        s.acked(0, 3000, NOW);
        let first = now_due(&mut s);
        assert_eq!(first.iter().map(|f| f.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(now_due(&mut s).is_empty());
        let due = s.due(NOW + Duration::from_secs(2), true).expect("reads");
        assert!(due.new.is_empty());
        assert_eq!(due.again.iter().map(|f| f.seq).collect::<Vec<_>>(), [0, 1, 2]);
        s.acked(1, 2000, NOW);
        assert_eq!(now_due(&mut s).iter().map(|f| f.seq).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn what_comes_soon_after_goes_together_and_what_was_lost_goes_one_by_one() {
        let (_d, dir, mut w, task) = setup();
        put(&mut w, 1, "a");
        let mut s = LogStream::open(task, dir, NOW).expect("opens");
        assert_eq!(s.due(NOW, false).expect("reads").new.len(), 1, "the first goes at once");
        put(&mut w, 3, "b");
        let soon = NOW + TOGETHER / 2;
        assert!(s.due(soon, false).expect("reads").new.is_empty());
        assert_eq!(s.next_retry(), Some(NOW + TOGETHER), "and is asked again in time");
        let due = s.due(NOW + TOGETHER, false).expect("reads");
        let bodies = due.bodies();
        assert!(matches!(&bodies[..], [UpBody::Logs { frames }] if frames.len() == 3), "{bodies:?}");
        put(&mut w, 1, "c");
        assert_eq!(s.due(NOW + TOGETHER, true).expect("reads").new.len(), 1, "the last waits for nobody");
        let bodies = s.due(NOW + RETRY * 2, true).expect("reads").bodies();
        assert!(bodies.len() == 5 && bodies.iter().all(|b| matches!(b, UpBody::Log(_))), "{bodies:?}");
    }

    #[test]
    fn one_frame_holds_no_more_than_it_may() {
        let f = |seq, bytes| LogFrame { data: "x".repeat(bytes), ..frame(TaskId(uuid::Uuid::nil()), seq, &note()) };
        let sizes = |new: Vec<LogFrame>| {
            let said = Due { new, ..Due::default() }.bodies().into_iter().map(|b| match b {
                UpBody::Log(_) => 1,
                UpBody::Logs { frames } => frames.len(),
                other => panic!("{other:?}"),
            });
            said.collect::<Vec<usize>>()
        };
        assert_eq!(sizes((0..130).map(|seq| f(seq, 10)).collect()), [64, 64, 2]);
        assert_eq!(sizes((0..7).map(|seq| f(seq, MAX_LOGS_DATA / 3)).collect()), [3, 3, 1]);
        assert!(sizes(vec![]).is_empty());
    }

    #[test]
    fn a_restart_keeps_the_numbers_even_when_sent_pieces_were_cut() {
        let (_d, dir, mut w, task) = setup();
        put(&mut w, 100, &"x".repeat(1000));
        let mut s = LogStream::open(task, dir.clone(), NOW).expect("opens");
        assert_eq!(now_due(&mut s).len(), 100);
        s.acked(79, 1 << 20, NOW);
        drop(s);
        let mut s = LogStream::open(task, dir.clone(), NOW).expect("opens");
        let again = s.due(NOW, true).expect("reads").again;
        assert_eq!(again.iter().map(|f| f.seq).collect::<Vec<_>>(), (80..100).collect::<Vec<_>>());
        assert!(again.iter().all(|f| f.stream == Stream::Out));
        drop(s);
        put(&mut w, 1000, &"y".repeat(1000));
        let mut s = LogStream::open(task, dir, NOW).expect("opens");
        let Due { again: mut all, new } = s.due(NOW, true).expect("reads");
        all.extend(new);
        assert!(all[..20].iter().all(|f| f.stream == Stream::Note), "{:?}", all[0]);
        assert!(all.iter().zip(80..).all(|(f, n)| f.seq == n));
        let t = s.totals().expect("counts");
        assert_eq!((t.frames, t.seen), (80 + all.len() as u64, 1_100_000));
        assert!(!s.is_done(t.frames));
        s.acked(t.frames - 1, 1 << 20, NOW);
        assert!(s.is_done(t.frames));
    }
}
