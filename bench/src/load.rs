//! The load generator for a volume without a front end: keeps a number of requests in flight through
//! [`Engine::submit`], each answered request being followed by the next from the answer itself, on the
//! queue's thread. That is how a front end which shares the ring's thread would work, without its cost.
//!
//! A request's buffer comes from the pool and is written as it is: the copy from a client is the front
//! end's, and fio, the peer, writes one buffer over and over as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirrord::engine::Volume;
use mirrord_raid::Errno;
use mirrord_ublk::{BufferPool, Done, Engine, Op, Request};

use crate::process::Counts;
use crate::random::Random;
use crate::stats::{Histogram, Sample};
use crate::workload::{Access, Workload};

/// How long requests may take to come back at the end.
const STALLED: Duration = Duration::from_secs(60);

/// Where the next request goes.
#[derive(Clone, Copy)]
enum Places {
    Random,
    /// One after the other, from the start again at the end.
    InTurn,
    /// The first block of each region once, then no more.
    EachRegionOnce {
        region_size: u64,
        regions: u64,
    },
}

struct Load {
    engine: Arc<dyn Engine>,
    pool: Arc<BufferPool>,
    op: Op,
    block: u64,
    blocks: u64,
    places: Places,
    cursor: AtomicU64,
    stop: AtomicBool,
}

/// One of the requests in flight; travels with it.
struct Slot {
    load: Arc<Load>,
    queue: usize,
    random: Random,
    found: Found,
    /// Where `found` goes in the end.
    report: Sender<Found>,
}

/// What a slot, or all of them, saw.
struct Found {
    latencies: Histogram,
    error: Option<Errno>,
}

impl Load {
    fn next_offset(&self, random: &mut Random) -> Option<u64> {
        match self.places {
            Places::Random => Some(random.below(self.blocks) * self.block),
            Places::InTurn => Some(self.cursor.fetch_add(1, Relaxed) % self.blocks * self.block),
            Places::EachRegionOnce { region_size, regions } => {
                let region = self.cursor.fetch_add(1, Relaxed);
                // Not side by side: bits that share a log sector would be marked together.
                let spread = region.wrapping_mul(0x9E37_79B1) % regions;
                (region < regions).then_some(spread * region_size)
            }
        }
    }
}

impl Slot {
    fn go(mut self: Box<Slot>, now: Instant) {
        let load = Arc::clone(&self.load);
        let offset = if load.stop.load(Relaxed) { None } else { load.next_offset(&mut self.random) };
        let Some(offset) = offset else {
            let _ = self.report.send(self.found);
            return;
        };
        let buf = Some(load.pool.take(load.block as usize));
        let queue = self.queue;
        let done = Done::call(move |result, _| self.answered(now, result));
        let (op, len) = (load.op, load.block);
        load.engine.submit(queue, Request { op, offset, len, fua: false, buf, patch: None, done });
    }

    fn answered(mut self: Box<Slot>, started: Instant, result: Result<(), Errno>) {
        let now = Instant::now();
        self.found.latencies.add(now.duration_since(started));
        if let Err(errno) = result {
            self.found.error = Some(errno);
            self.load.stop.store(true, Relaxed);
        }
        self.go(now);
    }
}

/// Runs `workload` on `volume` for this time.
///
/// # Errors
/// When a request fails or none comes back.
pub(crate) fn run(volume: &Volume, size: u64, workload: &Workload, time: Duration) -> Result<Sample> {
    let op = if workload.writes() { Op::Write } else { Op::Read };
    let places = if workload.access == Access::SequentialWrite { Places::InTurn } else { Places::Random };
    let (found, elapsed, cpu) = drive(volume, size, op, workload, places, Some(time))?;
    Ok(sample(&found, elapsed, cpu))
}

/// Writes one block into each region of `volume`.
///
/// # Errors
/// As [`run`].
pub(crate) fn first_writes(volume: &Volume, workload: &Workload) -> Result<Sample> {
    let status = volume.status();
    let (region_size, regions) = (status.region_size_bytes, u64::from(status.regions));
    let places = Places::EachRegionOnce { region_size, regions };
    let (found, elapsed, cpu) = drive(volume, status.size_bytes, Op::Write, workload, places, None)?;
    Ok(sample(&found, elapsed, cpu))
}

fn sample(found: &Found, elapsed: Duration, cpu: Duration) -> Sample {
    let count = found.latencies.count() as f64;
    Sample {
        per_second: count / elapsed.as_secs_f64(),
        mean_us: found.latencies.mean_us(),
        p99_us: found.latencies.quantile_us(0.99),
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
    }
}

fn drive(
    volume: &Volume,
    size: u64,
    op: Op,
    workload: &Workload,
    places: Places,
    time: Option<Duration>,
) -> Result<(Found, Duration, Duration)> {
    let block = u64::from(workload.block);
    let load = Arc::new(Load {
        engine: volume.engine(),
        pool: Arc::clone(volume.pool()),
        op,
        block,
        blocks: size / block,
        places,
        cursor: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    scribble(&load.pool, workload);
    let queues = load.engine.queues();
    let (report, reports) = channel();
    let cpu_before = Counts::cpu_time(std::process::id());
    let started = Instant::now();
    for number in 0..workload.depth {
        let slot = Box::new(Slot {
            load: Arc::clone(&load),
            queue: number as usize % queues,
            random: Random::new(started.elapsed().as_nanos() as u64 ^ u64::from(number) << 32),
            found: Found { latencies: Histogram::new(), error: None },
            report: report.clone(),
        });
        slot.go(Instant::now());
    }
    drop(report);
    let patience = match time {
        Some(time) => {
            thread::sleep(time);
            load.stop.store(true, Relaxed);
            STALLED
        }
        None => 10 * STALLED,
    };
    let mut all = Found { latencies: Histogram::new(), error: None };
    for _ in 0..workload.depth {
        let found = reports.recv_timeout(patience).context("a request did not come back")?;
        all.latencies.merge(&found.latencies);
        all.error = all.error.or(found.error);
    }
    let elapsed = started.elapsed();
    let cpu = Counts::cpu_time(std::process::id()).time_since(&cpu_before);
    ensure!(all.error.is_none(), "a request failed: {:?}", all.error);
    ensure!(all.latencies.count() > 0, "no request was answered");
    Ok((all, elapsed, cpu))
}

/// Fills the buffers that the requests are going to have with something other than zeroes, which disks
/// may treat in a special way.
fn scribble(pool: &Arc<BufferPool>, workload: &Workload) {
    let mut random = Random::new(u64::from(workload.block));
    let mut buffers: Vec<_> = (0..2 * workload.depth).map(|_| pool.take(workload.block as usize)).collect();
    for buffer in &mut buffers {
        buffer.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
    }
}
