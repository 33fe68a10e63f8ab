//! What the ublk driver says. The only place that asks it, so that what is asked through can change.

/// Names of the features that mean something to a volume (`UBLK_F_*` of the kernel's `linux/ublk_cmd.h`).
pub(super) const NAMES: [(u64, &str); 6] = [
    (RECOVERY, "recovery"),
    (REISSUE, "reissue"),
    (UNPRIVILEGED, "unprivileged"),
    (1 << 6, "ioctl-encode"),
    (1 << 10, "resize"),
    (1 << 12, "quiesce"),
];

/// A device outlives its daemon.
pub(super) const RECOVERY: u64 = 1 << 3;
/// What the dead daemon had in hand goes to the next.
pub(super) const REISSUE: u64 = 1 << 4;
/// Users without privilege may have devices.
pub(super) const UNPRIVILEGED: u64 = 1 << 5;

/// What the driver can do, as bits; `None` for one that does not tell (before Linux 6.5).
///
/// # Errors
/// Why it cannot be asked.
pub(super) fn features() -> Result<Option<u64>, String> {
    Err("this version of mirrord does not speak to it".to_owned())
}

/// User and group that a device belongs to; `None` for one of root's and where the driver cannot be asked.
pub(crate) fn owner(_id: u32) -> Option<(u32, u32)> {
    None
}
