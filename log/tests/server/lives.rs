//! Lives of the kernel's logs: every row of the server's table, and what is answered when.

use mirrord_log::server::ServerConfig;
use mirrord_raid::Errno;

use crate::rig::{Rig, kernel};

const CORE: &str = "CTR 41000 clustered-core 1024";
const DISK: &str = "CTR 41000 clustered-disk /dev/log 1024";

#[test]
fn a_core_log() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(
        mirror,
        &[
            (CORE, "done"),
            ("GET_REGION_SIZE", "count 1024"),
            ("GET_SYNC_COUNT", "count 0"),
            ("STATUS_INFO", "1 clustered-core"),
            ("RESUME", "done"),
            ("GET_RESYNC_WORK", "work 0"),
            ("IN_SYNC 0", "no"),
            ("IS_REMOTE_RECOVERING 7", "remote 0 40"),
            ("SET_REGION_SYNC 0 1", "done"),
            ("IS_CLEAN 0", "no"),
            ("CLEAR_REGION 0", "done"),
            ("FLUSH", "done"),
            ("IS_CLEAN 0", "yes"),
            ("IN_SYNC 0", "yes"),
            ("GET_SYNC_COUNT", "count 1"),
            ("STATUS_TABLE", "clustered-core 1 1024 "),
            ("PRESUSPEND", "done"),
            ("MARK_REGION 3 4", "done"),
            ("FLUSH", "done"),
            ("POSTSUSPEND", "done"),
            ("GET_SYNC_COUNT", "count 1"),
            ("STATUS_INFO", "1 clustered-core"),
            ("RESUME", "done"),
            ("GET_SYNC_COUNT", "count 1"),
            ("GET_RESYNC_WORK", "work 1"),
            ("DTR", "done"),
        ],
    );
    assert!(rig.lives("U").is_empty() && rig.saves.is_empty());
}

#[test]
fn a_disk_log_and_every_row_of_the_table() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.lazy = true;
    let steps = [
        (DISK, "opening", "pending", "CTR device 7:2"),
        ("RESUME", "resuming", "live", "RESUME done"),
        ("PRESUSPEND", "suspending", "suspending", ""),
        ("POSTSUSPEND", "suspended", "suspended", ""),
        ("RESUME", "resuming", "live", "RESUME done"),
        ("CLEAR_REGION 5", "live", "live", ""),
        ("PRESUSPEND", "suspending", "suspending", ""),
        ("POSTSUSPEND", "closing", "suspended", "POSTSUSPEND done"),
    ];
    for (request, before, after, heard) in steps {
        rig.ask(mirror, request);
        assert_eq!(rig.lives("U"), [before], "{request}");
        rig.work_all();
        assert_eq!(rig.lives("U"), [after], "{request}");
        assert_eq!(rig.hears().join(","), heard);
    }
    assert_eq!(rig.ask(mirror, "DTR"), "-");
    rig.work_all();
    assert_eq!(rig.hears(), ["DTR done"]);
    assert_eq!((rig.lives("U").len(), rig.open_stores()), (0, 0));
    assert_eq!(rig.devices["/dev/log"].bytes[1024], 1 << 5);
}

