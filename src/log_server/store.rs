//! The files and devices that logs are kept in.
//!
//! Each is locked (flock) for as long as a log uses it, and opened once however many logs name it: those of one
//! mirror's tables do. Devices are read and written around the page cache, and a write is durable when it
//! returns. Calls block, for as long as the device does.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use mirrord_log::server::OpenedStore;
use mirrord_log::{DiskLog, PageWrite};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock, ioctl_blksszget, major, minor};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use super::lock;

/// Buffers for IO around the page cache start at a multiple of this, in bytes: what every device is content with.
const ALIGN: usize = 4096;

/// Longest name of a volume's log, in bytes.
const MAX_NAME: usize = 200;

/// Why a log cannot be kept where it is to be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It is neither a path nor a device number.
    #[error("log device {device:?}: name it by its path or MAJOR:MINOR")]
    Name { device: String },
    /// A volume's log has a name that is none.
    #[error("log {name:?}: a name is 1 to {MAX_NAME} of A-Z a-z 0-9 . _ - and begins with none of . -")]
    LogName { name: String },
    /// Volumes' logs are not kept here.
    #[error("log {name:?}: this server has no folder for the logs of volumes: give it one with --dir")]
    NoFolder { name: String },
    /// It is something else.
    #[error("log device {}: it is neither a file nor a block device", path.display())]
    Kind { path: PathBuf },
    /// Another process has it.
    #[error("log device {}: it is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// The system said no.
    #[error("log device {}: cannot {verb} it", path.display())]
    Io {
        path: PathBuf,
        verb: &'static str,
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// As an error number: what a mirror is told.
    pub(crate) fn errno(&self) -> i32 {
        let errno = match self {
            StoreError::Name { .. } | StoreError::LogName { .. } | StoreError::Kind { .. } => Errno::INVAL,
            StoreError::NoFolder { .. } => Errno::NOENT,
            StoreError::InUse { .. } => Errno::BUSY,
            StoreError::Io { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
        };
        errno.raw_os_error()
    }
}

/// A file or device in use.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
    is_device: bool,
    path: PathBuf,
}

/// What is open, so that nothing is opened twice.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    /// Where logs of volumes are.
    folder: Option<PathBuf>,
    open: Mutex<HashMap<(u64, u64), Weak<Store>>>,
}

impl Stores {
    /// Stores, of which those of volumes are in `folder`.
    pub(crate) fn new(folder: Option<PathBuf>) -> Stores {
        Stores { folder, open: Mutex::default() }
    }

    /// Opens what a mirror of the kernel names.
    pub(crate) fn open_device(&self, device: &str) -> Result<(Arc<Store>, OpenedStore), StoreError> {
        let path = device_path(device)?;
        let io_error = |verb| move |source, path| StoreError::Io { path, verb, source };
        let metadata = fs::metadata(&path).map_err(|source| io_error("look at")(source, path.clone()))?;
        let is_device = metadata.file_type().is_block_device();
        if !is_device && !metadata.is_file() {
            return Err(StoreError::Kind { path });
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if is_device {
            options.custom_flags(OFlags::DIRECT.bits() as i32);
        }
        let file = options.open(&path).map_err(|source| io_error("open")(source, path.clone()))?;
        self.admit(file, path)
    }

    /// Opens the log of a volume, of so many regions, and makes it if it is not there.
    pub(crate) fn open_volume(
        &self,
        name: &str,
        regions: u32,
    ) -> Result<(Arc<Store>, OpenedStore), StoreError> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(is_good)
            && !name.starts_with(['.', '-']);
        if !good {
            return Err(StoreError::LogName { name: name.to_owned() });
        }
        let Some(folder) = &self.folder else { return Err(StoreError::NoFolder { name: name.to_owned() }) };
        let path = folder.join(name);
        let failed = |verb, source| StoreError::Io { path: path.clone(), verb, source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        let (file, is_new) = match options.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (options.create_new(true).open(&path).map_err(|source| failed("create", source))?, true)
            }
            file => (file.map_err(|source| failed("open", source))?, false),
        };
        let metadata = file.metadata().map_err(|source| failed("look at", source))?;
        if !metadata.is_file() {
            return Err(StoreError::Kind { path });
        }
        let need = DiskLog::len_of(regions, 512);
        if metadata.len() < need {
            match fallocate(&file, FallocateFlags::empty(), 0, need) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    file.set_len(need).map_err(|source| failed("make room in", source))?
                }
                Err(errno) => return Err(failed("make room in", errno.into())),
            }
            file.sync_all().map_err(|source| failed("write", source))?;
        }
        if is_new {
            // Its name is to be there after a power cut, too.
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|source| failed("create", source))?;
        }
        self.admit(file, path)
    }

    fn admit(&self, file: File, path: PathBuf) -> Result<(Arc<Store>, OpenedStore), StoreError> {
        let failed = |verb, source| StoreError::Io { path: path.clone(), verb, source };
        let metadata = file.metadata().map_err(|source| failed("look at", source))?;
        let is_device = metadata.file_type().is_block_device();
        let id = if is_device { (u64::MAX, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
        let (block_size, len, number) = if is_device {
            let block = ioctl_blksszget(&file).map_err(|errno| failed("look at", errno.into()))?;
            let len = device_len(&file).map_err(|source| failed("look at", source))?;
            let number = format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
            (block, len, Some(number))
        } else {
            (512, metadata.len(), None)
        };
        let opened = OpenedStore { block_size, len, file: id, number };
        let mut open = lock(&self.open);
        open.retain(|_, store| store.strong_count() > 0);
        if let Some(store) = open.get(&id).and_then(Weak::upgrade) {
            return Ok((store, opened));
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StoreError::InUse { path }),
            Err(errno) => return Err(failed("lock", errno.into())),
        }
        let store = Arc::new(Store { file, is_device, path });
        open.insert(id, Arc::downgrade(&store));
        Ok((store, opened))
    }
}

