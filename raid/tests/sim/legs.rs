//! Leg IO under way: sectors move one by one at moments of their own, and the IO ends well or not.

use mirrord_raid::{BackgroundEvent, Errno, Event, LegOp, SCRUB_IO};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::{LegJob, Pending, REPAIR_SLOT};
use crate::disk::{ZERO, data_file};
use crate::faults::Kind;
use crate::sim::{Sim, trace};

impl Sim {
    /// The job at `at` of the pending list moves on: some sectors move, or it ends.
    pub(crate) fn step_leg(&mut self, at: usize, mut job: LegJob) {
        if let Some(errno) = job.refused {
            self.d().pending.swap_remove(at);
            return self.tell_end(&job, Err(errno));
        }
        if job.todo != 0 && self.rng.chance(1, 3) {
            let some = self.rng.next() as u32;
            self.move_sectors(&mut job, some);
            self.d().pending[at] = Pending::Leg(job);
            return;
        }
        self.d().pending.swap_remove(at);
        let mut result = self.end_leg(&mut job);
        if result.is_ok() && job.io.op.is_durable() {
            // As the real ring: what is late may have been told of a loss in its place.
            result = self.refusal(&job.io).map_or(Ok(()), Err);
        }
        trace!(
            self,
            "{:?}: {:?} {}+{} {result:?}",
            job.io.leg,
            job.io.op,
            job.io.offset / SECTOR,
            job.io.len / SECTOR
        );
        self.d().end(job, result);
    }

    /// A queue, or the background worker, handles the oldest completion of its ring.
    pub(crate) fn handle_end(&mut self, queue: u16) {
        let ended = self.d().ended[usize::from(queue)].pop_front();
        let (job, result) = ended.expect("a completion is pending");
        self.tell_end(&job, result);
    }

    /// Whoever waits for the job hears how it ended.
    pub(crate) fn tell_end(&mut self, job: &LegJob, result: Result<(), Errno>) {
        self.count_outcome(job, result);
        if job.io.op == LegOp::Read && result.is_err() {
            // It may be repaired.
            let first = (job.io.offset / SECTOR) as usize;
            self.is_written(&(first..first + (job.io.len / SECTOR) as usize));
        }
        if job.queue == self.config.queues {
            let zeroes = result.is_ok() && job.io.op == LegOp::Read && self.reads_as_zeroes(job);
            self.saw.saw_if(Saw::CopyOfZeroes, zeroes);
            let (io, leg) = (job.io.io, job.io.leg);
            self.background_event(BackgroundEvent::LegDone { io, leg, result, zeroes });
        } else {
            self.queue_event(job.queue, Event::LegDone { io: job.io.io, leg: job.io.leg, result });
        }
    }

    fn end_leg(&mut self, job: &mut LegJob) -> Result<(), Errno> {
        let (leg, disk) = (job.io.leg, job.io.leg.index());
        let (kind, fua) = match job.io.op {
            LegOp::Flush => return self.flush_leg(leg, data_file(job.queue), job.submitted),
            LegOp::Read => (Kind::Read, false),
            LegOp::Write { fua } | LegOp::Zero { fua, .. } => (Kind::Write, fua),
        };
        let struck = self.faults.strike(&mut self.rng, &self.config, leg, kind);
        let some = if struck.is_ok() { u32::MAX } else { self.rng.next() as u32 };
        self.move_sectors(job, some);
        if kind == Kind::Read {
            self.saw.saw_if(Saw::BadSectorRead, job.met_bad);
            return if job.met_bad { struck.and(Err(Errno::EIO)) } else { struck };
        }
        let now = self.moment();
        if struck.is_err() || !fua {
            self.disks[disk].complete(job.ticket, now);
            return struck;
        }
        // A durable write is a write and a sync, and the sync learns of an error of the leg.
        if self.sync_leg(leg, data_file(job.queue)).is_err() {
            self.disks[disk].complete(job.ticket, now);
            return Err(Errno::EIO);
        }
        self.disks[disk].complete_durably(job.ticket, now);
        Ok(())
    }

