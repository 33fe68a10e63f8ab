//! What is asked of a daemon about scrubs, and the thread that remembers them: how far one is, so that it goes on
//! after a restart, also of a daemon that was killed; and when the next one is due.
//!
//! The thread sleeps until something happens, for a few seconds at most while a scrub is going, and with a
//! schedule until one is due, an hour at most, for clocks are set.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mirrord_raid::Leg;

use crate::control::{Failure, Response};
use crate::engine::{Begin, Stand, Volume};
use crate::failure::describe;
use crate::paths::Dirs;
use crate::scrub::{Memory, ScrubOrder, Store, UnderWay};

/// A scrub that is going is remembered so often: as much is done again after a crash.
const REMEMBER: Duration = Duration::from_secs(3);

/// Between two looks at the clock, with a schedule.
const LOOK: Duration = Duration::from_secs(60 * 60);

pub(super) fn answer(volume: &Volume, order: &ScrubOrder) -> Response {
    let done = match order {
        ScrubOrder::Start { repair, from, rate } => {
            let leg = from.as_ref().map(|name| volume.find_leg(name)).transpose();
            let rate = rate.filter(|&rate| rate > 0);
            match leg {
                Ok(from) => volume
                    .begin_scrub(Begin { repair: *repair, from, rate, ..Begin::default() }, false)
                    .map_err(|error| describe(&error)),
                Err(error) => Err(describe(&error)),
            }
        }
        ScrubOrder::Rate { rate } => {
            volume.set_scrub_rate(Some(*rate).filter(|&rate| rate > 0)).map_err(|error| describe(&error))
        }
        ScrubOrder::Pause { paused } => volume.pause_scrub(*paused).map_err(|error| describe(&error)),
        ScrubOrder::Cancel => volume.cancel_scrub().map_err(|error| describe(&error)),
        ScrubOrder::Schedule { days } => {
            volume.schedule_scrubs(Some(*days).filter(|&days| days > 0));
            Ok(())
        }
    };
    match done {
        Ok(()) => Response::done(),
        Err(message) => Response::Failed { reason: Failure::Error, message },
    }
}

/// See the module's documentation.
pub(super) struct Keeper {
    thread: JoinHandle<()>,
}

impl Keeper {
    /// Lets the scrub go on that was under way, and remembers from now on.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(dirs: &Dirs, volume: &Arc<Volume>) -> io::Result<Keeper> {
        let (status, volume) = (volume.status(), Arc::clone(volume));
        let store = Store::new(dirs, &status.name, status.uuid);
        let memory = store.read();
        volume.remember_scrubs(memory.last.clone(), memory.schedule_days);
        if let Some(under_way) = memory.under_way.clone() {
            match begin(&volume, under_way) {
                Some(begin) => drop(volume.begin_scrub(begin, true)),
                None => tracing::warn!("the leg to repair from is not there: the scrub does not go on"),
            }
        }
        let run = move || keep(&volume, &store, memory);
        Ok(Keeper { thread: thread::Builder::new().name("mirrord-scrub".to_owned()).spawn(run)? })
    }

    /// The volume is stopped: returns when all is remembered.
    pub(super) fn finish(self) {
        let _ = self.thread.join();
    }
}

/// How a scrub that was remembered goes on; not at all if its leg is not known.
fn begin(volume: &Volume, under_way: UnderWay) -> Option<Begin> {
    let UnderWay { next, paused, repair, from, rate, result } = under_way;
    let from = match from {
        None => None,
        Some(uuid) => {
            let legs = volume.status().legs;
            Some(Leg::new(legs.iter().find(|leg| leg.uuid == uuid)?.index))
        }
    };
    Some(Begin { next, paused, repair, from, rate, result })
}

fn memory(volume: &Volume, stand: Stand, before: &Memory) -> Memory {
    let uuid_of = |leg: Leg| {
        let legs = volume.status().legs;
        legs.iter().find(|known| known.index == leg.index()).map(|known| known.uuid)
    };
    let under_way = stand.under_way.map(|begin| UnderWay {
        next: begin.next,
        paused: begin.paused,
        repair: begin.repair,
        from: begin.from.and_then(uuid_of),
        rate: begin.rate,
        result: begin.result,
    });
    Memory { uuid: before.uuid, schedule_days: stand.schedule_days, under_way, last: stand.last }
}

fn keep(volume: &Volume, store: &Store, mut memory: Memory) {
    let mut written = None;
    let mut failing = false;
    loop {
        let stand = volume.scrub_stand();
        let version = stand.version;
        let next = stand.under_way.as_ref().map(|under_way| under_way.next);
        if written != Some((version, next)) {
            memory = self::memory(volume, stand, &memory);
            // Before the first change there is nothing to remember.
            let wanted = version > 0 || next.is_some();
            let result = if wanted { store.write(&memory) } else { Ok(()) };
            if let (Err(error), false) = (&result, failing) {
                tracing::warn!(%error, "how far the scrub is cannot be remembered");
            }
            failing = result.is_err();
            written = Some((version, next));
        }
        let is_going = memory.under_way.as_ref().is_some_and(|under_way| !under_way.paused);
        let timeout = match memory.due() {
            _ if is_going => Some(REMEMBER),
            Some(due) => match due.saturating_sub(unix_seconds()) {
                0 if begin_scheduled(volume) => continue,
                0 => Some(LOOK),
                seconds => Some(Duration::from_secs(seconds).min(LOOK)),
            },
            None => None,
        };
        if !volume.await_scrub(version, timeout) {
            break;
        }
    }
    let memory = self::memory(volume, volume.scrub_stand(), &memory);
    if (memory.under_way.is_some() || failing)
        && let Err(error) = store.write(&memory)
    {
        tracing::warn!(%error, "how far the scrub is cannot be remembered");
    }
}

/// Whether one begins that is due: else it is tried again later.
fn begin_scheduled(volume: &Volume) -> bool {
    let begun = volume.begin_scrub(Begin::default(), false);
    if let Err(error) = &begun {
        tracing::warn!("a scrub is due: {}", describe(error));
    }
    begun.is_ok()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
