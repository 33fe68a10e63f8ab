//! Many seeds on some threads, with progress, and the first violation as a command that replays it.

use std::ops::Range;
use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::coverage::Coverage;
use crate::run::run;

/// Seconds between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not understood")))
}

/// The seeds asked for.
pub(crate) fn seeds() -> Range<u64> {
    if let Some(count) = variable("MIRRORD_SOAK") {
        return 0..count;
    }
    let seeds: String = variable("MIRRORD_SEEDS").unwrap_or_else(|| "0..100000".to_owned());
    let (first, last) = seeds.split_once("..").unwrap_or(("0", &seeds));
    let number =
        |text: &str| text.parse().unwrap_or_else(|_| panic!("MIRRORD_SEEDS={seeds}: want first..last"));
    number(first)..number(last)
}

/// The threads asked for.
pub(crate) fn jobs() -> usize {
    variable("MIRRORD_JOBS")
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// Runs every seed, prints what was seen, panics at the first violation (with `MIRRORD_KEEP_GOING`,
/// prints all and panics at the end).
pub(crate) fn soak(seeds: Range<u64>, jobs: usize) -> Coverage {
    let total = Mutex::new(Coverage::default());
    let (next, done) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let violation = Mutex::new(None);
    let keep_going = std::env::var_os("MIRRORD_KEEP_GOING").is_some();
    let began = Instant::now();
    let worker = || {
        let mut mine = Coverage::default();
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= seeds.end || done.load(Relaxed) {
                break;
            }
            match catch_unwind(|| run(seed, false)) {
                Ok(coverage) => mine.add(&coverage),
                Err(what) => {
                    let text = what.downcast_ref::<String>().map_or("", String::as_str);
                    let mut first = violation.lock().unwrap();
                    if keep_going {
                        println!("seed {seed}: {text}");
                    } else {
                        done.store(true, Relaxed);
                    }
                    first.get_or_insert((seed, text.to_owned()));
                }
            }
            if mine.total_runs == 256 {
                total.lock().unwrap().add(&std::mem::take(&mut mine));
            }
        }
        if mine.total_runs > 0 {
            total.lock().unwrap().add(&mine);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        let mut printed = Instant::now();
        while !workers.iter().all(|worker| worker.is_finished()) {
            std::thread::park_timeout(Duration::from_millis(20));
            if printed.elapsed() >= PROGRESS {
                printed = Instant::now();
                progress(&total.lock().unwrap(), began);
            }
        }
    });
    let total = total.into_inner().unwrap();
    if let Some((seed, text)) = violation.into_inner().unwrap() {
        panic!(
            "seed {seed} breaks {text}\nreplay it with\n  \
             MIRRORD_SEED={seed} cargo test -p mirrord-raid --test sim replay -- --ignored --nocapture"
        );
    }
    total.print();
    progress(&total, began);
    total
}

fn progress(seen: &Coverage, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let (runs, crashes) = (seen.total_runs as f64 / seconds, seen.crashes as f64 / seconds);
    println!(
        "{seconds:.0} s: {} runs ({runs:.0}/s), {} crashes and restarts ({crashes:.0}/s)",
        seen.total_runs, seen.crashes
    );
}
