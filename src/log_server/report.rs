//! What a log server says of itself and of its logs, for people and programs.

use mirrord_log::server::LogSummary;
use mirrord_log::{DiskLog, LogKind, ResumeNote};
use serde::{Deserialize, Serialize};

/// Longest part of a log's arguments that is shown.
const SHOWN: usize = 256;

/// A log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogReport {
    /// The mirror's name for it; bytes that are no text are escaped.
    pub uuid: String,
    /// Which life of the mirror's table, in hexadecimal.
    pub luid: String,
    /// `opening` `pending` `returned` `resuming` `live` `suspending` `closing` `suspended`.
    pub state: String,
    /// `core` or `disk`.
    pub kind: String,
    /// What it was constructed from.
    pub arguments: String,
    /// Of a log on a block device: `MAJOR:MINOR`.
    pub device: Option<String>,
    /// Regions in the mirror.
    pub regions: u32,
    /// Size of one.
    pub region_size_bytes: u64,
    /// Regions whose dirty bit is set.
    pub dirty_regions: u64,
    /// Regions that are the same on every leg.
    pub sync_regions: u64,
    /// Who uses it: `kernel`, or a connection.
    pub client: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Why a write to its file failed: of a volume's log the last one, of the kernel's any one.
    pub error: Option<String>,
    /// What its last resume found.
    pub note: Option<String>,
}

impl LogReport {
    pub(super) fn of(log: &LogSummary<'_>) -> LogReport {
        let status = log.status;
        let error = |errno: mirrord_raid::Errno| {
            let text = std::io::Error::from_raw_os_error(errno.0);
            crate::failure::describe(&text)
        };
        LogReport {
            uuid: log.name.uuid.escape_ascii().to_string(),
            luid: format!("{:x}", log.name.luid),
            state: log.life.name().to_owned(),
            kind: status.kind.name().to_owned(),
            arguments: log.text.chars().take(SHOWN).collect(),
            device: log.number.map(str::to_owned),
            regions: status.regions,
            region_size_bytes: status.region_size,
            dirty_regions: status.dirty_regions,
            sync_regions: status.sync_count,
            client: if log.client.is_kernel() { "kernel".to_owned() } else { log.peer.to_owned() },
            connected: !log.gone,
            error: log.failed.map(error),
            note: note(status.kind, status.note),
        }
    }
}

/// What a resume found, if that is worth a word.
fn note(kind: LogKind, note: ResumeNote) -> Option<String> {
    match note {
        ResumeNote::NotResumed | ResumeNote::Trusted => None,
        ResumeNote::BadSectors { bad, total } => Some(format!("{bad} of {total} sectors are bad")),
        ResumeNote::NoLog => Some("it was new: everything was dirty".to_owned()),
        ResumeNote::Ignored if kind == LogKind::Core => None,
        ResumeNote::Ignored => Some("what it said was not to be used".to_owned()),
        ResumeNote::UnknownVersion { version } => Some(format!("it was of the unknown version {version}")),
        ResumeNote::TooShort { len, need } => Some(format!("{len} of {need} bytes were there")),
        ResumeNote::Unreadable => Some("it could not be read: everything was dirty".to_owned()),
        ResumeNote::Grown { from } => Some(format!("it had {from} regions before")),
    }
}

/// Regions that follow one another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RegionRange {
    /// The first.
    pub from: u32,
    /// How many.
    pub regions: u32,
}

/// Joins regions, ascending, to ranges: at most `most`, and the region to go on from.
pub fn ranges(regions: impl Iterator<Item = u32>, most: usize) -> (Vec<RegionRange>, Option<u32>) {
    let mut found: Vec<RegionRange> = Vec::new();
    for region in regions {
        let is_full = found.len() == most;
        match found.last_mut() {
            Some(last) if last.from + last.regions == region => last.regions += 1,
            _ if is_full => return (found, Some(region)),
            _ => found.push(RegionRange { from: region, regions: 1 }),
        }
    }
    (found, None)
}

/// A log server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogServerReport {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// It answers the kernel of this machine.
    pub netlink: bool,
    /// What it listens to: `netlink`, `unix:PATH`, `tls:ADDRESS`, `tcp:ADDRESS`.
    pub listens: Vec<String>,
    /// Where volumes' logs are.
    pub folder: Option<String>,
    /// For how long the log of a volume that is gone is kept for it.
    pub lease_seconds: u64,
    /// No other host uses the kernel's mirrors, so it keeps `clustered-core` and `clustered-disk` for them.
    #[serde(default)]
    pub single_host: bool,
    /// Its logs.
    pub logs: usize,
    /// Those in use.
    pub live: usize,
    /// Logs of the kernel of which notes are kept for a server to come.
    pub noted: usize,
    /// Those notes are in memory, where a reboot takes them away.
    pub notes_in_memory: bool,
    /// Connections now.
    pub clients: u64,
    /// Connections that were dropped for what they sent.
    pub dropped_connections: u64,
    /// Requests of the kernel since the start.
    pub kernel_requests: u64,
    /// Requests over connections since the start.
    pub stream_requests: u64,
}

/// A disk log in a file, in the format of the kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DiskLogDump {
    /// Where.
    pub path: std::path::PathBuf,
    /// Version in its header.
    pub version: u32,
    /// Regions in its header; `None`: LVM made the log, and no mirror has used it since.
    pub regions: Option<u32>,
    /// Regions that are not clean.
    pub dirty_regions: u64,
    /// The last volume that used it through a server: the number of its life, in hexadecimal.
    pub owner: Option<String>,
    /// It said that it needs it no more.
    pub released: Option<bool>,
    /// The dirty regions.
    #[serde(skip)]
    pub dirty: Vec<RegionRange>,
}

/// Whose a log is, as [`DiskLogDump`] says it.
pub(super) fn owner(image: &[u8]) -> (Option<String>, Option<bool>) {
    let owner = DiskLog::owner_of(image);
    (owner.map(|owner| format!("{:x}", owner.luid)), owner.map(|owner| owner.released))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_become_ranges() {
        let range = |from, regions| RegionRange { from, regions };
        let (all, next) = ranges([1, 2, 3, 7, 9, 10].into_iter(), 9);
        assert_eq!((all, next), (vec![range(1, 3), range(7, 1), range(9, 2)], None));
        let (some, next) = ranges([1, 2, 3, 7, 9, 10].into_iter(), 2);
        assert_eq!((some, next), (vec![range(1, 3), range(7, 1)], Some(9)));
        assert_eq!(ranges(std::iter::empty(), 2), (Vec::new(), None));
    }
}
