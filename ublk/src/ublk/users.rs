//! Whether somebody uses a block device: mounted, claimed by another driver, or open in a process.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use crate::front::{TRIES, TRY_AGAIN};

/// Whether anybody else has the device open, and not just for a moment.
pub(super) fn users_stay(device: &Path) -> bool {
    for _ in 1..TRIES {
        if !users_of(device) {
            return false;
        }
        thread::sleep(TRY_AGAIN);
    }
    users_of(device)
}

/// Whether anybody else has the device open. What holds it in the kernel (a file system, device-mapper, swap)
/// claims it; a process that merely opened it, and a loop device over it, are looked for by name.
fn users_of(device: &Path) -> bool {
    is_claimed(device) || is_open_in_a_process(device) || is_under_a_loop_device(device)
}

fn is_claimed(device: &Path) -> bool {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device);
    opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
}

fn is_open_in_a_process(device: &Path) -> bool {
    let Ok(rdev) = fs::metadata(device).map(|metadata| metadata.rdev()) else { return false };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|process| process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit)).any(
        |process| {
            let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
            // What is open elsewhere than on a device of this kind is told from its name, without a look at it.
            open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with("/dev")))
                .any(|fd| fs::metadata(fd.path()).is_ok_and(|metadata| metadata.rdev() == rdev))
        },
    )
}

fn is_under_a_loop_device(device: &Path) -> bool {
    let loops = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    loops
        .filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok())
        .any(|backing| Path::new(backing.trim_end_matches('\n')) == device)
}
