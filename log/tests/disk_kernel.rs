//! The disk log against images that the kernel wrote (vectors/*.bin: the first 8 KiB of the log
//! device of a dm-mirror with 41, once 45, regions after the step that the name tells).
//!
//! Each is read, and reached by replaying its step, byte for byte. The kernel works on while it is
//! imaged: two regions were already recovered in "1-after-resume", and the mark of region 3 already
//! cleared in "3-after-write-region3".

use mirrord_log::{DISK_VERSION, DirtyLog, DiskLog, Flush, ResumeNote, SyncMode};
use mirrord_raid::Region;

const REGION_SIZE: u64 = 1024 * 512;

fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/vectors/kernel-{name}.bin", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

/// A log device and the log on it.
struct Machine {
    device: Vec<u8>,
    log: DiskLog,
}

impl Machine {
    fn resume(device: Vec<u8>, regions: u32, block_size: u32, mode: SyncMode) -> Machine {
        let log = DiskLog::new(REGION_SIZE, regions, block_size, mode);
        let mut machine = Machine { device, log };
        let flush = machine.log.resume(&[Some(&machine.device)]);
        machine.apply(flush);
        machine
    }

    fn apply(&mut self, flush: Flush) {
        for write in flush.writes {
            let (from, block) = (write.offset as usize, self.log.block_size() as usize);
            assert_eq!((from % block, write.bytes.len() % block), (0, 0), "not whole blocks");
            assert!(write.offset + write.bytes.len() as u64 <= self.log.io_size());
            self.device[from..][..write.bytes.len()].copy_from_slice(&write.bytes);
        }
    }

    fn flush(&mut self) {
        let flush = self.log.flush();
        self.apply(flush);
    }

    /// Recovers up to `most` regions as dm-mirror does.
    fn recover(&mut self, most: usize) {
        for _ in 0..most {
            let Some(region) = self.log.get_resync_work() else { break };
            self.log.clear(region);
            self.log.set_region_sync(region, true);
        }
        self.flush();
    }

    fn is(&self, name: &str) {
        assert!(self.device == vector(name), "{name}: {:02x?}", &self.device[1024..1040]);
    }
}

#[test]
fn every_image_is_read_right() {
    for (name, regions, clean) in [
        ("disk-1-after-resume", 41, 2),
        ("disk-2-in-sync", 41, 41),
        ("disk-3-after-write-region3", 41, 41),
        ("disk-4-idle", 41, 41),
        ("disk-5-suspended", 41, 41),
        ("disk-6-removed", 41, 41),
        ("grow-45-just-after-resume", 45, 45),
        ("nosync-after-resume", 41, 41),
        ("v1-after", 41, 41),
    ] {
        for block_size in [512, 4096] {
            let machine = Machine::resume(vector(name), regions, block_size, SyncMode::Default);
            let log = &machine.log;
            assert_eq!(log.io_size(), if block_size == 512 { 1536 } else { 4096 });
            assert_eq!(log.note(), ResumeNote::Trusted, "{name}");
            assert_eq!(log.dirty().collect::<Vec<_>>(), (clean..regions).map(Region).collect::<Vec<_>>());
            assert_eq!(log.sync_count(), u64::from(clean));
            machine.is(name);
        }
    }
}

#[test]
fn the_life_of_a_log_is_written_as_the_kernel_does() {
    for block_size in [512, 4096] {
        let mut machine = Machine::resume(vec![0; 8192], 41, block_size, SyncMode::Default);
        assert_eq!(machine.log.note(), ResumeNote::NoLog);
        machine.recover(2);
        machine.is("disk-1-after-resume");
        machine.recover(41);
        assert_eq!(machine.log.sync_count(), 41);
        machine.is("disk-2-in-sync");
        machine.log.mark(Region(3));
        machine.flush();
        assert_eq!(machine.device[1024], 0xf7);
        machine.log.clear(Region(3));
        machine.flush();
        machine.is("disk-3-after-write-region3");
        machine.flush();
        machine.is("disk-4-idle");
        let last = machine.log.suspend();
        assert!(last.is_empty());
        machine.is("disk-5-suspended");
        machine.is("disk-6-removed");

        let mut machine = Machine::resume(machine.device, 45, block_size, SyncMode::Default);
        assert_eq!(machine.log.note(), ResumeNote::Grown { from: 41 });
        assert_eq!(machine.log.dirty().map(|region| region.0).collect::<Vec<_>>(), [41, 42, 43, 44]);
        machine.recover(4);
        machine.is("grow-45-just-after-resume");
    }
}

