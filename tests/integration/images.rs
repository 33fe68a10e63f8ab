//! Legs that are not what they were: older copies of themselves, legs that were removed or split off and are named as
//! source, legs that each went on without the other. The judge is a checksum of what each leg holds.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use crate::rig::{Rig, is_ublk, newest_slot, sh, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// A MiB that is written to all the time.
const HOT: u64 = 7;

/// Volume `v` of these legs, in the rig's folder, with a log of this kind.
fn volume(legs: &[&str], log: &str) -> Rig {
    let rig = Rig::new();
    rig.create_with_log(legs, "32MiB", log);
    rig
}

fn checksum(path: PathBuf) -> String {
    let head = format!("head -c {SIZE} '{}' | sha256sum", path.display());
    sh("sh", &["-c", &head])
}

fn byte(path: PathBuf, mib: u64) -> u8 {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, mib * MIB + 4096).unwrap();
    byte[0]
}

fn copied(rig: &Rig, leg: usize) -> u64 {
    rig.status()["legs"][leg]["resynced_bytes"].as_u64().unwrap()
}

fn copy(rig: &Rig, from: &str, to: &str) {
    sh("cp", &["--sparse=always", rig.path(from).to_str().unwrap(), rig.path(to).to_str().unwrap()]);
}

/// How an image comes in the place of its leg.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Back {
    /// The file itself, by another one.
    Moved,
    /// What is in the file.
    InPlace,
}

fn put_back(rig: &Rig, image: &str, leg: &str, back: Back) {
    match back {
        Back::Moved => fs::rename(rig.path(image), rig.path(leg)).unwrap(),
        Back::InPlace => copy(rig, image, leg),
    }
}

/// The volume has these bytes in some MiB, before it is in sync and after; then it is stopped and the legs are equal.
fn holds(rig: &Rig, legs: &[&str], expected: &[(u64, u8)]) {
    let volume = rig.volume();
    for _ in 0..4 {
        expected.iter().for_each(|&(mib, value)| assert_eq!(byte(volume.clone(), mib), value, "MiB {mib}"));
    }
    rig.wait();
    expected.iter().for_each(|&(mib, value)| assert_eq!(byte(volume.clone(), mib), value, "MiB {mib}"));
    rig.ok(&["stop", "v"]);
    for leg in legs {
        expected
            .iter()
            .for_each(|&(mib, value)| assert_eq!(byte(rig.path(leg), mib), value, "{leg}: MiB {mib}"));
        assert_eq!(checksum(rig.path(leg)), checksum(rig.path(legs[0])), "{leg}");
    }
    // And all is well from then on.
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["state"], "in_sync");
    rig.ok(&["stop", "v"]);
}

/// Writes until records tell the images that were taken before: more than two beats, with a region that never gets clean.
fn go_on(rig: &Rig) {
    let events = || rig.status()["event_count"].as_u64().unwrap();
    let then = events();
    until("records tell of what is written", || {
        rig.write(HOT, 0x77);
        events() >= then + 3
    });
}

#[test]
fn an_older_copy_of_a_leg_is_copied_to_after_a_stop() {
    for (log, leg, back) in [
        ("internal", "a", Back::Moved),
        ("internal", "b", Back::InPlace),
        ("core", "a", Back::Moved),
        ("disk", "a", Back::InPlace),
        ("disk", "b", Back::Moved),
    ] {
        let rig = volume(&["a", "b"], log);
        rig.write(1, 0x11);
        copy(&rig, leg, "bak");
        // Nothing else happens before the stop, which alone tells then.
        for mib in 1..9 {
            rig.write(mib, 0x22);
        }
        rig.ok(&["stop", "v"]);
        put_back(&rig, "bak", leg, back);
        let said = rig.run(&["start", "v"]);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("older copy of itself"), "{log} {leg} {back:?}: {said}");
        holds(&rig, &["a", "b"], &[(1, 0x22), (8, 0x22), (9, 0)]);
    }
}

