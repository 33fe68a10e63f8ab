//! The mount point: a file that the volume covers while it is served.
//!
//! Guarantees: nothing of the user's is covered (only an empty regular file, or one made here), and
//! only what this process mounted is unmounted. Mounts by `mount(2)` where that is allowed, else
//! through the setuid helper `fusermount3`. Blocking; runs on the thread that starts or stops the
//! front end.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::FuseError;
use crate::process::mortal;

pub(super) const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// Tells the helper which descriptor to send the opened device to.
const HELPER_FD: &str = "_FUSE_COMMFD";
/// Most dead mounts stacked on one file that are cleared.
const STACKED: usize = 16;

/// A file to mount on.
pub(super) struct Point {
    /// Absolute, without symbolic links.
    pub(super) path: PathBuf,
    /// Whether it was made here.
    created: bool,
}

impl Point {
    /// Makes sure that mounting on `path` hides nothing; creates it if need be.
    pub(super) fn prepare(path: &Path) -> Result<Point, FuseError> {
        let point = |source| FuseError::Point { path: path.to_owned(), source };
        let name = path.file_name().ok_or_else(|| FuseError::NotEmptyFile { path: path.to_owned() })?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let path = parent.canonicalize().map_err(point)?.join(name);
        if clear_dead_mount(&path).map_err(point)? {
            tracing::warn!(path = %path.display(), "cleared the mount of a daemon that is gone");
        }
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == 0 => Ok(Point { path, created: false }),
            Ok(_) => Err(FuseError::NotEmptyFile { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(point)?;
                Ok(Point { path, created: true })
            }
            Err(error) => Err(point(error)),
        }
    }

    /// Removes the file if it was made here and is still empty.
    pub(super) fn remove(&self) {
        let empty = std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.is_file() && m.len() == 0);
        if self.created
            && empty
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the mount point");
        }
    }

    /// Mounts a FUSE connection here and returns its device.
    pub(super) fn mount(&self, name: &str, allow_other: bool, read_only: bool) -> Result<OwnedFd, FuseError> {
        // Both end up in comma-separated options.
        let source = format!("mirrord:{name}").replace([',', '\\'], "_");
        match self.mount_directly(&source, allow_other, read_only) {
            Err(FuseError::Mount { source: error, .. }) if error.raw_os_error() == Some(libc::EPERM) => {
                self.mount_by_helper(&source, allow_other, read_only)
            }
            result => result,
        }
    }

    fn mount_directly(&self, source: &str, other: bool, read_only: bool) -> Result<OwnedFd, FuseError> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|source| FuseError::Device { path: DEVICE.into(), source })?;
        let data = format!(
            "fd={},rootmode=100600,user_id={},group_id={},default_permissions{}",
            device.as_raw_fd(),
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
            if other { ",allow_other" } else { "" },
        );
        let data = CString::new(data).expect("options without NUL");
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, read_only);
        mount(source, &self.path, c"fuse.mirrord", flags, data.as_c_str())
            .map_err(|errno| self.mount_error(errno.into()))?;
        Ok(device.into())
    }

    fn mount_by_helper(&self, source: &str, other: bool, read_only: bool) -> Result<OwnedFd, FuseError> {
        let failed = |error| self.mount_error(error);
        let options = format!(
            "{},nosuid,nodev,default_permissions,subtype=mirrord,fsname={source}{}",
            if read_only { "ro" } else { "rw" },
            if other { ",allow_other" } else { "" },
        );
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let child = mortal(&mut Command::new(HELPER))
            .arg("-o")
            .arg(options)
            .arg("--")
            .arg(&self.path)
            .env(HELPER_FD, "0")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => FuseError::MayNotMount { path: self.path.clone(), helper: HELPER },
                _ => FuseError::Device { path: HELPER.into(), source },
            })?;
        let device = receive_fd(&ours);
        let output = child.wait_with_output().map_err(failed)?;
        match device {
            Ok(Some(device)) if output.status.success() => Ok(device),
            Err(error) => Err(failed(error)),
            Ok(_) => Err(failed(io::Error::other(said(&output.stderr)))),
        }
    }

    fn mount_error(&self, source: io::Error) -> FuseError {
        FuseError::Mount { path: self.path.clone(), source }
    }
}

/// The descriptor that the helper sends, if it sends one before it ends.
fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    let iov = &mut [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| recvmsg(socket, iov, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// How to unmount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// Fail with `EBUSY` while in use.
    Clean,
    /// Out of the name space at once; users keep what they have open.
    Lazy,
    /// As `Lazy`, and IO of users fails.
    Force,
}

/// Unmounts what is mounted on `path`.
pub(super) fn unmount_at(path: &Path, how: How) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW
        | match how {
            How::Clean => UnmountFlags::empty(),
            How::Lazy => UnmountFlags::DETACH,
            How::Force => UnmountFlags::DETACH | UnmountFlags::FORCE,
        };
    match unmount(path, flags) {
        Err(Errno::PERM) => unmount_by_helper(path, how),
        result => Ok(result?),
    }
}

fn unmount_by_helper(path: &Path, how: How) -> io::Result<()> {
    let lazy: &[&str] = if how == How::Clean { &[] } else { &["-z"] };
    let output = mortal(&mut Command::new(HELPER))
        .arg("-u")
        .args(lazy)
        .arg("--")
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()?;
    match said(&output.stderr) {
        _ if output.status.success() => Ok(()),
        text if text.contains("busy") => Err(Errno::BUSY.into()),
        text => Err(io::Error::other(text)),
    }
}

/// The device number of what `path` leads to, without asking the daemon behind it.
pub(super) fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
    let stat = statx(CWD, path, flags, StatxFlags::TYPE)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

/// Makes every request of a FUSE connection fail, also in other mount name spaces. `minor` is of
/// its device number.
pub(super) fn abort_connection(minor: u32) -> io::Result<()> {
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")
}

/// Lazily unmounts what a daemon that was killed left at `path` (`stat` says `ENOTCONN`). True if
/// there was something.
///
/// # Errors
/// When the dead mount is there and cannot be unmounted: it belongs to another user.
pub fn clear_dead_mount(path: &Path) -> io::Result<bool> {
    for cleared in 0..STACKED {
        // What the kernel remembers of the file says nothing of who serves it.
        match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC, StatxFlags::TYPE) {
            Err(Errno::NOTCONN) => unmount_at(path, How::Lazy)?,
            _ => return Ok(cleared > 0),
        }
    }
    Ok(true)
}

fn said(stderr: &[u8]) -> String {
    match String::from_utf8_lossy(stderr).trim() {
        "" => format!("{HELPER} failed without a message"),
        text => text.to_owned(),
    }
}
