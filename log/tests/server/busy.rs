//! What happens while a log's file is being opened, read or written: who waits, who does not, and what for.

use mirrord_raid::Errno;

use crate::rig::{Rig, User, kernel, volume};

const DISK: &str = "CTR 41000 disk /dev/log 1024";

/// A log in use, whose next jobs wait.
fn live() -> (Rig, User) {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    rig.lazy = true;
    rig.writes = 0;
    (rig, mirror)
}

fn is_dirty(rig: &Rig, region: usize) -> bool {
    rig.devices["/dev/log"].bytes[1024 + region / 8] >> (region % 8) & 1 == 0
}

#[test]
fn one_write_serves_all_who_wait() {
    let (mut rig, mirror) = live();
    rig.talk(mirror, &[("CLEAR_REGION 0 1 2 3 4", "done"), ("FLUSH", "-")]);
    for region in 0..4 {
        rig.talk(mirror, &[(&format!("MARK_REGION {region}"), "done"), ("FLUSH", "-"), ("FLUSH 4", "-")]);
    }
    rig.talk(mirror, &[("IS_CLEAN 3", "no"), ("IN_SYNC 3", "no"), ("STATUS_INFO", "3 disk 7:2 A")]);
    assert_eq!((rig.writes, rig.jobs.len()), (0, 1));
    assert!(rig.work());
    assert_eq!((rig.hears().len(), rig.writes, rig.jobs.len()), (1, 1, 1));
    assert!(rig.work());
    assert_eq!((rig.hears().len(), rig.writes, rig.jobs.len()), (8, 2, 0));
    assert!((0..5).all(|region| is_dirty(&rig, region)));
}

#[test]
fn a_flush_of_nothing_waits_for_the_write_under_way() {
    let (mut rig, mirror) = live();
    rig.talk(mirror, &[("CLEAR_REGION 7", "done"), ("FLUSH", "-"), ("FLUSH", "-")]);
    rig.work();
    assert_eq!(rig.hears(), ["FLUSH done", "FLUSH done"]);
    rig.talk(mirror, &[("FLUSH", "done"), ("MARK_REGION 1", "done"), ("FLUSH", "done")]);
    assert_eq!(rig.writes, 1);
}

#[test]
fn a_write_that_fails() {
    let (mut rig, mirror) = live();
    rig.devices.get_mut("/dev/log").unwrap().broken = Some(Errno(5));
    rig.talk(mirror, &[("CLEAR_REGION 1 2 3", "done"), ("FLUSH", "-"), ("FLUSH 2", "-"), ("FLUSH", "-")]);
    rig.work();
    assert_eq!(rig.hears(), ["FLUSH failed 5"]);
    rig.talk(mirror, &[("STATUS_INFO", "3 disk 7:2 D")]);
    rig.work();
    assert_eq!(rig.hears(), ["FLUSH failed 5", "FLUSH failed 5"]);
    rig.devices.get_mut("/dev/log").unwrap().broken = None;
    rig.devices.get_mut("/dev/log").unwrap().bytes.fill(0xee);
    // All of it is written, for nobody knows what is there.
    rig.talk(mirror, &[("FLUSH", "-")]);
    rig.work();
    assert_eq!(rig.hears(), ["FLUSH done"]);
    // The writes whose FLUSH failed wait until the table is replaced.
    rig.talk(mirror, &[("STATUS_INFO", "3 disk 7:2 D")]);
    assert_eq!(rig.devices["/dev/log"].bytes[1024..1032], [0b1010, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.devices["/dev/log"].bytes[..8], *b"rRiM\x02\0\0\0");
}

#[test]
fn what_comes_while_a_log_is_opened_or_read_is_answered_in_its_order() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.lazy = true;
    rig.talk(
        mirror,
        &[(DISK, "-"), ("GET_REGION_SIZE", "-"), ("RESUME", "-"), ("FLUSH 3", "-"), ("IS_CLEAN 3", "-")],
    );
    rig.talk(
        mirror,
        &[("POSTSUSPEND", "-"), ("RESUME", "-"), ("IN_SYNC 3", "-"), ("DTR", "-"), ("IN_SYNC 3", "-")],
    );
    rig.work_all();
    let heard = rig.hears();
    let expected = [
        "CTR device 7:2",
        "GET_REGION_SIZE count 1024",
        "RESUME done",
        "FLUSH done",
        "IS_CLEAN no",
        "POSTSUSPEND done",
        "RESUME done",
        "IN_SYNC no",
        "IN_SYNC failed 3",
        "DTR done",
    ];
    assert_eq!(heard, expected);
    assert_eq!(rig.open_stores(), 0);
}

