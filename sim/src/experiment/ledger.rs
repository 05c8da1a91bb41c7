//! Where the results of runs are kept, if anywhere.

use super::store::StoreError;
use crate::outcome::RunSummary;

/// A run of a point, with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The point, by its index.
    pub point: usize,
    /// The run's number in the whole sweep.
    pub run: u64,
    /// The counts.
    pub summary: RunSummary,
    /// Whether it was computed now, and not taken from the ledger.
    pub fresh: bool,
}

/// Keeps results of runs and gives them back.
pub trait Ledger: Sync {
    /// The result of a run that was kept before. Called from any thread.
    fn known(&self, point: usize, run: u64) -> Option<RunSummary>;

    /// Keeps the fresh ones of `done`. Called from one thread, in the order of the sweep; when it returns they are
    /// safe.
    ///
    /// # Errors
    /// If they cannot be kept: the sweep then ends.
    fn keep(&self, done: &mut dyn Iterator<Item = &Done>) -> Result<(), StoreError>;
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Forget;

impl Ledger for Forget {
    fn known(&self, _: usize, _: u64) -> Option<RunSummary> {
        None
    }

    fn keep(&self, _: &mut dyn Iterator<Item = &Done>) -> Result<(), StoreError> {
        Ok(())
    }
}
