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

use std::fs::File;
use std::io;
use std::mem;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;
use tokio_uring::buf::BoundedBuf;

use crate::page::PageWrite;

/// Looks in a time-out: how exactly it is kept.
const TICKS: u32 = 16;

/// Between two looks whether a time-out was set meanwhile.
const UNLIMITED_TICK: Duration = Duration::from_millis(250);

/// How long a file may take over a call, shared by those who set it and those who keep it. None at first: for ever.
#[derive(Clone, Debug, Default)]
pub struct TimeOut {
    /// In milliseconds; 0: none.
    limit: Arc<AtomicU64>,
}

impl TimeOut {
    /// This long, if any.
    pub fn new(limit: Option<Duration>) -> TimeOut {
        let time_out = TimeOut::default();
        limit.into_iter().for_each(|limit| time_out.shorten_to(limit));
        time_out
    }

    /// This long at most, also for calls under way, whose time begins now.
    pub fn shorten_to(&self, limit: Duration) {
        let limit = (limit.as_millis() as u64).max(1);
        let shorter = |now: u64| (now == 0 || limit < now).then_some(limit);
        let _ = self.limit.fetch_update(SeqCst, SeqCst, shorter);
    }

    /// How long; `None`: for ever.
    pub fn limit(&self) -> Option<Duration> {
        let limit = self.limit.load(SeqCst);
        (limit > 0).then(|| Duration::from_millis(limit))
    }

    /// Time until the next look at a call that does not end.
    fn tick(&self) -> Duration {
        self.limit().map_or(UNLIMITED_TICK, |limit| limit / TICKS)
    }
}

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

/// What was given up on a file, shared by all who do IO there.
#[derive(Clone, Debug, Default)]
pub struct Hung {
    /// Counts calls that are under way still. Unless it is 0, nothing else is written to the file, and a call that does not
    /// end is given up without waiting for the time-out.
    pub changes: Arc<AtomicU32>,
    /// One of them was a sync and failed. The system has said so to nobody else, so no later sync may be believed.
    pub forgetful: Arc<AtomicBool>,
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

/// What goes to one file, as who waits for it and who carries it out see it.
#[derive(Default)]
struct Flight {
    given_up: AtomicBool,
    ended: AtomicBool,
    sync_failed: AtomicBool,
    /// Counted as hung, or not any more.
    counted: AtomicBool,
    hung: Option<Hung>,
}

impl Flight {
    fn to(target: &Target<'_>) -> Arc<Flight> {
        Arc::new(Flight { hung: target.hung.cloned(), ..Flight::default() })
    }

    /// Whether another call may be made for it.
    fn go_on(&self) -> io::Result<()> {
        if self.given_up.load(SeqCst) { Err(timed_out()) } else { Ok(()) }
    }

    fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        self.sync_failed.store(result.is_err(), SeqCst);
        result.map_err(of_sync)
    }

    /// Whoever does IO there knows it before the caller does.
    fn give_up(&self) {
        if let Some(hung) = &self.hung {
            hung.changes.fetch_add(1, SeqCst);
            self.counted.store(true, SeqCst);
        }
        self.given_up.store(true, SeqCst);
        if self.ended.load(SeqCst) {
            self.settle();
        }
    }

    fn end(&self) {
        self.ended.store(true, SeqCst);
        if self.given_up.load(SeqCst) {
            self.settle();
        }
    }

    /// It was given up and has ended.
    fn settle(&self) {
        let Some(hung) = self.hung.as_ref().filter(|_| self.counted.swap(false, SeqCst)) else { return };
        if self.sync_failed.load(SeqCst) {
            hung.forgetful.store(true, SeqCst);
        }
        hung.changes.fetch_sub(1, SeqCst);
    }
}