    /// Moves those of the sectors left to move whose bit is set in `which`.
    pub(crate) fn move_sectors(&mut self, job: &mut LegJob, which: u32) {
        let mut bits = job.todo & which;
        job.todo &= !which;
        let (queue, tag) = (usize::from(job.queue), job.io.tag as usize);
        let buffered = job.io.buf_offset as usize / SECTOR as usize;
        let first = (job.io.offset / SECTOR) as usize;
        let is_read = job.io.op == LegOp::Read;
        if !is_read && bits != 0 {
            self.check_landing(job);
        }
        while bits != 0 {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let d = self.daemon.as_mut().expect("the daemon lives");
            let stamp = &mut d.buffers[queue][tag][buffered + i];
            let disk = &mut self.disks[job.io.leg.index()];
            if is_read && disk.is_bad(first + i) {
                *stamp = ZERO - 1;
                job.met_bad = true;
            } else if is_read {
                *stamp = disk.read(first + i);
            } else {
                disk.land(job.ticket, first + i, *stamp);
            }
        }
    }

    fn reads_as_zeroes(&self, job: &LegJob) -> bool {
        let buffer = &self.live().buffers[usize::from(job.queue)][job.io.tag as usize];
        buffer[..(job.io.len / SECTOR) as usize].iter().all(|stamp| stamp & ZERO != 0)
    }

    /// Keeps account of how the legs of one step of a part end.
    fn count_outcome(&mut self, job: &LegJob, result: Result<(), Errno>) {
        let own = job.queue == self.config.queues;
        let leg = job.io.leg;
        let [first, len] = [job.io.offset, job.io.len].map(|bytes| (bytes / SECTOR) as usize);
        let is_write = matches!(job.io.op, LegOp::Write { .. } | LegOp::Zero { .. });
        let d = self.daemon.as_mut().expect("the daemon lives");
        let outcome = &mut d.outcomes[usize::from(job.queue)][job.io.io as usize];
        outcome.pending -= 1;
        if result.is_ok() {
            outcome.ok.insert(leg);
        } else {
            outcome.failed.insert(leg);
        }
        if let (LegOp::Read, Err(errno)) = (job.io.op, result) {
            d.failed_reads[leg.index()] += u32::from(!errno.is_given_up());
            if errno.is_gone() {
                d.gone.insert(leg);
            }
            if !own && let Some(client) = &mut d.clients[usize::from(job.queue)][job.io.tag as usize] {
                client.unreadable.insert(leg);
            }
        }
        let lasting =
            |errno: Errno| !errno.is_given_up() && (job.io.op == LegOp::Flush || !errno.is_no_space());
        if job.io.op.is_durable() && result.is_err_and(lasting) {
            d.unflushed.insert(leg);
        }
        if outcome.pending == 0 {
            let outcome = std::mem::take(outcome);
            if !outcome.failed.is_empty() && job.io.op != LegOp::Read {
                // A repair was read from another leg, which is to say that it worked there.
                let repair = own && job.io.io == REPAIR_SLOT;
                let others = d.mirror.legs.states().in_sync().minus(outcome.failed);
                let scrubs = own && job.io.io == SCRUB_IO;
                let ok = if repair || scrubs { others } else { outcome.ok };
                d.troubles.push((ok, outcome.failed, own));
                self.saw.saw_if(Saw::FailedRepair, repair);
                self.saw.saw(Saw::LegError);
                self.saw.saw_if(Saw::ErrorOnAllLegs, outcome.ok.is_empty());
                if result == Err(Errno::ENOSPC) {
                    let all = outcome.ok.is_empty();
                    self.saw.saw(if all { Saw::NoSpaceOnAllLegs } else { Saw::NoSpaceOnOneLeg });
                }
            }
        }
        self.saw.saw_if(Saw::Repair, own && is_write && job.io.io == REPAIR_SLOT && result.is_ok());
        if job.io.op == LegOp::Read {
            self.saw.saw_if(Saw::FailedRead, result.is_err());
        } else if is_write && !own && result.is_ok() {
            let client = d.clients[usize::from(job.queue)][job.io.tag as usize].as_mut();
            client.expect("a request under way").landed.push((leg, first..first + len));
        }
    }
}
