//! A log server with everything that a test needs around it: devices in memory, jobs that are carried out at once or
//! when the test says so, notes that outlive a kill, and conversations as text.
//!
//! A request is its name and its numbers (`MARK_REGION 3 4`), `CTR` and `CTR_AGAIN` have the text behind them. An
//! answer is `done`, `failed N`, `device D`, `count N`, `yes`, `no`, `work N`, `no work`, `remote R HINT` or the status
//! itself; `-` stands for none yet.

use std::collections::{BTreeMap, HashMap, VecDeque};

use mirrord_log::server::{
    ClientId, Job, JobDone, JobKind, LogServer, OpenedStore, Output, Save, ServerConfig, SessionId, StoreId,
};
use mirrord_log::wire::{Frame, LogName, Regions, Reply, Request, RequestType, encode_request};
use mirrord_raid::Errno;
use zerocopy::little_endian::U64;

/// A log's user: one life of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct User {
    pub(crate) client: ClientId,
    pub(crate) uuid: &'static str,
    pub(crate) luid: u64,
}

/// A table of the kernel.
pub(crate) fn kernel(uuid: &'static str, luid: u64) -> User {
    User { client: ClientId::KERNEL, uuid, luid }
}

/// A life of a volume, on a connection.
pub(crate) fn volume(connection: u64, uuid: &'static str, luid: u64) -> User {
    User { client: ClientId(connection), uuid, luid }
}

/// A file or device that logs can be in.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) bytes: Vec<u8>,
    pub(crate) block_size: u32,
    pub(crate) file: (u64, u64),
    pub(crate) number: Option<String>,
    /// What reading and writing it ends with.
    pub(crate) broken: Option<Errno>,
    /// What opening it ends with.
    pub(crate) unopenable: Option<Errno>,
    /// What writing it ends with.
    pub(crate) read_only: Option<Errno>,
}

