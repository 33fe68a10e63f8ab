//! Lost writes on a real kernel, and locks that outlive a replacement.

use std::io::Write;
use std::path::{Path, PathBuf};

use mirrord_raid::LegOp;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::super::tests::{BLOCK, ENGINES, WRITE, bed, freezing_bed, io, run};
use super::*;

/// A loop device that loses what is written to it: its file lies on a file system that is full.
struct Lossy {
    mount: TempDir,
    device: PathBuf,
}

impl Lossy {
    fn new() -> Option<Lossy> {
        let mount = tempfile::tempdir().unwrap();
        let at = mount.path().to_str().unwrap();
        let file = mount.path().join("file");
        let made = run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", at]);
        let made = made && File::create(&file).and_then(|file| file.set_len(16 << 20)).is_ok();
        let path = |name: &str| name.starts_with("/dev/").then(|| PathBuf::from(name));
        let found = std::process::Command::new("/usr/sbin/losetup")
            .args(["-f", "--show", file.to_str().unwrap()])
            .output()
            .ok()
            .filter(|output| made && output.status.success());
        let device = found.and_then(|output| path(String::from_utf8_lossy(&output.stdout).trim()));
        if device.is_none() {
            println!("SKIP: rings and a lost write: needs root, tmpfs and loop devices");
            run("umount", &[at]);
        }
        Some(Lossy { device: device?, mount })
    }

    /// Through the page cache, like metadata, and without a sync.
    fn write(&self) {
        let mut file = File::options().write(true).open(&self.device).unwrap();
        file.write_all(&vec![1; 1 << 20]).unwrap();
        // Closed, it would be written at once.
        std::mem::forget(file);
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        run("losetup", &["-d", self.device.to_str().unwrap()]);
        run("umount", &["-l", self.mount.path().to_str().unwrap()]);
    }
}

#[test]
fn each_ring_is_told_of_a_lost_write() {
    for kind in ENGINES {
        let Some(lossy) = Lossy::new() else { return };
        let leg_file = Arc::new(LegFile::open(&lossy.device, true).unwrap());
        let Some(mut one) = bed(kind, &[None]) else { continue };
        let Some(mut other) = bed(kind, &[None]) else { continue };
        for bed in [&mut one, &mut other] {
            bed.ring.replace_leg(Leg::new(0), Some(Arc::clone(&leg_file))).unwrap();
            assert_eq!(bed.one(0, LegOp::Flush, 0, 0), Ok(()), "{kind:?}");
        }
        lossy.write();
        for bed in [&mut one, &mut other] {
            assert_eq!(bed.one(0, LegOp::Flush, 0, 0), Err(mirrord_raid::Errno::EIO), "{kind:?}");
            assert_eq!(bed.one(0, LegOp::Flush, 0, 0), Ok(()), "{kind:?}: told once");
        }
    }
}

fn is_locked(path: &Path) -> bool {
    flock(File::open(path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_err()
}

#[test]
fn a_leg_that_was_replaced_stays_locked_until_its_last_io_has_ended() {
    for kind in ENGINES {
        let Some((mut bed, mut freezer)) = freezing_bed(kind) else { continue };
        bed.ring.patience = None;
        let leg = Leg::new(1);
        let path = bed.ring.legs[leg].own.as_ref().unwrap().leg_file().path().to_owned();
        flock(bed.ring.legs[leg].own.as_ref().unwrap().leg_file().file(), FlockOperation::LockExclusive)
            .unwrap();
        bed.ring.attach(0, bed.pool.take(BLOCK as usize));
        freezer.freeze(true);
        bed.ring.submit(&io(1, 0, 1, WRITE, 0, BLOCK));
        bed.ring.poll(&mut Vec::new()).unwrap();
        bed.ring.replace_leg(leg, None).unwrap();
        assert!(is_locked(&path), "{kind:?}: a write is under way");
        freezer.freeze(false);
        assert_eq!(bed.finish()[0].result, Ok(()), "{kind:?}");
        assert!(bed.ring.leaving.is_empty(), "{kind:?}");
        // The io_uring, and a thread that was in the call, let go of it a moment later.
        let began = std::time::Instant::now();
        while is_locked(&path) {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "{kind:?}: locked for ever");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[test]
fn io_goes_through_a_file_of_the_rings_own() {
    for kind in ENGINES {
        let Some(bed) = bed(kind, &[Some(BLOCK)]) else { continue };
        let own = bed.ring.legs[Leg::new(0)].own.as_ref().unwrap();
        assert!(own.raw_fd() != own.leg_file().raw_fd() && own.locked().is_some(), "{kind:?}");
    }
}
