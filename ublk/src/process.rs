//! What a daemon asks of the kernel for its own process, where the call itself is unsafe.
//!
//! Guarantees: nothing here touches memory or closes a descriptor of this process. The caller says when and
//! whether; nothing is decided here.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Lets no program that this process executes from now on inherit a descriptor from `first` on, whoever
/// opened it: nothing is closed here, so descriptors that are in use stay so.
///
/// # Errors
/// When the kernel has no `close_range` and there is no `/proc`.
pub fn inherit_none_from(first: RawFd) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: with this flag the call closes nothing; it touches no memory.
    if unsafe { libc::close_range(first as libc::c_uint, libc::c_uint::MAX, flags) } == 0 {
        return Ok(());
    }
    // Before Linux 5.11, or where a filter forbids the call.
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if fd < first {
            continue;
        }
        // SAFETY: the descriptor is borrowed for two calls that ask for and set a flag of it; if it was
        // closed meanwhile they say so.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        match fcntl_getfd(fd).and_then(|flags| fcntl_setfd(fd, flags | FdFlags::CLOEXEC)) {
            Ok(()) | Err(Errno::BADF) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Gives this thread, and threads that it starts from now on, mounts of their own: mounts that others make
/// and undo still show here, what is mounted here shows nowhere else. A daemon that serves a block device
/// needs that: ended as the last user of a mount on its own device it would wait for itself.
///
/// Where mounts are private, what others unmount stays mounted here. So every volume that another daemon serves through
/// FUSE is unmounted here: its clean stop would wait for this process. This process needs none of them: no leg can lie on
/// such a file, which cannot grow by the leg's metadata.
///
/// Not for a daemon that serves through FUSE, whose mount others are to see.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn own_mount_namespace() -> io::Result<()> {
    // SAFETY: descriptors stay shared; the mounts, root and working directory of this thread alone change.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // Private mounts would keep alive what is unmounted elsewhere.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags)?;
    volumes_that_stay(&own_mountinfo()?).iter().try_for_each(|path| leave(Path::new(path)).map(drop))
}

/// After [`own_mount_namespace`]: lets go of every mount of a file system on block device `device` (major,
/// minor), which a volume that is taken over may have. Others keep theirs. Gives their number.
///
/// # Errors
/// When there is no `/proc`, or what unmounting says.
pub fn leave_mounts_of(device: (u32, u32)) -> io::Result<usize> {
    let mut left = 0;
    // The last first: it may lie on an earlier one.
    for path in mount_points(&own_mountinfo()?, device).iter().rev() {
        left += usize::from(leave(Path::new(path))?);
    }
    Ok(left)
}

fn own_mountinfo() -> io::Result<String> {
    std::fs::read_to_string("/proc/thread-self/mountinfo")
}

/// Whether something was mounted there still.
fn leave(path: &Path) -> io::Result<bool> {
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        // Gone with, or hidden by, one that was left before.
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Where volumes are mounted that are served through FUSE and would stay so if others unmounted them, as
/// `/proc/PID/mountinfo` says.
fn volumes_that_stay(mountinfo: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let stays = !mount.split(' ').skip(6).any(|field| field.starts_with("master:"));
        let is_volume = file_system.starts_with("fuse.mirrord ");
        (stays && is_volume).then(|| unescape(mount.split(' ').nth(4).unwrap_or_default()))
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Where file systems of `device` are mounted, as `/proc/PID/mountinfo` says.
fn mount_points(mountinfo: &str, (major, minor): (u32, u32)) -> Vec<String> {
    let device = format!("{major}:{minor}");
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == device).then(|| unescape(fields.nth(1).unwrap_or_default()))
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// A path of mountinfo: blanks, tabs, line ends and backslashes are written as `\ooo`.
fn unescape(path: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escaped, plain)| path.replace(escaped, plain))
}

/// Makes a program that is run as mortal as any: a daemon's protection against being killed for memory is
/// not for its helpers, which would inherit it.
pub(crate) fn mortal(command: &mut Command) -> &mut Command {
    let reset = || {
        // SAFETY: three system calls on a constant path and text, all of which may be made between fork and
        // exec; the descriptor is closed where it was opened.
        unsafe {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                // Refused where it would raise the protection: then there is none to take away.
                libc::write(fd, c"0".as_ptr().cast(), 1);
                libc::close(fd);
            }
        }
        Ok(())
    };
    // SAFETY: `reset` allocates nothing, takes no lock and makes system calls only.
    unsafe { command.pre_exec(reset) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn programs_inherit_nothing_that_was_left_open() {
        let file = tempfile::tempfile().unwrap();
        let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        let seen = || Command::new("readlink").arg(&fd).output().unwrap().stdout;
        let ours = std::fs::read_link(&fd).unwrap();
        let is_ours = |seen: Vec<u8>| String::from_utf8(seen).unwrap().trim_end() == ours.to_str().unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        assert!(is_ours(seen()));
        inherit_none_from(3).unwrap();
        assert!(!is_ours(seen()));
        assert!(file.metadata().is_ok(), "nothing was closed");
    }

    #[test]
    fn a_helper_is_mortal() {
        let said = mortal(Command::new("cat").arg("/proc/self/oom_score_adj")).output().unwrap();
        let score: i32 = String::from_utf8(said.stdout).unwrap().trim().parse().unwrap();
        assert!(score >= 0, "{score}");
    }

    #[test]
    fn mounts_made_in_an_own_namespace_are_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let mounted = |whose: &str| {
            let text = std::fs::read_to_string(format!("/proc/{whose}/mountinfo")).unwrap();
            text.contains(path.to_str().unwrap())
        };
        // The namespace ends with the thread.
        let inside = || {
            if let Err(error) = own_mount_namespace() {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                println!("SKIP: a mount namespace of one's own: needs CAP_SYS_ADMIN");
                return;
            }
            let text = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert!(!text.contains(" shared:"), "{text}");
            rustix::mount::mount("none", &path, c"tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            assert!(mounted("thread-self") && !mounted("self"));
            let stat = rustix::fs::stat(&path).unwrap();
            let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
            assert_eq!(leave_mounts_of(device).unwrap(), 1);
            assert!(!mounted("thread-self"));
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
        assert!(!mounted("self"));
    }

    #[test]
    fn volumes_that_others_cannot_unmount_here_are_found() {
        let text = "25 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    30 25 0:52 / /mnt/a\\040b rw,relatime - fuse.mirrord mirrord:v rw,user_id=0\n\
                    31 25 0:53 / /mnt/c rw,relatime master:7 - fuse.mirrord mirrord:w rw,user_id=0\n\
                    32 25 0:54 / /mnt/d rw - fuse.sshfs host:/fuse.mirrord rw\n";
        assert_eq!(volumes_that_stay(text), ["/mnt/a b"]);
    }

    #[test]
    fn mount_points_are_found_by_device() {
        let text = "25 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    30 25 259:7 / /mnt/a\\040b rw,relatime shared:5 - ext4 /dev/ublkb0 rw\n\
                    31 25 259:7 /sub /srv rw - ext4 /dev/ublkb0 rw\n";
        assert_eq!(mount_points(text, (259, 7)), ["/mnt/a b", "/srv"]);
        assert!(mount_points(text, (25, 1)).is_empty());
    }
}
