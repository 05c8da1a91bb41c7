use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::experiment::grid::{Axis, Grid};
use crate::experiment::seeds::SplitMix64;
use crate::outcome::{Cause, Outcome, RunSummary};

/// Rollouts of 1,000 requests: with probability `p` a tenth of them fails. Settings: `p` in percent.
struct Synthetic;

impl Runner for Synthetic {
    fn run(&self, point: &Point, seed: u64) -> Result<RunSummary, RunError> {
        let percent: u64 = point.settings[0].value.parse().expect("a number");
        if percent == 13 && seed.is_multiple_of(5) {
            return Err(RunError(format!("unlucky {seed}")));
        }
        let mut rng = SplitMix64::new(seed);
        // Uneven work, so that blocks finish out of order.
        for _ in 0..rng.below(20_000) {
            rng.next();
        }
        let mut rng = SplitMix64::new(seed);
        let failed = if rng.below(100) < percent {
            80 + rng.below(40)
        } else {
            0
        };
        let mut summary = RunSummary {
            requests: 1_000,
            connections: 1_000,
            ..Default::default()
        };
        summary.outcomes[Outcome::Answered.index()] = 1_000 - failed;
        summary.outcomes[Outcome::ConnectTimeout.index()] = failed;
        summary.causes[Cause::PinnedToDrained.index()] = failed;
        summary.longest_dead_ns = failed * 200_000_000;
        Ok(summary)
    }
}

/// Time that goes on by a second with every look at it.
#[derive(Default)]
struct Ticks(AtomicU64);

