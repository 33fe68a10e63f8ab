//! The bytes of metadata sectors, by number: the disk holds the numbers. Also where metadata lies on
//! a simulated leg: two superblock slots and one page of log, straight behind the data.

use mirrord_log::{PAGE, PageWrite, decode_sector};
use uuid::Uuid;

const BLOCK: usize = 512;

/// Sectors in a page of metadata.
pub(crate) const PAGE_SECTORS: usize = PAGE as usize / BLOCK;

/// Sectors of metadata on a leg.
pub(crate) const META_SECTORS: usize = 3 * PAGE_SECTORS;

/// First sector of a superblock slot behind `data` sectors of data.
pub(crate) fn slot(data: usize, generation: u64) -> usize {
    data + (generation % 2) as usize * PAGE_SECTORS
}

/// First sector of the log behind `data` sectors of data.
pub(crate) fn log(data: usize) -> usize {
    data + 2 * PAGE_SECTORS
}

pub(crate) struct Blocks {
    volume: Uuid,
    blocks: Vec<[u8; BLOCK]>,
    /// Dirty bits of the first 64 regions, for blocks that are the first sector of a log.
    dirty: Vec<u64>,
    /// Generations of these.
    generations: Vec<u64>,
}

impl Blocks {
    /// Block 0 is all zero.
    pub(crate) fn new(volume: Uuid) -> Blocks {
        Blocks { volume, blocks: vec![[0; BLOCK]], dirty: vec![u64::MAX], generations: vec![0] }
    }

    fn add(&mut self, bytes: &[u8]) -> u64 {
        let mut block = [0; BLOCK];
        block.copy_from_slice(bytes);
        self.blocks.push(block);
        self.dirty.push(u64::MAX);
        self.generations.push(0);
        self.blocks.len() as u64 - 1
    }

    /// Adds a page to be written at `first`: `(sector, block)` pairs go to `writes`.
    pub(crate) fn add_page(&mut self, page: &[u8], first: usize, writes: &mut Vec<(u32, u64)>) {
        for (i, bytes) in page.chunks_exact(BLOCK).enumerate() {
            writes.push(((first + i) as u32, self.add(bytes)));
        }
    }

    /// Adds a page of the log likewise.
    pub(crate) fn add_log_page(&mut self, page: &PageWrite, first: usize, writes: &mut Vec<(u32, u64)>) {
        assert_eq!(page.offset, 0, "the log of a simulated volume is one page");
        let number = self.blocks.len();
        self.add_page(&page.bytes, first, writes);
        if let Ok(sector) = decode_sector(self.volume, 0, &self.blocks[number]) {
            let bits = sector.dirty[..8].try_into().expect("eight of 480 bytes");
            (self.dirty[number], self.generations[number]) = (u64::from_le_bytes(bits), sector.generation);
        }
    }

    /// A sector that decodes as nothing.
    pub(crate) fn add_garbage(&mut self) -> u64 {
        self.add(&[0x5a; BLOCK])
    }

    /// Dirty bits of a block that is, or should be, the first sector of a log: all set if it is not.
    pub(crate) fn dirty(&self, number: u64) -> u64 {
        self.dirty.get(number as usize).copied().unwrap_or(u64::MAX)
    }

    /// The generation of a block that is the first sector of a log, or should be.
    pub(crate) fn generation(&self, number: u64) -> u64 {
        self.generations.get(number as usize).copied().unwrap_or(0)
    }

    /// Puts the blocks of one page together.
    pub(crate) fn page(&self, numbers: impl Iterator<Item = u64>, page: &mut Vec<u8>) {
        page.clear();
        for number in numbers {
            page.extend_from_slice(self.blocks.get(number as usize).unwrap_or(&[0; BLOCK]));
        }
    }
}
