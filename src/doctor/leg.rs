//! What a leg at a path would have: its file system, direct IO, holes, room. Tried on an unnamed file beside
//! it that goes at once; a file or device that is there is opened and not written to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mirrord_log::measure;
use mirrord_ublk::{BufferPool, LegFile, PoolConfig};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, major, minor, statvfs};

use super::finding::{Finding, Health};
use super::machine::EPERM;
use crate::failure::describe;
use crate::units::format_size;

const WHY: &str = "direct IO keeps legs out of the page cache, holes keep sparse legs sparse";

/// Bytes of what is written as a trial: a block of any device.
const BLOCK: usize = 4096;

/// File systems that are gone at the next boot.
const VOLATILE: [&str; 2] = ["tmpfs", "ramfs"];

/// A place for a leg.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Place {
    /// Type of the file system, or `block device`.
    kind: String,
    /// Alignment of direct IO in bytes: of offsets, and of memory. `None`: there is no direct IO.
    direct: Option<(u32, u32)>,
    /// Whether holes can be punched; `None` if it could not be tried.
    holes: Option<bool>,
    /// Bytes: free in the file system, or of the device.
    room: u64,
}

/// Looks at `path`, which is a folder for legs, or a leg.
pub(super) fn examine(path: &Path) -> Finding {
    let check = format!("leg {}", path.display());
    match place(path) {
        Ok(place) => judge(&check, &place),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::NotFound if path.is_dir() => "name another folder: no file can be made there",
                io::ErrorKind::NotFound => "name a file, a device, or the folder where legs are to be",
                io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(EPERM) => {
                    "the system forbids it whoever asks: a container must be given the device"
                }
                io::ErrorKind::PermissionDenied => "give this user the right to write there",
                io::ErrorKind::ReadOnlyFilesystem => "mount it for writing",
                io::ErrorKind::ResourceBusy => "it is mounted or part of something else: end that first",
                io::ErrorKind::InvalidInput => "a leg is a file or a block device",
                _ => "name another place",
            };
            Finding::missing(&check, WHY, describe(&error), remedy)
        }
    }
}

fn judge(check: &str, place: &Place) -> Finding {
    let device = place.kind == "block device";
    let mut found = vec![place.kind.clone()];
    let mut remedies = Vec::new();
    match place.direct {
        Some((offset, memory)) => {
            found.push(format!("direct IO in blocks of {offset} (memory {memory})"));
        }
        None => {
            found.push("no direct IO".to_owned());
            remedies.push("use another file system: here every write goes through the page cache first");
        }
    }
    match place.holes {
        Some(true) => found.push(if device { "discards" } else { "holes" }.to_owned()),
        Some(false) if device => found.push("no discards".to_owned()),
        Some(false) => {
            found.push("no holes".to_owned());
            remedies.push("use another file system: here a resync fills sparse legs with zeroes");
        }
        None => found.push("holes not tried".to_owned()),
    }
    found.push(format!("{} {}", format_size(place.room), if device { "large" } else { "free" }));
    if VOLATILE.contains(&place.kind.as_str()) {
        remedies.push("use another file system: what is here is gone at the next boot");
    }
    let found = found.join(", ");
    match remedies.is_empty() {
        true => Finding::ok(check, WHY, found),
        false => {
            Finding { state: Health::Limited, ..Finding::limited(check, WHY, found, remedies.join("; ")) }
        }
    }
}

fn place(path: &Path) -> io::Result<Place> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        let leg = LegFile::open(path, true)?;
        return Ok(Place {
            kind: "block device".to_owned(),
            direct: direct(&leg),
            holes: Some(discards(metadata.rdev())),
            room: measure(leg.file())?.1,
        });
    }
    if !kind.is_dir() && !kind.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let absolute = path.canonicalize()?;
    let folder = if kind.is_dir() { &*absolute } else { absolute.parent().unwrap_or(Path::new("/")) };
    let room = statvfs(folder)?;
    let file_system = file_system_of(&absolute, &fs::read_to_string("/proc/self/mountinfo")?);
    let room = room.f_bavail.saturating_mul(room.f_frsize);
    let place = Place { kind: file_system.unwrap_or("unknown".to_owned()), room, ..Place::default() };
    if kind.is_dir() {
        let trial = unnamed(folder)?;
        let leg = LegFile::open(format!("/proc/self/fd/{}", trial.as_raw_fd()), false)?;
        let direct = direct(&leg).filter(|_| write(&leg).is_ok());
        return Ok(Place { direct, holes: punch(&trial)?, ..place });
    }
    let leg = LegFile::open(&absolute, false)?;
    let holes = unnamed(folder).ok().and_then(|trial| punch(&trial).ok().flatten());
    Ok(Place { direct: direct(&leg), holes, ..place })
}

