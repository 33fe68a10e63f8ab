//! What this user has on this system: rights, directories, and the unit that serves volumes at boot.

use rustix::thread::CapabilitySet;

use super::finding::Finding;
use super::machine::Machine;
use crate::failure::describe;

const UNIT: &str = "mirrord@.service";

/// Where systemd looks for units of the system.
const SYSTEM_UNITS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// And of users, beside their own folder.
const USER_UNITS: [&str; 3] = ["/etc/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"];

pub(super) fn examine(machine: &Machine) -> Vec<Finding> {
    let mut findings: Vec<Finding> = capabilities(machine).into();
    findings.extend(directories(machine));
    findings.push(unit(machine));
    findings
}

fn capabilities(machine: &Machine) -> [Finding; 3] {
    let rows = [
        (
            CapabilitySet::SYS_ADMIN,
            "CAP_SYS_ADMIN",
            "needed for ublk devices that outlive their daemon and for mounting without a helper",
            "volumes are served through FUSE, mounted by the helper",
        ),
        (
            CapabilitySet::SYS_RESOURCE,
            "CAP_SYS_RESOURCE",
            "keeps a daemon from waiting for itself and from being killed when memory is short",
            "a daemon goes on without that",
        ),
        (
            CapabilitySet::IPC_LOCK,
            "CAP_IPC_LOCK",
            "keeps a daemon's memory from being swapped out",
            "a daemon goes on without, unless the limit of locked memory is lifted",
        ),
    ];
    rows.map(|(capability, name, why, without)| {
        if machine.rights.has(capability) {
            return Finding::ok(name, why, "held");
        }
        let found = match machine.rights.has_here(capability) {
            true => "held inside of a user namespace only",
            false => "not held",
        };
        let way = match machine.uid {
            0 => "give it to the container (--cap-add) or unit (CapabilityBoundingSet)",
            _ => "run as root, or give it to the unit (AmbientCapabilities)",
        };
        let remedy = format!("{way}; {without}");
        Finding::limited(name, why, found, remedy)
    })
}

fn directories(machine: &Machine) -> [Finding; 2] {
    let rows = [
        ("runtime directory", "sockets, locks and volumes served as files are there"),
        ("state directory", "volumes are remembered there, to be started by name"),
    ];
    let mut looked = machine.dirs.look().into_iter();
    rows.map(|(check, why)| {
        let (path, result) = looked.next().expect("as many as rows");
        match result {
            Ok(true) => Finding::ok(check, why, path.display().to_string()),
            Ok(false) => Finding::ok(check, why, format!("{}, to be made", path.display())),
            Err(error) => Finding::missing(
                check,
                why,
                describe(&error),
                "set MIRRORD_RUNTIME_DIR and MIRRORD_STATE_DIR to directories of this user",
            ),
        }
    })
}

fn unit(machine: &Machine) -> Finding {
    const CHECK: &str = "systemd unit";
    const WHY: &str = "starts volumes at boot, and again when their daemon was killed";
    if !machine.there("/run/systemd/system") {
        return Finding::ok(CHECK, WHY, "not needed: systemd does not run here");
    }
    let root = machine.uid == 0;
    let own = machine.home.as_ref().map(|home| home.join(".config/systemd/user").join(UNIT));
    let own = own.filter(|path| !root && machine.there(path));
    let folders: &[&str] = if root { &SYSTEM_UNITS } else { &USER_UNITS };
    match own.or_else(|| machine.find(folders, UNIT)) {
        Some(path) => Finding::ok(CHECK, WHY, path.display().to_string()),
        None => {
            let (from, to, flag) = match root {
                true => ("", "/etc/systemd/system", ""),
                false => ("user/", "~/.config/systemd/user", "--user "),
            };
            Finding::limited(
                CHECK,
                WHY,
                format!("{UNIT} is not installed"),
                format!(
                    "make install, or copy packaging/systemd/{from}{UNIT} to {to}; then systemctl {flag}daemon-reload"
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::finding::Health;
    use super::super::machine::tests::{bare, plain_user};
    use super::*;
    use crate::rights::Rights;

    #[test]
    fn a_capability_of_a_container_is_not_one_of_the_machine() {
        let (_dir, mut machine) = bare();
        assert!(capabilities(&machine).iter().all(|finding| finding.state == Health::Ok));
        machine.rights = Rights::new(CapabilitySet::SYS_ADMIN, false);
        let [admin, resource, _] = capabilities(&machine);
        assert!(admin.found.contains("user namespace"));
        assert_eq!((resource.found.as_str(), resource.state), ("not held", Health::Limited));
    }

    #[test]
    fn directories_are_looked_at_and_not_made() {
        let (dir, machine) = bare();
        assert!(directories(&machine).iter().all(|finding| finding.found.ends_with("to be made")));
        assert!(!dir.path().join("state").exists());
        machine.dirs.prepare("a").unwrap();
        assert!(directories(&machine).iter().all(|finding| !finding.found.contains("made")));
        std::fs::remove_dir(dir.path().join("state")).unwrap();
        std::fs::write(dir.path().join("state"), "").unwrap();
        let [_, state] = directories(&machine);
        assert_eq!(state.state, Health::Missing, "{}", state.found);
    }

    #[test]
    fn units_are_looked_for_where_systemd_does() {
        let (_dir, root) = bare();
        assert!(unit(&root).found.contains("not needed"));
        root.put("/run/systemd/system/x", "");
        assert!(unit(&root).remedy.unwrap().contains("/etc/systemd/system"));
        root.put("/usr/lib/systemd/system/mirrord@.service", "");
        assert_eq!(unit(&root).found, "/usr/lib/systemd/system/mirrord@.service");
        let (_dir, mut user) = plain_user();
        user.put("/run/systemd/system/x", "");
        assert!(unit(&user).remedy.unwrap().contains("--user"));
        user.home = Some(PathBuf::from("/home/u"));
        user.put("/home/u/.config/systemd/user/mirrord@.service", "");
        assert_eq!(unit(&user).state, Health::Ok);
    }
}
