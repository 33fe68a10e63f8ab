//! The machine is killed again and again in the middle of writing; what was flushed is there each time, and the
//! legs become equal.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::blocks::{BLOCK, Blocks};
use super::{KIB, MIB, create, device, resynced, same};
use crate::cases::{boot, kill_me_in};
use crate::devices::load;
use crate::rig::{Rig, sh};

const KILLS: u64 = 10;
const SIZE: u64 = 24 * MIB;
const BLOCKS: Blocks = Blocks { count: SIZE / BLOCK as u64 };
const REGION: u64 = 256 * KIB;
/// Nobody writes so many steps before the machine is killed.
const MOST_STEPS: u64 = 50_000;

/// Legs that are disks in one boot, files on disks in the next.
pub(crate) fn flushed_data_survives_the_machine() {
    load(&["ublk_drv"]);
    let boot = u64::from(boot());
    let both = [0, 1].map(|kind| Served { kind, first: boot == kind });
    let (now, other) = if boot % 2 == 0 { (&both[0], &both[1]) } else { (&both[1], &both[0]) };
    let (rig, volume) = now.survived();
    if boot == KILLS {
        rig.ok(&["stop", "v"]);
        drop(rig);
        let (rig, _) = other.survived();
        rig.ok(&["stop", "v"]);
        return;
    }
    let flushed = now.flushed();
    kill_me_in(700 + boot as u32 * 137 % 900);
    for step in flushed + 1..flushed + MOST_STEPS {
        BLOCKS.write(&volume, step);
        now.set_flushed(step);
    }
    panic!("nobody killed this machine");
}

/// One of two volumes; how far its writer got is on a disk of its own.
struct Served {
    kind: u64,
    first: bool,
}

impl Served {
    fn record(&self) -> File {
        File::options().read(true).write(true).open("/dev/vde").unwrap()
    }

    fn flushed(&self) -> u64 {
        let mut word = [0; 8];
        self.record().read_exact_at(&mut word, self.kind * BLOCK as u64).unwrap();
        u64::from_le_bytes(word)
    }

    fn set_flushed(&self, step: u64) {
        let record = self.record();
        record.write_all_at(&step.to_le_bytes(), self.kind * BLOCK as u64).unwrap();
        record.sync_data().unwrap();
    }

    fn legs(&self) -> [&'static str; 2] {
        if self.kind == 0 {
            return ["/dev/vda", "/dev/vdb"];
        }
        for (disk, mnt) in [("/dev/vdc", "/mnt/c"), ("/dev/vdd", "/mnt/d")] {
            if self.first {
                sh("mkfs.ext4", &["-q", disk]);
            }
            std::fs::create_dir_all(mnt).unwrap();
            sh("mount", &[disk, mnt]);
        }
        ["/mnt/c/leg", "/mnt/d/leg"]
    }

    /// Serves the volume; all that was flushed before the machine was killed is there.
    fn survived(&self) -> (Rig, String) {
        let rig = Rig::new();
        let [a, b] = self.legs();
        if self.first {
            let volume = create(&rig, [a, b], SIZE, REGION);
            return (rig, volume);
        }
        rig.ok(&["start", a, b, "--front", "ublk"]);
        let (volume, flushed) = (device(&rig), self.flushed());
        assert!(flushed > 0, "the machine was killed before anything was flushed");
        let found = BLOCKS.check(&volume, flushed);
        let (dirty, copied) = resynced(&rig, SIZE / REGION);
        println!("boot {}: {flushed} steps flushed, {dirty} regions dirty, {copied} copied", boot());
        assert!(BLOCKS.check(&volume, flushed) == found, "what was read once changed");
        same(a, b, SIZE);
        (rig, volume)
    }
}
