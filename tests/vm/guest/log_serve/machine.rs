//! The machine itself dies with regions dirty: exactly those are resynced after the next boot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use super::{REGIONS, SIZE, dirty, dm_create, remove, sectors_written, until_in_sync};
use crate::cases::{boot, kill_me_in};
use crate::devices::load;
use crate::rig::{Rig, sh, until};

const KILLS: u32 = 3;

pub(crate) fn only_what_is_dirty_is_resynced() {
    load(&["dm-mirror", "dm-log-userspace"]);
    let rig = Rig::new();
    let mut server = rig.command(&["log", "serve", "--netlink"]).spawn().unwrap();
    until("the server answers", || rig.run(&["log", "status"]).status.success());
    let found = if boot() == 0 { vec![] } else { dirty(&rig, "/dev/vdc") };
    println!("boot {}: {found:?} are dirty", boot());
    // A crash came in the middle of writes; only at some moments does none want its region dirty.
    let all_found = add_to_count(found.len() as u8);
    assert!(boot() < KILLS || all_found > 0, "no crash left anything dirty");
    let different = different_regions();
    assert!(different.iter().all(|region| found.contains(region)), "{different:?} are different");
    let mode = if boot() == 0 { " nosync" } else { "" };
    let words = if boot() == 0 { 5 } else { 4 };
    let (before, sectors) = (sectors_written("/dev/vdb"), SIZE / 512);
    let table = format!(
        "0 {sectors} mirror userspace {words} machine disk /dev/vdc 1024{mode} 2 /dev/vda 0 /dev/vdb 0 1 \
         handle_errors"
    );
    dm_create("m", &table);
    until_in_sync("m");
    let copied = (sectors_written("/dev/vdb") - before) / (sectors / REGIONS);
    assert_eq!(copied, found.len() as u64, "regions that were copied");
    sh("cmp", &["-n", &SIZE.to_string(), "/dev/vda", "/dev/vdb"]);
    if boot() < KILLS {
        let load = ["--name=w", "--filename=/dev/mapper/m", "--rw=randwrite", "--bs=4k", "--direct=1"];
        let how =
            ["--ioengine=libaio", "--iodepth=4", "--thread", "--numjobs=4", "--time_based", "--runtime=100"];
        let quiet = sectors_written("/dev/vdb");
        let mut fio = Command::new("/bin/fio").args(load).args(how).arg("--size=32m").spawn().unwrap();
        // On a busy host it may take its time to begin.
        until("it writes", || sectors_written("/dev/vdb") > quiet);
        kill_me_in(2000);
        panic!("it was to be killed, and fio ended: {:?}", fio.wait());
    }
    remove("m");
    assert!(dirty(&rig, "/dev/vdc").is_empty());
    rig.ok(&["log", "stop"]);
    assert!(server.wait().unwrap().success());
}

/// Those in which the legs are not the same.
fn different_regions() -> Vec<u64> {
    let legs = ["/dev/vda", "/dev/vdb"].map(|leg| File::open(leg).unwrap());
    let region = |leg: &File, number: u64| {
        let mut bytes = vec![0; (SIZE / REGIONS) as usize];
        leg.read_exact_at(&mut bytes, number * SIZE / REGIONS).unwrap();
        bytes
    };
    (0..REGIONS).filter(|&at| region(&legs[0], at) != region(&legs[1], at)).collect()
}

/// Adds to a number that is kept behind what is mirrored, from boot to boot.
fn add_to_count(more: u8) -> u8 {
    let disk = File::options().read(true).write(true).open("/dev/vda").unwrap();
    let mut count = [0];
    disk.read_exact_at(&mut count, SIZE).unwrap();
    count[0] += more;
    disk.write_all_at(&count, SIZE).unwrap();
    disk.sync_all().unwrap();
    count[0]
}
