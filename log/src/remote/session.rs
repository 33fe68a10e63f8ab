//! How the log is had, kept and given back.
//!
//! | from | to | when |
//! |---|---|---|
//! | away | having | connected: CTR and RESUME are sent |
//! | having | reading | RESUME is done, for the first time |
//! | having | replaying | RESUME is done again |
//! | reading | serving | all regions out of sync were told |
//! | replaying | serving | every dirty region is marked, durably |
//! | serving | leaving | asked to stop |
//! | any | away | the connection is lost, or the server says what it should not |
//! | any | over | another has the log, it cannot be had at all, or goodbye was heard |

use bitvec::prelude::{BitVec, Lsb0};
use mirrord_raid::{Region, SECTOR};

use super::talk::{Asked, For, Talk, numbers};
use super::{Action, Changes, Event, SessionConfig, SessionError};
use crate::errno::{EBUSY, ESRCH, ESTALE};
use crate::log::SyncMode;
use crate::wire::{Frame, MAX_REGIONS, Regions, Reply, Request, RequestType};

/// Requests under way while the log is read or said again: 32 full ones are half a MiB.
const WINDOW: usize = 32;
/// ... while it is tidied: commits do not wait for long behind these.
const TIDY_WINDOW: usize = 2;

/// Ticks after which a log that was had and is another's is taken for lost: a start that is being refused has it for a moment.
const TAKEN_TICKS: u32 = 2;

/// While regions are dirty the server is asked every so many ticks whether the log is still this volume's: writes to them ask for
/// nothing.
const HEARTBEAT_TICKS: u32 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Away,
    Having,
    Reading,
    /// All regions before this one were said.
    Replaying(Option<u32>),
    Serving,
    Leaving,
    Over,
}

/// See the module's documentation, and [`super`].
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    regions: u32,
    stage: Stage,
    talk: Talk,
    /// What the log is to be.
    dirty: BitVec<u8, Lsb0>,
    dirty_count: u32,
    /// Ticks without a request.
    quiet: u32,
    /// What is dirty is known.
    was_ready: bool,
    /// The server gave it to this life of the volume.
    was_had: bool,
    /// Another has it: so many times in a row, once a tick.
    busy: Option<u32>,
    /// Regions out of sync that are still to be asked for, and that were not told yet.
    unasked: u32,
    untold: u32,
    committing: Option<Changes>,
    /// The server has more dirty regions than it should: those up to here were unset.
    tidying: Option<u32>,
    /// It may have: a commit was abandoned.
    is_untidy: bool,
    stopping: bool,
    last_error: Option<SessionError>,
}

impl Session {
    /// A session that wants a connection.
    ///
    /// # Panics
    /// If the region size is 0.
    pub fn new(config: SessionConfig, actions: &mut Vec<Action>) -> Session {
        let regions = config.size.div_ceil(config.region_size) as u32;
        actions.push(Action::Connect);
        Session {
            regions,
            stage: Stage::Away,
            talk: Talk::new(config.uuid.clone(), config.luid),
            dirty: BitVec::repeat(false, regions as usize),
            dirty_count: 0,
            quiet: 0,
            was_ready: false,
            was_had: false,
            busy: None,
            unasked: 0,
            untold: 0,
            committing: None,
            tidying: None,
            is_untidy: false,
            stopping: false,
            last_error: None,
            config,
        }
    }

    /// The server was never heard, and is not waited for: every region is taken for dirty. It is told so when it is there,
    /// with [`Action::Back`].
    pub fn take_all_for_dirty(&mut self) {
        self.fill(true);
        self.was_ready = true;
        self.is_untidy = true;
        if self.stage != Stage::Away {
            self.stage = Stage::Having;
        }
    }

    /// The dirty regions, ascending: what the server said at first, and what was committed since.
    pub fn dirty(&self) -> impl Iterator<Item = Region> {
        self.dirty.iter_ones().map(|index| Region(index as u32))
    }

    /// Whether the log is had: what is committed now needs no more than an answer.
    pub fn is_serving(&self) -> bool {
        self.stage == Stage::Serving
    }

    /// Whether a commit waits for its answer.
    pub fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Whether the commit that waits has marks.
    pub fn is_marking(&self) -> bool {
        self.committing.as_ref().is_some_and(|changes| !changes.marks.is_empty())
    }