/// How long a device is, in bytes.
fn device_len(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

/// Where the kernel's device is: a path, or a number.
fn device_path(device: &str) -> Result<PathBuf, StoreError> {
    if device.starts_with('/') {
        return Ok(PathBuf::from(device));
    }
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_device = device.split_once(':').is_some_and(|(major, minor)| is_number(major) && is_number(minor));
    if !is_device {
        return Err(StoreError::Name { device: device.to_owned() });
    }
    // The kernel's own name, whatever udev calls it.
    let path = PathBuf::from(format!("/sys/dev/block/{device}/uevent"));
    let text = fs::read_to_string(&path).map_err(|source| StoreError::Io {
        path: PathBuf::from(device),
        verb: "find",
        source,
    })?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| Path::new("/dev").join(name))
        .ok_or_else(|| StoreError::Name { device: device.to_owned() })
}

impl Store {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its first bytes, fewer if it is shorter. `len` is whole blocks.
    pub(crate) fn read(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = Aligned::new(len);
        let bytes = buffer.bytes(len);
        let mut done = 0;
        while done < len {
            match self.file.read_at(&mut bytes[done..], done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes[..done].to_vec())
    }

    /// Writes, and returns when it is durable. A single write is one call.
    pub(crate) fn write(&self, writes: &[PageWrite], buffer: &mut Aligned) -> io::Result<()> {
        let flags = if writes.len() == 1 { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        for write in writes {
            let bytes = if self.is_device {
                let bytes = buffer.bytes(write.bytes.len());
                bytes.copy_from_slice(&write.bytes);
                &*bytes
            } else {
                &write.bytes[..]
            };
            self.write_all(bytes, write.offset, flags)?;
        }
        if writes.len() == 1 { Ok(()) } else { self.file.sync_data() }
    }

    fn write_all(&self, mut bytes: &[u8], mut offset: u64, flags: ReadWriteFlags) -> io::Result<()> {
        while !bytes.is_empty() {
            match pwritev2(self.file.as_fd(), &[IoSlice::new(bytes)], offset, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Room that starts where a device wants it to.
#[derive(Debug, Default)]
pub(crate) struct Aligned(Vec<u8>);

impl Aligned {
    /// Room for so many bytes.
    pub(crate) fn new(len: usize) -> Aligned {
        Aligned(vec![0; len + ALIGN])
    }

    /// So many of its bytes; it grows if it has fewer.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        if self.0.len() < len + ALIGN {
            self.0.resize(len + ALIGN, 0);
        }
        let from = self.0.as_ptr().align_offset(ALIGN);
        &mut self.0[from..from + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_logs_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let stores = Stores::new(Some(dir.path().to_owned()));
        for bad in ["", ".", "..", "../x", "a/b", "/etc/passwd", "-a", ".hidden", "a b", &"x".repeat(201)] {
            assert!(matches!(stores.open_volume(bad, 8), Err(StoreError::LogName { .. })), "{bad}");
        }
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        assert!(matches!(stores.open_volume("link", 8), Err(StoreError::Io { .. })));
        let (store, opened) = stores.open_volume("good", 8).unwrap();
        assert_eq!((opened.len, opened.block_size, opened.number), (DiskLog::len_of(8, 512), 512, None));
        let (again, _) = stores.open_volume("good", 8).unwrap();
        assert!(Arc::ptr_eq(&store, &again), "opened once");
        let other = Stores::new(Some(dir.path().to_owned()));
        assert!(matches!(other.open_volume("good", 8), Err(StoreError::InUse { .. })));
        drop((store, again));
        assert!(other.open_volume("good", 8).is_ok());
    }

    #[test]
    fn devices_are_paths_or_numbers() {
        for bad in ["1024", "a:b", "loop0", ":", "7:", ""] {
            assert!(matches!(device_path(bad), Err(StoreError::Name { .. })), "{bad}");
        }
        assert!(matches!(device_path("4095:1"), Err(StoreError::Io { verb: "find", .. })));
        assert_eq!(device_path("/dev/x").unwrap(), Path::new("/dev/x"));
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Stores::new(Some(dir.path().to_owned())).open_volume("a", 40_000).unwrap();
        let write = |offset, fill| PageWrite { offset, bytes: vec![fill; 512] };
        let mut buffer = Aligned::default();
        store.write(&[write(512, 1)], &mut buffer).unwrap();
        store.write(&[write(0, 2), write(1024, 3)], &mut buffer).unwrap();
        let read = store.read(2048).unwrap();
        assert_eq!([read[0], read[600], read[1100], read[1600]], [2, 1, 3, 0]);
        assert_eq!(buffer.bytes(5000).as_ptr().align_offset(ALIGN), 0);
    }
}
