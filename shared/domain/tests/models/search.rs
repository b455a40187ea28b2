//! Exhaustive search of a model, breadth first: every state that can be reached is looked at once, the shortest way to a wrong
//! one is told, and states without a way to an end are counted.
//!
//! A search of our own and no library: the libraries at hand judge "it ends some time" path by path and give up on circles,
//! while here every state is asked whether an end can still be reached; and they want the model written in their terms.
//! States are told apart by a hash of 64 bits. With 50 million states two of them share one with a chance of 1 in 15,000, and
//! what is lost then is a state that is not looked at, never a false alarm.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What is searched.
pub(crate) trait Model {
    type State: Clone;
    fn start(&self) -> Self::State;
    /// Every step that anything can take.
    fn next(&self, s: &Self::State, out: &mut Steps<Self::State>);
    /// Equal states, equal keys.
    fn key(&self, s: &Self::State) -> u64;
    /// What is wrong with a state, if anything.
    fn wrong(&self, s: &Self::State) -> Option<String>;
    /// It is over, and well.
    fn ended(&self, s: &Self::State) -> bool;
}

/// The steps from one state.
pub(crate) struct Steps<S> {
    to: Vec<Step<S>>,
    /// Words for each step; only made when a way is told.
    words: Option<Vec<String>>,
}

struct Step<S> {
    state: S,
    /// Counts when it is asked whether an end can be reached.
    way_out: bool,
    wrong: Option<String>,
}

impl<S> Steps<S> {
    pub(crate) fn go(&mut self, words: impl FnOnce() -> String, state: S) {
        self.add(words, state, true, None);
    }

    pub(crate) fn add(&mut self, words: impl FnOnce() -> String, state: S, way_out: bool, wrong: Option<String>) {
        if let Some(w) = &mut self.words {
            w.push(words());
        }
        self.to.push(Step { state, way_out, wrong });
    }
}

/// How far to look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// States; the search stops there and says so.
    pub(crate) states: usize,
    /// Look for states without a way out: takes 8 bytes a transition.
    pub(crate) traps: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) transitions: u64,
    /// Steps of the longest of the shortest ways.
    pub(crate) depth: u32,
    pub(crate) ends: usize,
    pub(crate) whole: bool,
    /// What is wrong, and the way there.
    pub(crate) wrong: Option<(String, Vec<String>)>,
}

/// Keys are hashes already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

const ROOT: u32 = u32::MAX;

pub(crate) fn search<M: Model>(m: &M, limits: Limits) -> Found {
    let mut index: HashMap<u64, u32, BuildHasherDefault<Same>> = HashMap::default();
    // How each state was reached first: from which, by which of its steps.
    let mut reached: Vec<(u32, u16)> = vec![(ROOT, 0)];
    let mut back: Vec<(u32, u32)> = Vec::new();
    let mut ends: Vec<u32> = Vec::new();
    let (mut level, mut first) = (vec![m.start()], 0_u32);
    index.insert(m.key(&level[0]), 0);
    let mut found = Found { whole: true, ..Found::default() };
    let mut steps = Steps { to: Vec::new(), words: None };
    while !level.is_empty() {
        let mut next = Vec::new();
        let next_first = reached.len() as u32;
        for (n, s) in level.iter().enumerate() {
            let from = first + n as u32;
            if let Some(what) = m.wrong(s) {
                found.wrong = Some((what, way(m, &reached, from, None)));
                found.states = reached.len();
                return found;
            }
            if m.ended(s) {
                ends.push(from);
            }
            m.next(s, &mut steps);
            for (k, step) in steps.to.drain(..).enumerate() {
                found.transitions += 1;
                if let Some(what) = step.wrong {
                    found.wrong = Some((what, way(m, &reached, from, Some(k))));
                    found.states = reached.len();
                    return found;
                }
                let known = *index.entry(m.key(&step.state)).or_insert_with(|| {
                    reached.push((from, k as u16));
                    next.push(step.state);
                    reached.len() as u32 - 1
                });
                if limits.traps && step.way_out {
                    back.push((known, from));
                }
            }
            if reached.len() >= limits.states {
                found.whole = false;
                break;
            }
        }
        if !found.whole {
            break;
        }
        found.depth += 1;
        (level, first) = (next, next_first);
    }
    found.states = reached.len();
    found.ends = ends.len();
    if limits.traps && found.whole {
        back.sort_unstable();
        if let Some(s) = trap(reached.len(), &ends, &back) {
            found.wrong = Some(("a trap: no end can be reached from here".into(), way(m, &reached, s, None)));
        }
    }
    found
}

/// A state that no end can be reached from.
fn trap(states: usize, ends: &[u32], back: &[(u32, u32)]) -> Option<u32> {
    let mut good = vec![false; states];
    ends.iter().for_each(|e| good[*e as usize] = true);
    let mut todo = ends.to_vec();
    while let Some(k) = todo.pop() {
        let from = back.partition_point(|(to, _)| *to < k);
        for (_, i) in back[from..].iter().take_while(|(to, _)| *to == k) {
            if !std::mem::replace(&mut good[*i as usize], true) {
                todo.push(*i);
            }
        }
    }
    good.iter().position(|g| !g).map(|n| n as u32)
}

/// The steps that lead there, in words: gone again from the start.
fn way<M: Model>(m: &M, reached: &[(u32, u16)], to: u32, last: Option<usize>) -> Vec<String> {
    let mut picks: Vec<usize> = last.into_iter().collect();
    let mut at = to;
    while reached[at as usize].0 != ROOT {
        picks.push(reached[at as usize].1.into());
        at = reached[at as usize].0;
    }
    let (mut s, mut told) = (m.start(), Vec::new());
    for pick in picks.into_iter().rev() {
        let mut steps = Steps { to: Vec::new(), words: Some(Vec::new()) };
        m.next(&s, &mut steps);
        told.extend(steps.words.and_then(|w| w.into_iter().nth(pick)));
        let Some(step) = steps.to.into_iter().nth(pick) else { break };
        s = step.state;
    }
    told
}

/// A good hash of 64 bits, the same in every run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix(u64);

impl Default for Mix {
    fn default() -> Mix {
        Mix(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 56));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u64(&mut self, n: u64) {
        let wide = u128::from(self.0 ^ n).wrapping_mul(0x2d35_8dcc_aa6c_78a5_8bb8_4b93_962e_acc9);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64) ^ n.rotate_left(23);
    }
}

/// The key of what can be hashed.
pub(crate) fn key_of(s: &impl Hash) -> u64 {
    let mut h = Mix::default();
    s.hash(&mut h);
    h.finish()
}

/// The key of what can only be shown: every field that is stored is shown, so none can be forgotten.
pub(crate) fn key_of_shown(s: &impl std::fmt::Debug) -> u64 {
    struct Into(Mix);
    impl std::fmt::Write for Into {
        fn write_str(&mut self, s: &str) -> std::fmt::Result {
            self.0.write(s.as_bytes());
            Ok(())
        }
    }
    let mut to = Into(Mix::default());
    let _ = std::fmt::Write::write_fmt(&mut to, format_args!("{s:?}"));
    to.0.finish()
}
