//! Both engines through the same body: a model, wakes, short files, replaced legs.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use mirrord_raid::{LegIo, LegOp, LegSet};
use tempfile::TempDir;

use super::*;
use crate::buffer::PoolConfig;
use crate::plain_spawn;

const SIZE: u64 = 1 << 20;
pub(super) const BLOCK: u64 = 4096;
pub(super) const ENGINES: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

pub(super) struct Bed {
    dir: TempDir,
    pub(super) pool: Arc<BufferPool>,
    pub(super) ring: Ring,
}

fn leg_file(dir: &Path, name: &str, len: u64) -> Arc<LegFile> {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    Arc::new(LegFile::open(path, true).unwrap())
}

/// A ring on legs of these sizes; `None` where io_uring is forbidden.
pub(super) fn bed(kind: EngineKind, sizes: &[Option<u64>]) -> Option<Bed> {
    let dir = tempfile::tempdir().unwrap();
    let config = PoolConfig { small_len: 8192, small_count: 4, ..PoolConfig::default() };
    let pool = BufferPool::new(config).unwrap();
    let legs = LegMap::from_fn(sizes.len(), |leg| {
        sizes[leg.index()].map(|len| leg_file(dir.path(), &format!("leg{leg}"), len))
    });
    let config = RingConfig {
        name: "test".to_owned(),
        depth: 8,
        tags: 8,
        pool: Arc::clone(&pool),
        spawn: plain_spawn(),
        wake: None,
        force: Some(kind),
        leg_timeout: None,
        fence: None,
    };
    match Ring::new(config, legs) {
        Ok(ring) => Some(Bed { dir, pool, ring }),
        Err(error) if kind == EngineKind::IoUring => {
            println!("skipped: no io_uring here: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

impl Bed {
    pub(super) fn finish(&mut self) -> Vec<LegDone> {
        let mut out = Vec::new();
        while self.ring.inflight() > 0 {
            self.ring.wait(&mut out, None).unwrap();
        }
        out
    }

    /// One IO on one leg, to its end.
    pub(super) fn one(&mut self, leg: usize, op: LegOp, offset: u64, len: u64) -> Result<(), Errno> {
        self.ring.submit(&io(9, 0, leg, op, offset, len));
        let done = self.finish();
        assert_eq!(done.len(), 1);
        assert_eq!((done[0].io, done[0].leg), (9, Leg::new(leg)));
        done[0].result
    }
}

pub(super) fn io(io: u32, tag: u32, leg: usize, op: LegOp, offset: u64, len: u64) -> LegIo {
    LegIo { io, tag, leg: Leg::new(leg), op, offset, len, buf_offset: 0 }
}

/// A small generator, so that a failure replays.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

#[test]
fn legs_hold_what_was_written() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE), Some(SIZE)]) else { continue };
        assert_eq!(bed.ring.kind(), kind);
        let mut model = vec![0u8; SIZE as usize];
        let mut rng = Rng(1);
        for round in 0..300u32 {
            // Up to 4 tags in flight on disjoint quarters of the volume, each on both legs.
            let mut reads = Vec::new();
            for tag in 0..4u32 {
                let quarter = SIZE / 4;
                let len = BLOCK * (1 + rng.below(6));
                let offset = u64::from(tag) * quarter + BLOCK * rng.below((quarter - len) / BLOCK);
                let range = offset as usize..(offset + len) as usize;
                let mut buffer = bed.pool.take(len as usize);
                buffer.fill(round as u8 ^ tag as u8);
                let op = match rng.below(8) {
                    0..4 => LegOp::Write { fua: rng.below(8) == 0 },
                    4..6 => LegOp::Read,
                    6 => LegOp::Zero { fua: rng.below(2) == 0, keep: rng.below(2) == 0 },
                    _ => LegOp::Flush,
                };
                match op {
                    LegOp::Write { .. } => model[range.clone()].copy_from_slice(&buffer),
                    LegOp::Zero { .. } => model[range.clone()].fill(0),
                    LegOp::Read => reads.push((tag, range.clone())),
                    LegOp::Flush => {}
                }
                bed.ring.attach(tag, buffer);
                let legs = if op == LegOp::Read { 1 } else { 2 };
                for leg in LegSet::first(legs).iter() {
                    let len = if op == LegOp::Flush { 0 } else { len };
                    bed.ring.submit(&io(tag, tag, leg.index(), op, offset, len));
                }
            }
            assert!(bed.finish().iter().all(|done| done.result.is_ok()), "{kind:?} round {round}");
            for (tag, range) in reads {
                assert!(bed.ring.buffer(tag) == &model[range], "{kind:?} round {round}");
            }
            for tag in 0..4 {
                bed.ring.detach(tag);
            }
        }
        for leg in ["leg0", "leg1"] {
            assert!(std::fs::read(bed.dir.path().join(leg)).unwrap() == model, "{kind:?} {leg}");
        }
    }
}

