//! FUSE: its device, who mounts, and who may look.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use super::finding::{Finding, Health};
use super::machine::{Machine, Opened};
use crate::failure::describe;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// Profiles of AppArmor that forbid every mount.
const MOUNTLESS: [&str; 2] = ["docker-default", "cri-containerd"];

/// Who mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mounter {
    /// The daemon itself.
    Daemon,
    /// The setuid helper.
    Helper,
}

/// Gives who would mount, if FUSE works.
pub(super) fn examine(machine: &Machine) -> (Vec<Finding>, Option<Mounter>) {
    let device = device(machine);
    let (mount, mounter) = mount(machine);
    let works = [&device, &mount].iter().all(|finding| finding.state != Health::Missing);
    (vec![device, mount, allow_other(machine)], works.then_some(mounter))
}

fn device(machine: &Machine) -> Finding {
    const WHY: &str = "volumes are served as files through it";
    let missing =
        |found: String, remedy: &str| Finding::missing("fuse device", WHY, found, remedy.to_owned());
    match machine.open(DEVICE) {
        Opened::Yes => Finding::ok("fuse device", WHY, format!("{DEVICE} can be opened")),
        Opened::NotThere => missing(
            format!("there is no {DEVICE}"),
            "modprobe fuse as root; a container is given it by --device /dev/fuse",
        ),
        Opened::Denied(metadata) => missing(
            format!("{DEVICE} {}", whose(metadata.as_ref())),
            "chmod 666 /dev/fuse as root, or reinstall the package fuse3, which does it for good",
        ),
        Opened::Forbidden => missing(
            format!("the rules of this container forbid {DEVICE}"),
            "give it to the container: --device /dev/fuse",
        ),
        Opened::NoDriver => missing(format!("{DEVICE} has no driver"), "modprobe fuse as root"),
        Opened::Failed(error) => {
            missing(format!("{DEVICE}: {}", describe(&error)), "look at the kernel's messages (dmesg)")
        }
    }
}

/// Owner and mode of a device that this user may not open.
pub(super) fn whose(metadata: Option<&fs::Metadata>) -> String {
    match metadata {
        Some(metadata) => format!(
            "is closed to this user: owner {}:{}, mode {:04o}",
            metadata.uid(),
            metadata.gid(),
            metadata.mode() & 0o7777
        ),
        None => "is closed to this user".to_owned(),
    }
}

fn mount(machine: &Machine) -> (Finding, Mounter) {
    const CHECK: &str = "fuse mount";
    const WHY: &str = "the file that is the volume is a mount";
    let missing = |found: &str, remedy: &str| Finding::missing(CHECK, WHY, found, remedy);
    if let Some(profile) = profile(machine) {
        let found = format!("the AppArmor profile {profile} forbids mounts");
        let finding = missing(&found, "run the container with --security-opt apparmor=unconfined");
        return (finding, Mounter::Daemon);
    }
    if machine.rights.has_here(CapabilitySet::SYS_ADMIN) {
        return (Finding::ok(CHECK, WHY, "by the daemon itself (CAP_SYS_ADMIN)"), Mounter::Daemon);
    }
    let finding = match helper(machine) {
        None => missing(
            "needs CAP_SYS_ADMIN or the setuid helper fusermount3, and there is neither",
            "install the package fuse3; as root in a container: --cap-add SYS_ADMIN",
        ),
        Some((path, false)) => missing(
            &format!("{} is not setuid root", path.display()),
            "chmod u+s it as root, or reinstall the package fuse3",
        ),
        Some(_) if machine.no_new_privileges => missing(
            "fusermount3 is there, but privileges cannot be gained in this process (no_new_privs)",
            "run without --security-opt no-new-privileges, or with NoNewPrivileges=no in the unit",
        ),
        Some(_) if !machine.helper_may_mount => missing(
            "fusermount3 is there, but nothing in this container may have CAP_SYS_ADMIN",
            "run the container with --cap-add SYS_ADMIN",
        ),
        Some((path, true)) => Finding::ok(CHECK, WHY, format!("by {}", path.display())),
    };
    (finding, Mounter::Helper)
}

