//! A log's changes on their way to its file: one write at a time, whatever waits meanwhile goes with the next.

use std::mem;

use super::{Asker, Book, Errno, Job, JobDone, JobKind, Life, LogId, LogServer, MAX_HELD, Output, StoreId};
use crate::errno::{EAGAIN, EBUSY, EINVAL, EIO, ENOBUFS, ESRCH, ESTALE};
use crate::wire::{Regions, Reply};

/// What the asker is told of an error of a file: not one of those that mean something else in an answer. The kernel asks again at
/// once, without end, when it is told `EAGAIN`, and constructs its log anew for `ESRCH`; a volume would take itself for
/// superseded by `ESTALE`, which is what a file server says of a file that is gone.
fn told(errno: Errno) -> Errno {
    if [EAGAIN, EBUSY, ESRCH, ESTALE].contains(&errno) { EIO } else { errno }
}

impl LogServer {
    /// Makes marks, and answers once everything marked and cleared so far is durable.
    pub(super) fn flush(&mut self, id: LogId, asker: Asker, marks: Regions<'_>, out: &mut Output) {
        let log = self.log(id);
        if !log.life.is_live() {
            let not_live = if log.by_kernel() { ESRCH } else { EINVAL };
            let reply = match log.failed {
                _ if !marks.is_empty() || log.life != Life::Suspended => Reply::Failed(not_live),
                // The kernel may send one without marks some seconds late: nothing changed since it was suspended.
                None => Reply::Done,
                Some(errno) => Reply::Failed(errno),
            };
            return out.answer(asker, log.name(), &reply);
        }
        if log.flushes.len() >= MAX_HELD {
            if !log.by_kernel() {
                return out.answer(asker, log.name(), &Reply::Failed(ENOBUFS));
            }
            // It asked again long ago, and waits for that answer.
            log.flushes.remove(0);
        }
        if let Err(errno) = log.mark(marks, out) {
            return out.answer(asker, log.name(), &Reply::Failed(errno));
        }
        match log.book {
            Book::Core(_) => out.answer(asker, log.name(), &Reply::Done),
            Book::Disk(_) => {
                log.flushes.push(asker);
                self.write(id, out);
            }
        }
    }

    /// Starts the next write, unless one is under way, for all who wait.
    pub(super) fn write(&mut self, id: LogId, out: &mut Output) {
        let log = self.log(id);
        let (None, Some(store)) = (&log.writing, log.store) else { return };
        let askers = mem::take(&mut log.flushes);
        let writes = log.book.log_mut().flush().writes;
        if writes.is_empty() {
            for asker in askers {
                out.answer(asker, log.name(), &Reply::Done);
            }
            return;
        }
        log.writing = Some(askers);
        log.job = true;
        out.jobs.push(Job { store, what: JobKind::Write { writes } });
    }

    /// A job has ended.
    pub fn job_done(&mut self, store: StoreId, done: JobDone, out: &mut Output) {
        if let Some(closing) = self.closing.get_mut(&store) {
            let is_open = !matches!(done, JobDone::Opened(Err(_)) | JobDone::Closed);
            if is_open {
                closing.works = false;
                out.jobs.push(Job { store, what: JobKind::Close });
            } else {
                self.closed(store, out);
            }
            return self.let_go_on(out);
        }
        let Some(&id) = self.by_store.get(&store) else { return };
        self.log(id).job = false;
        match done {
            JobDone::Opened(result) => {
                // That another has it is what is meant.
                let told = |errno| if errno == EBUSY { errno } else { told(errno) };
                self.opened(id, result.map_err(told), out);
            }
            JobDone::Read(result) => self.read(id, result.as_deref().map_err(|&errno| told(errno)), out),
            JobDone::Written(result) => self.written(id, result.map_err(told), out),
            JobDone::Closed => unreachable!("no log has a file that is closed"),
        }
        self.let_go_on(out);
    }

    fn written(&mut self, id: LogId, result: Result<(), Errno>, out: &mut Output) {
        let log = self.log(id);
        log.failed = result.err();
        if let Err(errno) = result {
            log.fail_device(errno, out);
            // Nothing of it counts: the next write has all of the log.
            log.book.log_mut().flush_failed();
        }
        let reply = result.map_or_else(Reply::Failed, |()| Reply::Done);
        for asker in log.writing.take().unwrap_or_default() {
            out.answer(asker, log.name(), &reply);
        }
        match log.life {
            Life::Resuming => self.resumed(id, result, out),
            Life::Closing => self.go_on_closing(id, result, out),
            _ if log.flushes.is_empty() => {}
            _ => self.write(id, out),
        }
    }
}
