//! ublk: its driver, who may talk to it, what it can do, and the udev rule for users without privilege.

use std::path::Path;

use rustix::thread::CapabilitySet;

use mirrord_ublk::ublk::Features;

use super::driver::{NAMES, RECOVERY, REISSUE, UNPRIVILEGED};
use super::finding::Finding;
use super::fuse::whose;
use super::kernel::{LegIo, version};
use super::machine::{Machine, Opened};
use crate::failure::describe;

const CONTROL: &str = "/dev/ublk-control";

/// The rule that is shipped.
const RULE: &str = "60-mirrord-ublk.rules";

/// Where udev looks for rules.
const RULE_FOLDERS: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

/// How a driver is packed.
const MODULE_ENDINGS: [&str; 4] = ["", ".xz", ".zst", ".gz"];

/// What kind of device this process can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Device {
    /// One that outlives its daemon.
    Recoverable,
    /// One that goes when its daemon goes.
    Plain,
}

/// Gives the kind of device to be had, if any.
pub(super) fn examine(machine: &Machine, leg_io: LegIo) -> (Vec<Finding>, Option<Device>) {
    let (features, device) = features(machine);
    let device = device.filter(|_| leg_io == LegIo::IoUring { ublk: true });
    (vec![driver(machine), control(machine), features, rule(machine)], device)
}

fn driver(machine: &Machine) -> Finding {
    const CHECK: &str = "ublk driver";
    const WHY: &str = "block devices are served through it: faster than files, and they outlive their daemon";
    let release = &machine.release;
    let modules = format!("/lib/modules/{release}");
    if machine.there("/sys/module/ublk_drv") {
        return Finding::ok(CHECK, WHY, "loaded");
    }
    if machine.text(&format!("{modules}/modules.builtin")).contains("/ublk_drv.ko") {
        return Finding::ok(CHECK, WHY, "built into the kernel");
    }
    let file = |ending: &&str| {
        let path = format!("{modules}/kernel/drivers/block/ublk_drv.ko{ending}");
        machine.there(path)
    };
    let listed = machine.text(&format!("{modules}/modules.dep")).contains("ublk_drv.ko");
    if listed || MODULE_ENDINGS.iter().any(file) {
        return Finding::missing(
            CHECK,
            WHY,
            "there, but not loaded",
            "modprobe ublk_drv as root; at every boot: echo ublk_drv >/etc/modules-load.d/ublk.conf",
        );
    }
    if version(release) < (6, 0, 0) {
        return Finding::missing(CHECK, WHY, format!("{release} has none"), "use Linux 6.1 or newer");
    }
    if machine.there(&modules) {
        let found = format!("not among the modules of {release}");
        let remedy = format!(
            "install the package that has it (Ubuntu: linux-modules-extra-{release}), or a kernel that is built \
             with CONFIG_BLK_DEV_UBLK"
        );
        return Finding::missing(CHECK, WHY, found, remedy);
    }
    Finding::missing(
        CHECK,
        WHY,
        format!("not loaded, and there is no {modules} to load it from"),
        "modprobe ublk_drv on the host, if this is a container; else a kernel that is built with CONFIG_BLK_DEV_UBLK",
    )
}

fn control(machine: &Machine) -> Finding {
    const CHECK: &str = "ublk control";
    const WHY: &str = "ublk devices are asked for there";
    let missing = |found: String, remedy: String| Finding::missing(CHECK, WHY, found, remedy);
    match machine.open(CONTROL) {
        Opened::Yes => Finding::ok(CHECK, WHY, format!("{CONTROL} can be opened")),
        Opened::NotThere if machine.there("/sys/module/ublk_drv") => missing(
            format!("the driver is loaded, but there is no {CONTROL} here"),
            format!("give it to the container: --device {CONTROL}"),
        ),
        Opened::NotThere => missing(format!("there is no {CONTROL}"), "load the driver first".to_owned()),
        Opened::Denied(metadata) => missing(
            format!("{CONTROL} {}", whose(metadata.as_ref())),
            match installed_rule(machine) {
                Some(_) => format!("udevadm control --reload; udevadm trigger {CONTROL}"),
                None => format!(
                    "run as root, or install packaging/udev/{RULE} to /etc/udev/rules.d, then udevadm control \
                     --reload; udevadm trigger {CONTROL}"
                ),
            },
        ),
        Opened::Forbidden => missing(
            format!("the rules of this container forbid {CONTROL}"),
            format!("give it to the container: --device {CONTROL}"),
        ),
        Opened::NoDriver => {
            missing(format!("{CONTROL} is there, its driver is not loaded"), "modprobe ublk_drv".to_owned())
        }
        Opened::Failed(error) => missing(
            format!("{CONTROL}: {}", describe(&error)),
            "look at the kernel's messages (dmesg)".to_owned(),
        ),
    }
}

