//! Keeps the system from making a daemon wait for memory that only the daemon itself can free.
//!
//! A volume is written to when memory is short, so its daemon must get on without any more: its IO does not
//! set off writing back of others' (`PR_SET_IO_FLUSHER`), its pages stay where they are (`mlockall`, each
//! as it is first used), and it is not the one that is killed (OOM score). Each needs a right that not every
//! daemon has; one that has it not serves all the same, and says so once. Called on the main thread
//! before others are started, which inherit the first of the three.

use std::fs;
use std::io;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::configure_io_flusher_behavior;

use crate::rights::Rights;
use crate::status::Hardening;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Never killed for want of memory.
const NEVER: &str = "-1000";

/// Protects this process as far as it may; logs what it may not.
pub(crate) fn harden() -> Hardening {
    let flusher = configure_io_flusher_behavior(true).map_err(io::Error::from);
    let locked = lock_memory();
    let protected = protect();
    let mut missing = Vec::new();
    for (what, needs, result) in [
        ("its IO may wait for others' under memory pressure", "CAP_SYS_RESOURCE", &flusher),
        ("its memory may be swapped out", "CAP_IPC_LOCK or LimitMEMLOCK=infinity", &locked),
        ("it may be killed when memory runs out", "CAP_SYS_RESOURCE or OOMScoreAdjust=-1000", &protected),
    ] {
        if let Err(error) = result {
            tracing::debug!(%error, what);
            missing.push(format!("{what} (needs {needs})"));
        }
    }
    if !missing.is_empty() {
        tracing::warn!("not protected fully: {}", missing.join("; "));
    }
    Hardening { io_flusher: flusher.is_ok(), memory_locked: locked.is_ok(), oom_protected: protected.is_ok() }
}

fn lock_memory() -> io::Result<()> {
    if !Rights::here().may_lock_memory() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

fn protect() -> io::Result<()> {
    // A supervisor may have done it, with rights that this process has not.
    if fs::read_to_string(OOM_SCORE)?.trim() == NEVER {
        return Ok(());
    }
    fs::write(OOM_SCORE, NEVER)
}