#[test]
fn an_older_copy_of_a_leg_is_no_source_after_a_kill() {
    for (log, leg, back) in [
        ("internal", "a", Back::Moved),
        ("internal", "a", Back::InPlace),
        ("core", "a", Back::Moved),
        ("core", "b", Back::InPlace),
        ("disk", "a", Back::InPlace),
        ("disk", "b", Back::Moved),
    ] {
        let rig = volume(&["a", "b"], log);
        rig.write(1, 0x11);
        rig.write(HOT, 0x11);
        copy(&rig, leg, "bak");
        for mib in 1..5 {
            rig.write(mib, 0x22);
        }
        go_on(&rig);
        rig.kill_for_good();
        put_back(&rig, "bak", leg, back);
        rig.ok(&["start", "v"]);
        holds(&rig, &["a", "b"], &[(1, 0x22), (4, 0x22), (HOT, 0x77), (9, 0)]);
    }
}

/// `cp` reads a leg's metadata last. If it took long that is as new as the leg's, and the beginning is not.
#[test]
fn a_copy_that_took_long_is_copied_to() {
    // Where no samples are taken.
    const AT: u64 = 5 * MIB + 100 * 1024;
    let rig = volume(&["a", "b"], "internal");
    rig.write(5, 0x11);
    copy(&rig, "a", "bak");
    let volume = File::options().write(true).open(rig.volume()).unwrap();
    volume.write_all_at(&[0x22; 4096], AT).unwrap();
    volume.sync_all().unwrap();
    drop(volume);
    until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    let leg = fs::read(rig.path("a")).unwrap();
    let image = File::options().write(true).open(rig.path("bak")).unwrap();
    image.write_all_at(&leg[SIZE as usize..], SIZE).unwrap();
    rig.kill_for_good();
    put_back(&rig, "bak", "a", Back::Moved);
    let said = rig.run(&["start", "v"]);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("older copy of itself"), "{said}");
    holds(&rig, &["a", "b"], &[(5, 0x11)]);
    for leg in ["a", "b"] {
        let mut there = [0; 4096];
        File::open(rig.path(leg)).unwrap().read_exact_at(&mut there, AT).unwrap();
        assert!(there == [0x22; 4096], "{leg}");
    }
}

#[test]
fn legs_that_are_moved_or_copied_while_stopped_are_what_they_were() {
    let rig = volume(&["a", "b"], "internal");
    rig.write(5, 0x11);
    rig.ok(&["stop", "v"]);
    until_files_are_newer(&rig);
    // One of them, then all.
    for moved in [&["a"][..], &["a", "b"]] {
        for leg in moved {
            copy(&rig, leg, "moved");
            put_back(&rig, "moved", leg, Back::Moved);
        }
        rig.ok(&["start", "v"]);
        assert_eq!(rig.status()["state"], "in_sync");
        assert_eq!([copied(&rig, 0), copied(&rig, 1)], [0, 0], "{moved:?}");
        assert_eq!(byte(rig.volume(), 5), 0x11);
        rig.ok(&["stop", "v"]);
        until_files_are_newer(&rig);
    }
}

/// Files are made by a clock that goes in steps.
fn until_files_are_newer(rig: &Rig) {
    let now = std::time::SystemTime::now();
    until("a file is newer", || {
        let probe = tempfile::NamedTempFile::new_in(rig.path("")).unwrap();
        probe.as_file().metadata().unwrap().created().is_ok_and(|created| created > now)
    });
}

