//! File systems on the volume, used hard, trimmed, checked, and mounted while its daemon is replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Load, MIB, Volume, mount, pause, verified};
use crate::rig::{sh, until};

/// Smaller ones mkfs.xfs refuses.
const SIZE: u64 = 320 * MIB;

pub(crate) fn ext4() {
    run(&["mkfs.ext4", "-q"], &["e2fsck", "-fn"]);
}

pub(crate) fn xfs() {
    crate::devices::load(&["xfs"]);
    run(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
}

fn run(mkfs: &[&str], check: &[&str]) {
    let volume = Volume::create(SIZE, &["--queues", "2"]);
    let rig = &volume.rig;
    sh(mkfs[0], &[&mkfs[1..], &[&volume.device]].concat());
    let mnt = mount(rig, &volume.device);
    let keep: Vec<u8> = (0..3 * MIB + 77).map(|n| (n / 511) as u8).collect();
    fs::write(format!("{mnt}/keep"), &keep).unwrap();
    sh("sync", &[]);

    let load = verified(&format!("{mnt}/data"), 4, 8 * MIB, &["--bsrange=4k-64k", "--fsync=64"]);
    let load = Load::begin(load);
    for _ in 0..3 {
        pause(1000);
        volume.replace_daemon();
        assert!(load.goes_on());
    }
    load.end();

    rig.wait();
    sh("umount", &[&mnt]);
    sh(check[0], &[&check[1..], &[&volume.device]].concat());
    mount(rig, &volume.device);
    assert!(fs::read(format!("{mnt}/keep")).unwrap() == keep, "what was flushed is there");
    // The legs get back what files no longer need.
    let used = || ["a", "b"].map(|leg| fs::metadata(rig.path(leg)).unwrap().blocks() * 512);
    let before = used();
    fs::remove_file(format!("{mnt}/data")).unwrap();
    sh("sync", &[]);
    print!("{}", sh("fstrim", &["-v", &mnt]));
    // XFS does not wait for what it discards.
    until("the legs are smaller", || (0..2).all(|leg| used()[leg] + 24 * MIB <= before[leg]));
    println!("legs use {before:?} bytes, trimmed {:?}", used());

    sh("umount", &[&mnt]);
    sh(check[0], &[&check[1..], &[&volume.device]].concat());
    volume.stop();
}
