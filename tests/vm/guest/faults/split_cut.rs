//! The power goes at any moment of the life of a leg that is split off, written past, and merged, twice.

use super::blocks::{BLOCK, Blocks};
use super::power_cut::{at_each, cuts, end_record, recorded_legs};
use super::{KIB, MIB, create, device};
use crate::devices::load;
use crate::log_writes::{Log, mark};
use crate::rig::Rig;

const SIZE: u64 = 16 * MIB;
const BLOCKS: Blocks = Blocks { count: SIZE / BLOCK as u64 };
const REGION: u64 = 128 * KIB;
/// A leg, with its metadata.
const LEG: u64 = SIZE + MIB;

const ROUNDS: u64 = 2;
/// Steps before a split, between it and the merge, and after that was asked for.
const STEPS: u64 = 6;
/// Moments that are tried: those at which a flush was done, and others.
const FLUSHES: usize = 40;
const BETWEEN: usize = 20;

/// How far a leg is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Mirror,
    /// A split was asked for.
    Splitting,
    Tracked,
    /// A merge was asked for.
    Merging,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Mirror, Phase::Splitting, Phase::Tracked, Phase::Merging];

    fn mark(self, round: u64) -> String {
        format!("{self:?}-{round}")
    }
}

pub(crate) fn every_moment_of_splits_is_survived() {
    load(&["ublk_drv", "dm-log-writes", "dm-flakey"]);
    let rig = Rig::new();
    let log = Log::open(&record(&rig));
    let steps: Vec<usize> = (0..=3 * STEPS * ROUNDS).map(|step| log.mark(&step.to_string())).collect();
    let round = |round| Phase::ALL.into_iter().map(move |phase| (phase, round));
    let phases: Vec<(usize, Phase)> = (0..=ROUNDS)
        .flat_map(round)
        .take(4 * ROUNDS as usize + 1)
        .map(|(phase, round)| (log.mark(&phase.mark(round)), phase))
        .collect();
    let cuts = cuts(&log, steps[0], FLUSHES, BETWEEN);
    let mut tried = [0; 4];
    at_each(&rig, &log, LEG, &cuts, |_, cut| {
        let step = steps.iter().filter(|&&mark| mark <= cut).count() as u64 - 1;
        let (begun, phase) = *phases.iter().rfind(|(mark, _)| *mark <= cut).unwrap();
        // The image is of the last step before the split.
        let split = phases.iter().rfind(|(mark, phase)| *mark <= cut && *phase == Phase::Splitting);
        let image = split.map(|(split, _)| steps.iter().filter(|&mark| mark <= split).count() as u64 - 1);
        println!("{phase:?} since {begun}, {step} steps flushed, image of {image:?}");
        tried[phase as usize] += 1;
        survives(&rig, step, phase, image);
    });
    println!("cuts: {tried:?} of {:?}", Phase::ALL);
    let during: u32 = tried[1..].iter().sum();
    assert!(during >= 20, "{during} cuts hit a split or merge");
}

/// Serves a volume from its creation to its end; gives where all its writes are recorded.
fn record(rig: &Rig) -> String {
    let (record, legs) = recorded_legs(rig, LEG);
    let volume = create(rig, [&legs[0], &legs[1]], SIZE, REGION);
    rig.wait();
    mark("lw", "0");
    mark("lw", &Phase::Mirror.mark(0));
    let mut done = 0;
    let mut write = || {
        for step in done + 1..=done + STEPS {
            BLOCKS.write(&volume, step);
            mark("lw", &step.to_string());
        }
        done += STEPS;
    };
    for round in 0..ROUNDS {
        write();
        mark("lw", &Phase::Splitting.mark(round));
        rig.ok(&["split", "v", "--leg", "1", "--track", "--yes"]);
        mark("lw", &Phase::Tracked.mark(round));
        write();
        mark("lw", &Phase::Merging.mark(round));
        rig.ok(&["merge", "v", "1"]);
        write();
        rig.wait();
        mark("lw", &Phase::Mirror.mark(round + 1));
    }
    end_record(rig);
    record
}

/// Starts the volume of legs `a` and `b` after so many steps and looks at everything that it holds, and at
/// what is split off.
fn survives(rig: &Rig, step: u64, phase: Phase, image: Option<u64>) {
    rig.ok(&["start", "./a", "./b"]);
    let volume = device(rig);
    let found = BLOCKS.check(&volume, step);
    let is_split = rig.status()["legs"][1]["state"] == "tracked";
    match phase {
        Phase::Mirror => assert!(!is_split),
        Phase::Tracked => assert!(is_split, "{}", rig.status()),
        Phase::Splitting | Phase::Merging => {}
    }
    if is_split {
        let image = image.expect("a leg is split off that never was");
        let leg = rig.path("b");
        let newest = BLOCKS.check(leg.to_str().unwrap(), image).into_iter().max();
        assert!(newest <= Some(image), "the image of step {image} has blocks of step {newest:?}");
        rig.ok(&["merge", "v", "1"]);
    }
    rig.wait();
    assert_eq!(rig.status()["state"], "in_sync");
    assert!(BLOCKS.check(&volume, step) == found, "what was read once changed");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
}
