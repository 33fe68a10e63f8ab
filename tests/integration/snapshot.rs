//! What "nothing was touched" means: every file in a rig but those of running daemons, by name, inode,
//! length, time of change and content.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::rig::Rig;

/// All files of a rig.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Snapshot(BTreeMap<PathBuf, (u64, u64, i64, i64, u64)>);

impl Snapshot {
    pub(crate) fn of(rig: &Rig) -> Snapshot {
        let mut files = BTreeMap::new();
        add(&rig.path(""), &mut files);
        // Sockets, locks and log files: not the user's. Images of mounted file systems: those write in their time.
        let is_image = |path: &Path| path.extension().is_some_and(|extension| extension == "img");
        files.retain(|path, _| !path.starts_with(rig.path("run")) && !is_image(path));
        Snapshot(files)
    }
}

fn add(dir: &Path, files: &mut BTreeMap<PathBuf, (u64, u64, i64, i64, u64)>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        // A volume that is served changes by itself, and so does a file system that is mounted.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let mut hash = DefaultHasher::new();
        if metadata.is_file() && metadata.len() < 64 << 20 {
            fs::read(&path).unwrap_or_default().hash(&mut hash);
        }
        let (mtime, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let len = if metadata.is_dir() { 0 } else { metadata.len() };
        files.insert(path.clone(), (metadata.ino(), len, mtime, nanoseconds, hash.finish()));
        if metadata.is_dir() {
            add(&path, files);
        }
    }
}

/// Runs the binary and expects that it refuses: with this exit code, an error of one line that has all
/// of `words`, nothing on standard output, and nothing touched. Gives the error.
pub(crate) fn refused(rig: &Rig, args: &[&str], code: i32, words: &[&str]) -> String {
    let before = Snapshot::of(rig);
    let output = rig.run(args);
    let error = error_of(args, &output, code, words);
    assert_eq!(Snapshot::of(rig), before, "mirrord {args:?} touched something");
    error
}

/// The error of a run that failed as it should.
pub(crate) fn error_of(args: &[&str], output: &Output, code: i32, words: &[&str]) -> String {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "mirrord {args:?}: {error}");
    for word in words {
        assert!(error.contains(word), "mirrord {args:?}: no {word:?} in: {error}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "mirrord {args:?}: more than a line: {error}");
    assert!(error.starts_with("mirrord: "), "mirrord {args:?}: {error}");
    assert!(!error.contains("os error"), "mirrord {args:?}: {error}");
    assert!(output.stdout.is_empty(), "mirrord {args:?} failed and printed");
    error
}
