//! Notices what changed about a running volume and adds it to the volume's journal of events.
//!
//! The log worker looks after each of its turns, which is when states change; nothing is polled for it.
//! Counters of errors are told of at the worker's ticks only, or a leg that fails every read would fill
//! the journal in a moment.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mirrord_raid::{Leg, LegMap, LegSet, LegState, MAX_LEGS};

use super::places::Amiss;
use super::shared::Shared;
use super::status::{leg_state, state};
use crate::events::{Journal, What};
use crate::status::VolumeState;

/// What events are made of, at one moment.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Seen {
    legs: Vec<LegState>,
    volume: VolumeState,
    syncing: LegSet,
    /// Stale regions of legs that are syncing.
    stale: u64,
    /// Regions copied since start.
    copied: u64,
    log_failed: bool,
    /// What is amiss with the legs' files.
    amiss: LegMap<Option<Amiss>>,
    counts: Vec<Counts>,
}

/// Counters of one leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    flushes: u64,
    repaired: u64,
}

impl Seen {
    pub(super) fn of(shared: &Shared) -> Seen {
        let mirror = &shared.mirror;
        let states = mirror.legs.states();
        let syncing = states.syncing();
        Seen {
            legs: LegSet::first(MAX_LEGS).iter().map(|leg| states.of(leg)).collect(),
            volume: state(shared),
            syncing,
            stale: syncing.iter().map(|leg| u64::from(mirror.legs.stale_count(leg))).sum(),
            copied: mirror.counters.resynced_regions.load(Relaxed),
            log_failed: shared.log_failed.load(Relaxed),
            amiss: shared.places.amiss(),
            counts: mirror.legs.counters.iter().map(|(_, counters)| counts(counters)).collect(),
        }
    }
}

fn counts(counters: &mirrord_raid::LegCounters) -> Counts {
    Counts {
        reads: counters.read_errors.load(Relaxed),
        writes: counters.write_errors.load(Relaxed),
        flushes: counters.flush_errors.load(Relaxed),
        repaired: counters.repaired.load(Relaxed),
    }
}

/// See the module's documentation.
pub(super) struct Watch {
    journal: Arc<Journal>,
    /// Of the legs.
    paths: Vec<String>,
    /// What was told of.
    told: Seen,
    /// Regions that were copied when the present resync began.
    copied_before: u64,
    /// Users were let in: there is somebody to tell.
    served: bool,
}

impl Watch {
    /// For a volume that is about to be served, as it is then.
    pub(super) fn new(journal: Arc<Journal>, paths: Vec<String>, now: Seen) -> Watch {
        Watch { journal, paths, told: now, copied_before: 0, served: false }
    }

    /// The volume is served: tells so, and from now on whatever changes.
    pub(super) fn started(&mut self, device: String) {
        self.served = true;
        self.journal.add(What::Started { device, state: self.told.volume });
        if !self.told.syncing.is_empty() {
            self.journal.add(What::ResyncStarted { stale_regions: self.told.stale });
        }
    }

    /// A leg is elsewhere from now on.
    pub(super) fn moved(&mut self, leg: Leg, path: String) {
        self.paths[leg.index()] = path;
    }

    /// The volume is being stopped.
    pub(super) fn stopping(&mut self, handed_over: bool) {
        if self.served {
            self.journal.add(What::Stopping { handed_over });
        }
    }

    /// Tells what changed, counters only if `with_counts` or a leg changed its state. Whether there are
    /// counters left to tell of.
    pub(super) fn look(&mut self, mut now: Seen, with_counts: bool) -> bool {
        if !self.served || now == self.told {
            return false;
        }
        let with_counts = with_counts || now.legs != self.told.legs;
        let left = !with_counts && now.counts != self.told.counts;
        if !with_counts {
            now.counts.clone_from(&self.told.counts);
        }
        for what in self.changes(&now) {
            self.journal.add(what);
        }
        if self.told.syncing.is_empty() {
            self.copied_before = now.copied;
        }
        self.told = now;
        left
    }

