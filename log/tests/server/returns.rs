//! Answers that the kernel takes for something else if they are not just so: to who lost its server, to who has
//! no log device any more, to who is about to take one away. What they cost otherwise was seen on the real kernel.

use mirrord_log::server::{LogServer, Output, RestoreError, ServerConfig};
use mirrord_log::wire::{Frame, RequestType};
use mirrord_raid::Errno;

use crate::rig::{Rig, User, kernel, volume};

const CORE: &str = "CTR 41000 core 1024";
const DISK: &str = "CTR 41000 disk /dev/log 1024";
const AGAIN: &str = "CTR_AGAIN 41000 disk /dev/log 1024 nosync";

/// A mirror on disk, in use, all of it in sync.
fn in_sync() -> (Rig, User) {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(&format!("{DISK} nosync"), "device 7:2"), ("RESUME", "done")]);
    (rig, mirror)
}

fn clean_on_disk(rig: &Rig, region: usize) -> bool {
    rig.devices["/dev/log"].bytes[1024 + region / 8] >> (region % 8) & 1 == 1
}

#[test]
fn who_has_to_construct_anew_has_room_for_the_answer_then() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    let (mut known, luid) = (Rig::new(), kernel("U", 2));
    let long = format!("CTR 41000 disk /dev/{} 1024", "x".repeat(300));
    known.device(long.split(' ').nth(3).unwrap(), 8192, 512);
    known.devices.values_mut().for_each(|device| device.number = None);
    known.talk(luid, &[(&long, "done"), ("RESUME", "done")]);
    for request in [
        "IS_CLEAN 3",
        "IN_SYNC 3",
        "GET_SYNC_COUNT",
        "GET_RESYNC_WORK",
        "IS_REMOTE_RECOVERING 3",
        "STATUS_INFO",
        "MARK_REGION 3",
        "CLEAR_REGION 3",
        "FLUSH",
        "SET_REGION_SYNC 3 1",
        "RESUME",
        "PRESUSPEND",
        "POSTSUSPEND",
    ] {
        assert_eq!(rig.ask(mirror, request), "failed 3", "{request}");
        let room = Frame::parse(&rig.last).unwrap().0.data().to_vec();
        known.ask(luid, request);
        let (answer, _) = Frame::parse(&known.last).unwrap();
        assert_eq!(answer.error(), 0);
        if answer.request_type() == RequestType::StatusInfo as u32 {
            assert!((answer.data().len()..=332).contains(&room.len()), "{request}: {}", room.len());
        } else {
            assert_eq!(room.len(), answer.data().len(), "{request}");
        }
        assert!(room.iter().all(|&byte| byte == 0));
    }
    // Also of a log that is there and not in use; other errors are final, and an answer to CTR has no room.
    rig.talk(mirror, &[(CORE, "done"), ("IN_SYNC 3", "failed 3")]);
    assert_eq!(Frame::parse(&rig.last).unwrap().0.data().len(), 8);
    rig.talk(mirror, &[("RESUME", "done"), ("IN_SYNC 99", "failed 22")]);
    assert_eq!(Frame::parse(&rig.last).unwrap().0.data().len(), 0);
    let device = rig.devices.remove("/dev/log");
    rig.talk(mirror, &[("DTR", "done"), (DISK, "failed 2")]);
    assert_eq!(Frame::parse(&rig.last).unwrap().0.data().len(), 0);
    rig.devices.extend(device.map(|device| ("/dev/log".to_owned(), device)));
}

