//! The log server: dirty-region logs of others, kept for the kernel's dm-mirror and for volumes elsewhere.
//!
//! Decides and never does. Requests come in as [`Frame`]s and go out as answers, jobs on the files that the logs
//! are in ([`Job`]) and notes that outlive the process ([`Save`]), all of them in an [`Output`]; whoever drives the
//! server carries them out and says how a job ended. No fd, thread or clock is in here: a second is a
//! [`LogServer::tick`]. The simulator runs this very code.
//!
//! A log is one life of a mirror's table: uuid and luid name it. Its own life:
//!
//! | from | to | when |
//! |---|---|---|
//! | – | opening | CTR of a log on disk; a core log is pending at once |
//! | opening | pending | its file is open and long enough |
//! | opening | – | it is not, or is used by another uuid |
//! | pending, suspended | resuming | RESUME of a log on disk: it is read, then written; a core log is live at once |
//! | pending, suspended | returned | RESUME of a log of the kernel that was constructed anew; one on disk is read |
//! | returned | resuming | a request about regions, if no other log of the uuid is in use; a core log is live at once |
//! | resuming | live | what was read is written. Of the kernel's logs also if that failed ('D'); what could not be read is dirty |
//! | resuming | pending | of a volume's, if that failed |
//! | live | suspending | PRESUSPEND |
//! | live, suspending | suspended | POSTSUSPEND, and everything is durable |
//! | returned | suspended | POSTSUSPEND |
//! | any | – | DTR; a volume that is gone for longer than the lease; a pending or returned log of the kernel that is too old |
//!
//! While a log is opening, resuming or closing down, requests for it are held in their order. While it is written by a
//! FLUSH they are not: what comes meanwhile is durable with the next write, and one write serves every FLUSH that
//! waits (group commit). No log waits for another. Of the logs of one uuid one is in use: the next is resumed once that is
//! suspended and nothing of it is on its way to a file. The kernel's logs and those of volumes do not know each other.
//!
//! **The kernel** is one client that never goes away. Requests for a log that is not known, or not live, are answered
//! `ESRCH`, which makes it construct and resume the log anew and ask again; any other error it would take for an answer. What it
//! was told must outlive this process: marks and clears that no FLUSH followed yet, and which regions are in sync.
//! Hence its logs are [`Save`]d.
//!
//! An error to the RESUME of a log that was constructed anew fails the request that waits for it: the kernel then writes a region
//! to one leg and marks nothing. So that RESUME is always answered with success. It puts no log to use either: the kernel also
//! sends it for a table that is loaded and not in use, if somebody wants its status. A table is in use when it asks about
//! regions. Such a request is held, for as long as it takes, until its log is live.
//!
//! The kernel never resyncs a region that falls out of sync while its mirror is in use: it writes to one leg there, until it is
//! suspended and resumed. So a region falls out of sync when a log is put to use, or when the kernel says so, and at no
//! other time. A mirror whose log could not be written keeps that in mind until its table is replaced; so does its log.
//!
//! DTR is answered when the log's file is closed, because the administrator who removed the mirror removes the log device next.
//!
//! **A volume** is a connection. It says all that is not durable again when it comes back, so nothing of it is saved but its
//! luid, in the log's own file ([`crate::DiskLog::owner`]): whoever comes back is known by it, and who was superseded
//! is refused for ever (`ESTALE`). A log whose owner is connected, or gone without a goodbye for less than the
//! lease, is given to nobody else (`EBUSY`) unless he insists (`take_over`). What comes on any connection but the one that
//! last constructed the log is answered `ESRCH`: it may be late, and whoever is alive constructs the log again.

mod answers;
mod construct;
mod flush;
mod life;
mod refusal;
mod resume;
mod session;

use std::collections::HashMap;

use mirrord_raid::{Errno, Region, SECTOR};

use crate::core::CoreLog;
use crate::disk::DiskLog;
use crate::log::{DirtyLog, LogStatus, SyncMode};
use crate::page::PageWrite;
use crate::wire::{self, Frame, LogName, Reply};

pub use refusal::{Refusal, Refused};
pub use session::{RestoreError, SessionId};

/// Most requests that a busy log holds, and that wait for one write: no asker of good will has so many under way.
const MAX_HELD: usize = 4096;

/// Most bytes of them: as many of the longest that the kernel sends.
const MAX_HELD_BYTES: usize = MAX_HELD * 512;

/// Logs of the kernel that were never resumed are forgotten after so many ticks: should one be resumed all the same, the
/// kernel constructs it anew.
const PENDING_TICKS: u64 = 3600;

/// Who asks: the kernel, or one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

impl ClientId {
    /// The kernel of this machine. Connections have other numbers, each used once.
    pub const KERNEL: ClientId = ClientId(0);

