//! The power goes at any moment: both legs of a volume are slices of one disk whose writes are recorded, and the
//! record is replayed up to many moments. What each leg wrote after its own last flush may be there or not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::blocks::{BLOCK, Blocks, Random};
use super::{KIB, MIB, create, device, number, pause, resynced, same};
use crate::devices::{dm, load, loop_leg, sectors};
use crate::log_writes::{Log, mark};
use crate::rig::{Rig, sh, until};

/// Of the volume: numbered blocks, then an ext4.
const SIZE: u64 = 16 * MIB;
const FILES_AT: u64 = 8 * MIB;
const BLOCKS: Blocks = Blocks { count: FILES_AT / BLOCK as u64 };
const REGION: u64 = 128 * KIB;
/// A leg, with its metadata.
const LEG: u64 = SIZE + MIB;

const STEPS: u64 = 30;
/// Moments that are tried: those at which a flush was done, and others.
const FLUSHES: usize = 24;
const BETWEEN: usize = 12;

pub(crate) fn every_moment_is_survived() {
    load(&["ublk_drv", "dm-log-writes", "dm-flakey"]);
    let rig = Rig::new();
    let log = Log::open(&record(&rig));
    let steps: Vec<usize> = (0..=STEPS).map(|step| log.mark(&step.to_string())).collect();
    for leg in 0..2 {
        let mut flushes = (steps[0]..log.entries.len()).filter(|&n| log.entries[n].is_durable());
        assert!(flushes.any(|n| leg_of(&log, n, LEG) == leg), "leg {leg} was never flushed");
    }
    let cuts = cuts(&log, steps[0], FLUSHES, BETWEEN);
    at_each(&rig, &log, LEG, &cuts, |number, cut| {
        let step = steps.iter().filter(|&&mark| mark <= cut).count() as u64 - 1;
        let front = if number % 2 == 0 { "fuse" } else { "ublk" };
        println!("{step} steps flushed, {front}");
        survives(&rig, step, front);
    });
}

/// Brings back the legs `a` and `b`, each `leg` bytes long, as they can be after a power cut at each of these
/// entries, and goes on with `then`: the number of the cut and its entry. With a cut is said whether
/// what a leg wrote after its own last flush may be lost, or not.
pub(super) fn at_each(
    rig: &Rig,
    log: &Log,
    leg: u64,
    cuts: &[(usize, bool)],
    mut then: impl FnMut(usize, usize),
) {
    let all = log.entries.len();
    let mut random = Random(7);
    let image =
        File::options().read(true).write(true).create(true).truncate(true).open(rig.path("image")).unwrap();
    image.set_len(2 * leg).unwrap();
    let mut replayed = 0;
    for (number, &(cut, loses)) in cuts.iter().enumerate() {
        // What both legs have for certain.
        let flushed = [0, 1].map(|which| {
            let is_flush = |&n: &usize| log.entries[n].is_durable() && leg_of(log, n, leg) == which;
            (0..cut + 1).rev().find(is_flush).map_or(0, |n| n + 1)
        });
        let certain = if loses { flushed[0].min(flushed[1]) } else { cut + 1 };
        log.replay(replayed..certain.max(replayed), &image);
        replayed = replayed.max(certain);
        let legs = ["a", "b"].map(|name| fresh(rig, name, leg));
        copy(&image, 0, leg, &legs[0]);
        copy(&image, leg, leg, &legs[1]);
        let mut lost = 0;
        for n in replayed..cut + 1 {
            let which = leg_of(log, n, leg);
            if n >= flushed[which] && random.below(2) == 0 {
                lost += 1;
            } else {
                log.replay_at(n, &legs[which], which as u64 * leg);
            }
        }
        drop(legs);
        println!("cut at {cut}, {lost} writes lost");
        then(number, cut);
    }
    // At its end the image is the disk, byte by byte.
    log.replay(replayed..all, &image);
    same(rig.path("image").to_str().unwrap(), rig.path("disk").to_str().unwrap(), 2 * leg);
}

/// Moments at which the power goes, in order: so many at which a flush was done, and so many others.
pub(super) fn cuts(log: &Log, from: usize, flushes: usize, between: usize) -> Vec<(usize, bool)> {
    let all = log.entries.len();
    let durable: Vec<usize> = (from..all).filter(|&n| log.entries[n].is_durable()).collect();
    println!("{all} entries, {} flushes", durable.len());
    let mut random = Random(7);
    let mut cuts: Vec<(usize, bool)> =
        (0..flushes).map(|n| (durable[n * (durable.len() - 1) / (flushes - 1)], false)).collect();
    let span = (all - from) as u64;
    cuts.extend((0..between).map(|_| (from + random.below(span) as usize, true)));
    cuts.sort_unstable();
    cuts
}

