//! Legs taken out by hand, given back, split off and merged, on a volume that is in use.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::rig::{Rig, have, is_root, is_ublk, sh, unmount, until};
use rustix::fs::OFlags;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn volume() -> Rig {
    let rig = Rig::new();
    rig.create("64MiB", &["--region-size", "1MiB"]);
    rig
}

/// The volume's bytes on a leg.
fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn state(rig: &Rig, leg: usize) -> String {
    rig.status()["legs"][leg]["state"].as_str().unwrap().to_owned()
}

/// Bytes that resync has written to a leg since the volume was started.
fn copied(rig: &Rig, leg: usize) -> u64 {
    rig.status()["legs"][leg]["resynced_bytes"].as_u64().unwrap()
}

/// Two volumes whose legs are alike and free.
fn end(rig: &Rig) {
    rig.wait();
    rig.ok(&["stop", "v"]);
    assert!(bytes(&rig.path("a")) == bytes(&rig.path("b")), "the legs differ");
}

#[test]
fn a_leg_failed_by_hand_comes_back_by_what_changed() {
    let rig = volume();
    rig.write(1, 0x11);
    for leg in ["b", "1"] {
        rig.ok(&["leg", "fail", "v", leg]);
        let status = rig.status();
        assert_eq!((&status["state"], &status["legs"][1]["reason"]), (&"degraded".into(), &"by_hand".into()));
        // Nobody holds it.
        rig.ok(&["inspect", "b"]);
        assert!(
            rustix::fs::flock(
                File::open(rig.path("b")).unwrap(),
                rustix::fs::FlockOperation::NonBlockingLockExclusive
            )
            .is_ok()
        );
        let before = copied(&rig, 1);
        for mib in [3, 9, 10] {
            rig.write(mib, 0x22);
        }
        rig.ok(&["leg", "add", "v", "b"]);
        rig.wait();
        let copied = (copied(&rig, 1) - before) / MIB;
        assert!((3..=4).contains(&copied), "{copied} MiB: what changed, and what was dirty before");
    }
    // It stays out when the volume is started anew, until it is given back.
    rig.ok(&["leg", "fail", "v", "b"]);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    assert_eq!(state(&rig, 1), "failed");
    rig.ok(&["leg", "add", "v", "b"]);
    end(&rig);
}

