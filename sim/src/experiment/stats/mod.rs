//! Estimates with intervals from integer counts.
//!
//! Two kinds of probability, never mixed. A *rollout* either shows a thing or does not, and rollouts are
//! independent: [`binomial`]. The *requests* of one rollout are dependent (a bad rollout fails many at once),
//! so their probability is a ratio of sums over rollouts: [`ratio`]. [`looks`] keeps both honest when the
//! number of rollouts is chosen by looking at the results.

pub mod binomial;
pub mod looks;
mod quantile;
pub mod ratio;

pub use quantile::student_t;

/// A confidence interval of a probability. `low <= high`, both in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// What is known without any data.
    pub const UNKNOWN: Self = Self {
        low: 0.0,
        high: 1.0,
    };

    /// An interval clipped to 0..=1. Ends that are not numbers become the widest.
    pub fn clipped(low: f64, high: f64) -> Self {
        let low = if low.is_nan() {
            0.0
        } else {
            low.clamp(0.0, 1.0)
        };
        let high = if high.is_nan() {
            1.0
        } else {
            high.clamp(0.0, 1.0)
        };
        Self { low, high }
    }

    /// Whether `value` lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Half its width relative to `estimate`; none if the estimate is zero.
    pub fn relative_half_width(&self, estimate: f64) -> Option<f64> {
        (estimate > 0.0).then(|| (self.high - self.low) / 2.0 / estimate)
    }
}
