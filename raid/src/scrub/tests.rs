//! Tables of what a scrub does, window by window.

use super::*;
use crate::background::{Background, BackgroundEvent};
use crate::geometry::Geometry;
use crate::mirror::QueueNote;
use crate::types::{FailReason, LegMap, LegState};

const REGION: u64 = 1 << 16;
const WINDOW: u64 = 1 << 15;

/// What goes differently from a scrub of three legs in sync that are all alike. Bytes are of the whole volume.
#[derive(Clone, Copy)]
struct Course {
    legs: usize,
    /// What each leg holds at byte 512 and 1024; zero elsewhere.
    bytes: [[u8; 2]; 4],
    repair: ScrubRepair,
    /// Leg and byte that cannot be read.
    bad: Option<(usize, u64)>,
    /// The leg is failed while the first window is read.
    fails: Option<usize>,
    mark_fails: bool,
    write_fails: bool,
    /// Writes wait from the first read on.
    frozen: bool,
}

const PLAIN: Course = Course {
    legs: 3,
    bytes: [[0; 2]; 4],
    repair: ScrubRepair::No,
    bad: None,
    fails: None,
    mark_fails: false,
    write_fails: false,
    frozen: false,
};

struct World {
    course: Course,
    mirror: Arc<Mirror>,
    background: Background,
    actions: Vec<BackgroundAction>,
    happened: Vec<String>,
}

impl World {
    fn new(course: Course) -> World {
        let states = LegMap::from_fn(course.legs, |_| LegState::InSync);
        let mirror = Arc::new(Mirror::new(Geometry::new(2 * REGION, REGION).unwrap(), &states, [], 1));
        let background = Background::new(Arc::clone(&mirror), WINDOW);
        World { course, mirror, background, actions: Vec::new(), happened: Vec::new() }
    }

    fn tell(&mut self, event: BackgroundEvent) {
        self.background.handle(event, &mut self.actions);
    }

    fn start(&mut self) {
        let (from, repair) = (0, self.course.repair);
        self.tell(BackgroundEvent::Scrub(ScrubCommand::Start { from, repair }));
    }

    /// Until nothing is left to do.
    fn run(&mut self) {
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.act(action);
            }
            let mut notes = Vec::new();
            self.mirror.take_worker_notes(&mut notes);
            for note in notes {
                self.note(note);
            }
        }
    }

    fn act(&mut self, action: BackgroundAction) {
        match action {
            BackgroundAction::Pace { io, .. } => self.tell(BackgroundEvent::Proceed { io }),
            BackgroundAction::Queue(Action::Submit(io)) => self.leg_io(io),
            BackgroundAction::Compare { legs, offset, len } => {
                let bytes = self.course.bytes;
                let byte = |leg: Leg, sector| match offset / SECTOR + sector {
                    at @ 1..=2 => bytes[leg.index()][at as usize - 1],
                    _ => 0,
                };
                let found = differences(legs, offset, len, |one, other, at| byte(one, at) == byte(other, at));
                self.tell(BackgroundEvent::Compared(found));
            }
            BackgroundAction::Patch { from, to, at, len } => {
                self.happened.push(format!("{at}+{len} of {from:?} to {to:?}"));
            }
            BackgroundAction::Scrub(report) => self.report(report),
            BackgroundAction::Queue(_) | BackgroundAction::Unpace { .. } => {}
        }
    }

    fn leg_io(&mut self, io: LegIo) {
        assert!(!self.mirror.ranges.is_idle(), "leg IO without the range");
        let leg = io.leg.index();
        let mut result = Ok(());
        if io.op == LegOp::Read {
            let covers = |at: u64| (io.offset..io.offset + io.len).contains(&at);
            if self.course.bad.is_some_and(|(on, at)| on == leg && covers(at)) {
                result = Err(Errno::EIO);
            }
            if let Some(leg) = self.course.fails.take() {
                self.mirror.legs.set(Leg::new(leg), LegState::Failed(FailReason::Io));
            }
            if std::mem::take(&mut self.course.frozen) {
                self.mirror.freeze(true);
                self.happened.push("frozen".to_owned());
            }
        } else {
            assert!(self.mirror.regions.writes(Region(0)) > 0 && self.mirror.writes_are_under_way());
            assert_eq!(io.tag - SCRUB_TAGS, leg as u32);
            self.happened.push(format!("leg {leg} {}+{}", io.offset, io.len));
            if self.course.write_fails {
                result = Err(Errno::EIO);
            }
        }
        self.tell(BackgroundEvent::LegDone { io: io.io, leg: io.leg, result, zeroes: false });
    }

    fn report(&mut self, report: ScrubReport) {
        self.happened.push(match report {
            ScrubReport::Reached { next } if !next.is_multiple_of(WINDOW) => return,
            ScrubReport::Reached { next } => format!("to {next}"),
            ScrubReport::Differs { difference: Difference { offset, len, groups }, legs, repaired } => {
                let wrong = groups.majority(legs).map_or(LegSet::EMPTY, |most| legs.minus(most));
                format!("{offset}+{len} of {legs:?}, outvoted {wrong:?}, repaired {repaired:?}")
            }
            ScrubReport::Unreadable { leg } => format!("unreadable {leg:?}"),
            ScrubReport::Waits { wait } => format!("waits {wait:?}"),
            ScrubReport::Ended { complete: true } => "complete".to_owned(),
            ScrubReport::Ended { complete: false } => "canceled".to_owned(),
        });
    }

    fn note(&mut self, note: WorkerNote) {
        match note {
            WorkerNote::Mark { from, .. } => {
                let result = if self.course.mark_fails { Err(Errno::EIO) } else { Ok(()) };
                self.mirror.tell_queue(from.queue, QueueNote::Marked { io: from.io, result });
                self.happened.push("mark".to_owned());
                self.tell(BackgroundEvent::Woken);
            }
            WorkerNote::Unreadable { leg, offset, len, .. } => {
                self.happened.push(format!("repair {leg:?} {offset}+{len}"));
            }
            WorkerNote::Scrubbed { errors, .. } => {
                let failed: LegSet =
                    (0..MAX_LEGS).map(Leg::new).filter(|leg| errors[leg.index()].is_some()).collect();
                self.happened.push(format!("written but {failed:?}"));
            }
            note => unreachable!("{note:?}"),
        }
    }
}

