//! What the rig promises to every case.

use std::fs;
use std::path::Path;

use crate::devices::load;
use crate::rig::{is_root, sh, try_sh};

pub(crate) fn a_guest_has_what_cases_need() {
    println!("{}", fs::read_to_string("/proc/version").unwrap());
    assert!(is_root());
    load(&["dm-mirror", "dm-raid", "dm-log-userspace", "dm-flakey", "dm-delay", "dm-log-writes"]);
    load(&["raid1", "null_blk", "brd", "loop", "nbd", "scsi_debug", "xfs", "virtio_blk"]);
    for program in ["dmsetup", "mdadm", "losetup", "mkfs.ext4", "mkfs.xfs", "fio", "strace", "mirrord"] {
        assert!(try_sh("sh", &["-c", &format!("command -v {program}")]).status.success(), "{program}");
    }
    let user = ["--reuid", "1000", "--regid", "1000", "--clear-groups"];
    let script = "id -un && mirrord --version && touch /test/of-user && ! touch /root/x";
    print!("{}", sh("setpriv", &[&user[..], &["sh", "-c", script]].concat()));
}

pub(crate) fn ublk_has_its_control_device() {
    load(&["ublk_drv"]);
    assert!(Path::new("/dev/ublk-control").exists());
}
