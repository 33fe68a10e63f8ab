//! The command line: one file per verb, which turns flags into checked options and makes one call.
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly. What was asked for goes to standard output, as JSON
//! with `--json`; notes and errors go to standard error, an error as one line that names the thing,
//! the cause and the way out. What was done is done whether or not it can be printed: see [`output::say_done`].

mod completions;
mod create;
mod doctor;
mod events;
mod inspect;
mod leg;
mod list;
mod log;
mod man;
mod map;
mod output;
mod resize;
mod resync;
mod run_hook;
mod scrub;
mod serve;
mod serve_split;
mod serving;
mod start;
mod status;
mod stop;
mod udev_owner;
mod upgrade;
mod wait;

use std::io;
use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser, Subcommand};

use crate::limits::{aside, survive_long_files};
use crate::paths::Dirs;
use output::{Told, Usage};

/// A RAID1 mirror that runs entirely in userspace.
///
/// Two or more files or block devices (legs) are served as one volume. Sizes are written 4096, 4KiB,
/// 512M, 1G or 1TiB: K, M, G, T, P and KiB, MiB, ... are powers of 1024, kB, MB, ... powers of 1000.
#[derive(Debug, Parser)]
#[command(name = "mirrord", version, propagate_version = true)]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Args),
    Start(start::Args),
    Stop(stop::Args),
    Upgrade(upgrade::Args),
    List(list::Args),
    Status(status::Args),
    Map(map::Args),
    Wait(wait::Args),
    Leg(leg::Args),
    Split(leg::SplitArgs),
    Merge(leg::MergeArgs),
    Events(events::Args),
    Resize(resize::Args),
    Resync(resync::Args),
    Scrub(scrub::Args),
    Log(log::Args),
    Inspect(inspect::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Serve(serve::Args),
    #[command(hide = true)]
    RunHook(run_hook::Args),
    #[command(hide = true)]
    UdevOwner(udev_owner::Args),
}

/// What every verb gets.
#[derive(Debug)]
struct Context {
    dirs: Dirs,
    json: bool,
}

/// The whole command line, for completions and manual pages.
fn command() -> Command {
    Cli::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    survive_long_files();
    let cli = Cli::parse();
    let context = Context { dirs: Dirs::from_env(), json: cli.json };
    let result = match cli.verb {
        Verb::Create(args) => create::run(&context, args),
        Verb::Start(args) => start::run(&context, args),
        Verb::Stop(args) => stop::run(&context, &args),
        Verb::Upgrade(args) => upgrade::run(&context, &args),
        Verb::List(args) => list::run(&context, &args),
        Verb::Status(args) => status::run(&context, &args),
        Verb::Map(args) => map::run(&context, &args),
        Verb::Wait(args) => wait::run(&context, &args),
        Verb::Leg(args) => leg::run(&context, &args),
        Verb::Split(args) => leg::split(&context, &args),
        Verb::Merge(args) => leg::merge(&context, &args),
        Verb::Events(args) => events::run(&context, &args),
        Verb::Resize(args) => resize::run(&context, &args),
        Verb::Resync(args) => resync::run(&context, &args),
        Verb::Scrub(args) => scrub::run(&context, &args),
        Verb::Log(args) => log::run(&context, &args),
        Verb::Inspect(args) => inspect::run(&context, &args),
        Verb::Doctor(args) => doctor::run(&context, &args),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
        Verb::Serve(args) => serve::run(&context, &args),
        Verb::RunHook(args) => run_hook::run(&args),
        Verb::UdevOwner(args) => udev_owner::run(&args),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if let Some(io) = error.downcast_ref::<io::Error>()
        && io.kind() == io::ErrorKind::BrokenPipe
    {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    if !error.is::<Told>() {
        aside(&format!("{error:#}"));
    }
    if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_makes_sense() {
        super::command().debug_assert();
    }
}
