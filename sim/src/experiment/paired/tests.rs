//! Synthetic pairs whose truth is known: how often does the interval hold it? Seeds are fixed, so the counts never change
//! by themselves.

use super::*;
use crate::experiment::estimate::ALPHA;
use crate::experiment::seeds::{SplitMix64, seed_of};

/// Requests in a synthetic rollout.
const REQUESTS: u64 = 10_000;

const fn part(count: u64) -> Part {
    Part {
        count,
        of: REQUESTS,
    }
}

fn paired(runs: impl IntoIterator<Item = (u64, u64)>) -> Paired {
    let mut paired = Paired::default();
    for (before, after) in runs {
        paired.add(part(before), part(after));
    }
    paired
}

/// How a rollout fails in two settings, and the two truths.
struct Family {
    name: &'static str,
    failures: fn(&mut SplitMix64) -> (u64, u64),
    before: f64,
    after: f64,
}

impl Family {
    fn draw(&self, runs: u64, experiment: u64) -> Paired {
        let mut rng = SplitMix64::new(seed_of(0xfa15e, experiment));
        paired((0..runs).map(|_| (self.failures)(&mut rng)))
    }
}

/// A count with a long tail: 16 doubled k times with probability 1/2^(k+1), at most 7 times. Mean 72.
fn long_tail(rng: &mut SplitMix64) -> u64 {
    16 << rng.next().trailing_zeros().min(7)
}

const FAMILIES: [Family; 8] = [
    Family {
        name: "every rollout fails 20 to 40 %, the remedy ends it",
        failures: |rng| (2_000 + rng.below(2_001), 0),
        before: 0.30,
        after: 0.0,
    },
    Family {
        name: "the same much with a common part, a tenth less",
        failures: |rng| {
            let common = 200 + rng.below(201);
            (10 * common, 9 * common)
        },
        before: 0.30,
        after: 0.27,
    },
    Family {
        name: "no difference on average, scatter in both directions",
        failures: |rng| (3_000 + rng.below(201), 3_000 + rng.below(201)),
        before: 0.31,
        after: 0.31,
    },
    Family {
        name: "no difference at all",
        failures: |rng| {
            let common = rng.below(1_001);
            (common, common)
        },
        before: 0.05,
        after: 0.05,
    },
    Family {
        name: "one rollout in ten gets worse, and much so",
        failures: |rng| (100, if rng.below(10) == 0 { 5_000 } else { 100 }),
        before: 0.01,
        after: 0.01 * 0.9 + 0.05,
    },
    Family {
        name: "one rollout in ten is cured, one in twenty gets ill",
        failures: |rng| match rng.below(20) {
            0 | 1 => (3_000, 0),
            2 => (0, 3_000),
            _ => (0, 0),
        },
        before: 0.03,
        after: 0.015,
    },
    Family {
        name: "long tails, independent of each other",
        failures: |rng| (long_tail(rng), long_tail(rng)),
        before: 0.0072,
        after: 0.0072,
    },
    Family {
        name: "long tails, three times less",
        failures: |rng| (3 * long_tail(rng), long_tail(rng)),
        before: 0.0216,
        after: 0.0072,
    },
];

const EXPERIMENTS: u64 = 600;
/// At least 94 % of [`EXPERIMENTS`]; half of the error each for two parts promises 95 %.
const ENOUGH: u64 = 564;

#[test]
fn the_difference_holds_the_truth() {
    for family in &FAMILIES {
        let truth = family.after - family.before;
        for runs in [20, 40, 160] {
            let held = (0..EXPERIMENTS).filter(|experiment| {
                let found = family.draw(runs, *experiment).difference_at(ALPHA);
                found.low <= truth + 1e-12 && truth <= found.high + 1e-12
            });
            let held = held.count() as u64;
            assert!(held >= ENOUGH, "{}, {runs} runs: {held}", family.name);
        }
    }
}

/// Two kinds of rollouts or an even scatter: also with few runs.
#[test]
fn the_difference_holds_the_truth_for_few_runs() {
    let even = FAMILIES
        .iter()
        .filter(|family| !family.name.contains("long tail"));
    for family in even {
        let truth = family.after - family.before;
        for runs in [1, 2, 3, 5, 8, 13] {
            let held = (0..EXPERIMENTS).filter(|experiment| {
                let found = family.draw(runs, *experiment).difference_at(ALPHA);
                found.low <= truth + 1e-12 && truth <= found.high + 1e-12
            });
            let held = held.count() as u64;
            assert!(held >= ENOUGH, "{}, {runs} runs: {held}", family.name);
        }
    }
}

