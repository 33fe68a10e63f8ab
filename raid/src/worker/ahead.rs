//! Who writes one region after the other: the next ones are marked before they are asked for, as a kernel reads ahead,
//! so that such a writer waits for a commit once in many regions. More of them each time, up to a cap: after a crash
//! what was marked in vain is resynced.

use std::ops::Range;

use crate::geometry::Region;

/// Writers that can be told apart: what writes more than a few streams at once waits at each region as it would without.
const STREAMS: usize = 4;

/// A row of regions that were marked.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The last one that was asked for.
    asked: u32,
    /// The first one behind it that is not marked ahead.
    next: u32,
    /// How many were.
    ahead: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ahead {
    cap: u32,
    streams: [Option<Stream>; STREAMS],
    /// The one to forget next.
    turn: usize,
}

impl Ahead {
    /// Marks up to `cap` regions ahead.
    pub(super) fn new(cap: u32) -> Ahead {
        Ahead { cap, streams: [None; STREAMS], turn: 0 }
    }

    /// A mark is asked for, in a volume of so many regions: those to be marked ahead.
    pub(super) fn of(&mut self, region: Region, regions: u32) -> impl Iterator<Item = Region> + use<> {
        self.range(region.0, regions).map(Region)
    }

    fn range(&mut self, region: u32, regions: u32) -> Range<u32> {
        if self.cap == 0 {
            return 0..0;
        }
        let mut streams = self.streams.iter_mut().flatten();
        // Several may wait for the same mark.
        let Some(stream) = streams.find(|s| (s.asked..=s.next).contains(&region)) else {
            self.streams[self.turn] = Some(Stream { asked: region, next: region + 1, ahead: 0 });
            self.turn = (self.turn + 1) % STREAMS;
            return 0..0;
        };
        if region < stream.next {
            return 0..0;
        }
        let ahead = (stream.ahead * 2).clamp(1, self.cap);
        let behind = region + 1;
        let end = behind.saturating_add(ahead).min(regions).max(behind);
        *stream = Stream { asked: region, next: end, ahead };
        behind..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is marked ahead for each of these, of 40 regions.
    fn ahead(cap: u32, asked: &[u32]) -> Vec<Range<u32>> {
        let mut ahead = Ahead::new(cap);
        asked.iter().map(|&region| ahead.range(region, 40)).collect()
    }

    #[test]
    fn more_is_marked_for_who_goes_on_and_no_more_than_the_cap() {
        assert_eq!(ahead(4, &[0, 1, 3, 6, 11, 16]), [0..0, 2..3, 4..6, 7..11, 12..16, 17..21]);
        assert_eq!(ahead(0, &[0, 1, 2]), [0..0, 0..0, 0..0]);
        assert_eq!(ahead(1, &[0, 1, 3]), [0..0, 2..3, 4..5]);
    }

    #[test]
    fn nothing_is_marked_for_who_jumps_or_comes_again() {
        assert_eq!(ahead(8, &[0, 5, 10, 15, 20]), [0..0, 0..0, 0..0, 0..0, 0..0]);
        assert_eq!(ahead(8, &[3, 3, 3, 4, 4, 3]), [0..0, 0..0, 0..0, 5..6, 0..0, 0..0]);
        assert_eq!(ahead(8, &[7, 6, 5]), [0..0, 0..0, 0..0], "backwards");
    }

    #[test]
    fn writers_beside_each_other_are_told_apart() {
        let two = ahead(8, &[0, 20, 1, 21, 3, 23]);
        assert_eq!(two, [0..0, 0..0, 2..3, 22..23, 4..6, 24..26]);
    }

    #[test]
    fn nothing_is_marked_behind_the_last_region() {
        assert_eq!(ahead(8, &[35, 36, 38, 39]), [0..0, 37..38, 39..40, 0..0]);
        assert_eq!(ahead(8, &[38, 39, 39]), [0..0, 40..40, 0..0]);
    }
}
