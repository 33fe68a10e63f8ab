//! What the checks look at: this machine, or in tests one that is made up.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use mirrord_ublk::{UringAbilities, probe_io_uring};
use rustix::thread::{CapabilitySet, capability_is_in_bounding_set, no_new_privs};

use super::driver;
use crate::engine::default_queues;
use crate::paths::Dirs;
use crate::rights::{Rights, lockable_memory};

/// A machine and this process' place on it.
#[derive(Debug)]
pub struct Machine {
    /// `/`, or a made up tree.
    pub(super) root: PathBuf,
    /// As `uname -r` says.
    pub(super) release: String,
    /// Effective.
    pub(super) uid: u32,
    pub(super) rights: Rights,
    /// Whether a setuid program may come to have `CAP_SYS_ADMIN`.
    pub(super) helper_may_mount: bool,
    /// Setuid programs have no effect.
    pub(super) no_new_privileges: bool,
    /// A filter of system calls is in force.
    pub(super) filtered: bool,
    /// What `io_uring_setup` does, or the errno.
    pub(super) io_uring: Result<UringAbilities, i32>,
    /// Limit in bytes.
    pub(super) lockable: Option<u64>,
    /// Queues of a volume if nothing is said.
    pub(super) queues: usize,
    /// Where programs are looked for.
    pub(super) path: Vec<PathBuf>,
    /// What the ublk driver says it can do, or why it cannot be asked.
    pub(super) ublk_features: Result<Option<u64>, String>,
    pub(super) home: Option<PathBuf>,
    pub(super) dirs: Dirs,
}

impl Machine {
    /// This one.
    pub fn here(dirs: &Dirs) -> Machine {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        Machine {
            root: PathBuf::from("/"),
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            uid: rustix::process::geteuid().as_raw(),
            rights: Rights::here(),
            helper_may_mount: capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN).unwrap_or(true),
            no_new_privileges: no_new_privs().unwrap_or(false),
            filtered: status
                .lines()
                .any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0")),
            io_uring: probe_io_uring().map_err(|error| error.raw_os_error().unwrap_or(0)),
            lockable: lockable_memory(),
            queues: default_queues().into(),
            path: std::env::split_paths(&path).collect(),
            ublk_features: driver::features(),
            home: std::env::var_os("HOME").map(PathBuf::from),
            dirs: dirs.clone(),
        }
    }

    /// An absolute path, in the tree.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file, empty where there is none.
    pub(super) fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    pub(super) fn there(&self, path: impl AsRef<Path>) -> bool {
        self.at(path).exists()
    }

    /// The first of `folders` that has `name`.
    pub(super) fn find(&self, folders: &[&str], name: &str) -> Option<PathBuf> {
        folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| self.there(path))
    }

    /// What becomes of opening a device for reading and writing.
    pub(super) fn open(&self, path: &str) -> Opened {
        let at = self.at(path);
        match File::options().read(true).write(true).open(&at) {
            Ok(_) => Opened::Yes,
            Err(error) => match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::NotFound, _) => Opened::NotThere,
                // EACCES is the node's mode; EPERM a rule for devices, as containers have.
                (_, Some(EACCES)) => Opened::Denied(fs::metadata(&at).ok()),
                (_, Some(EPERM)) => Opened::Forbidden,
                (_, Some(ENODEV | ENXIO)) => Opened::NoDriver,
                _ => Opened::Failed(error),
            },
        }
    }
}

pub(super) const EPERM: i32 = 1;
pub(super) const ENXIO: i32 = 6;
pub(super) const ENOMEM: i32 = 12;
pub(super) const EACCES: i32 = 13;
pub(super) const ENODEV: i32 = 19;
pub(super) const ENOSYS: i32 = 38;

/// See [`Machine::open`].
#[derive(Debug)]
pub(super) enum Opened {
    Yes,
    NotThere,
    /// By owner and mode.
    Denied(Option<Metadata>),
    /// By the rules of a container.
    Forbidden,
    /// The node is there, what it stands for is not.
    NoDriver,
    Failed(io::Error),
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine whose tree is an empty folder, with all rights.
    pub(in crate::doctor) fn bare() -> (tempfile::TempDir, Machine) {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine {
            root: dir.path().to_owned(),
            release: "6.12.1-amd64".to_owned(),
            uid: 0,
            rights: Rights::new(CapabilitySet::all(), true),
            helper_may_mount: true,
            no_new_privileges: false,
            filtered: false,
            io_uring: Ok(UringAbilities { leg_io: true, wide_entries: true }),
            lockable: Some(8 << 20),
            queues: 2,
            path: vec![PathBuf::from("/usr/bin")],
            ublk_features: Err("no driver".to_owned()),
            home: None,
            dirs: Dirs::new(dir.path().join("run/mirrord"), dir.path().join("state")),
        };
        (dir, machine)
    }

    /// The same without any.
    pub(in crate::doctor) fn plain_user() -> (tempfile::TempDir, Machine) {
        let (dir, machine) = bare();
        let rights = Rights::new(CapabilitySet::empty(), true);
        (dir, Machine { uid: 1000, rights, ..machine })
    }

    impl Machine {
        /// Puts a file into the tree.
        pub(in crate::doctor) fn put(&self, path: &str, text: &str) {
            let path = self.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}
