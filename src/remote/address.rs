//! Where a log server is: what stands behind `remote:` on the command line and in superblocks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a log server is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A socket in the file system of this host, absolute.
    Unix(PathBuf),
    /// A host and a port.
    Tcp {
        /// Name or IP address, which has to be in the server's certificate.
        host: String,
        /// The port.
        port: u16,
        /// Without TLS: nobody knows who answers there, or who listens.
        insecure: bool,
    },
}

/// Not an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "a log server is at unix:PATH, HOST:PORT (with TLS) or insecure:HOST:PORT; an IPv6 address stands in []"
)]
pub struct BadAddress;

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Address, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Some(path).filter(|path| !path.is_empty()).ok_or(BadAddress)?;
            return std::path::absolute(path).map(Address::Unix).map_err(|_| BadAddress);
        }
        let (insecure, place) = match text.strip_prefix("insecure:") {
            Some(place) => (true, place),
            None => (false, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or(BadAddress)?;
        let port = port.parse().ok().filter(|&port| port > 0).ok_or(BadAddress)?;
        let bare = match host.strip_prefix('[') {
            Some(rest) => {
                let host = rest.strip_suffix(']').ok_or(BadAddress)?;
                host.parse::<IpAddr>().map_err(|_| BadAddress)?;
                host
            }
            None => host,
        };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bare.is_empty() || bare == host && !bare.bytes().all(good) {
            return Err(BadAddress);
        }
        Ok(Address::Tcp { host: bare.to_owned(), port, insecure })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port, insecure } => {
                let prefix = if *insecure { "insecure:" } else { "" };
                match host.parse::<IpAddr>() {
                    Ok(ip) => write!(f, "{prefix}{}", SocketAddr::from((ip, *port))),
                    Err(_) => write!(f, "{prefix}{host}:{port}"),
                }
            }
        }
    }
}

impl Address {
    /// Whether certificates are needed.
    pub fn has_tls(&self) -> bool {
        matches!(self, Address::Tcp { insecure: false, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        let good = [
            "unix:/run/x",
            "log.example:7001",
            "10.0.0.1:7001",
            "[fd00::1]:7001",
            "insecure:h-1:7",
            "insecure:[::1]:7",
        ];
        for good in good {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        let bad = ["", "unix:", "host", "host:", "host:0", "host:70000", ":7", "[x]:7", "a b:7", "fd00::1:7"];
        for bad in bad {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        assert!("h:7".parse::<Address>().unwrap().has_tls());
        assert!(!"insecure:h:7".parse::<Address>().unwrap().has_tls());
    }
}
