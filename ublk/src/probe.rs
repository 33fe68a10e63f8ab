//! What io_uring can do here, found by trying, for whoever explains it.

use std::io;

use io_uring::{IoUring, cqueue, squeue};

/// io_uring as this process may use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UringAbilities {
    /// New enough for leg IO.
    pub leg_io: bool,
    /// Has the wide entries that ublk's commands need.
    pub wide_entries: bool,
}

/// Sets up small rings, and takes them down again.
///
/// # Errors
/// What `io_uring_setup` says: `ENOSYS` where there is none, `EPERM` where it is forbidden.
pub fn probe_io_uring() -> io::Result<UringAbilities> {
    let ring = IoUring::new(8)?;
    let params = ring.params();
    let leg_io = params.is_feature_ext_arg() && params.is_feature_nodrop();
    let wide_entries = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(8).is_ok();
    Ok(UringAbilities { leg_io, wide_entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BufferPool, EngineKind, PoolConfig, Ring, RingConfig, plain_spawn};
    use mirrord_raid::LegMap;

    #[test]
    fn the_probe_says_what_a_ring_does() {
        let config = RingConfig {
            name: "probe".to_owned(),
            depth: 4,
            tags: 4,
            pool: BufferPool::new(PoolConfig::default()).unwrap(),
            spawn: plain_spawn(),
            wake: None,
            force: None,
            leg_timeout: None,
            fence: None,
        };
        let works = probe_io_uring().is_ok_and(|found| found.leg_io);
        assert_eq!(
            Ring::new(config, LegMap::from_fn(0, |_| None)).unwrap().kind() == EngineKind::IoUring,
            works
        );
    }
}
