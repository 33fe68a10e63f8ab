//! The log server over real sockets: lives of logs, TLS, peers that mean no good, and its end. The kernel's side is in
//! tests/vm.

pub(crate) mod client;
mod ends;
mod hostile;
mod lives;
mod tls;
