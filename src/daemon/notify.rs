//! Telling the service manager how it goes, as `sd_notify(3)` describes: one datagram per change.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};

const VARIABLE: &str = "NOTIFY_SOCKET";

/// Whoever supervises this process.
#[derive(Clone, Debug)]
pub(crate) struct Manager {
    address: SocketAddr,
}

impl Manager {
    /// The one that the environment names, if it names one.
    pub(crate) fn from_env() -> Option<Manager> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?.into_vec();
        let address = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(&name)),
        };
        match address {
            Ok(address) => Some(Manager { address }),
            Err(error) => {
                tracing::warn!(%error, "{VARIABLE} names no socket");
                None
            }
        }
    }

    /// What is served can be used.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// It is being stopped.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, text: &str) {
        let sent: io::Result<usize> =
            UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(text.as_bytes(), &self.address));
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}
