//! The atomics of this crate: the standard ones, or loom's when it checks the region and leg tables. Tables are made
//! zeroed, by the system: what nobody touches takes no memory.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// `count` words, all 0.
#[cfg(not(loom))]
pub(crate) fn zeroes<T>(count: usize) -> Box<[T]>
where
    T: zerocopy::FromZeros,
    [T]: zerocopy::KnownLayout<PointerMetadata = usize>,
{
    <[T] as zerocopy::FromZeros>::new_box_zeroed_with_elems(count).expect("memory for the tables of a volume")
}

/// `count` words, all 0: loom's are no plain memory.
#[cfg(loom)]
pub(crate) fn zeroes<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}
