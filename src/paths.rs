//! Where mirrord keeps what is not on the legs.
//!
//! | directory | root | others | override |
//! |---|---|---|---|
//! | runtime: sockets, locks, log files, volumes served as files | `/run/mirrord` | `$XDG_RUNTIME_DIR/mirrord` | `MIRRORD_RUNTIME_DIR` |
//! | state: known volumes | `/var/lib/mirrord` | `$XDG_STATE_HOME/mirrord` | `MIRRORD_STATE_DIR` |
//!
//! Without `XDG_RUNTIME_DIR` the runtime directory is `/tmp/mirrord-UID`. Both are made on demand with
//! mode 0700; one that belongs to somebody else or that others may write to is refused, for whoever
//! can replace a socket in it can answer for a volume.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, OFlags, accessat, flock};
use rustix::io::Errno;

/// Longest path of a socket that the system can bind, in bytes (`sun_path` with its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// It cannot be made or looked at.
    #[error("cannot use the directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else could put something there.
    #[error("the directory {} belongs to or can be written by others: remove it or set {variable}", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// What to set to use another.
        variable: &'static str,
    },
    /// A socket there could not be bound.
    #[error("the path {} is too long for a socket: set MIRRORD_RUNTIME_DIR to a shorter directory", path.display())]
    TooLong {
        /// The path of the socket.
        path: PathBuf,
    },
}

/// The two directories.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dirs {
    runtime: PathBuf,
    state: PathBuf,
}

const RUNTIME_VARIABLE: &str = "MIRRORD_RUNTIME_DIR";
const STATE_VARIABLE: &str = "MIRRORD_STATE_DIR";

impl Dirs {
    /// As this process' user and environment say. Makes nothing.
    pub fn from_env() -> Dirs {
        let uid = rustix::process::geteuid();
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let runtime = variable(RUNTIME_VARIABLE).unwrap_or_else(|| match variable("XDG_RUNTIME_DIR") {
            _ if uid.is_root() => PathBuf::from("/run/mirrord"),
            Some(dir) => dir.join("mirrord"),
            None => PathBuf::from(format!("/tmp/mirrord-{}", uid.as_raw())),
        });
        let state = variable(STATE_VARIABLE).unwrap_or_else(|| {
            if uid.is_root() {
                return PathBuf::from("/var/lib/mirrord");
            }
            let home = || variable("HOME").unwrap_or_else(|| PathBuf::from("/")).join(".local/state");
            variable("XDG_STATE_HOME").unwrap_or_else(home).join("mirrord")
        });
        Dirs::new(runtime, state)
    }

    /// These two, made absolute.
    pub fn new(runtime: PathBuf, state: PathBuf) -> Dirs {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Dirs { runtime: absolute(runtime), state: absolute(state) }
    }

