//! The kernel itself, io_uring, and how much memory may be locked.

use rustix::thread::CapabilitySet;

use super::finding::Finding;
use super::machine::{ENOMEM, ENOSYS, EPERM, Machine};
use crate::units::format_size;

/// Endings of the names of Ubuntu's kernels for clouds.
const CLOUD: [&str; 9] = ["-aws", "-azure", "-gcp", "-gke", "-oracle", "-ibm", "-nvidia", "-kvm", "-cloud"];

/// Bytes that each ring registers with the kernel, which count as locked.
const REGISTERED: u64 = 8 << 20;

/// Who does the IO on the legs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LegIo {
    /// io_uring, and whether it has what ublk needs.
    IoUring { ublk: bool },
    /// A pool of threads.
    Threads,
}

pub(super) fn examine(machine: &Machine) -> (Vec<Finding>, LegIo) {
    let leg_io = match machine.io_uring {
        Ok(found) if found.leg_io => LegIo::IoUring { ublk: found.wide_entries },
        _ => LegIo::Threads,
    };
    (vec![kernel(&machine.release), io_uring(machine), locked_memory(machine)], leg_io)
}

/// Version, minor and patch of a release.
pub(super) fn version(release: &str) -> (u32, u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// Whether adding a ublk device makes this kernel oops.
pub(super) fn is_bad_for_ublk(release: &str) -> bool {
    let (major, minor, patch) = version(release);
    match (major, minor) {
        (6, 18) => patch == 4,
        (6, 17) => CLOUD.iter().any(|ending| release.contains(ending)),
        _ => false,
    }
}

fn kernel(release: &str) -> Finding {
    const WHY: &str = "5.11 brings io_uring as leg IO needs it, 6.1 ublk devices that outlive their daemon";
    let (major, minor, _) = version(release);
    let limited = |found: String, remedy| Finding::limited("kernel", WHY, found, remedy);
    if is_bad_for_ublk(release) {
        return limited(
            format!("{release}, which is known to crash when a ublk device is added"),
            "use --front fuse, or another kernel (6.18.4 and Ubuntu's 6.17 for clouds are affected)",
        );
    }
    match (major, minor) {
        (..=4, _) | (5, ..=10) => limited(
            format!("{release}, too old for io_uring and ublk"),
            "volumes are served through FUSE by threads; Linux 6.1 or newer has all",
        ),
        (5, _) | (6, 0) => limited(
            format!("{release}, too old for ublk devices that outlive their daemon"),
            "volumes are served through FUSE; Linux 6.1 or newer has all",
        ),
        _ => Finding::ok("kernel", WHY, release),
    }
}

fn io_uring(machine: &Machine) -> Finding {
    const WHY: &str = "without it leg IO is done by threads, which is slower, and there is no ublk";
    let limited = |found: String, remedy: &str| Finding::limited("io_uring", WHY, found, remedy.to_owned());
    let errno = match machine.io_uring {
        Ok(found) if found.leg_io && found.wide_entries => return Finding::ok("io_uring", WHY, "works"),
        Ok(found) if found.leg_io => {
            return limited("works, but is too old for ublk".to_owned(), "use Linux 6.0 or newer for ublk");
        }
        Ok(_) => return limited("too old".to_owned(), "use Linux 5.11 or newer"),
        Err(errno) => errno,
    };
    const FILTER: &str = "a seccomp filter forbids it, as the default profiles of docker (25 and newer) and \
                          containerd do";
    const ALLOW: &str = "run the container with a profile that allows io_uring_setup, io_uring_enter and \
                         io_uring_register (--security-opt seccomp=PROFILE.json), or with \
                         --security-opt seccomp=unconfined";
    let disabled = machine.text("/proc/sys/kernel/io_uring_disabled");
    match (errno, disabled.trim()) {
        (EPERM, "2") => limited(
            "kernel.io_uring_disabled is 2: nobody may use it".to_owned(),
            "sysctl kernel.io_uring_disabled=0 (on the host; kept by a file in /etc/sysctl.d)",
        ),
        (EPERM, "1") if !machine.rights.has(CapabilitySet::SYS_ADMIN) => limited(
            "kernel.io_uring_disabled is 1: only processes with CAP_SYS_ADMIN or of one group may use it"
                .to_owned(),
            "sysctl kernel.io_uring_disabled=0, or join the group that kernel.io_uring_group names",
        ),
        (EPERM | ENOSYS, _) if machine.filtered => limited(FILTER.to_owned(), ALLOW),
        (EPERM, _) => limited(
            "forbidden, neither by kernel.io_uring_disabled nor by seccomp: by a security module?".to_owned(),
            "look for a denial in the kernel's messages (dmesg)",
        ),
        (ENOSYS, _) => limited(
            "this kernel has none".to_owned(),
            "use a kernel of 5.11 or newer that is built with CONFIG_IO_URING",
        ),
        (ENOMEM, _) => limited(
            "too little memory may be locked for its rings".to_owned(),
            "ulimit -l unlimited (LimitMEMLOCK=infinity in a unit)",
        ),
        (errno, _) => {
            let error = std::io::Error::from_raw_os_error(errno);
            limited(crate::failure::describe(&error), "volumes are served by threads")
        }
    }
}

fn locked_memory(machine: &Machine) -> Finding {
    const WHY: &str = "buffers that are registered with io_uring count as locked memory, and a daemon that \
                       may lock all of its memory never waits for swap";
    let finding = |found: String| Finding::ok("locked memory", WHY, found);
    let Some(limit) = machine.lockable else { return finding("no limit".to_owned()) };
    let text = format_size(limit);
    if machine.rights.has(CapabilitySet::IPC_LOCK) {
        return finding(format!("limit {text}, which CAP_IPC_LOCK overrides"));
    }
    // One ring for each queue, and one for resync.
    let rings = machine.queues as u64 + 1;
    let enough = (limit / REGISTERED).min(rings);
    Finding::limited(
        "locked memory",
        WHY,
        format!(
            "limit {text}: buffers of {enough} of {rings} rings are registered, the daemon's memory is not locked"
        ),
        "ulimit -l unlimited before the start, memlock in /etc/security/limits.d, LimitMEMLOCK=infinity in a unit",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Health;
    use super::super::machine::tests::{bare, plain_user};
    use super::*;
    use mirrord_ublk::UringAbilities;

    #[test]
    fn kernels_are_judged_by_their_release() {
        for (release, state, bad) in [
            ("6.12.117+deb13-cloud-amd64", Health::Ok, false),
            ("6.18.44", Health::Ok, false),
            ("6.18.4", Health::Limited, true),
            ("6.18.4-arch1-1", Health::Limited, true),
            ("6.17.0-1005-aws", Health::Limited, true),
            ("6.17.0-8-generic", Health::Ok, false),
            ("6.0.1", Health::Limited, false),
            ("5.10.0-30-amd64", Health::Limited, false),
            ("4.19.0", Health::Limited, false),
            ("7.2.12", Health::Ok, false),
        ] {
            assert_eq!((kernel(release).state, is_bad_for_ublk(release)), (state, bad), "{release}");
        }
        assert_eq!(version("6.1-rc3"), (6, 1, 0));
    }

    #[test]
    fn reasons_against_io_uring_are_told_apart() {
        let (_dir, mut machine) = plain_user();
        let said = |machine: &Machine| {
            let finding = io_uring(machine);
            assert_eq!(finding.state, Health::Limited);
            (finding.found, finding.remedy.unwrap())
        };
        machine.io_uring = Err(ENOSYS);
        assert_eq!(said(&machine).0, "this kernel has none");
        machine.io_uring = Err(EPERM);
        assert!(said(&machine).0.contains("security module"));
        machine.filtered = true;
        let (found, remedy) = said(&machine);
        assert!(found.contains("docker") && remedy.contains("--security-opt"), "{found} {remedy}");
        for (value, word) in [("1\n", "is 1"), ("2\n", "is 2")] {
            machine.put("/proc/sys/kernel/io_uring_disabled", value);
            let (found, remedy) = said(&machine);
            assert!(found.contains(word) && remedy.contains("sysctl"), "{found} {remedy}");
        }
        machine.io_uring = Err(ENOMEM);
        assert!(said(&machine).1.contains("ulimit"));
        machine.io_uring = Ok(UringAbilities { leg_io: true, wide_entries: false });
        assert!(said(&machine).0.contains("too old for ublk"));
        assert_eq!(examine(&machine).1, LegIo::IoUring { ublk: false });
        machine.io_uring = Err(EPERM);
        assert_eq!(examine(&machine).1, LegIo::Threads);
    }

    #[test]
    fn what_may_be_locked_is_counted() {
        let (_dir, mut machine) = bare();
        assert_eq!(locked_memory(&machine).state, Health::Ok, "CAP_IPC_LOCK");
        machine.rights = plain_user().1.rights;
        assert!(locked_memory(&machine).found.contains("1 of 3 rings"));
        machine.lockable = Some(64 << 10);
        assert!(locked_memory(&machine).found.contains("64KiB: buffers of 0 of 3"));
        machine.lockable = None;
        assert_eq!(locked_memory(&machine).state, Health::Ok);
    }
}
