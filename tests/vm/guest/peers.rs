//! The kernel's own mirrors: that they work here, since other cases are measured against them.

use crate::devices::{dm, load, loop_leg, sectors, write_and_verify};
use crate::rig::{Rig, sh, until};

const MIB: u64 = 1 << 20;

pub(crate) fn dm_mirror_mirrors() {
    load(&["dm-mirror"]);
    let rig = Rig::new();
    let (a, b) = (loop_leg(&rig, "a", 64 * MIB), loop_leg(&rig, "b", 64 * MIB));
    let log = loop_leg(&rig, "log", MIB);
    for log in ["core 1 1024".to_owned(), format!("disk 2 {log} 1024")] {
        let table = format!("0 {} mirror {log} 2 {a} 0 {b} 0 1 handle_errors", sectors(&a));
        let mirror = dm(&rig, "m", &table);
        write_and_verify(&mirror, 16 * MIB);
        until("all 128 regions are in sync", || sh("dmsetup", &["status", "m"]).contains(" 128/128 "));
        println!("{}", sh("dmsetup", &["status", "m"]));
        sh("dmsetup", &["remove", "m"]);
        rig.assert_same("a", "b", 64 * MIB);
    }
}

pub(crate) fn md_raid1_mirrors() {
    load(&["raid1"]);
    let rig = Rig::new();
    let (a, b) = (loop_leg(&rig, "a", 64 * MIB), loop_leg(&rig, "b", 64 * MIB));
    let create = ["--create", "/dev/md0", "--level=1", "--raid-devices=2", "--bitmap=internal", "--run"];
    sh("mdadm", &[&create[..], &[&a, &b]].concat());
    rig.at_end(&["mdadm", "--stop", "/dev/md0"]);
    write_and_verify("/dev/md0", 16 * MIB);
    // One leg away and back: only what was written meanwhile is copied.
    sh("mdadm", &["/dev/md0", "--fail", &b]);
    sh("mdadm", &["/dev/md0", "--remove", &b]);
    write_and_verify("/dev/md0", 4 * MIB);
    sh("mdadm", &["/dev/md0", "--re-add", &b]);
    until("both legs are in sync", || {
        let state = std::fs::read_to_string("/proc/mdstat").unwrap();
        state.contains("[UU]")
    });
    println!("{}", std::fs::read_to_string("/proc/mdstat").unwrap());
}
