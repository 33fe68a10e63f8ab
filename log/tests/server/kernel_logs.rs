//! Logs of the kernel's mirrors: from CTR to DTR, and what goes wrong between.

use mirrord_log::DiskLog;
use mirrord_log::wire::{Regions, Request};
use zerocopy::little_endian::U64;

use crate::served::Served;

const KERNEL: u64 = 0;
const DISK: &str = "8192 clustered-disk /dev/loop2 1024";
const CORE: &str = "8192 clustered-core 1024";

fn ctr(text: &str) -> Request<'_> {
    Request::Ctr { text: text.as_bytes(), again: false }
}

fn again(text: &str) -> Request<'_> {
    Request::Ctr { text: text.as_bytes(), again: true }
}

fn regions(numbers: &[u64]) -> Vec<U64> {
    numbers.iter().map(|&number| number.into()).collect()
}

impl Served {
    /// A server with two devices.
    fn with_devices() -> Served {
        let mut served = Served::new();
        for device in ["/dev/loop2", "/dev/loop3"] {
            served.files.insert(device.to_owned(), vec![0; 8192]);
        }
        served
    }

    fn kernel(&mut self, log: (&str, u64), request: &Request<'_>) -> String {
        self.answer_to(KERNEL, log, request)
    }

    fn mark(&mut self, log: (&str, u64), numbers: &[u64]) -> String {
        self.kernel(log, &Request::MarkRegion(Regions::new(&regions(numbers))))
    }

    fn clear(&mut self, log: (&str, u64), numbers: &[u64]) -> String {
        self.kernel(log, &Request::ClearRegion(Regions::new(&regions(numbers))))
    }

    fn flush(&mut self, log: (&str, u64), numbers: &[u64]) -> String {
        self.kernel(log, &Request::Flush(Regions::new(&regions(numbers))))
    }

    /// Constructs a log and resyncs it.
    fn in_sync(&mut self, log: (&str, u64), text: &str) {
        self.kernel(log, &ctr(text));
        self.kernel(log, &Request::Resume);
        for region in 0..8 {
            assert_eq!(self.kernel(log, &Request::GetResyncWork), format!("Work(Some(Region({region})))"));
            self.kernel(log, &Request::SetRegionSync { region, in_sync: true });
            self.clear(log, &[region]);
            self.flush(log, &[]);
        }
        assert_eq!(self.kernel(log, &Request::GetResyncWork), "Work(None)");
    }

    /// Clean bits as they are on the device.
    fn on_disk(&self) -> u8 {
        self.files["/dev/loop2"][1024]
    }

    fn suspend(&mut self, log: (&str, u64)) {
        assert_eq!(self.kernel(log, &Request::Presuspend), "Done");
        assert_eq!(self.kernel(log, &Request::Postsuspend), "Done");
    }
}

#[test]
fn the_life_of_a_log_on_disk() {
    let (mut served, log) = (Served::with_devices(), ("a", 1));
    assert_eq!(served.kernel(log, &ctr(DISK)), "Device(\"7:2\")");
    assert_eq!(served.kernel(log, &Request::GetRegionSize), "Count(1024)");
    assert_eq!(served.kernel(log, &Request::GetSyncCount), "Count(0)", "it was not read yet");
    assert_eq!(served.kernel(log, &Request::StatusInfo), "3 clustered-disk 7:2 A");
    assert_eq!(served.kernel(log, &Request::InSync(0)), "errno 3", "it is to be resumed first");
    served.in_sync(log, DISK);
    assert_eq!((served.kernel(log, &Request::GetSyncCount), served.on_disk()), ("Count(8)".to_owned(), 0xff));
    assert_eq!(served.kernel(log, &Request::IsClean(3)), "Is(true)");
    assert_eq!((served.mark(log, &[3, 7]), served.on_disk()), ("Done".to_owned(), 0xff));
    assert_eq!((served.flush(log, &[]), served.on_disk()), ("Done".to_owned(), 0x77));
    // Marks that come with the flush.
    assert_eq!((served.flush(log, &[0]), served.on_disk()), ("Done".to_owned(), 0x76));
    assert_eq!((served.clear(log, &[3, 0]), served.on_disk()), ("Done".to_owned(), 0x76));
    served.suspend(log);
    assert_eq!(served.on_disk(), 0x7f, "what was cleared is written with the suspend");
    assert_eq!(served.kernel(log, &Request::StatusInfo), "3 clustered-disk 7:2 A");
    assert_eq!(served.flush(log, &[]), "Done", "one may come late");
    assert_eq!(served.kernel(log, &Request::Resume), "Done");
    assert_eq!(
        served.kernel(log, &Request::GetSyncCount),
        "Count(7)",
        "what is dirty on disk is out of sync"
    );
    assert_eq!(served.kernel(log, &Request::GetResyncWork), "Work(Some(Region(7)))");
    served.suspend(log);
    assert_eq!(served.kernel(log, &Request::Dtr), "Done");
    assert_eq!((served.server.logs().count(), served.sessions.len()), (0, 0));
    assert_eq!(served.kernel(log, &Request::Dtr), "Done", "it was not heard");
}

