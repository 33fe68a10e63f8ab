//! From leg files to an assembled volume: opens and locks the legs, reads their metadata, lets
//! [`mirrord_raid::assemble`] decide, and puts every refusal into words that name the leg.
//!
//! Guarantee: nothing is written here. A refused start leaves every leg as it was, unlocked.

use std::path::{Path, PathBuf};

use mirrord_log::{
    LegEntry, LegMetadata, LogPlace, ReadLegError, SlotError, Superblock, measure, newest_generation,
    read_leg,
};
use mirrord_raid::{
    AssembleError, AssembleOptions, Assembly, Errno, FailReason, Geometry, Leg, LegMap, LegRecord, LegSet,
    LegState, assemble, authority,
};
use uuid::Uuid;

use crate::failure::describe;
use crate::leg::{FileId, Holder, LegError, OpenLeg, Patience, born, open_to_read, same_twice};
use crate::limits::{FileTooLong, check_file_size};

/// What the user allows.
#[derive(Clone, Debug, Default)]
pub struct StartOptions {
    /// Start without legs that were in use and are missing, or cannot be used.
    pub degraded: bool,
    /// Take this leg's data, whatever the others say: its path, index or UUID.
    pub source: Option<String>,
    /// The volume is this one, and the legs are where it was last known to have some: what is there now may be none
    /// of its any more, and is left out.
    pub known: Option<Uuid>,
    /// Legs that did not take the log when the volume was to be served, and why: they are left out as those that cannot
    /// be opened.
    pub unwritable: Vec<(PathBuf, Errno)>,
    /// How long to wait for the lock of a leg: a daemon that was killed may have IO in flight on it.
    pub patience: Patience,
}

/// Why a volume cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A leg cannot be opened.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// A leg's metadata cannot be used.
    #[error("leg {}: {source}", path.display())]
    Metadata {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadLegError,
    },
    /// A leg's metadata cannot be written.
    #[error("leg {}: it cannot be written", path.display())]
    Unwritable {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A leg cannot be used, and was in use.
    #[error(
        "{text}; it was in use when the volume was last written and may hold newer data: make it usable, or start with \
         --degraded to go on without it"
    )]
    Unusable {
        /// Which, and what is wrong with it.
        text: String,
    },
    /// The legs make no volume that may be started. The text names them and says the way out.
    #[error("{text}")]
    Assemble {
        /// What is wrong, with paths.
        text: String,
        /// The decision behind it.
        decision: AssembleError,
    },
    /// `--source` names no leg of the volume.
    #[error("--source {name}: no such leg among those given (name it by path, index or UUID)")]
    Source {
        /// What was named.
        name: String,
    },
    /// The volume grew, and this leg did not.
    #[error(
        "leg {}: it has room for a volume of {room} bytes, and this one has {size}: it is a copy from before the volume \
         grew; leave it out", path.display()
    )]
    NoRoom {
        /// The leg.
        path: PathBuf,
        /// Size of the volume, in bytes.
        size: u64,
        /// Size of the largest volume that it has room for, in bytes.
        room: u64,
    },
    /// A leg is longer than this process may make files.
    #[error(transparent)]
    TooLong(#[from] FileTooLong),
    /// What the superblock says cannot be recorded anew.
    #[error("leg {}: what it says of the volume cannot be recorded: {source}", path.display())]
    Superblock {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: SlotError,
    },
    /// The superblock's sizes make no sense.
    #[error("leg {}: {source}", path.display())]
    Geometry {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: mirrord_raid::GeometryError,
    },
}

/// One leg that is there.
#[derive(Debug)]
pub struct Member {
    /// The open, locked leg.
    pub leg: OpenLeg,
    /// What its metadata says.
    pub metadata: LegMetadata,
}

/// A volume that is ready to be served.
#[derive(Debug)]
pub struct Opened {
    pub(crate) geometry: Geometry,
    pub(crate) assembly: Assembly,
    /// The superblock that decided.
    authority: Superblock,
    pub(crate) members: LegMap<Option<Member>>,
    /// Where a leg that is missing was looked for, if that is known.
    pub(crate) missing_paths: Vec<PathBuf>,
    /// Where legs are that are split off.
    split: Vec<(Leg, PathBuf)>,
    /// The user named the source.
    forced: bool,
    notices: Vec<String>,
}