#[test]
fn every_course_of_a_window() {
    use ScrubRepair::{From, FromMost};
    let plain = PLAIN;
    let one_of_three = Course { bytes: [[0; 2], [0; 2], [7, 7], [0; 2]], ..plain };
    let first_of_three = Course { bytes: [[7, 7], [0; 2], [0; 2], [0; 2]], ..plain };
    let two = Course { legs: 2, bytes: [[0; 2], [7, 0], [0; 2], [0; 2]], ..plain };
    let halves = Course { legs: 4, bytes: [[0; 2], [0; 2], [7, 0], [7, 0]], ..plain };
    let to_the_end = ["to 65536", "to 98304", "to 131072", "complete"];
    let found = "512+1024 of {0, 1, 2}, outvoted {2}, repaired {}";
    let repaired = "512+1024 of {0, 1, 2}, outvoted {2}, repaired {2}";
    #[rustfmt::skip]
    let rows: [(&str, Course, &[&str]); 14] = [
        ("clean",          plain,                                              &["to 32768"]),
        ("one of three",   one_of_three,                                       &[found, "to 32768"]),
        ("one of two",     two,                                                &["512+512 of {0, 1}, outvoted {}, repaired {}", "to 32768"]),
        ("halves",         halves,                                             &["512+512 of {0, 1, 2, 3}, outvoted {}, repaired {}", "to 32768"]),
        ("repaired",       Course { repair: FromMost, ..one_of_three },        &["mark", "512+1024 of leg0 to leg2", "leg 2 0+4096", repaired, "written but {}", "to 32768"]),
        ("first outvoted", Course { repair: FromMost, ..first_of_three },      &["mark", "512+1024 of leg1 to leg0", "leg 0 0+4096", "written but {}", "512+1024 of {0, 1, 2}, outvoted {0}, repaired {0}", "to 32768"]),
        ("from the source", Course { repair: FromMost, ..two },                &["mark", "512+512 of leg0 to leg1", "leg 1 0+4096", "written but {}", "512+512 of {0, 1}, outvoted {}, repaired {1}", "to 32768"]),
        ("from a leg",     Course { repair: From(Leg::new(1)), ..two },        &["mark", "512+512 of leg1 to leg0", "leg 0 0+4096", "written but {}", "512+512 of {0, 1}, outvoted {}, repaired {0}", "to 32768"]),
        ("from one out",   Course { repair: From(Leg::new(1)), fails: Some(1), ..one_of_three }, &["512+1024 of {0, 2}, outvoted {}, repaired {}", "to 32768"]),
        ("the wrong one leaves", Course { fails: Some(2), ..one_of_three },    &["to 32768"]),
        ("no mark",        Course { repair: FromMost, mark_fails: true, ..one_of_three }, &["mark", found, "to 32768"]),
        ("no write",       Course { repair: FromMost, write_fails: true, ..one_of_three }, &["mark", "512+1024 of leg0 to leg2", "leg 2 0+4096", found, "to 32768", "written but {2}"]),
        ("bad block",      Course { bad: Some((1, 5000)), ..plain },           &["unreadable leg1", "repair leg1 4096+4096", "to 32768"]),
        ("bad and wrong",  Course { bad: Some((1, 600)), ..one_of_three },     &["unreadable leg1", "512+1024 of {0, 2}, outvoted {}, repaired {}", "repair leg1 0+4096", "to 32768"]),
    ];
    for (name, course, first) in rows {
        let mut world = World::new(course);
        world.start();
        world.run();
        let mut all = world.happened;
        // Who is told what in which order between the two makes no difference.
        let mut want: Vec<&str> = first.iter().chain(&to_the_end).copied().collect();
        all.sort_unstable();
        want.sort_unstable();
        assert_eq!(all, want, "{name}");
        let mirror = &world.mirror;
        assert!(world.background.is_idle() && mirror.ranges.is_idle(), "{name}");
        assert!(mirror.regions.writes(Region(0)) == 0 && !mirror.writes_are_under_way(), "{name}");
    }
}

