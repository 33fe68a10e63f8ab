//! Makes a [`VolumeMap`] from the tables of a running volume. They are atomics: nobody waits for this.

use mirrord_raid::{LegSet, Region, RegionState};

use super::shared::{Shared, lock};
use super::status::{Facts, leg_state};
use crate::map::{Condition, LegInMap, VolumeMap, reduce};

/// The map from region `from` on, in cells of `per_cell` regions.
pub(super) fn map(facts: &Facts, shared: &Shared, from: u32, per_cell: u32) -> VolumeMap {
    let mirror = &shared.mirror;
    let (geometry, states) = (mirror.geometry(), mirror.legs.states());
    // Legs that are out are stale wherever the log is dirty, if nothing better is known.
    let known = states.syncing().union(mirror.legs.tracked_exactly());
    let out = states.all().minus(states.in_use()).minus(known);
    let syncing = states.syncing();
    let leg_facts = lock(&facts.legs);
    let copying: Vec<Region> = mirror.copying().collect();
    let regions = geometry.regions();
    let from = from.min(regions);
    let reduced = reduce(from..regions, per_cell, leg_facts.len(), |region| {
        if mirror.regions.state(region) == RegionState::Clean {
            return Condition::CLEAN;
        }
        let stale: LegSet = known.iter().filter(|&leg| mirror.legs.is_stale(leg, region)).collect();
        let resyncing = if copying.contains(&region) { stale.intersect(syncing) } else { LegSet::EMPTY };
        Condition { dirty: true, stale: stale.union(out), resyncing }
    });
    let copies = leg_facts.iter().filter(|(leg, _)| states.of(*leg).is_copy());
    let legs = copies.map(|(leg, known)| {
        let (stale_regions, resyncing_regions) = reduced.legs[leg];
        LegInMap {
            index: leg.index(),
            path: known.path.clone(),
            state: leg_state(states.of(leg)).0.to_owned(),
            stale_regions,
            resyncing_regions,
        }
    });
    VolumeMap {
        name: facts.name.clone(),
        size_bytes: geometry.size(),
        region_size_bytes: geometry.region_size(),
        regions,
        regions_per_cell: per_cell,
        clean_regions: reduced.end - from - reduced.dirty,
        dirty_regions: reduced.dirty,
        legs: legs.collect(),
        runs: reduced.runs,
        next: (reduced.end < regions).then_some(reduced.end),
    }
}
