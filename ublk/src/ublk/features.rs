//! What a ublk driver can do, and what of it a volume asks for. Bits as in the kernel's
//! `include/uapi/linux/ublk_cmd.h` (`UBLK_F_*`).

/// A set of ublk features.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Features(pub u64);

impl Features {
    /// A device outlives its daemon; IO waits for the next one.
    pub const RECOVERY: Features = Features(1 << 3);
    /// What the dead daemon had in hand is given to the next one.
    pub const REISSUE: Features = Features(1 << 4);
    /// Users without privilege may have devices.
    pub const UNPRIVILEGED: Features = Features(1 << 5);
    /// Commands have the numbers of ioctls.
    pub const IOCTL_NUMBERS: Features = Features(1 << 6);
    /// A device may change its size.
    pub const RESIZE: Features = Features(1 << 10);
    /// A device can be held for a change of daemons.
    pub const QUIESCE: Features = Features(1 << 12);

    /// Names of the features that mean something to a volume.
    pub const NAMES: [(Features, &str); 6] = [
        (Features::RECOVERY, "recovery"),
        (Features::REISSUE, "reissue"),
        (Features::UNPRIVILEGED, "unprivileged"),
        (Features::IOCTL_NUMBERS, "ioctl-encode"),
        (Features::RESIZE, "resize"),
        (Features::QUIESCE, "quiesce"),
    ];

    /// All that [`Features::wanted`] may ask for.
    pub(super) const ASKED_FOR: u64 = Features::RECOVERY.0
        | Features::REISSUE.0
        | Features::UNPRIVILEGED.0
        | Features::RESIZE.0
        | Features::QUIESCE.0;

    /// Whether all of `other` is there.
    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// What to ask a driver for that has `self`, or has not told. One that is asked for what it does not
    /// know may leave the device impossible to delete. A device without privilege cannot be recovered.
    pub(super) fn wanted(known: Option<Features>, privileged: bool) -> Features {
        if !privileged {
            return Features::UNPRIVILEGED;
        }
        let always = Features::RECOVERY.0 | Features::REISSUE.0;
        let if_known = Features::RESIZE.0 | Features::QUIESCE.0;
        Features(always | known.map_or(0, |known| known.0 & if_known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_that_the_driver_does_not_know() {
        let (old, new) = (Features(0x1fe), Features(0xfffff));
        let recovery = Features::RECOVERY.0 | Features::REISSUE.0;
        for (known, privileged, wanted) in [
            (None, true, recovery),
            (Some(old), true, recovery),
            (Some(new), true, recovery | Features::RESIZE.0 | Features::QUIESCE.0),
            (Some(new), false, Features::UNPRIVILEGED.0),
        ] {
            assert_eq!(Features::wanted(known, privileged), Features(wanted), "{known:?} {privileged}");
        }
    }
}
