//! Resyncs: who writes meanwhile, what a swap of tables copies again, what a leg missed.

use super::{
    Bed, REGIONS, SIZE, dirty, dm_create, finish, in_sync, remove, sectors_written, status, until_in_sync,
    write, writer,
};
use crate::devices::{dm, load};
use crate::rig::{sh, until};

/// Sectors, and blocks of 4 KiB, of a region.
const REGION: u64 = SIZE / REGIONS / 512;
const BLOCKS: u64 = REGION / 8;

/// A second leg that takes its time over each write: 150 ms.
fn slow_leg(bed: &Bed) -> String {
    load(&["dm-delay"]);
    let (sectors, b) = (SIZE / 512, &bed.b);
    dm(&bed.rig, "slow", &format!("0 {sectors} delay {b} 0 0 {b} 0 150"))
}

/// Writes to regions whose turn comes late are done long before that.
pub(crate) fn writers_do_not_wait() {
    let bed = Bed::new();
    let slow = slow_leg(&bed);
    bed.serve();
    for log in ["late core 1024 sync".to_owned(), format!("late disk {} 1024 sync", bed.log)] {
        bed.differ();
        let mirror = dm_create("m", &bed.table(&log).replace(&bed.b, &slow));
        for n in 0..16 {
            write(&mirror, (REGIONS - 1 - n) * BLOCKS + n, 1, n as u8);
        }
        let count = in_sync("m");
        println!("{count} regions were in sync when 16 writes were done");
        assert!(count < REGIONS - 16, "writes waited for the resync");
        until_in_sync("m");
        remove("m");
        bed.assert_same();
    }
}

/// What was copied before a swap is not copied again after it.
pub(crate) fn a_swap_copies_nothing_twice() {
    let bed = Bed::new();
    bed.differ();
    let slow = slow_leg(&bed);
    bed.serve();
    let log = format!("swap disk {} 1024", bed.log);
    let table = |log: &str| bed.table(log).replace(&bed.b, &slow);
    let before = sectors_written(&bed.b);
    dm_create("m", &table(&format!("{log} sync")));
    for swap in 1..=3 {
        until("some are copied", || in_sync("m") >= 12 * swap);
        sh("dmsetup", &["load", "m", "--table", &table(&log)]);
        if swap == 2 {
            bed.kill();
            bed.serve();
        }
        let had = in_sync("m");
        sh("dmsetup", &["suspend", "m"]);
        sh("dmsetup", &["resume", "m"]);
        let has = in_sync("m");
        println!("{had} before swap {swap}, {has} after it");
        assert!((had..REGIONS).contains(&has), "{had} before, {has} after");
    }
    until_in_sync("m");
    remove("m");
    bed.assert_same();
    let copied = (sectors_written(&bed.b) - before) / REGION;
    assert!((REGIONS..=REGIONS + 3).contains(&copied), "{copied} regions copied");
}

/// A leg fails under writes: those regions, and no others, are copied to it when it is back.
pub(crate) fn what_a_leg_missed_is_copied_to_it() {
    let bed = Bed::new();
    let linear = format!("linear {} 0", bed.b);
    let leg = dm(&bed.rig, "leg", &format!("0 {} {linear}", SIZE / 512));
    for flush in ["", "integrated_flush "] {
        bed.serve();
        let log = format!("missed {flush}disk {} 1024", bed.log);
        let table = bed.table(&log).replace(&bed.b, &leg);
        let first = bed.table(&format!("{log} nosync")).replace(&bed.b, &leg);
        let mirror = dm_create("m", &first);
        write(&mirror, 3, 1, 3);
        bed.become_of("leg", "error");
        let missed = [5, 31, 32].map(|region| writer(&mirror, region * BLOCKS));
        until("the leg is failed", || status("m").contains(" AD "));
        until("its regions are dirty", || dirty(&bed.rig, &bed.log) == [5, 31, 32]);
        assert_eq!(in_sync("m"), REGIONS - 3, "{}", status("m"));
        // A server that dies now keeps that in mind.
        bed.kill();
        bed.serve();
        assert_eq!(in_sync("m"), REGIONS - 3, "{}", status("m"));
        bed.become_of("leg", &linear);
        let before = sectors_written(&bed.b);
        sh("dmsetup", &["load", "m", "--table", &table]);
        sh("dmsetup", &["suspend", "--noflush", "m"]);
        sh("dmsetup", &["resume", "m"]);
        missed.into_iter().for_each(finish);
        until_in_sync("m");
        let written = sectors_written(&bed.b) - before;
        // Three regions, and the three writes that waited, should they have come later.
        assert!((3 * REGION..=3 * REGION + 24).contains(&written), "{written} sectors written");
        remove("m");
        bed.assert_same();
        assert!(dirty(&bed.rig, &bed.log).is_empty());
        bed.rig.ok(&["log", "stop"]);
        bed.reap();
    }
}
