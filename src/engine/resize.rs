//! A volume made larger while it is served.
//!
//! Leg by leg room is made, metadata and all, while the volume keeps its size: allocated on every leg before anything
//! is changed on one, then the metadata moved to its new place, then all between the old end and there made zero and
//! flushed. Only then is the log worker asked for the new size, and the front end told of it. A crash leaves the
//! volume with its old size or the new one, and legs with more room than they need at the worst, which the next try
//! makes use of.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use mirrord_log::{Backing, DiskLog, Layout, LayoutError, LogKind, PAGE, measure};
use mirrord_raid::{FailReason, Geometry, GeometryError, Leg, LegState, MAX_REGIONS, WorkerEvent};
use mirrord_ublk::{FrontError, LegFile};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Volume;
use super::legs::name_of;
use super::relocate::Moved;
use super::shared::lock;
use super::worker::Durable;
use crate::extents::next_data;
use crate::limits::{FileTooLong, check_file_size};
use crate::units::format_size;

/// What is zeroed at a time: little enough that a stop does not wait for long.
const CHUNK: u64 = 256 << 20;

/// The same where zeroes have to be written.
const WRITTEN: usize = 1 << 20;

/// How long the log worker may take to begin.
const BEGIN: Duration = Duration::from_secs(5);

/// How long it may take to have all recorded.
const RECORD: Duration = Duration::from_secs(60);

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(2);

