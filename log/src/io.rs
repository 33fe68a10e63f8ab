//! The log worker's IO: pages to every leg at once, then made durable.
//!
//! Goes through io_uring, so that all legs work at the same time, and falls back to blocking calls,
//! one leg after the other, where io_uring is not permitted (many containers). Files must not be
//! opened with O_DIRECT: the buffers are plain vectors. A failed fdatasync is never tried again: the
//! kernel may have dropped the pages, so a second one that succeeds would mean nothing.
//!
//! With a time-out, a file that takes longer is given up: its result is `ETIMEDOUT`. The call that hangs keeps
//! its data (an owned copy) and its descriptor, no further one is made for it, and until it has ended the file
//! is given nothing more: what is late cannot overtake or undo what comes later. A [`TimeOut`] can be set while
//! calls are under way.
//!
//! A [`MetaIo`] stays on the thread that made it, which must not run another async runtime.

mod patience;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::mem;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;
use tokio_uring::buf::BoundedBuf;

use crate::page::PageWrite;
use patience::{Ends, Flight, TICKS};
pub use patience::{Hung, TimeOut};

/// What a look at the ring for calls that are late may take.
const LOOK: Duration = Duration::from_millis(1);

/// Where the writes of a flush go.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// A leg or a log file.
    pub file: &'a File,
    /// Added to the offset of every write, in bytes: where the log area starts.
    pub base: u64,
    /// What is known of the file to all who do IO there.
    pub hung: Option<&'a Hung>,
}

impl Target<'_> {
    fn is_hung(&self) -> bool {
        self.hung.is_some_and(|hung| hung.changes.load(SeqCst) > 0)
    }
}

/// Writes metadata and makes it durable.
pub struct MetaIo {
    ring: Option<tokio_uring::Runtime>,
    time_out: Option<TimeOut>,
    /// What was given up, by file.
    late: Vec<(RawFd, Arc<Flight>)>,
}

/// `ETIMEDOUT`.
fn timed_out() -> io::Error {
    io::Error::from_raw_os_error(TIMED_OUT)
}

const TIMED_OUT: i32 = 110;

/// `EIO`.
const IO_ERROR: i32 = 5;

type Job<'a> = (Target<'a>, Arc<Vec<PageWrite>>);

impl std::fmt::Debug for MetaIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaIo").field("kind", &self.kind()).field("time_out", &self.time_out).finish()
    }
}

impl Default for MetaIo {
    fn default() -> MetaIo {
        MetaIo::new()
    }
}

impl MetaIo {
    /// Through io_uring if this process may use it, else blocking.
    pub fn new() -> MetaIo {
        let ring = tokio_uring::Runtime::new(&tokio_uring::builder()).ok();
        MetaIo { ring, time_out: None, late: Vec::new() }
    }

    /// Blocking, whatever this process may use.
    pub fn blocking() -> MetaIo {
        MetaIo { ring: None, time_out: None, late: Vec::new() }
    }

    /// The same with a time-out for each file of each call.
    pub fn with_time_out(mut self, time_out: TimeOut) -> MetaIo {
        self.time_out = Some(time_out);
        self
    }

