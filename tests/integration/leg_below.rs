//! Legs that would lie on their own volume.

use std::fs;
use std::path::PathBuf;

use crate::rig::{Rig, can_serve, have, is_root, sh};

/// The volume `v`, a file system on its loop device, mounted: where. `None` with a printed reason where that cannot be
/// had.
fn mounted() -> Option<(Rig, PathBuf)> {
    let what = "legs on their own volume";
    if !can_serve(what) || !is_root() || !have("mkfs.ext4", what) {
        println!("SKIP: {what}: need root and loop devices");
        return None;
    }
    let rig = Rig::new();
    let volume = rig.create("64MiB", &[]);
    let device = rig.loop_device(&volume)?;
    sh("mkfs.ext4", &["-q", "-F", &device]);
    let at = rig.path("mnt");
    fs::create_dir(&at).unwrap();
    sh("mount", &[&device, at.to_str().unwrap()]);
    rig.at_end(&["umount", "-l", at.to_str().unwrap()]);
    Some((rig, at))
}

#[test]
fn a_leg_that_lies_on_the_volume_is_refused() {
    let Some((rig, at)) = mounted() else { return };
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    // A file on it, that is there or is to be made; the loop device; a loop device on a file on it; the volume.
    fs::write(at.join("there"), "").unwrap();
    fs::File::create(at.join("disk")).unwrap().set_len(8 << 20).unwrap();
    let inner = rig.loop_device(&at.join("disk")).unwrap();
    let outer = rig.loop_device(&rig.volume()).unwrap();
    std::os::unix::fs::symlink(at.join("there"), rig.path("link")).unwrap();
    let volume = text(rig.volume());
    for path in [text(at.join("new")), text(at.join("there")), text(rig.path("link")), inner, outer, volume] {
        for args in [
            &["leg", "add", "v", &path, "--force"][..],
            &["leg", "add", "v", &path, "--spare", "--force"],
            &["leg", "replace", "v", "b", &path, "--force"],
        ] {
            rig.refused(args, &[&path, "the volume itself"]);
        }
    }
    assert!(!at.join("new").exists());
    // By way of another volume.
    rig.ok(&["create", "--legs", &text(at.join("x")), "y", "--size", "4MiB", "--name", "w", "--mount", "w"]);
    rig.refused(&["leg", "add", "v", "w", "--force"], &["lies on the volume itself", "mnt/x"]);
    rig.ok(&["stop", "w"]);
    // By way of another volume's log.
    let log = format!("disk:{}", text(at.join("log")));
    rig.ok(&["create", "--legs", "x", "y2", "--size", "4MiB", "--name", "u", "--log", &log, "--mount", "u"]);
    rig.refused(&["leg", "add", "v", "u", "--force"], &["lies on the volume itself", "mnt/log"]);
    rig.ok(&["stop", "u"]);
    // What lies elsewhere is none of that.
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
}
