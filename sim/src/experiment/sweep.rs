//! Runs every point of a grid until its estimates are good enough or the budget is spent.
//!
//! The unit of work is a [`Block`]: one point, a few consecutive runs. Its result depends on nothing but the point and
//! the seeds, so blocks may be computed in any order, on any number of threads and machines ([`Share`]); they are kept
//! ([`Ledger`]) and counted in theirs. A point that is settled at a look runs no further; the others go on, all with
//! the same runs, hence the same seeds.
//!
//! The result is a pure function of (runner, points, root seed, precision, greatest number of runs). The clock can
//! only choose that number, and asking for it gives the same result again.

mod stage;

use std::time::Duration;

use thiserror::Error;

use super::clock::Stopwatch;
use super::estimate::{ALPHA, Estimates, Settled};
use super::grid::Point;
use super::ledger::{Done, Forget, Ledger};
use super::paired::{Difference, Measure, Paired, RunCounts};
use super::share::Share;
use super::stats::looks;
use super::store::StoreError;
use super::tally::Tally;
use super::{RunError, Runner, seeds};
use stage::Stage;

/// How much to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed that all seeds come from.
    pub root_seed: u64,
    /// Exactly this many runs at every point, at least 1, whatever the precision and the clock say.
    pub exact_runs: Option<u64>,
    /// At most this many runs at every point, at least 1.
    pub max_runs: u64,
    /// Wanted half-width of the failure probability's interval, relative to the estimate; above 0.
    pub precision: f64,
    /// Begin no block after this much time (the first run of every point excepted).
    pub budget: Option<Duration>,
    /// Threads, at least 1.
    pub threads: usize,
    /// Runs in a block, at least 1. Does not change the result.
    pub block_runs: u64,
    /// Which of the runs to do. Numbers of runs in a plan are those of all shards together. A shard sees no result of
    /// the others, so it does not look whether its points are settled.
    pub share: Share,
    /// Compute nothing: end where the ledger ends.
    pub known_only: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            root_seed: 1,
            exact_runs: None,
            max_runs: 1 << 16,
            precision: 0.20,
            budget: None,
            threads: 1,
            block_runs: 1,
            share: Share::WHOLE,
            known_only: false,
        }
    }
}

/// A unit of work: consecutive runs of one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The point, by its index.
    pub point: usize,
    /// The first run, counted among those of the share.
    pub first_row: u64,
    /// How many.
    pub rows: u64,
}

/// Computes a block, or takes from the ledger what is there.
///
/// # Errors
/// The first run's that fails.
pub fn run_block(
    runner: &dyn Runner,
    point: &Point,
    block: &Block,
    plan: &Plan,
    ledger: &dyn Ledger,
) -> Result<Vec<Done>, SweepError> {
    let rows = block.first_row..block.first_row + block.rows;
    rows.map(|row| {
        let run = plan.share.run(row);
        let seed = seeds::seed_of(plan.root_seed, run);
        let known = ledger.known(point.index, run);
        let fresh = known.is_none();
        let summary = match known {
            Some(summary) => summary,
            None => runner.run(point, seed).map_err(|error| SweepError::Run {
                settings: words(point),
                seed,
                error,
            })?,
        };
        Ok(Done {
            point: point.index,
            run,
            summary,
            fresh,
        })
    })
    .collect()
}

fn words(point: &Point) -> String {
    let settings: Vec<String> = point.settings.iter().map(ToString::to_string).collect();
    if settings.is_empty() {
        "the scenario".to_owned()
    } else {
        settings.join(", ")
    }
}

/// Why a sweep ended. A function of the number of runs and the results, not of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every point ran until it was settled.
    Precision,
    /// The time or the number of runs was spent before every point was settled.
    Budget,
    /// The runs asked for were done, more than needed: the last point had been settled after so many.
    Asked {
        /// The runs that would have been enough for every point.
        enough: u64,
    },
}

/// One point's result.
#[derive(Clone, Debug, PartialEq)]
pub struct PointResult {
    /// The point.
    pub point: Point,
    /// Its counts.
    pub tally: Tally,
    /// What they say.
    pub estimates: Estimates,
    /// Whether they say enough.
    pub settled: Settled,
}

/// How much a point fails more or less than the first one, on the same rollouts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The point that is compared with the first, by its index.
    pub point: usize,
    /// The difference of the failure probabilities, over the runs that both have.
    pub failure: Difference,
}

/// Up to so many points are compared: each run of a compared point is kept in memory.
pub const COMPARED_MAX: usize = 4;

/// The result of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Every point, in the grid's order.
    pub points: Vec<PointResult>,
    /// The later points against the first; none if there are too many.
    pub comparisons: Vec<Comparison>,
    /// Runs at the points that were not settled before; of a shard, its own.
    pub runs: u64,
    /// Why there are not more.
    pub stopped: Stopped,
    /// The seed that all seeds come from.
    pub root_seed: u64,
    /// The precision asked for.
    pub precision: f64,
}

impl Sweep {
    /// The fewest and the most runs of any point.
    pub fn runs_span(&self) -> (u64, u64) {
        let runs = self.points.iter().map(|result| result.tally.runs());
        (runs.clone().min().unwrap_or(0), runs.max().unwrap_or(0))
    }

    /// Runs of all points together.
    pub fn rollouts(&self) -> u64 {
        self.points.iter().map(|result| result.tally.runs()).sum()
    }
}

