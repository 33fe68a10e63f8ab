//! What lies below a file or device: file systems, loop devices, partitions, device mapper and md, other volumes.
//!
//! A leg that lies on its own volume waits for itself: the first write to it needs a write to it. So the way down from
//! a leg-to-be is followed, as far as the system tells it, and the volume must not be on it. A write to another volume on
//! the way waits for its legs and for its log. What another host or another program serves (NFS, NBD, a FUSE file
//! system on a file, a log server) ends the way.
//!
//! A volume that is created, or started, is served nowhere yet, so nothing can lie on it, but for a block device whose
//! daemon is gone: its users wait for the start, which must not wait for them.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, major, minor, statx};

use crate::control::Client;
use crate::paths::Dirs;

/// No way down has so many steps.
const MOST: usize = 256;

/// Something on the way down.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Place {
    /// A file or directory.
    Path(PathBuf),
    /// A block device, by its number.
    Block(u64),
}

/// What a volume is served as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Front {
    /// A block device, by its number.
    Block(u64),
    /// A file, by the device number of its mount.
    Mount(u64),
}

impl Front {
    fn of(device: &Path) -> Option<Front> {
        let metadata = fs::metadata(device).ok()?;
        if metadata.file_type().is_block_device() {
            return Some(Front::Block(metadata.rdev()));
        }
        // Where the mount cannot be seen from here there is a plain file.
        Mount::of(device).filter(|mount| mount.kind.starts_with("fuse")).map(|_| Front::Mount(metadata.dev()))
    }
}

/// Whether what is at `path`, or would be, lies on the volume that is served at `device`: by way of what. `dirs`: where
/// other volumes are served, which may lie on this one.
pub(crate) fn lies_on(path: &Path, device: &Path, dirs: &Dirs) -> Option<String> {
    let target = Front::of(device)?;
    let others = || -> Vec<(Front, Vec<PathBuf>)> {
        let below = |name: String| {
            let (_, status) =
                Client::reach(dirs, &name).ok().filter(|(_, status)| status.device != device)?;
            let log = status.log.place.filter(|_| status.log.kind == "disk").map(PathBuf::from);
            let below = status.legs.into_iter().map(|leg| leg.path).chain(log).collect();
            Some((Front::of(&status.device)?, below))
        };
        dirs.sockets().into_iter().filter_map(below).collect()
    };
    find(Place::Path(path.to_owned()), target, &others)
}

/// Why what is at `path` can be no leg of the volume at `device`, if it lies on it.
pub(crate) fn on_itself(path: &Path, device: &Path, dirs: &Dirs) -> Option<String> {
    let way = lies_on(path, device, dirs)?;
    let what = if way.is_empty() {
        "it is the volume itself".to_owned()
    } else {
        format!("it lies on the volume itself (by way of {way})")
    };
    Some(format!("leg {}: {what}: writes to it would wait for themselves", path.display()))
}

fn find(from: Place, target: Front, others: &dyn Fn() -> Vec<(Front, Vec<PathBuf>)>) -> Option<String> {
    let mut seen = HashSet::from([from.clone()]);
    let mut open = vec![(from, String::new())];
    while let Some((place, way)) = open.pop() {
        let Below { front, places } = below(&place);
        if front == Some(target) {
            return Some(way);
        }
        let legs = front.into_iter().flat_map(|front| {
            others().into_iter().filter(move |(other, _)| *other == front).flat_map(|(_, legs)| legs)
        });
        for next in places.into_iter().chain(legs.map(Place::Path)) {
            if seen.len() < MOST && seen.insert(next.clone()) {
                let way = if way.is_empty() { shown(&next) } else { format!("{way}, {}", shown(&next)) };
                open.push((next, way));
            }
        }
    }
    None
}

fn shown(place: &Place) -> String {
    match place {
        Place::Path(path) => path.display().to_string(),
        Place::Block(number) => match fs::read_link(sys(*number)) {
            Ok(link) => format!("/dev/{}", link.file_name().unwrap_or_default().to_string_lossy()),
            Err(_) => format!("device {}:{}", major(*number), minor(*number)),
        },
    }
}

/// What is one step below.
#[derive(Default)]
struct Below {
    /// What a volume would be served as, if it is one.
    front: Option<Front>,
    places: Vec<Place>,
}

fn below(place: &Place) -> Below {
    match place {
        Place::Block(number) => Below { front: Some(Front::Block(*number)), places: below_block(*number) },
        Place::Path(path) => below_path(path).unwrap_or_default(),
    }
}

fn below_path(path: &Path) -> Option<Below> {
    // One that is to be made will be where its directory is.
    let there = fs::metadata(path).map(|metadata| (metadata, path.to_owned()));
    let dir = || path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (metadata, path) =
        there.or_else(|_| fs::metadata(dir()).map(|found| (found, dir().to_owned()))).ok()?;
    if metadata.file_type().is_block_device() {
        return Some(Below { front: None, places: vec![Place::Block(metadata.rdev())] });
    }
    let dev = metadata.dev();
    let front = Some(Front::Mount(dev));
    if major(dev) != 0 {
        return Some(Below { front, places: vec![Place::Block(dev)] });
    }
    Some(Below { front, places: Mount::of(&path).map_or(Vec::new(), |mount| mount.places()) })
}

