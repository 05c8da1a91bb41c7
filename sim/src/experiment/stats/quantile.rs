//! Quantiles by bisection.
//!
//! statrs' own `Beta::inverse_cdf` never returns for rare events (5 of 10 million) and Student's t is built on
//! the same routine, so only its forward function `beta_reg` is used here.

use statrs::function::beta::beta_reg;

/// Halvings of 0..1: enough to reach two neighbouring floats anywhere above 1e-18.
const HALVINGS: u32 = 200;

/// The x in 0..=1 at which the distribution function of Beta(a, b) reaches `p`.
///
/// `a`, `b` above 0; `p` in 0..=1.
pub fn beta(a: f64, b: f64, p: f64) -> f64 {
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..HALVINGS {
        let middle = if low == 0.0 {
            high / 2.0
        } else {
            (low + high) / 2.0
        };
        if middle <= low || middle >= high || high - low < 1e-13 * high {
            break;
        }
        if beta_reg(a, b, middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
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
