//! Volumes that were made or started here, so that a name is enough to start one again.
//!
//! One JSON file per volume in the state directory, replaced atomically. It is a memory, not an
//! authority: what a leg is stands on the leg. An entry whose legs hold another volume by now, or
//! none, is out of date and may be replaced.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mirrord_log::{Superblock, measure, read_leg};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine::{LogFallback, SparePolicy};
use crate::leg::open_to_read;
use crate::paths::Dirs;
use crate::tls::TlsFiles;

/// Which front end to serve a volume with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Front {
    /// ublk where the kernel has it, else FUSE.
    #[default]
    Auto,
    /// A block device.
    Ublk,
    /// A file.
    Fuse,
}

/// How a volume is served: what can differ from one start to the next.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ServeChoice {
    /// Front end.
    pub front: Front,
    /// Where it is mounted; `None` is in the runtime directory.
    pub mount: Option<PathBuf>,
    /// Queues; `None` is as many as fit the machine.
    pub queues: Option<u16>,
    /// Requests in flight per queue; `None` is the default.
    pub depth: Option<u32>,
    /// Leg IO by threads although io_uring may be there.
    pub threads_engine: bool,
    /// Other users may reach the file.
    pub allow_other: bool,
    /// Seconds after which a leg that hangs is given up, 0 for never; `None` is what fits the front end.
    pub leg_timeout: Option<u32>,
    /// Program that is run for each event.
    pub event_hook: Option<PathBuf>,
    /// Where metrics are answered, as the command line has it.
    pub metrics: Option<String>,
    /// What happens when a leg fails and there is a spare.
    #[serde(default)]
    pub spares: SparePolicy,
    /// Certificates for a log server, absolute.
    #[serde(default)]
    pub log_tls: Option<TlsFiles>,
    /// What happens while it is away.
    #[serde(default)]
    pub log_fallback: LogFallback,
}

/// A volume that is known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Where its legs were, by index; empty where there is none.
    pub legs: Vec<PathBuf>,
    /// How it was last served.
    pub serve: ServeChoice,
    /// Where its log is, as the command line has it; `None` if it was remembered before that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Legs that were split off, by index: when each file was last written to then, in ns since 1970.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub split: BTreeMap<usize, u64>,
}

impl Known {
    /// Where its legs are to be found.
    pub fn leg_paths(&self) -> Vec<PathBuf> {
        self.legs.iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect()
    }

    /// Which of its legs still are legs of this volume.
    pub fn legs_here(&self) -> Vec<&Path> {
        let here = |path: &&Path| volume_on(path) == Some(self.uuid);
        self.legs.iter().map(PathBuf::as_path).filter(here).collect()
    }
}

/// Why the registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Reading or writing failed.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// Read, write, ...
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what mirrord wrote.
    #[error("{} is damaged: remove it; the volume can be started by naming its legs", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// The known volumes.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
}

impl Registry {
    /// The one in the state directory.
    pub fn new(dirs: &Dirs) -> Registry {
        Registry { dir: dirs.state().to_owned() }
    }

    /// The volume called `name`, if it is known.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn find(&self, name: &str) -> Result<Option<Known>, RegistryError> {
        let path = self.path(name);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RegistryError::Io { verb: "read", path, source }),
        };
        serde_json::from_str(&text).map(Some).map_err(|source| RegistryError::Damaged { path, source })
    }

    /// Every known volume in order of name; damaged entries are left out.
    pub fn all(&self) -> Vec<Known> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok);
        let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned());
        let mut all: Vec<Known> =
            entries.filter_map(name).filter_map(|name| self.find(&name).ok().flatten()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Remembers a volume, durably; one of the same name is replaced.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn remember(&self, known: &Known) -> Result<(), RegistryError> {
        let path = self.path(&known.name);
        let write = || -> io::Result<()> {
            let temporary = self.dir.join(format!(".{}.tmp", known.name));
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(known)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| RegistryError::Io { verb: "write", path: path.clone(), source })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }
}

/// The UUID of the volume whose leg `path` is, if it is a leg. Takes no lock.
pub fn volume_on(path: &Path) -> Option<Uuid> {
    superblock_on(path).map(|superblock| superblock.volume)
}

/// What the leg `path` says of its volume, if it is a leg. Takes no lock.
pub fn superblock_on(path: &Path) -> Option<Superblock> {
    let file = open_to_read(path).ok()?;
    let (backing, len) = measure(&file).ok()?;
    read_leg(&file, backing, len).ok().map(|metadata| metadata.superblock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(&Dirs::new(dir.path().join("run"), dir.path().to_owned()));
        assert_eq!(registry.find("a").unwrap(), None);
        let mut known = Known {
            name: "a".to_owned(),
            uuid: Uuid::from_u128(7),
            size_bytes: 1 << 20,
            legs: vec!["/x/a.img".into(), "/x/b.img".into()],
            serve: ServeChoice { front: Front::Fuse, depth: Some(64), ..ServeChoice::default() },
            log: Some("disk:/x/log".to_owned()),
            split: BTreeMap::from([(1, 1_700_000_000_123_456_789)]),
        };
        registry.remember(&known).unwrap();
        known.legs.pop();
        registry.remember(&known).unwrap();
        assert_eq!(registry.find("a").unwrap(), Some(known.clone()));
        fs::write(dir.path().join("b.json"), "{").unwrap();
        assert!(matches!(registry.find("b"), Err(RegistryError::Damaged { .. })));
        assert_eq!(registry.all(), [known.clone()]);
        assert!(known.legs_here().is_empty());
    }
}
