//! The daemon is killed without warning; nothing that was flushed may be lost, only dirty regions may be
//! copied, and the legs must end up equal.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::rig::{Rig, have, is_ublk, sh, try_sh, unmount, until};

const MIB: u64 = 1 << 20;

#[test]
fn ten_dirty_regions_are_ten_copied_regions() {
    let rig = Rig::new();
    let volume = rig.create("1GiB", &[]);
    let file = File::options().read(true).write(true).open(&volume).unwrap();
    for n in 0..10u64 {
        file.write_all_at(&[n as u8 + 1; 4096], n * 97 * MIB + 4096 * n).unwrap();
    }
    file.sync_all().unwrap();
    rig.kill();
    drop(file);
    rig.ok(&["start", "v"]);
    let volume = rig.volume();
    rig.wait();
    let status = rig.status();
    assert_eq!(status["log"]["dirty_regions_at_start"], 10);
    assert_eq!(status["resync"]["copied_regions"], 10);
    assert_eq!(status["legs"][1]["resynced_bytes"], 10 * MIB);
    assert_eq!(status["state"], "in_sync");
    let file = File::open(&volume).unwrap();
    for n in 0..10u64 {
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, n * 97 * MIB + 4096 * n).unwrap();
        assert_eq!(block, [n as u8 + 1; 4096], "flushed block {n}");
    }
    drop(file);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 1024 * MIB);
}

/// Dirty regions at the start after a kill, with three regions written to.
fn dirty_after_kill(log: &str) -> u64 {
    let rig = Rig::new();
    let volume = rig.create("64MiB", &["--log", log]);
    let file = File::options().write(true).open(&volume).unwrap();
    for region in [3, 33, 63] {
        file.write_all_at(&[9; 4096], region * MIB).unwrap();
    }
    file.sync_data().unwrap();
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.wait();
    let status = rig.status();
    let dirty = status["log"]["dirty_regions_at_start"].as_u64().unwrap();
    assert_eq!(status["resync"]["copied_regions"].as_u64(), Some(dirty));
    drop(file);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
    // A clean stop leaves nothing to do, whatever the log.
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0);
    dirty
}

#[test]
fn a_log_of_its_own_is_as_good_as_one_on_the_legs() {
    assert_eq!(dirty_after_kill("disk:log"), 3);
}

#[test]
fn a_log_in_memory_costs_a_whole_resync() {
    assert_eq!(dirty_after_kill("core"), 64);
}

