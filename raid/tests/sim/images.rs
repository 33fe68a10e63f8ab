//! Legs that become their own images of an earlier moment, while the volume is stopped, between a kill and the start, or
//! before they are given back; and any leg named as source, whatever it holds.
//!
//! What is excused is what nothing can tell: an image may be the source if no two records that were begun after it was taken
//! are complete on its leg, and any image may if no leg in sync is what it was. The volume then holds what the source
//! does. Legs are never excused from being equal.
//!
//! Drawn from numbers of their own, so that runs without them stay what they were.

use mirrord_raid::{
    AssembleError, AssembleOptions, Assembly, Leg, LegRecord, LegSet, LegState, Record, assemble,
};

use crate::boot::dirty;
use crate::config::Config;
use crate::coverage::Saw;
use crate::rng::Rng;
use crate::sim::{Sim, trace};

/// Records that tell an image from its leg.
const PROOF: u32 = 2;

/// A leg as it was at one moment.
struct Image {
    sectors: Vec<u64>,
    /// The leg: an index can be another's by now.
    uuid: [u8; 16],
    /// Size of the volume then, in bytes.
    size: u64,
    /// The newest record then.
    event_count: u64,
    /// Records begun since that are complete, and that its leg has.
    proofs: u32,
}

pub(crate) struct Images {
    pub(crate) rng: Rng,
    /// Steps in 10,000 in which an image is taken.
    takes: u64,
    /// Ends of lives in 100 at which one is put back, and returns of legs.
    puts: u64,
    /// Starts in 100 for which any leg is named as source.
    named: u64,
    /// By leg.
    kept: Vec<Option<Image>>,
    /// Legs that are images, from when they became so until they are in use.
    pub(crate) in_place: LegSet,
    /// Legs that were not there when an older image became the volume: what they hold may be newer.
    pub(crate) ahead: LegSet,
    /// Legs out of use that a start found to be of another history, until they are given back.
    apart: LegSet,
    /// What the volume may hold instead of what it held.
    may_hold: Vec<Vec<u64>>,
    /// A source was named for the start that is under way.
    is_named: bool,
    /// Legs that a named source overruled and that have no record since: nothing on them tells of it.
    pub(crate) overruled: LegSet,
}

impl Images {
    pub(crate) fn draw(seed: u64, config: &Config) -> Images {
        let mut rng = Rng::new(seed ^ 0x1a3e_0f1e_6000_0001);
        let [takes, puts] =
            if rng.chance(1, 3) { [rng.pick(&[5, 20, 100]), rng.pick(&[20, 60])] } else { [0, 0] };
        let named = if rng.chance(1, 6) { rng.pick(&[5, 30]) } else { 0 };
        let kept = (0..config.legs).map(|_| None).collect();
        Images {
            rng,
            takes,
            puts,
            named,
            kept,
            in_place: LegSet::EMPTY,
            ahead: LegSet::EMPTY,
            apart: LegSet::EMPTY,
            may_hold: Vec::new(),
            is_named: false,
            overruled: LegSet::EMPTY,
        }
    }

    /// Whether the volume may hold this, against what is known of it.
    pub(crate) fn may_hold(&self, sector: usize, stamp: u64) -> bool {
        self.may_hold.iter().any(|sectors| sectors[sector] == stamp)
    }

    /// Whether some leg may decide a start that nobody would want to decide.
    pub(crate) fn is_open(&self) -> bool {
        !self.in_place.is_empty() || !self.may_hold.is_empty()
    }

    /// A start begins, for which no source is named yet.
    pub(crate) fn forget_source(&mut self) {
        self.is_named = false;
    }

    /// A record is complete.
    pub(crate) fn recorded(&mut self, record: &Record) {
        for leg in record.legs.iter() {
            if let Some(image) = &mut self.kept[leg.index()]
                && record.event_count > image.event_count
            {
                image.proofs += 1;
            }
        }
    }
}

impl Sim {
    /// An image of a leg is taken, perhaps.
    pub(crate) fn take_image(&mut self) {
        if !self.images.rng.chance(self.images.takes, 10_000) || !self.faults.may_come() {
            return;
        }
        let leg = Leg::new(self.images.rng.below(self.config.legs as u64) as usize);
        // What somebody wrote to a split leg is not an image of any moment of the volume.
        if !self.members().intersect(self.attached).minus(self.scribbled).contains(leg) {
            return;
        }
        let Some(sectors) = self.disks[leg.index()].image() else { return };
        let LegRecord { leg: uuid, size, .. } = self.record_of(leg);
        let event_count = self.live().worker.event_count();
        trace!(self, "an image of {leg:?} is taken, event {event_count}");
        self.images.kept[leg.index()] = Some(Image { sectors, uuid, size, event_count, proofs: 0 });
    }