#[test]
fn the_ratio_holds_the_truth() {
    let fails = FAMILIES.iter().filter(|family| family.after > 0.0);
    for family in fails {
        let truth = family.before / family.after;
        for runs in [10, 40, 160] {
            let held = (0..EXPERIMENTS).filter(|experiment| {
                let Some(found) = family.draw(runs, *experiment).ratio_at(ALPHA) else {
                    return true;
                };
                found.low <= truth * (1.0 + 1e-12)
                    && found.high.is_none_or(|high| truth <= high * (1.0 + 1e-12))
            });
            let held = held.count() as u64;
            assert!(held >= ENOUGH, "{}, {runs} runs: {held}", family.name);
        }
    }
}

/// What pairing is for: two settings that differ by a little of a large common scatter are told apart, although each
/// one's own interval holds the other's estimate.
#[test]
fn pairing_tells_apart_what_two_intervals_do_not() {
    let mut rng = SplitMix64::new(7);
    let pairs = paired((0..80).map(|_| {
        let common = 1_000 + rng.below(5_001);
        (common, common - common / 20)
    }));
    let found = pairs.difference(ALPHA);
    assert_eq!(found.verdict, Verdict::Lower, "{found:?}");
    let own = |after: bool| {
        let mut sums = RatioSums::default();
        for (b, a) in &pairs.runs {
            let part = if after { a } else { b };
            sums.add(part.count, part.of);
        }
        sums
    };
    let (before, after) = (own(false), own(true));
    assert!(before.interval(ALPHA).contains(after.estimate().unwrap()));
    assert!(after.interval(ALPHA).contains(before.estimate().unwrap()));
    let ratio = pairs.ratio(ALPHA).unwrap();
    let exact = ratio.estimate.unwrap();
    assert!((exact - 1.0 / 0.95).abs() < 0.01, "{ratio:?}");
    assert!(ratio.low > 1.0 && ratio.high.unwrap() < 1.1, "{ratio:?}");
}

#[test]
fn verdicts_say_what_the_interval_says() {
    let ended = paired([(3_000, 0); 40]).difference(ALPHA);
    assert_eq!(ended.verdict, Verdict::Lower);
    assert_eq!((ended.estimate, ended.differing), (-0.3, 40));
    // 40 alike runs do not rule out another kind: the interval says how rare it must be.
    assert!(ended.low < -0.35 && ended.high > -0.27, "{ended:?}");
    assert_eq!(
        paired([(0, 3_000); 40]).difference(ALPHA).verdict,
        Verdict::Higher
    );
    let same = paired([(3_000, 3_000); 40]).difference(ALPHA);
    assert_eq!(same.verdict, Verdict::Same);
    assert!(same.low < 0.0 && same.high > 0.0, "{same:?}");
    let mixed = paired([(10, 20), (20, 10), (10, 12)]).difference(ALPHA);
    assert_eq!(mixed.verdict, Verdict::Unclear);
    assert_eq!(
        Paired::default().difference(ALPHA).verdict,
        Verdict::Unclear
    );
}

#[test]
fn a_cure_has_a_lowest_ratio_and_no_estimate() {
    let ratio = paired([(3_000, 0); 40]).ratio(ALPHA).unwrap();
    assert_eq!((ratio.estimate, ratio.high), (None, None));
    assert!(ratio.low > 1.0 && ratio.low < 10.0, "{ratio:?}");
    assert_eq!(paired([(0, 10); 5]).ratio(ALPHA), None);
}

/// The estimate is the difference of the pooled shares, whatever the sizes of the runs.
#[test]
fn unequal_runs_give_the_difference_of_the_pooled_shares() {
    let mut pairs = Paired::default();
    pairs.add(part(100), Part { count: 7, of: 70 });
    pairs.add(
        Part { count: 9, of: 900 },
        Part {
            count: 0,
            of: 40_000_000_000,
        },
    );
    pairs.add(Part { count: 0, of: 0 }, part(5));
    let before = 109.0 / 10_900.0;
    let after = 12.0 / 40_000_010_070.0;
    let found = pairs.difference(ALPHA);
    assert!(
        (found.estimate - (after - before)).abs() < 1e-15,
        "{found:?}"
    );
    assert!(found.low <= found.estimate && found.estimate <= found.high);
}

#[test]
fn the_runs_to_look_at_are_those_that_differ_most() {
    let pairs = paired([(5, 5), (5, 900), (300, 0), (0, 0), (5, 4)]);
    assert_eq!(pairs.disagreeing(10), [1, 2, 4]);
    assert_eq!(pairs.disagreeing(1), [1]);
}

#[test]
fn a_run_gives_each_measure_its_own_part() {
    let mut summary = RunSummary::default();
    summary.outcomes[Outcome::Answered.index()] = 70;
    summary.outcomes[Outcome::Reset.index()] = 10;
    summary.outcomes[Outcome::PortsExhausted.index()] = 20;
    summary.delayed[0] = 7;
    let counts = RunCounts::of(&summary);
    let parts =
        [Measure::Failure, Measure::Late, Measure::NoPort].map(|measure| measure.part(&counts));
    let of = |count, of| Part { count, of };
    assert_eq!(parts, [of(10, 80), of(7, 80), of(20, 100)]);
}
