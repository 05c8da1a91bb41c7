//! When kube-proxy syncs: at once if it may, never twice at a time, and every sync period at the latest.
//!
//! Faithful to: `BoundedFrequencyRunner` in pkg/util/async (1.11 to 1.33): calls coalesce while a run is under way;
//! with a minimal period, runs spend tokens of a bucket that holds two. IPVS mode has no minimal period by default.
//! Leaves out: `RetryAfter`; the rewritten runner of 1.34 without burst, which differs only with a minimal period.

use crate::time::{Instant, Span};

/// How many runs may follow each other without the minimal period between them.
const BURST: u64 = 2;

/// Decides when the next sync may start.
#[derive(Clone, Debug)]
pub struct Runner {
    min: Span,
    max: Span,
    /// Time credit: a run costs `min`.
    credit: u64,
    credited_at: Instant,
    wanted_since: Option<Instant>,
    running: bool,
    last_end: Instant,
    timer: Instant,
}

impl Runner {
    /// A runner with at least `min` (0: no limit) and at most `max` between runs, its periodic timer due at `first`.
    pub const fn new(min: Span, max: Span, now: Instant, first: Instant) -> Self {
        Self {
            min,
            max,
            credit: min.0.saturating_mul(BURST),
            credited_at: now,
            wanted_since: None,
            running: false,
            last_end: Instant::ZERO,
            timer: first,
        }
    }

    /// Asks for a run; while one is under way or asked for, this adds nothing.
    pub fn request(&mut self, now: Instant) {
        self.wanted_since.get_or_insert(now);
    }

    /// When to call [`Self::try_start`] next; `None` while a run is under way.
    pub fn next(&self) -> Option<Instant> {
        if self.running {
            return None;
        }
        Some(
            self.wanted_since
                .map_or(self.timer, |at| at.max(self.last_end)),
        )
    }

    /// Starts a run if one is due and allowed; a refused request is deferred to the next moment that allows it.
    pub fn try_start(&mut self, now: Instant) -> bool {
        if self.next().is_none_or(|at| at > now) {
            return false;
        }
        self.wanted_since = None;
        if self.spend(now) {
            self.running = true;
            return true;
        }
        self.timer = self.timer.min(self.last_end + self.min).max(now);
        false
    }

    /// Starts a run whatever the limits say; it answers the requests made so far.
    pub fn force_start(&mut self) {
        self.wanted_since = None;
        self.running = true;
    }

    /// The run has ended.
    pub fn finished(&mut self, now: Instant) {
        self.running = false;
        self.last_end = now;
        self.timer = now + self.max;
    }

    fn spend(&mut self, now: Instant) -> bool {
        let cost = self.min.0;
        let earned = now.since(self.credited_at).0;
        self.credit = self
            .credit
            .saturating_add(earned)
            .min(cost.saturating_mul(BURST));
        self.credited_at = now;
        let enough = self.credit >= cost;
        if enough {
            self.credit -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn runner(min_ms: u64) -> Runner {
        Runner::new(
            Span::from_millis(min_ms),
            Span::from_secs(30),
            Instant::ZERO,
            at(30_000),
        )
    }

    #[test]
    fn without_a_minimal_period_every_request_runs_at_once() {
        let mut runner = runner(0);
        for ms in [1, 2, 3, 4] {
            runner.request(at(ms));
            assert_eq!(runner.next(), Some(at(ms)));
            assert!(runner.try_start(at(ms)));
            runner.finished(at(ms));
        }
    }

    #[test]
    fn requests_during_a_run_coalesce_into_one_run_after_it() {
        let mut runner = runner(0);
        runner.request(at(0));
        assert!(runner.try_start(at(0)));
        runner.request(at(10));
        runner.request(at(20));
        assert_eq!(runner.next(), None);
        assert!(!runner.try_start(at(20)));
        runner.finished(at(500));
        assert_eq!(runner.next(), Some(at(500)));
        assert!(runner.try_start(at(500)));
        runner.finished(at(600));
        assert_eq!(
            runner.next(),
            Some(at(30_600)),
            "nothing but the periodic run is left"
        );
    }

    #[test]
    fn a_minimal_period_lets_two_runs_burst_and_defers_the_third() {
        let mut runner = runner(1_000);
        for ms in [0, 10] {
            runner.request(at(ms));
            assert!(runner.try_start(at(ms)));
            runner.finished(at(ms));
        }
        runner.request(at(20));
        assert!(!runner.try_start(at(20)));
        assert_eq!(runner.next(), Some(at(1_010)));
        assert!(runner.try_start(at(1_010)));
    }

    #[test]
    fn the_periodic_run_comes_without_any_request() {
        let mut runner = runner(0);
        assert!(!runner.try_start(at(29_999)));
        assert!(runner.try_start(at(30_000)));
    }
}
