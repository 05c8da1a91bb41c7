//! A share of independent trials: `count` of `of` rollouts.

use statrs::distribution::{ContinuousCDF, Normal};

use super::{Interval, quantile};

/// The interval of Clopper and Pearson: it covers the truth with at least `1 - alpha` for every truth and
/// every number of trials.
///
/// No trials: 0 to 1. `count` above `of` counts as `of`.
pub fn clopper_pearson(count: u64, of: u64, alpha: f64) -> Interval {
    if of == 0 {
        return Interval::UNKNOWN;
    }
    let count = count.min(of);
    let (k, n) = (count as f64, of as f64);
    let low = if count == 0 {
        0.0
    } else {
        quantile::beta(k, n - k + 1.0, alpha / 2.0)
    };
    let high = if count == of {
        1.0
    } else {
        quantile::beta(k + 1.0, n - k, 1.0 - alpha / 2.0)
    };
    Interval::clipped(low, high)
}

/// Wilson's interval: narrower than Clopper and Pearson's and right on average, not for every truth. For
/// display only; nothing here decides by it.
pub fn wilson(count: u64, of: u64, alpha: f64) -> Interval {
    if of == 0 {
        return Interval::UNKNOWN;
    }
    let (k, n) = (count.min(of) as f64, of as f64);
    let z = Normal::standard().inverse_cdf(1.0 - alpha / 2.0);
    let share = k / n;
    let middle = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // Rounding must not push the ends past a certain 0 or 1.
    let low = if count == 0 {
        0.0
    } else {
        (middle - half) / scale
    };
    let high = if count >= of {
        1.0
    } else {
        (middle + half) / scale
    };
    Interval::clipped(low, high)
}

/// The largest probability that a kind of rollout can have which none of `of` rollouts showed, at confidence
/// `1 - alpha / 2`: the upper end of Clopper and Pearson's interval for none of `of`.
pub fn unseen(of: u64, alpha: f64) -> f64 {
    if of == 0 {
        1.0
    } else {
        1.0 - libm::pow(alpha / 2.0, 1.0 / of as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(interval: Interval, low: f64, high: f64) {
        let near = |a: f64, b: f64| (a - b).abs() < 5e-6;
        assert!(
            near(interval.low, low) && near(interval.high, high),
            "{interval:?}"
        );
    }

    /// Solved from the exact binomial sums by another program.
    #[test]
    fn clopper_pearson_matches_values_from_elsewhere() {
        close(clopper_pearson(0, 10, 0.05), 0.0, 0.308_497);
        close(clopper_pearson(1, 10, 0.05), 0.002_529, 0.445_016);
        close(clopper_pearson(5, 10, 0.05), 0.187_086, 0.812_914);
        close(clopper_pearson(10, 10, 0.05), 0.691_503, 1.0);
        close(clopper_pearson(24, 200, 0.05), 0.078_420, 0.173_272);
    }

    #[test]
    fn wilson_matches_published_values() {
        close(wilson(0, 10, 0.05), 0.0, 0.277_533);
        close(wilson(5, 10, 0.05), 0.236_593, 0.763_407);
        close(wilson(10, 10, 0.05), 0.722_467, 1.0);
    }

    /// An independent way: the exact binomial sum at the ends of the interval gives alpha / 2.
    #[test]
    fn clopper_pearson_ends_solve_the_binomial_sums() {
        for (k, n) in [(1_u64, 7_u64), (3, 40), (17, 60), (59, 60)] {
            let interval = clopper_pearson(k, n, 0.05);
            let at_most = |p: f64, k: u64| -> f64 {
                let mut term = libm::pow(1.0 - p, n as f64);
                let mut sum = 0.0;
                for i in 0..=k {
                    sum += term;
                    term *= (n - i) as f64 / (i + 1) as f64 * p / (1.0 - p);
                }
                sum
            };
            assert!(
                (at_most(interval.high, k) - 0.025).abs() < 1e-9,
                "{k} of {n}"
            );
            assert!(
                (1.0 - at_most(interval.low, k - 1) - 0.025).abs() < 1e-9,
                "{k} of {n}"
            );
        }
    }

    #[test]
    fn none_seen_is_the_upper_end_for_zero() {
        for of in [1, 9, 200, 1_000_000] {
            let upper = clopper_pearson(0, of, 0.05).high;
            assert!((unseen(of, 0.05) / upper - 1.0).abs() < 1e-9, "{of}");
        }
        assert_eq!(clopper_pearson(0, 0, 0.05), Interval::UNKNOWN);
    }
}
