//! The log of a task on disk: head and tail are kept, the middle is cut when a step writes more than the cap.
//!
//! The log is a directory of numbered segments of records; one record becomes one log frame. The writer (the runner)
//! keeps the head segments and the newest tail segments. The reader (the agent) may meet a gap; it counts the bytes and
//! puts a note in their place. Sequence numbers are given by the reader, so that they have no gap.

use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};
use windlass_contracts::frames::{MAX_LOG_DATA, Stream};
use windlass_domain::Timestamp;

/// magic 1, stream 1, reserved 2, length 4, crc 4, step 4, offset 8, time 8.
const HEADER: usize = 32;
const MAGIC: u8 = 0xA7;

/// How many bytes of a task's output are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogCaps {
    pub head_bytes: u64,
    pub tail_bytes: u64,
}

impl Default for LogCaps {
    fn default() -> Self {
        LogCaps { head_bytes: 4 << 20, tail_bytes: 12 << 20 }
    }
}

impl LogCaps {
    fn segment(self) -> u64 {
        (self.head_bytes.min(self.tail_bytes) / 4).clamp(MAX_LOG_DATA as u64, 1 << 20)
    }
}

/// One piece of output.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub step: u32,
    pub stream: Stream,
    pub at: Timestamp,
    pub data: Vec<u8>,
}

/// The runner's end.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    segment: u64,
    head: u64,
    tail: u64,
    file: Option<File>,
    number: u64,
    used: u64,
    /// Output bytes of every segment that may still be cut, oldest first.
    tails: VecDeque<(u64, u64)>,
    total: u64,
    dropped: u64,
}

impl Writer {
    pub fn create(dir: &Path, caps: LogCaps) -> io::Result<Writer> {
        crate::files::private_dir(dir)?;
        let segment = caps.segment();
        Ok(Writer {
            dir: dir.to_owned(),
            segment,
            head: (caps.head_bytes / segment).max(1),
            tail: (caps.tail_bytes / segment).max(1),
            file: None,
            number: 0,
            used: 0,
            tails: VecDeque::new(),
            total: 0,
            dropped: 0,
        })
    }

    /// Bytes the steps wrote, all of them.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes cut so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Appends; a full disk costs output (counted), never the step.
    pub fn write(&mut self, step: u32, stream: Stream, at: Timestamp, data: &[u8]) {
        for chunk in data.chunks(MAX_LOG_DATA) {
            let counts = if stream == Stream::Note { 0 } else { chunk.len() as u64 };
            let written = self.record(step, stream, at, chunk);
            self.total += counts;
            if written.is_err() {
                self.dropped += counts;
            } else if let Some(last) = self.tails.back_mut() {
                last.1 += counts;
            }
        }
    }

    fn record(&mut self, step: u32, stream: Stream, at: Timestamp, data: &[u8]) -> io::Result<()> {
        let size = (HEADER + data.len()) as u64;
        if self.file.is_none() || self.used + size > self.segment + HEADER as u64 {
            self.roll()?;
        }
        let mut rec = Vec::with_capacity(HEADER + data.len());
        rec.extend_from_slice(&[MAGIC, stream as u8, 0, 0]);
        rec.extend_from_slice(&(data.len() as u32).to_le_bytes());
        rec.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        rec.extend_from_slice(&step.to_le_bytes());
        rec.extend_from_slice(&self.total.to_le_bytes());
        rec.extend_from_slice(&at.timestamp_micros().to_le_bytes());
        rec.extend_from_slice(data);
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(e) = file.write_all(&rec) {
            // Leave no half record behind: the next one must stand where the reader looks for it.
            file.set_len(self.used)?;
            return Err(e);
        }
        self.used += size;
        Ok(())
    }

    fn roll(&mut self) -> io::Result<()> {
        let next = if self.file.is_some() { self.number + 1 } else { self.number };
        let file = OpenOptions::new().append(true).create(true).open(segment_path(&self.dir, next))?;
        self.file = Some(file);
        self.number = next;
        self.used = 0;
        if next >= self.head {
            self.tails.push_back((next, 0));
            while self.tails.len() as u64 > self.tail {
                if let Some((n, bytes)) = self.tails.pop_front() {
                    fs::remove_file(segment_path(&self.dir, n))?;
                    self.dropped += bytes;
                }
            }
        }
        Ok(())
    }
}

