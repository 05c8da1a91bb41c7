//! Runs every point of a grid until its estimates are good enough or the budget is spent.
//!
//! The unit of work is a [`Block`]: one point, a few consecutive runs. Its result is a [`Tally`] of integers and
//! depends on nothing but the point and the seeds, so blocks may be computed in any order, on any number of
//! threads (later: machines), and are merged in theirs. All points get the same runs, hence the same seeds.
//!
//! The result is a pure function of (runner, points, root seed, precision, number of runs). The clock can only
//! choose the number of runs, and asking for that number gives the same result again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use thiserror::Error;

use super::clock::Stopwatch;
use super::estimate::{Estimates, Settled};
use super::grid::Point;
use super::stats::looks;
use super::tally::Tally;
use super::{RunError, Runner, seeds};

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
        }
    }
}

/// A unit of work: consecutive runs of one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The point, by its index.
    pub point: usize,
    /// The first run.
    pub first_run: u64,
    /// How many.
    pub runs: u64,
}

/// Computes a block.
///
/// # Errors
/// The first run's that fails.
pub fn run_block(
    runner: &dyn Runner,
    point: &Point,
    block: &Block,
    root_seed: u64,
) -> Result<Tally, SweepError> {
    let mut tally = Tally::default();
    for run in block.first_run..block.first_run + block.runs {
        let seed = seeds::seed_of(root_seed, run);
        let summary = runner.run(point, seed).map_err(|error| SweepError::Run {
            settings: words(point),
            seed,
            error,
        })?;
        tally.add(run, &summary);
    }
    Ok(tally)
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
    /// At the first look at which every point was settled.
    Precision,
    /// The time or the number of runs was spent before every point was settled.
    Budget,
    /// The runs asked for were done, more than needed: every point had been settled after so many.
    Asked {
        /// The runs that would have been enough.
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

/// The result of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Every point, in the grid's order.
    pub points: Vec<PointResult>,
    /// Runs at every point.
    pub runs: u64,
    /// Why there are not more.
    pub stopped: Stopped,
    /// The seed that all seeds come from.
    pub root_seed: u64,
    /// The precision asked for.
    pub precision: f64,
}

/// How far a sweep has come.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Runs finished at every point.
    pub runs: u64,
    /// Runs at every point up to the next look, or to the end.
    pub goal: u64,
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
    /// Threads could not be started.
    #[error("cannot start the threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Runs the sweep. `progress` is told after every block.
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
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(plan.threads.max(1))
        .build()?;
    let limit = plan.exact_runs.unwrap_or(plan.max_runs).max(1);
    let mut state = State {
        tallies: vec![Tally::default(); points.len()],
        runs: 0,
    };
    let mut enough = None;
    loop {
        let goal = next_look(state.runs).min(limit);
        let stage = Stage {
            runner,
            points,
            plan,
            stopwatch,
            goal,
            first_run: state.runs,
        };
        stage.run(&pool, &mut state, progress)?;
        if looks::is_look(state.runs) && enough.is_none() {
            let settled = |tally| Settled::judge(tally, plan.precision) != Settled::No;
            enough = state.tallies.iter().all(settled).then_some(state.runs);
        }
        let satisfied = enough.is_some() && plan.exact_runs.is_none();
        if satisfied || state.runs < goal || state.runs == limit {
            break;
        }
    }
    let stopped = match enough {
        Some(runs) if runs == state.runs => Stopped::Precision,
        Some(enough) => Stopped::Asked { enough },
        None => Stopped::Budget,
    };
    let result = |(point, tally): (&Point, Tally)| PointResult {
        point: point.clone(),
        estimates: Estimates::of(&tally),
        settled: Settled::judge(&tally, plan.precision),
        tally,
    };
    Ok(Sweep {
        points: points.iter().zip(state.tallies).map(result).collect(),
        runs: state.runs,
        stopped,
        root_seed: plan.root_seed,
        precision: plan.precision,
    })
}

fn next_look(runs: u64) -> u64 {
    let mut look = looks::FIRST_LOOK;
    while look <= runs {
        look = look.saturating_mul(2);
    }
    look
}

