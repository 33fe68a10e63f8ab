//! Stops when the legs take nothing any more: each ends, and the next start is as after a crash.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rig::{Rig, sh, until};

const MIB: u64 = 1 << 20;

/// Makes the devices refuse writes from now on, or take them again.
fn refuse_writes(devices: &[String], refuse: bool) {
    let how = if refuse { "--setro" } else { "--setrw" };
    devices.iter().for_each(|device| drop(sh("blockdev", &[how, device])));
}

fn write(volume: &Path, mib: u64, byte: u8) -> std::io::Result<()> {
    let file = File::options().write(true).open(volume)?;
    file.write_all_at(&[byte; MIB as usize], mib * MIB)?;
    file.sync_all()
}

#[test]
fn a_stop_ends_when_every_leg_has_become_read_only() {
    for by_signal in [false, true] {
        let rig = Rig::new();
        let mut devices = Vec::new();
        for name in ["a.disk", "b.disk"] {
            let file = rig.path(name);
            File::create(&file).unwrap().set_len(80 * MIB).unwrap();
            let Some(device) = rig.loop_device(&file) else { return };
            devices.push(device);
        }
        let volume = rig.create_of([&devices[0], &devices[1]], "64MiB", &[]);
        write(&volume, 3, 1).unwrap();
        refuse_writes(&devices, true);
        assert!(write(&volume, 40, 2).is_err(), "no leg took it");
        let daemon = rig.daemon();
        if by_signal {
            daemon.terminate();
        } else {
            rig.ok(&["stop", "v", "--force"]);
        }
        daemon.wait_ended();

        refuse_writes(&devices, false);
        rig.ok(&["start", "v"]);
        rig.wait();
        let mut byte = [0];
        File::open(rig.volume()).unwrap().read_exact_at(&mut byte, 3 * MIB).unwrap();
        assert_eq!(byte, [1]);
        until("the log is empty", || rig.status()["log"]["dirty_regions"] == 0);
        rig.ok(&["stop", "v"]);
        sh("cmp", &["-n", &(64 * MIB).to_string(), &devices[0], &devices[1]]);
    }
}