/// Two legs, each `leg` bytes long, as slices of one disk whose writes are recorded; and where they are.
pub(super) fn recorded_legs(rig: &Rig, leg: u64) -> (String, [String; 2]) {
    let (disk, record) = (loop_leg(rig, "disk", 2 * leg), loop_leg(rig, "record", 256 * MIB));
    let all = dm(rig, "lw", &format!("0 {} log-writes {disk} {record}", sectors(&disk)));
    // Never flakey: a linear slice would not say which leg a flush was for.
    let slice = |name: &str, start: u64| {
        dm(rig, name, &format!("0 {} flakey {all} {} 60000 0", leg / 512, start / 512))
    };
    (record, [slice("leg-a", 0), slice("leg-b", leg)])
}

/// The record is at its end.
pub(super) fn end_record(rig: &Rig) {
    rig.ok(&["stop", "v"]);
    for name in ["leg-a", "leg-b", "lw"] {
        sh("dmsetup", &["remove", name]);
    }
}

/// Which of two legs of this length an entry is of.
fn leg_of(log: &Log, entry: usize, leg: u64) -> usize {
    usize::from(log.entries[entry].at >= leg)
}

/// Serves a volume from its creation to its end; gives where all its writes are recorded.
fn record(rig: &Rig) -> String {
    let (record, legs) = recorded_legs(rig, LEG);
    let volume = create(rig, [&legs[0], &legs[1]], SIZE, REGION);
    let part = |start: u64, len: u64| format!("0 {} linear {volume} {}", len / 512, start / 512);
    let files = dm(rig, "files", &part(FILES_AT, SIZE - FILES_AT));
    sh("mkfs.ext4", &["-q", &files]);
    let mnt = rig.path("mnt");
    fs::create_dir(&mnt).unwrap();
    let mount = mnt.to_str().unwrap();
    sh("mount", &[&files, mount]);
    sh("sync", &["-f", mount]);
    let is_clean = || number(&rig.status(), "/log/dirty_regions") == 0;
    until("what mkfs zeroed is clean", is_clean);
    mark("lw", "0");
    for step in 1..=STEPS {
        BLOCKS.write(&volume, step);
        write_file(&mnt, step).unwrap();
        mark("lw", &step.to_string());
        if step == STEPS / 2 {
            until("no region is dirty", is_clean);
        } else if step % 5 == 0 {
            pause(300);
        }
    }
    sh("umount", &[mount]);
    sh("dmsetup", &["remove", "files"]);
    end_record(rig);
    record
}

fn content(step: u64) -> Vec<u8> {
    let len = 3000 * (step % 7 + 1);
    (0..len).map(|at| (at * step / 16) as u8).collect()
}

fn write_file(folder: &Path, step: u64) -> io::Result<()> {
    let file = File::create(folder.join(step.to_string()))?;
    file.write_all_at(&content(step), 0)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()
}

fn fresh(rig: &Rig, name: &str, len: u64) -> File {
    let file = File::create(rig.path(name)).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Copies a leg out of the image, without its zeroes.
fn copy(image: &File, from: u64, len: u64, leg: &File) {
    let mut piece = vec![0; 64 << 10];
    for at in (0..len).step_by(piece.len()) {
        image.read_exact_at(&mut piece, from + at).unwrap();
        if piece.iter().any(|&byte| byte != 0) {
            leg.write_all_at(&piece, at).unwrap();
        }
    }
}

/// Starts the volume of legs `a` and `b` after so many steps and looks at everything that it holds.
fn survives(rig: &Rig, step: u64, front: &str) {
    // Neither --degraded nor --source: there is nothing to ask.
    rig.ok(&["start", "./a", "./b", "--front", front]);
    let volume = device(rig);
    let found = BLOCKS.check(&volume, step);
    let mnt = rig.path("mnt");
    sh("mount", &["-o", &format!("loop,offset={FILES_AT}"), &volume, mnt.to_str().unwrap()]);
    for step in 1..=step {
        let there = fs::read(mnt.join(step.to_string())).unwrap_or_default();
        assert!(there == content(step), "file {step}, {} bytes", there.len());
    }
    sh("umount", &[mnt.to_str().unwrap()]);
    sh("e2fsck", &["-fn", &format!("{volume}?offset={FILES_AT}")]);
    let (dirty, copied) = resynced(rig, SIZE / REGION * 3 / 4);
    println!("  {dirty} regions dirty, {copied} copied");
    assert!(BLOCKS.check(&volume, step) == found, "what was read once changed");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
}