#[test]
fn a_log_that_cannot_be_written_comes_back_and_fails_the_flush() {
    let (mut rig, mirror) = in_sync();
    rig.log().read_only = Some(Errno(30));
    rig.restart_without_notes();
    rig.talk(mirror, &[("IN_SYNC 3", "failed 3"), (AGAIN, "done"), ("RESUME", "done"), ("IN_SYNC 3", "yes")]);
    rig.talk(mirror, &[("MARK_REGION 3", "done"), ("FLUSH", "failed 30"), ("STATUS_INFO", "3 disk 7:2 D")]);
    assert_eq!(rig.ask(mirror, "GET_SYNC_COUNT"), "count 41");
    // One that cannot be read either: nothing is taken for in sync, and the request that waits is answered.
    rig.log().broken = Some(Errno(5));
    rig.restart_without_notes();
    rig.talk(mirror, &[("IN_SYNC 3", "failed 3"), (AGAIN, "done"), ("RESUME", "done"), ("IN_SYNC 3", "no")]);
    rig.talk(mirror, &[("STATUS_INFO", "3 disk 7:2 D"), ("POSTSUSPEND", "failed 5")]);
    // What it says once it can be read is of before: writes since went to one leg.
    rig.log().broken = None;
    rig.log().read_only = None;
    rig.talk(mirror, &[("RESUME", "done"), ("IN_SYNC 3", "no"), ("GET_SYNC_COUNT", "count 0")]);
    assert!(!clean_on_disk(&rig, 3));
}

#[test]
fn what_a_file_that_failed_says_is_not_trusted_by_the_next_table() {
    for text in [DISK, "CTR 41000 disk /dev/log 2048"] {
        let (mut rig, old) = in_sync();
        rig.talk(old, &[("CLEAR_REGION 3", "done"), ("FLUSH", "done")]);
        rig.log().read_only = Some(Errno(5));
        rig.talk(old, &[("MARK_REGION 4", "done"), ("FLUSH", "failed 5")]);
        rig.restart();
        rig.log().read_only = None;
        let new = kernel("U", 2);
        rig.talk(new, &[(text, "device 7:2")]);
        rig.log().read_only = Some(Errno(5));
        rig.talk(old, &[("PRESUSPEND", "done"), ("POSTSUSPEND", "failed 5")]);
        assert!(clean_on_disk(&rig, 4));
        rig.log().read_only = None;
        let is_alike = text == DISK;
        rig.talk(
            new,
            &[("RESUME", "done"), ("IN_SYNC 4", "no"), ("IN_SYNC 3", if is_alike { "yes" } else { "no" })],
        );
        rig.talk(old, &[("DTR", "done")]);
        assert!(!clean_on_disk(&rig, 4) && clean_on_disk(&rig, 3) == is_alike);
    }
}

#[test]
fn a_log_device_that_failed_is_failed_until_the_table_is_replaced() {
    let (mut rig, old) = in_sync();
    rig.log().read_only = Some(Errno(5));
    rig.talk(old, &[("MARK_REGION 3", "done"), ("FLUSH", "failed 5"), ("STATUS_INFO", "3 disk 7:2 D")]);
    rig.log().read_only = None;
    rig.talk(old, &[("FLUSH", "done"), ("STATUS_INFO", "3 disk 7:2 D")]);
    rig.talk(old, &[("CLEAR_REGION 3", "done"), ("FLUSH", "done"), ("STATUS_INFO", "3 disk 7:2 D")]);
    rig.restart();
    rig.talk(old, &[("STATUS_INFO", "3 disk 7:2 D"), (AGAIN, "done"), ("RESUME", "done")]);
    rig.talk(old, &[("STATUS_INFO", "3 disk 7:2 D"), ("POSTSUSPEND", "done"), ("RESUME", "done")]);
    rig.talk(old, &[("STATUS_INFO", "3 disk 7:2 D"), ("IN_SYNC 3", "yes")]);
    let new = kernel("U", 2);
    rig.talk(new, &[(DISK, "device 7:2")]);
    rig.talk(old, &[("POSTSUSPEND", "done")]);
    rig.talk(new, &[("RESUME", "done"), ("STATUS_INFO", "3 disk 7:2 A"), ("GET_SYNC_COUNT", "count 41")]);
    rig.talk(old, &[("DTR", "done")]);
    // A volume has no such memory.
    let life = volume(1, "V", 1);
    rig.talk(life, &[("CTR 8 disk v 2 nosync", "done"), ("RESUME", "done")]);
    rig.devices.get_mut("v").unwrap().broken = Some(Errno(5));
    rig.talk(life, &[("FLUSH 1", "failed 5"), ("STATUS_INFO", "3 disk v D")]);
    rig.devices.get_mut("v").unwrap().broken = None;
    rig.talk(life, &[("FLUSH 1", "done"), ("STATUS_INFO", "3 disk v A")]);
}

