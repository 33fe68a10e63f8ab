//! The driver's part in a log that a server keeps: it runs the real session on connections to the real server ([`Far`]),
//! and keeps the time. What comes of it is [`Came`].

use std::collections::VecDeque;

use mirrord_log::SyncMode;
use mirrord_log::remote::{Action, Changes, Event, Session, SessionConfig, SessionError};
use mirrord_log::wire::Frame;
use mirrord_raid::Errno;

use crate::far::{Far, Heard, LEASE};
use crate::rng::Rng;

/// Steps of the simulator to one tick of these clocks, on average.
const STEPS_PER_TICK: u64 = 32;

/// Ticks for which a start, a commit that can be given up and a stop wait for the server.
pub(crate) const PATIENCE: u64 = 5;

/// Ticks for which a start waits for a log that another has.
pub(crate) const BUSY_PATIENCE: u64 = LEASE + 4;

/// Ticks for which an answer is waited for.
const ANSWER_TICKS: u32 = 4;

/// What became of what was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Came {
    /// The log is had.
    Ready,
    /// Another life has it; it is waited for.
    Busy,
    /// A commit is done, or not.
    Committed(Result<(), Errno>),
    /// The log is whole again.
    Back,
    Refused(SessionError),
}

/// How the server is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outage {
    /// It can be connected to at once.
    None,
    /// No connection comes about.
    Away,
    /// The connection is there, and nothing comes through.
    Stalled,
    /// It is killed.
    Down,
    /// Its disk fails.
    Broken,
}

/// One life of the volume, as its log has it.
pub(crate) struct Life {
    pub(crate) session: Session,
    /// A connection is wanted.
    wants: bool,
    /// The session was had, or it was gone on without.
    was_ready: bool,
    /// Commits were answered with an error, and the log does not hold them yet.
    pub(crate) failed: bool,
    /// The connection was lost since the log was had.
    is_lost: bool,
    /// Since when a commit waits, in ticks.
    committing: Option<u64>,
    /// What waits does so no longer than this.
    pub(crate) hurry: Option<u64>,
    stopping: bool,
    pub(crate) over: bool,
    /// The log may have more dirty regions than it should.
    pub(crate) is_inexact: bool,
}

pub(crate) struct Place {
    /// Of its own, so that runs without it stay what they were.
    pub(crate) rng: Rng,
    pub(crate) far: Far,
    config: SessionConfig,
    pub(crate) life: Option<Life>,
    pub(crate) came: VecDeque<Came>,
    pub(crate) ticks: u64,
    tracing: bool,
    /// Steps in 10,000 in which an outage begins.
    outages: u64,
    outage: Outage,
    outage_until: u64,
    /// A stranger, a start that came to nothing or one that was cut off when it asked had the log since the last start.
    pub(crate) had_by_others: bool,
    /// A volume that waited too long goes on without.
    pub(crate) fallback: bool,
}

impl Place {
    pub(crate) fn new(mut rng: Rng, size: u64, region_size: u64, tracing: bool) -> Place {
        let (outages, fallback) = (rng.pick(&[0, 20, 100, 400]), rng.coin());
        let config = SessionConfig {
            uuid: "sim".to_owned(),
            luid: 0,
            size,
            region_size,
            mode: SyncMode::Default,
            last: None,
            take_over: false,
            patience: ANSWER_TICKS,
            busy_patience: BUSY_PATIENCE as u32,
        };
        Place {
            far: Far::new(region_size, size.div_ceil(region_size) as u32),
            rng,
            config,
            life: None,
            came: VecDeque::new(),
            ticks: 0,
            tracing,
            outages,
            outage: Outage::None,
            outage_until: 0,
            had_by_others: false,
            fallback,
        }
    }

    // ---- the driver's part

    /// A life of the volume asks for its log.
    pub(crate) fn open(&mut self, luid: u64, (mode, last): (SyncMode, Option<u64>)) {
        self.config.luid = luid;
        (self.config.mode, self.config.last) = (mode, last);
        self.config.take_over = self.rng.chance(1, 3);
        let session = Session::new(self.config.clone(), &mut Vec::new());
        self.life = Some(Life {
            session,
            wants: true,
            was_ready: false,
            failed: false,
            is_lost: false,
            committing: None,
            hurry: None,
            stopping: false,
            over: false,
            is_inexact: false,
        });
        self.came.clear();
    }

