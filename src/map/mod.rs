//! The map of a volume: where its log is dirty, where which leg is stale, what is being copied. Here are its
//! form, which is what `map --json` prints, how many regions become one cell, and what it looks like. Pure: the
//! engine says how each region is, the command line prints.
//!
//! A daemon answers in runs, at most [`MOST_RUNS`] at a time, and says where it left off. A map is no snapshot:
//! the volume is used while its regions are looked at, one after the other.

mod draw;
mod svg;

use std::num::NonZeroU32;
use std::ops::Range;
use std::path::PathBuf;

use mirrord_raid::{LegMap, LegSet, Region};
use serde::{Deserialize, Serialize};

pub use draw::{HEAD, MARGIN, text};
pub use svg::svg;

/// Most runs in one answer of a daemon: half a MiB, and more cells than a screen has.
pub const MOST_RUNS: usize = 4096;

/// How a region is, the worse the later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionWord {
    /// Its bit is not set.
    Clean,
    /// Its bit is set: the legs may differ there after a crash.
    Dirty,
    /// A leg is stale there. Its bit is set too.
    Stale,
    /// It is being copied to a leg that is stale there: writers may have to wait.
    Resyncing,
}

/// A map, or the part of one that is in an answer. Field names are the interface: add, never rename.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeMap {
    /// The volume's name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Region size in bytes; the last region may be shorter.
    pub region_size_bytes: u64,
    /// Number of regions.
    pub regions: u32,
    /// Regions that a cell stands for; the last cell may stand for fewer.
    pub regions_per_cell: u32,
    /// Regions whose bit is not set.
    pub clean_regions: u32,
    /// Regions whose bit is set.
    pub dirty_regions: u32,
    /// Its legs, by index.
    pub legs: Vec<LegInMap>,
    /// Stretches of cells that are alike, in order, without gaps.
    pub runs: Vec<Run>,
    /// The region at which the next answer begins, unless this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// A leg in a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegInMap {
    /// Its place in the volume.
    pub index: usize,
    /// Where it is (or was, if it is missing).
    pub path: PathBuf,
    /// `in_sync` `syncing` `tracked` `failed` `missing`.
    pub state: String,
    /// Regions in which it is stale.
    pub stale_regions: u32,
    /// Those of them that are being copied to it.
    pub resyncing_regions: u32,
}

/// Cells that are alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The first region.
    pub start: u32,
    /// Number of regions.
    pub count: u32,
    /// The worst that is in each of the cells.
    pub state: RegionWord,
    /// Legs that are stale in each of the cells, by index.
    pub stale_legs: Vec<usize>,
    /// Those of them to which a region of the cell is being copied.
    pub resyncing_legs: Vec<usize>,
}

impl Run {
    fn new(cell: Range<u32>, how: Condition) -> Run {
        let legs = |set: LegSet| set.iter().map(mirrord_raid::Leg::index).collect();
        Run {
            start: cell.start,
            count: cell.end - cell.start,
            state: how.word(),
            stale_legs: legs(how.stale),
            resyncing_legs: legs(how.resyncing),
        }
    }

    fn is_like(&self, other: &Run) -> bool {
        (self.state, &self.stale_legs, &self.resyncing_legs)
            == (other.state, &other.stale_legs, &other.resyncing_legs)
    }
}

impl VolumeMap {
    /// Adds the answer that begins where this one ends. What legs are is what it says.
    pub fn append(&mut self, more: VolumeMap) {
        self.clean_regions += more.clean_regions;
        self.dirty_regions += more.dirty_regions;
        for (leg, more) in self.legs.iter_mut().zip(more.legs) {
            let (stale, resyncing) = (leg.stale_regions, leg.resyncing_regions);
            *leg = more;
            leg.stale_regions += stale;
            leg.resyncing_regions += resyncing;
        }
        let mut runs = more.runs.into_iter().peekable();
        if let (Some(last), Some(first)) = (self.runs.last_mut(), runs.peek())
            && last.is_like(first)
        {
            last.count += first.count;
            runs.next();
        }
        self.runs.extend(runs);
        self.next = more.next;
    }
}

/// How a region is, or the worst of several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Its bit is set.
    pub dirty: bool,
    /// Legs that are stale there.
    pub stale: LegSet,
    /// Those of them to which it is being copied.
    pub resyncing: LegSet,
}

