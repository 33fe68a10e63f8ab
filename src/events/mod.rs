//! What happens to a running volume: one event for each change that somebody may have to act on.
//!
//! The engine notices changes and adds them to the volume's [`Journal`]; any number of [`Reader`]s follow that
//! (`mirrord events`), and a [`Hook`] runs a program for each. Field names are the interface: add, never rename.

mod hook;
mod journal;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use uuid::Uuid;

pub use hook::{BadHook, Hook, become_hook, check_hook};
pub use journal::{Journal, Next, Reader};

use crate::status::VolumeState;

/// Something that happened to a volume.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// One more than that of the event before; greater than those of earlier daemons, unless the clock went back.
    pub sequence: u64,
    /// When: RFC 3339 in UTC, to the microsecond.
    pub time: String,
    /// The volume's name.
    pub volume: String,
    /// The volume's UUID.
    pub uuid: Uuid,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What can happen. States and reasons are the words of status.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The volume can be used.
    Started {
        /// What users open.
        device: String,
        /// How it is.
        state: VolumeState,
    },
    /// It is being stopped: nobody uses it any more.
    Stopping {
        /// Its device is left to the next daemon, its users waiting.
        handed_over: bool,
    },
    /// A leg changed its state.
    LegState {
        /// Its place in the volume.
        leg: usize,
        /// Where it is.
        path: String,
        /// Its state until now.
        from: String,
        /// Its state from now on.
        to: String,
        /// Why, if it is out.
        reason: Option<String>,
    },
    /// The file of a leg in use is not where it was, or not what it was; or is again.
    LegFile {
        /// Its place in the volume.
        leg: usize,
        /// Where it is, or was.
        path: String,
        /// `deleted` `renamed` `truncated`; absent: nothing any more.
        amiss: Option<String>,
    },
    /// The volume changed its state.
    VolumeState {
        /// Until now.
        from: VolumeState,
        /// From now on.
        to: VolumeState,
    },
    /// Stale regions of a leg are to be copied.
    ResyncStarted {
        /// How many, summed over legs. More may come.
        stale_regions: u64,
    },
    /// Nothing is copied any more.
    ResyncFinished {
        /// Every leg that was being resynced is in sync; else one of them is out.
        complete: bool,
        /// Regions that were copied.
        copied_regions: u64,
    },
    /// The legs are being compared.
    ScrubStarted {
        /// What differs is written anew.
        repair: bool,
        /// From this byte on: not 0 if it goes on after a restart.
        offset: u64,
    },
    /// A scrub found that legs differ. Said at most once a second, of all that was found since.
    ScrubMismatch {
        /// How many ranges; `status` names them.
        ranges: u64,
        /// Their bytes.
        bytes: u64,
        /// Where the first is.
        first_offset: u64,
    },
    /// A scrub has ended.
    ScrubFinished {
        /// It came to the end of the volume.
        complete: bool,
        /// Ranges in which legs differed.
        mismatched_ranges: u64,
        /// Bytes of these.
        mismatched_bytes: u64,
        /// Ranges of these that were repaired.
        repaired_ranges: u64,
        /// Windows that a leg could not read all of.
        read_errors: u64,
    },
    /// The log cannot be written: after a crash the whole volume is resynced.
    LogFailed,
    /// The server that keeps the log is away.
    LogLost {
        /// Why.
        error: String,
    },
    /// It is there again, and the log is whole.
    LogBack,
    /// It gave the log to another daemon: every request to this one fails from now on.
    LogTakenOver,
    /// IO on a leg failed. Said at most once a second for each leg, of all that failed since.
    IoErrors {
        /// Its place in the volume.
        leg: usize,
        /// Where it is.
        path: String,
        /// Reads that failed.
        reads: u64,
        /// Writes that failed.
        writes: u64,
        /// Flushes that failed.
        flushes: u64,
    },
    /// What a leg could not read was written anew from another. Said as seldom.
    Repaired {
        /// Its place in the volume.
        leg: usize,
        /// Where it is.
        path: String,
        /// How many ranges.
        ranges: u64,
    },
}

impl Event {
    /// The event's name.
    pub fn name(&self) -> &'static str {
        match &self.what {
            What::Started { .. } => "started",
            What::Stopping { .. } => "stopping",
            What::LegState { .. } => "leg_state",
            What::LegFile { .. } => "leg_file",
            What::VolumeState { .. } => "volume_state",
            What::ResyncStarted { .. } => "resync_started",
            What::ResyncFinished { .. } => "resync_finished",
            What::ScrubStarted { .. } => "scrub_started",
            What::ScrubMismatch { .. } => "scrub_mismatch",
            What::ScrubFinished { .. } => "scrub_finished",
            What::LogFailed => "log_failed",
            What::LogLost { .. } => "log_lost",
            What::LogBack => "log_back",
            What::LogTakenOver => "log_taken_over",
            What::IoErrors { .. } => "io_errors",
            What::Repaired { .. } => "repaired",
        }
    }

    /// Its fields by name, each as plain text; those that say nothing are left out.
    pub fn fields(&self) -> Vec<(String, String)> {
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return Vec::new() };
        let plain = |(name, value)| match value {
            Value::Null => None,
            Value::String(text) => Some((name, text)),
            value => Some((name, value.to_string())),
        };
        fields.into_iter().filter_map(plain).collect()
    }
}

