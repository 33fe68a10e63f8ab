//! A server that is killed: what the next one knows from the notes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::rig::{Rig, User, kernel};

const CORE: &str = "CTR 41000 core 1024";
const DISK: &str = "CTR 41000 disk /dev/log 1024";

fn again(ctr: &str) -> String {
    ctr.replace("CTR", "CTR_AGAIN")
}

#[test]
fn the_kernel_constructs_anew_and_is_told_nothing() {
    for (ctr, answer) in [(CORE, "done"), (DISK, "device 7:2")] {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.talk(mirror, &[(ctr, answer), ("RESUME", "done"), ("SET_REGION_SYNC 7 1", "done")]);
        rig.talk(
            mirror,
            &[("CLEAR_REGION 7", "done"), ("MARK_REGION 8", "done"), ("GET_RESYNC_WORK", "work 0")],
        );
        rig.restart();
        rig.talk(
            mirror,
            &[(&again(ctr), "done"), (&again(ctr), "done"), ("RESUME", "done"), ("RESUME", "done")],
        );
        rig.talk(
            mirror,
            &[
                ("IN_SYNC 7", "yes"),
                ("IS_CLEAN 7", "yes"),
                ("IS_CLEAN 8", "no"),
                ("GET_SYNC_COUNT", "count 1"),
            ],
        );
        // Or it notices nothing.
        rig.restart();
        rig.talk(mirror, &[("IN_SYNC 7", "yes"), ("GET_SYNC_COUNT", "count 1"), ("FLUSH", "done")]);
        rig.talk(mirror, &[("PRESUSPEND", "done")]);
        rig.restart();
        assert_eq!(rig.lives("U"), ["suspending"]);
        rig.talk(mirror, &[("MARK_REGION 7", "done"), ("POSTSUSPEND", "done")]);
        rig.restart();
        assert_eq!(rig.lives("U"), ["suspended"]);
        let synced = if ctr == DISK { "no" } else { "yes" };
        rig.talk(
            mirror,
            &[("IN_SYNC 7", "failed 3"), ("RESUME", "done"), ("IN_SYNC 7", synced), ("DTR", "done")],
        );
        rig.restart();
        assert!(rig.lives("U").is_empty());
    }
}

#[test]
fn killed_before_it_was_resumed() {
    for (mode, count) in [("", 0), (" nosync", 41)] {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.talk(mirror, &[(&format!("{DISK}{mode}"), "device 7:2")]);
        rig.restart();
        let count = format!("count {count}");
        rig.talk(mirror, &[("GET_SYNC_COUNT", &count), ("GET_REGION_SIZE", "count 1024")]);
        // While it is read for the first time.
        rig.lazy = true;
        rig.talk(mirror, &[("RESUME", "-")]);
        rig.lazy = false;
        rig.restart();
        assert_eq!(rig.lives("U"), ["pending"]);
        rig.talk(
            mirror,
            &[("IN_SYNC 0", "failed 3"), (&again(&format!("{DISK}{mode}")), "done"), ("RESUME", "done")],
        );
        rig.talk(mirror, &[("GET_SYNC_COUNT", &count)]);
    }
}

#[test]
fn a_write_under_way_when_the_notes_were_lost_leaves_its_region_dirty() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    let nosync = format!("{DISK} nosync");
    rig.talk(mirror, &[(&nosync, "device 7:2"), ("RESUME", "done"), ("FLUSH 20", "done")]);
    rig.kill();
    rig.saves.clear();
    rig.restore();
    rig.talk(mirror, &[("CLEAR_REGION 20", "failed 3"), (&again(&nosync), "done"), ("RESUME", "done")]);
    rig.talk(mirror, &[("CLEAR_REGION 20", "done"), ("FLUSH", "done")]);
    // Out of sync: from now on the kernel writes to one leg, and marks nothing.
    rig.talk(mirror, &[("IN_SYNC 20", "no"), ("PRESUSPEND", "done"), ("POSTSUSPEND", "done")]);
    rig.talk(mirror, &[("RESUME", "done"), ("IN_SYNC 20", "no"), ("GET_RESYNC_WORK", "work 20")]);
    rig.talk(mirror, &[("SET_REGION_SYNC 20 1", "done"), ("CLEAR_REGION 20", "done"), ("FLUSH", "done")]);
    rig.talk(mirror, &[("POSTSUSPEND", "done"), ("RESUME", "done"), ("IN_SYNC 20", "yes")]);
}