#[test]
fn a_wake_from_another_thread_ends_the_wait() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let mut out = Vec::new();
        for _ in 0..50 {
            let wake = bed.ring.wake_handle();
            let waker = thread::spawn(move || {
                wake.wake();
                wake.wake();
            });
            assert!(bed.ring.wait(&mut out, None).unwrap().woken, "{kind:?}");
            waker.join().unwrap();
            bed.ring.poll(&mut out).unwrap();
        }
        assert!(!bed.ring.wait(&mut out, Some(Duration::from_millis(1))).unwrap().woken, "{kind:?}");
        assert!(out.is_empty());
        bed.ring.wake_handle().wake();
        assert!(bed.ring.poll(&mut out).unwrap().woken);
        assert!(!bed.ring.poll(&mut out).unwrap().woken);
    }
}

#[test]
fn a_descriptor_that_becomes_readable_ends_the_wait() {
    const READABLE: Wakeup = Wakeup { woken: false, readable: true };
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let mut out = Vec::new();
        for _ in 0..3 {
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            bed.ring.watch(Some(reader.try_clone().unwrap().into()));
            let short = Some(Duration::from_millis(1));
            assert_eq!(bed.ring.wait(&mut out, short).unwrap(), Wakeup::default(), "{kind:?}");
            for _ in 0..3 {
                writer.write_all(&[1]).unwrap();
                assert_eq!(bed.ring.wait(&mut out, None).unwrap(), READABLE, "{kind:?}");
                reader.read_exact(&mut [0]).unwrap();
            }
            // Written before the ring sleeps, read after it was told.
            writer.write_all(&[1]).unwrap();
            bed.ring.attach(0, bed.pool.take(BLOCK as usize));
            bed.ring.submit(&io(0, 0, 0, LegOp::Read, 0, BLOCK));
            let mut readable = false;
            while out.is_empty() || !readable {
                readable |= bed.ring.wait(&mut out, None).unwrap().readable;
            }
            out.clear();
            bed.ring.detach(0);
            reader.read_exact(&mut [0]).unwrap();
            drop(writer);
            assert_eq!(bed.ring.wait(&mut out, None).unwrap(), READABLE, "{kind:?}: the end is one, too");
            bed.ring.watch(None);
            assert_eq!(bed.ring.wait(&mut out, short).unwrap(), Wakeup::default(), "{kind:?}");
        }
    }
}

#[test]
fn a_short_leg_is_an_error_not_zeroes() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(BLOCK)]) else { continue };
        let buffer = bed.pool.take(2 * BLOCK as usize);
        bed.ring.attach(0, buffer);
        assert_eq!(bed.one(0, LegOp::Read, 0, BLOCK), Ok(()), "{kind:?}");
        assert_eq!(bed.one(0, LegOp::Read, 0, 2 * BLOCK), Err(Errno::ENXIO), "{kind:?}");
        assert_eq!(bed.one(0, LegOp::Read, BLOCK, BLOCK), Err(Errno::ENXIO), "{kind:?}");
    }
}