#[test]
fn of_two_older_copies_the_newer_is_copied_to_the_older() {
    for stop in [true, false] {
        let rig = volume(&["a", "b"], "internal");
        rig.write(1, 0x11);
        copy(&rig, "a", "a.bak");
        rig.write(1, 0x22);
        go_on(&rig);
        rig.write(2, 0x33);
        copy(&rig, "b", "b.bak");
        go_on(&rig);
        rig.write(2, 0x44);
        if stop {
            drop(rig.ok(&["stop", "v"]))
        } else {
            rig.kill_for_good()
        }
        put_back(&rig, "a.bak", "a", Back::Moved);
        put_back(&rig, "b.bak", "b", Back::Moved);
        rig.ok(&["start", "v"]);
        holds(&rig, &["a", "b"], &[(1, 0x22), (2, 0x33)]);
    }
}

#[test]
fn an_older_copy_with_nothing_newer_is_refused() {
    let rig = volume(&["a", "b"], "internal");
    copy(&rig, "b", "bak");
    rig.ok(&["leg", "fail", "v", "a"]);
    rig.write(1, 0x22);
    rig.ok(&["resync", "v", "--pause"]);
    rig.ok(&["leg", "add", "v", "a"]);
    go_on(&rig);
    rig.ok(&["stop", "v"]);
    // Leg a lacks what was written, and leg b is not what it was.
    copy(&rig, "b", "now");
    put_back(&rig, "bak", "b", Back::Moved);
    let before = ["a", "b"].map(|leg| checksum(rig.path(leg)));
    rig.refused(&["start", "v"], &["older copy of itself", "--source"]);
    assert_eq!(before, ["a", "b"].map(|leg| checksum(rig.path(leg))));
    put_back(&rig, "now", "b", Back::Moved);
    rig.ok(&["start", "v"]);
    holds(&rig, &["a", "b"], &[(1, 0x22), (HOT, 0x77)]);
}

#[test]
fn a_failed_leg_that_comes_back_as_an_older_copy_is_copied_whole() {
    for (log, online) in
        [("internal", true), ("core", true), ("disk", true), ("internal", false), ("disk", false)]
    {
        let rig = volume(&["a", "b"], log);
        rig.write(1, 0x11);
        copy(&rig, "b", "bak");
        rig.write(1, 0x22);
        go_on(&rig);
        // It is clean again before the leg is out.
        until("what was written is clean", || rig.status()["log"]["dirty_regions"] == 0);
        rig.ok(&["leg", "fail", "v", "b"]);
        rig.write(2, 0x33);
        if online {
            put_back(&rig, "bak", "b", Back::Moved);
        } else {
            rig.ok(&["stop", "v"]);
            put_back(&rig, "bak", "b", Back::InPlace);
            rig.ok(&["start", "v"]);
        }
        rig.ok(&["leg", "add", "v", "b"]);
        rig.wait();
        assert!(copied(&rig, 1) >= SIZE, "{log}: all of it is copied");
        holds(&rig, &["a", "b"], &[(1, 0x22), (2, 0x33)]);
    }
}

#[test]
fn a_split_leg_that_comes_back_as_an_older_copy_is_copied_whole() {
    let rig = volume(&["a", "b"], "internal");
    rig.write(1, 0x11);
    copy(&rig, "b", "bak");
    // Written right before the split, which clears it.
    rig.write(1, 0x22);
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    rig.write(2, 0x33);
    put_back(&rig, "bak", "b", Back::InPlace);
    rig.ok(&["merge", "v", "b", "--force-full"]);
    rig.wait();
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    holds_split(&rig);
}

/// The leg that is split off holds what the volume held then.
fn holds_split(rig: &Rig) {
    assert_eq!(checksum(rig.path("b")), checksum(rig.volume()));
    rig.ok(&["merge", "v", "b"]);
    holds(rig, &["a", "b"], &[(1, 0x22), (2, 0x33)]);
}

