//! How a log is put to use: it is read and written, and whoever used it before does so no more.

use std::mem;

use mirrord_raid::Region;

use super::{Asker, Book, DiskLog, Errno, Job, JobKind, Life, Log, LogId, LogServer, Output};
use crate::disk::LogOwner;
use crate::errno::{EBUSY, ESRCH, ESTALE};
use crate::log::DirtyLog;
use crate::wire::Reply;

impl LogServer {
    pub(super) fn resume(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        match log.life {
            Life::Live | Life::Suspending => {
                let was_suspended = log.life == Life::Suspending;
                (log.life, log.returning) = (Life::Live, false);
                if !log.by_kernel() || was_suspended {
                    // It reads the log anew. A live mirror of the kernel has a region under way and is not to be given
                    // it again.
                    log.work = None;
                    log.book.log_mut().maps_mut().restart();
                }
                let name = log.name();
                out.answer(asker, name, &Reply::Done);
                return self.save_life(id, out);
            }
            _ => {}
        }
        if log.life == Life::Returned || log.returning {
            return self.come_back(id, asker, out);
        }
        match self.put_to_use(id, out) {
            Err(errno) => {
                let log = self.log(id);
                out.answer(asker, log.name(), &Reply::Failed(errno));
            }
            Ok(()) => {
                let log = self.log(id);
                log.asked.push(asker);
                if log.life == Life::Live {
                    self.resumed(id, Ok(()), out);
                }
            }
        }
    }

    /// RESUME of a log that the kernel constructed anew: whether its table is in use is not known. One on disk is read, so
    /// that its status is true.
    fn come_back(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        let len = match &log.book {
            Book::Disk(book) if log.life != Life::Returned => Some(book.io_size()),
            _ => None,
        };
        if let (Some(store), Some(len)) = (log.store, len) {
            log.life = Life::Resuming;
            log.asked.push(asker);
            log.job = true;
            return out.jobs.push(Job { store, what: JobKind::Read { len } });
        }
        log.asked.push(asker);
        self.came_back(id, out);
    }

    fn came_back(&mut self, id: LogId, out: &mut Output) {
        let now = self.now;
        let log = self.log(id);
        (log.life, log.since) = (Life::Returned, now);
        for asker in mem::take(&mut log.asked) {
            out.answer(asker, log.name(), &Reply::Done);
        }
        self.unheld.push(id);
        self.save(id, out);
    }

    /// A log that came back is asked about regions, so its table is in use. What is asked waits until the log is.
    pub(super) fn try_to_use(&mut self, id: LogId, out: &mut Output) {
        match self.put_to_use(id, out) {
            Err(_) => self.waiting.push(id),
            Ok(()) if self.log(id).life == Life::Live => self.resumed(id, Ok(()), out),
            Ok(()) => {}
        }
    }

    /// Makes a core log live, and has a disk log read for that, unless another one is in use or still written.
    fn put_to_use(&mut self, id: LogId, out: &mut Output) -> Result<(), Errno> {
        let log = self.log(id);
        if log.opened.clone().is_some_and(|opened| self.is_written_by_a_dropped_one(&opened)) {
            return Err(EBUSY);
        }
        self.supersede_others(id, out)?;
        let log = self.log(id);
        log.returning = false;
        log.work = None;
        match &mut log.book {
            Book::Core(book) => {
                let _ = book.resume(&[]);
                log.life = Life::Live;
            }
            Book::Disk(book) => {
                let len = book.io_size();
                let store = log.store.ok_or(ESRCH)?;
                log.life = Life::Resuming;
                log.job = true;
                out.jobs.push(Job { store, what: JobKind::Read { len } });
            }
        }
        Ok(())
    }