/// One line for people.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}  {}  ", self.time, self.sequence, self.volume)?;
        match &self.what {
            What::Started { device, state } => write!(f, "started  {device}  {}", state.name()),
            What::Stopping { handed_over: true } => write!(f, "stopping, handed over"),
            What::Stopping { handed_over: false } => write!(f, "stopping"),
            What::LegState { leg, path, from, to, reason } => {
                let reason = reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
                write!(f, "leg {leg} {path}  {from} -> {to}{reason}")
            }
            What::LegFile { leg, path, amiss } => {
                let what = match amiss.as_deref() {
                    None => "its file is in its place",
                    Some("deleted") => "its file was deleted: what is on it is gone once the volume stops",
                    Some("truncated") => "its file became shorter: what was cut off is lost",
                    Some(_) => "its name leads to another file or nowhere",
                };
                write!(f, "leg {leg} {path}  {what}")
            }
            What::VolumeState { from, to } => write!(f, "{} -> {}", from.name(), to.name()),
            What::ResyncStarted { stale_regions } => {
                write!(f, "resync started, {stale_regions} stale regions")
            }
            What::ResyncFinished { complete, copied_regions } => {
                let how = if *complete { "finished" } else { "broken off" };
                write!(f, "resync {how}, {copied_regions} regions copied")
            }
            What::ScrubStarted { repair, offset } => {
                let begun = if *offset == 0 { "started" } else { "goes on" };
                let repair = if *repair { ", repairs" } else { "" };
                write!(f, "scrub {begun} at {offset}{repair}")
            }
            What::ScrubMismatch { ranges, bytes, first_offset } => {
                write!(f, "scrub: legs differ in {ranges} ranges, {bytes} bytes, first at {first_offset}")
            }
            What::ScrubFinished {
                complete, mismatched_ranges, mismatched_bytes, repaired_ranges, ..
            } => {
                let how = if *complete { "finished" } else { "canceled" };
                write!(f, "scrub {how}, {mismatched_ranges} ranges differed ({mismatched_bytes} bytes), ")?;
                write!(f, "{repaired_ranges} repaired")
            }
            What::LogLost { error } => write!(f, "the log server is away: {error}"),
            What::LogBack => write!(f, "the log server is back"),
            What::LogTakenOver => write!(f, "the log was taken over by another daemon: this volume is over"),
            What::LogFailed => {
                write!(f, "the log cannot be written: after a crash the whole volume is resynced")
            }
            What::IoErrors { leg, path, reads, writes, flushes } => {
                write!(f, "leg {leg} {path}  failed: {reads} reads, {writes} writes, {flushes} flushes")
            }
            What::Repaired { leg, path, ranges } => write!(f, "leg {leg} {path}  {ranges} ranges repaired"),
        }
    }
}

/// The present time as events have it.
pub(crate) fn now() -> String {
    let mut text = String::new();
    // Fails only if the string does.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        let time = "2026-01-02T03:04:05.678901Z".to_owned();
        Event { sequence: 7, time, volume: "v".to_owned(), uuid: Uuid::nil(), what }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = event(What::LegState {
            leg: 1,
            path: "/x/b".to_owned(),
            from: "in_sync".to_owned(),
            to: "failed".to_owned(),
            reason: Some("no_space".to_owned()),
        });
        let text = serde_json::to_string(&event).unwrap();
        let head = r#"{"sequence":7,"time":"2026-01-02T03:04:05.678901Z","volume":"v","uuid":"#;
        assert!(text.starts_with(head), "{text}");
        let tail = r#""event":"leg_state","leg":1,"path":"/x/b","from":"in_sync","to":"failed","reason":"no_space"}"#;
        assert!(text.ends_with(tail), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let line = event.to_string();
        assert!(line.ends_with("  7  v  leg 1 /x/b  in_sync -> failed (no_space)"), "{line}");
    }

    #[test]
    fn names_are_those_of_the_json() {
        let (leg, path) = (0, String::new());
        let states = (VolumeState::InSync, VolumeState::Degraded);
        for what in [
            What::Started { device: String::new(), state: states.0 },
            What::Stopping { handed_over: true },
            What::LegState { leg, path: path.clone(), from: String::new(), to: String::new(), reason: None },
            What::LegFile { leg, path: path.clone(), amiss: None },
            What::VolumeState { from: states.0, to: states.1 },
            What::ResyncStarted { stale_regions: 3 },
            What::ResyncFinished { complete: true, copied_regions: 3 },
            What::ScrubStarted { repair: true, offset: 0 },
            What::ScrubMismatch { ranges: 1, bytes: 512, first_offset: 0 },
            What::ScrubFinished {
                complete: true,
                mismatched_ranges: 1,
                mismatched_bytes: 512,
                repaired_ranges: 1,
                read_errors: 0,
            },
            What::LogFailed,
            What::LogLost { error: "cannot connect".to_owned() },
            What::LogBack,
            What::LogTakenOver,
            What::IoErrors { leg, path: path.clone(), reads: 1, writes: 2, flushes: 3 },
            What::Repaired { leg, path: path.clone(), ranges: 1 },
        ] {
            let event = event(what);
            let fields = event.fields();
            let field = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, text)| &text[..]);
            assert_eq!(field("event"), Some(event.name()));
            assert_eq!((field("sequence"), field("volume"), field("reason")), (Some("7"), Some("v"), None));
        }
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        let time = now();
        let shape: String = time.chars().map(|char| if char.is_ascii_digit() { '0' } else { char }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000Z", "{time}");
    }
}