#[test]
fn a_leg_that_is_not_there_says_so_and_can_come() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE), None]) else { continue };
        let buffer = bed.pool.take(BLOCK as usize);
        bed.ring.attach(0, buffer);
        bed.ring.buffer_mut(0).fill(0x5a);
        let write = LegOp::Write { fua: false };
        assert_eq!(bed.one(1, write, 0, BLOCK), Err(Errno(libc::ENODEV)));
        let new = leg_file(bed.dir.path(), "new", SIZE);
        bed.ring.replace_leg(Leg::new(1), Some(Arc::clone(&new))).unwrap();
        assert_eq!(bed.one(1, write, BLOCK, BLOCK), Ok(()));
        let mut byte = [0u8];
        File::open(new.path()).unwrap().read_exact_at(&mut byte, BLOCK).unwrap();
        assert_eq!(byte, [0x5a]);
        bed.ring.replace_leg(Leg::new(1), None).unwrap();
        assert_eq!(bed.one(1, LegOp::Flush, 0, 0), Err(Errno(libc::ENODEV)));
    }
}

#[test]
fn io_queued_before_a_replacement_goes_to_the_old_file() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let buffer = bed.pool.take(BLOCK as usize);
        bed.ring.attach(0, buffer);
        bed.ring.buffer_mut(0).fill(0x77);
        bed.ring.submit(&io(9, 0, 0, LegOp::Write { fua: false }, 0, BLOCK));
        let new = leg_file(bed.dir.path(), "new", SIZE);
        bed.ring.replace_leg(Leg::new(0), Some(new)).unwrap();
        assert_eq!(bed.finish().len(), 1);
        let first = |name: &str| std::fs::read(bed.dir.path().join(name)).unwrap()[0];
        assert_eq!((first("leg0"), first("new")), (0x77, 0), "{kind:?}");
    }
}

#[test]
fn more_than_the_depth_may_be_in_flight() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let buffer = bed.pool.take(BLOCK as usize);
        bed.ring.attach(0, buffer);
        for i in 0..200 {
            bed.ring.submit(&io(i, 0, 0, LegOp::Write { fua: false }, u64::from(i) * BLOCK, BLOCK));
        }
        let mut ios: Vec<u32> = bed.finish().iter().map(|done| done.io).collect();
        ios.sort_unstable();
        assert!(ios.into_iter().eq(0..200), "{kind:?}");
    }
}

#[test]
fn a_ring_dropped_with_io_in_flight_lets_it_end() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let buffer = bed.pool.take(BLOCK as usize);
        bed.ring.attach(0, buffer);
        bed.ring.submit(&io(0, 0, 0, LegOp::Read, 0, BLOCK));
        drop(bed.ring);
        assert_eq!(Arc::strong_count(&bed.pool), 1, "{kind:?}: nothing leaked");
    }
}

#[test]
#[should_panic(expected = "outside")]
fn io_beyond_the_buffer_is_a_programming_error() {
    let mut bed = bed(EngineKind::Threads, &[Some(SIZE)]).unwrap();
    let buffer = bed.pool.take(BLOCK as usize);
    bed.ring.attach(0, buffer);
    bed.ring.submit(&io(0, 0, 0, LegOp::Read, 0, BLOCK + 1));
}

#[test]
#[should_panic(expected = "in flight")]
fn a_buffer_in_use_cannot_be_taken() {
    let mut bed = bed(EngineKind::Threads, &[Some(SIZE)]).unwrap();
    let buffer = bed.pool.take(BLOCK as usize);
    bed.ring.attach(0, buffer);
    bed.ring.submit(&io(0, 0, 0, LegOp::Read, 0, BLOCK));
    bed.ring.detach(0);
}

/// A file system that can be frozen: calls that change something there hang until it is thawed.
pub(super) struct Freezer {
    mount: TempDir,
    frozen: bool,
}

