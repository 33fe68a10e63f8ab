//! Answers that the kernel takes for something else if they are not just so. What they cost is seen on the legs: they
//! differ, and nothing says so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use super::{
    Bed, MIB, REGIONS, SIZE, dirty, dm_create, finish, in_sync, is_waiting, number, remove, sectors_written,
    status, until_in_sync, write, writer,
};
use crate::devices::{dm, load};
use crate::rig::{sh, try_sh, until};

/// Sectors, and blocks of 4 KiB, of a region.
const REGION: u64 = SIZE / REGIONS / 512;
const BLOCKS: u64 = REGION / 8;

/// Writes that a mirror does after its server came back: both legs have them, and nothing else changed.
fn goes_on(bed: &Bed, mirror: &str, block: u64) {
    for n in 0..4 {
        write(mirror, block + n * BLOCKS, 1, (block + n) as u8);
    }
    let refused = sh("dmesg", &[]).lines().filter(|line| line.contains("Insufficient space")).count();
    assert_eq!(refused, 0, "the kernel had no room for an answer");
    assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
    until("all is clean", || dirty(&bed.rig, "back").is_empty());
    bed.assert_same();
}

/// A mirror has to construct its log anew: its server knows nothing of it, was told to forget it, or cannot open its
/// device at first.
pub(crate) fn who_comes_back_is_answered() {
    let bed = Bed::new();
    bed.serve();
    let mirror = bed.create("m", &format!("back clustered-disk {} 1024 nosync", bed.log));
    goes_on(&bed, &mirror, 0);

    // It asks while nobody is there, and when the next server is, which has no notes.
    for before in [true, false] {
        bed.kill();
        bed.forget_notes();
        let waits = before.then(|| writer(&mirror, 9 * BLOCKS));
        bed.serve();
        waits.into_iter().for_each(finish);
        goes_on(&bed, &mirror, 1);
    }

    bed.rig.refused(&["log", "forget", "back"], &["live", "--force"]);
    bed.rig.ok(&["log", "forget", "back", "--force"]);
    goes_on(&bed, &mirror, 2);

    for has_notes in [true, false] {
        bed.kill();
        if !has_notes {
            bed.forget_notes();
        }
        let hold = format!("flock --exclusive {} sleep 6", bed.log);
        let mut holder = Command::new("sh").args(["-c", &hold]).spawn().unwrap();
        until("the log device is locked", || {
            !try_sh("flock", &["--nonblock", &bed.log, "true"]).status.success()
        });
        bed.serve();
        goes_on(&bed, &mirror, 3);
        assert!(holder.wait().unwrap().success());
    }
    remove("m");
    bed.assert_same();
    assert!(dirty(&bed.rig, &bed.log).is_empty());
}

/// A table is loaded beside the one in use, the server's notes are lost, and somebody wants the status of the former first.
pub(crate) fn an_inactive_table_is_asked_first() {
    let bed = Bed::new();
    for log in ["back core 1024".to_owned(), format!("back disk {} 1024", bed.log)] {
        bed.serve();
        let is_disk = log.contains("disk");
        let mirror = bed.create("m", &format!("{log} nosync"));
        write(&mirror, 3, 1, 3);
        sh("dmsetup", &["load", "m", "--table", &bed.table(&log)]);
        bed.kill();
        bed.forget_notes();
        bed.serve();
        let inactive = sh("dmsetup", &["status", "--inactive", "m"]);
        assert!(!inactive.contains("COM_FAILURE"), "{inactive}");
        let uuids = bed.rig.ok(&["log", "list", "--json"]);
        assert_eq!(
            (uuids.matches("\"returned\"").count(), uuids.matches("\"live\"").count()),
            (1, 0),
            "{uuids}"
        );
        if is_disk {
            goes_on(&bed, &mirror, 4);
        } else {
            // Of a core log nothing is known: what is written now goes to one leg, until it is resumed.
            write(&mirror, 4, 1, 4);
        }
        // Then it has its turn.
        let before = sectors_written(&bed.b);
        sh("dmsetup", &["suspend", "m"]);
        sh("dmsetup", &["resume", "m"]);
        until_in_sync("m");
        if is_disk {
            assert_eq!(sectors_written(&bed.b), before, "nothing was dirty");
        }
        write(&mirror, 5, 1, 5);
        let uuids = bed.rig.ok(&["log", "list", "--json"]);
        assert_eq!((uuids.matches("\"uuid\"").count(), uuids.matches("\"live\"").count()), (1, 1), "{uuids}");
        remove("m");
        bed.assert_same();
        bed.rig.ok(&["log", "stop"]);
        bed.reap();
    }
}

