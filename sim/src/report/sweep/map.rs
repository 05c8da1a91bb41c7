//! The failure probability over two numeric axes, as text.

use std::fmt::Write as _;

use super::Report;
use crate::experiment::grid::{Axis, Point};
use crate::experiment::sweep::PointResult;
use crate::report::text::{Look, Tone, percent};

/// So many maps are drawn: one for each combination of the other axes.
const MAPS_MAX: usize = 6;

/// Signs for none, below 1 %, below 10 %, below 30 % and above; the second of a pair where only ASCII can be shown.
const SIGNS: [(&str, &str); 5] = [(".", "."), ("░", "-"), ("▒", "+"), ("▓", "*"), ("█", "#")];
/// The colours of the signs.
const TONES: [Tone; 5] = [Tone::Good, Tone::Dim, Tone::Warn, Tone::Bad, Tone::Bad];
const WORDS: [&str; 5] = ["none", "below 1 %", "below 10 %", "below 30 %", "above"];

/// A map for each combination of the other axes; nothing unless at least two numeric axes vary.
pub fn text(report: &Report<'_>, look: Look) -> String {
    let mut numeric = report.varied().filter(|(_, axis)| axis.is_numeric());
    let (Some((row_place, rows)), Some((column_place, columns))) = (numeric.next(), numeric.next())
    else {
        return String::new();
    };
    let others = |point: &Point| -> Vec<String> {
        let settings = report
            .varied()
            .filter(|(place, _)| *place != row_place && *place != column_place);
        settings
            .map(|(place, _)| point.settings[place].to_string())
            .collect()
    };
    let mut combinations: Vec<Vec<String>> = Vec::new();
    for result in &report.sweep.points {
        let key = others(&result.point);
        if !combinations.contains(&key) {
            combinations.push(key);
        }
    }
    let mut out = String::new();
    for key in combinations.iter().take(MAPS_MAX) {
        let named = if key.is_empty() {
            String::new()
        } else {
            format!(" at {}", key.join(", "))
        };
        let _ = writeln!(
            out,
            "\na request fails: {} down, {} across{named}",
            rows.path, columns.path
        );
        let cell = |row: &str, column: &str| {
            let wanted = |result: &&PointResult| {
                let settings = &result.point.settings;
                settings[row_place].value == row
                    && settings[column_place].value == column
                    && others(&result.point) == *key
            };
            report
                .sweep
                .points
                .iter()
                .find(wanted)
                .map_or((String::new(), Tone::Dim), |result| shade(result, look))
        };
        grid(&mut out, rows, columns, cell, look);
    }
    let signs = (0..SIGNS.len()).map(|level| format!("{} {}", sign(level, look), WORDS[level]));
    let _ = writeln!(out, "  {}", signs.collect::<Vec<_>>().join("   "));
    if let Some(left) = combinations
        .len()
        .checked_sub(MAPS_MAX)
        .filter(|left| *left > 0)
    {
        let _ = writeln!(
            out,
            "  ({left} more maps: the table and --format csv have all points)"
        );
    }
    out
}

fn grid(
    out: &mut String,
    rows: &Axis,
    columns: &Axis,
    cell: impl Fn(&str, &str) -> (String, Tone),
    look: Look,
) {
    let cells: Vec<Vec<(String, Tone)>> = rows
        .values
        .iter()
        .map(|row| {
            columns
                .values
                .iter()
                .map(|column| cell(row, column))
                .collect()
        })
        .collect();
    let length = |text: &String| text.chars().count();
    let label = rows.values.iter().map(length).max().unwrap_or(0);
    let widest = cells
        .iter()
        .flatten()
        .map(|(text, _)| text)
        .chain(&columns.values)
        .map(length)
        .max()
        .unwrap_or(0);
    let _ = write!(out, "  {:label$}", "");
    for column in &columns.values {
        let _ = write!(out, "  {column:>widest$}");
    }
    out.push('\n');
    for (row, cells) in rows.values.iter().zip(&cells) {
        let _ = write!(out, "  {row:>label$}");
        for (cell, tone) in cells {
            // Padded before it is painted: escape sequences have no width.
            let _ = write!(out, "  {}", look.paint(*tone, &format!("{cell:>widest$}")));
        }
        out.push('\n');
    }
}

fn sign(level: usize, look: Look) -> &'static str {
    let (unicode, ascii) = SIGNS[level];
    look.pick(unicode, ascii)
}

/// The share with its sign, and its colour.
fn shade(result: &PointResult, look: Look) -> (String, Tone) {
    let failure = &result.estimates.failure;
    let level = match failure.share() {
        None => return (percent(failure.count, failure.of), Tone::Dim),
        Some(0.0) => 0,
        Some(share) if share < 0.01 => 1,
        Some(share) if share < 0.10 => 2,
        Some(share) if share < 0.30 => 3,
        Some(_) => 4,
    };
    let text = format!(
        "{} {}",
        percent(failure.count, failure.of),
        sign(level, look)
    );
    (text, TONES[level])
}
