//! `mirrord scrub`.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::leg::absolute_if_path;
use super::output::{Told, print, print_json};
use super::status::client_failed;
use crate::control::{Client, ClientError, Request};
use crate::scrub::{ScrubOrder, ScrubRange, ScrubResult, ScrubStatus};
use crate::units::{format_seconds, format_size, parse_size};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Ranges that are named for people; all are in the JSON.
const SHOWN: usize = 16;

/// Compare the legs of a running volume with each other, and repair what differs
///
/// Reads every byte of the legs in sync while the volume is in use. On a terminal the command shows the progress and waits
/// for the end. Otherwise it returns at once, unless --wait is given. The daemon continues the scrub, also after a restart.
/// A command that waited exits with code 1 if legs still differ at the end.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Write what differs anew on the legs that are wrong: from the majority of the legs, or, if there is none, from
    /// the first leg in sync.
    #[arg(long)]
    repair: bool,
    /// Repair from this leg instead: its path, index or UUID.
    #[arg(long, value_name = "LEG", requires = "repair")]
    from: Option<String>,
    /// Compare at most so many bytes of the volume per second, 0 for no limit; of the scrub under way, if there is one.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    /// Wait for the end, also of the scrub under way.
    #[arg(long)]
    wait: bool,
    /// Hold the scrub under way.
    #[arg(long, conflicts_with_all = ["resume", "cancel", "repair", "schedule", "wait"])]
    pause: bool,
    /// Let it go on.
    #[arg(long, conflicts_with_all = ["cancel", "repair", "schedule"])]
    resume: bool,
    /// End it.
    #[arg(long, conflicts_with_all = ["repair", "schedule", "wait", "rate"])]
    cancel: bool,
    /// From now on begin one (without --repair) whenever the last one ended so many days ago; off: never.
    #[arg(long, value_name = "DAYS", value_parser = parse_days, conflicts_with_all = ["repair", "wait", "rate"])]
    schedule: Option<u32>,
}

/// Ten years are as good as never.
fn parse_days(text: &str) -> Result<u32, String> {
    match (text, text.parse()) {
        ("off", _) => Ok(0),
        (_, Ok(days @ 1..=3650)) => Ok(days),
        _ => Err("a number of days from 1 to 3650, or off".to_owned()),
    }
}

impl Args {
    /// What is to be done, with a scrub under way or not.
    fn orders(&self, active: bool) -> Vec<ScrubOrder> {
        let mut orders = Vec::new();
        if let Some(days) = self.schedule {
            return vec![ScrubOrder::Schedule { days }];
        }
        if self.cancel {
            return vec![ScrubOrder::Cancel];
        }
        if let Some(rate) = self.rate.filter(|_| active && !self.repair) {
            orders.push(ScrubOrder::Rate { rate });
        }
        if self.pause || self.resume {
            orders.push(ScrubOrder::Pause { paused: self.pause });
        }
        if orders.is_empty() && !(active && self.wait && !self.repair) {
            let from = self.from.as_deref().map(absolute_if_path);
            orders.push(ScrubOrder::Start { repair: self.repair, from, rate: self.rate });
        }
        orders
    }

    /// Whether to stay until the end.
    fn waits(&self, orders: &[ScrubOrder]) -> bool {
        let begins = orders.iter().any(|order| matches!(order, ScrubOrder::Start { .. }));
        self.wait || begins && std::io::stderr().is_terminal() && std::io::stdout().is_terminal()
    }
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot scrub {}", args.name);
    let failed = client_failed(context, &doing);
    let mut client = Client::connect(&context.dirs, &args.name).map_err(failed)?;
    let before = client.status().map_err(failed)?.scrub;
    let orders = args.orders(before.active);
    let waits = args.waits(&orders);
    for order in orders {
        client.ask(&Request::Scrub { order }).map_err(failed)?;
    }
    let scrub = if waits { wait(&mut client, args, failed)? } else { client.status().map_err(failed)?.scrub };
    if context.json {
        print_json(&scrub)?;
    } else {
        print(&format!("{} scrub {}", args.name, summary(&scrub)))?;
        let found = scrub.current.as_ref().or(scrub.last.as_ref());
        for range in
            found.iter().filter(|_| waits || args.cancel).flat_map(|found| found.ranges.iter()).take(SHOWN)
        {
            print(&format!("  {}", line(range)))?;
        }
    }
    let left = scrub.last.as_ref().is_some_and(|last| last.left() > 0);
    if waits && left { Err(Told.into()) } else { Ok(()) }
}

/// Until the scrub under way has ended.
fn wait(
    client: &mut Client,
    args: &Args,
    failed: impl Fn(ClientError) -> anyhow::Error,
) -> anyhow::Result<ScrubStatus> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(args.name.clone());
    loop {
        let scrub = client.status().map_err(&failed)?.scrub;
        if !scrub.active {
            bar.finish_and_clear();
            if !scrub.last.as_ref().is_some_and(|last| last.complete) {
                bail!("cannot wait for the scrub of {}: it was canceled", args.name);
            }
            return Ok(scrub);
        }
        if scrub.paused {
            bar.finish_and_clear();
            bail!(
                "the scrub of {} is held: let it go on with `mirrord scrub {} --resume`",
                args.name,
                args.name
            );
        }
        bar.set_length(scrub.total_bytes.max(1));
        bar.set_position(scrub.done_bytes);
        bar.set_message(summary(&scrub));
        thread::sleep(PERIOD);
    }
}

