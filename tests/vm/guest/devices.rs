//! Block devices for cases, and load for them.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::rig::{Rig, sh, until};

/// Loads modules; the kernel has them or the case fails.
pub(crate) fn load(modules: &[&str]) {
    modules.iter().for_each(|module| drop(sh("modprobe", &[module])));
}

/// Runs the real udev, with mirrord's rule and no other.
pub(crate) fn run_udev() {
    let rule = include_str!("../../../packaging/udev/60-mirrord-ublk.rules");
    fs::create_dir_all("/etc/udev/rules.d").unwrap();
    fs::write("/etc/udev/rules.d/60-mirrord-ublk.rules", rule).unwrap();
    sh("systemd-udevd", &["--daemon"]);
    sh("udevadm", &["trigger", "--settle", "--subsystem-match=misc"]);
}

/// A loop device with direct IO over a new sparse file of the rig.
pub(crate) fn loop_leg(rig: &Rig, name: &str, size: u64) -> String {
    File::create(rig.path(name)).unwrap().set_len(size).unwrap();
    rig.loop_device(&rig.path(name)).unwrap()
}

/// A device-mapper device, there until the rig's end.
pub(crate) fn dm(rig: &Rig, name: &str, table: &str) -> String {
    sh("dmsetup", &["create", name, "--table", table]);
    rig.at_end(&["dmsetup", "remove", "--retry", name]);
    let path = format!("/dev/mapper/{name}");
    until("the device is there", || is_block(&path));
    path
}

/// Whether this is a block device: writing to a missing one would make a file, and test nothing.
pub(crate) fn is_block(path: &str) -> bool {
    Path::new(path).metadata().is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// Writes the first `size` in random order with fio, flushes, and reads all of it back.
pub(crate) fn write_and_verify(path: &str, size: u64) {
    let (file, size) = (format!("--filename={path}"), format!("--size={size}"));
    let load = ["--name=v", &file, &size, "--rw=randwrite", "--bs=4k", "--direct=1", "--end_fsync=1"];
    let how = ["--ioengine=libaio", "--iodepth=16", "--thread"];
    let check = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    println!("{}", sh("fio", &[&load[..], &how, &check].concat()));
}

/// Size of a block device, in 512-byte sectors.
pub(crate) fn sectors(device: &str) -> u64 {
    sh("blockdev", &["--getsz", device]).trim().parse().unwrap()
}
