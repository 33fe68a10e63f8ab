//! The log server, told by requests and answers: whole conversations that the kernel had with another daemon, the lives
//! of logs one by one, and anything at all.

mod busy;
mod capture;
mod lives;
mod model;
mod props;
mod replay;
mod restart;
mod returns;
mod rig;
mod streams;
mod wire;
