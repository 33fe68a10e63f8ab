//! Both kinds: what is written, what fails, what hangs.

use super::*;

fn write(offset: u64, fill: u8, len: usize) -> PageWrite {
    PageWrite { offset, bytes: vec![fill; len] }
}

/// The io_uring one only where it is permitted; says so otherwise.
fn each_kind() -> Vec<MetaIo> {
    let ring = MetaIo::new();
    if ring.kind() == "blocking" {
        eprintln!("skipped for io_uring: not permitted here");
    }
    vec![ring, MetaIo::blocking()]
}

#[test]
fn adjacent_writes_become_one() {
    let runs = merged(&[write(8192, 3, 4096), write(0, 1, 4096), write(4096, 2, 4096), write(20480, 4, 512)]);
    assert_eq!(
        runs.iter().map(|r| (r.offset, r.bytes.len())).collect::<Vec<_>>(),
        [(0, 12288), (20480, 512)]
    );
    assert_eq!((runs[0].bytes[0], runs[0].bytes[4096], runs[0].bytes[8192]), (1, 2, 3));
    assert!(merged(&[]).is_empty());
}

#[test]
fn every_target_gets_every_write() {
    for mut io in each_kind() {
        let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let targets: Vec<_> = files
            .iter()
            .zip([0, 512, 1 << 20])
            .map(|(file, base)| Target { file, base, hung: None })
            .collect();
        // More than the ring has entries.
        let writes: Vec<_> = (0..150).map(|i| write(i * 8192, i as u8 + 1, 4096)).collect();
        for round in 0..3 {
            let results = io.write_and_sync(&targets, &writes[round..]);
            assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
        }
        for target in &targets {
            for write in &writes {
                let mut there = vec![0; 4096];
                target.file.read_exact_at(&mut there, target.base + write.offset).unwrap();
                assert!(there == write.bytes);
            }
        }
        assert!(io.sync(&[&files[0], &files[1]]).iter().all(|result| result.is_ok()));
        assert!(io.sync(&[]).is_empty());
    }
}

#[test]
fn a_target_that_fails_does_not_stop_the_others() {
    for mut io in each_kind() {
        let good = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(good.path()).unwrap();
        let targets = [&read_only, good.as_file()].map(|file| Target { file, base: 0, hung: None });
        let results = io.write_and_sync(&targets, &[write(0, 7, 4096), write(8192, 7, 10)]);
        assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(9));
        assert!(results[1].is_ok());
        assert_eq!(good.as_file().metadata().unwrap().len(), 8202);
    }
}

#[test]
fn no_space_is_told_apart() {
    let Ok(full) = File::options().write(true).open("/dev/full") else {
        eprintln!("skipped: no /dev/full");
        return;
    };
    for mut io in each_kind() {
        let results = io.write_and_sync(&[Target { file: &full, base: 0, hung: None }], &[write(0, 7, 4096)]);
        assert_eq!(results[0].as_ref().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}

/// A pipe that is full: a write to it ends when it is emptied. Only io_uring writes to one at an offset.
#[test]
fn a_file_that_hangs_is_given_up_and_given_nothing_until_that_has_ended() {
    let limit = Duration::from_millis(160);
    let mut io = MetaIo::new().with_time_out(TimeOut::new(Some(limit)));
    if io.kind() == "blocking" {
        eprintln!("skipped: no io_uring");
        return;
    }
    let (mut reader, mut writer) = io::pipe().unwrap();
    let mut full = vec![1; 65536];
    io::Write::write_all(&mut writer, &full).unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(writer));
    let good = tempfile::tempfile().unwrap();
    let known = Hung::default();
    let hung = Some(&known);
    let targets = [Target { file: &pipe, base: 0, hung }, Target { file: &good, base: 0, hung }];
    let began = std::time::Instant::now();
    let results = io.write_and_sync(&targets, &[write(0, 7, 4096)]);
    assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT));
    assert!(results[1].is_ok() && began.elapsed() >= limit && io.is_late(&pipe) && !io.is_late(&good));
    assert_eq!(known.changes.load(SeqCst), 1, "all who do IO there know");

    let began = std::time::Instant::now();
    let each = [(targets[0], vec![write(0, 8, 10)]), (targets[1], vec![write(0, 8, 10)])];
    let results = io.write_each(&each);
    assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT), "refused");
    assert!(results[1].is_ok() && began.elapsed() < limit / 2, "at once");

    io::Read::read_exact(&mut reader, &mut full).unwrap();
    while io.has_late() {
        io.look();
    }
    assert!(!io.is_late(&pipe) && known.changes.load(SeqCst) == 0);
    assert!(!known.forgetful.load(SeqCst), "no sync was under way");
    let mut late = [0; 4096];
    io::Read::read_exact(&mut reader, &mut late).unwrap();
    assert_eq!(late, [7; 4096], "what was under way arrives, and nothing else");
    // It takes writes again: only a sync of a pipe cannot be.
    let results = io.write_and_sync(&targets[..1], &[write(0, 9, 10)]);
    assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(22));
    io::Read::read_exact(&mut reader, &mut late[..10]).unwrap();
    assert_eq!(late[..10], [9; 10]);

    // What others know shortens the wait; who ends with it does not wait.
    io::Write::write_all(&mut &pipe, &full).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| known.changes.store(1, SeqCst));
        io.time_out = Some(TimeOut::new(Some(Duration::from_secs(16) / 10)));
        let began = std::time::Instant::now();
        assert!(io.write_and_sync(&targets[..1], &[write(0, 7, 4096)])[0].is_err());
        assert!(began.elapsed() < Duration::from_secs(1));
    });
    drop(io);
}

/// Whichever comes first, the end of a sync or the end of patience.
#[test]
fn a_sync_that_was_given_up_and_failed_is_told_to_all() {
    let known = Hung::default();
    let file = tempfile::tempfile().unwrap();
    let flight = || Flight::to(&Target { file: &file, base: 0, hung: Some(&known) });
    let known_is = |changes, forgetful| {
        assert_eq!((known.changes.load(SeqCst), known.forgetful.load(SeqCst)), (changes, forgetful));
    };
    let fails = |flight: &Flight| assert!(flight.synced(Err(io::Error::other("lost"))).is_err());

    let waited_for = flight();
    fails(&waited_for);
    waited_for.end();
    known_is(0, false);

    let good = flight();
    good.give_up();
    known_is(1, false);
    good.synced(Ok(())).unwrap();
    good.end();
    known_is(0, false);

    for ends_first in [false, true] {
        let bad = flight();
        fails(&bad);
        if ends_first {
            bad.end();
            bad.give_up();
        } else {
            bad.give_up();
            known_is(1, false);
            bad.end();
        }
        known_is(0, true);
        known.forgetful.store(false, SeqCst);
    }
}

#[test]
fn a_time_out_that_is_set_later_counts_for_what_hangs_already() {
    let time_out = TimeOut::default();
    let mut io = MetaIo::new().with_time_out(time_out.clone());
    if io.kind() == "blocking" {
        eprintln!("skipped: no io_uring");
        return;
    }
    let (_reader, mut writer) = io::pipe().unwrap();
    io::Write::write_all(&mut writer, &vec![1; 65536]).unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(writer));
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            time_out.shorten_to(Duration::from_millis(50));
        });
        let targets = [Target { file: &pipe, base: 0, hung: None }];
        let results = io.write_and_sync(&targets, &[write(0, 7, 4096)]);
        assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(TIMED_OUT));
    });
    assert!(io.is_late(&pipe));
}
