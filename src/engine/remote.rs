//! A log that a server keeps, in a volume: how it is opened, and what follows from what is told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirrord_log::{DirtyLog, RemoteLog, SyncMode};
use mirrord_raid::{Errno, MAX_LEGS, WorkerEvent};

use super::shared::Shared;
use super::{LogFallback, RemoteOptions, ServeError};
use crate::events::{Journal, What};
use crate::remote::{Address, Remote, RemoteError, Setup, Told};
use crate::start::Opened;

/// Regions that are marked with one that follows on a dirty one: a commit costs a round trip.
pub(super) const MARK_AHEAD: u32 = 16;

/// Has the log of a volume that is to be served as `session`: what is known of the legs, and which session had it last.
pub(super) fn open(
    opened: &Opened,
    address: &str,
    (mode, last): (SyncMode, Option<u64>),
    session: u64,
    options: &RemoteOptions,
) -> Result<(Box<dyn DirtyLog>, Arc<Remote>), ServeError> {
    let (geometry, superblock) = (opened.geometry, opened.authority());
    let setup = Setup {
        address: parse(address)?,
        tls: options.tls.clone(),
        volume: superblock.volume,
        size: geometry.size(),
        region_size: geometry.region_size(),
        session,
        mode,
        last,
        take_over: options.take_over,
        fallback: options.fallback == LogFallback::Core,
        tell: options.tell,
    };
    let (remote, dirty) = Remote::open(setup)?;
    Ok((Box::new(RemoteLog::new(geometry.region_size(), geometry.regions(), dirty)), Arc::new(remote)))
}

fn parse(text: &str) -> Result<Address, RemoteError> {
    text.parse().map_err(|source| RemoteError::Address { text: text.to_owned(), source })
}

/// Tells the log worker, and those who follow events, from now on.
pub(super) fn attach(remote: &Remote, shared: &Arc<Shared>, journal: &Arc<Journal>) {
    let (shared, journal) = (Arc::downgrade(shared), Arc::clone(journal));
    remote.tell(move |told| {
        let Some(shared) = shared.upgrade() else { return };
        match told {
            Told::Ready(_) | Told::Busy => {}
            Told::Committed(result) => {
                let (errors, log_error) = ([None; MAX_LEGS], result.err());
                shared.mailbox.send(WorkerEvent::Committed { errors, log_error });
            }
            Told::Lost(error) => journal.add(What::LogLost { error }),
            Told::Back { failed } => {
                journal.add(What::LogBack);
                if failed {
                    shared.mailbox.send(WorkerEvent::LogBack);
                }
            }
            Told::Refused(error) => {
                tracing::error!("{error}: this volume stops writing and answers every request with an error");
                shared.fenced.store(true, Ordering::SeqCst);
                shared.mailbox.send(WorkerEvent::PauseResync(true));
                journal.add(What::LogTakenOver);
            }
        }
    });
}

/// What every request to a volume gets whose log was taken over.
pub(super) const FENCED: Errno = Errno::EIO;