#[test]
fn a_file_that_never_answers_holds_up_its_log_alone() {
    let (mut rig, mirror) = live();
    let (other, core) = (kernel("V", 2), kernel("W", 3));
    rig.device("/dev/other", 8192, 512);
    rig.talk(mirror, &[("CLEAR_REGION 3", "done"), ("FLUSH", "-")]);
    let stuck = rig.jobs.pop_front().unwrap();
    rig.lazy = false;
    rig.talk(
        other,
        &[("CTR 41000 disk /dev/other 1024", "device 7:3"), ("RESUME", "done"), ("FLUSH 1", "done")],
    );
    rig.talk(core, &[("CTR 41000 core 1024", "done"), ("RESUME", "done"), ("FLUSH 1", "done")]);
    rig.talk(
        mirror,
        &[("IN_SYNC 3", "no"), ("MARK_REGION 3", "done"), ("FLUSH", "-"), ("PRESUSPEND", "done")],
    );
    rig.talk(mirror, &[("POSTSUSPEND", "-"), ("DTR", "-"), ("GET_SYNC_COUNT", "-")]);
    rig.tick(100_000);
    assert_eq!(rig.lives("U"), ["closing"]);
    rig.jobs.push_front(stuck);
    rig.work_all();
    let expected = ["FLUSH done", "FLUSH done", "POSTSUSPEND done", "GET_SYNC_COUNT failed 3", "DTR done"];
    let mut heard = rig.hears();
    heard[1..3].sort();
    assert_eq!(heard, expected);
    assert!(is_dirty(&rig, 3));
}

#[test]
fn too_many_requests_are_not_held() {
    let busy = |user| {
        let mut rig = Rig::new();
        rig.lazy = true;
        rig.talk(user, &[("CTR 41000 disk /dev/log 1024", "-")]);
        rig
    };
    let long = format!("MARK_REGION{}", " 7".repeat(2000));
    let life = volume(1, "U", 1);
    let mut rig = busy(life);
    assert_eq!((0..5000).take_while(|_| rig.ask(life, "GET_SYNC_COUNT") == "-").count(), 4096);
    assert_eq!(rig.ask(life, "GET_SYNC_COUNT"), "failed 105");
    rig.work_all();
    assert_eq!(rig.hears().len(), 4097);
    let mut rig = busy(life);
    assert_eq!((0..5000).take_while(|_| rig.ask(life, &long) == "-").count(), 4096 * 512 / (160 + 16000));
    // Nor do more wait for one write.
    let mut rig = Rig::new();
    rig.talk(life, &[("CTR 8 disk /dev/log 2 nosync", "done"), ("RESUME", "done")]);
    rig.lazy = true;
    assert_eq!((0..5000).take_while(|_| rig.ask(life, "FLUSH 3") == "-").count(), 4097);

    // The kernel takes every error for an answer. It asks again each 15 s: the first are not waited for any more.
    let mirror = kernel("U", 1);
    let mut rig = busy(mirror);
    for request in 0..5000 {
        assert_eq!(rig.ask(mirror, if request == 4500 { "GET_REGION_SIZE" } else { "GET_SYNC_COUNT" }), "-");
    }
    rig.work_all();
    let heard = rig.hears();
    assert_eq!((heard.len(), heard[1 + 4096 - 500].as_str()), (4097, "GET_REGION_SIZE count 1024"));
    let (mut rig, mirror) = live();
    rig.talk(mirror, &[("CLEAR_REGION 3", "done")]);
    assert!((0..5000).all(|_| rig.ask(mirror, "FLUSH") == "-"));
    rig.work_all();
    assert_eq!(rig.hears().len(), 4097);
}

#[test]
fn suspended_during_a_write() {
    for request in ["POSTSUSPEND", "DTR"] {
        let (mut rig, mirror) = live();
        rig.talk(
            mirror,
            &[("CLEAR_REGION 1 2", "done"), ("FLUSH", "-"), ("MARK_REGION 2", "done"), (request, "-")],
        );
        assert_eq!(rig.lives("U"), ["closing"]);
        // Twice, while it is under way.
        rig.talk(mirror, &[(request, "-"), ("STATUS_INFO", "-")]);
        rig.work();
        assert_eq!(rig.hears(), ["FLUSH done"]);
        rig.work_all();
        let done = format!("{request} done");
        let status = if request == "DTR" { "STATUS_INFO failed 3" } else { "STATUS_INFO 3 disk 7:2 A" };
        let (first, last) = if request == "DTR" { (status, &*done) } else { (&*done, status) };
        assert_eq!(rig.hears(), [first, &done, last]);
        assert!(is_dirty(&rig, 2) && !is_dirty(&rig, 1));
        assert_eq!(rig.open_stores(), usize::from(request == "POSTSUSPEND"));
    }
}

