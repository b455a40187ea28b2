//! Runs the simulation of the whole over many seeds: `ops/simulate --seeds N [--seed S] [--plant NAME]`. Prints what was found,
//! and how far it looked.

mod simulation;

use simulation::{Run, coverage::Coverage, plants::Plant, run};
use std::{
    io::Write,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};
// The generator of random graphs knows these by the names they have in this crate.
use windlass_domain::{flow, work};

struct Asked {
    seeds: u64,
    first: u64,
    plant: Option<Plant>,
    tell: bool,
}

fn asked() -> Result<Asked, String> {
    let mut a = Asked { seeds: 1_000, first: 0, plant: None, tell: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "--seeds" => a.seeds = value()?.parse().map_err(|_| "--seeds wants a number")?,
            "--seed" => {
                a.first = value()?.parse().map_err(|_| "--seed wants a number")?;
                (a.seeds, a.tell) = (1, true);
            }
            "--from" => a.first = value()?.parse().map_err(|_| "--from wants a number")?,
            "--plant" => {
                let name = value()?;
                let all: Vec<String> = Plant::ALL.iter().map(|p| format!("{p:?}")).collect();
                let known = Plant::of(&name);
                a.plant = Some(known.ok_or(format!("no safeguard is called {name}; there are {}", all.join(", ")))?);
            }
            other => return Err(format!("{other} is unknown: use --seeds N, --from S, --seed S, --plant NAME")),
        }
    }
    Ok(a)
}

/// All seeds, on all processors.
fn all(a: &Asked) -> (Vec<Run>, u64, f64, Coverage) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let next = AtomicU64::new(a.first);
    let worker = || {
        let (mut wrong, mut events, mut hours, mut coverage) = (Vec::new(), 0, 0.0, Coverage::default());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= a.first + a.seeds {
                return (wrong, events, hours, coverage);
            }
            let mut r = run(seed, a.plant, a.tell);
            events += r.events;
            hours += r.time as f64 / 3_600_000.0;
            coverage.add(&r.coverage);
            if r.wrong.is_some() && !a.tell {
                // Once more, with its trace: the same seed is the same run.
                r = run(seed, a.plant, true);
            }
            if r.wrong.is_some() || a.tell {
                wrong.push(r);
            }
        }
    };
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..threads).map(|_| s.spawn(worker)).collect();
        let (mut wrong, mut events, mut hours, mut coverage) = (Vec::new(), 0, 0.0, Coverage::default());
        for w in workers {
            let Ok((found, e, h, c)) = w.join() else { continue };
            wrong.extend(found);
            events += e;
            hours += h;
            coverage.add(&c);
        }
        (wrong, events, hours, coverage)
    })
}

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    let asked = match asked() {
        Ok(a) => a,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "error: {why}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let (mut told, events, hours, coverage) = all(&asked);
    let s = began.elapsed().as_secs_f64();
    told.sort_by_key(|r| r.seed);
    let wrong = told.iter().filter(|r| r.wrong.is_some()).count();
    let _ = writeln!(out, "{coverage}");
    let never = coverage.never_met();
    if !never.is_empty() && asked.seeds > 100 && asked.plant.is_none() {
        let _ = writeln!(out, "never met: {}", never.join(", "));
    }
    for r in told.iter().take(3) {
        let what = r.wrong.as_deref().unwrap_or("all is well");
        let _ = writeln!(out, "\nseed {} (trace {:016x}): {what}\n{}", r.seed, r.hash, r.tail.join("\n"));
    }
    let names: Vec<String> = told.iter().filter(|r| r.wrong.is_some()).take(20).map(|r| r.seed.to_string()).collect();
    let (n, rate) = (asked.seeds, asked.seeds as f64 / s);
    let _ = writeln!(
        out,
        "\n{n} seeds from {}, {wrong} of them wrong [{}]; {events} events, {hours:.1} simulated hours, {s:.1} s, {rate:.0} seeds/s",
        asked.first,
        names.join(" "),
    );
    // With a plant it is the other way round: it has to be found.
    if (wrong > 0) == asked.plant.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