fn direct(leg: &LegFile) -> Option<(u32, u32)> {
    leg.direct().then(|| (leg.offset_align(), leg.memory_align()))
}

/// A file in `folder` that has no name, or none any more.
fn unnamed(folder: &Path) -> io::Result<File> {
    let options = |flags: OFlags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(Mode::RUSR.bits() | Mode::WUSR.bits());
        options.custom_flags(flags.bits() as i32);
        options
    };
    if let Ok(file) = options(OFlags::TMPFILE).open(folder) {
        return Ok(file);
    }
    // Not every file system has files without a name.
    let path: PathBuf = folder.join(format!(".mirrord-doctor-{}", std::process::id()));
    let file = options(OFlags::NOFOLLOW).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

fn write(leg: &LegFile) -> io::Result<()> {
    let pool = BufferPool::new(PoolConfig { small_len: BLOCK, small_count: 1, ..PoolConfig::default() })?;
    leg.file().write_all_at(&pool.take(BLOCK), 0)
}

/// Whether a hole can be punched into `trial`; `None` where there is no room to try.
fn punch(trial: &File) -> io::Result<Option<bool>> {
    if trial.write_all_at(&[1; 2 * BLOCK], 0).is_err() {
        return Ok(None);
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(trial, flags, 0, BLOCK as u64) {
        Ok(()) => Ok(Some(true)),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(Some(false)),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a device can discard; a partition as the disk that it is on.
fn discards(rdev: u64) -> bool {
    let at = format!("/sys/dev/block/{}:{}", major(rdev), minor(rdev));
    ["", "/.."].iter().any(|up| {
        let limit = fs::read_to_string(format!("{at}{up}/queue/discard_max_bytes")).unwrap_or_default();
        limit.trim().parse::<u64>().is_ok_and(|limit| limit > 0)
    })
}

/// The type of the file system that `path`, absolute and without links, is on.
fn file_system_of(path: &Path, mountinfo: &str) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let Some(kind) = right.split(' ').next() else { continue };
        // Later mounts cover earlier ones.
        let point = point.replace(r"\040", " ");
        if path.starts_with(&point) && best.is_none_or(|(len, _)| point.len() >= len) {
            best = Some((point.len(), kind));
        }
    }
    best.map(|(_, kind)| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_a_file_are_looked_at_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leg");
        fs::write(&file, [7; 10000]).unwrap();
        for path in [dir.path(), &file] {
            let finding = examine(path);
            assert!(finding.found.contains("free"), "{finding:?}");
            assert_ne!(finding.state, Health::Missing, "{finding:?}");
        }
        assert_eq!(fs::read(&file).unwrap(), [7; 10000]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_a_leg_is_said() {
        let finding = examine(Path::new("/nonexistent/leg"));
        assert_eq!(finding.state, Health::Missing);
        assert!(finding.found.contains("No such file"), "{finding:?}");
        let finding = examine(Path::new("/dev/null"));
        assert!(finding.remedy.unwrap().contains("a file or a block device"));
    }

    #[test]
    fn each_want_is_named() {
        let good =
            Place { kind: "ext4".to_owned(), direct: Some((512, 4)), holes: Some(true), room: 1 << 30 };
        let finding = judge("leg x", &good);
        assert_eq!(finding.state, Health::Ok);
        assert_eq!(finding.found, "ext4, direct IO in blocks of 512 (memory 4), holes, 1GiB free");
        let bad = Place { kind: "tmpfs".to_owned(), direct: None, holes: Some(false), room: 0 };
        let finding = judge("leg x", &bad);
        assert_eq!(finding.state, Health::Limited);
        let remedy = finding.remedy.unwrap();
        assert!(["page cache", "zeroes", "next boot"].iter().all(|word| remedy.contains(word)), "{remedy}");
        let device = Place { kind: "block device".to_owned(), holes: Some(false), ..good };
        assert_eq!(judge("leg x", &device).state, Health::Ok);
    }

    #[test]
    fn the_file_system_is_the_innermost() {
        let text = "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                    2 1 0:5 / /tmp rw - tmpfs none rw\n\
                    3 1 8:2 / /srv/my\\040data rw - xfs /dev/sda2 rw\n\
                    4 1 8:3 / /tmp rw - btrfs /dev/sda3 rw\n";
        for (path, kind) in
            [("/a", "ext4"), ("/tmp/x", "btrfs"), ("/srv/my data/x", "xfs"), ("/tmpx", "ext4")]
        {
            assert_eq!(file_system_of(Path::new(path), text).as_deref(), Some(kind), "{path}");
        }
    }
}
