//! An open, locked leg: what create and start work on.
//!
//! Owns both open files of a leg, one for data (O_DIRECT where there is such a thing) and one for
//! metadata (buffered), of the same inode. Guarantees: no other mirrord has the leg open while an
//! [`OpenLeg`] lives, a block device is claimed exclusively, and nothing was changed by opening. The
//! lock belongs to the data file, so that requests of a killed daemon that are still in flight keep
//! it until they are done. Opening one file twice is told apart from a leg in use by [`same_twice`],
//! which compares what paths lead to.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use mirrord_log::{Backing, measure};
use mirrord_ublk::{ForeignError, LegFile, NodeKind, open_foreign};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// When a file was created, in ns since 1970; 0 of a device, and where the file system does not say.
pub fn born(file: &File) -> u64 {
    let metadata = file.metadata().ok().filter(Metadata::is_file);
    let born = metadata.and_then(|metadata| metadata.created().ok()?.duration_since(UNIX_EPOCH).ok());
    born.map_or(0, |born| born.as_nanos() as u64)
}

/// How long is waited for whoever has a leg, not known to live, to let go of it.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// How long a start waits for requests of a killed daemon: a disk that has to try again takes this long.
pub const LATE_PATIENCE: Duration = Duration::from_secs(60);

/// Between two tries to lock a leg.
pub(crate) const LOCK_RETRY: Duration = Duration::from_millis(100);

/// What a path leads to, the same for every path, link or device node that leads there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FileId {
    /// A file.
    File {
        /// Device number of its file system.
        dev: u64,
        /// Its inode.
        ino: u64,
    },
    /// A device.
    Device {
        /// Its own device number.
        rdev: u64,
    },
}

impl FileId {
    /// What `path` leads to.
    ///
    /// # Errors
    /// As `stat(2)`.
    pub fn of_path(path: &Path) -> io::Result<FileId> {
        fs::metadata(path).map(|metadata| FileId::of(&metadata))
    }

    /// What `metadata` is of.
    pub fn of(metadata: &fs::Metadata) -> FileId {
        if metadata.file_type().is_block_device() {
            FileId::Device { rdev: metadata.rdev() }
        } else {
            FileId::File { dev: metadata.dev(), ino: metadata.ino() }
        }
    }
}

/// Who has a leg.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A process that holds the lock.
    Process(u32),
    /// A process that is gone: its last requests hold the lock.
    Late(u32),
    /// A loop device that can write to it.
    Loop(String),
    /// Not known: a mount, an array, or a process that cannot be seen from here.
    Unknown,
}

impl Holder {
    /// Whether it is known to be a process that runs, or a device: neither lets go by itself.
    fn is_alive(&self) -> bool {
        matches!(self, Holder::Process(_) | Holder::Loop(_))
    }

    fn way_out(&self) -> &'static str {
        match self {
            Holder::Late(_) => "try again when its disk has answered them",
            _ => "stop that first",
        }
    }
}

/// Whether there is such a process and it has not ended.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any byte.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Holder::Process(pid) => write!(f, "process {pid}"),
            Holder::Late(pid) => write!(f, "the last requests of process {pid}, which is gone"),
            Holder::Loop(name) => write!(f, "/dev/{name}"),
            Holder::Unknown => f.write_str("a mount, an array or another process"),
        }
    }
}

