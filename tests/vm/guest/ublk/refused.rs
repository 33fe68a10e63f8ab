//! Where there is no block device to be had, or the one there is does not fit.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::{MIB, Volume, refused};
use crate::devices::{is_block, write_and_verify};
use crate::rig::{Rig, binary, sh, until};

const SIZE: u64 = 16 * MIB;

/// The module is there, but nobody has loaded it.
pub(crate) fn without_the_driver_a_file_is_served() {
    let rig = Rig::new();
    let create = ["create", "--legs", "a", "b", "--size", "16MiB", "--name", "v"];
    refused(
        &rig,
        &[&create[..], &["--front", "ublk"]].concat(),
        &["--front ublk", "modprobe ublk_drv", "--front fuse"],
    );
    assert!(!rig.path("a").exists(), "nothing was made");
    rig.ok(&create);
    let status = rig.status();
    assert_eq!(status["front"], "fuse");
    assert!(status["front_note"].as_str().unwrap().contains("modprobe ublk_drv"), "{status}");
    println!("{}", rig.ok(&["status", "v"]));
    rig.ok(&["stop", "v"]);
    // With the driver there `auto` makes a device.
    sh("modprobe", &["ublk_drv"]);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["front"], "ublk");
    rig.ok(&["stop", "v"]);
}

/// Legs that have larger blocks by now than the device that waits.
pub(crate) fn a_device_that_does_not_fit_is_left_waiting() {
    let rig = Rig::new();
    let disks = [("/dev/loop5", rig.path("x")), ("/dev/loop6", rig.path("y"))];
    let attach = |block: &str| {
        for (device, path) in &disks {
            let how = ["--direct-io=on", "--sector-size", block, device, path.to_str().unwrap()];
            sh("losetup", &how);
        }
    };
    let detach = || disks.iter().for_each(|(device, _)| drop(sh("losetup", &["-d", device])));
    for (_, path) in &disks {
        File::create(path).unwrap().set_len(SIZE + 8 * MIB).unwrap();
    }
    attach("512");
    let volume = Volume::of_legs(Rig::new(), &["/dev/loop5", "/dev/loop6"], SIZE, &[]);
    let device = volume.device.as_str();
    volume.rig.kill();
    detach();
    attach("4096");
    refused(&volume.rig, &["start", "v"], &[device, "larger blocks", "stop --force"]);
    assert!(is_block(device), "it waits for legs that fit");
    detach();
    attach("512");
    volume.rig.ok(&["start", "v"]);
    write_and_verify(device, 4 * MIB);
    volume.stop();
    detach();
}

/// Deleted by somebody who cannot see that its daemon lives: from another process namespace. The daemon
/// stops as if it had been told to.
pub(crate) fn a_device_that_is_taken_away() {
    let volume = Volume::create(SIZE, &[]);
    let rig = &volume.rig;
    write_and_verify(&volume.device, 4 * MIB);
    let pid = volume.pid();
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--pid", "--fork", "--mount-proc", &binary(), "stop", "v", "--force"]);
    elsewhere.env("MIRRORD_RUNTIME_DIR", rig.path("other")).env("MIRRORD_STATE_DIR", rig.path("state"));
    assert!(elsewhere.status().unwrap().success());
    until("the daemon has ended", || !Path::new(&format!("/proc/{pid}/fd/0")).exists());
    assert!(!Path::new(&volume.device).exists());
    volume.compare();
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0, "it was a clean stop");
    volume.stop();
}
