//! Offline verification of an export.

use super::{
    export::{FORMAT, Line},
    note::{Checkpoint, NoteError, PublicKey},
    read_leaf,
    story::{Stories, Story},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, Read},
};
use windlass_domain::{
    event::Event,
    merkle::{Frontier, Hash, leaf_hash},
};

/// Longest line that is read; a leaf is one event, which is far smaller.
const MAX_LINE: u64 = 16 * 1024 * 1024;
/// Findings beyond this many are counted, not kept.
const MAX_FINDINGS: usize = 100;

/// The export could not be read to its end. What it says otherwise is in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the export cannot be read at line {line}")]
    Read { line: u64, source: io::Error },
    #[error("the earlier checkpoint is not one of this key")]
    Earlier(#[source] NoteError),
}

/// Something that is not as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Line of the export, from 1; 0 for what is about the whole.
    pub line: u64,
    /// The leaf it is about, if it is about one.
    pub leaf: Option<u64>,
    pub what: String,
}

/// What verification found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The trail's name.
    pub origin: String,
    /// Index of the first exported leaf.
    pub from: u64,
    /// Number of leaves in the export.
    pub leaves: u64,
    /// Number of checkpoints with a good signature and the right root.
    pub checkpoints: u64,
    /// Size of the last of them: everything before it is proven.
    pub signed_size: u64,
    /// The note of the last of them: keep it, and the next export must continue it.
    pub last_checkpoint: Option<String>,
    pub findings: Vec<Finding>,
    /// Findings that were not kept.
    pub more_findings: u64,
    /// Who asked, approved and overrode, by deployment id.
    pub deployments: BTreeMap<String, Story>,
}

impl Report {
    /// Nothing was found to be wrong.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

struct Verifier<'a> {
    key: &'a PublicKey,
    earlier: Option<Checkpoint>,
    line: u64,
    tree: Frontier,
    /// The export is from the trail's beginning, so streams of aggregates begin at 1.
    whole: bool,
    /// The size that the header promises.
    announced: Option<u64>,
    sequences: HashMap<(String, String), u64>,
    stories: Stories,
    report: Report,
}

/// Verifies an export against the trail's public key. With `earlier`, a checkpoint note that was kept from before, it also
/// finds that the trail was cut short or rewritten since.
pub fn verify_export(mut reader: impl BufRead, key: &PublicKey, earlier: Option<&str>) -> Result<Report, VerifyError> {
    let earlier = earlier.map(|note| Checkpoint::open(note, key)).transpose().map_err(VerifyError::Earlier)?;
    let mut v = Verifier {
        key,
        earlier,
        line: 0,
        tree: Frontier::default(),
        whole: true,
        announced: None,
        sequences: HashMap::new(),
        stories: Stories::default(),
        report: Report { origin: key.name().into(), ..Report::default() },
    };
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let line = v.line + 1;
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut raw);
        let n = n.map_err(|source| VerifyError::Read { line, source })?;
        if n == 0 {
            break;
        }
        v.line = line;
        v.take(&raw);
        // What follows a broken frame cannot be told apart any more.
        if n as u64 == MAX_LINE {
            break;
        }
    }
    Ok(v.finish())
}

