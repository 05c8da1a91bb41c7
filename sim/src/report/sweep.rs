//! The report of `sim sweep`: a screen for people, JSON and CSV for machines.
//!
//! All three are functions of the sweep's result alone: no time of day, no duration, no number of threads. Ends of
//! intervals are rounded outwards, so that a printed interval never claims more than the computed one.

mod compare;
mod data;
mod map;
mod screen;
mod words;

pub use data::{csv, json};
pub use screen::text;
pub use words::settings_in_words;

use crate::experiment::grid::Axis;
use crate::experiment::stats::Interval;
use crate::experiment::sweep::{PointResult, Sweep};

/// The scenario that every point started from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// The file it came from; none for the built-in founding case.
    pub file: Option<String>,
    /// What all points have in common, in words.
    pub words: Vec<String>,
    /// Fields set to the same value at every point: `path=value` as they were given.
    pub set: Vec<String>,
}

/// A sweep with what is needed to understand it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The scenario.
    pub base: &'a Base,
    /// What was set by flags, one value or many.
    pub axes: &'a [Axis],
    /// The result.
    pub sweep: &'a Sweep,
}

impl Report<'_> {
    /// The axes with more than one value.
    fn varied(&self) -> impl Iterator<Item = (usize, &Axis)> {
        self.axes
            .iter()
            .enumerate()
            .filter(|(_, axis)| axis.values.len() > 1)
    }

    /// What tells a point from the others: `conn-reuse-mode 0`.
    fn name_of(&self, result: &PointResult) -> String {
        let settings = self
            .varied()
            .map(|(place, _)| result.point.settings[place].to_string());
        settings.collect::<Vec<_>>().join(", ")
    }
}

/// Which way to round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Down,
    Up,
}

/// An end of an interval in percent, with the decimals that [`crate::report::text::percent`] would give it.
fn end(value: f64, round: Round) -> String {
    let percent = value * 100.0;
    let smaller = percent.min(100.0 - percent);
    if smaller <= 0.0 {
        return if value <= 0.0 { "0 %" } else { "100 %" }.to_owned();
    }
    let (mut decimals, mut unit, mut scale) = (1, 1.0, 10.0);
    while smaller < unit && decimals < 12 {
        unit /= 10.0;
        scale *= 10.0;
        decimals += 1;
    }
    let scaled = match round {
        Round::Down => (percent * scale).floor(),
        Round::Up => (percent * scale).ceil(),
    };
    if scaled <= 0.0 {
        return "0 %".to_owned();
    }
    if scaled >= 100.0 * scale {
        return "100 %".to_owned();
    }
    format!("{:.decimals$} %", scaled / scale)
}

/// An interval in percent, rounded outwards: `[29.8 %, 32.9 %]`.
pub fn interval_text(interval: &Interval) -> String {
    format!(
        "[{}, {}]",
        end(interval.low, Round::Down),
        end(interval.high, Round::Up)
    )
}

#[cfg(test)]
mod tests;
