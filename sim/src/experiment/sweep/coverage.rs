//! Whole sweeps over synthetic rollouts whose truth is known: how often does the printed 95 % interval hold it?
//! The real stopping rule runs, with precision, time and a number of runs ending the sweeps by turns. Seeds
//! are fixed, so the counts below never change by themselves.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::*;
use crate::experiment::seeds::{SplitMix64, seed_of};
use crate::outcome::{Cause, Outcome, RunSummary};

/// Requests in a synthetic rollout.
const REQUESTS: u64 = 10_000;

/// How rollouts fail: the number of failures of one rollout, and the two truths.
struct Family {
    name: &'static str,
    failures: fn(&mut SplitMix64) -> u64,
    /// Failures a request.
    per_request: f64,
    /// Rollouts with at least one failure.
    per_rollout: f64,
}

/// A rollout of a family; failing ones take longer, so that time ends sweeps in a way that depends on results.
struct Rollouts<'a> {
    family: &'a Family,
    ticks: AtomicU64,
}

impl Runner for Rollouts<'_> {
    fn run(&self, _: &Point, seed: u64) -> Result<RunSummary, RunError> {
        let failed = (self.family.failures)(&mut SplitMix64::new(seed));
        let mut summary = RunSummary {
            requests: REQUESTS,
            ..RunSummary::default()
        };
        summary.outcomes[Outcome::Answered.index()] = REQUESTS - failed;
        summary.outcomes[Outcome::ConnectTimeout.index()] = failed;
        summary.causes[Cause::PinnedToDrained.index()] = failed;
        self.ticks
            .fetch_add(if failed > 0 { 3 } else { 1 }, Ordering::Relaxed);
        Ok(summary)
    }
}

impl Stopwatch for Rollouts<'_> {
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.ticks.load(Ordering::Relaxed))
    }
}

/// A share of the requests between `low` and `high` percent, uniformly.
fn uniform(rng: &mut SplitMix64, low: u64, high: u64) -> u64 {
    (low + rng.below(high - low + 1)) * REQUESTS / 100
}

/// A count with a long tail: 16 doubled k times with probability 1/2^(k+1), at most 7 times. Mean 72, standard
/// deviation 221.
fn long_tail(rng: &mut SplitMix64) -> u64 {
    let doublings = rng.next().trailing_zeros().min(7);
    16 << doublings
}

const FAMILIES: [Family; 9] = [
    Family {
        name: "independent requests",
        failures: |rng| (0..64).filter(|_| rng.below(32) == 0).count() as u64,
        per_request: 0.0002,
        // 1 - (31/32)^64.
        per_rollout: 0.868_911,
    },
    Family {
        name: "one rollout in twenty fails 30 %",
        failures: |rng| if rng.below(20) == 0 { 3_000 } else { 0 },
        per_request: 0.05 * 0.30,
        per_rollout: 0.05,
    },
    Family {
        name: "one rollout in ten fails between 1 and 59 %",
        failures: |rng| {
            if rng.below(10) == 0 {
                uniform(rng, 1, 59)
            } else {
                0
            }
        },
        per_request: 0.10 * 0.30,
        per_rollout: 0.10,
    },
    Family {
        name: "three rollouts in ten, with a long tail",
        failures: |rng| if rng.below(10) < 3 { long_tail(rng) } else { 0 },
        per_request: 0.30 * 72.0 / 10_000.0,
        per_rollout: 0.30,
    },
    Family {
        name: "nineteen rollouts in twenty fail 30 %",
        failures: |rng| if rng.below(20) > 0 { 3_000 } else { 0 },
        per_request: 0.95 * 0.30,
        per_rollout: 0.95,
    },
    Family {
        name: "every rollout fails between 20 and 40 %",
        failures: |rng| uniform(rng, 20, 40),
        per_request: 0.30,
        per_rollout: 1.0,
    },
    Family {
        name: "every rollout, with a long tail",
        failures: long_tail,
        per_request: 72.0 / 10_000.0,
        per_rollout: 1.0,
    },
    Family {
        name: "one rollout in fifty fails a single request",
        failures: |rng| u64::from(rng.below(50) == 0),
        per_request: 0.02 / 10_000.0,
        per_rollout: 0.02,
    },
    Family {
        name: "never",
        failures: |_| 0,
        per_request: 0.0,
        per_rollout: 0.0,
    },
];

/// Of some sweeps, how many had an interval that holds the truth, and how many were stopped by precision.
#[derive(Debug, Default)]
struct Covered {
    requests: u64,
    rollouts: u64,
    precise: u64,
}

