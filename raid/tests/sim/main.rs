//! The mirror in simulation: queues, log worker and background worker on disks that lose, tear, fail,
//! lag and hang, killed and cut off at any moment, all from one `u64` seed. No time, no threads.
//!
//! - [`sim::Sim`]: the world; [`run::run`] its course from seed to end.
//! - [`disk`], [`blocks`], [`faults`], [`late`], [`far`], [`images`]: the hostile part.
//! - [`beside`], [`place`]: a log on a server, with the real client.
//! - [`history`], [`checks`], [`recents`], [`scrubs`], [`survey`]: what must hold; a panic names the invariant of ARCHITECTURE.md.
//! - [`coverage`]: what was exercised.
//!
//! ```text
//! cargo test -p mirrord-raid --test sim
//! MIRRORD_SOAK=1000000 cargo test --release -p mirrord-raid --test sim soak -- --ignored --nocapture
//! MIRRORD_SEED=123 cargo test -p mirrord-raid --test sim replay -- --ignored --nocapture
//! ```

#![cfg(not(loom))]

mod beside;
mod blocks;
mod boot;
mod checks;
mod config;
mod coverage;
mod daemon;
mod disk;
mod driver;
mod far;
mod faults;
mod growth;
mod history;
mod images;
mod late;
mod legs;
mod metadata;
mod place;
mod recents;
mod requests;
mod rng;
mod roster;
mod run;
mod scrubs;
mod sim;
mod soak;
mod splits;
mod survey;

/// Chosen to take less than a minute unoptimized.
const FIXED_SEEDS: u64 = 20_000;

/// The same seeds each time, and everything is exercised.
#[test]
fn fixed_seeds() {
    let coverage = soak::soak(0..FIXED_SEEDS, soak::jobs());
    let missed = coverage.missed();
    assert!(missed.is_empty(), "the simulator does not exercise {missed:?}");
}

/// `MIRRORD_SOAK=count` or `MIRRORD_SEEDS=first..last`, `MIRRORD_JOBS=threads`.
#[test]
#[ignore = "runs for as long as it is told to"]
fn soak() {
    soak::soak(soak::seeds(), soak::jobs());
}

/// `MIRRORD_SEED=seed`: one run, with a trace.
#[test]
#[ignore = "replays one seed"]
fn replay() {
    let seed = std::env::var("MIRRORD_SEED").expect("MIRRORD_SEED names the run");
    run::run(seed.parse().expect("MIRRORD_SEED is a number"), true);
}