#[test]
fn a_swap_of_which_half_was_not_heard() {
    let (mut rig, old, new) = (Rig::new(), kernel("U", 1), kernel("U", 2));
    rig.talk(old, &[(DISK, "device 7:2"), ("RESUME", "done"), ("FLUSH 3", "done")]);
    rig.talk(new, &[(DISK, "device 7:2")]);
    rig.kill();
    // PRESUSPEND and POSTSUSPEND of the old one found nobody.
    rig.restore();
    rig.talk(new, &[("RESUME", "done"), ("IN_SYNC 3", "no")]);
    rig.talk(old, &[("IN_SYNC 3", "failed 3"), ("DTR", "done")]);
    rig.restart();
    rig.talk(new, &[("IN_SYNC 3", "no")]);
    assert_eq!(rig.lives("U"), ["live"]);
}

#[test]
fn a_device_that_is_not_there_when_the_server_comes_back() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("RESUME", "done"), ("SET_REGION_SYNC 3 1", "done")]);
    let device = rig.devices.remove("/dev/log").unwrap();
    rig.restart();
    // It is asked again and again, and tried each time.
    rig.talk(mirror, &[("IN_SYNC 3", "failed 3"), (&again(DISK), "failed 3"), ("IN_SYNC 3", "failed 3")]);
    rig.devices.insert("/dev/log".to_owned(), device.clone());
    rig.talk(mirror, &[(&again(DISK), "done"), ("RESUME", "done"), ("IN_SYNC 3", "yes")]);
    // Of another block size it is not the same.
    rig.devices.get_mut("/dev/log").unwrap().block_size = 4096;
    rig.restart();
    rig.talk(mirror, &[("IN_SYNC 3", "failed 3")]);
    rig.devices.clear();
    rig.restart();
    rig.talk(mirror, &[("DTR", "done"), ("GET_SYNC_COUNT", "failed 3")]);
    assert_eq!((rig.lives("U").len(), rig.saves.len(), rig.open_stores()), (0, 0, 0));
}

