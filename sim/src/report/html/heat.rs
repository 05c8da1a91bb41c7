//! A probability over two settings, with the region that is safe.

use crate::svg::{Anchor, Svg};

/// A cell of the map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    /// The share.
    pub share: f64,
    /// Its interval.
    pub interval: (f64, f64),
    /// Whether it is below what was asked for.
    pub safety: Safety,
}

/// Whether a cell is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Safety {
    /// It is below the limit.
    Safe,
    /// It may be below or above.
    Undecided,
    /// It is above.
    Unsafe,
}

impl Safety {
    /// By its interval alone.
    pub(super) fn of(interval: (f64, f64), limit: f64) -> Self {
        match interval {
            (_, high) if high < limit => Self::Safe,
            (low, _) if low > limit => Self::Unsafe,
            _ => Self::Undecided,
        }
    }
}

impl Cell {
    fn class(&self) -> usize {
        match self.share {
            s if s <= 0.0 => 0,
            s if s < 0.01 => 1,
            s if s < 0.10 => 2,
            s if s < 0.30 => 3,
            s if s < 0.60 => 4,
            _ => 5,
        }
    }
}

/// The legend of the colours.
const LEGEND: [(&str, &str); 6] = [
    ("h0", "none failed"),
    ("h1", "below 1 %"),
    ("h2", "below 10 %"),
    ("h3", "below 30 %"),
    ("h4", "below 60 %"),
    ("h5", "above"),
];

/// The legend: colours, and the edges that say whether `target` is kept.
pub(super) fn legend(target: &str) -> String {
    let edges = [
        ("safe-edge", format!("thick edge: surely {target}")),
        (
            "unsure-edge",
            format!("dashed edge: undecided whether {target}"),
        ),
    ];
    let mut entries = LEGEND.to_vec();
    entries.extend(edges.iter().map(|(class, words)| (*class, words.as_str())));
    super::key(&entries)
}

/// The map. Rows from the top; a missing cell was not run.
pub(super) fn draw(
    id: &str,
    title: &str,
    axes: (&str, &str),
    rows: &[String],
    columns: &[String],
    cell: impl Fn(usize, usize) -> Option<Cell>,
    target: &str,
) -> String {
    let left = 20.0
        + rows
            .iter()
            .map(|row| row.chars().count())
            .max()
            .unwrap_or(0) as f64
            * 7.5;
    let left = left.max(60.0);
    let width = ((744.0 - left) / columns.len().max(1) as f64).min(110.0);
    let height = 40.0;
    let total = left + width * columns.len() as f64 + 16.0;
    let mut svg = Svg::new(total.max(420.0), 44.0 + rows.len() as f64 * height + 26.0);
    svg.text(
        0.0,
        12.0,
        Anchor::Start,
        "small strong",
        &format!("{} (down), {} (across)", axes.0, axes.1),
    );
    for (column, name) in columns.iter().enumerate() {
        svg.text(
            left + (column as f64 + 0.5) * width,
            34.0,
            Anchor::Middle,
            "dim small",
            name,
        );
    }
    let mut counts = [0_usize; 3];
    for (r, name) in rows.iter().enumerate() {
        let y = 42.0 + r as f64 * height;
        svg.text(left - 8.0, y + 24.0, Anchor::End, "dim small", name);
        for (c, column) in columns.iter().enumerate() {
            let Some(found) = cell(r, c) else {
                continue;
            };
            let x = left + c as f64 * width;
            let class = found.class();
            let (low, high) = found.interval;
            let words = format!(
                "{name} and {}: {} fail, interval {} to {}",
                column,
                super::percent(found.share),
                super::percent(low),
                super::percent(high)
            );
            svg.told(
                x + 1.0,
                y + 1.0,
                (width - 2.0, height - 2.0),
                &format!("h{class}"),
                &words,
            );
            let text = if matches!(class, 4 | 5) {
                "on-dark small"
            } else {
                "small"
            };
            svg.text(
                x + width / 2.0,
                y + 25.0,
                Anchor::Middle,
                text,
                &super::percent(found.share),
            );
            match found.safety {
                Safety::Safe => {
                    svg.rect(x + 3.0, y + 3.0, width - 6.0, height - 6.0, "safe-edge");
                    counts[0] += 1;
                }
                Safety::Undecided => {
                    svg.rect(x + 3.0, y + 3.0, width - 6.0, height - 6.0, "unsure-edge");
                    counts[1] += 1;
                }
                Safety::Unsafe => counts[2] += 1,
            }
        }
    }
    let [safe, unsure, wrong] = counts;
    let words = format!(
        "{target}: surely at {safe} settings, undecided at {unsure}, surely not at {wrong}."
    );
    svg.text(
        0.0,
        44.0 + rows.len() as f64 * height + 16.0,
        Anchor::Start,
        "dim small",
        &words,
    );
    svg.finish(id, title, &words)
}
