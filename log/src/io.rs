//! The log worker's IO: pages to every leg at once, then made durable.
//!
//! Goes through io_uring, so that all legs work at the same time, and falls back to blocking calls,
//! one leg after the other, where io_uring is not permitted (many containers). Files must not be
//! opened with O_DIRECT: the buffers are plain vectors. A failed fdatasync is never tried again: the
//! kernel may have dropped the pages, so a second one that succeeds would mean nothing.
//!
//! A [`MetaIo`] stays on the thread that made it, which must not run another async runtime.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use crate::page::PageWrite;

/// Where the writes of a flush go.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// A leg or a log file.
    pub file: &'a File,
    /// Added to the offset of every write, in bytes: where the log area starts.
    pub base: u64,
}

/// Writes metadata and makes it durable.
pub struct MetaIo {
    ring: Option<tokio_uring::Runtime>,
}

impl std::fmt::Debug for MetaIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaIo").field("kind", &self.kind()).finish()
    }
}

impl Default for MetaIo {
    fn default() -> MetaIo {
        MetaIo::new()
    }
}

impl MetaIo {
    /// Through io_uring if this process may use it, else blocking.
    pub fn new() -> MetaIo {
        MetaIo { ring: tokio_uring::Runtime::new(&tokio_uring::builder()).ok() }
    }

    /// Blocking, whatever this process may use.
    pub fn blocking() -> MetaIo {
        MetaIo { ring: None }
    }

    /// `"io_uring"` or `"blocking"`.
    pub fn kind(&self) -> &'static str {
        if self.ring.is_some() { "io_uring" } else { "blocking" }
    }

    /// Makes all of `writes` durable on every target: writes, then fdatasync where all of them went
    /// well. The result of a target is its first error. `writes` may be empty.
    ///
    /// # Panics
    /// If two writes overlap.
    pub fn write_and_sync(&mut self, targets: &[Target<'_>], writes: &[PageWrite]) -> Vec<io::Result<()>> {
        let runs = merged(writes);
        match &self.ring {
            Some(ring) => ring.block_on(ring_write_and_sync(targets, runs)),
            None => targets.iter().map(|target| blocking_write_and_sync(target, &runs)).collect(),
        }
    }

    /// Makes everything written to each file durable, all at once.
    pub fn sync(&mut self, files: &[&File]) -> Vec<io::Result<()>> {
        let targets: Vec<_> = files.iter().map(|file| Target { file, base: 0 }).collect();
        self.write_and_sync(&targets, &[])
    }
}

/// The writes in order of offset, adjacent ones as one.
fn merged(writes: &[PageWrite]) -> Vec<PageWrite> {
    let mut sorted: Vec<&PageWrite> = writes.iter().filter(|write| !write.bytes.is_empty()).collect();
    sorted.sort_by_key(|write| write.offset);
    let mut runs: Vec<PageWrite> = Vec::new();
    for write in sorted {
        if let Some(run) = runs.last_mut() {
            let end = run.offset + run.bytes.len() as u64;
            assert!(end <= write.offset, "metadata writes overlap");
            if end == write.offset {
                run.bytes.extend_from_slice(&write.bytes);
                continue;
            }
        }
        runs.push(write.clone());
    }
    runs
}

fn blocking_write_and_sync(target: &Target<'_>, runs: &[PageWrite]) -> io::Result<()> {
    for run in runs {
        target.file.write_all_at(&run.bytes, target.base + run.offset)?;
    }
    target.file.sync_data()
}

