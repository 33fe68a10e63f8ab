//! What is remembered of a volume's scrubs from one daemon to the next: how far the one under way is, what the last
//! one found, and when one is due. One JSON file per volume beside the registry's, replaced atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ScrubResult;
use crate::paths::Dirs;

/// What is remembered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Of which volume: names are given again.
    pub(crate) uuid: Uuid,
    pub(crate) schedule_days: Option<u32>,
    pub(crate) under_way: Option<UnderWay>,
    pub(crate) last: Option<ScrubResult>,
}

/// A scrub that goes on with the next start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct UnderWay {
    /// First byte of the volume that is not done.
    pub(crate) next: u64,
    pub(crate) paused: bool,
    pub(crate) repair: bool,
    /// UUID of the leg to repair from.
    pub(crate) from: Option<Uuid>,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    pub(crate) result: ScrubResult,
}

impl Memory {
    /// When the next scrub is due, in seconds since 1970. One that was canceled counts: it would begin anew at once.
    pub(crate) fn due(&self) -> Option<u64> {
        let days = self.schedule_days.filter(|_| self.under_way.is_none())?;
        let last = self.last.as_ref().and_then(|last| last.ended_unix_seconds);
        Some(last.map_or(0, |ended| ended + u64::from(days) * 24 * 60 * 60))
    }
}

/// The file of one volume.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    name: String,
    uuid: Uuid,
}

impl Store {
    pub(crate) fn new(dirs: &Dirs, name: &str, uuid: Uuid) -> Store {
        Store { dir: dirs.state().to_owned(), name: name.to_owned(), uuid }
    }

    /// What is remembered; nothing of another volume, nor of what cannot be read.
    pub(crate) fn read(&self) -> Memory {
        let nothing = Memory { uuid: self.uuid, ..Memory::default() };
        let text = match fs::read(self.path()) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %self.path().display(), "what is remembered of scrubs");
                }
                return nothing;
            }
        };
        match serde_json::from_slice::<Memory>(&text) {
            Ok(memory) if memory.uuid == self.uuid => memory,
            Ok(_) => nothing,
            Err(error) => {
                tracing::warn!(%error, path = %self.path().display(), "what is remembered of scrubs");
                nothing
            }
        }
    }

    /// Remembers it, durably.
    ///
    /// # Errors
    /// When the file cannot be written: then it is as it was.
    pub(crate) fn write(&self, memory: &Memory) -> io::Result<()> {
        let temporary = self.dir.join(format!(".{}.scrub-tmp", self.name));
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(memory)?)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        File::open(&self.dir)?.sync_all()
    }

    /// No name of a volume makes this of another file: those of the registry end in `.json`.
    fn path(&self) -> PathBuf {
        self.dir.join(format!("{}.scrub", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_scrubs_are_remembered_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().join("run"), dir.path().to_owned());
        let uuid = Uuid::from_u128(7);
        let store = Store::new(&dirs, "v", uuid);
        assert_eq!(store.read(), Memory { uuid, ..Memory::default() });
        let under_way = UnderWay { next: 4096, repair: true, ..UnderWay::default() };
        let memory = Memory { uuid, under_way: Some(under_way), ..Memory::default() };
        store.write(&memory).unwrap();
        assert_eq!(store.read(), memory);
        assert_eq!(Store::new(&dirs, "v", Uuid::from_u128(8)).read().under_way, None, "another volume");
        fs::write(dir.path().join("v.scrub"), "{").unwrap();
        assert_eq!(store.read().under_way, None, "damaged");
    }

    #[test]
    fn the_next_one_is_due_after_the_last_one_ended() {
        let day = 24 * 60 * 60;
        let last = ScrubResult { ended_unix_seconds: Some(100 * day), ..ScrubResult::default() };
        let ended = Memory { last: Some(last), ..Memory::default() };
        let weekly = Memory { schedule_days: Some(7), ..ended.clone() };
        for (name, memory, due) in [
            ("no schedule", ended, None),
            ("weekly", weekly.clone(), Some(107 * day)),
            ("never scrubbed", Memory { last: None, ..weekly.clone() }, Some(0)),
            ("under way", Memory { under_way: Some(UnderWay::default()), ..weekly }, None),
        ] {
            assert_eq!(memory.due(), due, "{name}");
        }
    }
}
