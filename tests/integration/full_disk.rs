//! Legs that run out of space: the writer is told, no leg is lost for it when all are full, and one
//! that is full alone comes back by itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::rig::{Rig, until};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Fills the file system until at most `left` bytes are free.
fn fill(folder: &Path, left: u64) {
    let free = || {
        let stat = rustix::fs::statvfs(folder).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let file = File::create(folder.join("ballast")).unwrap();
    let (mut at, mut piece) = (0, 16 * MIB);
    while free() > left && piece >= 4096 {
        let len = piece.min(free() - left).next_multiple_of(4096);
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, len) {
            Ok(()) => at += len,
            Err(_) => piece /= 2,
        }
    }
}

/// Past the page cache of a block device, which would tell of an error only when it is flushed.
fn write_all(volume: &Path, from: u64, count: u64, byte: u8) -> io::Result<()> {
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    let file = File::options().write(true).custom_flags(flags).open(volume)?;
    let memory = vec![byte; MIB as usize + 4096];
    let data = &memory[memory.as_ptr().align_offset(4096)..][..MIB as usize];
    (from..from + count).try_for_each(|mib| file.write_all_at(data, mib * MIB))
}

fn states(status: &Value) -> Vec<String> {
    status["legs"].as_array().unwrap().iter().map(|leg| leg["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn when_every_leg_is_full_the_writer_gets_enospc_and_no_leg_fails() {
    let rig = Rig::new();
    let Some(disk) = rig.file_system("disk", 96 * MIB) else { return };
    let volume = rig.create_of(["disk/a", "disk/b"], "64MiB", &[]);
    fill(&disk, 0);
    for at in [0, 5, 31] {
        let error = write_all(&volume, at, 1, 7).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(28), "the writer gets ENOSPC, not {error}");
        let status = rig.status();
        assert!(!states(&status).contains(&"failed".to_owned()), "{status}");
    }

    fs::remove_file(disk.join("ballast")).unwrap();
    write_all(&volume, 0, 24, 8).unwrap();
    rig.wait();
    assert_eq!(states(&rig.status()), ["in_sync", "in_sync"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("disk/a", "disk/b", 64 * MIB);
}

#[test]
fn a_leg_that_is_full_alone_is_failed_and_comes_back_when_there_is_room() {
    let rig = Rig::new();
    let Some(disk) = rig.file_system("disk", 96 * MIB) else { return };
    let volume = rig.create_of(["a", "disk/b"], "64MiB", &[]);
    write_all(&volume, 40, 2, 3).unwrap();
    fill(&disk, 4 * MIB);
    write_all(&volume, 0, 16, 9).unwrap();
    let status = rig.status();
    assert_eq!(states(&status), ["in_sync", "failed"], "the volume goes on without it");
    assert_eq!(status["legs"][1]["reason"], "no_space");
    assert_eq!(status["state"], "degraded");

    fs::remove_file(disk.join("ballast")).unwrap();
    until("the leg is back in sync", || states(&rig.status()) == ["in_sync", "in_sync"]);
    let status = rig.status();
    let copied = status["resync"]["copied_regions"].as_u64().unwrap();
    assert!((10..=20).contains(&copied), "only what changed is copied: {copied} regions of 64");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "disk/b", 64 * MIB);
}

/// Of two legs that are out of space the second has room first: it does not wait for the first.
#[test]
fn each_leg_that_is_full_comes_back_when_it_has_room() {
    let rig = Rig::new();
    let Some(one) = rig.file_system("one", 96 * MIB) else { return };
    let Some(other) = rig.file_system("other", 96 * MIB) else { return };
    let volume = rig.create_of(["a", "one/b"], "64MiB", &[]);
    rig.ok(&["leg", "add", "v", "other/c"]);
    rig.wait();
    let leg = |index: usize| states(&rig.status())[index].clone();
    for (disk, index, byte) in [(&one, 1, 9), (&other, 2, 8)] {
        fill(disk, 4 * MIB);
        write_all(&volume, 24 * (index as u64 - 1), 16, byte).unwrap();
        until("the leg is out", || leg(index) == "failed");
    }
    fs::remove_file(other.join("ballast")).unwrap();
    until("the second is back in sync", || leg(2) == "in_sync");
    assert_eq!(leg(1), "failed", "it has no room yet");
    fs::remove_file(one.join("ballast")).unwrap();
    until("the first is back in sync", || leg(1) == "in_sync");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "one/b", 64 * MIB);
    rig.assert_same("a", "other/c", 64 * MIB);
}

#[test]
fn preallocated_legs_do_not_run_out_of_space() {
    let rig = Rig::new();
    let Some(disk) = rig.file_system("disk", 160 * MIB) else { return };
    let volume = rig.create_of(["disk/a", "disk/b"], "64MiB", &["--preallocate"]);
    fill(&disk, 0);
    write_all(&volume, 0, 64, 5).unwrap();
    assert_eq!(states(&rig.status()), ["in_sync", "in_sync"]);
    rig.ok(&["stop", "v"]);
    rig.assert_same("disk/a", "disk/b", 64 * MIB);
}
