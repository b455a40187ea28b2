//! Models of what must never go wrong, searched exhaustively: the deployment machine, the environment's lock, and the way of
//! requests and events through the database. Each drives the code of this crate where it has code for the thing. For every
//! safeguard there is a mutant without it, and the search must find out.
//!
//! The quick form runs with the other tests. `WINDLASS_MODELS=long` (`ops/simulate --models`) looks much further.

mod automaton;
mod deployment;
mod lock;
mod outbox;
mod search;

use search::{Found, Limits, Model};
use std::time::Instant;

/// Whether to look as far as the memory of a usual machine goes.
pub(crate) fn long() -> bool {
    std::env::var("WINDLASS_MODELS").is_ok_and(|v| v == "long")
}

/// Searches, prints what was seen, and fails where something is wrong.
pub(crate) fn holds<M: Model>(name: &str, m: &M, limits: Limits) -> Found {
    let began = Instant::now();
    let found = search::search(m, limits);
    let (n, t, depth, ends) = (found.states, found.transitions, found.depth, found.ends);
    let whole = if found.whole { "all" } else { "NOT all" };
    let s = began.elapsed().as_secs_f32();
    eprintln!("model {name}: {n} states ({whole} of them), {t} transitions, {depth} deep, {ends} ends, {s:.1} s");
    if let Some((what, way)) = &found.wrong {
        panic!("{name}: {what}\n  {}", way.join("\n  "));
    }
    found
}

/// Searches without a safeguard, and fails where nothing is found.
pub(crate) fn is_caught<M: Model>(name: &str, m: &M, limits: Limits) {
    let found = search::search(m, limits);
    match found.wrong {
        Some((what, way)) => {
            let (steps, states) = (way.len(), found.states);
            eprintln!("  without {name}: {what}; after {steps} steps, {states} states");
            if std::env::var("WINDLASS_MODELS_TELL").is_ok() {
                eprintln!("    {}", way.join("\n    "));
            }
        }
        None => panic!("nothing goes wrong without {name}, in {} states (whole: {})", found.states, found.whole),
    }
}
