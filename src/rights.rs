//! What this process may do that not every process may.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// The only line of `/proc/self/uid_map` outside of any user namespace.
const EVERY_USER: [&str; 3] = ["0", "0", "4294967295"];

/// Capabilities, and where they count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    effective: CapabilitySet,
    /// Outside of any user namespace, so that capabilities count for the whole machine.
    everywhere: bool,
}

impl Rights {
    /// Of this process.
    pub fn here() -> Rights {
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        Rights { effective, everywhere: map.split_whitespace().eq(EVERY_USER) }
    }

    /// These, for a test or an explanation.
    pub fn new(effective: CapabilitySet, everywhere: bool) -> Rights {
        Rights { effective, everywhere }
    }

    /// Whether it has `capability` in its own user namespace: enough to mount what a user may mount.
    pub fn has_here(self, capability: CapabilitySet) -> bool {
        self.effective.contains(capability)
    }

    /// Whether it has `capability` for the whole machine.
    pub fn has(self, capability: CapabilitySet) -> bool {
        self.everywhere && self.has_here(capability)
    }

    /// Whether all memory of this process may be locked, now and later. Under a limit it must not be:
    /// locking what is there may succeed, and then every later mapping beyond the limit fails.
    pub fn may_lock_memory(self) -> bool {
        lockable_memory().is_none() || self.has(CapabilitySet::IPC_LOCK)
    }
}

/// Limit of locked memory in bytes, `None` for no limit.
pub fn lockable_memory() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_in_a_container_are_not_rights_on_the_machine() {
        let rights = Rights::new(CapabilitySet::SYS_ADMIN, false);
        assert!(rights.has_here(CapabilitySet::SYS_ADMIN) && !rights.has(CapabilitySet::SYS_ADMIN));
        let rights = Rights::new(CapabilitySet::SYS_ADMIN, true);
        assert!(rights.has(CapabilitySet::SYS_ADMIN) && !rights.has(CapabilitySet::IPC_LOCK));
    }
}
