//! How a log is suspended and goes.

use std::mem;

use super::{
    Asker, Book, ClientId, Closing, Errno, Job, JobKind, Life, Log, LogId, LogServer, Output, PENDING_TICKS,
    Save, StoreId,
};
use crate::disk::LogOwner;
use crate::errno::ESRCH;
use crate::log::SyncMode;
use crate::wire::{Frame, LogName, Reply};

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
        if log.life == Life::Returned {
            (log.life, log.returning) = (Life::Suspended, false);
            self.unheld.push(id);
            self.save_life(id, out);
        }
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
        for asker in mem::take(&mut log.flushes) {
            out.answer(asker, log.name(), &reply);
        }
        if log.ending {
            // What was asked meanwhile is asked again of nobody.
            let held = log.take_held();
            let askers = mem::take(&mut log.asked);
            self.orphans.extend(held);
            return self.remove_for(id, askers, out);
        }
        for asker in mem::take(&mut log.asked) {
            out.answer(asker, log.name(), &reply);
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
        self.remove_for(id, vec![asker], out);
    }

    /// DTR of a log that is not there: the last answer was lost, or its file is being closed.
    pub(super) fn gone(&mut self, asker: Asker, name: LogName<'_>, out: &mut Output) {
        let by_kernel = asker.client.is_kernel();
        let is_it = |closing: &&mut Closing| {
            *closing.uuid == *name.uuid && closing.luid == name.luid && closing.by_kernel == by_kernel
        };
        match self.closing.values_mut().find(is_it) {
            Some(closing) => closing.askers.push(asker),
            None => out.answer(asker, name, &Reply::Done),
        }
    }

    /// Drops a log, and answers DTR once its file is closed.
    fn remove_for(&mut self, id: LogId, askers: Vec<Asker>, out: &mut Output) {
        let log = self.log(id);
        let (uuid, luid) = (log.uuid.clone(), log.luid);
        self.remove(id, out);
        for asker in askers {
            self.gone(asker, LogName { uuid: &uuid, luid }, out);
        }
    }

    /// The file of a log that is gone is closed.
    pub(super) fn closed(&mut self, store: StoreId, out: &mut Output) {
        let Some(closing) = self.closing.remove(&store) else { return };
        let name = LogName { uuid: &closing.uuid, luid: closing.luid };
        for &asker in &closing.askers {
            out.answer(asker, name, &Reply::Done);
        }
    }

    /// Drops a log, whatever it is doing, on somebody's word: a mirror that uses it is left without one. Whether there was one.
    pub fn forget(&mut self, id: LogId, out: &mut Output) -> bool {
        let is_there = self.logs.get(id.0 as usize).is_some_and(Option::is_some);
        if is_there {
            self.remove(id, out);
            self.let_go_on(out);
        }
        is_there
    }

    /// The connection of a client is gone.
    pub fn client_gone(&mut self, client: ClientId, out: &mut Output) {
        self.peers.remove(&client);
        for closing in self.closing.values_mut() {
            closing.askers.retain(|asker| asker.client != client);
        }
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
            let id = LogId(at as u32);
            let is_old = now - log.since >= PENDING_TICKS;
            let is_over = match log.life {
                Life::Pending if log.by_kernel() && log.mode != SyncMode::Default => {
                    // What its table says of the legs must not be lost.
                    if is_old {
                        self.close_file(id, out);
                    }
                    false
                }
                Life::Pending if log.by_kernel() => is_old,
                Life::Returned => is_old && log.held.is_empty() && !log.job,
                life if life.is_busy() || log.job => false,
                _ => log.gone_since.is_some_and(|since| now - since >= lease),
            };
            if is_over {
                self.remove(id, out);
            }
        }
    }

    /// Takes a log's file away, which is closed as soon as it has no job.
    fn close_file(&mut self, id: LogId, out: &mut Output) {
        let log = self.log(id);
        let Some(store) = log.store.take() else { return };
        let (uuid, luid, by_kernel, works) = (log.uuid.clone(), log.luid, log.by_kernel(), log.job);
        let file = log.opened.take().map(|opened| opened.file);
        if !works {
            out.jobs.push(Job { store, what: JobKind::Close });
        }
        self.by_store.remove(&store);
        self.closing.insert(store, Closing { uuid, luid, by_kernel, file, works, askers: Vec::new() });
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
        if self.logs[id.0 as usize].is_some() {
            self.close_file(id, out);
        }
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
    }
}

impl Log {
    /// It is on disk, and its file was closed because the log was idle for too long.
    pub(super) fn has_closed_file(&self) -> bool {
        self.life == Life::Pending && self.store.is_none() && matches!(self.book, Book::Disk(_))
    }

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