#[test]
fn what_cannot_be_a_log_is_refused() {
    let mut rig = Rig::new();
    rig.device("/dev/short", 1024 + 7, 512);
    rig.device("/dev/just", 1024 + 512, 512);
    rig.device("/dev/4k", 1024 + 512, 4096);
    rig.device("/dev/odd", 8192, 520);
    for (text, answer) in [
        ("41000 clustered-disk /dev/none 1024", "failed 2"),
        ("41000 clustered-disk /dev/short 1024", "failed 28"),
        ("41000 clustered-disk /dev/just 1024", "device 7:4"),
        ("41000 clustered-disk /dev/4k 1024", "failed 28"),
        ("41000 clustered-disk /dev/odd 1024", "failed 22"),
        ("41000 clustered-core", "failed 22"),
        ("41000 clustered-core 1000", "failed 22"),
        ("41000 clustered-core 1", "failed 22"),
        ("41000 clustered-core 65536", "failed 22"),
        ("41000 clustered-core 4294967296", "failed 22"),
        ("41000 clustered-core -1024", "failed 22"),
        ("99999999999999 clustered-core 2", "failed 22"),
        ("41000 clustered-core 1024 sync nosync", "failed 22"),
        ("41000 clustered-core 1024 maybe", "failed 22"),
        ("41000 bogus 1024", "failed 22"),
    ] {
        assert_eq!(rig.ask(kernel("U", 1), &format!("CTR {text}")), answer, "{text}");
        if answer.starts_with("failed") {
            assert_eq!(rig.ask(kernel("U", 1), "GET_SYNC_COUNT"), "failed 3");
        } else {
            rig.ask(kernel("U", 1), "DTR");
        }
    }
    assert_eq!((rig.open_stores(), rig.saves.len()), (0, 0));
    let words = format!("CTR 2 core 2 {}", "block_on_error ".repeat(1000));
    assert_eq!(rig.ask(kernel("U", 1), &words), "failed 22");
    let words = format!("CTR 2 core 2 {}", "block_on_error ".repeat(540));
    assert_eq!(rig.ask(kernel("U", 1), &words), "done");
    assert!(rig.ask(kernel("U", 1), "STATUS_TABLE").starts_with("core 541 2 block_on_error"));
    assert_eq!(rig.ask(kernel("", 1), CORE), "failed 22");
}

#[test]
fn before_it_is_resumed_what_is_in_sync_is_what_was_said() {
    for (word, before, after) in [("", 0, 0), (" sync", 0, 0), (" nosync", 41, 41)] {
        let mut rig = Rig::new();
        let (core, disk) = (kernel("C", 1), kernel("D", 2));
        rig.talk(core, &[(&format!("{CORE}{word}"), "done")]);
        rig.talk(disk, &[(&format!("{DISK}{word}"), "device 7:2")]);
        for mirror in [core, disk] {
            rig.talk(mirror, &[("GET_SYNC_COUNT", &format!("count {before}")), ("RESUME", "done")]);
            rig.talk(mirror, &[("GET_SYNC_COUNT", &format!("count {after}"))]);
            let hint = if after == 41 { "remote 0 41" } else { "remote 0 40" };
            rig.talk(mirror, &[("IS_REMOTE_RECOVERING 3", hint)]);
        }
    }
}

#[test]
fn nosync_is_said_of_the_first_resume_alone() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(
        mirror,
        &[(&format!("{DISK} nosync"), "device 7:2"), ("RESUME", "done"), ("MARK_REGION 7", "done")],
    );
    rig.talk(
        mirror,
        &[("POSTSUSPEND", "done"), ("RESUME", "done"), ("IN_SYNC 7", "no"), ("IN_SYNC 8", "yes")],
    );
    // Nor of a log that is constructed anew because nobody knows it any more.
    rig.saves.clear();
    rig.restart();
    rig.talk(mirror, &[("IN_SYNC 7", "failed 3"), (&format!("CTR_AGAIN{} nosync", &DISK[3..]), "done")]);
    rig.talk(mirror, &[("RESUME", "done"), ("IN_SYNC 7", "no"), ("IN_SYNC 8", "yes")]);
    rig.restart();
    rig.talk(mirror, &[("IN_SYNC 7", "no"), ("IN_SYNC 8", "yes")]);
}

#[test]
fn what_is_not_known_or_not_in_use_is_to_be_constructed_anew() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    let about_regions = [
        "IS_CLEAN 0",
        "IN_SYNC 0",
        "MARK_REGION 0",
        "CLEAR_REGION 0",
        "FLUSH 0",
        "GET_RESYNC_WORK",
        "SET_REGION_SYNC 0 1",
        "IS_REMOTE_RECOVERING 0",
    ];
    let rest =
        ["RESUME", "GET_REGION_SIZE", "PRESUSPEND", "POSTSUSPEND", "FLUSH", "GET_SYNC_COUNT", "STATUS_INFO"];
    for request in about_regions.iter().chain(&rest) {
        assert_eq!(rig.ask(mirror, request), "failed 3", "{request}");
    }
    assert_eq!(rig.ask(mirror, "DTR"), "done");
    for (line, flush) in [(CORE, "failed 3"), ("POSTSUSPEND", "done")] {
        rig.ask(mirror, line);
        for request in about_regions {
            assert_eq!(rig.ask(mirror, request), "failed 3", "{request} after {line}");
        }
        // With integrated flush one may come seconds late.
        assert_eq!(rig.ask(mirror, "FLUSH"), flush);
        for request in ["GET_REGION_SIZE", "GET_SYNC_COUNT", "STATUS_INFO", "PRESUSPEND"] {
            assert!(!rig.ask(mirror, request).starts_with("failed"), "{request} after {line}");
        }
        rig.ask(mirror, "RESUME");
    }
}

