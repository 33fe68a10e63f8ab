//! A daemon makes way for another one: by `mirrord upgrade`, and at the end of its service.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{Load, MIB, Volume, mount, pause, refused, verified};
use crate::rig::{sh, until};

pub(crate) fn daemons_change_under_load() {
    let volume = Volume::create(64 * MIB, &["--queues", "2"]);
    let rig = &volume.rig;
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(rig, &volume.device);
    let load = Load::begin(verified(&format!("{mnt}/data"), 2, 8 * MIB, &["--fsync=64"]));
    for _ in 0..10 {
        pause(300);
        let before = volume.pid();
        rig.ok(&["upgrade", "v"]);
        assert_ne!(volume.pid(), before);
        assert_eq!(rig.status()["device"], volume.device.as_str());
        assert!(load.goes_on());
    }

    // The end of a service while the device is in use leaves it to the next daemon.
    let pid = volume.pid().to_string();
    sh("kill", &["-TERM", &pid]);
    until("the daemon is gone", || !Path::new(&format!("/proc/{pid}/fd/0")).exists());
    refused(rig, &["stop", "v"], &["mirrord start v", "--force"]);
    refused(rig, &["start", "v", "--front", "fuse"], &[&volume.device, "waits"]);
    refused(rig, &["upgrade", "v"], &["it is not running"]);
    let list: Value = serde_json::from_str(&rig.ok(&["list", "--json"])).unwrap();
    println!("{list}");
    assert_eq!((&list[0]["state"], &list[0]["device"]), (&"killed".into(), &volume.device.as_str().into()));
    assert!(load.goes_on(), "it waits");
    rig.ok(&["start", "v"]);
    load.end();
    refused(rig, &["stop", "v"], &[&volume.device, "in use", "--force"]);
    sh("umount", &[&mnt]);
    sh("e2fsck", &["-fn", &volume.device]);
    // As udev does, which looks at a device after whoever wrote to it.
    let look = File::open(&volume.device).unwrap();
    let looks = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        drop(look);
    });
    volume.stop();
    looks.join().unwrap();
}

/// Its users are given up only when that is asked for.
pub(crate) fn a_waiting_device_is_taken_away() {
    let volume = Volume::create(64 * MIB, &[]);
    let rig = &volume.rig;
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(rig, &volume.device);
    rig.kill();
    refused(rig, &["stop", "v"], &["mirrord start v", "--force"]);
    rig.ok(&["stop", "v", "--force"]);
    assert!(!Path::new(&volume.device).exists());
    sh("umount", &["-l", &mnt]);
    // Nobody waits any more: any front end will do.
    rig.ok(&["start", "v", "--front", "fuse"]);
    rig.wait();
    refused(rig, &["upgrade", "v"], &["FUSE", "stop"]);
    assert_eq!(rig.status()["front"], "fuse");
    rig.ok(&["stop", "v"]);
    volume.compare();
    // One that nobody uses goes without force.
    rig.ok(&["start", "v", "--front", "ublk"]);
    rig.kill();
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    volume.stop();
}