impl Freezer {
    fn new() -> Option<Freezer> {
        let mount = tempfile::tempdir().unwrap();
        let image = mount.path().with_extension("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let (image, at) = (image.to_str().unwrap(), mount.path().to_str().unwrap());
        let made = run("mkfs.ext4", &["-q", "-F", image]) && run("mount", &["-o", "loop", image, at]);
        let _ = std::fs::remove_file(image);
        if !made {
            println!("skipped: needs root, loop devices and ext4");
            return None;
        }
        Some(Freezer { mount, frozen: false })
    }

    pub(super) fn freeze(&mut self, freeze: bool) {
        if std::mem::replace(&mut self.frozen, freeze) != freeze {
            let how = if freeze { "-f" } else { "-u" };
            assert!(run("fsfreeze", &[how, self.mount.path().to_str().unwrap()]));
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.freeze(false);
        run("umount", &["-l", self.mount.path().to_str().unwrap()]);
    }
}

pub(super) fn run(program: &str, args: &[&str]) -> bool {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = std::process::Command::new(program);
    command.args(args).env("PATH", path).output().is_ok_and(|output| output.status.success())
}

/// Much more than a leg of a busy machine takes when it does not hang.
const LIMIT: Duration = Duration::from_secs(2);
pub(super) const TIMED_OUT: Result<(), Errno> = Err(Errno::GIVEN_UP);
pub(super) const WRITE: LegOp = LegOp::Write { fua: false };

/// A ring with a time-out; leg 0 is an ordinary file, leg 1 one on a file system that can be frozen.
pub(super) fn freezing_bed(kind: EngineKind) -> Option<(Bed, Freezer)> {
    let freezer = Freezer::new()?;
    let mut bed = bed(kind, &[Some(SIZE), None])?;
    let leg = leg_file(freezer.mount.path(), "leg", SIZE);
    bed.ring.replace_leg(Leg::new(1), Some(leg)).unwrap();
    bed.ring.patience = Some(Patience::new(LIMIT));
    Some((bed, freezer))
}

/// Waits until everything that was given up has ended.
pub(super) fn let_late_ones_end(ring: &mut Ring) {
    let mut out = Vec::new();
    while ring.hung > 0 {
        ring.wait(&mut out, Some(Duration::from_millis(20))).unwrap();
    }
    assert!(out.is_empty(), "what is late is not told: {out:?}");
}

#[test]
fn a_leg_that_hangs_is_given_up_and_its_buffer_is_left_alone() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        freezer.freeze(true);
        let mut buffer = bed.pool.take(2 * BLOCK as usize);
        buffer.fill(0x11);
        bed.ring.attach(0, buffer);
        let began = Instant::now();
        (0..2).for_each(|leg| bed.ring.submit(&io(leg, 0, leg as usize, WRITE, 0, 2 * BLOCK)));
        let done = bed.finish();
        assert_eq!((done.len(), done[0].result), (2, Ok(())), "{kind:?}");
        assert_eq!((done[1].leg, done[1].result), (Leg::new(1), TIMED_OUT), "{kind:?}");
        assert!(began.elapsed() >= LIMIT && bed.ring.hung == 1 && bed.ring.parked.len() == 1, "{kind:?}");
        // The tag has all its bytes still, in memory of its own: what becomes of them is nobody's business.
        assert_eq!(*bed.ring.buffer(0), [0x11; 2 * BLOCK as usize], "{kind:?}");
        bed.ring.buffer_mut(0).fill(0x22);
        drop(bed.ring.detach(0));
        let file = Arc::clone(bed.ring.legs[Leg::new(1)].own.as_ref().unwrap().leg_file());
        assert_eq!(file.hung(), 1, "{kind:?}");

        // While it hangs the leg is given nothing, and the other one goes on.
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        bed.ring.buffer_mut(0).fill(0x33);
        for (leg, op, result) in [
            (1, WRITE, TIMED_OUT),
            (1, LegOp::Read, TIMED_OUT),
            (1, LegOp::Flush, TIMED_OUT),
            (0, WRITE, Ok(())),
            (0, LegOp::Flush, Ok(())),
        ] {
            assert_eq!(bed.one(leg, op, 0, BLOCK), result, "{kind:?} {op:?}");
        }
        assert_eq!(bed.ring.hung, 1, "{kind:?}: refused at once");

        freezer.freeze(false);
        let_late_ones_end(&mut bed.ring);
        assert!(file.hung() == 0 && bed.ring.parked.is_empty() && bed.ring.inflight() == 0, "{kind:?}");
        let late = std::fs::read(file.path()).unwrap();
        assert!(late[..2 * BLOCK as usize].iter().all(|&byte| byte == 0x11), "{kind:?}: written as it was");
        assert_eq!(bed.one(1, WRITE, 0, BLOCK), Ok(()), "{kind:?}: and takes writes again");
        drop(bed.ring);
        assert_eq!(Arc::strong_count(&bed.pool), 1, "{kind:?}: nothing leaked");
    }
}