/// What a driver that does not tell has.
fn usual(release: &str) -> u64 {
    let version = version(release);
    let since = |minor, bits| if version >= (6, minor, 0) { bits } else { 0 };
    since(1, RECOVERY | REISSUE) | since(3, UNPRIVILEGED)
}

fn features(machine: &Machine) -> (Finding, Option<Device>) {
    const CHECK: &str = "ublk features";
    const WHY: &str =
        "recovery and reissue let a device outlive its daemon, unprivileged lets users have one";
    let (features, told) = match &machine.ublk_features {
        Ok(Some(features)) => (*features, ""),
        Ok(None) => (usual(&machine.release), " (by the kernel's version; the driver does not tell)"),
        Err(error) => {
            let found = format!("the driver cannot be asked: {error}");
            return (Finding::missing(CHECK, WHY, found, "mend what is missing of ublk above"), None);
        }
    };
    let names: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| Features(features).has(*bit)).map(|(_, name)| *name).collect();
    let text = match names.as_slice() {
        [] => format!("none that matter here{told}"),
        names => format!("{}{told}", names.join(" ")),
    };
    let recovers = features & (RECOVERY | REISSUE) == RECOVERY | REISSUE;
    match (machine.rights.has(CapabilitySet::SYS_ADMIN), features & UNPRIVILEGED != 0) {
        (true, _) if recovers => (Finding::ok(CHECK, WHY, text), Some(Device::Recoverable)),
        (true, _) => {
            let found = format!("{text}: a device goes when its daemon goes");
            (Finding::limited(CHECK, WHY, found, "use Linux 6.1 or newer"), Some(Device::Plain))
        }
        (false, true) => {
            let found = format!("{text}; without CAP_SYS_ADMIN a device goes when its daemon goes");
            let remedy = "run as root for a device that outlives its daemon";
            (Finding::limited(CHECK, WHY, found, remedy), Some(Device::Plain))
        }
        (false, false) => {
            let found = format!("{text}: no device for users without CAP_SYS_ADMIN");
            (Finding::missing(CHECK, WHY, found, "run as root, or use Linux 6.3 or newer"), None)
        }
    }
}

fn installed_rule(machine: &Machine) -> Option<std::path::PathBuf> {
    machine.find(&RULE_FOLDERS, RULE)
}

