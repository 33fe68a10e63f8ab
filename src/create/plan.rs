//! What a volume of these legs would be: its size, where its metadata goes, which leg its data comes
//! from. Pure decisions on what [`look`](super::candidate::look) found, and refusals.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use mirrord_log::{Layout, LayoutError};
use mirrord_raid::{Geometry, MAX_LEGS, SECTOR};
use rustix::fs::statvfs;

use super::CreateOptions;
use super::candidate::{Candidate, There};
use super::error::CreateError;
use crate::extents;
use crate::leg::FileId;
use crate::signature::MIRRORD;
use crate::units::format_size;

/// Where the volume's data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// All legs are equal.
    Equal,
    /// This leg; the others are resynced from it.
    Leg(usize),
}

/// What the volume will be.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    pub(super) layouts: Vec<Layout>,
    pub(super) origin: Origin,
    pub(super) notices: Vec<String>,
}

/// How many legs there may be.
pub(super) fn check_count(count: usize) -> Result<(), CreateError> {
    if (2..=MAX_LEGS).contains(&count) { Ok(()) } else { Err(CreateError::LegCount { count }) }
}

/// Decides, or refuses.
pub(super) fn plan(legs: &[Candidate], options: &CreateOptions) -> Result<Plan, CreateError> {
    let mut notices = Vec::new();
    if options.adopt_log && (options.source.is_none() || options.region_size.is_none()) {
        return Err(CreateError::AdoptNeeds);
    }
    let named = options.source.as_deref().map(|name| find_source(legs, name)).transpose()?;
    if options.size.is_none() {
        check_size_is_known(legs)?;
    }
    check_signatures(legs, options, named)?;
    let origin = origin(legs, options, named, &mut notices)?;
    let (geometry, layouts) = fit(legs, options, &mut notices)?;
    check_tails(legs, options, origin, geometry.size(), &layouts, &mut notices)?;
    check_space(legs, &layouts, options.preallocate)?;
    Ok(Plan { geometry, layouts, origin, notices })
}

fn find_source(legs: &[Candidate], name: &str) -> Result<usize, CreateError> {
    let id = FileId::of_path(Path::new(name)).ok();
    let is_it = |leg: &Candidate| match (&leg.there, id) {
        (Some(there), Some(id)) => there.leg.id() == id,
        _ => leg.given == Path::new(name),
    };
    let by_index = || name.parse().ok().filter(|index| *index < legs.len());
    let found = legs.iter().position(is_it).or_else(by_index);
    found.ok_or_else(|| CreateError::Source { name: name.to_owned() })
}

fn check_size_is_known(legs: &[Candidate]) -> Result<(), CreateError> {
    let other = legs.iter().filter_map(|leg| Some(leg.there.as_ref()?.content)).min();
    for leg in legs {
        match &leg.there {
            None => return Err(CreateError::MissingLeg { path: leg.given.clone(), other }),
            Some(There { content: 0, .. }) => return Err(CreateError::EmptyLeg { path: leg.given.clone() }),
            Some(_) => {}
        }
    }
    Ok(())
}

/// What is on a leg may stay if it becomes the volume, unless it is the metadata of another.
fn check_signatures(
    legs: &[Candidate],
    options: &CreateOptions,
    named: Option<usize>,
) -> Result<(), CreateError> {
    if options.force {
        return Ok(());
    }
    for (index, leg) in legs.iter().enumerate() {
        let Some(there) = &leg.there else { continue };
        let is_kept = options.assume_clean || options.adopt_log || named == Some(index);
        let in_the_way = |name: &str| name == MIRRORD || !is_kept;
        let Some(found) = there.signatures.iter().find(|found| in_the_way(found.name)) else { continue };
        let (name, way_out) = match &there.was {
            Some(was) => (
                format!("leg {} of the mirrord volume {}", was.superblock.leg.index(), was.superblock.name),
                "start that volume with `mirrord start`, or give --force to overwrite it".to_owned(),
            ),
            None if found.name == MIRRORD => {
                (found.name.to_owned(), "see `mirrord inspect`, or give --force to overwrite it".to_owned())
            }
            None => (
                found.name.to_owned(),
                format!(
                    "give --source {} to mirror what it holds, or --force to overwrite it",
                    leg.given.display()
                ),
            ),
        };
        let path = leg.given.clone();
        return Err(CreateError::Signature { what: "leg", path, name, offset: found.offset, way_out });
    }
    Ok(())
}

