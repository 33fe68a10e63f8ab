//! A block device that grows under its users, also with a daemon killed on the way; and where the kernel cannot do
//! that, it says so before anything is touched, and what it says helps.

use super::{Load, MIB, Volume, pause, refused, verified};
use crate::rig::{sh, until};

pub(crate) fn a_device_grows_under_load() {
    let mut volume = Volume::create(64 * MIB, &["--queues", "2"]);
    if !can_grow(&volume) {
        return the_way_out_is_one(volume);
    }
    let load = Load::begin(verified(&volume.device, 2, 8 * MIB, &["--fsync=64"]));
    let mut size = 96;
    for _ in 0..4 {
        size += 32;
        volume.rig.ok(&["resize", "v", "--size", &format!("{size}MiB")]);
        assert_eq!(device_mib(&volume), size);
        use_new_part(&volume, size);
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
        use_new_part(&volume, size);
        assert!(load.goes_on());
    }
    println!("{grown} times it had grown when it was killed");
    load.end();
    volume.size = size * MIB;
    volume.stop();
}

/// The last 8 MiB hold what is written there.
fn use_new_part(volume: &Volume, mib: u64) {
    let args = verified(&volume.device, 1, 8 * MIB, &[&format!("--offset={}", (mib - 8) * MIB)]);
    sh("fio", &args.iter().map(String::as_str).collect::<Vec<_>>());
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