    /// Whether it is the kernel.
    pub fn is_kernel(self) -> bool {
        self == ClientId::KERNEL
    }
}

/// A log of the server. Numbers are used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LogId(pub u32);

/// A log's file. Numbers are never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct StoreId(pub u64);

/// Limits, and how long a volume is waited for.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Ticks for which the log of a volume that is gone without a goodbye is kept for it.
    pub lease: u64,
    /// Most logs.
    pub max_logs: usize,
    /// Most regions of all logs together: a region takes half a byte.
    pub max_regions: u64,
    /// No other host uses the mirrors of this one: `clustered-core` and `clustered-disk` are served. Two servers that each
    /// write one log on a shared disk would undo each other's marks.
    pub single_host: bool,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { lease: 30, max_logs: 65536, max_regions: 1 << 30, single_host: false }
    }
}

/// What a log's file turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenedStore {
    /// Its logical block, in bytes.
    pub block_size: u32,
    /// Its length, in bytes. That of a volume's log is what was asked for, or it was longer before.
    pub len: u64,
    /// What tells it from any other file or device, whatever it is called.
    pub file: (u64, u64),
    /// Of a block device: `MAJOR:MINOR`.
    pub number: Option<String>,
}

/// What is to be done with a log's file, one after the other for each file, and answered with [`LogServer::job_done`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Which.
    pub store: StoreId,
    /// What.
    pub what: JobKind,
}

/// See [`Job`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// Open it and keep others from using it; answered with [`JobDone::Opened`]. If it fails, that was all.
    Open {
        /// The device as the log's arguments name it: of the kernel's logs a path or `MAJOR:MINOR`, of a volume's a name
        /// in the server's folder.
        device: String,
        /// Whose it is. A volume's is made if it is not there, of [`DiskLog::len_of`] so many regions.
        by_kernel: bool,
        /// Regions that the log has.
        regions: u32,
        /// The kernel had a log in it before. If it can only be read now, that will do: to refuse it is to have the mirror wait
        /// for ever, and the next write fails all the same.
        again: bool,
    },
    /// Read this many bytes from its start, fewer if it is shorter; answered with [`JobDone::Read`].
    Read {
        /// In bytes.
        len: u64,
    },
    /// Write, then make durable; answered with [`JobDone::Written`].
    Write {
        /// In ascending order, whole logical blocks.
        writes: Vec<PageWrite>,
    },
    /// It is not used any more: close it; answered with [`JobDone::Closed`].
    Close,
}

/// How a job ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobDone {
    /// Of [`JobKind::Open`].
    Opened(Result<OpenedStore, Errno>),
    /// Of [`JobKind::Read`].
    Read(Result<Vec<u8>, Errno>),
    /// Of [`JobKind::Write`].
    Written(Result<(), Errno>),
    /// Of [`JobKind::Close`].
    Closed,
}

/// Notes that outlive the process, not the machine: to be kept before any answer of the same [`Output`] is sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Save {
    /// All of it, as it is from now on.
    Put {
        /// Which.
        session: SessionId,
        /// What [`LogServer::restore`] is given.
        bytes: Vec<u8>,
    },
    /// A few bytes of it.
    Patch {
        /// Which.
        session: SessionId,
        /// From where, in bytes.
        offset: u64,
        /// What is there from now on.
        byte: u8,
    },
    /// It is not needed any more.
    Remove {
        /// Which.
        session: SessionId,
    },
}

/// An answer in [`Output::bytes`].
#[derive(Clone, Copy, Debug)]
struct Answer {
    client: ClientId,
    seq: u32,
    from: usize,
    to: usize,
}

/// What a call brings about. Its buffers are used again: [`Output::clear`] it between calls. Saves come first, then
/// answers and jobs in any order.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    answers: Vec<Answer>,
    /// Jobs to do.
    pub jobs: Vec<Job>,
    /// Notes to keep.
    pub saves: Vec<Save>,
    /// What the server's own messages are to say.
    pub refused: Vec<Refused>,
}

impl Output {
    /// Forgets all of it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.answers.clear();
        self.jobs.clear();
        self.saves.clear();
        self.refused.clear();
    }

    /// Messages to send: to whom, in answer to which request, and the message.
    pub fn answers(&self) -> impl Iterator<Item = (ClientId, u32, &[u8])> {
        let message = |answer: &Answer| &self.bytes[answer.from..answer.to];
        self.answers.iter().map(move |answer| (answer.client, answer.seq, message(answer)))
    }

    fn answer(&mut self, asker: Asker, name: LogName<'_>, reply: &Reply<'_>) {
        debug_assert!(reply.error() <= 0);
        let from = self.bytes.len();
        wire::encode_answer(name, asker.version, asker.seq, asker.request_type, reply, &mut self.bytes);
        self.answers.push(Answer { client: asker.client, seq: asker.seq, from, to: self.bytes.len() });
    }
}

