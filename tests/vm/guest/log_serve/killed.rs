//! A server that dies, comes back, and stands still, under mirrors that are written to.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::{Bed, SIZE, remove, status, until_in_sync};
use crate::rig::sh;

/// fio that writes and reads back what it wrote, for a while.
fn load_on(bed: &Bed, device: &str) -> Child {
    let mut fio = std::process::Command::new("/bin/fio");
    fio.args(["--name=v", &format!("--filename={device}"), &format!("--size={}", SIZE / 2)]);
    fio.args(["--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--thread"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", "--loops=4"]);
    let said = std::fs::File::create(bed.rig.path("fio")).unwrap();
    fio.stdout(said.try_clone().unwrap()).stderr(Stdio::from(said)).spawn().unwrap()
}

fn end(bed: &Bed, mut fio: Child) {
    let status = fio.wait().unwrap();
    let said = std::fs::read_to_string(bed.rig.path("fio")).unwrap();
    assert!(status.success(), "{said}");
}

/// The log of each kind of mirror.
fn logs(bed: &Bed) -> [String; 4] {
    let disk = &bed.log;
    [
        "core-k clustered-core 1024".to_owned(),
        "core-k integrated_flush core 1024".to_owned(),
        format!("disk-k clustered-disk {disk} 1024 sync"),
        format!("disk-k integrated_flush disk {disk} 1024 sync"),
    ]
}

fn pause(milliseconds: u64) {
    // Real time has to pass: what is tested is what happens meanwhile.
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// As [`nothing_is_lost`], with the log that has most to lose.
pub(crate) fn nothing_is_lost_shortly() {
    let bed = Bed::new();
    let [.., log] = logs(&bed);
    kill_under_load(&bed, &[log]);
}

/// Killed at any moment, back at once or after a while: writers wait and go on, and nothing is lost.
pub(crate) fn nothing_is_lost() {
    let bed = Bed::new();
    let logs = logs(&bed);
    kill_under_load(&bed, &logs);
}

fn kill_under_load(bed: &Bed, logs: &[String]) {
    for log in logs {
        println!("{log}");
        bed.serve();
        bed.differ();
        let mirror = bed.create("m", log);
        // While it is resynced ..
        for round in 0..2 {
            bed.kill();
            pause(round * 700);
            bed.serve();
        }
        until_in_sync("m");
        bed.assert_same();
        // .. and while it is written to.
        let fio = load_on(bed, &mirror);
        for round in 0..6 {
            pause(300 + 137 * round);
            bed.kill();
            pause(if round % 2 == 0 { 0 } else { 500 });
            bed.serve();
        }
        end(bed, fio);
        until_in_sync("m");
        assert!(status("m").starts_with("64/64 1 AA "), "{}", status("m"));
        remove("m");
        bed.assert_same();
        bed.rig.ok(&["log", "stop"]);
        bed.kill();
    }
}

/// A minute without a server, stopped or dead.
pub(crate) fn a_minute_without() {
    let bed = Bed::new();
    bed.serve();
    let mirror = bed.create("m", &format!("disk-k clustered-disk {} 1024 nosync", bed.log));
    let fio = load_on(&bed, &mirror);
    bed.signal("-STOP");
    pause(60_000);
    bed.signal("-CONT");
    end(&bed, fio);
    let fio = load_on(&bed, &mirror);
    bed.kill();
    pause(60_000);
    bed.serve();
    let since = Instant::now();
    end(&bed, fio);
    println!("done {} s after it was back", since.elapsed().as_secs());
    until_in_sync("m");
    remove("m");
    bed.assert_same();
    println!("{}", sh("dmesg", &[]).lines().filter(|line| line.contains("userspace")).count());
}