/// A mount without a device of its own.
#[derive(PartialEq, Eq, Debug)]
struct Mount {
    kind: String,
    source: String,
    options: String,
}

impl Mount {
    /// The one that a file is on.
    fn of(path: &Path) -> Option<Mount> {
        let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?.stx_mnt_id;
        Mount::find(&fs::read_to_string("/proc/thread-self/mountinfo").ok()?, id)
    }

    fn find(mountinfo: &str, id: u64) -> Option<Mount> {
        let line = mountinfo.lines().find(|line| line.split(' ').next() == Some(&id.to_string()))?;
        let mut words = line.split_once(" - ")?.1.split(' ').map(unescape);
        Some(Mount { kind: words.next()?, source: words.next()?, options: words.next().unwrap_or_default() })
    }

    fn places(&self) -> Vec<Place> {
        if self.kind == "overlay" {
            let value = |option: &str| {
                let name = |name| option.strip_prefix(name).map(str::to_owned);
                name("upperdir=").or_else(|| name("lowerdir="))
            };
            let dirs: Vec<String> = self.options.split(',').filter_map(value).collect();
            return dirs.iter().flat_map(|dirs| dirs.split(':')).map(|dir| Place::Path(dir.into())).collect();
        }
        if !self.source.starts_with('/') {
            return Vec::new();
        }
        let mut devices = vec![PathBuf::from(&self.source)];
        if self.kind == "btrfs" {
            devices.extend(btrfs_devices(Path::new(&self.source)));
        }
        let number = |device: PathBuf| {
            let metadata = fs::metadata(device).ok().filter(|found| found.file_type().is_block_device())?;
            Some(Place::Block(metadata.rdev()))
        };
        devices.into_iter().filter_map(number).collect()
    }
}

/// A word of mountinfo: blanks, tabs, line ends and backslashes are written as `\ooo`.
fn unescape(word: &str) -> String {
    word.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\012", "\n").replace(r"\134", "\\")
}

/// All devices of the btrfs that one of them belongs to.
fn btrfs_devices(one: &Path) -> Vec<PathBuf> {
    let name = one.canonicalize().ok().and_then(|one| one.file_name().map(ToOwned::to_owned));
    let Some(name) = name else { return Vec::new() };
    let systems = fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten();
    let devices =
        systems.map(|system| system.path().join("devices")).find(|devices| devices.join(&name).exists());
    let entries = devices.and_then(|devices| fs::read_dir(devices).ok()).into_iter().flatten().flatten();
    entries.map(|entry| Path::new("/dev").join(entry.file_name())).collect()
}

fn sys(number: u64) -> PathBuf {
    format!("/sys/dev/block/{}:{}", major(number), minor(number)).into()
}

fn below_block(number: u64) -> Vec<Place> {
    let at = sys(number);
    let mut places = Vec::new();
    if let Ok(file) = fs::read_to_string(at.join("loop/backing_file")) {
        let file = file.trim_end_matches('\n');
        places.push(Place::Path(file.strip_suffix(" (deleted)").unwrap_or(file).into()));
    }
    let of = |dir: &Path| {
        let text = fs::read_to_string(dir.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some(Place::Block(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?)))
    };
    if at.join("partition").exists() {
        places.extend(at.canonicalize().ok().and_then(|part| of(part.parent()?)));
    }
    let slaves = fs::read_dir(at.join("slaves")).into_iter().flatten().flatten();
    places.extend(slaves.filter_map(|slave| of(&slave.path())));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_number() {
        let text = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
                    30 22 0:40 /sub /srv rw shared:2 - btrfs /dev/my\\040disk rw,subvol=/sub\n\
                    31 22 0:41 / /o rw - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/u,workdir=/w\n";
        let mount = Mount::find(text, 30).unwrap();
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("btrfs", "/dev/my disk"));
        let below = Mount::find(text, 31).unwrap().places();
        assert_eq!(below, ["/l1", "/l2", "/u"].map(|dir| Place::Path(dir.into())));
        assert_eq!(Mount::find(text, 3), None);
    }

    #[test]
    fn a_file_lies_on_its_own_file_system_and_a_circle_ends() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leg");
        let front = Front::Mount(fs::metadata(dir.path()).unwrap().dev());
        for there in [false, true] {
            assert!(find(Place::Path(file.clone()), front, &Vec::new).is_some(), "{there}");
            assert_eq!(find(Place::Path(file.clone()), Front::Block(u64::MAX), &Vec::new), None);
            fs::write(&file, "x").unwrap();
        }
        // A volume whose leg lies on itself.
        let others = || vec![(front, vec![dir.path().join("other"), file.clone()])];
        assert_eq!(find(Place::Path(file.clone()), Front::Block(u64::MAX), &others), None);
    }
}