impl Condition {
    /// Clean, and stale nowhere.
    pub const CLEAN: Condition = Condition { dirty: false, stale: LegSet::EMPTY, resyncing: LegSet::EMPTY };

    fn and(self, other: Condition) -> Condition {
        Condition {
            dirty: self.dirty || other.dirty,
            stale: self.stale.union(other.stale),
            resyncing: self.resyncing.union(other.resyncing),
        }
    }

    fn word(self) -> RegionWord {
        if !self.resyncing.is_empty() {
            RegionWord::Resyncing
        } else if !self.stale.is_empty() {
            RegionWord::Stale
        } else if self.dirty {
            RegionWord::Dirty
        } else {
            RegionWord::Clean
        }
    }
}

/// Regions made runs, and counted.
#[derive(Clone, PartialEq, Debug)]
pub struct Reduced {
    /// The runs.
    pub runs: Vec<Run>,
    /// Regions that were looked at and are dirty.
    pub dirty: u32,
    /// Regions in which each leg is stale, and those of them that are being copied to it.
    pub legs: LegMap<(u32, u32)>,
    /// The first region that was not looked at: the end, unless there are [`MOST_RUNS`] runs.
    pub end: u32,
}

/// Regions that a cell has to stand for if there are to be at most `cells`; one without a limit.
pub fn regions_per_cell(regions: u32, cells: Option<NonZeroU32>) -> u32 {
    cells.map_or(1, |cells| regions.div_ceil(cells.get()).max(1))
}

/// Looks at `regions` of a volume of `legs` legs, one by one, and makes cells of `per_cell` (not zero) regions
/// of them, counted from the first of `regions`.
pub fn reduce(
    regions: Range<u32>,
    per_cell: u32,
    legs: usize,
    condition: impl Fn(Region) -> Condition,
) -> Reduced {
    let mut counts = LegMap::from_fn(legs, |_| (0, 0));
    let (mut runs, mut dirty, mut last) = (Vec::<Run>::new(), 0, None);
    let mut at = regions.start;
    while at < regions.end && runs.len() < MOST_RUNS {
        let cell = at..at.saturating_add(per_cell).min(regions.end);
        let mut worst = Condition::CLEAN;
        for region in cell.clone().map(Region) {
            let condition = condition(region);
            dirty += u32::from(condition.dirty);
            condition.stale.iter().for_each(|leg| counts[leg].0 += 1);
            condition.resyncing.iter().for_each(|leg| counts[leg].1 += 1);
            worst = worst.and(condition);
        }
        at = cell.end;
        match runs.last_mut().filter(|_| last == Some(worst)) {
            Some(run) => run.count += cell.end - cell.start,
            None => runs.push(Run::new(cell, worst)),
        }
        last = Some(worst);
    }
    Reduced { runs, dirty, legs: counts, end: at }
}

#[cfg(test)]
mod tests {
    use mirrord_raid::Leg;

    use super::*;

    const DIRTY: Condition = Condition { dirty: true, ..Condition::CLEAN };
    const STALE: Condition = Condition { stale: LegSet::one(Leg::new(1)), ..DIRTY };
    const RESYNCING: Condition = Condition { resyncing: LegSet::one(Leg::new(1)), ..STALE };

    /// Ten regions, one of each kind that is not clean.
    fn ten(region: Region) -> Condition {
        match region.0 {
            2 => DIRTY,
            4 => STALE,
            5 => RESYNCING,
            9 => DIRTY,
            _ => Condition::CLEAN,
        }
    }

    /// First region, number of regions and state of a run.
    type Shown = (u32, u32, RegionWord);

    fn shown(reduced: &Reduced) -> Vec<Shown> {
        reduced.runs.iter().map(|run| (run.start, run.count, run.state)).collect()
    }

