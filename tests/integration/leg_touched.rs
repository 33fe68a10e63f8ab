//! Legs that somebody wrote to while they were not served: a start looks, and so does a leg's return.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rig::{Rig, can_serve, have, is_root, sh, unmount};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn sum(path: &Path) -> String {
    let head = format!("head -c {SIZE} '{}' | sha256sum", path.display());
    sh("sh", &["-c", &head])
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// As `patch`, by one who leaves no trace of the time.
fn patch_unseen(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    patch(path, at, bytes);
    file.set_modified(modified).unwrap();
}

/// Mounts what is on a leg, writes a file, unmounts; or lets the mount alone write.
fn mount_and_write(rig: &Rig, leg: &str, touch: bool) {
    let at = rig.path("mnt");
    fs::create_dir_all(&at).unwrap();
    let (leg, at) = (rig.path(leg), at.to_str().unwrap().to_owned());
    sh("mount", &["-o", "loop", leg.to_str().unwrap(), &at]);
    if touch {
        fs::write(format!("{at}/touched"), "x").unwrap();
    }
    unmount(&at);
    sh("sync", &[]);
}

/// A stopped volume with a file system on it; `None` with a printed reason where that cannot be had.
fn with_file_system(more: &[&str]) -> Option<Rig> {
    if !can_serve("legs that were written to") || !is_root() || !have("mkfs.ext4", "legs that were mounted") {
        println!("SKIP: legs that were mounted: need root and loop devices");
        return None;
    }
    let rig = Rig::new();
    let volume = rig.create("64MiB", more);
    sh("mkfs.ext4", &["-q", "-F", volume.to_str().unwrap()]);
    rig.ok(&["stop", "v"]);
    Some(rig)
}

