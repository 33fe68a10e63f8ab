//! The front end on a real mount, in front of an engine that is a vector of bytes.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use mirrord_raid::{Errno, LegMap};
use rustix::fs::{FallocateFlags, fallocate};
use tempfile::TempDir;

use super::*;
use crate::buffer::PoolConfig;
use crate::front::{Op, Pulled, Request};
use crate::{Ring, RingConfig, plain_spawn};

const SIZE: u64 = 8 << 20;
const BLOCK: u32 = 4096;

/// Executes requests one after the other on its own thread, and notes them.
struct Memory {
    requests: Mutex<Sender<Request>>,
    seen: Arc<Mutex<Vec<(Op, bool)>>>,
}

impl Memory {
    fn new(refuse: Option<Errno>) -> Arc<Memory> {
        let (requests, inbox) = channel::<Request>();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        thread::spawn(move || {
            let mut volume = vec![0u8; SIZE as usize];
            for mut request in inbox {
                let Request { op, offset, len, fua, .. } = request;
                noted.lock().unwrap().push((op, fua));
                assert!((offset | len) % u64::from(BLOCK) == 0 && offset + len <= SIZE);
                let range = &mut volume[offset as usize..(offset + len) as usize];
                if let Some(errno) = refuse {
                    request.done.complete(Err(errno), None);
                    continue;
                }
                match op {
                    Op::Read => request.buf.as_mut().unwrap().copy_from_slice(range),
                    Op::Write => {
                        let buf = request.buf.as_mut().unwrap();
                        if let Some(patch) = &request.patch {
                            buf.copy_from_slice(range);
                            patch.apply(buf, offset, offset, len);
                        }
                        range.copy_from_slice(buf);
                    }
                    Op::Zero { .. } => range.fill(0),
                    Op::Flush => {}
                }
                request.done.complete(Ok(()), request.buf);
            }
        });
        Arc::new(Memory { requests: Mutex::new(requests), seen })
    }

    /// What came since the last call.
    fn seen(&self) -> Vec<(Op, bool)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

impl Engine for Memory {
    fn submit(&self, _: usize, request: Request) {
        self.requests.lock().unwrap().send(request).unwrap();
    }

    fn serve(&self, _: usize, source: Box<dyn Source>) {
        let requests = self.requests.lock().unwrap().clone();
        pull_all(source, move |request| requests.send(request).unwrap());
    }

    fn nudge(&self, _: usize) {}

    fn queues(&self) -> usize {
        2
    }
}

/// A queue thread for engines that have none: pulls until the source ends.
fn pull_all(mut source: Box<dyn Source>, mut submit: impl FnMut(Request) + Send + 'static) {
    thread::spawn(move || {
        let config = RingConfig {
            name: "test".to_owned(),
            depth: 1,
            tags: 1,
            pool: BufferPool::new(PoolConfig::default()).unwrap(),
            spawn: plain_spawn(),
            wake: None,
            force: None,
            leg_timeout: None,
            fence: None,
        };
        let mut ring = Ring::new(config, LegMap::from_fn(1, |_| None)).unwrap();
        source.start(&mut ring).unwrap();
        let mut requests = VecDeque::new();
        let mut pulled = Pulled::More;
        while pulled != Pulled::Ended {
            if pulled == Pulled::All {
                ring.wait(&mut Vec::new(), None).unwrap();
            }
            pulled = source.pull(&mut ring, 3, &mut requests);
            requests.drain(..).for_each(&mut submit);
        }
    });
}

/// Loses every request.
struct Loser;

impl Engine for Loser {
    fn submit(&self, _: usize, _: Request) {}

    fn serve(&self, _: usize, source: Box<dyn Source>) {
        pull_all(source, drop);
    }

    fn nudge(&self, _: usize) {}

