//! Legs that fail for a while, or until they are mended, under load. Writes that a disk drops without a word are
//! not among this: no mirror can tell.

use serde_json::Value;

use super::blocks::{BLOCK, Blocks};
use super::{MIB, create, number, pause, same};
use crate::devices::{dm, load, loop_leg, sectors, write_and_verify};
use crate::rig::{Rig, sh};

const SIZE: u64 = 64 * MIB;
const REGION: u64 = MIB;
/// What fio writes, and checks.
const USED: u64 = 8 * MIB;
const BLOCKS: Blocks = Blocks { count: USED / BLOCK as u64 };

/// A leg that can be made to fail.
struct Leg {
    name: &'static str,
    disk: String,
    path: String,
}

impl Leg {
    fn new(rig: &Rig, name: &'static str) -> Leg {
        let disk = loop_leg(rig, &format!("disk-{name}"), SIZE + MIB);
        let path = dm(rig, name, &format!("0 {} linear {disk} 0", sectors(&disk)));
        Leg { name, disk, path }
    }

    /// Puts another target in place of the present one.
    fn becomes(&self, target: &str) {
        let table = format!("0 {} {}", sectors(&self.disk), target.replace("DISK", &self.disk));
        println!("leg {}: {table}", self.name);
        sh("dmsetup", &["load", self.name, "--table", &table]);
        sh("dmsetup", &["suspend", self.name]);
        sh("dmsetup", &["resume", self.name]);
    }

    fn is_mended(&self) {
        self.becomes("linear DISK 0");
    }
}

pub(crate) fn a_leg_fails_and_is_mended() {
    load(&["ublk_drv", "dm-flakey"]);
    let rig = Rig::new();
    let (a, b) = (Leg::new(&rig, "a"), Leg::new(&rig, "b"));
    let volume = create(&rig, [&a.path, &b.path], SIZE, REGION);

    // Reads that fail now and then are served from elsewhere, and cost nothing.
    BLOCKS.write(&volume, 1);
    b.becomes("flakey DISK 0 3 2 1 error_reads");
    let mut reads = 0;
    while number(&rig.status(), "/legs/1/read_errors") < 3 {
        BLOCKS.check_one(&volume, 1, reads);
        reads += 1;
        assert!(reads < 600, "no read failed");
        pause(100);
    }
    let status = rig.status();
    println!("after {reads} reads: {}", status["legs"][1]);
    assert_eq!((state(&status, 1), &status["state"]), ("in_sync", &"in_sync".into()), "{status}");
    b.is_mended();

    // The first write that fails costs the leg, not its writer.
    b.becomes("flakey DISK 0 3 2 1 error_writes");
    fails_under_load(&rig, &volume, 1);
    b.is_mended();
    comes_back(&rig, &volume, [&a, &b], 1);

    // So does a disk that is gone, and comes back.
    let volume = super::device(&rig);
    a.becomes("error");
    fails_under_load(&rig, &volume, 0);
    a.is_mended();
    comes_back(&rig, &volume, [&a, &b], 0);
    rig.ok(&["stop", "v"]);
    same(&a.path, &b.path, SIZE);
}

fn state(status: &Value, leg: usize) -> &str {
    status["legs"][leg]["state"].as_str().unwrap()
}

/// fio sees no error, and the volume goes on without the leg.
fn fails_under_load(rig: &Rig, volume: &str, leg: usize) {
    let mut rounds = 0;
    while state(&rig.status(), leg) != "failed" {
        write_and_verify(volume, USED);
        rounds += 1;
        assert!(rounds < 30, "the leg did not fail");
    }
    write_and_verify(volume, USED);
    let status = rig.status();
    println!("failed after {rounds} rounds: {}", status["legs"][leg]);
    assert_eq!(status["legs"][leg]["reason"], "io_error", "{status}");
    assert_eq!((status["state"].as_str().unwrap(), state(&status, 1 - leg)), ("degraded", "in_sync"));
    assert_eq!(number(&status, "/io/errors"), 0);
    let count = |what: &str| number(&status, &format!("/legs/{leg}/{what}_errors"));
    assert!(count("read") + count("write") + count("flush") > 0, "errors are counted: {status}");
}

/// A mended leg is in the volume again with the next start; what changed meanwhile is copied, and no more.
fn comes_back(rig: &Rig, volume: &str, legs: [&Leg; 2], leg: usize) {
    write_and_verify(volume, USED);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    rig.wait();
    let status = rig.status();
    let copied = number(&status, "/resync/copied_regions");
    println!("copied {copied} regions: {}", status["legs"][leg]);
    assert_eq!((state(&status, 0), state(&status, 1)), ("in_sync", "in_sync"));
    assert!((1..=USED / REGION).contains(&copied), "copied {copied} regions: {status}");
    rig.ok(&["stop", "v"]);
    same(&legs[0].path, &legs[1].path, SIZE);
    rig.ok(&["start", "v"]);
}
