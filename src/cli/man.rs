//! `mirrord man`.

use std::path::PathBuf;

use anyhow::Context as _;

/// Write the manual pages to a directory
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory; made if it is not there.
    dir: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(super::command(), &args.dir)
    };
    write().with_context(|| format!("cannot write manual pages to {}", args.dir.display()))
}
