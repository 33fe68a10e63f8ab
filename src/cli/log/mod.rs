//! `mirrord log`: the daemon that keeps logs for others, and what is in logs.

mod cert;
mod dump;
mod forget;
mod list;
mod serve;
mod status;
mod stop;

use super::Context;
use super::output::{Usage, fail};
use crate::control::{Client, ClientError, Request, Response};
use crate::log_server::{DEFAULT_NAME, LogServerReport};
use crate::paths::{Dirs, check_name};

/// Keep dirty-region logs for the kernel's mirrors and for volumes elsewhere
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
    Forget(forget::Args),
    Cert(cert::Args),
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    match &args.verb {
        LogVerb::Serve(args) => serve::run(context, args),
        LogVerb::List(args) => list::run(context, args),
        LogVerb::Status(args) => status::run(context, args),
        LogVerb::Dump(args) => dump::run(context, args),
        LogVerb::Stop(args) => stop::run(context, args),
        LogVerb::Forget(args) => forget::run(context, args),
        LogVerb::Cert(args) => cert::run(context, args),
    }
}

/// Which server.
#[derive(Debug, clap::Args)]
struct Server {
    /// The log server, as its --name says.
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
}

impl Server {
    fn dirs(&self, context: &Context) -> anyhow::Result<Dirs> {
        check_name(&self.name).map_err(|error| Usage(format!("--name {}: {error}", self.name)))?;
        Ok(context.dirs.log_servers())
    }

    fn connect(&self, context: &Context, doing: &str) -> anyhow::Result<Asking> {
        let client = Client::connect(&self.dirs(context)?, &self.name);
        let client = client.map_err(|error| client_failed(doing, error))?;
        Ok(Asking { client, doing: doing.to_owned() })
    }
}

/// A connection to a server, and what for.
struct Asking {
    client: Client,
    doing: String,
}

impl Asking {
    fn ask(&mut self, request: &Request) -> anyhow::Result<Response> {
        self.client.ask(request).map_err(|error| client_failed(&self.doing, error))
    }

    fn server(&mut self) -> anyhow::Result<LogServerReport> {
        match self.ask(&Request::LogServer)? {
            Response::LogServer { server } => Ok(*server),
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> anyhow::Error {
        anyhow::anyhow!("{}: the server answered another question", self.doing)
    }
}

fn client_failed(doing: &str, error: ClientError) -> anyhow::Error {
    match error {
        ClientError::NotRunning { name } => {
            anyhow::anyhow!("{doing}: no log server {name} is running; start one with `mirrord log serve`")
        }
        error => fail(doing, &error),
    }
}
