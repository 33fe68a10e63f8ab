//! Byte ranges against blocks: which blocks a range touches, and how a range is zeroed.
//!
//! Pure arithmetic. `block` is a power of two; ranges do not overflow, since they lie in a volume.

/// The blocks that `offset..offset + len` touches: offset and length.
pub(super) fn cover(offset: u64, len: u64, block: u64) -> (u64, u64) {
    let start = offset & !(block - 1);
    (start, (offset + len).next_multiple_of(block) - start)
}

/// A piece of a range to be zeroed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// Whole blocks.
    Whole { offset: u64, len: u64 },
    /// Less than a block (or the ends of two neighbours): these bytes of the blocks that cover them.
    Edge { offset: u64, len: u64 },
}

/// What zeroing `offset..offset + len` takes: at most an edge, whole blocks and an edge.
pub(super) fn zero_pieces(offset: u64, len: u64, block: u64) -> [Option<Piece>; 3] {
    let end = offset + len;
    let (first, last) = (offset.next_multiple_of(block), end & !(block - 1));
    let edge = |from: u64, to: u64| (from < to).then(|| Piece::Edge { offset: from, len: to - from });
    if first >= last {
        return [edge(offset, end), None, None];
    }
    [edge(offset, first), Some(Piece::Whole { offset: first, len: last - first }), edge(last, end)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_touched() {
        for (offset, len, blocks) in [
            (0, 4096, (0, 4096)),
            (1, 1, (0, 4096)),
            (4095, 2, (0, 8192)),
            (4096, 4096, (4096, 4096)),
            (5000, 8000, (4096, 12288)),
        ] {
            assert_eq!(cover(offset, len, 4096), blocks, "{offset}+{len}");
        }
    }

    #[test]
    fn pieces_are_disjoint_and_complete() {
        for offset in 0..40 {
            for len in 0..40 {
                let mut hits = [0; 96];
                for piece in zero_pieces(offset, len, 8).into_iter().flatten() {
                    let (Piece::Whole { offset: at, len } | Piece::Edge { offset: at, len }) = piece;
                    assert!(len > 0);
                    if let Piece::Whole { .. } = piece {
                        assert!(at % 8 == 0 && len % 8 == 0);
                    } else {
                        assert!(cover(at, len, 8).1 <= 16);
                    }
                    hits[at as usize..(at + len) as usize].iter_mut().for_each(|hit| *hit += 1);
                }
                for (at, hit) in hits.into_iter().enumerate() {
                    let inside = (offset..offset + len).contains(&(at as u64));
                    assert_eq!(hit, i32::from(inside), "{offset}+{len} at {at}");
                }
            }
        }
    }
}
