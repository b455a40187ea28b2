//! Every corpus against its target, and some thousand inputs made from it by the same damage each time; and that a planted
//! fault makes each of them red. The search for new inputs is `./ops/fuzz`.

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};
use windlass_hostile::{TARGETS, Target, plant, target};
use windlass_testkit::workspace;

/// Inputs made from the corpus of a target, at most, and how long that may take: some targets write files.
const DAMAGED: usize = 3000;
const MOST: Duration = Duration::from_secs(2);

fn folder(t: &Target) -> PathBuf {
    workspace().join("tests/corpora").join(t.name)
}

/// The files of a corpus, by name.
fn corpus(t: &Target) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder(t)).unwrap_or_else(|e| panic!("{}: {e}", folder(t).display()));
    files
        .map(|f| {
            let f = f.expect("an entry");
            (f.file_name().to_string_lossy().into_owned(), fs::read(f.path()).expect("readable"))
        })
        .collect()
}

/// A small generator, so that each run tries the same.
struct Dice(u64);

/// Bytes that mean something to one reader or another.
const ODD: &[u8] = b"\0\xff\"'{}[]:,.%$\\/\n -0";

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(n.max(1)).expect("small")).expect("small")
    }

    fn damaged(&mut self, all: &[Vec<u8>]) -> Vec<u8> {
        let mut out = all[self.below(all.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(out.len() + 1);
            match self.below(6) {
                0 if at < out.len() => out[at] ^= 1 << self.below(8),
                1 => out.truncate(at),
                2 => out.insert(at, ODD[self.below(ODD.len())]),
                3 => {
                    let other = &all[self.below(all.len())];
                    let from = self.below(other.len());
                    let piece = other[from..(from + self.below(24)).min(other.len())].to_vec();
                    out.splice(at..at, piece);
                }
                4 => drop(out.drain(at..(at + self.below(9)).min(out.len()))),
                _ => {
                    let end = (at + self.below(16)).min(out.len());
                    let piece = out[at..end].to_vec();
                    out.splice(at..at, piece);
                }
            }
        }
        out
    }
}

/// The input at hand, for the message when it breaks a rule.
fn run(t: &Target, name: &str, input: &[u8]) {
    if let Err(why) = catch_unwind(|| (t.run)(input)) {
        let shown = String::from_utf8_lossy(&input[..input.len().min(2000)]).into_owned();
        let text = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
        panic!("{}: {name}: {}\n{shown:?}", t.name, text.unwrap_or("it failed"));
    }
}

#[test]
fn every_corpus_is_answered_and_so_is_what_is_damaged() {
    let mut size = 0;
    for t in TARGETS {
        let corpus = corpus(t);
        size += corpus.values().map(Vec::len).sum::<usize>();
        for (name, input) in &corpus {
            run(t, name, input);
        }
        let all: Vec<Vec<u8>> = corpus.values().cloned().collect();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (begun, mut tried) = (Instant::now(), 0);
        while tried < DAMAGED && begun.elapsed() < MOST {
            run(t, "damaged", &dice.damaged(&all));
            tried += 1;
        }
        eprintln!("corpora: {:10} {:4} inputs, {tried} damaged", t.name, all.len());
    }
    assert!(size < 300 << 10, "the corpora have {size} bytes: take some out");
}

#[test]
fn every_planted_fault_is_found_by_its_corpus() {
    for t in TARGETS {
        let found = corpus(t).into_values().any(|input| {
            let run = AssertUnwindSafe(|| plant::with(|| (t.run)(&input)));
            catch_unwind(run).is_err()
        });
        assert!(found, "nothing in the corpus of {} notices its planted fault", t.name);
    }
}

#[test]
fn every_folder_has_its_target() {
    for f in fs::read_dir(workspace().join("tests/corpora")).expect("the corpora").map(|f| f.expect("an entry")) {
        let name = f.file_name().to_string_lossy().into_owned();
        assert!(target(&name).is_some(), "tests/corpora/{name} belongs to no target");
    }
}
