//! The log server over real sockets: lives of logs, TLS, peers that mean no good, and its end. The kernel's side is in
//! tests/vm.

#[path = "log_serve/client.rs"]
mod client;
#[path = "log_serve/ends.rs"]
mod ends;
#[path = "log_serve/hostile.rs"]
mod hostile;
#[path = "log_serve/lives.rs"]
mod lives;
#[path = "log_serve/tls.rs"]
mod tls;

mod rig;