/// A log device takes no writes any more when its mirror comes back: what waits for a mark is held, and the log is failed until
/// the table is replaced, also when the device is well again.
pub(crate) fn a_log_that_became_read_only() {
    load(&["dm-flakey"]);
    let bed = Bed::new();
    let sectors = MIB / 512;
    let becomes = |table: &str| {
        sh("dmsetup", &["load", "log", "--table", &format!("0 {sectors} {table}")]);
        sh("dmsetup", &["suspend", "--nolockfs", "log"]);
        sh("dmsetup", &["resume", "log"]);
    };
    let (well, ill) =
        (format!("linear {} 0", bed.log), format!("flakey {} 0 0 3600 1 error_writes", bed.log));
    let device = dm(&bed.rig, "log", &format!("0 {sectors} {well}"));
    for has_notes in [false, true] {
        bed.serve();
        let mirror = bed.create("m", &format!("back disk {device} 1024 nosync"));
        write(&mirror, 7 * BLOCKS, 1, 7);
        until("all is clean", || dirty(&bed.rig, &device).is_empty());
        bed.kill();
        if !has_notes {
            bed.forget_notes();
        }
        becomes(&ill);
        bed.serve();
        let mut waits = writer(&mirror, 9 * BLOCKS);
        until("the log is failed", || status("m").ends_with(" D"));
        assert!(is_waiting(&mut waits), "it wrote without a mark");
        assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
        bed.assert_same();
        becomes(&well);
        bed.kill();
        bed.serve();
        let mut also = writer(&mirror, 10 * BLOCKS);
        until("it is asked for", || bed.show("back")["state"] == "live");
        assert!(status("m").ends_with(" D"), "{}", status("m"));
        assert!(is_waiting(&mut waits) && is_waiting(&mut also));
        // As whoever looks after mirrors would.
        sh("dmsetup", &["load", "m", "--table", &bed.table(&format!("back disk {device} 1024"))]);
        sh("dmsetup", &["suspend", "--noflush", "m"]);
        sh("dmsetup", &["resume", "m"]);
        finish(waits);
        finish(also);
        until_in_sync("m");
        assert!(status("m").ends_with(" A"), "{}", status("m"));
        remove("m");
        bed.assert_same();
        assert!(dirty(&bed.rig, &device).is_empty());
        bed.rig.ok(&["log", "stop"]);
        bed.reap();
    }
}

/// Whoever removes a mirror removes its log device next: nobody has that any more.
pub(crate) fn a_log_device_goes_with_its_mirror() {
    let bed = Bed::new();
    bed.serve();
    let table = format!("0 {} linear {} 0", MIB / 512, bed.log);
    for round in 0..30 {
        let log = dm_create("mlog", &table);
        let mirror = bed.create("m", &format!("goes disk {log} 1024 nosync"));
        if round % 3 == 0 {
            write(&mirror, round, 1, round as u8);
        }
        sh("dmsetup", &["remove", "m", "mlog"]);
    }
    bed.assert_same();
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
}

/// A log device as LVM makes it: a header that says 2^64-1 regions, and all bits as it wants them.
pub(crate) fn a_log_device_that_lvm_made() {
    let bed = Bed::new();
    bed.differ();
    bed.serve();
    for (bits, copied) in [(0u8, REGIONS), (0xff, 0)] {
        let mut image = vec![bits; MIB as usize];
        image[..512].fill(0);
        image[..16].copy_from_slice(b"rRiM\x02\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
        File::options().write(true).open(&bed.log).unwrap().write_all_at(&image, 0).unwrap();
        sh("blockdev", &["--flushbufs", &bed.log]);
        let dump = bed.rig.ok(&["log", "dump", &bed.log]);
        assert!(dump.contains("no mirror has used it"), "{dump}");
        let before = sectors_written(&bed.b);
        let mirror = bed.create("m", &format!("lvm clustered-disk {} 1024", number(&bed.log)));
        until_in_sync("m");
        assert_eq!((sectors_written(&bed.b) - before) / REGION, copied, "regions copied");
        write(&mirror, 3, 1, 3);
        assert!(status("m").ends_with(" A"), "{}", status("m"));
        remove("m");
        bed.assert_same();
        assert!(dirty(&bed.rig, &bed.log).is_empty());
    }
}

/// Logs that other hosts may write, too, are kept only if there are no other hosts.
pub(crate) fn clustered_logs() {
    let bed = Bed::new();
    let said = bed.rig.path("said");
    let start = |more: &[&str]| {
        let mut command = bed.rig.command(&[&["log", "serve", "--netlink"], more].concat());
        let file = File::options().create(true).append(true).open(&said).unwrap();
        let server = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        until("the server answers", || bed.rig.run(&["log", "status"]).status.success());
        *bed.server.borrow_mut() = Some(server);
    };
    start(&[]);
    let log = format!("cl clustered-disk {} 1024 nosync", bed.log);
    bed.refused("cl clustered-core 1024");
    bed.refused(&log);
    let text = std::fs::read_to_string(&said).unwrap();
    assert!(text.contains("the log cl is refused") && text.contains("--single-host"), "{text}");
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
    let mirror = bed.create("m", &log.replace("clustered-", ""));
    write(&mirror, 1, 1, 1);
    remove("m");
    bed.rig.ok(&["log", "stop"]);
    bed.reap();

    start(&["--single-host"]);
    let mirror = bed.create("m", &log);
    write(&mirror, 2, 1, 2);
    assert!(status("m").starts_with("64/64 1 AA 3 clustered-disk "), "{}", status("m"));
    // The next server was not told so: it does not begin, and loses nothing of what was noted.
    bed.kill();
    // A service manager need not try again.
    assert_eq!(bed.rig.run(&["log", "serve", "--netlink"]).status.code(), Some(2));
    bed.rig.refused(
        &["log", "serve", "--netlink"],
        &["a mirror of the kernel waits", "the log cl", "--single-host"],
    );
    let waits = writer(&mirror, 3 * BLOCKS);
    start(&["--single-host"]);
    finish(waits);
    assert_eq!(in_sync("m"), REGIONS);
    // Nor does one without notes take it: the mirror waits.
    bed.kill();
    bed.forget_notes();
    start(&[]);
    let mut waits = writer(&mirror, 4 * BLOCKS);
    let told = || std::fs::read_to_string(&said).unwrap().matches("the log cl is refused").count();
    let before = told();
    until("it is refused", || told() > before);
    assert!(is_waiting(&mut waits));
    bed.rig.ok(&["log", "stop"]);
    bed.reap();
    start(&["--single-host"]);
    finish(waits);
    until("all is clean", || dirty(&bed.rig, "cl").is_empty());
    remove("m");
    bed.assert_same();
}