fn segment_path(dir: &Path, n: u64) -> PathBuf {
    dir.join(format!("{n:08}"))
}

/// Where the reader stands. Kept on disk, so that a restarted agent gives the same pieces the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Number of the next frame.
    pub seq: u64,
    segment: u64,
    at: u64,
    /// Output bytes passed, cut ones included.
    offset: u64,
    /// Output bytes found missing.
    pub dropped: u64,
}

impl Cursor {
    /// Output bytes passed, cut ones included.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Reads one log directory.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    open: Option<(u64, File)>,
}

struct Header {
    stream: Stream,
    len: usize,
    crc: u32,
    step: u32,
    offset: u64,
    at: Timestamp,
}

impl Reader {
    pub fn new(dir: &Path) -> Reader {
        Reader { dir: dir.to_owned(), open: None }
    }

    /// The next piece, or `None` when nothing more is there now. Moves the cursor.
    pub fn next(&mut self, c: &mut Cursor) -> io::Result<Option<Piece>> {
        let Some(h) = self.seek(c)? else { return Ok(None) };
        if h.offset > c.offset {
            return Ok(Some(gap(c, &h)));
        }
        let mut data = vec![0; h.len];
        if let Some((_, f)) = &self.open {
            f.read_exact_at(&mut data, c.at + HEADER as u64)?;
        }
        let stream = if crc32c::crc32c(&data) == h.crc {
            h.stream
        } else {
            data = format!("[{} bytes of output are damaged on the host's disk]\n", h.len).into_bytes();
            Stream::Note
        };
        pass(c, &h);
        Ok(Some(Piece { step: h.step, stream, at: h.at, data }))
    }

    /// Moves the cursor to the end without reading the data: how many frames there will be in all. Exact once the runner
    /// has ended.
    pub fn skip_to_end(&mut self, c: &mut Cursor) -> io::Result<()> {
        while let Some(h) = self.seek(c)? {
            if h.offset > c.offset {
                gap(c, &h);
            } else {
                pass(c, &h);
            }
        }
        Ok(())
    }

    fn seek(&mut self, c: &mut Cursor) -> io::Result<Option<Header>> {
        loop {
            if let Some(h) = self.header(c)? {
                return Ok(Some(h));
            }
            let Some(next) = self.segment_after(c.segment)? else { return Ok(None) };
            // The writer finished this segment before it made the next one: look once more.
            if let Some(h) = self.header(c)? {
                return Ok(Some(h));
            }
            c.segment = next;
            c.at = 0;
        }
    }

