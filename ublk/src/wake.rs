//! Waking a ring from another thread.
//!
//! Owns an eventfd and a word that says whether the ring sleeps. Guarantees: a wake is never lost
//! (a ring that is about to sleep sees it and does not), and only the first wake of a sleeping ring
//! costs a system call. `wake` runs on any thread, the rest on the ring's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// The ring sleeps or is about to.
const ASLEEP: u8 = 1;
/// Somebody woke it.
const WOKEN: u8 = 2;
/// A worker thread left a completion.
const DONE: u8 = 4;

/// Wakes one ring. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Wake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: OwnedFd,
    state: AtomicU8,
}

impl Wake {
    /// A wake for a ring still to be made (see [`crate::RingConfig::wake`]).
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn new() -> io::Result<Wake> {
        // Not EFD_NONBLOCK: the ring's read is to wait inside io_uring.
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Wake(Arc::new(Inner { event, state: AtomicU8::new(0) })))
    }

    /// Makes the ring's present or next `wait` return. Whatever was stored before the call is seen
    /// by the ring's thread after that return.
    pub fn wake(&self) {
        self.set(WOKEN);
    }

    /// As `wake`, for a completion: `wait` returns, but not as woken.
    pub(crate) fn done(&self) {
        self.set(DONE);
    }

    fn set(&self, bit: u8) {
        if self.0.state.fetch_or(bit, Ordering::SeqCst) == ASLEEP
            && let Err(errno) = rustix::io::write(&self.0.event, &1u64.to_ne_bytes())
        {
            tracing::error!(%errno, "waking a ring");
        }
    }

    /// Declares the ring asleep. False if it was woken meanwhile: then it must not sleep.
    pub(crate) fn sleep(&self) -> bool {
        self.0.state.compare_exchange(0, ASLEEP, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Declares the ring awake; whether it was woken since it was last awake.
    pub(crate) fn awake(&self) -> bool {
        self.0.state.load(Ordering::Relaxed) != 0 && self.0.state.swap(0, Ordering::SeqCst) & WOKEN != 0
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
