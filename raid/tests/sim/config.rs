//! The shape of one run, drawn from its seed: sizes, load, and how much goes wrong.

use crate::rng::Rng;

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 512;

/// Sectors of the hot spot.
pub(crate) const HOT: usize = 24;

pub(crate) struct Config {
    pub(crate) legs: usize,
    pub(crate) queues: u16,
    pub(crate) regions: u32,
    pub(crate) region_sectors: u32,
    /// Sectors of the volume when it is largest; its last region may be short.
    pub(crate) sectors: usize,
    /// Resync window, in bytes.
    pub(crate) window: u64,
    /// Requests in flight per queue, at most.
    pub(crate) depth: usize,
    /// Lives of the daemon before the last, which is left alone until all is well.
    pub(crate) lives: u64,
    /// Steps of a life, at most.
    pub(crate) steps: u64,
    /// Leg IOs in 10,000 that fail by themselves.
    pub(crate) lone_errors: u64,
    /// Steps in 10,000 in which a period of errors begins.
    pub(crate) error_periods: u64,
    /// Steps in 10,000 in which a sector of some leg goes bad.
    pub(crate) bad_sectors: u64,
    /// These are many and all on one leg.
    pub(crate) dying: bool,
    /// Steps in 10,000 in which a leg becomes slow or hangs for a while.
    pub(crate) slow_periods: u64,
    /// Steps in 10,000 in which the threads of some rings stop running for a while.
    pub(crate) stalls: u64,
    /// Looks in 100 at IO that is held up by a slow leg, or one that hangs, at which it is given up.
    pub(crate) give_ups: u64,
    /// Starts in 100 at which a leg is pulled.
    pub(crate) pulls: u64,
    /// Starts in 100 at which the operator names a source.
    pub(crate) forced: u64,
    /// Starts in 1000 at which a sector of a log was damaged.
    pub(crate) rot: u64,
    /// Steps in 100 that bring a request, if there is room for one.
    pub(crate) load: u64,
    /// Requests in 100 that go to the hot spot.
    pub(crate) hot: u64,
    /// Steps in 1000 with a tick.
    pub(crate) ticks: u64,
    /// Steps in 1000 in which a leg is taken out by hand, or split off.
    pub(crate) take_outs: u64,
    /// Sectors of the volume as it is made: less than all if it is to grow.
    pub(crate) first_sectors: usize,
    /// Steps in 1000 in which it is asked to grow.
    pub(crate) growths: u64,
    /// Steps in 1000 in which a scrub begins, or something is done to it.
    pub(crate) scrubs: u64,
}

impl Config {
    pub(crate) fn draw(rng: &mut Rng, growth: &mut Rng) -> Config {
        let regions = rng.pick(&[4, 16, 16, 24, 32, 64]);
        let region_sectors = rng.pick(&[8, 8, 8, 16]);
        let sectors = regions as usize * region_sectors as usize;
        let short = if rng.chance(1, 3) { rng.below(u64::from(region_sectors)) as usize } else { 0 };
        let (quiet, dying) = (rng.chance(1, 6), rng.chance(1, 8));
        let trouble = |rng: &mut Rng, most: u64| if quiet || rng.coin() { 0 } else { rng.between(1, most) };
        let growths = growth.pick(&[0, 0, 5, 30]);
        let least = sectors / 8;
        let grown = if growths > 0 { growth.below((sectors - short - least) as u64) as usize } else { 0 };
        Config {
            growths,
            first_sectors: sectors - short - grown,
            legs: rng.pick(&[2, 2, 2, 3, 3, 4]),
            queues: rng.between(1, 3) as u16,
            regions,
            region_sectors,
            sectors: sectors - short,
            window: rng.pick(&[2048, 4096]),
            depth: rng.between(1, 6) as usize,
            lives: rng.between(1, 6),
            steps: if dying { 2000 } else { rng.pick(&[40, 150, 400, 400, 800]) },
            lone_errors: trouble(rng, 100),
            error_periods: trouble(rng, 150),
            bad_sectors: trouble(rng, if dying { 8000 } else { 300 }),
            dying,
            slow_periods: trouble(rng, 100),
            stalls: trouble(rng, 100),
            give_ups: trouble(rng, 30),
            pulls: trouble(rng, 60),
            forced: trouble(rng, 5),
            rot: trouble(rng, 50),
            load: if dying { 40 } else { rng.pick(&[5, 20, 20, 40]) },
            hot: rng.pick(&[0, 50, 90]),
            ticks: rng.pick(&[10, 30, 100]),
            take_outs: rng.pick(&[0, 5, 20]),
            scrubs: rng.pick(&[0, 5, 20]),
        }
    }

    /// Bytes of the volume as it is made.
    pub(crate) fn size(&self) -> u64 {
        self.first_sectors as u64 * SECTOR
    }

    /// Bytes of a region.
    pub(crate) fn region_size(&self) -> u64 {
        u64::from(self.region_sectors) * SECTOR
    }

    /// The region that a sector is in.
    pub(crate) fn region_of(&self, sector: usize) -> u32 {
        sector as u32 / self.region_sectors
    }

    /// Sectors of a region of the largest volume.
    pub(crate) fn region(&self, region: u32) -> std::ops::Range<usize> {
        let first = (region * self.region_sectors) as usize;
        first..(first + self.region_sectors as usize).min(self.sectors)
    }
}
