//! What is asked of a daemon about single legs, and what is remembered of those that were split off.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use std::{fs, io, thread};

use mirrord_raid::{Leg, MAX_LEGS};
use rustix::event::{PollFd, PollFlags, poll};

use crate::below::on_itself;
use crate::control::{Client, Failure, Response};
use crate::create::try_name;
use crate::engine::{ChangeError, Purpose, Volume};
use crate::events::{Next, What};
use crate::failure::describe;
use crate::leg::{Holder, LegError};
use crate::paths::{Dirs, check_name};
use crate::registry::{Known, Registry, ServeChoice};

pub(super) fn fail(volume: &Volume, name: &str) -> Response {
    let done = volume.find_leg(name).and_then(|leg| volume.fail_leg(leg).map(|()| leg));
    respond(volume, done, None, None)
}

/// A leg that lies on the volume itself would wait for itself.
fn refused(volume: &Volume, dirs: &Dirs, path: &Path) -> Option<Response> {
    let message = on_itself(path, &volume.status().device, dirs)?;
    Some(Response::Failed { reason: Failure::Error, message })
}

/// How a new leg is made.
pub(super) struct NewLeg {
    pub(super) purpose: Purpose,
    pub(super) force: bool,
    pub(super) preallocate: bool,
}

/// Gives a leg back that is one of the volume's; makes a new one of anything else.
pub(super) fn add(volume: &Volume, dirs: &Dirs, path: &Path, new: &NewLeg) -> Response {
    if let Some(refused) = refused(volume, dirs, path) {
        return refused;
    }
    let is_known = volume.leg_at(path).is_ok();
    let done = if is_known && new.purpose == Purpose::Copy {
        volume.add_leg(path, false, false)
    } else if is_known {
        volume.leg_at(path).and_then(|leg| Err(volume.is_leg_already(leg)))
    } else {
        new_leg(volume, dirs, path, new).map(|leg| (leg, None))
    };
    let (done, told) = done.map_or_else(|error| (Err(error), None), |(leg, told)| (Ok(leg), told));
    let note = done.as_ref().ok().and_then(|&leg| {
        let path = volume.leg_path(leg);
        remember(volume, dirs, |known| place(known, leg, path))
    });
    respond(volume, done, None, told.or(note))
}

pub(super) fn replace(volume: &Volume, dirs: &Dirs, name: &str, path: &Path, new: NewLeg) -> Response {
    if let Some(refused) = refused(volume, dirs, path) {
        return refused;
    }
    let done = volume.find_leg(name).and_then(|old| {
        if let Ok(leg) = volume.leg_at(path) {
            return Err(volume.is_leg_already(leg));
        }
        new_leg(volume, dirs, path, &NewLeg { purpose: Purpose::Replace(old), ..new })
    });
    respond(volume, done, None, None)
}

fn new_leg(volume: &Volume, dirs: &Dirs, path: &Path, new: &NewLeg) -> Result<Leg, ChangeError> {
    let remembered = |leg, path: &Path| {
        let failed = remember(volume, dirs, |known| place(known, leg, path.to_owned()));
        failed.iter().for_each(|note| tracing::warn!("{note}"));
    };
    volume.new_leg(path, new.purpose, new.force, new.preallocate, remembered)
}

pub(super) fn remove(volume: &Volume, dirs: &Dirs, name: &str) -> Response {
    let found = volume.find_leg(name).map(|leg| (leg, volume.leg_path(leg)));
    let (leg, path) = match found {
        Ok(found) => found,
        Err(error) => return respond(volume, Err(error), None, None),
    };
    match volume.remove_leg(leg) {
        Ok(note) => {
            let failed = remember(volume, dirs, |known| vacate(known, leg));
            Response::Leg { index: leg.index(), path, pause_us: None, note: note.or(failed) }
        }
        Err(error) => respond(volume, Err(error), None, None),
    }
}

