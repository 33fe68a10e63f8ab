//! BENCHMARKS.md: all sections of a run, or those of some groups put in the place of older ones.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::compare::Plan;
use crate::program;
use crate::report::Section;

/// A run: what was measured, how, and on what.
pub(crate) struct Document<'a> {
    /// The directory of the bench.
    pub(crate) directory: &'a Path,
    /// How often and how long.
    pub(crate) plan: Plan,
    /// What it was measured on.
    pub(crate) facts: &'a [(&'static str, String)],
    /// The machine had other work.
    pub(crate) busy: bool,
    /// The sections with the names of their groups.
    pub(crate) sections: &'a [(String, Section)],
}

const BUSY: &str = "The machine was busy with other work when the run began: take the figures for rough.";

impl Document<'_> {
    /// Writes it to `path`, and pictures beside it. With `partly`, what other groups have there stays.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub(crate) fn write(&self, path: &Path, partly: bool) -> Result<()> {
        let text = match partly && path.exists() {
            true => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                self.sections.iter().fold(text, |text, (group, section)| {
                    let facts = if section.dated { String::new() } else { self.dated() };
                    replaced(&text, group, &section.markdown(&facts))
                })
            }
            false => self.whole(),
        };
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        for plot in self.sections.iter().filter_map(|(_, section)| section.plot.as_ref()) {
            let file = path.with_file_name(plot.file);
            if let Some(parent) = file.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&file, plot.svg()).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// The facts as a paragraph, for a section that was measured by itself.
    fn dated(&self) -> String {
        let facts: Vec<String> = self.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let Plan { rounds, seconds, .. } = self.plan;
        let busy = if self.busy { format!(" {BUSY}") } else { String::new() };
        format!(
            "Measured by itself, {rounds} rounds of {seconds} seconds, on this: {}.{busy}",
            facts.join("; ")
        )
    }

    fn whole(&self) -> String {
        let Plan { rounds, seconds, warm_up } = self.plan;
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench ARGS=\"--write BENCHMARKS.md\"`. Each rate is the median of {rounds} \
             rounds of {seconds} seconds after a warm-up of {warm_up} s; in each round every contender had its turn. \
             A ratio is the median of the ratios within a round, with the least and the greatest. What counts is the \
             ratio: the figures belong to this machine.\n\n",
        );
        for (name, value) in self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        if self.busy {
            let _ = writeln!(text, "\n{BUSY}");
        }
        for (group, section) in self.sections {
            text.push_str(&marked(group, &section.markdown("")));
        }
        text.push_str(COMMANDS);
        text.push_str("\nAs they were run, `$DIR` being the directory of the bench.\n\n```text\n");
        for line in program::command_lines(self.directory) {
            let _ = writeln!(text, "{}", relative(&line));
        }
        text.push_str("```\n");
        text
    }
}

/// What follows the sections.
const COMMANDS: &str = "\n## Commands\n";

/// A section between the marks by which a later run finds it.
fn marked(group: &str, section: &str) -> String {
    format!("\n<!-- begin {group} -->\n{section}\n<!-- end {group} -->\n")
}

/// `text` with this section of `group` instead of the one it has, or behind the others.
fn replaced(text: &str, group: &str, section: &str) -> String {
    let (begin, end) = (format!("\n<!-- begin {group} -->\n"), format!("<!-- end {group} -->\n"));
    let new = marked(group, section);
    let old = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    match old.or_else(|| text.find(COMMANDS).map(|at| text.split_at(at))) {
        Some((before, after)) => format!("{before}{new}{after}"),
        None => format!("{text}{new}"),
    }
}

/// Programs by their names, not by where they were built.
fn relative(line: &str) -> String {
    let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
    let name = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy());
    format!("{name} {rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_takes_the_place_of_its_groups_last_one() {
        let first = replaced("# Head\n\n## Commands\n\nls\n", "vm", "one\n");
        assert_eq!(first, "# Head\n\n<!-- begin vm -->\none\n\n<!-- end vm -->\n\n## Commands\n\nls\n");
        let other = replaced(&first, "log", "other\n");
        let second = replaced(&other, "vm", "two\n");
        assert_eq!(second, other.replace("one", "two"));
        assert_eq!(replaced("x\n", "vm", "y"), "x\n\n<!-- begin vm -->\ny\n<!-- end vm -->\n");
    }
}
