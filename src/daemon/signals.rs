//! Signals that stop a daemon cleanly.

use std::fs;
use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Takes in SIGTERM, SIGINT and SIGHUP from now on. `nohup` keeps its meaning for a daemon in the
/// `foreground`: the end of its terminal does not stop it.
///
/// # Errors
/// When the system has no descriptor left.
pub(crate) fn take(foreground: bool) -> io::Result<Signals> {
    if foreground && is_ignored(SIGHUP, &fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Signals::new([SIGTERM, SIGINT]);
    }
    Signals::new([SIGTERM, SIGINT, SIGHUP])
}

/// Whether a process with this `/proc/PID/status` ignores `signal`.
fn is_ignored(signal: i32, status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_known() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(SIGHUP, status));
        assert!(!is_ignored(SIGINT, status) && !is_ignored(SIGHUP, ""));
    }
}