#[test]
fn three_legs_of_which_one_is_older() {
    for leg in ["a", "b", "c"] {
        let rig = volume(&["a", "b", "c"], "internal");
        rig.write(1, 0x11);
        copy(&rig, leg, "bak");
        rig.write(1, 0x22);
        rig.ok(&["stop", "v"]);
        put_back(&rig, "bak", leg, Back::Moved);
        rig.ok(&["start", "v"]);
        let states: Vec<_> = (0..3).map(|leg| rig.status()["legs"][leg]["state"].clone()).collect();
        let older = usize::from(leg.as_bytes()[0] - b'a');
        for (leg, state) in states.iter().enumerate().filter(|&(leg, _)| leg != older) {
            assert_eq!(state, "in_sync", "leg {leg} was in sync at the stop");
        }
        holds(&rig, &["a", "b", "c"], &[(1, 0x22)]);
    }
}

#[test]
fn a_named_source_is_copied_to_every_other_leg_also_one_that_was_removed() {
    let rig = volume(&["a", "b"], "internal");
    (0..32).for_each(|mib| rig.write(mib, 0x11));
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    rig.ok(&["leg", "remove", "v", "1"]);
    (0..32).for_each(|mib| rig.write(mib, 0x22));
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    let start = ["start", "a", "b", "--mount", "vol", "--front", "fuse"];
    rig.refused(&start[..3], &["no leg of volume"]);
    rig.ok(&[&start[..if is_ublk() { 3 } else { 5 }], &["--source", "b"]].concat());
    holds(&rig, &["a", "b"], &[(0, 0x11), (31, 0x11)]);
    let report = rig.ok(&["inspect", "a", "--json"]);
    assert!(!report.contains("00000000-0000-0000-0000-000000000000"), "{report}");
}

