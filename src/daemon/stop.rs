//! How a volume stops, by a client or by a signal.

use std::thread;
use std::time::Duration;

use mirrord_ublk::{FrontError, Shutdown};

use crate::control::{Failure, Response};
use crate::engine::{Farewell, StopError, Volume};
use crate::failure::describe;

/// How long a stop by a signal may take. A leg that hangs and has no time-out would hold it up for ever. Less than the
/// `TimeoutStopSec` of the systemd units, whose SIGKILL says nothing.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(4 * 60);

pub(super) fn stop(volume: &Volume, how: Shutdown) -> Response {
    let Farewell { notes, loss, not_found } = volume.farewell();
    let refusal = match how {
        Shutdown::Clean => loss,
        Shutdown::HandOver => not_found,
        Shutdown::Force => None,
    };
    if let Some(message) = refusal {
        return Response::Failed { reason: Failure::Error, message };
    }
    match volume.stop(how) {
        Ok(()) => Response::Done { left_behind: volume.left_behind(), notes },
        Err(error) => {
            let StopError::Front(front) = &error;
            let reason = match front {
                FrontError::Busy { .. } => Failure::Busy,
                FrontError::NoHandOver { .. } | FrontError::NoResize { .. } | FrontError::Io { .. } => {
                    Failure::Error
                }
            };
            Response::Failed { reason, message: describe(&error) }
        }
    }
}

/// Whoever sends a signal means it. A device in use is left to the next daemon, its users waiting; a file in
/// use goes away.
pub(super) fn on_signal(volume: &Volume) {
    volume.farewell().notes.iter().for_each(|note| tracing::warn!("{note}"));
    let Err(busy) = volume.stop(Shutdown::Clean) else { return };
    tracing::warn!("{}; it is handed over", describe(&busy));
    let Err(error) = volume.stop(Shutdown::HandOver) else { return };
    tracing::warn!("{}; it is taken away", describe(&error));
    if let Err(error) = volume.stop(Shutdown::Force) {
        tracing::error!("{}", describe(&error));
    }
}

/// Ends the process after this time, if it is still there: as after a crash, the log tells the next start what to
/// resync.
pub(super) fn end_after(patience: Duration) -> std::io::Result<()> {
    let end = move || {
        thread::sleep(patience);
        tracing::error!("the stop did not end in {patience:?}: this process ends without it, as in a crash");
        std::process::exit(1);
    };
    thread::Builder::new().name("mirrord-grace".to_owned()).spawn(end).map(drop)
}
