//! The log server that a volume's log is on, with its disk, and the connections to it. The server is the real one; the
//! way to it is hostile.
//!
//! A connection is lost at any message, and its two ends hear of it at different times. Of what was sent on it before,
//! a part still comes: late, after what came on newer connections, and so in another order than it was sent in, or a second
//! time, for it is said again there. The server is killed at any moment and comes back with what its disk has, of which
//! a write that was under way is a part, block by block. Reads and writes of its disk fail.

use std::collections::VecDeque;

use mirrord_log::server::{ClientId, Job, JobDone, JobKind, LogServer, OpenedStore, Output, ServerConfig};
use mirrord_log::wire::Frame;
use mirrord_log::{DirtyLog, DiskLog, LogOwner, PageWrite, SyncMode};
use mirrord_raid::Errno;

use crate::rng::Rng;

/// Bytes that come to the disk whole or not at all: also its logical block.
pub(crate) const BLOCK: u32 = 512;

/// Ticks for which the server keeps a log for a volume that is gone.
pub(crate) const LEASE: u64 = 8;

/// One connection.
struct Wire {
    client: ClientId,
    to_server: VecDeque<Vec<u8>>,
    to_volume: VecDeque<Vec<u8>>,
    /// The volume's end is closed.
    volume_gone: bool,
    /// The server's end is closed.
    server_gone: bool,
}

/// What comes out at the volume's end of the newest connection.
pub(crate) enum Heard {
    Message(Vec<u8>),
    /// It is lost.
    Lost,
}

/// Something that can happen next.
#[derive(Clone, Copy)]
enum Move {
    ToServer(usize),
    ServerHearsOfEnd(usize),
    ToVolume(usize),
    VolumeHearsOfEnd(usize),
    Work(usize),
}

/// See the module.
pub(crate) struct Far {
    /// None while it is down.
    server: Option<LogServer>,
    /// The log's file.
    file: Vec<u8>,
    /// Under way on it, those of one store in order.
    jobs: Vec<Job>,
    wires: Vec<Wire>,
    clients: u64,
    out: Output,
    moves: Vec<Move>,
}

impl Far {
    /// A server with the log of a new volume, all clean.
    pub(crate) fn new(region_size: u64, regions: u32) -> Far {
        let mut log = DiskLog::new(region_size, regions, BLOCK, SyncMode::NoSync);
        let mut file = vec![0; DiskLog::len_of(regions, BLOCK) as usize];
        let flush = log.resume(&[Some(&[])]);
        log.set_owner(LogOwner { luid: 1, released: true });
        let writes = [flush.writes, log.flush().writes].concat();
        blocks(&writes).for_each(|(at, bytes)| land(&mut file, at, bytes));
        Far {
            server: Some(server()),
            file,
            jobs: Vec::new(),
            wires: Vec::new(),
            clients: 0,
            out: Output::default(),
            moves: Vec::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.server.is_some()
    }

    // ---- the volume's end

    /// The volume has a connection, if the server is up.
    pub(crate) fn connect(&mut self) -> bool {
        let Some(server) = &mut self.server else { return false };
        self.clients += 1;
        let client = ClientId(self.clients);
        server.connect(client, "volume".to_owned());
        let (to_server, to_volume) = Default::default();
        self.wires.push(Wire { client, to_server, to_volume, volume_gone: false, server_gone: false });
        true
    }

    /// The newest connection, if the volume has it.
    fn wire(&mut self) -> Option<&mut Wire> {
        self.wires.last_mut().filter(|wire| !wire.volume_gone)
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.wires.last().is_some_and(|wire| !wire.volume_gone)
    }

    pub(crate) fn send(&mut self, mut bytes: &[u8]) {
        let Some(wire) = self.wire() else { return };
        while !bytes.is_empty() {
            let (_, len) = Frame::parse(bytes).expect("a message is whole");
            wire.to_server.push_back(bytes[..len].to_vec());
            bytes = &bytes[len..];
        }
    }

    /// The volume's end is closed. A part of what was sent may still come.
    pub(crate) fn hang_up(&mut self, rng: &mut Rng) {
        let Some(wire) = self.wire() else { return };
        wire.volume_gone = true;
        wire.to_volume.clear();
        if rng.coin() {
            wire.to_server.truncate(rng.below(wire.to_server.len() as u64 + 1) as usize);
        }
        self.tidy();
    }

    /// Nothing more comes of what the volume sent.
    pub(crate) fn cut_off(&mut self) {
        self.wires.iter_mut().for_each(|wire| wire.to_server.clear());
    }

    // ---- the server's end

    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        self.server = None;
        for job in std::mem::take(&mut self.jobs) {
            if let JobKind::Write { writes } = &job.what {
                land_some(&mut self.file, writes, rng);
            }
        }
        for wire in &mut self.wires {
            wire.server_gone = true;
            wire.to_server.clear();
            wire.to_volume.truncate(rng.below(wire.to_volume.len() as u64 + 1) as usize);
        }
        self.tidy();
    }

    pub(crate) fn start(&mut self) {
        self.server = Some(server());
    }

    pub(crate) fn tick(&mut self) {
        if let Some(server) = &mut self.server {
            server.tick(&mut self.out);
            self.carry_out();
        }
    }

