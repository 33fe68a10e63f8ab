//! Any bytes as a disk log: what is resumed from them is what is then on disk.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mirrord_log::{DirtyLog, DiskLog, SyncMode};

fuzz_target!(|bytes: &[u8]| {
    let [regions, block, mode, image @ ..] = bytes else { return };
    let regions = u32::from(*regions) * 67 + 1;
    let block = [512, 1024, 4096, 65536][usize::from(block % 4)];
    let mode = [SyncMode::Default, SyncMode::Sync, SyncMode::NoSync][usize::from(mode % 3)];
    let mut log = DiskLog::new(512, regions, block, mode);
    let flush = log.resume(&[Some(image)]);
    let mut device = vec![0; log.io_size() as usize];
    for write in flush.writes {
        device[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let mut twin = DiskLog::new(512, regions, block, SyncMode::Default);
    let _ = twin.resume(&[Some(&device)]);
    assert!(twin.dirty().eq(log.dirty()));
    assert_eq!(twin.sync_count(), log.sync_count());
    assert_eq!(twin.owner(), log.owner());
    assert!(log.flush().is_empty());
});
