//! How a log comes, is used, is passed on and goes.

use std::mem;

use mirrord_raid::SECTOR;

use super::errno::{EBUSY, EINVAL, ENOMEM, ESRCH, ESTALE};
use super::{
    Asker, Book, ClientId, CoreLog, DiskLog, Errno, Job, JobKind, Life, Log, LogId, LogServer, OpenedStore,
    Output, PENDING_TICKS, StoreId,
};
use crate::disk::LogOwner;
use crate::log::{DirtyLog, SyncMode};
use crate::wire::{Frame, LogName, Reply, TableArgs, TableKind};

impl LogServer {
    // ---- CTR

    /// Constructs a log that is not there.
    pub(super) fn construct(
        &mut self,
        asker: Asker,
        name: LogName<'_>,
        text: &[u8],
        again: bool,
        out: &mut Output,
    ) {
        let fail = |out: &mut Output, errno| out.answer(asker, name, &Reply::Failed(errno));
        let Ok(args) = TableArgs::parse(text) else { return fail(out, EINVAL) };
        let (regions, region_size) = (args.regions(), args.region_sectors * SECTOR);
        let mode = first_mode(&args, again);
        let room = self.config.max_regions.saturating_sub(self.regions) >= u64::from(regions);
        if self.logs.len() - self.vacant.len() >= self.config.max_logs || !room {
            return fail(out, ENOMEM);
        }
        if again && asker.client.is_kernel() && self.is_used_by_another(name) {
            // Two mirrors have one uuid. The kernel tries again until the other one is gone.
            return fail(out, EBUSY);
        }
        let (book, life) = match args.kind {
            TableKind::Core => (Book::Core(CoreLog::new(region_size, regions, mode)), Life::Pending),
            // The block size is known once it is open.
            TableKind::Disk { .. } => {
                (Book::Disk(DiskLog::new(region_size, regions, SECTOR as u32, mode)), Life::Opening)
            }
        };
        let log = Log {
            uuid: name.uuid.into(),
            luid: name.luid,
            client: asker.client,
            gone_since: None,
            text: String::from_utf8_lossy(text).into(),
            mode,
            take_over: args.take_over,
            life,
            since: self.now,
            heard: true,
            book,
            store: None,
            opened: None,
            failed: None,
            writing: None,
            flushes: Vec::new(),
            asked: Vec::new(),
            held: Vec::new(),
            job: false,
            reopened: None,
            again,
            ending: false,
            work: None,
            session: None,
        };
        let id = self.add(log);
        match args.kind {
            TableKind::Core => {
                self.save(id, out);
                out.answer(asker, name, &Reply::Done);
            }
            TableKind::Disk { device } => {
                self.log(id).asked.push(asker);
                self.open(id, device, out);
            }
        }
    }

    /// CTR of a log that is there: it was not heard, or its user lost this server or the connection to it.
    pub(super) fn construct_again(
        &mut self,
        id: LogId,
        asker: Asker,
        text: &[u8],
        again: bool,
        out: &mut Output,
    ) {
        let log = self.log(id);
        let is_same = log.text.as_bytes() == text;
        if !again && (!is_same || log.life != Life::Pending) {
            // Another table, to which the kernel gave the same number: nobody said that the first one is gone.
            let (uuid, luid) = (log.uuid.clone(), log.luid);
            self.remove(id, out);
            return self.construct(asker, LogName { uuid: &uuid, luid }, text, again, out);
        }
        let (is_live, by_kernel, name) = (log.life.is_live(), log.by_kernel(), log.name());
        if !is_same {
            return out.answer(asker, name, &Reply::Failed(EINVAL));
        }
        let (uuid, luid) = (log.uuid.clone(), log.luid);
        let name = LogName { uuid: &uuid, luid };
        if by_kernel && !is_live && self.is_used_by_another(name) {
            return out.answer(asker, name, &Reply::Failed(EBUSY));
        }
        let log = self.log(id);
        log.again |= again;
        log.answer_construction(asker, out);
    }

    fn open(&mut self, id: LogId, device: &str, out: &mut Output) {
        let store = StoreId(self.next_store);
        self.next_store += 1;
        self.by_store.insert(store, id);
        let log = self.log(id);
        log.store = Some(store);
        log.job = true;
        let (by_kernel, regions) = (log.by_kernel(), log.regions());
        let device = device.to_owned();
        out.jobs.push(Job { store, what: JobKind::Open { device, by_kernel, regions } });
    }

    /// Opens the file of a log that was restored, unless that is under way.
    pub(super) fn reopen(&mut self, id: LogId, out: &mut Output) {
        let log = self.log(id);
        if log.life == Life::Opening && log.store.is_none() {
            let device = log.text.split_ascii_whitespace().nth(2).unwrap_or("").to_owned();
            self.open(id, &device, out);
        }
    }

    pub(super) fn opened(&mut self, id: LogId, result: Result<OpenedStore, Errno>, out: &mut Output) {
        let is_open = result.is_ok();
        let result = result.and_then(|opened| self.check_store(id, opened));
        let log = self.log(id);
        match result {
            Ok(opened) => {
                let mode = log.mode;
                if let (Book::Disk(book), None) = (&mut log.book, log.reopened) {
                    *book = DiskLog::new(book.region_size(), book.regions(), opened.block_size, mode);
                }
                log.opened = Some(opened);
                log.life = log.reopened.take().unwrap_or(Life::Pending);
                for asker in mem::take(&mut log.asked) {
                    log.answer_construction(asker, out);
                }
                self.unheld.push(id);
                self.save(id, out);
            }
            Err(errno) => {
                if let (true, Some(store)) = (is_open, log.store) {
                    out.jobs.push(Job { store, what: JobKind::Close });
                }
                let store = log.store.take();
                for asker in mem::take(&mut log.asked) {
                    out.answer(asker, log.name(), &Reply::Failed(errno));
                }
                log.turn_away(out);
                // Of a log that was restored: tried again as long as somebody asks.
                let is_restored = log.reopened.is_some();
                if let Some(store) = store {
                    self.by_store.remove(&store);
                }
                if !is_restored {
                    self.remove(id, out);
                }
            }
        }
    }

