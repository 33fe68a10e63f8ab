//! Log devices that fail and hang, and what of a mark is durable when.

use std::process::{Command, Stdio};

use super::{Bed, MIB, dm_create, remove, sectors_written, status, until_in_sync, write};
use crate::devices::{dm, load, loop_leg, sectors};
use crate::log_writes::{self, Log};
use crate::rig::{sh, until};

/// A log device that hangs holds up its own mirror and no other.
pub(crate) fn a_log_that_hangs() {
    let bed = Bed::new();
    bed.serve();
    let slow = dm(&bed.rig, "slow", &format!("0 {} linear {} 0", MIB / 512, bed.log));
    let (c, d) = (loop_leg(&bed.rig, "c", 32 * MIB), loop_leg(&bed.rig, "d", 32 * MIB));
    let hung = bed.create("m", &format!("hangs disk {slow} 1024 nosync"));
    let other_log = loop_leg(&bed.rig, "log2", MIB);
    let table = format!(
        "0 65536 mirror userspace 5 other disk {other_log} 1024 nosync 2 {c} 0 {d} 0 1 handle_errors"
    );
    let other = dm_create("n", &table);
    sh("dmsetup", &["suspend", "--nolockfs", "slow"]);
    let mut writer = Command::new("dd")
        .args(["if=/dev/zero", &format!("of={hung}"), "bs=4k", "count=1", "oflag=direct"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("its write is under way", || status("m").starts_with("64/64"));
    for block in 0..20 {
        write(&other, block * 128, 1, block as u8);
    }
    assert!(writer.try_wait().unwrap().is_none(), "it wrote without its log");
    assert_eq!(status("n").split(' ').next(), Some("64/64"));
    // A new mirror can be made meanwhile.
    dm_create("o", &format!("0 65536 mirror userspace 4 third core 1024 nosync 2 {c} 0 {d} 0"));
    remove("o");
    sh("dmsetup", &["resume", "slow"]);
    assert!(writer.wait().unwrap().success());
    remove("m");
    remove("n");
    sh("cmp", &[&c, &d]);
}

/// A log device that fails is said to; its mirror goes on when there is another.
pub(crate) fn a_log_that_fails() {
    let bed = Bed::new();
    bed.serve();
    let table = format!("0 {} linear {} 0", MIB / 512, bed.log);
    let device = dm(&bed.rig, "bad", &table);
    let mirror = bed.create("m", &format!("fails disk {device} 1024 nosync"));
    sh("dmsetup", &["load", "bad", "--table", &format!("0 {} error", MIB / 512)]);
    sh("dmsetup", &["suspend", "--nolockfs", "bad"]);
    sh("dmsetup", &["resume", "bad"]);
    let to = format!("of={mirror}");
    let mut writer = Command::new("dd")
        .args(["if=/dev/zero", &to, "bs=4k", "count=1", "oflag=direct"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the log is failed", || status("m").ends_with(" D"));
    assert!(bed.show("fails")["error"].is_string());
    assert!(writer.try_wait().unwrap().is_none(), "it wrote without a mark");
    // Another table, as whoever looks after mirrors would load it.
    sh("dmsetup", &["load", "m", "--table", &bed.table("fails core 1024")]);
    sh("dmsetup", &["suspend", "--noflush", "m"]);
    sh("dmsetup", &["resume", "m"]);
    assert!(writer.wait().unwrap().success());
    until_in_sync("m");
    remove("m");
    bed.assert_same();
}

/// When the data of a write leaves for a leg, its mark is durable: the record of the log device has it in a flushed or
/// forced write before.
pub(crate) fn marks_are_durable() {
    let bed = Bed::new();
    load(&["dm-log-writes"]);
    bed.serve();
    let record = loop_leg(&bed.rig, "record", 32 * MIB);
    let device = dm(&bed.rig, "lw", &format!("0 {} log-writes {} {record}", sectors(&bed.log), bed.log));
    let mirror = bed.create("m", &format!("marks disk {device} 1024 nosync"));
    let regions = [5, 17, 40];
    for (n, region) in regions.into_iter().enumerate() {
        write(&mirror, region * 128, 1, n as u8);
        // The write was answered, so its data has left.
        log_writes::mark("lw", &format!("written-{n}"));
    }
    remove("m");
    remove("lw");
    let log = Log::open(&record);
    let image = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(bed.rig.path("image"));
    let image = image.unwrap();
    image.set_len(MIB).unwrap();
    let mut seen = [false; 3];
    for (n, region) in regions.into_iter().enumerate() {
        let until = log.mark(&format!("written-{n}"));
        // What a power cut at any flush before that would have left, one after the other.
        let mut done = 0;
        while let Some(cut) = log.next_durable(done).filter(|&cut| cut < until) {
            log.replay(done..cut + 1, &image);
            done = cut + 1;
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_exact_at(&image, &mut byte, 1024 + region / 8).unwrap();
            seen[n] |= byte[0] & 1 << (region % 8) == 0 && done > 1;
        }
    }
    assert_eq!(seen, [true; 3], "a write left before its mark was durable");
}

/// Of a large log only what changed is written.
pub(crate) fn a_large_log_is_written_in_parts() {
    let bed = Bed::new();
    bed.serve();
    // 1,048,576 regions of 1 KiB, of which the legs are all holes.
    let (a, b) = (loop_leg(&bed.rig, "big-a", 1 << 30), loop_leg(&bed.rig, "big-b", 1 << 30));
    let table =
        format!("0 2097152 mirror userspace 5 large disk {} 2 nosync 2 {a} 0 {b} 0 1 handle_errors", bed.log);
    let mirror = dm_create("m", &table);
    until("it is read", || status("m").starts_with("1048576/1048576"));
    let before = sectors_written(&bed.log);
    for n in 0..16 {
        write(&mirror, n * 16384, 1, n as u8);
    }
    remove("m");
    let written = sectors_written(&bed.log) - before;
    println!("{written} sectors of the log for 16 writes");
    // A mark and a clear each, in a sector of their own; the kernel would write 258 sectors each time.
    assert!((32..=16 * 6).contains(&written), "{written} sectors");
    sh("cmp", &[&a, &b]);
}
