//! `create` refused for what was asked: legs, sizes, names, logs, mount points.

use std::fs;
use std::os::unix::fs::symlink;

use super::data::{fuse, leg, leg_with_data};
use crate::rig::{Rig, is_root, sh, try_sh};
use crate::snapshot::refused;

const SIZE: u64 = 1 << 20;

#[test]
fn the_same_file_twice() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    fs::hard_link(rig.path("a"), rig.path("hard")).unwrap();
    symlink(rig.path("a"), rig.path("soft")).unwrap();
    fs::create_dir(rig.path("dir")).unwrap();
    symlink("dir", rig.path("way")).unwrap();
    for other in ["a", "./a", "hard", "soft"] {
        refused(&rig, &["create", "--legs", "a", other], 1, &["same file", "a", other]);
    }
    for [one, other] in [["b", "./b"], ["dir/b", "way/b"], ["b", "dir/../b"]] {
        refused(&rig, &["create", "--legs", one, other, "--size", "1M"], 1, &["same file", one, other]);
    }
}

#[test]
fn a_front_end_that_is_not_there() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    leg(&rig, "b", SIZE);
    let mounted = ["create", "--legs", "a", "b", "--front", "ublk", "--mount", "vol"];
    refused(&rig, &mounted, 2, &["--mount", "--front fuse"]);
    if std::path::Path::new("/dev/ublk-control").exists() {
        return println!("SKIP: a volume without ublk: the driver is there");
    }
    let without = ["create", "--legs", "a", "b", "--front", "ublk"];
    refused(&rig, &without, 1, &["--front ublk", "modprobe ublk_drv", "--front fuse"]);
}

#[test]
fn a_missing_leg_without_size() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    refused(&rig, &["create", "--legs", "a", "b"], 1, &["leg b", "no such file", "--size", "1048576"]);
    refused(&rig, &["create", "--legs", "c", "d"], 1, &["leg c", "no such file", "--size"]);
    fs::write(rig.path("empty"), "").unwrap();
    refused(&rig, &["create", "--legs", "a", "empty"], 1, &["leg empty", "it is empty", "--size"]);
    let far = ["create", "--legs", "a", "no/where", "--size", "1M"];
    refused(&rig, &far, 1, &["no/where", "create it", "No such file"]);
    symlink("nowhere", rig.path("dangling")).unwrap();
    refused(&rig, &["create", "--legs", "a", "dangling", "--size", "1M"], 1, &["dangling", "No such file"]);
}

#[test]
fn what_is_no_file_or_device() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    fs::create_dir(rig.path("dir")).unwrap();
    sh("mkfifo", &[rig.path("pipe").to_str().unwrap()]);
    for size in [&[][..], &["--size", "1M"]] {
        let with = |leg| [&["create", "--legs", "a", leg], size].concat();
        refused(&rig, &with("dir"), 1, &["leg dir", "is a directory"]);
        refused(&rig, &with("pipe"), 1, &["leg pipe", "neither a file nor a block device"]);
        refused(&rig, &with("/dev/null"), 1, &["leg /dev/null", "neither a file nor a block device"]);
    }
}

#[test]
fn a_read_only_leg() {
    let rig = Rig::new();
    leg(&rig, "a", SIZE);
    let path = leg(&rig, "b", SIZE);
    if is_root() {
        let path = path.to_str().unwrap();
        let bound = try_sh("mount", &["--bind", path, path]).status.success();
        if !bound || !try_sh("mount", &["-o", "remount,bind,ro", path]).status.success() {
            return println!("SKIP: a read-only leg: cannot mount a file read-only here");
        }
        rig.at_end(&["umount", "-l", path]);
    } else {
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
    }
    refused(&rig, &["create", "--legs", "a", "b"], 1, &["leg b", "cannot be opened for writing"]);
}

#[test]
fn a_leg_on_a_full_file_system() {
    let rig = Rig::new();
    let Some(mount) = rig.file_system("fs", 8 << 20) else { return };
    leg(&rig, "fs/old", SIZE);
    let fill = mount.join("fill");
    try_sh("dd", &["if=/dev/zero", &format!("of={}", fill.display()), "bs=4k"]);
    for b in ["fs/b", "fs/old"] {
        let args = ["create", "--legs", "a", b, "--size", "1M"];
        refused(&rig, &args, 1, &[b, "free", "needed"]);
    }
    fs::remove_file(fill).unwrap();
    let whole = ["create", "--legs", "a", "fs/b", "--size", "100M", "--preallocate"];
    refused(&rig, &whole, 1, &["fs/b", "free", "100"]);
}

#[test]
fn a_create_that_fails_half_way_takes_everything_back() {
    let rig = Rig::new();
    if rig.file_system("fs", 8 << 20).is_none() {
        return;
    }
    leg(&rig, "fs/a", SIZE);
    // ext4 has no file of 32 TiB: found out when it is made.
    let args = ["create", "--legs", "fs/a", "fs/b", "--size", "32T"];
    refused(&rig, &args, 1, &["fs/", "enlarge it", "File too large"]);
}