    /// Whether a log can be in this file.
    fn check_store(&mut self, id: LogId, opened: OpenedStore) -> Result<OpenedStore, Errno> {
        let block = opened.block_size;
        if !block.is_power_of_two() || !(SECTOR..=65536).contains(&u64::from(block)) {
            return Err(EINVAL);
        }
        let log = self.log(id);
        if let (Some(_), Book::Disk(book)) = (log.reopened, &log.book)
            && book.block_size() != block
        {
            return Err(EINVAL);
        }
        if opened.len < DiskLog::len_of(log.regions(), block) {
            return Err(Errno::ENOSPC);
        }
        let uuid = log.uuid.clone();
        let same_file = |log: &Log| log.opened.as_ref().is_some_and(|other| other.file == opened.file);
        // Of a log that was dropped with a job under way, whatever its uuid: it may still write.
        let is_busy = self.closing.values().any(|file| *file == Some(opened.file));
        let is_taken = is_busy || self.logs.iter().flatten().any(|log| log.uuid != uuid && same_file(log));
        if is_taken { Err(EBUSY) } else { Ok(opened) }
    }

    // ---- RESUME

    pub(super) fn resume(&mut self, id: LogId, asker: Asker, out: &mut Output) {
        let log = self.log(id);
        match log.life {
            Life::Live | Life::Suspending => {
                log.life = Life::Live;
                if !log.by_kernel() {
                    // It reads the log anew. The kernel has a region under way and is not to be given it again.
                    log.book.log_mut().maps_mut().restart();
                }
                let name = log.name();
                out.answer(asker, name, &Reply::Done);
                return self.save_life(id, out);
            }
            _ => {}
        }
        if let Err(errno) = self.supersede_others(id, out) {
            let log = self.log(id);
            return out.answer(asker, log.name(), &Reply::Failed(errno));
        }
        let log = self.log(id);
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

    /// Whether another log of the same uuid is in use by the kernel, which said so since this server is here.
    fn is_used_by_another(&self, name: LogName<'_>) -> bool {
        let others = self.by_uuid.get(name.uuid).into_iter().flatten();
        others.filter_map(|id| self.logs[id.0 as usize].as_deref()).any(|log| {
            log.luid != name.luid && log.heard && (log.life == Life::Live || log.life == Life::Resuming)
        })
    }

    /// Takes the log of the same uuid out of use that was in use before, if it may be.
    fn supersede_others(&mut self, id: LogId, out: &mut Output) -> Result<(), Errno> {
        let (now, lease) = (self.now, self.config.lease);
        let log = self.log(id);
        // Who took it over once and comes back does not do so again: meanwhile it may have been taken from him.
        let take_over = log.take_over && !log.again;
        let (uuid, by_kernel) = (log.uuid.clone(), log.by_kernel());
        let others: Vec<LogId> = self.by_uuid[&uuid].iter().copied().filter(|&other| other != id).collect();
        for &other in &others {
            let other = self.log(other);
            let may_go = match other.life {
                // What is on its way to the file would land on what is written next.
                _ if other.job => false,
                Life::Opening | Life::Pending | Life::Suspended => true,
                Life::Resuming | Life::Closing => false,
                // The suspend may have been said while no server was there.
                Life::Live | Life::Suspending if other.by_kernel() => {
                    by_kernel && (other.life == Life::Suspending || !other.heard)
                }
                Life::Live | Life::Suspending => {
                    take_over && !by_kernel || other.gone_since.is_some_and(|since| now - since >= lease)
                }
            };
            if !may_go {
                return Err(EBUSY);
            }
        }
        for other in others {
            let log = self.log(other);
            match log.life {
                Life::Live | Life::Suspending if log.by_kernel() => {
                    log.life = Life::Suspended;
                    self.save_life(other, out);
                }
                Life::Live | Life::Suspending => self.remove(other, out),
                _ => {}
            }
        }
        Ok(())
    }

    // ---- suspend and the end

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
            out.saves.push(super::Save::Remove { session });
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

/// What is known of the legs beside the log. Who constructs a log again has written since: what his table says of the
/// legs was true when it was loaded.
pub(super) fn first_mode(args: &TableArgs<'_>, again: bool) -> SyncMode {
    if again { SyncMode::Default } else { args.mode }
}

impl Log {
    /// Answers all who wait: the log is gone.
    fn turn_away(&mut self, out: &mut Output) {
        let askers = mem::take(&mut self.asked).into_iter().chain(mem::take(&mut self.flushes));
        for asker in askers.chain(self.writing.take().into_iter().flatten()) {
            out.answer(asker, self.name(), &Reply::Failed(ESRCH));
        }
        for (client, bytes) in mem::take(&mut self.held) {
            let (frame, _) = Frame::parse(&bytes).expect("it was parsed when it came");
            out.answer(Asker::of(client, &frame), frame.name(), &Reply::Failed(ESRCH));
        }
    }

    fn answer_construction(&self, asker: Asker, out: &mut Output) {
        // The kernel has no room for an answer when it constructs a log again.
        let number = self.opened.as_ref().and_then(|opened| opened.number.as_deref());
        let reply = match number {
            Some(number) if !self.again && self.by_kernel() && asker.version >= 2 => Reply::Device(number),
            _ => Reply::Done,
        };
        out.answer(asker, self.name(), &reply);
    }
}