#[test]
fn a_leg_that_was_missing_is_given_back_to_the_running_volume() {
    let rig = volume();
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("elsewhere")).unwrap();
    rig.refused(&["start", "v"], &["b"]);
    rig.ok(&["start", "v", "--degraded"]);
    rig.write(5, 0x55);
    rig.refused(&["leg", "add", "v", "b"], &["b: it is missing", "leg remove"]);
    rig.ok(&["leg", "add", "v", "elsewhere"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    assert!(rig.status()["legs"][1]["path"].as_str().unwrap().ends_with("elsewhere"), "it is remembered");
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("elsewhere"), rig.path("b")).unwrap();
    assert!(bytes(&rig.path("a")) == bytes(&rig.path("b")));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rig = volume();
    let usage = rig.run(&["split", "v", "--leg", "b", "--track"]);
    assert_eq!(usage.status.code(), Some(2), "a single leg would be left");
    for args in [&["leg", "fail", "v", "c"][..], &["split", "v", "--leg", "7", "--track", "--yes"]] {
        rig.refused(args, &["no leg"]);
    }
    rig.refused(&["leg", "add", "v", "b"], &["in use already"]);
    rig.refused(&["merge", "v", "b"], &["in use already"]);
    rig.refused(&["leg", "add", "v", "."], &["directory"]);
    fs::write(rig.path("junk"), vec![7; 1 << 20]).unwrap();
    rig.refused(&["leg", "add", "v", "junk"], &["junk"]);
    rig.refused(&["leg", "fail", "w", "b"], &["w"]);

    rig.ok(&["leg", "fail", "v", "a"]);
    rig.refused(&["leg", "fail", "v", "a"], &["it is failed"]);
    rig.refused(&["leg", "fail", "v", "b"], &["only leg in sync"]);
    rig.refused(&["split", "v", "--leg", "b", "--track", "--yes"], &["only leg in sync"]);
    rig.refused(&["split", "v", "--leg", "a", "--track", "--yes"], &["it is failed"]);
    rig.refused(&["merge", "v", "a"], &["leg add"]);

    // A leg of another volume, and one that went on alone.
    let other = ["create", "--legs", "c", "d", "--size", "64MiB", "--name", "w", "--mount", "other"];
    rig.ok(&other);
    rig.ok(&["stop", "w"]);
    rig.refused(&["leg", "add", "v", "c"], &["the mirrord volume w", "--force"]);
    rig.write(1, 0x11);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "a", "--degraded"]);
    rig.write(2, 0x22);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("a"), rig.path("alone")).unwrap();
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    rig.ok(&["start", "b"]);
    let alone = bytes(&rig.path("alone"));
    rig.refused(&["leg", "add", "v", "alone"], &["alone", "went on without"]);
    assert!(bytes(&rig.path("alone")) == alone);
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_split_leg_is_the_volume_as_it_was_and_is_merged_by_what_changed() {
    let rig = volume();
    (0..16).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    let then = bytes(&rig.volume());
    assert!(bytes(&rig.path("b")) == then);
    for mib in [2, 3, 17, 40, 41] {
        rig.write(mib, 0xee);
    }
    let status = rig.status();
    let leg = &status["legs"][1];
    assert_eq!((&leg["state"], &leg["stale_regions"]), (&"tracked".into(), &5.into()), "{status}");
    assert!(bytes(&rig.path("b")) == then, "it is left alone");
    assert!(bytes(&rig.volume()) != then);
    rig.refused(&["leg", "add", "v", "b"], &["mirrord merge"]);
    rig.refused(&["split", "v", "--leg", "b", "--track", "--yes"], &["tracked"]);
    let before = copied(&rig, 1);
    rig.ok(&["merge", "v", "b"]);
    rig.wait();
    assert_eq!(copied(&rig, 1) - before, 5 * MIB, "what changed, and no more");
    end(&rig);
}

#[test]
fn a_split_survives_a_killed_daemon_and_so_does_a_merge() {
    let rig = volume();
    (0..16).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    for round in 0..5 {
        rig.ok(&["split", "v", "--leg", "1", "--track", "--yes"]);
        let then = bytes(&rig.path("b"));
        rig.write(20 + round, 0xaa);
        rig.kill_for_good();
        rig.ok(&["start", "v"]);
        assert_eq!(state(&rig, 1), "tracked");
        rig.write(30 + round, 0xbb);
        assert!(bytes(&rig.path("b")) == then, "it is left alone");
        rig.ok(&["resync", "v", "--rate", "4MiB"]);
        rig.ok(&["merge", "v", "b"]);
        if round % 2 == 0 {
            rig.kill_for_good();
            rig.ok(&["start", "v"]);
        }
        rig.ok(&["resync", "v", "--rate", "0"]);
        rig.wait();
    }
    end(&rig);
}

#[test]
fn a_split_leg_that_was_written_to_is_refused_or_copied_whole() {
    let rig = volume();
    (0..16).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    rig.write(2, 0xee);
    File::options().write(true).open(rig.path("b")).unwrap().write_all_at(b"mine", 9 * MIB).unwrap();
    let mine = bytes(&rig.path("b"));
    rig.refused(&["merge", "v", "b"], &["written to", "--force-full"]);
    assert!(bytes(&rig.path("b")) == mine, "nothing was overwritten");
    assert_eq!(state(&rig, 1), "tracked");
    rig.ok(&["merge", "v", "b", "--force-full"]);
    end(&rig);
}

