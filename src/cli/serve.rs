//! `mirrord serve`, hidden: what `create` and `start` run in the background.

use super::Context;
use super::output::Told;
use crate::daemon::serve_behind;

/// Serve a volume as standard input says.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume, shown in the list of processes.
    name: String,
}

pub(super) fn run(context: &Context, _: &Args) -> anyhow::Result<()> {
    if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        anyhow::bail!("serve is what `mirrord start` runs: use that");
    }
    serve_behind(&context.dirs).map_err(|_| Told.into())
}
