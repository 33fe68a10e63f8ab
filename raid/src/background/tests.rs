//! Courses of a repair, and what can be seen of copies.

use super::*;
use crate::geometry::Geometry;
use crate::types::{LegMap, LegState};

const A: Leg = Leg::new(0);

/// What goes differently from a repair in which all goes well.
#[derive(Clone, Copy, Default)]
struct Course {
    dirty: bool,
    mark_fails: bool,
    zeroes: bool,
    /// Legs that cannot be read.
    unreadable: LegSet,
    /// The leg is failed while the range is read.
    failed: bool,
    write_fails: bool,
}

/// Repairs 4096 bytes of leg 0, of three; what happened, in order.
fn repair(course: Course) -> Vec<String> {
    let states = LegMap::from_fn(3, |_| LegState::InSync);
    let geometry = Geometry::new(1 << 20, 1 << 16).unwrap();
    let region = Region(1);
    let mirror = Arc::new(Mirror::new(geometry, &states, course.dirty.then_some(region), 1));
    let mut background = Background::new(Arc::clone(&mirror), WINDOW);
    let (mut actions, mut notes, mut happened) = (Vec::new(), Vec::new(), Vec::new());
    mirror.tell_queue(mirror.background(), QueueNote::Repair { leg: A, offset: 1 << 16, len: 4096 });
    background.handle(BackgroundEvent::Woken, &mut actions);
    while !actions.is_empty() {
        for action in std::mem::take(&mut actions) {
            let BackgroundAction::Queue(Action::Submit(io)) = action else { continue };
            assert_eq!((io.offset, io.len), (1 << 16, 4096));
            assert!(mirror.regions.writes(region) > 0 && !mirror.ranges.is_idle());
            happened.push(format!("{:?} {:?}", io.op, io.leg));
            if course.failed {
                mirror.legs.set(A, LegState::Failed(crate::types::FailReason::Io));
            }
            let fails = match io.op {
                LegOp::Read => course.unreadable.contains(io.leg),
                _ => course.write_fails,
            };
            let result = if fails { Err(Errno::EIO) } else { Ok(()) };
            let (io, leg, zeroes) = (io.io, io.leg, course.zeroes);
            background.handle(BackgroundEvent::LegDone { io, leg, result, zeroes }, &mut actions);
        }
        mirror.take_worker_notes(&mut notes);
        for note in &notes {
            happened.push(match *note {
                WorkerNote::Mark { from, .. } => {
                    assert!(mirror.ranges.is_idle(), "a range is held while its mark is awaited");
                    let result = if course.mark_fails { Err(Errno::EIO) } else { Ok(()) };
                    mirror.tell_queue(from.queue, QueueNote::Marked { io: from.io, result });
                    background.handle(BackgroundEvent::Woken, &mut actions);
                    "mark".to_owned()
                }
                WorkerNote::Unreadable { leg, .. } => format!("unreadable {leg:?}"),
                WorkerNote::Repaired { ok, errors } => match errors[A.index()] {
                    Some(errno) => format!("{errno:?}"),
                    None if ok == LegSet::one(A) => "repaired".to_owned(),
                    None => "given up".to_owned(),
                },
                note => unreachable!("{note:?}"),
            });
        }
    }
    assert!(background.is_idle() && mirror.ranges.is_idle() && mirror.regions.writes(region) == 0);
    happened
}

#[test]
fn what_is_copied_can_be_seen() {
    let states = LegMap::from(vec![LegState::InSync, LegState::Syncing]);
    let dirty = [2, 5, 7].map(Region);
    let mirror = Arc::new(Mirror::new(Geometry::new(1 << 20, 1 << 16).unwrap(), &states, dirty, 1));
    let mut background = Background::new(Arc::clone(&mirror), WINDOW);
    let seen = || mirror.copying().map(|region| region.0).collect::<Vec<_>>();
    let mut actions = Vec::new();
    assert!(seen().is_empty());
    for region in [5, 7].map(Region) {
        let targets = LegSet::one(Leg::new(1));
        mirror.tell_queue(mirror.background(), QueueNote::Copy { region, targets });
        background.handle(BackgroundEvent::Woken, &mut actions);
    }
    assert_eq!(seen(), [5, 7]);
    background.handle(BackgroundEvent::Proceed { io: 0 }, &mut actions);
    for leg in [0, 1].map(Leg::new) {
        let done = BackgroundEvent::LegDone { io: 0, leg, result: Ok(()), zeroes: false };
        background.handle(done, &mut actions);
    }
    assert_eq!(seen(), [7]);
}

#[test]
fn every_course_of_a_repair() {
    let dirty = Course { dirty: true, ..Course::default() };
    let [read1, read2, write] = ["Read leg1", "Read leg2", "Write { fua: false } leg0"];
    let second = LegSet::one(Leg::new(1));
    #[rustfmt::skip]
    let rows: [(&str, Course, &[&str]); 8] = [
        ("dirty region", dirty,                                   &[read1, write, "repaired"]),
        ("clean region", Course::default(),                       &["mark", read1, write, "repaired"]),
        ("no mark",      Course { mark_fails: true, ..Course::default() }, &["mark", "given up"]),
        ("zeroes",       Course { zeroes: true, ..dirty },        &[read1, write, "repaired"]),
        ("bad source",   Course { unreadable: second, ..dirty },  &[read1, read2, "unreadable leg1", write, "repaired"]),
        ("no source",    Course { unreadable: LegSet::first(3), ..dirty }, &[read1, read2, "given up"]),
        ("leg failed",   Course { failed: true, ..dirty },        &[read1, "given up"]),
        ("write failed", Course { write_fails: true, ..dirty },   &[read1, write, "errno 5"]),
    ];
    for (name, course, happened) in rows {
        assert_eq!(repair(course), happened, "{name}");
    }
}