    /// `"io_uring"` or `"blocking"`.
    pub fn kind(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "blocking" }
    }

    /// Makes all of `writes` durable on every target: writes, then fdatasync where all of them went
    /// well. The result of a target is its first error. `writes` may be empty.
    ///
    /// # Panics
    /// If two writes overlap.
    pub fn write_and_sync(&mut self, targets: &[Target<'_>], writes: &[PageWrite]) -> Vec<io::Result<()>> {
        let runs = Arc::new(merged(writes));
        self.run(targets.iter().map(|target| (*target, Arc::clone(&runs))).collect())
    }

    /// As [`MetaIo::write_and_sync`], each target with writes of its own.
    ///
    /// # Panics
    /// If two writes to a target overlap.
    pub fn write_each(&mut self, writes: &[(Target<'_>, Vec<PageWrite>)]) -> Vec<io::Result<()>> {
        self.run(writes.iter().map(|(target, writes)| (*target, Arc::new(merged(writes)))).collect())
    }

    /// Makes everything written to each file durable, all at once.
    pub fn sync(&mut self, files: &[&File]) -> Vec<io::Result<()>> {
        let targets: Vec<_> = files.iter().map(|file| Target { file, base: 0, hung: None }).collect();
        self.write_and_sync(&targets, &[])
    }

    /// Whether a call on `file` was given up and has not been seen to end.
    pub fn is_late(&self, file: &File) -> bool {
        self.late.iter().any(|(fd, flight)| *fd == file.as_raw_fd() && !flight.ended.load(SeqCst))
    }

    /// Whether a call was given up and has not been seen to end.
    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Sees what of it has ended: an io_uring tells only when it is asked.
    pub fn look(&mut self) {
        if let (Some(ring), true) = (&self.ring, self.has_late()) {
            ring.block_on(async { tokio::time::sleep(LOOK).await });
        }
        take_late(&mut self.late);
    }

    fn run(&mut self, jobs: Vec<Job<'_>>) -> Vec<io::Result<()>> {
        let written: Vec<_> = jobs.iter().map(|(target, runs)| (*target, Arc::clone(runs))).collect();
        let results = self.run_all(jobs);
        for ((target, runs), result) in written.iter().zip(&results) {
            if result.is_ok() {
                drop_cached(target, runs);
            }
        }
        results
    }

    fn run_all(&mut self, jobs: Vec<Job<'_>>) -> Vec<io::Result<()>> {
        match (&self.ring, &self.time_out) {
            (Some(ring), time_out) => ring.block_on(ring_run_all(jobs, time_out.as_ref(), &mut self.late)),
            (None, Some(time_out)) => threads_run_all(jobs, time_out, &mut self.late),
            (None, None) => {
                let run = |(target, runs): Job<'_>| {
                    blocking_run(target.file, target.base, &runs, &Flight::default())
                };
                jobs.into_iter().map(run).collect()
            }
        }
    }
}

impl Drop for MetaIo {
    fn drop(&mut self) {
        if self.late.iter().any(|(_, flight)| !flight.ended.load(SeqCst)) {
            // It would wait for them.
            mem::forget(self.ring.take());
        }
    }
}

/// Has the system forget the pages that were written: nobody reads them, and as long as a file has pages in
/// memory each direct write elsewhere in it looks for some of its own.
fn drop_cached(target: &Target<'_>, runs: &[PageWrite]) {
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return };
    let len = last.offset + last.bytes.len() as u64 - first.offset;
    let _ = fadvise(target.file, target.base + first.offset, NonZeroU64::new(len), Advice::DontNeed);
}

/// The writes in order of offset, adjacent ones as one.
fn merged(writes: &[PageWrite]) -> Vec<PageWrite> {
    let mut sorted: Vec<&PageWrite> = writes.iter().filter(|write| !write.bytes.is_empty()).collect();
    sorted.sort_by_key(|write| write.offset);
    let mut runs: Vec<PageWrite> = Vec::new();
    for write in sorted {
        if let Some(run) = runs.last_mut() {
            let end = run.offset + run.bytes.len() as u64;
            assert!(end <= write.offset, "metadata writes overlap");
            if end == write.offset {
                run.bytes.extend_from_slice(&write.bytes);
                continue;
            }
        }
        runs.push(write.clone());
    }
    runs
}

/// The calls of before that are under way still. What has ended is forgotten.
fn take_late(late: &mut Vec<(RawFd, Arc<Flight>)>) -> Vec<RawFd> {
    late.retain(|(_, flight)| !flight.ended.load(SeqCst));
    late.iter().map(|(fd, _)| *fd).collect()
}

// ---- blocking calls

fn blocking_run(file: &File, base: u64, runs: &[PageWrite], flight: &Flight) -> io::Result<()> {
    for run in runs {
        flight.go_on()?;
        file.write_all_at(&run.bytes, base + run.offset)?;
    }
    flight.go_on()?;
    flight.synced(file.sync_data())
}

/// The error of a sync is one of all that was written before, so none for lack of space.
fn of_sync(error: io::Error) -> io::Error {
    let no_space = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if no_space { io::Error::from_raw_os_error(IO_ERROR) } else { error }
}

/// One thread for each file: whoever waits for it need not be the one who hangs.
fn threads_run_all(
    jobs: Vec<Job<'_>>,
    time_out: &TimeOut,
    late: &mut Vec<(RawFd, Arc<Flight>)>,
) -> Vec<io::Result<()>> {
    let hang = take_late(late);
    let (tell, told) = channel();
    let mut flights = Vec::with_capacity(jobs.len());
    let mut results: Vec<Option<io::Result<()>>> = Vec::with_capacity(jobs.len());
    for (index, (target, runs)) in jobs.iter().enumerate() {
        let flight = Flight::to(target);
        flights.push(Arc::clone(&flight));
        if hang.contains(&target.file.as_raw_fd()) {
            results.push(Some(Err(timed_out())));
            continue;
        }
        let (base, runs, tell) = (target.base, Arc::clone(runs), tell.clone());
        let run = |file: File| {
            thread::Builder::new().name("mirrord-meta".to_owned()).spawn(move || {
                let result = blocking_run(&file, base, &runs, &flight);
                drop(Ends(flight));
                let _ = tell.send((index, result));
            })
        };
        // Without a descriptor or a thread to be had it is done here: that is no fault of the file.
        let spawned = target.file.try_clone().and_then(run);
        results.push(
            spawned.err().map(|_| blocking_run(target.file, target.base, &jobs[index].1, &flights[index])),
        );
    }
    let mut ticks = 0;
    while results.iter().any(Option::is_none) {
        let limited = time_out.limit().is_some();
        if let Ok((index, result)) = told.recv_timeout(time_out.tick()) {
            results[index].get_or_insert(result);
            continue;
        }
        ticks += u32::from(limited);
        for ((result, flight), (target, _)) in results.iter_mut().zip(&flights).zip(&jobs) {
            if result.is_none() && (ticks > TICKS || target.is_hung()) {
                flight.give_up();
                late.push((target.file.as_raw_fd(), Arc::clone(flight)));
                *result = Some(Err(timed_out()));
            }
        }
    }
    results.into_iter().flatten().collect()
}

