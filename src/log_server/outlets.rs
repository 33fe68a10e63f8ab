//! Answers on their way to connections: whoever has one leaves it here, the stream thread sends it.
//!
//! Any thread may leave answers; a bell (eventfd) wakes the stream thread, once for many. An answer for a connection
//! that is gone is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mirrord_log::server::ClientId;
use rustix::event::{EventfdFlags, eventfd};

/// What waits for one connection.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    bytes: Mutex<Vec<u8>>,
    /// Requests that were not answered yet.
    open: AtomicUsize,
    /// The stream thread was told that something is here.
    told: AtomicBool,
}

impl Outlet {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request came.
    pub(super) fn asked(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests that were not answered yet.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.bytes().len()
    }

    /// Takes what waits, in exchange for an empty buffer.
    pub(super) fn take(&self, empty: &mut Vec<u8>) {
        debug_assert!(empty.is_empty());
        std::mem::swap(&mut *self.bytes(), empty);
    }
}

/// Those of all connections.
#[derive(Debug)]
pub(super) struct Outlets {
    by_client: Mutex<HashMap<ClientId, Arc<Outlet>>>,
    ready: Mutex<Vec<ClientId>>,
    bell: OwnedFd,
}

impl Outlets {
    /// None yet.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn new() -> io::Result<Outlets> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Outlets { by_client: Mutex::default(), ready: Mutex::default(), bell })
    }

    fn by_client(&self) -> MutexGuard<'_, HashMap<ClientId, Arc<Outlet>>> {
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<ClientId>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outlet of a new connection.
    pub(super) fn add(&self, client: ClientId) -> Arc<Outlet> {
        let outlet = Arc::<Outlet>::default();
        self.by_client().insert(client, Arc::clone(&outlet));
        outlet
    }

    /// A connection is gone.
    pub(super) fn remove(&self, client: ClientId) {
        self.by_client().remove(&client);
    }

    /// Leaves an answer. Whether the stream thread is to be told: see [`Outlets::ring`].
    pub(super) fn leave(&self, client: ClientId, message: &[u8]) -> bool {
        let Some(outlet) = self.by_client().get(&client).cloned() else { return false };
        outlet.bytes().extend_from_slice(message);
        outlet.open.fetch_sub(1, Ordering::Relaxed);
        let is_first = !outlet.told.swap(true, Ordering::AcqRel);
        if is_first {
            self.ready().push(client);
        }
        is_first
    }

    /// Wakes the stream thread.
    pub(super) fn ring(&self) {
        // It can only fail when it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Connections that have got answers since the last time; their outlets tell of new ones from now on.
    pub(super) fn take_ready(&self, into: &mut Vec<ClientId>) {
        into.clear();
        std::mem::swap(&mut *self.ready(), into);
        let by_client = self.by_client();
        for client in &*into {
            if let Some(outlet) = by_client.get(client) {
                outlet.told.store(false, Ordering::Release);
            }
        }
    }

    /// Silences the bell.
    pub(super) fn hear(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// The bell.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
