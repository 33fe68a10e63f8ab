//! `create --adopt-log`: a mirror that the kernel served goes on as a volume.

use std::fs;
use std::path::Path;

use super::data::{fuse, leg, leg_with_data, patch};
use crate::rig::Rig;
use crate::snapshot::refused;

/// A log does not say how large its regions are.
const REGION: u64 = 64 << 10;
const REGIONS: u64 = 41;
const SIZE: u64 = REGIONS * REGION;

/// Writes a log of the kernel's in which these regions are dirty.
fn kernel_log(rig: &Rig, dirty: &[usize]) {
    let vector = Path::new(env!("CARGO_MANIFEST_DIR")).join("log/tests/vectors/kernel-disk-2-in-sync.bin");
    let mut log = fs::read(vector).unwrap();
    dirty.iter().for_each(|region| log[1024 + region / 8] &= !(1 << (region % 8)));
    fs::write(rig.path("log"), log).unwrap();
}

/// Two equal legs but for a byte in each of these regions.
fn legs(rig: &Rig, different: &[u64]) {
    leg_with_data(rig, "a", SIZE);
    fs::copy(rig.path("a"), rig.path("b")).unwrap();
    different.iter().for_each(|region| patch(rig, "b", region * REGION + 5000, b"old"));
}

const ARGS: [&str; 10] =
    ["create", "--legs", "a", "b", "--name", "v", "--log", "disk:log", "--adopt-log", "--region-size"];

fn create(more: &[&'static str]) -> Vec<&'static str> {
    [&ARGS[..], more].concat()
}

#[test]
fn only_what_the_kernel_left_dirty_is_copied() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    kernel_log(&rig, &[3, 17, 40]);
    legs(&rig, &[3, 40]);
    let before = fs::read(rig.path("a")).unwrap();
    let output = rig.run(&create(&["64K", "--source", "a"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("is adopted: 3 regions are dirty"), "{said}");
    rig.wait();
    let status = rig.status();
    assert_eq!(status["log"]["dirty_regions_at_start"], 3, "{status}");
    assert_eq!(status["resync"]["copied_regions"], 3, "{status}");
    rig.ok(&["stop", "v"]);
    let read = |name: &str| fs::read(rig.path(name)).unwrap();
    assert!(read("a")[..SIZE as usize] == before);
    rig.assert_same("a", "b", SIZE);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0);
}

#[test]
fn a_log_that_does_not_fit_is_refused() {
    let rig = Rig::new();
    legs(&rig, &[]);
    let all = create(&["64K", "--source", "a"]);
    refused(&rig, &all, 1, &["log", "no such file"]);
    kernel_log(&rig, &[3]);
    refused(&rig, &create(&["64K"]), 2, &["--adopt-log", "--region-size and --source"]);
    let sizeless = [&ARGS[..9], &["--source", "a"]].concat();
    refused(&rig, &sizeless, 2, &["--adopt-log", "--region-size and --source"]);
    let core = ["create", "--legs", "a", "b", "--adopt-log", "--region-size", "64K", "--source", "a"];
    refused(&rig, &core, 2, &["--adopt-log", "disk:PATH"]);
    assert_eq!(rig.run(&[&all[..], &["--assume-clean"]].concat()).status.code(), Some(2));
    for size in ["128K", "32K"] {
        refused(&rig, &create(&[size, "--source", "a"]), 1, &["log log", "it has 41 regions"]);
    }
    let small = create(&["64K", "--source", "a", "--size", "2560K", "--force"]);
    refused(&rig, &small, 1, &["log log", "41 regions", "40 of 64KiB"]);
    patch(&rig, "log", 4, &3u32.to_le_bytes());
    refused(&rig, &all, 1, &["log log", "version is 3"]);
    patch(&rig, "log", 0, b"what");
    refused(&rig, &all, 1, &["log log", "there is none", "without --adopt-log"]);
    kernel_log(&rig, &[]);
    fs::File::options().write(true).open(rig.path("log")).unwrap().set_len(1026).unwrap();
    refused(&rig, &all, 1, &["log log", "bytes are there"]);
    leg(&rig, "log", 0);
    refused(&rig, &all, 1, &["log log", "there is none"]);
}
