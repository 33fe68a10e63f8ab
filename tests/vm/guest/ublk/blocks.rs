//! Legs that are block devices, with blocks of 512 and of 4096 bytes: the largest decides.

use std::fs;

use super::{MIB, Volume, block_device, pause};
use crate::devices::{is_block, load, write_and_verify};
use crate::rig::{Rig, sh, try_sh, until};

const SIZE: u64 = 48 * MIB;

pub(crate) fn the_largest_block_wins() {
    let rig = Rig::new();
    let [small, small2] = ["s", "s2"].map(|name| loop_leg(&rig, name, 512));
    let [large, large2] = ["l", "l2"].map(|name| loop_leg(&rig, name, 4096));
    serve(&[&small, &small2], 512);
    serve(&[&small, &large], 4096);
    serve(&[&large, &large2], 4096);
    serve(&[&small, "file"], 4096);
    let disks = scsi_disks(4096);
    serve(&[&disks[0], &disks[1]], 4096);
    serve(&[&disks[0], &small], 4096);
    sh("rmmod", &["scsi_debug"]);
    let disks = scsi_disks(512);
    serve(&[&disks[0], &disks[1]], 512);
}

/// A volume of these legs has blocks of so many bytes and works.
fn serve(legs: &[&str; 2], block: u32) {
    println!("{legs:?}");
    // What a volume before left there may go.
    let volume = Volume::of_legs(Rig::new(), legs, SIZE, &["--force"]);
    let size = block.to_string();
    assert_eq!(block_device::queue(&volume, "logical_block_size"), size);
    assert_eq!(sh("blockdev", &["--getss", &volume.device]).trim(), size);
    write_and_verify(&volume.device, 8 * MIB);
    let half = ["if=/dev/zero", "bs=512", "count=1", "oflag=direct", "conv=notrunc"];
    let half = try_sh("dd", &[&half[..], &[&format!("of={}", volume.device)]].concat());
    assert_eq!(half.status.success(), block == 512, "a write of 512 bytes");
    sh("blkdiscard", &["-o", "1048576", "-l", "2097152", &volume.device]);
    sh("blkdiscard", &["-z", "-o", "4096", "-l", "1048576", &volume.device]);
    volume.replace_daemon();
    write_and_verify(&volume.device, 4 * MIB);
    volume.stop();
}

fn loop_leg(rig: &Rig, name: &str, block: u32) -> String {
    fs::File::create(rig.path(name)).unwrap().set_len(SIZE + 8 * MIB).unwrap();
    let path = rig.path(name);
    let how = ["--find", "--show", "--direct-io=on", "--sector-size", &block.to_string()];
    let device = sh("losetup", &[&how[..], &[path.to_str().unwrap()]].concat()).trim().to_owned();
    rig.at_end(&["losetup", "-d", &device]);
    device
}

/// Two disks of the kernel's own invention.
fn scsi_disks(block: u32) -> Vec<String> {
    load(&["sd_mod"]);
    sh(
        "modprobe",
        &[
            "scsi_debug",
            &format!("sector_size={block}"),
            "dev_size_mb=56",
            "num_tgts=1",
            "lbpws=1",
            "per_host_store=1",
            "add_host=2",
        ],
    );
    let disks = || {
        let all = fs::read_dir("/sys/block").unwrap().flatten();
        let names = all.map(|entry| entry.file_name().into_string().unwrap());
        let mut disks: Vec<_> =
            names.filter(|name| name.starts_with("sd")).map(|name| format!("/dev/{name}")).collect();
        disks.sort();
        disks
    };
    until("there are disks", || disks().len() >= 2 && disks().iter().all(|disk| is_block(disk)));
    pause(500);
    println!("{:?}", disks());
    disks()
}
