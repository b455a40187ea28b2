//! The simulation of the whole (`examples/simulate`) in short: some seeds, all kept ones, every safeguard taken out once. The
//! long form is `ops/simulate --seeds N`.

#[path = "../../examples/simulate/simulation/mod.rs"]
mod simulation;

use simulation::{coverage::Coverage, plants::Plant, run};
// The generator of random graphs knows these by the names they have in this crate.
use windlass_domain::{flow, work};

/// Seeds that once showed a fault, and for each safeguard one that shows its absence.
const KEPT: &str = include_str!("kept");
const SEEDS: u64 = 200;
/// Within so many seeds the absence of a safeguard shows.
const ENOUGH: u64 = 300;

fn kept(what: &str) -> Vec<u64> {
    let lines = KEPT.lines().map(|l| l.split('#').next().unwrap_or_default().trim());
    lines.filter_map(|l| l.strip_prefix(what)?.trim().parse().ok()).collect()
}

fn is_well(seed: u64) -> Coverage {
    let r = run(seed, None, false);
    if let Some(what) = r.wrong {
        // The same seed is the same run: once more, to tell how it came to that.
        let told = run(seed, None, true).tail.join("\n");
        panic!("seed {}: {what}\n{told}", r.seed);
    }
    r.coverage
}

#[test]
fn nothing_goes_wrong_whatever_breaks() {
    let mut all = Coverage::default();
    for seed in (0..SEEDS).chain(kept("seed")) {
        all.add(&is_well(seed));
    }
    eprintln!("{all}");
    // What the runs never came by, they say nothing about.
    let missing = all.never_met();
    assert!(missing.is_empty(), "never met: {}", missing.join(", "));
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 4] {
        let (a, b) = (run(seed, None, false), run(seed, None, true));
        assert_eq!((a.hash, a.events, a.time), (b.hash, b.events, b.time));
        assert!(!b.tail.is_empty());
    }
    assert_ne!(run(3, None, false).hash, run(4, None, false).hash);
}

#[test]
fn the_absence_of_each_safeguard_shows() {
    for plant in Plant::ALL {
        let first = kept(&format!("{plant:?}"));
        let found =
            first.into_iter().chain(0..ENOUGH).find_map(|seed| Some((seed, run(seed, Some(plant), false).wrong?)));
        match found {
            Some((seed, what)) => eprintln!("{plant:?} {seed} # {what}"),
            None => panic!("{plant:?} shows in none of {ENOUGH} seeds"),
        }
    }
}

/// The names are those that people give on the command line.
#[test]
fn plants_have_names() {
    assert!(Plant::ALL.into_iter().all(|p| Plant::of(&format!("{p:?}")) == Some(p)));
}
