//! The files and devices that logs are in: opening, reading, writing. Everything here may block, and is called by disk
//! threads only.
//!
//! A file is locked (flock, exclusive) for as long as a log of this server is in it. Two logs of one mirror, the table
//! that goes and the one that comes, share one descriptor, so that the one does not lock the other out.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use mirrord_log::server::{OpenedStore, StoreId};
use mirrord_log::{DiskLog, PageWrite};
use mirrord_raid::SECTOR;
use rustix::fs::{FlockOperation, OFlags, flock, ioctl_blksszget, major, minor};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::folder::{Folder, FolderError};

/// How long another's lock on a device is waited for: udev takes one while it looks at a device that was just made.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// Between two looks at it.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// Stands for the device number of what is a block device itself.
const DEVICES: u64 = u64::MAX;

/// Why a log's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// No number, no absolute path.
    #[error("log device {device}: give MAJOR:MINOR of a block device, or an absolute path")]
    Name {
        /// As it was given.
        device: String,
    },
    /// There is no such device or file.
    #[error("log device {device}: it cannot be opened")]
    Open {
        /// As it was given.
        device: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("log device {device}: it is neither a block device nor a file")]
    Kind {
        /// As it was given.
        device: String,
    },
    /// Somebody else has it.
    #[error("log device {device}: another process has locked it")]
    Locked {
        /// As it was given.
        device: String,
    },
    /// The log does not fit.
    #[error("log device {device} has {len} bytes and needs {need}: give it a longer one, or larger regions")]
    TooSmall {
        /// As it was given.
        device: String,
        /// Its length.
        len: u64,
        /// Bytes of the log.
        need: u64,
    },
    /// A volume's log cannot be had.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl StoreError {
    /// What the asker is told.
    pub(super) fn errno(&self) -> mirrord_raid::Errno {
        let number = match self {
            StoreError::Name { .. } | StoreError::Kind { .. } => Errno::INVAL.raw_os_error(),
            StoreError::Locked { .. } => Errno::BUSY.raw_os_error(),
            StoreError::TooSmall { .. } => Errno::NOSPC.raw_os_error(),
            StoreError::Open { source, .. } => return errno(source),
            StoreError::Folder(error) => return error.errno(),
        };
        mirrord_raid::Errno(number)
    }
}

/// The error number of what the system said.
pub(super) fn errno(error: &io::Error) -> mirrord_raid::Errno {
    mirrord_raid::Errno(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))
}

