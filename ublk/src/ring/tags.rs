//! The buffer of each tag, and who uses it.

use mirrord_raid::LegOp;

use super::Ring;
use crate::buffer::Buffer;

#[derive(Default)]
pub(super) struct Tag {
    pub(super) buffer: Option<Buffer>,
    /// IOs in flight, and not given up, that read the buffer (leg writes) or write it (leg reads).
    pub(super) using: u32,
    /// Those of them that write it.
    pub(super) filling: u32,
}

impl Tag {
    /// An IO that used the buffer has ended.
    pub(super) fn let_go(&mut self, op: LegOp) {
        self.using -= 1;
        self.filling -= u32::from(op == LegOp::Read);
    }
}

impl Ring {
    /// Gives `tag` its buffer.
    ///
    /// # Panics
    /// If it has one.
    pub fn attach(&mut self, tag: u32, buffer: Buffer) {
        let old = self.tags[tag as usize].buffer.replace(buffer);
        assert!(old.is_none(), "tag {tag} has a buffer already");
    }

    /// Takes the buffer of `tag` back.
    ///
    /// # Panics
    /// If it has none, or IO on it is in flight.
    pub fn detach(&mut self, tag: u32) -> Buffer {
        let slot = &mut self.tags[tag as usize];
        assert_eq!(slot.using, 0, "tag {tag} has IO in flight");
        slot.buffer.take().expect("the tag has a buffer")
    }

    /// The buffer of `tag`, to write to.
    ///
    /// # Panics
    /// If it has none, or IO on it is in flight.
    pub fn buffer_mut(&mut self, tag: u32) -> &mut [u8] {
        let slot = &mut self.tags[tag as usize];
        assert_eq!(slot.using, 0, "tag {tag} has IO in flight");
        slot.buffer.as_mut().expect("the tag has a buffer")
    }

    /// The buffer of `tag`.
    ///
    /// # Panics
    /// If it has none, or a leg read into it is in flight.
    pub fn buffer(&self, tag: u32) -> &[u8] {
        let slot = &self.tags[tag as usize];
        assert_eq!(slot.filling, 0, "tag {tag} is being read into");
        slot.buffer.as_ref().expect("the tag has a buffer")
    }
}
