//! What outlives the process, not the machine: a file for each log of the kernel (`mirrord_log::server::Save`).
//!
//! The files are in the runtime directory, which is in memory, and are written without being synced: a server that is
//! killed leaves them as they are, a machine that is booted does not. Where the directory is on a disk, each begins
//! with the number of the boot that it is of, and those of others are removed.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mirrord_log::server::{Save, SessionId};

/// Bytes of the boot's number, as text.
const BOOT: usize = 36;

/// See the module's documentation. Called under the server's lock, so that notes are in order.
#[derive(Debug)]
pub(crate) struct Sessions {
    folder: PathBuf,
    boot: String,
    files: HashMap<SessionId, File>,
    /// A note could not be kept: said once.
    failed: bool,
}

impl Sessions {
    /// Opens the folder, and makes it if it is not there.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn open(folder: &Path) -> io::Result<Sessions> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        if boot.len() != BOOT {
            return Err(io::Error::other("the kernel does not say which boot this is"));
        }
        Ok(Sessions { folder: folder.to_owned(), boot, files: HashMap::new(), failed: false })
    }

    /// What is there of this boot, in order. The rest is removed.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn read(&mut self) -> io::Result<Vec<(SessionId, Vec<u8>)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let id = path.file_name().and_then(|name| name.to_str()?.parse().ok()).map(SessionId);
            let bytes = fs::read(&path)?;
            match (id, bytes.strip_prefix(self.boot.as_bytes())) {
                (Some(id), Some(notes)) => {
                    self.files.insert(id, OpenOptions::new().write(true).open(&path)?);
                    found.push((id, notes.to_vec()));
                }
                _ => fs::remove_file(&path)?,
            }
        }
        found.sort();
        Ok(found)
    }

    /// Keeps notes. One that cannot be kept is said, and the log goes on: it is lost only if the server is killed.
    pub(crate) fn keep(&mut self, save: &Save) {
        let kept = match save {
            Save::Put { session, bytes } => self.put(*session, bytes),
            Save::Patch { session, offset, byte } => match self.files.get(session) {
                Some(file) => file.write_all_at(&[*byte], BOOT as u64 + offset),
                None => Ok(()),
            },
            Save::Remove { session } => {
                self.files.remove(session);
                fs::remove_file(self.path(*session))
            }
        };
        match kept {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                self.failed = true;
                let folder = self.folder.display();
                tracing::error!(%error, "{folder}: what is to outlive this server cannot be kept there");
            }
            Err(_) => {}
        }
    }

    /// All of a session, as if at once: a file that is cut off says nothing.
    fn put(&mut self, session: SessionId, bytes: &[u8]) -> io::Result<()> {
        let (path, new) = (self.path(session), self.folder.join("new"));
        // What is patched meanwhile must not go to a file that is replaced.
        self.files.remove(&session);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all_at(self.boot.as_bytes(), 0)?;
        file.write_all_at(bytes, BOOT as u64)?;
        fs::rename(&new, path)?;
        self.files.insert(session, file);
        Ok(())
    }

    fn path(&self, session: SessionId) -> PathBuf {
        self.folder.join(session.0.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut sessions = Sessions::open(dir.path()).unwrap();
        let put = |session, bytes: &[u8]| Save::Put { session: SessionId(session), bytes: bytes.to_vec() };
        sessions.keep(&put(3, b"three"));
        sessions.keep(&put(1, b"one"));
        sessions.keep(&Save::Patch { session: SessionId(3), offset: 1, byte: b'H' });
        sessions.keep(&put(2, b"two"));
        sessions.keep(&Save::Remove { session: SessionId(2) });
        fs::write(dir.path().join("7"), b"of another boot").unwrap();
        fs::write(dir.path().join("new"), b"cut off").unwrap();
        let mut next = Sessions::open(dir.path()).unwrap();
        let found = next.read().unwrap();
        assert_eq!(found, [(SessionId(1), b"one".to_vec()), (SessionId(3), b"tHree".to_vec())]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        next.keep(&Save::Patch { session: SessionId(1), offset: 0, byte: b'O' });
        assert_eq!(Sessions::open(dir.path()).unwrap().read().unwrap()[0].1, b"One");
    }
}
