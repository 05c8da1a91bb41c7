//! The safe region over two quantities: a grid of answers.

use serde::Serialize;

use super::{Probe, Quantity, Search, SearchError, Target};
use crate::experiment::check;
use crate::scenario::Document;

/// A map: for each row value, the answers at the column values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Map {
    /// What goes down.
    pub rows: String,
    /// Its values.
    pub row_values: Vec<u64>,
    /// What goes across.
    pub columns: String,
    /// Its values.
    pub column_values: Vec<u64>,
    /// The target, as written.
    pub target: String,
    /// A kind of rollout that may have gone unseen has at most this probability.
    pub rare: f64,
    /// `cells[row][column]`; none where there was no time.
    pub cells: Vec<Vec<Option<Probe>>>,
}

/// Values from low to high, each about the same factor from the next, at most `count`.
pub fn spread(low: u64, high: u64, count: u32) -> Vec<u64> {
    let low_f = low.max(1) as f64;
    let step = libm::pow(
        high.max(1) as f64 / low_f,
        1.0 / f64::from(count.max(2) - 1),
    );
    let mut values: Vec<u64> = (0..count)
        .map(|n| rounded(low_f * libm::pow(step, f64::from(n))))
        .collect();
    if let Some(first) = values.first_mut() {
        *first = low;
    }
    if let Some(last) = values.last_mut() {
        *last = high;
    }
    values.dedup();
    values
}

/// Two significant digits.
fn rounded(value: f64) -> u64 {
    let value = value as u64;
    let digits = value.checked_ilog10().unwrap_or(0);
    let unit = 10_u64.pow(digits.saturating_sub(1));
    (value + unit / 2) / unit * unit
}

impl Map {
    /// Fills a map, cell by cell, the easiest corner first, while there is time.
    ///
    /// # Errors
    /// As [`Search::run`].
    pub fn fill(
        search: &Search<'_>,
        (rows, row_values): (&Quantity, Vec<u64>),
        (columns, column_values): (&Quantity, Vec<u64>),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, SearchError> {
        let all = (row_values.len() * column_values.len()) as u64;
        let mut cells = Vec::with_capacity(row_values.len());
        let mut done = 0;
        for row in &row_values {
            let mut line = Vec::with_capacity(column_values.len());
            for column in &column_values {
                let cell = if search.out_of_time() && done > 0 {
                    None
                } else {
                    Some(cell(search, (rows, *row), (columns, *column))?)
                };
                line.push(cell);
                done += 1;
                progress(done, all);
            }
            cells.push(line);
        }
        Ok(Self {
            rows: rows.name.clone(),
            columns: columns.name.clone(),
            row_values,
            column_values,
            target: search.target.1.clone(),
            rare: search.target.0.rare,
            cells,
        })
    }
}

fn cell(
    search: &Search<'_>,
    row: (&Quantity, u64),
    column: (&Quantity, u64),
) -> Result<Probe, SearchError> {
    let document = laid(search.document, row)?;
    let scenario = column.0.lay(&document, column.1)?;
    let (target, text): &(Target, String) = &search.target;
    let checked = check::run(
        &scenario,
        &[target.threshold(text)],
        target.rare,
        &search.plan,
        search.stopwatch,
        search.simulate,
        &mut |_, _, _| {},
    )?;
    let judged = checked.thresholds.into_iter().next();
    Ok(Probe {
        value: column.1,
        judged: judged.expect("one threshold, one verdict"),
        runs: checked.runs,
    })
}

/// The document with one quantity laid over it.
fn laid(document: &Document, (quantity, value): (&Quantity, u64)) -> Result<Document, SearchError> {
    let mut document = document.clone();
    quantity.put(&mut document, value)?;
    Ok(document)
}
