//! `create` refused for what the legs hold.

use std::fs;

use super::data::{fuse, leg, leg_with_data, patch};
use crate::rig::{Rig, have, sh};
use crate::snapshot::refused;

const SIZE: u64 = 4 << 20;

/// One leg with something on it, one without: refused, and with `--force` not.
fn refused_without_force(rig: &Rig, name: &str, words: &[&str]) {
    leg(rig, "other", SIZE);
    let words = [words, &["--force", name]].concat();
    refused(rig, &["create", "--legs", name, "other"], 1, &words);
    refused(rig, &["create", "--legs", "other", name, "--size", "1M"], 1, &words);
}

#[test]
fn a_file_system() {
    let rig = Rig::new();
    for (program, args, words) in [
        ("mkfs.ext4", &["-q", "-F"][..], &["ext2/3/4 file system", "byte 1080"][..]),
        ("mkfs.xfs", &["-q", "-f"], &["XFS"]),
        ("mkfs.btrfs", &["-q", "-f"], &["btrfs"]),
        ("mkfs.vfat", &[], &["FAT"]),
        ("mkswap", &["-q"], &["swap"]),
    ] {
        if !have(program, &format!("a leg with what {program} makes")) {
            continue;
        }
        let path = leg(&rig, "disk", if program == "mkfs.ext4" { SIZE } else { 400 << 20 });
        sh(program, &[args, &[path.to_str().unwrap()]].concat());
        refused_without_force(&rig, "disk", words);
    }
}

#[test]
fn a_partition_table() {
    let rig = Rig::new();
    if have("sfdisk", "a partition table that sfdisk makes") {
        for (label, words) in [("dos", "MBR partition table"), ("gpt", "GPT partition table")] {
            let path = leg(&rig, "disk", SIZE);
            let script = format!("printf 'label: {label}\\n,\\n' | sfdisk -q {}", path.display());
            sh("sh", &["-c", &script]);
            refused_without_force(&rig, "disk", &[words]);
        }
    }
    for (offset, bytes, words) in [(510, &b"\x55\xaa"[..], "MBR"), (512, b"EFI PART", "GPT")] {
        leg(&rig, "disk", SIZE);
        patch(&rig, "disk", offset, bytes);
        refused_without_force(&rig, "disk", &[words, &format!("byte {offset}")]);
    }
}

#[test]
fn members_of_other_arrays() {
    let rig = Rig::new();
    for (offset, bytes, words) in [
        (512, &b"LABELONE"[..], "LVM2 physical volume"),
        (4096, b"\xfc\x4e\x2b\xa9", "md array"),
        (0, b"\xfc\x4e\x2b\xa9", "md array"),
        (SIZE - 8192, b"\xfc\x4e\x2b\xa9", "md array"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (SIZE - 4096 + 60, b"\x83\x74\x02\x6b", "DRBD"),
    ] {
        leg(&rig, "disk", SIZE);
        patch(&rig, "disk", offset, bytes);
        refused_without_force(&rig, "disk", &[words, &format!("byte {offset}")]);
    }
}

#[test]
fn a_leg_of_a_volume() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    let args = ["create", "--legs", "a", "c", "--size", "4M"];
    refused(&rig, &args, 1, &["leg a", "in use"]);
    rig.ok(&["stop", "v"]);
    refused(&rig, &args, 1, &["leg a", "volume v", "mirrord start", "--force"]);
    // Not even to be mirrored: it is part of something.
    let source = [&args[..], &["--source", "a"]].concat();
    refused(&rig, &source, 1, &["leg a", "volume v", "--force"]);
    rig.ok(&[&args[..], &["--force", "--name", "w"]].concat());
    rig.ok(&["wait", "w", "--timeout", "300"]);
}

#[test]
fn two_legs_with_data() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", SIZE);
    leg_with_data(&rig, "b", SIZE);
    let args = ["create", "--legs", "a", "b", "--name", "v"];
    refused(&rig, &args, 1, &["legs a and b", "--source", "--assume-clean", "--force"]);
    refused(&rig, &[&args[..], &["--source", "c"]].concat(), 2, &["--source c"]);
    refused(&rig, &[&args[..], &["--source", "2"]].concat(), 2, &["--source 2"]);
    let before = fs::read(rig.path("b")).unwrap();
    rig.ok(&[&args[..], &["--source", "b"]].concat());
    rig.ok(&["wait", "v", "--timeout", "300"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", SIZE);
    assert!(fs::read(rig.path("b")).unwrap()[..SIZE as usize] == before);
}

#[test]
fn data_past_the_volumes_end() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", SIZE);
    leg(&rig, "b", SIZE / 2);
    let words = ["leg a", "past byte 2097152", "--size", "--force"];
    refused(&rig, &["create", "--legs", "a", "b"], 1, &words);
    refused(&rig, &["create", "--legs", "a", "c", "--size", "2M"], 1, &words);
    // A byte past the last whole block is data too.
    fs::write(rig.path("odd"), [7; 5000]).unwrap();
    refused(&rig, &["create", "--legs", "odd", "b"], 1, &["leg odd", "past byte 4608"]);
    rig.ok(&["create", "--legs", "a", "b", "--size", "4M", "--name", "v"]);
}

#[test]
fn legs_of_different_size() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    leg(&rig, "b", SIZE / 2 + 700);
    let output = rig.run(&["create", "--legs", "a", "b", "--name", "v"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    for word in ["differ in size", "the smallest, b", "2097664", "leg a is cut"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(rig.status()["size_bytes"], SIZE / 2 + 512);
}
