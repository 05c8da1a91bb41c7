//! `--rare`: each rollout with the chances that its requests had, and with some of them played.

use crate::engine::probe;
use crate::experiment::{RunError, rare};
use crate::outcome::RunSummary;
use crate::scenario::Scenario;

/// One rollout, conditioned.
///
/// # Errors
/// If the scenario cannot be run, or draws no ports.
pub fn simulate(scenario: &Scenario, seed: u64) -> Result<RunSummary, RunError> {
    let (run, probed) = probe::run(scenario, seed, None).map_err(RunError)?;
    rare::condition(run.summary, &probed, seed, &mut |request, port| {
        let forced = probe::run(scenario, seed, Some((request, port)));
        forced.map(|(_, probed)| probed.forced).map_err(RunError)
    })
}
