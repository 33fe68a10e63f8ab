//! IO that was given up: whoever waited is told, and the disk carries it out at any time after that, in part or
//! whole, well or not. Like the real driver, this one gives a leg nothing more until it has ended.

use mirrord_raid::{Errno, Leg, LegOp};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::{LegJob, MetaLeg, Pending};
use crate::disk::{META_FILE, data_file};
use crate::faults::Kind;
use crate::sim::{Sim, trace};

/// Something that nobody waits for any more.
pub(crate) struct Late {
    pub(crate) id: u32,
    pub(crate) leg: Leg,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// With what its buffer held.
    Data(LegJob, Vec<u64>),
    Meta(MetaLeg),
}

impl Sim {
    /// Whether a leg is given no read, or nothing at all.
    pub(crate) fn hangs(&self, leg: Leg, read: bool) -> bool {
        self.live().late.iter().filter(|late| late.leg == leg).any(|late| match &late.what {
            What::Data(job, _) => read || job.io.op != LegOp::Read,
            What::Meta(_) => !read,
        })
    }

    /// Whether metadata is on its way to a leg still.
    pub(crate) fn metadata_hangs(&self, leg: Leg) -> bool {
        self.live().late.iter().any(|late| late.leg == leg && matches!(late.what, What::Meta(_)))
    }

    /// Whether anything is: such a leg is not given back.
    pub(crate) fn has_late(&self, leg: Leg) -> bool {
        self.live().late.iter().any(|late| late.leg == leg)
    }

    pub(crate) fn late_leg(&self, id: u32) -> Leg {
        self.live().late.iter().find(|late| late.id == id).expect("it is on its way").leg
    }

    fn add_late(&mut self, leg: Leg, what: What) {
        let d = self.d();
        d.last_late += 1;
        let id = d.last_late;
        d.late.push(Late { id, leg, what });
        d.pending.push(Pending::Late(id));
        self.saw.saw(Saw::GivenUp);
    }

    /// The job at `at` of the pending list is given up.
    pub(crate) fn give_up(&mut self, at: usize, job: LegJob) {
        trace!(self, "given up: {:?} {:?} at {}", job.io.leg, job.io.op, job.io.offset / SECTOR);
        let buffers = &self.live().buffers[usize::from(job.queue)];
        let buffer = buffers.get(job.io.tag as usize).cloned().unwrap_or_default();
        self.d().pending.swap_remove(at);
        self.add_late(job.io.leg, What::Data(job, buffer));
        // The ring takes in every completion that is there before it gives anything up.
        self.d().end(job, Err(Errno::GIVEN_UP));
    }

    /// What is late moves on: some of it lands, or all, and it ends.
    pub(crate) fn step_late(&mut self, at: usize, id: u32) {
        let of = self.live().late.iter().position(|late| late.id == id).expect("it is on its way");
        let mut late = self.d().late.swap_remove(of);
        let ended = match &mut late.what {
            What::Data(job, buffer) => self.step_late_data(job, buffer),
            What::Meta(meta) => self.step_late_meta(late.leg, meta),
        };
        if ended {
            trace!(self, "{:?}: what was given up has ended", late.leg);
            self.d().pending.swap_remove(at);
        } else {
            self.d().late.push(late);
        }
    }

    fn step_late_data(&mut self, job: &mut LegJob, buffer: &[u64]) -> bool {
        let leg = job.io.leg;
        if job.io.op == LegOp::Read {
            return true;
        }
        let kind = if job.io.op == LegOp::Flush { Kind::Flush } else { Kind::Write };
        if job.todo != 0 && self.rng.coin() {
            let some = self.rng.next() as u32;
            self.land_late(job, buffer, some);
            return false;
        }
        let result = if kind == Kind::Flush {
            self.flush_leg(leg, data_file(job.queue), job.submitted)
        } else {
            let struck = self.faults.strike(&mut self.rng, &self.config, leg, kind);
            if struck.is_ok() {
                self.land_late(job, buffer, u32::MAX);
            }
            let now = self.moment();
            let synced = match job.io.op.is_durable() && struck.is_ok() {
                true => self.sync_leg(leg, data_file(job.queue)),
                false => struck,
            };
            let disk = &mut self.disks[leg.index()];
            if job.io.op.is_durable() && synced.is_ok() {
                disk.complete_durably(job.ticket, now);
            } else {
                disk.complete(job.ticket, now);
            }
            synced
        };
        if result.is_err() && job.io.op.is_durable() {
            self.saw.saw(Saw::LateFailedFlush);
            self.d().forgetful.insert(leg);
        }
        true
    }

    fn land_late(&mut self, job: &mut LegJob, buffer: &[u64], which: u32) {
        let mut bits = job.todo & which;
        job.todo &= !which;
        self.saw.saw_if(Saw::LateWrite, bits != 0);
        while bits != 0 {
            let i = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let stamp = buffer[(u64::from(job.io.buf_offset) / SECTOR) as usize + i];
            let sector = (job.io.offset / SECTOR) as usize + i;
            self.disks[job.io.leg.index()].land(job.ticket, sector, stamp);
        }
    }

    /// Metadata on its way to `leg` is given up.
    pub(crate) fn give_up_meta(&mut self, leg: Leg) {
        trace!(self, "given up: {leg:?} metadata");
        let meta = self.d().meta.as_mut().expect("a durable operation is under way");
        let rest = std::mem::take(&mut meta.legs[leg.index()]);
        self.add_late(leg, What::Meta(rest));
        self.end_meta_leg(leg, Err(Errno::GIVEN_UP));
    }

    /// No further call is made for it: what had not been flushed is not.
    fn step_late_meta(&mut self, leg: Leg, meta: &mut MetaLeg) -> bool {
        if let Some(submitted) = meta.flush {
            if self.flush_leg(leg, META_FILE, submitted).is_err() {
                self.saw.saw(Saw::LateFailedFlush);
                self.d().forgetful.insert(leg);
            }
            return true;
        }
        let most = meta.writes.len() as u64;
        let some = if self.rng.coin() { most } else { self.rng.below(most + 1) };
        self.land_meta(leg, meta, some);
        let ended = meta.writes.is_empty() || self.rng.coin();
        if ended {
            let now = self.moment();
            self.disks[leg.index()].complete(meta.ticket, now);
        }
        ended
    }

    /// At a crash: some of what was late may have landed.
    pub(crate) fn drop_late(&mut self, late: Vec<Late>) {
        for mut late in late {
            match &mut late.what {
                What::Data(job, buffer) if job.todo != 0 && job.io.op != LegOp::Read => {
                    let some = self.rng.next() as u32;
                    self.land_late(job, buffer, some);
                }
                What::Data(..) => {}
                What::Meta(meta) => {
                    let some = self.rng.below(meta.writes.len() as u64 + 1);
                    self.land_meta(late.leg, meta, some);
                }
            }
        }
    }
}