#[test]
fn regions_that_a_log_does_not_have() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(
        mirror,
        &[(CORE, "done"), ("RESUME", "done"), ("SET_REGION_SYNC 40 1", "done"), ("CLEAR_REGION 40", "done")],
    );
    for region in [41u64, 1 << 32, u64::MAX] {
        for request in
            ["IS_CLEAN", "IN_SYNC", "MARK_REGION 40", "CLEAR_REGION 0", "FLUSH 40", "IS_REMOTE_RECOVERING"]
        {
            assert_eq!(
                rig.ask(mirror, &format!("{request} {region}").replace("IN_SYNC 40", "IN_SYNC")),
                "failed 22"
            );
        }
        assert_eq!(rig.ask(mirror, &format!("SET_REGION_SYNC {region} 1")), "failed 22");
    }
    // All or none of them.
    rig.talk(mirror, &[("IS_CLEAN 40", "yes"), ("IS_CLEAN 0", "no"), ("GET_SYNC_COUNT", "count 1")]);
}

#[test]
fn a_request_that_comes_twice_changes_nothing() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    let lines = [
        (DISK, "device 7:2"),
        ("RESUME", "done"),
        ("GET_RESYNC_WORK", "work 0"),
        ("MARK_REGION 1 2", "done"),
        ("FLUSH 3", "done"),
        ("SET_REGION_SYNC 0 1", "done"),
        ("CLEAR_REGION 0", "done"),
        ("FLUSH", "done"),
        ("GET_RESYNC_WORK", "work 1"),
        ("SET_REGION_SYNC 1 0", "done"),
        ("GET_RESYNC_WORK", "work 2"),
        ("PRESUSPEND", "done"),
        ("POSTSUSPEND", "done"),
        ("DTR", "done"),
    ];
    for line in lines {
        rig.talk(mirror, &[line, line, line]);
    }
    assert_eq!(rig.open_stores(), 0);
    let (mut rig, mut busy) = (Rig::new(), 0);
    rig.lazy = true;
    for (request, _) in lines {
        // Twice while the first is under way: both are answered, the same.
        let at_once: Vec<String> = (0..2).map(|_| rig.ask(mirror, request)).collect();
        busy += usize::from(at_once[0] == "-");
        rig.work_all();
        let late = rig.hears();
        assert_eq!(at_once.iter().filter(|answer| *answer == "-").count(), late.len(), "{request}");
        assert!(late.windows(2).all(|pair| pair[0] == pair[1]), "{late:?}");
        assert!(at_once[0] == "-" || at_once[0] == at_once[1]);
    }
    // CTR, RESUME, FLUSH, DTR.
    assert_eq!(busy, 4);
}

#[test]
fn a_table_is_swapped_for_another_with_the_same_uuid() {
    for (ctr, made) in [(CORE, "done"), (DISK, "device 7:2")] {
        let (mut rig, old, new) = (Rig::new(), kernel("U", 1), kernel("U", 2));
        rig.talk(
            old,
            &[(ctr, made), ("RESUME", "done"), ("SET_REGION_SYNC 5 1", "done"), ("CLEAR_REGION 5", "done")],
        );
        rig.talk(old, &[("FLUSH", "done")]);
        rig.talk(new, &[(ctr, made), ("GET_REGION_SIZE", "count 1024"), ("GET_SYNC_COUNT", "count 0")]);
        // The inactive table has its own status.
        rig.talk(
            old,
            &[("GET_SYNC_COUNT", "count 1"), ("SET_REGION_SYNC 6 1", "done"), ("CLEAR_REGION 6", "done")],
        );
        rig.talk(old, &[("FLUSH", "done"), ("PRESUSPEND", "done"), ("POSTSUSPEND", "done")]);
        rig.talk(new, &[("RESUME", "done")]);
        // A core log starts over, a disk log is read now and not when it was constructed.
        let known = if made == "done" { ("no", "count 0") } else { ("yes", "count 2") };
        rig.talk(new, &[("IN_SYNC 5", known.0), ("IN_SYNC 6", known.0), ("GET_SYNC_COUNT", known.1)]);
        rig.talk(old, &[("DTR", "done")]);
        rig.talk(new, &[("MARK_REGION 9", "done"), ("FLUSH", "done"), ("IN_SYNC 6", known.0)]);
        assert_eq!((rig.lives("U"), rig.saves.len()), (vec!["live"], 1));
    }
}

