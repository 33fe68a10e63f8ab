//! What a scrub could not write anew: the leg is failed by the rules of a repair (see `repair.rs`).

use super::{HOLD_OFF_TICKS, LogWorker};
use crate::geometry::Region;
use crate::mirror::LegErrors;
use crate::types::{LegSet, LegState};

impl LogWorker {
    /// Writes of a scrub failed; the legs without an error have the bytes.
    pub(super) fn scrub_failed(&mut self, region: Region, mut errors: LegErrors) {
        for leg in self.states.legs() {
            if let (LegState::Syncing, Some(errno)) = (self.states[leg], errors[leg.index()])
                && errno.is_no_space()
            {
                // As after a write of a user.
                self.set_stale(leg, region);
                self.hold_off[leg.index()] = HOLD_OFF_TICKS;
                errors[leg.index()] = None;
            }
        }
        let failed: LegSet = self.states.legs().filter(|leg| errors[leg.index()].is_some()).collect();
        self.fail_legs(self.in_sync().minus(failed), &errors);
    }
}
