//! Why a log is not constructed, for the server's own messages: the kernel tells its user only that it failed.

use super::{LogServer, Output};
use crate::wire::{LogName, TableError};

/// The same is not said again of a uuid for so many ticks: the kernel tries every two seconds.
const SILENCE: u64 = 60;

/// Most uuids of which it is known when something was said.
const MOST_TOLD: usize = 1024;

/// A log that was not constructed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log {uuid} is refused: {refusal}")]
pub struct Refused {
    /// Its uuid; bytes that are no plain text are escaped.
    pub uuid: String,
    /// Why.
    pub refusal: Refusal,
}

/// Why a log is not constructed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Its arguments make no sense.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Several hosts could use it.
    #[error(
        "{kind} is a log that several hosts may share, and this server knows of its own host alone: two such servers would \
         undo each other's marks. If no other host activates this mirror, restart the server with --single-host; else \
         activate it through a cluster's log daemon"
    )]
    Clustered {
        /// Which word the table has.
        kind: String,
    },
    /// There are too many logs or regions.
    #[error("the server has no room for its {regions} regions: see --max-logs and --max-regions")]
    Full {
        /// How many regions it would have.
        regions: u32,
    },
}

impl LogServer {
    /// Has it told, unless that was done just now.
    pub(super) fn refuse(&mut self, name: LogName<'_>, refusal: Refusal, out: &mut Output) {
        let now = self.now;
        if self.told.get(name.uuid).is_some_and(|then| now - then < SILENCE) {
            return;
        }
        if self.told.len() >= MOST_TOLD {
            self.told.clear();
        }
        self.told.insert(name.uuid.into(), now);
        out.refused.push(Refused { uuid: name.uuid.escape_ascii().to_string(), refusal });
    }
}
