//! `mirrord completions`.

use clap_complete::Shell;

use super::output::print;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "mirrord", &mut text);
    print(&String::from_utf8_lossy(&text))
}