#[test]
fn every_kind_of_change_is_given_up() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        for op in [LegOp::Zero { fua: true, keep: false }, LegOp::Write { fua: true }] {
            freezer.freeze(true);
            bed.ring.attach(0, bed.pool.take(BLOCK as usize));
            assert_eq!(bed.one(1, op, 0, BLOCK), TIMED_OUT, "{kind:?} {op:?}");
            freezer.freeze(false);
            let_late_ones_end(&mut bed.ring);
            assert_eq!(bed.one(1, op, 0, BLOCK), Ok(()), "{kind:?} {op:?}");
            bed.ring.detach(0);
        }
    }
}

/// Where two are under way the system may tell either that data was lost.
#[test]
fn a_flush_beside_one_that_was_given_up_is_not_believed() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE), Some(SIZE)]) else { continue };
        bed.ring.patience = Some(Patience::new(Duration::from_secs(1000)));
        bed.ring.submit(&io(1, 0, 0, LegOp::Flush, 0, 0));
        bed.ring.submit(&io(2, 0, 0, LegOp::Flush, 0, 0));
        bed.ring.submit(&io(3, 0, 1, LegOp::Flush, 0, 0));
        let late = bed.ring.slots.iter().position(|slot| slot.step.io.io == 1).unwrap();
        assert_eq!(bed.ring.give_up(late).result, TIMED_OUT);
        bed.ring.legs[Leg::new(0)].own.as_ref().unwrap().leg_file().forget();
        let mut done = bed.finish();
        done.sort_by_key(|done| done.io);
        assert!(done.len() == 2 && done[0].result.is_err() && done[1].result.is_ok(), "{kind:?} {done:?}");
        let_late_ones_end(&mut bed.ring);
        assert_eq!(bed.one(0, LegOp::Flush, 0, 0), Err(Errno::EIO), "{kind:?}");
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        assert_eq!(bed.one(0, LegOp::Write { fua: false }, 0, BLOCK), Ok(()), "it promises nothing");
    }
}

