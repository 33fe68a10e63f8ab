//! A leg's metadata moves to another place on it, to make room for a larger volume.
//!
//! The new block lies behind the old one, and its footer is written last: until that is durable, the old block is in
//! force and untouched ([`crate::lost_footer`] finds it in a file that is longer by then). From that moment on the new
//! one is, and nothing may be recorded in the old one. Its footer is wiped then, or it would be found again should
//! the file ever be made shorter.

use crate::footer::Footer;
use crate::layout::{Layout, LayoutError, PAGE};
use crate::page::{Flush, PageWrite};
use crate::superblock::Superblock;

/// The writes that move a leg's metadata: what one step writes is durable before the next begins. Offsets are from the
/// start of the leg.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// The superblock, in both slots, and the log.
    pub block: Vec<PageWrite>,
    /// The new footer.
    pub footer: PageWrite,
    /// The old footer, wiped.
    pub wipe: PageWrite,
    /// The newest generation of the superblock in the new place.
    pub generation: u64,
}

impl Relocation {
    /// Moves metadata from `old` to `new`, which does not overlap it. `superblock` is what the leg has, in generation
    /// `generation`; `log` is all of its internal log.
    ///
    /// # Panics
    /// If the two overlap, `new` has no room for the volume, or [`Superblock::check`] fails.
    pub fn new(
        old: &Layout,
        new: &Layout,
        superblock: &Superblock,
        generation: u64,
        log: &Flush,
    ) -> Relocation {
        assert!(new.slots[0] >= old.end && superblock.size <= new.room(), "metadata cannot move there");
        let slot = |generation| crate::leg::superblock_write(new, superblock, generation);
        let mut block = vec![slot(generation), slot(generation + 1)];
        for page in &log.writes {
            let end = page.offset + page.bytes.len() as u64;
            assert!(end <= new.log_len(), "a log that is too long");
            block.push(PageWrite { offset: new.log + page.offset, bytes: page.bytes.clone() });
        }
        let (volume, leg) = (superblock.volume, superblock.leg_uuid());
        let footer = Footer { volume, leg, size: superblock.size, layout: *new };
        Relocation {
            block,
            footer: PageWrite { offset: new.footer, bytes: footer.encode() },
            wipe: PageWrite { offset: old.footer, bytes: vec![0; PAGE as usize] },
            generation: generation + 1,
        }
    }
}

impl Layout {
    /// Where the metadata of a leg in a file goes when its volume is to have `size` bytes and `regions` regions: it stays
    /// where it is if there is room.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`] if the file would end past the largest file offset.
    pub fn grown_file(&self, size: u64, regions: u32) -> Result<Layout, LayoutError> {
        if self.has_room(size, regions) { Ok(*self) } else { Layout::for_file(size.max(self.end), regions) }
    }

    /// The same on a device that is `device_len` bytes long by now.
    ///
    /// # Errors
    /// [`LayoutError::TooShort`] if the device has not grown by enough.
    pub fn grown_device(&self, device_len: u64, size: u64, regions: u32) -> Result<Layout, LayoutError> {
        if self.has_room(size, regions) {
            return Ok(*self);
        }
        let layout = Layout::for_device(device_len, regions)?;
        let start = size.max(self.end).next_multiple_of(PAGE);
        let need = start + (layout.end - layout.slots[0]);
        if layout.slots[0] >= start {
            Ok(layout)
        } else {
            Err(LayoutError::TooShort { len: device_len, need })
        }
    }

    fn has_room(&self, size: u64, regions: u32) -> bool {
        size <= self.room() && crate::layout::log_pages(regions) <= self.log_pages
    }
}
