//! Where connections come from: sockets of this machine, and TCP.
//!
//! A socket of this machine is for its own user and root, or for a group; its mode says so, and whoever connects is
//! looked at. TCP is for whoever has a certificate; without TLS it is for this machine only, unless that is waived.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_nodelay,
};
use rustls::ServerConfig;

use crate::peer::Peer;
use crate::socket::Socket;

/// A connection over which nothing comes is looked after.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("{} is answered by another process: use another path", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no socket: use another path", path.display())]
    NotASocket {
        /// What.
        path: PathBuf,
    },
    /// No such group.
    #[error("there is no group {group}")]
    Group {
        /// As it was given.
        group: String,
    },
    /// The system said no.
    #[error("cannot listen at {place}")]
    Io {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everybody could use it.
    #[error(
        "--tcp {address} without TLS: everybody who can reach it could use every log; give --tls-cert, --tls-key and \
         --tls-ca (`mirrord log cert` makes them), or say --insecure"
    )]
    Insecure {
        /// As it was given.
        address: String,
    },
}

/// A socket that is listened at.
#[derive(Debug)]
pub(in crate::log_server) enum Listener {
    /// Of this machine.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Where; it is removed at the end.
        path: PathBuf,
        /// Others than its own user may connect, if the mode of the socket lets them.
        for_group: bool,
    },
    /// TCP.
    Tcp {
        /// The socket.
        listener: TcpListener,
        /// With TLS.
        tls: Option<Arc<ServerConfig>>,
    },
}

impl Listener {
    /// At a path; for a group if one is named.
    pub(in crate::log_server) fn unix(path: &Path, group: Option<&str>) -> Result<Listener, ListenError> {
        let failed = |source| ListenError::Io { place: path.display().to_string(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(ListenError::InUse { path: path.to_owned() });
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let gid = group.map(group_id).transpose()?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Who connects in between is looked at all the same.
        if let Some(gid) = gid {
            chown(path, None, Some(gid)).map_err(failed)?;
        }
        let mode = if gid.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Listener::Unix { listener, path: path.to_owned(), for_group: gid.is_some() })
    }

    /// At all addresses that `address` stands for.
    pub(in crate::log_server) fn tcp(
        address: &str,
        tls: Option<&Arc<ServerConfig>>,
        insecure: bool,
    ) -> Result<Vec<Listener>, ListenError> {
        let failed = |source| ListenError::Io { place: address.to_owned(), source };
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
        if tls.is_none() && !insecure && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(ListenError::Insecure { address: address.to_owned() });
        }
        let listen = |address: SocketAddr| {
            let listener = TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok(Listener::Tcp { listener, tls: tls.cloned() })
        };
        addresses.into_iter().map(listen).collect()
    }

    /// The socket.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix { listener, .. } => listener.as_fd(),
            Listener::Tcp { listener, .. } => listener.as_fd(),
        }
    }

    /// Where, for people.
    pub(in crate::log_server) fn place(&self) -> String {
        match self {
            Listener::Unix { path, .. } => format!("unix:{}", path.display()),
            Listener::Tcp { listener, tls } => {
                let address = listener.local_addr().map_or("?".to_owned(), |address| address.to_string());
                format!("{}:{address}", if tls.is_some() { "tls" } else { "tcp" })
            }
        }
    }

    /// The next connection, what to call it, and how it is encrypted.
    ///
    /// # Errors
    /// `WouldBlock`: there is none now. Of a connection that may not be: `PermissionDenied`.
    pub(super) fn accept(&self) -> io::Result<(Socket, String, Option<Arc<ServerConfig>>)> {
        match self {
            Listener::Unix { listener, for_group, .. } => {
                let (stream, _) = listener.accept()?;
                let peer = Peer::of(&stream)?;
                if !peer.is_own() && !for_group {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                stream.set_nonblocking(true)?;
                let process =
                    peer.pid.map_or("a process elsewhere".to_owned(), |pid| format!("process {pid}"));
                let name = format!("{process} of user {}", peer.uid.as_raw());
                Ok((Socket::Unix(stream), name, None))
            }
            Listener::Tcp { listener, tls } => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                set_tcp_nodelay(&stream, true)?;
                set_socket_keepalive(&stream, true)?;
                set_tcp_keepidle(&stream, KEEP_ALIVE)?;
                set_tcp_keepintvl(&stream, KEEP_ALIVE / 3)?;
                set_tcp_keepcnt(&stream, 3)?;
                Ok((Socket::Tcp(stream), address.to_string(), tls.clone()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { path, .. } = self {
            let _ = fs::remove_file(path);
        }
    }
}

fn group_id(group: &str) -> Result<u32, ListenError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok())?
    });
    id.ok_or_else(|| ListenError::Group { group: group.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_private_unless_a_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let listener = Listener::unix(&path, None).unwrap();
        assert_eq!(mode(), 0o600);
        assert!(matches!(Listener::unix(&path, None), Err(ListenError::InUse { .. })));
        drop(listener);
        assert!(!path.exists());
        // A dead server's is replaced.
        drop(UnixListener::bind(&path).unwrap());
        let gid = rustix::process::getegid().as_raw().to_string();
        let listener = Listener::unix(&path, Some(&gid)).unwrap();
        assert_eq!(mode(), 0o660);
        drop(listener);
        assert!(matches!(Listener::unix(&path, Some("no such")), Err(ListenError::Group { .. })));
        fs::write(&path, "a file").unwrap();
        assert!(matches!(Listener::unix(&path, None), Err(ListenError::NotASocket { .. })));
        assert_eq!(group_id("root").unwrap(), 0);
    }

    #[test]
    fn tcp_without_tls_stays_on_the_machine() {
        for (address, insecure, is_fine) in [
            ("127.0.0.1:0", false, true),
            ("localhost:0", false, true),
            ("0.0.0.0:0", false, false),
            ("0.0.0.0:0", true, true),
        ] {
            let listeners = Listener::tcp(address, None, insecure);
            assert_eq!(listeners.is_ok(), is_fine, "{address}");
        }
        let error = Listener::tcp("0.0.0.0:0", None, false).unwrap_err();
        assert!(matches!(error, ListenError::Insecure { .. }));
        assert!(matches!(Listener::tcp("nonsense", None, false), Err(ListenError::Io { .. })));
    }
}
