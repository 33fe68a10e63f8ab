//! Legs that come anew and leave for good, spares, and legs that take the place of others.
//!
//! Drawn from numbers of their own, so that runs without them stay what they were.

use mirrord_log::{LegEntry, Superblock};
use mirrord_raid::{Leg, LegSet, LegState, LegStates, MAX_LEGS, WorkerEvent};
use uuid::Uuid;

use crate::coverage::Saw;
use crate::rng::Rng;
use crate::sim::{Sim, trace};

pub(crate) struct Roster {
    rng: Rng,
    /// Steps in 1000 in which a leg comes or goes.
    changes: u64,
    /// Legs whose disks have a superblock of the volume.
    pub(crate) members: LegSet,
    /// Of these: their coming was not recorded, or they are to go.
    pub(crate) unsure: LegSet,
    /// Legs that were to be removed by hand.
    asked: LegSet,
    /// A leg was removed while another was out: it may have been the proof that a record of the other's never was
    /// complete. A start may be refused then.
    pub(crate) proof_is_gone: bool,
    /// A leg was named as source that may tell of other legs than there are.
    pub(crate) is_rewritten: bool,
    /// Each leg that is or was one.
    uuids: [Uuid; MAX_LEGS],
    made: u64,
}

impl Roster {
    pub(crate) fn draw(seed: u64, legs: usize) -> Roster {
        let mut rng = Rng::new(seed ^ 0x5eed_0f1e_6500_0000);
        let changes = if rng.chance(1, 3) { rng.pick(&[5, 20, 60]) } else { 0 };
        let mut uuids = [Uuid::nil(); MAX_LEGS];
        (0..).zip(&mut uuids).take(legs).for_each(|(i, uuid)| *uuid = Uuid::from_u64_pair(2, i));
        let members = LegSet::first(legs);
        let (unsure, asked) = (LegSet::EMPTY, LegSet::EMPTY);
        Roster {
            rng,
            changes,
            members,
            unsure,
            asked,
            proof_is_gone: false,
            is_rewritten: false,
            uuids,
            made: 0,
        }
    }

    /// How the superblocks name a leg in this state.
    pub(crate) fn entry(&self, leg: Leg, state: LegState, replaces: Option<Leg>) -> LegEntry {
        match state {
            LegState::Vacant => LegEntry::VACANT,
            _ => LegEntry { uuid: self.uuids[leg.index()], state, replaces },
        }
    }
}

impl Roster {
    /// Legs know less than what others may have: a start can be refused.
    pub(crate) fn forgets(&mut self) {
        self.proof_is_gone = true;
    }

    /// Whether legs come and go.
    pub(crate) fn may_change(&self) -> bool {
        self.changes > 0
    }

    /// The leg is a source that was named, so a leg it is; whether legs were `absent` that may know of what it does not.
    pub(crate) fn is_named(&mut self, leg: Leg, absent: bool) {
        self.unsure.remove(leg);
        self.asked.remove(leg);
        self.is_rewritten = true;
        self.proof_is_gone |= absent;
    }
}

impl Sim {
    /// Legs that could be given to a start.
    pub(crate) fn members(&self) -> LegSet {
        self.roster.members
    }

    /// A leg comes or goes, perhaps.
    pub(crate) fn change_roster(&mut self) {
        if self.roster.changes == 0 {
            return;
        }
        self.wipe_removed();
        let roster = &mut self.roster;
        if !self.faults.may_come() || !roster.rng.chance(roster.changes, 1000) {
            return;
        }
        let leg = Leg::new(roster.rng.below(self.config.legs as u64) as usize);
        let (what, replaced) = (roster.rng.below(8), roster.rng.below(2 * self.config.legs as u64) as usize);
        let states = self.live().mirror.legs.states();
        if !self.members().contains(leg) {
            let replaces = (replaced < self.config.legs).then(|| Leg::new(replaced));
            // As the real daemon: what is to be replaced is a leg, and nothing takes its place yet.
            let replaces = replaces.filter(|&old| old != leg && states.of(old).is_copy() && what < 4);
            self.come(leg, what >= 6, replaces);
        } else if what < 4 {
            self.roster.unsure.insert(leg);
            self.roster.asked.insert(leg);
            self.worker_event(WorkerEvent::Remove { leg });
        } else {
            let ready = states.spare().intersect(self.members()).intersect(self.attached);
            self.worker_event(WorkerEvent::Spares { ready, allocate: what < 7 });
        }
    }

