//! A map as an SVG picture that fits light and dark pages.
//!
//! Cells that are alike and beside each other are one dashed line, each dash a cell: a picture of a map has as
//! many elements as it has runs, not as it has cells.

use std::fmt::Write;

use super::draw::{blocks, line_offset, scale};
use super::{RegionWord, VolumeMap};

/// From one cell to the next, of which the last unit is blank.
const CELL: usize = 9;
/// Height of a line of text.
const LINE: usize = 18;
/// Width of the offsets.
const LEFT: usize = 72;
/// Around everything.
const EDGE: usize = 12;
/// Least width, for the legend.
const LEAST: usize = 600;

/// The states with their classes and names.
const WORDS: [(RegionWord, &str, &str); 4] = [
    (RegionWord::Clean, "clean", "clean, in sync"),
    (RegionWord::Dirty, "dirty", "dirty"),
    (RegionWord::Stale, "stale", "stale"),
    (RegionWord::Resyncing, "resyncing", "resyncing"),
];

/// Colours of text and of the states in the order of [`WORDS`], on light pages and on dark ones.
const LIGHT: [&str; 5] = ["#333", "#c3d9c3", "#e0a21b", "#c43c35", "#1f5fa8"];
const DARK: [&str; 5] = ["#ddd", "#33503a", "#d79a1e", "#d9534a", "#6aa9ec"];

/// The map with `width` (not zero) cells to a line, under `title`.
pub fn svg(map: &VolumeMap, title: &str, width: usize) -> String {
    let mut body = String::new();
    let mut y = EDGE + LINE - 6;
    let text = |body: &mut String, x: usize, y: usize, words: &str| {
        let _ = writeln!(body, "<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(words));
    };
    text(&mut body, EDGE, y, title);
    y += LINE;
    text(&mut body, EDGE, y, &scale(map).join("; "));
    y += LINE;
    for (number, (word, _, name)) in WORDS.into_iter().enumerate() {
        let x = EDGE + number * 130;
        cells(&mut body, word, x, y - CELL / 2, 1);
        text(&mut body, x + CELL + 5, y, name);
    }
    y += LINE / 2;
    for block in blocks(map) {
        y += LINE;
        text(&mut body, EDGE, y, &block.heading);
        y += LINE / 2;
        for (number, line) in block.cells.chunks(width).enumerate() {
            // Offsets stand at every other line: they are higher than a cell.
            if number % 2 == 0 {
                text(&mut body, EDGE, y + CELL - 1, &line_offset(map, number, width));
            }
            let mut x = EDGE + LEFT;
            for alike in line.chunk_by(PartialEq::eq) {
                cells(&mut body, alike[0], x, y + CELL / 2, alike.len());
                x += alike.len() * CELL;
            }
            y += CELL;
        }
        y += CELL;
    }
    let (width, height) = ((2 * EDGE + LEFT + width * CELL).max(LEAST), y + EDGE);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n<title>{}</title>\n\
         <style>line{{stroke-width:{};stroke-dasharray:{} 1}}{}@media (prefers-color-scheme:dark){{{}}}</style>\n\
         {body}</svg>\n",
        escaped(title),
        CELL - 1,
        CELL - 1,
        rules(LIGHT),
        rules(DARK)
    )
}

fn rules(colours: [&str; 5]) -> String {
    let [text, states @ ..] = colours;
    let rule =
        |((_, class, _), colour): ((RegionWord, &str, &str), &str)| format!(".{class}{{stroke:{colour}}}");
    let states: String = WORDS.into_iter().zip(states).map(rule).collect();
    format!("text{{fill:{text}}}{states}")
}

/// A row of cells that are alike, `y` in their middle.
fn cells(body: &mut String, word: RegionWord, x: usize, y: usize, count: usize) {
    let class = WORDS[word as usize].1;
    let end = x + count * CELL;
    let _ = writeln!(body, "<line class=\"{class}\" x1=\"{x}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\"/>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::draw::tests::sample;
    use super::*;

    /// The names of elements, in order, each closed where it must be.
    fn elements(svg: &str) -> Vec<&str> {
        let (mut names, mut open) = (Vec::new(), Vec::new());
        for piece in svg.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').expect("a tag ends");
            assert!(!text.contains('>') && !tag.contains('\n'), "{piece}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let name = tag.trim_matches('/').split(' ').next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                names.push(name);
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty(), "{open:?}");
        names
    }

    #[test]
    fn every_run_of_a_line_is_drawn() {
        let svg = svg(&sample(), "v & <w>", 10);
        let names = elements(&svg);
        assert_eq!(names[..3], ["svg", "title", "style"]);
        // Four in the legend; the log's lines have 3 and 2 runs, those of leg 1 3 and 2, of leg 2 3 and 2.
        assert_eq!(names.iter().filter(|name| **name == "line").count(), 4 + 15);
        assert!(svg.contains("v &amp; &lt;w&gt;"), "{svg}");
        for (class, count) in
            [("clean", 1 + 3 + 3 + 3), ("dirty", 1 + 2), ("stale", 1 + 1 + 2), ("resyncing", 2)]
        {
            assert_eq!(svg.matches(&format!("class=\"{class}\"")).count(), count, "{class}");
        }
        // Two cells that are dirty, from the fifth on.
        let x = EDGE + LEFT + 4 * CELL;
        assert!(svg.contains(&format!("<line class=\"dirty\" x1=\"{x}\"")), "{svg}");
        assert!(svg.contains(&format!("x2=\"{}\"", x + 2 * CELL)), "{svg}");
    }

    #[test]
    fn states_have_the_colours_of_their_names() {
        for (at, (word, ..)) in WORDS.into_iter().enumerate() {
            assert_eq!(word as usize, at);
        }
    }
}