#[test]
fn nosync_and_sync_do_not_look() {
    for start in [vec![0; 8192], vector("disk-1-after-resume")] {
        let machine = Machine::resume(start, 41, 512, SyncMode::NoSync);
        assert_eq!((machine.log.note(), machine.log.dirty_count()), (ResumeNote::Ignored, 0));
        machine.is("nosync-after-resume");
    }
    let mut machine = Machine::resume(vector("disk-2-in-sync"), 41, 512, SyncMode::Sync);
    assert_eq!((machine.log.note(), machine.log.dirty_count()), (ResumeNote::Ignored, 41));
    assert_eq!(machine.device[1024..1030], [0; 6]);
    machine.recover(41);
    machine.is("disk-2-in-sync");
}

#[test]
fn nosync_counts_once() {
    let mut machine = Machine::resume(vec![0; 8192], 41, 512, SyncMode::NoSync);
    machine.log.mark(Region(7));
    machine.flush();
    let _ = machine.log.resume(&[Some(&machine.device)]);
    assert_eq!(machine.log.dirty().collect::<Vec<_>>(), [Region(7)]);
}

#[test]
fn version_1_is_taken_over() {
    let mut device = vector("disk-2-in-sync");
    device[4] = 1;
    let machine = Machine::resume(device, 41, 512, SyncMode::Default);
    assert_eq!((machine.log.note(), machine.log.dirty_count()), (ResumeNote::Trusted, 0));
    machine.is("v1-after");
}

#[test]
fn what_is_no_log_is_dirty() {
    let good = vector("disk-2-in-sync");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (image, note) in [
        (Some(with(0, 0x73)), ResumeNote::NoLog),
        (Some(Vec::new()), ResumeNote::NoLog),
        (Some(good[..15].to_vec()), ResumeNote::NoLog),
        (Some(with(4, 0)), ResumeNote::UnknownVersion { version: 0 }),
        (Some(with(4, 3)), ResumeNote::UnknownVersion { version: 3 }),
        (Some(good[..1535].to_vec()), ResumeNote::TooShort { len: 1535, need: 1536 }),
        (None, ResumeNote::Unreadable),
    ] {
        let mut log = DiskLog::new(REGION_SIZE, 41, 512, SyncMode::Default);
        let flush = log.resume(&[image.as_deref()]);
        assert_eq!((log.note(), log.dirty_count(), log.sync_count()), (note, 41, 0));
        let header =
            [&0x4d69_5272u32.to_le_bytes()[..], &DISK_VERSION.to_le_bytes(), &41u64.to_le_bytes()].concat();
        assert_eq!(flush.writes[0].bytes[..16], header);
        assert_eq!(flush.writes[0].bytes[1024..1032], [0; 8]);
    }
    let mut log = DiskLog::new(REGION_SIZE, 41, 512, SyncMode::NoSync);
    let _ = log.resume(&[None]);
    assert_eq!((log.note(), log.dirty_count()), (ResumeNote::Unreadable, 41));
}

#[test]
fn only_stray_bits_within_the_last_word_are_cleared() {
    let mut device = vector("disk-2-in-sync");
    device[16..1024].fill(0x11);
    device[1029..1040].fill(0xff);
    let machine = Machine::resume(device, 41, 512, SyncMode::Default);
    assert_eq!(machine.log.dirty_count(), 0);
    assert_eq!(machine.device[1024..1040], *b"\xff\xff\xff\xff\xff\x01\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    assert!(machine.device[16..1024].iter().all(|byte| *byte == 0x11));
}

#[test]
fn a_failed_flush_is_written_again() {
    let mut machine = Machine::resume(vector("disk-2-in-sync"), 41, 512, SyncMode::Default);
    machine.log.mark(Region(40));
    let _ = machine.log.flush();
    assert!(machine.log.flush().is_empty());
    machine.log.flush_failed();
    // Nothing is known of what is on disk now.
    assert_eq!(machine.log.flush(), machine.log.all_pages());
}

#[test]
fn only_blocks_that_changed_are_written() {
    for (block_size, writes) in
        [(512, vec![(1024, 512), (1024 + 2 * 512, 1024)]), (2048, vec![(0, 4096)]), (4096, vec![(0, 4096)])]
    {
        let regions = 5 * 4096;
        let mut machine = Machine::resume(vec![0; 8192], regions, block_size, SyncMode::NoSync);
        for region in [4095, 2 * 4096, 3 * 4096 + 1] {
            machine.log.mark(Region(region));
        }
        let flush = machine.log.flush();
        let places: Vec<_> =
            flush.writes.iter().map(|write| (write.offset as usize, write.bytes.len())).collect();
        assert_eq!(places, writes, "blocks of {block_size}");
        machine.apply(flush);
        let whole = machine.log.all_pages();
        assert!(machine.device[..whole.writes[0].bytes.len()] == whole.writes[0].bytes);
    }
}