#[test]
fn two_mirrors_with_one_uuid() {
    let (mut rig, one, two) = (Rig::new(), kernel("U", 1), kernel("U", 2));
    rig.talk(one, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    let again = DISK.replace("CTR", "CTR_AGAIN");
    rig.talk(
        two,
        &[(DISK, "device 7:2"), ("RESUME", "failed 16"), ("IN_SYNC 0", "failed 3"), (&again, "done")],
    );
    // The second one is not refused, for that it would take for an answer: it waits. Its status does not.
    rig.talk(
        two,
        &[("RESUME", "done"), ("GET_SYNC_COUNT", "count 0"), ("IN_SYNC 0", "-"), ("IN_SYNC 1", "-")],
    );
    rig.talk(two, &[("STATUS_INFO", "3 clustered-disk 7:2 A"), (&again, "done"), ("RESUME", "done")]);
    rig.talk(one, &[("SET_REGION_SYNC 1 1", "done"), ("CLEAR_REGION 1", "done"), ("PRESUSPEND", "done")]);
    assert_eq!(rig.hears().len(), 0);
    rig.talk(one, &[("POSTSUSPEND", "done")]);
    assert_eq!(rig.hears(), ["IN_SYNC no", "IN_SYNC yes"]);
    // Once it is suspended it does not come back while the other one is there.
    rig.talk(
        one,
        &[("RESUME", "failed 16"), ("IN_SYNC 0", "failed 3"), (&again, "done"), ("RESUME", "done")],
    );
    rig.talk(one, &[("IN_SYNC 1", "-")]);
    assert_eq!(rig.lives("U"), ["returned", "live"]);
    rig.talk(two, &[("IN_SYNC 0", "no"), ("DTR", "done")]);
    assert_eq!(rig.hears(), ["IN_SYNC yes"]);
    rig.talk(one, &[("DTR", "done")]);
    assert!(rig.lives("U").is_empty());
}

#[test]
fn a_device_is_in_use_by_one_uuid() {
    let (mut rig, one, two) = (Rig::new(), kernel("U", 1), kernel("V", 2));
    rig.talk(one, &[(DISK, "device 7:2")]);
    rig.talk(two, &[(DISK, "failed 16"), ("GET_SYNC_COUNT", "failed 3")]);
    rig.talk(one, &[("DTR", "done")]);
    rig.talk(two, &[(DISK, "device 7:2")]);
}

#[test]
fn a_number_that_the_kernel_gives_again() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    // Its table came to nothing after the log was there: no DTR.
    rig.talk(
        mirror,
        &[(DISK, "device 7:2"), (CORE, "done"), ("RESUME", "done"), ("STATUS_INFO", "1 clustered-core")],
    );
    assert_eq!((rig.open_stores(), rig.saves.len()), (0, 1));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("GET_SYNC_COUNT", "count 0"), ("RESUME", "done")]);
    assert_eq!(rig.lives("U"), ["live"]);
    rig.talk(mirror, &[(&CORE.replace("CTR", "CTR_AGAIN"), "failed 22"), ("IN_SYNC 0", "no")]);
}

#[test]
fn a_log_that_is_never_resumed_is_forgotten() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(DISK, "device 7:2")]);
    rig.tick(3599);
    assert_eq!(rig.lives("U"), ["pending"]);
    rig.tick(1);
    assert_eq!((rig.lives("U").len(), rig.open_stores(), rig.saves.len()), (0, 0, 0));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    rig.tick(10000);
    assert_eq!(rig.lives("U"), ["live"]);
}

#[test]
fn limits() {
    let mut rig = Rig::with(ServerConfig { max_logs: 2, max_regions: 100, ..ServerConfig::default() });
    rig.talk(kernel("A", 1), &[(CORE, "done")]);
    rig.talk(kernel("B", 2), &[("CTR 120 core 2", "failed 12"), ("CTR 118 core 2", "done")]);
    rig.talk(kernel("C", 3), &[("CTR 2 core 2", "failed 12")]);
    rig.talk(kernel("A", 1), &[("DTR", "done")]);
    rig.talk(kernel("C", 3), &[("CTR 82 core 2", "done")]);
}