impl Stopwatch for Ticks {
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

fn points(values: &str) -> Vec<Point> {
    Grid::new(vec![Axis::parse("p", values).expect("values")])
        .expect("a grid")
        .points()
}

fn sweep(values: &str, plan: &Plan) -> Sweep {
    run_sweep(
        &Synthetic,
        &points(values),
        plan,
        &Ticks::default(),
        &mut |_| {},
    )
    .expect("runs")
}

#[test]
fn threads_and_blocks_do_not_change_the_result() {
    let plan = Plan {
        exact_runs: Some(50),
        ..Plan::default()
    };
    let one = sweep("0,30,100", &plan);
    assert_eq!(one.runs, 50);
    for (threads, block_runs) in [(8, 1), (1, 7), (8, 7), (3, 64)] {
        assert_eq!(
            sweep(
                "0,30,100",
                &Plan {
                    threads,
                    block_runs,
                    ..plan
                }
            ),
            one
        );
    }
}

#[test]
fn precision_stops_each_point_at_a_look() {
    let sweep = sweep("50,100", &Plan::default());
    assert_eq!(sweep.stopped, Stopped::Precision);
    for point in &sweep.points {
        assert_eq!(point.settled, Settled::Precise);
        let runs = point.tally.runs();
        assert!(looks::is_look(runs), "{runs}");
        let width = point.estimates.relative_half_width().expect("failures");
        assert!(width <= 0.20, "{width}");
    }
    let [uneven, even] = [0, 1].map(|place| sweep.points[place].tally.runs());
    assert!(
        even < uneven,
        "what scatters less needs fewer runs: {even} and {uneven}"
    );
    assert_eq!(sweep.runs_span(), (even, uneven));
    assert_eq!(sweep.rollouts(), even + uneven);
}

#[test]
fn what_a_point_needs_does_not_depend_on_its_neighbours() {
    let together = sweep("0,50,100", &Plan::default());
    for (place, alone) in ["0", "50", "100"].into_iter().enumerate() {
        let alone = sweep(alone, &Plan::default());
        assert_eq!(together.points[place].tally, alone.points[0].tally);
    }
}

#[test]
fn the_most_runs_repeat_a_sweep_whose_points_stopped_apart() {
    let stopped = sweep("50,100", &Plan::default());
    let again = Plan {
        max_runs: stopped.runs_span().1,
        threads: 3,
        ..Plan::default()
    };
    assert_eq!(sweep("50,100", &again), stopped);
    // Ended by time between two looks, with one point settled and one not.
    let budget = Some(Duration::from_secs(200));
    let ended = sweep(
        "20,100",
        &Plan {
            budget,
            ..Plan::default()
        },
    );
    assert_eq!(ended.stopped, Stopped::Budget);
    let (fewest, most) = ended.runs_span();
    assert!(fewest < most, "{fewest} {most}");
    let again = Plan {
        max_runs: most,
        ..Plan::default()
    };
    assert_eq!(sweep("20,100", &again), ended);
}

#[test]
fn runs_asked_for_repeat_a_sweep_that_stopped_by_precision() {
    let stopped = sweep("50", &Plan::default());
    let again = Plan {
        exact_runs: Some(stopped.runs),
        threads: 4,
        ..Plan::default()
    };
    assert_eq!(sweep("50", &again), stopped);
    // One more run is more than needed, and says so.
    let more = sweep(
        "50",
        &Plan {
            exact_runs: Some(stopped.runs + 1),
            ..Plan::default()
        },
    );
    assert_eq!(
        more.stopped,
        Stopped::Asked {
            enough: stopped.runs
        }
    );
}

#[test]
fn runs_asked_for_repeat_a_sweep_that_time_stopped() {
    let budget = Some(Duration::from_secs(61));
    let stopped = sweep(
        "10,20",
        &Plan {
            budget,
            precision: 0.01,
            ..Plan::default()
        },
    );
    assert_eq!(stopped.stopped, Stopped::Budget);
    assert!(stopped.runs > 1 && stopped.runs < 40, "{}", stopped.runs);
    let again = Plan {
        exact_runs: Some(stopped.runs),
        precision: 0.01,
        ..Plan::default()
    };
    assert_eq!(sweep("10,20", &again), stopped);
}

#[test]
fn every_point_gets_a_run_although_time_is_up() {
    let sweep = sweep(
        "0,50,100",
        &Plan {
            budget: Some(Duration::ZERO),
            ..Plan::default()
        },
    );
    assert_eq!((sweep.runs, sweep.points.len()), (1, 3));
    assert_eq!(sweep.stopped, Stopped::Budget);
}

#[test]
fn max_runs_end_a_sweep_that_is_not_settled() {
    let sweep = sweep(
        "3",
        &Plan {
            max_runs: 40,
            block_runs: 3,
            ..Plan::default()
        },
    );
    assert_eq!((sweep.runs, sweep.stopped), (40, Stopped::Budget));
}

#[test]
fn points_share_their_seeds() {
    let sweep = sweep(
        "50,050",
        &Plan {
            exact_runs: Some(20),
            ..Plan::default()
        },
    );
    assert_eq!(sweep.points[0].tally, sweep.points[1].tally);
}

#[test]
fn the_first_failing_run_is_reported_in_any_number_of_threads() {
    let error = |threads| {
        let plan = Plan {
            exact_runs: Some(60),
            threads,
            ..Plan::default()
        };
        let result = run_sweep(
            &Synthetic,
            &points("0,13"),
            &plan,
            &Ticks::default(),
            &mut |_| {},
        );
        result.expect_err("some seed is unlucky").to_string()
    };
    let one = error(1);
    assert!(one.contains("p 13") && one.contains("unlucky"), "{one}");
    for _ in 0..20 {
        assert_eq!(error(8), one);
    }
    let plan = Plan {
        exact_runs: Some(60),
        threads: 2,
        block_runs: 64,
        ..Plan::default()
    };
    let whole = run_sweep(
        &Synthetic,
        &points("0,13"),
        &plan,
        &Ticks::default(),
        &mut |_| {},
    );
    assert_eq!(whole.expect_err("some seed is unlucky").to_string(), one);
}

#[test]
fn progress_counts_up_to_the_goal() {
    let mut last = 0;
    let plan = Plan {
        exact_runs: Some(33),
        threads: 4,
        ..Plan::default()
    };
    let mut watch = |progress: &Progress<'_>| {
        assert!(progress.runs >= last && progress.runs <= progress.goal);
        assert!(progress.blocks.0 <= progress.blocks.1);
        assert_eq!(progress.tallies[0].runs(), progress.runs);
        last = progress.runs;
    };
    run_sweep(
        &Synthetic,
        &points("10,20"),
        &plan,
        &Ticks::default(),
        &mut watch,
    )
    .expect("runs");
    assert_eq!(last, 33);
}
