//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

/// Facts about this machine, one a line: name and value.
pub(crate) fn facts(directory: &Path) -> Vec<(&'static str, String)> {
    let system = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':'])).trim().to_owned()
    };
    let kib: f64 = field(&meminfo, "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("date", date()),
        (
            "kernel",
            format!("{} {} {}", word(system.sysname()), word(system.release()), word(system.machine())),
        ),
        ("processor", format!("{}, {cores} cores for this run", field(&cpuinfo, "model name"))),
        ("memory", format!("{:.1} GiB", kib / f64::from(1 << 20))),
        ("file system of the legs", file_system(directory)),
        ("fio", version("fio", "--version")),
        ("qemu-storage-daemon", version("qemu-storage-daemon", "--version")),
        ("load average of the minute before the run", load().to_string()),
    ]
}

/// Load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The first line that a program prints about its version.
pub(crate) fn version(program: &str, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output().ok();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.as_deref().and_then(|text| text.lines().next()).unwrap_or("not installed").to_owned()
}

/// Type, device and options of the file system that holds `directory`.
fn file_system(directory: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let holds = |line: &&str| line.split(' ').nth(1).is_some_and(|point| directory.starts_with(point));
    let best = mounts.lines().filter(holds).max_by_key(|line| line.split(' ').nth(1).map_or(0, str::len));
    let words: Vec<&str> = best.unwrap_or_default().split(' ').collect();
    match words[..] {
        [device, _, kind, options, ..] => format!("{kind} on {device} ({options})"),
        _ => "unknown".to_owned(),
    }
}

/// Bytes that are free for files in `directory`.
///
/// # Errors
/// As `statvfs(2)`.
pub(crate) fn free_space(directory: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(directory).with_context(|| format!("cannot ask {}", directory.display()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Refuses to go on without `bytes` of room.
///
/// # Errors
/// When there is less.
pub(crate) fn need_space(directory: &Path, bytes: u64) -> Result<()> {
    let free = free_space(directory)?;
    ensure!(
        free >= bytes,
        "{} has {} MiB free and {} MiB are needed: name another with --dir, or use --quick",
        directory.display(),
        free >> 20,
        bytes >> 20
    );
    Ok(())
}

/// Today in UTC.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (year, month, day) = civil(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of so many days after 1970-01-01. Eras of 400 years that begin in March, as in
/// Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in
            [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (19_782, (2024, 2, 29)), (20_454, (2026, 1, 1))]
        {
            assert_eq!(civil(days), date);
        }
    }
}
