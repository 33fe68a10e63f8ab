//! Legs that hang: with a time-out the volume goes on without, without one it waits; whatever was under way on
//! the leg is done once it moves again, and the legs end up equal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::rig::{Rig, is_root, sh, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// In seconds. Much more than a leg of a busy test machine takes when it does not hang.
const LIMIT: u64 = 4;
const ETIMEDOUT: i32 = 110;

/// A file system that hangs when it is told to; it is in memory, and beside it is one that never hangs, so that no leg
/// takes long because the machine's disk does.
pub(super) struct Disk {
    at: PathBuf,
}

impl Disk {
    pub(super) fn new(rig: &Rig) -> Option<Disk> {
        let memory = rig.path("mem");
        std::fs::create_dir(&memory).unwrap();
        if is_root() {
            sh("mount", &["-t", "tmpfs", "none", memory.to_str().unwrap()]);
            rig.at_end(&["umount", "-l", memory.to_str().unwrap()]);
        }
        std::os::unix::fs::symlink("mem/disk.img", rig.path("disk.img")).unwrap();
        let at = rig.file_system("disk", 192 * MIB)?;
        rig.at_end(&["fsfreeze", "-u", at.to_str().unwrap()]);
        Some(Disk { at })
    }

    pub(super) fn hang(&self) {
        sh("fsfreeze", &["-f", self.at.to_str().unwrap()]);
    }

    pub(super) fn go_on(&self) {
        sh("fsfreeze", &["-u", self.at.to_str().unwrap()]);
    }
}

fn write(volume: &Path, mib: u64, byte: u8) -> io::Result<()> {
    File::options().write(true).open(volume)?.write_all_at(&[byte; MIB as usize], mib * MIB)
}

fn read(volume: &Path, mib: u64) -> u8 {
    let mut byte = [0];
    File::open(volume).unwrap().read_exact_at(&mut byte, mib * MIB).unwrap();
    byte[0]
}

fn create(rig: &Rig, legs: [&str; 2], more: &[&str]) -> PathBuf {
    let args = ["create", "--legs", legs[0], legs[1], "--size", "64MiB", "--name", "v", "--mount", "vol"];
    rig.ok(&[&args[..], more].concat());
    rig.path("vol")
}

fn states(rig: &Rig) -> Vec<String> {
    let status = rig.status();
    let legs = status["legs"].as_array().unwrap();
    legs.iter().map(|leg| leg["state"].as_str().unwrap().to_owned()).collect()
}

/// The file system hangs, and everything was well until now.
fn hang(rig: &Rig, disk: &Disk) {
    assert_eq!(states(rig), ["in_sync", "in_sync"], "slower than the time-out without any hang");
    disk.hang();
}

fn hung(rig: &Rig) -> u64 {
    rig.status()["legs"].as_array().unwrap().iter().map(|leg| leg["hung"].as_u64().unwrap()).sum()
}

/// What a leg was given to write, and what of that hangs.
fn given_to(rig: &Rig, leg: usize) -> [Value; 3] {
    let leg = rig.status()["legs"][leg].clone();
    ["writes", "written_bytes", "hung"].map(|name| leg[name].clone())
}