#[test]
fn a_core_log_knows_over_a_suspend_what_is_in_sync() {
    let (mut served, log) = (Served::new(), ("a", 1));
    served.in_sync(log, CORE);
    served.suspend(log);
    assert_eq!(served.kernel(log, &Request::Resume), "Done");
    assert_eq!(served.kernel(log, &Request::GetSyncCount), "Count(8)");
    assert_eq!(served.kernel(log, &Request::StatusInfo), "1 clustered-core");
}

#[test]
fn sync_and_nosync_are_heeded() {
    let mut served = Served::with_devices();
    served.in_sync(("a", 1), DISK);
    served.suspend(("a", 1));
    served.kernel(("a", 1), &Request::Dtr);
    let sync = format!("{DISK} sync");
    served.kernel(("a", 2), &ctr(&sync));
    served.kernel(("a", 2), &Request::Resume);
    assert_eq!(
        (served.kernel(("a", 2), &Request::GetSyncCount), served.on_disk()),
        ("Count(0)".to_owned(), 0)
    );
    let nosync = format!("{DISK} nosync block_on_error");
    served.suspend(("a", 2));
    served.kernel(("a", 2), &Request::Dtr);
    served.kernel(("a", 3), &ctr(&nosync));
    assert_eq!(served.kernel(("a", 3), &Request::GetSyncCount), "Count(8)");
    served.kernel(("a", 3), &Request::Resume);
    assert_eq!(
        (served.kernel(("a", 3), &Request::GetSyncCount), served.on_disk()),
        ("Count(8)".to_owned(), 0xff)
    );
}

#[test]
fn another_table_takes_over_at_its_resume() {
    let mut served = Served::with_devices();
    served.in_sync(("a", 1), DISK);
    assert_eq!(served.kernel(("a", 2), &ctr(DISK)), "Device(\"7:2\")");
    assert_eq!(served.kernel(("a", 2), &Request::StatusInfo), "3 clustered-disk 7:2 A");
    assert_eq!(served.kernel(("a", 2), &Request::GetSyncCount), "Count(0)", "it answers for itself");
    assert_eq!(served.kernel(("a", 2), &Request::Resume), "errno 16", "the first is in use");
    assert_eq!(served.kernel(("a", 2), &Request::InSync(0)), "errno 3");
    assert_eq!(served.kernel(("a", 2), &again(DISK)), "errno 16", "so the kernel waits");
    served.flush(("a", 1), &[5]);
    served.suspend(("a", 1));
    assert_eq!(served.kernel(("a", 2), &again(DISK)), "Done", "and goes on when it is its turn");
    assert_eq!(served.kernel(("a", 2), &Request::Resume), "Done");
    assert_eq!(served.kernel(("a", 1), &Request::Dtr), "Done");
    assert_eq!(served.kernel(("a", 2), &Request::GetSyncCount), "Count(7)", "what the first left dirty");
    assert_eq!(served.kernel(("a", 1), &Request::InSync(0)), "errno 3");
}

#[test]
fn what_comes_while_a_write_is_under_way_is_written_once() {
    let (mut served, log) = (Served::with_devices(), ("a", 1));
    served.in_sync(log, DISK);
    served.writes = 0;
    served.held = true;
    let first = served.say(KERNEL, log, &Request::Flush(Regions::new(&regions(&[0]))));
    let waiting: Vec<u32> = (1..6)
        .map(|region| served.say(KERNEL, log, &Request::Flush(Regions::new(&regions(&[region])))))
        .collect();
    assert_eq!(served.kernel(log, &Request::InSync(1)), "Is(true)", "nothing else waits");
    assert!(served.answers.is_empty());
    served.work();
    for seq in std::iter::once(first).chain(waiting) {
        assert_eq!(served.answer(seq).as_deref(), Some("Done"));
    }
    assert_eq!((served.writes, served.on_disk()), (2, 0xc0));
}

#[test]
fn a_log_that_cannot_be_written_says_so_until_it_can() {
    let (mut served, log) = (Served::with_devices(), ("a", 1));
    served.in_sync(log, DISK);
    served.write_error = Some(mirrord_raid::Errno::EIO);
    assert_eq!(served.flush(log, &[1]), "errno 5");
    assert_eq!(served.kernel(log, &Request::StatusInfo), "3 clustered-disk 7:2 D");
    assert_eq!(served.flush(log, &[]), "errno 5", "the mark is still not there");
    served.write_error = None;
    served.files.get_mut("/dev/loop2").unwrap().fill(0x55);
    assert_eq!(served.flush(log, &[]), "Done");
    assert_eq!(served.kernel(log, &Request::StatusInfo), "3 clustered-disk 7:2 A");
    let disk = &served.files["/dev/loop2"];
    assert_eq!((DiskLog::regions_of(disk), disk[1024]), (Some(8), 0xfd), "all of it was written");
}

