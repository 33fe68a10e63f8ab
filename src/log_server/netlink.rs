//! The kernel's side: its connector, on which every dm-mirror with a userspace log asks.
//!
//! One thread receives, asks the server and sends what there is to answer at once: one call of the system each way and
//! no allocation. Answers that had to wait for a disk are sent by the disk's thread.
//!
//! Who may: joining the connector's group takes CAP_NET_ADMIN, and the kernel drops answers of a process without
//! CAP_SYS_ADMIN silently, so both are asked for at the start. Two daemons would both answer, each with what it
//! knows: a lock keeps a second one of ours out, a look at who listens any other.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mirrord_log::server::ClientId;
use mirrord_log::wire::netlink::{INDEX, MAX_DATAGRAM, unwrap, wrap};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send, socket_with,
};
use rustix::thread::CapabilitySet;

use super::shared::{Hands, Shared, count};
use crate::rights::Rights;

/// Requests that wait while this process does not get to run: some ten thousand.
const RECEIVE_BUFFER: usize = 16 << 20;

/// One for the machine, whatever runtime directories its servers have.
const LOCK: &str = "/run/mirrord/log-netlink.lock";

const LISTENERS: &str = "/proc/net/netlink";

/// The connector's protocol number.
const CONNECTOR: u32 = 11;

/// Groups are bits.
const GROUP: u32 = 1 << (INDEX - 1);

/// Why the kernel cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// Not everybody may.
    #[error("--netlink needs {missing} on the machine, not in a container of its own: run it as root")]
    Rights {
        /// The capability.
        missing: &'static str,
    },
    /// Another server of ours.
    #[error("another `mirrord log serve` answers the kernel of this machine already: stop that first")]
    Running,
    /// Another daemon.
    #[error("process {pid} listens for the logs of mirrors already (cmirrord?): stop that first")]
    Taken {
        /// Its netlink address, which is its process id as a rule.
        pid: u32,
    },
    /// The lock cannot be taken.
    #[error("cannot lock {LOCK}")]
    Lock(#[source] io::Error),
    /// There is no socket to be had.
    #[error("cannot listen to the kernel's connector: is this the machine's own network namespace?")]
    Socket(#[source] io::Error),
}

/// The socket, and the right to be the one that answers.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
    _lock: File,
    /// An answer could not be sent, and that was said.
    is_failing: AtomicBool,
}

impl Netlink {
    /// Begins to listen: what is asked from now on waits.
    pub(super) fn open() -> Result<Netlink, NetlinkError> {
        let rights = Rights::here();
        for (capability, missing) in
            [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")]
        {
            if !rights.has(capability) {
                return Err(NetlinkError::Rights { missing });
            }
        }
        let lock = lock().map_err(NetlinkError::Lock)?.ok_or(NetlinkError::Running)?;
        if let Some(pid) = listener(&fs::read_to_string(LISTENERS).unwrap_or_default()) {
            return Err(NetlinkError::Taken { pid });
        }
        let failed = |errno: Errno| NetlinkError::Socket(errno.into());
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let fd = socket_with(family, SocketType::DGRAM, flags, Some(netlink::CONNECTOR)).map_err(failed)?;
        if let Err(errno) = set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER) {
            tracing::warn!(%errno, "the buffer for the kernel's requests stays small");
        }
        bind(&fd, &SocketAddrNetlink::new(0, GROUP)).map_err(failed)?;
        Ok(Netlink { fd, _lock: lock, is_failing: AtomicBool::new(false) })
    }

    /// Sends an answer; the kernel asks again if it does not get one.
    pub(super) fn answer(&self, seq: u32, message: &[u8], datagram: &mut Vec<u8>) {
        datagram.clear();
        wrap(seq, datagram, |to| to.extend_from_slice(message));
        match send(&self.fd, datagram, SendFlags::empty()) {
            Ok(_) => self.is_failing.store(false, Ordering::Relaxed),
            Err(errno) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                tracing::error!(%errno, "cannot answer the kernel");
            }
            Err(_) => {}
        }
    }
}

/// Starts the thread that receives.
pub(super) fn serve(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("mirrord-netlink".to_owned()).spawn(move || receive(&shared)).map(drop)
}

fn receive(shared: &Arc<Shared>) {
    let Some(netlink) = shared.netlink() else { return };
    let mut hands = Hands::default();
    let mut buffer = vec![0; MAX_DATAGRAM + 64];
    let (mut lost, mut failing) = (false, false);
    loop {
        let (len, from) = match recvfrom(netlink.fd.as_fd(), &mut buffer[..], RecvFlags::empty()) {
            Ok((_, len, from)) => (len, from),
            Err(Errno::INTR) => continue,
            Err(Errno::NOBUFS) => {
                if !std::mem::replace(&mut lost, true) {
                    tracing::warn!("requests of the kernel were lost: it asks again");
                }
                continue;
            }
            Err(errno) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%errno, "cannot receive from the kernel");
                }
                // Short of memory, most likely.
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            }
        };
        failing = false;
        // Other processes can send here, too.
        let is_kernel = from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).map(|from| from.pid());
        if is_kernel != Some(0) {
            continue;
        }
        match unwrap(&buffer[..len.min(buffer.len())]) {
            Ok(Some(frame)) => {
                count(&shared.counters.kernel_requests);
                shared.act(&mut hands, |server, out| server.request(ClientId::KERNEL, &frame, out));
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the kernel sent what makes no sense"),
        }
    }
}

fn lock() -> io::Result<Option<File>> {
    let path = Path::new(LOCK);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Who is in the group already, in a text like `/proc/net/netlink`.
fn listener(text: &str) -> Option<u32> {
    text.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let protocol: u32 = words.next()?.parse().ok()?;
        let pid: u32 = words.next()?.parse().ok()?;
        let groups = u32::from_str_radix(words.next()?, 16).ok()?;
        (protocol == CONNECTOR && pid != 0 && groups & GROUP != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_daemon_is_seen() {
        let head =
            "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n";
        let line = |protocol: u32, pid: u32, groups: &str| {
            format!(
                "00000000a2a1d8e3 {protocol:<3} {pid:<10} {groups} 0        0        0     2        0        9\n"
            )
        };
        let kernel = [head, &line(11, 0, "00000000"), &line(15, 7, "00000040")].concat();
        assert_eq!(listener(&kernel), None);
        assert_eq!(listener(&(kernel.clone() + &line(11, 12, "00000001"))), None);
        assert_eq!(listener(&(kernel + &line(11, 12, "00000047"))), Some(12));
        assert_eq!(listener(""), None);
    }
}