#[test]
fn a_file_system_survives_a_killed_daemon() {
    let rig = Rig::new();
    let volume = rig.create("1GiB", &[]);
    let Some(device) = rig.loop_device(&volume) else { return };
    sh("mkfs.ext4", &["-q", &device]);
    let mount = rig.path("mnt");
    std::fs::create_dir(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    sh("mount", &[&device, mount]);
    rig.at_end(&["umount", "-l", mount]);
    let kept: Vec<u8> = (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(format!("{mount}/kept"), &kept).unwrap();
    sh("sync", &["-f", mount]);
    // mkfs discarded the whole device: every region was written to, and is cleared only some seconds later.
    until("the regions that mkfs wrote are clean", || {
        rig.status()["log"]["dirty_regions"].as_u64().unwrap() < 64
    });
    let script = format!(
        "i=0; while :; do i=$((i+1)); head -c 700000 /dev/urandom > {mount}/new-$i || exit; sync -f {mount}; done"
    );
    let mut writer =
        Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("some files were written", || std::path::Path::new(&format!("{mount}/new-20")).exists());
    rig.kill_for_good();
    let _ = writer.kill();
    let _ = writer.wait();
    sh("umount", &["-l", mount]);
    let _ = try_sh("losetup", &["-d", &device]);

    rig.ok(&["start", "v"]);
    rig.wait();
    let status = rig.status();
    let dirty = status["log"]["dirty_regions_at_start"].as_u64().unwrap();
    assert!(dirty > 0 && dirty < 512, "a killed daemon costs a resync of what was in use: {dirty} of 1024");
    assert_eq!(status["resync"]["copied_regions"].as_u64(), Some(dirty));

    let device = rig.loop_device(&rig.volume()).unwrap();
    sh("mount", &[&device, mount]); // replays the journal
    assert!(std::fs::read(format!("{mount}/kept")).unwrap() == kept, "a flushed file");
    let written = std::fs::read_dir(mount).unwrap().count();
    assert!(written >= 20, "files that were flushed: {written}");
    unmount(mount);
    sh("e2fsck", &["-fn", &device]);
    sh("losetup", &["-d", &device]);
    // A loop device closes what it was made of some time after.
    until("the volume is stopped", || rig.run(&["stop", "v"]).status.success());
    rig.assert_same("a", "b", 1024 * MIB);
}

/// fio's options for blocks that check themselves.
fn fio(volume: &str, more: &[&str]) -> Command {
    let mut command = Command::new("fio");
    // All blocks are read after each kill, which takes an emulated machine long.
    let size = if is_ublk() { "--size=16m" } else { "--size=64m" };
    command.args(["--name=v", "--bs=4k", size, "--direct=1", "--ioengine=libaio", "--iodepth=16"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    command.arg(format!("--filename={volume}")).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn verified_data_survives_twenty_kills() {
    if !have("fio", "verified data across kills") {
        return;
    }
    let rig = Rig::new();
    let mut volume = rig.create("64MiB", &[]).to_str().unwrap().to_owned();
    let fill = fio(&volume, &["--rw=write", "--do_verify=0", "--end_fsync=1"]).output().unwrap();
    assert!(fill.status.success(), "{}", String::from_utf8_lossy(&fill.stderr));
    for round in 0..20u64 {
        let seed = format!("--randseed={round}");
        let load = ["--rw=randwrite", "--do_verify=0", "--time_based", "--runtime=60", "--fsync=64", &seed];
        let mut load = fio(&volume, &load).spawn().unwrap();
        let busy = rig.status()["io"]["writes"].as_u64().unwrap();
        until("fio writes", || rig.status()["io"]["writes"].as_u64().unwrap() > busy + 100);
        std::thread::sleep(Duration::from_millis(100 + round * 37 % 400));
        rig.kill_for_good();
        assert!(!load.wait().unwrap().success(), "fio went on without a daemon");
        rig.ok(&["start", "v"]);
        rig.volume().to_str().unwrap().clone_into(&mut volume);
        // While it is being resynced: reads must not depend on the leg.
        let check = fio(&volume, &["--rw=read", "--verify_only=1"]).output().unwrap();
        let error = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "round {round}: {error}");
        rig.wait();
    }
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
}

#[test]
fn a_log_that_was_damaged_is_not_believed() {
    let rig = Rig::new();
    rig.create("64MiB", &[]);
    rig.ok(&["stop", "v"]);
    // Flip one bit in the log of each leg: 64 regions, all in its first sector.
    for leg in ["a", "b"] {
        let file = File::options().read(true).write(true).open(rig.path(leg)).unwrap();
        let at = 64 * MIB + 2 * 4096 + 200;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
    rig.ok(&["start", "v"]);
    rig.wait();
    let status = rig.status();
    assert_eq!(status["log"]["dirty_regions_at_start"], 64, "unknown means dirty");
    assert!(status["log"]["note"].as_str().unwrap().contains("failed their check"), "{status}");
}

#[test]
fn a_torn_superblock_slot_costs_nothing() {
    let rig = Rig::new();
    let volume = rig.create("64MiB", &[]);
    File::options().write(true).open(&volume).unwrap().write_all_at(b"kept", 5 * MIB).unwrap();
    rig.ok(&["stop", "v"]);
    let newest = serde_json::from_str::<serde_json::Value>(&rig.ok(&["inspect", "a", "--json"])).unwrap();
    let file = File::options().write(true).open(rig.path("a")).unwrap();
    // One slot of the leg at a time: each start must do with the other.
    for slot in [0u64, 1] {
        // Nobody wrote to it: a disk lost it.
        let modified = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&[0xa5; 600], 64 * MIB + slot * 4096 + 1000).unwrap();
        file.set_modified(modified).unwrap();
        rig.ok(&["start", "v"]);
        let mut back = [0; 4];
        File::open(rig.volume()).unwrap().read_exact_at(&mut back, 5 * MIB).unwrap();
        assert_eq!(&back, b"kept", "{newest}");
        rig.ok(&["stop", "v"]);
    }
}
