//! The volume's side of a remote log against the real log server, in memory: connections that are lost at every step,
//! servers that are killed, logs that are taken over.

#[allow(dead_code, reason = "the server's own tests use more of it")]
mod served;

use std::collections::BTreeSet;

use mirrord_log::remote::{Action, Changes, Event, Session, SessionConfig, SessionError};
use mirrord_log::wire::{Frame, RequestType};
use mirrord_log::{DiskLog, SyncMode};
use mirrord_raid::Region;
use served::Served;

const REGION: u64 = 1 << 20;
const UUID: &str = "volume";

fn config(luid: u64, regions: u64, mode: SyncMode) -> SessionConfig {
    let (uuid, size) = (UUID.to_owned(), regions * REGION);
    SessionConfig {
        uuid,
        luid,
        size,
        region_size: REGION,
        mode,
        last: None,
        take_over: false,
        patience: 5,
        busy_patience: 40,
    }
}

fn regions(of: impl IntoIterator<Item = u32>) -> Vec<Region> {
    of.into_iter().map(Region).collect()
}

fn changes(marks: &[u32], clears: &[u32]) -> Changes {
    Changes { marks: regions(marks.iter().copied()), clears: regions(clears.iter().copied()) }
}

/// One end of a volume, and its connection to the server.
struct Volume {
    session: Session,
    client: u64,
    /// A connection is wanted.
    wants: bool,
    is_connected: bool,
    /// Actions that are not about the connection.
    told: Vec<Action>,
    sent: Vec<RequestType>,
    /// Messages that may still be sent, and answers be heard, before the connection is lost.
    budget: Option<usize>,
}

impl Volume {
    fn new(config: SessionConfig) -> Volume {
        let mut actions = Vec::new();
        let session = Session::new(config, &mut actions);
        assert_eq!(actions, [Action::Connect]);
        let (told, sent) = (Vec::new(), Vec::new());
        Volume { session, client: 0, wants: true, is_connected: false, told, sent, budget: None }
    }

    fn handle(&mut self, served: &mut Served, event: Event<'_>) {
        let mut actions = Vec::new();
        self.session.handle(event, &mut actions);
        for action in actions {
            match action {
                Action::Connect => self.wants = true,
                Action::Disconnect => self.disconnect(served),
                Action::Send(bytes) => self.send(served, &bytes),
                other => self.told.push(other),
            }
        }
    }

    fn send(&mut self, served: &mut Served, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (frame, len) = Frame::parse(bytes).unwrap();
            if self.is_connected && self.spend() {
                self.sent.push(RequestType::from_number(frame.request_type()).unwrap());
                served.deliver(self.client, &bytes[..len]);
            }
            bytes = &bytes[len..];
        }
    }

    /// Whether one more message gets through.
    fn spend(&mut self) -> bool {
        match &mut self.budget {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    fn disconnect(&mut self, served: &mut Served) {
        if std::mem::take(&mut self.is_connected) {
            served.lose(self.client);
        }
    }

    fn connect(&mut self, served: &mut Served, client: u64) {
        assert!(std::mem::take(&mut self.wants));
        self.client = client;
        self.is_connected = true;
        self.handle(served, Event::Connected);
    }

    /// Hears answers until there are none; the connection is lost when the budget is used up.
    fn hear(&mut self, served: &mut Served) {
        loop {
            let client = self.client;
            let at = served.answers.iter().position(|(to, ..)| to.0 == client);
            let Some(at) = at else { break };
            let (_, _, message) = served.answers.remove(at);
            if self.is_connected && self.spend() {
                let (frame, _) = Frame::parse(&message).unwrap();
                self.handle(served, Event::Received(frame));
            }
        }
        if self.budget == Some(0) {
            self.budget = None;
            self.lose(served);
        }
    }

    fn lose(&mut self, served: &mut Served) {
        if self.is_connected {
            self.disconnect(served);
            self.handle(served, Event::Lost);
        }
    }

    /// Goes on, connecting anew as often as it takes.
    fn settle(&mut self, served: &mut Served) {
        for _ in 0..100 {
            self.hear(served);
            if !self.wants {
                return;
            }
            let client = self.client.max(self.session_number() * 1000) + 1;
            self.connect(served, client);
        }
        panic!("it does not settle: {:?}", self.session.last_error());
    }

    /// Connections of different volumes have different numbers.
    fn session_number(&self) -> u64 {
        self.client / 1000 + u64::from(self.client == 0)
    }

    fn commit(&mut self, served: &mut Served, marks: &[u32], clears: &[u32]) {
        self.handle(served, Event::Commit(&changes(marks, clears)));
    }

    fn take_told(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.told)
    }

    fn dirty(&self) -> Vec<u32> {
        self.session.dirty().map(|region| region.0).collect()
    }
}

