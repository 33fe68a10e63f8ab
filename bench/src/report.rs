//! The result: tables of rows, each with a verdict where there is a target, as text and as Markdown.

use std::fmt::Write;

use crate::plot::Plot;
use crate::stats::Spread;

/// What a row is to reach.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Target {
    /// The ratio or value must not be below.
    AtLeast(f64),
    /// It must not be above.
    AtMost(f64),
    /// It is shown, not judged.
    None,
}

/// One line of a table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// mirrord's figure, with its unit.
    pub(crate) ours: String,
    /// The peer's figure, with its unit and name.
    pub(crate) theirs: String,
    /// What is judged: a ratio, or a value with its unit.
    pub(crate) judged: Option<Spread>,
    /// Its target.
    pub(crate) target: Target,
}

/// A table with what is to be said of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Section {
    /// Heading.
    pub(crate) title: String,
    /// How it was measured: paragraphs.
    pub(crate) how: Vec<String>,
    /// The table.
    pub(crate) rows: Vec<Row>,
    /// A picture of it.
    pub(crate) plot: Option<Plot>,
    /// A second table, of bare figures.
    pub(crate) figures: Option<Figures>,
    /// What else was seen, or could not be measured and why: a list.
    pub(crate) notes: Vec<String>,
    /// `how` says when and on what it was measured.
    pub(crate) dated: bool,
}

/// A table of figures that nobody judges.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// The first line.
    pub(crate) head: Vec<String>,
    /// The others, as many cells in each.
    pub(crate) rows: Vec<Vec<String>>,
}

const HEAD: [&str; 6] = ["what", "mirrord", "beside", "ratio or value", "target", "verdict"];

impl Row {
    fn cells(&self) -> [String; 6] {
        let judged = self.judged.map_or(String::new(), |spread| {
            let (median, least, most) = (number(spread.median), number(spread.least), number(spread.most));
            if least == most { median } else { format!("{median} ({least} to {most})") }
        });
        let target = match self.target {
            Target::AtLeast(least) => format!("at least {least}"),
            Target::AtMost(most) => format!("at most {most}"),
            Target::None => String::new(),
        };
        let verdict = self.verdict().unwrap_or_default().to_owned();
        [self.what.clone(), self.ours.clone(), self.theirs.clone(), judged, target, verdict]
    }

    /// `None` where there is nothing to judge.
    pub(crate) fn verdict(&self) -> Option<&'static str> {
        let met = match (self.target, self.judged) {
            (Target::AtLeast(least), Some(spread)) => spread.median >= least,
            (Target::AtMost(most), Some(spread)) => spread.median <= most,
            _ => return None,
        };
        Some(if met { "met" } else { "**missed**" })
    }
}

/// Two digits after the point where they mean something.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 100.0 { grouped(value) } else { format!("{value:.2}") }
}

/// A whole number, with its thousands set apart.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Rows of as many cells each, in columns.
fn aligned(rows: Vec<Vec<String>>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ").replace("**", "");
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    text
}

impl Section {
    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("\n{}\n", self.title);
        if !self.rows.is_empty() {
            let rows = self.rows.iter().map(|row| row.cells().to_vec());
            text.push_str(&aligned(std::iter::once(HEAD.map(str::to_owned).to_vec()).chain(rows).collect()));
        }
        if let Some(Figures { head, rows }) = &self.figures {
            text.push_str(&aligned(std::iter::once(head.clone()).chain(rows.clone()).collect()));
        }
        for note in &self.notes {
            let _ = writeln!(text, "  - {note}");
        }
        text
    }

    /// For BENCHMARKS.md; `dated` is one more paragraph, or nothing.
    pub(crate) fn markdown(&self, dated: &str) -> String {
        let mut text = format!("\n## {}\n", self.title);
        for how in self.how.iter().map(String::as_str).chain([dated]).filter(|how| !how.is_empty()) {
            let _ = writeln!(text, "\n{how}");
        }
        if !self.rows.is_empty() {
            let _ = write!(text, "\n| {} |\n|---|---|---|---|---|---|\n", HEAD.join(" | "));
            for row in &self.rows {
                let _ = writeln!(text, "| {} |", row.cells().join(" | "));
            }
        }
        if let Some(plot) = &self.plot {
            let _ = writeln!(text, "\n![{}]({})", plot.title, plot.file);
        }
        if let Some(Figures { head, rows }) = &self.figures {
            let _ = write!(text, "\n| {} |\n{}|\n", head.join(" | "), "|---".repeat(head.len()));
            for row in rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        if !self.notes.is_empty() {
            text.push('\n');
            for note in &self.notes {
                let _ = writeln!(text, "- {note}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: Target, median: f64) -> Row {
        let judged = Some(Spread { median, least: median - 0.1, most: median + 0.1 });
        Row { what: "w".into(), ours: "1 /s".into(), theirs: "2 /s fio".into(), judged, target }
    }

    #[test]
    fn verdicts_go_by_the_median() {
        assert_eq!(row(Target::AtLeast(0.9), 0.9).verdict(), Some("met"));
        assert_eq!(row(Target::AtLeast(0.9), 0.89).verdict(), Some("**missed**"));
        assert_eq!(row(Target::AtMost(3.0), 3.0).verdict(), Some("met"));
        assert_eq!(row(Target::AtMost(3.0), 3.1).verdict(), Some("**missed**"));
        assert_eq!(row(Target::None, 1.0).verdict(), None);
    }

    #[test]
    fn tables_come_out_whole() {
        let rows = vec![row(Target::AtLeast(0.9), 0.95)];
        let section = Section { title: "T".into(), rows, notes: vec!["n".into()], ..Section::default() };
        assert!(
            section
                .markdown("")
                .contains("| w | 1 /s | 2 /s fio | 0.95 (0.85 to 1.05) | at least 0.9 | met |")
        );
        assert!(section.text().contains("  - n\n"));
        assert_eq!(grouped(1234567.0), "1 234 567");
        assert_eq!(number(-0.5), "-0.50");
    }
}
