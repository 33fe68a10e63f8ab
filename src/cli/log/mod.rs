//! `mirrord log`: a server of dirty-region logs, and what can be asked about logs.

mod cert;
mod dump;
mod list;
mod serve;
mod status;
mod stop;

use super::Context;
use super::output::fail;
use crate::control::{Client, ClientError, Request, Response};
use crate::log_server::server_dirs;

/// Serve dirty-region logs to the kernel's mirrors and to volumes, and look at logs
///
/// The server speaks the format of the kernel's dm-log-userspace. docs/log-server.md says how to use it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(Debug, clap::Subcommand)]
enum LogVerb {
    Serve(serve::Args),
    List(list::Args),
    Status(status::Args),
    Dump(dump::Args),
    Stop(stop::Args),
    Forget(stop::ForgetArgs),
    Cert(cert::Args),
}

/// Which log server.
#[derive(Debug, clap::Args)]
struct Which {
    /// The server's name.
    #[arg(long, value_name = "NAME", default_value = "default")]
    name: String,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.verb {
        LogVerb::Serve(args) => serve::run(context, args),
        LogVerb::List(args) => list::run(context, &args),
        LogVerb::Status(args) => status::run(context, &args),
        LogVerb::Dump(args) => dump::run(context, &args),
        LogVerb::Stop(args) => stop::run(context, &args),
        LogVerb::Forget(args) => stop::forget(context, &args),
        LogVerb::Cert(args) => cert::run(context, &args),
    }
}

/// A connection to a log server.
struct Server<'a> {
    client: Client,
    name: &'a str,
    doing: &'a str,
}

impl<'a> Server<'a> {
    fn connect(context: &Context, which: &'a Which, doing: &'a str) -> anyhow::Result<Server<'a>> {
        let (dirs, name) = (server_dirs(&context.dirs), which.name.as_str());
        let client = Client::connect(&dirs, name).map_err(|error| explain(doing, name, error))?;
        Ok(Server { client, name, doing })
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<Response> {
        self.client.ask(request).map_err(|error| explain(self.doing, self.name, error))
    }

    fn unexpected<T>(&self) -> anyhow::Result<T> {
        anyhow::bail!(
            "{}: log server {} answers another question: is it of another version?",
            self.doing,
            self.name
        )
    }
}

fn explain(doing: &str, name: &str, error: ClientError) -> anyhow::Error {
    match error {
        ClientError::NotRunning { .. } => anyhow::anyhow!(
            "{doing}: no log server named {name} runs here; start one with `mirrord log serve`, or name another with --name"
        ),
        error => fail(doing, &error),
    }
}