    fn queues(&self) -> usize {
        3
    }
}

fn options(mount: PathBuf) -> FuseOptions {
    FuseOptions {
        mount,
        name: "test,volume".to_owned(),
        size: SIZE,
        block_size: BLOCK,
        max_io: 1 << 20,
        allow_other: false,
        read_only: false,
        spawn: plain_spawn(),
        on_unmounted: None,
    }
}

struct Bed {
    front: FuseFront,
    engine: Arc<Memory>,
    dir: TempDir,
}

fn pool() -> Arc<BufferPool> {
    BufferPool::new(PoolConfig::default()).unwrap()
}

/// `None`, with a line that says so, where FUSE cannot be mounted.
fn serve(engine: Arc<dyn Engine>, options: FuseOptions) -> Option<FuseFront> {
    match FuseFront::mount(options, engine, pool()) {
        Ok(front) => Some(front),
        Err(error @ (FuseError::Device { .. } | FuseError::MayNotMount { .. } | FuseError::Mount { .. })) => {
            println!("skipped: {error}: {:?}", std::error::Error::source(&error));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn bed() -> Option<Bed> {
    let dir = tempfile::tempdir().unwrap();
    let engine = Memory::new(None);
    let front = serve(Arc::clone(&engine) as Arc<dyn Engine>, options(dir.path().join("vol")))?;
    Some(Bed { front, engine, dir })
}

impl Bed {
    fn open(&self) -> File {
        self.open_with(0)
    }

    fn open_with(&self, flags: i32) -> File {
        let path = self.front.path();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
    }
}

fn errno<T: fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn concurrent_unaligned_io_matches_a_model() {
    let Some(bed) = bed() else { return };
    // Each thread owns a quarter whose bounds lie inside blocks that it shares with its neighbours.
    let share = SIZE / 4 - 1000;
    thread::scope(|scope| {
        for id in 0..4u64 {
            let file = bed.open();
            scope.spawn(move || {
                let mut model = vec![0u8; share as usize];
                let mut state = id + 1;
                let mut below = |n: u64| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 33) % n
                };
                for round in 0..400u64 {
                    let len = 1 + below(if round % 16 == 0 { 1 << 20 } else { 20000 });
                    let at = below(share - len);
                    let range = at as usize..(at + len) as usize;
                    if below(2) == 0 {
                        model[range.clone()].fill((round + id) as u8);
                        file.write_all_at(&model[range], id * share + at).unwrap();
                    } else {
                        let mut data = vec![0xee; len as usize];
                        file.read_exact_at(&mut data, id * share + at).unwrap();
                        assert!(data == model[range], "thread {id} round {round}");
                    }
                }
                let mut all = vec![0; share as usize];
                file.read_exact_at(&mut all, id * share).unwrap();
                assert!(all == model);
            });
        }
    });
}

#[test]
fn zeroing_leaves_the_bytes_around_it() {
    let Some(bed) = bed() else { return };
    let file = bed.open();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE;
    for (mode, offset, len) in [
        (punch, 4096, 8192),
        (zero, 4096, 8192),
        (zero | FallocateFlags::KEEP_SIZE, 100, 50),
        (punch, 4000, 200),
        (punch, 1, 40000),
        (punch, 8191, 4098),
        (punch, 4096, 1),
    ] {
        file.write_all_at(&[0xaa; 65536], 0).unwrap();
        fallocate(&file, mode, offset, len).unwrap();
        let mut data = [0; 65536];
        file.read_exact_at(&mut data, 0).unwrap();
        for (at, byte) in data.iter().enumerate() {
            let inside = (offset..offset + len).contains(&(at as u64));
            assert_eq!(*byte, if inside { 0 } else { 0xaa }, "{mode:?} {offset}+{len} at {at}");
        }
    }
    bed.engine.seen();
    fallocate(&file, punch, 4096, 8192).unwrap();
    assert_eq!(bed.engine.seen(), [(Op::Zero { keep: false }, false)]);
    fallocate(&file, zero, 4096, 8192).unwrap();
    assert_eq!(bed.engine.seen(), [(Op::Zero { keep: true }, false)]);
    fallocate(&file, punch, 4095, 8194).unwrap();
    assert_eq!(
        bed.engine.seen(),
        [(Op::Write, false), (Op::Zero { keep: false }, false), (Op::Write, false)]
    );
    fallocate(&file, punch, SIZE - 4096, 1 << 30).unwrap();
    assert_eq!(bed.engine.seen(), [(Op::Zero { keep: false }, false)], "clamped to the volume");
    fallocate(&file, FallocateFlags::empty(), 0, SIZE).unwrap();
    assert!(bed.engine.seen().is_empty());
    assert_eq!(
        fallocate(&file, FallocateFlags::empty(), 0, SIZE + 1).unwrap_err().raw_os_error(),
        libc::ENOSPC
    );
    assert_eq!(fallocate(&file, zero, SIZE - 10, 20).unwrap_err().raw_os_error(), libc::ENOSPC);
    assert_eq!(file.metadata().unwrap().len(), SIZE);
}

#[test]
fn durability_is_asked_for_when_the_client_asks() {
    let Some(bed) = bed() else { return };
    let file = bed.open();
    file.write_all_at(&[1; 4096], 0).unwrap();
    assert_eq!(bed.engine.seen(), [(Op::Write, false)]);
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert_eq!(bed.engine.seen(), [(Op::Flush, false), (Op::Flush, false)]);
    drop(file);
    assert!(bed.engine.seen().is_empty(), "close is no flush");
    for flags in [libc::O_SYNC, libc::O_DSYNC] {
        bed.open_with(flags).write_all_at(&[1; 100], 50).unwrap();
        assert_eq!(bed.engine.seen()[0], (Op::Write, true));
    }
}

#[test]
fn the_size_is_fixed() {
    let Some(bed) = bed() else { return };
    let file = bed.open();
    let meta = file.metadata().unwrap();
    assert!(meta.is_file());
    assert_eq!((meta.len(), meta.mode() & 0o7777, meta.blksize()), (SIZE, 0o600, u64::from(BLOCK)));
    assert_eq!(errno(file.set_len(0)), libc::EPERM);
    assert_eq!(errno(file.set_len(SIZE + 1)), libc::EPERM);
    file.set_len(SIZE).unwrap();
    assert_eq!(errno(File::create(bed.front.path())), libc::EPERM, "O_TRUNC");
    assert_eq!(file.write_at(&[1; 20], SIZE - 20).unwrap(), 20);
    assert_eq!(errno(file.write_at(&[2; 20], SIZE - 10)), libc::ENOSPC);
    assert_eq!(errno(file.write_at(&[2; 20], SIZE)), libc::ENOSPC);
    let mut data = [9; 40];
    assert_eq!(file.read_at(&mut data, SIZE - 20).unwrap(), 20);
    assert_eq!(data[..20], [1; 20], "nothing of the refused write");
    assert_eq!(file.read_at(&mut data, SIZE).unwrap(), 0);
    assert_eq!(bed.open().metadata().unwrap().len(), SIZE);
}

#[test]
fn mode_and_times_can_be_changed() {
    let Some(bed) = bed() else { return };
    let file = bed.open();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1000);
    file.set_modified(time).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.modified().unwrap()), (0o640, time));
    file.write_all_at(&[1], 0).unwrap();
    assert!(file.metadata().unwrap().modified().unwrap() > time);
}

