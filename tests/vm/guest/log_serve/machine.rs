//! The machine itself dies with regions dirty: exactly those are resynced after the next boot.

use super::{REGIONS, SIZE, dirty, sectors_written, status};
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
    // The last crash came in the middle of writes.
    assert!(boot() == 0 || !found.is_empty());
    let mode = if boot() == 0 { " nosync" } else { "" };
    let words = if boot() == 0 { 5 } else { 4 };
    let (before, sectors) = (sectors_written("/dev/vdb"), SIZE / 512);
    let table = format!(
        "0 {sectors} mirror userspace {words} machine disk /dev/vdc 1024{mode} 2 /dev/vda 0 /dev/vdb 0 1 \
         handle_errors"
    );
    super::dm_create("m", &table);
    until("all is in sync", || status("m").starts_with(&format!("{REGIONS}/{REGIONS} ")));
    let copied = (sectors_written("/dev/vdb") - before) / (sectors / REGIONS);
    assert_eq!(copied, found.len() as u64, "regions that were copied");
    sh("cmp", &["-n", &SIZE.to_string(), "/dev/vda", "/dev/vdb"]);
    if boot() < KILLS {
        let load = ["--name=w", "--filename=/dev/mapper/m", "--rw=randwrite", "--bs=4k", "--direct=1"];
        let how = ["--ioengine=libaio", "--iodepth=16", "--thread", "--time_based", "--runtime=100"];
        kill_me_in(3000);
        sh("/bin/fio", &[&load[..], &how, &["--size=32m"]].concat());
        panic!("it was to be killed");
    }
    sh("dmsetup", &["remove", "--retry", "m"]);
    assert!(dirty(&rig, "/dev/vdc").is_empty());
    rig.ok(&["log", "stop"]);
    assert!(server.wait().unwrap().success());
}