/// Why a volume does not have another size. But for [`ResizeError::Told`] it has the size that it had.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Nothing to do.
    #[error("it has that size already")]
    Same,
    /// Not while it is served.
    #[error(
        "a running volume can only grow: stop it; `mirrord resize NAME --size SIZE --force` then cuts off what is behind"
    )]
    Smaller,
    /// The log is elsewhere.
    #[error("its log is kept by a log server, which cannot make it larger: make a new volume and copy it")]
    RemoteLog,
    /// No multiple of what legs need.
    #[error("{size} bytes is no multiple of {block_size}, the unit of IO on its legs")]
    BlockSize {
        /// What was asked for, in bytes.
        size: u64,
        /// In bytes.
        block_size: u32,
    },
    /// No size for regions like these.
    #[error(
        "with regions of {} it can have {} at most: make a new volume with larger regions (--region-size) and copy it",
        format_size(*region_size), format_size(region_size * MAX_REGIONS)
    )]
    Regions {
        /// Size of its regions, in bytes.
        region_size: u64,
        /// Why.
        #[source]
        source: GeometryError,
    },
    /// More than the running daemon has room for.
    #[error(
        "while it runs it can grow to {}: grow it to that, stop it, start it and resize it again",
        format_size(*most)
    )]
    Tables {
        /// The largest size that it can have, in bytes.
        most: u64,
    },
    /// Every leg has to be in sync.
    #[error("leg {}: it is {state}, and every leg has to be in sync: {way_out}", path.display())]
    Leg {
        /// The leg.
        path: PathBuf,
        /// What it is.
        state: &'static str,
        /// How it gets in sync.
        way_out: &'static str,
    },
    /// The front end cannot, and nothing was changed.
    #[error(transparent)]
    Front(FrontError),
    /// The log has no room.
    #[error("log: it cannot hold {regions} regions: it has {len} bytes and needs {need}")]
    Log {
        /// How many there would be.
        regions: u32,
        /// What it has.
        len: u64,
        /// What it needs.
        need: u64,
    },
    /// The metadata finds no place.
    #[error("leg {}: {}", path.display(), no_place(*backing, source))]
    Layout {
        /// The leg.
        path: PathBuf,
        /// What it is.
        backing: Backing,
        /// Why.
        source: LayoutError,
    },
    /// A leg would be longer than this process may make files.
    #[error(transparent)]
    TooLong(#[from] FileTooLong),
    /// Something failed on a leg.
    #[error("leg {}: {doing}", path.display())]
    Io {
        /// The leg.
        path: PathBuf,
        /// What was under way.
        doing: &'static str,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The log's own place has no room, or a thread does not answer.
    #[error("{doing}")]
    Engine {
        /// What was under way.
        doing: &'static str,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A leg failed, or was taken out, beside it.
    #[error("a leg failed or was taken out meanwhile: see `mirrord status`, and try again")]
    Restless,
    /// The volume is larger, and its users see the old size.
    #[error("it has the new size, and users see it when it was stopped and started")]
    Told(#[source] FrontError),
}

fn no_place(backing: Backing, error: &LayoutError) -> String {
    match (backing, error) {
        (Backing::Device, &LayoutError::TooShort { len, need }) => format!(
            "the device has {len} bytes ({}) and needs {need} ({}): make it larger first, it can stay in use",
            format_size(len),
            format_size(need)
        ),
        (_, error) => error.to_string(),
    }
}

/// What is to be done on one leg.
struct Place {
    leg: Leg,
    path: PathBuf,
    data: Arc<LegFile>,
    /// The leg once more: what the system has to say of it on this one is told here and to the engine.
    file: File,
    backing: Backing,
    /// How long it was.
    len: u64,
    old: Layout,
    new: Layout,
}

impl Place {
    fn moves(&self) -> bool {
        self.old != self.new
    }

    fn error(&self, doing: &'static str) -> impl Fn(io::Error) -> ResizeError {
        let path = self.path.clone();
        move |source| ResizeError::Io { path: path.clone(), doing, source }
    }

    /// Has the file system set aside what the metadata takes, behind the end of the file.
    fn allocate(&self) -> Result<(), ResizeError> {
        let (from, len) = (self.new.slots[0], self.new.end - self.new.slots[0]);
        if self.backing == Backing::Device {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, from, len) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.error("allocating room for its metadata")(errno.into())),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.backing == Backing::File { self.file.set_len(len) } else { Ok(()) }
    }
}

impl Volume {
    /// Makes the volume `size` bytes long, larger than it is. Returns once that is recorded and users see it.
    ///
    /// # Errors
    /// See [`ResizeError`].
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let _one = lock(&self.changing);
        let geometry = self.may_resize(size)?;
        let places = self.places(geometry)?;
        let beside = lock(&self.beside);
        self.check_going_on().map_err(|source| ResizeError::Engine { doing: "beginning", source })?;
        self.make_room(&places, geometry.regions())?;
        for place in places.iter().filter(|place| place.moves()) {
            self.relocate(place, &places)?;
        }
        self.make_zero(&places)?;
        drop(beside);
        self.check_in_sync()?;
        self.shared.mailbox.send(WorkerEvent::Grow { size });
        self.await_size(size)?;
        tracing::info!(size, "the volume has a new size");
        lock(&self.front).as_ref().map_or(Ok(()), |front| front.resize(size)).map_err(ResizeError::Told)
    }

    /// Everything that can be known before anything is touched.
    fn may_resize(&self, size: u64) -> Result<Geometry, ResizeError> {
        let mirror = &self.shared.mirror;
        let now = mirror.geometry();
        if size == now.size() {
            return Err(ResizeError::Same);
        }
        if size < now.size() {
            return Err(ResizeError::Smaller);
        }
        if self.shared.remote.is_some() {
            return Err(ResizeError::RemoteLog);
        }
        let region_size = now.region_size();
        let block_size = self.facts.block_size;
        if !size.is_multiple_of(block_size.into()) {
            return Err(ResizeError::BlockSize { size, block_size });
        }
        let geometry = Geometry::new(size, region_size)
            .map_err(|source| ResizeError::Regions { region_size, source })?;
        let room = mirror.regions.room();
        if geometry.regions() > room {
            return Err(ResizeError::Tables { most: u64::from(room) * region_size });
        }
        self.check_in_sync()?;
        lock(&self.front).as_ref().map_or(Ok(()), |front| front.can_resize()).map_err(ResizeError::Front)?;
        Ok(geometry)
    }

    fn check_in_sync(&self) -> Result<(), ResizeError> {
        let states = self.shared.mirror.legs.states();
        let Some(leg) = states.all().minus(states.in_sync()).union(states.spare()).lowest() else {
            return Ok(());
        };
        let way_out = match states.of(leg) {
            LegState::InSync | LegState::Syncing | LegState::Vacant => "wait for it (mirrord wait)",
            LegState::Spare => {
                "remove it first, and add it again afterwards (mirrord leg remove, leg add --spare)"
            }
            LegState::Tracked => "merge it first (mirrord merge)",
            LegState::Failed(FailReason::Missing) => "give it back when it is there (mirrord leg add)",
            LegState::Failed(_) => "give it back first (mirrord leg add)",
        };
        Err(ResizeError::Leg { path: self.leg_path(leg), state: name_of(states.of(leg)), way_out })
    }

    /// Where metadata is on each leg and where it goes.
    fn places(&self, geometry: Geometry) -> Result<Vec<Place>, ResizeError> {
        let layouts = self.on_log_worker(|durable| {
            durable
                .legs
                .iter()
                .filter_map(|(leg, meta)| Some((leg, meta.as_ref()?.layout)))
                .collect::<Vec<_>>()
        })?;
        let mut places = Vec::new();
        for (leg, old) in layouts {
            let (path, data) = (self.leg_path(leg), lock(&self.files)[leg].clone());
            let error = |source| ResizeError::Io { path: path.clone(), doing: "opening it again", source };
            let data = data.ok_or(ResizeError::Restless)?;
            let again = format!("/proc/self/fd/{}", data.file().as_raw_fd());
            let file = File::options().read(true).write(true).open(again).map_err(error)?;
            let (backing, len) = measure(&file).map_err(error)?;
            let (size, regions) = (geometry.size(), geometry.regions());
            let new = match backing {
                Backing::File => old.grown_file(size, regions),
                Backing::Device => old.grown_device(len, size, regions),
            };
            let new = new.map_err(|source| ResizeError::Layout { path: path.clone(), backing, source })?;
            check_file_size("leg", &path, backing, new.end)?;
            places.push(Place { leg, path, data, file, backing, len, old, new });
        }
        Ok(places)
    }

    /// Makes files longer, on all legs or on none.
    fn make_room(&self, places: &[Place], regions: u32) -> Result<(), ResizeError> {
        let moving = || places.iter().filter(|place| place.moves());
        let longer = |place: &Place| place.set_len(place.new.end).map_err(place.error("making it longer"));
        let in_log = move |durable: &mut Durable| durable.make_room_in_log(regions);
        let result = moving()
            .try_for_each(Place::allocate)
            .and_then(|()| self.on_log_worker(in_log)?)
            .and_then(|()| moving().try_for_each(longer));
        if result.is_err() {
            give_back(moving());
        }
        result
    }

    fn relocate(&self, place: &Place, all: &[Place]) -> Result<(), ResizeError> {
        let (leg, new) = (place.leg, place.new);
        let moved = match self.check_going_on() {
            Ok(()) => self.on_log_worker(move |durable| durable.relocate(leg, new))?,
            Err(error) => Moved::Not(error),
        };
        let error = match moved {
            Moved::There => {
                self.shared.places.needs(leg, new.end);
                return Ok(());
            }
            Moved::Not(error) => {
                // This one and those that come after it.
                give_back(all.iter().filter(|other| other.moves() && other.leg >= leg));
                error
            }
            Moved::Unclear(error) => {
                self.shared.mailbox.send(WorkerEvent::Fail { leg });
                give_back(all.iter().filter(|other| other.moves() && other.leg > leg));
                error
            }
        };
        Err(place.error("moving its metadata")(error))
    }

    /// Makes what becomes the volume zero on every leg, durably.
    fn make_zero(&self, places: &[Place]) -> Result<(), ResizeError> {
        let from = self.shared.mirror.geometry().size();
        let each = |place: &Place| {
            self.zero(place, from..place.new.room()).map_err(place.error("making its new part zero"))
        };
        thread::scope(|scope| {
            let running: Vec<_> = places.iter().map(|place| scope.spawn(|| each(place))).collect();
            let ended = running.into_iter().map(|thread| thread.join().unwrap_or(Err(ResizeError::Restless)));
            ended.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn zero(&self, place: &Place, range: Range<u64>) -> io::Result<()> {
        let border = range.start.next_multiple_of(PAGE).min(range.end);
        self.write_zeroes(place, range.start..border)?;
        let mut at = border;
        while at < range.end {
            self.check_going_on()?;
            let len = CHUNK.min(range.end - at);
            let mut done = Err(Errno::OPNOTSUPP);
            for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
                if done == Err(Errno::OPNOTSUPP) {
                    done = fallocate(&place.file, how | FallocateFlags::KEEP_SIZE, at, len);
                }
            }
            match done {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => self.write_zeroes(place, at..at + len)?,
                Err(errno) => return Err(errno.into()),
            }
            at += len;
        }
        place.file.sync_all()
    }

    /// Writes zeroes where there is something else, past the page cache: users write to the sectors before.
    fn write_zeroes(&self, place: &Place, range: Range<u64>) -> io::Result<()> {
        let unit = u64::from(self.facts.block_size);
        let mut at = range.start;
        while let Some(data) = next_data(&place.file, at..range.end)? {
            let start = data.start / unit * unit;
            let start = start.max(range.start);
            let len = (range.end.min(data.end.next_multiple_of(unit)) - start).min(WRITTEN as u64);
            self.check_going_on()?;
            let mut buffer = self.pool.take(len as usize);
            place.data.file().read_exact_at(&mut buffer, start)?;
            if buffer.iter().any(|byte| *byte != 0) {
                buffer.fill(0);
                place.data.file().write_all_at(&buffer, start)?;
            }
            at = start + len;
        }
        Ok(())
    }

    fn check_going_on(&self) -> io::Result<()> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(io::Error::other("the volume is being stopped"));
        }
        if self.shared.fenced.load(Ordering::SeqCst) {
            return Err(io::Error::other("another daemon has the log now: this one writes nothing any more"));
        }
        Ok(())
    }

    fn await_size(&self, size: u64) -> Result<(), ResizeError> {
        let mirror = &self.shared.mirror;
        let begun = Instant::now();
        while mirror.geometry().size() != size {
            let is_growing = mirror.growing_to().is_some();
            if !is_growing && begun.elapsed() > BEGIN {
                // It may have come there between the two looks.
                return if mirror.geometry().size() == size { Ok(()) } else { Err(ResizeError::Restless) };
            }
            let source = match self.check_going_on() {
                Err(error) => error,
                Ok(()) if begun.elapsed() > RECORD => io::ErrorKind::TimedOut.into(),
                Ok(()) => {
                    thread::sleep(LOOK);
                    continue;
                }
            };
            return Err(ResizeError::Engine { doing: "recording the new size", source });
        }
        Ok(())
    }

    /// Has the log worker's thread do it.
    fn on_log_worker<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Durable) -> T + Send + 'static,
    ) -> Result<T, ResizeError> {
        let (tell, told) = sync_channel(1);
        self.shared.mailbox.run(Box::new(move |durable| drop(tell.send(job(durable)))));
        self.answer(&told)
            .map_err(|source| ResizeError::Engine { doing: "waiting for the log worker", source })
    }
}

