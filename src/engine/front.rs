//! Which front end a volume gets: chosen, and for ublk its device added, before the engine starts, for the
//! engine has the queues that the device has.

use std::sync::Arc;
use std::time::Duration;

use mirrord_ublk::ublk::{self, UblkDevice, UblkError, UblkOptions};
use mirrord_ublk::{BufferPool, Engine, FrontEnd, FuseFront, FuseOptions, Task, plain_spawn, process};
use uuid::Uuid;

use super::{FrontChoice, ServeError, ServeOptions};
use crate::failure::describe;

/// Largest request through FUSE or without a front end, in bytes: what the kernel sends at most.
const MAX_IO: u32 = 1 << 20;

/// The same through ublk, where every tag has a buffer of this size.
const UBLK_MAX_IO: u32 = 512 << 10;

/// Requests in flight per queue if it is not said: enough for every client of a FUSE mount.
const DEPTH: u32 = 64;

/// The same for ublk: as many as file systems send at a time.
const UBLK_DEPTH: u32 = 128;

/// Most queues when none are asked for: more than this and they only wait for each other's legs.
const MOST_QUEUES: u16 = 4;

/// The longest time-out of legs with the ublk device of a user without privilege, whose daemon the kernel kills
/// when a request is 30 s old; and the time-out if none is said.
const LEG_TIMEOUT_AT_MOST: Duration = Duration::from_secs(20);
const LEG_TIMEOUT: Duration = Duration::from_secs(15);

/// What a front end has to know of the volume. Sizes in bytes.
pub(super) struct Serving {
    pub(super) name: String,
    pub(super) volume: Uuid,
    pub(super) size: u64,
    pub(super) region_size: u64,
    pub(super) block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) read_only: bool,
}

/// A front end that is ready to be started.
pub(super) struct Prepared {
    device: Option<UblkDevice>,
    /// Why it is not the better one.
    pub(super) note: Option<String>,
    pub(super) queues: u16,
    pub(super) depth: u32,
    pub(super) max_io: u32,
}

impl Prepared {
    /// Gives the calling thread, and those it starts from now on, mounts of their own: a daemon that ended as
    /// the last user of a mount on its own device would wait for itself. Not for FUSE, whose mount others see.
    pub(super) fn leave_mounts(&self) {
        let Some(device) = &self.device else { return };
        if let Err(error) = process::own_mount_namespace() {
            return tracing::info!(%error, "sharing mounts with the users of the device");
        }
        for device in device.devices() {
            if let Err(error) = process::leave_mounts_of(device) {
                tracing::warn!(%error, "cannot leave a mount on the device");
            }
        }
    }

    /// How long a leg may take, and what there is to say about it. `asked`: zero means for ever.
    pub(super) fn leg_timeout(&self, asked: Option<Duration>) -> (Option<Duration>, Option<String>) {
        if self.device.as_ref().is_none_or(UblkDevice::is_privileged) {
            return (asked.filter(|asked| !asked.is_zero()), None);
        }
        match asked {
            None => (Some(LEG_TIMEOUT), None),
            Some(asked) if asked.is_zero() || asked > LEG_TIMEOUT_AT_MOST => {
                let text = format!(
                    "a leg that hangs is given up after {} s: the kernel kills the daemon of a device without \
                     privilege that does not answer for 30 s",
                    LEG_TIMEOUT_AT_MOST.as_secs()
                );
                (Some(LEG_TIMEOUT_AT_MOST), Some(text))
            }
            asked => (asked, None),
        }
    }

    pub(super) fn name(&self, options: &ServeOptions) -> &'static str {
        match (&self.device, options.front) {
            (Some(_), _) => "ublk",
            (None, FrontChoice::None) => "none",
            (None, _) => "fuse",
        }
    }
}

/// Chooses the front end. A device that an earlier daemon left behind has users who wait for it: it is taken
/// over, or nothing is served.
pub(super) fn prepare(serving: &Serving, options: &ServeOptions) -> Result<Prepared, ServeError> {
    let queues = options.queues.unwrap_or_else(default_queues).max(1);
    let depth = options.depth.unwrap_or(DEPTH);
    let without = |note| Prepared { device: None, note, queues, depth, max_io: MAX_IO };
    let waits = || ublk::waiting(serving.volume.into_bytes(), &plain_spawn()).ok().flatten();
    match options.front {
        FrontChoice::None => Ok(without(None)),
        FrontChoice::Fuse => match waits() {
            Some(path) => Err(ServeError::DeviceWaits { path }),
            None => Ok(without(None)),
        },
        FrontChoice::Auto if options.threads_engine => Ok(without(None)),
        FrontChoice::Auto | FrontChoice::Ublk => match add(serving, options, queues) {
            Ok(device) => Ok(Prepared {
                note: None,
                queues: device.queues(),
                depth: device.depth().into(),
                max_io: device.max_io(),
                device: Some(device),
            }),
            Err(error @ (UblkError::Served { .. } | UblkError::DoesNotFit { .. })) => Err(error.into()),
            Err(error) if options.front == FrontChoice::Ublk => Err(error.into()),
            Err(error) => {
                let note = describe(&error);
                tracing::info!("serving through FUSE: {note}");
                Ok(without(Some(note)))
            }
        },
    }
}

fn add(serving: &Serving, options: &ServeOptions, queues: u16) -> Result<UblkDevice, UblkError> {
    UblkDevice::prepare(UblkOptions {
        volume: serving.volume.into_bytes(),
        size: serving.size,
        block_size: serving.block_size,
        physical_block_size: serving.physical_block_size,
        region_size: serving.region_size,
        read_only: serving.read_only,
        max_io: UBLK_MAX_IO,
        queues,
        depth: options.depth.unwrap_or(UBLK_DEPTH) as u16,
        spawn: plain_spawn(),
    })
}

/// Starts the front end. `on_gone` is called if somebody else takes it away.
pub(super) fn start(
    prepared: Prepared,
    serving: &Serving,
    options: &ServeOptions,
    engine: Arc<dyn Engine>,
    pool: &Arc<BufferPool>,
    on_gone: Task,
) -> Result<Option<Box<dyn FrontEnd>>, ServeError> {
    if let Some(device) = prepared.device {
        return Ok(Some(Box::new(device.serve(engine, pool, Some(on_gone))?)));
    }
    if options.front == FrontChoice::None {
        return Ok(None);
    }
    let fuse = FuseOptions {
        mount: options.mount.clone(),
        name: serving.name.clone(),
        size: serving.size,
        block_size: serving.block_size,
        max_io: MAX_IO,
        allow_other: options.allow_other,
        read_only: serving.read_only,
        spawn: plain_spawn(),
        on_unmounted: Some(on_gone),
    };
    Ok(Some(Box::new(FuseFront::mount(fuse, engine, Arc::clone(pool))?)))
}

/// One for two processors: clients need theirs, and a queue that never sleeps beats two that wake each
/// other's processor for every request.
pub(crate) fn default_queues() -> u16 {
    std::thread::available_parallelism()
        .map_or(1, |count| (count.get() / 2).clamp(1, MOST_QUEUES.into()) as u16)
}
