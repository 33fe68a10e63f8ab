//! `mirrord log cert`.

use std::path::PathBuf;

use serde_json::json;

use super::super::Context;
use super::super::output::{fail, print, print_json, say_done};
use crate::tls::make::{TrialNames, make_trial};

/// Make a CA and certificates to try TLS with
///
/// Writes ca.pem, server.pem and NAME.pem, each with its key in NAME-key.pem (mode 0600). Nothing is overwritten.
/// ca-key.pem can sign more certificates: do not copy it to servers or clients, or delete it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to; made if it is not there.
    dir: PathBuf,
    /// A name or address by which volumes reach the server.
    #[arg(long, value_name = "NAME", required = true)]
    host: Vec<String>,
    /// A client.
    #[arg(long, value_name = "NAME", default_value = "client")]
    client: Vec<String>,
    /// For how many days they are good.
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot make certificates in {}", args.dir.display());
    let names = TrialNames { hosts: &args.host, clients: &args.client, days: args.days };
    let written = make_trial(&args.dir, &names).map_err(|error| fail(&doing, &error))?;
    if context.json {
        return say_done(print_json(&json!({ "files": written })));
    }
    let lines: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
    say_done(print(&lines.join("\n")))
}
