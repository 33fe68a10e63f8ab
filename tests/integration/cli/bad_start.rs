//! `start` and the verbs of a running volume refused.

use std::fs;
use std::os::unix::fs::FileExt;

use super::data::{footer, fuse, leg, leg_with_data, patch, reseal};
use crate::rig::{Rig, is_ublk, sh};
use crate::snapshot::refused;

const SIZE: u64 = 4 << 20;

/// A rig with a volume `v` of `a` and `b` that was stopped.
fn stopped() -> Option<Rig> {
    if !fuse() {
        return None;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    rig.ok(&["stop", "v"]);
    Some(rig)
}

/// Serves the volume of one leg alone and changes something.
fn go_on_with(rig: &Rig, name: &str) {
    rig.ok(&["start", name, "--degraded"]);
    let volume = fs::File::options().read(true).write(true).open(rig.volume()).unwrap();
    volume.write_all_at(name.as_bytes(), 100).unwrap();
    drop(volume);
    rig.ok(&["stop", "v"]);
}

#[test]
fn volumes_nobody_knows() {
    let rig = Rig::new();
    for verb in ["stop", "status", "map", "wait", "resync"] {
        refused(&rig, &[verb, "nix"], 1, &["nix", "there is no volume", "mirrord list"]);
    }
    refused(&rig, &["start", "nix"], 1, &["nix", "neither a volume nor a leg"]);
    refused(&rig, &["start", "./nix"], 1, &["nix", "no such file", "--degraded"]);
    refused(&rig, &["inspect", "nix"], 1, &["nix", "no such file"]);
    refused(&rig, &["inspect", "."], 1, &["directory"]);
}

#[test]
fn a_volume_that_does_not_run() {
    let Some(rig) = stopped() else { return };
    for verb in ["stop", "status", "map", "wait", "resync"] {
        refused(&rig, &[verb, "v"], 1, &["v", "not running", "mirrord start v"]);
    }
}

#[test]
fn what_is_no_leg() {
    let Some(rig) = stopped() else { return };
    leg_with_data(&rig, "data", SIZE);
    fs::create_dir(rig.path("dir")).unwrap();
    fs::write(rig.path("short"), "x").unwrap();
    refused(&rig, &["start", "a", "data"], 1, &["data", "no mirrord footer"]);
    refused(&rig, &["start", "a", "dir"], 1, &["dir", "directory"]);
    refused(&rig, &["start", "a", "short"], 1, &["short", "too few"]);
    refused(&rig, &["start", "a", "a"], 1, &["same file"]);
    fs::hard_link(rig.path("a"), rig.path("hard")).unwrap();
    refused(&rig, &["start", "a", "hard"], 1, &["same file", "hard"]);
    fs::copy(rig.path("a"), rig.path("copy")).unwrap();
    refused(&rig, &["start", "a", "copy"], 1, &["copy of the other", "copy"]);
}

#[test]
fn legs_of_two_volumes() {
    let Some(rig) = stopped() else { return };
    rig.ok(&["create", "--legs", "c", "d", "--size", "4M", "--name", "w"]);
    rig.ok(&["stop", "w"]);
    let words = ["/a ", "/d ", "\"v\"", "\"w\"", "one volume"];
    refused(&rig, &["start", "a", "d"], 1, &words);
}

#[test]
fn a_running_volume() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    refused(&rig, &["start", "v"], 1, &["v", "running already"]);
    refused(&rig, &["start", "a", "b"], 1, &["/a", "in use", "process"]);
}

