//! The world of one run: disks, what is known of them, and the daemon that lives on them.
//!
//! `Sim` is the driver that the real daemon has in its `src/`: it carries out what the engine asks
//! for, but on disks it invents, in an order and after delays that the seed decides, and it looks
//! over the engine's shoulder all the while ([`crate::checks`], [`crate::history`]).

use mirrord_log::Superblock;
use mirrord_raid::{Errno, Geometry, Leg, LegSet, MAX_LEGS};
use uuid::Uuid;

use crate::beside;
use crate::blocks::{self, Blocks, META_SECTORS};
use crate::config::{Config, SECTOR};
use crate::coverage::{Coverage, Saw};
use crate::daemon::Daemon;
use crate::disk::{Cache, Disk, ZERO};
use crate::faults::{Faults, Kind};
use crate::growth::Growth;
use crate::history::History;
use crate::images::Images;
use crate::place::Place;
use crate::recents::Recents;
use crate::rng::Rng;
use crate::roster::Roster;
use crate::scrubs::Planted;
use crate::splits::Split;

/// Prints what happens, when a run is replayed.
macro_rules! trace {
    ($sim:expr, $($what:tt)*) => {
        if $sim.tracing {
            println!("{:>6}  {}", $sim.now, format_args!($($what)*));
        }
    };
}
pub(crate) use trace;

/// How much the last end of the daemon may have taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recovery {
    /// The process only: caches are whole.
    Process,
    /// The power: caches are gone.
    Power,
}

pub(crate) struct Sim {
    pub(crate) config: Config,
    /// Of the volume as large as it surely is.
    pub(crate) geometry: Geometry,
    pub(crate) growth: Growth,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    pub(crate) tracing: bool,
    pub(crate) saw: Coverage,
    pub(crate) disks: Vec<Disk>,
    pub(crate) blocks: Blocks,
    pub(crate) history: History,
    pub(crate) faults: Faults,
    pub(crate) stamps: u64,
    /// Legs that can be opened.
    pub(crate) attached: LegSet,
    /// Legs of which the log cannot be read at the next start.
    pub(crate) blind: LegSet,
    /// Legs that were in sync at the last start, and those that did not take the log then.
    pub(crate) startable: LegSet,
    pub(crate) start_failed: LegSet,
    /// Legs in sync when the daemon last looked: each holds all that was flushed.
    pub(crate) current: LegSet,
    /// Legs whose state was not recorded when the daemon ended.
    pub(crate) unrecorded: LegSet,
    /// Starts so far, and its making.
    pub(crate) sessions: u64,
    /// The last life ended with a stop that left the log empty.
    pub(crate) stopped_clean: bool,
    /// What may have been lost since the volume was last served.
    pub(crate) recovery: Recovery,
    /// Generation of each leg's newest superblock.
    pub(crate) generations: [u64; MAX_LEGS],
    /// What each leg's superblock says for certain, whatever happens.
    pub(crate) durable: Vec<Superblock>,
    /// Regions whose bit each leg's log has for certain.
    pub(crate) marks: [u64; MAX_LEGS],
    /// Legs that are being taken out by hand just now.
    pub(crate) by_hand: LegSet,
    /// Legs that were last given back to be copied whole.
    pub(crate) full: LegSet,
    /// Legs that somebody wrote to while they were split off.
    pub(crate) scribbled: LegSet,
    /// What was split off.
    pub(crate) splits: Vec<Option<Split>>,
    pub(crate) roster: Roster,
    pub(crate) images: Images,
    pub(crate) recents: Recents,
    /// What was changed behind the daemon's back, by sector; empty but at the end of a run.
    pub(crate) planted: Vec<Option<Planted>>,
    /// Where the log is, if it is not on the legs.
    pub(crate) place: Option<Place>,
    /// Regions that are marked ahead, at most.
    pub(crate) mark_ahead: u32,
    /// Regions that the log worker looks at in one turn.
    pub(crate) turn_regions: u32,
    pub(crate) daemon: Option<Box<Daemon>>,
}

