//! Zeroes on a file system that can be frozen: they wait, are given up, and end at a fence.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::super::flight::Slot;
use super::super::tests::{BLOCK, Bed, ENGINES, TIMED_OUT, freezing_bed, io, let_late_ones_end};
use super::*;
use crate::leg_file::LegFile;

const ZERO: LegOp = LegOp::Zero { fua: false, keep: true };
const LEG: usize = 1;
const COUNT: u32 = AT_ONCE + 2;

fn submit_zeroes(bed: &mut Bed) {
    (0..COUNT).for_each(|at| bed.ring.submit(&io(at, 0, LEG, ZERO, u64::from(at) * BLOCK, BLOCK)));
    let leg = &bed.ring.legs[Leg::new(LEG)];
    assert_eq!((leg.zeroes, leg.waiting.len()), (AT_ONCE, 2));
}

#[test]
fn a_zero_that_waits_for_others_grows_no_older() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        freezer.freeze(true);
        submit_zeroes(&mut bed);
        let aged = bed.ring.patience.as_mut().unwrap().age(10);
        freezer.freeze(false);
        let mut done = Vec::new();
        while !bed.ring.legs[Leg::new(LEG)].waiting.is_empty() {
            bed.ring.wait(&mut done, None).unwrap();
        }
        let younger = |slot: &Slot| slot.born.wrapping_sub(aged) < 10;
        assert!(bed.ring.slots.iter().filter(|slot| slot.step.io.io >= AT_ONCE).all(younger), "{kind:?}");
        done.extend(bed.finish());
        assert!(
            done.len() == COUNT as usize && done.iter().all(|done| done.result.is_ok()),
            "{kind:?}: {done:?}"
        );
        assert_eq!(bed.ring.legs[Leg::new(LEG)].zeroes, 0, "{kind:?}");
    }
}

#[test]
fn zeroes_that_wait_for_some_that_are_given_up_are_refused() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        freezer.freeze(true);
        submit_zeroes(&mut bed);
        let done = bed.finish();
        let given_up = done.iter().filter(|done| done.result == TIMED_OUT).count();
        assert_eq!((done.len(), given_up), (COUNT as usize, COUNT as usize), "{kind:?}");
        freezer.freeze(false);
        let_late_ones_end(&mut bed.ring);
        assert_eq!(bed.ring.legs[Leg::new(LEG)].zeroes, 0, "{kind:?}");
        assert_eq!(bed.one(LEG, ZERO, 0, BLOCK), Ok(()), "{kind:?}");
    }
}

#[test]
fn a_leg_that_is_replaced_has_no_zeroes_that_wait() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        bed.ring.patience = None;
        freezer.freeze(true);
        submit_zeroes(&mut bed);
        let again =
            LegFile::open(bed.ring.legs[Leg::new(LEG)].own.as_ref().unwrap().leg_file().path(), false);
        bed.ring.replace_leg(Leg::new(LEG), Some(Arc::new(again.unwrap()))).unwrap();
        freezer.freeze(false);
        let done = bed.finish();
        let refused = done.iter().filter(|done| done.result == Err(Errno(libc::ENODEV))).count();
        assert_eq!((done.len(), refused), (COUNT as usize, 2), "{kind:?}");
        assert_eq!(bed.one(LEG, ZERO, 0, BLOCK), Ok(()), "{kind:?}");
    }
}

/// The call that is under way ends; the rest of the zero, what waits and what comes is left.
#[test]
fn behind_a_fence_nothing_is_changed() {
    const LONG: u64 = 16 << 20;
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        bed.ring.patience = None;
        let fence = Arc::new(AtomicBool::new(false));
        bed.ring.fence = Some(Arc::clone(&fence));
        let path = bed.ring.legs[Leg::new(LEG)].own.as_ref().unwrap().leg_file().path().to_owned();
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        file.write_all_at(&vec![7; LONG as usize], 0).unwrap();
        file.sync_data().unwrap();
        freezer.freeze(true);
        (0..=AT_ONCE).for_each(|at| bed.ring.submit(&io(at, 0, LEG, ZERO, 0, LONG)));
        bed.ring.poll(&mut Vec::new()).unwrap();
        fence.store(true, SeqCst);
        freezer.freeze(false);
        let done = bed.finish();
        assert_eq!(done.len(), AT_ONCE as usize + 1, "{kind:?}");
        assert!(done.iter().all(|done| done.result == Err(Errno::EIO)), "{kind:?}: {done:?}");
        let mut there = vec![0; (LONG / 2) as usize];
        file.read_exact_at(&mut there, LONG / 2).unwrap();
        assert!(there.iter().all(|&byte| byte == 7), "{kind:?}: the second call was made");
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        for (op, result) in [
            (ZERO, Err(Errno::EIO)),
            (LegOp::Write { fua: true }, Err(Errno::EIO)),
            (LegOp::Read, Ok(())),
            (LegOp::Flush, Ok(())),
        ] {
            assert_eq!(bed.one(LEG, op, LONG / 2, BLOCK), result, "{kind:?} {op:?}");
        }
    }
}
