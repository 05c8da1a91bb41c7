//! The failure probability over two numeric axes, as text.

use std::fmt::Write as _;

use super::Report;
use crate::experiment::grid::{Axis, Point};
use crate::experiment::sweep::PointResult;
use crate::report::text::percent;

/// So many maps are drawn: one for each combination of the other axes.
const MAPS_MAX: usize = 6;

const LEGEND: &str = "  . none   ░ below 1 %   ▒ below 10 %   ▓ below 30 %   █ above";

/// A map for each combination of the other axes; nothing unless at least two numeric axes vary.
pub fn text(report: &Report<'_>) -> String {
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
                .map_or(String::new(), shade)
        };
        grid(&mut out, rows, columns, cell);
    }
    let _ = writeln!(out, "{LEGEND}");
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

fn grid(out: &mut String, rows: &Axis, columns: &Axis, cell: impl Fn(&str, &str) -> String) {
    let cells: Vec<Vec<String>> = rows
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
        for cell in cells {
            let _ = write!(out, "  {cell:>widest$}");
        }
        out.push('\n');
    }
}

fn shade(result: &PointResult) -> String {
    let failure = &result.estimates.failure;
    let sign = match failure.share() {
        None => ' ',
        Some(0.0) => '.',
        Some(share) if share < 0.01 => '░',
        Some(share) if share < 0.10 => '▒',
        Some(share) if share < 0.30 => '▓',
        Some(_) => '█',
    };
    format!("{} {sign}", percent(failure.count, failure.of))
}
