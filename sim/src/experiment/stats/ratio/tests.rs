use super::*;

fn sums(runs: &[(u64, u64)]) -> RatioSums {
    let mut sums = RatioSums::default();
    for (y, x) in runs {
        sums.add(*y, *x);
    }
    sums
}

#[test]
fn merging_blocks_equals_adding_runs() {
    let runs = [(3, 100), (0, 90), (70, 120), (1, 1), (0, 0)];
    for cut in 0..runs.len() {
        let mut left = sums(&runs[..cut]);
        left.merge(&sums(&runs[cut..]));
        assert_eq!(left, sums(&runs));
    }
}

#[test]
fn without_failures_the_rollout_is_the_unit() {
    // A million requests, but only 20 rollouts: 20 say nothing about one rollout in ten.
    let interval = sums(&[(0, 50_000); 20]).interval(0.05);
    assert_eq!(interval.low, 0.0);
    assert!((interval.high - 0.168_433).abs() < 1e-6, "{interval:?}");
}

#[test]
fn runs_all_alike_bound_the_kind_of_rollout_that_was_not_seen() {
    let alike = sums(&[(31, 100); 20]);
    assert!(alike.all_alike());
    let interval = alike.interval(0.05);
    assert!(
        (interval.low - 0.31 * (1.0 - 0.168_433)).abs() < 1e-6,
        "{interval:?}"
    );
    assert!(
        (interval.high - (0.31 + 0.69 * 0.168_433)).abs() < 1e-6,
        "{interval:?}"
    );
    assert!(!sums(&[(31, 100), (30, 100)]).all_alike());
    assert!(sums(&[(31, 100)]).all_alike());
}

#[test]
fn with_many_failing_runs_it_is_the_usual_cluster_interval() {
    // Shares 0.2 and 0.4 by turns: mean 0.3, standard error 0.1 / sqrt(m - 1).
    let m = 400_u32;
    let runs: Vec<_> = (0..m)
        .map(|i| {
            if i % 2 == 0 {
                (200, 1_000)
            } else {
                (400, 1_000)
            }
        })
        .collect();
    let ratio = sums(&runs);
    let interval = ratio.interval(0.05);
    let half = 1.966 * 0.1 / f64::from(m - 1).sqrt();
    // Above, one more run is feared that is 4 times as far beyond the worst: a share of 0.8.
    let (up, feared) = (interval.high - 0.3, 0.5 / f64::from(m));
    assert!(up > half && up < half + feared + 0.001, "{interval:?}");
    // Below it also keeps the chance that rollouts without any failure exist: 1 in 108 at most.
    assert!(
        interval.low < 0.3 - half && interval.low > 0.3 - 1.5 * half,
        "{interval:?}"
    );
    // Binomial variance 0.3 * 0.7 / 400,000.
    let effect = ratio.design_effect().expect("runs differ");
    assert!(
        (effect - 0.01 / 399.0 / (0.21 / 400_000.0)).abs() < 0.01,
        "{effect}"
    );
}

#[test]
fn independent_requests_have_a_design_effect_near_one() {
    let mut rng = crate::experiment::seeds::SplitMix64::new(1);
    let mut ratio = RatioSums::default();
    for _ in 0..400 {
        let y = (0..500).filter(|_| rng.below(10) == 0).count();
        ratio.add(y as u64, 500);
    }
    let effect = ratio.design_effect().expect("runs differ");
    assert!((0.8..1.2).contains(&effect), "{effect}");
}

#[test]
fn one_failing_run_says_how_often_but_not_how_many() {
    let mut runs = vec![(0, 1_000); 39];
    runs.push((5, 1_000));
    let interval = sums(&runs).interval(0.05);
    let rollouts = binomial::clopper_pearson(1, 40, 0.05);
    assert_eq!((interval.low, interval.high), (0.0, rollouts.high));
}

#[test]
fn a_few_equal_counts_do_not_look_certain() {
    let mut runs = vec![(0, 1_000_000); 97];
    runs.extend([(1, 1_000_000); 3]);
    let interval = sums(&runs).interval(0.05);
    let p = 3e-8;
    assert!(
        interval.low < p / 3.0 && interval.high > p * 3.0,
        "{interval:?}"
    );
}

#[test]
fn nothing_counted_is_unknown() {
    assert_eq!(sums(&[]).interval(0.05), Interval::UNKNOWN);
    assert_eq!(sums(&[(0, 0), (0, 0)]).interval(0.05), Interval::UNKNOWN);
    assert_eq!(sums(&[(1, 1)]).estimate(), Some(1.0));
}

#[test]
fn ends_are_ordered_and_hold_the_estimate() {
    let mut rng = crate::experiment::seeds::SplitMix64::new(2);
    for _ in 0..2_000 {
        let mut ratio = RatioSums::default();
        for _ in 0..1 + rng.below(40) {
            let x = rng.below(1_000);
            ratio.add(
                if rng.below(2) == 0 {
                    0
                } else {
                    rng.below(x + 1)
                },
                x,
            );
        }
        let interval = ratio.interval(0.05);
        if let Some(p) = ratio.estimate() {
            assert!(
                interval.low <= p && p <= interval.high,
                "{ratio:?} {interval:?}"
            );
        }
    }
}