fn origin(
    legs: &[Candidate],
    options: &CreateOptions,
    named: Option<usize>,
    notices: &mut Vec<String>,
) -> Result<Origin, CreateError> {
    if let (true, Some(index)) = (options.adopt_log, named) {
        // Whatever the legs hold: the log says where they may differ.
        return Ok(Origin::Leg(index));
    }
    let mut with_data = legs.iter().enumerate().filter(|(_, leg)| leg.has_data());
    let (Some((first, leg)), second) = (with_data.next(), with_data.next()) else {
        return Ok(Origin::Equal);
    };
    if options.assume_clean {
        return Ok(Origin::Equal);
    }
    if let Some(index) = named {
        return Ok(Origin::Leg(index));
    }
    match second {
        None => {
            notices.push(format!(
                "leg {} holds data: it is kept, the others are resynced from it",
                leg.given.display()
            ));
            Ok(Origin::Leg(first))
        }
        Some(_) if options.force => {
            notices.push(format!("the legs are resynced from the first, {}", legs[0].given.display()));
            Ok(Origin::Leg(0))
        }
        Some((_, other)) => {
            Err(CreateError::WhichSource { one: leg.given.clone(), other: other.given.clone() })
        }
    }
}

/// The size of the volume and its regions, and where metadata goes on each leg.
fn fit(
    legs: &[Candidate],
    options: &CreateOptions,
    notices: &mut Vec<String>,
) -> Result<(Geometry, Vec<Layout>), CreateError> {
    let mut size = match options.size {
        Some(size) => size,
        None => smallest(legs, options, notices)?,
    };
    loop {
        let region_size = options.region_size.unwrap_or_else(|| Geometry::default_region_size(size));
        let geometry = Geometry::new(size, region_size)?;
        for leg in legs {
            let block = leg.block();
            if !size.is_multiple_of(block.into()) {
                return Err(CreateError::BlockSize { size, block, path: leg.given.clone() });
            }
        }
        let layouts: Vec<Layout> =
            legs.iter().map(|leg| layout(leg, geometry)).collect::<Result<_, CreateError>>()?;
        let short = legs.iter().zip(&layouts).find(|(_, layout)| layout.room() < size);
        match short {
            None => return Ok((geometry, layouts)),
            // Smaller regions than were reckoned with need a longer log.
            Some((_, layout)) if options.size.is_none() => size = layout.room(),
            Some((leg, layout)) => {
                return Err(CreateError::TooSmall { path: leg.given.clone(), size, room: layout.room() });
            }
        }
    }
}

pub(super) fn layout(leg: &Candidate, geometry: Geometry) -> Result<Layout, CreateError> {
    let layout = match &leg.there {
        Some(there) if leg.is_device() => Layout::for_device(there.leg.len, geometry.regions()),
        _ => Layout::for_file(geometry.size(), geometry.regions()),
    };
    layout.map_err(|source| CreateError::Layout { path: leg.given.clone(), source })
}

/// The size of the smallest leg, in whole blocks; says so if they differ.
fn smallest(
    legs: &[Candidate],
    options: &CreateOptions,
    notices: &mut Vec<String>,
) -> Result<u64, CreateError> {
    let block = legs.iter().map(|leg| u64::from(leg.block())).max().unwrap_or(SECTOR);
    let mut sizes = Vec::new();
    for leg in legs {
        let Some(there) = &leg.there else { continue };
        let size = if leg.is_device() { usable(leg, there, options)? } else { there.content };
        if size < block {
            return Err(CreateError::EmptyLeg { path: leg.given.clone() });
        }
        sizes.push((size, leg));
    }
    let (smallest, leg) =
        sizes.iter().min_by_key(|(size, _)| *size).ok_or(CreateError::LegCount { count: 0 })?;
    let size = smallest / block * block;
    if sizes.iter().any(|(other, _)| other != smallest) {
        let each: Vec<String> =
            sizes.iter().map(|(size, leg)| format!("{} {size}", leg.given.display())).collect();
        notices.push(format!(
            "the legs differ in size ({} bytes): the smallest, {}, makes it {size} bytes",
            each.join(", "),
            leg.given.display()
        ));
    } else if size != *smallest {
        notices.push(format!("the volume has {size} of {smallest} bytes: whole blocks of {block}"));
    }
    Ok(size)
}