    /// Something moves, if anything can. `stalled`: nothing on the newest connection does; `broken`: the disk fails, in
    /// some of so many cases.
    pub(crate) fn step(&mut self, rng: &mut Rng, stalled: bool, broken: u64) -> Option<Heard> {
        let mut moves = std::mem::take(&mut self.moves);
        moves.clear();
        let newest = self.wires.len().wrapping_sub(1);
        for (at, wire) in self.wires.iter().enumerate() {
            if stalled && at == newest {
                continue;
            }
            if !wire.server_gone && !wire.to_server.is_empty() {
                moves.push(Move::ToServer(at));
            } else if wire.volume_gone && !wire.server_gone {
                moves.push(Move::ServerHearsOfEnd(at));
            }
            if !wire.to_volume.is_empty() {
                moves.push(Move::ToVolume(at));
            } else if wire.server_gone && !wire.volume_gone {
                moves.push(Move::VolumeHearsOfEnd(at));
            }
        }
        let is_first = |at: usize| self.jobs[..at].iter().all(|job| job.store != self.jobs[at].store);
        moves.extend((0..self.jobs.len()).filter(|&at| is_first(at)).map(Move::Work));
        let next = (!moves.is_empty()).then(|| rng.pick(&moves));
        self.moves = moves;
        match next? {
            Move::ToServer(at) => {
                let wire = &mut self.wires[at];
                let message = wire.to_server.pop_front().expect("it was there");
                let (frame, _) = Frame::parse(&message).expect("it was sent whole");
                let server = self.server.as_mut().expect("a connection ends with it");
                server.request(wire.client, &frame, &mut self.out);
                self.carry_out();
            }
            Move::ServerHearsOfEnd(at) => {
                let wire = &mut self.wires[at];
                wire.server_gone = true;
                let server = self.server.as_mut().expect("a connection ends with it");
                server.client_gone(wire.client, &mut self.out);
                self.carry_out();
                self.tidy();
            }
            Move::ToVolume(at) => return self.wires[at].to_volume.pop_front().map(Heard::Message),
            Move::VolumeHearsOfEnd(at) => {
                self.wires[at].volume_gone = true;
                self.tidy();
                return Some(Heard::Lost);
            }
            Move::Work(at) => self.work(at, rng, broken),
        }
        None
    }

    /// Connections that nobody has any more.
    fn tidy(&mut self) {
        self.wires.retain(|wire| !(wire.volume_gone && wire.server_gone));
    }

    fn carry_out(&mut self) {
        assert!(self.out.saves.is_empty(), "the log: nothing of a volume's is noted");
        for (client, _, message) in self.out.answers() {
            let to = self.wires.iter_mut().find(|wire| wire.client == client && !wire.volume_gone);
            if let Some(wire) = to {
                wire.to_volume.push_back(message.to_vec());
            }
        }
        self.jobs.append(&mut self.out.jobs);
        self.out.clear();
    }

    fn work(&mut self, at: usize, rng: &mut Rng, broken: u64) {
        let Job { store, what } = self.jobs.remove(at);
        let fails = rng.chance(broken, 100);
        let done = match what {
            JobKind::Open { regions, .. } => {
                let len = DiskLog::len_of(regions, BLOCK);
                self.file.resize((len as usize).max(self.file.len()), 0);
                let opened = OpenedStore { block_size: BLOCK, len, file: (1, 1), number: None };
                JobDone::Opened(if fails { Err(Errno::ENOSPC) } else { Ok(opened) })
            }
            JobKind::Read { len } => {
                let image = self.file[..self.file.len().min(len as usize)].to_vec();
                JobDone::Read(if fails { Err(Errno::EIO) } else { Ok(image) })
            }
            JobKind::Write { writes } if fails => {
                land_some(&mut self.file, &writes, rng);
                JobDone::Written(Err(Errno::EIO))
            }
            JobKind::Write { writes } => {
                blocks(&writes).for_each(|(at, bytes)| land(&mut self.file, at, bytes));
                JobDone::Written(Ok(()))
            }
            JobKind::Close => JobDone::Closed,
        };
        let server = self.server.as_mut().expect("jobs end with it");
        server.job_done(store, done, &mut self.out);
        self.carry_out();
    }

    // ---- what is there

    /// Whose it is, on the disk.
    pub(crate) fn owner(&self) -> Option<u64> {
        DiskLog::owner_of(&self.file).map(|owner| owner.luid)
    }

    /// Regions that are dirty on the disk.
    pub(crate) fn dirty(&self) -> u64 {
        dirty(&self.file)
    }

    /// ... and will be, whatever comes there of what is under way.
    pub(crate) fn surely_dirty(&self) -> u64 {
        let mut surely = self.dirty();
        for job in &self.jobs {
            let JobKind::Write { writes } = &job.what else { continue };
            for (at, bytes) in blocks(writes) {
                let mut file = self.file.clone();
                land(&mut file, at, bytes);
                surely &= dirty(&file);
            }
        }
        surely
    }
}

fn server() -> LogServer {
    LogServer::new(ServerConfig { lease: LEASE, ..ServerConfig::default() })
}

fn blocks(writes: &[PageWrite]) -> impl Iterator<Item = (usize, &[u8])> {
    writes.iter().flat_map(|write| {
        let offsets = (write.offset as usize..).step_by(BLOCK as usize);
        offsets.zip(write.bytes.chunks(BLOCK as usize))
    })
}

fn land(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn land_some(file: &mut [u8], writes: &[PageWrite], rng: &mut Rng) {
    blocks(writes).for_each(|(at, bytes)| {
        if rng.coin() {
            land(file, at, bytes);
        }
    });
}

/// Regions that a log says are dirty, of a volume of as many as there can be.
fn dirty(file: &[u8]) -> u64 {
    let mut log = DiskLog::new(1, u64::BITS, BLOCK, SyncMode::Default);
    let _ = log.resume(&[Some(file)]);
    log.dirty().fold(0, |all, region| all | 1u64 << region.0)
}
