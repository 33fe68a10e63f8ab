//! `mirrord-ublk` moves the bytes: the ring that does leg IO and the front ends that serve a volume.
//!
//! All `unsafe` code of the project is here: the memory of [`Buffer`], the calls that hand a pointer to the
//! kernel in [`Ring`] and [`ublk`], and what a daemon asks for itself in [`process`]. The crate decides nothing
//! about mirroring: a front end turns what a client asks into [`Request`]s for an [`Engine`], and a [`Ring`]
//! carries out the [`LegIo`](mirrord_raid::LegIo)s that the engine's state machine puts out. It starts no
//! thread itself but through the [`Spawn`] it is given.
//!
//! The copy of a write is made once, by the front end, into one [`Buffer`]; every leg is written
//! from it.

#![deny(unsafe_op_in_unsafe_fn)]

mod buffer;
mod done;
mod foreign;
mod front;
mod fuse;
mod leg_file;
mod probe;
pub mod process;
mod ring;
pub mod ublk;
mod wake;

pub use buffer::{Buffer, BufferPool, PoolConfig};
pub use done::{Done, Group};
pub use foreign::{ForeignError, NodeKind, check_kind, open_foreign};
pub use front::{Engine, FrontEnd, FrontError, FrontKind, Op, Patch, Pulled, Request, Shutdown, Source};
pub use fuse::{FuseError, FuseFront, FuseOptions, clear_dead_mount};
pub use leg_file::LegFile;
pub use probe::{UringAbilities, probe_io_uring};
pub use ring::{EngineKind, LegDone, Ring, RingConfig, Wakeup};
pub use wake::Wake;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// What a [`Spawn`] runs.
pub type Task = Box<dyn FnOnce() + Send>;

/// Starts a thread of this name (at most 15 bytes show up in `ps`). The caller owns the policy:
/// stack size, scheduling, `PR_SET_IO_FLUSHER`.
pub type Spawn = Arc<dyn Fn(String, Task) -> io::Result<JoinHandle<()>> + Send + Sync>;

/// A [`Spawn`] that is `std::thread` and nothing more.
pub fn plain_spawn() -> Spawn {
    Arc::new(|name, task| std::thread::Builder::new().name(name).spawn(task))
}
