//! What a block device is called whatever number it has: the link of udev's in /dev/disk/by-id that leads to it, or the
//! one in by-partuuid, or where there is no udev what the kernel knows of the disk.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mirrord_log::MAX_DEVICE_NAME;
use rustix::fs::{major, minor};

/// Where such names lead.
#[derive(Debug)]
pub(crate) struct Devices {
    links: PathBuf,
    classes: PathBuf,
    nodes: PathBuf,
}

impl Default for Devices {
    fn default() -> Devices {
        Devices { links: "/dev/disk".into(), classes: "/sys/class/block".into(), nodes: "/dev".into() }
    }
}

/// Kinds of names in by-id that say what the disk is, best first; others say how it is connected, or what is on it.
const BEST: [&str; 5] = ["nvme-eui.", "nvme-uuid.", "wwn-", "dm-uuid-", "md-uuid-"];

/// What the kernel knows of a disk, by file in its directory of /sys.
const KNOWN: [&str; 4] = ["wwid", "device/wwid", "serial", "device/serial"];

impl Devices {
    /// The stable name of the device with this number; empty if it has none.
    pub(crate) fn name_of(&self, rdev: u64) -> String {
        let by_link = ["by-id", "by-partuuid"].into_iter().find_map(|kind| self.link_to(kind, rdev));
        let name = by_link.or_else(|| {
            let number = format!("{}:{}", major(rdev), minor(rdev));
            let is_it = |class: &PathBuf| read(&class.join("dev")).is_some_and(|dev| dev == number);
            known_to_the_kernel(&self.classes().find(is_it)?)
        });
        name.filter(|name| name.len() <= MAX_DEVICE_NAME).unwrap_or_default()
    }

    /// The path of the device with this name, if it is here.
    pub(crate) fn find(&self, name: &str) -> Option<PathBuf> {
        if name.starts_with("by-") {
            // It came off a disk: it is to name an entry of these directories and nothing else.
            let (kind, link) = name.split_once('/')?;
            let is_plain = ["by-id", "by-partuuid"].contains(&kind) && !link.contains('/') && link != "..";
            let path = self.links.join(name);
            return (is_plain && is_device(&path)).then_some(path);
        }
        let class = self.classes().find(|class| known_to_the_kernel(class).as_deref() == Some(name))?;
        let path = self.nodes.join(class.file_name()?.to_str()?.replace('!', "/"));
        is_device(&path).then_some(path)
    }

    fn link_to(&self, kind: &str, rdev: u64) -> Option<String> {
        let entries = fs::read_dir(self.links.join(kind)).ok()?.filter_map(Result::ok);
        let leads_there = |entry: &fs::DirEntry| {
            fs::metadata(entry.path())
                .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == rdev)
        };
        let names = entries.filter(leads_there).filter_map(|entry| entry.file_name().into_string().ok());
        let rank = |name: &String| {
            let rank = BEST.iter().position(|kind| name.starts_with(kind)).unwrap_or(BEST.len());
            (rank, name.clone())
        };
        names.min_by_key(rank).map(|name| format!("{kind}/{name}"))
    }

    fn classes(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.classes).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
    }
}

/// What the kernel knows of the disk, and which partition of it this is.
fn known_to_the_kernel(class: &Path) -> Option<String> {
    let class = class.canonicalize().ok()?;
    let partition = read(&class.join("partition"));
    let disk = if partition.is_some() { class.parent()? } else { &class };
    let known = KNOWN.iter().find_map(|file| Some(format!("{file}/{}", read(&disk.join(file))?)))?;
    Some(match partition {
        Some(partition) => format!("{known}/{partition}"),
        None => known,
    })
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Any two block devices of this machine.
    fn two_devices() -> Option<[(PathBuf, u64); 2]> {
        let all = fs::read_dir("/dev").ok()?.filter_map(Result::ok).map(|entry| entry.path());
        let mut devices = all.filter(|path| is_device(path) && !path.is_symlink());
        let mut next = || devices.next().map(|path| (path.clone(), fs::metadata(path).unwrap().rdev()));
        Some([next()?, next()?])
    }

    #[test]
    fn a_device_is_found_by_its_name_when_it_has_another_number() {
        let Some([(one, one_number), (other, other_number)]) = two_devices() else {
            println!("SKIP: names of devices: fewer than two block devices here");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let devices = Devices { links: path("disk"), classes: path("class"), nodes: path("dev") };
        fs::create_dir_all(path("disk/by-id")).unwrap();
        assert_eq!(devices.name_of(one_number), "");
        for name in ["ata-x", "wwn-0x5", "scsi-x"] {
            symlink(&one, path("disk/by-id").join(name)).unwrap();
        }
        assert_eq!(devices.name_of(one_number), "by-id/wwn-0x5");
        assert_eq!(devices.name_of(other_number), "");
        fs::remove_file(path("disk/by-id/wwn-0x5")).unwrap();
        symlink(&other, path("disk/by-id/wwn-0x5")).unwrap();
        let found = devices.find("by-id/wwn-0x5").unwrap();
        assert_eq!(fs::metadata(found).unwrap().rdev(), other_number);
        fs::write(path("file"), "").unwrap();
        for bad in ["by-id/no", "by-id/../by-id/ata-x", "by-id/..", "by-path/x", "by-id", "../file", ""] {
            assert_eq!(devices.find(bad), None, "{bad}");
        }

        // Without udev: what the kernel knows of the disk, and which of its partitions it is.
        for (class, number) in [("sdx", one_number), ("sdx/sdx1", other_number)] {
            fs::create_dir_all(path("class").join(class)).unwrap();
            let number = format!("{}:{}\n", major(number), minor(number));
            fs::write(path("class").join(class).join("dev"), number).unwrap();
        }
        fs::write(path("class/sdx/wwid"), "naa.5\n").unwrap();
        fs::write(path("class/sdx/sdx1/partition"), "1\n").unwrap();
        symlink(path("class/sdx/sdx1"), path("class/sdx1")).unwrap();
        fs::create_dir(path("dev")).unwrap();
        symlink(&other, path("dev/sdx1")).unwrap();
        assert_eq!(devices.name_of(other_number), "by-id/wwn-0x5", "udev's name comes first");
        fs::remove_dir_all(path("disk")).unwrap();
        assert_eq!(devices.name_of(one_number), "wwid/naa.5");
        assert_eq!(devices.name_of(other_number), "wwid/naa.5/1");
        assert_eq!(devices.find("wwid/naa.5/1"), Some(path("dev/sdx1")));
        assert_eq!(devices.find("wwid/naa.5"), None, "there is no node");
    }
}
