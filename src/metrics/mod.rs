//! A volume's figures for Prometheus, over HTTP on a socket of the volume's own.
//!
//! The daemon listens before it serves, on a thread of its own that does nothing between two scrapes and takes no
//! lock that a request waits for. Other machines can connect only if that was asked for by name: figures tell
//! about those who use the volume, and nobody is asked who he is.

mod http;
mod text;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::engine::Volume;
use crate::status::VolumeStatus;

/// Where metrics are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A socket in the file system, absolute.
    Unix(PathBuf),
    /// A TCP port; 0 is one that is free.
    Tcp(SocketAddr),
}

/// Not an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("use unix:PATH, or IP:PORT or localhost:PORT")]
pub struct BadAddress;

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Address, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Some(path).filter(|path| !path.is_empty()).ok_or(BadAddress)?;
            return std::path::absolute(path).map(Address::Unix).map_err(|_| BadAddress);
        }
        if let Some(port) = text.strip_prefix("localhost:") {
            let port = port.parse().map_err(|_| BadAddress)?;
            return Ok(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()));
        }
        text.parse().map(Address::Tcp).map_err(|_| BadAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => address.fmt(f),
        }
    }
}

impl Address {
    /// Whether only this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp(address) => match address.ip() {
                IpAddr::V4(ip) => ip.is_loopback(),
                IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(ip.is_loopback(), |ip| ip.is_loopback()),
            },
        }
    }
}

/// Why an address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("--metrics {address}: it is in use by another process; choose another")]
    InUse {
        /// The address.
        address: Address,
    },
    /// Something else is there.
    #[error("--metrics {address}: there is something that is no socket; choose another")]
    NoSocket {
        /// The address.
        address: Address,
    },
    /// The system said no.
    #[error("--metrics {address}: it cannot be listened on")]
    Io {
        /// The address.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that can be connected to and is not answered yet. A socket in the file system goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
}

impl Listener {
    /// Listens at `address`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(address: &Address) -> Result<Listener, BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: address.clone() },
            _ => BindError::Io { address: address.clone(), source },
        };
        match address {
            Address::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                Ok(Listener { socket: listener.into(), address })
            }
            Address::Unix(path) => {
                match fs::symlink_metadata(path) {
                    Ok(metadata) if !metadata.file_type().is_socket() => {
                        return Err(BindError::NoSocket { address: address.clone() });
                    }
                    Ok(_) => match UnixStream::connect(path) {
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            fs::remove_file(path).map_err(failed)?;
                        }
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(failed(error)),
                        _ => return Err(BindError::InUse { address: address.clone() }),
                    },
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = Listener { socket: listener.into(), address: address.clone() };
                // Who may reach it is for the directory to say.
                fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
                Ok(listener)
            }
        }
    }

    /// Where it is: with the port, if one was to be chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Answers with the figures of `volume` from now on; `status` says how it is.
    ///
    /// # Errors
    /// When there is no thread or file descriptor left.
    pub fn serve(
        self,
        volume: Arc<Volume>,
        status: impl Fn(&Volume) -> VolumeStatus + Send + 'static,
    ) -> io::Result<Metrics> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let render = move || text::render(&status(&volume), volume.latencies().as_ref());
        let body = move || self.answer(&stopped, &render);
        let thread = thread::Builder::new().name("mirrord-metrics".to_owned()).spawn(body)?;
        Ok(Metrics { thread: Some(thread), stop })
    }

    fn answer(&self, stop: &OwnedFd, render: &dyn Fn() -> String) {
        loop {
            let mut events = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            // An interrupted wait is a short one.
            let _ = poll(&mut events, None);
            if !events[1].revents().is_empty() {
                return;
            }
            if events[0].revents().is_empty() {
                continue;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let answered = match accept_with(&self.socket, flags) {
                Ok(stream) => http::converse(stream.as_fd(), stop.as_fd(), render),
                // Whoever it was has gone again.
                Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => continue,
                Err(errno) => {
                    // Out of file descriptors, most likely.
                    thread::sleep(Duration::from_millis(100));
                    Err(errno.into())
                }
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "metrics were not fetched");
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

/// Metrics that are answered until this is dropped.
#[derive(Debug)]
pub struct Metrics {
    thread: Option<JoinHandle<()>>,
    stop: Arc<OwnedFd>,
}

impl Drop for Metrics {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::describe;

    #[test]
    fn addresses_are_read() {
        for (text, local) in [
            ("unix:/run/x.sock", true),
            ("127.0.0.1:9100", true),
            ("localhost:0", true),
            ("[::1]:9100", true),
            ("[::ffff:127.0.0.1]:9100", true),
            ("0.0.0.0:9100", false),
            ("[::]:9100", false),
            ("192.0.2.1:9100", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.is_local(), local, "{text}");
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address, "{text}");
        }
        for bad in ["", "unix:", "9100", ":9100", "localhost", "localhost:x", "127.0.0.1", "example.org:80"] {
            assert_eq!(bad.parse::<Address>(), Err(BadAddress), "{bad}");
        }
    }

    #[test]
    fn an_address_is_had_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        for address in [Address::Unix(path.clone()), "127.0.0.1:0".parse().unwrap()] {
            let listener = Listener::bind(&address).unwrap();
            let error = Listener::bind(listener.address()).unwrap_err();
            assert!(matches!(error, BindError::InUse { .. }), "{error}");
            let address = listener.address().clone();
            drop(listener);
            Listener::bind(&address).unwrap();
        }
        assert!(!path.exists(), "it went with its listener");
        // What a dead process left is replaced, a file is not.
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&Address::Unix(path.clone())).unwrap());
        fs::write(&path, "text").unwrap();
        let said = |path: PathBuf| describe(&Listener::bind(&Address::Unix(path)).unwrap_err());
        assert!(said(path.clone()).contains("no socket"));
        assert!(path.exists());
        assert!(said(dir.path().join("no/where")).contains("No such file"));
    }
}
