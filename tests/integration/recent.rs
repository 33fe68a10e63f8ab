//! A leg that is out, or copied to, does not cost the redundancy of the others: after a crash they are copied to where the
//! volume was written to lately, and can serve alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::rig::{Rig, newest_slot, until};

const MIB: u64 = 1 << 20;
const MIBS: u64 = 64;
/// Written to just before the crash.
const LAST: u64 = 41;

/// Volume `v` of these legs with a log of this kind, written to everywhere.
fn volume(legs: &[&str], log: &str) -> Rig {
    let rig = Rig::new();
    rig.create_with_log(legs, "64MiB", log);
    write_everywhere(&rig, 0x11);
    rig
}

fn write_everywhere(rig: &Rig, byte: u8) {
    (0..MIBS).for_each(|mib| rig.write(mib, byte));
}

/// What leg `a` says of recent regions.
fn recent(rig: &Rig) -> Value {
    let report: Value = serde_json::from_str(&rig.ok(&["inspect", "a", "--json"])).unwrap();
    newest_slot(&report)["recent"].clone()
}

/// Until nothing is recent: what was written is on all of these legs, and proven.
fn settle(rig: &Rig, legs: &[u64]) {
    let is_settled = |recent: Value| recent["groups"] == 0 && recent["legs"] == serde_json::json!(legs);
    until("nothing is recent any more", || is_settled(recent(rig)));
}

fn leg(rig: &Rig, index: usize) -> Value {
    rig.status()["legs"][index].clone()
}

fn byte(rig: &Rig, mib: u64) -> u8 {
    let mut byte = [0];
    File::open(rig.volume()).unwrap().read_exact_at(&mut byte, mib * MIB + 4096).unwrap();
    byte[0]
}

/// The volume is written to once more, killed and started: leg `b` is copied to no more than there, and then serves alone.
fn crash(rig: &Rig, everywhere: u8) {
    rig.write(LAST, 0x77);
    rig.kill_for_good();
    rig.ok(&["start", "v"]);
    rig.wait_for_leg(1);
    let copied = leg(rig, 1)["resynced_bytes"].as_u64().unwrap();
    assert!(copied <= MIB, "b was in sync, and {copied} bytes were copied to it");
    rig.kill_for_good();
    fs::rename(rig.path("a"), rig.path("gone")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    assert_eq!(leg(rig, 1)["state"], "in_sync");
    for mib in 0..MIBS {
        assert_eq!(byte(rig, mib), if mib == LAST { 0x77 } else { everywhere }, "MiB {mib}");
    }
}

#[test]
fn a_leg_that_is_added_costs_the_others_nothing_at_a_crash() {
    for log in ["internal", "core", "disk"] {
        let rig = volume(&["a", "b"], log);
        rig.ok(&["resync", "v", "--pause"]);
        rig.ok(&["leg", "add", "v", "c"]);
        assert_eq!(leg(&rig, 2)["stale_regions"], MIBS);
        settle(&rig, &[0, 1]);
        crash(&rig, 0x11);
        rig.wait_for_leg(2);
        rig.ok(&["stop", "v"]);
        rig.assert_same("b", "c", MIBS * MIB);
    }
}

#[test]
fn a_leg_that_is_out_for_long_costs_the_others_nothing_at_a_crash() {
    for log in ["internal", "core", "disk"] {
        let rig = volume(&["a", "b", "c"], log);
        rig.ok(&["leg", "fail", "v", "c"]);
        write_everywhere(&rig, 0x22);
        settle(&rig, &[0, 1]);
        crash(&rig, 0x22);
        rig.ok(&["leg", "add", "v", "c"]);
        rig.wait_for_leg(2);
        rig.ok(&["stop", "v"]);
        rig.assert_same("b", "c", MIBS * MIB);
    }
}

#[test]
fn a_leg_that_is_split_off_costs_the_others_nothing_at_a_crash() {
    let rig = volume(&["a", "b", "c"], "internal");
    rig.ok(&["split", "v", "--leg", "c", "--track"]);
    write_everywhere(&rig, 0x22);
    settle(&rig, &[0, 1]);
    crash(&rig, 0x22);
    rig.ok(&["merge", "v", "c"]);
    rig.wait_for_leg(2);
    rig.ok(&["stop", "v"]);
    rig.assert_same("b", "c", MIBS * MIB);
}

#[test]
fn a_volume_that_nothing_is_out_of_says_nothing_of_it() {
    let rig = volume(&["a", "b"], "internal");
    assert_eq!(recent(&rig), Value::Null);
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
    until("the log says it all", || recent(&rig) == Value::Null);
    rig.ok(&["leg", "fail", "v", "c"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    until("one leg is left", || recent(&rig) == Value::Null);
    rig.ok(&["stop", "v"]);
}