/// What is merged so far: the same number of runs at every point.
struct State {
    tallies: Vec<Tally>,
    runs: u64,
}

/// The blocks between two looks.
struct Stage<'a> {
    runner: &'a dyn Runner,
    points: &'a [Point],
    plan: &'a Plan,
    stopwatch: &'a dyn Stopwatch,
    first_run: u64,
    goal: u64,
}

impl Stage<'_> {
    /// Blocks in the order in which they are handed out: all points of the first runs, then of the next.
    fn block(&self, index: usize) -> Option<Block> {
        let block_runs = self.plan.block_runs.max(1);
        let row = (index / self.points.len()) as u64;
        let first_run = row.checked_mul(block_runs)?.checked_add(self.first_run)?;
        let runs = block_runs.min(self.goal.checked_sub(first_run)?);
        (runs > 0).then_some(Block {
            point: index % self.points.len(),
            first_run,
            runs,
        })
    }

    fn out_of_time(&self, block: &Block) -> bool {
        // Every point needs a run: a sweep without any result would be no answer. Another row of runs takes as long as
        // those before it did on average; one that would end late is not begun.
        let elapsed = self.stopwatch.elapsed();
        let row = elapsed / u32::try_from(block.first_run.max(1)).unwrap_or(u32::MAX);
        let spent = |budget| elapsed + row >= budget;
        block.first_run > 0 && self.plan.exact_runs.is_none() && self.plan.budget.is_some_and(spent)
    }

    fn run(
        &self,
        pool: &rayon::ThreadPool,
        state: &mut State,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<(), SweepError> {
        let next = AtomicUsize::new(0);
        let (sender, results) = mpsc::channel();
        pool.in_place_scope(|scope| {
            for _ in 0..pool.current_num_threads() {
                let (next, sender) = (&next, sender.clone());
                scope.spawn(move |_| self.work(next, &sender));
            }
            drop(sender);
            self.collect(&results, &next, state, progress)
        })
    }

    /// A thread's work: the next block until there is none or no time. Handing blocks out in order means that
    /// at the end of time few blocks lie beyond the last complete row.
    fn work(&self, next: &AtomicUsize, sender: &mpsc::Sender<(usize, Result<Tally, SweepError>)>) {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(block) = self.block(index) else {
                return;
            };
            if self.out_of_time(&block) {
                return;
            }
            let point = &self.points[block.point];
            let result = run_block(self.runner, point, &block, self.plan.root_seed);
            if sender.send((index, result)).is_err() {
                return;
            }
        }
    }

    /// Merges complete rows (the same runs of every point) in their order.
    fn collect(
        &self,
        results: &mpsc::Receiver<(usize, Result<Tally, SweepError>)>,
        next: &AtomicUsize,
        state: &mut State,
        progress: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<(), SweepError> {
        let width = self.points.len();
        let rows = (self.goal - self.first_run).div_ceil(self.plan.block_runs.max(1));
        let mut waiting = BTreeMap::new();
        let mut failure: Option<(usize, SweepError)> = None;
        // The blocks of the row that is not complete, in order.
        let mut row = Vec::with_capacity(width);
        let (mut first_waiting, mut received) = (0, 0);
        for (index, result) in results {
            received += 1;
            match result {
                Ok(tally) => {
                    waiting.insert(index, tally);
                }
                Err(error) => {
                    // No new blocks. Those before this one are already being computed.
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                    if failure.as_ref().is_none_or(|(first, _)| index < *first) {
                        failure = Some((index, error));
                    }
                }
            }
            while let Some(tally) = waiting.remove(&first_waiting) {
                let runs = tally.runs();
                row.push(tally);
                first_waiting += 1;
                if row.len() == width {
                    for (into, tally) in state.tallies.iter_mut().zip(row.drain(..)) {
                        into.merge(&tally);
                    }
                    state.runs += runs;
                }
            }
            progress(&Progress {
                runs: state.runs,
                goal: self.goal,
                blocks: (received, rows * width as u64),
                points: self.points,
                tallies: &state.tallies,
                elapsed: self.stopwatch.elapsed(),
            });
        }
        failure.map_or(Ok(()), |(_, error)| Err(error))
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod coverage;
