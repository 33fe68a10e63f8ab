//! Requests: which log they are for, and the answers that follow from a log's bits.

use mirrord_raid::Region;

use super::{Asker, Book, ClientId, Errno, Life, Log, LogId, LogServer, MAX_HELD, MAX_HELD_BYTES, Output};
use crate::errno::{EINVAL, ENOBUFS, ENOSYS, EPROTONOSUPPORT, ESRCH};
use crate::log::SyncMode;
use crate::wire::{Frame, LogName, Regions, Reply, Request, RequestError, VERSION};

impl LogServer {
    /// A request of a client. Its answer may come with a later call; none comes to a client that is gone, nor to what the
    /// kernel asked so long ago that it has asked again thousands of times.
    pub fn request(&mut self, client: ClientId, frame: &Frame<'_>, out: &mut Output) {
        self.ask(client, frame, out);
        self.let_go_on(out);
    }

    fn ask(&mut self, client: ClientId, frame: &Frame<'_>, out: &mut Output) {
        let (asker, name) = (Asker::of(client, frame), frame.name());
        let fail = |out: &mut Output, errno| out.answer(asker, name, &Reply::Failed(errno));
        if !(1..=VERSION).contains(&frame.version()) {
            return fail(out, EPROTONOSUPPORT);
        }
        let request = match frame.request() {
            Ok(request) => request,
            Err(RequestError::Unknown { .. }) => return fail(out, ENOSYS),
            Err(RequestError::Length { .. }) => return fail(out, EINVAL),
        };
        let Some(id) = self.find(client, name) else {
            return match request {
                Request::Ctr { text, again } if !name.uuid.is_empty() => {
                    self.construct(asker, name, text, again, out);
                }
                Request::Ctr { .. } => fail(out, EINVAL),
                Request::Dtr => self.gone(asker, name, out),
                _ => fail(out, ESRCH),
            };
        };
        let log = self.log(id);
        log.heard = true;
        if log.client != client {
            if !matches!(request, Request::Ctr { .. }) {
                // What its owner sent on a connection that is lost may come late, behind what came on the next.
                return fail(out, ESRCH);
            }
            log.attach(client);
        }
        if log.has_closed_file() {
            if matches!(request, Request::Dtr) {
                return self.destroy(id, asker, out);
            }
            (log.life, log.reopened) = (Life::Opening, Some(Life::Pending));
        }
        let proves_use = log.life == Life::Returned && request.is_about_regions();
        if log.life.is_busy() || proves_use {
            if !log.hold(client, frame) {
                return fail(out, ENOBUFS);
            }
            return if proves_use { self.try_to_use(id, out) } else { self.reopen(id, out) };
        }
        if log.life.is_live() && request.is_about_regions() && std::mem::take(&mut log.unsure) {
            log.doubt(&request, out);
        }
        match request {
            Request::Ctr { text, again } => self.construct_again(id, asker, text, again, out),
            Request::Dtr => self.destroy(id, asker, out),
            Request::Presuspend => self.presuspend(id, asker, out),
            Request::Postsuspend => self.postsuspend(id, asker, out),
            Request::Resume => self.resume(id, asker, out),
            Request::Flush(marks) => self.flush(id, asker, marks, out),
            request => {
                let log = self.log(id);
                let mut text = String::new();
                let reply = log.reply(&request, &mut text, out).unwrap_or_else(Reply::Failed);
                out.answer(asker, name, &reply);
            }
        }
    }

    /// Requests that logs held while they were busy, or while another was in use.
    pub(super) fn let_go_on(&mut self, out: &mut Output) {
        loop {
            for id in std::mem::take(&mut self.waiting) {
                let log = self.logs[id.0 as usize].as_deref();
                if log.is_some_and(|log| log.life == Life::Returned && !log.held.is_empty()) {
                    self.try_to_use(id, out);
                }
            }
            let mut held = std::mem::take(&mut self.orphans);
            while let Some(id) = self.unheld.pop() {
                if let Some(log) = self.logs[id.0 as usize].as_deref_mut() {
                    held.append(&mut log.take_held());
                }
            }
            if held.is_empty() {
                return;
            }
            for (client, bytes) in held {
                let (frame, _) = Frame::parse(&bytes).expect("it was parsed when it came");
                self.ask(client, &frame, out);
            }
        }
    }

