//! A picture of ratios: bars in groups, as an SVG that fits light and dark pages.

use std::fmt::Write;

/// Bars beside each other, a group for each workload.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Where it goes, from where the tables go.
    pub(crate) file: &'static str,
    /// Heading.
    pub(crate) title: String,
    /// What the bars of each group stand for.
    pub(crate) series: Vec<String>,
    /// The groups: two lines of a name, and a value for each of the series.
    pub(crate) groups: Vec<([String; 2], Vec<f64>)>,
}

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 340.0;
/// Edges of the area with the bars.
const LEFT: f64 = 34.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = HEIGHT - 44.0;
/// Of a group's width, what is between it and the next.
const GAP: f64 = 0.18;

/// Colours of text, lines and up to four series, on light pages and on dark ones.
const LIGHT: [&str; 6] = ["#333", "#ccc", "#b4b8be", "#868c95", "#1f5fa8", "#7fb0e0"];
const DARK: [&str; 6] = ["#ddd", "#444", "#5c626b", "#8b919a", "#6aa9ec", "#35618f"];
const CLASSES: [&str; 6] = ["text", "line", "s0", "s1", "s2", "s3"];

impl Plot {
    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let values = self.groups.iter().flat_map(|(_, values)| values);
        let most = values.copied().fold(1.0, f64::max);
        let top = most.ceil();
        let y = |value: f64| BOTTOM - value / top * (BOTTOM - TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
             height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\" role=\"img\">\n<title>{}</title>\n",
            escaped(&self.title)
        );
        let rules = |colours: [&str; 6]| {
            let rule = |(class, colour): (&str, &str)| match class {
                "line" => format!(".line{{stroke:{colour}}}"),
                _ => format!(".{class}{{fill:{colour}}}"),
            };
            CLASSES.into_iter().zip(colours).map(rule).collect::<String>()
        };
        let _ = writeln!(
            svg,
            "<style>{} .one{{stroke-width:2}} @media (prefers-color-scheme:dark){{{}}}</style>",
            rules(LIGHT),
            rules(DARK)
        );
        let text = |x: f64, y: f64, anchor: &str, text: &str| {
            format!(
                "<text class=\"text\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
                escaped(text)
            )
        };
        svg.push_str(&text(LEFT, 18.0, "start", &self.title).replace("<text", "<text font-size=\"13\""));
        self.legend(&mut svg, &text);
        for step in 0..=top as u32 {
            let value = f64::from(step);
            let class = if step == 1 { "line one" } else { "line" };
            let at = y(value);
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"
            );
            svg.push_str(&text(LEFT - 5.0, at + 4.0, "end", &value.to_string()));
        }
        let group = (WIDTH - LEFT) / self.groups.len() as f64;
        let bar = group * (1.0 - GAP) / self.series.len() as f64;
        for (number, (names, values)) in self.groups.iter().enumerate() {
            let left = LEFT + group * (number as f64 + GAP / 2.0);
            for (series, &value) in values.iter().enumerate() {
                let x = left + bar * series as f64;
                let _ = writeln!(
                    svg,
                    "<rect class=\"s{series}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                    y(value),
                    bar - 2.0,
                    BOTTOM - y(value)
                );
                svg.push_str(&text(x + bar / 2.0 - 1.0, y(value) - 4.0, "middle", &format!("{value:.2}")));
            }
            for (line, name) in names.iter().enumerate() {
                let down = BOTTOM + 17.0 + 15.0 * line as f64;
                svg.push_str(&text(left + bar * values.len() as f64 / 2.0, down, "middle", name));
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// What the colours mean, in a line below the heading.
    fn legend(&self, svg: &mut String, text: &impl Fn(f64, f64, &str, &str) -> String) {
        let width = (WIDTH - LEFT) / self.series.len() as f64;
        for (series, name) in self.series.iter().enumerate() {
            let x = LEFT + width * series as f64;
            let _ =
                writeln!(svg, "<rect class=\"s{series}\" x=\"{x:.1}\" y=\"29\" width=\"11\" height=\"11\"/>");
            svg.push_str(&text(x + 16.0, 38.5, "start", name));
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_its_bar() {
        let groups = [1.0, 3.2].map(|value| (["a".to_owned(), "b".to_owned()], vec![value, 0.5]));
        let series = vec!["one".to_owned(), "<two>".to_owned()];
        let plot = Plot { file: "x.svg", title: "T & t".to_owned(), series, groups: groups.to_vec() };
        let svg = plot.svg();
        assert_eq!(svg.matches("<rect class=\"s0\"").count(), 3, "two bars and one in the legend");
        assert!(svg.contains("&lt;two&gt;") && svg.contains(">3.20<") && svg.contains("T &amp; t"));
        assert_eq!(svg.matches("<line ").count(), 5, "from 0 to 4");
    }
}
