//! The figures of a volume in Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). Names are the interface: add, never rename.

use std::fmt::{Display, Write};

use crate::engine::{BUCKETS, Histogram, KINDS};
use crate::scrub::ScrubStatus;
use crate::status::{LegStatus, VolumeState, VolumeStatus};

/// The media type of what [`render`] gives.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const VOLUME_STATES: [VolumeState; 4] =
    [VolumeState::InSync, VolumeState::Resyncing, VolumeState::Degraded, VolumeState::Failed];

const LEG_STATES: [&str; 5] = ["in_sync", "syncing", "tracked", "failed", "missing"];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Text in the making, all of one volume.
struct Text<'a> {
    text: String,
    volume: &'a str,
}

impl Text<'_> {
    /// A metric: its samples follow.
    fn metric(&mut self, kind: Kind, name: &'static str, help: &str) -> Samples<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        // Writing to a string does not fail, here and below.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Samples { text: &mut self.text, volume: self.volume, name }
    }
}

struct Samples<'a> {
    text: &'a mut String,
    volume: &'a str,
    name: &'static str,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.add_part("", labels, value);
    }

    /// A sample of a metric that has several names.
    fn add_part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.text, "{}{suffix}{{volume=\"{}\"", self.name, escape(self.volume));
        for (name, value) in labels {
            let _ = write!(self.text, ",{name}=\"{}\"", escape(value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn legs<T: Display>(&mut self, legs: &[LegStatus], value: impl Fn(&LegStatus) -> T) {
        for leg in legs {
            self.add(&[("leg", &leg.index.to_string())], value(leg));
        }
    }
}

/// A label's value.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// All figures of a volume.
pub(super) fn render(status: &VolumeStatus, latencies: Option<&[Histogram; KINDS.len()]>) -> String {
    use Kind::{Counter, Gauge};
    let mut text = Text { text: String::with_capacity(16 << 10), volume: &status.name };
    text.metric(Gauge, "mirrord_volume_info", "What is served and by whom; always 1.").add(
        &[
            ("uuid", &status.uuid.to_string()),
            ("device", &status.device.display().to_string()),
            ("front", &status.front),
            ("engine", &status.engine),
            ("version", env!("CARGO_PKG_VERSION")),
        ],
        1,
    );
    text.metric(Gauge, "mirrord_volume_size_bytes", "Size of the volume.").add(&[], status.size_bytes);
    let mut samples =
        text.metric(Gauge, "mirrord_volume_state", "1 for the state that the volume is in, else 0.");
    for state in VOLUME_STATES {
        samples.add(&[("state", state.name())], u8::from(state == status.state));
    }
    let io = &status.io;
    let mut samples =
        text.metric(Counter, "mirrord_requests_total", "Requests answered; zero requests are writes.");
    for (op, count) in KINDS.iter().zip([io.reads, io.writes, io.flushes]) {
        samples.add(&[("op", op)], count);
    }
    text.metric(Counter, "mirrord_request_errors_total", "Requests answered with an error.")
        .add(&[], io.errors);
    if let Some(latencies) = latencies {
        render_latencies(&mut text, latencies);
    }

    let log = &status.log;
    text.metric(Gauge, "mirrord_log_dirty_regions", "Regions whose bit is set.").add(&[], log.dirty_regions);
    text.metric(Counter, "mirrord_log_commits_total", "Commits of the dirty-region log.")
        .add(&[], log.commits);
    text.metric(
        Gauge,
        "mirrord_log_failed",
        "1 if the log cannot be written: after a crash the whole volume is resynced.",
    )
    .add(&[], u8::from(log.failed));
    if let Some(server) = &log.server {
        text.metric(Gauge, "mirrord_log_server_connected", "1 if the server of the log is there.")
            .add(&[], u8::from(server.connected));
        text.metric(Gauge, "mirrord_log_server_behind", "1 if the server lacks something that was marked.")
            .add(&[], u8::from(server.behind));
        text.metric(Counter, "mirrord_log_server_reconnects_total", "How often the log was had again.")
            .add(&[], server.reconnects);
    }
    let resync = &status.resync;
    text.metric(Gauge, "mirrord_resync_active", "1 while stale regions are copied, or wait for it.")
        .add(&[], u8::from(resync.active));
    text.metric(Counter, "mirrord_resync_copied_regions_total", "Regions copied by resync.")
        .add(&[], resync.copied_regions);
    render_scrub(&mut text, &status.scrub);
    render_legs(&mut text, &status.legs);
    text.text
}

fn render_latencies(text: &mut Text<'_>, latencies: &[Histogram; KINDS.len()]) {
    let help = "What requests take, from the moment that the engine takes them up until they are answered.";
    let mut samples = text.metric(Kind::Histogram, "mirrord_request_duration_seconds", help);
    for (op, histogram) in KINDS.iter().zip(latencies) {
        let mut sum = 0;
        for (at, count) in histogram.buckets.iter().enumerate() {
            sum += count;
            let limit = if at < BUCKETS { (1u64 << at) as f64 / 1e6 } else { f64::INFINITY };
            let limit = if limit.is_finite() { limit.to_string() } else { "+Inf".to_owned() };
            samples.add_part("_bucket", &[("op", op), ("le", &limit)], sum);
        }
        samples.add_part("_sum", &[("op", op)], histogram.nanoseconds as f64 / 1e9);
        samples.add_part("_count", &[("op", op)], sum);
    }
}

fn render_scrub(text: &mut Text<'_>, scrub: &ScrubStatus) {
    use Kind::Gauge;
    text.metric(
        Gauge,
        "mirrord_scrub_active",
        "1 while a scrub is under way, also one that is held or waits.",
    )
    .add(&[], u8::from(scrub.active));
    let done = scrub.done_bytes as f64 / scrub.total_bytes.max(1) as f64;
    text.metric(Gauge, "mirrord_scrub_done_ratio", "How much of the scrub under way is done, 0 to 1.")
        .add(&[], done);
    let Some(last) = &scrub.last else { return };
    let mut gauge = |name, help, value| text.metric(Gauge, name, help).add(&[], value);
    gauge(
        "mirrord_scrub_last_end_timestamp_seconds",
        "When the last scrub ended, in seconds since 1970.",
        last.ended_unix_seconds.unwrap_or(0),
    );
    gauge(
        "mirrord_scrub_last_complete",
        "1 if the last scrub came to the end of the volume.",
        u64::from(last.complete),
    );
    gauge(
        "mirrord_scrub_last_duration_seconds",
        "How long the last scrub took.",
        last.duration_milliseconds.div_ceil(1000),
    );
    gauge(
        "mirrord_scrub_last_mismatched_ranges",
        "Ranges in which the last scrub found that legs differ.",
        last.mismatched_ranges,
    );
    gauge("mirrord_scrub_last_mismatched_bytes", "Bytes of these.", last.mismatched_bytes);
    gauge("mirrord_scrub_last_repaired_ranges", "Ranges of these that it repaired.", last.repaired_ranges);
    gauge(
        "mirrord_scrub_last_read_errors",
        "Windows that a leg could not read all of in the last scrub.",
        last.read_errors,
    );
}

fn render_legs(text: &mut Text<'_>, legs: &[LegStatus]) {
    use Kind::{Counter, Gauge};
    let mut samples = text.metric(Gauge, "mirrord_leg_info", "Where a leg is; always 1.");
    for leg in legs {
        let (index, path) = (leg.index.to_string(), leg.path.display().to_string());
        samples.add(&[("leg", &index), ("uuid", &leg.uuid.to_string()), ("path", &path)], 1);
    }
    let mut samples = text.metric(Gauge, "mirrord_leg_state", "1 for the state that a leg is in, else 0.");
    for leg in legs {
        for state in LEG_STATES {
            let labels = [("leg", &leg.index.to_string()[..]), ("state", state)];
            samples.add(&labels, u8::from(state == leg.state));
        }
    }
    text.metric(Counter, "mirrord_leg_reads_total", "Reads that a leg answered.").legs(legs, |leg| leg.reads);
    text.metric(Counter, "mirrord_leg_writes_total", "Writes that a leg carried out.")
        .legs(legs, |leg| leg.writes);
    text.metric(
        Counter,
        "mirrord_leg_written_bytes_total",
        "Bytes written to a leg for users of the volume.",
    )
    .legs(legs, |leg| leg.written_bytes);
    text.metric(Counter, "mirrord_leg_resynced_bytes_total", "Bytes copied to a leg by resync.")
        .legs(legs, |leg| leg.resynced_bytes);
    let mut samples = text.metric(Counter, "mirrord_leg_errors_total", "IO on a leg that failed.");
    for leg in legs {
        for (op, count) in KINDS.iter().zip([leg.read_errors, leg.write_errors, leg.flush_errors]) {
            samples.add(&[("leg", &leg.index.to_string()), ("op", op)], count);
        }
    }
    let help = "Ranges that a leg could not read and that were written anew from another.";
    text.metric(Counter, "mirrord_leg_repaired_reads_total", help).legs(legs, |leg| leg.repaired_reads);
    let help = "Regions in which a leg's copy may be older than the volume.";
    text.metric(Gauge, "mirrord_leg_stale_regions", help).legs(legs, |leg| leg.stale_regions);
    let help = "IO on a leg that was given up and is still under way.";
    text.metric(Gauge, "mirrord_leg_hung", help).legs(legs, |leg| leg.hung);
    let help = "1 if a leg's file was deleted, renamed or truncated while it is served.";
    text.metric(Gauge, "mirrord_leg_file_amiss", help).legs(legs, |leg| u8::from(leg.file.is_some()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        let mut text = Text { text: String::new(), volume: "v" };
        text.metric(Kind::Gauge, "m", "a \\ and\na line").add(&[("path", "/a\\b\"c\nd ä")], 7);
        let right = "# HELP m a \\\\ and\\na line\n# TYPE m gauge\n\
                     m{volume=\"v\",path=\"/a\\\\b\\\"c\\nd ä\"} 7\n";
        assert_eq!(text.text, right);
    }

    #[test]
    fn buckets_add_up() {
        let mut text = Text { text: String::new(), volume: "v" };
        let mut histogram = Histogram { nanoseconds: 1_500_000_000, ..Histogram::default() };
        histogram.buckets[0] = 2;
        histogram.buckets[10] = 3;
        histogram.buckets[BUCKETS] = 1;
        render_latencies(&mut text, &[histogram, Histogram::default(), Histogram::default()]);
        let has = |line: &str| assert!(text.text.lines().any(|is| is == line), "{line}: {}", text.text);
        let name = "mirrord_request_duration_seconds";
        has(&format!("# TYPE {name} histogram"));
        for (limit, count) in
            [("0.000001", 2), ("0.000512", 2), ("0.001024", 5), ("16.777216", 5), ("+Inf", 6)]
        {
            has(&format!("{name}_bucket{{volume=\"v\",op=\"read\",le=\"{limit}\"}} {count}"));
        }
        has(&format!("{name}_sum{{volume=\"v\",op=\"read\"}} 1.5"));
        has(&format!("{name}_count{{volume=\"v\",op=\"read\"}} 6"));
        has(&format!("{name}_count{{volume=\"v\",op=\"flush\"}} 0"));
    }
}
