//! The log server, told by requests and answers: whole conversations that the kernel had with another daemon, the lives
//! of logs one by one, and anything at all.

mod capture;
mod replay;
mod rig;
mod wire;