/// Makes a leg a volume of its own.
pub(super) fn split_as(volume: &Volume, dirs: &Dirs, leg: &str, name: &str) -> Response {
    let refused = |message| Response::Failed { reason: Failure::Error, message };
    if let Err(error) = check_name(name) {
        return refused(format!("--name {name:?}: {error}"));
    }
    // Taken until it is known: nobody else makes a volume of that name meanwhile.
    let _taken = match try_name(dirs, name) {
        Ok(lock) => lock,
        Err(error) => return refused(describe(&error)),
    };
    let found = volume.find_leg(leg).map(|leg| (leg, volume.leg_path(leg)));
    let done = found.and_then(|(leg, path)| Ok((leg, path, volume.split_leg_as(leg, name)?)));
    let (leg, path, (pause, uuid)) = match done {
        Ok(done) => done,
        Err(error) => return respond(volume, Err(error), None, None),
    };
    let status = volume.status();
    let serve = Registry::new(dirs).find(&status.name).ok().flatten().map(|known| known.serve);
    let serve = serve.unwrap_or_default();
    let known = Known {
        name: name.to_owned(),
        uuid,
        size_bytes: status.size_bytes,
        legs: vec![path.clone()],
        // Its own place, figures and hook are for its owner to choose.
        serve: ServeChoice { mount: None, metrics: None, event_hook: None, ..serve },
        log: Some("internal".to_owned()),
        split: std::collections::BTreeMap::new(),
    };
    let unknown = Registry::new(dirs).remember(&known).err();
    let unknown =
        unknown.map(|error| format!("volume {name} must be started by its leg: {}", describe(&error)));
    let failed = remember(volume, dirs, |known| vacate(known, leg));
    let pause_us = Some(pause.as_micros() as u64).filter(|&pause| pause > 0);
    Response::Leg { index: leg.index(), path, pause_us, note: unknown.or(failed) }
}

/// Lets go of legs that leave by themselves, because another took their place.
pub(super) fn follow(volume: &Arc<Volume>, dirs: &Dirs) -> io::Result<()> {
    let mut reader = volume.journal().reader(Some(0))?;
    let (volume, dirs) = (Arc::downgrade(volume), dirs.clone());
    let body = move || {
        loop {
            match reader.read() {
                Next::Event(event) => {
                    let (Some(volume), What::LegState { leg, from, to, .. }) =
                        (volume.upgrade(), &event.what)
                    else {
                        continue;
                    };
                    let had_failed = from == "failed" || from == "missing";
                    let leg = Leg::new(*leg);
                    if to == "removed" && volume.dispose_of_removed(leg, had_failed) {
                        let failed = remember(&volume, &dirs, |known| vacate(known, leg));
                        failed.iter().for_each(|note| tracing::warn!("{note}"));
                    }
                }
                Next::Missed(_) => {
                    let Some(volume) = volume.upgrade() else { continue };
                    for leg in (0..MAX_LEGS).map(Leg::new) {
                        volume.dispose_of_removed(leg, true);
                    }
                }
                Next::End => return,
                Next::Nothing => {
                    let _ = poll(&mut [PollFd::from_borrowed_fd(reader.bell(), PollFlags::IN)], None);
                }
            }
        }
    };
    thread::Builder::new().name("mirrord-legs".to_owned()).spawn(body).map(drop)
}

pub(super) fn split(volume: &Volume, dirs: &Dirs, name: &str) -> Response {
    let done = volume.find_leg(name).and_then(|leg| volume.split_leg(leg).map(|pause| (leg, pause)));
    let Ok((leg, pause)) = done else { return respond(volume, done.map(|(leg, _)| leg), None, None) };
    let note = remember(volume, dirs, |known| match changed_at(&volume.leg_path(leg)) {
        Some(time) => drop(known.split.insert(leg.index(), time)),
        None => drop(known.split.remove(&leg.index())),
    });
    respond(volume, Ok(leg), Some(pause), note)
}

