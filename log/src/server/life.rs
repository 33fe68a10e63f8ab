//! How a log is suspended and goes.

use std::mem;

use super::{
    Asker, Book, ClientId, Errno, Job, JobKind, Life, Log, LogId, LogServer, Output, PENDING_TICKS, Save,
};
use crate::disk::LogOwner;
use crate::errno::ESRCH;
use crate::wire::{Frame, Reply};

impl LogServer {
    pub(super) fn presuspend(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        if log.life == Life::Live {
            log.life = Life::Suspending;
        }
        out.answer(asker, log.name(), &Reply::Done);
        self.save_life(id, out);
    }

    pub(super) fn postsuspend(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        if !log.life.is_live() {
            return out.answer(asker, log.name(), &Reply::Done);
        }
        log.life = Life::Closing;
        log.asked.push(asker);
        let (luid, by_kernel) = (log.luid, log.by_kernel());
        if let (Book::Disk(book), false) = (&mut log.book, by_kernel) {
            book.set_owner(LogOwner { luid, released: true });
        }
        self.go_on_closing(id, Ok(()), out);
    }

    /// Writes what is left to write; once there is nothing, the log is suspended.
    pub(super) fn go_on_closing(&mut self, id: LogId, result: Result<(), Errno>, out: &mut Output) {
        if result.is_ok() {
            self.write(id, out);
        }
        let log = self.log(id);
        if log.writing.is_some() {
            return;
        }
        log.life = Life::Suspended;
        let reply = result.map_or_else(Reply::Failed, |()| Reply::Done);
        for asker in mem::take(&mut log.asked).into_iter().chain(mem::take(&mut log.flushes)) {
            out.answer(asker, log.name(), &reply);
        }
        if log.ending {
            // What was asked meanwhile is asked again of nobody.
            let held = log.take_held();
            self.orphans.extend(held);
            return self.remove(id, out);
        }
        self.unheld.push(id);
        self.save_life(id, out);
    }

    pub(super) fn destroy(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        if log.life.is_live() {
            // It was suspended while no server was there, or its user does not care: nothing is lost either way.
            log.ending = true;
            return self.postsuspend(id, asker, out);
        }
        out.answer(asker, log.name(), &Reply::Done);
        self.remove(id, out);
    }

    /// Drops a log, whatever it is doing, on somebody's word: a mirror that uses it is left without one. Whether there was one.
    pub fn forget(&mut self, id: LogId, out: &mut Output) -> bool {
        let is_there = self.logs.get(id.0 as usize).is_some_and(Option::is_some);
        if is_there {
            self.remove(id, out);
        }
        is_there
    }

    /// The connection of a client is gone.
    pub fn client_gone(&mut self, client: ClientId, out: &mut Output) {
        self.peers.remove(&client);
        let now = self.now;
        for at in 0..self.logs.len() {
            let Some(log) = self.logs[at].as_deref_mut().filter(|log| log.client == client) else { continue };
            log.gone_since = Some(now);
            log.forget_askers();
            if matches!(log.life, Life::Pending | Life::Suspended) {
                self.remove(LogId(at as u32), out);
            }
        }
    }

    /// A second went by.
    pub fn tick(&mut self, out: &mut Output) {
        self.now += 1;
        let (now, lease) = (self.now, self.config.lease);
        for at in 0..self.logs.len() {
            let Some(log) = self.logs[at].as_deref() else { continue };
            let is_over = match log.life {
                Life::Pending if log.by_kernel() => now - log.since >= PENDING_TICKS,
                life if life.is_busy() || log.job => false,
                _ => log.gone_since.is_some_and(|since| now - since >= lease),
            };
            if is_over {
                self.remove(LogId(at as u32), out);
            }
        }
    }

    // ---- the table of logs

    pub(super) fn add(&mut self, log: Log) -> LogId {
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.logs.push(None);
            LogId(self.logs.len() as u32 - 1)
        });
        self.regions += u64::from(log.regions());
        self.by_luid.entry(log.luid).or_default().push(id);
        self.by_uuid.entry(log.uuid.clone()).or_default().push(id);
        self.logs[id.0 as usize] = Some(Box::new(log));
        id
    }

    pub(super) fn remove(&mut self, id: LogId, out: &mut Output) {
        let Some(mut log) = self.logs[id.0 as usize].take() else { return };
        self.vacant.push(id);
        self.regions -= u64::from(log.regions());
        log.turn_away(out);
        if let Some(ids) = self.by_luid.get_mut(&log.luid) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_luid.remove(&log.luid);
            }
        }
        if let Some(ids) = self.by_uuid.get_mut(&log.uuid) {
            ids.retain(|&other| other != id);
            if ids.is_empty() {
                self.by_uuid.remove(&log.uuid);
            }
        }
        if let Some(session) = log.session {
            out.saves.push(Save::Remove { session });
        }
        if let Some(store) = log.store {
            self.by_store.remove(&store);
            if log.job {
                self.closing.insert(store, log.opened.map(|opened| opened.file));
            } else {
                out.jobs.push(Job { store, what: JobKind::Close });
            }
        }
    }
}

impl Log {
    /// Answers all who wait: the log is gone.
    pub(super) fn turn_away(&mut self, out: &mut Output) {
        let askers = mem::take(&mut self.asked).into_iter().chain(mem::take(&mut self.flushes));
        for asker in askers.chain(self.writing.take().into_iter().flatten()) {
            out.answer(asker, self.name(), &Reply::Failed(ESRCH));
        }
        for (client, bytes) in self.take_held() {
            let (frame, _) = Frame::parse(&bytes).expect("it was parsed when it came");
            out.answer(Asker::of(client, &frame), frame.name(), &Reply::Failed(ESRCH));
        }
    }
}