#[test]
fn a_leg_whose_place_a_spare_took_is_copied_to_the_others_if_it_is_named() {
    let rig = volume(&["a", "b"], "internal");
    (0..32).for_each(|mib| rig.write(mib, 0x11));
    rig.ok(&["leg", "add", "v", "c", "--spare"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    until("the spare has its place", || {
        let status = rig.status();
        let legs = status["legs"].as_array().unwrap();
        let is = |name: &str, state: &str| {
            let is_it = |leg: &&serde_json::Value| leg["path"].as_str().unwrap().ends_with(name);
            legs.iter().find(is_it).is_some_and(|leg| leg["state"] == state)
        };
        is("/a", "in_sync") && is("/c", "in_sync") && !legs.iter().any(|leg| leg["state"] == "failed")
    });
    (0..32).for_each(|mib| rig.write(mib, 0x22));
    rig.ok(&["stop", "v"]);
    let before = ["a", "b", "c"].map(|leg| checksum(rig.path(leg)));
    assert_eq!((&before[0], before[0] == before[1]), (&before[2], false));
    let start = ["start", "a", "b", "c", "--mount", "vol", "--front", "fuse"];
    rig.refused(&start[..4], &["no leg of volume"]);
    assert_eq!(before, ["a", "b", "c"].map(|leg| checksum(rig.path(leg))));
    rig.ok(&[&start[..if is_ublk() { 4 } else { 8 }], &["--source", "b"]].concat());
    holds(&rig, &["a", "b"], &[(0, 0x11), (31, 0x11)]);
}

#[test]
fn a_split_leg_that_is_named_as_source_is_copied_to_the_leg_that_comes_back() {
    for written_for_long in [false, true] {
        let rig = volume(&["a", "b"], "internal");
        (0..4).for_each(|mib| rig.write(mib, 0x11));
        rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
        rig.write(1, 0x22);
        if written_for_long {
            go_on(&rig);
        }
        rig.kill_for_good();
        fs::rename(rig.path("a"), rig.path("away")).unwrap();
        rig.ok(&["start", "b", "--source", "b", "--degraded"]);
        rig.write(2, 0x33);
        rig.ok(&["stop", "v"]);
        fs::rename(rig.path("away"), rig.path("a")).unwrap();
        let started = rig.run(&["start", "a", "b"]);
        if !started.status.success() {
            // It is told that leg a went on, too.
            let said = String::from_utf8_lossy(&started.stderr).into_owned();
            assert!(written_for_long && said.contains("split brain"), "{said}");
            rig.ok(&["start", "a", "b", "--source", "b"]);
        }
        holds(&rig, &["a", "b"], &[(1, 0x11), (2, 0x33)]);
    }
}

#[test]
fn a_split_brain_is_settled_as_the_refusal_says() {
    let rig = volume(&["a", "b"], "internal");
    rig.write(1, 0x11);
    rig.ok(&["stop", "v"]);
    // b goes on with a new leg.
    fs::rename(rig.path("a"), rig.path("away")).unwrap();
    rig.ok(&["start", "b", "--degraded"]);
    rig.ok(&["leg", "add", "v", "c"]);
    rig.write(1, 0x22);
    rig.wait_for_leg(2);
    rig.ok(&["stop", "v"]);
    // So does a, alone, and with more events.
    for name in ["b", "c"] {
        fs::rename(rig.path(name), rig.path(&format!("{name}.away"))).unwrap();
    }
    fs::rename(rig.path("away"), rig.path("a")).unwrap();
    for value in 0..6 {
        rig.ok(&["start", "a", "--degraded"]);
        rig.write(2, 0x40 + value);
        rig.ok(&["stop", "v"]);
    }
    for name in ["b", "c"] {
        fs::rename(rig.path(&format!("{name}.away")), rig.path(name)).unwrap();
    }
    let before = ["a", "b", "c"].map(|leg| checksum(rig.path(leg)));
    rig.refused(&["start", "a", "b", "c"], &["split brain", "--source"]);
    assert_eq!(before, ["a", "b", "c"].map(|leg| checksum(rig.path(leg))));
    rig.ok(&["start", "a", "b", "c", "--source", "b"]);
    holds(&rig, &["a", "b", "c"], &[(1, 0x22), (2, 0)]);
    for leg in ["a", "b", "c"] {
        let report = rig.ok(&["inspect", leg, "--json"]);
        assert!(!report.contains("00000000-0000-0000-0000-000000000000"), "{report}");
    }
}

#[test]
fn what_a_leg_says_of_its_file_is_told() {
    let rig = volume(&["a", "b"], "internal");
    rig.ok(&["stop", "v"]);
    for leg in ["a", "b"] {
        let born =
            fs::metadata(rig.path(leg)).unwrap().created().unwrap().duration_since(UNIX_EPOCH).unwrap();
        let report: Value = serde_json::from_str(&rig.ok(&["inspect", leg, "--json"])).unwrap();
        let slot = newest_slot(&report);
        assert_eq!((&slot["clean"], &slot["equal"]), (&true.into(), &true.into()), "{slot}");
        let file = &slot["leg_file"];
        assert_eq!(u128::from(file["born"].as_u64().unwrap()), born.as_nanos(), "{slot}");
        assert!(file["written"].as_u64() > file["born"].as_u64(), "{slot}");
    }
}

#[test]
fn what_is_in_sync_at_a_clean_stop_is_in_sync_at_the_start() {
    for log in ["internal", "core", "disk"] {
        let rig = volume(&["a", "b", "c"], log);
        rig.write(1, 0x11);
        rig.ok(&["leg", "fail", "v", "c"]);
        (1..5).for_each(|mib| rig.write(mib, 0x22));
        for _ in 0..2 {
            rig.ok(&["stop", "v"]);
            assert_eq!(checksum(rig.path("a")), checksum(rig.path("b")));
            rig.ok(&["start", "v"]);
            let states = rig.status();
            assert_eq!(
                (&states["legs"][0]["state"], &states["legs"][1]["state"]),
                (&"in_sync".into(), &"in_sync".into()),
                "{log}"
            );
            rig.write(5, 0x33);
        }
        assert_eq!(copied(&rig, 1), 0, "{log}");
        rig.ok(&["leg", "add", "v", "c"]);
        holds(&rig, &["a", "b", "c"], &[(1, 0x22), (5, 0x33)]);
    }
}