    /// The runtime directory.
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Makes both if they are not there, and the socket of `name` possible.
    ///
    /// # Errors
    /// See [`PathsError`].
    pub fn prepare(&self, name: &str) -> Result<(), PathsError> {
        let path = self.socket(name);
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(PathsError::TooLong { path });
        }
        private(&self.runtime, RUNTIME_VARIABLE)?;
        private(&self.state, STATE_VARIABLE)
    }

    /// Those of log servers, whose sockets and locks are apart from those of volumes: a folder in the runtime directory.
    pub fn log_servers(&self) -> Dirs {
        Dirs { runtime: self.runtime.join("log-serve"), state: self.state.clone() }
    }

    /// Looks at both without making anything: each with whether it is there, or why [`Dirs::prepare`] would
    /// fail.
    pub fn look(&self) -> [(&Path, Result<bool, PathsError>); 2] {
        [(&self.runtime, RUNTIME_VARIABLE), (&self.state, STATE_VARIABLE)]
            .map(|(path, variable)| (path.as_path(), look(path, variable)))
    }

    /// The control socket of a volume.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.runtime.join(format!("{name}.sock"))
    }

    /// Where a volume is served if it is not said.
    pub fn mount(&self, name: &str) -> PathBuf {
        self.runtime.join(format!("{name}.img"))
    }

    /// The log file of a volume's daemon.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.runtime.join(format!("{name}.log"))
    }

    /// The names of volumes that have a socket, dead or alive, in order.
    pub fn sockets(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.runtime).into_iter().flatten().filter_map(Result::ok);
        let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned());
        let mut names: Vec<String> = entries.filter_map(name).collect();
        names.sort();
        names
    }

    /// Takes the name of a volume, which one process at a time can have.
    ///
    /// # Errors
    /// [`PathsError::Io`]; `Ok(None)` if another process has it.
    pub fn lock(&self, name: &str) -> Result<Option<NameLock>, PathsError> {
        self.prepare(name)?;
        let path = self.runtime.join(format!("{name}.lock"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let io_error = |errno: Errno| PathsError::Io { path: path.clone(), source: errno.into() };
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(io_error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(NameLock(file.into()))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(io_error(errno)),
        }
    }
}

/// The name of a volume, taken until this is dropped. The lock file stays.
#[derive(Debug)]
pub struct NameLock(File);

impl NameLock {
    /// Lets go of the name at once. Closing the file would leave it locked as long as another process has it open, between
    /// fork and exec, and where something in this process hangs until that has ended.
    pub fn release(&self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        self.release();
    }
}

/// Why a name cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a name is 1 to {MAX_NAME} of A-Z a-z 0-9 . _ - and begins with neither - nor .")]
pub struct BadName;

/// Most bytes in a name.
pub const MAX_NAME: usize = mirrord_log::MAX_NAME;

/// Whether `name` can be the name of a volume.
///
/// # Errors
/// [`BadName`] says what a name is.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good =
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_good) && !name.starts_with(['-', '.']);
    if good { Ok(()) } else { Err(BadName) }
}

fn private(path: &Path, variable: &'static str) -> Result<(), PathsError> {
    let io_error = |source| PathsError::Io { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error)?;
    check(path, &fs::metadata(path).map_err(io_error)?, variable)
}

fn check(path: &Path, metadata: &fs::Metadata, variable: &'static str) -> Result<(), PathsError> {
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !ours || metadata.mode() & 0o022 != 0 {
        return Err(PathsError::NotPrivate { path: path.to_owned(), variable });
    }
    Ok(())
}

fn look(path: &Path, variable: &'static str) -> Result<bool, PathsError> {
    let io_error = |source| PathsError::Io { path: path.to_owned(), source };
    let writable = |path: &Path| {
        let access = Access::WRITE_OK | Access::EXEC_OK;
        accessat(CWD, path, access, AtFlags::EACCESS).map_err(|errno| io_error(errno.into()))
    };
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => Err(io_error(io::ErrorKind::NotADirectory.into())),
        Ok(metadata) => {
            check(path, &metadata, variable)?;
            writable(path).map(|()| true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = path.ancestors().find(|ancestor| ancestor.exists());
            writable(there.unwrap_or(Path::new("/"))).map(|()| false)
        }
        Err(error) => Err(io_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_are_checked() {
        for good in ["a", "mirror0", "my-disk_1.img", &"x".repeat(64)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(check_name(bad), Err(BadName), "{bad}");
        }
    }

    #[test]
    fn a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().join("run"), dir.path().join("state"));
        let lock = dirs.lock("a").unwrap().unwrap();
        assert!(dirs.lock("a").unwrap().is_none());
        assert!(dirs.lock("b").unwrap().is_some());
        drop(lock);
        assert!(dirs.lock("a").unwrap().is_some());
        assert_eq!(fs::metadata(dirs.runtime()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().join("run"), dir.path().join("state"));
        dirs.prepare("a").unwrap();
        fs::set_permissions(dirs.runtime(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(dirs.prepare("a"), Err(PathsError::NotPrivate { .. })));
        let long = Dirs::new(dir.path().join("x".repeat(100)), dir.path().into());
        assert!(matches!(long.prepare("a"), Err(PathsError::TooLong { .. })));
    }
}