#[test]
fn dtr_is_answered_when_the_device_is_closed() {
    for suspended in [true, false] {
        let (mut rig, mirror) = in_sync();
        if suspended {
            rig.talk(mirror, &[("POSTSUSPEND", "done")]);
        }
        rig.lazy = true;
        rig.talk(mirror, &[("DTR", "-"), ("DTR", "-")]);
        assert_eq!((rig.hears().len(), rig.open_stores(), rig.lives("U").len()), (0, 1, 0));
        // Another table of another name may have the device meanwhile.
        rig.work_all();
        assert_eq!((rig.hears(), rig.open_stores()), (vec!["DTR done".to_owned(); 2], 0));
        rig.talk(mirror, &[("DTR", "done")]);
    }
    // A log that was dropped on somebody's word, with a write under way.
    let (mut rig, mirror) = in_sync();
    rig.lazy = true;
    rig.talk(mirror, &[("FLUSH 3", "-")]);
    rig.forget("U");
    assert_eq!(rig.hears(), ["FLUSH failed 3"]);
    rig.talk(mirror, &[("DTR", "-")]);
    rig.work();
    assert_eq!((rig.hears().len(), rig.open_stores()), (0, 1));
    rig.work_all();
    assert_eq!((rig.hears(), rig.open_stores()), (vec!["DTR done".to_owned()], 0));
    // The old table of two: the device stays open for the other.
    let (mut rig, old) = in_sync();
    let new = kernel("U", 2);
    rig.talk(new, &[(DISK, "device 7:2")]);
    rig.talk(old, &[("POSTSUSPEND", "done")]);
    rig.talk(new, &[("RESUME", "done")]);
    rig.talk(old, &[("DTR", "done")]);
    assert_eq!((rig.open_stores(), rig.lives("U")), (1, vec!["live"]));
    // A volume that is gone is not answered.
    let life = volume(1, "V", 1);
    rig.talk(life, &[("CTR 8 disk v 2 nosync", "done"), ("RESUME", "done")]);
    rig.lazy = true;
    rig.talk(life, &[("POSTSUSPEND", "-")]);
    rig.work_all();
    rig.talk(life, &[("DTR", "-")]);
    rig.hears();
    rig.gone(1);
    rig.work_all();
    assert_eq!((rig.hears().len(), rig.open_stores()), (0, 1));
}

