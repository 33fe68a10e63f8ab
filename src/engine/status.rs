//! Makes a [`VolumeStatus`] from the tables of a running volume.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirrord_log::LogPlace;
use mirrord_raid::{FailReason, LegCounters, LegMap, LegState};
use mirrord_ublk::{EngineKind, LegFile};
use uuid::Uuid;

use super::meter::Meter;
use super::shared::{Shared, lock};
use crate::remote::RemoteStatus;
use crate::status::{
    IoStatus, LegStatus, LogServerStatus, LogStatus, ResyncStatus, VolumeState, VolumeStatus,
};

/// What does not change while a volume is served.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) uuid: Uuid,
    pub(super) device: PathBuf,
    pub(super) front: &'static str,
    /// Why it is not the better one.
    pub(super) front_note: Option<String>,
    pub(super) engine: EngineKind,
    pub(super) block_size: u32,
    /// How long a leg may take.
    pub(super) leg_timeout: Option<Duration>,
    pub(super) log: LogPlace,
    pub(super) log_note: Option<String>,
    pub(super) dirty_at_start: u32,
    /// It is a leg that was split off.
    pub(super) read_only: bool,
    pub(super) legs: Mutex<LegMap<LegFacts>>,
}

/// What does not change about a leg as long as it is one.
#[derive(Default)]
pub(super) struct LegFacts {
    pub(super) path: PathBuf,
    pub(super) uuid: Uuid,
    pub(super) direct: bool,
    /// What legs that had its index before counted.
    pub(super) before: LegCounts,
}

/// What a leg counted since the volume was started.
#[derive(Clone, Copy, Default)]
pub(super) struct LegCounts {
    reads: u64,
    writes: u64,
    written_bytes: u64,
    resynced_bytes: u64,
    read_errors: u64,
    write_errors: u64,
    flush_errors: u64,
    repaired: u64,
}

impl LegCounts {
    /// Since the first leg with this index.
    pub(super) fn of(counters: &LegCounters) -> LegCounts {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        LegCounts {
            reads: read(&counters.reads),
            writes: read(&counters.writes),
            written_bytes: read(&counters.written_bytes),
            resynced_bytes: read(&counters.resynced_bytes),
            read_errors: read(&counters.read_errors),
            write_errors: read(&counters.write_errors),
            flush_errors: read(&counters.flush_errors),
            repaired: read(&counters.repaired),
        }
    }
}

pub(super) fn status(
    facts: &Facts,
    shared: &Shared,
    files: &LegMap<Option<Arc<LegFile>>>,
    meter: &mut Meter,
    now: Instant,
) -> VolumeStatus {
    let mirror = &shared.mirror;
    let (geometry, counters) = (mirror.geometry(), &mirror.counters);
    let states = mirror.legs.states();
    let legs: Vec<LegStatus> = lock(&facts.legs)
        .iter()
        .filter(|(leg, _)| states.of(*leg) != LegState::Vacant)
        .map(|(leg, known)| leg_status(known, shared, files, leg))
        .collect();
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    let syncing = mirror.legs.states().syncing();
    let stale: u64 = syncing.iter().map(|leg| u64::from(mirror.legs.stale_count(leg))).sum();
    // Also of legs that were removed: a meter does not go back.
    let resynced_bytes = mirror.legs.counters.iter().map(|(_, leg)| read(&leg.resynced_bytes)).sum();
    let copied = read(&counters.resynced_regions);
    let progress = meter.sample(now, copied, resynced_bytes, stale);
    let rate = progress.bytes_per_second;
    let threads = facts.engine == EngineKind::Threads;
    VolumeStatus {
        name: facts.name.clone(),
        uuid: facts.uuid,
        pid: std::process::id(),
        device: facts.device.clone(),
        front: facts.front.to_owned(),
        engine: if threads { "threads" } else { "io_uring" }.to_owned(),
        engine_note: threads.then(|| "io_uring is not permitted here or was not wanted".to_owned()),
        front_note: facts.front_note.clone(),
        read_only: facts.read_only,
        size_bytes: geometry.size(),
        region_size_bytes: geometry.region_size(),
        regions: geometry.regions(),
        block_size_bytes: facts.block_size,
        leg_timeout_seconds: facts.leg_timeout.map(|limit| limit.as_secs()),
        queues: shared.inboxes.len() as u16,
        state: state(shared),
        event_count: read(&shared.event_count),
        legs,
        log: LogStatus {
            kind: facts.log.kind().name().to_owned(),
            place: place(&facts.log),
            dirty_regions: mirror.regions.unclean(),
            dirty_regions_at_start: facts.dirty_at_start,
            commits: read(&counters.commits),
            failed: shared.log_failed.load(Relaxed),
            server: shared.remote.as_ref().map(|remote| log_server(&remote.status(), shared)),
            note: if shared.log_failed.load(Relaxed) {
                Some("the log cannot be written: after a crash the whole volume is resynced".to_owned())
            } else {
                facts.log_note.clone()
            },
        },
        resync: ResyncStatus {
            active: stale > 0,
            paused: shared.resync_paused.load(Relaxed),
            limit_bytes_per_second: shared.throttle.limit(),
            done_regions: progress.done,
            total_regions: progress.total,
            copied_regions: copied,
            bytes_per_second: rate as u64,
            eta_seconds: (stale > 0 && rate >= 1.0)
                .then(|| ((stale * geometry.region_size()) as f64 / rate).ceil() as u64),
        },
        io: IoStatus {
            reads: read(&counters.reads),
            writes: read(&counters.writes),
            flushes: read(&counters.flushes),
            errors: read(&counters.errors),
        },
        scrub: shared.scrub.status(geometry.size(), shared.throttle.scrub_limit()),
        hardening: None,
        metrics: None,
    }
}

