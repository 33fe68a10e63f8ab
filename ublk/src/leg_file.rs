//! One open leg, for data IO.
//!
//! Owns the open file that the lock is put on; each ring does its IO through another ([`LegFile::open_again`]).
//! Guarantees: opened for reading and writing, O_DIRECT where the file system has it, and says which alignment
//! that needs. Takes no lock and knows nothing of superblocks. Counts the IO on it that was given up and is still
//! under way: see [`LegFile::hung`]. Shared by all rings; used from any thread.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use mirrord_raid::SECTOR;
use rustix::fs::{Advice, AtFlags, StatxFlags, fadvise, fstatfs, ioctl_blkpbszget, ioctl_blksszget, statx};

use crate::foreign::{ForeignError, open_foreign};

/// An open leg.
#[derive(Debug)]
pub struct LegFile {
    path: PathBuf,
    file: File,
    writable: bool,
    direct: bool,
    block_device: bool,
    offset_align: u32,
    memory_align: u32,
    physical_block: u32,
    hung_reads: AtomicU32,
    hung_changes: Arc<AtomicU32>,
    forgetful: Arc<AtomicBool>,
    cut: AtomicU64,
    in_memory: bool,
}

/// What is taken as alignment where the system does not tell: a page, which no device exceeds.
const UNKNOWN_ALIGN: u32 = 4096;

/// `statfs` types of file systems in memory (`linux/magic.h`).
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;

impl LegFile {
    /// Opens the leg at `path`. With `exclusive`, a block device that is mounted, part of an array
    /// or opened exclusively by another is refused (`EBUSY`); files have no such claim.
    ///
    /// # Errors
    /// As [`open_foreign`](crate::open_foreign).
    pub fn open(path: impl Into<PathBuf>, exclusive: bool) -> Result<LegFile, ForeignError> {
        LegFile::open_for(path.into(), exclusive, true)
    }

    /// Opens the leg at `path` for reading, a block device for nobody else.
    ///
    /// # Errors
    /// As [`open_foreign`](crate::open_foreign).
    pub fn open_read_only(path: impl Into<PathBuf>) -> Result<LegFile, ForeignError> {
        LegFile::open_for(path.into(), true, false)
    }