impl Verifier<'_> {
    fn found(&mut self, leaf: Option<u64>, what: impl Into<String>) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding { line: self.line, leaf, what: what.into() });
        } else {
            self.report.more_findings += 1;
        }
    }

    fn take(&mut self, raw: &[u8]) {
        let parsed = serde_json::from_slice::<Line>(raw).ok();
        // Written back, a line gives the same bytes: nothing can hide in spaces, escapes or repeated keys.
        let line = parsed.filter(|l| {
            let mut again = Vec::with_capacity(raw.len());
            l.write(&mut again).is_ok() && again == raw
        });
        match line {
            None => self.found(None, "the line is not one the exporter writes"),
            Some(Line::Header { format, key, from, to }) => self.header(&format, &key, from, to),
            Some(_) if self.line == 1 => self.found(None, "the export does not begin with its header"),
            Some(Line::Leaf { idx, leaf, hash }) => self.leaf(idx, &leaf, hash),
            Some(Line::Checkpoint { size, note }) => self.checkpoint(size, &note),
        }
    }

    fn header(&mut self, format: &str, key: &str, from: Frontier, to: u64) {
        if self.line != 1 {
            return self.found(None, "a second header");
        }
        if format != FORMAT {
            self.found(None, format!("format {format:?}; this program reads {FORMAT}"));
        }
        if key != self.key.to_string() {
            self.found(None, format!("the export names another key than the one given: {key}"));
        }
        self.announced = Some(to);
        self.whole = from.size() == 0;
        self.report.from = from.size();
        self.tree = from;
        if self.earlier.as_ref().is_some_and(|e| e.size < self.tree.size()) {
            self.found(None, "the export begins after the earlier checkpoint: export from its size or before");
        }
        self.compare_with_earlier();
    }

    fn leaf(&mut self, idx: u64, leaf: &str, hash: Hash) {
        let at = self.tree.size();
        if idx != at {
            self.found(Some(idx), format!("leaf {idx} stands where leaf {at} belongs"));
        }
        let real = leaf_hash(leaf.as_bytes());
        if real != hash {
            self.found(Some(at), "the leaf does not have the hash beside it: its content was changed");
        }
        match read_leaf(leaf.as_bytes()) {
            Some(event) => {
                self.sequence(at, &event);
                self.stories.add(at, &event);
            }
            None => self.found(Some(at), "the leaf's content is not an event of a known version"),
        }
        self.tree.append(real);
        self.report.leaves += 1;
        self.compare_with_earlier();
    }

    fn sequence(&mut self, at: u64, e: &Event) {
        let stream = (e.aggregate.clone(), e.aggregate_id.clone());
        let before = self.sequences.get(&stream).copied();
        let expected = before.map(|b| b + 1).or(self.whole.then_some(1));
        if expected.is_some_and(|x| x != e.agg_seq) {
            let (want, got) = (expected.unwrap_or(1), e.agg_seq);
            let what = format!("{} {}: event {got} where {want} was due", e.aggregate, e.aggregate_id);
            self.found(Some(at), what);
        }
        self.sequences.insert(stream, e.agg_seq.max(before.unwrap_or(0)));
    }

    fn checkpoint(&mut self, size: u64, note: &str) {
        let since = self.report.signed_size;
        match Checkpoint::open(note, self.key) {
            Err(e) => self.found(None, format!("checkpoint of size {size}: {e}")),
            Ok(c) if c.size != size || size != self.tree.size() => {
                let (signed, at) = (c.size, self.tree.size());
                self.found(None, format!("a checkpoint of size {signed} stands after leaf count {at}"));
            }
            Ok(c) if c.root != self.tree.root() => {
                let what = format!(
                    "the signed root of size {size} does not fit: something in leaves {since}..{size} was changed"
                );
                self.found(None, what);
            }
            Ok(c) => {
                self.report.checkpoints += 1;
                self.report.signed_size = c.size;
                self.report.last_checkpoint = Some(note.to_owned());
            }
        }
    }

    fn compare_with_earlier(&mut self) {
        let Some(e) = self.earlier.take_if(|e| e.size == self.tree.size()) else { return };
        if e.root != self.tree.root() {
            self.found(
                None,
                format!("the trail is not the one of the earlier checkpoint of size {}: history was rewritten", e.size),
            );
        }
    }

    fn finish(mut self) -> Report {
        self.line = 0;
        let size = self.tree.size();
        if let Some(e) = self.earlier.take().filter(|e| e.size > size) {
            self.found(
                None,
                format!("the trail is cut short: it has {size} leaves, the earlier checkpoint has {}", e.size),
            );
        }
        if let Some(to) = self.announced.filter(|to| *to != size) {
            self.found(None, format!("the export announces {to} leaves and ends at {size}: it is not whole"));
        }
        if self.report.last_checkpoint.is_none() {
            self.found(None, "no good signed checkpoint: nothing is proven");
        } else if self.report.signed_size < size {
            let from = self.report.signed_size;
            self.found(None, format!("leaves {from}..{size} are after the last good signed checkpoint"));
        }
        self.report.deployments = self.stories.into_map();
        self.report
    }
}
