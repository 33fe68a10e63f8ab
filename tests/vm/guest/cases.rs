//! What a case is and what it can ask for. Printed, a case is the line that `tests/vm/run` reads: its name and
//! shell assignments.

use std::fmt;

/// A test case. It fails by panicking, by not being done in time, and by a complaint of the kernel.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
    smoke: bool,
    seconds: u32,
    timeout: u32,
    memory: &'static str,
    disks: u32,
    disk_size: &'static str,
    kills: u32,
    user: u32,
    since: &'static str,
    allow: &'static str,
}

pub(crate) const fn case(name: &'static str, run: fn()) -> Case {
    Case {
        name,
        run,
        smoke: false,
        seconds: 30,
        timeout: 600,
        memory: "2G",
        disks: 0,
        disk_size: "0",
        kills: 0,
        user: 0,
        since: "6.12",
        allow: "",
    }
}

#[allow(dead_code, reason = "what a case may ask for, not what one does ask for")]
impl Case {
    /// Runs on every kernel, not on the first only.
    pub(crate) const fn smoke(mut self) -> Case {
        self.smoke = true;
        self
    }

    /// Seconds that it takes on a quiet machine, about: what takes long begins first.
    pub(crate) const fn takes(mut self, seconds: u32) -> Case {
        self.seconds = seconds;
        self
    }

    /// Seconds that each boot may take.
    pub(crate) const fn timeout(mut self, seconds: u32) -> Case {
        self.timeout = seconds;
        self
    }

    /// Memory of the guest, as qemu takes it. Half of it is for what is in /test.
    pub(crate) const fn memory(mut self, size: &'static str) -> Case {
        self.memory = size;
        self
    }

    /// Empty disks: /dev/vda, /dev/vdb.. All boots of the case see the same ones.
    pub(crate) const fn disks(mut self, count: u32, size: &'static str) -> Case {
        self.disks = count;
        self.disk_size = size;
        self
    }

    /// The machine is killed in each of so many boots, when the case calls [`kill_me_in`], and booted once
    /// more. [`boot`] says which one it is.
    pub(crate) const fn kills(mut self, count: u32) -> Case {
        self.kills = count;
        self
    }

    /// Runs as a user without privilege instead of root.
    pub(crate) const fn plain_user(mut self) -> Case {
        self.user = 1000;
        self
    }

    /// Is skipped by kernels older than this.
    pub(crate) const fn since(mut self, kernel: &'static str) -> Case {
        self.since = kernel;
        self
    }

    /// A complaint of the kernel that is expected: an extended regular expression without spaces.
    pub(crate) const fn allow(mut self, complaint: &'static str) -> Case {
        self.allow = complaint;
        self
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let smoke = if self.smoke { "yes" } else { "no" };
        write!(f, "{} smoke={smoke} seconds={} timeout={} ", self.name, self.seconds, self.timeout)?;
        write!(f, "mem={} ", self.memory)?;
        write!(f, "disks={} disk_size={} kills={} ", self.disks, self.disk_size, self.kills)?;
        write!(f, "user={} since={} allow={}", self.user, self.since, self.allow)
    }
}

/// The number of this boot of the case, from 0.
pub(crate) fn boot() -> u32 {
    std::env::var("boot").unwrap().parse().unwrap()
}

/// Asks the host to kill this machine without warning, so many milliseconds from now.
pub(crate) fn kill_me_in(milliseconds: u32) {
    println!("rig: kill me in {}.{:03} s", milliseconds / 1000, milliseconds % 1000);
}