/// Dropped, it says that no call for the flight is under way any more.
struct Ends(Arc<Flight>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, fill: u8, len: usize) -> PageWrite {
        PageWrite { offset, bytes: vec![fill; len] }
    }

    /// The io_uring one only where it is permitted; says so otherwise.
    fn each_kind() -> Vec<MetaIo> {
        let ring = MetaIo::new();
        if ring.kind() == "blocking" {
            eprintln!("skipped for io_uring: not permitted here");
        }
        vec![ring, MetaIo::blocking()]
    }

    #[test]
    fn adjacent_writes_become_one() {
        let runs =
            merged(&[write(8192, 3, 4096), write(0, 1, 4096), write(4096, 2, 4096), write(20480, 4, 512)]);
        assert_eq!(
            runs.iter().map(|r| (r.offset, r.bytes.len())).collect::<Vec<_>>(),
            [(0, 12288), (20480, 512)]
        );
        assert_eq!((runs[0].bytes[0], runs[0].bytes[4096], runs[0].bytes[8192]), (1, 2, 3));
        assert!(merged(&[]).is_empty());
    }

    #[test]
    fn every_target_gets_every_write() {
        for mut io in each_kind() {
            let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
            let targets: Vec<_> = files
                .iter()
                .zip([0, 512, 1 << 20])
                .map(|(file, base)| Target { file, base, hung: None })
                .collect();
            // More than the ring has entries.
            let writes: Vec<_> = (0..150).map(|i| write(i * 8192, i as u8 + 1, 4096)).collect();
            for round in 0..3 {
                let results = io.write_and_sync(&targets, &writes[round..]);
                assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
            }
            for target in &targets {
                for write in &writes {
                    let mut there = vec![0; 4096];
                    target.file.read_exact_at(&mut there, target.base + write.offset).unwrap();
                    assert!(there == write.bytes);
                }
            }
            assert!(io.sync(&[&files[0], &files[1]]).iter().all(|result| result.is_ok()));
            assert!(io.sync(&[]).is_empty());
        }
    }

    #[test]
    fn a_target_that_fails_does_not_stop_the_others() {
        for mut io in each_kind() {
            let good = tempfile::NamedTempFile::new().unwrap();
            let read_only = File::open(good.path()).unwrap();
            let targets = [&read_only, good.as_file()].map(|file| Target { file, base: 0, hung: None });
            let results = io.write_and_sync(&targets, &[write(0, 7, 4096), write(8192, 7, 10)]);
            assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(9));
            assert!(results[1].is_ok());
            assert_eq!(good.as_file().metadata().unwrap().len(), 8202);
        }
    }

    #[test]
    fn no_space_is_told_apart() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            eprintln!("skipped: no /dev/full");
            return;
        };
        for mut io in each_kind() {
            let results =
                io.write_and_sync(&[Target { file: &full, base: 0, hung: None }], &[write(0, 7, 4096)]);
            assert_eq!(results[0].as_ref().unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }

    /// A pipe that is full: a write to it ends when it is emptied. Only io_uring writes to one at an offset.
    #[test]
    fn a_file_that_hangs_is_given_up_and_given_nothing_until_that_has_ended() {
        let limit = Duration::from_millis(160);
        let mut io = MetaIo::new().with_time_out(TimeOut::new(Some(limit)));
        if io.kind() == "blocking" {
            eprintln!("skipped: no io_uring");
            return;
        }
        let (mut reader, mut writer) = io::pipe().unwrap();
        let mut full = vec![1; 65536];
        io::Write::write_all(&mut writer, &full).unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        let good = tempfile::tempfile().unwrap();
        let known = Hung::default();
        let hung = Some(&known);
        let targets = [Target { file: &pipe, base: 0, hung }, Target { file: &good, base: 0, hung }];
        let began = std::time::Instant::now();
        let results = io.write_and_sync(&targets, &[write(0, 7, 4096)]);
        assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT));
        assert!(results[1].is_ok() && began.elapsed() >= limit && io.is_late(&pipe) && !io.is_late(&good));
        assert_eq!(known.changes.load(SeqCst), 1, "all who do IO there know");

        let began = std::time::Instant::now();
        let each = [(targets[0], vec![write(0, 8, 10)]), (targets[1], vec![write(0, 8, 10)])];
        let results = io.write_each(&each);
        assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT), "refused");
        assert!(results[1].is_ok() && began.elapsed() < limit / 2, "at once");

        io::Read::read_exact(&mut reader, &mut full).unwrap();
        while io.has_late() {
            io.look();
        }
        assert!(!io.is_late(&pipe) && known.changes.load(SeqCst) == 0);
        assert!(!known.forgetful.load(SeqCst), "no sync was under way");
        let mut late = [0; 4096];
        io::Read::read_exact(&mut reader, &mut late).unwrap();
        assert_eq!(late, [7; 4096], "what was under way arrives, and nothing else");
        // It takes writes again: only a sync of a pipe cannot be.
        let results = io.write_and_sync(&targets[..1], &[write(0, 9, 10)]);
        assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(22));
        io::Read::read_exact(&mut reader, &mut late[..10]).unwrap();
        assert_eq!(late[..10], [9; 10]);

        // What others know shortens the wait; who ends with it does not wait.
        io::Write::write_all(&mut &pipe, &full).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| known.changes.store(1, SeqCst));
            io.time_out = Some(TimeOut::new(Some(Duration::from_secs(16) / 10)));
            let began = std::time::Instant::now();
            assert!(io.write_and_sync(&targets[..1], &[write(0, 7, 4096)])[0].is_err());
            assert!(began.elapsed() < Duration::from_secs(1));
        });
        drop(io);
    }

    /// Whichever comes first, the end of a sync or the end of patience.
    #[test]
    fn a_sync_that_was_given_up_and_failed_is_told_to_all() {
        let known = Hung::default();
        let file = tempfile::tempfile().unwrap();
        let flight = || Flight::to(&Target { file: &file, base: 0, hung: Some(&known) });
        let known_is = |changes, forgetful| {
            assert_eq!((known.changes.load(SeqCst), known.forgetful.load(SeqCst)), (changes, forgetful));
        };
        let fails = |flight: &Flight| assert!(flight.synced(Err(io::Error::other("lost"))).is_err());

        let waited_for = flight();
        fails(&waited_for);
        waited_for.end();
        known_is(0, false);

        let good = flight();
        good.give_up();
        known_is(1, false);
        good.synced(Ok(())).unwrap();
        good.end();
        known_is(0, false);

        for ends_first in [false, true] {
            let bad = flight();
            fails(&bad);
            if ends_first {
                bad.end();
                bad.give_up();
            } else {
                bad.give_up();
                known_is(1, false);
                bad.end();
            }
            known_is(0, true);
            known.forgetful.store(false, SeqCst);
        }
    }

    #[test]
    fn a_time_out_that_is_set_later_counts_for_what_hangs_already() {
        let time_out = TimeOut::default();
        let mut io = MetaIo::new().with_time_out(time_out.clone());
        if io.kind() == "blocking" {
            eprintln!("skipped: no io_uring");
            return;
        }
        let (_reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, &vec![1; 65536]).unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(writer));
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(100));
                time_out.shorten_to(Duration::from_millis(50));
            });
            let targets = [Target { file: &pipe, base: 0, hung: None }];
            let results = io.write_and_sync(&targets, &[write(0, 7, 4096)]);
            assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT));
        });
        assert!(io.is_late(&pipe));
    }
}