#[test]
fn a_write_that_is_under_way_is_waited_for_by_the_next_table() {
    let (mut rig, old) = live();
    let new = kernel("U", 2);
    rig.lazy = false;
    rig.talk(new, &[(DISK, "device 7:2")]);
    rig.lazy = true;
    rig.talk(old, &[("CLEAR_REGION 1", "done"), ("FLUSH", "-"), ("PRESUSPEND", "done")]);
    rig.talk(new, &[("RESUME", "failed 16")]);
    rig.work();
    rig.lazy = false;
    rig.talk(new, &[("RESUME", "done"), ("IS_CLEAN 1", "yes")]);
    assert_eq!(rig.lives("U"), ["suspended", "live"]);
}

#[test]
fn a_log_that_goes_makes_room_for_what_is_constructed_meanwhile() {
    let (mut rig, mirror) = live();
    rig.talk(
        mirror,
        &[("CLEAR_REGION 1", "done"), ("DTR", "-"), (DISK, "-"), ("RESUME", "-"), ("IS_CLEAN 1", "-")],
    );
    rig.work_all();
    assert_eq!(rig.hears(), ["DTR done", "CTR device 7:2", "RESUME done", "IS_CLEAN yes"]);
    assert_eq!((rig.lives("U"), rig.open_stores()), (vec!["live"], 1));
}

#[test]
fn the_last_write_fails() {
    let (mut rig, mirror) = live();
    rig.devices.get_mut("/dev/log").unwrap().broken = Some(Errno(5));
    rig.talk(mirror, &[("CLEAR_REGION 1", "done"), ("POSTSUSPEND", "-")]);
    rig.work_all();
    assert_eq!(rig.hears(), ["POSTSUSPEND failed 5"]);
    assert_eq!(rig.lives("U"), ["suspended"]);
    rig.talk(mirror, &[("FLUSH", "failed 5"), ("STATUS_INFO", "3 disk 7:2 D"), ("DTR", "-")]);
    rig.work_all();
    assert_eq!(rig.hears(), ["DTR done"]);
}

#[test]
fn dropped_on_somebodys_word() {
    let (mut rig, mirror) = live();
    assert!(!rig.forget("V"));
    rig.talk(
        mirror,
        &[("CLEAR_REGION 1", "done"), ("FLUSH", "-"), ("FLUSH", "-"), ("POSTSUSPEND", "-"), ("DTR", "-")],
    );
    let other = kernel("U", 2);
    rig.talk(other, &[(DISK, "-")]);
    let writing = rig.jobs.pop_front().unwrap();
    rig.work_all();
    assert!(rig.forget("U"));
    let heard = rig.hears();
    assert_eq!(heard[0], "CTR device 7:2");
    assert_eq!(heard[1..].len(), 4);
    assert!(heard[1..].iter().all(|line| line.ends_with("failed 3")), "{heard:?}");
    // What is on its way to the file is waited for, by whatever log is to be there next.
    rig.talk(other, &[("RESUME", "failed 16")]);
    rig.talk(kernel("V", 3), &[(DISK, "-")]);
    rig.work_all();
    assert_eq!(rig.hears(), ["CTR failed 16"]);
    rig.jobs.push_front(writing);
    rig.work_all();
    rig.talk(other, &[("RESUME", "-")]);
    rig.work_all();
    assert_eq!(rig.hears(), ["RESUME done"]);
    assert_eq!(rig.open_stores(), 1);
}

#[test]
fn a_volume_that_goes_while_its_log_is_busy() {
    for (lines, life) in [
        (&["CTR 64 disk v 2 nosync"][..], "pending"),
        (&["CTR 64 disk v 2 nosync", "RESUME"], "live"),
        (&["CTR 64 disk v 2 nosync", "RESUME", "FLUSH 3"], "live"),
        (&["CTR 64 disk v 2 nosync", "RESUME", "FLUSH 3", "POSTSUSPEND"], "suspended"),
        (&["CTR 64 disk v 2 nosync", "RESUME", "FLUSH 3", "DTR"], ""),
    ] {
        let mut rig = Rig::new();
        for line in &lines[..lines.len() - 1] {
            rig.ask(volume(7, "U", 1), line);
        }
        rig.lazy = true;
        rig.hears();
        rig.talk(volume(7, "U", 1), &[(lines[lines.len() - 1], "-")]);
        rig.gone(7);
        rig.work_all();
        assert!(rig.hears().is_empty(), "nobody is there to be answered");
        assert_eq!(rig.lives("U").first().copied().unwrap_or(""), life);
        rig.tick(29);
        rig.work_all();
        assert_eq!(rig.lives("U").first().copied().unwrap_or(""), life);
        rig.tick(1);
        rig.work_all();
        assert_eq!((rig.lives("U").len(), rig.open_stores()), (0, 0), "{lines:?}");
    }
}