#[test]
fn a_registered_buffer_serves_as_a_whole_and_in_parts() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        let small = bed.pool.small_len();
        let mut buffers = [(), ()].map(|()| bed.pool.take(2 * small));
        for (tag, buffer) in buffers.iter_mut().enumerate() {
            bed.ring.register(buffer);
            assert!(kind == EngineKind::Threads || buffer.head() == Some(tag as u16 + 1));
            for (block, bytes) in buffer.chunks_mut(BLOCK as usize).enumerate() {
                bytes.fill((tag * 16 + block) as u8 + 1);
            }
        }
        let whole = 2 * small as u64;
        for (tag, buffer) in buffers.into_iter().enumerate() {
            bed.ring.attach(tag as u32, buffer);
            // All of it; then its beginning, its end, and what lies across the border, each to places of their own.
            for (number, (from, len)) in
                [(0, whole), (0, BLOCK), (whole - BLOCK, BLOCK), (small as u64 - BLOCK, 2 * BLOCK)]
                    .into_iter()
                    .enumerate()
            {
                let at = (tag as u64 * 4 + number as u64) * whole;
                let write = LegIo {
                    buf_offset: from as u32,
                    ..io(9, tag as u32, 0, LegOp::Write { fua: false }, at, len)
                };
                bed.ring.submit(&write);
                assert_eq!(bed.finish()[0].result, Ok(()), "{kind:?} {write:?}");
                let leg = std::fs::read(bed.dir.path().join("leg0")).unwrap();
                let expected = &bed.ring.buffer(tag as u32)[from as usize..(from + len) as usize];
                assert!(leg[at as usize..(at + len) as usize] == *expected, "{kind:?} {write:?}");
            }
        }
    }
}

/// Reads do not hang on a frozen file system, so these are given up by hand while they are under way.
#[test]
fn a_read_that_is_given_up_and_its_neighbours_land_where_they_belong() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE), Some(SIZE)]) else { continue };
        bed.ring.patience = Some(Patience::new(Duration::from_secs(1000)));
        for (name, byte) in [("leg0", 0xaa), ("leg1", 0xbb)] {
            std::fs::write(bed.dir.path().join(name), vec![byte; SIZE as usize]).unwrap();
        }
        // Three blocks of one buffer: one that was read, one that is being read well, one that is given up.
        bed.ring.attach(0, bed.pool.take(3 * BLOCK as usize));
        let at = |leg, block: u64| LegIo {
            buf_offset: (block * BLOCK) as u32,
            ..io(block as u32, 0, leg, LegOp::Read, 0, BLOCK)
        };
        bed.ring.submit(&at(0, 0));
        assert_eq!(bed.finish().len(), 1);
        bed.ring.submit(&at(0, 1));
        bed.ring.submit(&at(1, 2));
        let late = bed.ring.slots.iter().position(|slot| slot.step.io.leg == Leg::new(1)).unwrap();
        assert_eq!(bed.ring.give_up(late).result, TIMED_OUT);
        assert!(bed.ring.inflight() == 1 && bed.ring.parked[0].using == 2);
        // Done again on the other leg, as the mirror does.
        bed.ring.submit(&at(0, 2));
        let done = bed.finish();
        assert!(done.len() == 2 && done.iter().all(|done| done.result.is_ok()), "{kind:?} {done:?}");
        let_late_ones_end(&mut bed.ring);
        assert!(bed.ring.buffer(0).iter().all(|&byte| byte == 0xaa), "{kind:?}");
        drop(bed.ring.detach(0));
        assert!(bed.ring.parked.is_empty(), "{kind:?}");
    }
}

#[test]
fn a_ring_sleeps_while_nothing_is_under_way() {
    for kind in ENGINES {
        let Some(mut bed) = bed(kind, &[Some(SIZE)]) else { continue };
        bed.ring.patience = Some(Patience::new(LIMIT));
        assert_eq!(bed.ring.sleep_at_most(None), None);
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        bed.ring.submit(&io(0, 0, 0, WRITE, 0, BLOCK));
        assert!(bed.ring.sleep_at_most(None).is_some_and(|tick| tick <= LIMIT));
        bed.finish();
        assert_eq!(bed.ring.sleep_at_most(None), None);
    }
}

#[test]
fn a_ring_ends_though_a_leg_hangs() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        freezer.freeze(true);
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        assert_eq!(bed.one(1, WRITE, 0, BLOCK), TIMED_OUT, "{kind:?}");
        let file = Arc::clone(bed.ring.legs[Leg::new(1)].own.as_ref().unwrap().leg_file());
        drop(bed.ring);
        assert!(file.hung() == 1 && Arc::strong_count(&bed.pool) > 1, "{kind:?}: kept for the kernel");
    }
}
