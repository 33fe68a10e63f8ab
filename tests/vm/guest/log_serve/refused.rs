//! Tables that make no sense, and others than the kernel's who talk to the connector.

use super::{Bed, MIB, remove, status, until_in_sync, write};
use crate::devices::loop_leg;
use crate::rig::{sh, try_sh};

pub(crate) fn what_makes_no_sense() {
    let bed = Bed::new();
    bed.serve();
    for size in
        ["0", "-1024", "4294967296", "4294968320", "18446744073709551615", "1000", "65537", "131072", "x"]
    {
        bed.refused(&format!("bad clustered-core {size}"));
    }
    for log in
        ["bad clustered-core 1024 maybe", "bad clustered-core 1024 sync nosync", "bad bogus 1024", "bad core"]
    {
        bed.refused(log);
    }
    // A word is missing: the size is taken for the device.
    bed.refused("bad clustered-disk 1024");
    bed.refused("bad clustered-disk /dev/null 1024");
    bed.refused("bad clustered-disk /dev/none 1024");
    bed.refused("bad clustered-disk 4095:7 1024");
    let small = loop_leg(&bed.rig, "small", 512);
    bed.refused(&format!("bad clustered-disk {small} 1024"));
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n", "and nothing is left of them");

    // A device by its number, and the longest name.
    let long = "U".repeat(128);
    let number = super::number(&bed.log);
    bed.create("m", &format!("{long} clustered-disk {number} 1024 nosync"));
    assert_eq!(status("m"), format!("64/64 1 AA 3 clustered-disk {number} A"));
    // A device belongs to one name at a time, also to another program.
    bed.refused(&format!("other disk {} 1024", bed.log));
    let locked = try_sh("flock", &["--nonblock", &bed.log, "true"]);
    assert!(!locked.status.success(), "the log device is not locked");
    // Another server, and one that has no right.
    bed.rig.refused(&["log", "serve", "--netlink"], &["runs already", "--name"]);
    bed.rig.refused(&["log", "serve", "--netlink", "--name", "two"], &["answers the kernel", "already"]);
    remove("m");

    // Two mirrors with one name: the second waits, and has its turn.
    bed.create("m", "twice core 1024 nosync");
    let (a, b) = (loop_leg(&bed.rig, "c", 32 * MIB), loop_leg(&bed.rig, "d", 32 * MIB));
    let table = format!("0 65536 mirror userspace 4 twice core 1024 nosync 2 {a} 0 {b} 0 1 handle_errors");
    let second = super::dm_create("n", &table);
    let to = format!("of={second}");
    let mut writer = std::process::Command::new("dd")
        .args(["if=/dev/zero", &to, "bs=4k", "count=1", "oflag=direct"])
        .spawn()
        .unwrap();
    write("/dev/mapper/m", 3, 1, 3);
    bed.assert_same();
    assert!(writer.try_wait().unwrap().is_none(), "the second mirror writes without a log");
    remove("m");
    assert!(writer.wait().unwrap().success());
    until_in_sync("n");
    sh("cmp", &[&a, &b]);
    remove("n");
}