#[test]
fn a_log_that_cannot_be_read_is_dirty_and_goes_on() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(&format!("{DISK} nosync"), "device 7:2")]);
    rig.devices.get_mut("/dev/log").unwrap().broken = Some(Errno(5));
    rig.talk(
        mirror,
        &[("RESUME", "failed 5"), ("GET_SYNC_COUNT", "count 0"), ("STATUS_INFO", "3 clustered-disk 7:2 D")],
    );
    rig.talk(mirror, &[("FLUSH 3", "failed 5"), ("GET_RESYNC_WORK", "work 0"), ("CLEAR_REGION 4", "done")]);
    rig.devices.get_mut("/dev/log").unwrap().broken = None;
    rig.talk(mirror, &[("FLUSH", "done"), ("STATUS_INFO", "3 clustered-disk 7:2 D")]);
    assert_eq!(rig.devices["/dev/log"].bytes[1024..1030], [1 << 4, 0, 0, 0, 0, 0]);
    assert_eq!(rig.devices["/dev/log"].bytes[..4], *b"rRiM");
}

#[test]
fn blocks_of_any_size_are_written_whole() {
    let mut images = Vec::new();
    for (block, first, later) in [(512, 1536, 512), (4096, 4096, 4096)] {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.device("/dev/block", 8192, block);
        rig.talk(mirror, &[("CTR 41000 disk /dev/block 1024", "device 7:3"), ("RESUME", "done")]);
        assert_eq!(rig.written, first);
        rig.talk(mirror, &[("CLEAR_REGION 3 40", "done"), ("FLUSH", "done")]);
        assert_eq!(rig.written, first + later);
        rig.restart();
        rig.talk(mirror, &[("IS_CLEAN 3", "yes"), ("IS_CLEAN 4", "no"), ("FLUSH", "done")]);
        images.push(rig.devices["/dev/block"].bytes.clone());
    }
    assert_eq!(images[0], images[1]);
    assert_eq!(images[0][1024..1032], [8, 0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_resync_step_costs_the_same_however_many_regions_there_are() {
    let mut written = Vec::new();
    for regions in [64 * 1024, 1024 * 1024] {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.device("/dev/big", 1 << 20, 512);
        let length = regions * 2;
        rig.talk(mirror, &[(&format!("CTR {length} disk /dev/big 2"), "device 7:3"), ("RESUME", "done")]);
        let before = (rig.writes, rig.written);
        for region in 0..200 {
            rig.talk(mirror, &[("GET_RESYNC_WORK", &format!("work {region}"))]);
            rig.talk(mirror, &[("GET_SYNC_COUNT", &format!("count {region}"))]);
            rig.talk(mirror, &[(&format!("SET_REGION_SYNC {region} 1"), "done")]);
            rig.talk(mirror, &[(&format!("CLEAR_REGION {region}"), "done"), ("FLUSH", "done")]);
        }
        written.push((rig.writes - before.0, rig.written - before.1));
    }
    // One block for each region.
    assert_eq!(written, [(200, 200 * 512); 2]);
}

#[test]
fn a_suspend_that_was_not_heard_to_its_end() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[("CTR 8 core 2", "done"), ("RESUME", "done"), ("GET_RESYNC_WORK", "work 0")]);
    rig.talk(mirror, &[("SET_REGION_SYNC 0 0", "done"), ("GET_RESYNC_WORK", "work 1"), ("RESUME", "done")]);
    // The kernel constructs and resumes anew while region 1 is under way: it goes on with the next.
    rig.talk(mirror, &[("SET_REGION_SYNC 1 1", "done"), ("GET_RESYNC_WORK", "work 2")]);
    rig.talk(mirror, &[("SET_REGION_SYNC 2 1", "done"), ("PRESUSPEND", "done"), ("RESUME", "done")]);
    // After a real resume what failed is tried again.
    rig.talk(
        mirror,
        &[("GET_RESYNC_WORK", "work 0"), ("SET_REGION_SYNC 0 1", "done"), ("GET_RESYNC_WORK", "work 3")],
    );
}
