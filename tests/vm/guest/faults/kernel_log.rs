//! The kernel's dm-mirror and mirrord take over each other's log: after a crash the other one resyncs the regions
//! that the log says are dirty, all of them and no more.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::blocks::{BLOCK, Blocks};
use super::{KIB, MIB, device, number, pause, same};
use crate::devices::{dm, load, loop_leg};
use crate::rig::{Rig, sh, until};

const SIZE: u64 = 32 * MIB;
const REGION: u64 = 512 * KIB;
const REGIONS: u64 = SIZE / REGION;
const BLOCKS: Blocks = Blocks { count: SIZE / BLOCK as u64 };
/// A leg, with the metadata that mirrord needs; the log.
const LEG: u64 = SIZE + MIB;
const ALL: u64 = 2 * LEG + MIB;
/// Regions that the first crash leaves dirty.
const DIRTY: [u64; 7] = [0, 3, 8, 31, 32, 50, REGIONS - 1];

/// Whether the log of this image of all disks has a region that is not clean.
fn is_dirty(image: &str) -> bool {
    let mut bits = [0; REGIONS as usize / 8];
    fs::File::open(image).unwrap().read_exact_at(&mut bits, 2 * LEG + 1024).unwrap();
    bits != [0xff; REGIONS as usize / 8]
}

/// Legs and log are slices of one disk, so that all can be stopped at one moment.
struct Disks {
    rig: Rig,
    a: String,
    b: String,
    log: String,
}

pub(crate) fn each_reads_the_others_log() {
    load(&["ublk_drv", "dm-mirror"]);
    let rig = Rig::new();
    let disk = loop_leg(&rig, "disk", ALL);
    let all = dm(&rig, "all", &format!("0 {} linear {disk} 0", ALL / 512));
    let slice = |name: &str, start: u64, len: u64| {
        dm(&rig, name, &format!("0 {} linear {all} {}", len / 512, start / 512))
    };
    let (a, b, log) = (slice("a", 0, LEG), slice("b", LEG, LEG), slice("log", 2 * LEG, MIB));
    let disks = Disks { rig, a, b, log };

    let flushed = disks.mirrord_crashes();
    disks.kernel_resyncs();
    let flushed = disks.kernel_crashes(flushed, "");
    println!("mirrord goes on with the kernel's log");
    let dirty = disks.dirty();
    disks.rig.ok(&["start", "v"]);
    disks.mirrord_resyncs(dirty, flushed);

    // A mirror that mirrord has never seen.
    for name in ["a", "b", "log"] {
        let (disk, start) = (format!("of=/dev/mapper/{name}"), if name == "log" { 0 } else { SIZE / MIB });
        sh("dd", &["if=/dev/zero", &disk, "bs=1M", "count=1", &format!("seek={start}"), "oflag=direct"]);
    }
    let flushed = disks.kernel_crashes(flushed, "nosync");
    println!("mirrord adopts the kernel's log");
    let dirty = disks.dirty();
    disks.create(&["--adopt-log", "--source", &disks.a]);
    disks.mirrord_resyncs(dirty, flushed);
}

impl Disks {
    fn create(&self, more: &[&str]) {
        let (size, region_size, log) = (SIZE.to_string(), REGION.to_string(), format!("disk:{}", self.log));
        let what = ["create", "--legs", &self.a, &self.b, "--name", "v", "--size", &size, "--front", "ublk"];
        self.rig.ok(&[&what[..], &["--region-size", &region_size, "--log", &log], more].concat());
    }

    /// A daemon dies with some regions dirty, and the legs differ in each. Gives the steps that were flushed.
    fn mirrord_crashes(&self) -> u64 {
        self.create(&[]);
        let volume = device(&self.rig);
        (1..4).for_each(|step| BLOCKS.write(&volume, step));
        until("no region is dirty", || number(&self.rig.status(), "/log/dirty_regions") == 0);
        for region in DIRTY {
            // Zeroes, as they were: a step knows nothing of this.
            let at = region * REGION / BLOCK as u64 + (0..).find(|&n| !self.is_used(region, n)).unwrap();
            let (to, at) = (format!("of={volume}"), format!("seek={at}"));
            let block = ["if=/dev/zero", "bs=4k", "count=1", "oflag=direct", "conv=fdatasync,notrunc"];
            sh("dd", &[&block[..], &[&to, &at]].concat());
        }
        self.rig.kill();
        self.rig.ok(&["stop", "v", "--force"]);
        for region in DIRTY {
            let (to, at) = (format!("of={}", self.b), format!("seek={}", region * REGION / BLOCK as u64 + 1));
            sh("dd", &["if=/dev/urandom", "bs=4k", "count=3", "oflag=direct", "conv=notrunc", &to, &at]);
        }
        assert_eq!(self.dirty(), DIRTY.len() as u64);
        3
    }

