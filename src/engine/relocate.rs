//! A leg's metadata moved to a new place, on the log worker's thread between two of its turns: whatever is recorded or
//! committed after that goes there.

use std::io;

use mirrord_log::{DirtyLog, InternalLog, Layout, LogKind, PageWrite, Relocation, SyncMode};
use mirrord_raid::Leg;

use super::worker::Durable;

/// What became of it.
pub(super) enum Moved {
    /// It is in the new place.
    There,
    /// It is where it was.
    Not(io::Error),
    /// Either place may be the one that is found at the next start: the leg is not to be used any more.
    Unclear(io::Error),
}

impl Durable {
    /// Moves a leg's metadata, which has room there.
    pub(super) fn relocate(&mut self, leg: Leg, to: Layout) -> Moved {
        let (Some(meta), Some(record)) = (&self.legs[leg], &self.recorded) else {
            return Moved::Not(io::Error::other("a leg fails just now"));
        };
        if !record.legs.contains(leg) || meta.data.hung() > 0 {
            return Moved::Not(io::Error::other("it fails or hangs"));
        }
        let superblock = self.superblock_of(leg, record);
        let pages = match self.log.kind() {
            LogKind::Internal => self.log.all_pages(),
            // Not used. Unknown means dirty.
            _ => {
                let (size, regions) = (self.log.region_size(), self.log.regions());
                InternalLog::new(superblock.volume, size, regions, SyncMode::Default).all_pages()
            }
        };
        let steps = Relocation::new(&meta.layout, &to, &superblock, meta.generation, &pages);
        if let Err(error) = self.put(leg, &steps.block) {
            return Moved::Not(error);
        }
        if let Err(error) = self.put(leg, &[steps.footer]) {
            return Moved::Unclear(error);
        }
        if let Some(meta) = &mut self.legs[leg] {
            (meta.layout, meta.generation) = (to, steps.generation);
        }
        if let Err(error) = self.put(leg, &[steps.wipe]) {
            tracing::warn!(leg = leg.index(), %error, "the old metadata cannot be wiped");
        }
        Moved::There
    }

    fn put(&mut self, leg: Leg, writes: &[PageWrite]) -> io::Result<()> {
        let meta = self.legs[leg].as_ref().ok_or(io::ErrorKind::NotFound)?;
        self.io.write_and_sync(&[meta.target(0)], writes).into_iter().collect()
    }
}
