//! `create` as it should be used.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use serde_json::Value;

use super::data::{fuse, leg, leg_with_data};
use crate::rig::{Rig, have, is_ublk, sh};
use crate::snapshot::refused;

const SIZE: u64 = 4 << 20;

#[test]
fn one_line_says_what_was_made() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let line = rig.ok(&["create", "--legs", "a", "b", "c", "--size", "4M", "--log", "core"]);
    let words: Vec<&str> = line.split_whitespace().collect();
    let path = |name| rig.path(name).display().to_string();
    let legs = [path("a"), path("b"), path("c")];
    let device = if is_ublk() { words[1].to_owned() } else { path("run/mirror0.img") };
    assert!(!is_ublk() || device.starts_with("/dev/ublkb"), "{line}");
    let expected = ["mirror0", &device, "4MiB", "legs", &legs[0], &legs[1], &legs[2], "log", "core"];
    assert_eq!(words, expected);
    assert_eq!(line.lines().count(), 1);
    // Sparse, private, and exactly the volume and its metadata.
    for name in ["a", "b", "c"] {
        let metadata = fs::metadata(rig.path(name)).unwrap();
        assert_eq!(metadata.len(), SIZE + 16384);
        assert!(metadata.blocks() * 512 < SIZE);
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }
    let json = rig.ok(&["create", "--legs", "d", "e", "--size", "4M", "--json"]);
    let status: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status["name"].as_str(), status["state"].as_str()), (Some("mirror1"), Some("in_sync")));
    assert_eq!(status["resync"]["total_regions"], 0, "holes need no copy");
}

#[test]
fn the_only_leg_with_data_is_kept() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    let kept = leg(&rig, "b", SIZE);
    // Data in two of the four regions: those are copied, the holes are not.
    let file = fs::File::options().write(true).open(&kept).unwrap();
    for at in [SIZE / 4 + 5, SIZE - 9] {
        file.write_all_at(b"precious", at).unwrap();
    }
    drop(file);
    let output = rig.run(&["create", "--legs", "a", "b", "--name", "v"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("leg b holds data"), "{said}");
    rig.wait();
    assert_eq!(rig.status()["resync"]["copied_regions"], 2);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
    assert_eq!(&fs::read(kept).unwrap()[SIZE as usize - 9..SIZE as usize - 1], b"precious");
}

#[test]
fn a_file_system_is_mirrored_when_it_is_the_source() {
    if !fuse() || !have("mkfs.ext4", "a source with a file system") {
        return;
    }
    let rig = Rig::new();
    let disk = leg(&rig, "disk", SIZE);
    sh("mkfs.ext4", &["-q", "-F", disk.to_str().unwrap()]);
    let before = fs::read(&disk).unwrap();
    rig.ok(&["create", "--legs", "disk", "new", "--size", "4M", "--source", "disk", "--name", "v"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    for name in ["disk", "new"] {
        assert!(fs::read(rig.path(name)).unwrap()[..SIZE as usize] == before, "{name}");
    }
    sh("e2fsck", &["-fn", rig.path("new").to_str().unwrap()]);
}

#[test]
fn equal_legs_are_taken_at_their_word() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let a = leg_with_data(&rig, "a", SIZE);
    fs::copy(a, rig.path("b")).unwrap();
    rig.ok(&["create", "--legs", "a", "b", "--name", "v", "--assume-clean"]);
    let status = rig.status();
    assert_eq!(status["state"], "in_sync");
    assert_eq!(status["resync"]["copied_regions"], 0);
}

#[test]
fn legs_are_allocated_if_asked() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--preallocate"]);
    for name in ["a", "b"] {
        assert!(fs::metadata(rig.path(name)).unwrap().blocks() * 512 >= SIZE);
    }
}

#[test]
fn force_makes_a_leg_anew() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    rig.ok(&["stop", "v"]);
    let uuid = |rig: &Rig| {
        let report: Value = serde_json::from_str(&rig.ok(&["inspect", "a", "--json"])).unwrap();
        (report["footer"]["volume"].clone(), report["len_bytes"].clone())
    };
    let before = uuid(&rig);
    for leg in ["a", "b"] {
        assert_eq!(fs::metadata(rig.path(leg)).unwrap().len(), SIZE + 16384);
    }
    // The volume's size is that of the old one, not of the file with its metadata.
    rig.ok(&["create", "--legs", "a", "b", "--force", "--name", "w"]);
    let after = uuid(&rig);
    assert_ne!(before.0, after.0);
    assert_eq!(before.1, after.1);
    assert!(rig.ok(&["list"]).lines().any(|line| line.starts_with("v ") && line.contains("gone")));
}

#[test]
fn a_disk_log_is_the_kernels() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--log", "disk:log"]);
    assert_eq!(rig.status()["log"]["place"], rig.path("log").to_str().unwrap());
    rig.ok(&["stop", "v"]);
    let report: Value = serde_json::from_str(&rig.ok(&["inspect", "log", "--json"])).unwrap();
    assert_eq!(report["kind"], "disk_log");
    assert_eq!((&report["version"], &report["regions"]), (&2.into(), &4.into()));
    assert_eq!(report["dirty_regions"], 0);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["state"], "in_sync");
}

#[test]
fn block_devices() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let (one, other) = (leg(&rig, "one", SIZE), leg(&rig, "other", SIZE * 2));
    let (Some(one), Some(other)) = (rig.loop_device(&one), rig.loop_device(&other)) else { return };
    let args = ["create", "--legs", "one", "new", "--size", "1M"];
    refused(&rig, &args, 1, &["leg one", "in use", &one]);
    let same = ["create", "--legs", &one, &one];
    refused(&rig, &same, 1, &["same file", &one]);
    let large = ["create", "--legs", &one, &other, "--size", "4M"];
    refused(&rig, &large, 1, &[&one, "does not fit", "3.98MiB"]);

    let output = rig.run(&["create", "--legs", &one, &other, "--name", "v"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the smallest"), "{said}");
    assert_eq!(rig.status()["size_bytes"], SIZE - 16384);
    refused(&rig, &["start", &one, &other], 1, &[&one, "in use"]);
    rig.ok(&["stop", "v"]);
    // Free at once.
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
    if have("mkfs.ext4", "a device with a file system") {
        sh("mkfs.ext4", &["-q", "-F", &one]);
        let keep = ["create", "--legs", &one, "new", "--size", "3M", "--source", &one, "--name", "w"];
        // The volume's end is the user's word, and the rest of the device is not the volume.
        rig.ok(&keep);
        rig.ok(&["wait", "w", "--timeout", "300"]);
        rig.ok(&["stop", "w"]);
    }
}

#[test]
fn a_device_that_is_kept_needs_a_size() {
    let rig = Rig::new();
    let file = leg_with_data(&rig, "disk", SIZE);
    leg(&rig, "new", SIZE);
    let Some(device) = rig.loop_device(&file) else { return };
    let args = ["create", "--legs", &device, "new", "--source", &device];
    refused(&rig, &args, 1, &[&device, "16KiB of the device", "--size", "4177920", "--force"]);
}

/// What is left of a smaller volume's metadata would be content of the larger one, and different on each leg.
#[test]
fn a_larger_volume_in_the_place_of_a_smaller_one() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("8MiB", &[]);
    rig.ok(&["stop", "v"]);
    fs::remove_file(rig.path("state/v.json")).unwrap();
    rig.create("16MiB", &["--force"]);
    assert_eq!(rig.status()["state"], "in_sync");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 << 20);
}