/// The helper, and whether it is setuid root.
fn helper(machine: &Machine) -> Option<(PathBuf, bool)> {
    let mut paths = machine.path.iter().map(|folder| folder.join(HELPER));
    let path = paths.find(|path| machine.at(path).is_file())?;
    let metadata = fs::metadata(machine.at(&path)).ok()?;
    let setuid = metadata.permissions().mode() & 0o4000 != 0;
    // Files of a test's tree belong to whoever runs the test.
    let root = metadata.uid() == 0 || cfg!(test);
    Some((path, setuid && root))
}

/// The AppArmor profile in force, if it is one that forbids mounts.
fn profile(machine: &Machine) -> Option<&'static str> {
    let mut current = machine.text("/proc/self/attr/apparmor/current");
    if current.is_empty() {
        current = machine.text("/proc/self/attr/current");
    }
    let enforced = current.contains("(enforce)");
    MOUNTLESS.into_iter().find(|name| enforced && current.starts_with(name))
}

fn allow_other(machine: &Machine) -> Finding {
    const CHECK: &str = "fuse allow_other";
    const WHY: &str = "with --allow-other other users, and root's losetup, reach a user's volume";
    if machine.rights.has_here(CapabilitySet::SYS_ADMIN) || machine.uid == 0 {
        return Finding::ok(CHECK, WHY, "permitted");
    }
    let config = machine.text("/etc/fuse.conf");
    if config.lines().any(|line| line.trim() == "user_allow_other") {
        return Finding::ok(CHECK, WHY, "permitted by /etc/fuse.conf");
    }
    Finding::limited(
        CHECK,
        WHY,
        "not permitted: /etc/fuse.conf has no line user_allow_other",
        "add that line, if others are to reach a volume",
    )
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::{bare, plain_user};
    use super::*;

    #[test]
    fn a_device_is_opened_or_explained() {
        let (_dir, machine) = bare();
        assert_eq!(device(&machine).state, Health::Missing);
        assert!(device(&machine).remedy.unwrap().contains("--device /dev/fuse"));
        assert_eq!(examine(&machine).1, None);
        machine.put(DEVICE, "");
        assert_eq!(device(&machine).state, Health::Ok);
        assert_eq!(examine(&machine).1, Some(Mounter::Daemon));
    }

    #[test]
    fn who_mounts_is_found_out() {
        let (_dir, mut machine) = plain_user();
        machine.put(DEVICE, "");
        let said = |machine: &Machine| mount(machine).0.found;
        assert!(said(&machine).contains("neither"));
        machine.put("/usr/bin/fusermount3", "");
        assert!(said(&machine).contains("not setuid"));
        let mode = fs::Permissions::from_mode(0o4755);
        fs::set_permissions(machine.at("/usr/bin/fusermount3"), mode).unwrap();
        assert_eq!(examine(&machine).1, Some(Mounter::Helper));
        machine.no_new_privileges = true;
        assert!(said(&machine).contains("no_new_privs"));
        machine.no_new_privileges = false;
        machine.helper_may_mount = false;
        assert!(mount(&machine).0.remedy.unwrap().contains("--cap-add SYS_ADMIN"));
        assert_eq!(examine(&machine).1, None);
        let (_dir, machine) = bare();
        machine.put("/proc/self/attr/current", "docker-default (enforce)\n");
        assert!(said(&machine).contains("docker-default"));
    }

    #[test]
    fn others_are_allowed_by_a_line() {
        let (_dir, machine) = plain_user();
        machine.put("/etc/fuse.conf", "# x\n#user_allow_other\n");
        assert_eq!(allow_other(&machine).state, Health::Limited);
        machine.put("/etc/fuse.conf", "user_allow_other\n");
        assert_eq!(allow_other(&machine).state, Health::Ok);
    }
}