    /// A new leg is made on a disk and given to the daemon.
    fn come(&mut self, leg: Leg, as_spare: bool, replaces: Option<Leg>) {
        let states = self.live().mirror.legs.states();
        let is_free = states.of(leg) == LegState::Vacant
            && states.recorded(leg)
            && !self.has_late(leg)
            && !self.live().leg_jobs().any(|job| job.io.leg == leg)
            && !self.live().meta.as_ref().is_some_and(|meta| meta.pending.contains(leg));
        let Some(other) = states.in_sync().lowest().filter(|_| is_free) else { return };
        self.roster.made += 1;
        self.roster.uuids[leg.index()] = Uuid::from_u64_pair(3, self.roster.made);
        let like = self.read_superblock(other, false).0;
        self.format_leg(leg, &like);
        trace!(self, "{leg:?} is made, spare {as_spare}, in place of {replaces:?}");
        self.roster.members.insert(leg);
        self.roster.unsure.insert(leg);
        self.roster.asked.remove(leg);
        self.attached.insert(leg);
        let event = if as_spare {
            WorkerEvent::AddSpare { leg }
        } else {
            WorkerEvent::Return { leg, full: true, replaces }
        };
        self.worker_event(event);
    }

    /// Its own superblock: a spare of an event before all others, whatever is under way. So what it says never
    /// decides, and it holds nothing until the others say so.
    fn format_leg(&mut self, leg: Leg, like: &Superblock) {
        let mut superblock = Superblock { leg, event_count: 0, clean: false, ..like.clone() };
        superblock.legs[leg.index()] = self.roster.entry(leg, LegState::Spare, None);
        self.disks[leg.index()].heal();
        self.disks[leg.index()].reopen();
        self.write_new(leg, &superblock);
    }

    /// After an event of the log worker: a leg goes only if it was asked for, or another took its place.
    pub(crate) fn check_roster(&mut self, before: LegStates, now: LegStates) {
        for leg in self.all_legs().iter() {
            match (before.of(leg), now.of(leg)) {
                (LegState::Vacant, LegState::Vacant) => {}
                (_, LegState::Vacant) => {
                    let mut in_sync = now.in_sync().iter();
                    let by = in_sync.find(|by| self.daemon_replaces(*by).is_some());
                    let asked = self.roster.asked.contains(leg);
                    assert!(
                        asked || by.is_some(),
                        "roster: {leg:?} is removed and nobody asked for it: {now:?}"
                    );
                    self.roster.proof_is_gone |= before.all() != before.in_use().union(LegSet::one(leg));
                    self.saw.saw(if asked { Saw::Removed } else { Saw::Replaced });
                    self.roster.unsure.insert(leg);
                    self.roster.asked.remove(leg);
                }
                (LegState::Vacant, _) if !self.roster.members.contains(leg) => {
                    panic!("roster: {leg:?} comes and there is no such leg: {now:?}")
                }
                (LegState::Vacant, LegState::Spare) => self.saw.saw(Saw::SpareAdded),
                (LegState::Vacant, _) => self.saw.saw(Saw::Added),
                (LegState::Spare, LegState::Syncing) => self.saw.saw(Saw::SpareUsed),
                _ => {}
            }
        }
    }

    /// A leg that was refused when it was given back is removed: it went on where the others did not.
    pub(crate) fn remove_refused(&mut self, leg: Leg) {
        self.roster.unsure.insert(leg);
        self.roster.asked.insert(leg);
        self.worker_event(WorkerEvent::Remove { leg });
    }

    /// What a leg in sync replaced by what is durable: the daemon's own word is gone by then.
    fn daemon_replaces(&self, leg: Leg) -> Option<Leg> {
        let says = |on: Leg| self.durable[on.index()].legs.get(leg.index())?.replaces;
        self.members().iter().find_map(says)
    }

    /// Legs whose coming or going is recorded are no longer in doubt; what was removed is wiped some time later.
    fn wipe_removed(&mut self) {
        let states = self.live().mirror.legs.states();
        for leg in self.members().iter().filter(|&leg| states.recorded(leg)) {
            if states.of(leg) != LegState::Vacant {
                if !self.roster.asked.contains(leg) {
                    self.roster.unsure.remove(leg);
                }
                continue;
            }
            let is_let_go = !self.has_late(leg)
                && !self.live().leg_jobs().any(|job| job.io.leg == leg)
                && !self.live().meta.as_ref().is_some_and(|meta| meta.pending.contains(leg));
            let is_coming = self.roster.unsure.contains(leg) && self.live().worker.is_coming(leg);
            if is_let_go && !is_coming && self.roster.rng.chance(1, 20) {
                self.forget_leg(leg);
            }
        }
    }

    /// It is no leg any more.
    fn forget_leg(&mut self, leg: Leg) {
        trace!(self, "{leg:?} is wiped");
        self.roster.members.remove(leg);
        self.roster.unsure.remove(leg);
        self.attached.remove(leg);
        self.splits[leg.index()] = None;
        self.scribbled.remove(leg);
    }
}
