//! Settings that run side by side: row r is rollout r of every setting, with one seed, so that rows can be paired. Rows are
//! done whole; the result is a pure function of the settings, the root seed and the number of rows.
//!
//! A sweep lets each point stop by itself and keeps counts; here every setting gets every row, and what a run left behind is
//! kept for each. Leaves out: shards, resumption.

use std::time::Duration;

use rayon::prelude::*;
use thiserror::Error;

use super::clock::Stopwatch;
use super::stats::looks;
use super::{RunError, seeds};

/// How many rows to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The seed that all seeds come from.
    pub root_seed: u64,
    /// Exactly this many rows, at least 1, whatever is seen and the clock says.
    pub exact_runs: Option<u64>,
    /// At most this many rows, at least 1.
    pub max_runs: u64,
    /// Begin no row after this much time, the first excepted.
    pub budget: Option<Duration>,
    /// Threads, at least 1.
    pub threads: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            root_seed: 1,
            exact_runs: None,
            max_runs: 1 << 16,
            budget: None,
            threads: 1,
        }
    }
}

/// What ended the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// What was seen at a look was enough.
    Enough,
    /// The time was spent.
    Budget,
    /// As many as were asked for, or allowed.
    Count,
}

/// Rows of results: `rows[run][setting]`.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// The results.
    pub rows: Vec<Vec<T>>,
    /// What ended them.
    pub stopped: Stopped,
}

impl<T> Rows<T> {
    /// Runs of each setting.
    pub fn runs(&self) -> u64 {
        self.rows.len() as u64
    }

    /// All runs of a setting, in order.
    pub fn of(&self, setting: usize) -> impl Iterator<Item = &T> {
        self.rows.iter().filter_map(move |row| row.get(setting))
    }
}

/// Why there are no rows.
#[derive(Debug, Error)]
pub enum RowsError {
    /// A run was impossible.
    #[error("with seed {seed:#x}: {error}")]
    Run {
        /// The setting's number.
        setting: usize,
        /// The seed.
        seed: u64,
        /// Why.
        error: RunError,
    },
    /// No threads.
    #[error("cannot start threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Runs setting `0..settings` with a seed.
pub type Simulate<'a, T> = &'a (dyn Fn(usize, u64) -> Result<T, RunError> + Sync);

/// Does rows until `enough` says so at a look (20, 40, 80, ... rows), the time is spent or the number is reached. `progress`
/// hears after every few rows what there is.
///
/// # Errors
/// The run that fails first in the order of rows and settings; or threads that cannot be started.
pub fn run_rows<T: Send>(
    settings: usize,
    simulate: Simulate<'_, T>,
    plan: &Plan,
    stopwatch: &dyn Stopwatch,
    enough: &mut dyn FnMut(&[Vec<T>]) -> bool,
    progress: &mut dyn FnMut(&[Vec<T>], Duration),
) -> Result<Rows<T>, RowsError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(plan.threads.max(1))
        .build()?;
    let limit = plan.exact_runs.unwrap_or(plan.max_runs).max(1);
    // Rows that keep all threads busy.
    let chunk = plan.threads.max(1).div_ceil(settings.max(1)) as u64;
    let mut rows: Vec<Vec<T>> = Vec::new();
    let stopped = loop {
        let done = rows.len() as u64;
        let to = next_look(done).min(limit).min(done + chunk);
        let jobs: Vec<(usize, u64)> = (done..to)
            .flat_map(|run| (0..settings).map(move |setting| (setting, run)))
            .collect();
        let one = |&(setting, run): &(usize, u64)| {
            let seed = seeds::seed_of(plan.root_seed, run);
            simulate(setting, seed).map_err(|error| RowsError::Run {
                setting,
                seed,
                error,
            })
        };
        let results: Vec<Result<T, RowsError>> =
            pool.install(|| jobs.par_iter().map(one).collect());
        let mut results = results.into_iter();
        for _ in done..to {
            rows.push(results.by_ref().take(settings).collect::<Result<_, _>>()?);
        }
        let elapsed = stopwatch.elapsed();
        progress(&rows, elapsed);
        let runs = rows.len() as u64;
        let open = plan.exact_runs.is_none();
        if open && looks::is_look(runs) && enough(&rows) {
            break Stopped::Enough;
        }
        if runs >= limit {
            break Stopped::Count;
        }
        // The next rows take as long as those before them did on average; what would end late is not begun.
        let each = elapsed / u32::try_from(runs).unwrap_or(u32::MAX);
        let next = each * u32::try_from(chunk).unwrap_or(u32::MAX);
        if open && plan.budget.is_some_and(|budget| elapsed + next >= budget) {
            break Stopped::Budget;
        }
    };
    Ok(Rows { rows, stopped })
}

fn next_look(runs: u64) -> u64 {
    let mut look = looks::FIRST_LOOK;
    while look <= runs {
        look = look.saturating_mul(2);
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Still;

    impl Stopwatch for Still {
        fn elapsed(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn rows(threads: usize, plan: Plan, enough: u64) -> Rows<(usize, u64)> {
        let plan = Plan { threads, ..plan };
        let simulate = |setting: usize, seed: u64| Ok((setting, seed));
        let mut asked = |rows: &[Vec<(usize, u64)>]| rows.len() as u64 >= enough;
        run_rows(3, &simulate, &plan, &Still, &mut asked, &mut |_, _| {}).expect("runs")
    }

    #[test]
    fn every_setting_gets_the_seeds_of_every_row_on_any_number_of_threads() {
        let one = rows(1, Plan::default(), 40);
        assert_eq!((one.runs(), one.stopped), (40, Stopped::Enough));
        for (run, row) in (0..).zip(&one.rows) {
            let seed = seeds::seed_of(1, run);
            assert_eq!(row, &[(0, seed), (1, seed), (2, seed)]);
        }
        for threads in [2, 7, 64] {
            assert_eq!(rows(threads, Plan::default(), 40).rows, one.rows);
        }
        assert_eq!(one.of(1).count(), 40);
    }

    #[test]
    fn rows_end_at_looks_counts_and_budgets() {
        let exact = Plan {
            exact_runs: Some(7),
            budget: Some(Duration::ZERO),
            ..Plan::default()
        };
        let seven = rows(2, exact, 0);
        assert_eq!((seven.runs(), seven.stopped), (7, Stopped::Count));
        let most = Plan {
            max_runs: 25,
            ..Plan::default()
        };
        assert_eq!(rows(2, most, 1_000).runs(), 25);
        // Between two looks nothing is asked.
        assert_eq!(rows(2, Plan::default(), 1).runs(), looks::FIRST_LOOK);
        let spent = Plan {
            budget: Some(Duration::ZERO),
            ..Plan::default()
        };
        let one = rows(1, spent, 1_000);
        assert_eq!((one.runs(), one.stopped), (1, Stopped::Budget));
    }

    #[test]
    fn the_first_failure_in_order_is_reported() {
        let simulate = |setting: usize, _: u64| {
            if setting == 0 {
                Ok(())
            } else {
                Err(RunError(format!("setting {setting}")))
            }
        };
        let plan = Plan {
            threads: 4,
            ..Plan::default()
        };
        let error = run_rows(3, &simulate, &plan, &Still, &mut |_| true, &mut |_, _| {})
            .expect_err("setting 1 fails");
        assert!(error.to_string().ends_with("setting 1"), "{error}");
    }
}
