//! Whether the files of legs that are open still are what they were: they have their names, and their length.
//!
//! A name is looked up when another program has opened, renamed or removed the file ([`super::strangers`]), and every
//! [`PERIOD`], by a thread of its own, since a file system that does not answer must hold
//! up nothing else, and before a stop. The length is also looked at before metadata is written and before a scrub
//! believes a difference: a write behind the end of a file makes it long again, with zeroes where data was. A leg that became
//! shorter is given no IO behind what is sure to be left of it ([`LegFile::cut`]), and is failed if another leg is in
//! sync.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use mirrord_raid::{Leg, LegMap, MAX_LEGS};
use mirrord_ublk::LegFile;
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::Volume;
use super::shared::{Shared, lock};
use super::strangers::{Strangers, Watched};
use crate::leg::FileId;

/// Between two looks at the names, if nothing else asks.
const PERIOD: Duration = Duration::from_secs(5);

/// Between a look at what another program does and the next one: it may have opened the file and cut it only then.
const AGAIN: Duration = Duration::from_millis(100);

/// How long somebody waits for a look that he asked for.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is amiss with the file of a leg in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Amiss {
    /// It has no name any more: once it is closed its data is gone.
    Deleted,
    /// Its name leads to something else, or nowhere.
    Renamed,
    /// It became shorter.
    Truncated,
}

impl Amiss {
    /// The word of status and events.
    pub(super) fn name(self) -> &'static str {
        match self {
            Amiss::Deleted => "deleted",
            Amiss::Renamed => "renamed",
            Amiss::Truncated => "truncated",
        }
    }
}

/// A leg's file.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    file: Arc<LegFile>,
    id: FileId,
    /// How long it has to be, in bytes; 0 for a device.
    needed: u64,
    /// It is a file of a file system that counts names.
    counts_names: bool,
    /// Writes to the leg before the last look that found it whole.
    writes_then: u64,
    amiss: Option<Amiss>,
    watched: Option<Watched>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Places {
    looks: Mutex<Looks>,
    bell: Condvar,
}

#[derive(Debug)]
struct Looks {
    places: LegMap<Option<Place>>,
    asked: u64,
    done: u64,
    ended: bool,
    /// Tells of other programs, where the system does.
    strangers: Option<Arc<Strangers>>,
}

impl Looks {
    fn watch(&mut self, leg: Leg) {
        let (Some(strangers), Some(place)) = (&self.strangers, self.places[leg].as_mut()) else { return };
        place.watched = strangers.watch(&place.file);
    }

    fn forget(&mut self, leg: Leg) {
        let watched = self.places[leg].as_mut().and_then(|place| place.watched.take());
        if let (Some(strangers), Some(watched)) = (&self.strangers, watched) {
            strangers.forget(watched);
        }
    }
}

impl Default for Places {
    fn default() -> Places {
        let places = LegMap::from_fn(MAX_LEGS, |_| None);
        let looks = Looks { places, asked: 0, done: 0, ended: false, strangers: None };
        Places { looks: Mutex::new(looks), bell: Condvar::new() }
    }
}

impl Places {
    /// A leg has this file from now on, which has to be `needed` bytes long, or none.
    pub(super) fn set(&self, leg: Leg, file: Option<(&Arc<LegFile>, u64)>) {
        let place = file.and_then(|(file, needed)| {
            let metadata = file.file().metadata().ok()?;
            Some(Place {
                path: file.path().to_owned(),
                file: Arc::clone(file),
                id: FileId::of(&metadata),
                needed: if file.is_block_device() { 0 } else { needed },
                counts_names: metadata.nlink() > 0 && !file.is_block_device(),
                writes_then: 0,
                amiss: None,
                watched: None,
            })
        });
        let mut looks = lock(&self.looks);
        looks.forget(leg);
        looks.places[leg] = place;
        looks.watch(leg);
    }

    /// A leg's file has to be so long from now on, in bytes.
    pub(super) fn needs(&self, leg: Leg, needed: u64) {
        if let Some(place) = lock(&self.looks).places[leg].as_mut().filter(|place| place.needed > 0) {
            place.needed = needed;
        }
    }