fn rule(machine: &Machine) -> Finding {
    const CHECK: &str = "ublk udev rule";
    const WHY: &str = "users without privilege may not open ublk's devices unless udev gives them";
    let runs = machine.there(Path::new("/run/udev/control"));
    match installed_rule(machine) {
        Some(path) => Finding::ok(CHECK, WHY, path.display().to_string()),
        None if !runs => Finding::ok(CHECK, WHY, "not needed: no udev runs here"),
        None if machine.rights.has(CapabilitySet::SYS_ADMIN) => {
            Finding::ok(CHECK, WHY, "not installed, and not needed by root")
        }
        None => Finding::limited(
            CHECK,
            WHY,
            format!("{RULE} is not installed"),
            format!(
                "make install, or copy packaging/udev/{RULE} to /etc/udev/rules.d; then udevadm control --reload"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::finding::Health;
    use super::super::machine::tests::{bare, plain_user};
    use super::*;

    const WIDE: LegIo = LegIo::IoUring { ublk: true };

    #[test]
    fn a_driver_is_found_or_the_way_to_it() {
        let (_dir, machine) = bare();
        let remedy = |machine: &Machine| driver(machine).remedy.unwrap();
        assert!(remedy(&machine).contains("on the host"));
        machine.put("/lib/modules/6.12.1-amd64/modules.dep", "kernel/drivers/block/loop.ko:\n");
        assert!(remedy(&machine).contains("linux-modules-extra-6.12.1-amd64"));
        machine.put("/lib/modules/6.12.1-amd64/kernel/drivers/block/ublk_drv.ko.xz", "");
        assert!(remedy(&machine).starts_with("modprobe ublk_drv"));
        machine.put("/lib/modules/6.12.1-amd64/modules.builtin", "kernel/drivers/block/ublk_drv.ko\n");
        assert_eq!(driver(&machine).found, "built into the kernel");
        machine.put("/sys/module/ublk_drv/refcnt", "0");
        assert_eq!(driver(&machine).found, "loaded");
        let (_dir, mut old) = bare();
        old.release = "5.15.0-1-amd64".to_owned();
        assert!(driver(&old).found.contains("has none"));
    }

    #[test]
    fn a_refusal_of_the_control_device_names_the_rule() {
        let (_dir, machine) = plain_user();
        assert!(control(&machine).found.contains("there is no /dev/ublk-control"));
        machine.put("/sys/module/ublk_drv/refcnt", "0");
        assert!(control(&machine).remedy.unwrap().contains("--device /dev/ublk-control"));
        machine.put(CONTROL, "");
        assert_eq!(control(&machine).state, Health::Ok);
        if rustix::process::geteuid().is_root() {
            println!("SKIP: a device closed to this user: root may open all");
            return;
        }
        fs::set_permissions(machine.at(CONTROL), fs::Permissions::from_mode(0o000)).unwrap();
        let finding = control(&machine);
        assert!(finding.found.contains("mode 0000"), "{finding:?}");
        assert!(finding.remedy.unwrap().contains("packaging/udev/60-mirrord-ublk.rules"));
        machine.put("/etc/udev/rules.d/60-mirrord-ublk.rules", "");
        assert!(control(&machine).remedy.unwrap().starts_with("udevadm control"));
    }

    #[test]
    fn features_decide_which_device_there_is() {
        let (_dir, mut root) = bare();
        let (_dir, mut user) = plain_user();
        assert_eq!(examine(&root, WIDE).1, None, "cannot be asked");
        for (told, for_root, for_user) in [
            (Some(0x1fe), Some(Device::Recoverable), Some(Device::Plain)),
            (Some(0x1de), Some(Device::Recoverable), None),
            (Some(0x6), Some(Device::Plain), None),
            (None, Some(Device::Recoverable), Some(Device::Plain)),
        ] {
            (root.ublk_features, user.ublk_features) = (Ok(told), Ok(told));
            assert_eq!(examine(&root, WIDE).1, for_root, "{told:?}");
            assert_eq!(examine(&user, WIDE).1, for_user, "{told:?}");
            assert_eq!(examine(&root, LegIo::Threads).1, None);
            assert_eq!(features(&user).0.state == Health::Missing, for_user.is_none(), "{told:?}");
        }
        assert!(features(&root).0.found.starts_with("recovery reissue unprivileged (by"));
        root.ublk_features = Ok(Some(0x1fe));
        assert_eq!(features(&root).0.found, "recovery reissue unprivileged ioctl-encode");
        for (release, usual) in [("6.0.9", 0), ("6.1.0-9-amd64", RECOVERY | REISSUE), ("6.4.0", 0x38)] {
            assert_eq!(super::usual(release), usual, "{release}");
        }
    }

    #[test]
    fn the_rule_is_for_plain_users_of_udev() {
        let (_dir, machine) = plain_user();
        assert_eq!(rule(&machine).state, Health::Ok);
        machine.put("/run/udev/control", "");
        assert_eq!(rule(&machine).state, Health::Limited);
        machine.put("/usr/lib/udev/rules.d/60-mirrord-ublk.rules", "");
        assert_eq!(rule(&machine).found, "/usr/lib/udev/rules.d/60-mirrord-ublk.rules");
    }
}
