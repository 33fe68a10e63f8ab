//! The threads that carry out what is to be done with logs' files.
//!
//! Each job has a thread of its own while it lasts: one that hangs holds up its log and no other. Threads are made when
//! all others are busy, and end when there was nothing to do for a while. There is a limit to them; beyond it,
//! jobs wait for those that do not hang.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use mirrord_log::server::{Job, JobDone, JobKind, StoreId};
use mirrord_raid::Errno;

use super::lock;
use super::store::{Aligned, Store, StoreError, Stores};
use crate::failure::describe;

/// Most threads: as many devices may hang before logs of others wait.
const MOST_THREADS: usize = 256;

/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

/// Is told how each job ended, on its thread.
pub(crate) type WhenDone = dyn Fn(StoreId, JobDone) + Send + Sync;

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Disks(Arc<Shared>);

struct Shared {
    stores: Stores,
    open: Mutex<HashMap<StoreId, Arc<Store>>>,
    work: Mutex<Work>,
    more: Condvar,
    when_done: Box<WhenDone>,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closing: bool,
}

impl Disks {
    /// Threads for these stores.
    pub(crate) fn new(stores: Stores, when_done: Box<WhenDone>) -> Disks {
        let (open, work, more) = Default::default();
        Disks(Arc::new(Shared { stores, open, work, more, when_done }))
    }

    /// Has a job carried out. Jobs of one store come one after the other.
    pub(crate) fn begin(&self, job: Job) {
        let mut work = lock(&self.0.work);
        work.jobs.push_back(job);
        if work.jobs.len() <= work.idle {
            drop(work);
            return self.0.more.notify_one();
        }
        if work.threads >= MOST_THREADS {
            return;
        }
        let shared = Arc::clone(&self.0);
        match thread::Builder::new().name("mirrord-log-disk".to_owned()).spawn(move || shared.run()) {
            Ok(_) => work.threads += 1,
            Err(error) if work.threads == 0 => {
                // Nobody would ever do it.
                drop(work);
                tracing::error!(%error, "cannot start a thread: logs on disk wait on this one");
                self.0.run_until_idle();
            }
            Err(error) => tracing::warn!(%error, "cannot start a thread: a log on disk waits for others"),
        }
    }

    /// Lets the threads end once they have nothing to do.
    pub(crate) fn close(&self) {
        lock(&self.0.work).closing = true;
        self.0.more.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut buffer = Aligned::default();
        let mut work = lock(&self.work);
        loop {
            while let Some(job) = work.jobs.pop_front() {
                drop(work);
                self.carry_out(job, &mut buffer);
                work = lock(&self.work);
            }
            if work.closing {
                break;
            }
            work.idle += 1;
            let (woken, waited) =
                self.more.wait_timeout(work, IDLE).unwrap_or_else(std::sync::PoisonError::into_inner);
            work = woken;
            work.idle -= 1;
            if waited.timed_out() && work.jobs.is_empty() {
                break;
            }
        }
        work.threads -= 1;
    }

    fn run_until_idle(&self) {
        let mut buffer = Aligned::default();
        loop {
            let Some(job) = lock(&self.work).jobs.pop_front() else { return };
            self.carry_out(job, &mut buffer);
        }
    }

    fn carry_out(&self, job: Job, buffer: &mut Aligned) {
        let Job { store: id, what } = job;
        let open = || lock(&self.open).get(&id).cloned();
        let done = match what {
            JobKind::Open { device, by_kernel, regions } => {
                let opened = if by_kernel {
                    self.stores.open_device(&device)
                } else {
                    self.stores.open_volume(&device, regions)
                };
                JobDone::Opened(match opened {
                    Ok((store, opened)) => {
                        tracing::debug!(path = %store.path().display(), ?opened, "log device");
                        lock(&self.open).insert(id, store);
                        Ok(opened)
                    }
                    Err(error) => Err(refused(&error)),
                })
            }
            JobKind::Read { len } => JobDone::Read(with(open(), "read", |store| store.read(len as usize))),
            JobKind::Write { writes } => {
                JobDone::Written(with(open(), "write", |store| store.write(&writes, buffer)))
            }
            JobKind::Close => {
                lock(&self.open).remove(&id);
                return;
            }
        };
        (self.when_done)(id, done);
    }
}

fn refused(error: &StoreError) -> Errno {
    tracing::warn!("{}", describe(error));
    Errno(error.errno())
}

fn with<T>(
    store: Option<Arc<Store>>,
    verb: &str,
    act: impl FnOnce(&Store) -> io::Result<T>,
) -> Result<T, Errno> {
    let store = store.ok_or(Errno::EIO)?;
    act(&store).map_err(|error| {
        tracing::error!(path = %store.path().display(), %error, "cannot {verb} a log");
        error.raw_os_error().map_or(Errno::EIO, Errno)
    })
}