    fn changes(&self, now: &Seen) -> Vec<What> {
        let told = &self.told;
        let mut changes = Vec::new();
        for (leg, (counts, old)) in now.counts.iter().zip(&told.counts).enumerate() {
            let path = || self.paths[leg].clone();
            let errors = |counts: &Counts| (counts.reads, counts.writes, counts.flushes);
            if errors(counts) != errors(old) {
                changes.push(What::IoErrors {
                    leg,
                    path: path(),
                    reads: counts.reads - old.reads,
                    writes: counts.writes - old.writes,
                    flushes: counts.flushes - old.flushes,
                });
            }
            if counts.repaired != old.repaired {
                changes.push(What::Repaired { leg, path: path(), ranges: counts.repaired - old.repaired });
            }
        }
        for (leg, (&state, &old)) in now.legs.iter().zip(&told.legs).enumerate() {
            if state != old {
                tracing::warn!(leg, from = ?old, to = ?state, "a leg changed its state");
                let (to, reason) = leg_state(state);
                let (path, from) = (self.paths[leg].clone(), leg_state(old).0.to_owned());
                let reason = reason.map(str::to_owned);
                changes.push(What::LegState { leg, path, from, to: to.to_owned(), reason });
            }
        }
        for (leg, &amiss) in now.amiss.iter().filter(|&(leg, amiss)| *amiss != told.amiss[leg]) {
            let (leg, path) = (leg.index(), self.paths.get(leg.index()).cloned().unwrap_or_default());
            let amiss = amiss.map(|amiss| amiss.name().to_owned());
            tracing::warn!(leg, ?amiss, "a leg's file");
            changes.push(What::LegFile { leg, path, amiss });
        }
        if now.log_failed && !told.log_failed {
            changes.push(What::LogFailed);
        }
        if now.volume != told.volume {
            changes.push(What::VolumeState { from: told.volume, to: now.volume });
        }
        match (told.syncing.is_empty(), now.syncing.is_empty()) {
            (true, false) => changes.push(What::ResyncStarted { stale_regions: now.stale }),
            (false, true) => changes.push(What::ResyncFinished {
                complete: told.syncing.iter().all(|leg| now.legs[leg.index()] == LegState::InSync),
                copied_regions: now.copied - self.copied_before,
            }),
            _ => {}
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Next, Reader};
    use mirrord_raid::FailReason;
    use uuid::Uuid;

    const IN_SYNC: LegState = LegState::InSync;
    const SYNCING: LegState = LegState::Syncing;
    const FULL: LegState = LegState::Failed(FailReason::NoSpace);

    /// Two legs, one in sync, one in this state.
    fn seen(other: LegState) -> Seen {
        let (volume, syncing) = match other {
            LegState::InSync => (VolumeState::InSync, LegSet::EMPTY),
            LegState::Syncing => (VolumeState::Resyncing, LegSet::one(Leg::new(1))),
            _ => (VolumeState::Degraded, LegSet::EMPTY),
        };
        let counts = vec![Counts::default(); 2];
        let legs = vec![IN_SYNC, other];
        let amiss = LegMap::from(vec![None; 2]);
        Seen { legs, volume, syncing, stale: 0, copied: 0, log_failed: false, amiss, counts }
    }

    fn watch(now: Seen) -> (Watch, Reader) {
        let journal = Journal::new("v", Uuid::nil());
        let reader = journal.reader(None).unwrap();
        (Watch::new(journal, vec!["/a".to_owned(), "/b".to_owned()], now), reader)
    }

    /// What was told, in short.
    fn told(reader: &mut Reader) -> Vec<String> {
        let mut told = Vec::new();
        while let Next::Event(event) = reader.read() {
            let text = event.to_string();
            told.push(text.split_once("  v  ").unwrap().1.to_owned());
        }
        told
    }

    #[test]
    fn a_leg_fails_and_comes_back() {
        let (mut watch, mut reader) = watch(seen(IN_SYNC));
        watch.look(seen(IN_SYNC), true);
        assert!(told(&mut reader).is_empty(), "nobody is served yet");
        watch.started("/dev/x".to_owned());
        watch.look(seen(IN_SYNC), true);
        assert_eq!(told(&mut reader), ["started  /dev/x  in_sync"]);

        watch.look(Seen { copied: 3, ..seen(FULL) }, false);
        assert_eq!(told(&mut reader), ["leg 1 /b  in_sync -> failed (no_space)", "in_sync -> degraded"]);
        watch.look(Seen { copied: 3, stale: 5, ..seen(SYNCING) }, false);
        watch.look(Seen { copied: 6, stale: 2, ..seen(SYNCING) }, false);
        let back =
            ["leg 1 /b  failed -> syncing", "degraded -> resyncing", "resync started, 5 stale regions"];
        assert_eq!(told(&mut reader), back);
        watch.look(Seen { copied: 8, ..seen(IN_SYNC) }, false);
        let done =
            ["leg 1 /b  syncing -> in_sync", "resyncing -> in_sync", "resync finished, 5 regions copied"];
        assert_eq!(told(&mut reader), done);
        watch.stopping(false);
        assert_eq!(told(&mut reader), ["stopping"]);
    }

    #[test]
    fn what_came_about_before_users_were_let_in_is_told_after() {
        let (mut watch, mut reader) = watch(Seen { stale: 4, ..seen(SYNCING) });
        watch.look(Seen { copied: 4, ..seen(IN_SYNC) }, true);
        watch.started("/dev/x".to_owned());
        watch.look(Seen { copied: 4, ..seen(IN_SYNC) }, true);
        let all = [
            "started  /dev/x  resyncing",
            "resync started, 4 stale regions",
            "leg 1 /b  syncing -> in_sync",
            "resyncing -> in_sync",
            "resync finished, 4 regions copied",
        ];
        assert_eq!(told(&mut reader), all);
    }

    #[test]
    fn a_resync_is_broken_off_and_the_log_fails() {
        let (mut watch, mut reader) = watch(Seen { stale: 4, ..seen(SYNCING) });
        watch.started("/dev/x".to_owned());
        told(&mut reader);
        watch.look(Seen { copied: 1, log_failed: true, ..seen(FULL) }, false);
        let all = told(&mut reader);
        assert_eq!(all[0], "leg 1 /b  syncing -> failed (no_space)");
        assert!(all[1].starts_with("the log cannot be written"));
        assert_eq!(all[3], "resync broken off, 1 regions copied");
    }

    #[test]
    fn a_leg_loses_its_name_and_has_it_again() {
        let (mut watch, mut reader) = watch(seen(IN_SYNC));
        watch.started("/dev/x".to_owned());
        told(&mut reader);
        let with = |amiss| Seen { amiss: LegMap::from(vec![None, amiss]), ..seen(IN_SYNC) };
        watch.look(with(Some(Amiss::Renamed)), false);
        watch.look(with(Some(Amiss::Renamed)), false);
        watch.look(with(None), false);
        let lines =
            ["leg 1 /b  its name leads to another file or nowhere", "leg 1 /b  its file is in its place"];
        assert_eq!(told(&mut reader), lines);
    }

    #[test]
    fn errors_are_counted_at_ticks_and_before_a_leg_goes() {
        let (mut watch, mut reader) = watch(seen(IN_SYNC));
        watch.started("/dev/x".to_owned());
        told(&mut reader);
        let with = |reads, repaired, other| {
            let mut seen = seen(other);
            seen.counts[1] = Counts { reads, repaired, ..Counts::default() };
            seen
        };
        assert!(watch.look(with(1, 0, IN_SYNC), false), "left for the next tick");
        assert!(watch.look(with(3, 0, IN_SYNC), false));
        assert!(told(&mut reader).is_empty());
        assert!(!watch.look(with(4, 2, IN_SYNC), true));
        let lines = ["leg 1 /b  failed: 4 reads, 0 writes, 0 flushes", "leg 1 /b  2 ranges repaired"];
        assert_eq!(told(&mut reader), lines);
        watch.look(with(5, 2, FULL), false);
        assert_eq!(told(&mut reader)[0], "leg 1 /b  failed: 1 reads, 0 writes, 0 flushes");
    }
}
