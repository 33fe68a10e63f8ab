//! Anything at all, made of bytes: requests of several clients about a few logs, whole messages of nonsense, jobs that
//! end well, badly or never and in any order, clients that go, time that passes, and kills.
//!
//! The same for proptest and for the fuzzer. Checked all the while: nothing panics, no request is answered twice, files
//! have one job at a time and none once they are closed, writes are whole blocks within the file, notes can be restored
//! at any moment, and there are no more logs and regions than the limits say.

use std::collections::{BTreeMap, BTreeSet};

use mirrord_log::server::{
    ClientId, Job, JobDone, JobKind, Life, LogServer, LogSummary, OpenedStore, Output, Save, ServerConfig,
    SessionId, StoreId,
};
use mirrord_log::wire::{Frame, LogName, Regions, Request, RequestType, encode_request};
use mirrord_raid::Errno;
use zerocopy::little_endian::U64;

const TEXTS: &[&str] = &[
    "64 core 2",
    "64 core 2 nosync",
    "64 disk a 2",
    "64 disk a 2 sync",
    "64 disk b 2 nosync take_over",
    "8400 clustered-disk a 2",
    "600 clustered-core 2 block_on_error",
    "2 disk c 2",
    "64 disk",
    "64 core 3",
];

const CONFIG: ServerConfig = ServerConfig { lease: 3, max_logs: 5, max_regions: 6000, single_host: true };

/// Bytes, as they are needed.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn below(&mut self, end: u8) -> Option<u8> {
        Some(self.byte()? % end)
    }

    fn some(&mut self, len: usize) -> &'a [u8] {
        let (some, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        some
    }
}

#[derive(Default)]
struct World {
    server: LogServer,
    out: Output,
    jobs: BTreeMap<StoreId, Job>,
    open: BTreeMap<StoreId, (u32, u64)>,
    /// Files that were read or written last, by what they are.
    images: BTreeMap<StoreId, Vec<u8>>,
    saves: BTreeMap<SessionId, Vec<u8>>,
    asked: BTreeSet<(ClientId, u32)>,
    seq: u32,
}

/// Lives through what `bytes` say. How many requests were answered.
pub(crate) fn run(bytes: &[u8]) -> usize {
    let mut world = World { server: LogServer::new(CONFIG), ..World::default() };
    let mut source = Source(bytes);
    let mut answered = 0;
    while let Some(op) = source.byte() {
        let done = match op % 16 {
            0..=8 => world.request(&mut source),
            9..=12 => world.end_job(&mut source),
            13 => world.nonsense(&mut source),
            14 => world.happen(&mut source),
            _ => world.restart(&mut source),
        };
        if done.is_none() {
            break;
        }
        answered += world.take_out();
        world.check();
    }
    answered
}

impl World {
    fn request(&mut self, source: &mut Source<'_>) -> Option<()> {
        let who = source.byte()?;
        let client = ClientId(u64::from(who & 3));
        let name =
            LogName { uuid: [&b"u"[..], b"v"][usize::from(who >> 2 & 1)], luid: u64::from(who >> 3 & 3) };
        let mut numbers = [U64::new(0); 3];
        let kind = RequestType::ALL[usize::from(source.below(17)?)];
        let number = |source: &mut Source<'_>| Some(u64::from(source.byte()?) * 40 / 37);
        let request = match kind {
            RequestType::Ctr => {
                let which = source.byte()?;
                let text = TEXTS[usize::from(which & 0x7f) % TEXTS.len()];
                Request::Ctr { text: text.as_bytes(), again: which & 0x80 != 0 }
            }
            RequestType::Dtr => Request::Dtr,
            RequestType::Presuspend => Request::Presuspend,
            RequestType::Postsuspend => Request::Postsuspend,
            RequestType::Resume => Request::Resume,
            RequestType::GetRegionSize => Request::GetRegionSize,
            RequestType::IsClean => Request::IsClean(number(source)?),
            RequestType::InSync => Request::InSync(number(source)?),
            RequestType::Flush | RequestType::MarkRegion | RequestType::ClearRegion => {
                let count = usize::from(source.below(4)?);
                for slot in &mut numbers[..count] {
                    *slot = number(source)?.into();
                }
                let regions = Regions::new(&numbers[..count]);
                match kind {
                    RequestType::Flush => Request::Flush(regions),
                    RequestType::MarkRegion => Request::MarkRegion(regions),
                    _ => Request::ClearRegion(regions),
                }
            }
            RequestType::GetResyncWork => Request::GetResyncWork,
            RequestType::SetRegionSync => {
                Request::SetRegionSync { region: number(source)?, in_sync: source.byte()? & 1 != 0 }
            }
            RequestType::GetSyncCount => Request::GetSyncCount,
            RequestType::StatusInfo => Request::StatusInfo,
            RequestType::StatusTable => Request::StatusTable,
            RequestType::IsRemoteRecovering => Request::IsRemoteRecovering(number(source)?),
        };
        let mut bytes = Vec::new();
        self.seq += 1;
        encode_request(name, self.seq, &request, &mut bytes);
        self.send(client, &bytes);
        Some(())
    }