    /// Whether there is an image of what the leg is now.
    fn has_image(&self, leg: Leg) -> bool {
        let image = self.images.kept[leg.index()].as_ref();
        image.is_some_and(|image| image.uuid == self.record_of(leg).leg)
    }

    /// The leg becomes its image; whether that is told for certain.
    fn become_image(&mut self, leg: Leg) -> bool {
        let image = self.images.kept[leg.index()].as_ref().expect("there is an image");
        let is_told = image.proofs >= PROOF;
        self.disks[leg.index()].become_image(&image.sectors);
        trace!(self, "{leg:?} becomes its image of event {}, told: {is_told}", image.event_count);
        self.images.in_place.insert(leg);
        self.images.apart.remove(leg);
        self.splits[leg.index()] = None;
        self.scribbled.remove(leg);
        self.stopped_clean = false;
        self.look_at_marks(leg);
        is_told
    }

    /// Between two lives a leg becomes its image, or all legs in sync do, each its own.
    pub(crate) fn put_images_back(&mut self) {
        if self.images.is_open() || !self.images.rng.chance(self.images.puts, 100) {
            return;
        }
        let there: LegSet = self.attached.iter().filter(|&leg| self.has_image(leg)).collect();
        let current = self.current.intersect(self.attached);
        // A log that is not on the legs is not of that time. The size and which legs there are stay.
        let size = self.geometry.size();
        let is_like_now =
            |leg: Leg| self.images.kept[leg.index()].as_ref().is_some_and(|image| image.size == size);
        let all = self.place.is_none()
            && !self.roster.may_change()
            && self.current.minus(there).is_empty()
            && self.current.iter().all(is_like_now)
            && self.images.rng.coin();
        if all {
            self.saw.saw(Saw::AllImages);
            // Legs that are not there know what these forgot, or are as new by now and may be the source.
            self.roster.forgets();
            for leg in current.iter() {
                let _ = self.become_image(leg);
            }
            let held = self.members().iter().map(|leg| self.disks[leg.index()].holds());
            self.images.may_hold.extend(held);
            let newest = current.iter().map(|leg| self.record_of(leg).event_count).max();
            self.current =
                current.iter().filter(|&leg| Some(self.record_of(leg).event_count) == newest).collect();
            return;
        }
        let count = there.len() as u64;
        let Some(leg) = there.iter().nth(self.images.rng.below(count.max(1)) as usize) else { return };
        if current.minus(LegSet::one(leg)).is_empty() {
            return;
        }
        let is_told = self.become_image(leg);
        self.saw.saw(if is_told { Saw::ToldImage } else { Saw::LevelImage });
        if !is_told && let Some(sectors) = self.disks[leg.index()].image() {
            self.images.may_hold.push(sectors);
        }
        self.current.remove(leg);
    }

    /// A leg that is out becomes its image before it is given back, perhaps.
    pub(crate) fn return_as_image(&mut self, leg: Leg) {
        let states = self.live().mirror.legs.states();
        let is_busy = self.has_late(leg)
            || self.live().leg_jobs().any(|job| job.io.leg == leg)
            || self.live().worker.is_coming(leg)
            || !self.disks[leg.index()].is_settled();
        if !states.recorded(leg)
            || is_busy
            || !self.images.rng.chance(self.images.puts, 100)
            || !self.has_image(leg)
        {
            return;
        }
        self.saw.saw(Saw::ReturnedImage);
        self.become_image(leg);
        let (superblock, generation) = self.read_superblock(leg, false);
        self.generations[leg.index()] = generation;
        self.durable[leg.index()] = superblock;
    }

    /// As the real driver looks at a leg that is given back: whether all of it is to be copied; `None`: it is refused.
    pub(crate) fn is_older(&mut self, leg: Leg) -> Option<bool> {
        let mut found = vec![self.record_of(leg)];
        found.extend(self.live().mirror.legs.states().in_use().iter().map(|leg| self.record_of(leg)));
        match assemble(&found, self.degraded()) {
            Ok(assembly) => {
                let is_known = found[0].lineage.session == assembly.session;
                let is_disbelieved = assembly.disbelieved.contains(leg);
                let is_apart = self.images.apart.contains(leg);
                self.images.apart.remove(leg);
                assert!(
                    is_disbelieved || !is_apart,
                    "invariant 9: {leg:?} was of another history: {found:#?}"
                );
                Some(is_disbelieved || !is_known && self.its_log_says_more(leg))
            }
            Err(_) if self.roster.proof_is_gone => None,
            Err(AssembleError::SplitBrain { .. }) if self.is_from_a_lost_cache(leg, &found) => None,
            // The proof that its record was never complete is on a leg that is out, and not asked.
            Err(AssembleError::SplitBrain { .. })
                if assemble(&self.records(self.members()), self.degraded()).is_ok() =>
            {
                None
            }
            Err(error) => panic!("invariant 9: {leg:?} is given back: {error}: {found:#?}"),
        }
    }

