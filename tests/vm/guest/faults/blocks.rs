//! A writer whose blocks say when they were written. What it writes follows from the number of the step, so that
//! a reader knows what must be there, and what may be, without having been told.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use rustix::fs::OFlags;

pub(crate) const BLOCK: usize = 4096;
/// Written at a time by one thread.
const THREADS: usize = 3;
/// Blocks that are written much more often than others.
const HOT: u64 = 16;
/// Read at a time, in blocks.
const PIECE: u64 = 64;

/// The first `count` blocks of a volume, at most 2^32. Before the first step they are zero.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) count: u64,
}

impl Blocks {
    /// The blocks that a step writes, none twice.
    fn of(&self, step: u64) -> Vec<u64> {
        let mut random = Random(step);
        let hot = (0..4).map(|_| random.below(HOT)).collect::<Vec<_>>();
        let mut all: Vec<u64> = hot.into_iter().chain((0..8).map(|_| random.below(self.count))).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a step writes a block.
    pub(crate) fn writes(&self, step: u64, block: u64) -> bool {
        self.of(step).contains(&block)
    }

    /// One of the blocks that a step writes, another one for each `number`.
    pub(crate) fn one_of(&self, step: u64, number: usize) -> u64 {
        let all = self.of(step);
        all[number % all.len()]
    }

    /// Carries out a step: writes from several threads, then a flush.
    pub(crate) fn write(&self, device: &str, step: u64) {
        let file = &open(device);
        let blocks = self.of(step);
        thread::scope(|scope| {
            for part in blocks.chunks(blocks.len().div_ceil(THREADS)) {
                scope.spawn(move || {
                    let mut memory = Aligned::new(BLOCK);
                    for &block in part {
                        let word = (step << 32 | block).to_le_bytes();
                        memory.bytes().chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
                        file.write_all_at(memory.bytes(), block * BLOCK as u64).unwrap();
                    }
                });
            }
        });
        file.sync_data().unwrap();
    }

    /// Reads everything: the first `flushed` steps must be there, the next may be in part. Gives the step that
    /// each block is of.
    pub(crate) fn check(&self, device: &str, flushed: u64) -> Vec<u64> {
        let mut newest = vec![0; self.count as usize];
        for step in 1..=flushed {
            self.of(step).into_iter().for_each(|block| newest[block as usize] = step);
        }
        let next = self.of(flushed + 1);
        let found = self.read(device);
        for (block, (&found, &newest)) in (0..).zip(found.iter().zip(&newest)) {
            let in_flight = found == flushed + 1 && next.contains(&block);
            assert!(
                found == newest || in_flight,
                "block {block} is of step {found}, not {newest}, with {flushed} steps flushed"
            );
        }
        found
    }

    /// Reads one of the blocks that a step wrote, the last one to do so.
    pub(crate) fn check_one(&self, device: &str, step: u64, number: usize) {
        let block = self.one_of(step, number);
        let mut memory = Aligned::new(BLOCK);
        open(device).read_exact_at(memory.bytes(), block * BLOCK as u64).unwrap();
        assert_eq!(step_of(block, memory.bytes()), step, "block {block}");
    }

    fn read(&self, device: &str) -> Vec<u64> {
        let file = open(device);
        let mut memory = Aligned::new(PIECE as usize * BLOCK);
        let mut found = Vec::new();
        while (found.len() as u64) < self.count {
            let first = found.len() as u64;
            let here = PIECE.min(self.count - first);
            let piece = &mut memory.bytes()[..here as usize * BLOCK];
            file.read_exact_at(piece, first * BLOCK as u64).unwrap();
            found.extend((first..).zip(piece.chunks(BLOCK)).map(|(block, bytes)| step_of(block, bytes)));
        }
        found
    }
}

/// The step that wrote a block; all of it must be of one.
fn step_of(block: u64, bytes: &[u8]) -> u64 {
    let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks(8).all(|chunk| chunk == word.to_le_bytes()), "block {block} is of several writes");
    assert!(word == 0 || word & 0xffff_ffff == block, "block {block} holds {word:x}");
    word >> 32
}

/// Past the page cache.
fn open(device: &str) -> File {
    let flags = OFlags::DIRECT.bits() as i32;
    File::options().read(true).write(true).custom_flags(flags).open(device).unwrap()
}

/// Memory that direct IO can use.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let memory = vec![0; len + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Aligned { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.len]
    }
}

/// The same numbers for the same seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
