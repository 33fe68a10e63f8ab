//! What is asked of a daemon and what it answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::events::Event;
use crate::status::VolumeStatus;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Are you there.
    Ping,
    /// How the volume is.
    Status,
    /// Stop serving it; answered when it is stopped.
    Stop {
        /// Although somebody uses it.
        #[serde(default)]
        force: bool,
    },
    /// Stop serving it, but leave its device to a daemon to come: users wait meanwhile.
    HandOver,
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
    /// It was done. To [`Request::Events`]: the volume is stopped, and there is no more.
    Done {
        /// To [`Request::Stop`]: legs with IO under way that was given up. They stay locked until that has ended.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left_behind: Vec<PathBuf>,
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
        Response::Done { left_behind: Vec::new() }
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
    use super::*;

    #[test]
    fn the_lines_are_as_documented() {
        for (text, request) in [
            (r#"{"verb":"ping"}"#, Request::Ping),
            (r#"{"verb":"status"}"#, Request::Status),
            (r#"{"verb":"stop"}"#, Request::Stop { force: false }),
            (r#"{"verb":"stop","force":true}"#, Request::Stop { force: true }),
            (r#"{"verb":"hand_over"}"#, Request::HandOver),
            (r#"{"verb":"events"}"#, Request::Events { since: None }),
            (r#"{"verb":"events","since":7}"#, Request::Events { since: Some(7) }),
            (r#"{"verb":"resync","rate":0}"#, Request::Resync { rate: Some(0), pause: None }),
            (r#"{"verb":"resync","pause":true}"#, Request::Resync { rate: None, pause: Some(true) }),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
            let back = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&back).unwrap(), request);
        }
        let pong = Response::Pong { name: "a".to_owned(), pid: 7 };
        assert_eq!(serde_json::to_string(&pong).unwrap(), r#"{"answer":"pong","name":"a","pid":7}"#);
        let done = r#"{"answer":"done"}"#;
        assert_eq!(serde_json::to_string(&Response::done()).unwrap(), done);
        assert_eq!(serde_json::from_str::<Response>(done).unwrap(), Response::done());
    }
}
