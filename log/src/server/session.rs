//! What is saved of a log of the kernel.

/// Which notes. Numbers are used again once they were removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Why notes cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// They are cut off, or were made by another version.
    #[error("not the notes of a log, or of another version")]
    Format,
}
