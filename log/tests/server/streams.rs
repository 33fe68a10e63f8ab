//! Lives of volumes' logs: connections that come and go, who owns a log, and who is refused.

use mirrord_log::server::ServerConfig;

use crate::rig::{Rig, kernel, volume};

const CTR: &str = "CTR 41000 disk v 1024";
const AGAIN: &str = "CTR_AGAIN 41000 disk v 1024";
const INSIST: &str = "CTR 41000 disk v 1024 take_over";

#[test]
fn a_volume_makes_its_log_and_goes() {
    let (mut rig, life) = (Rig::new(), volume(1, "U", 1));
    rig.talk(
        life,
        &[(CTR, "done"), ("RESUME", "done"), ("GET_RESYNC_WORK", "work 0"), ("GET_RESYNC_WORK", "work 1")],
    );
    rig.talk(life, &[("SET_REGION_SYNC 0 1", "done"), ("CLEAR_REGION 0", "done"), ("FLUSH 5", "done")]);
    assert!(rig.saves.is_empty());
    rig.talk(
        life,
        &[
            ("POSTSUSPEND", "done"),
            ("STATUS_INFO", "3 disk v A"),
            ("IN_SYNC 0", "failed 22"),
            ("DTR", "done"),
        ],
    );
    // Somewhere else, at once.
    let next = volume(2, "U", 2);
    rig.talk(next, &[(CTR, "done"), ("RESUME", "done"), ("IN_SYNC 0", "yes"), ("GET_SYNC_COUNT", "count 1")]);
}

#[test]
fn a_connection_that_is_lost_and_another_in_its_place() {
    for said_goodbye in [true, false] {
        let (mut rig, old, new) = (Rig::new(), volume(1, "U", 1), volume(2, "U", 1));
        rig.talk(
            old,
            &[(CTR, "done"), ("RESUME", "done"), ("FLUSH 5", "done"), ("GET_RESYNC_WORK", "work 0")],
        );
        rig.talk(old, &[("CLEAR_REGION 1", "done")]);
        if said_goodbye {
            rig.gone(1);
            rig.tick(29);
        }
        rig.talk(
            new,
            &[("IN_SYNC 0", "failed 3"), (AGAIN, "done"), ("RESUME", "done"), ("IS_CLEAN 1", "yes")],
        );
        // It reads the log anew.
        rig.talk(new, &[("GET_RESYNC_WORK", "work 0"), ("FLUSH", "done")]);
        rig.talk(old, &[("IN_SYNC 0", "failed 3"), ("FLUSH 3", "failed 3"), ("DTR", "failed 3")]);
        rig.gone(1);
        rig.tick(100);
        rig.talk(new, &[("IS_CLEAN 1", "yes")]);
    }
}

#[test]
fn what_the_old_connection_waits_for_is_not_answered() {
    let (mut rig, old, new) = (Rig::new(), volume(1, "U", 1), volume(2, "U", 1));
    rig.talk(old, &[(CTR, "done"), ("RESUME", "done"), ("CLEAR_REGION 1", "done")]);
    rig.lazy = true;
    rig.talk(old, &[("FLUSH", "-"), ("FLUSH", "-")]);
    rig.talk(new, &[(AGAIN, "done"), ("RESUME", "done"), ("FLUSH", "-")]);
    rig.work_all();
    assert_eq!(rig.hears(), ["FLUSH done"]);
}

#[test]
fn a_log_is_kept_for_whoever_is_gone() {
    let (mut rig, gone, other) = (Rig::new(), volume(1, "U", 1), volume(2, "U", 2));
    rig.tick(100);
    rig.talk(gone, &[(CTR, "done"), ("RESUME", "done"), ("FLUSH 5", "done")]);
    rig.talk(other, &[(CTR, "done"), ("RESUME", "failed 16")]);
    rig.gone(1);
    rig.tick(29);
    rig.talk(other, &[("RESUME", "failed 16")]);
    rig.tick(1);
    rig.talk(other, &[("RESUME", "done"), ("IN_SYNC 5", "no")]);
    // Too late, for ever.
    let late = volume(3, "U", 1);
    rig.talk(
        late,
        &[("IN_SYNC 5", "failed 3"), (AGAIN, "done"), ("RESUME", "failed 116"), ("RESUME", "failed 116")],
    );
    rig.talk(other, &[("DTR", "done")]);
    rig.talk(late, &[("RESUME", "failed 116")]);
    rig.restart();
    rig.tick(100);
    rig.talk(late, &[(AGAIN, "done"), ("RESUME", "failed 116")]);
}

#[test]
fn who_insists_takes_over() {
    let (mut rig, one, two) = (Rig::new(), volume(1, "U", 1), volume(2, "U", 2));
    rig.talk(one, &[(INSIST, "done"), ("RESUME", "done"), ("FLUSH 5", "done")]);
    rig.talk(two, &[(INSIST, "done"), ("RESUME", "done"), ("IN_SYNC 5", "no")]);
    let again = INSIST.replace("CTR", "CTR_AGAIN");
    // The first one insisted too, but that was before.
    rig.talk(one, &[("FLUSH 6", "failed 3"), (&again, "done"), ("RESUME", "failed 116")]);
    rig.talk(two, &[("FLUSH 6", "done")]);
    assert_eq!(rig.lives("U").iter().filter(|life| **life == "live").count(), 1);
}

