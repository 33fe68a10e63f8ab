//! A disk log is believed, and written to, only if it is this volume's and the one that was used last. What is at its
//! place instead stays as it is, byte for byte, and the legs end up equal whatever the log says.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::rig::{Rig, can_serve, sh};

const MIB: u64 = 1 << 20;

/// A volume of 16 regions with its log in `log`, not running. Three regions are dirty in the log, and the legs differ in
/// the last of them as a write leaves them that was cut off.
fn killed_while_it_was_written_to(rig: &Rig) {
    rig.create("16MiB", &["--log", "disk:log"]);
    for region in [3, 9, 12] {
        rig.write(region, 7);
    }
    rig.kill_for_good();
    let leg = File::options().write(true).open(rig.path("b")).unwrap();
    leg.write_all_at(&[8; 4096], 12 * MIB).unwrap();
}

/// A volume with its log in `log` that was stopped cleanly.
fn stopped(rig: &Rig) {
    rig.create("16MiB", &["--log", "disk:log"]);
    rig.write(3, 7);
    rig.ok(&["stop", "v"]);
}

/// Starts `v`, waits until it is in sync, and says how many regions were dirty. The legs are equal then.
fn start_and_compare(rig: &Rig, more: &[&str]) -> u64 {
    rig.ok(&[&["start", "v"], more].concat());
    rig.wait();
    let dirty = rig.status()["log"]["dirty_regions_at_start"].as_u64().unwrap();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
    dirty
}