async fn ring_write_and_sync(targets: &[Target<'_>], runs: Vec<PageWrite>) -> Vec<io::Result<()>> {
    let runs = Rc::new(runs);
    let legs: Vec<_> = targets
        .iter()
        .map(|target| {
            let file = target.file.try_clone().map(tokio_uring::fs::File::from_std);
            tokio_uring::spawn(ring_leg(file, target.base, Rc::clone(&runs)))
        })
        .collect();
    let mut results = Vec::with_capacity(legs.len());
    for leg in legs {
        results.push(leg.await.unwrap_or_else(|error| Err(io::Error::other(error))));
    }
    results
}

async fn ring_leg(
    file: io::Result<tokio_uring::fs::File>,
    base: u64,
    runs: Rc<Vec<PageWrite>>,
) -> io::Result<()> {
    let file = Rc::new(file?);
    let writes: Vec<_> = (0..runs.len())
        .map(|index| tokio_uring::spawn(ring_run(Rc::clone(&file), base, Rc::clone(&runs), index)))
        .collect();
    let mut result = Ok(());
    for write in writes {
        let written = write.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        result = result.and(written);
    }
    result?;
    file.sync_data().await
}

async fn ring_run(
    file: Rc<tokio_uring::fs::File>,
    base: u64,
    runs: Rc<Vec<PageWrite>>,
    index: usize,
) -> io::Result<()> {
    let run = &runs[index];
    let mut bytes = run.bytes.clone();
    loop {
        let (result, back) = file.write_all_at(bytes, base + run.offset).await;
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => bytes = back,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, fill: u8, len: usize) -> PageWrite {
        PageWrite { offset, bytes: vec![fill; len] }
    }

    /// The io_uring one only where it is permitted; says so otherwise.
    fn each_kind() -> Vec<MetaIo> {
        let ring = MetaIo::new();
        if ring.kind() == "blocking" {
            eprintln!("skipped for io_uring: not permitted here");
        }
        vec![ring, MetaIo::blocking()]
    }

    #[test]
    fn adjacent_writes_become_one() {
        let runs =
            merged(&[write(8192, 3, 4096), write(0, 1, 4096), write(4096, 2, 4096), write(20480, 4, 512)]);
        assert_eq!(
            runs.iter().map(|r| (r.offset, r.bytes.len())).collect::<Vec<_>>(),
            [(0, 12288), (20480, 512)]
        );
        assert_eq!((runs[0].bytes[0], runs[0].bytes[4096], runs[0].bytes[8192]), (1, 2, 3));
        assert!(merged(&[]).is_empty());
    }

    #[test]
    fn every_target_gets_every_write() {
        for mut io in each_kind() {
            let files: Vec<File> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
            let targets: Vec<_> =
                files.iter().zip([0, 512, 1 << 20]).map(|(file, base)| Target { file, base }).collect();
            // More than the ring has entries.
            let writes: Vec<_> = (0..150).map(|i| write(i * 8192, i as u8 + 1, 4096)).collect();
            for round in 0..3 {
                let results = io.write_and_sync(&targets, &writes[round..]);
                assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
            }
            for target in &targets {
                for write in &writes {
                    let mut there = vec![0; 4096];
                    target.file.read_exact_at(&mut there, target.base + write.offset).unwrap();
                    assert!(there == write.bytes);
                }
            }
            assert!(io.sync(&[&files[0], &files[1]]).iter().all(|result| result.is_ok()));
            assert!(io.sync(&[]).is_empty());
        }
    }

    #[test]
    fn a_target_that_fails_does_not_stop_the_others() {
        for mut io in each_kind() {
            let good = tempfile::NamedTempFile::new().unwrap();
            let read_only = File::open(good.path()).unwrap();
            let targets = [Target { file: &read_only, base: 0 }, Target { file: good.as_file(), base: 0 }];
            let results = io.write_and_sync(&targets, &[write(0, 7, 4096), write(8192, 7, 10)]);
            assert_eq!(results[0].as_ref().unwrap_err().raw_os_error(), Some(9));
            assert!(results[1].is_ok());
            assert_eq!(good.as_file().metadata().unwrap().len(), 8202);
        }
    }

    #[test]
    fn no_space_is_told_apart() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            eprintln!("skipped: no /dev/full");
            return;
        };
        for mut io in each_kind() {
            let results = io.write_and_sync(&[Target { file: &full, base: 0 }], &[write(0, 7, 4096)]);
            assert_eq!(results[0].as_ref().unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