impl Sim {
    /// A volume just made, all zero and in sync on every leg.
    pub(crate) fn new(seed: u64, tracing: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let mut growth = Growth::new(seed);
        let config = Config::draw(&mut rng, &mut growth.rng);
        let sectors = config.sectors;
        let volume = Uuid::from_u64_pair(1, seed);
        let (place, mark_ahead) = beside::draw(seed, &config, tracing);
        let mut sim = Sim {
            geometry: Geometry::new(config.size(), config.region_size()).expect("sizes are drawn well"),
            disks: (0..config.legs).map(|_| Disk::new(sectors + META_SECTORS)).collect(),
            blocks: Blocks::new(volume),
            history: History::new(sectors, ZERO),
            faults: Faults::new(seed),
            stamps: config.sectors as u64,
            attached: LegSet::first(config.legs),
            blind: LegSet::EMPTY,
            startable: LegSet::EMPTY,
            start_failed: LegSet::EMPTY,
            current: LegSet::first(config.legs),
            unrecorded: LegSet::EMPTY,
            sessions: 1,
            stopped_clean: true,
            recovery: Recovery::Process,
            generations: [0; MAX_LEGS],
            durable: Vec::new(),
            marks: [0; MAX_LEGS],
            by_hand: LegSet::EMPTY,
            full: LegSet::EMPTY,
            scribbled: LegSet::EMPTY,
            splits: (0..config.legs).map(|_| None).collect(),
            roster: Roster::draw(seed, config.legs),
            images: Images::draw(seed, &config),
            recents: Recents::default(),
            planted: Vec::new(),
            place,
            mark_ahead,
            turn_regions: Rng::new(seed ^ 0x7042_0000_0000_0001).pick(&[1, 7, 1 << 14]),
            daemon: None,
            now: 1,
            saw: Coverage::default(),
            growth,
            config,
            rng,
            tracing,
        };
        sim.format(volume);
        sim.litter();
        sim
    }

    /// Sectors of the volume.
    pub(crate) fn sectors(&self) -> usize {
        (self.geometry.size() / SECTOR) as usize
    }

    /// Sectors of a region.
    pub(crate) fn region(&self, region: u32) -> std::ops::Range<usize> {
        let sectors = self.config.region(region);
        sectors.start..sectors.end.min(self.sectors())
    }

    /// Every leg that there is a disk for.
    pub(crate) fn all_legs(&self) -> LegSet {
        LegSet::first(self.config.legs)
    }

    /// The daemon, which lives.
    pub(crate) fn d(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the daemon lives")
    }

    pub(crate) fn live(&self) -> &Daemon {
        self.daemon.as_ref().expect("the daemon lives")
    }

    /// A moment that comes after all before it.
    pub(crate) fn moment(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Reads again what the leg's log says for certain: the bits in every copy that a crash could leave.
    pub(crate) fn look_at_marks(&mut self, leg: Leg) {
        let (disk, sector) = (&self.disks[leg.index()], blocks::log(self.config.sectors));
        let unflushed = disk.unflushed(sector).fold(!0, |all, block| all & self.blocks.dirty(block));
        self.marks[leg.index()] = unflushed & self.blocks.dirty(disk.stable(sector));
    }

    /// Flushes a leg through an open file; what completed before `submitted` is stable if it works.
    pub(crate) fn flush_leg(&mut self, leg: Leg, file: usize, submitted: u64) -> Result<(), Errno> {
        let result = self.sync_leg(leg, file);
        if result.is_ok() {
            self.disks[leg.index()].flush_done(submitted);
        }
        self.look_at_marks(leg);
        result
    }

    /// How a sync of an open file ends, of whatever it was to make stable.
    pub(crate) fn sync_leg(&mut self, leg: Leg, file: usize) -> Result<(), Errno> {
        let disk = &mut self.disks[leg.index()];
        if disk.tell(file) {
            // Another file met the error; every file open then is told once.
            return Err(Errno::EIO);
        }
        let result = self.faults.strike(&mut self.rng, &self.config, leg, Kind::Flush);
        if result.is_err() {
            let cache = if self.rng.coin() { Cache::Pages } else { Cache::Device };
            disk.flush_failed(file, cache);
            self.saw.saw(Saw::FailedFlush);
            self.saw.saw_if(Saw::FailedDeviceFlush, cache == Cache::Device);
        }
        result
    }
}
