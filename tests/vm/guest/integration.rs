//! The tests of the real binary that run on any host, on a kernel that is known.

use std::process::Command;

use crate::rig::sh;

/// Runs a test binary of tests/integration, with its volumes on an ext4 of the first disk.
pub(crate) fn run(tests: &str) {
    sh("mkfs.ext4", &["-q", "/dev/vda"]);
    sh("mount", &["/dev/vda", "/mnt"]);
    sh("chmod", &["1777", "/mnt"]);
    let mut command = Command::new(format!("/bin/{tests}"));
    command.args(["--nocapture", "--test-threads=2"]).env("MIRRORD_TEST_DIR", "/mnt");
    assert!(command.status().unwrap().success(), "{tests}: see above");
}
