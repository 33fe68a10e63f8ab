//! A server that is killed at any moment, and another that goes on: the kernel does not notice.

use mirrord_log::wire::{Regions, Request};
use zerocopy::little_endian::U64;

use crate::served::Served;

const KERNEL: u64 = 0;
const LOGS: [((&str, u64), &str); 2] =
    [(("core", 7), "65536 clustered-core 1024"), (("disk", 9), "65536 clustered-disk /dev/loop2 1024")];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What the kernel may ask next.
fn ask(served: &mut Served, rng: &mut Rng, log: (&str, u64)) -> String {
    let regions: Vec<U64> = (0..=rng.below(3)).map(|_| rng.below(64).into()).collect();
    let region = rng.below(64);
    let request = match rng.below(11) {
        0 | 1 => Request::MarkRegion(Regions::new(&regions)),
        2 => Request::ClearRegion(Regions::new(&regions)),
        3 => Request::Flush(Regions::NONE),
        4 => Request::Flush(Regions::new(&regions)),
        5 => Request::GetResyncWork,
        6 => Request::SetRegionSync { region, in_sync: rng.below(4) > 0 },
        7 => Request::InSync(region),
        8 => Request::IsClean(region),
        9 => Request::GetSyncCount,
        _ => Request::StatusInfo,
    };
    served.answer_to(KERNEL, log, &request)
}

fn everything(served: &mut Served, log: (&str, u64)) -> Vec<String> {
    let mut all = vec![
        served.answer_to(KERNEL, log, &Request::GetSyncCount),
        served.answer_to(KERNEL, log, &Request::StatusInfo),
    ];
    for region in 0..64 {
        all.push(served.answer_to(KERNEL, log, &Request::InSync(region)));
        all.push(served.answer_to(KERNEL, log, &Request::IsClean(region)));
    }
    all
}

/// After every request the server is killed, or not: what the next one answers is what the first would have.
#[test]
fn whatever_was_answered_is_known_to_the_next_server() {
    for seed in 0..20 {
        let mut rng = Rng(seed);
        let mut served = Served::new();
        served.files.insert("/dev/loop2".to_owned(), vec![0; 8192]);
        for (log, text) in LOGS {
            served.answer_to(KERNEL, log, &Request::Ctr { text: text.as_bytes(), again: false });
            assert_eq!(served.answer_to(KERNEL, log, &Request::Resume), "Done");
        }
        for _ in 0..200 {
            let (log, text) = LOGS[rng.below(2) as usize];
            let answer = ask(&mut served, &mut rng, log);
            assert!(!answer.starts_with("errno"), "{answer}");
            if rng.below(4) > 0 {
                continue;
            }
            let before = everything(&mut served, log);
            served.restart();
            // The kernel noticed, or did not.
            if rng.below(2) == 0 {
                let again = Request::Ctr { text: text.as_bytes(), again: true };
                assert_eq!(served.answer_to(KERNEL, log, &again), "Done", "there is no room for more");
                assert_eq!(served.answer_to(KERNEL, log, &Request::Resume), "Done");
            }
            assert_eq!(everything(&mut served, log), before, "seed {seed}");
        }
    }
}

#[test]
fn marks_that_were_not_flushed_are_with_the_next_flush() {
    let mut served = Served::new();
    served.files.insert("/dev/loop2".to_owned(), vec![0; 8192]);
    let (log, text) = (LOGS[1].0, "65536 clustered-disk /dev/loop2 1024 nosync");
    served.answer_to(KERNEL, log, &Request::Ctr { text: text.as_bytes(), again: false });
    served.answer_to(KERNEL, log, &Request::Resume);
    served.answer_to(KERNEL, log, &Request::MarkRegion(Regions::new(&[9.into()])));
    assert_eq!(served.files["/dev/loop2"][1025], 0xff);
    served.restart();
    assert_eq!(served.answer_to(KERNEL, log, &Request::Flush(Regions::NONE)), "Done");
    assert_eq!(served.files["/dev/loop2"][1025], 0xfd);
}

#[test]
fn a_suspend_that_no_server_heard_does_not_keep_the_next_table_out() {
    let mut served = Served::new();
    let text = LOGS[0].1;
    let ctr = Request::Ctr { text: text.as_bytes(), again: false };
    served.answer_to(KERNEL, ("a", 1), &ctr);
    served.answer_to(KERNEL, ("a", 1), &Request::Resume);
    served.answer_to(KERNEL, ("a", 2), &ctr);
    served.restart();
    // PRESUSPEND and POSTSUSPEND of the first were sent while nobody listened.
    assert_eq!(served.answer_to(KERNEL, ("a", 2), &Request::Resume), "Done");
    assert_eq!(served.answer_to(KERNEL, ("a", 1), &Request::Dtr), "Done");
}

#[test]
fn a_device_that_is_gone_after_a_restart_is_waited_for() {
    let mut served = Served::new();
    served.files.insert("/dev/loop2".to_owned(), vec![0; 8192]);
    let (log, text) = LOGS[1];
    served.answer_to(KERNEL, log, &Request::Ctr { text: text.as_bytes(), again: false });
    served.answer_to(KERNEL, log, &Request::Resume);
    served.answer_to(KERNEL, log, &Request::SetRegionSync { region: 5, in_sync: true });
    let device = served.files.remove("/dev/loop2").unwrap();
    served.restart();
    let again = Request::Ctr { text: text.as_bytes(), again: true };
    assert_eq!(served.answer_to(KERNEL, log, &Request::InSync(5)), "errno 3");
    assert_eq!(served.answer_to(KERNEL, log, &again), "errno 3");
    served.files.insert("/dev/loop2".to_owned(), device);
    assert_eq!(served.answer_to(KERNEL, log, &again), "Done");
    assert_eq!(served.answer_to(KERNEL, log, &Request::Resume), "Done");
    assert_eq!(served.answer_to(KERNEL, log, &Request::InSync(5)), "Is(true)", "nothing was forgotten");
}
