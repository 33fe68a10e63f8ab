//! Printing, and errors on their way out.

use std::error::Error;
use std::io::{self, Write};

use serde::Serialize;

use crate::failure::describe;
use crate::limits::aside;

/// An error in how the program was called: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub(super) String);

/// An error that was reported already: exit code 1 and no more.
#[derive(Debug, thiserror::Error)]
#[error("reported already")]
pub(super) struct Told;

/// Prints a line, or several.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Prints a value as JSON, over several lines.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?)
}

/// Says something aside.
pub(super) fn note(text: &str) {
    aside(&format!("note: {text}"));
}

/// For what was done before it was printed: that it cannot be printed does not undo it, so it is a note and no failure.
pub(super) fn say_done(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    let Err(error) = printed else { return Ok(()) };
    let Some(error) = error.downcast_ref::<io::Error>() else { return Err(error) };
    // A reader that closed the pipe has seen enough.
    if error.kind() != io::ErrorKind::BrokenPipe {
        note(&format!("it is done, but standard output cannot be written: {}", describe(error)));
    }
    Ok(())
}

/// What could not be done, and why.
pub(super) fn fail(doing: &str, error: &(dyn Error + 'static)) -> anyhow::Error {
    anyhow::anyhow!("{doing}: {}", describe(error))
}

/// The rows as columns, each as wide as its widest cell, two blanks between; the last is not padded.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = columns(&[row(["a", "long one", "x"]), row(["bbb", "c", "y"])]);
        assert_eq!(text, "a    long one  x\nbbb  c         y\n");
    }
}
