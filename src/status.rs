//! What `status --json` prints: the one description of a running volume, made by the engine, sent over
//! the control socket, shown by the command line. Field names are the interface: add, never rename.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::scrub::ScrubStatus;

/// A running volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Process id of its daemon.
    pub pid: u32,
    /// The device or file that users open.
    pub device: PathBuf,
    /// Front end: `fuse` or `ublk`.
    pub front: String,
    /// Who does the leg IO: `io_uring` or `threads`.
    pub engine: String,
    /// Why the engine is not the better one, if it is not.
    pub engine_note: Option<String>,
    /// Why the front end is not the better one, if it is not and was not asked for.
    pub front_note: Option<String>,
    /// Nobody can write to it: it is a leg that was split off.
    #[serde(default)]
    pub read_only: bool,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Region size in bytes.
    pub region_size_bytes: u64,
    /// Number of regions.
    pub regions: u32,
    /// Smallest unit of IO on the legs, in bytes.
    pub block_size_bytes: u32,
    /// Seconds after which a leg that hangs is given up; `None`: never.
    #[serde(default)]
    pub leg_timeout_seconds: Option<u64>,
    /// Queues.
    pub queues: u16,
    /// The volume's state.
    pub state: VolumeState,
    /// Event count of the newest record.
    pub event_count: u64,
    /// Its legs, by index.
    pub legs: Vec<LegStatus>,
    /// Its log.
    pub log: LogStatus,
    /// Resync.
    pub resync: ResyncStatus,
    /// Scrubs.
    #[serde(default)]
    pub scrub: ScrubStatus,
    /// Requests answered since start.
    pub io: IoStatus,
    /// What protects the daemon when memory is short; absent where the volume has no daemon of its own.
    #[serde(default)]
    pub hardening: Option<Hardening>,
    /// Where its metrics are; absent if there are none.
    #[serde(default)]
    pub metrics: Option<String>,
}

/// What protects a daemon when memory is short.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hardening {
    /// Its IO does not wait for memory that is freed by writing to its own volume.
    pub io_flusher: bool,
    /// Its memory is never swapped out.
    pub memory_locked: bool,
    /// It is never killed for want of memory.
    pub oom_protected: bool,
}

/// The state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Every leg is in sync.
    InSync,
    /// A leg is being resynced, none is out.
    Resyncing,
    /// A leg is out.
    Degraded,
    /// A flush failed on the last leg in sync, and flushes fail until the volume is started anew; or its log was taken over
    /// by another daemon, and everything fails.
    Failed,
}

impl VolumeState {
    /// The word of the JSON.
    pub fn name(self) -> &'static str {
        match self {
            VolumeState::InSync => "in_sync",
            VolumeState::Resyncing => "resyncing",
            VolumeState::Degraded => "degraded",
            VolumeState::Failed => "failed",
        }
    }
}

/// A leg of a running volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LegStatus {
    /// Where it is (or was, if it is missing).
    pub path: PathBuf,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its place in the volume.
    pub index: usize,
    /// `in_sync` `syncing` `tracked` `spare` `failed` `missing`.
    pub state: String,
    /// Why it is failed: `io_error` `no_space` `missing` `by_hand`.
    pub reason: Option<String>,
    /// What is amiss with its file while it is open: `deleted`, `renamed` (its name leads elsewhere or nowhere) or
    /// `truncated`.
    #[serde(default)]
    pub file: Option<String>,
    /// The index of the leg whose place it takes once it is in sync.
    #[serde(default)]
    pub replaces: Option<usize>,
    /// Regions in which its copy may be older than the volume.
    pub stale_regions: u32,
    /// Whether IO to it goes past the page cache.
    pub direct_io: bool,
    /// Reads it answered.
    pub reads: u64,
    /// Writes it carried out.
    pub writes: u64,
    /// Bytes written to it for users of the volume.
    pub written_bytes: u64,
    /// Bytes copied to it by resync.
    pub resynced_bytes: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
    /// IO on it that was given up and is still under way.
    #[serde(default)]
    pub hung: u32,
    /// Ranges that it could not read and that were written anew from another leg.
    #[serde(default)]
    pub repaired_reads: u64,
}

/// The dirty-region log of a running volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// `internal` `core` `disk` `remote`.
    pub kind: String,
    /// Where it is, if it is not on the legs.
    pub place: Option<String>,
    /// Regions whose bit is set.
    pub dirty_regions: u32,
    /// Regions that were dirty when the volume was started.
    pub dirty_regions_at_start: u32,
    /// Commits since start.
    pub commits: u64,
    /// It cannot be written: after a crash the whole volume is resynced.
    #[serde(default)]
    pub failed: bool,
    /// Of a log that a server keeps: how that is.
    #[serde(default, flatten)]
    pub server: Option<LogServerStatus>,
    /// What was wrong with the log at start, or since.
    pub note: Option<String>,
}

/// The server of a volume's log, as the volume knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogServerStatus {
    /// It is there and has given the log.
    pub connected: bool,
    /// It lacks something that was marked.
    pub behind: bool,
    /// It gave the log to another daemon, and this volume is over.
    pub taken_over: bool,
    /// How often the log was had again.
    pub reconnects: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// How long the last commit took.
    pub round_trip_microseconds: Option<u64>,
}

/// Resync of a running volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// Stale regions are being copied, or wait for it.
    pub active: bool,
    /// Held by `resync --pause`.
    pub paused: bool,
    /// Rate limit in bytes per second, if one was set.
    pub limit_bytes_per_second: Option<u64>,
    /// Regions copied in the present or last resync.
    pub done_regions: u64,
    /// Regions of the present or last resync.
    pub total_regions: u64,
    /// Regions copied since start.
    pub copied_regions: u64,
    /// Bytes per second, lately.
    pub bytes_per_second: u64,
    /// Seconds to go, if it is going.
    pub eta_seconds: Option<u64>,
}

/// Requests of the front end since start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IoStatus {
    /// Reads.
    pub reads: u64,
    /// Writes and zero requests.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Answered with an error.
    pub errors: u64,
}