    /// The log was read.
    pub(super) fn read(&mut self, id: LogId, result: Result<&[u8], Errno>, out: &mut Output) {
        let (now, lease) = (self.now, self.config.lease);
        let unwritten = self.unwritten(id);
        let log = self.log(id);
        if let (true, Err(errno)) = (log.by_kernel(), result) {
            log.fail_device(errno, out);
        }
        let (client, luid, again, take_over) = (log.client, log.luid, log.again, log.take_over);
        let looks = log.returning;
        let last = log.last.filter(|_| !again);
        let Book::Disk(book) = &mut log.book else { return };
        let owner = result.ok().and_then(DiskLog::owner_of).filter(|_| !client.is_kernel());
        if last.is_some() && last == owner.map(|owner| owner.luid) {
            book.believe();
        }
        let refused = match owner {
            Some(owner) if owner.luid == luid => None,
            // Who comes back and is not the last one was superseded.
            Some(_) if again => Some(ESTALE),
            // A server that was just started does not know yet whether the owner is about to come back.
            Some(owner) if !owner.released && now < lease && !take_over => Some(EBUSY),
            _ => None,
        };
        let (errno, writes) = match (refused, result) {
            (Some(errno), _) => (Some(errno), None),
            // What cannot be read cannot be trusted: the kernel goes on with everything dirty, a volume decides itself.
            (None, Err(errno)) if !client.is_kernel() => (Some(errno), None),
            (None, image) if looks => {
                book.look(image.ok());
                (None, None)
            }
            (None, image) => (None, Some(book.resume(&[image.ok()]))),
        };
        if let Some(errno) = errno {
            return self.resumed(id, Err(errno), out);
        }
        let has_unwritten = !unwritten.is_empty();
        for region in unwritten {
            book.mark(region);
            book.set_region_sync(region, false);
        }
        if looks {
            return self.came_back(id, out);
        }
        if !client.is_kernel() {
            book.set_owner(LogOwner { luid, released: false });
        }
        let writes = match writes {
            Some(flush) if client.is_kernel() && !has_unwritten => flush.writes,
            _ => {
                let _ = book.flush();
                book.all_pages().writes
            }
        };
        let Some(store) = log.store else { return };
        log.writing = Some(Vec::new());
        log.job = true;
        out.jobs.push(Job { store, what: JobKind::Write { writes } });
    }

    /// What was read is written.
    pub(super) fn resumed(&mut self, id: LogId, result: Result<(), Errno>, out: &mut Output) {
        let log = self.log(id);
        // The kernel's mirror goes on whatever is answered to the RESUME of a new table, and hears of it with the next FLUSH.
        log.life = if result.is_ok() || log.by_kernel() { Life::Live } else { Life::Pending };
        let reply = result.map_or_else(Reply::Failed, |()| Reply::Done);
        for asker in mem::take(&mut log.asked) {
            out.answer(asker, log.name(), &reply);
        }
        self.unheld.push(id);
        self.save(id, out);
    }

    /// Regions that are dirty, and that may be clean in the log's file: the device failed while a table of the same mirror used it.
    fn unwritten(&self, id: LogId) -> Vec<Region> {
        let Some(log) = self.logs[id.0 as usize].as_deref().filter(|log| log.by_kernel()) else {
            return Vec::new();
        };
        let file = |log: &Log| log.opened.as_ref().map(|opened| opened.file);
        let others = self.by_uuid.get(&log.uuid).into_iter().flatten();
        let failed = others
            .filter_map(|id| self.logs[id.0 as usize].as_deref())
            .filter(|other| other.by_kernel() && other.device_failed.is_some() && file(other) == file(log));
        let of = |other: &Log| -> Vec<Region> {
            let is_alike = other.region_sectors() == log.region_sectors();
            let all = || (0..log.regions()).map(Region).collect();
            let some = other.book.log().dirty().take_while(|region| region.0 < log.regions());
            if is_alike { some.collect() } else { all() }
        };
        failed.flat_map(of).collect()
    }

    /// Takes the log of the same uuid out of use that was in use before, if it may be.
    fn supersede_others(&mut self, id: LogId, out: &mut Output) -> Result<(), Errno> {
        let (now, lease) = (self.now, self.config.lease);
        let log = self.log(id);
        let (uuid, by_kernel, take_over) = (log.uuid.clone(), log.by_kernel(), log.take_over);
        let (again, returned) = (log.again, log.life == Life::Returned);
        let is_other = |&other: &LogId| {
            other != id
                && self.logs[other.0 as usize].as_deref().is_some_and(|other| other.by_kernel() == by_kernel)
        };
        let others: Vec<LogId> = self.by_uuid[&uuid].iter().copied().filter(is_other).collect();
        for &other in &others {
            let other = self.log(other);
            if again && !by_kernel && other.life.is_live() {
                // The other one came later, or this one would be the one in use.
                return Err(ESTALE);
            }
            let may_go = match other.life {
                // What is on its way to the file would land on what is written next.
                _ if other.job => false,
                // It was in use, and its file is not there now.
                Life::Opening if other.reopened.is_some_and(Life::is_live) => false,
                Life::Opening | Life::Pending | Life::Returned | Life::Suspended => true,
                Life::Resuming | Life::Closing => false,
                // The suspend, or its end, may have been said while no server was there.
                Life::Suspending if by_kernel => !returned || !other.heard,
                Life::Live if by_kernel => !other.heard,
                Life::Live | Life::Suspending => {
                    take_over || other.gone_since.is_some_and(|since| now - since >= lease)
                }
            };
            if !may_go {
                return Err(EBUSY);
            }
        }
        for other in others {
            let log = self.log(other);
            match log.life {
                Life::Live | Life::Suspending if by_kernel => {
                    log.life = Life::Suspended;
                    self.save_life(other, out);
                }
                Life::Live | Life::Suspending => self.remove(other, out),
                _ => {}
            }
        }
        Ok(())
    }
}