    fn header(&mut self, c: &Cursor) -> io::Result<Option<Header>> {
        if self.open.as_ref().is_none_or(|(n, _)| *n != c.segment) {
            match File::open(segment_path(&self.dir, c.segment)) {
                Ok(f) => self.open = Some((c.segment, f)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        let Some((_, f)) = &self.open else { return Ok(None) };
        let mut b = [0; HEADER];
        let now = f.metadata()?;
        // A segment that was cut while it was open could still be read here, and only here: another reader (the one that
        // counts for the report, the one of a restarted agent) finds it gone. All of them must tell the same story.
        if now.nlink() == 0 || now.len() < c.at + HEADER as u64 {
            return Ok(None);
        }
        f.read_exact_at(&mut b, c.at)?;
        let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let long = |i: usize| u64::from(word(i)) | (u64::from(word(i + 4)) << 32);
        let len = word(4) as usize;
        let stream = match b[1] {
            0 => Stream::Out,
            1 => Stream::Err,
            _ => Stream::Note,
        };
        if b[0] != MAGIC || len > MAX_LOG_DATA || f.metadata()?.len() < c.at + (HEADER + len) as u64 {
            return Ok(None);
        }
        let at = Timestamp::from_timestamp_micros(long(24).cast_signed()).unwrap_or_default();
        Ok(Some(Header { stream, len, crc: word(8), step: word(12), offset: long(16), at }))
    }

    fn segment_after(&self, n: u64) -> io::Result<Option<u64>> {
        let dir = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            d => d?,
        };
        let mut best = None;
        for e in dir {
            let Ok(k) = e?.file_name().to_string_lossy().parse::<u64>() else { continue };
            if k > n && best.is_none_or(|b| k < b) {
                best = Some(k);
            }
        }
        Ok(best)
    }
}

fn pass(c: &mut Cursor, h: &Header) {
    c.at += (HEADER + h.len) as u64;
    c.seq += 1;
    if h.stream != Stream::Note {
        c.offset += h.len as u64;
    }
}

fn gap(c: &mut Cursor, h: &Header) -> Piece {
    let missing = h.offset - c.offset;
    c.offset = h.offset;
    c.dropped += missing;
    c.seq += 1;
    let data = format!("[{missing} bytes of output were cut here: the task wrote more than this host keeps]\n");
    Piece { step: h.step, stream: Stream::Note, at: h.at, data: data.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-11-21T00:00:00Z".parse().expect("time")
    }

    #[test]
    fn head_and_tail_stay_and_the_middle_is_counted() {
        let d = tempfile::tempdir().expect("dir");
        let caps = LogCaps { head_bytes: 128 << 10, tail_bytes: 256 << 10 };
        let mut w = Writer::create(d.path(), caps).expect("creates");
        let mut whole = Vec::new();
        for i in 0..2000u32 {
            let line = format!("line {i} {}\n", "x".repeat((i % 900) as usize));
            w.write(0, if i % 2 == 0 { Stream::Out } else { Stream::Err }, at(), line.as_bytes());
            whole.extend_from_slice(line.as_bytes());
        }
        let (mut r, mut c) = (Reader::new(d.path()), Cursor::default());
        let mut kept = Vec::new();
        let mut notes = 0;
        while let Some(p) = r.next(&mut c).expect("reads") {
            if p.stream == Stream::Note { notes += 1 } else { kept.extend_from_slice(&p.data) }
        }
        assert_eq!(notes, 1);
        assert_eq!(w.total(), whole.len() as u64);
        assert_eq!(w.dropped(), c.dropped);
        assert_eq!(kept.len() as u64 + c.dropped, w.total());
        assert!(kept.len() as u64 <= caps.head_bytes + caps.tail_bytes && kept.len() > 200 << 10, "{}", kept.len());
        assert!(whole.starts_with(&kept[..100 << 10]) && whole.ends_with(&kept[kept.len() - (180 << 10)..]));
        let mut count = Cursor::default();
        Reader::new(d.path()).skip_to_end(&mut count).expect("counts");
        assert_eq!(count, c);
    }

    #[test]
    fn a_reader_that_holds_a_cut_segment_open_counts_like_one_that_does_not() {
        let d = tempfile::tempdir().expect("dir");
        let caps = LogCaps { head_bytes: 64 << 10, tail_bytes: 128 << 10 };
        let mut w = Writer::create(d.path(), caps).expect("creates");
        let (mut r, mut c) = (Reader::new(d.path()), Cursor::default());
        let mut kept = 0;
        let mut write = |n: usize| (0..n).for_each(|_| w.write(0, Stream::Out, at(), &[b'x'; 1000]));
        // Stands in the middle of a tail segment, which is then cut under it.
        write(120);
        for _ in 0..100 {
            kept += r.next(&mut c).expect("reads").expect("a piece").data.len() as u64;
        }
        write(1000);
        let mut other = c;
        Reader::new(d.path()).skip_to_end(&mut other).expect("counts");
        while let Some(p) = r.next(&mut c).expect("reads") {
            kept += if p.stream == Stream::Note { 0 } else { p.data.len() as u64 };
        }
        assert_eq!(c, other);
        assert_eq!(kept + c.dropped, 1_120_000);
    }

    #[test]
    fn a_live_reader_sees_everything_below_the_cap_and_notes_count_nothing() {
        let d = tempfile::tempdir().expect("dir");
        let mut w = Writer::create(d.path(), LogCaps::default()).expect("creates");
        let (mut r, mut c) = (Reader::new(d.path()), Cursor::default());
        assert!(r.next(&mut c).expect("reads").is_none());
        for i in 0..3u64 {
            w.write(1, Stream::Note, at(), b"note\n");
            w.write(1, Stream::Out, at(), &[0, 159, 146, 150]);
            assert_eq!(r.next(&mut c).expect("reads").expect("note").data, b"note\n");
            assert_eq!(r.next(&mut c).expect("reads").expect("data").data, [0, 159, 146, 150]);
            assert!(r.next(&mut c).expect("reads").is_none());
            assert_eq!((c.seq, c.dropped, w.total()), (2 * i + 2, 0, 4 * i + 4));
        }
    }
}