/// Makes files as long as they were, which gives back what was set aside behind them.
fn give_back<'a>(places: impl Iterator<Item = &'a Place>) {
    for place in places {
        if let Err(error) = place.set_len(place.len) {
            tracing::warn!(leg = %place.path.display(), %error, "it stays longer than it was");
        }
    }
}

impl Durable {
    /// A log with a place of its own needs room there.
    fn make_room_in_log(&self, regions: u32) -> Result<(), ResizeError> {
        let (LogKind::Disk, Some(file)) = (self.log.kind(), &self.log_file) else { return Ok(()) };
        let failed = |source| ResizeError::Engine { doing: "making room in the log's file", source };
        let block = rustix::fs::ioctl_blksszget(file).unwrap_or(512);
        let need = DiskLog::len_of(regions, block);
        let (backing, len) = measure(file).map_err(failed)?;
        if len >= need {
            return Ok(());
        }
        match backing {
            Backing::Device => Err(ResizeError::Log { regions, len, need }),
            Backing::File => match fallocate(file, FallocateFlags::empty(), 0, need) {
                Ok(()) => Ok(()),
                Err(Errno::OPNOTSUPP) => file.set_len(need).map_err(failed),
                Err(errno) => Err(failed(errno.into())),
            },
        }
    }
}