/// A leg hangs while data goes to it, or while a region is marked on it; both ways of doing IO.
#[test]
fn the_volume_goes_on_without_a_leg_that_hangs() {
    for (engine, first) in [("auto", 0), ("auto", 50), ("threads", 0), ("threads", 50)] {
        let rig = Rig::new();
        let Some(disk) = Disk::new(&rig) else { return };
        let limit = LIMIT.to_string();
        let volume = create(&rig, ["mem/a", "disk/b"], &["--leg-timeout", &limit, "--engine", engine]);
        assert_eq!(rig.status()["leg_timeout_seconds"], LIMIT);
        (0..4).for_each(|mib| write(&volume, mib, 1).unwrap());

        hang(&rig, &disk);
        let began = Instant::now();
        write(&volume, first, 2).unwrap();
        let took = began.elapsed();
        println!("{engine}: written at {first} after {took:?}");
        assert!(took >= Duration::from_secs(LIMIT), "{engine} {first}: {took:?}");
        assert_eq!(states(&rig), ["in_sync", "failed"]);

        let before = given_to(&rig, 1);
        for mib in [1, 2, 20, 30] {
            write(&volume, mib, 3).unwrap();
            assert_eq!((read(&volume, mib), read(&volume, 3)), (3, 1));
        }
        File::open(&volume).unwrap().sync_all().unwrap();
        assert_eq!(given_to(&rig, 1), before, "nothing waits for it any more");

        disk.go_on();
        until("what hung has ended", || hung(&rig) == 0);
        assert_eq!(states(&rig), ["in_sync", "failed"], "and does not come back by itself");
        rig.ok(&["stop", "v"]);
        rig.ok(&["start", "v"]);
        assert_eq!(rig.status()["leg_timeout_seconds"], LIMIT, "remembered");
        rig.wait();
        assert_eq!(states(&rig), ["in_sync", "in_sync"]);
        let copied = rig.status()["resync"]["copied_regions"].as_u64().unwrap();
        assert!((5..=10).contains(&copied), "{engine}: only what changed is copied: {copied} regions of 64");
        assert_eq!((read(&volume, first), read(&volume, 30)), (2, 3));
        rig.ok(&["stop", "v"]);
        rig.assert_same("mem/a", "disk/b", SIZE);
    }
}

#[test]
fn without_a_time_out_the_writer_waits() {
    let rig = Rig::new();
    let Some(disk) = Disk::new(&rig) else { return };
    let volume = create(&rig, ["a", "disk/b"], &[]);
    assert!(rig.status()["leg_timeout_seconds"].is_null());
    hang(&rig, &disk);
    let (tell, told) = channel();
    let writer = std::thread::spawn(move || tell.send(write(&volume, 7, 7)).unwrap());
    assert!(told.recv_timeout(Duration::from_secs(LIMIT)).is_err(), "it waits");
    assert_eq!(states(&rig), ["in_sync", "in_sync"]);
    disk.go_on();
    told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
    writer.join().unwrap();
    assert_eq!(states(&rig), ["in_sync", "in_sync"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "disk/b", SIZE);
}

#[test]
fn when_every_leg_hangs_the_writer_is_told_and_no_leg_fails() {
    for engine in ["auto", "threads"] {
        let rig = Rig::new();
        let Some(disk) = Disk::new(&rig) else { return };
        let more = ["--leg-timeout", "4", "--engine", engine];
        let volume = create(&rig, ["disk/a", "disk/b"], &more);
        (0..4).for_each(|mib| write(&volume, mib, 1).unwrap());
        hang(&rig, &disk);
        for mib in [0, 2] {
            let began = Instant::now();
            let error = write(&volume, mib, 2).unwrap_err();
            println!("{engine}: {error} after {:?}", began.elapsed());
            assert!(!states(&rig).contains(&"failed".to_owned()));
        }
        let error = write(&volume, 3, 2).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(ETIMEDOUT), "{error}");

        disk.go_on();
        until("what hung has ended", || hung(&rig) == 0);
        until("writes work again", || write(&volume, 0, 3).is_ok());
        (0..4).for_each(|mib| write(&volume, mib, 4).unwrap());
        until("the legs are in sync", || states(&rig) == ["in_sync", "in_sync"]);
        assert!((0..4).all(|mib| read(&volume, mib) == 4));
        rig.ok(&["stop", "v"]);
        rig.assert_same("disk/a", "disk/b", SIZE);
    }
}

