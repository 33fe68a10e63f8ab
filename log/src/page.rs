//! Writes as values: what a log or a superblock wants on disk, not yet written.
//!
//! The log area is written in whole pages so that a buffered write never has to read first.

/// Bytes and where they go.
#[derive(Clone, PartialEq, Eq)]
pub struct PageWrite {
    /// In bytes: from the start of the log area or log file in a [`Flush`], from the start of the
    /// leg in [`crate::superblock_write`].
    pub offset: u64,
    /// What to write.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for PageWrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageWrite({}+{})", self.offset, self.bytes.len())
    }
}

/// The writes that bring a log on disk to what it is in memory. They are durable once all of them
/// were written and the file was synced; their order does not matter.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "marks are durable only after these writes are"]
pub struct Flush {
    /// In order of offset, none overlapping another.
    pub writes: Vec<PageWrite>,
}

impl Flush {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}