    /// What went wrong last.
    pub fn last_error(&self) -> Option<SessionError> {
        self.last_error
    }

    /// Whether a [`Event::Tick`] a second is needed.
    pub fn wants_tick(&self) -> bool {
        !self.talk.is_idle() || self.busy.is_some() || self.stage == Stage::Serving && self.dirty_count > 0
    }

    /// Takes one event and adds what is to be done to `actions`.
    ///
    /// # Panics
    /// If a commit comes before the log was had, while another is under way, or with regions it does not have.
    pub fn handle(&mut self, event: Event<'_>, actions: &mut Vec<Action>) {
        if self.stage == Stage::Over {
            return;
        }
        match event {
            Event::Connected if self.stage == Stage::Away => self.have(),
            Event::Connected => {}
            Event::Received(frame) => self.received(&frame, actions),
            Event::Lost => self.lost(actions),
            Event::Commit(changes) => self.commit(changes),
            Event::Tick => self.tick(actions),
            Event::Stop => {
                self.stopping = true;
                self.leave();
            }
        }
        self.pump();
        if !self.talk.bytes.is_empty() && self.stage != Stage::Over {
            actions.push(Action::Send(std::mem::take(&mut self.talk.bytes)));
        }
    }

    // ---- having it

    fn have(&mut self) {
        self.stage = Stage::Having;
        // No log has a region that is longer than its mirror.
        let (size, region_size) = (self.config.size, self.config.region_size);
        let (length, region) = (size.max(region_size).div_ceil(SECTOR), region_size / SECTOR);
        let mode = match self.config.mode {
            SyncMode::Default => "",
            SyncMode::Sync => " sync",
            SyncMode::NoSync => " nosync",
        };
        let last = self.config.last.map_or(String::new(), |last| format!(" last={last:016x}"));
        let take_over = if self.config.take_over { " take_over" } else { "" };
        let text = format!("{length} disk {} {region}{mode}{last}{take_over}", self.config.uuid);
        self.talk
            .ask(For::Having, &Request::Ctr { text: text.as_bytes(), again: self.was_had && self.was_ready });
        self.talk.ask(For::Having, &Request::Resume);
    }

    fn ask_shape(&mut self) {
        self.talk.ask(For::Having, &Request::GetRegionSize);
        self.talk.ask(For::Having, &Request::GetSyncCount);
    }

    fn lost(&mut self, actions: &mut Vec<Action>) {
        if self.stage == Stage::Over {
            return;
        }
        self.talk.forget();
        self.stage = Stage::Away;
        self.busy = None;
        self.tidying = None;
        actions.push(Action::Connect);
    }

    /// What the server says cannot be; another connection may do better.
    fn give_up(&mut self, error: SessionError, actions: &mut Vec<Action>) {
        self.last_error = Some(error);
        let may_pass = match error {
            SessionError::Silent { .. } => true,
            // A late message of an earlier connection gave the log to that.
            SessionError::Refused { errno, .. } => errno == ESRCH,
            _ => false,
        };
        if !self.was_ready && !may_pass {
            return self.end(error, actions);
        }
        actions.push(Action::Disconnect);
        self.lost(actions);
    }

    fn end(&mut self, error: SessionError, actions: &mut Vec<Action>) {
        self.last_error = Some(error);
        self.stage = Stage::Over;
        self.talk.forget();
        actions.extend([Action::Disconnect, Action::Refused(error)]);
    }

    fn tick(&mut self, actions: &mut Vec<Action>) {
        if let Some(request) = self.talk.tick(self.config.patience) {
            return self.give_up(SessionError::Silent { request }, actions);
        }
        self.quiet = if self.talk.is_idle() { self.quiet + 1 } else { 0 };
        if self.stage == Stage::Serving && self.dirty_count > 0 && self.quiet >= HEARTBEAT_TICKS {
            self.talk.ask(For::Tidying, &Request::Flush(Regions::NONE));
        }
        // What was not answered says nothing of who has the log.
        let Some(ticks) = self.busy.as_mut().filter(|_| self.talk.is_idle()) else { return };
        *ticks += 1;
        let (ticks, was_ready) = (*ticks, self.was_ready);
        let patience = if was_ready && self.was_had { TAKEN_TICKS } else { self.config.busy_patience };
        if ticks >= patience {
            let error = if was_ready { SessionError::TakenOver } else { SessionError::Busy };
            self.end(error, actions);
        } else if self.stage == Stage::Having {
            self.have();
        }
    }

