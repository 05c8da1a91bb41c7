//! Drawings as SVG: a few shapes, numbers with at most one decimal, so that the bytes are the same everywhere.
//!
//! Colours are classes: a style sheet gives them, that of a page for light, dark and print, or the drawing's own. Every
//! drawing has a title; one on a page has a description, too, for those who cannot see it.

use std::fmt::Write as _;

/// Text inside of HTML or SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in HTML, whatever the escape.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A coordinate: at most one decimal.
pub fn n(value: f64) -> String {
    let tenths = (value * 10.0).round();
    if !tenths.is_finite() {
        return "0".to_owned();
    }
    let tenths = tenths as i64;
    let sign = if tenths < 0 { "-" } else { "" };
    let (whole, rest) = (tenths.abs() / 10, tenths.abs() % 10);
    if rest == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{rest}")
    }
}

/// Where a text is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// At its start.
    Start,
    /// In its middle.
    Middle,
    /// At its end.
    End,
}

/// A drawing in the making.
#[derive(Clone, Debug)]
pub struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// An empty drawing of this size, in units that are pixels at full width.
    pub const fn new(width: f64, height: f64) -> Self {
        Self {
            body: String::new(),
            width,
            height,
        }
    }

    /// A rectangle. One without area is left out.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        if width <= 0.0 || height <= 0.0 {
            return;
        }
        let _ = writeln!(
            self.body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{class}\"/>",
            n(x),
            n(y),
            n(width),
            n(height)
        );
    }

    /// A rectangle that tells something when pointed at.
    pub fn told(&mut self, x: f64, y: f64, size: (f64, f64), class: &str, words: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{class}\"><title>{}</title></rect>",
            n(x),
            n(y),
            n(size.0),
            n(size.1),
            escape(words)
        );
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            "<path d=\"M{} {}L{} {}\" class=\"{class}\"/>",
            n(from.0),
            n(from.1),
            n(to.0),
            n(to.1)
        );
    }

    /// A path as SVG writes it; an empty one is left out.
    pub fn path(&mut self, data: &str, class: &str) {
        if !data.is_empty() {
            let _ = writeln!(self.body, "<path d=\"{data}\" class=\"{class}\"/>");
        }
    }

    /// A line of text.
    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let _ = writeln!(
            self.body,
            "<text x=\"{}\" y=\"{}\"{anchor} class=\"{class}\">{}</text>",
            n(x),
            n(y),
            escape(text)
        );
    }

    /// A disc, or what the class makes of it.
    pub fn circle(&mut self, at: (f64, f64), radius: f64, class: &str) {
        let _ = writeln!(
            self.body,
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" class=\"{class}\"/>",
            n(at.0),
            n(at.1),
            n(radius)
        );
    }

    /// A line through points; nothing without any.
    pub fn polyline(&mut self, points: impl IntoIterator<Item = (f64, f64)>, class: &str) {
        let points = points
            .into_iter()
            .map(|(x, y)| format!("{},{}", n(x), n(y)));
        let points = points.collect::<Vec<_>>().join(" ");
        if !points.is_empty() {
            let _ = writeln!(
                self.body,
                "<polyline points=\"{points}\" class=\"{class}\"/>"
            );
        }
    }

    /// A line of text that runs upwards, its middle at `x` and `y`.
    pub fn upwards(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ = writeln!(
            self.body,
            "<text transform=\"translate({} {}) rotate(-90)\" text-anchor=\"middle\" class=\"{class}\">{}</text>",
            n(x),
            n(y),
            escape(text)
        );
    }

    /// The finished drawing as a file of its own, with its style sheet, on white.
    pub fn file(self, title: &str, style: &str) -> String {
        let (width, height) = (n(self.width), n(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">\n<title>{}</title>\n<style>{style}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{}</svg>\n",
            escape(title),
            self.body
        )
    }

    /// The finished drawing for a page. `id` is unique on it.
    pub fn finish(self, id: &str, title: &str, description: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\n<title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n{}</svg>\n",
            n(self.width),
            n(self.height),
            escape(title),
            escape(description),
            self.body
        )
    }
}

/// A step of 1, 2 or 5 times a power of ten, so that at most `most` of them reach `top`.
pub fn step(top: f64, most: f64) -> f64 {
    let mut unit = 1.0;
    while unit * most * 10.0 < top {
        unit *= 10.0;
    }
    for factor in [1.0, 2.0, 5.0, 10.0] {
        if unit * factor * most >= top {
            return unit * factor;
        }
    }
    unit * 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_texts_are_safe() {
        assert_eq!(
            [n(1.0), n(0.25), n(-0.04), n(-1.26), n(f64::NAN)],
            ["1", "0.3", "0", "-1.3", "0"]
        );
        assert_eq!(
            escape("<a href='x'>&\u{1}"),
            "&lt;a href=&#39;x&#39;&gt;&amp;\u{fffd}"
        );
        assert_eq!(
            [step(420.0, 8.0), step(7.0, 8.0), step(1_999.0, 4.0)],
            [100.0, 1.0, 500.0]
        );
    }

    #[test]
    fn a_drawing_has_a_title_and_a_description() {
        let mut svg = Svg::new(100.0, 50.0);
        svg.rect(0.0, 0.0, 0.0, 10.0, "gone");
        svg.rect(1.0, 2.0, 3.0, 4.0, "c");
        svg.text(1.0, 2.0, Anchor::End, "t", "a < b");
        let text = svg.finish("f1", "Title", "What it shows");
        assert!(
            text.contains("<title id=\"f1-t\">Title</title>") && text.contains("What it shows")
        );
        assert!(text.contains("a &lt; b") && !text.contains("gone"));
    }
}