#[test]
fn nothing_of_the_users_is_covered() {
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full");
    fs::write(&full, "data").unwrap();
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    let link = dir.path().join("link");
    symlink(&empty, &link).unwrap();
    for path in [full, link, dir.path().to_owned()] {
        let result = FuseFront::mount(options(path), Arc::new(Loser), pool());
        assert!(matches!(result, Err(FuseError::NotEmptyFile { .. })), "{result:?}");
    }
    let missing = options(dir.path().join("no/such/vol"));
    assert!(matches!(FuseFront::mount(missing, Arc::new(Loser), pool()), Err(FuseError::Point { .. })));
    let Some(mut front) = serve(Arc::new(Loser), options(empty.clone())) else { return };
    front.shutdown(Shutdown::Clean).unwrap();
    assert_eq!(fs::metadata(&empty).unwrap().len(), 0, "the user's file stays");
}

#[test]
fn a_busy_volume_is_served_on() {
    let Some(mut bed) = bed() else { return };
    let path = bed.front.path().to_owned();
    let file = bed.open();
    let busy = bed.front.shutdown(Shutdown::Clean);
    assert!(matches!(busy, Err(FrontError::Busy { .. })), "{busy:?}");
    file.write_all_at(&[5; 10], 3).unwrap();
    drop(file);
    bed.front.shutdown(Shutdown::Clean).unwrap();
    bed.front.shutdown(Shutdown::Clean).unwrap();
    assert!(!path.exists(), "the mount point was made by the mount");
    drop(bed.dir);
}

