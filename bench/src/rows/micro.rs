//! The engine's parts without IO: how much of a request's time is ours.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mirrord_raid::{
    Action, Event, Geometry, Hold, LegMap, LegState, Mirror, MirrorQueue, Op, Owner, QueueId, RangeLocks,
    Region, RegionTable, Request,
};
use mirrord_ublk::{BufferPool, Done, PoolConfig};

use super::Setting;
use crate::random::Random;
use crate::report::{Row, Section, Target, number};
use crate::stats::Spread;

const SIZE: u64 = 1 << 30;
const REGION: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// How long each part is run per round.
const TIME: Duration = Duration::from_millis(300);
/// Between two looks at the clock.
const BATCH: u32 = 1000;

/// Measures the group.
///
/// # Errors
/// When there is no memory for buffers.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let rounds = setting.plan.rounds;
    let pool = BufferPool::new(PoolConfig::default()).context("no memory for buffers")?;
    let regions = RegionTable::new((SIZE / REGION) as u32);
    regions.assume_dirty(Region(1));
    let ranges = RangeLocks::default();
    let owner = Owner { queue: QueueId(0), io: 0 };
    let mut granted = Vec::new();
    let (mut writes, mut reads) = (Queue::new()?, Queue::new()?);
    let rows = vec![
        row("MirrorQueue: a write to two legs", rounds, || writes.request(Op::Write)),
        row("MirrorQueue: a read", rounds, || reads.request(Op::Read)),
        row("RegionTable: a write begins and ends in a dirty region", rounds, || {
            black_box(regions.begin_write(Region(1)));
            regions.end_write(Region(1));
        }),
        row("RangeLocks: a range taken and given back", rounds, || {
            black_box(ranges.acquire(owner, Region(1), REGION, BLOCK, Hold::Exclusive));
            ranges.release(owner, Region(1), &mut granted);
        }),
        row("BufferPool: a small buffer taken and given back", rounds, || {
            drop(black_box(pool.take(BLOCK as usize)));
        }),
        row("Done: a call made and answered", rounds, || {
            Done::call(|result, _| assert!(black_box(result).is_ok())).complete(Ok(()), None);
        }),
    ];
    let how =
        "One thread, nothing else in the way, no IO and no other thread: what the parts cost by themselves.";
    Ok(Section {
        title: "Parts of the engine".to_owned(),
        how: vec![how.to_owned()],
        rows,
        ..Section::default()
    })
}

fn row(what: &str, rounds: u32, mut work: impl FnMut()) -> Row {
    let costs: Vec<f64> = (0..rounds).map(|_| nanoseconds(&mut work)).collect();
    let spread = Spread::of(&costs);
    let ours = format!("{} ns", number(spread.median));
    Row { what: what.to_owned(), ours, theirs: String::new(), judged: Some(spread), target: Target::None }
}

/// What one run of `work` takes.
fn nanoseconds(work: &mut impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < TIME {
        (0..BATCH).for_each(|_| work());
        count += BATCH;
    }
    started.elapsed().as_nanos() as f64 / f64::from(count)
}

/// A queue whose legs answer at once.
struct Queue {
    machine: MirrorQueue,
    actions: Vec<Action>,
    random: Random,
}

impl Queue {
    fn new() -> Result<Queue> {
        let geometry = Geometry::new(SIZE, REGION)?;
        let states = LegMap::from(vec![LegState::InSync; 2]);
        let mirror = Mirror::new(geometry, &states, (0..geometry.regions()).map(Region), 1);
        let machine = MirrorQueue::new(Arc::new(mirror), QueueId(0));
        Ok(Queue { machine, actions: Vec::new(), random: Random::new(1) })
    }

    fn request(&mut self, op: Op) {
        let offset = self.random.below(SIZE / BLOCK) * BLOCK;
        let request = Request { tag: 0, op, offset, len: BLOCK, fua: false, patch: false };
        self.machine.handle(Event::Request(request), &mut self.actions);
        let mut at = 0;
        while at < self.actions.len() {
            if let Action::Submit(io) = self.actions[at] {
                let done = Event::LegDone { io: io.io, leg: io.leg, result: Ok(()) };
                self.machine.handle(done, &mut self.actions);
            }
            at += 1;
        }
        black_box(&self.actions);
        self.actions.clear();
    }
}