    /// What is amiss, by leg.
    pub(super) fn amiss(&self) -> LegMap<Option<Amiss>> {
        let looks = lock(&self.looks);
        LegMap::from_fn(MAX_LEGS, |leg| looks.places[leg].as_ref()?.amiss)
    }

    /// Whether the leg's file has the length that it has to have; if not it is cut off from there on.
    pub(super) fn is_whole(&self, shared: &Shared, leg: Leg) -> bool {
        let mut looks = lock(&self.looks);
        let Some(place) = looks.places[leg].as_mut() else { return true };
        place.look_at_length(shared, leg);
        place.amiss != Some(Amiss::Truncated)
    }

    /// Looks at all places now, a while at most: see [`Places::amiss`].
    pub(super) fn look_now(&self) {
        let mut looks = lock(&self.looks);
        looks.asked += 1;
        let wanted = looks.asked;
        self.bell.notify_all();
        let pending = |looks: &mut Looks| !looks.ended && looks.done < wanted;
        let waited = self.bell.wait_timeout_while(looks, PATIENCE, pending);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the watching.
    pub(super) fn end(&self) {
        let mut looks = lock(&self.looks);
        looks.ended = true;
        // Whoever waits for other programs hears of that.
        (0..MAX_LEGS).map(Leg::new).for_each(|leg| looks.forget(leg));
        self.bell.notify_all();
    }

    /// Starts the thread that looks, and one that waits for other programs. They end with the volume, or when what they
    /// hang on has ended.
    pub(super) fn watch(shared: &Arc<Shared>) -> io::Result<()> {
        match Strangers::new().map(Arc::new) {
            Ok(strangers) => {
                let mut looks = lock(&shared.places.looks);
                looks.strangers = Some(Arc::clone(&strangers));
                (0..MAX_LEGS).map(Leg::new).for_each(|leg| looks.watch(leg));
                drop(looks);
                let places = Arc::clone(&shared.places);
                let body = move || places.follow(&strangers);
                std::thread::Builder::new().name("mirrord-notify".to_owned()).spawn(body)?;
            }
            Err(error) => tracing::info!(%error, "leg files are looked at every {PERIOD:?} only"),
        }
        let (places, shared) = (Arc::clone(&shared.places), Arc::downgrade(shared));
        let body = move || while places.turn(&shared) {};
        std::thread::Builder::new().name("mirrord-places".to_owned()).spawn(body).map(drop)
    }

    /// Has the files looked at whenever another program did something to one.
    fn follow(&self, strangers: &Strangers) {
        while let Ok(()) = strangers.wait() {
            for again in [false, true] {
                if again {
                    std::thread::sleep(AGAIN);
                }
                let mut looks = lock(&self.looks);
                if looks.ended {
                    return;
                }
                looks.asked += 1;
                self.bell.notify_all();
            }
        }
    }

    /// Waits until it is time, and looks. `false`: there is nothing to look at any more.
    fn turn(&self, shared: &Weak<Shared>) -> bool {
        let looks = lock(&self.looks);
        let idle = |looks: &mut Looks| !looks.ended && looks.done >= looks.asked;
        let waited = self.bell.wait_timeout_while(looks, PERIOD, idle);
        let looks = waited.unwrap_or_else(PoisonError::into_inner).0;
        let (ended, asked) = (looks.ended, looks.asked);
        drop(looks);
        let Some(shared) = shared.upgrade().filter(|_| !ended) else { return false };
        let mut news = false;
        // One after the other: a file system that does not answer holds on to no other leg's file.
        for leg in (0..MAX_LEGS).map(Leg::new) {
            news |= self.look_at(&shared, leg);
        }
        let mut looks = lock(&self.looks);
        looks.done = looks.done.max(asked);
        self.bell.notify_all();
        drop(looks);
        if news {
            shared.mailbox.wake();
        }
        true
    }

    /// Whether what is amiss with a leg has changed.
    fn look_at(&self, shared: &Shared, leg: Leg) -> bool {
        let seen = lock(&self.looks).places[leg].clone();
        let Some(mut seen) = seen.filter(|seen| seen.file.hung() == 0) else { return false };
        let before = seen.amiss;
        seen.look(shared, leg);
        let mut looks = lock(&self.looks);
        // Another file may have come meanwhile, or somebody else seen that it was cut.
        let same = |place: &&mut Place| {
            Arc::ptr_eq(&place.file, &seen.file) && place.amiss != Some(Amiss::Truncated)
        };
        let Some(place) = looks.places[leg].as_mut().filter(same) else { return false };
        (place.amiss, place.writes_then) = (seen.amiss, seen.writes_then);
        seen.amiss != before
    }
}

/// What a stop has to say of the files of legs.
#[derive(Debug, Default)]
pub struct Farewell {
    /// What is amiss with each.
    pub notes: Vec<String>,
    /// Why it should not come to that, if what is on the volume would be gone.
    pub loss: Option<String>,
    /// Why no other daemon could serve on.
    pub not_found: Option<String>,
}

impl Volume {
    /// Looks at the files of all legs in use before they are let go of.
    pub fn farewell(&self) -> Farewell {
        self.shared.places.look_now();
        let (amiss, states) = (self.shared.places.amiss(), self.shared.mirror.legs.states());
        let path = |leg: Leg| self.leg_path(leg).display().to_string();
        let mut farewell = Farewell::default();
        for leg in states.in_use().iter() {
            let path = path(leg);
            let Some(amiss) = amiss[leg] else { continue };
            farewell.notes.push(match amiss {
                Amiss::Deleted => format!("leg {path} was deleted: what was on it is gone"),
                Amiss::Renamed => format!(
                    "leg {path}: its name leads to another file or nowhere; name it where it is at the next start"
                ),
                Amiss::Truncated => format!("leg {path} became shorter: what was cut off is lost"),
            });
            if amiss != Amiss::Truncated {
                let why = format!("leg {path} was {}: the next daemon would not find it", amiss.name());
                farewell.not_found.get_or_insert(why);
            }
        }
        let in_sync = || states.in_sync().iter();
        let lost: Vec<String> =
            in_sync().filter(|&leg| amiss[leg] == Some(Amiss::Deleted)).map(path).collect();
        let is_kept = in_sync().any(|leg| matches!(amiss[leg], None | Some(Amiss::Renamed)));
        if !lost.is_empty() && !is_kept {
            farewell.loss = Some(format!(
                "leg {} was deleted while it was served, and no leg in sync has a name any more: all data is gone \
                 once the volume stops; give it another leg first (mirrord leg add {} FILE, mirrord wait), or stop \
                 it with --force",
                lost.join(", "),
                self.facts.name
            ));
        }
        farewell
    }
}

impl Place {
    fn look(&mut self, shared: &Shared, leg: Leg) {
        self.look_at_length(shared, leg);
        if self.amiss == Some(Amiss::Truncated) {
            return;
        }
        let names = self.file.file().metadata().map_or(1, |metadata| metadata.nlink());
        self.amiss = if self.counts_names && names == 0 {
            Some(Amiss::Deleted)
        } else {
            leads_elsewhere(&self.path, self.id).then_some(Amiss::Renamed)
        };
    }