    fn is_used(&self, region: u64, n: u64) -> bool {
        let block = region * REGION / BLOCK as u64 + n;
        (1..4).any(|step| BLOCKS.writes(step, block))
    }

    /// Regions that are dirty in the log, as it is on disk.
    fn dirty(&self) -> u64 {
        let report = serde_json::from_str(&self.rig.ok(&["inspect", &self.log, "--json"])).unwrap();
        number(&report, "/dirty_regions")
    }

    fn kernel_starts(&self, mode: &str) {
        let (a, b) = (&self.a, &self.b);
        let log =
            format!("disk {} {} {} {mode}", if mode.is_empty() { 2 } else { 3 }, self.log, REGION / 512);
        let table = format!("0 {} mirror {log} 2 {a} 0 {b} 0 1 handle_errors", SIZE / 512);
        sh("dmsetup", &["create", "m", "--table", &table]);
        until("the kernel has resynced", || {
            sh("dmsetup", &["status", "m"]).contains(&format!(" {REGIONS}/{REGIONS} "))
        });
    }

    fn kernel_resyncs(&self) {
        let before = self.sectors_written();
        self.kernel_starts("");
        let written = self.sectors_written() - before;
        println!("the kernel wrote {written} sectors to the second leg");
        assert_eq!(written, DIRTY.len() as u64 * REGION / 512, "just what was dirty");
        let refused = self.rig.run(&["start", "v"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("in use"), "{said}");
        BLOCKS.check("/dev/mapper/m", 3);
        sh("dmsetup", &["remove", "m"]);
        same(&self.a, &self.b, SIZE);
    }

    /// Sectors written to the second leg so far.
    fn sectors_written(&self) -> u64 {
        let name = sh("dmsetup", &["info", "-c", "--noheadings", "-o", "blkdevname", "b"]);
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", name.trim())).unwrap();
        stat.split_whitespace().nth(6).unwrap().parse().unwrap()
    }

    /// The kernel mirrors while somebody writes; the disks are then as they were at one moment of that. Gives the
    /// steps that were flushed.
    fn kernel_crashes(&self, flushed: u64, mode: &str) -> u64 {
        self.kernel_starts(mode);
        let (done, ending) = (AtomicU64::new(flushed), AtomicBool::new(false));
        let image = self.rig.path("image");
        let image = image.to_str().unwrap();
        let flushed = thread::scope(|scope| {
            scope.spawn(|| {
                for step in flushed + 1.. {
                    if ending.load(Ordering::SeqCst) {
                        return;
                    }
                    BLOCKS.write("/dev/mapper/m", step);
                    done.store(step, Ordering::SeqCst);
                }
            });
            until("some steps are done", || done.load(Ordering::SeqCst) >= flushed + 10);
            let flushed = loop {
                sh("dmsetup", &["suspend", "--noflush", "--nolockfs", "all"]);
                // Whoever was told of a flush just before has said so by then.
                pause(1000);
                let flushed = done.load(Ordering::SeqCst);
                sh("cp", &["--sparse=always", self.rig.path("disk").to_str().unwrap(), image]);
                sh("dmsetup", &["resume", "all"]);
                if is_dirty(image) {
                    break flushed;
                }
            };
            ending.store(true, Ordering::SeqCst);
            flushed
        });
        sh("dmsetup", &["remove", "m"]);
        let (from, to) = (format!("if={image}"), "of=/dev/mapper/all");
        sh("dd", &[&from, to, "bs=1M", "oflag=direct", "conv=fsync"]);
        println!("the kernel's mirror crashed after {flushed} steps");
        flushed
    }

    /// The volume that was started has these regions dirty, and all that was flushed.
    fn mirrord_resyncs(&self, dirty: u64, flushed: u64) {
        println!("{dirty} regions are dirty");
        assert!(dirty > 0 && dirty < REGIONS, "{dirty} regions are dirty");
        let volume = device(&self.rig);
        let found = BLOCKS.check(&volume, flushed);
        self.rig.wait();
        let status = self.rig.status();
        assert_eq!(number(&status, "/log/dirty_regions_at_start"), dirty, "{status}");
        assert_eq!(number(&status, "/resync/copied_regions"), dirty, "{status}");
        assert!(BLOCKS.check(&volume, flushed) == found, "what was read once changed");
        self.rig.ok(&["stop", "v"]);
        same(&self.a, &self.b, SIZE);
    }
}