fn cover(family: &Family, sweeps: u64) -> Covered {
    let point = [Point {
        index: 0,
        settings: vec![],
    }];
    let mut covered = Covered::default();
    for sweep in 0..sweeps {
        let world = Rollouts {
            family,
            ticks: AtomicU64::new(0),
        };
        let plan = Plan {
            root_seed: seed_of(0xc0ffee, sweep),
            // Budgets from a few runs to enough for most.
            budget: Some(Duration::from_secs(
                [20, 60, 200, 1_000][(sweep % 4) as usize],
            )),
            max_runs: 700,
            block_runs: 10,
            ..Plan::default()
        };
        let result = run_sweep(&world, &point, &plan, &world, &mut |_| {}).expect("runs");
        let estimates = &result.points[0].estimates;
        covered.requests += u64::from(estimates.failure.interval.contains(family.per_request));
        covered.rollouts += u64::from(estimates.any_failure.interval.contains(family.per_rollout));
        covered.precise += u64::from(result.stopped == Stopped::Precision);
    }
    covered
}

/// Of 10,000 sweeps of each family, stopping included, at least 94 % as was asked; the stages alone promise 95 %.
const STOPPED_SWEEPS: u64 = 10_000;

#[test]
fn intervals_hold_the_truth_although_sweeps_stop_when_they_like() {
    FAMILIES.par_iter().for_each(|family| {
        let covered = cover(family, STOPPED_SWEEPS);
        let enough = STOPPED_SWEEPS * 94 / 100;
        assert!(
            covered.requests >= enough && covered.rollouts >= enough,
            "{}: {covered:?}",
            family.name
        );
    });
}

/// Sweeps of a fixed number of runs: at least 94 % of them.
const SWEEPS: u64 = 1_000;
const ENOUGH: u64 = 940;

#[test]
fn the_sweeps_of_the_coverage_test_are_stopped_in_every_way() {
    let (mut precise, mut short) = (0, 0);
    for family in &FAMILIES {
        let covered = cover(family, 40);
        precise += covered.precise;
        short += 40 - covered.precise;
    }
    assert!(
        precise >= 50 && short >= 50,
        "{precise} by precision, {short} by budget"
    );
}

/// One sweep of a fixed number of runs.
fn fixed(family: &Family, runs: u64, sweep: u64) -> Tally {
    let world = Rollouts {
        family,
        ticks: AtomicU64::new(0),
    };
    let point = Point {
        index: 0,
        settings: vec![],
    };
    let block = Block {
        point: 0,
        first_row: 0,
        rows: runs,
    };
    let plan = Plan {
        root_seed: seed_of(0xdecade, sweep),
        ..Plan::default()
    };
    let mut tally = Tally::default();
    for done in run_block(&world, &point, &block, &plan, &Forget).expect("runs") {
        tally.add(done.run, &done.summary);
    }
    tally
}

#[test]
fn intervals_hold_the_truth_for_few_runs() {
    let two_kinds = FAMILIES
        .iter()
        .filter(|family| !family.name.contains("long tail"));
    for family in two_kinds {
        for runs in [1, 2, 3, 5, 8, 13, 20] {
            let holds = |sweep: &u64| {
                let estimates = Estimates::of(&fixed(family, runs, *sweep));
                estimates.failure.interval.contains(family.per_request)
            };
            let held = (0..SWEEPS).filter(holds).count() as u64;
            assert!(held >= ENOUGH, "{}, {runs} runs: {held}", family.name);
        }
    }
}

/// Every rollout fails a few, one in ten fails a third: as long as none of these was seen, no interval from the
/// data can know of them. What is printed beside it must then be true: a kind of rollout with a probability up
/// to u may be missing.
#[test]
fn where_the_interval_misses_an_unseen_kind_the_printed_bound_says_so() {
    let family = Family {
        name: "always few, one rollout in ten many",
        failures: |rng| {
            if rng.below(10) == 0 {
                3_000
            } else {
                1 + rng.below(9)
            }
        },
        per_request: (0.1 * 3_000.0 + 0.9 * 5.0) / 10_000.0,
        per_rollout: 1.0,
    };
    for runs in [3, 8, 20, 40, 80] {
        let honest = |sweep: &u64| {
            let estimates = Estimates::of(&fixed(&family, runs, *sweep));
            estimates.failure.interval.contains(family.per_request) || estimates.unseen >= 0.1
        };
        let held = (0..SWEEPS).filter(honest).count() as u64;
        assert!(held >= ENOUGH, "{runs} runs: {held}");
    }
}
