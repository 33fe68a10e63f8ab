//! The kernel's mirrors, through its connector.
//!
//! One thread receives and answers; answers that had to wait for a disk are sent by whoever was waiting. Only what the
//! kernel itself sends counts. Joining the group takes `CAP_NET_ADMIN`; without `CAP_SYS_ADMIN` the kernel
//! drops every answer without a word, so both are asked for before anything else.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use mirrord_log::wire::netlink::{INDEX, MAX_DATAGRAM, unwrap, wrap};
use rustix::io::Errno;
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto, socket_with,
    sockopt,
};
use rustix::thread::CapabilitySet;

use crate::rights::Rights;

/// The connector's group of logs, as bit of a mask: groups count from 1.
const GROUP: u32 = 1 << (INDEX - 1);

/// What the kernel may have sent and we not received, in bytes. Each of its threads waits for its answer, so there
/// are never more requests than mirrors at work.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Why the kernel cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A right is missing.
    #[error("--netlink needs {capability} on the whole machine: run it as root, outside of any container")]
    Right {
        /// Which.
        capability: &'static str,
    },
    /// Somebody else answers the kernel.
    #[error(
        "process {pid} answers the kernel's mirrors already (it listens to group {INDEX} of the connector): stop it \
         first"
    )]
    InUse {
        /// Who: the number of its socket, which is most often that of the process.
        pid: u32,
    },
    /// The kernel has no connector.
    #[error("the kernel's connector cannot be used")]
    Io {
        /// Why.
        #[from]
        source: io::Error,
    },
}

/// A socket of the connector.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Joins the group of logs.
    pub(crate) fn open() -> Result<Netlink, NetlinkError> {
        let rights = Rights::here();
        for (right, capability) in
            [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")]
        {
            if !rights.has(right) {
                return Err(NetlinkError::Right { capability });
            }
        }
        let table = fs::read_to_string("/proc/net/netlink").unwrap_or_default();
        if let Some(pid) = listener(&table) {
            return Err(NetlinkError::InUse { pid });
        }
        let io_error = |errno: Errno| NetlinkError::from(io::Error::from(errno));
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(CONNECTOR));
        let socket = socket.map_err(io_error)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).map_err(io_error)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUP)).map_err(io_error)?;
        Ok(Netlink { socket })
    }

    /// Receives requests for ever; `each` is given every message for a log.
    ///
    /// # Errors
    /// When nothing can be received any more.
    pub(crate) fn receive(&self, mut each: impl FnMut(&mirrord_log::wire::Frame<'_>)) -> io::Result<()> {
        let mut buffer = vec![0; MAX_DATAGRAM + 64];
        let mut overflowed = false;
        loop {
            let (len, from) = match recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, len, from)) => (len, from),
                Err(Errno::INTR) => continue,
                Err(Errno::NOBUFS) => {
                    // The kernel asks again what was lost, after a while.
                    if !std::mem::replace(&mut overflowed, true) {
                        tracing::warn!(
                            "the kernel sent more requests than there is room for: it will ask again"
                        );
                    }
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            let kernel = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            if kernel.is_none_or(|kernel| kernel.pid() != 0) {
                continue;
            }
            match buffer.get(..len).map(unwrap) {
                Some(Ok(Some(frame))) => each(&frame),
                Some(Ok(None)) => {}
                Some(Err(error)) => tracing::debug!(%error, "not a request"),
                None => tracing::debug!(len, "too long for a request"),
            }
        }
    }

    /// Answers; `seq` is the request's. `datagram` is a buffer.
    pub(crate) fn send(&self, seq: u32, message: &[u8], datagram: &mut Vec<u8>) {
        datagram.clear();
        wrap(seq, datagram, |to| to.extend_from_slice(message));
        let to = SocketAddrNetlink::new(0, 0);
        loop {
            match sendto(&self.socket, datagram, SendFlags::empty(), &to) {
                Err(Errno::INTR) => {}
                Ok(_) => return,
                // It is not lost on the way; should it be, the kernel asks again.
                Err(errno) => return tracing::error!(%errno, seq, "the kernel does not take an answer"),
            }
        }
    }
}

/// Who listens to the group of logs, by `/proc/net/netlink`.
fn listener(table: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (protocol, pid, groups) = (words.next()?, words.next()?, words.next()?);
        let groups = u32::from_str_radix(groups, 16).ok()?;
        let pid = pid.parse().ok()?;
        (protocol == "11" && groups & GROUP != 0 && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_daemon_is_seen() {
        let head =
            "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n";
        let row = |protocol, pid, groups| {
            format!(
                "{head}0000000000000000 {protocol:<3} {pid:<10} {groups} 0        0        0     2        0        18\n"
            )
        };
        assert_eq!(listener(&row(11, 186, "00000047")), Some(186));
        assert_eq!(listener(&row(11, 186, "00000001")), None);
        assert_eq!(listener(&row(0, 186, "00000040")), None);
        assert_eq!(listener(&row(11, 0, "00000040")), None, "the kernel's own");
        assert_eq!(listener(head), None);
    }
}
