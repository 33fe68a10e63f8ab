//! A volume from its creation to its end, on the kernel at hand.

use std::fs;

use crate::devices::write_and_verify;
use crate::rig::{Rig, is_root};

const MIB: u64 = 1 << 20;

/// Legs on tmpfs and on ext4: two kinds of file system that mirrord writes to directly.
pub(crate) fn a_volume_survives_its_daemon() {
    let rig = Rig::new();
    rig.file_system("disk", 128 * MIB).unwrap();
    for (a, b) in [("a", "b"), ("disk/a", "disk/b")] {
        let volume = create(&rig, a, b);
        write_and_verify(&volume, 32 * MIB);
        rig.kill();
        rig.ok(&["start", "v"]);
        rig.wait();
        assert_eq!(rig.status()["state"], "in_sync");
        write_and_verify(&volume, 8 * MIB);
        stop(&rig, a, b);
    }
}

pub(crate) fn a_plain_user_has_a_volume() {
    assert!(!is_root());
    let rig = Rig::new();
    write_and_verify(&create(&rig, "a", "b"), 8 * MIB);
    stop(&rig, "a", "b");
}

/// Creates the volume `v` and gives its path.
fn create(rig: &Rig, a: &str, b: &str) -> String {
    let legs = ["create", "--legs", a, b, "--size", "48MiB", "--name", "v"];
    rig.ok(&[&legs[..], &["--mount", "vol", "--front", "fuse"]].concat());
    rig.path("vol").to_str().unwrap().to_owned()
}

/// Stops it and compares and removes the legs.
fn stop(rig: &Rig, a: &str, b: &str) {
    rig.ok(&["stop", "v"]);
    rig.assert_same(a, b, 48 * MIB);
    fs::remove_file(rig.path(a)).unwrap();
    fs::remove_file(rig.path(b)).unwrap();
}
