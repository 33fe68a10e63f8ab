//! Opening files and devices that somebody else named or put there: legs, logs, images.
//!
//! Guarantee: no call waits for a partner (a pipe), starts something (a watchdog, a tape) or follows a name that
//! is exchanged meanwhile. What a path leads to is looked at by a descriptor that does nothing else (`O_PATH`),
//! and only a regular file or a block device is opened, through that descriptor. A file system that does not
//! answer can still hold the caller.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// What a path leads to that is neither a file nor a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// Something that this program does not know.
    Unknown,
}

impl std::fmt::Display for NodeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NodeKind::Directory => "a directory",
            NodeKind::Pipe => "a pipe",
            NodeKind::Socket => "a socket",
            NodeKind::CharDevice => "a character device",
            NodeKind::Unknown => "something unknown",
        })
    }
}

/// Why [`open_foreign`] did not open something.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// It is neither a regular file nor a block device. It was not opened.
    #[error("it is {0}, neither a file nor a block device")]
    Kind(NodeKind),
    /// The system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ForeignError> for io::Error {
    fn from(error: ForeignError) -> io::Error {
        match error {
            ForeignError::Io(error) => error,
            kind => io::Error::new(io::ErrorKind::InvalidInput, kind),
        }
    }
}

/// The kind of what has this metadata, unless it is a regular file or a block device.
///
/// # Errors
/// [`ForeignError::Kind`].
pub fn check_kind(metadata: &Metadata) -> Result<(), ForeignError> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(ForeignError::Kind(if kind.is_dir() {
        NodeKind::Directory
    } else if kind.is_fifo() {
        NodeKind::Pipe
    } else if kind.is_socket() {
        NodeKind::Socket
    } else if kind.is_char_device() {
        NodeKind::CharDevice
    } else {
        NodeKind::Unknown
    }))
}

/// Opens the regular file or block device at `path` for reading, with `write` for writing too. `flags`: more flags
/// of `open(2)`, such as `O_DIRECT`; `O_EXCL` counts for block devices only, `O_NOFOLLOW` refuses a symbolic link
/// (`ELOOP`).
///
/// # Errors
/// See [`ForeignError`]. What is neither file nor block device was not opened.
pub fn open_foreign(path: &Path, write: bool, flags: i32) -> Result<File, ForeignError> {
    let look =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | flags & libc::O_NOFOLLOW).open(path)?;
    let metadata = look.metadata()?;
    if metadata.file_type().is_symlink() {
        return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
    }
    check_kind(&metadata)?;
    let unwanted = if metadata.file_type().is_file() { libc::O_EXCL } else { 0 };
    let flags = flags & !(libc::O_NOFOLLOW | unwanted);
    let open = |path: &Path, more: i32| {
        OpenOptions::new().read(true).write(write).custom_flags(flags | more).open(path)
    };
    match open(Path::new(&format!("/proc/self/fd/{}", look.as_raw_fd())), 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        file => return Ok(file?),
    }
    // There is no /proc: by its name, which may lead elsewhere by now.
    let file = open(path, libc::O_NONBLOCK)?;
    let opened = file.metadata()?;
    if (opened.dev(), opened.ino()) != (metadata.dev(), metadata.ino()) {
        return Err(io::Error::other("it was replaced while it was being opened").into());
    }
    // io_uring answers EAGAIN for such a file where others wait.
    let set = fcntl_getfl(&file).map_err(io::Error::from)?;
    fcntl_setfl(&file, set - OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn kind(path: &Path, write: bool) -> NodeKind {
        match open_foreign(path, write, 0) {
            Err(ForeignError::Kind(kind)) => kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_files_and_block_devices_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink(at("pipe"), at("link")).unwrap();
        for write in [false, true] {
            assert_eq!(kind(dir.path(), write), NodeKind::Directory);
            assert_eq!(kind(&at("pipe"), write), NodeKind::Pipe);
            assert_eq!(kind(&at("link"), write), NodeKind::Pipe);
            assert_eq!(kind(&at("socket"), write), NodeKind::Socket);
            assert_eq!(kind(Path::new("/dev/null"), write), NodeKind::CharDevice);
        }
    }

    #[test]
    fn a_file_is_opened_as_asked() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("leg"), dir.path().join("link"));
        std::fs::write(&path, b"leg").unwrap();
        symlink(&path, &link).unwrap();
        let file = open_foreign(&link, false, 0).unwrap();
        assert!(file.write_all_at(b"x", 0).is_err());
        open_foreign(&path, true, 0).unwrap().write_all_at(b"L", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"Leg");
        open_foreign(&path, true, libc::O_NOFOLLOW).unwrap();
        let error = io::Error::from(open_foreign(&link, true, libc::O_NOFOLLOW).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = io::Error::from(open_foreign(&dir.path().join("none"), true, 0).unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
