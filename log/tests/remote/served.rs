//! A log server with files in memory, and notes that outlive it.

use std::collections::{BTreeMap, VecDeque};

use mirrord_log::DiskLog;
use mirrord_log::server::{
    ClientId, Job, JobDone, JobKind, LogServer, OpenedStore, Output, Save, ServerConfig, SessionId, StoreId,
};
use mirrord_log::wire::{Frame, LogName, Reply, Request, RequestType, encode_request};
use mirrord_raid::Errno;

/// Logical block of every file, in bytes.
const BLOCK: u32 = 512;

/// See the module.
#[derive(Default)]
pub(crate) struct Served {
    pub(crate) server: LogServer,
    /// By the name that logs call them.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) sessions: BTreeMap<SessionId, Vec<u8>>,
    open: BTreeMap<StoreId, String>,
    /// Answers that nobody took yet.
    pub(crate) answers: Vec<(ClientId, u32, Vec<u8>)>,
    /// Jobs wait in `jobs` until [`Served::work`].
    pub(crate) held: bool,
    pub(crate) jobs: VecDeque<Job>,
    /// Writes that were carried out.
    pub(crate) writes: usize,
    /// Writes end so, and nothing is written.
    pub(crate) write_error: Option<Errno>,
    seq: u32,
}

impl Served {
    pub(crate) fn new() -> Served {
        Served { server: LogServer::new(ServerConfig::default()), ..Served::default() }
    }

    /// A request of the kernel, all that follows, and the answer to it.
    pub(crate) fn ask(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let (frame, _) = Frame::parse(message).unwrap();
        let mut out = Output::default();
        self.server.request(ClientId::KERNEL, &frame, &mut out);
        self.carry_out(out);
        let at = self.answers.iter().position(|(_, seq, _)| *seq == frame.seq())?;
        Some(self.answers.swap_remove(at).2)
    }

    /// A message on a connection, and all that follows.
    pub(crate) fn deliver(&mut self, client: u64, message: &[u8]) {
        let (frame, _) = Frame::parse(message).unwrap();
        let mut out = Output::default();
        self.server.request(ClientId(client), &frame, &mut out);
        self.carry_out(out);
    }

    /// Says it for a mirror, and gives its number.
    pub(crate) fn say(&mut self, client: u64, log: (&str, u64), request: &Request<'_>) -> u32 {
        self.seq += 1;
        let mut message = Vec::new();
        let name = LogName { uuid: log.0.as_bytes(), luid: log.1 };
        encode_request(name, self.seq, request, &mut message);
        let (frame, _) = Frame::parse(&message).unwrap();
        let mut out = Output::default();
        self.server.request(ClientId(client), &frame, &mut out);
        self.carry_out(out);
        self.seq
    }

    /// The answer to a number, as text, if it is there.
    pub(crate) fn answer(&mut self, seq: u32) -> Option<String> {
        let at = self.answers.iter().position(|(_, other, _)| *other == seq)?;
        let (_, _, message) = self.answers.swap_remove(at);
        let (frame, _) = Frame::parse(&message).unwrap();
        let to = RequestType::from_number(frame.request_type()).unwrap();
        Some(match frame.reply(to).unwrap() {
            Reply::Failed(errno) => format!("errno {}", errno.0),
            Reply::Text(text) => text.to_owned(),
            reply => format!("{reply:?}"),
        })
    }

    /// Says it and gives the answer, `waits` if there is none yet.
    pub(crate) fn answer_to(&mut self, client: u64, log: (&str, u64), request: &Request<'_>) -> String {
        let seq = self.say(client, log, request);
        self.answer(seq).unwrap_or_else(|| "waits".to_owned())
    }

    /// Seconds go by.
    pub(crate) fn tick(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let mut out = Output::default();
            self.server.tick(&mut out);
            self.carry_out(out);
        }
    }

    /// A connection is lost.
    pub(crate) fn lose(&mut self, client: u64) {
        let mut out = Output::default();
        self.server.client_gone(ClientId(client), &mut out);
        self.carry_out(out);
    }

    /// Carries all of it out, and what that brings about.
    pub(crate) fn carry_out(&mut self, mut out: Output) {
        loop {
            for save in out.saves.drain(..) {
                match save {
                    Save::Put { session, bytes } => {
                        self.sessions.insert(session, bytes);
                    }
                    Save::Patch { session, offset, byte } => {
                        self.sessions.get_mut(&session).expect("it was put")[offset as usize] = byte;
                    }
                    Save::Remove { session } => {
                        self.sessions.remove(&session).expect("it was put");
                    }
                }
            }
            let answers = out.answers().map(|(client, seq, message)| (client, seq, message.to_vec()));
            self.answers.extend(answers);
            self.jobs.extend(out.jobs.drain(..));
            out.clear();
            if self.held || !self.work_once(&mut out) {
                return;
            }
        }
    }

    /// Carries out the jobs that wait, and those that follow.
    pub(crate) fn work(&mut self) {
        self.held = false;
        self.carry_out(Output::default());
    }

    fn work_once(&mut self, out: &mut Output) -> bool {
        let Some(Job { store, what }) = self.jobs.pop_front() else { return false };
        let done = self.carry_out_job(store, what);
        self.server.job_done(store, done, out);
        true
    }

    fn carry_out_job(&mut self, store: StoreId, what: JobKind) -> JobDone {
        match what {
            JobKind::Open { device, by_kernel, regions, .. } => {
                if !by_kernel {
                    let need = DiskLog::len_of(regions, BLOCK) as usize;
                    let file = self.files.entry(device.clone()).or_default();
                    file.resize(need.max(file.len()), 0);
                }
                JobDone::Opened(match self.files.get(&device) {
                    Some(file) => {
                        self.open.insert(store, device.clone());
                        let number = by_kernel.then(|| device.replace("/dev/loop", "7:"));
                        let at = self.files.keys().position(|name| *name == device);
                        let file = (file.len() as u64, (1, at.unwrap_or_default() as u64));
                        Ok(OpenedStore { block_size: BLOCK, len: file.0, file: file.1, number })
                    }
                    None => Err(Errno(2)),
                })
            }
            JobKind::Read { len } => {
                let file = &self.files[&self.open[&store]];
                JobDone::Read(Ok(file[..(len as usize).min(file.len())].to_vec()))
            }
            JobKind::Write { .. } if self.write_error.is_some() => {
                JobDone::Written(Err(self.write_error.unwrap_or(Errno::EIO)))
            }
            JobKind::Write { writes } => {
                self.writes += 1;
                let file = self.files.get_mut(&self.open[&store]).unwrap();
                for write in writes {
                    file[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
                }
                JobDone::Written(Ok(()))
            }
            JobKind::Close => {
                self.open.remove(&store).expect("it is open");
                JobDone::Closed
            }
        }
    }

    /// The server is killed, and another one goes on.
    pub(crate) fn restart(&mut self) {
        self.server = LogServer::new(ServerConfig::default());
        self.open.clear();
        self.jobs.clear();
        self.answers.clear();
        for (session, bytes) in self.sessions.clone() {
            let mut out = Output::default();
            self.server.restore(session, &bytes, &mut out).unwrap();
            self.carry_out(out);
        }
    }
}
