//! Quantiles by search: false position, with a halving wherever that is slow.
//!
//! statrs' own `Beta::inverse_cdf` never returns for rare events (5 of 10 million) and Student's t is built on
//! the same routine, so only its forward function `beta_reg` is used here.

use statrs::function::beta::beta_reg;

/// Steps enough to reach two neighbouring floats anywhere above 1e-18, were all of them halvings.
const STEPS: u32 = 200;

/// The x in 0..=1 at which the distribution function of Beta(a, b) reaches `p`.
///
/// `a`, `b` above 0; `p` in 0..=1.
pub fn beta(a: f64, b: f64, p: f64) -> f64 {
    // The function's distance from `p` at both ends of what is left.
    let (mut low, mut below) = (0.0_f64, -p);
    let (mut high, mut above) = (1.0_f64, 1.0 - p);
    let mut halve = true;
    for _ in 0..STEPS {
        let width = high - low;
        let middle = if low == 0.0 {
            high / 2.0
        } else {
            low + width / 2.0
        };
        if middle <= low || middle >= high || width < 1e-13 * high {
            break;
        }
        let straight = low - below * width / (above - below);
        let inside = straight > low && straight < high;
        let x = if halve || !inside { middle } else { straight };
        let distance = beta_reg(a, b, x) - p;
        if distance < 0.0 {
            (low, below) = (x, distance);
            // An end that stays is taken as half as far, or it would stay for ever (the Illinois rule).
            above /= 2.0;
        } else {
            (high, above) = (x, distance);
            below /= 2.0;
        }
        halve = high - low > width / 2.0;
    }
    low + (high - low) / 2.0
}

/// The t that a Student-t variable with `freedom` degrees exceeds in size (either sign) with probability `tail`.
///
/// `freedom` at least 1; `tail` in 0..1, exclusive.
pub fn student_t(freedom: f64, tail: f64) -> f64 {
    // P(|T| > t) = I_x(v/2, 1/2) at x = v / (v + t^2).
    let x = beta(freedom / 2.0, 0.5, tail);
    (freedom * (1.0 - x) / x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published tables of Student's t (two-sided 5 %, 1 %).
    #[test]
    fn student_t_matches_the_tables() {
        let rows = [
            (1.0, 0.05, 12.7062),
            (1.0, 0.01, 63.6567),
            (2.0, 0.05, 4.30265),
            (9.0, 0.05, 2.26216),
            (30.0, 0.01, 2.75000),
            (120.0, 0.05, 1.97993),
            (1e6, 0.05, 1.95997),
        ];
        for (freedom, tail, expected) in rows {
            let t = student_t(freedom, tail);
            assert!(
                (t / expected - 1.0).abs() < 1e-5,
                "t({freedom}, {tail}) = {t}"
            );
        }
    }

    /// What is found is where the function reaches `p`, from one float to the next.
    #[test]
    fn the_function_reaches_p_at_the_quantile() {
        for a in [0.5, 1.0, 7.0, 80.0, 1e4] {
            for b in [0.5, 2.0, 33.0, 1e3, 1e7] {
                for p in [1e-9, 0.000_4, 0.025, 0.5, 0.975, 0.999_99] {
                    let x = beta(a, b, p);
                    let (before, after) = (x * (1.0 - 1e-9), (x * (1.0 + 1e-9)).min(1.0));
                    assert!(
                        beta_reg(a, b, before) <= p && p <= beta_reg(a, b, after),
                        "{a} {b} {p}: {x}"
                    );
                }
            }
        }
    }

    #[test]
    fn rare_events_return() {
        // The cases at which statrs' inverse hangs.
        let five_in_ten_million = beta(6.0, 1e7 - 5.0, 0.975);
        assert!(
            (five_in_ten_million / 1.16683e-6 - 1.0).abs() < 1e-4,
            "{five_in_ten_million}"
        );
        let one_in_a_hundred_million = beta(1.0, 1e8, 0.025);
        assert!((one_in_a_hundred_million / 2.53178e-10 - 1.0).abs() < 1e-4);
    }
}