/// A file with a log in it.
#[derive(Debug)]
struct LogFile {
    file: File,
    block_size: u32,
    /// IO bypasses the page cache, in whole blocks.
    direct: bool,
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // A process between fork and exec has the file open, too: closing it would leave it locked for that moment.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The files of all logs.
#[derive(Debug)]
pub(super) struct Stores {
    folder: Option<Folder>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<StoreId, Arc<LogFile>>,
    by_file: HashMap<(u64, u64), Weak<LogFile>>,
}

impl Stores {
    /// None open; volumes' logs are in `folder`, or cannot be on disk.
    pub(super) fn new(folder: Option<Folder>) -> Stores {
        Stores { folder, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file of a log of so many regions and locks it. One that was in use before may have become read-only.
    pub(super) fn open(
        &self,
        store: StoreId,
        device: &str,
        by_kernel: bool,
        regions: u32,
        again: bool,
    ) -> Result<OpenedStore, StoreError> {
        let opened = match by_kernel {
            true => open_device(device, true).or_else(|error| match error {
                StoreError::Open { source, .. } if again && is_read_only(&source) => {
                    open_device(device, false)
                }
                error => Err(error),
            })?,
            false => self.make(device, regions)?,
        };
        let failed = |source| StoreError::Open { device: device.to_owned(), source };
        let metadata = opened.metadata().map_err(failed)?;
        let is_device = metadata.file_type().is_block_device();
        let (block_size, len, number, file) = if is_device {
            let block_size = ioctl_blksszget(&opened).map_err(|errno| failed(errno.into()))?;
            let len = rustix::fs::seek(&opened, rustix::fs::SeekFrom::End(0));
            let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
            let len = len.map_err(|errno| failed(errno.into()))?;
            (block_size, len, Some(number), (DEVICES, metadata.rdev()))
        } else {
            (SECTOR as u32, metadata.len(), None, (metadata.dev(), metadata.ino()))
        };
        let need = DiskLog::len_of(regions, block_size.max(1));
        if len < need {
            return Err(StoreError::TooSmall { device: device.to_owned(), len, need });
        }
        let log_file = LogFile { file: opened, block_size, direct: is_device };
        self.keep(store, file, log_file, device)?;
        Ok(OpenedStore { block_size, len, file, number })
    }

    fn make(&self, device: &str, regions: u32) -> Result<File, StoreError> {
        let folder = self.folder.as_ref().ok_or(FolderError::None)?;
        Ok(folder.open(device, DiskLog::len_of(regions, SECTOR as u32))?)
    }

    /// Enters a file that was opened: locked, or by the descriptor that has the lock.
    fn keep(
        &self,
        store: StoreId,
        file: (u64, u64),
        opened: LogFile,
        device: &str,
    ) -> Result<(), StoreError> {
        let opened = Arc::new(opened);
        let begun = Instant::now();
        loop {
            let mut table = self.table();
            if let Some(shared) = table.by_file.get(&file).and_then(Weak::upgrade) {
                table.open.insert(store, shared);
                return Ok(());
            }
            match flock(&opened.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    table.by_file.insert(file, Arc::downgrade(&opened));
                    table.open.insert(store, opened);
                    return Ok(());
                }
                Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_PATIENCE => {}
                Err(Errno::WOULDBLOCK) => return Err(StoreError::Locked { device: device.to_owned() }),
                Err(errno) => {
                    return Err(StoreError::Open { device: device.to_owned(), source: errno.into() });
                }
            }
            drop(table);
            thread::sleep(LOCK_LOOK);
        }
    }

    /// Lets go of a log's file.
    pub(super) fn close(&self, store: StoreId) {
        let mut table = self.table();
        let closed = table.open.remove(&store);
        drop(closed);
        table.by_file.retain(|_, file| file.strong_count() > 0);
    }

    fn file(&self, store: StoreId) -> io::Result<Arc<LogFile>> {
        self.table().open.get(&store).cloned().ok_or_else(|| Errno::BADF.into())
    }

    /// Reads from the start, fewer bytes if it is shorter.
    pub(super) fn read(&self, store: StoreId, len: u64) -> io::Result<Vec<u8>> {
        self.file(store)?.read(len as usize)
    }

    /// Writes, and makes it durable.
    pub(super) fn write(&self, store: StoreId, writes: &[PageWrite]) -> io::Result<()> {
        self.file(store)?.write(writes)
    }
}

impl LogFile {
    fn read(&self, len: usize) -> io::Result<Vec<u8>> {
        let block = self.block_size as usize;
        let whole = if self.direct { len.next_multiple_of(block) } else { len };
        let mut buffer = Aligned::zeroed(whole);
        let mut have = 0;
        while have < whole {
            match self.file.read_at(&mut buffer.bytes()[have..], have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buffer.bytes()[..have.min(len)].to_vec())
    }

    fn write(&self, writes: &[PageWrite]) -> io::Result<()> {
        let block = u64::from(self.block_size);
        let whole = |number: u64| number.is_multiple_of(block);
        if self.direct && !writes.iter().all(|write| whole(write.offset) && whole(write.bytes.len() as u64)) {
            return Err(Errno::INVAL.into());
        }
        // One write is made durable with it, several by one flush behind them.
        let flags = if writes.len() == 1 { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        for write in writes {
            let mut buffer = Aligned::default();
            let mut rest = if self.direct { buffer.copy(&write.bytes) } else { &write.bytes[..] };
            let mut offset = write.offset;
            while !rest.is_empty() {
                match pwritev2(&self.file, &[IoSlice::new(rest)], offset, flags) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        rest = &rest[written..];
                        offset += written as u64;
                    }
                    Err(Errno::INTR) => {}
                    // It is open for reading only.
                    Err(Errno::BADF) => return Err(Errno::ROFS.into()),
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if writes.len() > 1 { self.file.sync_data() } else { Ok(()) }
    }
}

/// Bytes that begin where direct IO wants them to.
#[derive(Debug, Default)]
struct Aligned {
    room: Vec<u8>,
    len: usize,
}

impl Aligned {
    /// Enough for every device.
    const ALIGN: usize = 4096;

    fn zeroed(len: usize) -> Aligned {
        Aligned { room: vec![0; len + Aligned::ALIGN], len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let from = self.room.as_ptr().align_offset(Aligned::ALIGN).min(Aligned::ALIGN);
        &mut self.room[from..from + self.len]
    }

    fn copy(&mut self, bytes: &[u8]) -> &[u8] {
        *self = Aligned::zeroed(bytes.len());
        let into = self.bytes();
        into.copy_from_slice(bytes);
        into
    }
}

/// Opens what the table of a kernel's mirror names.
fn open_device(device: &str, writes: bool) -> Result<File, StoreError> {
    let failed = |source| StoreError::Open { device: device.to_owned(), source };
    let path = match number(device) {
        Some(number) => node(number).map_err(failed)?,
        None if device.starts_with('/') => PathBuf::from(device),
        None => return Err(StoreError::Name { device: device.to_owned() }),
    };
    // Looked at before it is opened: opening a FIFO waits, opening other things does something.
    let kind = fs::metadata(&path).map_err(failed)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(StoreError::Kind { device: device.to_owned() });
    }
    let direct = if kind.is_block_device() { OFlags::DIRECT } else { OFlags::empty() };
    let flags = (OFlags::CLOEXEC | OFlags::NONBLOCK | direct).bits();
    let file = File::options().read(true).write(writes).custom_flags(flags as i32).open(&path);
    let file = file.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let is_other = number(device).is_some_and(|wanted| {
        !metadata.file_type().is_block_device() || (major(metadata.rdev()), minor(metadata.rdev())) != wanted
    });
    if is_other || metadata.file_type().is_block_device() != kind.is_block_device() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(file)
}

/// Whether it is so that a file cannot be opened for writing.
fn is_read_only(error: &io::Error) -> bool {
    [Errno::ROFS, Errno::ACCESS, Errno::PERM].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}

fn number(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The node of a block device, whatever kind of device it is.
fn node((major, minor): (u32, u32)) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| Path::new("/dev").join(name)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, len: usize) -> PageWrite {
        PageWrite { offset, bytes: vec![byte; len] }
    }

    #[test]
    fn two_logs_share_a_file_and_nobody_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, vec![0; 4096]).unwrap();
        let device = path.to_str().unwrap();
        let stores = Stores::new(None);
        let one = stores.open(StoreId(1), device, true, 100, false).unwrap();
        let other = stores.open(StoreId(2), device, true, 100, false).unwrap();
        assert_eq!(one, other);
        assert_eq!((one.block_size, one.len, &one.number), (512, 4096, &None));
        stores.write(StoreId(1), &[write(0, 1, 512), write(1024, 2, 512)]).unwrap();
        stores.write(StoreId(2), &[write(512, 3, 512)]).unwrap();
        assert_eq!(stores.read(StoreId(1), 1536).unwrap(), [[1; 512], [3; 512], [2; 512]].concat());
        assert_eq!(stores.read(StoreId(1), 1 << 20).unwrap().len(), 4096);
        stores.close(StoreId(1));
        let stranger = File::open(&path).unwrap();
        let taken = flock(&stranger, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(taken, Err(Errno::WOULDBLOCK));
        stores.close(StoreId(2));
        flock(&stranger, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(stores.read(StoreId(2), 1).is_err());
        let error = stores.open(StoreId(3), device, true, 100, false).unwrap_err();
        assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    }

    #[test]
    fn what_is_no_place_for_a_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::new(None);
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let small = dir.path().join("small");
        fs::write(&small, [0; 512]).unwrap();
        for (device, number, words) in [
            (fifo.to_str().unwrap(), 22, "neither"),
            (dir.path().to_str().unwrap(), 22, "neither"),
            (small.to_str().unwrap(), 28, "has 512 bytes and needs 1536"),
            ("/nowhere/at/all", 2, "cannot be opened"),
            ("relative", 22, "absolute"),
            ("4095:1048575", 2, "cannot be opened"),
        ] {
            let error = stores.open(StoreId(1), device, true, 100, false).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.errno().0, number, "{error}");
        }
        let error = stores.open(StoreId(1), "a", false, 100, false).unwrap_err();
        assert!(error.to_string().contains("--dir"), "{error}");
    }
}
