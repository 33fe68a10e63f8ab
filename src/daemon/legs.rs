//! What is asked of a daemon about single legs, and what is remembered of those that were split off.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use mirrord_raid::Leg;

use crate::control::{Client, Failure, Response};
use crate::engine::{ChangeError, Volume};
use crate::failure::describe;
use crate::leg::{Holder, LegError};
use crate::paths::Dirs;
use crate::registry::{Known, Registry};

pub(super) fn fail(volume: &Volume, name: &str) -> Response {
    let done = volume.find_leg(name).and_then(|leg| volume.fail_leg(leg).map(|()| leg));
    respond(volume, done, None, None)
}

pub(super) fn add(volume: &Volume, dirs: &Dirs, path: &Path) -> Response {
    let done = volume.add_leg(path, false, false);
    let note = done.as_ref().ok().and_then(|&leg| {
        let path = volume.leg_path(leg);
        remember(volume, dirs, |known| place(known, leg, path))
    });
    respond(volume, done, None, note)
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
    let mut unknown = false;
    if let (false, Ok(leg)) = (full, volume.leg_at(&path)) {
        let known = Registry::new(dirs).find(&volume.status().name).ok().flatten();
        let then = known.and_then(|known| known.split.get(&leg.index()).copied());
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
    let done = volume.add_leg(&path, true, full);
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
        untold.or(failed)
    });
    respond(volume, done, None, note)
}

/// The volume that this process serves, other than our own.
fn served_by(dirs: &Dirs, own: &str, pid: u32) -> Option<String> {
    dirs.sockets().into_iter().filter(|name| name != own).find(|name| {
        Client::connect(dirs, name)
            .is_ok_and(|mut client| client.status().is_ok_and(|status| status.pid == pid))
    })
}

fn place(known: &mut Known, leg: Leg, path: PathBuf) {
    if let Some(place) = known.legs.get_mut(leg.index()) {
        *place = path;
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
