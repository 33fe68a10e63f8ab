//! What `/proc` tells of a process: processor time, sleeps, memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// A count that every thread of a process has, at one moment. Threads come and go (io_uring has workers
/// that end when they are idle): what counts is by how much those grew that are there at the end.
#[derive(Clone, Debug)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Nanoseconds on a processor.
    pub(crate) fn cpu_time(id: u32) -> Counts {
        Counts::of(id, "schedstat", |text| text.split_whitespace().next()?.parse().ok())
    }

    /// How often it went to sleep by itself: each is a wake-up later.
    pub(crate) fn sleeps(id: u32) -> Counts {
        Counts::of(id, "status", |text| field(text, "voluntary_ctxt_switches:"))
    }

    fn of(id: u32, file: &str, count: impl Fn(&str) -> Option<u64>) -> Counts {
        let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().filter_map(Result::ok);
        let counted = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join(file)).ok()?;
            Some((thread.file_name().to_string_lossy().into_owned(), count(&text)?))
        });
        Counts(counted.collect())
    }

    /// By how much it grew since.
    pub(crate) fn since(&self, earlier: &Counts) -> u64 {
        let grew = |(thread, count): (&String, &u64)| count - earlier.0.get(thread).unwrap_or(&0).min(count);
        self.0.iter().map(grew).sum()
    }

    /// As [`Counts::since`], for processor time.
    pub(crate) fn time_since(&self, earlier: &Counts) -> Duration {
        Duration::from_nanos(self.since(earlier))
    }
}

/// Memory of process `id`: resident, and its own share of it, in bytes.
///
/// # Errors
/// When the process is gone.
pub(crate) fn memory(id: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {id}"))?;
    let bytes = |name| field(&text, name).map_or(0, |kib| kib << 10);
    Ok((bytes("Rss:"), bytes("Pss:")))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_threads_time_and_memory() {
        let id = std::process::id();
        let (time, sleeps) = (Counts::cpu_time(id), Counts::sleeps(id));
        std::thread::sleep(Duration::from_millis(1));
        assert!(Counts::cpu_time(id).time_since(&time) > Duration::ZERO);
        assert!(Counts::sleeps(id).since(&sleeps) > 0);
        let (resident, share) = memory(id).unwrap();
        assert!(share > 0 && resident >= share);
    }

    #[test]
    fn threads_that_ended_do_not_count() {
        let counts = |threads: &[(&str, u64)]| {
            Counts(threads.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect())
        };
        let earlier = counts(&[("1", 10), ("2", 1000)]);
        assert_eq!(counts(&[("1", 15), ("3", 2)]).since(&earlier), 7);
    }
}
