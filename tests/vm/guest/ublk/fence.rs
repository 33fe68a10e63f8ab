//! What a killed daemon had sent to a leg arrives late. The next one must not work beside it: a late write
//! could undo a newer one.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{MIB, Volume};
use crate::devices::{dm, load, loop_leg, sectors};
use crate::rig::{Rig, sh, until};

const SIZE: u64 = 16 * MIB;
const BLOCK: usize = 4096;
/// Where the test writes.
const AT: u64 = 5 * MIB;
/// How late writes of data are: longer than a start takes.
const LATE: Duration = Duration::from_secs(12);

pub(crate) fn late_writes_come_before_the_next_daemon() {
    load(&["dm-delay"]);
    let rig = Rig::new();
    let legs = ["a", "b"].map(|name| late_leg(&rig, name));
    let volume = Volume::of_legs(rig, &[&legs[0], &legs[1]], SIZE, &[]);
    let rig = &volume.rig;
    // The region is dirty from now on: what comes next goes to the legs at once.
    write(&volume.device, b'x').join().unwrap();
    let written = Instant::now();
    let a = write(&volume.device, b'A');
    // The status of a late target counts the reads, the writes and the flushes that wait in it.
    let waits = |name: &str| sh("dmsetup", &["status", name]).split_ascii_whitespace().nth(4) == Some("1");
    until("A is on its way", || waits("late-a") && waits("late-b"));
    assert_eq!(on_legs(rig), [b'x'; 2], "A is on its way");
    rig.kill();
    println!("killed {:?} after A was sent", written.elapsed());
    let start = rig.run(&["start", "v"]);
    let (took, found) = (written.elapsed(), on_legs(rig));
    println!("started after {took:?}: {}", String::from_utf8_lossy(&start.stderr).trim());
    assert!(start.status.success());
    // What the next daemon sends is as late, so this A is that of the dead one.
    assert_eq!(found.map(char::from), ['A'; 2], "a daemon works beside the writes of the dead one");
    assert!(took >= LATE, "it waits for that");
    a.join().unwrap();
    write(&volume.device, b'B').join().unwrap();
    assert_eq!(on_legs(rig), [b'B'; 2]);
    // Nothing is on its way any more that could undo it.
    thread::sleep(LATE + Duration::from_secs(1));
    assert_eq!(on_legs(rig), [b'B'; 2]);
    volume.stop();
}

/// A leg whose data is written late, and its metadata at its end at once.
fn late_leg(rig: &Rig, name: &str) -> String {
    let disk = loop_leg(rig, name, SIZE + 8 * MIB);
    let (all, data) = (sectors(&disk), SIZE / 512);
    // Reads and flushes are not late: where, offset and milliseconds for each of read, write and flush.
    let late = format!("0 {data} delay {disk} 0 0 {disk} 0 {} {disk} 0 0", LATE.as_millis());
    let rest = format!("{data} {} linear {disk} {data}", all - data);
    dm(rig, &format!("late-{name}"), &format!("{late}\n{rest}"))
}

/// What the disks of the legs hold where the test writes, past whatever is late.
fn on_legs(rig: &Rig) -> [u8; 2] {
    ["a", "b"].map(|name| {
        let mut byte = [0];
        File::open(rig.path(name)).unwrap().read_exact_at(&mut byte, AT).unwrap();
        byte[0]
    })
}

/// Writes a block of this letter past the page cache.
fn write(device: &str, letter: u8) -> JoinHandle<()> {
    let flags = OFlags::DIRECT.bits() as i32;
    let device = File::options().write(true).custom_flags(flags).open(device).unwrap();
    thread::spawn(move || {
        let memory = vec![letter; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        device.write_all_at(&memory[start..][..BLOCK], AT).unwrap();
    })
}
