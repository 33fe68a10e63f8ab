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
    let all = log.entries.len();
    let flushes: Vec<usize> = (steps[0]..all).filter(|&n| log.entries[n].is_durable()).collect();
    for leg in 0..2 {
        assert!(flushes.iter().any(|&n| leg_of(&log, n) == leg), "leg {leg} was never flushed");
    }
    println!("{all} entries, {} flushes", flushes.len());

    let mut random = Random(7);
    let mut cuts: Vec<(usize, bool)> =
        (0..FLUSHES).map(|n| (flushes[n * (flushes.len() - 1) / (FLUSHES - 1)], false)).collect();
    let between = (all - steps[0]) as u64;
    cuts.extend((0..BETWEEN).map(|_| (steps[0] + random.below(between) as usize, true)));
    cuts.sort_unstable();

    let image =
        File::options().read(true).write(true).create(true).truncate(true).open(rig.path("image")).unwrap();
    image.set_len(2 * LEG).unwrap();
    let mut replayed = 0;
    for (number, &(cut, loses)) in cuts.iter().enumerate() {
        // What both legs have for certain.
        let flushed = [0, 1].map(|leg| {
            let found = (0..cut + 1).rev().find(|&n| log.entries[n].is_durable() && leg_of(&log, n) == leg);
            found.map_or(0, |n| n + 1)
        });
        let certain = if loses { flushed[0].min(flushed[1]) } else { cut + 1 };
        log.replay(replayed..certain.max(replayed), &image);
        replayed = replayed.max(certain);
        let legs = ["a", "b"].map(|leg| fresh(&rig, leg));
        copy(&image, 0, &legs[0]);
        copy(&image, LEG, &legs[1]);
        let mut lost = 0;
        for n in replayed..cut + 1 {
            let leg = leg_of(&log, n);
            if n >= flushed[leg] && random.below(2) == 0 {
                lost += 1;
            } else {
                log.replay_at(n, &legs[leg], leg as u64 * LEG);
            }
        }
        drop(legs);
        let step = steps.iter().filter(|&&mark| mark <= cut).count() as u64 - 1;
        let front = if number % 2 == 0 { "fuse" } else { "ublk" };
        println!("cut at {cut}, {lost} writes lost, {step} steps flushed, {front}");
        survives(&rig, step, front);
    }
    // At its end the image is the disk, byte by byte.
    log.replay(replayed..all, &image);
    same(rig.path("image").to_str().unwrap(), rig.path("disk").to_str().unwrap(), 2 * LEG);
}

fn leg_of(log: &Log, entry: usize) -> usize {
    usize::from(log.entries[entry].at >= LEG)
}

/// Serves a volume from its creation to its end; gives where all its writes are recorded.
fn record(rig: &Rig) -> String {
    let (disk, record) = (loop_leg(rig, "disk", 2 * LEG), loop_leg(rig, "record", 256 * MIB));
    let all = dm(rig, "lw", &format!("0 {} log-writes {disk} {record}", sectors(&disk)));
    // Never flakey: a linear slice would not say which leg a flush was for.
    let slice = |name: &str, start: u64| {
        dm(rig, name, &format!("0 {} flakey {all} {} 60000 0", LEG / 512, start / 512))
    };
    let legs = [slice("leg-a", 0), slice("leg-b", LEG)];
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
    rig.ok(&["stop", "v"]);
    for name in ["leg-a", "leg-b", "lw"] {
        sh("dmsetup", &["remove", name]);
    }
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

fn fresh(rig: &Rig, name: &str) -> File {
    let file = File::create(rig.path(name)).unwrap();
    file.set_len(LEG).unwrap();
    file
}

/// Copies a leg out of the image, without its zeroes.
fn copy(image: &File, from: u64, leg: &File) {
    let mut piece = vec![0; 64 << 10];
    for at in (0..LEG).step_by(piece.len()) {
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
