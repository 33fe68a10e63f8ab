//! Signals that stop a daemon cleanly, and those that do nothing.

use std::fs;
use std::io;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM};
use signal_hook::iterator::Signals;

/// What would end a process and means nothing to a daemon; the last two have no constant: SIGSTKFLT and SIGPWR.
const STRAY: [i32; 8] = [SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, 16, 30];

/// Takes in SIGTERM and SIGINT from now on, and in the `foreground` SIGHUP, the end of its terminal, unless it is ignored,
/// as `nohup` has it. A daemon in the background has no terminal: there SIGHUP is one of the signals that do nothing.
///
/// # Errors
/// When the system has no descriptor left.
pub(crate) fn take(foreground: bool) -> io::Result<Signals> {
    for signal in STRAY {
        signal_hook::flag::register(signal, Arc::<AtomicBool>::default())?;
    }
    if !foreground {
        signal_hook::flag::register(SIGHUP, Arc::<AtomicBool>::default())?;
    }
    let is_ignored = is_ignored(SIGHUP, &fs::read_to_string("/proc/self/status").unwrap_or_default());
    if !foreground || is_ignored {
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
