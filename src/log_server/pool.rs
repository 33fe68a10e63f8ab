//! Threads that wait for disks, as many as there are disks to wait for.
//!
//! A thread is started when all others are busy, and ends when it had nothing to do for a while; one stays. The log
//! server has one job at a time for each log, so a device that hangs takes one thread and holds up no other log,
//! until [`MOST_THREADS`] of them do.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Most threads: so many logs can hang before others wait.
const MOST_THREADS: usize = 512;

/// A thread with nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

/// Enough for a few calls of the system.
const STACK: usize = 256 << 10;

/// Does the jobs.
pub(super) trait Work<J>: Send + Sync + 'static {
    /// What a thread keeps from job to job.
    type Kept: Default;

    /// Does one.
    fn work(self: &Arc<Self>, job: J, kept: &mut Self::Kept);
}

/// Jobs that wait for a thread.
#[derive(Debug)]
pub(super) struct Pool<J> {
    state: Mutex<State<J>>,
    more: Condvar,
}

#[derive(Debug)]
struct State<J> {
    jobs: VecDeque<J>,
    threads: usize,
    idle: usize,
}

impl<J: Send + 'static> Pool<J> {
    /// Without threads: see [`Pool::start`].
    pub(super) fn new() -> Pool<J> {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0 };
        Pool { state: Mutex::new(state), more: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that stays.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(super) fn start<W: Work<J>>(self: &Arc<Pool<J>>, worker: &Arc<W>) -> io::Result<()> {
        self.state().threads += 1;
        self.spawn(worker)
    }

    /// Has a job done by a thread that is idle, or by a new one.
    pub(super) fn submit<W: Work<J>>(self: &Arc<Pool<J>>, worker: &Arc<W>, job: J) {
        let mut state = self.state();
        state.jobs.push_back(job);
        let is_short = state.idle < state.jobs.len() && state.threads < MOST_THREADS;
        if is_short {
            state.threads += 1;
        }
        drop(state);
        self.more.notify_one();
        if is_short && let Err(error) = self.spawn(worker) {
            self.state().threads -= 1;
            tracing::warn!(%error, "cannot start another disk thread: logs wait for each other");
        }
    }

    fn spawn<W: Work<J>>(self: &Arc<Pool<J>>, worker: &Arc<W>) -> io::Result<()> {
        let (pool, worker) = (Arc::clone(self), Arc::clone(worker));
        let body = move || {
            let mut kept = W::Kept::default();
            while let Some(job) = pool.next() {
                worker.work(job, &mut kept);
            }
        };
        thread::Builder::new().name("mirrord-disk".to_owned()).stack_size(STACK).spawn(body).map(drop)
    }

    /// The next job; `None`: this thread is one too many.
    fn next(&self) -> Option<J> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let (back, waited) = self.more.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Reporter(Mutex<Sender<u32>>, Arc<Mutex<()>>);

    impl Work<u32> for Reporter {
        type Kept = ();

        fn work(self: &Arc<Reporter>, job: u32, (): &mut ()) {
            if job == 0 {
                // Hangs until the test lets it go.
                drop(self.1.lock());
            }
            let _ = self.0.lock().unwrap().send(job);
        }
    }

    #[test]
    fn jobs_that_hang_hold_up_no_other() {
        let (sender, done) = channel();
        let hang = Arc::new(Mutex::new(()));
        let held = hang.lock().unwrap();
        let worker = Arc::new(Reporter(Mutex::new(sender), Arc::clone(&hang)));
        let pool = Arc::new(Pool::new());
        pool.start(&worker).unwrap();
        (0..20).for_each(|_| pool.submit(&worker, 0));
        (1..=100).for_each(|job| pool.submit(&worker, job));
        let mut seen: Vec<u32> = (0..100).map(|_| done.recv().unwrap()).collect();
        seen.sort();
        assert_eq!(seen, (1..=100).collect::<Vec<u32>>());
        assert!(pool.state().threads <= MOST_THREADS);
        drop(held);
        assert!((0..20).all(|_| done.recv().unwrap() == 0));
    }
}
