//! A leg that was split off, served for reading while the volume goes on.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::rig::{Rig, is_ublk, sh, try_sh};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn bytes(path: &std::path::Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// All of a leg, and when it was last written to.
fn untouched(rig: &Rig, leg: &str) -> (Vec<u8>, i64, i64) {
    let metadata = fs::metadata(rig.path(leg)).unwrap();
    (fs::read(rig.path(leg)).unwrap(), metadata.mtime(), metadata.mtime_nsec())
}

/// The volume `v`, and its leg `b` served as `v-1`: where.
fn split() -> (Rig, PathBuf) {
    let rig = Rig::new();
    rig.create("64MiB", &["--region-size", "1MiB"]);
    (0..16).for_each(|mib| rig.write(mib, 0x10 + mib as u8));
    let said = rig.ok(&["split", "v", "--leg", "b", "--track", "--yes", "--serve", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["served_as"], &said["leg"]), (&"v-1".into(), &1.into()), "{said}");
    let device = said["device"].as_str().unwrap().into();
    (rig, device)
}

#[test]
fn it_is_the_volume_of_one_moment_and_takes_no_write() {
    let (rig, served) = split();
    let leg = untouched(&rig, "b");
    let then = bytes(&served);
    assert!(then[..] == leg.0[..SIZE as usize] && then[15 * MIB as usize] == 0x1f);
    for mib in [0, 15, 40] {
        rig.write(mib, 0xee);
    }
    assert!(bytes(&served) == then && bytes(&rig.volume()) != then);

    let status = rig.status_of("v-1");
    assert_eq!((&status["read_only"], &status["size_bytes"]), (&true.into(), &SIZE.into()), "{status}");
    assert_eq!(rig.status()["read_only"], false);
    assert!(rig.ok(&["status", "v-1"]).contains("read-only"));
    assert!(rig.ok(&["list"]).contains("v-1"));
    if is_ublk() {
        assert_eq!(sh("blockdev", &["--getro", served.to_str().unwrap()]).trim(), "1");
    } else {
        assert_eq!(fs::metadata(&served).unwrap().permissions().mode() & 0o777, 0o444);
        let written = File::options().write(true).open(&served).map(drop).unwrap_err();
        assert_eq!(written.raw_os_error(), Some(30), "EROFS: {written}");
    }
    let output = format!("of={}", served.display());
    assert!(!try_sh("dd", &["if=/dev/zero", &output, "bs=4096", "count=1", "conv=notrunc"]).status.success());
    File::open(&served).unwrap().sync_all().unwrap();
    for args in [
        &["resize", "v-1", "--size", "1GiB"][..],
        &["leg", "fail", "v-1", "0"],
        &["split", "v-1", "--leg", "0", "--track", "--yes"],
        &["merge", "v-1", "0"],
        &["resync", "v-1", "--pause"],
        &["leg", "add", "v-1", "c"],
        &["leg", "add", "v-1", "c", "--spare"],
        &["leg", "remove", "v-1", "0"],
        &["leg", "replace", "v-1", "0", "c"],
        &["split", "v-1", "--leg", "0", "--name", "w", "--yes"],
        &["scrub", "v-1"],
        &["scrub", "v-1", "--cancel"],
        &["map", "v-1"],
        &["map", "v-1", "--json"],
    ] {
        rig.refused(args, &["v-1", "split off: it can be read"]);
    }
    assert!(!rig.path("c").exists());
    assert_eq!(bytes(&served), then, "it is served as before");
    assert!(untouched(&rig, "b") == leg, "it was written to");

    rig.refused(&["merge", "v", "b"], &["/b", "v-1", "mirrord stop v-1"]);
    rig.refused(&["split", "v", "--leg", "b", "--track", "--serve"], &["v-1"]);
    // The volume can be stopped and killed meanwhile, and started.
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    rig.kill_for_good();
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["legs"][1]["state"], "tracked");
    assert!(bytes(&served) == then && untouched(&rig, "b") == leg);
    rig.ok(&["stop", "v-1"]);
    assert!(untouched(&rig, "b") == leg, "it was written to");
    rig.ok(&["merge", "v", "b"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
}

#[test]
fn a_leg_split_off_before_is_served_by_any_name_again_and_again() {
    let (rig, _) = split();
    rig.ok(&["stop", "v-1"]);
    rig.write(3, 0xee);
    for name in ["then", "again"] {
        rig.ok(&["split", "v", "--leg", "1", "--track", "--serve-as", name]);
        let device = PathBuf::from(rig.status_of(name)["device"].as_str().unwrap());
        assert!(bytes(&device)[3 * MIB as usize..][..MIB as usize] == [0x13; MIB as usize]);
        rig.ok(&["stop", name]);
    }
    rig.refused(&["split", "v", "--leg", "1", "--track", "--serve-as", "a/b"], &["a/b"]);
    // Only what was split off.
    rig.ok(&["merge", "v", "1"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
}

#[test]
fn a_file_system_of_one_moment_is_mounted() {
    let (rig, _) = split();
    rig.ok(&["stop", "v-1"]);
    rig.ok(&["merge", "v", "b"]);
    rig.wait();
    let volume = rig.volume();
    sh("mkfs.ext4", &["-q", "-F", volume.to_str().unwrap()]);
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes", "--serve"]);
    (0..64).for_each(|mib| rig.write(mib, 0xee));
    // Not where it was served before: a block device may get another number.
    sh("e2fsck", &["-f", "-n", rig.status_of("v-1")["device"].as_str().unwrap()]);
    rig.ok(&["stop", "v-1"]);
    rig.ok(&["stop", "v"]);
}
