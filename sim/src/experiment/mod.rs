//! Questions asked of many runs: a sweep over a grid of settings, with estimates, intervals and a rule to stop.
//!
//! An experiment knows no engine: it calls a [`Runner`] with a [`Point`] and a seed and gets the integers of
//! one run back. Everything it keeps of runs is an integer ([`tally::Tally`]); floating point starts where a
//! tally becomes an estimate.
//!
//! Two settings are compared run by run, on the same seeds: [`paired`]. Results can be kept on disk ([`store`]) and a sweep
//! be divided among machines ([`share`]). Rare failures need not be waited for ([`rare`]).

pub mod capacity;
pub mod check;
pub mod clock;
pub mod estimate;
pub mod grid;
pub mod ledger;
pub mod matrix;
pub mod paired;
pub mod rare;
pub mod rows;
pub mod seeds;
pub mod share;
pub mod side;
pub mod stats;
pub mod store;
pub mod sweep;
pub mod tally;
pub mod whatif;

use thiserror::Error;

use crate::outcome::RunSummary;
pub use grid::{Axis, Grid, Point, Setting};

/// Runs one rollout.
pub trait Runner: Sync {
    /// The rollout at `point` with `seed`. Must depend on nothing else, and must not share a random stream
    /// between points.
    ///
    /// # Errors
    /// What made the run impossible.
    fn run(&self, point: &Point, seed: u64) -> Result<RunSummary, RunError>;
}

/// Why a run was impossible.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct RunError(pub String);