#[derive(Default)]
pub(crate) struct Rig {
    pub(crate) server: LogServer,
    config: ServerConfig,
    out: Output,
    pub(crate) devices: BTreeMap<String, Device>,
    stores: HashMap<StoreId, String>,
    /// Jobs to do.
    pub(crate) jobs: VecDeque<Job>,
    /// They wait until [`Rig::work`].
    pub(crate) lazy: bool,
    pub(crate) saves: BTreeMap<SessionId, Vec<u8>>,
    /// What whoever looks after the server is told.
    pub(crate) told: Vec<String>,
    /// Answers not looked at: of which request, and what.
    heard: Vec<(ClientId, u32, String)>,
    /// The last answer, as bytes.
    pub(crate) last: Vec<u8>,
    asked: HashMap<u32, String>,
    seq: u32,
    /// Writes carried out, and their bytes.
    pub(crate) writes: usize,
    pub(crate) written: usize,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with(ServerConfig::default())
    }

    pub(crate) fn with(config: ServerConfig) -> Rig {
        let config = ServerConfig { single_host: true, ..config };
        Rig::strict(config)
    }

    /// One that serves what several hosts may share only if it is told to.
    pub(crate) fn strict(config: ServerConfig) -> Rig {
        let mut rig = Rig { server: LogServer::new(config), config, ..Rig::default() };
        rig.device("/dev/log", 8192, 512);
        rig
    }

    /// The server is killed, and its notes are lost with it.
    pub(crate) fn restart_without_notes(&mut self) {
        self.saves.clear();
        self.restart();
    }

    /// Adds a block device.
    pub(crate) fn device(&mut self, name: &str, len: usize, block_size: u32) {
        let minor = 2 + self.devices.len();
        let number = Some(format!("7:{minor}"));
        let file = (7, minor as u64);
        let device = Device {
            bytes: vec![0; len],
            block_size,
            file,
            number,
            broken: None,
            unopenable: None,
            read_only: None,
        };
        self.devices.insert(name.to_owned(), device);
    }

    /// Asks; the answer, if it comes at once. What else is answered thereby is for [`Rig::hears`].
    pub(crate) fn ask(&mut self, user: User, request: &str) -> String {
        self.seq += 1;
        let seq = self.seq;
        let bytes = frame(user, seq, request);
        self.send(user.client, &bytes);
        match self.heard.iter().position(|(_, of, _)| *of == seq) {
            Some(at) => self.heard.remove(at).2,
            None => {
                self.asked.insert(seq, request.split(' ').next().unwrap().to_owned());
                "-".to_owned()
            }
        }
    }

    /// A conversation: what is asked, and what has to be answered.
    #[track_caller]
    pub(crate) fn talk(&mut self, user: User, lines: &[(&str, &str)]) {
        for (at, (request, answer)) in lines.iter().enumerate() {
            assert_eq!(self.ask(user, request), *answer, "line {at}: {request}, of {user:?}");
        }
    }

    /// Answers that came since, in order, as `REQUEST answer`.
    pub(crate) fn hears(&mut self) -> Vec<String> {
        let heard = std::mem::take(&mut self.heard);
        let line =
            |(_, seq, answer)| format!("{} {answer}", self.asked.get(&seq).map_or("?", String::as_str));
        heard.into_iter().map(line).collect()
    }

    /// As [`Rig::hears`], by the number of the request.
    pub(crate) fn hears_by_seq(&mut self) -> Vec<(u32, String)> {
        std::mem::take(&mut self.heard).into_iter().map(|(_, seq, answer)| (seq, answer)).collect()
    }

    /// The number of the last request.
    pub(crate) fn last_seq(&self) -> u32 {
        self.seq
    }

    pub(crate) fn send(&mut self, client: ClientId, bytes: &[u8]) {
        let (frame, _) = Frame::parse(bytes).unwrap();
        self.server.request(client, &frame, &mut self.out);
        self.carry_out();
    }

    pub(crate) fn tick(&mut self, times: u64) {
        for _ in 0..times {
            self.server.tick(&mut self.out);
            self.carry_out();
        }
    }

    pub(crate) fn gone(&mut self, client: u64) {
        self.server.client_gone(ClientId(client), &mut self.out);
        self.carry_out();
    }

    pub(crate) fn forget(&mut self, uuid: &str) -> bool {
        let ids: Vec<_> = self.server.logs().filter(|log| log.name.uuid == uuid.as_bytes()).collect();
        let Some(id) = ids.first().map(|log| log.id) else { return false };
        let is_there = self.server.forget(id, &mut self.out);
        self.carry_out();
        is_there
    }

    /// Carries out the next job that waits.
    pub(crate) fn work(&mut self) -> bool {
        let Some(job) = self.jobs.pop_front() else { return false };
        let done = self.carry_out_job(&job);
        self.server.job_done(job.store, done, &mut self.out);
        self.carry_out();
        true
    }

    /// Carries out all that waits.
    pub(crate) fn work_all(&mut self) {
        while self.work() {}
    }

    /// The server is killed, and another one restored from its notes. What was on its way to a device is lost.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.restore();
    }

    pub(crate) fn kill(&mut self) {
        self.server = LogServer::new(self.config);
        self.jobs.clear();
        self.stores.clear();
        self.heard.clear();
    }

    pub(crate) fn restore(&mut self) {
        for (session, bytes) in self.saves.clone() {
            self.server.restore(session, &bytes, &mut self.out).unwrap();
            self.carry_out();
        }
    }

    /// Another rig with what this one has outside of its server: as if it were killed now.
    pub(crate) fn twin(&self) -> Rig {
        let mut twin = Rig { config: self.config, seq: self.seq, ..Rig::default() };
        twin.devices = self.devices.clone();
        twin.saves = self.saves.clone();
        twin.restart();
        twin
    }

    /// How far the logs with a uuid are, in the order of their numbers.
    pub(crate) fn lives(&self, uuid: &str) -> Vec<&'static str> {
        let logs = self.server.logs().filter(|log| log.name.uuid == uuid.as_bytes());
        logs.map(|log| log.life.name()).collect()
    }

    fn carry_out(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        for save in out.saves.drain(..) {
            match save {
                Save::Put { session, bytes } => {
                    self.saves.insert(session, bytes);
                }
                Save::Patch { session, offset, byte } => {
                    self.saves.get_mut(&session).unwrap()[offset as usize] = byte;
                }
                Save::Remove { session } => {
                    self.saves.remove(&session).unwrap();
                }
            }
        }
        self.told.extend(out.refused.drain(..).map(|refused| refused.to_string()));
        for (client, seq, bytes) in out.answers() {
            let (frame, len) = Frame::parse(bytes).unwrap();
            assert_eq!(len, bytes.len());
            self.heard.push((client, seq, answer(&frame)));
            self.last = bytes.to_vec();
        }
        self.jobs.extend(out.jobs.drain(..));
        out.clear();
        self.out = out;
        if !self.lazy {
            self.work_all();
        }
    }

    fn carry_out_job(&mut self, job: &Job) -> JobDone {
        match &job.what {
            JobKind::Open { device, by_kernel, regions, .. } => {
                JobDone::Opened(self.open(job.store, device, *by_kernel, *regions))
            }
            JobKind::Read { len } => {
                let device = &self.devices[&self.stores[&job.store]];
                let len = device.bytes.len().min(*len as usize);
                JobDone::Read(device.broken.map_or_else(|| Ok(device.bytes[..len].to_vec()), Err))
            }
            JobKind::Write { writes } => {
                let device = self.devices.get_mut(&self.stores[&job.store]).unwrap();
                if let Some(errno) = device.broken.or(device.read_only) {
                    return JobDone::Written(Err(errno));
                }
                self.writes += 1;
                for write in writes {
                    let (from, len, block) =
                        (write.offset as usize, write.bytes.len(), device.block_size as usize);
                    assert_eq!((from % block, len % block), (0, 0), "not whole blocks");
                    device.bytes[from..from + len].copy_from_slice(&write.bytes);
                    self.written += len;
                }
                JobDone::Written(Ok(()))
            }
            JobKind::Close => {
                self.stores.remove(&job.store).expect("what is closed was open");
                JobDone::Closed
            }
        }
    }

    fn open(
        &mut self,
        store: StoreId,
        name: &str,
        by_kernel: bool,
        regions: u32,
    ) -> Result<OpenedStore, Errno> {
        if !by_kernel && !self.devices.contains_key(name) {
            self.device(name, 0, 512);
            self.devices.get_mut(name).unwrap().number = None;
        }
        let device =
            self.devices.get_mut(name).ok_or(if name == "/etc/hosts" { Errno(22) } else { Errno(2) })?;
        if let Some(errno) = device.unopenable {
            return Err(errno);
        }
        if !by_kernel {
            let len = mirrord_log::DiskLog::len_of(regions, device.block_size) as usize;
            device.bytes.resize(len.max(device.bytes.len()), 0);
        }
        self.stores.insert(store, name.to_owned());
        let (block_size, len, file) = (device.block_size, device.bytes.len() as u64, device.file);
        Ok(OpenedStore { block_size, len, file, number: device.number.clone() })
    }

    /// What to break and mend.
    pub(crate) fn log(&mut self) -> &mut Device {
        self.devices.get_mut("/dev/log").unwrap()
    }

    /// Files that are open.
    pub(crate) fn open_stores(&self) -> usize {
        self.stores.len()
    }
}