/// Refused by name and by legs, and nothing was changed; the leg that is named gives its data to the other.
fn source_makes_equal(rig: &Rig, words: &[&str], source: &str) {
    let before = [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()];
    for args in [&["start", "v"][..], &["start", "./a", "./b"]] {
        rig.refused(args, words);
        rig.refused(args, &["--source"]);
    }
    assert!(before == [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()]);
    let kept = sum(&rig.path(source));
    rig.ok(&["start", "v", "--source", source]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    assert_eq!([sum(&rig.path("a")), sum(&rig.path("b"))], [kept.clone(), kept]);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["state"], "in_sync", "and that is the end of it");
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_leg_that_was_mounted_is_not_in_sync() {
    for (touched, source) in [("a", "a"), ("a", "b"), ("b", "a")] {
        let Some(rig) = with_file_system(&[]) else { return };
        mount_and_write(&rig, touched, true);
        assert_ne!(sum(&rig.path("a")), sum(&rig.path("b")));
        source_makes_equal(
            &rig,
            &[&format!("/{touched}: it was written to while it was not served")],
            source,
        );
    }
}

/// As a desktop does, and on legs that have no time of the last write.
#[test]
fn a_mount_alone_is_enough_also_of_a_device() {
    let Some(rig) = with_file_system(&[]) else { return };
    mount_and_write(&rig, "a", false);
    source_makes_equal(&rig, &["/a: it was written to"], "b");

    let rig = Rig::new();
    let device = |name: &str| {
        File::create(rig.path(name)).unwrap().set_len(SIZE + MIB).unwrap();
        rig.loop_device(&rig.path(name))
    };
    let (Some(one), Some(other)) = (device("x"), device("y")) else { return };
    let volume = rig.create_of([&one, &other], "64MiB", &[]);
    sh("mkfs.ext4", &["-q", "-F", volume.to_str().unwrap()]);
    rig.ok(&["stop", "v"]);
    fs::create_dir(rig.path("mnt")).unwrap();
    sh("mount", &[&one, rig.path("mnt").to_str().unwrap()]);
    unmount(rig.path("mnt").to_str().unwrap());
    rig.refused(&["start", "v"], &[&one, &other, "differ at byte", "--source"]);
    rig.ok(&["start", "v", "--source", &other]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    assert_eq!(sum(Path::new(&one)), sum(Path::new(&other)));
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
}

/// Compared where the log is clean, after a stop and after a crash, also if no time tells.
#[test]
fn samples_of_the_legs_are_compared() {
    if !can_serve("samples of legs") {
        return;
    }
    for crash in [false, true] {
        let rig = Rig::new();
        rig.create("64MiB", &["--region-size", "1MiB"]);
        (0..64).for_each(|mib| rig.write(mib, mib as u8 + 1));
        rig.ok(&["stop", "v"]);
        rig.ok(&["start", "v"]);
        rig.write(40, 0x40);
        if crash {
            rig.kill_for_good()
        } else {
            rig.ok(&["stop", "v"]);
        }
        if crash {
            // The log tells where legs may differ, and there they are not compared.
            patch_unseen(&rig.path("b"), 40 * MIB, &[9; 512]);
            rig.ok(&["start", "v"]);
            rig.wait();
            rig.ok(&["stop", "v"]);
            rig.assert_same("a", "b", SIZE);
        }
        patch_unseen(&rig.path("b"), MIB + 700_000, &[0xee]);
        let words = ["/a", "/b", &format!("differ at byte {}", MIB + 700_000)];
        source_makes_equal(&rig, &words, "b");
        patch_unseen(&rig.path("a"), SIZE - 1, &[0xee]);
        source_makes_equal(&rig, &[&format!("differ at byte {}", SIZE - 1)], "b");
    }
}

#[test]
fn a_copy_of_a_leg_has_a_time_of_its_own() {
    if !can_serve("copies of legs") {
        return;
    }
    let rig = Rig::new();
    rig.create("64MiB", &[]);
    rig.write(3, 3);
    rig.ok(&["stop", "v"]);
    fs::copy(rig.path("b"), rig.path("copy")).unwrap();
    fs::rename(rig.path("copy"), rig.path("b")).unwrap();
    sh("sh", &["-c", &format!("cd '{}' && mkdir to && cp -a a to/ && mv to/a a", rig.path("").display())]);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["state"], "in_sync");
    // And what reads a leg does not change it.
    rig.ok(&["stop", "v"]);
    sum(&rig.path("a"));
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
}

/// A stopped volume is made smaller: that is no place to lose sight of a write, before it or after it.
#[test]
fn a_volume_made_smaller_while_it_is_stopped_does_not_hide_a_write() {
    if !can_serve("legs that were written to") {
        return;
    }
    let between_samples = 5 * MIB + 300_000;
    let rig = Rig::new();
    rig.create("64MiB", &[]);
    rig.ok(&["stop", "v"]);
    let shrink = ["resize", "v", "--size", "32MiB", "--force"];
    patch(&rig.path("a"), between_samples, &[0xaa; 512]);
    let before = [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()];
    rig.refused(&shrink, &["/a: it was written to while it was not served"]);
    assert!(before == [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()]);
    rig.ok(&["start", "v", "--source", "b"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.ok(&shrink);
    patch(&rig.path("b"), between_samples, &[0xbb; 512]);
    rig.refused(&["start", "v"], &["/b: it was written to while it was not served"]);
    rig.ok(&["start", "v", "--source", "a"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 32 * MIB);
}

#[test]
fn a_leg_that_was_out_is_looked_at_when_it_returns() {
    if !can_serve("legs that return") {
        return;
    }
    let rig = Rig::new();
    rig.create("64MiB", &["--region-size", "1MiB"]);
    (0..64).for_each(|mib| rig.write(mib, mib as u8 + 1));
    let give_back = |verb: &[&str]| {
        let output = rig.run(verb);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        rig.wait();
        said
    };
    let copied = || rig.status()["resync"]["copied_regions"].as_u64().unwrap();
    let clean = || crate::rig::until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    clean();
    // Nobody touched it: what changed is copied.
    rig.ok(&["leg", "fail", "v", "b"]);
    rig.write(5, 5);
    let before = copied();
    assert!(!give_back(&["leg", "add", "v", "b"]).contains("written to"));
    assert!(copied() - before < 8, "{} regions", copied() - before);
    clean();
    // Somebody wrote where no sample is, or left no time, or both of a leg that was split off.
    rig.ok(&["leg", "fail", "v", "b"]);
    patch(&rig.path("b"), 7 * MIB + 300_000, &[0xee; 100]);
    assert!(give_back(&["leg", "add", "v", "b"]).contains("/b was written to while it was out"));
    clean();
    rig.ok(&["leg", "fail", "v", "b"]);
    patch_unseen(&rig.path("b"), 1000, &[0xee; 100]);
    assert!(give_back(&["leg", "add", "v", "b"]).contains("/b was written to while it was out"));
    clean();
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    patch_unseen(&rig.path("b"), 1000, &[0xee; 100]);
    assert!(give_back(&["merge", "v", "b"]).contains("/b was written to while it was out"));
    // One that comes back with a start.
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    patch(&rig.path("b"), 7 * MIB + 300_000, &[0xee; 100]);
    let said = give_back(&["start", "v"]);
    assert!(said.contains("/b was written to while it was not served: everything is copied"), "{said}");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
}