    fn send(&mut self, client: ClientId, bytes: &[u8]) {
        let Ok((frame, len)) = Frame::parse(bytes) else { return };
        assert!(len <= bytes.len());
        self.asked.insert((client, frame.seq()));
        self.server.request(client, &frame, &mut self.out);
    }

    /// A message whose fields are anything.
    fn nonsense(&mut self, source: &mut Source<'_>) -> Option<()> {
        let client = ClientId(u64::from(source.below(4)?));
        let len = usize::from(source.byte()?);
        let mut bytes = vec![0; 160];
        self.seq += 1;
        bytes[8] = b'u';
        bytes[140..144].copy_from_slice(&3u32.to_le_bytes());
        bytes[148..152].copy_from_slice(&self.seq.to_le_bytes());
        bytes[152] = source.byte()?;
        if len & 0x80 != 0 {
            let at = usize::from(source.byte()?) % 148;
            bytes[at] = source.byte()?;
        }
        let data = source.some(len & 0x7f);
        bytes[156..160].copy_from_slice(&(data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(data);
        self.send(client, &bytes);
        Some(())
    }

    fn end_job(&mut self, source: &mut Source<'_>) -> Option<()> {
        let (which, how) = (usize::from(source.byte()?), source.byte()?);
        if self.jobs.is_empty() {
            return Some(());
        }
        let store = *self.jobs.keys().nth(which % self.jobs.len())?;
        let job = self.jobs.remove(&store)?;
        let fails = how & 7 == 0;
        let done = match job.what {
            JobKind::Open { .. } if fails => JobDone::Opened(Err(Errno(2))),
            JobKind::Open { device, regions, .. } => {
                let block_size = [512, 4096, 512, 100][usize::from(how >> 3 & 3)];
                let len = mirrord_log::DiskLog::len_of(regions, 4096) - u64::from(how >> 5 & 1) * 2048;
                self.open.insert(store, (block_size, len));
                let file = (u64::from(device.as_bytes()[0]), 0);
                let number = (how & 0x40 != 0).then(|| "7:1".to_owned());
                JobDone::Opened(Ok(OpenedStore { block_size, len, file, number }))
            }
            JobKind::Read { .. } if fails => JobDone::Read(Err(Errno(5))),
            JobKind::Read { len } => {
                let mut image = self.images.values().last().cloned().unwrap_or_default();
                image.resize(len as usize, how);
                if how & 8 != 0 {
                    image.truncate(usize::from(how) * 8);
                }
                JobDone::Read(Ok(image))
            }
            JobKind::Write { .. } if fails => JobDone::Written(Err(Errno(5))),
            JobKind::Write { writes } => {
                let image = self.images.entry(store).or_default();
                for write in writes {
                    let to = write.offset as usize + write.bytes.len();
                    image.resize(image.len().max(to), 0);
                    image[write.offset as usize..to].copy_from_slice(&write.bytes);
                }
                JobDone::Written(Ok(()))
            }
            JobKind::Close => {
                self.open.remove(&store).expect("what is closed was open");
                JobDone::Closed
            }
        };
        self.server.job_done(store, done, &mut self.out);
        Some(())
    }

    fn happen(&mut self, source: &mut Source<'_>) -> Option<()> {
        match source.below(8)? {
            0..=4 => self.server.tick(&mut self.out),
            5 | 6 => {
                let client = ClientId(1 + u64::from(source.below(3)?));
                self.server.client_gone(client, &mut self.out);
                self.asked.retain(|(asker, _)| *asker != client);
            }
            _ => {
                let which = usize::from(source.byte()?);
                let id = self.server.logs().map(|log| log.id).nth(which % 5);
                if let Some(id) = id {
                    assert!(self.server.forget(id, &mut self.out));
                }
            }
        }
        Some(())
    }

    /// The server is killed. One in four times, its notes are cut short.
    fn restart(&mut self, source: &mut Source<'_>) -> Option<()> {
        let how = source.byte()?;
        self.server = LogServer::new(CONFIG);
        self.jobs.clear();
        self.open.clear();
        self.asked.clear();
        for (session, mut bytes) in std::mem::take(&mut self.saves) {
            let is_cut = how & 3 == 0;
            if is_cut {
                bytes.truncate(bytes.len() * usize::from(how) / 256);
            }
            let restored = self.server.restore(session, &bytes, &mut self.out);
            assert_eq!(restored.is_err(), is_cut, "{session:?}");
            if !is_cut {
                self.saves.insert(session, bytes);
            }
        }
        Some(())
    }

    fn take_out(&mut self) -> usize {
        let mut out = std::mem::take(&mut self.out);
        for save in out.saves.drain(..) {
            match save {
                Save::Put { session, bytes } => {
                    self.saves.insert(session, bytes);
                }
                Save::Patch { session, offset, byte } => {
                    self.saves.get_mut(&session).expect("what is patched is there")[offset as usize] = byte;
                }
                Save::Remove { session } => {
                    self.saves.remove(&session).expect("what is removed is there");
                }
            }
        }
        let mut answered = 0;
        for (client, seq, bytes) in out.answers() {
            let (frame, len) = Frame::parse(bytes).expect("an answer is a message");
            assert_eq!((len, frame.seq()), (bytes.len(), seq));
            assert!(frame.error() <= 0);
            let was_asked = self.asked.remove(&(client, seq));
            assert!(was_asked, "request {seq} of {client:?} was answered twice, or after it was gone");
            answered += 1;
        }
        for job in out.jobs.drain(..) {
            assert!(!self.jobs.contains_key(&job.store), "one job at a time");
            match &job.what {
                JobKind::Close => assert!(self.open.contains_key(&job.store), "what is closed was open"),
                JobKind::Open { .. } => assert!(!self.open.contains_key(&job.store)),
                JobKind::Read { len } => assert!(*len <= self.open[&job.store].1),
                JobKind::Write { writes } => {
                    let (block, len) = self.open[&job.store];
                    let mut end = 0;
                    for write in writes {
                        let size = write.bytes.len() as u64;
                        assert_eq!((write.offset % u64::from(block), size % u64::from(block)), (0, 0));
                        assert!(write.offset >= end && write.offset + size <= len);
                        end = write.offset + size;
                    }
                    assert!(!writes.is_empty());
                }
            }
            self.jobs.insert(job.store, job);
        }
        out.clear();
        self.out = out;
        answered
    }

    fn check(&self) {
        let (mut logs, mut regions) = (0, 0);
        for log in self.server.logs() {
            logs += 1;
            regions += u64::from(log.status.regions);
            assert!(log.status.sync_count <= u64::from(log.status.regions));
            assert_eq!(self.server.dirty(log.id).count() as u64, log.status.dirty_regions);
        }
        for log in self.server.logs() {
            let is_used =
                |life| matches!(life, Life::Live | Life::Suspending | Life::Resuming | Life::Closing);
            let key = |log: &LogSummary<'_>| (log.name.uuid.to_vec(), log.client.is_kernel());
            let used = self.server.logs().filter(|other| key(other) == key(&log) && is_used(other.life));
            assert!(used.count() <= 1, "two logs of one uuid are in use");
        }
        assert!(logs <= CONFIG.max_logs && regions <= CONFIG.max_regions, "{logs} logs, {regions} regions");
        assert!(self.server.live() <= logs);
        // A file of a log, or of one that is gone and has a job under way.
        assert!(self.open.len() <= logs + self.jobs.len(), "files are left open");
    }
}