/// What is dirty in the server's file.
fn on_disk(served: &Served, count: u32) -> BTreeSet<u32> {
    let image = &served.files[UUID];
    assert_eq!(DiskLog::regions_of(image), Some(count.into()));
    (0..count).filter(|&region| image[1024 + region as usize / 8] >> (region % 8) & 1 == 0).collect()
}

fn begun(served: &mut Served, luid: u64, count: u64, mode: SyncMode) -> Volume {
    let mut volume = Volume::new(config(luid, count, mode));
    volume.client = luid * 1000;
    volume.settle(served);
    assert_eq!(volume.take_told(), [Action::Ready]);
    volume
}

/// A server past the time in which an earlier owner might come.
fn server() -> Served {
    let mut served = Served::new();
    served.tick(30);
    served
}

#[test]
fn a_commit_of_marks_is_one_request() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 100, SyncMode::NoSync);
    assert!(volume.dirty().is_empty());
    volume.sent.clear();
    volume.commit(&mut served, &[3, 70], &[]);
    volume.hear(&mut served);
    assert_eq!(volume.take_told(), [Action::Committed]);
    assert_eq!(volume.sent, [RequestType::Flush]);
    assert_eq!(on_disk(&served, 100), BTreeSet::from([3, 70]));
    volume.sent.clear();
    volume.commit(&mut served, &[4], &[3]);
    volume.hear(&mut served);
    assert_eq!(volume.sent, [RequestType::ClearRegion, RequestType::Flush]);
    assert_eq!(on_disk(&served, 100), BTreeSet::from([4, 70]));
    volume.commit(&mut served, &[], &[4, 70]);
    volume.hear(&mut served);
    assert!(!volume.session.wants_tick(), "an idle session has no timer");
}

#[test]
fn marks_that_no_message_holds_go_in_several() {
    let mut served = server();
    let count = 5000;
    let mut volume = begun(&mut served, 1, count.into(), SyncMode::NoSync);
    volume.sent.clear();
    let all: Vec<u32> = (0..count).collect();
    volume.commit(&mut served, &all, &[]);
    volume.hear(&mut served);
    assert_eq!(volume.take_told(), [Action::Committed]);
    assert_eq!(volume.sent, [RequestType::MarkRegion, RequestType::MarkRegion, RequestType::Flush]);
    assert_eq!(on_disk(&served, count).len() as u32, count);
}

#[test]
fn what_was_dirty_is_told_at_the_next_start() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 1000, SyncMode::NoSync);
    let marks: Vec<u32> = (0..200).map(|n| n * 5).collect();
    volume.commit(&mut served, &marks, &[]);
    volume.hear(&mut served);
    volume.lose(&mut served);
    served.tick(30);
    let next = begun(&mut served, 2, 1000, SyncMode::Default);
    assert_eq!(next.dirty(), marks);
    let asked = next.sent.iter().filter(|&&request| request == RequestType::GetResyncWork).count();
    assert_eq!(asked, marks.len());
}

#[test]
fn all_or_nothing_dirty_is_not_asked_for() {
    for (mode, dirty) in [(SyncMode::Sync, 50), (SyncMode::NoSync, 0)] {
        let mut served = server();
        let volume = begun(&mut served, 1, 50, mode);
        assert_eq!(volume.dirty().len(), dirty);
        assert!(!volume.sent.contains(&RequestType::GetResyncWork));
    }
}

