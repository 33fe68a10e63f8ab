//! How a volume stops, by a client or by a signal.
//!
//! A stop waits for IO on the legs; a forced one no longer than [`FORCED_LEG_TIMEOUT`] for each. What hangs elsewhere
//! (a system call on a file system that does not answer, say) is given up by nobody: then the process ends as in a
//! crash, and the next start resyncs what was dirty. Linux cannot end a process with a call that hangs, and keeps
//! its files open until that has ended. So it lets go of the volume's name itself; its legs stay locked.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use mirrord_ublk::{FrontError, Shutdown};

use crate::control::{Answer, Cutter, Failure, Response};
use crate::engine::{FORCED_LEG_TIMEOUT, Farewell, StopError, Volume};
use crate::failure::describe;
use crate::paths::NameLock;

/// How long a stop by a signal may take. A leg that hangs and has no time-out would hold it up for ever. Less than the
/// `TimeoutStopSec` of the systemd units, whose SIGKILL says nothing.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(4 * 60);

/// How long a forced stop may take: some flushes and records, each with its time on a leg that hangs.
const FORCE_PATIENCE: Duration = Duration::from_secs(3 * FORCED_LEG_TIMEOUT.as_secs());

/// Ends this process without stopping its volume.
#[derive(Clone, Debug)]
pub(super) struct Crash {
    pub(super) name: Arc<NameLock>,
    pub(super) clients: Cutter,
}

impl Crash {
    fn crash(&self) -> ! {
        self.clients.cut();
        self.name.release();
        std::process::exit(1);
    }

    /// Ends the process after this time, if it is still there: as after a crash, the log tells the next start what to
    /// resync.
    pub(super) fn after(self, patience: Duration) -> std::io::Result<()> {
        let end = move || {
            thread::sleep(patience);
            tracing::error!(
                "the stop did not end in {patience:?}: this process ends without it, as in a crash"
            );
            self.crash();
        };
        thread::Builder::new().name("mirrord-grace".to_owned()).spawn(end).map(drop)
    }
}

/// Stops, whoever uses the volume and whatever hangs, in [`FORCE_PATIENCE`].
pub(super) fn by_force(volume: &Arc<Volume>, crash: &Crash) -> Answer {
    let (tell, told) = channel();
    let stopping = Arc::clone(volume);
    let body = move || drop(tell.send(stop(&stopping, Shutdown::Force)));
    if let Err(error) = thread::Builder::new().name("mirrord-stop".to_owned()).spawn(body) {
        tracing::warn!(%error, "the time that the stop may take is not limited");
        return stop(volume, Shutdown::Force).into();
    }
    let Ok(response) = told.recv_timeout(FORCE_PATIENCE) else {
        tracing::error!(
            "the forced stop did not end in {FORCE_PATIENCE:?}: this process ends, as in a crash"
        );
        let note = format!(
            "something other than IO on a leg hangs: after {} s its daemon ends as in a crash, and the next start \
             resyncs what was dirty",
            FORCE_PATIENCE.as_secs()
        );
        let crash = crash.clone();
        let response = Response::Done { left_behind: Vec::new(), notes: vec![note] };
        return Answer::Then(response, Box::new(move || crash.crash()));
    };
    response.into()
}

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
