//! What is asked of a daemon and what it answers.

use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::events::Event;
use crate::log_server::{LogReport, LogServerReport, RegionRange};
use crate::map::VolumeMap;
use crate::scrub::ScrubOrder;
use crate::status::VolumeStatus;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Are you there.
    Ping,
    /// How the volume is.
    Status,
    /// How its regions are. An answer has at most [`MOST_RUNS`](crate::map::MOST_RUNS) runs: ask on from where it ended.
    Map {
        /// Make at most so many cells of the whole volume; absent: one of each region.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cells: Option<NonZeroU32>,
        /// The first region.
        #[serde(default)]
        from: u32,
    },
    /// Stop serving it; answered when it is stopped.
    Stop {
        /// Although somebody uses it.
        #[serde(default)]
        force: bool,
    },
    /// Stop serving it, but leave its device to a daemon to come: users wait meanwhile.
    HandOver,
    /// Take a leg out by hand. Legs are named by path, index or UUID.
    FailLeg {
        /// Which.
        leg: String,
    },
    /// Take a leg back that had failed or was missing, or make a new one.
    AddLeg {
        /// Where it is, absolute.
        path: PathBuf,
        /// A new one is to be a spare.
        #[serde(default)]
        spare: bool,
        /// Make a new one although something is there.
        #[serde(default)]
        force: bool,
        /// Allocate a new one, so that it never runs out of space.
        #[serde(default)]
        preallocate: bool,
    },
    /// Remove a leg for good.
    RemoveLeg {
        /// Which.
        leg: String,
    },
    /// Make a new leg that takes the place of another, which leaves once the new one is in sync.
    ReplaceLeg {
        /// Which is to leave.
        leg: String,
        /// Where the new one is, absolute.
        path: PathBuf,
        /// As for [`Request::AddLeg`].
        #[serde(default)]
        force: bool,
        /// As for [`Request::AddLeg`].
        #[serde(default)]
        preallocate: bool,
    },
    /// Split a leg off and track what changes.
    SplitLeg {
        /// Which.
        leg: String,
        /// Make it a volume of its own of this name instead, for good.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Take a leg back that was split off.
    MergeLeg {
        /// Which: as it was known, or where it is by now (absolute).
        leg: String,
        /// Copy all of it, also if it was written to meanwhile.
        #[serde(default)]
        full: bool,
    },
    /// Make it larger; answered when it is.
    Resize {
        /// In bytes.
        size: u64,
    },
    /// What happens to it, line by line until it is stopped. Nothing else can be asked on this connection then.
    Events {
        /// First what came after the event of this number, as far as it is remembered; 0: all that is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<u64>,
    },
    /// Change how it is resynced; what is absent stays.
    Resync {
        /// Bytes per second, 0 for no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<u64>,
        /// Held or going.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause: Option<bool>,
    },
    /// Compare the legs, or change how that is done.
    Scrub {
        /// What to do.
        #[serde(flatten)]
        order: ScrubOrder,
    },
    /// Of a log server: how it is.
    LogServer,
    /// Of a log server: its logs, some at a time.
    Logs {
        /// How many to leave out.
        #[serde(default)]
        from: usize,
    },
    /// Of a log server: a log and its dirty regions, some at a time.
    DirtyRegions {
        /// The log, as [`LogReport`] has it.
        uuid: String,
        /// Which life of its table, if there are several; absent: the one in use.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        luid: Option<String>,
        /// The first region.
        #[serde(default)]
        from: u32,
    },
    /// Of a log server: drop a log whose mirror is gone.
    ForgetLog {
        /// Which.
        uuid: String,
        /// As for [`Request::DirtyRegions`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        luid: Option<String>,
        /// Although it is in use.
        #[serde(default)]
        force: bool,
    },
}

/// What a daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Ping`].
    Pong {
        /// The volume's name.
        name: String,
        /// The daemon's process id.
        pid: u32,
    },
    /// To [`Request::Status`].
    Status {
        /// How the volume is.
        status: Box<VolumeStatus>,
    },
    /// To requests that are about one leg: it was done.
    Leg {
        /// Its index.
        index: usize,
        /// Where it is.
        path: PathBuf,
        /// To [`Request::SplitLeg`]: how long writes waited, in microseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pause_us: Option<u64>,
        /// What the user should know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// To [`Request::Map`].
    Map {
        /// How the regions are.
        map: Box<VolumeMap>,
    },
    /// To [`Request::Events`].
    Event {
        /// What happened.
        event: Box<Event>,
    },
    /// To [`Request::Events`]: here events are missing.
    Missed {
        /// How many, if that is known.
        events: Option<u64>,
    },
    /// To [`Request::LogServer`].
    LogServer {
        /// How it is.
        server: Box<LogServerReport>,
    },
    /// To [`Request::Logs`].
    Logs {
        /// Some of them.
        logs: Vec<LogReport>,
        /// Where to go on.
        next: Option<usize>,
    },
    /// To [`Request::DirtyRegions`].
    DirtyRegions {
        /// The log.
        log: Box<LogReport>,
        /// Some of its dirty regions.
        dirty: Vec<RegionRange>,
        /// Where to go on.
        next: Option<u32>,
    },
    /// It was done. To [`Request::Events`]: the volume is stopped, and there is no more.
    Done {
        /// To [`Request::Stop`]: legs with IO under way that was given up. They stay locked until that has ended.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left_behind: Vec<PathBuf>,
        /// To [`Request::Stop`]: what the user should know of the legs that were let go of.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        notes: Vec<String>,
    },
    /// It was not done.
    Failed {
        /// Why, for programs.
        reason: Failure,
        /// Why, for people.
        message: String,
    },
}

