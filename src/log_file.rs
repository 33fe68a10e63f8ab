//! The file or device that a disk log is in: how it is opened, and whether it is this volume's log.
//!
//! Opening has no effect on anything that is no log: what the path leads to is looked at before it is opened (no pipe is
//! waited for, no tape is wound), a link is followed to a block device only, a device is claimed, and both are locked.
//! Directories on the way may be links. What is in the file decides: it is believed, and written to, only if its label
//! says that it is this volume's log, or if it is one from before there were labels ([`LogFile::judge`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use mirrord_log::{Backing, DiskLog, LogIdentity, LogLabel, Superblock, measure};
use mirrord_raid::SECTOR;
use rustix::fs::{OFlags, ioctl_blksszget};
use rustix::io::Errno;

use crate::device_name::Devices;
use crate::leg::{FileId, Holder, LOCK_PATIENCE, LOCK_RETRY, born, lock_waiting, writable_loop_over};
use crate::limits::{FileTooLong, check_file_size};
use crate::{extents, signature};

/// Bytes that hold header and label.
const HEAD: usize = 1024;

/// Why a file or device is not used as a log. Paths are as they were given.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// Nothing there.
    #[error("log {}: there is no such file", path.display())]
    NotFound {
        /// The log.
        path: PathBuf,
    },
    /// A link to something else than a device.
    #[error("log {}: it is a symbolic link to {}, which is no block device: name the file itself", path.display(), to.display())]
    Link {
        /// The log.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// A directory, pipe, socket or character device.
    #[error("log {}: it is neither a file nor a block device", path.display())]
    Kind {
        /// The log.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("log {}: it is in use by {holder}", path.display())]
    InUse {
        /// The log.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// It is not this volume's log.
    #[error("log {}: {why}: it is not touched", path.display())]
    Foreign {
        /// The log.
        path: PathBuf,
        /// What it is.
        why: String,
    },
    /// It has no room for the log.
    #[error("log {}: it has {len} bytes and {need} are needed", path.display())]
    TooSmall {
        /// The log.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// What is needed in bytes.
        need: u64,
    },
    /// This process may not make files so long.
    #[error(transparent)]
    TooLong(#[from] FileTooLong),
    /// The system does not do it.
    #[error("log {}: it cannot be {doing}", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open, locked file or device that is to hold a log.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// As it was given.
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) backing: Backing,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// Logical block of a device, in bytes; a file has sectors.
    pub(crate) block: u32,
}

/// What is believed of a log of this volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Belief {
    /// Its bits are those that the superblocks were written with.
    Newest,
    /// It was made before logs had labels, and fits.
    Unlabelled,
    /// It is of another session than the superblocks: a copy from earlier, or a log from later than these legs.
    OtherSession,
    /// It is a copy of the file that the superblocks name.
    Copy,
}

impl LogFile {
    /// Opens and locks what is at `path`.
    ///
    /// # Errors
    /// See [`LogFileError`].
    pub(crate) fn open(path: &Path) -> Result<LogFile, LogFileError> {
        let failed = |doing| move |source| io_error(path, doing, source);
        let found = look(path)?;
        let metadata = found.metadata().map_err(failed("looked at"))?;
        let is_device = metadata.file_type().is_block_device();
        // What was looked at, not what the path leads to by now.
        let this = format!("/proc/self/fd/{}", found.as_raw_fd());
        let claim = if is_device { OFlags::EXCL } else { OFlags::empty() };
        let flags = (claim | OFlags::NONBLOCK).bits() as i32;
        let deadline = Instant::now() + LOCK_PATIENCE;
        let file = loop {
            match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&this) {
                // A daemon that was killed has claimed its device until its last thread is gone.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                    if Instant::now() >= deadline {
                        return Err(LogFileError::InUse { path: path.to_owned(), holder: Holder::Unknown });
                    }
                    thread::sleep(LOCK_RETRY);
                }
                file => break file.map_err(failed("opened for writing"))?,
            }
        };
        let in_use = |holder| LogFileError::InUse { path: path.to_owned(), holder };
        if let Some(holder) = lock_waiting(&file, LOCK_PATIENCE).map_err(failed("locked"))? {
            return Err(in_use(holder));
        }
        if let Some(name) = writable_loop_over(FileId::of(&metadata)) {
            return Err(in_use(Holder::Loop(name)));
        }
        let (backing, len) = measure(&file).map_err(failed("looked at"))?;
        let block = match backing {
            Backing::Device => ioctl_blksszget(&file).unwrap_or(SECTOR as u32),
            Backing::File => SECTOR as u32,
        };
        Ok(LogFile { path: path.to_owned(), file, backing, len, block })
    }

    /// Makes a file of no length that is not there yet.
    ///
    /// # Errors
    /// See [`LogFileError`].
    pub(crate) fn create(path: &Path) -> Result<LogFile, LogFileError> {
        let created = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        drop(created.map_err(|source| io_error(path, "created", source))?);
        LogFile::open(path)
    }

    /// What superblocks are to say of it.
    pub(crate) fn identity(&self) -> LogIdentity {
        let Ok(metadata) = self.file.metadata() else { return LogIdentity::File { inode: 0, born: 0 } };
        if self.backing == Backing::Device {
            return LogIdentity::Device { name: Devices::default().name_of(metadata.rdev()) };
        }
        LogIdentity::File { inode: metadata.ino(), born: born(&self.file) }
    }

    /// Whether this is the log of the volume that `superblock` is of, which has `regions` regions and whose records are of
    /// `session`, and what to make of it.
    ///
    /// # Errors
    /// [`LogFileError::Foreign`] if it is not, and when it cannot be read.
    pub(crate) fn judge(
        &self,
        superblock: &Superblock,
        session: u64,
        regions: u32,
    ) -> Result<Belief, LogFileError> {
        let head = self.head()?;
        let foreign = |why: String| LogFileError::Foreign { path: self.path.clone(), why };
        match LogLabel::read(&head).map_err(|error| foreign(error.to_string()))? {
            Some(label) if label.volume != superblock.volume => Err(foreign(format!(
                "it is the log of volume {}, and this one is {}",
                label.volume, superblock.volume
            ))),
            Some(label) if !label.is_of(session) => Ok(Belief::OtherSession),
            Some(_) => {
                let is_copy = |recorded: &LogIdentity| recorded.is_copied_to(&self.identity());
                let is_copy = superblock.log_identity.as_ref().is_some_and(is_copy);
                Ok(if is_copy { Belief::Copy } else { Belief::Newest })
            }
            None => match DiskLog::regions_of(&head) {
                Some(found) if found == u64::from(regions) && superblock.log_identity.is_none() => {
                    Ok(Belief::Unlabelled)
                }
                Some(found) => {
                    Err(foreign(format!("it is a log of {found} regions that does not name this volume")))
                }
                None => Err(foreign(self.content()?)),
            },
        }
    }

    /// Refuses what holds anything but a log of this volume.
    ///
    /// # Errors
    /// [`LogFileError::Foreign`], and when it cannot be read.
    pub(crate) fn check_replaceable(&self, superblock: &Superblock) -> Result<(), LogFileError> {
        let label = LogLabel::read(&self.head()?).ok().flatten();
        if label.is_some_and(|label| label.volume == superblock.volume) || self.is_empty()? {
            return Ok(());
        }
        Err(LogFileError::Foreign { path: self.path.clone(), why: self.content()? })
    }

    /// Refuses a device that is shorter than this; makes a file so long.
    ///
    /// # Errors
    /// See [`LogFileError`].
    pub(crate) fn make_room(&mut self, need: u64) -> Result<(), LogFileError> {
        match self.backing {
            Backing::Device if self.len < need => {
                let (path, len) = (self.path.clone(), self.len);
                return Err(LogFileError::TooSmall { path, len, need });
            }
            Backing::Device => return Ok(()),
            Backing::File => self.check_limit(need)?,
        }
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, need) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(io_error(&self.path, "allocated", errno.into())),
        }
    }

    /// Refuses a file that this process may not write so far.
    ///
    /// # Errors
    /// [`LogFileError::TooLong`].
    pub(crate) fn check_limit(&self, end: u64) -> Result<(), LogFileError> {
        Ok(check_file_size("log", &self.path, self.backing, end)?)
    }

    /// The first bytes, as many of 1024 as there are.
    fn head(&self) -> Result<Vec<u8>, LogFileError> {
        self.read(HEAD as u64)
    }

    /// So many bytes from the start, fewer if it is shorter.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn read(&self, len: u64) -> Result<Vec<u8>, LogFileError> {
        let mut bytes = vec![0; len.min(self.len) as usize];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.map_err(|source| io_error(&self.path, "read", source)).map(|()| bytes)
    }

    fn is_empty(&self) -> Result<bool, LogFileError> {
        let failed = |source| io_error(&self.path, "read", source);
        let is_signed = !signature::found(&self.file, self.len).map_err(failed)?.is_empty();
        Ok(!is_signed && !extents::has_data(&self.file, 0..self.len).map_err(failed)?)
    }

    /// What is there instead of a log.
    fn content(&self) -> Result<String, LogFileError> {
        let found =
            signature::found(&self.file, self.len).map_err(|source| io_error(&self.path, "read", source))?;
        if let Some(found) = found.first() {
            return Ok(format!("it holds {}, not the log of this volume", found.name));
        }
        let what = if self.is_empty()? { "it is empty" } else { "it holds data" };
        Ok(format!("{what}, not the log of this volume"))
    }
}

/// What is at `path`, found and not opened.
fn look(path: &Path) -> Result<File, LogFileError> {
    let failed = |source| io_error(path, "looked at", source);
    let find = |path: &Path| {
        let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits() as i32;
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let found = find(path).map_err(failed)?;
    let kind = found.metadata().map_err(failed)?.file_type();
    if !kind.is_symlink() {
        let is_place = kind.is_file() || kind.is_block_device();
        return if is_place { Ok(found) } else { Err(LogFileError::Kind { path: path.to_owned() }) };
    }
    // As udev names devices.
    let to = fs::canonicalize(path).map_err(failed)?;
    let found = find(&to).map_err(failed)?;
    if !found.metadata().map_err(failed)?.file_type().is_block_device() {
        return Err(LogFileError::Link { path: path.to_owned(), to });
    }
    Ok(found)
}

fn io_error(path: &Path, doing: &'static str, source: io::Error) -> LogFileError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => LogFileError::NotFound { path },
        _ => LogFileError::Io { path, doing, source },
    }
}