#[test]
fn a_scrub_waits_for_a_split_and_for_a_second_leg() {
    let course = Course { bytes: [[0; 2], [7, 7], [0; 2], [0; 2]], repair: ScrubRepair::FromMost, ..PLAIN };
    let mut world = World::new(Course { frozen: true, ..course });
    world.start();
    world.run();
    assert_eq!(world.happened, ["frozen", "waits Some(Split)"], "it differs, and is not written");
    assert!(world.background.scrub_is_idle() && world.mirror.ranges.is_idle());
    world.happened.clear();
    for leg in [0, 2].map(Leg::new) {
        world.mirror.legs.set(leg, LegState::Failed(FailReason::Admin));
    }
    world.mirror.freeze(false);
    world.tell(BackgroundEvent::Woken);
    world.run();
    assert_eq!(world.happened, ["waits Some(Legs)"]);
    world.mirror.legs.set(Leg::new(2), LegState::InSync);
    world.tell(BackgroundEvent::Woken);
    world.run();
    assert_eq!(world.happened[1..3], ["waits None", "mark"]);
    assert_eq!(world.happened.last().unwrap(), "complete");
}

#[test]
fn resync_goes_first() {
    let mut world = World::new(PLAIN);
    world.mirror.regions.assume_dirty(Region(1));
    world.mirror.legs.set(Leg::new(2), LegState::Syncing);
    let copy = QueueNote::Copy { region: Region(1), targets: LegSet::one(Leg::new(2)) };
    world.mirror.tell_queue(world.mirror.background(), copy);
    world.tell(BackgroundEvent::Woken);
    world.start();
    let waits = BackgroundAction::Scrub(ScrubReport::Waits { wait: Some(ScrubWait::Resync) });
    assert!(world.actions.contains(&waits), "{:?}", world.actions);
    let paced = |action: &BackgroundAction| matches!(action, BackgroundAction::Pace { io: SCRUB_IO, .. });
    assert!(!world.actions.iter().any(paced));
}

#[test]
fn a_scrub_that_waits_for_its_turn_is_held_or_canceled_at_once() {
    let mut world = World::new(PLAIN);
    world.start();
    let pace = BackgroundAction::Pace { io: SCRUB_IO, bytes: WINDOW };
    assert_eq!(std::mem::take(&mut world.actions), [pace]);
    world.tell(BackgroundEvent::Scrub(ScrubCommand::Pause(true)));
    assert_eq!(std::mem::take(&mut world.actions), [BackgroundAction::Unpace { io: SCRUB_IO }]);
    assert!(world.background.scrub_is_idle());
    world.tell(BackgroundEvent::Scrub(ScrubCommand::Pause(false)));
    assert_eq!(std::mem::take(&mut world.actions), [pace]);
    world.tell(BackgroundEvent::Scrub(ScrubCommand::Start { from: WINDOW, repair: ScrubRepair::FromMost }));
    assert!(world.actions.is_empty(), "one is under way");
    world.tell(BackgroundEvent::Scrub(ScrubCommand::Cancel));
    world.run();
    assert_eq!(world.happened, ["canceled"]);
    world.tell(BackgroundEvent::Scrub(ScrubCommand::Cancel));
    assert!(world.actions.is_empty() && world.background.is_idle());
}

#[test]
fn a_mark_makes_split_legs_stale() {
    let mut world = World::new(Course {
        repair: ScrubRepair::From(Leg::new(1)),
        bytes: [[7, 7], [0; 2], [0; 2], [0; 2]],
        ..PLAIN
    });
    world.mirror.legs.set(Leg::new(2), LegState::Tracked);
    world.start();
    world.run();
    assert!(world.mirror.legs.is_stale(Leg::new(2), Region(0)));
    assert!(!world.mirror.legs.is_stale(Leg::new(2), Region(1)));
}

#[test]
fn ranges_are_told_apart_by_who_has_what() {
    let legs = LegSet::first(4);
    // Each sector: what each of the legs has.
    let sectors = [[0, 0, 0, 0], [0, 1, 0, 0], [2, 3, 2, 2], [0, 1, 1, 0], [5, 6, 7, 8], [0, 0, 0, 0]];
    let same = |one: Leg, other: Leg, at: u64| {
        let sector = sectors[at as usize];
        sector[one.index()] == sector[other.index()]
    };
    let found = differences(legs, 4096, 6 * SECTOR, same);
    let told: Vec<_> =
        found.iter().map(|it| (it.offset, it.len, it.groups.majority(legs).map(LegSet::bits))).collect();
    assert_eq!(told, [(4608, 1024, Some(0b1101)), (5632, 512, None), (6144, 512, None)]);
    let halves = found[1].groups;
    assert_eq!(halves.alike(Leg::new(2), legs).bits(), 0b0110);
    assert_eq!(halves.majority(LegSet::first(3)).map(LegSet::bits), Some(0b0110), "of those that are left");
}
