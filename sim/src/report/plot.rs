//! Line plots as SVG: clean, without a script or a font of their own, and the same bytes for the same data.

use crate::svg::{Anchor, Svg};

/// Width and height of a plot, in pixels.
const SIZE: (f64, f64) = (760.0, 440.0);
/// Room for titles and scales: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 20.0, 80.0, 52.0);
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
];
/// A scale has about so many marks.
const TICKS: f64 = 8.0;

/// Points of one kind: a line, or marks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// x and y, in the order in which a line joins them.
    pub points: Vec<(f64, f64)>,
    /// Marks instead of a line.
    pub marks: bool,
    /// Series of one number share a colour.
    pub colour: usize,
}

/// A plot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plot {
    /// Over the plot.
    pub title: String,
    /// Under it.
    pub x: String,
    /// Beside it.
    pub y: String,
    /// What is drawn, the first below.
    pub series: Vec<Series>,
    /// Borders: a dashed vertical line at each x, with a word.
    pub borders: Vec<(f64, String)>,
}

/// A linear scale from data to pixels.
#[derive(Clone, Copy, Debug)]
struct Scale {
    low: f64,
    high: f64,
    step: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From 0 or below to the highest value, rounded up to a mark.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values.fold((0.0_f64, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let span = if high > low { high - low } else { 1.0 };
        let step = round_step(span / TICKS);
        Self {
            low: (low / step).floor() * step,
            high: ((high / step).ceil() * step).max(step),
            step,
            from,
            to,
        }
    }

    fn place(self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    fn marks(self) -> impl Iterator<Item = f64> {
        let count = ((self.high - self.low) / self.step).round() as u32;
        (0..=count).map(move |mark| self.low + f64::from(mark) * self.step)
    }
}

/// The next of 1, 2, 2.5 and 5 times a power of ten.
fn round_step(rough: f64) -> f64 {
    let mut power = 1.0;
    while power * 10.0 <= rough {
        power *= 10.0;
    }
    while power > rough {
        power /= 10.0;
    }
    for factor in [1.0, 2.0, 2.5, 5.0] {
        if rough <= factor * power {
            return factor * power;
        }
    }
    10.0 * power
}

/// A mark's number, without needless zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_owned()
}

/// Colours that can be told apart without colour vision (Okabe and Ito), on white: lines, discs and rings of each.
fn style() -> String {
    let mut out = String::from(
        "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:15px;font-weight:600}\
         .grid{stroke:#e6e6e6}.axis{stroke:#333}.border{stroke:#888;stroke-dasharray:4 4}\
         polyline,.ring{fill:none;stroke-width:2}.dashed{stroke-dasharray:7 5}",
    );
    for (number, paint) in COLOURS.iter().enumerate() {
        out.push_str(&format!(
            ".s{number}{{stroke:{paint}}}.f{number}{{fill:{paint}}}"
        ));
    }
    out
}

impl Plot {
    /// The picture.
    pub fn svg(&self) -> String {
        let (width, height) = SIZE;
        let (left, right, top, bottom) = MARGIN;
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Scale::over(points().map(|point| point.0), left, width - right);
        let y = Scale::over(points().map(|point| point.1), height - bottom, top);
        let (foot, end) = (height - bottom, width - right);
        let mut svg = Svg::new(width, height);
        svg.text(left, 24.0, Anchor::Start, "title", &self.title);
        for mark in y.marks() {
            let at = y.place(mark);
            svg.line((left, at), (end, at), "grid");
            svg.text(left - 8.0, at + 4.0, Anchor::End, "", &number(mark));
        }
        for mark in x.marks() {
            let at = x.place(mark);
            svg.line((at, foot), (at, foot + 5.0), "axis");
            svg.text(at, foot + 20.0, Anchor::Middle, "", &number(mark));
        }
        for (at, words) in &self.borders {
            let at = x.place(*at);
            svg.line((at, top), (at, foot), "border");
            svg.text(at + 4.0, top + 12.0, Anchor::Start, "", words);
        }
        svg.line((left, foot), (end, foot), "axis");
        svg.line((left, top), (left, foot), "axis");
        let middle = f64::midpoint(left, end);
        svg.text(middle, height - 12.0, Anchor::Middle, "", &self.x);
        svg.upwards(18.0, f64::midpoint(top, foot), "", &self.y);
        for series in &self.series {
            draw(&mut svg, series, x, y);
        }
        self.legend(&mut svg, left);
        svg.file(&self.title, &style())
    }

    /// Keys and names, in as many rows as they need.
    fn legend(&self, svg: &mut Svg, left: f64) {
        let (mut at, mut row) = (left, 42.0);
        for series in &self.series {
            // There is no measure of a font here: a letter is about six and a half pixels wide.
            let width = 24.0 + 6.5 * series.name.chars().count() as f64 + 14.0;
            if at > left && at + width > SIZE.0 {
                (at, row) = (left, row + 20.0);
            }
            if series.marks {
                mark(svg, (at + 9.0, row), series.colour);
            } else {
                joined(svg, [(at, row), (at + 18.0, row)], series.colour);
            }
            svg.text(at + 24.0, row + 4.0, Anchor::Start, "", &series.name);
            at += width;
        }
    }
}

/// A disc for the first colour, a ring for the others: rings round discs of the same place are seen.
fn mark(svg: &mut Svg, at: (f64, f64), colour: usize) {
    let paint = colour % COLOURS.len();
    if colour == 0 {
        svg.circle(at, 3.5, &format!("f{paint}"));
    } else {
        svg.circle(at, 6.0, &format!("ring s{paint}"));
    }
}

/// A line, dashed for all colours but the first: it does not hide what lies under it.
fn joined(svg: &mut Svg, points: impl IntoIterator<Item = (f64, f64)>, colour: usize) {
    let dashed = if colour == 0 { "" } else { "dashed " };
    svg.polyline(points, &format!("{dashed}s{}", colour % COLOURS.len()));
}

fn draw(svg: &mut Svg, series: &Series, x: Scale, y: Scale) {
    let places = series
        .points
        .iter()
        .map(|point| (x.place(point.0), y.place(point.1)));
    if series.marks {
        for at in places {
            mark(svg, at, series.colour);
        }
    } else {
        joined(svg, places, series.colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_marks_and_hold_all_values() {
        let scale = Scale::over([3.0, 47.0].into_iter(), 0.0, 100.0);
        let marks: Vec<f64> = scale.marks().collect();
        assert_eq!(marks.first(), Some(&0.0));
        assert_eq!(marks.last(), Some(&50.0));
        assert_eq!(scale.step, 10.0);
        assert!((scale.place(25.0) - 50.0).abs() < 1e-9);
        // Nothing to show is no division by zero.
        let nothing = Scale::over([].into_iter(), 0.0, 1.0);
        assert!(nothing.high > nothing.low && nothing.place(0.0).is_finite());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [number(0.5), number(120.0), number(-0.0)],
            ["0.5", "120", "0"]
        );
    }

    #[test]
    fn a_plot_has_a_line_marks_a_border_and_escaped_words() {
        let series = |marks| Series {
            name: "a < b".to_owned(),
            points: vec![(0.0, 0.0), (10.0, 5.0)],
            marks,
            colour: 0,
        };
        let plot = Plot {
            title: "R&D".to_owned(),
            series: vec![series(false), series(true)],
            borders: vec![(5.0, "half".to_owned())],
            ..Plot::default()
        };
        let svg = plot.svg();
        // One of each in the legend.
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("R&amp;D") && svg.contains("a &lt; b") && svg.contains("half"));
        assert_eq!(svg, plot.svg());
    }
}
