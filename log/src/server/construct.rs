//! How a log comes: CTR, and its file.

use std::mem;

use mirrord_raid::SECTOR;

use super::{
    Asker, Book, ClientId, CoreLog, DiskLog, Errno, Job, JobKind, Life, Log, LogId, LogServer, OpenedStore,
    Output, Refusal, StoreId,
};
use crate::errno::{EBUSY, EINVAL, ENOMEM, EPERM};
use crate::log::{DirtyLog, SyncMode};
use crate::wire::{Frame, LogName, Reply, Request, TableArgs, TableKind};

impl LogServer {
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
        let by_kernel = asker.client.is_kernel();
        let mut args = match TableArgs::parse(text) {
            Ok(args) => args,
            Err(error) => {
                self.refuse(name, error.into(), out);
                return fail(out, EINVAL);
            }
        };
        if let (Some(kind), true) = (args.clustered, by_kernel && !self.config.single_host) {
            self.refuse(name, Refusal::Clustered { kind: kind.to_owned() }, out);
            return fail(out, EPERM);
        }
        if again {
            // What is known of the legs was said long ago. Nor does anybody take over what he had.
            args.mode = SyncMode::Default;
            args.take_over = false;
            args.last = None;
        }
        if args.last.is_some() && args.mode == SyncMode::Default {
            args.mode = SyncMode::Sync;
        }
        let (regions, region_size) = (args.regions(), args.region_sectors * SECTOR);
        if !self.make_room(regions, out) {
            self.refuse(name, Refusal::Full { regions }, out);
            return fail(out, ENOMEM);
        }
        let (book, life) = match args.kind {
            TableKind::Core => (Book::Core(CoreLog::new(region_size, regions, args.mode)), Life::Pending),
            // The block size is known once it is open.
            TableKind::Disk { .. } => {
                (Book::Disk(DiskLog::new(region_size, regions, SECTOR as u32, args.mode)), Life::Opening)
            }
        };
        let log = Log {
            take_over: args.take_over,
            last: args.last,
            since: self.now,
            again,
            returning: again && by_kernel,
            unsure: again && by_kernel,
            ..Log::new(name, asker.client, text, args.mode, life, book)
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

    /// Whether there is room for one more log, of so many regions. Idle logs go first.
    fn make_room(&mut self, regions: u32, out: &mut Output) -> bool {
        loop {
            let has_room = self.config.max_regions.saturating_sub(self.regions) >= u64::from(regions);
            if has_room && self.logs.len() - self.vacant.len() < self.config.max_logs {
                return true;
            }
            let idle = |(at, log): (usize, &Option<Box<Log>>)| {
                let log = log.as_deref().filter(|log| log.has_closed_file())?;
                Some((log.since, LogId(at as u32)))
            };
            let Some((_, oldest)) = self.logs.iter().enumerate().filter_map(idle).min_by_key(|idle| idle.0)
            else {
                return false;
            };
            self.remove(oldest, out);
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
        if !is_same {
            return out.answer(asker, log.name(), &Reply::Failed(EINVAL));
        }
        log.again |= again;
        log.returning = again && log.by_kernel();
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
        let again = by_kernel && (log.again || log.reopened.is_some());
        let device = device.to_owned();
        out.jobs.push(Job { store, what: JobKind::Open { device, by_kernel, regions, again } });
    }

    /// Opens the file of a log that was restored, or that closed it, unless that is under way.
    pub(super) fn reopen(&mut self, id: LogId, out: &mut Output) {
        let log = self.log(id);
        if log.life == Life::Opening && log.store.is_none() {
            let device = log.text.split_ascii_whitespace().nth(2).unwrap_or("").to_owned();
            self.open(id, &device, out);
        }
    }

    pub(super) fn opened(&mut self, id: LogId, result: Result<OpenedStore, Errno>, out: &mut Output) {
        let (is_open, now) = (result.is_ok(), self.now);
        let result = result.and_then(|opened| self.check_store(id, opened));
        let log = self.log(id);
        match result {
            Ok(opened) => {
                let mode = log.mode;
                if let (Book::Disk(book), None | Some(Life::Pending)) = (&mut log.book, log.reopened) {
                    *book = DiskLog::new(book.region_size(), book.regions(), opened.block_size, mode);
                }
                log.opened = Some(opened);
                log.life = log.reopened.take().unwrap_or(Life::Pending);
                log.since = now;
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
                // A log that existed before is tried again while requests for it wait and none of them removes it.
                let is_over = |(_, bytes): &(ClientId, Vec<u8>)| {
                    let frame = Frame::parse(bytes).map(|(frame, _)| frame.request());
                    matches!(frame, Ok(Ok(Request::Dtr)))
                };
                let goes = log.reopened.is_none() || log.held.iter().any(is_over);
                if goes {
                    let held = log.take_held();
                    self.orphans.extend(held);
                } else {
                    log.turn_away(out);
                }
                if let Some(store) = store {
                    self.by_store.remove(&store);
                }
                if goes {
                    self.remove(id, out);
                }
            }
        }
    }

    /// Whether a log can be in this file.
    fn check_store(&mut self, id: LogId, opened: OpenedStore) -> Result<OpenedStore, Errno> {
        let block = opened.block_size;
        if !is_block_size(block) {
            return Err(EINVAL);
        }
        let log = self.log(id);
        if let (Some(life), Book::Disk(book)) = (log.reopened, &log.book)
            && life != Life::Pending
            && book.block_size() != block
        {
            return Err(EINVAL);
        }
        if opened.len < DiskLog::len_of(log.regions(), block) {
            return Err(Errno::ENOSPC);
        }
        let (uuid, by_kernel) = (log.uuid.clone(), log.by_kernel());
        let is_other = |log: &Log| log.uuid != uuid || log.by_kernel() != by_kernel;
        let same_file = |log: &Log| log.opened.as_ref().is_some_and(|other| other.file == opened.file);
        let is_taken = self.logs.iter().flatten().any(|log| is_other(log) && same_file(log));
        if is_taken || self.is_written_by_a_dropped_one(&opened) { Err(EBUSY) } else { Ok(opened) }
    }

    /// Whether a log was dropped with a job under way on this file, whatever its uuid: it may still write.
    pub(super) fn is_written_by_a_dropped_one(&self, opened: &OpenedStore) -> bool {
        self.closing.values().any(|closing| closing.works && closing.file == Some(opened.file))
    }
}

/// Whether logs are kept on devices with such blocks, in bytes.
pub(super) fn is_block_size(block: u32) -> bool {
    block.is_power_of_two() && (SECTOR..=65536).contains(&u64::from(block))
}

impl Log {
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