#[test]
fn a_stop_ends_though_a_leg_hangs_and_nobody_gets_that_leg() {
    for engine in ["auto", "threads"] {
        let rig = Rig::new();
        let Some(disk) = Disk::new(&rig) else { return };
        let volume = create(&rig, ["mem/a", "disk/b"], &["--leg-timeout", "4", "--engine", engine]);
        write(&volume, 0, 1).unwrap();
        hang(&rig, &disk);
        write(&volume, 0, 2).unwrap();
        let began = Instant::now();
        let output = rig.run(&["stop", "v"]);
        let error = String::from_utf8(output.stderr).unwrap();
        println!("{engine}: {error}, after {:?}", began.elapsed());
        assert!(output.status.success(), "{error}");
        assert!(error.contains("disk/b hangs"), "{error}");

        // It is recorded as out: without it the volume can be used. A start by name waits for it for a while.
        let what = if engine == "auto" { "v" } else { "mem/a" };
        let output = rig.run(&["start", what]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        if what == "v" {
            assert!(error.contains("disk/b: it is in use") && error.contains("without it"), "{error}");
        }
        write(&volume, 9, 9).unwrap();
        rig.ok(&["stop", "v"]);
        disk.go_on();
        until("the kernel lets go of the leg", || {
            rig.ok(&["start", "v"]);
            let is_there = states(&rig)[1] != "failed";
            if !is_there {
                rig.ok(&["stop", "v"]);
            }
            is_there
        });
        rig.wait();
        assert_eq!((states(&rig), read(&volume, 0)), (vec!["in_sync".to_owned(); 2], 2));
        rig.ok(&["stop", "v"]);
        rig.assert_same("mem/a", "disk/b", SIZE);
    }
}

/// Waits until something that the daemon does hangs in the kernel.
fn until_it_hangs(daemon: &Value) {
    until("the daemon hangs", || {
        let threads = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten();
        let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat"));
        threads.into_iter().any(|thread| stat(thread).unwrap_or_default().contains(") D "))
    });
}

/// Nothing but the stop gives the legs up. What was acknowledged is there afterwards, the name is free at once, and a leg
/// that does not hang can be used.
#[test]
fn a_forced_stop_ends_without_any_time_out() {
    for (engine, legs) in [("auto", ["mem/a", "disk/b"]), ("threads", ["disk/a", "disk/b"])] {
        let rig = Rig::new();
        let Some(disk) = Disk::new(&rig) else { return };
        let volume = create(&rig, legs, &["--engine", engine]);
        write(&volume, 0, 1).unwrap();
        let daemon = rig.status()["pid"].clone();
        hang(&rig, &disk);
        let writer = std::thread::spawn(move || write(&volume, 7, 7));
        until_it_hangs(&daemon);
        let output = rig.run(&["stop", "v", "--force"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{engine}: {error}");
        for leg in legs {
            assert_eq!(error.contains(&format!("{leg} hangs")), leg.starts_with("disk"), "{engine}: {error}");
        }
        assert!(writer.join().unwrap().is_err(), "{engine}: its volume is gone");
        assert!(!rig.path("run/v.sock").exists() && !rig.path("vol").exists());
        if legs[0].starts_with("mem") {
            rig.ok(&["start", "v"]);
            assert_eq!(states(&rig), ["in_sync", "failed"], "{engine}: recorded before the end");
            assert_ne!(rig.status()["pid"], daemon);
            rig.ok(&["stop", "v"]);
        }
        disk.go_on();
        until("the kernel lets go of the leg", || {
            let started = rig.run(&["start", "v"]).status.success();
            let all_there = started && !states(&rig).contains(&"failed".to_owned());
            if started && !all_there {
                rig.ok(&["stop", "v"]);
            }
            all_there
        });
        rig.wait();
        assert_eq!(read(&rig.path("vol"), 0), 1, "{engine}");
        rig.ok(&["stop", "v"]);
        rig.assert_same(legs[0], legs[1], SIZE);
    }
}

/// What hangs is no IO that could be given up, but the call that makes a leg's file longer.
#[test]
fn a_forced_stop_ends_whatever_hangs() {
    let rig = Rig::new();
    let Some(disk) = Disk::new(&rig) else { return };
    let volume = create(&rig, ["mem/a", "disk/b"], &[]);
    write(&volume, 0, 1).unwrap();
    let daemon = rig.status()["pid"].clone();
    hang(&rig, &disk);
    let mut growing = rig.command(&["resize", "v", "--size", "80MiB"]).spawn().unwrap();
    until_it_hangs(&daemon);
    let output = rig.run(&["stop", "v", "--force"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains(&format!("process {daemon} has not ended")),
        "{error}"
    );
    assert!(error.contains("as in a crash") && error.contains("keep its legs locked"), "{error}");
    assert!(!growing.wait().unwrap().success());
    assert!(!rig.path("run/v.sock").exists() && !rig.path("vol").exists());
    rig.refused(&["status", "v"], &["not running"]);
    disk.go_on();
    until("its process has ended", || rig.run(&["start", "v"]).status.success());
    rig.wait();
    assert_eq!(read(&volume, 0), 1);
    rig.ok(&["stop", "v"]);
    rig.assert_same("mem/a", "disk/b", SIZE);
}