    /// The log that a client calls so: the kernel's are never a volume's.
    pub(super) fn find(&self, client: ClientId, name: LogName<'_>) -> Option<LogId> {
        let is_it = |log: &Log| *log.uuid == *name.uuid && log.by_kernel() == client.is_kernel();
        let mut ids = self.by_luid.get(&name.luid)?.iter().copied();
        ids.find(|&id| self.logs[id.0 as usize].as_deref().is_some_and(is_it))
    }

    pub(super) fn log(&mut self, id: LogId) -> &mut Log {
        self.logs[id.0 as usize].as_deref_mut().expect("the log is there")
    }
}

fn frame_bytes(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = frame.header_bytes().to_vec();
    bytes.extend_from_slice(frame.data());
    bytes
}

impl Log {
    /// Its owner is back on another connection: what came on the old one counts no more.
    fn attach(&mut self, client: ClientId) {
        self.client = client;
        self.gone_since = None;
        self.forget_askers();
    }

    /// Nobody is there any more who could be answered.
    pub(super) fn forget_askers(&mut self) {
        self.take_held();
        self.flushes.clear();
        self.asked.clear();
        if let Some(askers) = &mut self.writing {
            askers.clear();
        }
    }

    /// Keeps a request for later, unless there are too many.
    fn hold(&mut self, client: ClientId, frame: &Frame<'_>) -> bool {
        let bytes = frame_bytes(frame);
        if self.held.len() >= MAX_HELD || self.held_bytes + bytes.len() > MAX_HELD_BYTES {
            if !client.is_kernel() {
                return false;
            }
            // It asked again long ago, and waits for that answer. An error it would take for one: that a region is not in
            // sync.
            let (_, oldest) = self.held.remove(0);
            self.held_bytes -= oldest.len();
        }
        self.held_bytes += bytes.len();
        self.held.push((client, bytes));
        true
    }

    /// The first request about regions of a log that nothing was known of. The kernel's mirror asks one after the other,
    /// marks last before the flush: if it begins with one of these, others may have been told to a server that is gone,
    /// and any region may be about to be written to.
    fn doubt(&mut self, request: &Request<'_>, out: &mut Output) {
        let is_late = match request {
            Request::MarkRegion(_) => true,
            Request::Flush(marks) => marks.is_empty(),
            _ => false,
        };
        if is_late {
            for region in (0..self.regions()).map(Region) {
                self.book.log_mut().mark(region);
                self.save_clean(region, out);
            }
        }
    }

