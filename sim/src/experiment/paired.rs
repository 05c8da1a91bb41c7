//! Two settings compared on common random numbers: the same seeds, hence the same arrivals and delays (run r has the same
//! seed at every point: [`super::seeds`]; every purpose draws from a stream of its own: `engine::streams`).
//!
//! The unit is the rollout, as in [`super::stats::ratio`]: run r gives a pair of shares, and the pairs are independent.
//! Where many rollouts fail in both settings the interval is that of the mean of the differences (Student's t on the
//! linearised pairs), each end taken as if one more pair had been seen, beyond the most extreme one. Where one of the
//! settings fails seldom or never, there is no scatter to trust, and the difference is split into what the second setting
//! adds and what it takes away,
//!
//! - u, the part of the runs in which the second setting does worse, and
//! - w, the part of those in which it does better,
//!
//! both never negative, so that each has the interval of a ratio over rollouts, which keeps its coverage for skewed shares
//! ("most rollouts the same, some very different") and says what may have gone unseen. Each gets half of the
//! error, and the difference lies between `u.low - w.high` and `u.high - w.low`: whatever the dependence of the two,
//! the interval misses with the whole error at most. Runs that are alike in both settings cost nothing: that is what
//! pairing is for.
//!
//! Leaves out: what no interval from m rollouts can tell (a kind of rollout that was never seen beyond the bound that
//! is printed beside it).

use serde::Serialize;

use super::stats::{looks, ratio::RatioSums, student_t};
use crate::outcome::{Outcome, RunSummary};

/// What is kept of one run of one setting, to be paired with the same run of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunCounts {
    /// Requests that got a port and ended.
    pub decided: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Of these, answered late.
    pub late: u64,
    /// Requests that ended, with a port or without.
    pub ended: u64,
    /// Of these, without a free port.
    pub no_port: u64,
}

impl RunCounts {
    /// The counts of a run.
    pub fn of(summary: &RunSummary) -> Self {
        Self {
            decided: summary.decided(),
            failed: summary.failed(),
            late: summary.delayed_total(),
            ended: summary.ended(),
            no_port: summary.count(Outcome::PortsExhausted),
        }
    }
}

/// A count out of a count, of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// How many.
    pub count: u64,
    /// Out of how many.
    pub of: u64,
}

/// Which probability is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// A request that got a port fails.
    Failure,
    /// A request that got a port is answered late.
    Late,
    /// A request finds no free port.
    NoPort,
}

impl Measure {
    /// Its part in a run.
    pub const fn part(self, run: &RunCounts) -> Part {
        let (count, of) = match self {
            Self::Failure => (run.failed, run.decided),
            Self::Late => (run.late, run.decided),
            Self::NoPort => (run.no_port, run.ended),
        };
        Part { count, of }
    }
}

/// How a probability changes from one setting to another: `after - before`, with its interval. Within -1..=1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The difference of the two shares.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Pairs of runs it comes from.
    pub runs: u64,
    /// Pairs of runs whose shares differ.
    pub differing: u64,
    /// What the interval says.
    pub verdict: Verdict,
}

/// What the interval of a difference says of the second setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The probability is lower: the whole interval is below 0.
    Lower,
    /// The probability is higher: the whole interval is above 0.
    Higher,
    /// Every run gave the same in both settings.
    Same,
    /// The interval holds 0, and runs differ: more of them are needed to tell.
    Unclear,
}

/// How many times less often the second setting does it: `before / after`, with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of the shares; none if the second is 0.
    pub estimate: Option<f64>,
    /// Lower end, at least 0.
    pub low: f64,
    /// Upper end; none if there is none.
    pub high: Option<f64>,
}

/// The same runs of two settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paired {
    /// Before and after, by run.
    runs: Vec<(Part, Part)>,
}

/// With so many failing runs in both settings their difference has a scatter to be estimated from.
const SCATTER_MIN: u64 = 10;
/// With so many failing runs in both settings the ratio is taken from the pairs.
const PAIRED_RATIO_MIN: u64 = 20;
/// How far beyond the most extreme pair the one lies that was not seen: so many times its distance from the mean. Found
/// by simulation, as its neighbour in [`super::stats::ratio`].
const FEAR: f64 = 4.0;
/// Products of two requests' counts are cut to so many bits, so that sums of them fit.
const PRODUCT_BITS: u32 = 44;