/// Who waits for an answer, and what it has to repeat.
#[derive(Clone, Copy, Debug)]
struct Asker {
    client: ClientId,
    version: u32,
    seq: u32,
    request_type: u32,
}

impl Asker {
    fn of(client: ClientId, frame: &Frame<'_>) -> Asker {
        let (version, seq, request_type) = (frame.version(), frame.seq(), frame.request_type());
        Asker { client, version, seq, request_type }
    }
}

/// How far a log is: see the module's table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Its file is being opened.
    Opening,
    /// Constructed, never resumed. Its file is closed if that was too long ago.
    Pending,
    /// The kernel constructed and resumed it anew, and did not ask about regions since: its table may be another than the
    /// one in use.
    Returned,
    /// It is being read or written in order to be live.
    Resuming,
    /// In use.
    Live,
    /// In use for the last time: nothing is resynced any more.
    Suspending,
    /// Its last changes are being written.
    Closing,
    /// Not in use now.
    Suspended,
}

impl Life {
    fn is_busy(self) -> bool {
        matches!(self, Life::Opening | Life::Resuming | Life::Closing)
    }

    /// Requests about regions make sense.
    fn is_live(self) -> bool {
        matches!(self, Life::Live | Life::Suspending)
    }

    /// The word used in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Life::Opening => "opening",
            Life::Pending => "pending",
            Life::Returned => "returned",
            Life::Resuming => "resuming",
            Life::Live => "live",
            Life::Suspending => "suspending",
            Life::Closing => "closing",
            Life::Suspended => "suspended",
        }
    }
}

/// A log's bits.
#[derive(Debug)]
enum Book {
    Core(CoreLog),
    Disk(DiskLog),
}

impl Book {
    fn log(&self) -> &dyn DirtyLog {
        match self {
            Book::Core(log) => log,
            Book::Disk(log) => log,
        }
    }

    fn log_mut(&mut self) -> &mut dyn DirtyLog {
        match self {
            Book::Core(log) => log,
            Book::Disk(log) => log,
        }
    }
}

/// One log.
#[derive(Debug)]
struct Log {
    uuid: Box<[u8]>,
    luid: u64,
    client: ClientId,
    /// When its owner's connection was lost.
    gone_since: Option<u64>,
    /// The text that it was constructed from.
    text: Box<str>,
    mode: SyncMode,
    /// Who had it last, if its user knows: another one's log is not believed.
    last: Option<u64>,
    take_over: bool,
    life: Life,
    since: u64,
    /// It was heard of since this server was started.
    heard: bool,
    book: Book,
    /// Of a log on disk.
    store: Option<StoreId>,
    /// Of a log on disk that was opened.
    opened: Option<OpenedStore>,
    /// The last write to its file failed.
    failed: Option<Errno>,
    /// Of the kernel's logs: how a write to its file failed once, or reading it.
    device_failed: Option<Errno>,
    /// A write is under way, for these.
    writing: Option<Vec<Asker>>,
    /// Who waits for the next write.
    flushes: Vec<Asker>,
    /// What made the log busy, to be answered when it is not any more.
    asked: Vec<Asker>,
    /// Requests that came while it was busy.
    held: Vec<(ClientId, Vec<u8>)>,
    held_bytes: usize,
    /// A job is under way on its file.
    job: bool,
    /// What it is to be once its file is open again, after a restart of the server or after it was closed.
    reopened: Option<Life>,
    /// It constructed anew what it had before.
    again: bool,
    /// It did so, and its next RESUME is part of that.
    returning: bool,
    /// It did so with a server that has no notes of it, and asked nothing about regions since.
    unsure: bool,
    /// It goes once it is closed.
    ending: bool,
    /// A region handed out to be resynced.
    work: Option<Region>,
    session: Option<SessionId>,
}

impl Log {
    /// One with nothing under way, heard of just now, whose file is not open.
    fn new(name: LogName<'_>, client: ClientId, text: &[u8], mode: SyncMode, life: Life, book: Book) -> Log {
        Log {
            uuid: name.uuid.into(),
            luid: name.luid,
            client,
            gone_since: None,
            text: String::from_utf8_lossy(text).into(),
            mode,
            last: None,
            take_over: false,
            life,
            since: 0,
            heard: true,
            book,
            store: None,
            opened: None,
            failed: None,
            device_failed: None,
            writing: None,
            flushes: Vec::new(),
            asked: Vec::new(),
            held: Vec::new(),
            held_bytes: 0,
            job: false,
            reopened: None,
            again: false,
            returning: false,
            unsure: false,
            ending: false,
            work: None,
            session: None,
        }
    }

