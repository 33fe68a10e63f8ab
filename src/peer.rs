//! Who is at the other end of a socket of this machine.
//!
//! By way of `nix`: rustix takes the process to have a number, and one in another container has none here.

use std::io;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{Pid, Uid};

/// The process that connected, or listened, as it was then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    /// `None`: it cannot be seen from here, being in another container.
    pub(crate) pid: Option<Pid>,
    /// Its user.
    pub(crate) uid: Uid,
}

impl Peer {
    /// Who is at the other end of `stream`.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Peer> {
        let found = getsockopt(stream, PeerCredentials)?;
        Ok(Peer { pid: Pid::from_raw(found.pid()), uid: Uid::from_raw(found.uid()) })
    }

    /// Whether it is root or the user of this process.
    pub(crate) fn is_own(self) -> bool {
        self.uid.is_root() || self.uid == rustix::process::geteuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_its_own_peer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer, Peer { pid: Some(rustix::process::getpid()), uid: rustix::process::geteuid() });
        assert!(peer.is_own());
    }
}
