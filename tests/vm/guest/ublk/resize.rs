//! A block device that grows under its users, also with a daemon killed on the way; and where the kernel cannot do
//! that, it says so before anything is touched, and what it says helps.

use super::{Load, MIB, Volume, mount, pause, refused, verified};
use crate::rig::{sh, until};

pub(crate) fn a_device_grows_under_load() {
    let mut volume = Volume::create(64 * MIB, &["--queues", "2"]);
    if !can_grow(&volume) {
        return the_way_out_is_one(volume);
    }
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(&volume.rig, &volume.device);
    let load = Load::begin(verified(&format!("{mnt}/data"), 2, 8 * MIB, &["--fsync=64"]));
    let mut size = 96;
    for _ in 0..4 {
        size += 32;
        volume.rig.ok(&["resize", "v", "--size", &format!("{size}MiB")]);
        assert_eq!(device_mib(&volume), size);
        sh("resize2fs", &[&volume.device]);
        assert!(load.goes_on());
    }
    // Killed somewhere between the first step and the last: the next daemon brings device and volume together.
    let mut grown = 0;
    for round in 0..6 {
        let next = size + 16;
        let mut resize =
            volume.rig.command(&["resize", "v", "--size", &format!("{next}MiB")]).spawn().unwrap();
        pause(20 * round);
        volume.rig.kill();
        let answered = resize.wait().unwrap().success();
        volume.rig.ok(&["start", "v"]);
        let now = volume.rig.status()["size_bytes"].as_u64().unwrap() / MIB;
        assert!(now == next || now == size && !answered, "{size} or {next} MiB became {now}");
        until("the device is as large as the volume", || device_mib(&volume) == now);
        grown += u32::from(now == next);
        size = now;
        sh("resize2fs", &[&volume.device]);
        assert!(load.goes_on());
    }
    println!("{grown} times it had grown when it was killed");
    load.end();
    sh("umount", &[&mnt]);
    sh("e2fsck", &["-fn", &volume.device]);
    volume.size = size * MIB;
    volume.stop();
}

fn device_mib(volume: &Volume) -> u64 {
    sh("blockdev", &["--getsize64", &volume.device]).trim().parse::<u64>().unwrap() / MIB
}

fn can_grow(volume: &Volume) -> bool {
    let output = volume.rig.run(&["resize", "v", "--size", "96MiB"]);
    if output.status.success() {
        assert_eq!(device_mib(volume), 96);
    }
    output.status.success()
}

fn the_way_out_is_one(mut volume: Volume) {
    let rig = &volume.rig;
    refused(rig, &["resize", "v", "--size", "96MiB"], &["6.16", "--front fuse"]);
    assert_eq!((device_mib(&volume), &rig.status()["size_bytes"]), (64, &(64 * MIB).into()));
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v", "--front", "fuse"]);
    rig.ok(&["resize", "v", "--size", "96MiB"]);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v", "--front", "ublk"]);
    volume.device = rig.status()["device"].as_str().unwrap().to_owned();
    assert_eq!(device_mib(&volume), 96);
    volume.size = 96 * MIB;
    volume.stop();
}