impl Opened {
    pub(crate) fn member(&self, leg: Leg) -> Option<&Member> {
        self.members.get(leg)?.as_ref()
    }

    /// The superblock that decided: the one that all others are behind, or the source's if one was named.
    pub(crate) fn authority(&self) -> &Superblock {
        &self.authority
    }

    /// The volume's name.
    pub fn name(&self) -> &str {
        &self.authority().name
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> Uuid {
        self.authority().volume
    }

    /// Where the legs say that the log is.
    pub(crate) fn log_place(&self) -> &mirrord_log::LogPlace {
        &self.authority().log
    }

    /// Where the legs are that are there, absolute.
    pub(crate) fn leg_paths(&self) -> impl Iterator<Item = PathBuf> {
        self.members.iter().filter_map(|(_, member)| Some(member.as_ref()?.leg.path.clone()))
    }

    /// The volume's size in bytes.
    pub fn size(&self) -> u64 {
        self.geometry.size()
    }

    /// Whether the user named the source.
    pub(crate) fn is_forced(&self) -> bool {
        self.forced
    }

    /// What the user should know: legs that are missing, came back, or are to be resynced.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
}

/// Opens the legs at `paths` and assembles them.
///
/// # Errors
/// See [`StartError`]. Nothing was changed.
pub fn open(paths: &[PathBuf], options: &StartOptions) -> Result<Opened, StartError> {
    let ids = |path: &PathBuf| Some((path.clone(), FileId::of_path(path).ok()?));
    let ids: Vec<_> = paths.iter().filter_map(ids).collect();
    same_twice(&ids.iter().map(|(path, id)| (path.as_path(), *id)).collect::<Vec<_>>())?;
    let mut members = Vec::new();
    let mut missing_paths = Vec::new();
    let mut locked = Vec::new();
    // Paths of legs that are none any more, perhaps, and what is wrong with them if they ought to be.
    let mut gone: Vec<(PathBuf, Option<StartError>)> = Vec::new();
    // Paths of what is there and cannot be used: a leg that is missing, with a cause.
    let mut unusable: Vec<(PathBuf, StartError)> = Vec::new();
    for path in paths {
        if let Some((path, source)) = options.unwritable.iter().find(|(unwritable, _)| unwritable == path) {
            let error = StartError::Unwritable { path: path.clone(), source: *source };
            unusable.push((path.clone(), error));
            continue;
        }
        match OpenLeg::open_waiting(path, options.patience) {
            Ok(leg) => {
                let path = leg.path.clone();
                match read_leg(&leg.meta, leg.backing, leg.len) {
                    Ok(metadata) if options.known.is_some_and(|uuid| uuid != metadata.superblock.volume) => {
                        gone.push((path, None));
                    }
                    Ok(metadata) => members.push(Member { leg, metadata }),
                    Err(source @ ReadLegError::NoFooter) if options.known.is_some() => {
                        gone.push((path.clone(), Some(StartError::Metadata { path, source })));
                    }
                    // Whoever made it newer may be using it.
                    Err(source @ (ReadLegError::NewerVersion { .. } | ReadLegError::UnknownFlags { .. })) => {
                        return Err(StartError::Metadata { path, source });
                    }
                    Err(source) => unusable.push((path.clone(), StartError::Metadata { path, source })),
                }
            }
            Err(LegError::NotFound { path }) => missing_paths.push(path),
            Err(LegError::InUse { path, holder }) => locked.push((path, holder)),
            Err(error @ (LegError::ReadOnly { .. } | LegError::Io { .. })) => {
                unusable.push((path.clone(), error.into()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let source = options.source.as_ref().and_then(|name| find_source(name, &members));
    let records: Vec<LegRecord> =
        members.iter().map(|member| record(&member.metadata, born(&member.leg.meta))).collect();
    // What it is that is refused, if it is, assembly says.
    let newest = authority(&records, source).ok().map(|at| &members[at].metadata.superblock);
    let mut split = Vec::new();
    for (path, holder) in locked {
        let is_late = matches!(holder, Holder::Late(_));
        match split_leg(&path, newest) {
            Some(leg) => split.push((leg, path)),
            None if is_late => unusable.push((path.clone(), LegError::InUse { path, holder }.into())),
            None => return Err(LegError::InUse { path, holder }.into()),
        }
    }
    if members.is_empty() && !unusable.is_empty() {
        return Err(unusable.remove(0).1);
    }
    if let (true, Some(path)) = (members.is_empty() || !options.degraded, missing_paths.first()) {
        // Whether the volume can do without is for assembly to say, but a path that leads nowhere
        // is first of all that. A leg known to be out may be gone.
        let missing = missing_paths.len() + unusable.len();
        let may_be_out = |newest| only_out_legs_are_missing(newest, members.len(), missing);
        if members.is_empty() || !newest.is_none_or(may_be_out) {
            return Err(LegError::NotFound { path: path.clone() }.into());
        }
    }
    if let (Some(name), None) = (&options.source, source) {
        return Err(StartError::Source { name: name.clone() });
    }
    let kind = newest.map(|superblock| superblock.log.kind());
    let assemble_options = AssembleOptions {
        degraded: options.degraded,
        source,
        log_is_core: kind == Some(mirrord_log::LogKind::Core),
        log_on_legs: kind == Some(mirrord_log::LogKind::Internal),
        leave_out: options.known.is_some(),
    };
    let assembly = match assemble(&records, assemble_options) {
        Ok(assembly) => assembly,
        Err(decision) => {
            if let (AssembleError::Missing { .. }, Some((_, error))) = (decision, unusable.first()) {
                return Err(StartError::Unusable { text: describe(error) });
            }
            let text = explain(decision, newest, &members);
            let known = gone.into_iter().find_map(|(_, error)| error);
            return Err(known.unwrap_or(StartError::Assemble { text, decision }));
        }
    };
    // More than there are legs that can be meant: one of them is none.
    let states = assembly.states(&[]);
    let is_absent = |leg: &Leg| assembly.at[*leg].is_none() && states[*leg] != LegState::Vacant;
    if unusable.len() > assembly.at.legs().filter(is_absent).count() {
        return Err(unusable.remove(0).1);
    }
    gone.extend(assembly.strangers.iter().map(|&at| (members[at].leg.path.clone(), None)));
    let authority = members[assembly.authority].metadata.superblock.clone();
    authority.check_to_write().map_err(|source| StartError::Superblock {
        path: members[assembly.authority].leg.path.clone(),
        source,
    })?;
    let geometry = Geometry::new(assembly.size, authority.region_size)
        .map_err(|source| StartError::Geometry { path: members[0].leg.path.clone(), source })?;
    for &at in assembly.at.iter().filter_map(|(_, at)| at.as_ref()) {
        let Member { leg, metadata } = &members[at];
        check_file_size("leg", &leg.path, leg.backing, metadata.layout.end)?;
        let room = metadata.room_for(&geometry);
        if room < geometry.size() {
            return Err(StartError::NoRoom { path: leg.path.clone(), size: geometry.size(), room });
        }
    }
    let mut unplaced: Vec<Option<Member>> = members.into_iter().map(Some).collect();
    let mut members =
        LegMap::from_fn(assembly.at.len(), |leg| assembly.at[leg].and_then(|at| unplaced[at].take()));
    let mut notices = notices(&assembly, &members);
    for (path, _) in gone {
        notices.push(format!("{} is no leg of the volume any more: it is left out", path.display()));
    }
    for (path, error) in unusable {
        notices.push(format!("{}: the volume is started without it", describe(&error)));
        missing_paths.push(path);
    }
    // A leg that was split off belongs to whoever reads it, until it is merged.
    let states = assembly.states(&[]);
    for (leg, member) in members.iter_mut().filter(|(leg, _)| states[*leg] == LegState::Tracked) {
        if let Some(member) = member.take() {
            notices.push(format!("{} is split off: it is left alone", member.leg.path.display()));
            split.push((leg, member.leg.path));
        }
    }
    let forced = options.source.is_some();
    Ok(Opened { geometry, assembly, authority, members, missing_paths, split, forced, notices })
}

/// What a leg says whose file was created at `born`: ns since 1970, or 0 if that is not known.
pub(crate) fn record(metadata: &LegMetadata, born: u64) -> LegRecord {
    let superblock = &metadata.superblock;
    let legs: Vec<_> = superblock.legs.iter().map(|entry| (entry.uuid.into_bytes(), entry.state)).collect();
    LegRecord {
        volume: superblock.volume.into_bytes(),
        leg: superblock.leg_uuid().into_bytes(),
        index: superblock.leg,
        size: superblock.size,
        region_size: superblock.region_size,
        event_count: superblock.event_count,
        legs: legs.into(),
        replaces: superblock.replaces(),
        clean: superblock.clean,
        equal: superblock.equal,
        log_failed: superblock.log_failed,
        lineage: superblock.lineage.clone(),
        held: superblock.held,
        recent: superblock.recent.clone(),
        log_generation: match superblock.log {
            LogPlace::Internal => newest_generation(superblock.volume, &metadata.log_area),
            LogPlace::Core | LogPlace::Disk(_) | LogPlace::Remote(_) => 0,
        },
        other_file: superblock.leg_file.is_some_and(|note| note.is_copied_before(born)),
    }
}

/// Which leg the one at `path` is, that somebody has, if it is split off by the record that decides: it may be served
/// for reading, and is nobody else's.
fn split_leg(path: &Path, newest: Option<&Superblock>) -> Option<Leg> {
    let file = open_to_read(path).ok()?;
    let (backing, len) = measure(&file).ok()?;
    let found = read_leg(&file, backing, len).ok()?.superblock;
    let newest = newest?;
    let entry = newest.legs.get(found.leg.index())?;
    let is_split = entry.state == LegState::Tracked && entry.uuid == found.leg_uuid();
    (is_split && newest.volume == found.volume).then_some(found.leg)
}

fn only_out_legs_are_missing(newest: &Superblock, there: usize, missing: usize) -> bool {
    let is_out = |entry: &&LegEntry| matches!(entry.state, LegState::Failed(_) | LegState::Spare);
    let out = newest.legs.iter().filter(is_out).count();
    missing <= out && there + missing <= newest.legs.len()
}

/// Where the leg of this path, index or UUID stands. A path counts before all else, and an index names the first that
/// has it.
fn find_source(name: &str, members: &[Member]) -> Option<usize> {
    let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
    let same_file = |member: &Member| {
        let leg = &member.leg.path;
        *leg == path || matches!((path.canonicalize(), leg.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    let named = |member: &Member| {
        let superblock = &member.metadata.superblock;
        name == superblock.leg.index().to_string() || Uuid::try_parse(name) == Ok(superblock.leg_uuid())
    };
    members.iter().position(same_file).or_else(|| members.iter().position(named))
}

/// A refusal in words: which legs, why, and what can be done.
fn explain(error: AssembleError, newest: Option<&Superblock>, members: &[Member]) -> String {
    let path = |at: usize| members[at].leg.path.display().to_string();
    let events = |at: usize| members[at].metadata.superblock.event_count;
    let volume = |at: usize| {
        let superblock = &members[at].metadata.superblock;
        format!("\"{}\" ({})", superblock.name, superblock.volume)
    };
    match error {
        AssembleError::NoLeg => "no leg was given: name the files or devices of the volume".to_owned(),
        AssembleError::OtherVolume { one, other } => format!(
            "{} is a leg of volume {} and {} one of {}: give the legs of one volume",
            path(one),
            volume(one),
            path(other),
            volume(other)
        ),
        AssembleError::SameLeg { one, other } => format!(
            "{} and {} are the same leg, or one is a copy of the other: give only the one to use",
            path(one),
            path(other)
        ),
        AssembleError::Stranger { at } => format!(
            "{} is no leg of volume {}, or no longer: it was removed, or never came to be one; leave it out",
            path(at),
            volume(at)
        ),
        AssembleError::Mismatch { one, other } => {
            format!("{} and {} disagree on the volume's region size", path(one), path(other))
        }
        AssembleError::SplitBrain { one, other } => format!(
            "split brain: {} (event count {}) and {} (event count {}) each went on without the other; \
             look at both (mirrord inspect, mount -o loop,ro), then start with --source naming the one \
             to keep: what the other has beyond it is lost",
            path(one),
            events(one),
            path(other),
            events(other)
        ),
        AssembleError::Missing { legs } => format!(
            "volume {}: {} in use when it was last written and not given: it may hold newer data; \
             give all legs, or start with --degraded to go on without",
            volume(0),
            names(legs, newest, members),
        ),
        AssembleError::NoSource { in_sync } => format!(
            "volume {}: none of the given legs was in sync, {}: give that, or start with --source \
             naming the leg whose data to take (what was written since it fell behind is lost)",
            volume(0),
            names(in_sync, newest, members),
        ),
        AssembleError::OnlyOlder { at } => format!(
            "{} is an older copy of itself: the leg held more than the copy does when the volume was last written, and no \
             other leg that was in sync is given; give the leg as it was last, or start with --source naming the leg \
             whose data to take (what was written since is lost)",
            path(at)
        ),
        AssembleError::SourceIsSpare => {
            "the leg named by --source is a spare: it holds nothing of the volume".to_owned()
        }
    }
}

/// Legs by index and UUID, for those whose path nobody knows: as the record that decides names them, or one that knows more.
fn names(legs: LegSet, newest: Option<&Superblock>, members: &[Member]) -> String {
    let entry = |superblock: &Superblock, leg: Leg| {
        let entry = *superblock.legs.get(leg.index())?;
        (entry.state != LegState::Vacant).then_some(entry.uuid)
    };
    let all = || newest.into_iter().chain(members.iter().map(|member| &member.metadata.superblock));
    let uuid = |leg| all().find_map(|superblock| entry(superblock, leg)).unwrap_or_default();
    let each: Vec<String> = legs.iter().map(|leg| format!("leg {} ({})", leg.index(), uuid(leg))).collect();
    let verb = if each.len() == 1 { "was" } else { "were" };
    format!("{} {verb}", each.join(", "))
}

fn notices(assembly: &Assembly, members: &LegMap<Option<Member>>) -> Vec<String> {
    let states = assembly.states(&[]);
    let name = |leg: Leg| match &members[leg] {
        Some(member) => member.leg.path.display().to_string(),
        None => format!("leg {}", leg.index()),
    };
    let mut notices = Vec::new();
    for leg in assembly.at.legs() {
        if assembly.copy_whole.contains(leg) && assembly.older.contains(leg) {
            notices.push(format!(
                "{} is an older copy of itself, begun before the volume was last written; all of it is copied",
                name(leg)
            ));
        } else if assembly.copy_whole.contains(leg) && assembly.disbelieved.contains(leg) {
            notices.push(format!(
                "{} was out and is back: its last record is not of the volume's history, so all of it is copied",
                name(leg)
            ));
        } else if assembly.copy_whole.contains(leg) {
            notices.push(format!("{} is not the source: all of it is copied", name(leg)));
        } else if assembly.returned.contains(leg) {
            notices
                .push(format!("{} was out and is back: it is resynced where the volume changed", name(leg)));
        } else if members[leg].is_none() && states[leg] == LegState::Tracked {
            notices.push(format!("{} is split off: the volume goes on without it", name(leg)));
        } else if members[leg].is_none() && states[leg] == LegState::Spare {
            notices.push(format!("spare {} is missing", leg.index()));
        } else if members[leg].is_none() && states[leg] != LegState::Vacant {
            let why = if states[leg] == LegState::Failed(FailReason::Missing) { "missing" } else { "out" };
            notices.push(format!("{} is {why}: the volume is degraded", name(leg)));
        }
    }
    notices
}

/// The paths of `opened`'s legs by index; for a missing one the path where it was looked for, if that
/// can be told.
pub(crate) fn leg_paths(opened: &Opened) -> LegMap<PathBuf> {
    let mut missing = opened.missing_paths.iter();
    let states = opened.assembly.states(&[]);
    LegMap::from_fn(opened.members.len(), |leg| match &opened.members[leg] {
        Some(member) => member.leg.path.clone(),
        None => {
            let split = opened.split.iter().find(|(split, _)| *split == leg).map(|(_, path)| path);
            let is_leg = states[leg] != LegState::Vacant;
            split.or_else(|| is_leg.then(|| missing.next()).flatten()).cloned().unwrap_or_default()
        }
    })
}
