//! From creation to removal: each line of status and table as the kernel's users know them.

use super::{Bed, REGIONS, SIZE, dirty, number, remove, sectors_written, status, until_in_sync, write};
use crate::devices::write_and_verify;
use crate::rig::sh;

/// Sectors of a region.
const REGION: u64 = SIZE / REGIONS / 512;

pub(crate) fn a_core_log() {
    let bed = Bed::new();
    bed.differ();
    bed.serve();
    let mirror = bed.create("m", "core-1 clustered-core 1024");
    until_in_sync("m");
    assert_eq!(status("m"), "64/64 1 AA 1 clustered-core");
    let table = sh("dmsetup", &["table", "m"]);
    assert!(table.contains("mirror userspace 3 core-1 clustered-core 1024 2 "), "{table}");
    bed.assert_same();
    write_and_verify(&mirror, SIZE / 4);
    bed.assert_same();

    // A suspend forgets nothing: no region is copied again.
    let before = sectors_written(&bed.b);
    sh("dmsetup", &["suspend", "m"]);
    assert_eq!(status("m"), "64/64 1 AA 1 clustered-core", "suspended");
    sh("dmsetup", &["resume", "m"]);
    assert_eq!(status("m"), "64/64 1 AA 1 clustered-core");
    write(&mirror, 7, 1, 7);
    assert_eq!(sectors_written(&bed.b) - before, 8);

    // Another table with the same name: it answers for itself, and takes over when it is resumed.
    sh("dmsetup", &["load", "m", "--table", &bed.table("core-1 clustered-core 1024")]);
    let inactive = sh("dmsetup", &["status", "--inactive", "m"]);
    assert!(inactive.contains(" 0/64 ") && inactive.trim().ends_with("1 clustered-core"), "{inactive}");
    assert_eq!(status("m"), "64/64 1 AA 1 clustered-core");
    let logs = bed.rig.ok(&["log", "list", "--json"]);
    assert_eq!((logs.matches("\"live\"").count(), logs.matches("\"pending\"").count()), (1, 1), "{logs}");
    write(&mirror, 8, 1, 8);
    sh("dmsetup", &["resume", "m"]);
    until_in_sync("m");
    // Loaded and dropped.
    sh("dmsetup", &["load", "m", "--table", &bed.table("core-1 clustered-core 1024")]);
    sh("dmsetup", &["clear", "m"]);
    assert_eq!(bed.rig.ok(&["log", "list", "--json"]).matches("\"uuid\"").count(), 1);
    bed.assert_same();
    bed.rig.refused(&["log", "stop"], &["1 of its logs are in use", "--force"]);
    remove("m");

    // Equal, says whoever makes it.
    let before = sectors_written(&bed.b);
    bed.create("m", "core-1 clustered-core 1024 nosync");
    assert_eq!((status("m").as_str(), sectors_written(&bed.b)), ("64/64 1 AA 1 clustered-core", before));
    remove("m");
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
    bed.rig.ok(&["log", "stop"]);
}

pub(crate) fn a_log_on_disk() {
    let bed = Bed::new();
    bed.differ();
    bed.serve();
    let log = format!("disk-1 clustered-disk {} 1024", bed.log);
    let ours = format!("64/64 1 AA 3 clustered-disk {} A", number(&bed.log));
    for flush in ["", "integrated_flush "] {
        let log = log.replace("disk-1 ", &format!("disk-1 {flush}"));
        let mirror = bed.create("m", &format!("{log} sync"));
        until_in_sync("m");
        assert_eq!(status("m"), ours, "a resync of all was asked for");
        write_and_verify(&mirror, SIZE / 4);
        sh("dmsetup", &["suspend", "m"]);
        assert_eq!(status("m"), ours, "suspended");
        sh("dmsetup", &["resume", "m"]);
        assert_eq!(status("m"), ours);
        remove("m");
        bed.assert_same();
        assert!(dirty(&bed.rig, &bed.log).is_empty());
        // What is on disk is trusted: nothing is copied.
        let before = sectors_written(&bed.b);
        bed.create("m", &log);
        assert_eq!((status("m"), sectors_written(&bed.b)), (ours.clone(), before));
        remove("m");
    }

    // The kernel's own log goes on with it, and the other way round.
    let kernel = bed.table(&log).replace("userspace 4 disk-1 clustered-disk", "disk 2");
    let image = |count: &str| sh("sha256sum", &[&bed.log[..]]) + count;
    let (image, before) = (image(""), sectors_written(&bed.b));
    super::dm_create("m", &kernel);
    until_in_sync("m");
    remove("m");
    assert_eq!(sectors_written(&bed.b), before, "the kernel copies nothing either");
    assert_eq!(sh("sha256sum", &[&bed.log]), image, "it writes the same bytes");
    bed.create("m", &log);
    assert_eq!((status("m"), sectors_written(&bed.b)), (ours, before));
    remove("m");

    // Its mirror is gone with regions dirty: those are copied, and no others.
    mark_by_hand(&bed.log, &[3, 4, 63]);
    assert_eq!(dirty(&bed.rig, &bed.log), [3, 4, 63]);
    let before = sectors_written(&bed.b);
    bed.create("m", &log);
    until_in_sync("m");
    assert_eq!(sectors_written(&bed.b) - before, 3 * REGION);
    remove("m");
    assert!(dirty(&bed.rig, &bed.log).is_empty());
    bed.rig.ok(&["log", "stop"]);
}

/// Makes regions of a log dirty, as a crash would leave them.
fn mark_by_hand(log: &str, regions: &[u64]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(log).unwrap();
    for region in regions {
        let (at, mut byte) = (1024 + region / 8, [0]);
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0] &= !(1 << (region % 8));
        file.write_all_at(&byte, at).unwrap();
    }
    file.sync_all().unwrap();
}
