//! The log server: what a real kernel said to a log daemon, said to ours, and the lives of logs.

mod conversation;
mod kernel_logs;
mod killed;
mod messages;
mod served;
mod vectors;
mod volumes;