fn found(result: &ScrubResult) -> String {
    let mut text = match result.mismatched_ranges {
        0 => "no difference".to_owned(),
        1 => format!("1 range differed ({} bytes)", result.mismatched_bytes),
        ranges => format!("{ranges} ranges differed ({} bytes)", result.mismatched_bytes),
    };
    if result.mismatched_ranges > 0 {
        match &result.outvoted.iter().map(|known| known.leg.to_string()).collect::<Vec<_>>()[..] {
            [] => text.push_str(", no majority"),
            legs => text.push_str(&format!(", outvoted: leg {}", legs.join(", "))),
        }
        text.push_str(&format!(", {} repaired", result.repaired_ranges));
    }
    if result.read_errors > 0 {
        text.push_str(&format!(", {} read errors", result.read_errors));
    }
    text
}

/// How scrubbing is, in a line.
pub(super) fn summary(scrub: &ScrubStatus) -> String {
    let schedule = scrub.schedule_days.map_or(String::new(), |days| format!(", every {days} days"));
    if let Some(current) = &scrub.current {
        let percent = scrub.done_bytes * 100 / scrub.total_bytes.max(1);
        let (rate, done) = (format_size(scrub.bytes_per_second), format_size(scrub.done_bytes));
        let eta = scrub.eta_seconds.map_or(String::new(), |eta| format!(", {} to go", format_seconds(eta)));
        let held = match (&scrub.waiting_for, scrub.paused) {
            (_, true) => ", paused",
            (Some(what), _) => match &what[..] {
                "resync" => ", waits for resync",
                "split" => ", waits for a split",
                _ => ", waits for a second leg in sync",
            },
            (None, _) => "",
        };
        let total = format_size(scrub.total_bytes);
        return format!("{percent}% ({done} of {total}), {rate}/s{eta}{held}; {}", found(current));
    }
    match &scrub.last {
        Some(last) => {
            let how = if last.complete { "finished" } else { "canceled" };
            let when = last.ended.as_deref().unwrap_or("");
            format!(
                "{how} {when} after {}: {}{schedule}",
                format_seconds(last.duration_milliseconds.div_ceil(1000)),
                found(last)
            )
        }
        None => format!("never{schedule}"),
    }
}

/// A range, for people.
fn line(range: &ScrubRange) -> String {
    let names = |legs: &[usize]| legs.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let groups: Vec<String> = range.groups.iter().map(|legs| names(legs)).collect();
    let who = match range.outvoted.len() {
        0 => ", no majority".to_owned(),
        _ => format!(", outvoted: {}", names(&range.outvoted)),
    };
    let repaired = match range.repaired.len() {
        0 => String::new(),
        _ => format!(", repaired: {}", names(&range.repaired)),
    };
    format!("{}+{} bytes: legs {}{who}{repaired}", range.offset, range.length, groups.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scrub::Outvoted;

    #[test]
    fn results_are_told_in_a_line() {
        let mut scrub = ScrubStatus { total_bytes: 1 << 30, ..ScrubStatus::default() };
        assert_eq!(summary(&scrub), "never");
        let clean = ScrubResult { complete: true, ended: Some("T".to_owned()), ..ScrubResult::default() };
        scrub.last = Some(clean.clone());
        scrub.schedule_days = Some(7);
        assert_eq!(summary(&scrub), "finished T after 0s: no difference, every 7 days");
        let mut result = clean;
        (result.mismatched_ranges, result.mismatched_bytes, result.repaired_ranges) = (2, 1024, 1);
        assert!(found(&result).ends_with("2 ranges differed (1024 bytes), no majority, 1 repaired"));
        result.outvoted.push(Outvoted { leg: 2, bytes: 1024 });
        result.read_errors = 3;
        scrub.current = Some(result);
        (scrub.done_bytes, scrub.waiting_for) = (1 << 29, Some("legs".to_owned()));
        let text = summary(&scrub);
        assert!(text.starts_with("50% (512"), "{text}");
        let end = "waits for a second leg in sync; 2 ranges differed (1024 bytes), outvoted: leg 2, 1 repaired, 3 read errors";
        assert!(text.ends_with(end), "{text}");
        let range = ScrubRange {
            offset: 512,
            length: 1024,
            groups: vec![vec![0, 1], vec![2]],
            outvoted: vec![2],
            repaired: vec![2],
        };
        assert_eq!(line(&range), "512+1024 bytes: legs 0 1 | 2, outvoted: 2, repaired: 2");
    }

    #[test]
    fn days_are_a_few() {
        assert_eq!((parse_days("off"), parse_days("30")), (Ok(0), Ok(30)));
        for text in ["0", "-1", "4000", "week", ""] {
            assert!(parse_days(text).is_err(), "{text}");
        }
    }
}
