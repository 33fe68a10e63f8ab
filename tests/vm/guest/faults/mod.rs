//! What a block device volume must live through: power cuts, killed machines, disks that fail for a while or for
//! good, other mirrors that left it a log. Here is what these cases share.

pub(crate) mod blocks;
pub(crate) mod flakey;
pub(crate) mod kernel_log;
pub(crate) mod machine;
pub(crate) mod medium;
pub(crate) mod power_cut;
pub(crate) mod split_cut;

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::devices::is_block;
use crate::rig::{Rig, sh};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Creates the volume `v` as a block device and gives its path.
pub(crate) fn create(rig: &Rig, legs: [&str; 2], size: u64, region_size: u64) -> String {
    let (size, region_size) = (size.to_string(), region_size.to_string());
    let what = ["create", "--legs", legs[0], legs[1], "--name", "v", "--size", &size];
    rig.ok(&[&what[..], &["--region-size", &region_size, "--front", "ublk"]].concat());
    device(rig)
}

/// Where the volume `v` is served.
pub(crate) fn device(rig: &Rig) -> String {
    let status = rig.status();
    let device = status["device"].as_str().unwrap().to_owned();
    assert!(status["front"] == "fuse" || is_block(&device), "{device} is no block device");
    device
}

/// A number in the status of a volume or leg.
pub(crate) fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {path} in {status}"))
}

/// Waits until the volume `v` is in sync; no more was copied than was dirty, and that was at most so much.
pub(crate) fn resynced(rig: &Rig, most: u64) -> (u64, u64) {
    rig.wait();
    let status = rig.status();
    assert_eq!(status["state"], "in_sync", "{status}");
    let dirty = number(&status, "/log/dirty_regions_at_start");
    let copied = number(&status, "/resync/copied_regions");
    assert!(copied <= dirty, "{copied} regions copied, {dirty} were dirty: {status}");
    assert!(dirty <= most, "{dirty} regions dirty, {most} can be: {status}");
    (dirty, copied)
}

/// Compares the first bytes of two files or devices.
pub(crate) fn same(one: &str, other: &str, size: u64) {
    sh("cmp", &["-n", &size.to_string(), one, other]);
}

pub(crate) fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}
