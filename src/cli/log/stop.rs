//! `mirrord log stop` and `mirrord log forget`.

use super::super::Context;
use super::super::output::{print, print_json};
use super::{Server, Which};
use crate::control::{ClientError, Failure, Request};

/// Stop a server
///
/// Refused while logs are in use: their mirrors would wait for a server to come.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Although logs are in use. Mirrors wait until a server is started again, which goes on where this one was.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

/// Drop a log of a server, whoever uses it
///
/// For a log of a mirror that is gone, which nobody told the server. A mirror that still uses it constructs it anew; a
/// core log then knows nothing of before.
#[derive(Debug, clap::Args)]
pub(super) struct ForgetArgs {
    /// The log, by the uuid in its mirror's table.
    uuid: String,
    /// Which of several logs with this uuid [default: the one in use].
    #[arg(long)]
    luid: Option<String>,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot stop log server {}", args.which.name);
    let mut server = Server::connect(context, &args.which, &doing)?;
    match server.client.ask(&Request::Stop { force: args.force }) {
        Err(ClientError::Refused { reason: Failure::Busy, message }) => {
            anyhow::bail!("{doing}: {message}; remove their mirrors first, or say --force")
        }
        Err(error) => return Err(super::explain(&doing, &args.which.name, error)),
        Ok(_) => {}
    }
    done(context, &format!("{} stopped", args.which.name))
}

pub(super) fn forget(context: &Context, args: &ForgetArgs) -> anyhow::Result<()> {
    let doing = format!("cannot forget log {}", args.uuid);
    let mut server = Server::connect(context, &args.which, &doing)?;
    server.ask(&Request::ForgetLog { uuid: args.uuid.clone(), luid: args.luid.clone() })?;
    done(context, &format!("{} forgotten", args.uuid))
}

fn done(context: &Context, text: &str) -> anyhow::Result<()> {
    if context.json { print_json(&serde_json::json!({ "done": true })) } else { print(text) }
}
