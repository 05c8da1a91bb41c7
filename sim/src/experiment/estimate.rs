//! What a tally says about one point: each probability with its counts and its interval.

use super::stats::ratio::RatioSums;
use super::stats::{Interval, binomial, looks};
use super::tally::Tally;

/// The error of every printed interval: 95 %.
pub const ALPHA: f64 = 0.05;

/// A probability: the counts it comes from, and its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probability {
    /// How often it happened.
    pub count: u64,
    /// Out of how many.
    pub of: u64,
    /// The interval.
    pub interval: Interval,
}

impl Probability {
    /// The share that was seen; none if there was nothing to see.
    pub fn share(&self) -> Option<f64> {
        (self.of > 0).then(|| self.count as f64 / self.of as f64)
    }

    /// Half the width of the interval over the share; none if that is 0 or unknown.
    pub fn relative_half_width(&self) -> Option<f64> {
        self.interval.relative_half_width(self.share()?)
    }

    fn per_request(sums: &RatioSums, alpha: f64) -> Self {
        Self {
            count: sums.y,
            of: sums.x,
            interval: sums.interval(alpha),
        }
    }

    fn per_rollout(count: u64, of: u64, alpha: f64) -> Self {
        Self {
            count,
            of,
            interval: binomial::clopper_pearson(count, of, alpha),
        }
    }
}

/// The estimates of one point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimates {
    /// A request that got a port fails.
    pub failure: Probability,
    /// The same, conditioned: in parts of a request ([`super::rare::PARTS`]). None where that was not asked.
    pub conditioned: Option<Probability>,
    /// A request finds no free port.
    pub exhausted: Probability,
    /// A request that got a port is answered, but connects late.
    pub delayed: Probability,
    /// A rollout fails at least one request.
    pub any_failure: Probability,
    /// A rollout leaves the service dead for longer than ten seconds.
    pub dead: Probability,
    /// How many dependent requests weigh as one; none without scatter to compare.
    pub design_effect: Option<f64>,
    /// A kind of rollout that no run showed has at most this probability.
    pub unseen: f64,
    /// Whether every run failed exactly as many of exactly as many requests.
    pub all_alike: bool,
}

impl Estimates {
    /// The estimates from a tally. The intervals keep 95 % although the sweep may have stopped at this number of
    /// runs because of what it saw (see [`looks`]).
    pub fn of(tally: &Tally) -> Self {
        let runs = tally.runs();
        let alpha = looks::alpha_at(runs, ALPHA);
        Self {
            failure: Probability::per_request(&tally.failure, alpha),
            conditioned: (tally.conditioned.runs > 0)
                .then(|| Probability::per_request(&tally.conditioned, alpha)),
            exhausted: Probability::per_request(&tally.exhausted, alpha),
            delayed: Probability::per_request(&tally.delayed, alpha),
            any_failure: Probability::per_rollout(tally.failing_runs(), runs, alpha),
            dead: Probability::per_rollout(tally.dead_runs, runs, alpha),
            design_effect: tally.failure.design_effect(),
            unseen: binomial::unseen(runs, alpha),
            all_alike: tally.failure.all_alike(),
        }
    }

    /// Half the width of the failure probability's interval over its estimate; none if nothing failed.
    pub fn relative_half_width(&self) -> Option<f64> {
        let conditioned = self.conditioned.as_ref();
        conditioned.unwrap_or(&self.failure).relative_half_width()
    }
}

/// Whether one point needs more runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Settled {
    /// The interval of the failure probability is as narrow as asked.
    Precise,
    /// All runs were alike (perhaps: none failed a request), and a kind of rollout that was not seen is rare
    /// enough.
    Alike,
    /// Not yet.
    No,
}

/// A kind of rollout that no run showed counts as rare enough below this probability.
pub const RARE_ROLLOUT: f64 = 0.10;

impl Settled {
    /// Judges a point after its runs: `precision` is the wanted relative half-width, above 0.
    pub fn judge(tally: &Tally, precision: f64) -> Self {
        let alpha = looks::alpha_at(tally.runs(), ALPHA);
        let failure = Probability::per_request(tally.failures(), alpha);
        if failure
            .relative_half_width()
            .is_some_and(|width| width <= precision)
        {
            return Self::Precise;
        }
        if tally.failures().all_alike() && binomial::unseen(tally.runs(), alpha) <= RARE_ROLLOUT {
            return Self::Alike;
        }
        Self::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Outcome, RunSummary};

    fn tally(runs: u64, failed: impl Fn(u64) -> u64) -> Tally {
        let mut tally = Tally::default();
        for run in 0..runs {
            let mut summary = RunSummary {
                requests: 1_000,
                ..RunSummary::default()
            };
            summary.outcomes[Outcome::Answered.index()] = 1_000 - failed(run);
            summary.outcomes[Outcome::Reset.index()] = failed(run);
            tally.add(run, &summary);
        }
        tally
    }

    #[test]
    fn no_failures_settle_once_a_failing_rollout_must_be_rare() {
        assert_eq!(Settled::judge(&tally(40, |_| 0), 0.2), Settled::No);
        let enough = tally(80, |_| 0);
        assert_eq!(Settled::judge(&enough, 0.2), Settled::Alike);
        assert!(Estimates::of(&enough).any_failure.interval.high <= RARE_ROLLOUT);
    }

    #[test]
    fn equal_rollouts_with_many_failures_settle_by_precision() {
        let scattered = |run: u64| 300 + run % 7;
        assert_eq!(Settled::judge(&tally(20, scattered), 0.2), Settled::Precise);
        assert_eq!(Settled::judge(&tally(20, scattered), 0.02), Settled::No);
    }

    #[test]
    fn nothing_counted_settles_as_alike_and_knows_nothing() {
        let mut empty = Tally::default();
        for run in 0..80 {
            empty.add(run, &RunSummary::default());
        }
        let estimates = Estimates::of(&empty);
        assert_eq!(estimates.failure.share(), None);
        assert_eq!(estimates.failure.interval, Interval::UNKNOWN);
        assert_eq!(Settled::judge(&empty, 0.2), Settled::Alike);
    }
}