#[test]
fn what_a_table_says_of_its_legs_is_kept_however_long_it_waits() {
    for (word, synced) in [("nosync", "yes"), ("sync", "no")] {
        for again in [false, true] {
            let (mut rig, core, disk) = (Rig::new(), kernel("C", 1), kernel("D", 2));
            if word == "sync" {
                // What is on disk is clean.
                rig.log().bytes[1024..1032].fill(0xff);
                rig.log().bytes[..16].copy_from_slice(b"rRiM\x02\0\0\0\x29\0\0\0\0\0\0\0");
            }
            rig.talk(core, &[(&format!("{CORE} {word}"), "done")]);
            rig.talk(disk, &[(&format!("{DISK} {word}"), "device 7:2")]);
            rig.tick(3600);
            // The device is another's until it is asked for.
            assert_eq!((rig.open_stores(), rig.lives("D")), (0, vec!["pending"]));
            // Nor is it lost if the device is away for a while, also when the server starts.
            let device = rig.devices.remove("/dev/log").unwrap();
            if again {
                rig.restart();
            }
            rig.talk(disk, &[("GET_SYNC_COUNT", "failed 3"), ("RESUME", "failed 3")]);
            rig.devices.insert("/dev/log".to_owned(), device);
            rig.talk(disk, &[("GET_REGION_SIZE", "count 1024")]);
            for mirror in [core, disk] {
                rig.talk(mirror, &[("RESUME", "done"), ("IN_SYNC 3", synced)]);
            }
        }
    }
    // Nor if its first RESUME came while another table was in use.
    let (mut rig, one, two) = (Rig::new(), kernel("U", 1), kernel("U", 2));
    rig.talk(one, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    rig.talk(
        two,
        &[(&format!("{DISK} nosync"), "device 7:2"), ("RESUME", "failed 16"), ("IN_SYNC 3", "failed 3")],
    );
    rig.talk(two, &[(AGAIN, "done"), ("RESUME", "done"), ("GET_SYNC_COUNT", "count 41"), ("IN_SYNC 3", "-")]);
    rig.talk(one, &[("DTR", "done")]);
    assert_eq!(rig.hears(), ["IN_SYNC yes"]);
    // One that says nothing is dropped; and none stands in the way of another, not even of itself.
    let mut rig = Rig::with(ServerConfig { max_logs: 2, ..ServerConfig::default() });
    let (one, two) = (kernel("A", 1), kernel("B", 2));
    rig.device("/dev/other", 8192, 512);
    rig.talk(one, &[(&format!("{DISK} nosync"), "device 7:2")]);
    rig.talk(two, &[("CTR 41000 disk /dev/other 1024", "device 7:3")]);
    rig.tick(3600);
    assert_eq!((rig.lives("A"), rig.lives("B")), (vec!["pending"], vec![]));
    rig.talk(one, &[("DTR", "done"), (&format!("{DISK} nosync"), "device 7:2")]);
    rig.tick(3600);
    rig.talk(two, &[(CORE, "done")]);
    rig.talk(kernel("C", 3), &[(CORE, "done")]);
    assert_eq!(rig.lives("A").len(), 0);
    rig.talk(kernel("D", 4), &[(CORE, "failed 12")]);
}

#[test]
fn a_table_that_is_not_in_use_and_asked_first() {
    for (ctr, made) in [(CORE, "done"), (DISK, "device 7:2")] {
        let (mut rig, live, inactive) = (Rig::new(), kernel("U", 1), kernel("U", 2));
        let again = ctr.replace("CTR", "CTR_AGAIN");
        rig.talk(live, &[(&format!("{ctr} nosync"), made), ("RESUME", "done"), ("FLUSH 3", "done")]);
        rig.talk(inactive, &[(ctr, made)]);
        rig.restart_without_notes();
        // Somebody wants the status of the inactive one.
        rig.talk(inactive, &[("GET_SYNC_COUNT", "failed 3"), (&again, "done"), ("RESUME", "done")]);
        let count = if ctr == DISK { "count 40" } else { "count 0" };
        rig.talk(inactive, &[("GET_SYNC_COUNT", count), ("RESUME", "done"), ("GET_SYNC_COUNT", count)]);
        assert!(!rig.ask(inactive, "STATUS_INFO").starts_with("failed"));
        let word = format!("{again} nosync");
        rig.talk(live, &[("IN_SYNC 5", "failed 3"), (&word, "done"), ("RESUME", "done")]);
        let known = if ctr == DISK { "yes" } else { "no" };
        rig.talk(live, &[("IN_SYNC 5", known), ("FLUSH 5", "done"), ("IN_SYNC 3", "no")]);
        assert_eq!(rig.lives("U"), ["returned", "live"]);
        // It is put to use when its turn comes: what was on disk before is read anew.
        rig.talk(live, &[("PRESUSPEND", "done"), ("POSTSUSPEND", "done")]);
        rig.talk(
            inactive,
            &[("RESUME", "done"), ("GET_RESYNC_WORK", if ctr == DISK { "work 3" } else { "work 0" })],
        );
        rig.talk(inactive, &[("IN_SYNC 5", "no")]);
        rig.talk(live, &[("DTR", "done")]);
        assert_eq!(rig.lives("U"), ["live"]);
        // The same the other way round, and the inactive one goes.
        rig.restart_without_notes();
        rig.talk(
            inactive,
            &[("IN_SYNC 5", "failed 3"), (&again, "done"), ("RESUME", "done"), ("IN_SYNC 5", "no")],
        );
        let third = kernel("U", 3);
        rig.talk(third, &[("STATUS_INFO", "failed 3"), (&again, "done"), ("RESUME", "done")]);
        rig.talk(third, &[("PRESUSPEND", "done"), ("POSTSUSPEND", "done"), ("DTR", "done")]);
        rig.talk(inactive, &[("IN_SYNC 5", "no"), ("DTR", "done")]);
        assert_eq!((rig.lives("U").len(), rig.open_stores(), rig.saves.len()), (0, 0, 0));
    }
}

#[test]
fn a_request_waits_while_another_table_is_being_opened() {
    let (mut rig, old, new) = (Rig::new(), kernel("U", 1), kernel("U", 2));
    rig.talk(old, &[(DISK, "device 7:2"), ("RESUME", "done"), ("SET_REGION_SYNC 3 1", "done")]);
    rig.talk(old, &[("CLEAR_REGION 3", "done"), ("FLUSH", "done")]);
    rig.talk(new, &[(CORE, "done"), ("RESUME", "failed 16"), ("IN_SYNC 3", "failed 3")]);
    rig.talk(new, &[(&CORE.replace("CTR", "CTR_AGAIN"), "done"), ("RESUME", "done"), ("IN_SYNC 3", "-")]);
    let device = rig.devices.remove("/dev/log").unwrap();
    rig.restart();
    rig.talk(
        new,
        &[("IN_SYNC 3", "failed 3"), (&CORE.replace("CTR", "CTR_AGAIN"), "done"), ("RESUME", "done")],
    );
    rig.talk(new, &[("IN_SYNC 3", "-")]);
    rig.devices.insert("/dev/log".to_owned(), device);
    rig.talk(old, &[("IN_SYNC 3", "yes")]);
    assert!(rig.hears().is_empty());
    rig.talk(old, &[("POSTSUSPEND", "done")]);
    assert_eq!(rig.hears(), ["IN_SYNC no"]);
    rig.talk(new, &[("DTR", "done")]);
    // Nor does a mirror that goes leave anybody without an answer.
    rig.talk(old, &[("RESUME", "done")]);
    rig.talk(new, &[(CORE, "done"), ("RESUME", "failed 16"), (&CORE.replace("CTR", "CTR_AGAIN"), "done")]);
    rig.talk(new, &[("RESUME", "done"), ("IN_SYNC 3", "-"), ("DTR", "done")]);
    assert_eq!(rig.hears(), ["IN_SYNC failed 3"]);
}

#[test]
fn a_region_falls_out_of_sync_when_it_is_said_to_or_the_log_is_put_to_use() {
    let (mut rig, mirror) = in_sync();
    rig.talk(mirror, &[("MARK_REGION 3 4", "done"), ("FLUSH 5", "done"), ("MARK_REGION 6", "done")]);
    for _ in 0..2 {
        rig.restart();
        rig.talk(mirror, &[(AGAIN, "done"), ("RESUME", "done"), ("GET_SYNC_COUNT", "count 41")]);
        rig.log().broken = Some(Errno(5));
        rig.talk(
            mirror,
            &[("FLUSH 7", "failed 5"), ("GET_SYNC_COUNT", "count 41"), ("GET_RESYNC_WORK", "no work")],
        );
        rig.log().broken = None;
        rig.talk(mirror, &[("FLUSH", "done"), ("GET_SYNC_COUNT", "count 41"), ("PRESUSPEND", "done")]);
        rig.talk(mirror, &[("IN_SYNC 3", "yes"), ("RESUME", "done"), ("GET_SYNC_COUNT", "count 41")]);
    }
    rig.talk(mirror, &[("SET_REGION_SYNC 9 0", "done"), ("GET_SYNC_COUNT", "count 40")]);
    rig.talk(mirror, &[("POSTSUSPEND", "done"), ("RESUME", "done"), ("GET_SYNC_COUNT", "count 36")]);
}

#[test]
fn marks_that_were_told_to_a_server_that_is_gone() {
    for (first, is_late, is_killed_again) in [
        ("FLUSH", true, false),
        ("FLUSH", true, true),
        ("MARK_REGION 9", true, false),
        ("FLUSH 9", false, false),
        ("IN_SYNC 9", false, false),
        ("IN_SYNC 9", false, true),
    ] {
        let (mut rig, mirror) = in_sync();
        rig.talk(mirror, &[("MARK_REGION 3", "done")]);
        rig.restart_without_notes();
        rig.talk(mirror, &[(first, "failed 3"), (AGAIN, "done"), ("RESUME", "done")]);
        if is_killed_again {
            rig.restart();
            rig.talk(mirror, &[(first, "failed 3"), (AGAIN, "done"), ("RESUME", "done")]);
        }
        assert_ne!(rig.ask(mirror, first), "failed 3");
        rig.talk(mirror, &[("FLUSH", "done"), ("GET_SYNC_COUNT", "count 41"), ("IN_SYNC 3", "yes")]);
        assert_eq!(clean_on_disk(&rig, 3), !is_late, "{first}");
        rig.talk(mirror, &[("CLEAR_REGION 3", "done"), ("MARK_REGION 4", "done"), ("FLUSH", "done")]);
        assert!(clean_on_disk(&rig, 3) && !clean_on_disk(&rig, 4));
    }
}

#[test]
fn a_log_device_that_lvm_has_just_made() {
    for (bits, count) in [(0xff, "count 41"), (0, "count 0")] {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.log().bytes.fill(bits);
        rig.log().bytes[..512].fill(0);
        rig.log().bytes[..16].copy_from_slice(b"rRiM\x02\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
        rig.talk(mirror, &[(DISK, "device 7:2"), ("RESUME", "done"), ("GET_SYNC_COUNT", count)]);
        assert_eq!(rig.log().bytes[8..16], 41u64.to_le_bytes());
        rig.talk(mirror, &[("STATUS_INFO", "3 disk 7:2 A")]);
    }
}

#[test]
fn what_several_hosts_may_share_is_refused_unless_one_host_alone_uses_it() {
    let mut rig = Rig::strict(ServerConfig::default());
    let mirror = kernel("U", 1);
    for ctr in [CORE, DISK] {
        let clustered = ctr.replace("41000 ", "41000 clustered-");
        for clustered in [clustered.clone(), clustered.replace("CTR", "CTR_AGAIN")] {
            rig.talk(mirror, &[(&clustered, "failed 1"), ("IN_SYNC 0", "failed 3")]);
        }
        let told = std::mem::take(&mut rig.told);
        assert_eq!(told.len(), 1, "not each time: {told:?}");
        assert!(
            told[0].contains("the log U is refused: clustered-") && told[0].contains("--single-host"),
            "{told:?}"
        );
        rig.tick(60);
    }
    assert_eq!((rig.lives("U").len(), rig.open_stores(), rig.saves.len()), (0, 0, 0));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("DTR", "done")]);
    // A volume is no host's mirror.
    rig.talk(volume(1, "V", 1), &[("CTR 8 clustered-core 2", "done")]);
    // What a server knew that was told so is not lost.
    let mut rig = Rig::new();
    rig.talk(mirror, &[("CTR 41000 clustered-core 1024", "done"), ("RESUME", "done")]);
    let (&session, notes) = rig.saves.first_key_value().unwrap();
    let refused = LogServer::default().restore(session, notes, &mut Output::default()).unwrap_err();
    assert!(matches!(&refused, RestoreError::Refused(refused) if refused.uuid == "U"), "{refused}");
    // Nor are other reasons kept back.
    rig.talk(kernel("X\n", 3), &[("CTR 41000 core 1000", "failed 22")]);
    assert!(rig.told[0].contains("the log X\\n is refused: regions of 1000 sectors"), "{:?}", rig.told);
}

#[test]
fn errors_of_files_are_not_taken_for_something_else() {
    // ESRCH, EAGAIN, EBUSY, ESTALE.
    for errno in [3, 11, 16, 116] {
        let (mut rig, mirror) = in_sync();
        rig.log().broken = Some(Errno(errno));
        rig.talk(mirror, &[("FLUSH 3", "failed 5"), ("POSTSUSPEND", "failed 5"), ("RESUME", "failed 5")]);
        let life = volume(1, "V", 1);
        rig.talk(life, &[("CTR 8 disk v 2 nosync", "done"), ("RESUME", "done")]);
        rig.devices.get_mut("v").unwrap().broken = Some(Errno(errno));
        rig.talk(life, &[("FLUSH 1", "failed 5"), ("POSTSUSPEND", "failed 5"), ("RESUME", "failed 5")]);
        rig.log().unopenable = Some(Errno(errno));
        let answer = if errno == 16 { "failed 16" } else { "failed 5" };
        rig.talk(kernel("W", 2), &[(DISK, answer)]);
    }
}
