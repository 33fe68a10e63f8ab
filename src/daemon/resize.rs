//! A volume that is to have another size.

use crate::control::{Failure, Response};
use crate::engine::Volume;
use crate::failure::describe;
use crate::paths::Dirs;
use crate::registry::Registry;

pub(super) fn resize(volume: &Volume, dirs: &Dirs, size: u64) -> Response {
    let result = volume.resize(size);
    let status = volume.status();
    let registry = Registry::new(dirs);
    if let Ok(Some(mut known)) = registry.find(&status.name)
        && known.uuid == status.uuid
        && known.size_bytes != status.size_bytes
    {
        known.size_bytes = status.size_bytes;
        if let Err(error) = registry.remember(&known) {
            tracing::warn!("the size that lists show is out of date: {}", describe(&error));
        }
    }
    match result {
        Ok(()) => Response::done(),
        Err(error) => Response::Failed { reason: Failure::Error, message: describe(&error) },
    }
}