/// The largest volume that fits a device.
fn usable(leg: &Candidate, there: &There, options: &CreateOptions) -> Result<u64, CreateError> {
    let len = there.leg.len;
    let region_size = options.region_size.unwrap_or_else(|| Geometry::default_region_size(len));
    let usable = NonZeroU64::new(region_size).and_then(|region| Layout::usable_on_device(len, region));
    let too_short = || LayoutError::TooShort { len, need: 0 };
    usable.ok_or_else(|| {
        let source = Layout::for_device(len, 1).err().unwrap_or_else(too_short);
        CreateError::Layout { path: leg.given.clone(), source }
    })
}

/// Content that is to be kept must lie within the volume.
fn check_tails(
    legs: &[Candidate],
    options: &CreateOptions,
    origin: Origin,
    size: u64,
    layouts: &[Layout],
    notices: &mut Vec<String>,
) -> Result<(), CreateError> {
    for (index, (leg, layout)) in legs.iter().zip(layouts).enumerate() {
        let Some(there) = &leg.there else { continue };
        let path = || leg.given.clone();
        let is_equal = origin == Origin::Equal || options.adopt_log;
        let is_kept = there.has_data && (is_equal || origin == Origin::Leg(index));
        if leg.is_device() {
            // What is on a device may end anywhere: only who says the size knows that it is less.
            if is_kept && there.was.is_none() && options.size.is_none() && !options.force {
                let (needed, usable) = (there.leg.len - layout.room(), layout.room());
                return Err(CreateError::SourceDevice { path: path(), needed, usable });
            }
            continue;
        }
        let tail = size..there.content.max(size);
        let io_error = |source| CreateError::Io { path: path(), verb: "read it", source };
        if is_kept && !options.force && extents::has_data(&there.leg.meta, tail).map_err(io_error)? {
            return Err(CreateError::DataInTail { path: path(), size });
        }
        if there.leg.len > layout.end {
            notices.push(format!(
                "leg {} is cut from {} to {} bytes",
                leg.given.display(),
                there.leg.len,
                layout.end
            ));
        } else if there.content < size {
            notices.push(format!(
                "leg {} grows from {} to {}",
                leg.given.display(),
                format_size(there.content),
                format_size(size)
            ));
        }
    }
    Ok(())
}

/// Every file system must have room for the metadata of its legs, and for all of them if asked.
pub(super) fn check_space(
    legs: &[Candidate],
    layouts: &[Layout],
    preallocate: bool,
) -> Result<(), CreateError> {
    let mut needs: BTreeMap<u64, (u64, &Candidate)> = BTreeMap::new();
    for (leg, layout) in legs.iter().zip(layouts) {
        if leg.is_device() {
            continue;
        }
        let allocated = leg.there.as_ref().map_or(0, |there| there.allocated);
        let need =
            if preallocate { layout.end.saturating_sub(allocated) } else { layout.end - layout.room() };
        let sum = needs.entry(leg.file_system).or_insert((0, leg));
        *sum = (sum.0.saturating_add(need), leg);
    }
    for (need, leg) in needs.into_values() {
        check_free(&leg.beside, &leg.given, need)?;
    }
    Ok(())
}

/// Whether the file system of `beside` has `need` bytes available.
pub(super) fn check_free(beside: &Path, path: &Path, need: u64) -> Result<(), CreateError> {
    let path: PathBuf = path.to_owned();
    let stat = match statvfs(beside) {
        Ok(stat) => stat,
        Err(errno) => {
            return Err(CreateError::Io {
                path,
                verb: "ask its file system for space",
                source: errno.into(),
            });
        }
    };
    // What df calls available, for root too: what is kept back for root is not meant for volumes.
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // A file system that has no blocks at all does not tell.
    if stat.f_blocks > 0 && free < need {
        return Err(CreateError::NoSpace { path, need, free });
    }
    Ok(())
}