    #[test]
    fn a_cell_shows_the_worst_of_its_regions() {
        use RegionWord::{Clean, Dirty, Resyncing, Stale};
        let each = [(0, 2, Clean), (2, 1, Dirty), (3, 1, Clean), (4, 1, Stale), (5, 1, Resyncing)];
        let rows: [(u32, &[Shown]); 6] = [
            (1, &[&each[..], &[(6, 3, Clean), (9, 1, Dirty)]].concat()),
            (2, &[(0, 2, Clean), (2, 2, Dirty), (4, 2, Resyncing), (6, 2, Clean), (8, 2, Dirty)]),
            // The last cell is short.
            (3, &[(0, 3, Dirty), (3, 3, Resyncing), (6, 3, Clean), (9, 1, Dirty)]),
            (4, &[(0, 4, Dirty), (4, 4, Resyncing), (8, 2, Dirty)]),
            (5, &[(0, 5, Stale), (5, 5, Resyncing)]),
            (100, &[(0, 10, Resyncing)]),
        ];
        for (per_cell, expected) in rows {
            let reduced = reduce(0..10, per_cell, 2, ten);
            assert_eq!(shown(&reduced), expected, "{per_cell}");
            // Whatever a cell is, regions are counted.
            assert_eq!((reduced.dirty, reduced.end), (4, 10), "{per_cell}");
            assert_eq!(reduced.legs[Leg::new(0)], (0, 0), "{per_cell}");
            assert_eq!(reduced.legs[Leg::new(1)], (2, 1), "{per_cell}");
        }
        let run = &reduce(0..10, 2, 2, ten).runs[2];
        assert_eq!((&run.stale_legs[..], &run.resyncing_legs[..]), (&[1][..], &[1][..]));
    }

    #[test]
    fn runs_end_where_another_leg_is_stale() {
        let stale = |leg| Condition { stale: LegSet::one(Leg::new(leg)), ..DIRTY };
        let reduced = reduce(0..4, 1, 2, |region| stale(region.index() / 2));
        assert_eq!(shown(&reduced), [(0, 2, RegionWord::Stale), (2, 2, RegionWord::Stale)]);
    }

    #[test]
    fn cells_are_as_small_as_they_can_be() {
        for (regions, cells, per_cell) in
            [(10, 10, 1), (10, 9, 2), (10, 100, 1), (10, 1, 10), (1 << 22, 1600, 2622)]
        {
            let cells = NonZeroU32::new(cells).unwrap();
            assert_eq!(regions_per_cell(regions, Some(cells)), per_cell);
            assert!(regions.div_ceil(per_cell) <= cells.get());
        }
        assert_eq!(regions_per_cell(1 << 22, None), 1);
    }

    fn part(reduced: Reduced, from: u32, regions: u32) -> VolumeMap {
        let leg = |leg: Leg| LegInMap {
            index: leg.index(),
            path: PathBuf::from("leg"),
            state: "in_sync".to_owned(),
            stale_regions: reduced.legs[leg].0,
            resyncing_regions: reduced.legs[leg].1,
        };
        VolumeMap {
            name: "v".to_owned(),
            size_bytes: u64::from(regions) << 20,
            region_size_bytes: 1 << 20,
            regions,
            regions_per_cell: 1,
            clean_regions: reduced.end - from - reduced.dirty,
            dirty_regions: reduced.dirty,
            legs: reduced.legs.legs().map(leg).collect(),
            runs: reduced.runs,
            next: (reduced.end < regions).then_some(reduced.end),
        }
    }

    #[test]
    fn answers_are_bounded_and_make_a_whole() {
        // Every other region is stale, and all where the first answer ends and the next begins.
        let regions = 3 * MOST_RUNS as u32 + 5;
        let border = MOST_RUNS as u32 - 1..MOST_RUNS as u32 + 9;
        let condition = |region: Region| {
            let stale = region.0 % 2 == 1 || border.contains(&region.0);
            if stale { STALE } else { Condition::CLEAN }
        };
        let answer = |from| {
            let reduced = reduce(from..regions, 1, 2, condition);
            assert!(reduced.runs.len() <= MOST_RUNS && reduced.end > from);
            part(reduced, from, regions)
        };
        let (mut map, mut answers) = (answer(0), 1);
        while let Some(from) = map.next {
            map.append(answer(from));
            answers += 1;
        }
        assert_eq!(answers, 3);
        let mut at = 0;
        for run in &map.runs {
            assert_eq!(run.start, at);
            at += run.count;
        }
        assert_eq!(at, regions);
        assert!(map.runs.windows(2).all(|pair| !pair[0].is_like(&pair[1])));
        let dirty = (0..regions).filter(|&region| condition(Region(region)) == STALE).count() as u32;
        assert_eq!((map.clean_regions, map.dirty_regions), (regions - dirty, dirty));
        assert_eq!(map.legs[1].stale_regions, dirty);
    }

    #[test]
    fn a_volume_without_regions_left_has_an_empty_map() {
        let reduced = reduce(10..10, 3, 1, |_| DIRTY);
        assert_eq!((reduced.runs.len(), reduced.dirty, reduced.end), (0, 0, 10));
    }
}
