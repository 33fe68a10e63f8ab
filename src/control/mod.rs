//! The control socket: one line of JSON asks, one line of JSON answers; to follow events, any number of lines.
//!
//! A daemon binds `NAME.sock` in the runtime directory, mode 0600, and answers its own user and root.
//! A connection may ask any number of times. The socket is an interface: requests and answers get new
//! fields and verbs, none changes its meaning.

mod client;
mod server;
mod stream;
mod types;

pub use client::{Client, ClientError, Daemon, Following};
pub use server::{Answer, BindError, ControlServer, Cutter, Handler};
pub use types::{Failure, Request, Response};

/// Longest line either side takes, in bytes: a status of eight legs is a few KiB, the longest map
/// three quarters of it.
const MAX_LINE: u64 = 1 << 20;