    pub(super) fn take_held(&mut self) -> Vec<(ClientId, Vec<u8>)> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held)
    }

    /// What is asked about regions while the log is not in use: the kernel then constructs and resumes it anew.
    fn not_live(&self) -> Errno {
        if self.by_kernel() { ESRCH } else { EINVAL }
    }

    fn region(&self, number: u64) -> Result<Region, Errno> {
        if !self.life.is_live() {
            return Err(self.not_live());
        }
        if number < u64::from(self.regions()) { Ok(Region(number as u32)) } else { Err(EINVAL) }
    }

    fn reply<'a>(
        &mut self,
        request: &Request<'_>,
        text: &'a mut String,
        out: &mut Output,
    ) -> Result<Reply<'a>, Errno> {
        Ok(match *request {
            Request::GetRegionSize => Reply::Count(self.region_sectors()),
            Request::GetSyncCount => Reply::Count(self.sync_count()),
            Request::IsClean(region) => Reply::Is(self.book.log().is_clean(self.region(region)?)),
            Request::InSync(region) => Reply::Is(self.book.log().in_sync(self.region(region)?)),
            Request::MarkRegion(regions) => {
                self.mark(regions, out)?;
                Reply::Done
            }
            Request::ClearRegion(regions) => {
                for region in regions.iter() {
                    self.region(region)?;
                }
                for region in regions.iter() {
                    let region = self.region(region)?;
                    let is_out_of_sync = !self.book.log().in_sync(region);
                    if is_out_of_sync && self.by_kernel() && self.again {
                        // It was marked before this log was constructed anew without notes: the kernel writes to one
                        // leg now, and the next resume has to resync it.
                        continue;
                    }
                    if !self.book.log().is_clean(region) {
                        self.book.log_mut().clear(region);
                        self.save_clean(region, out);
                    }
                }
                Reply::Done
            }
            Request::GetResyncWork => {
                if !self.life.is_live() {
                    return Err(self.not_live());
                }
                Reply::Work(self.resync_work())
            }
            Request::SetRegionSync { region, in_sync } => {
                let region = self.region(region)?;
                if self.work == Some(region) {
                    self.work = None;
                }
                let before = self.book.log().in_sync(region);
                self.book.log_mut().set_region_sync(region, in_sync);
                if before != in_sync {
                    self.save_sync(region, out);
                }
                Reply::Done
            }
            Request::IsRemoteRecovering(region) => {
                self.region(region)?;
                // No other machine resyncs it: a write never has to wait. All in sync is said only when it is, or the
                // kernel would not ask for work again.
                let regions = u64::from(self.regions());
                let is_in_sync = self.book.log().sync_count() == regions;
                Reply::RemoteRecovering {
                    is_recovering: false,
                    in_sync_hint: if is_in_sync { regions } else { regions - 1 },
                }
            }
            Request::StatusInfo => {
                *text = self.status_text();
                Reply::Text(text)
            }
            Request::StatusTable => {
                let words: Vec<&str> = self.text.split_ascii_whitespace().skip(2).collect();
                *text = format!("{} {} {} ", self.kind_word(), words.len(), words.join(" "));
                Reply::Text(text)
            }
            Request::Ctr { .. }
            | Request::Dtr
            | Request::Presuspend
            | Request::Postsuspend
            | Request::Resume
            | Request::Flush(_) => unreachable!("these change the log's life"),
        })
    }

    /// Sets marks, all or none.
    pub(super) fn mark(&mut self, regions: Regions<'_>, out: &mut Output) -> Result<(), Errno> {
        for region in regions.iter() {
            self.region(region)?;
        }
        for region in regions.iter() {
            let region = self.region(region)?;
            if self.book.log().is_clean(region) {
                self.book.log_mut().mark(region);
                self.save_clean(region, out);
            }
        }
        Ok(())
    }

    /// The kernel resyncs one region at a time: if it asks again before it said how that went, it did not hear the
    /// answer.
    fn resync_work(&mut self) -> Option<Region> {
        if self.by_kernel() && self.work.is_some() {
            return self.work;
        }
        self.work = self.book.log_mut().get_resync_work();
        self.work
    }

    /// A log on disk that was not read yet is out of sync, unless it is said to be in sync.
    fn sync_count(&self) -> u64 {
        match (&self.book, self.life) {
            (Book::Disk(_), Life::Pending | Life::Opening)
                if matches!(self.reopened, None | Some(Life::Pending)) =>
            {
                if self.mode == SyncMode::NoSync {
                    u64::from(self.regions())
                } else {
                    0
                }
            }
            _ => self.book.log().sync_count(),
        }
    }

    /// As in `dmsetup status`: the number of words, the kind, and of a log on disk its device and whether it lives.
    fn status_text(&self) -> String {
        match &self.book {
            Book::Core(_) => format!("1 {}", self.kind_word()),
            Book::Disk(_) => {
                let number = self.opened.as_ref().and_then(|opened| opened.number.as_deref());
                let device = number.or(self.text.split_ascii_whitespace().nth(2)).unwrap_or("");
                let is_failed = self.failed.or(self.device_failed).is_some();
                let health = if is_failed { 'D' } else { 'A' };
                format!("3 {} {device} {health}", self.kind_word())
            }
        }
    }
}
