//! What the kernel was told before the server died is so afterwards.

use super::{Bed, REGIONS, SIZE, dirty, finish, is_waiting, remove, status, until_in_sync, write, writer};
use crate::devices::dm;
use crate::rig::{sh, until};

/// Regions whose writes are under way when the server dies.
const MARKED: [u64; 4] = [0, 7, 8, REGIONS - 1];

/// Blocks of a region.
const BLOCKS: u64 = SIZE / REGIONS / 4096;

/// One leg stands still, so that writes stay between their mark and their end.
pub(crate) fn a_mark_outlives_the_server() {
    let bed = Bed::new();
    let slow = dm(&bed.rig, "slow", &format!("0 {} linear {} 0", SIZE / 512, bed.b));
    for log in [
        "mark core 1024 nosync".to_owned(),
        "mark integrated_flush core 1024 nosync".to_owned(),
        format!("mark disk {} 1024 nosync", bed.log),
        format!("mark integrated_flush disk {} 1024 nosync", bed.log),
    ] {
        println!("{log}");
        bed.serve();
        let mirror = super::dm_create("m", &bed.table(&log).replace(&bed.b, &slow));
        sh("dmsetup", &["suspend", "--nolockfs", "--noflush", "slow"]);
        let mut writers = MARKED.map(|region| writer(&mirror, region * BLOCKS));
        until("all are marked", || dirty(&bed.rig, "mark") == MARKED);
        bed.kill();
        if log.contains("disk") {
            // Data may be on a leg, so this must be on the log already.
            assert_eq!(dirty(&bed.rig, &bed.log), MARKED, "on the device");
        }
        bed.serve();
        assert_eq!(dirty(&bed.rig, "mark"), MARKED, "known to the next server");
        assert!(writers.iter_mut().all(is_waiting));
        sh("dmsetup", &["resume", "slow"]);
        writers.into_iter().for_each(finish);
        until("all are clean", || dirty(&bed.rig, "mark").is_empty());
        assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
        remove("m");
        bed.assert_same();
        bed.rig.ok(&["log", "stop"]);
        bed.reap();
    }
}

/// A server that is told to end, and the next one: whoever writes goes on, and no region is copied.
pub(crate) fn a_server_is_replaced() {
    let bed = Bed::new();
    bed.serve();
    let mirror = bed.create("m", &format!("old clustered-disk {} 1024 nosync", bed.log));
    bed.create_other("n", "core-old clustered-core 1024 nosync");
    for round in 0..3 {
        write(&mirror, 5 + round, 1, round as u8);
        write("/dev/mapper/n", 9 + round, 1, round as u8);
        if round == 1 {
            // The first one says that logs are in use.
            bed.signal("-TERM");
            write(&mirror, 6, 1, 6);
            bed.signal("-TERM");
        } else {
            bed.rig.ok(&["log", "stop", "--force"]);
        }
        bed.reap();
        let waits = writer(&mirror, 77);
        let other = writer("/dev/mapper/n", 78);
        bed.serve();
        finish(waits);
        finish(other);
        assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
        assert!(status("n").starts_with("64/64 1 AA "), "{}", status("n"));
    }
    until_in_sync("m");
    remove("m");
    remove("n");
    bed.assert_same();
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
}