#[test]
fn one_log_does_not_wait_for_another() {
    let mut served = Served::with_devices();
    served.in_sync(("a", 1), DISK);
    served.in_sync(("b", 2), "8192 disk /dev/loop3 1024");
    served.held = true;
    assert_eq!(served.flush(("a", 1), &[1]), "waits");
    let hangs = served.jobs.pop_front().unwrap();
    let other = served.say(KERNEL, ("b", 2), &Request::Flush(Regions::new(&regions(&[1]))));
    served.work();
    assert_eq!(served.answer(other).as_deref(), Some("Done"));
    assert_eq!(served.kernel(("a", 1), &Request::GetSyncCount), "Count(8)");
    served.jobs.push_back(hangs);
    served.work();
    assert_eq!(served.answers.len(), 1);
}

#[test]
fn requests_that_make_no_sense_change_nothing() {
    let (mut served, log) = (Served::with_devices(), ("a", 1));
    for text in [
        "8192 clustered-core 0",
        "8192 clustered-core -1024",
        "8192 clustered-core 1000",
        "8192 clustered-core 4294967296",
        "8192 clustered-core 16384",
        "8192 clustered-core 1024 maybe",
        "8192 clustered-disk 1024",
        "8192 bogus 1024",
        "x clustered-core 1024",
        "8192",
        "18446744073709551615 core 2",
    ] {
        assert_eq!(served.kernel(log, &ctr(text)), "errno 22", "{text}");
    }
    assert_eq!(served.kernel(log, &ctr("8192 disk /dev/none 1024")), "errno 2");
    served.files.insert("/dev/loop5".to_owned(), vec![0; 1024]);
    assert_eq!(served.kernel(log, &ctr("8192 disk /dev/loop5 1024")), "errno 28");
    assert_eq!(served.server.logs().count(), 0);
    assert_eq!(served.kernel(log, &Request::InSync(0)), "errno 3", "the kernel is to construct it");
    served.in_sync(log, DISK);
    for request in [Request::InSync(8), Request::IsClean(u64::MAX), Request::IsRemoteRecovering(8)] {
        assert_eq!(served.kernel(log, &request), "errno 22", "{request:?}");
    }
    assert_eq!(served.mark(log, &[1, 8]), "errno 22");
    assert_eq!(served.flush(log, &[2, 1 << 40]), "errno 22");
    assert_eq!(served.kernel(log, &Request::IsClean(1)), "Is(true)", "all or none");
    // A device belongs to one uuid.
    assert_eq!(served.kernel(("b", 2), &ctr(DISK)), "errno 16");
}

#[test]
fn a_table_that_nobody_said_is_gone_is_replaced_by_one_with_its_number() {
    let (mut served, log) = (Served::with_devices(), ("a", 1));
    served.in_sync(log, CORE);
    assert_eq!(served.kernel(log, &ctr(CORE)), "Done");
    assert_eq!(served.kernel(log, &Request::GetSyncCount), "Count(0)");
    // Asked again because the answer was lost: the same log.
    assert_eq!(served.kernel(log, &ctr(CORE)), "Done");
    assert_eq!(served.server.logs().count(), 1);
    assert_eq!(served.kernel(log, &ctr("16384 core 1024")), "Done");
    assert_eq!(served.server.logs().next().unwrap().status.regions, 16);
    served.tick(3600);
    assert_eq!(served.server.logs().count(), 0, "never resumed");
}

#[test]
fn a_region_that_is_being_resynced_is_given_again_to_who_did_not_hear() {
    let (mut served, log) = (Served::new(), ("a", 1));
    served.kernel(log, &ctr(CORE));
    served.kernel(log, &Request::Resume);
    for _ in 0..2 {
        assert_eq!(served.kernel(log, &Request::GetResyncWork), "Work(Some(Region(0)))");
    }
    served.kernel(log, &Request::SetRegionSync { region: 0, in_sync: false });
    assert_eq!(served.kernel(log, &Request::GetResyncWork), "Work(Some(Region(1)))");
    assert_eq!(served.kernel(log, &Request::Resume), "Done", "asked again, it changes nothing");
    assert_eq!(served.kernel(log, &Request::GetResyncWork), "Work(Some(Region(1)))");
    let remote = Request::IsRemoteRecovering(5);
    let never = "RemoteRecovering { is_recovering: false, in_sync_hint: 7 }";
    assert_eq!(served.kernel(log, &remote), never, "all of it is in sync only when it is");
}
