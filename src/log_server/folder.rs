//! The folder in which volumes elsewhere have their logs: a file each, made when it is first asked for.
//!
//! Names come over the network, so they are plain: nothing outside of the folder can be named, links are not followed,
//! and a file that is there and holds something else than a log is left alone.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mirrord_log::DISK_MAGIC;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, fallocate, openat, unlinkat};
use rustix::io::Errno;

use super::store::errno;

/// Longest name, in bytes.
const MAX_NAME: usize = 200;

/// Bytes of a log before its bits.
const HEAD: usize = 1024;

/// Why a volume's log cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// There is no folder.
    #[error("volumes cannot have logs on disk here: no --dir was given")]
    None,
    /// It could lead elsewhere.
    #[error("log name {name:?}: use up to {MAX_NAME} of A-Z a-z 0-9 . _ - and no . in front")]
    Name {
        /// As it came.
        name: String,
    },
    /// It is no log.
    #[error("{} is there and is no log: remove it, or use another name", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot use {} as a log", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FolderError {
    /// What the asker is told.
    pub(super) fn errno(&self) -> mirrord_raid::Errno {
        match self {
            FolderError::None => mirrord_raid::Errno(Errno::OPNOTSUPP.raw_os_error()),
            FolderError::Name { .. } => mirrord_raid::Errno(Errno::INVAL.raw_os_error()),
            FolderError::NotALog { .. } => mirrord_raid::Errno(Errno::EXIST.raw_os_error()),
            FolderError::Io { source, .. } => errno(source),
        }
    }
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens it; makes it, for this user only, if it is not there.
    pub(super) fn open_at(path: &Path) -> Result<Folder, FolderError> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let failed = |source| FolderError::Io { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let fd = File::open(&path).map_err(failed)?.into();
        Ok(Folder { fd, path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a log there, at least `len` bytes long: made, or made longer, and durable as that.
    pub(super) fn open(&self, name: &str, len: u64) -> Result<File, FolderError> {
        if !is_plain(name) {
            return Err(FolderError::Name { name: name.chars().take(MAX_NAME).collect() });
        }
        let failed = |source: io::Error| FolderError::Io { path: self.path.join(name), source };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, is_new) = match openat(&self.fd, name, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(fd) => (File::from(fd), true),
            Err(Errno::EXIST) => {
                let fd =
                    openat(&self.fd, name, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
                (File::from(fd), false)
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || !is_new && !is_log(&file).map_err(failed)? {
            return Err(FolderError::NotALog { path: self.path.join(name) });
        }
        if metadata.len() < len
            && let Err(error) = self.lengthen(&file, metadata.len(), len)
        {
            if is_new {
                let _ = unlinkat(&self.fd, name, AtFlags::empty());
            }
            return Err(failed(error));
        }
        Ok(file)
    }

    fn lengthen(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), from, to - from) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => file.write_all_at(&vec![0; (to - from) as usize], from)?,
            Err(errno) => return Err(errno.into()),
        }
        file.sync_all()?;
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}

fn is_plain(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_good)
}

/// Whether it is a log, or will be one: nothing is there yet.
fn is_log(file: &File) -> io::Result<bool> {
    let mut head = [0; HEAD];
    let have = file.read_at(&mut head, 0)?;
    let is_empty = head[..have].iter().all(|&byte| byte == 0);
    Ok(is_empty || head.starts_with(&DISK_MAGIC.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn logs_are_made_and_made_longer() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open_at(&dir.path().join("logs")).unwrap();
        let path = folder.path().join("v.log");
        folder.open("v.log", 4096).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (4096, 0o600));
        fs::write(&path, [&DISK_MAGIC.to_le_bytes()[..], &[7; 4092]].concat()).unwrap();
        folder.open("v.log", 2048).unwrap();
        folder.open("v.log", 8192).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes.len(), bytes[4095], bytes[4096]), (8192, 7, 0));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open_at(&dir.path().join("logs")).unwrap();
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a b", "a\0b", "ä", &long] {
            let error = folder.open(name, 4096).unwrap_err();
            assert!(matches!(error, FolderError::Name { .. }), "{name}: {error}");
        }
        std::os::unix::fs::symlink("../x", folder.path().join("link")).unwrap();
        assert!(folder.open("link", 4096).is_err());
        fs::write(folder.path().join("letter"), "dear all").unwrap();
        let error = folder.open("letter", 4096).unwrap_err();
        assert!(matches!(error, FolderError::NotALog { .. }), "{error}");
        fs::create_dir(folder.path().join("dir")).unwrap();
        assert!(folder.open("dir", 4096).is_err());
        assert_eq!(fs::read(folder.path().join("letter")).unwrap(), b"dear all");
        assert!(!dir.path().join("x").exists());
    }
}