#[test]
fn a_goodbye_lets_the_next_one_in_at_once() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 50, SyncMode::NoSync);
    volume.handle(&mut served, Event::Stop);
    volume.hear(&mut served);
    assert_eq!(volume.take_told(), [Action::Stopped]);
    begun(&mut served, 2, 50, SyncMode::Default);
}

/// The connection is lost after `n` messages of any direction, at each step of a life; what was answered as durable is,
/// and in the end the server has exactly what the volume has.
#[test]
fn connections_lost_at_every_step() {
    for n in 0..40 {
        for kill in [false, true] {
            let mut served = server();
            let mut volume = Volume::new(config(1, 300, SyncMode::NoSync));
            volume.client = 1000;
            volume.budget = Some(n);
            volume.settle(&mut served);
            assert_eq!(volume.take_told().first(), Some(&Action::Ready), "cut at {n}");
            let mut dirty = BTreeSet::new();
            for round in 0..12u32 {
                let marks: Vec<u32> = (0..3).map(|k| (round * 37 + k * 91) % 300).collect();
                let clears: Vec<u32> =
                    dirty.iter().copied().filter(|r| r % 3 == round % 3 && !marks.contains(r)).collect();
                dirty.retain(|r| !clears.contains(r));
                dirty.extend(&marks);
                volume.commit(&mut served, &marks, &clears);
                volume.settle(&mut served);
                if kill && volume.budget.is_none() && round % 4 == 3 {
                    served.restart();
                    volume.lose(&mut served);
                    volume.settle(&mut served);
                }
                let told = volume.take_told();
                assert!(told.contains(&Action::Committed), "cut at {n}, round {round}: {told:?}");
                assert_eq!(volume.dirty(), Vec::from_iter(dirty.iter().copied()));
                assert!(dirty.is_subset(&on_disk(&served, 300)), "cut at {n}, round {round}");
            }
            volume.settle(&mut served);
            assert_eq!(on_disk(&served, 300), dirty, "cut at {n}");
            volume.budget = (n < 6).then_some(n);
            volume.handle(&mut served, Event::Stop);
            volume.settle(&mut served);
            assert_eq!(volume.take_told().last(), Some(&Action::Stopped), "cut at {n}");
        }
    }
}

#[test]
fn a_commit_that_waits_is_answered_by_the_next_connection() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 100, SyncMode::NoSync);
    volume.lose(&mut served);
    volume.commit(&mut served, &[7], &[]);
    assert!(volume.take_told().is_empty());
    volume.settle(&mut served);
    assert_eq!(volume.take_told(), [Action::Back, Action::Committed]);
    assert_eq!(on_disk(&served, 100), BTreeSet::from([7]));
}

#[test]
fn a_server_that_lost_its_logs_is_told_all() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 10_000, SyncMode::NoSync);
    volume.commit(&mut served, &[7, 8000], &[]);
    volume.hear(&mut served);
    volume.take_told();
    served.sessions.clear();
    served.files.clear();
    served.restart();
    volume.lose(&mut served);
    volume.settle(&mut served);
    assert_eq!(volume.take_told(), [Action::Back]);
    assert_eq!(on_disk(&served, 10_000), BTreeSet::from([7, 8000]), "what is clean is clean again, too");
}

#[test]
fn a_log_in_use_is_waited_for_and_refused() {
    let mut served = server();
    let first = begun(&mut served, 1, 100, SyncMode::NoSync);
    let mut second = Volume::new(config(2, 100, SyncMode::Default));
    second.client = 2000;
    second.settle(&mut served);
    assert_eq!(second.take_told(), [Action::Busy]);
    for _ in 0..40 {
        second.handle(&mut served, Event::Tick);
        second.hear(&mut served);
    }
    assert_eq!(second.take_told(), [Action::Refused(SessionError::Busy)]);
    drop(first);
}