    pub(crate) fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("the volume lives")
    }

    fn handle(&mut self, event: Event<'_>) {
        if self.tracing {
            println!("        the log <- {event:?}");
        }
        let mut actions = Vec::new();
        self.life().session.handle(event, &mut actions);
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match &action {
            Action::Send(bytes) if self.tracing => {
                let mut rest = &bytes[..];
                while let Ok((frame, len)) = Frame::parse(rest) {
                    println!("        the log -> {frame:?} {:?}", frame.request());
                    rest = &rest[len..];
                }
            }
            action if self.tracing => println!("        the log -> {action:?}"),
            _ => {}
        }
        match action {
            Action::Connect => self.life().wants = true,
            Action::Disconnect => {
                self.far.hang_up(&mut self.rng);
                self.was_lost();
            }
            Action::Send(bytes) => self.far.send(&bytes),
            Action::Ready => {
                self.life().was_ready = true;
                self.came.push_back(Came::Ready);
            }
            Action::Back => {
                let life = self.life();
                let failed = std::mem::take(&mut life.failed);
                if std::mem::take(&mut life.is_lost) && failed {
                    self.came.push_back(Came::Back);
                }
            }
            Action::Busy => self.came.push_back(Came::Busy),
            Action::Committed => {
                self.life().committing = None;
                self.came.push_back(Came::Committed(Ok(())));
            }
            Action::Refused(error) => {
                let life = self.life();
                life.over = true;
                let committing = life.committing.take().is_some();
                self.came.push_back(Came::Refused(error));
                self.came.extend(committing.then_some(Came::Committed(Err(Errno::EIO))));
            }
            Action::Stopped => self.life().over = true,
        }
    }

    fn was_lost(&mut self) {
        let life = self.life();
        life.is_lost |= life.was_ready;
        life.is_inexact = true;
        // It may have got the log already; the answer was lost.
        self.had_by_others |= !self.life().was_ready;
    }

    fn lose(&mut self) {
        self.far.hang_up(&mut self.rng);
        self.was_lost();
        self.handle(Event::Lost);
    }

    /// The server was waited for long enough.
    pub(crate) fn go_on_without(&mut self) {
        let life = self.life();
        (life.was_ready, life.failed, life.is_lost, life.is_inexact) = (true, true, true, true);
        life.session.take_all_for_dirty();
    }

    pub(crate) fn commit(&mut self, changes: &Changes) {
        let ticks = self.ticks;
        let life = self.life();
        assert!(life.committing.is_none(), "two commits at once");
        if life.over {
            return self.came.push_back(Came::Committed(Err(Errno::EIO)));
        }
        life.committing = Some(ticks);
        self.handle(Event::Commit(changes));
        let life = self.life();
        if life.failed && !life.session.is_serving() {
            self.abandon(Err(Errno::EIO));
        }
    }

    /// The commit is answered, whatever the server does.
    fn abandon(&mut self, result: Result<(), Errno>) {
        let life = self.life();
        life.committing = None;
        life.failed |= result.is_err();
        life.is_inexact = true;
        life.session.abandon_commit();
        self.came.push_back(Came::Committed(result));
    }

    /// What waits does so no longer than for some time from now.
    pub(crate) fn hurry(&mut self) {
        let ticks = self.ticks;
        self.life().hurry = Some(ticks + PATIENCE);
    }

    pub(crate) fn stop(&mut self) {
        self.life().stopping = true;
        self.handle(Event::Stop);
    }

    /// Somebody else with the volume's name takes its log, says that nothing is dirty, and goes, or is cut off on the way.
    /// Whether the log was had.
    pub(crate) fn stranger(&mut self, luid: u64, mut now: u64, well: bool) -> bool {
        self.open(luid, (SyncMode::Default, None));
        let take_over = std::mem::replace(&mut self.config.take_over, true);
        self.life().session = Session::new(self.config.clone(), &mut Vec::new());
        let (mut was_had, left) = (false, self.rng.below(600));
        for _ in 0..left {
            now += 1;
            self.pass(now, well);
            match self.came.pop_front() {
                Some(Came::Ready) => {
                    was_had = true;
                    let clears = self.life().session.dirty().collect();
                    self.commit(&Changes { marks: Vec::new(), clears });
                }
                Some(Came::Committed(Ok(()))) if self.rng.coin() => self.stop(),
                _ => {}
            }
            if self.life().over {
                break;
            }
        }
        self.crash();
        self.config.take_over = take_over;
        self.had_by_others = true;
        was_had
    }

    fn look_at_the_clock(&mut self) {
        let (ticks, fallback) = (self.ticks, self.fallback);
        if self.life().session.wants_tick() {
            self.handle(Event::Tick);
        }
        let life = self.life();
        if life.hurry.is_some_and(|until| until <= ticks) {
            if life.committing.is_some() && (life.stopping || !life.session.is_serving()) {
                let is_marking = life.session.is_marking();
                self.abandon(if is_marking { Err(Errno::EIO) } else { Ok(()) });
            }
        } else if fallback && life.committing.is_some_and(|since| ticks - since >= PATIENCE) {
            self.abandon(Err(Errno::EIO));
            if self.far.is_connected() {
                self.lose();
            }
        }
    }

    pub(crate) fn is_committing(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.committing.is_some())
    }

    /// Whether something is waited for.
    pub(crate) fn is_busy(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.committing.is_some() || life.failed)
    }

    /// The daemon is gone. A start that was to take the log over says no more: it could take it from the next one, as
    /// whoever said so wants it.
    pub(crate) fn crash(&mut self) {
        if self.life.take().is_some() {
            self.far.hang_up(&mut self.rng);
        }
        if self.config.take_over {
            self.far.cut_off();
        }
        self.came.clear();
    }

    // ---- the world

    /// Time goes by; `well`: and nothing goes wrong any more.
    pub(crate) fn pass(&mut self, now: u64, well: bool) {
        if well || now >= self.outage_until {
            self.end_outage();
        }
        if !well && self.outage == Outage::None && self.rng.chance(self.outages, 10_000) {
            self.begin_outage(now);
        }
        if self.rng.chance(1, STEPS_PER_TICK) {
            self.ticks += 1;
            self.far.tick();
            if self.life.is_some() {
                self.look_at_the_clock();
            }
        }
        for _ in 0..self.rng.below(4) {
            self.step();
        }
    }

    fn begin_outage(&mut self, now: u64) {
        let outages =
            [Outage::None, Outage::Away, Outage::Away, Outage::Stalled, Outage::Down, Outage::Broken];
        self.outage = self.rng.pick(&outages);
        self.outage_until = now + self.rng.pick(&[20, 200, 1000, 3000]);
        if self.tracing {
            println!("        the log server: {:?} until {}", self.outage, self.outage_until);
        }
        match self.outage {
            Outage::None | Outage::Away if self.far.is_connected() => self.lose(),
            Outage::Down => self.far.kill(&mut self.rng),
            _ => {}
        }
    }

    fn end_outage(&mut self) {
        self.outage = Outage::None;
        if !self.far.is_up() {
            self.far.start();
        }
    }

    /// Something moves.
    pub(crate) fn step(&mut self) {
        let may_connect = !matches!(self.outage, Outage::Away | Outage::Stalled);
        let wants = self.life.as_ref().is_some_and(|life| life.wants && !life.over);
        if wants && may_connect && self.far.is_up() && self.rng.coin() {
            self.life().wants = false;
            self.far.connect();
            return self.handle(Event::Connected);
        }
        let broken = if self.outage == Outage::Broken { 50 } else { 0 };
        let heard = self.far.step(&mut self.rng, self.outage == Outage::Stalled, broken);
        match heard {
            Some(_) if self.life.is_none() => {}
            Some(Heard::Message(message)) => {
                let (frame, _) = Frame::parse(&message).expect("the server sends whole messages");
                self.handle(Event::Received(frame));
            }
            Some(Heard::Lost) => {
                self.was_lost();
                self.handle(Event::Lost);
            }
            None => {}
        }
    }
}
