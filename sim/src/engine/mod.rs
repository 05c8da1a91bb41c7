//! The engine: a world built from parts of the model, driven by events in a total order.
//!
//! It knows the model and no experiment. One run is one thread and a pure function of scenario and seed.

mod changes;
mod clients;
mod control;
mod deadends;
mod hosts;
mod load;
mod observe;
pub mod pins;
mod planes;
pub mod probe;
pub mod queue;
mod quiet;
mod requests;
mod samples;
mod servers;
pub mod story;
pub mod streams;
mod topology;
pub mod trace;
mod traffic;
mod udp;
mod world;

use crate::outcome::RunSummary;
use crate::scenario::Scenario;
pub use control::Control;
pub use planes::drops_invalid;
pub use topology::source_nat;
use trace::{RunTrace, TraceOptions};
pub use world::node_sysctls;

/// What a run gives.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// The counts.
    pub summary: RunSummary,
    /// What was asked for beside them.
    pub trace: RunTrace,
}

/// Replays a scenario with a seed and checks the node's tables after every so many packets; for tests. The result is that
/// of [`run`].
///
/// # Errors
/// Those of [`run`]; or the first invariant that was broken, with the moment.
pub fn run_checked(
    scenario: &Scenario,
    seed: u64,
    options: &TraceOptions,
    every: u64,
) -> Result<RunResult, String> {
    let mut world = world::World::new(scenario, seed, options)?;
    world.check_every(every);
    let (summary, trace) = world.run_checked()?;
    Ok(RunResult { summary, trace })
}

/// Replays a scenario with a seed.
///
/// # Errors
/// If the scenario asks for something that cannot be run; the text says what to change.
pub fn run(scenario: &Scenario, seed: u64, options: &TraceOptions) -> Result<RunResult, String> {
    let world = world::World::new(scenario, seed, options)?;
    let (summary, trace) = world.run();
    Ok(RunResult { summary, trace })
}
