//! What `/proc` tells of a process: processor time, sleeps, memory.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time that the threads of process `id` have used. Threads that ended do not count.
pub(crate) fn cpu_time(id: u32) -> Duration {
    let times = tasks(id).filter_map(|task| {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

/// How often the threads of process `id` went to sleep by themselves: each is a wake-up later.
pub(crate) fn sleeps(id: u32) -> u64 {
    let counts = tasks(id).filter_map(|task| {
        let text = fs::read_to_string(task.join("status")).ok()?;
        field(&text, "voluntary_ctxt_switches:")
    });
    counts.sum()
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

fn tasks(id: u32) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path())
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
        std::thread::sleep(Duration::from_millis(1));
        assert!(cpu_time(id) > Duration::ZERO);
        assert!(sleeps(id) > 0);
        let (resident, share) = memory(id).unwrap();
        assert!(share > 0 && resident >= share);
    }
}
