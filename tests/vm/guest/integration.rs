//! The tests of the real binary that run on any host, on a kernel that is known.

use std::process::Command;

use crate::devices::load;
use crate::rig::sh;

/// Runs a test binary of tests/integration, with its volumes on an ext4 of the first disk and served by FUSE.
pub(crate) fn run(tests: &str) {
    with_front(tests, "fuse");
}

/// The same with volumes that are block devices.
pub(crate) fn run_with_ublk(tests: &str) {
    load(&["ublk_drv"]);
    with_front(tests, "ublk");
}

fn with_front(tests: &str, front: &str) {
    sh("mkfs.ext4", &["-q", "/dev/vda"]);
    sh("mount", &["/dev/vda", "/mnt"]);
    sh("chmod", &["1777", "/mnt"]);
    let mut command = Command::new(format!("/bin/{tests}"));
    command.args(["--nocapture", "--test-threads=2"]);
    command.env("MIRRORD_TEST_DIR", "/mnt").env("MIRRORD_TEST_FRONT", front);
    assert!(command.status().unwrap().success(), "{tests}: see above");
}