#[test]
fn a_missing_leg() {
    let Some(rig) = stopped() else { return };
    refused(&rig, &["start", "a"], 1, &["\"v\"", "leg 1", "--degraded"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    refused(&rig, &["start", "v"], 1, &["/b", "no such file", "--degraded"]);
    rig.ok(&["start", "v", "--degraded"]);
    let status = rig.status();
    assert_eq!(status["state"], "degraded");
    assert_eq!(status["legs"][1]["state"], "missing");
}

#[test]
fn newer_formats() {
    for (what, at) in [("footer", 0), ("superblock", 16384 - 4096), ("superblock", 16384 - 8192)] {
        let Some(rig) = stopped() else { return };
        // One page of log here: slots, log and footer are the last four pages.
        let place = footer(&rig, "b") - at;
        reseal(&rig, "b", place, |page| page[8..12].copy_from_slice(&2u32.to_le_bytes()));
        refused(&rig, &["start", "v"], 1, &["/b", what, "version 2", "newer"]);
        refused(&rig, &["start", "v", "--degraded"], 1, &["/b", what, "version 2"]);
    }
    let Some(rig) = stopped() else { return };
    let place = footer(&rig, "b") - 12288;
    reseal(&rig, "b", place, |page| page[16] = 0x80);
    refused(&rig, &["start", "v"], 1, &["/b", "unknown features 0x80"]);
}

#[test]
fn torn_superblocks() {
    let Some(rig) = stopped() else { return };
    let footer = footer(&rig, "b");
    patch(&rig, "b", footer - 12288 + 2000, b"torn");
    let report: serde_json::Value = serde_json::from_str(&rig.ok(&["inspect", "b", "--json"])).unwrap();
    assert!(report["slots"][0]["error"].as_str().unwrap().contains("checksum"), "{report}");
    rig.ok(&["start", "v"]);
    rig.ok(&["wait", "v", "--timeout", "300"]);
    rig.ok(&["stop", "v"]);
    for slot in [12288, 8192] {
        patch(&rig, "b", footer - slot + 2000, b"torn");
    }
    refused(&rig, &["start", "v"], 1, &["/b", "both superblock slots are lost"]);
    patch(&rig, "b", footer + 50, b"torn");
    refused(&rig, &["start", "v"], 1, &["/b", "footer fails its checksum"]);
}

#[test]
fn a_leg_that_was_made_longer() {
    let Some(rig) = stopped() else { return };
    let file = fs::File::options().write(true).open(rig.path("b")).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"x", SIZE * 2).unwrap();
    refused(&rig, &["start", "v"], 1, &["/b", "no mirrord footer", "longer"]);
    // With zeroes alone at its end, as a crash leaves it while the volume grows, it is the leg it was. Nobody else
    // wrote to it then.
    file.write_all_at(&[0], SIZE * 2).unwrap();
    file.set_modified(modified).unwrap();
    rig.ok(&["start", "v"]);
}

#[test]
fn a_stale_leg() {
    let Some(rig) = stopped() else { return };
    go_on_with(&rig, "a");
    // It does not know that it is stale, but it knows that it is not alone.
    refused(&rig, &["start", "b"], 1, &["leg 0", "newer data", "--degraded"]);
    rig.ok(&["start", "v"]);
    rig.ok(&["wait", "v", "--timeout", "300"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
    assert_eq!(&fs::read(rig.path("b")).unwrap()[100..101], b"a");
}

#[test]
fn a_leg_that_was_never_in_sync() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", SIZE);
    rig.create("4M", &["--resync-rate", "1"]);
    // What waits for its time goes on and ends, nothing new begins.
    rig.ok(&["resync", "v", "--pause", "--rate", "0"]);
    rig.ok(&["stop", "v"]);
    let before = rig.ok(&["inspect", "b", "--json"]);
    if before.contains("\"syncing\"") {
        refused(&rig, &["start", "b", "--degraded"], 1, &["none of the given legs was in sync", "leg 0"]);
    } else {
        println!("SKIP: a leg that was never in sync: the resync was done before the stop");
    }
}

#[test]
fn split_brain() {
    let Some(rig) = stopped() else { return };
    go_on_with(&rig, "a");
    go_on_with(&rig, "b");
    refused(&rig, &["start", "v"], 1, &["split brain", "/a", "/b", "--source"]);
    refused(&rig, &["start", "v", "--source", "c"], 1, &["--source c", "no such leg"]);
    rig.ok(&["start", "v", "--source", "b"]);
    rig.ok(&["wait", "v", "--timeout", "300"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
    assert_eq!(&fs::read(rig.path("a")).unwrap()[100..101], b"b");
}

#[test]
fn what_a_killed_daemon_leaves() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    rig.kill();
    assert!(rig.path("run/v.sock").exists());
    refused(&rig, &["status", "v"], 1, &["v", "not running", "killed", "mirrord start v"]);
    assert!(rig.ok(&["list"]).contains("killed"));
    if is_ublk() {
        // Its device is there and waits; nobody uses it.
        assert_eq!(rig.ok(&["stop", "v"]), "v stopped\n");
    }
    refused(&rig, &["stop", "v"], 1, &["v", "not running", "mirrord start v"]);
    rig.ok(&["start", "v"]);
    rig.ok(&["wait", "v", "--timeout", "300"]);
    assert_eq!(rig.status()["state"], "in_sync");
}

#[test]
fn a_damaged_memory_of_volumes() {
    let Some(rig) = stopped() else { return };
    fs::write(rig.path("state/v.json"), "{").unwrap();
    refused(&rig, &["start", "v"], 1, &["v.json", "damaged", "naming its legs"]);
    rig.ok(&["start", "a", "b"]);
}

#[test]
fn a_runtime_directory_that_others_can_write_to() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    leg(&rig, "b", SIZE);
    sh("chmod", &["777", rig.path("run").to_str().unwrap()]);
    refused(&rig, &["create", "--legs", "a", "b"], 1, &["/run", "others", "MIRRORD_RUNTIME_DIR"]);
}