    fn name(&self) -> LogName<'_> {
        LogName { uuid: &self.uuid, luid: self.luid }
    }

    fn by_kernel(&self) -> bool {
        self.client.is_kernel()
    }

    fn status(&self) -> LogStatus {
        self.book.log().status()
    }

    fn regions(&self) -> u32 {
        self.book.log().regions()
    }

    /// Length of a region, in sectors.
    fn region_sectors(&self) -> u64 {
        self.book.log().region_size() / SECTOR
    }

    /// The word for its kind, as it was given.
    fn kind_word(&self) -> &str {
        self.text.split_ascii_whitespace().nth(1).unwrap_or("")
    }
}

/// A log at a glance.
#[derive(Clone, Debug)]
pub struct LogSummary<'a> {
    /// Its number.
    pub id: LogId,
    /// Its name.
    pub name: LogName<'a>,
    /// What it was constructed from.
    pub text: &'a str,
    /// How far it is.
    pub life: Life,
    /// Whose it is: [`LogServer::connect`] said who that is.
    pub client: ClientId,
    /// His name; `kernel` for the kernel.
    pub peer: &'a str,
    /// Whether his connection was lost.
    pub gone: bool,
    /// Of a log on a block device: `MAJOR:MINOR`.
    pub number: Option<&'a str>,
    /// How a write to its file failed: of a log of the kernel once, of a volume's the last one.
    pub failed: Option<Errno>,
    /// Its bits.
    pub status: LogStatus,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct LogServer {
    config: ServerConfig,
    now: u64,
    logs: Vec<Option<Box<Log>>>,
    /// Numbers that no log has.
    vacant: Vec<LogId>,
    by_luid: HashMap<u64, Vec<LogId>>,
    by_uuid: HashMap<Box<[u8]>, Vec<LogId>>,
    by_store: HashMap<StoreId, LogId>,
    /// Files whose log is gone.
    closing: HashMap<StoreId, Closing>,
    peers: HashMap<ClientId, String>,
    regions: u64,
    next_store: u64,
    next_session: u64,
    /// Logs whose held requests can go on.
    unheld: Vec<LogId>,
    /// Requests that were held by logs that are gone.
    orphans: Vec<(ClientId, Vec<u8>)>,
    /// Logs that returned and hold a request about regions, because another one is in use.
    waiting: Vec<LogId>,
    /// When it was last said why a log is refused.
    told: HashMap<Box<[u8]>, u64>,
}

/// A file whose log is gone.
#[derive(Debug)]
struct Closing {
    uuid: Box<[u8]>,
    luid: u64,
    by_kernel: bool,
    /// What tells it from any other, once it was opened.
    file: Option<(u64, u64)>,
    /// A job of the log is under way on it, which may still write; it is closed after that.
    works: bool,
    /// Whose DTR is to be answered when it is closed.
    askers: Vec<Asker>,
}

impl LogServer {
    /// A server without logs.
    pub fn new(config: ServerConfig) -> LogServer {
        LogServer { config, ..LogServer::default() }
    }

    /// A connection is there, from now on until [`LogServer::client_gone`]; `peer`: what to call it.
    pub fn connect(&mut self, client: ClientId, peer: String) {
        self.peers.insert(client, peer);
    }

    /// How many logs are in use, or about to be: a server that ends leaves their mirrors without one.
    pub fn live(&self) -> usize {
        let is_used = |log: &&Log| {
            let was_used = log.reopened != Some(Life::Pending);
            log.life.is_live() || log.life == Life::Returned || log.life.is_busy() && was_used
        };
        self.logs.iter().filter_map(Option::as_deref).filter(is_used).count()
    }

    /// Its logs.
    pub fn logs(&self) -> impl Iterator<Item = LogSummary<'_>> {
        let logs = self.logs.iter().enumerate();
        logs.filter_map(|(at, log)| Some((LogId(at as u32), log.as_deref()?))).map(|(id, log)| LogSummary {
            id,
            name: log.name(),
            text: &log.text,
            life: log.life,
            client: log.client,
            peer: self.peers.get(&log.client).map_or("", String::as_str),
            gone: log.gone_since.is_some(),
            number: log.opened.as_ref().and_then(|opened| opened.number.as_deref()),
            failed: log.failed.or(log.device_failed),
            status: log.status(),
        })
    }

    /// The dirty regions of a log, ascending.
    pub fn dirty(&self, log: LogId) -> impl Iterator<Item = Region> {
        self.logs
            .get(log.0 as usize)
            .and_then(Option::as_deref)
            .into_iter()
            .flat_map(|log| log.book.log().dirty())
    }
}
