//! The load: requests of the front end, drawn at random, overlapping on purpose, and what becomes of
//! them.

use std::ops::Range;

use mirrord_raid::{Errno, Event, LegSet, Op, Request};

use crate::config::{HOT, SECTOR};
use crate::coverage::Saw;
use crate::daemon::Client;
use crate::disk::ZERO;
use crate::sim::Sim;

/// Whether space is given back makes no difference to these disks.
const ZERO_OP: Op = Op::Zero { keep: false };

impl Sim {
    /// A new request on some queue, if there is room for one.
    pub(crate) fn issue(&mut self) {
        let queue = self.rng.below(u64::from(self.config.queues)) as u16;
        let clients = &self.live().clients[usize::from(queue)];
        let Some(tag) = clients.iter().position(Option::is_none) else { return };
        let op = match self.rng.below(100) {
            0..=39 => Op::Read,
            40..=83 => Op::Write,
            84..=89 => ZERO_OP,
            _ => Op::Flush,
        };
        let range = if op == Op::Flush { 0..0 } else { self.range(op) };
        self.send(queue, tag, op, range);
    }

    /// A new request with this free tag on this queue.
    pub(crate) fn send(&mut self, queue: u16, tag: usize, op: Op, range: Range<usize>) {
        let changed = matches!(op, Op::Write | Op::Zero { .. });
        let (fua, patch) = (changed && self.rng.chance(1, 8), op == Op::Write && self.rng.chance(1, 6));
        let mut changes = if changed { range.clone() } else { 0..0 };
        if patch {
            changes.start += self.rng.below(range.len() as u64) as usize;
            changes.end -= self.rng.below(changes.len() as u64) as usize;
        }
        let stamp = self.stamps | if op == ZERO_OP { ZERO } else { 0 };
        if changed {
            self.stamps += self.config.sectors as u64;
        }
        if changed {
            self.changes_since_splits(&range);
            self.is_written(&range);
        }
        let start = self.moment();
        for sector in changes.clone() {
            self.history.write_starts(sector, stamp + sector as u64, start);
        }
        let d = self.daemon.as_mut().expect("the daemon lives");
        let buffer = &mut d.buffers[usize::from(queue)][tag];
        buffer.clear();
        // What a patch does not fetch, and a read does not fill, nobody may ever see.
        let whole = changed && !patch;
        buffer.extend(range.clone().map(|s| if whole { stamp + s as u64 } else { ZERO - 1 }));
        d.in_flight += 1;
        let (first, count) = (range.start, range.len());
        let (landed, unreadable) = (Vec::new(), LegSet::EMPTY);
        let steady = d.mirror.legs.states().in_sync();
        d.clients[usize::from(queue)][tag] =
            Some(Client { op, first, count, changes, fua, stamp, start, landed, steady, unreadable });
        self.count_request(op, fua, patch, range);
        let (offset, len) = (first as u64 * SECTOR, count as u64 * SECTOR);
        let request = Request { tag: tag as u32, op, offset, len, fua, patch };
        self.queue_event(queue, Event::Request(request));
    }

    fn count_request(&mut self, op: Op, fua: bool, patch: bool, range: Range<usize>) {
        let region = self.config.region_sectors as usize;
        self.saw.saw(Saw::Request);
        self.saw.saw_if(Saw::DurableWrite, fua);
        self.saw.saw_if(Saw::Patch, patch);
        if !range.is_empty() {
            self.saw.saw_if(Saw::SpanningRequest, range.start / region != (range.end - 1) / region);
            self.saw.saw_if(Saw::WholeVolumeZero, op == ZERO_OP && range.len() == self.sectors());
        }
    }

    /// Where a request goes, in sectors.
    fn range(&mut self, op: Op) -> Range<usize> {
        let sectors = self.sectors() as u64;
        if op == ZERO_OP && self.rng.chance(1, 20) {
            return 0..sectors as usize;
        }
        let span = if self.rng.chance(self.config.hot, 100) { sectors.min(HOT as u64) } else { sectors };
        let first = self.rng.below(span);
        let most = if self.rng.chance(1, 10) { 48 } else { 12 };
        let count = self.rng.between(1, most).min(sectors - first);
        first as usize..(first + count) as usize
    }

    /// The caller's sectors are laid over what was fetched.
    pub(crate) fn overlay(&mut self, queue: u16, tag: u32, offset: u64, len: u64) {
        let d = self.daemon.as_mut().expect("the daemon lives");
        let client = d.clients[usize::from(queue)][tag as usize].as_ref().expect("a request under way");
        let buffer = &mut d.buffers[usize::from(queue)][tag as usize];
        for sector in (offset / SECTOR) as usize..((offset + len) / SECTOR) as usize {
            if client.changes.contains(&sector) {
                buffer[sector - client.first] = client.stamp + sector as u64;
            }
        }
    }

    /// A request is answered.
    pub(crate) fn complete(&mut self, queue: u16, tag: u32, result: Result<(), Errno>) {
        let now = self.moment();
        let d = self.daemon.as_mut().expect("the daemon lives");
        let slot = &mut d.clients[usize::from(queue)][tag as usize];
        let client = slot.take().expect("a request under way was answered");
        d.in_flight -= 1;
        match client.op {
            Op::Flush => {
                if result.is_ok() {
                    self.saw.saw(Saw::OkFlush);
                    self.check_flushed(&client);
                    let oldest = self.live().oldest_read(now);
                    self.history.flushed(client.start, oldest);
                }
            }
            Op::Read => match result {
                Ok(()) => self.check_read(queue, tag, &client, now),
                Err(errno) => Sim::check_unreadable(&client, errno),
            },
            Op::Write | Op::Zero { .. } => {
                for sector in client.changes.clone() {
                    let stamp = client.stamp + sector as u64;
                    let end = self.history.write_ends(sector, stamp, result.is_ok(), client.fua, now);
                    if let Err(illegal) = end {
                        panic!("invariant 6: sector {sector}: a write ended too late: {illegal}");
                    }
                }
                if result.is_ok() {
                    self.check_written(&client);
                }
            }
        }
    }
}
