//! What the server notes of the kernel's logs, in files that outlive it: one each in `log-serve/NAME/sessions` of the
//! runtime directory.
//!
//! They must survive a `kill -9` of the server and not a reboot, after which the kernel has no mirror that could ask.
//! So nothing is ever synced, the directory should be in memory (tmpfs), and each file begins with the id of
//! the boot it was made in. A file is replaced whole by renaming, or changed byte by byte: no kill leaves half of
//! a change.
//!
//! A file that could not be written is removed: without notes the kernel constructs its log anew and resyncs more, with
//! old ones it would resync too little.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mirrord_log::server::{Save, SessionId};
use rustix::fs::statfs;

/// Bytes before the notes: the boot's id, and zeroes.
const HEAD: usize = 64;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// File systems in memory (linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Why there can be no notes.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// The folder cannot be used.
    #[error("cannot keep what is known of the kernel's logs in {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The folder with the notes.
#[derive(Debug)]
pub(super) struct Sessions {
    folder: PathBuf,
    head: [u8; HEAD],
    open: HashMap<SessionId, File>,
    in_memory: bool,
}

impl Sessions {
    /// Opens the folder; makes it, for this user only, if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Sessions, SessionsError> {
        let failed = |source| SessionsError::Io { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let mut head = [0; HEAD];
        let id = boot.trim().as_bytes();
        let len = id.len().min(HEAD);
        head[..len].copy_from_slice(&id[..len]);
        let kind = statfs(folder).map_err(|errno| failed(errno.into()))?.f_type;
        let in_memory = IN_MEMORY.contains(&kind);
        Ok(Sessions { folder: folder.to_owned(), head, open: HashMap::new(), in_memory })
    }

    /// Whether the folder is in memory.
    pub(super) fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// How many notes there are.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// What a server that was here before left, in the order it was made. Notes of an earlier boot are removed.
    pub(super) fn left(&mut self) -> Result<Vec<(SessionId, Vec<u8>)>, SessionsError> {
        let failed = |source| SessionsError::Io { path: self.folder.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            let bytes = fs::read(&path).map_err(failed)?;
            match (number, bytes.strip_prefix(&self.head)) {
                (Some(number), Some(notes)) => found.push((SessionId(number), notes.to_vec())),
                _ => fs::remove_file(&path).map_err(failed)?,
            }
        }
        found.sort();
        for (session, _) in &found {
            let file = File::options().write(true).open(self.path(*session)).map_err(failed)?;
            self.open.insert(*session, file);
        }
        Ok(found)
    }

    fn path(&self, session: SessionId) -> PathBuf {
        self.folder.join(session.0.to_string())
    }

    /// Keeps what is to be kept.
    pub(super) fn keep(&mut self, saves: &[Save]) {
        for save in saves {
            let (session, result) = match save {
                Save::Put { session, bytes } => (*session, self.put(*session, bytes)),
                Save::Patch { session, offset, byte } => (*session, self.patch(*session, *offset, *byte)),
                Save::Remove { session } => {
                    self.forget(*session);
                    continue;
                }
            };
            if let Err(error) = result {
                tracing::error!(
                    %error,
                    "cannot keep what is known of a log in {}: should this server be killed, its mirror resyncs more \
                     than it needs to",
                    self.folder.display()
                );
                self.forget(session);
            }
        }
    }

    fn put(&mut self, session: SessionId, notes: &[u8]) -> io::Result<()> {
        let (path, new) = (self.path(session), self.folder.join("new"));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&[&self.head[..], notes].concat())?;
        fs::rename(&new, &path)?;
        self.open.insert(session, file);
        Ok(())
    }

    fn patch(&mut self, session: SessionId, offset: u64, byte: u8) -> io::Result<()> {
        // None: it could not be kept before, and there is nothing that could mislead.
        self.open.get(&session).map_or(Ok(()), |file| file.write_all_at(&[byte], HEAD as u64 + offset))
    }

    fn forget(&mut self, session: SessionId) {
        self.open.remove(&session);
        if let Err(error) = fs::remove_file(self.path(session))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, "cannot remove {}", self.path(session).display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(session: u64, bytes: &[u8]) -> Save {
        Save::Put { session: SessionId(session), bytes: bytes.to_vec() }
    }

    #[test]
    fn notes_are_kept_for_the_next_server() {
        let dir = tempfile::tempdir().unwrap();
        let mut sessions = Sessions::open(dir.path()).unwrap();
        let patch = Save::Patch { session: SessionId(2), offset: 1, byte: b'X' };
        sessions.keep(&[put(10, b"ten"), put(2, b"two"), patch, put(3, b"three")]);
        sessions.keep(&[Save::Remove { session: SessionId(3) }, put(10, b"longer")]);
        assert_eq!(sessions.count(), 2);
        let mut next = Sessions::open(dir.path()).unwrap();
        let left = next.left().unwrap();
        assert_eq!(left, [(SessionId(2), b"tXo".to_vec()), (SessionId(10), b"longer".to_vec())]);
        next.keep(&[Save::Patch { session: SessionId(10), offset: 0, byte: b'L' }]);
        assert_eq!(Sessions::open(dir.path()).unwrap().left().unwrap()[1].1, b"Longer");
    }

    #[test]
    fn notes_of_another_boot_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut sessions = Sessions::open(dir.path()).unwrap();
        sessions.head[0] ^= 1;
        sessions.keep(&[put(1, b"old")]);
        fs::write(dir.path().join("new"), b"half").unwrap();
        assert_eq!(Sessions::open(dir.path()).unwrap().left().unwrap(), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_kept_is_not_left_half_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut sessions = Sessions::open(dir.path()).unwrap();
        sessions.keep(&[put(1, b"old")]);
        fs::create_dir(dir.path().join("new")).unwrap();
        sessions.keep(&[put(1, b"newer"), Save::Patch { session: SessionId(1), offset: 0, byte: 0 }]);
        assert!(!dir.path().join("1").exists());
        fs::remove_dir(dir.path().join("new")).unwrap();
        sessions.keep(&[put(1, b"newest")]);
        assert_eq!(Sessions::open(dir.path()).unwrap().left().unwrap(), [(SessionId(1), b"newest".to_vec())]);
    }
}