    /// Does not wait for a file system elsewhere. Once cut, it stays so: what makes it long again is zeroes.
    fn look_at_length(&mut self, shared: &Shared, leg: Leg) {
        if self.needed == 0 || self.amiss == Some(Amiss::Truncated) {
            return;
        }
        let writes = &shared.mirror.legs.counters[leg].writes;
        let writes = writes.load(Relaxed) + shared.in_flight.load(SeqCst);
        let stat =
            statx(self.file.file(), c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::SIZE);
        let Ok(len) = stat.map(|stat| stat.stx_size) else { return };
        if len >= self.needed {
            self.writes_then = writes;
            return;
        }
        // A write since may have made it longer than it was cut, but none goes behind the volume.
        let is_sure = len > shared.mirror.geometry().size()
            || writes == self.writes_then && shared.in_flight.load(SeqCst) == 0;
        self.file.cut(if is_sure { len } else { 0 });
        self.amiss = Some(Amiss::Truncated);
        tracing::error!(leg = leg.index(), len, needed = self.needed, "the leg's file became shorter");
        shared.mirror.tell_gone(leg);
        shared.mailbox.wake();
    }
}

/// Whether a path leads to something else, or nowhere, as far as can be told.
fn leads_elsewhere(path: &Path, id: FileId) -> bool {
    match fs::metadata(path) {
        Ok(metadata) => FileId::of(&metadata) != id,
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}