#[test]
fn force_takes_it_from_its_users() {
    let Some(mut bed) = bed() else { return };
    let file = bed.open();
    bed.front.shutdown(Shutdown::Force).unwrap();
    assert!(file.write_all_at(&[5; 10], 3).is_err());
}

#[test]
fn being_unmounted_by_others_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, noticed) = channel();
    let mut options = options(dir.path().join("vol"));
    options.on_unmounted = Some(Box::new(move || gone.send(()).unwrap()));
    let Some(mut front) = serve(Memory::new(None), options) else { return };
    unmount_at(front.path(), How::Clean).unwrap();
    noticed.recv_timeout(Duration::from_secs(120)).unwrap();
    front.shutdown(Shutdown::Clean).unwrap();
}

#[test]
fn a_dead_mount_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vol");
    assert!(!clear_dead_mount(&path).unwrap());
    let point = Point::prepare(&path).unwrap();
    let Ok(device) = point.mount("dead", false, false) else {
        return println!("skipped: cannot mount FUSE here");
    };
    drop(device);
    assert_eq!(errno(fs::metadata(&path)), libc::ENOTCONN);
    let Some(mut front) = serve(Memory::new(None), options(path.clone())) else { return };
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    front.shutdown(Shutdown::Clean).unwrap();
    assert!(!clear_dead_mount(&path).unwrap());
}

#[test]
fn an_answer_always_comes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_front) = serve(Arc::new(Loser), options(dir.path().join("vol"))) else { return };
    let file = OpenOptions::new().read(true).write(true).open(dir.path().join("vol")).unwrap();
    assert_eq!(errno(file.write_at(&[1; 10], 0)), libc::EIO);
    assert_eq!(errno(file.read_at(&mut [1; 10], 0)), libc::EIO);
    assert_eq!(errno(file.sync_all()), libc::EIO);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(&file, punch, 5, 10000).unwrap_err().raw_os_error(), libc::EIO);
}

#[test]
fn errors_reach_the_client_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Memory::new(Some(Errno::ENOSPC));
    let Some(_front) = serve(engine, options(dir.path().join("vol"))) else { return };
    let file = OpenOptions::new().write(true).open(dir.path().join("vol")).unwrap();
    assert_eq!(errno(file.write_at(&[1; 4096], 0)), libc::ENOSPC);
}

#[test]
fn a_read_only_volume_takes_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path().join("vol"));
    options.read_only = true;
    let Some(front) = serve(Memory::new(None), options) else { return };
    assert_eq!(errno(OpenOptions::new().write(true).open(front.path())), libc::EROFS);
    assert_eq!(fs::read(front.path()).unwrap().len() as u64, SIZE);
}

#[test]
fn a_loop_device_works_on_top() {
    let Some(bed) = bed() else { return };
    let losetup =
        Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(bed.front.path()).output();
    let device = match losetup {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        other => return println!("skipped: no loop device: {other:?}"),
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&device).unwrap();
        file.write_all_at(&[0x33; 65536], 4096).unwrap();
        file.sync_all().unwrap();
        let seen = bed.engine.seen();
        assert!(seen.contains(&(Op::Flush, false)), "{seen:?}");
        let mut data = [0; 65536];
        bed.open().read_exact_at(&mut data, 4096).unwrap();
        assert!(data == [0x33; 65536]);
        // It wants the device for itself.
        drop(file);
        match Command::new("blkdiscard").args(["-o", "8192", "-l", "4096"]).arg(&device).output() {
            Err(error) => println!("skipped: no blkdiscard: {error}"),
            Ok(output) => {
                assert!(output.status.success(), "{output:?}");
                bed.open().read_exact_at(&mut data, 4096).unwrap();
                assert!(data[4096..8192] == [0; 4096]);
                assert!(data[..4096] == [0x33; 4096] && data[8192..] == [0x33; 57344]);
                assert!(bed.engine.seen().contains(&(Op::Zero { keep: false }, false)));
            }
        }
    }));
    let detached = Command::new("losetup").arg("--detach").arg(&device).status();
    assert!(detached.unwrap().success());
    result.unwrap();
}
