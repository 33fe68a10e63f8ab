//! Requests of a session that wait for their answers.

use std::collections::BTreeMap;

use mirrord_raid::Region;
use zerocopy::little_endian::U64;

use crate::wire::{LogName, MAX_REGIONS, Regions, Request, RequestType, encode_request};

/// What a request belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum For {
    /// Getting the log.
    Having,
    /// The commit under way.
    Commit,
    /// Saying again what is dirty.
    Replay,
    /// Unsetting bits that the server has and ought not to.
    Tidying,
    /// The goodbye.
    Goodbye,
}

/// A request without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) request: RequestType,
    pub(super) what_for: For,
    /// In ticks.
    since: u64,
}

/// Numbers requests, and knows which are under way. Numbers are not used again on a later connection.
#[derive(Debug)]
pub(super) struct Talk {
    uuid: String,
    luid: u64,
    seq: u32,
    asked: BTreeMap<u32, Asked>,
    now: u64,
    /// To be sent.
    pub(super) bytes: Vec<u8>,
}

impl Talk {
    pub(super) fn new(uuid: String, luid: u64) -> Talk {
        Talk { uuid, luid, seq: 0, asked: BTreeMap::new(), now: 0, bytes: Vec::new() }
    }

    pub(super) fn name(&self) -> LogName<'_> {
        LogName { uuid: self.uuid.as_bytes(), luid: self.luid }
    }

    pub(super) fn ask(&mut self, what_for: For, request: &Request<'_>) {
        self.seq = self.seq.wrapping_add(1);
        let name = LogName { uuid: self.uuid.as_bytes(), luid: self.luid };
        encode_request(name, self.seq, request, &mut self.bytes);
        let asked = Asked { request: request.request_type(), what_for, since: self.now };
        self.asked.insert(self.seq, asked);
    }

    /// Asks to clear `clears`, then to mark `marks`, then that all of it be durable: as few requests as that takes.
    pub(super) fn ask_to_change(&mut self, what_for: For, clears: &[Region], marks: &[Region]) {
        for clears in clears.chunks(MAX_REGIONS) {
            self.ask(what_for, &Request::ClearRegion(Regions::new(&numbers(clears))));
        }
        let mut chunks = marks.chunks(MAX_REGIONS).peekable();
        let mut last: &[Region] = &[];
        while let Some(chunk) = chunks.next() {
            if chunks.peek().is_none() {
                last = chunk;
            } else {
                self.ask(what_for, &Request::MarkRegion(Regions::new(&numbers(chunk))));
            }
        }
        self.ask(what_for, &Request::Flush(Regions::new(&numbers(last))));
    }

    pub(super) fn answered(&mut self, seq: u32) -> Option<Asked> {
        self.asked.remove(&seq)
    }

    /// How many requests of this kind wait.
    pub(super) fn count(&self, what_for: For) -> usize {
        self.asked.values().filter(|asked| asked.what_for == what_for).count()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// A tick went by. A request that has waited for more than `patience`.
    pub(super) fn tick(&mut self, patience: u32) -> Option<RequestType> {
        self.now += 1;
        let oldest = self.asked.values().min_by_key(|asked| asked.since)?;
        (self.now - oldest.since > u64::from(patience)).then_some(oldest.request)
    }

    /// No answer will come any more.
    pub(super) fn forget(&mut self) {
        self.asked.clear();
        self.bytes.clear();
    }
}

pub(super) fn numbers(regions: &[Region]) -> Vec<U64> {
    regions.iter().map(|region| U64::new(region.0.into())).collect()
}