fn log_server(remote: &RemoteStatus, shared: &Shared) -> LogServerStatus {
    LogServerStatus {
        connected: remote.connected,
        behind: remote.behind,
        taken_over: shared.fenced.load(Relaxed),
        reconnects: remote.reconnects,
        last_error: remote.last_error.clone(),
        round_trip_microseconds: remote.round_trip.map(|time| time.as_micros() as u64),
    }
}

/// The state of the volume.
pub(super) fn state(shared: &Shared) -> VolumeState {
    let legs = &shared.mirror.legs;
    let states = legs.states();
    if legs.flush_broken() || shared.fenced.load(Relaxed) {
        VolumeState::Failed
    } else if states.in_use() != states.all() {
        VolumeState::Degraded
    } else if !states.syncing().is_empty() {
        VolumeState::Resyncing
    } else {
        VolumeState::InSync
    }
}

fn place(log: &LogPlace) -> Option<String> {
    match log {
        LogPlace::Internal | LogPlace::Core => None,
        LogPlace::Disk(path) => Some(path.display().to_string()),
        LogPlace::Remote(address) => Some(address.clone()),
    }
}

/// The words for a leg's state and, if it is out, for why.
pub(super) fn leg_state(state: LegState) -> (&'static str, Option<&'static str>) {
    match state {
        LegState::InSync => ("in_sync", None),
        LegState::Syncing => ("syncing", None),
        LegState::Tracked => ("tracked", None),
        LegState::Spare => ("spare", None),
        LegState::Vacant => ("removed", None),
        LegState::Failed(FailReason::Missing) => ("missing", Some("missing")),
        LegState::Failed(FailReason::Io) => ("failed", Some("io_error")),
        LegState::Failed(FailReason::NoSpace) => ("failed", Some("no_space")),
        LegState::Failed(FailReason::Admin) => ("failed", Some("by_hand")),
    }
}

fn leg_status(
    leg_facts: &LegFacts,
    shared: &Shared,
    files: &LegMap<Option<Arc<LegFile>>>,
    leg: mirrord_raid::Leg,
) -> LegStatus {
    let table = &shared.mirror.legs;
    let (now, before) = (LegCounts::of(&table.counters[leg]), &leg_facts.before);
    let state = table.states().of(leg);
    let (name, reason) = match (leg_state(state), &files[leg]) {
        (("spare", _), None) => ("spare", Some("missing")),
        (words, _) => words,
    };
    let replaces = lock(&shared.replaces)[leg.index()].map(mirrord_raid::Leg::index);
    let stale = match state {
        LegState::InSync | LegState::Spare | LegState::Vacant => 0,
        LegState::Syncing => table.stale_count(leg),
        LegState::Tracked if table.tracked_exactly().contains(leg) => table.stale_count(leg),
        LegState::Tracked | LegState::Failed(_) => shared.mirror.regions.unclean(),
    };
    LegStatus {
        path: leg_facts.path.clone(),
        uuid: leg_facts.uuid,
        index: leg.index(),
        state: name.to_owned(),
        reason: reason.map(str::to_owned),
        file: shared.places.amiss()[leg].map(|amiss| amiss.name().to_owned()),
        replaces,
        stale_regions: stale,
        direct_io: leg_facts.direct,
        reads: now.reads - before.reads,
        writes: now.writes - before.writes,
        written_bytes: now.written_bytes - before.written_bytes,
        resynced_bytes: now.resynced_bytes - before.resynced_bytes,
        read_errors: now.read_errors - before.read_errors,
        write_errors: now.write_errors - before.write_errors,
        flush_errors: now.flush_errors - before.flush_errors,
        hung: files[leg].as_ref().map_or(0, |file| file.hung()),
        repaired_reads: now.repaired - before.repaired,
    }
}