/// Each write comes after the one before was answered: an image of one moment has all up to some write, and none
/// after it.
#[test]
fn a_split_under_load_is_of_one_moment() {
    const BLOCKS: u64 = 512;
    let rig = volume();
    let path = rig.volume();
    let mut count = 0;
    for _ in 0..4 {
        let (path, ending) = (path.clone(), Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&ending);
        let writer = thread::spawn(move || {
            // Past the page cache of a block device, or at least through it.
            let flags = if is_ublk() { OFlags::DSYNC } else { OFlags::empty() };
            let file = File::options().write(true).custom_flags(flags.bits() as i32).open(path).unwrap();
            while !asked.load(Ordering::SeqCst) {
                count += 1;
                // Spread over all regions.
                let at = count % BLOCKS * (SIZE / BLOCKS);
                file.write_all_at(&[u64::to_le_bytes(count); 512].concat(), at).unwrap();
            }
            count
        });
        thread::sleep(Duration::from_millis(500));
        let said = rig.ok(&["split", "v", "--leg", "b", "--track", "--yes", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        println!("writes waited {} us", said["pause_us"]);
        assert!(said["pause_us"].is_u64(), "{said}");
        let image = bytes(&rig.path("b"));
        let count_at = |block: u64| {
            let at = (block * (SIZE / BLOCKS)) as usize;
            u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
        };
        let last = (0..BLOCKS).map(count_at).max().unwrap();
        for block in 0..BLOCKS {
            let expected = last.checked_sub(block).map_or(0, |since| last - since % BLOCKS);
            assert_eq!(count_at(block), expected, "block {block}, {last} writes were split off");
        }
        rig.ok(&["merge", "v", "b"]);
        // Users come first: beside one that never rests, the copy takes long.
        ending.store(true, Ordering::SeqCst);
        count = writer.join().unwrap();
        rig.wait();
    }
    println!("{count} writes");
    end(&rig);
}

#[test]
fn of_two_merges_at_once_one_is_refused() {
    let rig = volume();
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    rig.write(1, 0x11);
    rig.ok(&["resync", "v", "--pause"]);
    let merge = || rig.command(&["merge", "v", "b"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let both = [merge(), merge()].map(|asked| asked.wait_with_output().unwrap());
    let done = both.iter().filter(|output| output.status.success()).count();
    let said = both.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(done == 1 && said.iter().any(|said| said.contains("in use already")), "{said:?}");
    rig.ok(&["resync", "v", "--resume"]);
    end(&rig);
}

#[test]
fn two_legs_split_off_at_different_times_are_each_merged_by_their_own_changes() {
    let rig = volume();
    rig.ok(&["leg", "add", "v", "c"]);
    (0..32).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    rig.wait();
    for round in 0..2 {
        // Nothing is dirty: what is dirty when the second is split off counts for it, too.
        until("nothing is dirty", || rig.status()["log"]["dirty_regions"] == 0);
        rig.ok(&["split", "v", "--leg", "b", "--track"]);
        let of_b = bytes(&rig.path("b"));
        (40..50).for_each(|mib| rig.write(mib, 0xb0 + round));
        rig.ok(&["split", "v", "--leg", "c", "--track", "--yes"]);
        let of_c = bytes(&rig.path("c"));
        (47..52).for_each(|mib| rig.write(mib, 0xc0 + round));
        rig.refused(&["split", "v", "--leg", "a", "--track", "--yes"], &["only leg in sync"]);
        assert!(bytes(&rig.path("b")) == of_b && bytes(&rig.path("c")) == of_c && of_b != of_c);
        let before = [1, 2].map(|leg| copied(&rig, leg));
        // The one that was split off last first, the next time the other way round.
        let order = if round == 0 { ["c", "b"] } else { ["b", "c"] };
        for leg in order {
            rig.ok(&["merge", "v", leg]);
            rig.wait_for_leg(if leg == "b" { 1 } else { 2 });
        }
        let [of_b, of_c] = [1, 2].map(|leg| (copied(&rig, leg) - before[leg - 1]) / MIB);
        assert_eq!((of_b, of_c), (12, 5), "MiB that changed since each was split off");
    }
    rig.wait();
    rig.ok(&["stop", "v"]);
    assert!(bytes(&rig.path("a")) == bytes(&rig.path("b")) && bytes(&rig.path("a")) == bytes(&rig.path("c")));
}

/// A file system on the volume, and what was split off of it, both in use and both clean.
#[test]
fn the_file_system_on_a_split_leg_is_as_it_was() {
    let rig = Rig::new();
    if !is_root() || !have("mkfs.ext4", "the file system of a split leg") {
        println!("SKIP the_file_system_on_a_split_leg_is_as_it_was: needs root and mkfs.ext4");
        return;
    }
    rig.create("256MiB", &["--region-size", "1MiB"]);
    let Some(device) = rig.loop_device(&rig.volume()) else { return };
    sh("mkfs.ext4", &["-q", &device]);
    let (ours, theirs) = (rig.path("ours"), rig.path("theirs"));
    fs::create_dir(&ours).unwrap();
    fs::create_dir(&theirs).unwrap();
    let (ours, theirs) = (ours.to_str().unwrap(), theirs.to_str().unwrap());
    sh("mount", &[&device, ours]);
    rig.at_end(&["umount", ours]);
    for round in 0..2u8 {
        fs::write(format!("{ours}/kept"), [round; 5000]).unwrap();
        sh("sync", &["-f", ours]);
        rig.wait();
        rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
        let before = copied(&rig, 1);
        // 100 MiB elsewhere, and what was there overwritten.
        fs::write(format!("{ours}/new"), vec![round + 1; 100 << 20]).unwrap();
        fs::write(format!("{ours}/kept"), [0xff; 5000]).unwrap();
        sh("sync", &["-f", ours]);
        // What is mounted is not replayed: the file system is read as the split left it.
        sh("mount", &["-o", "loop,ro,noload", rig.path("b").to_str().unwrap(), theirs]);
        assert_eq!(fs::read(format!("{theirs}/kept")).unwrap(), [round; 5000]);
        if round == 0 {
            assert!(!Path::new(&format!("{theirs}/new")).exists());
        }
        unmount(theirs);
        let stale = rig.status()["legs"][1]["stale_regions"].as_u64().unwrap();
        assert!((100..200).contains(&stale), "{stale} regions of 256 changed");
        rig.ok(&["merge", "v", "b"]);
        rig.wait();
        let now = copied(&rig, 1) - before;
        assert!(now >= stale * MIB && now <= (stale + 8) * MIB, "{now} bytes copied of {stale} regions");
    }
    unmount(ours);
    sh("e2fsck", &["-fn", &device]);
    sh("losetup", &["-d", &device]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 256 * MIB);
    for leg in ["a", "b"] {
        sh("e2fsck", &["-fn", rig.path(leg).to_str().unwrap()]);
    }
}

/// The daemon is killed at some moment of each split and each merge.
#[test]
fn a_daemon_killed_at_any_moment_of_a_split_or_merge_loses_nothing() {
    let rig = volume();
    (0..16).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    let killed_in = |args: &[&str], ms: u64| {
        let mut asked = rig.command(args).stderr(std::process::Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(ms));
        rig.kill_for_good();
        asked.wait().unwrap();
        rig.ok(&["start", "v"]);
    };
    let mut split = 0;
    for round in 0..20u8 {
        let now = bytes(&rig.volume());
        killed_in(&["split", "v", "--leg", "b", "--track", "--yes"], u64::from(round) % 10 * 7);
        if state(&rig, 1) == "tracked" {
            split += 1;
            assert!(bytes(&rig.path("b")) == now, "it is the volume as it was");
            rig.write(20 + u64::from(round), 0xe0 + round % 16);
            assert!(bytes(&rig.path("b")) == now, "it is left alone");
            killed_in(&["merge", "v", "b"], u64::from(round) / 2 * 7);
        }
        if state(&rig, 1) == "tracked" {
            rig.ok(&["merge", "v", "b"]);
        }
        rig.wait();
    }
    println!("{split} of 20 splits came to be");
    assert!(split > 0);
    end(&rig);
}
