//! Legs stay equal whatever clients do at the same time: change what is being written, write to one place.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{KIB, MIB, Volume, begin};
use crate::devices::{load, loop_leg};
use crate::rig::{Rig, sh};

const SIZE: u64 = 48 * MIB;
const LONG: Duration = Duration::from_secs(15);
const BUFFER: u64 = 256 * KIB;

/// What is written lies in a file that another process writes to all the while. The kernel's own mirror has
/// legs that differ then, for ever; how much, is printed.
pub(crate) fn a_buffer_changes_in_flight() {
    let volume = Volume::create(SIZE, &[]);
    write_what_changes(&volume.rig, &volume.device, LONG);
    volume.stop();
    println!("legs of mirrord differ in 0 bytes");

    load(&["raid1"]);
    let rig = Rig::new();
    let legs = [loop_leg(&rig, "a", SIZE), loop_leg(&rig, "b", SIZE)];
    let how = ["--create", "/dev/md0", "--level=1", "--raid-devices=2", "--metadata=1.0", "--run"];
    sh("mdadm", &[&how[..], &["--assume-clean", "--bitmap=none"], &[&legs[0], &legs[1]]].concat());
    write_what_changes(&rig, "/dev/md0", LONG / 3);
    sh("mdadm", &["--stop", "/dev/md0"]);
    let [a, b] = ["a", "b"].map(|leg| fs::read(rig.path(leg)).unwrap());
    // Its metadata is at the end, and is different on each.
    let data = ..(SIZE - MIB) as usize;
    let differ = a[data].iter().zip(&b[data]).filter(|(a, b)| a != b).count();
    println!("legs of md raid1 differ in {differ} bytes");
}

fn write_what_changes(rig: &Rig, device: &str, time: Duration) {
    let memory = rig.path("memory");
    File::create(&memory).unwrap().set_len(4 * MIB).unwrap();
    let runtime = format!("--runtime={}", time.as_secs());
    let mut fio = begin(
        "fio",
        &[
            "--name=v",
            "--eta=never",
            "--rw=randwrite",
            "--bs=64k",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=4",
            "--size=32m",
            "--time_based",
            "--norandommap",
            "--scramble_buffers=0",
            &runtime,
            &format!("--filename={device}"),
            &format!("--iomem=mmapshared:{}", memory.display()),
        ],
    );
    let file = File::options().write(true).open(&memory).unwrap();
    let ending = AtomicBool::new(false);
    thread::scope(|scope| {
        let scribble = || {
            let mut writes = 0_u64;
            while !ending.load(Ordering::Relaxed) {
                file.write_all_at(&[writes as u8; BUFFER as usize], writes % 2 * BUFFER).unwrap();
                writes += 1;
            }
            println!("{device}: the buffers were rewritten {writes} times");
        };
        scope.spawn(scribble);
        let done = fio.wait();
        ending.store(true, Ordering::Relaxed);
        assert!(done.unwrap().success());
    });
}

/// Two clients, each on a processor and so on a queue of its own, write to the same blocks.
pub(crate) fn writes_overlap_across_queues() {
    let volume = Volume::create(SIZE, &["--queues", "2"]);
    let runtime = format!("--runtime={}", LONG.as_secs());
    let client = |cpu: u32| {
        begin(
            "fio",
            &[
                "--name=v",
                "--eta=never",
                "--rw=randwrite",
                "--bsrange=4k-64k",
                "--direct=1",
                "--ioengine=libaio",
                "--iodepth=32",
                "--size=1m",
                "--time_based",
                "--norandommap",
                "--refill_buffers",
                &runtime,
                &format!("--filename={}", volume.device),
                &format!("--cpus_allowed={cpu}"),
                &format!("--randseed={}", cpu + 1),
                "--output=/dev/null",
            ],
        )
    };
    for mut fio in [client(0), client(1)] {
        assert!(fio.wait().unwrap().success());
    }
    let status = volume.rig.status();
    assert_eq!(status["queues"], 2);
    println!("{} writes to 1 MiB", status["io"]["writes"]);
    volume.stop();
}