/// A file that was written to since it was split off is refused: only what the volume changed is copied, and what
/// others wrote would stay.
pub(super) fn merge(volume: &Volume, dirs: &Dirs, name: &str, full: bool) -> Response {
    let path = volume.find_leg(name).map_or_else(|_| PathBuf::from(name), |leg| volume.leg_path(leg));
    if let Some(refused) = refused(volume, dirs, &path) {
        return refused;
    }
    let mut unknown = false;
    let (mut split, mut then) = (None, None);
    if let (false, Ok(leg)) = (full, volume.leg_at(&path)) {
        let known = Registry::new(dirs).find(&volume.status().name).ok().flatten();
        (split, then) = (Some(leg), known.and_then(|known| known.split.get(&leg.index()).copied()));
        let now = changed_at(&path);
        if then.is_some() && now != then {
            let message = format!(
                "leg {}: it was written to since it was split off; what was written there would stay: \
                 mirrord merge --force-full copies all of the volume to it",
                path.display()
            );
            return Response::Failed { reason: Failure::Error, message };
        }
        unknown = then.is_none();
    }
    // From here on we write to it: should the daemon die before that is recorded, nobody else is blamed for it.
    let forget = |leg: Leg| remember(volume, dirs, |known| _ = known.split.remove(&leg.index()));
    let _ = split.and_then(forget);
    let done = volume.add_leg(&path, true, full);
    let (done, told) = done.map_or_else(|error| (Err(error), None), |(leg, told)| (Ok(leg), told));
    if let (Some(leg), Some(then), Err(_)) = (split, then, &done)
        && changed_at(&path) == Some(then)
    {
        let _ = remember(volume, dirs, |known| _ = known.split.insert(leg.index(), then));
    }
    if let Err(ChangeError::Leg(LegError::InUse { path, holder: Holder::Process(pid) })) = &done
        && let Some(name) = served_by(dirs, &volume.status().name, *pid)
    {
        let message = format!("leg {}: it is served as {name}: mirrord stop {name} first", path.display());
        return Response::Failed { reason: Failure::Error, message };
    }
    let note = done.as_ref().ok().and_then(|&leg| {
        let path = volume.leg_path(leg);
        let untold = unknown.then(|| {
            format!(
                "whether anybody wrote to {} since it was split off cannot be told: if so, merge it with \
                 --force-full",
                path.display()
            )
        });
        let failed = remember(volume, dirs, |known| {
            known.split.remove(&leg.index());
            place(known, leg, path.clone());
        });
        told.or(untold).or(failed)
    });
    respond(volume, done, None, note)
}

/// The volume that this process serves, other than our own.
fn served_by(dirs: &Dirs, own: &str, pid: u32) -> Option<String> {
    dirs.sockets()
        .into_iter()
        .filter(|name| name != own)
        .find(|name| Client::reach(dirs, name).is_ok_and(|(_, status)| status.pid == pid))
}

fn place(known: &mut Known, leg: Leg, path: PathBuf) {
    known.legs.resize(known.legs.len().max(leg.index() + 1), PathBuf::new());
    known.legs[leg.index()] = path;
}

fn vacate(known: &mut Known, leg: Leg) {
    known.split.remove(&leg.index());
    place(known, leg, PathBuf::new());
    while known.legs.last().is_some_and(|path| path.as_os_str().is_empty()) {
        known.legs.pop();
    }
}

/// When a file was last written to, in ns since 1970. Devices do not tell.
fn changed_at(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_nanos() as u64)
}

/// What is in the way of remembering is a notice: the leg is what it is.
fn remember(volume: &Volume, dirs: &Dirs, change: impl FnOnce(&mut Known)) -> Option<String> {
    /// What is read, changed and written again is nobody else's meanwhile.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (registry, status) = (Registry::new(dirs), volume.status());
    let mut known = registry.find(&status.name).ok().flatten().filter(|known| known.uuid == status.uuid)?;
    change(&mut known);
    let failed = registry.remember(&known).err()?;
    Some(format!("the volume must be started by its legs next time: {}", describe(&failed)))
}

fn respond(
    volume: &Volume,
    done: Result<Leg, ChangeError>,
    pause: Option<Duration>,
    note: Option<String>,
) -> Response {
    match done {
        Ok(leg) => Response::Leg {
            index: leg.index(),
            path: volume.leg_path(leg),
            pause_us: pause.map(|pause| pause.as_micros() as u64),
            note,
        },
        Err(error) => Response::Failed { reason: Failure::Error, message: describe(&error) },
    }
}