#[test]
fn how_many_legs() {
    let rig = Rig::new();
    refused(&rig, &["create", "--legs", "a", "--size", "1M"], 2, &["2 to 8 legs", "not 1"]);
    let nine = ["create", "--size", "1M", "--legs", "a", "b", "c", "d", "e", "f", "g", "h", "i"];
    refused(&rig, &nine, 2, &["2 to 8 legs", "not 9"]);
}

#[test]
fn sizes_and_region_sizes() {
    let rig = Rig::new();
    let with = |more: &[&'static str]| [&["create", "--legs", "a", "b"], more].concat();
    for (region, words) in [
        ("3M", &["3145728", "power of two"][..]),
        ("512", &["512", "at least 4096"]),
        ("0", &["power of two"]),
        ("4K", &["region size 4096", "too small", "use 16384"]),
    ] {
        refused(&rig, &with(&["--size", "64G", "--region-size", region]), 2, words);
    }
    refused(&rig, &with(&["--size", "1000"]), 2, &["1000", "multiple of 512"]);
    refused(&rig, &with(&["--size", "0"]), 2, &["0", "multiple of 512"]);
    // Not understood at all: clap says so, in its words.
    for size in ["1X", "-5", "much", "99999999999P"] {
        let output = rig.run(&with(&[]).into_iter().chain(["--size", size]).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{size}");
        assert!(!rig.path("a").exists());
    }
}

#[test]
fn bad_names_and_names_that_are_taken() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("1M", &[]);
    for name in ["a/b", "a b", ".x", "", "x".repeat(65).as_str()] {
        let args = ["create", "--legs", "c", "d", "--size", "1M", &format!("--name={name}")];
        refused(&rig, &args, 2, &["--name", "A-Z"]);
    }
    let args = ["create", "--legs", "c", "d", "--size", "1M", "--name", "v"];
    refused(&rig, &args, 1, &["v", "running", "--name"]);
    rig.ok(&["stop", "v"]);
    refused(&rig, &args, 1, &["volume v", "leg", "start v"]);
    // A name whose legs are gone is free again.
    for leg in ["a", "b"] {
        fs::remove_file(rig.path(leg)).unwrap();
    }
    rig.ok(&args);
}

#[test]
fn logs() {
    let rig = Rig::new();
    for name in ["a", "b"] {
        leg(&rig, name, SIZE);
    }
    fs::hard_link(rig.path("a"), rig.path("hard")).unwrap();
    fs::create_dir(rig.path("dir")).unwrap();
    leg_with_data(&rig, "data", SIZE);
    let with = |log| ["create", "--legs", "a", "b", "--log", log];
    for log in ["disk:a", "disk:./a", "disk:hard"] {
        refused(&rig, &with(log), 1, &[log, "is leg a"]);
    }
    let new = ["create", "--legs", "c", "d", "--size", "1M", "--log", "disk:./c"];
    refused(&rig, &new, 1, &["disk:./c", "is leg c"]);
    refused(&rig, &with("disk:dir"), 1, &["log dir", "neither a file nor"]);
    refused(&rig, &with("disk:no/where"), 1, &["no/where", "No such file"]);
    refused(&rig, &with("disk:data"), 1, &["log data", "holds data", "--force"]);
    refused(&rig, &with("remote:host:1"), 1, &["log server host:1", "TLS", "--log-tls-cert", "insecure:"]);
    refused(&rig, &with("remote:insecure:127.0.0.1:1"), 1, &["127.0.0.1:1", "Connection refused"]);
    let output = rig.run(&with("wood"));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_log_that_another_volume_uses() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("1M", &["--log", "disk:log"]);
    let args = ["create", "--legs", "c", "d", "--size", "1M", "--log", "disk:log"];
    refused(&rig, &args, 1, &["log log", "in use"]);
    rig.ok(&["stop", "v"]);
    refused(&rig, &args, 1, &["log log", "dm-mirror log", "--force"]);
}

#[test]
fn mount_points() {
    let rig = Rig::new();
    for name in ["a", "b"] {
        leg(&rig, name, SIZE);
    }
    leg_with_data(&rig, "full", 100);
    fs::create_dir(rig.path("dir")).unwrap();
    let with = |mount| ["create", "--legs", "a", "b", "--log", "disk:log", "--mount", mount];
    refused(&rig, &with("a"), 1, &["--mount", "a leg"]);
    refused(&rig, &with("log"), 1, &["--mount", "the log"]);
    refused(&rig, &with("full"), 1, &["--mount", "hidden"]);
    refused(&rig, &with("dir"), 1, &["--mount", "a directory"]);
    let new = ["create", "--legs", "c", "d", "--size", "1M", "--mount", "d"];
    refused(&rig, &new, 1, &["--mount", "a leg"]);
}