impl Paired {
    /// Pairs run r of `before` with run r of `after`; what is longer is cut.
    pub fn of(before: &[RunCounts], after: &[RunCounts], measure: Measure) -> Self {
        let pair = |(b, a): (&RunCounts, &RunCounts)| (measure.part(b), measure.part(a));
        Self {
            runs: before.iter().zip(after).map(pair).collect(),
        }
    }

    /// The next run.
    pub fn add(&mut self, before: Part, after: Part) {
        self.runs.push((before, after));
    }

    /// Pairs.
    pub fn runs(&self) -> u64 {
        self.runs.len() as u64
    }

    /// The difference with an interval of error `alpha`, valid although the number of runs may have been chosen by
    /// looking ([`looks`]).
    pub fn difference(&self, alpha: f64) -> Difference {
        self.difference_at(looks::alpha_at(self.runs(), alpha))
    }

    /// The difference with an interval of error `alpha`, for a number of runs that was fixed beforehand.
    pub fn difference_at(&self, alpha: f64) -> Difference {
        let (worse, better, differing) = self.signs();
        let estimate = match (self.share(false), self.share(true)) {
            (Some(before), Some(after)) => after - before,
            _ => 0.0,
        };
        let (low, high) = self.of_scatter(estimate, alpha).unwrap_or_else(|| {
            let (up, down) = (worse.interval(alpha / 2.0), better.interval(alpha / 2.0));
            let share = |sums: &RatioSums| sums.estimate().unwrap_or(0.0);
            // The pooled shares and the paired one weigh runs of unequal size differently: the distances to the ends
            // are the paired one's.
            let shift = estimate - (share(&worse) - share(&better));
            (up.low - down.high + shift, up.high - down.low + shift)
        });
        let (low, high) = (low.clamp(-1.0, estimate), high.clamp(estimate, 1.0));
        let verdict = match (low, high) {
            _ if self.runs.is_empty() => Verdict::Unclear,
            (_, high) if high < 0.0 => Verdict::Lower,
            (low, _) if low > 0.0 => Verdict::Higher,
            _ if differing == 0 => Verdict::Same,
            _ => Verdict::Unclear,
        };
        Difference {
            estimate,
            low,
            high,
            runs: self.runs(),
            differing,
            verdict,
        }
    }

    /// `before / after` with an interval of error `alpha`, as [`Paired::difference`]; none if nothing was counted before.
    pub fn ratio(&self, alpha: f64) -> Option<Ratio> {
        self.ratio_at(looks::alpha_at(self.runs(), alpha))
    }

    /// `before / after` with an interval of error `alpha`, for a number of runs that was fixed beforehand.
    pub fn ratio_at(&self, alpha: f64) -> Option<Ratio> {
        let (before, after) = self.sums();
        let (p, q) = (before.estimate()?, after.estimate()?);
        if p == 0.0 {
            return None;
        }
        let estimate = (q > 0.0).then(|| p / q);
        let scattered = |sums: &RatioSums| sums.hit_runs >= PAIRED_RATIO_MIN;
        if let (Some(ratio), true) = (estimate, scattered(&before) && scattered(&after)) {
            let logarithms = self.linearised((-1.0 / p, p), (-1.0 / q, q));
            let (below, above) = ends(&logarithms, alpha);
            return Some(Ratio {
                estimate,
                low: ratio / libm::exp(below),
                high: Some(ratio * libm::exp(above)),
            });
        }
        // Too few failing runs for their scatter to be trusted: the two intervals, each with half of the error.
        let (b, a) = (before.interval(alpha / 2.0), after.interval(alpha / 2.0));
        Some(Ratio {
            estimate,
            low: if a.high > 0.0 { b.low / a.high } else { 0.0 },
            high: (a.low > 0.0).then(|| b.high / a.low),
        })
    }

    /// Runs whose shares differ most, the largest difference first; at most `limit`. These are the ones to look at.
    pub fn disagreeing(&self, limit: usize) -> Vec<u64> {
        let distance = |(b, a): &(Part, Part)| {
            let (left, right) = (wide(a.count) * wide(b.of), wide(b.count) * wide(a.of));
            // Of equal denominators; unequal ones are close enough for an order.
            left.abs_diff(right) / (wide(b.of) * wide(a.of) / (1 << 20)).max(1)
        };
        let mut runs: Vec<(u128, u64)> = (0..)
            .zip(&self.runs)
            .map(|(run, pair)| (distance(pair), run))
            .filter(|(distance, _)| *distance > 0)
            .collect();
        runs.sort_by_key(|(distance, run)| (std::cmp::Reverse(*distance), *run));
        runs.truncate(limit);
        runs.into_iter().map(|(_, run)| run).collect()
    }