/// Why a leg could not be opened. Paths are as they were given.
#[derive(Debug, thiserror::Error)]
pub enum LegError {
    /// Nothing there.
    #[error("leg {}: there is no such file", path.display())]
    NotFound {
        /// The leg.
        path: PathBuf,
    },
    /// A directory, pipe, socket or character device.
    #[error("leg {}: it is {kind}, neither a file nor a block device", path.display())]
    Kind {
        /// The leg.
        path: PathBuf,
        /// What it is.
        kind: NodeKind,
    },
    /// Not writable here.
    #[error("leg {}: it cannot be opened for writing", path.display())]
    ReadOnly {
        /// The leg.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Locked, claimed or written to by somebody else.
    #[error("leg {}: it is in use by {holder}; {}", path.display(), holder.way_out())]
    InUse {
        /// The leg.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// Two of the paths lead to one file.
    #[error("legs {} and {} are the same file", one.display(), other.display())]
    SameTwice {
        /// One of the paths.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A path that JSON cannot carry.
    #[error("leg {}: its path is not UTF-8", path.display())]
    NotUtf8 {
        /// The leg.
        path: PathBuf,
    },
    /// Anything else.
    #[error("leg {}: it cannot be opened", path.display())]
    Io {
        /// The leg.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// How long to wait for a leg that is in use. The default is not to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// For whoever is not known to live.
    pub unknown: Duration,
    /// For requests of a process that is gone.
    pub late: Duration,
    /// Called once with what is waited for, if that takes long.
    pub tell: Option<fn(&str)>,
}

impl Patience {
    /// For a process that ends, or was killed, just now.
    pub const SHORT: Patience = Patience { unknown: LOCK_PATIENCE, late: LOCK_PATIENCE, tell: None };

    fn with(&self, holder: &Holder) -> Duration {
        match holder {
            Holder::Late(_) => self.late,
            Holder::Unknown => self.unknown,
            Holder::Process(_) | Holder::Loop(_) => Duration::ZERO,
        }
    }
}

/// An open, locked leg.
#[derive(Debug)]
pub struct OpenLeg {
    /// Where it is: as it was given, made absolute.
    pub path: PathBuf,
    /// For data, and the owner of the lock.
    pub data: Arc<LegFile>,
    /// For metadata: through the page cache.
    pub meta: File,
    /// File or device.
    pub backing: Backing,
    /// Length in bytes when it was opened.
    pub len: u64,
}

impl OpenLeg {
    /// Opens and locks the leg at `path`, or fails at once.
    ///
    /// # Errors
    /// See [`LegError`].
    pub fn open(path: &Path) -> Result<OpenLeg, LegError> {
        OpenLeg::open_waiting(path, Patience::default())
    }

    /// As [`OpenLeg::open`], but waits for a process that was killed to let go of the leg. One that lives keeps
    /// it, so that is not waited for.
    ///
    /// # Errors
    /// See [`LegError`].
    pub fn open_waiting(path: &Path, patience: Patience) -> Result<OpenLeg, LegError> {
        let mut told = false;
        // A device is let go of in steps: who has it changes, and with that what is to be waited for.
        let mut last: Option<(Holder, Instant)> = None;
        loop {
            let result = OpenLeg::try_open(path);
            let Err(LegError::InUse { holder, .. }) = &result else { return result };
            let since = match &last {
                Some((same, since)) if same == holder => *since,
                _ => last.insert((holder.clone(), Instant::now())).1,
            };
            if since.elapsed() >= patience.with(holder) {
                return result;
            }
            if let (false, true, Some(tell)) = (told, since.elapsed() >= LOCK_PATIENCE, patience.tell) {
                tell(&format!("leg {}: waiting for {holder}", path.display()));
                told = true;
            }
            thread::sleep(LOCK_RETRY);
        }
    }

    /// Opens and locks every leg in `paths`, none of them if one fails.
    ///
    /// # Errors
    /// See [`LegError`].
    pub fn open_all(paths: &[PathBuf], patience: Patience) -> Result<Vec<OpenLeg>, LegError> {
        let mut ids = Vec::with_capacity(paths.len());
        for path in paths {
            let id = FileId::of_path(path).map_err(|source| error_of(path, source))?;
            ids.push((path.as_path(), id));
        }
        same_twice(&ids)?;
        paths.iter().map(|path| OpenLeg::open_waiting(path, patience)).collect()
    }

    /// What it is, whatever path leads to it.
    pub fn id(&self) -> FileId {
        // The file is open: asking for its metadata fails only if the system is out of memory.
        self.meta.metadata().map_or(FileId::File { dev: 0, ino: 0 }, |metadata| FileId::of(&metadata))
    }

    fn try_open(path: &Path) -> Result<OpenLeg, LegError> {
        let io_error = |source| error_of(path, source);
        if path.to_str().is_none() {
            return Err(LegError::NotUtf8 { path: path.to_owned() });
        }
        let data = LegFile::open(path, true).map_err(|error| match error {
            ForeignError::Kind(kind) => LegError::Kind { path: path.to_owned(), kind },
            ForeignError::Io(source) => match (Errno::from_io_error(&source), fs::metadata(path)) {
                // Who locked a device has claimed it too.
                (Some(Errno::BUSY), Ok(metadata)) => {
                    LegError::InUse { path: path.to_owned(), holder: lock_holder(&metadata) }
                }
                _ => io_error(source),
            },
        })?;
        let metadata = data.file().metadata().map_err(io_error)?;
        let id = FileId::of(&metadata);
        let in_use = |holder| LegError::InUse { path: path.to_owned(), holder };
        if let Some(holder) = try_lock(data.file(), &metadata).map_err(io_error)? {
            return Err(in_use(holder));
        }
        if let Some(name) = writable_loop_over(id) {
            return Err(in_use(Holder::Loop(name)));
        }
        // Before anything is read: what an earlier process could not flush may be cached as if it were there.
        if let Err(error) = data.forget_cached() {
            tracing::warn!(leg = %path.display(), %error, "what was written before is lost in part: the disk counts");
        }
        let meta = open_again(path, &data, id).map_err(io_error)?;
        let (backing, len) = measure(&meta).map_err(io_error)?;
        let path = std::path::absolute(path).map_err(io_error)?;
        Ok(OpenLeg { path, data: Arc::new(data), meta, backing, len })
    }
}

/// Refuses two paths that lead to one file.
///
/// # Errors
/// [`LegError::SameTwice`] names the first such pair.
pub fn same_twice(ids: &[(&Path, FileId)]) -> Result<(), LegError> {
    for (at, (other, id)) in ids.iter().enumerate() {
        if let Some((one, _)) = ids[..at].iter().find(|(_, earlier)| earlier == id) {
            return Err(LegError::SameTwice { one: one.to_path_buf(), other: other.to_path_buf() });
        }
    }
    Ok(())
}

/// Opens what is at `path` to look at it. Takes no lock.
///
/// # Errors
/// [`LegError::NotFound`], [`LegError::Kind`], [`LegError::Io`].
pub fn open_to_read(path: &Path) -> Result<File, LegError> {
    let path_of = || path.to_owned();
    open_foreign(path, false, 0).map_err(|error| match error {
        ForeignError::Kind(kind) => LegError::Kind { path: path_of(), kind },
        ForeignError::Io(source) if source.kind() == io::ErrorKind::NotFound => {
            LegError::NotFound { path: path_of() }
        }
        ForeignError::Io(source) => LegError::Io { path: path_of(), source },
    })
}

fn error_of(path: &Path, source: io::Error) -> LegError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::NOENT | Errno::NOTDIR) => LegError::NotFound { path },
        Some(Errno::ROFS | Errno::ACCESS | Errno::PERM) => LegError::ReadOnly { path, source },
        Some(Errno::BUSY) => LegError::InUse { path, holder: Holder::Unknown },
        Some(Errno::ISDIR) => LegError::Kind { path, kind: NodeKind::Directory },
        _ => LegError::Io { path, source },
    }
}

/// The same file once more, through the page cache.
fn open_again(path: &Path, data: &LegFile, id: FileId) -> io::Result<File> {
    let open = |path: &Path| open_foreign(path, true, 0);
    let this = format!("/proc/self/fd/{}", data.file().as_raw_fd());
    let file = open(Path::new(&this)).or_else(|_| open(path))?;
    if FileId::of(&file.metadata()?) != id {
        return Err(io::Error::other("it was replaced while it was being opened"));
    }
    Ok(file)
}

/// Locks `file` against every other mirrord until it is closed, or says who has it. Waits up to
/// `patience` for a process that was killed to let go of it.
///
/// # Errors
/// As `flock(2)`.
pub fn lock_waiting(file: &File, patience: Duration) -> io::Result<Option<Holder>> {
    let metadata = file.metadata()?;
    let deadline = Instant::now() + patience;
    loop {
        match try_lock(file, &metadata)? {
            Some(holder) if Instant::now() < deadline && !holder.is_alive() => thread::sleep(LOCK_RETRY),
            result => return Ok(result),
        }
    }
}

fn try_lock(file: &File, metadata: &fs::Metadata) -> io::Result<Option<Holder>> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(Some(lock_holder(metadata))),
        result => Ok(result.map(|()| None)?),
    }
}