#[test]
fn who_was_in_use_and_has_no_file_now_is_not_passed_over() {
    let (mut rig, old, new) = (Rig::new(), kernel("U", 1), kernel("U", 2));
    rig.talk(old, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    rig.talk(new, &[(CORE, "done")]);
    let device = rig.devices.remove("/dev/log").unwrap();
    rig.restart();
    rig.talk(new, &[("RESUME", "failed 16")]);
    rig.devices.insert("/dev/log".to_owned(), device);
    rig.talk(old, &[("IN_SYNC 3", "no")]);
    rig.talk(new, &[("RESUME", "failed 16")]);
    rig.talk(old, &[("POSTSUSPEND", "done")]);
    rig.talk(new, &[("RESUME", "done")]);
    assert_eq!(rig.lives("U"), ["suspended", "live"]);
}

#[test]
fn notes_that_make_no_sense() {
    let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
    rig.talk(mirror, &[(DISK, "device 7:2"), ("RESUME", "done")]);
    let (session, bytes) =
        rig.saves.first_key_value().map(|(session, bytes)| (*session, bytes.clone())).unwrap();
    let refused = |bytes: &[u8]| {
        let mut server = mirrord_log::server::LogServer::default();
        server.restore(session, bytes, &mut Default::default()).is_err() && server.logs().count() == 0
    };
    assert!(!refused(&bytes));
    for len in 0..bytes.len() {
        assert!(refused(&bytes[..len]), "{len} bytes of it");
    }
    for (at, byte) in [(0, 0), (8, 2), (12, 0xff), (24, 1), (26, 2), (28, 4), (30, 0), (30, 129), (160, b'x')]
    {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        assert!(refused(&bytes), "byte {at} is {byte}");
    }
}

/// What a mirror says and asks in use.
#[derive(Clone, Debug)]
enum Step {
    Say(&'static str, u64),
    Work,
    Fail(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let say = prop_oneof![
        4 => Just("MARK_REGION"),
        3 => Just("CLEAR_REGION"),
        5 => Just("FLUSH_ALL"),
        2 => Just("FLUSH"),
        2 => Just("SYNC"),
        1 => Just("GET_RESYNC_WORK"),
        1 => Just("PRESUSPEND"),
        1 => Just("POSTSUSPEND"),
        3 => Just("RESUME"),
    ];
    let step = prop_oneof![
        8 => (say, 0..41u64).prop_map(|(what, region)| Step::Say(what, region)),
        6 => Just(Step::Work),
        1 => any::<bool>().prop_map(Step::Fail),
    ];
    prop::collection::vec(step, 1..60)
}

/// What can be asked without changing anything.
fn answers(rig: &mut Rig, mirror: User) -> Vec<String> {
    let mut answers = vec![rig.ask(mirror, "GET_SYNC_COUNT"), rig.ask(mirror, "GET_REGION_SIZE")];
    for region in 0..41 {
        for request in ["IN_SYNC", "IS_CLEAN", "IS_REMOTE_RECOVERING"] {
            answers.push(rig.ask(mirror, &format!("{request} {region}")));
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// At every moment a server that is restored from the notes so far answers as the one that made them, and on disk
    /// every region is dirty that was marked before a FLUSH that is answered and not cleared since.
    #[test]
    fn a_kill_at_any_moment_loses_nothing(steps in steps(), is_disk in any::<bool>()) {
        let (mut rig, mirror) = (Rig::new(), kernel("U", 1));
        rig.ask(mirror, if is_disk { DISK } else { CORE });
        rig.ask(mirror, "RESUME");
        rig.lazy = true;
        let mut marked: BTreeSet<u64> = (0..41).collect();
        let mut flushes: Vec<(u32, BTreeSet<u64>)> = Vec::new();
        let mut durable: BTreeSet<u64> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Say(what, region) => {
                    let is_busy = ["resuming", "closing"].contains(&rig.lives("U")[0]);
                    if is_busy && matches!(what, "MARK_REGION" | "FLUSH" | "CLEAR_REGION") {
                        // It is held, and may be refused later.
                        continue;
                    }
                    let request = match what {
                        "FLUSH_ALL" => "FLUSH".to_owned(),
                        "SYNC" => format!("SET_REGION_SYNC {region} {}", region & 1),
                        "MARK_REGION" | "CLEAR_REGION" | "FLUSH" => format!("{what} {region}"),
                        _ => what.to_owned(),
                    };
                    let answer = rig.ask(mirror, &request);
                    let marks = matches!(what, "MARK_REGION" | "FLUSH") && (answer == "done" || answer == "-");
                    if marks {
                        marked.insert(region);
                    }
                    if what == "CLEAR_REGION" {
                        marked.remove(&region);
                        durable.remove(&region);
                        flushes.iter_mut().for_each(|(_, marks)| { marks.remove(&region); });
                    }
                    if what.starts_with("FLUSH") {
                        match answer.as_str() {
                            "-" => flushes.push((rig.last_seq(), marked.clone())),
                            "done" if is_disk && rig.lives("U") != ["suspended"] => durable.extend(&marked),
                            _ => {}
                        }
                    }
                }
                Step::Work => { rig.work(); }
                Step::Fail(is_broken) => {
                    rig.devices.get_mut("/dev/log").unwrap().broken = is_broken.then_some(mirrord_raid::Errno(5));
                }
            }
            for (seq, answer) in rig.hears_by_seq() {
                if let Some(at) = flushes.iter().position(|(flush, _)| *flush == seq) {
                    let (_, marks) = flushes.remove(at);
                    if answer == "done" {
                        durable.extend(marks);
                    }
                }
            }
            if is_disk {
                for &region in &durable {
                    let byte = rig.devices["/dev/log"].bytes[1024 + region as usize / 8];
                    prop_assert_eq!(byte >> (region % 8) & 1, 0, "region {} is clean on disk", region);
                }
            }
            let life = rig.lives("U");
            if life == ["live"] || life == ["suspending"] {
                let mut twin = rig.twin();
                prop_assert_eq!(twin.lives("U"), life);
                prop_assert_eq!(answers(&mut twin, mirror), answers(&mut rig, mirror));
            }
        }
    }
}
