//! A map as text: a block of cells for the log, and one for each leg that is not in sync.
//!
//! Each state has a character of its own, the same with and without colours, so that a copy of the screen says
//! all that the screen does.

use std::fmt::Write;

use super::{LegInMap, RegionWord, Run, VolumeMap};
use crate::units::format_size;

/// Columns of a line before its cells: the offset of the first, and a blank.
pub const MARGIN: usize = 11;

/// Lines that are not cells, but for the headings of blocks.
pub const HEAD: usize = 4;

/// Cells with a heading.
pub(super) struct Block {
    /// What they are of, and how many regions are how.
    pub(super) heading: String,
    /// One for each cell; [`RegionWord::Clean`] stands for in sync where they are of a leg.
    pub(super) cells: Vec<RegionWord>,
}

/// What a map shows: first the log, then the legs that are not in sync.
pub(super) fn blocks(map: &VolumeMap) -> Vec<Block> {
    let cells = |word: &dyn Fn(&Run) -> RegionWord| {
        let repeated = |run: &Run| vec![word(run); run.count.div_ceil(map.regions_per_cell.max(1)) as usize];
        map.runs.iter().flat_map(repeated).collect::<Vec<RegionWord>>()
    };
    let log = Block {
        heading: format!("log  {} regions clean, {} dirty", map.clean_regions, map.dirty_regions),
        cells: cells(&|run| run.state.min(RegionWord::Dirty)),
    };
    let leg = |leg: &LegInMap| {
        let resyncing = match leg.resyncing_regions {
            0 => String::new(),
            count => format!(", {count} of them resyncing"),
        };
        let in_sync = map.regions.saturating_sub(leg.stale_regions);
        Block {
            heading: format!(
                "leg {}  {}, {in_sync} regions in sync, {} stale{resyncing}",
                leg.index, leg.state, leg.stale_regions
            ),
            cells: cells(&|run| {
                if run.resyncing_legs.contains(&leg.index) {
                    RegionWord::Resyncing
                } else if run.stale_legs.contains(&leg.index) {
                    RegionWord::Stale
                } else {
                    RegionWord::Clean
                }
            }),
        }
    };
    let out_of_sync = map.legs.iter().filter(|leg| leg.state != "in_sync");
    std::iter::once(log).chain(out_of_sync.map(leg)).collect()
}

/// Where a line of cells begins in the volume.
pub(super) fn line_offset(map: &VolumeMap, line: usize, width: usize) -> String {
    format_size((line * width) as u64 * u64::from(map.regions_per_cell) * map.region_size_bytes)
}

/// How large the volume and its regions are, and what a cell is.
pub(super) fn scale(map: &VolumeMap) -> [String; 2] {
    let cell = u64::from(map.regions_per_cell);
    let (size, region_size) = (format_size(map.size_bytes), format_size(map.region_size_bytes));
    let bytes = format_size(cell * map.region_size_bytes);
    [
        format!("{size} in {} regions of {region_size}", map.regions),
        match cell {
            1 => format!("a cell is 1 region, {bytes}"),
            _ => format!("a cell is {cell} regions, {bytes}, and shows the worst of them"),
        },
    ]
}

/// What stands for a state: a character, and the colour it has.
fn glyph(word: RegionWord) -> (char, &'static str) {
    match word {
        RegionWord::Clean => ('.', "\x1b[32m"),
        RegionWord::Dirty => ('#', "\x1b[33m"),
        RegionWord::Stale => ('x', "\x1b[31m"),
        RegionWord::Resyncing => ('>', "\x1b[36m"),
    }
}

fn glyphs(word: RegionWord, count: usize, colour: bool) -> String {
    let (character, code) = glyph(word);
    let text = character.to_string().repeat(count);
    if colour { format!("{code}{text}\x1b[0m") } else { text }
}

/// The map with `width` (not zero) cells to a line, under `title`, with colours or without.
pub fn text(map: &VolumeMap, title: &str, width: usize, colour: bool) -> String {
    let legend = [
        (RegionWord::Clean, "clean, in sync"),
        (RegionWord::Dirty, "dirty"),
        (RegionWord::Stale, "stale"),
        (RegionWord::Resyncing, "resyncing"),
    ];
    let legend = legend.map(|(word, name)| format!("{} {name}", glyphs(word, 1, colour))).join("  ");
    let [sizes, cell] = scale(map);
    let mut text = format!("{title}\n{sizes}\n{cell}\n{legend}\n");
    for block in blocks(map) {
        let _ = writeln!(text, "{}", block.heading);
        for (number, line) in block.cells.chunks(width).enumerate() {
            let _ = write!(text, "{:>1$} ", line_offset(map, number, width), MARGIN - 1);
            for alike in line.chunk_by(PartialEq::eq) {
                text.push_str(&glyphs(alike[0], alike.len(), colour));
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// 25 regions in cells of two, the last of one; leg 1 is being resynced, leg 2 is missing.
    pub(in crate::map) fn sample() -> VolumeMap {
        let run = |start, count, state, stale: &[usize], resyncing: &[usize]| Run {
            start,
            count,
            state,
            stale_legs: stale.to_vec(),
            resyncing_legs: resyncing.to_vec(),
        };
        let leg = |index, state: &str, stale_regions, resyncing_regions| LegInMap {
            index,
            path: PathBuf::from(format!("/leg{index}")),
            state: state.to_owned(),
            stale_regions,
            resyncing_regions,
        };
        VolumeMap {
            name: "v".to_owned(),
            size_bytes: (25 << 20) - 512,
            region_size_bytes: 1 << 20,
            regions: 25,
            regions_per_cell: 2,
            clean_regions: 17,
            dirty_regions: 8,
            legs: vec![leg(0, "in_sync", 0, 0), leg(1, "syncing", 3, 1), leg(2, "missing", 8, 0)],
            runs: vec![
                run(0, 8, RegionWord::Clean, &[], &[]),
                run(8, 2, RegionWord::Stale, &[2], &[]),
                run(10, 2, RegionWord::Resyncing, &[1, 2], &[1]),
                run(12, 12, RegionWord::Clean, &[], &[]),
                run(24, 1, RegionWord::Stale, &[1, 2], &[]),
            ],
            next: None,
        }
    }

    #[test]
    fn text_has_a_block_for_the_log_and_for_each_leg_that_is_not_in_sync() {
        let expected = "\
v  degraded
25.00MiB in 25 regions of 1MiB
a cell is 2 regions, 2MiB, and shows the worst of them
. clean, in sync  # dirty  x stale  > resyncing
log  17 regions clean, 8 dirty
        0B ....##....
     20MiB ..#
leg 1  syncing, 22 regions in sync, 3 stale, 1 of them resyncing
        0B .....>....
     20MiB ..x
leg 2  missing, 17 regions in sync, 8 stale
        0B ....xx....
     20MiB ..x
";
        assert_eq!(text(&sample(), "v  degraded", 10, false), expected);
    }

    #[test]
    fn colours_change_no_character() {
        let plain = text(&sample(), "v", 7, false);
        assert!(!plain.contains('\x1b'));
        let mut coloured = text(&sample(), "v", 7, true);
        assert!(coloured.contains("\x1b[31mx\x1b[0m"), "{coloured}");
        for code in ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, plain);
    }
}
