//! What the ublk driver says. The only place that asks it, so that what is asked through can change.

use mirrord_ublk::plain_spawn;
use mirrord_ublk::ublk::{self, Features};

use crate::failure::describe;

/// Names of the features that mean something to a volume.
pub(super) const NAMES: [(Features, &str); 6] = Features::NAMES;

/// A device outlives its daemon.
pub(super) const RECOVERY: u64 = Features::RECOVERY.0;
/// What the dead daemon had in hand goes to the next.
pub(super) const REISSUE: u64 = Features::REISSUE.0;
/// Users without privilege may have devices.
pub(super) const UNPRIVILEGED: u64 = Features::UNPRIVILEGED.0;

/// What the driver can do, as bits; `None` for one that does not tell (before Linux 6.5).
///
/// # Errors
/// Why it cannot be asked.
pub(super) fn features() -> Result<Option<u64>, String> {
    let features = ublk::features(&plain_spawn()).map_err(|error| describe(&error))?;
    Ok(features.map(|features| features.0))
}

/// User and group that a device belongs to; `None` for one of root's and where the driver cannot be asked.
pub(crate) fn owner(id: u32) -> Option<(u32, u32)> {
    ublk::owner(id, &plain_spawn()).ok().flatten()
}
