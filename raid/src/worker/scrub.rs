//! What follows from a scrub that wrote something anew.

use super::LogWorker;
use crate::geometry::Region;
use crate::mirror::LegErrors;
use crate::types::{LegSet, LegState};

impl LogWorker {
    /// A leg that could not be written is failed by the rules of a repair (see `repair.rs`): those without an error
    /// have the bytes. One that is syncing may have a copy of what was wrong, and gets another.
    pub(super) fn scrubbed(&mut self, region: Region, errors: &LegErrors) {
        let legs = || self.states.iter();
        let syncing: LegSet = legs().filter(|(_, s)| **s == LegState::Syncing).map(|(leg, _)| leg).collect();
        let failed: LegSet = legs().map(|(leg, _)| leg).filter(|leg| errors[leg.index()].is_some()).collect();
        syncing.iter().for_each(|leg| self.set_stale(leg, region));
        self.fail_legs(self.in_sync().minus(failed), errors);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::geometry::Geometry;
    use crate::lineage::Lineage;
    use crate::mirror::{Mirror, WorkerNote};
    use crate::types::{Errno, FailReason, Leg, LegMap, MAX_LEGS};
    use crate::worker::WorkerEvent;

    #[test]
    fn a_leg_that_could_not_be_written_is_failed_and_one_that_is_syncing_copied_to_again() {
        let states = LegMap::from(vec![LegState::InSync, LegState::InSync, LegState::Syncing]);
        let geometry = Geometry::new(16 * 8192, 8192).unwrap();
        let mirror = Arc::new(Mirror::new(geometry, &states, [Region(3)], 1));
        let lineage = Lineage::new(1, states.len());
        let [good, bad, syncing] = [0, 1, 2].map(Leg::new);
        mirror.legs.clear_stale(syncing, Region(3));
        let mut worker = LogWorker::new(Arc::clone(&mirror), states, 1, lineage, true);
        let mut scrubbed = |failed: &[Leg]| {
            let mut errors = [None; MAX_LEGS];
            failed.iter().for_each(|leg| errors[leg.index()] = Some(Errno::EIO));
            mirror.tell_worker(WorkerNote::Scrubbed { region: Region(3), errors });
            worker.handle(WorkerEvent::Woken, &mut Vec::new());
            (mirror.legs.states(), mirror.legs.is_stale(syncing, Region(3)))
        };
        let (states, stale) = scrubbed(&[]);
        assert!(states.in_sync() == LegSet::first(2) && stale);
        let (states, _) = scrubbed(&[bad]);
        assert_eq!(states.of(bad), LegState::Failed(FailReason::Io));
        let (states, _) = scrubbed(&[good]);
        assert_eq!(states.of(good), LegState::InSync, "the last one in sync");
    }
}
