//! How a leg's file was left: its inode, length and time of the last write, kept with the file itself in an extended
//! attribute.
//!
//! Written when a leg is let go of, after everything on it is durable; taken away before the next write to it. So a
//! stamp that is there says what the file was like while nobody served it. It counts only for the same inode (a copy
//! is another file) and the same superblock (a daemon that knows nothing of stamps may have served it since), and
//! where there is none, nothing is known. Setting an attribute does not change the time of the last write. Devices
//! have no such time.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};

/// The extended attribute.
const NAME: &str = "user.mirrord.left";

/// More than any stamp has, in bytes.
const MOST: usize = 160;

/// What a file was like when it was left.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stamp {
    ino: u64,
    len: u64,
    /// Last write: seconds since 1970, and nanoseconds.
    written: (i64, i64),
    /// Event count of the leg's superblock.
    event_count: u64,
}

impl Stamp {
    fn of(file: &File, event_count: u64) -> io::Result<Option<Stamp>> {
        let metadata = file.metadata()?;
        let written = (metadata.mtime(), metadata.mtime_nsec());
        let stamp = Stamp { ino: metadata.ino(), len: metadata.len(), written, event_count };
        Ok(metadata.is_file().then_some(stamp))
    }

    fn text(&self) -> String {
        let Stamp { ino, len, written, event_count } = self;
        format!("1 {ino} {len} {} {} {event_count}", written.0, written.1)
    }

    fn parse(text: &str) -> Option<Stamp> {
        let mut words = text.strip_prefix("1 ")?.split(' ');
        let stamp = Stamp {
            ino: words.next()?.parse().ok()?,
            len: words.next()?.parse().ok()?,
            written: (words.next()?.parse().ok()?, words.next()?.parse().ok()?),
            event_count: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(stamp)
    }
}

/// Notes on a leg's file how it is left. All that was written is made durable first, and with it the time of the last
/// write: else a power cut could leave an earlier one. One that is there stays: since then the leg was out of use.
/// Nothing happens where there are no such attributes.
///
/// # Errors
/// When the file cannot be flushed.
pub(crate) fn leave(file: &File, event_count: u64) -> io::Result<()> {
    file.sync_all()?;
    if let Some(stamp) = Stamp::of(file, event_count)? {
        let _ = fsetxattr(file, NAME, stamp.text().as_bytes(), XattrFlags::CREATE);
    }
    Ok(())
}

/// Whether somebody wrote to a leg's file since it was left, as far as can be told. `event_count`: of its superblock.
pub(crate) fn was_written_to(file: &File, event_count: u64) -> bool {
    let mut text = [0; MOST];
    let Ok(len) = fgetxattr(file, NAME, &mut text[..]) else { return false };
    let stamp = text.get(..len).and_then(|text| Stamp::parse(std::str::from_utf8(text).ok()?));
    let (Some(stamp), Ok(Some(now))) = (stamp, Stamp::of(file, event_count)) else { return false };
    // One that is longer and has the time that it had was made so by a growth that a crash cut short.
    let is_as_left = stamp.written == now.written && stamp.len <= now.len;
    stamp.ino == now.ino && stamp.event_count == event_count && !is_as_left
}

/// From now on it is written to.
pub(crate) fn take_away(file: &File) {
    let _ = fremovexattr(file, NAME);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_write_is_told_from_a_copy_and_from_another_superblock() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("leg");
        std::fs::write(&path, [1; 8192]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert!(!was_written_to(&file, 7), "nothing is known");
        leave(&file, 7).unwrap();
        if fgetxattr(&file, NAME, &mut [0; MOST][..]).is_err() {
            println!("SKIP: stamps of legs: no extended attributes here");
            return;
        }
        assert!(!was_written_to(&file, 7));
        let modified = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(&[2], 100).unwrap();
        // Whatever the clock's grain.
        file.set_modified(modified + std::time::Duration::from_nanos(1)).unwrap();
        assert!(was_written_to(&file, 7));
        assert!(!was_written_to(&file, 8), "somebody served it since");
        file.set_modified(modified).unwrap();
        assert!(!was_written_to(&file, 7));
        file.set_len(8191).unwrap();
        file.set_modified(modified).unwrap();
        assert!(was_written_to(&file, 7), "its length");
        let stamp = Stamp::of(&file, 7).unwrap().unwrap();
        fsetxattr(&file, NAME, Stamp { ino: 1, ..stamp }.text().as_bytes(), XattrFlags::empty()).unwrap();
        assert!(!was_written_to(&file, 7), "a copy");
        for nonsense in ["", "1", "2 1 1 1 1 1", "1 1 1 1 1 1 1", "1 x 1 1 1 1"] {
            fsetxattr(&file, NAME, nonsense.as_bytes(), XattrFlags::empty()).unwrap();
            assert!(!was_written_to(&file, 7), "{nonsense}");
        }
        take_away(&file);
        assert!(!was_written_to(&file, 7));
    }
}
