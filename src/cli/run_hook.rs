//! `mirrord run-hook`, hidden: what a daemon runs for an event, on its way to the hook.

use std::path::PathBuf;

use crate::events::become_hook;
use crate::failure::describe;

/// Become a program that is not protected as a daemon is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The program.
    program: PathBuf,
    /// Its arguments.
    args: Vec<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let error = become_hook(&args.program, &args.args);
    anyhow::bail!("cannot run {}: {}", args.program.display(), describe(&error))
}