    // ---- answers

    fn received(&mut self, frame: &Frame<'_>, actions: &mut Vec<Action>) {
        if frame.name() != self.talk.name() {
            return;
        }
        // An answer that came before, perhaps.
        let Some(asked) = self.talk.answered(frame.seq()) else { return };
        let request = asked.request;
        match frame.reply(request) {
            Err(_) => self.give_up(SessionError::Nonsense { request }, actions),
            Ok(Reply::Failed(errno)) => self.failed(asked, errno, actions),
            Ok(reply) => self.answered(asked, &reply, actions),
        }
    }

    fn failed(&mut self, asked: Asked, errno: mirrord_raid::Errno, actions: &mut Vec<Action>) {
        let request = asked.request;
        match (errno, self.stage) {
            (ESTALE, _) => self.end(SessionError::TakenOver, actions),
            // What was asked together with a request that failed.
            (ESRCH, Stage::Having) if self.busy.is_some() && request == RequestType::Resume => {}
            (EBUSY, Stage::Having) => {
                if self.busy.is_none() {
                    self.busy = Some(0);
                    self.last_error = Some(SessionError::Busy);
                    actions.extend((!self.was_ready).then_some(Action::Busy));
                }
            }
            (_, Stage::Leaving) => self.goodbye(request, actions),
            _ => self.give_up(SessionError::Refused { request, errno }, actions),
        }
    }

    fn answered(&mut self, asked: Asked, reply: &Reply<'_>, actions: &mut Vec<Action>) {
        let request = asked.request;
        let nonsense = SessionError::Nonsense { request };
        match (request, *reply, asked.what_for) {
            (RequestType::Ctr, ..) => {}
            (RequestType::Resume, Reply::Done, _) => {
                self.busy = None;
                self.was_had = true;
                self.ask_shape();
            }
            (RequestType::GetRegionSize, Reply::Count(theirs), _) => {
                let ours = self.config.region_size / SECTOR;
                if theirs != ours {
                    let what = "the region size in sectors";
                    self.give_up(SessionError::Geometry { what, theirs, ours }, actions);
                }
            }
            (RequestType::GetSyncCount, Reply::Count(count), _) => self.counted(count, actions),
            (RequestType::GetResyncWork, Reply::Work(Some(region)), _) if self.untold > 0 => {
                if region.0 >= self.regions || !self.set(region, true) {
                    return self.give_up(nonsense, actions);
                }
                self.untold -= 1;
                self.told(actions);
            }
            (_, Reply::Done, For::Commit) if self.talk.count(For::Commit) == 0 => self.committed(actions),
            (_, Reply::Done, For::Replay) if self.talk.count(For::Replay) == 0 => {
                if self.stage == Stage::Replaying(None) {
                    self.serve(actions);
                    self.committed(actions);
                }
            }
            (_, Reply::Done, For::Commit | For::Replay | For::Tidying) => {}
            (_, _, For::Goodbye) => self.goodbye(request, actions),
            _ => self.give_up(nonsense, actions),
        }
    }

    /// So many regions are in sync, says the server.
    fn counted(&mut self, count: u64, actions: &mut Vec<Action>) {
        let regions = u64::from(self.regions);
        let Some(out_of_sync) = regions.checked_sub(count) else {
            let what = "the number of regions at least";
            return self.give_up(SessionError::Geometry { what, theirs: count, ours: regions }, actions);
        };
        if self.was_ready {
            self.stage = Stage::Replaying(Some(0));
            let is_exact = !self.is_untidy && count + u64::from(self.dirty_count) >= regions;
            self.tidying = (!is_exact).then_some(0);
            return;
        }
        self.stage = Stage::Reading;
        let is_all = out_of_sync == regions;
        self.fill(is_all);
        self.untold = if is_all { 0 } else { out_of_sync as u32 };
        self.unasked = self.untold;
        self.told(actions);
    }

    fn told(&mut self, actions: &mut Vec<Action>) {
        if self.untold == 0 {
            self.serve(actions);
        }
    }

    fn serve(&mut self, actions: &mut Vec<Action>) {
        self.stage = Stage::Serving;
        actions.push(if self.was_ready { Action::Back } else { Action::Ready });
        self.was_ready = true;
        if self.stopping {
            self.leave();
        }
    }