    /// Whether a leg is an image of records that a power cut took from the leg itself: nothing tells them from those of a
    /// leg that went on alone.
    fn is_from_a_lost_cache(&self, leg: Leg, found: &[LegRecord]) -> bool {
        let image = &found[0];
        let left_earlier = |record: &LegRecord| {
            let mut past = record.lineage.past.iter();
            past.any(|past| past.session == image.lineage.session && past.event_count < image.event_count)
        };
        self.images.in_place.contains(leg) && found[1..].iter().any(left_earlier)
    }

    /// A start found these legs, and goes by this.
    pub(crate) fn found_apart(&mut self, assembly: &Assembly) {
        for leg in assembly.at.iter().filter(|(_, at)| at.is_some()).map(|(leg, _)| leg) {
            let is_in_use = assembly.states(&[])[leg].is_in_use();
            match assembly.disbelieved.contains(leg) && !is_in_use {
                true => self.images.apart.insert(leg),
                false => self.images.apart.remove(leg),
            }
        }
    }

    /// Whether more is dirty in the log of a leg that was out than in the volume's, which may have gone on from an image.
    fn its_log_says_more(&self, leg: Leg) -> bool {
        self.place.is_none() && self.logged(leg) & !dirty(self.live().log.as_ref()) != 0
    }

    /// Whether any leg is to be named as source, and which.
    pub(crate) fn any_source(&mut self) -> Option<Leg> {
        if !self.faults.may_come() || !self.images.rng.chance(self.images.named, 100) {
            return None;
        }
        let which = self.images.rng.below(self.attached.len().max(1) as u64) as usize;
        self.attached.iter().nth(which)
    }

    /// Any leg is named as source: what it holds is the volume then. Not one that tells of another size or of
    /// legs that are there no more: that they are missed is nothing new.
    pub(crate) fn force_any(&mut self, found: &[LegRecord], leg: Leg) -> Option<Assembly> {
        let source = found.iter().position(|record| record.index == leg)?;
        let names = &found[source];
        let is_there = |leg: Leg| {
            let (uuid, state) = names.legs[leg];
            state == LegState::Vacant || self.members().contains(leg) && self.record_of(leg).leg == uuid
        };
        if names.size != self.geometry.size() || !names.legs.legs().all(is_there) {
            return None;
        }
        let options = AssembleOptions { source: Some(source), ..self.degraded() };
        let assembly = match assemble(found, options) {
            Ok(assembly) if assembly.strangers.is_empty() => assembly,
            Ok(_) | Err(AssembleError::SourceIsSpare) => return None,
            Err(error) => panic!("invariant 9: {leg:?} is named as source: {error}"),
        };
        let disk = &mut self.disks[leg.index()];
        disk.settle();
        let sectors = disk.image()?;
        trace!(self, "{leg:?} is named as source");
        self.saw.saw_if(Saw::AnySource, !self.current.contains(leg));
        self.images.may_hold.push(sectors);
        self.images.is_named = true;
        self.stopped_clean = false;
        self.roster.is_named(leg, self.attached != self.roster.members);
        Some(assembly)
    }

    /// The volume is served, from this leg.
    pub(crate) fn images_are_settled(&mut self, source: Leg) {
        let in_use = self.live().mirror.legs.states().in_use();
        self.images.in_place = self.images.in_place.minus(in_use);
        self.images.ahead = self.images.ahead.minus(in_use);
        // Whatever was written to it behind the daemon's back is the volume's now.
        self.scribbled.remove(source);
        self.images.overruled.remove(source);
        if std::mem::take(&mut self.images.is_named) {
            let left_behind = self.members().minus(in_use);
            self.images.overruled = self.images.overruled.union(left_behind);
        }
        if std::mem::take(&mut self.images.may_hold).is_empty() {
            return;
        }
        self.images.ahead = self.members().minus(in_use);
        for sector in 0..self.sectors() {
            let stamp = self.disks[source.index()].read(sector);
            if !self.is_legal(sector, stamp) {
                self.history.roll_back(sector, stamp, self.now);
            }
        }
    }
}
