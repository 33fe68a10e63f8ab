//! `mirrord log forget`.

use serde_json::json;

use super::super::Context;
use super::super::output::{print, print_json, say_done};
use super::Server;
use crate::control::Request;

/// Drop the log of a mirror that was removed while no server ran
///
/// Such a mirror leaves its log behind, and the log's device locked. The content of the device or file stays. The
/// command is refused while the log is in use, as far as the server knows.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The log's uuid, as `mirrord log list` shows it.
    #[arg(value_name = "UUID")]
    uuid: String,
    /// Which table of the mirror, if it has several [default: the one in use].
    #[arg(long)]
    luid: Option<String>,
    /// Drop the log even if it is in use. If the mirror still exists, it constructs the log anew; a core log is then empty.
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