fn sum(path: &Path) -> String {
    sh("sha256sum", &[path.to_str().unwrap()]).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_is_at_the_logs_place_instead_is_not_touched() {
    if !can_serve("a log that is another file by now") {
        return;
    }
    let rig = Rig::new();
    stopped(&rig);
    rig.ok(&["create", "--legs", "c", "d", "--size", "16MiB", "--name", "w", "--log", "disk:other"]);
    rig.ok(&["stop", "w"]);
    fs::rename(rig.path("log"), rig.path("kept")).unwrap();
    let way_out = ["cannot start v", "/log", "--log disk:PATH", "--new-log"];
    let refused = |words: &[&str]| rig.refused(&["start", "v"], &[&way_out[..], words].concat());
    refused(&["no such file"]);
    let place = rig.path("log");

    fs::write(&place, vec![b'x'; 5000]).unwrap();
    let before = sum(&place);
    refused(&["it holds data"]);
    assert_eq!(sum(&place), before);

    fs::write(&place, vec![0; 5000]).unwrap();
    let before = sum(&place);
    refused(&["it is empty"]);
    assert_eq!(sum(&place), before);

    fs::copy(rig.path("other"), &place).unwrap();
    let before = sum(&place);
    refused(&["it is the log of volume"]);
    assert_eq!(sum(&place), before);

    // A log as the kernel makes it: the label is gone, and the legs say that there was one.
    let mut log = fs::read(rig.path("kept")).unwrap();
    log[512..1024].fill(0);
    fs::write(&place, &log).unwrap();
    refused(&["does not name this volume"]);
    assert!(fs::read(&place).unwrap() == log);

    // A leg of its own, which this very process has locked.
    fs::remove_file(&place).unwrap();
    fs::hard_link(rig.path("a"), &place).unwrap();
    let before = sum(&place);
    rig.refused(&["start", "v"], &["/log", "in use"]);
    assert_eq!(sum(&place), before);

    for at in [rig.path("victim"), rig.path("kept"), "/dev/null".into()] {
        if at == rig.path("victim") {
            fs::write(&at, "precious").unwrap();
        }
        fs::remove_file(&place).unwrap();
        symlink(&at, &place).unwrap();
        refused(&["symbolic link", at.to_str().unwrap()]);
    }
    assert_eq!(fs::read(rig.path("victim")).unwrap(), b"precious");
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    refused(&["neither a file nor a block device"]);
    fs::remove_dir(&place).unwrap();
    // Would be waited for.
    sh("mkfifo", &[place.to_str().unwrap()]);
    refused(&["neither a file nor a block device"]);

    fs::remove_file(&place).unwrap();
    fs::rename(rig.path("kept"), &place).unwrap();
    assert_eq!(start_and_compare(&rig, &[]), 0);
}

#[test]
fn a_device_that_has_another_number_is_not_written_to() {
    if !can_serve("a log device that has another number") {
        return;
    }
    let rig = Rig::new();
    let (log, other) = (rig.path("log-device"), rig.path("ext4"));
    for path in [&log, &other] {
        File::create(path).unwrap().set_len(8 * MIB).unwrap();
    }
    sh("mkfs.ext4", &["-q", "-F", other.to_str().unwrap()]);
    let before = sum(&other);
    let (Some(number), Some(other_number)) = (rig.loop_device(&log), rig.loop_device(&other)) else { return };
    rig.create("16MiB", &["--log", &format!("disk:{number}")]);
    for region in [3, 9, 12] {
        rig.write(region, 7);
    }
    rig.kill_for_good();
    File::options().write(true).open(rig.path("b")).unwrap().write_all_at(&[8; 4096], 12 * MIB).unwrap();
    // As disks do that are found in another order at the next boot.
    for (device, file) in [(&number, &other), (&other_number, &log)] {
        sh("losetup", &["-d", device]);
        attach(device, file);
    }
    let refused = |args: &[&str], way_out: &str| {
        rig.refused(args, &[&number, "an ext2/3/4 file system", way_out]);
    };
    refused(&["start", "v"], "--new-log");
    refused(&["start", "v", "--new-log", &format!("disk:{number}")], "--force");
    sh("sync", &[]);
    assert_eq!([sum(&other), sum(Path::new(&number))], [before.clone(), before]);
    sh("e2fsck", &["-f", "-n", other.to_str().unwrap()]);

    // The device itself is the log wherever it is.
    assert_eq!(start_and_compare(&rig, &["--log", &format!("disk:{other_number}")]), 3);
    assert!(rig.ok(&["start", "v"]).contains(&other_number));
}

/// Another test may have the number for a while.
fn attach(device: &str, file: &Path) {
    let began = Instant::now();
    while !Command::new("losetup").arg(device).arg(file).status().unwrap().success() {
        assert!(began.elapsed() < Duration::from_secs(60), "{device} is not free again");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_older_copy_of_the_log_is_not_believed() {
    if !can_serve("an older copy of a log") {
        return;
    }
    // In the same file, from a session before: it says that nothing is dirty.
    let rig = Rig::new();
    stopped(&rig);
    let old = fs::read(rig.path("log")).unwrap();
    rig.ok(&["start", "v"]);
    rig.write(12, 9);
    rig.kill_for_good();
    File::options().write(true).open(rig.path("b")).unwrap().write_all_at(&[8; 4096], 12 * MIB).unwrap();
    fs::write(rig.path("log"), &old).unwrap();
    assert_eq!(start_and_compare(&rig, &[]), 16);
    // After a clean stop it does no harm, and costs nothing.
    fs::write(rig.path("log"), &old).unwrap();
    assert_eq!(start_and_compare(&rig, &[]), 0);

    // From the same session: another file.
    rig.ok(&["start", "v"]);
    fs::copy(rig.path("log"), rig.path("copy")).unwrap();
    rig.write(12, 9);
    rig.kill_for_good();
    File::options().write(true).open(rig.path("b")).unwrap().write_all_at(&[8; 4096], 12 * MIB).unwrap();
    fs::rename(rig.path("copy"), rig.path("log")).unwrap();
    rig.ok(&["start", "v"]);
    let status = rig.status();
    assert_eq!(status["log"]["dirty_regions_at_start"], 16, "{status}");
    assert!(status["log"]["note"].as_str().unwrap().contains("copy"), "{status}");
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
}

#[test]
fn a_log_that_was_moved_is_named() {
    if !can_serve("a log that was moved") {
        return;
    }
    let rig = Rig::new();
    killed_while_it_was_written_to(&rig);
    fs::rename(rig.path("log"), rig.path("moved")).unwrap();
    rig.refused(&["start", "v"], &["/log", "no such file", "--log disk:PATH"]);
    rig.refused(&["start", "v", "--log", "core"], &["--log core", "is disk", "--new-log"]);
    assert_eq!(start_and_compare(&rig, &["--log", "disk:moved"]), 3);
    // It is there from then on.
    assert_eq!(start_and_compare(&rig, &[]), 0);
}

#[test]
fn a_new_log_begins_with_everything_dirty_unless_the_volume_was_stopped() {
    if !can_serve("a log that begins anew") {
        return;
    }
    for place in ["disk:log", "disk:new", "core", "internal"] {
        let rig = Rig::new();
        killed_while_it_was_written_to(&rig);
        if place == "disk:log" {
            fs::write(rig.path("log"), "something else").unwrap();
            rig.refused(&["start", "v", "--new-log", place], &["it holds data", "--force"]);
            assert_eq!(fs::read(rig.path("log")).unwrap(), b"something else");
            assert_eq!(start_and_compare(&rig, &["--new-log", place, "--force"]), 16, "{place}");
        } else {
            fs::remove_file(rig.path("log")).unwrap();
            assert_eq!(start_and_compare(&rig, &["--new-log", place]), 16, "{place}");
        }
        // It was stopped, and the log is there from now on.
        rig.ok(&["start", "v"]);
        let status = rig.status();
        assert_eq!(status["log"]["kind"], place.split(':').next().unwrap());
        assert_eq!(status["log"]["dirty_regions_at_start"], 0, "{place}");
        rig.write(5, 1);
        rig.kill_for_good();
        let expected = if place == "core" { 16 } else { 1 };
        assert_eq!(start_and_compare(&rig, &[]), expected, "{place}");
        // After a clean stop the legs are equal: nothing is copied.
        assert_eq!(start_and_compare(&rig, &["--new-log", "disk:newer"]), 0, "{place}");
        assert_eq!(start_and_compare(&rig, &[]), 0, "{place}");
    }
}

#[test]
fn legs_from_elsewhere_do_not_choose_what_is_opened() {
    if !can_serve("legs from elsewhere") {
        return;
    }
    let rig = Rig::new();
    killed_while_it_was_written_to(&rig);
    // This host does not know the volume, and its log's place holds something of this host's.
    fs::remove_file(rig.path("state/v.json")).unwrap();
    fs::rename(rig.path("log"), rig.path("kept")).unwrap();
    let victim = rig.path("log");
    fs::write(&victim, "precious").unwrap();
    let place = format!("disk:{}", victim.display());
    let words = ["v", place.as_str(), "does not know the volume", "--log", "--new-log"];
    rig.refused(&["start", "a", "b"], &words);
    let or_start = ["create", "--or-start", "--legs", "a", "b", "--name", "v"];
    rig.refused(&or_start, &words);
    rig.refused(&[&or_start[..], &["--log", "disk:elsewhere"]].concat(), &words);
    // Confirmed, and still none of this volume.
    rig.refused(&["start", "a", "b", "--log", "disk:log"], &["/log", "it holds data"]);
    rig.refused(&[&or_start[..], &["--log", "disk:log"]].concat(), &["/log", "it holds data"]);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    fs::remove_file(&victim).unwrap();
    sh("mkfifo", &[victim.to_str().unwrap()]);
    rig.refused(&["start", "a", "b"], &words);
    fs::remove_file(&victim).unwrap();

    fs::rename(rig.path("kept"), &victim).unwrap();
    rig.ok(&[&or_start[..], &["--log", "disk:log"]].concat());
    rig.wait();
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 3);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
    // It is known from now on.
    rig.ok(&["start", "a", "b"]);
    rig.ok(&["stop", "v"]);

    // Known with a log elsewhere: what the legs say is asked for.
    let known = fs::read_to_string(rig.path("state/v.json")).unwrap();
    fs::write(rig.path("state/v.json"), known.replace("/log\"", "/elsewhere\"")).unwrap();
    rig.refused(&["start", "v"], &[&place, "elsewhere", "--log"]);
    rig.ok(&["start", "v", "--log", &place]);
}

#[test]
fn a_volume_from_before_logs_had_labels_gets_one() {
    if !can_serve("a log without a label") {
        return;
    }
    let rig = Rig::new();
    killed_while_it_was_written_to(&rig);
    // As an older mirrord leaves it: no label, and legs that do not say what file it is.
    let mut log = fs::read(rig.path("log")).unwrap();
    assert_eq!(&log[768..772], b"mrLB");
    log[512..1024].fill(0);
    fs::write(rig.path("log"), &log).unwrap();
    for leg in ["a", "b"] {
        forget_identity(&rig, leg);
    }
    assert_eq!(start_and_compare(&rig, &[]), 3);
    let log = fs::read(rig.path("log")).unwrap();
    assert_eq!(&log[768..772], b"mrLB");

    // One that does not fit is none of it.
    fs::write(rig.path("log"), [&log[..8], &17u64.to_le_bytes(), &[0; 1008], &log[1024..]].concat()).unwrap();
    for leg in ["a", "b"] {
        forget_identity(&rig, leg);
    }
    rig.refused(&["start", "v"], &["/log", "17 regions", "--new-log"]);
}

/// Takes away what both superblocks of a leg say of the log's file.
fn forget_identity(rig: &Rig, leg: &str) {
    let report: serde_json::Value = serde_json::from_str(&rig.ok(&["inspect", leg, "--json"])).unwrap();
    for slot in report["footer"]["slot_offsets"].as_array().unwrap() {
        crate::cli::reseal(rig, leg, slot.as_u64().unwrap(), |bytes| bytes[2368..2496].fill(0));
    }
}
