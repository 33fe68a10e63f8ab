//! A server that knows less than the kernel believes: its notes are gone, or mirrors went while there was none.

use super::{
    Bed, SIZE, dirty, finish, in_sync, is_waiting, remove, sectors_written, status, until_in_sync, write,
    writer,
};
use crate::devices::dm;
use crate::rig::{sh, until};

/// Sectors of a region.
const REGION: u64 = 1024;

/// Nothing is taken for in sync that may not be, and the next resume copies that, and no more.
pub(crate) fn without_notes_nothing_is_taken_for_in_sync() {
    let bed = Bed::new();
    let slow = dm(&bed.rig, "slow", &format!("0 {} linear {} 0", SIZE / 512, bed.b));

    // On disk: one region is being written when the server dies, the others are clean.
    for flush in ["", "integrated_flush "] {
        bed.serve();
        let log = format!("lost {flush}disk {} 1024 nosync", bed.log);
        let mirror = super::dm_create("m", &bed.table(&log).replace(&bed.b, &slow));
        write(&mirror, 1, 1, 1);
        sh("dmsetup", &["suspend", "--nolockfs", "--noflush", "slow"]);
        let mut under_way = writer(&mirror, 20 * 128);
        until("it is marked", || dirty(&bed.rig, "lost") == [20]);
        bed.kill();
        bed.forget_notes();
        bed.serve();
        assert!(is_waiting(&mut under_way));
        sh("dmsetup", &["resume", "slow"]);
        finish(under_way);
        write(&mirror, 30 * 128, 1, 30);
        write(&mirror, 20 * 128 + 1, 1, 20);
        // What was dirty on disk is out of sync now, and the kernel does not ask for such by itself.
        println!("disk: {}", status("m"));
        assert!((63..=64).contains(&in_sync("m")), "{}", status("m"));
        let before = sectors_written(&bed.b);
        sh("dmsetup", &["suspend", "m"]);
        sh("dmsetup", &["resume", "m"]);
        until_in_sync("m");
        assert!(sectors_written(&bed.b) - before <= REGION, "more was copied than was dirty");
        remove("m");
        bed.assert_same();
        assert!(dirty(&bed.rig, &bed.log).is_empty());
        bed.rig.ok(&["log", "stop"]);
        bed.reap();
    }

    // In memory: nothing is known.
    bed.serve();
    let mirror = bed.create("m", "lost core 1024 nosync");
    write(&mirror, 1, 1, 1);
    bed.kill();
    bed.forget_notes();
    bed.serve();
    write(&mirror, 40 * 128, 1, 40);
    println!("core: {}", status("m"));
    let count = in_sync("m");
    if count == 64 {
        bed.assert_same();
    }
    sh("dmsetup", &["suspend", "m"]);
    sh("dmsetup", &["resume", "m"]);
    until_in_sync("m");
    remove("m");
    bed.assert_same();
}

/// Mirrors were removed while there was no server: what it kept for them does not stand in their own way, and can be
/// forgotten.
pub(crate) fn mirrors_that_went_meanwhile() {
    let bed = Bed::new();
    bed.serve();
    let log = format!("gone disk {} 1024", bed.log);
    bed.create("m", &format!("{log} nosync"));
    bed.create_other("n", "gone-core core 1024 nosync");
    write("/dev/mapper/m", 1, 1, 1);
    write("/dev/mapper/n", 1, 1, 1);
    until("all is clean", || dirty(&bed.rig, "gone").is_empty() && dirty(&bed.rig, "gone-core").is_empty());
    bed.kill();
    remove("m");
    remove("n");
    bed.serve();

    // The same ones again.
    let before = sectors_written(&bed.b);
    let mirror = bed.create("m", &log);
    assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
    assert_eq!(sectors_written(&bed.b), before, "nothing was dirty");
    write(&mirror, 2, 1, 2);
    bed.create_other("o", "gone-core core 1024 nosync");
    write("/dev/mapper/o", 2, 1, 2);
    remove("o");
    bed.kill();
    remove("m");
    bed.serve();

    // Another one on the same device: nobody can tell the server that the first is gone but who removed it.
    let next = log.replace("gone ", "next ");
    bed.refused(&next);
    // Of each of its tables, if there were several.
    while bed.rig.ok(&["log", "list", "--json"]).contains("\"uuid\": \"gone\"") {
        bed.rig.ok(&["log", "forget", "gone", "--force"]);
    }
    let mirror = bed.create("m", &next);
    write(&mirror, 3, 1, 3);
    remove("m");
    bed.assert_same();
    assert!(dirty(&bed.rig, &bed.log).is_empty());
}