/// Who holds the flock on the file, as far as `/proc/locks` tells.
fn lock_holder(metadata: &fs::Metadata) -> Holder {
    let dev = metadata.dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
        (words.next()? == place).then_some(pid)
    });
    pid.map_or(Holder::Unknown, |pid| if runs(pid) { Holder::Process(pid) } else { Holder::Late(pid) })
}

/// The name of a loop device that can write to the file: it knows of no lock.
pub(crate) fn writable_loop_over(id: FileId) -> Option<String> {
    let read = |path: PathBuf| fs::read_to_string(path).ok();
    fs::read_dir("/sys/block").ok()?.filter_map(Result::ok).find_map(|entry| {
        let backing = read(entry.path().join("loop/backing_file"))?;
        let is_it = FileId::of_path(Path::new(backing.trim_end_matches('\n'))).is_ok_and(|found| found == id);
        let writable = read(entry.path().join("ro"))?.trim() == "0";
        (is_it && writable).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn leg(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    #[test]
    fn a_leg_is_locked_while_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = leg(dir.path(), "a");
        let open = OpenLeg::open(&path).unwrap();
        assert_eq!((open.backing, open.len), (Backing::File, 1 << 20));
        match OpenLeg::open(&path) {
            Err(LegError::InUse { holder: Holder::Process(pid), .. }) => assert_eq!(pid, std::process::id()),
            Err(LegError::InUse { holder: Holder::Unknown, .. }) => {}
            other => panic!("{other:?}"),
        }
        drop(open);
        OpenLeg::open_waiting(&path, Patience::SHORT).unwrap();
    }

    /// A loop device whose file lies on a full file system loses what is written; its pages stay in memory.
    #[test]
    fn what_could_not_be_flushed_is_not_read() {
        let run = |program: &str, args: &[&str]| {
            let output = std::process::Command::new(program).args(args).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let dir = tempfile::tempdir().unwrap();
        let (at, image) = (dir.path().to_str().unwrap(), dir.path().join("image"));
        let mounted = run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", at]).is_some();
        let device = mounted.then(|| {
            File::create(&image).unwrap().set_len(16 << 20).unwrap();
            run("losetup", &["-f", "--show", image.to_str().unwrap()])
        });
        if let Some(device) = device.flatten() {
            let mut read = [0; 512];
            let writer = File::options().read(true).write(true).open(&device).unwrap();
            writer.write_all_at(&vec![7; 1 << 20], 0).unwrap();
            assert!(writer.sync_data().is_err(), "there is no room for it");
            writer.read_exact_at(&mut read, 512 << 10).unwrap();
            assert_eq!(read, [7; 512], "the page cache shows it");
            let open = OpenLeg::open(Path::new(&device)).unwrap();
            open.meta.read_exact_at(&mut read, 512 << 10).unwrap();
            assert_eq!(read, [0; 512]);
            drop((open, writer));
            run("losetup", &["-d", &device]);
        } else {
            println!("SKIP: a leg whose cache is stale: needs root, tmpfs and loop devices");
        }
        run("umount", &["-l", at]);
    }

    #[test]
    fn one_file_by_two_paths_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = leg(dir.path(), "a");
        let (hard, soft) = (dir.path().join("hard"), dir.path().join("soft"));
        fs::hard_link(&path, &hard).unwrap();
        std::os::unix::fs::symlink(&path, &soft).unwrap();
        for other in [&path, &hard, &soft] {
            let error = OpenLeg::open_all(&[path.clone(), other.clone()], Patience::default()).unwrap_err();
            assert!(matches!(error, LegError::SameTwice { .. }), "{error}");
        }
        OpenLeg::open_all(&[path.clone(), leg(dir.path(), "b")], Patience::SHORT).unwrap();
    }

    #[test]
    fn what_is_no_leg_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (path, what) in
            [(dir.path(), NodeKind::Directory), (Path::new("/dev/null"), NodeKind::CharDevice)]
        {
            assert!(matches!(OpenLeg::open(path), Err(LegError::Kind { kind, .. }) if kind == what));
            assert!(matches!(open_to_read(path), Err(LegError::Kind { kind, .. }) if kind == what));
        }
        assert!(matches!(OpenLeg::open(&dir.path().join("none")), Err(LegError::NotFound { .. })));
    }
}
