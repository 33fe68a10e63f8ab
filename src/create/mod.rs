//! Making a volume: everything is checked first, then legs are formatted.
//!
//! Guarantees: a refused create has changed nothing; one that fails while it works takes back what it
//! created or enlarged, and no leg counts as one before all of its metadata is durable. What is on a
//! leg is overwritten only if it was asked for: a signature, data past the end, a second leg with
//! data are refused without `force`. The log of another mirror is adopted only if it was asked for and fits
//! exactly. Metadata is allocated, so that it never meets a full file
//! system later. The legs are unlocked when [`create`] returns; the name is still taken.

mod candidate;
mod error;
mod form;
mod join;
mod log_place;
mod plan;

use std::path::{Path, PathBuf};

use mirrord_log::{Backing, LogPlace};
use uuid::Uuid;

pub use error::CreateError;

use crate::failure::describe;
use crate::leg::FileId;
use crate::limits::check_file_size;
use crate::paths::{Dirs, NameLock, check_name};
use crate::registry::{Known, Registry, ServeChoice};
use candidate::Candidate;
pub(crate) use join::Joining;

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The legs: files or devices; a file that does not exist is created if `size` is given.
    pub legs: Vec<PathBuf>,
    /// Size of the volume in bytes; `None`: as the smallest leg.
    pub size: Option<u64>,
    /// Its name; `None`: the first free of mirror0, mirror1, ...
    pub name: Option<String>,
    /// Its log.
    pub log: LogPlace,
    /// Region size in bytes; `None`: by the volume's size.
    pub region_size: Option<u64>,
    /// Allocate the legs, so that the volume never meets a full file system.
    pub preallocate: bool,
    /// The legs are equal: take the user's word for it.
    pub assume_clean: bool,
    /// The leg whose content becomes the volume's: its path or index.
    pub source: Option<String>,
    /// Take over the log that is at its place already: only the regions that it says are dirty are resynced.
    pub adopt_log: bool,
    /// Overwrite what is on the legs.
    pub force: bool,
    /// How it will be served: remembered, and its mount point is checked.
    pub serve: ServeChoice,
}

/// A volume that was created.
#[derive(Debug)]
pub struct Created {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its size in bytes.
    pub size: u64,
    /// Its region size in bytes.
    pub region_size: u64,
    /// Its legs by index, absolute.
    pub legs: Vec<PathBuf>,
    /// Where its log is, as the command line has it, absolute.
    pub log: String,
    /// What the user should know.
    pub notices: Vec<String>,
    /// Keeps the name taken.
    pub lock: NameLock,
}

/// Creates a volume.
///
/// # Errors
/// See [`CreateError`].
pub fn create(dirs: &Dirs, options: &CreateOptions) -> Result<Created, CreateError> {
    plan::check_count(options.legs.len())?;
    if let Some(name) = &options.name {
        check_name(name).map_err(|source| CreateError::BadName { name: name.clone(), source })?;
    }
    let legs = candidate::look(&options.legs)?;
    let mut plan = plan::plan(&legs, options)?;
    for (leg, layout) in legs.iter().zip(&plan.layouts) {
        let backing = leg.there.as_ref().map_or(Backing::File, |there| there.leg.backing);
        check_file_size("leg", &leg.given, backing, layout.end)?;
    }
    let log = log_place::look(options, &legs, &plan)?;
    plan.notices.extend(log.notice());
    let (name, lock) = take_name(dirs, options.name.as_deref())?;
    let mount = options.serve.mount.clone().unwrap_or_else(|| dirs.mount(&name));
    check_mount(&mount, &legs, &options.log)?;

    let form = form::form(&name, legs, &plan, log, options.preallocate)?;
    let known = Known {
        name: name.clone(),
        uuid: form.volume,
        size_bytes: plan.geometry.size(),
        legs: form.legs.clone(),
        serve: options.serve.clone(),
        log: Some(form.log.clone()),
        split: std::collections::BTreeMap::new(),
    };
    let mut notices = plan.notices;
    if let Err(error) = Registry::new(dirs).remember(&known) {
        notices.push(format!("the volume must be started by its legs: {}", describe(&error)));
    }
    Ok(Created {
        name,
        uuid: form.volume,
        size: plan.geometry.size(),
        region_size: plan.geometry.region_size(),
        legs: form.legs,
        log: form.log,
        notices,
        lock,
    })
}

/// The name that was asked for, or the first free one.
fn take_name(dirs: &Dirs, asked: Option<&str>) -> Result<(String, NameLock), CreateError> {
    if let Some(name) = asked {
        return try_name(dirs, name).map(|lock| (name.to_owned(), lock));
    }
    let mut number = 0u64;
    loop {
        let name = format!("mirror{number}");
        match try_name(dirs, &name) {
            Err(CreateError::NameRunning { .. } | CreateError::NameKnown { .. }) => number += 1,
            result => return result.map(|lock| (name, lock)),
        }
    }
}

/// Takes a name that no volume has.
///
/// # Errors
/// If one has it, or the name cannot be taken.
pub(crate) fn try_name(dirs: &Dirs, name: &str) -> Result<NameLock, CreateError> {
    let lock = dirs.lock(name)?.ok_or_else(|| CreateError::NameRunning { name: name.to_owned() })?;
    let known = Registry::new(dirs).find(name)?;
    if let Some(leg) = known.as_ref().and_then(|known| known.legs_here().first().copied()) {
        return Err(CreateError::NameKnown { name: name.to_owned(), leg: leg.to_owned() });
    }
    Ok(lock)
}

/// Nothing of the user's may be hidden by the volume.
fn check_mount(mount: &Path, legs: &[Candidate], log: &LogPlace) -> Result<(), CreateError> {
    let id = FileId::of_path(mount).ok();
    let absolute = std::path::absolute(mount).ok();
    let is_it =
        |path: &Path| Some(path) == absolute.as_deref() || (id.is_some() && FileId::of_path(path).ok() == id);
    let refuse = |what| Err(CreateError::Mount { path: mount.to_owned(), what });
    if legs.iter().any(|leg| is_it(&leg.path)) {
        return refuse("a leg");
    }
    if matches!(log, LogPlace::Disk(path) if std::path::absolute(path).is_ok_and(|path| is_it(&path))) {
        return refuse("the log");
    }
    // One that cannot be looked at may be the dead mount of this volume: that is for the front end.
    match std::fs::metadata(mount) {
        Ok(metadata) if metadata.is_dir() => refuse("a directory"),
        Ok(metadata) if !metadata.is_file() => refuse("not a file"),
        Ok(metadata) if metadata.len() > 0 => refuse("a file with content, which would be hidden"),
        _ => Ok(()),
    }
}