/// A request as it is sent.
pub(crate) fn frame(user: User, seq: u32, text: &str) -> Vec<u8> {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let numbers: Vec<U64> =
        rest.split_ascii_whitespace().filter_map(|word| word.parse().ok()).map(U64::new).collect();
    let regions = Regions::new(&numbers);
    let first = || numbers[0].get();
    let request = match name {
        "CTR" => Request::Ctr { text: rest.as_bytes(), again: false },
        "CTR_AGAIN" => Request::Ctr { text: rest.as_bytes(), again: true },
        "DTR" => Request::Dtr,
        "PRESUSPEND" => Request::Presuspend,
        "POSTSUSPEND" => Request::Postsuspend,
        "RESUME" => Request::Resume,
        "GET_REGION_SIZE" => Request::GetRegionSize,
        "IS_CLEAN" => Request::IsClean(first()),
        "IN_SYNC" => Request::InSync(first()),
        "FLUSH" => Request::Flush(regions),
        "MARK_REGION" => Request::MarkRegion(regions),
        "CLEAR_REGION" => Request::ClearRegion(regions),
        "GET_RESYNC_WORK" => Request::GetResyncWork,
        "SET_REGION_SYNC" => Request::SetRegionSync { region: first(), in_sync: numbers[1].get() != 0 },
        "GET_SYNC_COUNT" => Request::GetSyncCount,
        "STATUS_INFO" => Request::StatusInfo,
        "STATUS_TABLE" => Request::StatusTable,
        "IS_REMOTE_RECOVERING" => Request::IsRemoteRecovering(first()),
        _ => panic!("no request {name}"),
    };
    let mut bytes = Vec::new();
    encode_request(LogName { uuid: user.uuid.as_bytes(), luid: user.luid }, seq, &request, &mut bytes);
    bytes
}

/// An answer as text.
pub(crate) fn answer(frame: &Frame<'_>) -> String {
    if frame.error() != 0 {
        return format!("failed {}", -frame.error());
    }
    let Some(to) = RequestType::from_number(frame.request_type()) else { return "?".to_owned() };
    match frame.reply(to) {
        Ok(Reply::Done) => "done".to_owned(),
        Ok(Reply::Failed(errno)) => format!("failed {}", errno.0),
        Ok(Reply::Device(device)) => format!("device {device}"),
        Ok(Reply::Count(count)) => format!("count {count}"),
        Ok(Reply::Is(is)) => (if is { "yes" } else { "no" }).to_owned(),
        Ok(Reply::Work(None)) => "no work".to_owned(),
        Ok(Reply::Work(Some(region))) => format!("work {}", region.0),
        Ok(Reply::RemoteRecovering { is_recovering, in_sync_hint }) => {
            format!("remote {} {in_sync_hint}", u8::from(is_recovering))
        }
        Ok(Reply::Text(text)) => text.to_owned(),
        Err(_) => format!("? {:02x?}", frame.data()),
    }
}
