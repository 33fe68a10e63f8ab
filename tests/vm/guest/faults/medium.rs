//! Blocks of a disk that cannot be read: they are served from the other leg and written anew.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::blocks::{BLOCK, Blocks};
use super::{MIB, create, number, pause, same};
use crate::devices::{is_block, load, loop_leg};
use crate::rig::{Rig, sh, try_sh, until};

const SIZE: u64 = 16 * MIB;
const BLOCKS: Blocks = Blocks { count: SIZE / BLOCK as u64 };
const OPTS: &str = "/sys/bus/pseudo/drivers/scsi_debug/opts";

pub(crate) fn a_bad_block_is_written_anew() {
    let rig = Rig::new();
    // One of those that the only step writes.
    let bad = BLOCKS.one_of(1, 0);
    let sectors = BLOCK as u64 / 512;
    let place = format!("medium_error_start={}", bad * sectors);
    let size = format!("dev_size_mb={}", SIZE / MIB + 1);
    load(&["ublk_drv", "sd_mod"]);
    sh("modprobe", &["scsi_debug", &size, &place, &format!("medium_error_count={sectors}")]);
    let disk = || {
        let names = fs::read_dir("/sys/block").unwrap().flatten();
        let mut names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.find(|name| name.starts_with("sd")).map(|name| format!("/dev/{name}"))
    };
    until("there is a disk", || disk().is_some_and(|disk| is_block(&disk)));
    let (a, b) = (loop_leg(&rig, "a", SIZE + MIB), disk().unwrap());
    let volume = create(&rig, [&a, &b], SIZE, MIB);
    BLOCKS.write(&volume, 1);

    // What is read there later must have been written anew.
    let leg = File::options().read(true).write(true).open(&b).unwrap();
    leg.write_all_at(&[0xbd; BLOCK], bad * BLOCK as u64).unwrap();
    leg.sync_data().unwrap();
    fs::write(OPTS, "2").unwrap();
    let mut reads = 0;
    while number(&rig.status(), "/legs/1/repaired_reads") == 0 {
        BLOCKS.check_one(&volume, 1, 0);
        reads += 1;
        assert!(reads < 100, "the bad block was never read, or never repaired: {}", rig.status());
        pause(50);
    }
    let status = rig.status();
    println!("after {reads} reads: {}", status["legs"][1]);
    assert!(number(&status, "/legs/1/read_errors") > 0, "{status}");
    assert_eq!((&status["state"], &status["legs"][1]["state"]), (&"in_sync".into(), &"in_sync".into()));
    assert_eq!(number(&status, "/io/errors"), 0);
    let from = format!("if={b}");
    let read = ["of=/dev/null", "bs=4k", "count=1", "iflag=direct", &from, &format!("skip={bad}")];
    let cleared = try_sh("dd", &read).status.success();
    println!("scsi_debug {} a bad block that is written", if cleared { "mends" } else { "does not mend" });

    // The drive has found another place for it.
    fs::write(OPTS, "0").unwrap();
    sh("blockdev", &["--flushbufs", &b]);
    BLOCKS.check_one(&b, 1, 0);
    BLOCKS.check(&volume, 1);
    drop(leg);
    rig.ok(&["stop", "v"]);
    same(&a, &b, SIZE);
}
