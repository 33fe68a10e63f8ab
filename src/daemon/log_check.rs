//! Whether the log that a volume's legs name is one that this host may open.
//!
//! What a leg says is not the word of this host's administrator: it may come from elsewhere. A path is opened, and an
//! address connected to, only if this host knows that very place as the volume's, or if the command line names it.

use std::path::PathBuf;

use mirrord_log::LogPlace;
use serde::{Deserialize, Serialize};

use crate::engine::LogOptions;
use crate::log_place::{BadLog, parse_log, place_text};
use crate::registry::{Known, Registry};
use crate::remote::Address;
use crate::start::Opened;

/// What the command line says of the log. Places as [`parse_log`] reads them, paths absolute.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogSpec {
    /// If the legs say this, it is right.
    pub confirmed: Option<String>,
    /// It is here, whatever the legs say.
    pub at: Option<String>,
    /// It begins anew here.
    pub new: Option<String>,
    /// A log that begins anew may overwrite what is there.
    pub force: bool,
}

impl LogSpec {
    /// For the engine.
    ///
    /// # Errors
    /// If a place is none.
    pub(super) fn options(&self) -> Result<LogOptions, BadLog> {
        let place = |text: &Option<String>| text.as_deref().map(parse_log).transpose();
        Ok(LogOptions { at: place(&self.at)?, new: place(&self.new)?, force: self.force })
    }
}

/// Why a log is not opened. The texts of legs are escaped.
#[derive(Debug, thiserror::Error)]
pub enum LogRefused {
    /// The volume is not known here.
    #[error(
        "its legs say that its log is {place}, and this host does not know the volume: if that is right, confirm it \
         with --log {place}; --new-log disk:PATH (or internal, or core) begins another log"
    )]
    Unknown {
        /// Where the legs say it is.
        place: String,
    },
    /// It is known with a log elsewhere.
    #[error(
        "its legs say that its log is {place}, and this host knows it with the log {known}: if the legs are right, \
         confirm it with --log {place}"
    )]
    Differs {
        /// Where the legs say it is.
        place: String,
        /// Where it was.
        known: String,
    },
    /// The legs say that the server is reached without TLS, and it was reached with TLS.
    #[error(
        "its legs say that its log is {place}, without TLS, and this host has certificates for its log server: if the \
         legs are right, confirm it with --log {place}"
    )]
    Downgrade {
        /// Where the legs say it is.
        place: String,
    },
}

/// Refuses a log elsewhere than on the legs that neither this host's memory nor the command line confirms.
///
/// # Errors
/// See [`LogRefused`].
pub(super) fn check(opened: &Opened, spec: &LogSpec, registry: &Registry) -> Result<(), LogRefused> {
    let recorded = opened.log_place();
    let text = place_text(recorded);
    let is_named = spec.at.is_some() || spec.new.is_some() || spec.confirmed.as_ref() == Some(&text);
    if is_named || matches!(recorded, LogPlace::Internal | LogPlace::Core) {
        return Ok(());
    }
    let place = text.escape_debug().to_string();
    let Some(known) = registry.all().into_iter().find(|known| known.uuid == opened.uuid()) else {
        return Err(LogRefused::Unknown { place });
    };
    match &known.log {
        Some(log) if *log == text => Ok(()),
        Some(log) => Err(LogRefused::Differs { place, known: log.clone() }),
        // Written before places were remembered: these are its legs, and it was not reached in a safer way.
        None if !are_its_legs(&known, opened.leg_paths()) => Err(LogRefused::Unknown { place }),
        None if known.serve.log_tls.is_some() && !has_tls(recorded) => Err(LogRefused::Downgrade { place }),
        None => Ok(()),
    }
}

fn are_its_legs(known: &Known, mut legs: impl Iterator<Item = PathBuf>) -> bool {
    legs.all(|leg| known.legs.contains(&leg))
}

fn has_tls(place: &LogPlace) -> bool {
    match place {
        LogPlace::Remote(address) => address.parse::<Address>().is_ok_and(|address| address.has_tls()),
        _ => true,
    }
}