// ---- io_uring

async fn ring_run_all(
    jobs: Vec<Job<'_>>,
    time_out: Option<&TimeOut>,
    late: &mut Vec<(RawFd, Arc<Flight>)>,
) -> Vec<io::Result<()>> {
    if !late.is_empty() {
        // Whether they have ended is known to the ring, and that is looked at by who sleeps.
        tokio::time::sleep(LOOK).await;
    }
    let hang = take_late(late);
    let start = |(target, runs): &Job<'_>| {
        let fd = target.file.as_raw_fd();
        (!hang.contains(&fd)).then(|| {
            let flight = Flight::to(target);
            let task = match target.file.try_clone() {
                Ok(file) => {
                    let file = tokio_uring::fs::File::from_std(file);
                    tokio_uring::spawn(ring_run(file, target.base, Arc::clone(runs), Arc::clone(&flight)))
                }
                // Without a descriptor to be had it is done here: that is no fault of the file.
                Err(_) => {
                    let result = blocking_run(target.file, target.base, runs, &flight);
                    drop(Ends(Arc::clone(&flight)));
                    tokio_uring::spawn(async { result })
                }
            };
            (task, flight)
        })
    };
    let started: Vec<_> = jobs.iter().map(start).collect();
    let mut ticks = 0;
    let mut results = Vec::with_capacity(jobs.len());
    for ((target, _), started) in jobs.iter().zip(started) {
        let Some((mut task, flight)) = started else {
            results.push(Err(timed_out()));
            continue;
        };
        let ended = match time_out {
            Some(time_out) => wait_for(&mut task, time_out, &mut ticks, target).await,
            None => Some((&mut task).await.unwrap_or_else(|error| Err(io::Error::other(error)))),
        };
        results.push(ended.unwrap_or_else(|| {
            flight.give_up();
            late.push((target.file.as_raw_fd(), flight));
            Err(timed_out())
        }));
    }
    results
}

/// Waits for the end of a task; `None` if it does not come in time. `ticks` went by while others were waited for.
async fn wait_for(
    task: &mut JoinHandle<io::Result<()>>,
    time_out: &TimeOut,
    ticks: &mut u32,
    target: &Target<'_>,
) -> Option<io::Result<()>> {
    loop {
        let limited = time_out.limit().is_some();
        let tick = if *ticks > TICKS { Duration::ZERO } else { time_out.tick() };
        match tokio::time::timeout(tick, &mut *task).await {
            Ok(result) => return Some(result.unwrap_or_else(|error| Err(io::Error::other(error)))),
            Err(_) if *ticks >= TICKS || target.is_hung() => {
                *ticks += 1;
                return None;
            }
            Err(_) => *ticks += u32::from(limited),
        }
    }
}

async fn ring_run(
    file: tokio_uring::fs::File,
    base: u64,
    runs: Arc<Vec<PageWrite>>,
    flight: Arc<Flight>,
) -> io::Result<()> {
    let _ends = Ends(Arc::clone(&flight));
    let file = std::rc::Rc::new(file);
    let write = |index| {
        let (file, runs) = (std::rc::Rc::clone(&file), Arc::clone(&runs));
        tokio_uring::spawn(ring_write(file, base, runs, index, Arc::clone(&flight)))
    };
    let writes: Vec<_> = (0..runs.len()).map(write).collect();
    let mut result = Ok(());
    for write in writes {
        let written = write.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        result = result.and(written);
    }
    result?;
    flight.go_on()?;
    flight.synced(file.sync_data().await)
}

async fn ring_write(
    file: std::rc::Rc<tokio_uring::fs::File>,
    base: u64,
    runs: Arc<Vec<PageWrite>>,
    index: usize,
    flight: Arc<Flight>,
) -> io::Result<()> {
    let run = &runs[index];
    let (mut bytes, mut done) = (run.bytes.clone(), 0);
    while done < bytes.len() {
        flight.go_on()?;
        let at = base + run.offset + done as u64;
        let (result, back) = file.write_at(bytes.slice(done..), at).submit().await;
        bytes = back.into_inner();
        match result {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