    fn open_for(path: PathBuf, exclusive: bool, write: bool) -> Result<LegFile, ForeignError> {
        let excl = if exclusive { libc::O_EXCL } else { 0 };
        let open = |flags| open_foreign(&path, write, flags);
        let (file, direct) = match open(excl | libc::O_DIRECT) {
            Err(ForeignError::Io(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                (open(excl)?, false)
            }
            file => (file?, true),
        };
        let block_device = file.metadata()?.file_type().is_block_device();
        let (offset_align, memory_align) = match direct {
            true => alignment(&file, block_device),
            false => (SECTOR as u32, 1),
        };
        let magic = fstatfs(&file).map_or(0, |stat| stat.f_type as u32);
        let in_memory = !block_device && matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC);
        let told = if block_device { ioctl_blkpbszget(&file).ok() } else { None };
        let physical_block = told.unwrap_or(UNKNOWN_ALIGN).max(offset_align);
        let (hung_reads, hung_changes, forgetful) = Default::default();
        Ok(LegFile {
            path,
            file,
            writable: write,
            direct,
            block_device,
            offset_align,
            memory_align,
            physical_block,
            hung_reads,
            hung_changes,
            forgetful,
            cut: AtomicU64::new(u64::MAX),
            in_memory,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether IO goes past the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Whether it is a block device, not a file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Whether it is a file of a file system that has no disk.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// What offsets and lengths of IO must be multiples of, in bytes.
    pub fn offset_align(&self) -> u32 {
        self.offset_align
    }

    /// What buffer addresses must be multiples of, in bytes. A [`crate::Buffer`] satisfies it.
    pub fn memory_align(&self) -> u32 {
        self.memory_align
    }

    /// What IO is best a multiple of, in bytes: the sector of the device, or the page that a file is made of.
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// The same leg in another open file: Linux reports a lost write once to each. It has neither lock nor claim.
    ///
    /// # Errors
    /// As `open(2)`, and if another file has taken its place.
    pub(crate) fn open_again(&self) -> io::Result<File> {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        let open = |path: &Path| open_foreign(path, self.writable, flags);
        let this = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let again = open(Path::new(&this)).or_else(|_| open(&self.path))?;
        if id_of(&again)? != id_of(&self.file)? {
            return Err(io::Error::other("another file has taken its place"));
        }
        Ok(again)
    }

    /// Has the system write what it cached of the leg and forget it, so that what is read next comes from the disk. After a
    /// failed flush the page cache shows what the disk never got, to whoever opens the leg later, too. For whoever has
    /// the leg to himself; a file system above another one may have cached it below.
    ///
    /// # Errors
    /// As `fdatasync(2)`: what could not be written is forgotten all the same.
    pub fn forget_cached(&self) -> io::Result<()> {
        let synced = self.file.sync_data();
        fadvise(&self.file, 0, None, Advice::DontNeed)?;
        synced
    }

    /// Has the system forget what it read of the leg for others: as long as it has pages of it in memory each
    /// direct write looks for those that it makes old.
    pub(crate) fn drop_cached(&self) {
        if self.direct {
            let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        }
    }

    /// The open file, for what is not data IO (sizes, locks).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// IO that was given up and is still under way: as long as there is any the kernel may change the leg, and
    /// its lock must be kept.
    pub fn hung(&self) -> u32 {
        self.hung_reads.load(SeqCst) + self.hung_changes.load(SeqCst)
    }

    /// Of it, what is no read: while there is any, no ring gives the leg anything more. To be counted up and down by who
    /// gives up metadata of the leg, too.
    pub fn hung_changes(&self) -> &Arc<AtomicU32> {
        &self.hung_changes
    }

    /// Whether a flush that was given up ended badly, metadata's included: the system has told that, to nobody, and will
    /// not tell it again. No later flush is believed then.
    pub fn forgetful(&self) -> &Arc<AtomicBool> {
        &self.forgetful
    }

    /// Has the leg count as hung from now on: something is under way on another descriptor of it.
    pub fn keep_locked(&self) {
        self.hang(false);
    }

    /// Whether a read, or anything else, would only hang, too.
    pub(crate) fn hangs(&self, read: bool) -> bool {
        self.hung_changes.load(SeqCst) > 0 || read && self.hung_reads.load(SeqCst) > 0
    }

    /// A read, or anything else, is given up. Said before whoever waits for it is told.
    pub(crate) fn hang(&self, read: bool) {
        self.counter(read).fetch_add(1, SeqCst);
    }

    /// It has ended after all.
    pub(crate) fn unhang(&self, read: bool) {
        self.counter(read).fetch_sub(1, SeqCst);
    }

    /// See [`LegFile::forgetful`].
    pub(crate) fn forget(&self) {
        self.forgetful.store(true, SeqCst);
    }

    pub(crate) fn is_forgetful(&self) -> bool {
        self.forgetful.load(SeqCst)
    }

    /// The leg became shorter: from now on no ring reads or writes behind its first `len` bytes. A write there would
    /// make it long again, with zeroes where data was.
    pub fn cut(&self, len: u64) {
        self.cut.fetch_min(len, SeqCst);
    }

    /// What IO has to end before, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.cut.load(SeqCst)
    }

    fn counter(&self, read: bool) -> &AtomicU32 {
        if read { &self.hung_reads } else { &self.hung_changes }
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for LegFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What an open file is of.
fn id_of(file: &File) -> io::Result<(u64, u64, u64)> {
    let metadata = file.metadata()?;
    Ok(match metadata.file_type().is_block_device() {
        true => (0, 0, metadata.rdev()),
        false => (metadata.dev(), metadata.ino(), 0),
    })
}

/// Offset and memory alignment of direct IO.
fn alignment(file: &File, block_device: bool) -> (u32, u32) {
    if let Ok(stat) = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && stat.stx_dio_offset_align != 0
    {
        return (stat.stx_dio_offset_align, stat.stx_dio_mem_align.max(1));
    }
    match block_device.then(|| ioctl_blksszget(file)) {
        Some(Ok(size)) => (size, size),
        _ => (UNKNOWN_ALIGN, UNKNOWN_ALIGN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_opens_with_a_sane_alignment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leg");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let leg = LegFile::open(&path, true).unwrap();
        assert!(!leg.is_block_device());
        assert_eq!(leg.path(), path);
        assert!(leg.offset_align().is_power_of_two() && leg.offset_align() <= 4096);
        assert!(leg.memory_align() <= 4096);
    }

    #[test]
    fn a_missing_leg_is_an_error() {
        let error = std::io::Error::from(LegFile::open("/nonexistent/leg", false).unwrap_err());
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