impl Response {
    /// It was done, and that is all.
    pub fn done() -> Response {
        Response::Done { left_behind: Vec::new(), notes: Vec::new() }
    }
}

/// Why something was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The request makes no sense here.
    BadRequest,
    /// The volume is in use.
    Busy,
    /// It did not work.
    Error,
}

#[cfg(test)]
mod tests {
    use mirrord_raid::MAX_LEGS;

    use super::super::MAX_LINE;
    use super::*;
    use crate::map::{LegInMap, MOST_RUNS, RegionWord, Run};

    #[test]
    fn the_lines_are_as_documented() {
        let add = |spare| Request::AddLeg { path: "/b".into(), spare, force: false, preallocate: false };
        let split = |leg: &str, name: Option<&str>| Request::SplitLeg {
            leg: leg.to_owned(),
            name: name.map(str::to_owned),
        };
        let replace =
            Request::ReplaceLeg { leg: "1".to_owned(), path: "/c".into(), force: true, preallocate: false };
        for (text, request) in [
            (r#"{"verb":"ping"}"#, Request::Ping),
            (r#"{"verb":"status"}"#, Request::Status),
            (r#"{"verb":"map"}"#, Request::Map { cells: None, from: 0 }),
            (r#"{"verb":"map","cells":9,"from":7}"#, Request::Map { cells: NonZeroU32::new(9), from: 7 }),
            (r#"{"verb":"stop"}"#, Request::Stop { force: false }),
            (r#"{"verb":"stop","force":true}"#, Request::Stop { force: true }),
            (r#"{"verb":"hand_over"}"#, Request::HandOver),
            (r#"{"verb":"fail_leg","leg":"1"}"#, Request::FailLeg { leg: "1".to_owned() }),
            (r#"{"verb":"add_leg","path":"/b"}"#, add(false)),
            (r#"{"verb":"add_leg","path":"/b","spare":true}"#, add(true)),
            (r#"{"verb":"remove_leg","leg":"1"}"#, Request::RemoveLeg { leg: "1".to_owned() }),
            (r#"{"verb":"replace_leg","leg":"1","path":"/c","force":true}"#, replace),
            (r#"{"verb":"split_leg","leg":"1","name":"n"}"#, split("1", Some("n"))),
            (r#"{"verb":"split_leg","leg":"/b"}"#, split("/b", None)),
            (r#"{"verb":"merge_leg","leg":"1"}"#, Request::MergeLeg { leg: "1".to_owned(), full: false }),
            (r#"{"verb":"resize","size":4096}"#, Request::Resize { size: 4096 }),
            (r#"{"verb":"events"}"#, Request::Events { since: None }),
            (r#"{"verb":"events","since":7}"#, Request::Events { since: Some(7) }),
            (r#"{"verb":"resync","rate":0}"#, Request::Resync { rate: Some(0), pause: None }),
            (r#"{"verb":"resync","pause":true}"#, Request::Resync { rate: None, pause: Some(true) }),
            (r#"{"verb":"log_server"}"#, Request::LogServer),
            (r#"{"verb":"logs"}"#, Request::Logs { from: 0 }),
            (
                r#"{"verb":"dirty_regions","uuid":"u","from":7}"#,
                Request::DirtyRegions { uuid: "u".to_owned(), luid: None, from: 7 },
            ),
            (r#"{"verb":"scrub","order":"cancel"}"#, Request::Scrub { order: ScrubOrder::Cancel }),
            (
                r#"{"verb":"scrub","order":"start"}"#,
                Request::Scrub { order: ScrubOrder::Start { repair: false, from: None, rate: None } },
            ),
            (
                r#"{"verb":"scrub","order":"schedule","days":7}"#,
                Request::Scrub { order: ScrubOrder::Schedule { days: 7 } },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            let back = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&back).unwrap(), request);
        }
        assert!(serde_json::from_str::<Request>(r#"{"verb":"map","cells":0}"#).is_err());
        let pong = Response::Pong { name: "a".to_owned(), pid: 7 };
        assert_eq!(serde_json::to_string(&pong).unwrap(), r#"{"answer":"pong","name":"a","pid":7}"#);
        let done = r#"{"answer":"done"}"#;
        assert_eq!(serde_json::to_string(&Response::done()).unwrap(), done);
        assert_eq!(serde_json::from_str::<Response>(done).unwrap(), Response::done());
    }

    #[test]
    fn the_longest_map_fits_a_line() {
        let leg = LegInMap {
            index: MAX_LEGS - 1,
            path: PathBuf::from("\u{1}".repeat(4096)),
            state: "missing".to_owned(),
            stale_regions: u32::MAX,
            resyncing_regions: u32::MAX,
        };
        let run = Run {
            start: u32::MAX,
            count: u32::MAX,
            state: RegionWord::Resyncing,
            stale_legs: (0..MAX_LEGS - 1).collect(),
            // At most four regions are copied at a time.
            resyncing_legs: Vec::new(),
        };
        let map = VolumeMap {
            name: "v".repeat(255),
            size_bytes: u64::MAX,
            region_size_bytes: u64::MAX,
            regions: u32::MAX,
            regions_per_cell: u32::MAX,
            clean_regions: u32::MAX,
            dirty_regions: u32::MAX,
            legs: vec![leg; MAX_LEGS],
            runs: vec![run; MOST_RUNS],
            next: Some(u32::MAX),
        };
        let line = serde_json::to_string(&Response::Map { map: Box::new(map) }).unwrap();
        assert!(line.len() as u64 <= MAX_LINE * 3 / 4, "{}", line.len());
    }
}