    /// Whether that changed it.
    fn set(&mut self, region: Region, is_dirty: bool) -> bool {
        let is_new = self.dirty.replace(region.index(), is_dirty) != is_dirty;
        match is_dirty {
            true => self.dirty_count += u32::from(is_new),
            false => self.dirty_count -= u32::from(is_new),
        }
        is_new
    }

    fn fill(&mut self, is_dirty: bool) {
        self.dirty.fill(is_dirty);
        self.dirty_count = if is_dirty { self.regions } else { 0 };
    }

    // ---- commits

    fn commit(&mut self, changes: &Changes) {
        assert!(self.was_ready && self.committing.is_none(), "a commit comes at the wrong time");
        for &region in &changes.clears {
            self.set(region, false);
        }
        for &region in &changes.marks {
            self.set(region, true);
        }
        match &mut self.stage {
            Stage::Serving => self.talk.ask_to_change(For::Commit, &changes.clears, &changes.marks),
            // What was said already may be wrong by now.
            Stage::Replaying(next) => *next = Some(0),
            _ => {}
        }
        self.committing = Some(changes.clone());
    }

    fn committed(&mut self, actions: &mut Vec<Action>) {
        if self.committing.take().is_some() {
            actions.push(Action::Committed);
        }
    }

    /// The commit is not waited for any more: what it has is said with the next replay all the same.
    pub fn abandon_commit(&mut self) {
        self.is_untidy |= self.committing.take().is_some_and(|changes| !changes.clears.is_empty());
    }

    // ---- the end

    fn leave(&mut self) {
        if self.stage == Stage::Serving {
            self.stage = Stage::Leaving;
            for request in [Request::Presuspend, Request::Postsuspend, Request::Dtr] {
                self.talk.ask(For::Goodbye, &request);
            }
        }
    }

    fn goodbye(&mut self, request: RequestType, actions: &mut Vec<Action>) {
        if request == RequestType::Dtr {
            self.stage = Stage::Over;
            actions.extend([Action::Disconnect, Action::Stopped]);
        }
    }

    // ---- what goes on by itself

    fn pump(&mut self) {
        match self.stage {
            Stage::Reading => {
                while self.unasked > 0 && self.talk.count(For::Having) < WINDOW {
                    self.talk.ask(For::Having, &Request::GetResyncWork);
                    self.unasked -= 1;
                }
            }
            Stage::Replaying(Some(next)) => self.replay(next),
            Stage::Serving => self.tidy(),
            _ => {}
        }
    }

    /// Says again what is dirty, and what the commit under way cleared.
    fn replay(&mut self, mut next: u32) {
        while self.talk.count(For::Replay) < WINDOW {
            let ahead = self.dirty[next as usize..].iter_ones().take(MAX_REGIONS);
            let marks: Vec<Region> = ahead.map(|index| Region(next + index as u32)).collect();
            match marks.last() {
                Some(last) if marks.len() == MAX_REGIONS => {
                    next = last.0 + 1;
                    self.talk.ask(For::Replay, &Request::MarkRegion(Regions::new(&numbers(&marks))));
                }
                _ => {
                    let committing = self.committing.iter().flat_map(|changes| &changes.clears);
                    let clears: Vec<Region> =
                        committing.copied().filter(|region| !self.dirty[region.index()]).collect();
                    self.talk.ask_to_change(For::Replay, &clears, &marks);
                    self.stage = Stage::Replaying(None);
                    return;
                }
            }
        }
        self.stage = Stage::Replaying(Some(next));
    }

    /// Unsets bits that ought not to be set, a few at a time.
    fn tidy(&mut self) {
        while let Some(next) = self.tidying
            && self.talk.count(For::Tidying) < TIDY_WINDOW
        {
            let ahead = self.dirty[next as usize..].iter_zeros().take(MAX_REGIONS);
            let clears: Vec<Region> = ahead.map(|index| Region(next + index as u32)).collect();
            let is_last = clears.len() < MAX_REGIONS;
            self.tidying = clears.last().filter(|_| !is_last).map(|last| last.0 + 1);
            if is_last {
                self.is_untidy = false;
                self.talk.ask_to_change(For::Tidying, &clears, &[]);
            } else {
                self.talk.ask(For::Tidying, &Request::ClearRegion(Regions::new(&numbers(&clears))));
            }
        }
    }
}
