//! `mirrord doctor`: what this machine can do, what is missing, and how to mend it.
//!
//! Each group of checks is a file that turns a [`Machine`] into [`Finding`]s. Guarantee: nothing is
//! changed; no module is loaded, no directory made, no device added.

mod driver;
mod finding;
mod fuse;
mod kernel;
mod leg;
mod machine;
mod places;
mod ublk;
mod volumes;

use std::path::PathBuf;

pub(crate) use driver::owner;
pub use finding::{Finding, Health};
pub use machine::Machine;

use fuse::Mounter;
use kernel::{LegIo, is_bad_for_ublk};
use ublk::Device;

/// All findings, the verdict last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// In the order in which they build on each other.
    pub findings: Vec<Finding>,
    /// Whether a volume can be served at all.
    pub serves: bool,
}

/// Looks at `machine`, and at `paths` as places for legs.
pub fn examine(machine: &Machine, paths: &[PathBuf]) -> Report {
    let (mut findings, leg_io) = kernel::examine(machine);
    let (of_fuse, mounter) = fuse::examine(machine);
    let (of_ublk, device) = ublk::examine(machine, leg_io);
    findings.extend(of_fuse);
    findings.extend(of_ublk);
    findings.extend(places::examine(machine));
    findings.extend(volumes::examine(machine));
    findings.extend(paths.iter().map(|path| leg::examine(path)));
    let device = device.filter(|_| !is_bad_for_ublk(&machine.release));
    let verdict = match machine.dirs.look().iter().any(|(_, result)| result.is_err()) {
        true => homeless(machine),
        false => verdict(machine, leg_io, device, mounter),
    };
    let serves = verdict.state == Health::Ok;
    findings.push(verdict);
    Report { findings, serves }
}

const VERDICT: &str = "verdict";
const WHY: &str = "which front end serves a volume, if none is asked for";

fn who(machine: &Machine) -> String {
    match machine.uid {
        0 => "root".to_owned(),
        uid => format!("user {uid}"),
    }
}

/// Whatever else works: a daemon needs both directories.
fn homeless(machine: &Machine) -> Finding {
    let found =
        format!("as {}, no volume can be served: a directory of mirrord cannot be used", who(machine));
    Finding::missing(VERDICT, WHY, found, "mend the directory named above")
}

fn verdict(machine: &Machine, leg_io: LegIo, device: Option<Device>, mounter: Option<Mounter>) -> Finding {
    let who = who(machine);
    let engine = match leg_io {
        LegIo::IoUring { .. } => "io_uring",
        LegIo::Threads => "threads",
    };
    let takes = |front: &str| {
        let text = format!("as {who}, --front auto takes {front}; leg IO by {engine}");
        Finding::ok(VERDICT, WHY, text)
    };
    match (device, mounter) {
        (Some(Device::Recoverable), _) => takes("ublk: a block device that outlives its daemon"),
        (Some(Device::Plain), _) => takes("ublk: a block device that goes when its daemon goes"),
        (None, Some(Mounter::Daemon)) => takes("FUSE: a file, mounted by the daemon itself"),
        (None, Some(Mounter::Helper)) => takes("FUSE: a file, mounted by fusermount3"),
        (None, None) => Finding::missing(
            VERDICT,
            WHY,
            format!("as {who}, no front end works: neither FUSE nor ublk"),
            "mend what is missing of FUSE above",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::machine::tests::{bare, plain_user};
    use super::*;

    fn last(report: &Report) -> &Finding {
        report.findings.last().unwrap()
    }

    #[test]
    fn a_machine_without_anything_serves_nothing() {
        let (_dir, machine) = plain_user();
        let report = examine(&machine, &[]);
        assert!(!report.serves);
        assert_eq!((last(&report).check.as_str(), last(&report).state), ("verdict", Health::Missing));
        for finding in &report.findings {
            assert_eq!(finding.remedy.is_none(), finding.state == Health::Ok, "{finding:?}");
            assert!(!finding.why.is_empty() && !finding.found.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn the_best_front_end_is_taken() {
        let (_dir, mut machine) = bare();
        machine.put("/dev/fuse", "");
        let report = examine(&machine, &[]);
        assert!(report.serves && last(&report).found.contains("takes FUSE: a file, mounted by the daemon"));
        machine.ublk_features = Ok(Some(0x1fe));
        assert!(last(&examine(&machine, &[])).found.contains("takes ublk: a block device that outlives"));
        machine.release = "6.18.4".to_owned();
        assert!(last(&examine(&machine, &[])).found.contains("takes FUSE"), "the driver would oops");
        machine.release = "6.18.5".to_owned();
        machine.io_uring = Err(1);
        let found = &last(&examine(&machine, &[])).found.clone();
        assert!(found.contains("takes FUSE") && found.contains("threads"), "{found}");
    }
}
