//! Tables that follow one another: legs that move as `pvmove` moves them, mirrors that grow and shrink.

use std::process::{Command, Stdio};

use super::{
    Bed, REGIONS, SIZE, dirty, dm_create, in_sync, remove, sectors_written, status, until_in_sync, write,
};
use crate::devices::dm;
use crate::rig::sh;

/// A device is used while what is below it becomes a mirror, and then the other leg of that.
pub(crate) fn legs_move_under_load() {
    let bed = Bed::new();
    bed.serve();
    let mut places = [bed.a.clone(), bed.b.clone()];
    let linear = |below: &str| format!("linear {below} 0");
    let volume = dm(&bed.rig, "v", &format!("0 {} {}", SIZE / 512, linear(&places[0])));
    let said = std::fs::File::create(bed.rig.path("fio")).unwrap();
    let mut fio = Command::new("/bin/fio")
        .args(["--name=v", &format!("--filename={volume}"), &format!("--size={SIZE}")])
        .args(["--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=4", "--thread"])
        .args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--verify_backlog=64"])
        .args(["--time_based", "--runtime=40"])
        .stdout(said.try_clone().unwrap())
        .stderr(Stdio::from(said))
        .spawn()
        .unwrap();
    for round in 0..4 {
        let [from, to] = &places;
        let flush = if round % 2 == 0 { "" } else { "integrated_flush " };
        let table = bed.table(&format!("pvmove-{} {flush}clustered-core 1024", round / 2));
        let table = table.split_once(" 2 /").unwrap().0.to_owned();
        let mirror = dm_create("pvmove0", &format!("{table} 2 {from} 0 {to} 0 1 handle_errors"));
        bed.become_of("v", &linear(&mirror));
        if round == 1 {
            bed.kill();
            bed.serve();
        }
        until_in_sync("pvmove0");
        bed.become_of("v", &linear(to));
        remove("pvmove0");
        places.reverse();
    }
    assert!(fio.try_wait().unwrap().is_none(), "nobody wrote meanwhile");
    let status = fio.wait().unwrap();
    assert!(status.success(), "{}", std::fs::read_to_string(bed.rig.path("fio")).unwrap());
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
}

/// More regions: only those are copied. Fewer, and all of them again: what was cut off is not trusted.
pub(crate) fn a_mirror_grows_and_shrinks() {
    const LESS: u64 = 40;
    let bed = Bed::new();
    bed.differ();
    bed.serve();
    let region = SIZE / REGIONS;
    let log = format!("grows clustered-disk {} 1024", bed.log);
    let (all, less) = (bed.table(&log), bed.table(&log));
    let less = less.replacen(&format!("0 {} ", SIZE / 512), &format!("0 {} ", LESS * region / 512), 1);
    dm_create("m", &less);
    let until_all = |regions: u64| {
        crate::rig::until("all regions are in sync", || {
            status("m").starts_with(&format!("{regions}/{regions} "))
        });
    };
    until_all(LESS);
    let swap = |table: &str| {
        let before = sectors_written(&bed.b);
        sh("dmsetup", &["load", "m", "--table", table]);
        sh("dmsetup", &["suspend", "m"]);
        sh("dmsetup", &["resume", "m"]);
        before
    };
    let before = swap(&all);
    assert!(in_sync("m") >= LESS, "{}", status("m"));
    until_in_sync("m");
    assert_eq!((sectors_written(&bed.b) - before) * 512 / region, REGIONS - LESS, "regions copied");
    bed.assert_same();
    write("/dev/mapper/m", 63 * 128, 1, 63);
    let before = swap(&less);
    until_all(LESS);
    assert_eq!(sectors_written(&bed.b), before, "nothing is copied to a smaller one");
    swap(&all);
    until_in_sync("m");
    remove("m");
    bed.assert_same();
    assert!(dirty(&bed.rig, &bed.log).is_empty());
}
