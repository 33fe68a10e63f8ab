//! What a disk could hold after a power cut: the kernel's log-writes target records every write in the order in
//! which flushes made it durable, and a [`Log`] replays that record onto an image up to any entry. Legs whose
//! writes must be cut at the same moment are linear slices of one such device.
//!
//! The record's format is that of struct log_write_super and struct log_write_entry in the kernel's
//! drivers/md/dm-log-writes.c: a superblock, then for each entry a sector with its header and the data.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::devices::{dm, load, loop_leg, sectors};
use crate::rig::{Rig, sh};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Of an entry's header: sector, sectors, flags and the length of a mark.
const HEADER: usize = 32;

/// The record of a log-writes device that has been removed.
pub(crate) struct Log {
    device: File,
    pub(crate) entries: Vec<Entry>,
}

/// A write, a discard, a flush or a mark. Positions and lengths are bytes.
pub(crate) struct Entry {
    pub(crate) at: u64,
    len: u64,
    flags: u64,
    /// Where in the record its data is.
    data: u64,
    mark: Option<String>,
}

impl Entry {
    /// Whether it promises durability: a flush or a forced write.
    pub(crate) fn is_durable(&self) -> bool {
        self.flags & (FLUSH | FUA) != 0
    }
}

impl Log {
    pub(crate) fn open(device: &str) -> Log {
        let device = File::open(device).unwrap();
        let number = |at: u64| {
            let mut bytes = [0; 8];
            device.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!((number(0), number(8)), (MAGIC, VERSION), "not a record of log-writes");
        let (count, sector) = (number(16), number(24) & 0xffff_ffff);
        let mut entries = Vec::new();
        let mut next = sector;
        for _ in 0..count {
            let (at, len, flags) = (number(next) * sector, number(next + 8) * sector, number(next + 16));
            let mark = (flags & MARK != 0).then(|| {
                let mut text = vec![0; number(next + 24) as usize];
                device.read_exact_at(&mut text, next + HEADER as u64).unwrap();
                String::from_utf8(text).unwrap()
            });
            let data = next + sector;
            entries.push(Entry { at, len, flags, data, mark });
            next = data + if flags & DISCARD == 0 { len } else { 0 };
        }
        Log { device, entries }
    }

    /// The number of the entry with this mark.
    pub(crate) fn mark(&self, name: &str) -> usize {
        let found = self.entries.iter().position(|entry| entry.mark.as_deref() == Some(name));
        found.unwrap_or_else(|| panic!("no mark {name} in the record"))
    }

    /// The first entry from here on that promises durability.
    pub(crate) fn next_durable(&self, from: usize) -> Option<usize> {
        (from..self.entries.len()).find(|&n| self.entries[n].is_durable())
    }

    /// Does to `image` what these entries did to the device.
    pub(crate) fn replay(&self, entries: Range<usize>, image: &File) {
        entries.for_each(|n| self.replay_at(n, image, 0));
    }

    /// The same for one entry and an image that begins at byte `start` of the device.
    pub(crate) fn replay_at(&self, entry: usize, image: &File, start: u64) {
        let entry = &self.entries[entry];
        if entry.len == 0 || entry.flags & MARK != 0 {
            return;
        }
        let at = entry.at - start;
        if entry.flags & DISCARD != 0 {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(image, hole, at, entry.len).unwrap();
        } else {
            let mut data = vec![0; entry.len as usize];
            self.device.read_exact_at(&mut data, entry.data).unwrap();
            image.write_all_at(&data, at).unwrap();
        }
    }
}

/// Has the record name this moment.
pub(crate) fn mark(device: &str, name: &str) {
    sh("dmsetup", &["message", device, "0", "mark", name]);
}

const MIB: u64 = 1 << 20;
const FILES: usize = 8;

/// ext4 keeps what it flushed whenever the power goes; if it does not here, the replay is wrong.
pub(crate) fn ext4_is_whole_at_every_flush() {
    load(&["dm-log-writes"]);
    let rig = Rig::new();
    let (disk, record) = (loop_leg(&rig, "disk", 64 * MIB), loop_leg(&rig, "record", 256 * MIB));
    let device = dm(&rig, "lw", &format!("0 {} log-writes {disk} {record}", sectors(&disk)));
    sh("mkfs.ext4", &["-q", &device]);
    let mount = rig.path("mnt");
    fs::create_dir(&mount).unwrap();
    sh("mount", &[&device, mount.to_str().unwrap()]);
    rig.at_end(&["umount", "-l", mount.to_str().unwrap()]);
    mark("lw", "mounted");
    let content = |n: usize| vec![n as u8 + 1; 50_000 * (n + 1)];
    for n in 0..FILES {
        let file = File::create(mount.join(n.to_string())).unwrap();
        file.write_all_at(&content(n), 0).unwrap();
        file.sync_all().unwrap();
        mark("lw", &format!("flushed-{n}"));
    }
    sh("umount", &[mount.to_str().unwrap()]);
    sh("dmsetup", &["remove", "lw"]);

    let log = Log::open(&record);
    println!("{} entries", log.entries.len());
    let image = File::create(rig.path("image")).unwrap();
    image.set_len(64 * MIB).unwrap();
    let mut done = log.mark("mounted");
    log.replay(0..done, &image);
    let mut cuts = 0;
    while let Some(cut) = log.next_durable(done) {
        log.replay(done..cut + 1, &image);
        done = cut + 1;
        let flushed = (0..FILES).filter(|n| log.mark(&format!("flushed-{n}")) < done).count();
        check(&rig, &mount, &content, flushed);
        cuts += 1;
    }
    assert!(cuts >= FILES, "only {cuts} flushes");
    // At its end the image is the device, byte by byte.
    log.replay(done..log.entries.len(), &image);
    sh("cmp", &[rig.path("image").to_str().unwrap(), &disk]);
}

/// Mounts a copy of the image, which replays ext4's journal: these first files must be there, and whole.
fn check(rig: &Rig, mount: &Path, content: &dyn Fn(usize) -> Vec<u8>, flushed: usize) {
    let (image, copy) = (rig.path("image"), rig.path("copy"));
    let copy = copy.to_str().unwrap();
    sh("cp", &["--sparse=always", image.to_str().unwrap(), copy]);
    sh("mount", &["-o", "loop", copy, mount.to_str().unwrap()]);
    for n in 0..flushed {
        assert!(
            fs::read(mount.join(n.to_string())).unwrap() == content(n),
            "file {n} of {flushed} that were flushed"
        );
    }
    sh("umount", &[mount.to_str().unwrap()]);
    sh("e2fsck", &["-fn", copy]);
}
