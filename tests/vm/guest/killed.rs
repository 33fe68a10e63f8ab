//! The whole machine goes away in the middle of writing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::cases::{boot, kill_me_in};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 8000;

/// Block 0 says how many of the blocks after it were flushed.
pub(crate) fn what_was_flushed_survives_the_machine() {
    let disk = File::options().read(true).write(true).open("/dev/vda").unwrap();
    let block = |at: u64| {
        let mut block = [0; BLOCK];
        disk.read_exact_at(&mut block, at * BLOCK as u64).unwrap();
        block
    };
    let flushed = u64::from_le_bytes(block(0)[..8].try_into().unwrap());
    println!("boot {}: {flushed} blocks were flushed", boot());
    assert!(flushed > 0 || boot() == 0, "the machine was killed before anything was flushed");
    for at in 1..=flushed {
        assert_eq!(block(at), [at as u8; BLOCK], "flushed block {at}");
    }
    if boot() == 2 {
        return;
    }
    kill_me_in(1000);
    for at in flushed + 1.. {
        assert!(at < BLOCKS, "nobody killed this machine");
        disk.write_all_at(&[at as u8; BLOCK], at * BLOCK as u64).unwrap();
        disk.sync_all().unwrap();
        disk.write_all_at(&at.to_le_bytes(), 0).unwrap();
        disk.sync_all().unwrap();
    }
}