#[test]
fn a_log_is_had_once_the_lease_is_over() {
    let mut served = server();
    let mut first = begun(&mut served, 1, 100, SyncMode::NoSync);
    first.commit(&mut served, &[9], &[]);
    first.hear(&mut served);
    first.lose(&mut served);
    let mut second = Volume::new(config(2, 100, SyncMode::Default));
    second.client = 2000;
    second.settle(&mut served);
    for _ in 0..35 {
        served.tick(1);
        second.handle(&mut served, Event::Tick);
        second.hear(&mut served);
    }
    assert_eq!(second.take_told(), [Action::Busy, Action::Ready]);
    assert_eq!(second.dirty(), [9]);
}

#[test]
fn who_was_taken_over_is_told_and_has_nothing_more_to_say() {
    let mut served = server();
    let mut first = begun(&mut served, 1, 100, SyncMode::NoSync);
    first.commit(&mut served, &[9], &[]);
    first.hear(&mut served);
    first.take_told();
    let taking = SessionConfig { take_over: true, ..config(2, 100, SyncMode::Default) };
    let mut second = Volume::new(taking);
    second.client = 2000;
    second.settle(&mut served);
    assert_eq!(second.take_told(), [Action::Ready]);
    assert_eq!(second.dirty(), [9]);
    first.commit(&mut served, &[50], &[9]);
    for _ in 0..10 {
        first.settle(&mut served);
        first.handle(&mut served, Event::Tick);
        served.tick(1);
    }
    assert_eq!(first.take_told(), [Action::Refused(SessionError::TakenOver)]);
    second.commit(&mut served, &[1], &[]);
    second.settle(&mut served);
    assert_eq!(second.take_told(), [Action::Committed]);
    assert_eq!(on_disk(&served, 100), BTreeSet::from([1, 9]), "the first changed nothing");
    // Also once the second is gone for good.
    second.handle(&mut served, Event::Stop);
    second.settle(&mut served);
}

#[test]
fn who_was_taken_over_notices_without_a_commit() {
    let mut served = server();
    let mut first = begun(&mut served, 1, 100, SyncMode::NoSync);
    first.commit(&mut served, &[9], &[]);
    first.hear(&mut served);
    first.take_told();
    let taking = SessionConfig { take_over: true, ..config(2, 100, SyncMode::Default) };
    let mut second = Volume::new(taking);
    second.client = 2000;
    second.settle(&mut served);
    for _ in 0..10 {
        assert!(first.told.len() == 1 || first.session.wants_tick());
        first.handle(&mut served, Event::Tick);
        first.settle(&mut served);
    }
    assert_eq!(first.take_told(), [Action::Refused(SessionError::TakenOver)]);
}

#[test]
fn who_comes_back_after_another_had_it_is_told_so() {
    let mut served = server();
    let mut first = begun(&mut served, 1, 100, SyncMode::NoSync);
    first.lose(&mut served);
    served.tick(30);
    let mut second = begun(&mut served, 2, 100, SyncMode::Default);
    second.handle(&mut served, Event::Stop);
    second.settle(&mut served);
    first.settle(&mut served);
    assert_eq!(first.take_told(), [Action::Refused(SessionError::TakenOver)]);
}

#[test]
fn a_silent_server_is_given_up() {
    let mut served = server();
    let mut volume = begun(&mut served, 1, 100, SyncMode::NoSync);
    served.held = true;
    volume.commit(&mut served, &[5], &[]);
    assert!(volume.session.wants_tick());
    for _ in 0..6 {
        volume.handle(&mut served, Event::Tick);
    }
    assert!(volume.wants && !volume.is_connected);
    assert_eq!(volume.session.last_error(), Some(SessionError::Silent { request: RequestType::Flush }));
    served.work();
    volume.settle(&mut served);
    assert_eq!(volume.take_told(), [Action::Back, Action::Committed]);
}

#[test]
fn a_log_of_another_shape_is_refused() {
    let mut served = server();
    let mut volume = Volume::new(SessionConfig { region_size: 3 * 512, ..config(1, 100, SyncMode::NoSync) });
    volume.client = 1000;
    volume.settle(&mut served);
    let told = volume.take_told();
    assert!(matches!(told[..], [Action::Refused(SessionError::Refused { .. })]), "{told:?}");
}
