//! `mirrord map`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::value_parser;

use super::Context;
use super::output::{fail, print, print_json};
use super::status::{not_running, progress};
use crate::control::{Client, ClientError, Failure};
use crate::map::{self, VolumeMap};
use crate::registry::volume_on;
use crate::status::VolumeStatus;

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

/// Cells in a line where there is no terminal.
const WIDTH: usize = 100;

/// Most lines of cells for the log, and for each leg.
const LINES: usize = 16;

/// Draw the regions of a running volume: clean or dirty, and stale for each leg that is not in sync
///
/// A cell stands for several regions if there are more than fit, and shows the worst of them. With --json all
/// regions are told one by one, those alike and beside each other as one run: most volumes have few runs, none more
/// than regions. The volume goes on meanwhile, so that a map is of no single moment.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Go on drawing it: on a terminal each second, else whenever it has changed.
    #[arg(long, conflicts_with = "svg")]
    watch: bool,
    /// Cells in a line; as many as fit the terminal if it is not given, 100 where there is none.
    #[arg(long, value_name = "CELLS", value_parser = value_parser!(u16).range(1..=1000), conflicts_with = "json")]
    width: Option<u16>,
    /// Write it to a file, as an SVG picture.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Overwrite the file.
    #[arg(long, requires = "svg")]
    force: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot map {}", args.name);
    let failed = |error: ClientError| match error {
        ClientError::NotRunning { name } => not_running(context, &doing, &name),
        ClientError::Refused { reason: Failure::BadRequest, .. } => anyhow::anyhow!(
            "{doing}: its daemon is of an older version; stop and start it, or have it replaced in use with \
             `mirrord upgrade {}` if it is a block device",
            args.name
        ),
        error => fail(&doing, &error),
    };
    let mut client = Client::connect(&context.dirs, &args.name).map_err(failed)?;
    if context.json && !args.watch {
        return print_json(&client.map(None).map_err(failed)?);
    }
    if let Some(file) = &args.svg {
        let paper = Paper { width: args.width.map_or(WIDTH, usize::from), height: None, colour: false };
        let (title, map) = look(&mut client, &paper).map_err(failed)?;
        write(file, args.force, &map::svg(&map, &title, paper.width))?;
        return print(&format!("{} drawn to {}", args.name, file.display()));
    }
    let terminal = io::stdout().is_terminal();
    let mut shown = String::new();
    loop {
        let drawn = if context.json {
            client.map(None).map(|map| serde_json::to_string(&map))
        } else {
            let paper = Paper::of_stdout(args.width);
            let drawn = look(&mut client, &paper);
            drawn.map(|(title, map)| Ok(map::text(&map, &title, paper.width, paper.colour)))
        };
        let text = match drawn {
            Err(ClientError::NotRunning { name }) if !shown.is_empty() => {
                return print(&format!("{name} stopped"));
            }
            drawn => drawn.map_err(failed)??,
        };
        if !args.watch {
            return print(&text);
        }
        if terminal && !context.json {
            // Home, and clear from there.
            print(&format!("\x1b[H\x1b[J{text}"))?;
        } else if text != shown {
            print(&text)?;
        }
        shown = text;
        thread::sleep(PERIOD);
    }
}

/// What a map is drawn on.
struct Paper {
    /// Cells in a line.
    width: usize,
    /// Lines that there are, if they are not endless.
    height: Option<usize>,
    colour: bool,
}

impl Paper {
    /// Standard output as it is now: a terminal may change its size.
    fn of_stdout(width: Option<u16>) -> Paper {
        let terminal = io::stdout().is_terminal();
        let size =
            rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| terminal && size.ws_col > 0);
        let columns = size.map(|size| usize::from(size.ws_col).saturating_sub(map::MARGIN).max(1));
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paper {
            width: width.map(usize::from).or(columns).unwrap_or(WIDTH),
            height: size.map(|size| size.ws_row.into()),
            colour: terminal && !plain,
        }
    }

    /// The cells of one of so many blocks.
    fn cells(&self, blocks: usize) -> Option<NonZeroU32> {
        // The cursor has a line of its own.
        let lines =
            self.height.map_or(LINES, |height| height.saturating_sub(map::HEAD + 1 + blocks) / blocks);
        NonZeroU32::new((self.width * lines.clamp(1, LINES)) as u32)
    }
}

/// The map in as many cells as fit, and how the volume is.
fn look(client: &mut Client, paper: &Paper) -> Result<(String, VolumeMap), ClientError> {
    let status = client.status()?;
    let blocks = 1 + status.legs.iter().filter(|leg| leg.state != "in_sync").count();
    Ok((title(&status), client.map(paper.cells(blocks))?))
}

fn title(status: &VolumeStatus) -> String {
    let resync = progress(status).map_or(String::new(), |progress| format!("  resync {progress}"));
    format!("{}  {}{resync}", status.name, status.state.name())
}

/// Writes a picture; a file that is there is overwritten only by `force`.
fn write(path: &Path, force: bool, picture: &str) -> anyhow::Result<()> {
    let is_other = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if is_other || volume_on(path).is_some() {
        anyhow::bail!("{} is a leg of a volume, or no file: name another", path.display());
    }
    let mut options = File::options();
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.write(true).open(path).and_then(|mut file| file.write_all(picture.as_bytes()));
    let exists = |error: &io::Error| !force && error.kind() == io::ErrorKind::AlreadyExists;
    match written {
        Err(error) if exists(&error) => {
            anyhow::bail!(
                "{} is there already: name another file, or overwrite it with --force",
                path.display()
            )
        }
        written => written.map_err(|error| fail(&format!("cannot write {}", path.display()), &error)),
    }
}
