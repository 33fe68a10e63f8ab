//! How a log is put to use: it is read and written, and whoever used it before does so no more.

use std::mem;

use super::{Asker, Book, DiskLog, Errno, Job, JobKind, Life, LogId, LogServer, Output};
use crate::disk::LogOwner;
use crate::errno::{EBUSY, ESRCH, ESTALE};
use crate::log::DirtyLog;
use crate::wire::{LogName, Reply};

impl LogServer {
    pub(super) fn resume(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        match log.life {
            Life::Live | Life::Suspending => {
                let was_suspended = log.life == Life::Suspending;
                log.life = Life::Live;
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
        let opened = log.opened.clone();
        let may_go_on = match opened {
            Some(opened) if self.is_written_by_a_dropped_one(&opened) => Err(EBUSY),
            _ => self.supersede_others(id, out),
        };
        let log = self.log(id);
        if let Err(errno) = may_go_on {
            return out.answer(asker, log.name(), &Reply::Failed(errno));
        }
        log.work = None;
        match &mut log.book {
            Book::Core(book) => {
                let _ = book.resume(&[]);
                log.life = Life::Live;
                out.answer(asker, log.name(), &Reply::Done);
                self.save(id, out);
            }
            Book::Disk(book) => {
                let len = book.io_size();
                let Some(store) = log.store else {
                    return out.answer(asker, log.name(), &Reply::Failed(ESRCH));
                };
                log.life = Life::Resuming;
                log.asked.push(asker);
                log.job = true;
                out.jobs.push(Job { store, what: JobKind::Read { len } });
            }
        }
    }

    /// The log was read.
    pub(super) fn read(&mut self, id: LogId, result: Result<&[u8], Errno>, out: &mut Output) {
        let (now, lease) = (self.now, self.config.lease);
        let log = self.log(id);
        let (client, luid, again, take_over) = (log.client, log.luid, log.again, log.take_over);
        let Book::Disk(book) = &mut log.book else { return };
        let owner = result.ok().and_then(DiskLog::owner_of).filter(|_| !client.is_kernel());
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
            (None, image) => (None, Some(book.resume(&[image.ok()]))),
        };
        if let Some(errno) = errno {
            return self.resumed(id, Err(errno), out);
        }
        if !client.is_kernel() {
            book.set_owner(LogOwner { luid, released: false });
        }
        let writes = match writes {
            Some(flush) if client.is_kernel() => flush.writes,
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
        // The kernel's mirror goes on whatever is answered, and hears of it with the next FLUSH.
        log.life = if result.is_ok() || log.by_kernel() { Life::Live } else { Life::Pending };
        let reply = result.map_or_else(Reply::Failed, |()| Reply::Done);
        for asker in mem::take(&mut log.asked) {
            out.answer(asker, log.name(), &reply);
        }
        self.unheld.push(id);
        self.save(id, out);
    }

    /// Whether the kernel uses another log of the same uuid, and said so since this server is here.
    pub(super) fn is_used_by_another(&self, name: LogName<'_>) -> bool {
        let others = self.by_uuid.get(name.uuid).into_iter().flatten();
        others.filter_map(|id| self.logs[id.0 as usize].as_deref()).any(|log| {
            log.by_kernel()
                && log.luid != name.luid
                && log.heard
                && matches!(log.life, Life::Live | Life::Resuming)
        })
    }

    /// Takes the log of the same uuid out of use that was in use before, if it may be.
    fn supersede_others(&mut self, id: LogId, out: &mut Output) -> Result<(), Errno> {
        let (now, lease) = (self.now, self.config.lease);
        let log = self.log(id);
        let (uuid, by_kernel, take_over) = (log.uuid.clone(), log.by_kernel(), log.take_over);
        let again = log.again;
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
                Life::Opening | Life::Pending | Life::Suspended => true,
                Life::Resuming | Life::Closing => false,
                // The suspend may have been said while no server was there.
                Life::Live | Life::Suspending if by_kernel => other.life == Life::Suspending || !other.heard,
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
