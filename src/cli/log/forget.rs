//! `mirrord log forget`.

use serde_json::json;

use super::super::Context;
use super::super::output::{print, print_json, say_done};
use super::Server;
use crate::control::Request;

/// Drop a log of a mirror that is gone, which nobody told the server
///
/// A mirror that was removed while no server ran leaves its log behind, and the log's device locked. What is in the
/// device or file stays. Refused while the log is in use, for as far as the server knows.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The log's uuid, as `mirrord log list` shows it.
    #[arg(value_name = "UUID")]
    uuid: String,
    /// Which life of the mirror's table, if there are several [default: the one in use].
    #[arg(long)]
    luid: Option<String>,
    /// Drop it although it is in use. A mirror that is there after all constructs it anew; a core log then knows nothing.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let uuid = &args.uuid;
    let mut server = args.server.connect(context, &format!("cannot forget the log {uuid}"))?;
    let request = Request::ForgetLog { uuid: uuid.clone(), luid: args.luid.clone(), force: args.force };
    server.ask(&request)?;
    if context.json {
        return say_done(print_json(&json!({ "uuid": uuid, "forgotten": true })));
    }
    say_done(print(&format!("log {uuid} forgotten")))
}
