//! What a check found.

use serde::Serialize;

/// How it is with what was looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be, or not needed here.
    Ok,
    /// mirrord does without, or with less.
    Limited,
    /// What depends on it does not work.
    Missing,
}

impl Health {
    /// The word of the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Limited => "limited",
            Health::Missing => "missing",
        }
    }
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub state: Health,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(check: &str, why: &str, found: impl Into<String>) -> Finding {
        Finding {
            check: check.to_owned(),
            state: Health::Ok,
            found: found.into(),
            why: why.to_owned(),
            remedy: None,
        }
    }

    /// It works, but not as well as it could.
    pub(super) fn limited(
        check: &str,
        why: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { state: Health::Limited, remedy: Some(remedy.into()), ..Finding::ok(check, why, found) }
    }

    /// It does not work.
    pub(super) fn missing(
        check: &str,
        why: &str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { state: Health::Missing, ..Finding::limited(check, why, found, remedy) }
    }
}