#[test]
fn whose_a_log_is_outlives_the_server() {
    let (mut rig, owner, other) = (Rig::new(), volume(1, "U", 1), volume(2, "U", 2));
    rig.talk(owner, &[(CTR, "done"), ("RESUME", "done"), ("FLUSH 5", "done")]);
    rig.restart();
    assert_eq!(rig.lives("U").len(), 0);
    // The server does not know yet whether the owner is about to come back.
    rig.talk(other, &[(CTR, "done"), ("RESUME", "failed 16"), ("RESUME", "failed 16")]);
    let owner = volume(3, "U", 1);
    rig.talk(owner, &[("FLUSH", "failed 3"), (AGAIN, "done"), ("RESUME", "done"), ("IN_SYNC 5", "no")]);
    rig.talk(other, &[("RESUME", "failed 16")]);
    rig.restart();
    rig.tick(30);
    rig.talk(other, &[(CTR, "done"), ("RESUME", "done")]);
    rig.talk(owner, &[(AGAIN, "done"), ("RESUME", "failed 116")]);
    // One that said that it does not need it any more need not be waited for.
    rig.talk(other, &[("POSTSUSPEND", "done")]);
    rig.restart();
    let next = volume(4, "U", 4);
    rig.talk(next, &[(CTR, "done"), ("RESUME", "done")]);
    // Nor need anybody who insists wait.
    rig.restart();
    rig.talk(volume(5, "U", 5), &[(INSIST, "done"), ("RESUME", "done")]);
}

#[test]
fn nosync_is_not_said_again_by_who_comes_back() {
    let (mut rig, life) = (Rig::new(), volume(1, "U", 1));
    rig.talk(life, &[(&format!("{CTR} nosync"), "done"), ("RESUME", "done"), ("FLUSH 5", "done")]);
    rig.restart();
    rig.talk(
        life,
        &[
            (&format!("{AGAIN} nosync"), "done"),
            ("RESUME", "done"),
            ("IN_SYNC 5", "no"),
            ("IN_SYNC 6", "yes"),
        ],
    );
}

#[test]
fn gone_before_it_was_resumed() {
    let mut rig = Rig::new();
    rig.talk(volume(1, "U", 1), &[(CTR, "done")]);
    rig.gone(1);
    assert_eq!((rig.lives("U").len(), rig.open_stores()), (0, 0));
    rig.talk(volume(2, "U", 2), &[(CTR, "done"), ("RESUME", "done"), ("POSTSUSPEND", "done")]);
    rig.gone(2);
    assert_eq!((rig.lives("U").len(), rig.open_stores()), (0, 0));
}

#[test]
fn the_kernels_logs_and_those_of_volumes_do_not_know_each_other() {
    let (mut rig, mirror, life) = (Rig::new(), kernel("U", 1), volume(1, "U", 1));
    rig.talk(life, &[("CTR 8 core 2", "done"), ("RESUME", "done"), ("SET_REGION_SYNC 1 1", "done")]);
    rig.talk(
        mirror,
        &[("IN_SYNC 1", "failed 3"), ("CTR 8 core 2", "done"), ("RESUME", "done"), ("IN_SYNC 1", "no")],
    );
    rig.talk(life, &[("IN_SYNC 1", "yes"), ("DTR", "done")]);
    rig.talk(mirror, &[("IN_SYNC 1", "no")]);
    rig.talk(volume(2, "U", 1), &[("IN_SYNC 1", "failed 3"), ("DTR", "done")]);
    rig.talk(mirror, &[("IN_SYNC 1", "no"), ("DTR", "done")]);
    // Nor do they share a file.
    rig.talk(mirror, &[("CTR 8 disk /dev/log 2", "device 7:2")]);
    rig.talk(life, &[("CTR 8 disk /dev/log 2", "failed 16")]);
}

#[test]
fn a_log_of_which_not_all_can_be_written_is_not_in_use() {
    let (mut rig, life) = (Rig::new(), volume(1, "U", 1));
    rig.talk(life, &[(CTR, "done")]);
    rig.devices.get_mut("v").unwrap().broken = Some(mirrord_raid::Errno(5));
    rig.talk(life, &[("RESUME", "failed 5"), ("IN_SYNC 0", "failed 22")]);
    assert_eq!(rig.lives("U"), ["pending"]);
    rig.devices.get_mut("v").unwrap().broken = None;
    rig.talk(life, &[("RESUME", "done"), ("IN_SYNC 0", "no")]);
}

#[test]
fn no_lease() {
    let mut rig = Rig::with(ServerConfig { lease: 0, ..ServerConfig::default() });
    rig.talk(volume(1, "U", 1), &[(CTR, "done"), ("RESUME", "done")]);
    rig.talk(volume(2, "U", 2), &[(CTR, "done"), ("RESUME", "failed 16")]);
    rig.gone(1);
    rig.talk(volume(2, "U", 2), &[("RESUME", "done")]);
}
