//! Told by the kernel when another program opens a leg's file, renames it or removes it (inotify).
//!
//! mirrord's own reads and writes are none of that, so they cost nothing and wake nobody. A program that makes a file
//! shorter opens it, but for `truncate(2)`, which goes unnoticed here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use mirrord_ublk::LegFile;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Tells of files that are watched.
#[derive(Debug)]
pub(super) struct Strangers(OwnedFd);

/// The number of a watch.
pub(super) type Watched = i32;

impl Strangers {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// As `inotify_init1(2)`: a user has 128 of these, as a rule.
    pub(super) fn new() -> io::Result<Strangers> {
        Ok(Strangers(inotify::init(CreateFlags::CLOEXEC)?))
    }

    /// Watches this file, wherever its name leads by now. `None`: the system does not do it.
    pub(super) fn watch(&self, file: &LegFile) -> Option<Watched> {
        let flags = WatchFlags::OPEN
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::MOVE_SELF
            | WatchFlags::DELETE_SELF;
        let this = format!("/proc/self/fd/{}", file.file().as_raw_fd());
        inotify::add_watch(&self.0, this, flags).ok()
    }

    /// Watches it no more; who waits is told.
    pub(super) fn forget(&self, watched: Watched) {
        let _ = inotify::remove_watch(&self.0, watched);
    }

    /// Waits until something was done to a watched file, or one is watched no more.
    ///
    /// # Errors
    /// As `read(2)`.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.0, &mut buffer);
        loop {
            match events.next() {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if events.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn others_are_told_of_and_own_writes_are_not() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("leg");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let leg = LegFile::open(&path, false).unwrap();
        let writer = File::options().write(true).open(&path).unwrap();
        let strangers = Arc::new(Strangers::new().unwrap());
        let watched = strangers.watch(&leg).unwrap();
        let (tell, told) = channel();
        let waits = Arc::clone(&strangers);
        let waiter = std::thread::spawn(move || while waits.wait().is_ok() && tell.send(()).is_ok() {});
        for at in 0..100 {
            writer.write_all_at(&[1; 512], at * 512).unwrap();
            leg.file().set_len((1 << 20) + at).unwrap();
        }
        assert!(told.try_recv().is_err(), "own writes");
        type Act = Box<dyn Fn()>;
        let (cut, from, to) = (path.clone(), path.clone(), dir.path().join("other"));
        let gone = to.clone();
        let acts: [Act; 3] = [
            Box::new(move || drop(File::create(&cut).unwrap())),
            Box::new(move || std::fs::rename(&from, &to).unwrap()),
            Box::new(move || std::fs::remove_file(&gone).unwrap()),
        ];
        for act in acts {
            act();
            told.recv().unwrap();
            while told.try_recv().is_ok() {}
        }
        drop(told);
        strangers.forget(watched);
        waiter.join().unwrap();
    }
}