/// How far a sweep has come.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Runs finished at every point that still runs.
    pub runs: u64,
    /// Runs at these points up to the next look, or to the end.
    pub goal: u64,
    /// How many points still run.
    pub active: usize,
    /// Blocks finished, and blocks up to the goal.
    pub blocks: (u64, u64),
    /// The points.
    pub points: &'a [Point],
    /// The counts so far, one for each point.
    pub tallies: &'a [Tally],
    /// Time since the start.
    pub elapsed: Duration,
}

/// What ended a sweep without a result.
#[derive(Debug, Error)]
pub enum SweepError {
    /// A run failed.
    #[error("the run with {settings}, seed {seed:#018x} failed: {error}")]
    Run {
        /// The point in words.
        settings: String,
        /// The run's seed.
        seed: u64,
        /// What went wrong.
        error: RunError,
    },
    /// Results could not be kept.
    #[error(transparent)]
    Keep(#[from] StoreError),
    /// Threads could not be started.
    #[error("cannot start the threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Runs the sweep, keeping nothing. `progress` is told after every block.
///
/// # Errors
/// The run that fails first in the order of runs and points, whatever the number of threads.
pub fn run_sweep(
    runner: &dyn Runner,
    points: &[Point],
    plan: &Plan,
    stopwatch: &dyn Stopwatch,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Sweep, SweepError> {
    run_kept(runner, points, plan, stopwatch, &Forget, progress)
}

/// Runs the sweep. What the ledger knows is not computed again, and what is computed is kept in it, in the order of
/// runs and points.
///
/// # Errors
/// The run that fails first in the order of runs and points, whatever the number of threads; or that a result could
/// not be kept. What had been kept before stays.
pub fn run_kept(
    runner: &dyn Runner,
    points: &[Point],
    plan: &Plan,
    stopwatch: &dyn Stopwatch,
    ledger: &dyn Ledger,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Sweep, SweepError> {
    // One thread is this one.
    let pool = (plan.threads > 1)
        .then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(plan.threads)
                .build()
        })
        .transpose()?;
    let limit = plan.exact_runs.unwrap_or(plan.max_runs).max(1);
    let limit = plan.share.rows(limit);
    let mut state = State {
        tallies: vec![Tally::default(); points.len()],
        compared: vec![
            Vec::new();
            if points.len() <= COMPARED_MAX {
                points.len()
            } else {
                0
            }
        ],
        settled_at: vec![None; points.len()],
        rows: 0,
    };
    loop {
        let active: Vec<usize> = (0..points.len())
            .filter(|place| plan.exact_runs.is_some() || state.settled_at[*place].is_none())
            .collect();
        if active.is_empty() || state.rows == limit {
            break;
        }
        let goal = if plan.share.is_whole() {
            next_look(state.rows).min(limit)
        } else {
            limit
        };
        let stage = Stage {
            runner,
            points,
            active: &active,
            plan,
            stopwatch,
            ledger,
            goal,
            first_row: state.rows,
        };
        stage.run(pool.as_ref(), &mut state, progress)?;
        if state.rows < goal {
            break;
        }
        state.look(&active, plan);
    }
    Ok(state.result(points, plan))
}

fn next_look(runs: u64) -> u64 {
    let mut look = looks::FIRST_LOOK;
    while look <= runs {
        look = look.saturating_mul(2);
    }
    look
}

/// What has been counted so far.
struct State {
    /// One for each point.
    tallies: Vec<Tally>,
    /// The runs of each point, if points are compared.
    compared: Vec<Vec<RunCounts>>,
    /// The look at which a point was first found settled.
    settled_at: Vec<Option<u64>>,
    /// Runs at every point that is not settled.
    rows: u64,
}

impl State {
    /// Counts a run.
    fn count(&mut self, done: &Done) {
        self.tallies[done.point].add(done.run, &done.summary);
        if let Some(runs) = self.compared.get_mut(done.point) {
            runs.push(RunCounts::of(&done.summary));
        }
    }

    fn comparisons(&self) -> Vec<Comparison> {
        let Some((first, others)) = self.compared.split_first() else {
            return Vec::new();
        };
        (1..)
            .zip(others)
            .map(|(point, runs)| Comparison {
                point,
                failure: Paired::of(first, runs, Measure::Failure).difference(ALPHA),
            })
            .collect()
    }

    /// Judges the points, if this is the moment.
    fn look(&mut self, active: &[usize], plan: &Plan) {
        if !plan.share.is_whole() || !looks::is_look(self.rows) {
            return;
        }
        for place in active {
            let settled = Settled::judge(&self.tallies[*place], plan.precision) != Settled::No;
            if settled && self.settled_at[*place].is_none() {
                self.settled_at[*place] = Some(self.rows);
            }
        }
    }

    fn result(self, points: &[Point], plan: &Plan) -> Sweep {
        let enough = self
            .settled_at
            .iter()
            .copied()
            .collect::<Option<Vec<u64>>>();
        let stopped = match enough.as_deref() {
            None | Some([]) => Stopped::Budget,
            // As many as each point would have had.
            Some(all) if plan.exact_runs.is_none() || all.iter().all(|at| *at == self.rows) => {
                Stopped::Precision
            }
            Some(all) => Stopped::Asked {
                enough: all.iter().copied().max().unwrap_or(0),
            },
        };
        let result = |(point, tally): (&Point, Tally)| PointResult {
            point: point.clone(),
            estimates: Estimates::of(&tally),
            settled: Settled::judge(&tally, plan.precision),
            tally,
        };
        Sweep {
            comparisons: self.comparisons(),
            points: points.iter().zip(self.tallies).map(result).collect(),
            runs: self.rows,
            stopped,
            root_seed: plan.root_seed,
            precision: plan.precision,
        }
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod coverage;
