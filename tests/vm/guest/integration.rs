//! The tests of the real binary that run on any host, on a kernel that is known.

use std::process::Command;

use crate::devices::load;
use crate::rig::sh;

const BINARY: &str = "/bin/integration";

/// Runs the tests in a module of tests/integration, with their volumes on an ext4 of the first disk and served by
/// FUSE.
pub(crate) fn run(module: &str) {
    with_front(module, "fuse");
}

/// The same with volumes that are block devices.
pub(crate) fn run_with_ublk(module: &str) {
    load(&["ublk_drv"]);
    with_front(module, "ublk");
}

fn with_front(module: &str, front: &str) {
    // A name to run is one that holds these words: `legs::` would be any module of such an end.
    let all = sh(BINARY, &["--list", "--format", "terse"]);
    let is_in = |name: &&str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"));
    let tests: Vec<&str> = all.lines().filter_map(|line| line.strip_suffix(": test")).filter(is_in).collect();
    assert!(!tests.is_empty(), "there are no tests of {module}");
    sh("mkfs.ext4", &["-q", "/dev/vda"]);
    sh("mount", &["/dev/vda", "/mnt"]);
    sh("chmod", &["1777", "/mnt"]);
    let mut command = Command::new(BINARY);
    command.args(["--nocapture", "--test-threads=2", "--exact"]).args(tests);
    command.env("MIRRORD_TEST_DIR", "/mnt").env("MIRRORD_TEST_FRONT", front);
    assert!(command.status().unwrap().success(), "{module}: see above");
}
