//! Where volumes connect: sockets in the file system, and TCP with TLS.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::{ServerConfig, ServerConnection};

use super::connection::Socket;

/// A peer that says nothing for so long is asked whether it is there; each time so often, so many times.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    /// In the file system.
    Unix(UnixListen),
    /// On the network.
    Tcp(TcpListen),
}

/// A socket in the file system: for this user and root.
#[derive(Debug)]
pub struct UnixListen {
    /// Where.
    pub path: PathBuf,
}

/// A socket on the network.
#[derive(Debug)]
pub struct TcpListen {
    /// `HOST:PORT`.
    pub address: String,
    /// How peers show who they are; without, everybody may connect.
    pub tls: Option<Arc<ServerConfig>>,
    /// Everybody may connect, from anywhere.
    pub insecure: bool,
}

/// Why volumes cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("--unix {}: another process answers there: stop it or name another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else.
    #[error("--unix {}: there is something there that is no socket: name another path", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("--unix {}: cannot listen there", path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everybody could connect.
    #[error(
        "--tcp {address}: without --tls-cert, --tls-key and --tls-ca everybody could read and change every log; \
         `mirrord log cert` makes them; --insecure serves all the same"
    )]
    Insecure {
        /// The address.
        address: String,
    },
    /// It cannot be had.
    #[error("--tcp {address}: cannot listen there")]
    Tcp {
        /// The address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A socket that listens.
pub(super) enum Listener {
    Unix { listener: UnixListener, path: PathBuf },
    Tcp { listener: TcpListener, address: SocketAddr, tls: Option<Arc<ServerConfig>> },
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix { listener, .. } => listener.as_fd(),
            Listener::Tcp { listener, .. } => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { path, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listens everywhere, or nowhere.
pub(super) fn bind(listen: &[Listen]) -> Result<Vec<Listener>, ListenError> {
    listen
        .iter()
        .map(|listen| match listen {
            Listen::Unix(unix) => bind_unix(unix),
            Listen::Tcp(tcp) => bind_tcp(tcp),
        })
        .collect()
}

fn bind_unix(unix: &UnixListen) -> Result<Listener, ListenError> {
    let path = unix.path.clone();
    let failed = |source| ListenError::Unix { path: path.clone(), source };
    match std::fs::symlink_metadata(&path) {
        Ok(there) if !there.file_type().is_socket() => return Err(ListenError::NoSocket { path }),
        Ok(_) if UnixStream::connect(&path).is_ok() => return Err(ListenError::InUse { path }),
        // Of a server that was killed.
        Ok(_) => std::fs::remove_file(&path).map_err(failed)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    // Peers are asked who they are as well, so that nobody slips in before this.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Listener::Unix { listener, path })
}

fn bind_tcp(tcp: &TcpListen) -> Result<Listener, ListenError> {
    let failed = |source| ListenError::Tcp { address: tcp.address.clone(), source };
    let addresses: Vec<SocketAddr> = tcp.address.to_socket_addrs().map_err(failed)?.collect();
    if tcp.tls.is_none() && !tcp.insecure && !addresses.iter().all(|address| address.ip().is_loopback()) {
        return Err(ListenError::Insecure { address: tcp.address.clone() });
    }
    let listener = TcpListener::bind(&addresses[..]).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listener::Tcp { listener, address, tls: tcp.tls.clone() })
}

/// Somebody who connected: his socket, what to call him, and how he is to show who he is.
pub(super) type Accepted = (Socket, String, Option<ServerConnection>);

impl Listener {
    /// What it is called.
    pub(super) fn place(&self) -> String {
        match self {
            Listener::Unix { path, .. } => format!("unix:{}", path.display()),
            Listener::Tcp { address, tls: Some(_), .. } => format!("tls:{address}"),
            Listener::Tcp { address, tls: None, .. } => format!("tcp:{address}"),
        }
    }

    /// The next who connects, if there is one.
    pub(super) fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let peer = sockopt::socket_peercred(&stream)?;
                if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
                    let refused = format!("user {} may not connect", peer.uid.as_raw());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
                }
                let name = format!("uid {} pid {}", peer.uid.as_raw(), peer.pid.as_raw_nonzero());
                Ok((Socket::Unix(stream), name, None))
            }
            Listener::Tcp { listener, tls, .. } => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / KEEPALIVES)?;
                sockopt::set_tcp_keepcnt(&stream, KEEPALIVES)?;
                let tls = tls.as_ref().map(|config| ServerConnection::new(Arc::clone(config)));
                Ok((Socket::Tcp(stream), address.to_string(), tls.transpose().map_err(io::Error::other)?))
            }
        }
    }
}
