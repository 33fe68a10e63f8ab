//! `mirrord udev-owner`, hidden: what the shipped udev rule asks of a ublk device.

use super::output::{Told, print};
use crate::doctor::owner;

/// Print user and group of a ublk device that belongs to a user without privilege; fail for others.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The kernel's name of the device: ublkb0, ublkb0p1 or ublkc0.
    name: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let owner = number(&args.name).and_then(owner);
    match owner {
        Some((user, group)) => print(&format!("{user} {group}")),
        // Nothing is wrong with a device of root's: udev only takes notice of the exit code.
        None => Err(Told.into()),
    }
}

/// The number of a ublk device, or of the device that a partition is on.
fn number(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("ublkb").or_else(|| name.strip_prefix("ublkc"))?;
    let (number, partition) = rest.split_once('p').unwrap_or((rest, "1"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(partition)).then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_kernel_are_read() {
        for (name, id) in [
            ("ublkb0", Some(0)),
            ("ublkc12", Some(12)),
            ("ublkb3p2", Some(3)),
            ("ublk-control", None),
            ("ublkb", None),
            ("ublkbp1", None),
            ("ublkb1p", None),
            ("ublkb+1", None),
            ("sda", None),
        ] {
            assert_eq!(number(name), id, "{name}");
        }
    }
}