    fn share(&self, after: bool) -> Option<f64> {
        let (mut count, mut of) = (0_u64, 0_u64);
        for (b, a) in &self.runs {
            let part = if after { a } else { b };
            count += part.count;
            of += part.of;
        }
        (of > 0).then(|| count as f64 / of as f64)
    }

    /// What the second setting adds, what it takes away, and in how many runs it does either.
    fn signs(&self) -> (RatioSums, RatioSums, u64) {
        let weights = self.runs.iter().map(|(b, a)| wide(b.of) * wide(a.of));
        let bits = u128::BITS - weights.max().unwrap_or(0).leading_zeros();
        let cut = bits.saturating_sub(PRODUCT_BITS);
        let (mut worse, mut better, mut differing) =
            (RatioSums::default(), RatioSums::default(), 0);
        for (b, a) in &self.runs {
            let (left, right) = (wide(a.count) * wide(b.of), wide(b.count) * wide(a.of));
            let weight = narrow((wide(b.of) * wide(a.of)) >> cut);
            let more = narrow(left.saturating_sub(right) >> cut).min(weight);
            let less = narrow(right.saturating_sub(left) >> cut).min(weight);
            worse.add(more, weight);
            better.add(less, weight);
            differing += u64::from(left != right);
        }
        (worse, better, differing)
    }

    /// Each setting's own sums.
    fn sums(&self) -> (RatioSums, RatioSums) {
        let [mut before, mut after] = [RatioSums::default(); 2];
        for (b, a) in &self.runs {
            before.add(b.count, b.of);
            after.add(a.count, a.of);
        }
        (before, after)
    }

    /// The interval from the scatter of the differences; none if there is too little of it to trust.
    fn of_scatter(&self, estimate: f64, alpha: f64) -> Option<(f64, f64)> {
        let (before, after) = self.sums();
        let enough = |sums: &RatioSums| sums.hit_runs >= SCATTER_MIN;
        if !enough(&before) || !enough(&after) {
            return None;
        }
        let (p, q) = (before.estimate()?, after.estimate()?);
        let differences = self.linearised((1.0, p), (1.0, q));
        // Without scatter (but for rounding) it says nothing.
        if differences.iter().all(|d| d.abs() < 1e-12) {
            return None;
        }
        let (below, above) = ends(&differences, alpha);
        Some((estimate - below, estimate + above))
    }

    /// How far each pair is from the mean of `weight * share` after less the same before, linearised. `(weight, share)` of
    /// both settings; the sum is 0.
    fn linearised(&self, before: (f64, f64), after: (f64, f64)) -> Vec<f64> {
        let m = self.runs.len() as f64;
        let mean = |after: bool| {
            let of = |pair: &(Part, Part)| if after { pair.1.of } else { pair.0.of };
            self.runs.iter().map(|pair| of(pair) as f64).sum::<f64>() / m
        };
        let sizes = (mean(false), mean(true));
        let residual = |part: &Part, (weight, share): (f64, f64), size: f64| {
            weight * (part.count as f64 - share * part.of as f64) / size
        };
        self.runs
            .iter()
            .map(|(b, a)| residual(a, after, sizes.1) - residual(b, before, sizes.0))
            .collect()
    }
}

/// How far the ends of an interval of error `alpha` lie below and above the mean of values, given the values' distances
/// from it: each as if one more value had been seen, beyond the most extreme one on its side.
fn ends(distances: &[f64], alpha: f64) -> (f64, f64) {
    let m = distances.len() as f64;
    let squares: f64 = distances.iter().map(|d| d * d).sum();
    let t = student_t(m - 1.0, alpha);
    let end = |extreme: f64| {
        let feared = (1.0 + FEAR) * extreme;
        let mean = feared / (m + 1.0);
        let around = squares + feared * feared - (m + 1.0) * mean * mean;
        mean + t * (around / (m * (m + 1.0))).sqrt()
    };
    let least = distances.iter().copied().fold(0.0, f64::min);
    let most = distances.iter().copied().fold(0.0, f64::max);
    (end(-least), end(most))
}

const fn wide(count: u64) -> u128 {
    count as u128
}

/// A product that [`PRODUCT_BITS`] has cut.
fn narrow(product: u128) -> u64 {
    u64::try_from(product).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
