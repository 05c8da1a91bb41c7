//! The counts of a block of runs at one point: integers that merge exactly, in any order.

use std::collections::BTreeMap;

use ipvs_model::time::NANOS_PER_SEC;

use super::rare::PARTS;
use super::stats::ratio::RatioSums;
use crate::outcome::{self, Cause, Outcome, RunSummary, SecondCounts};

/// A rollout counts as "dead" if nothing was answered for longer than this.
pub const DEAD_AFTER_NS: u64 = 10 * NANOS_PER_SEC;

/// The counts of some runs of one point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Failed requests of those that got a port and ended.
    pub failure: RatioSums,
    /// [`RunSummary::conditioned`] of those that got a port and ended, in parts of a request; no runs where that was
    /// not asked.
    pub conditioned: RatioSums,
    /// Requests that found no free port, of all that ended.
    pub exhausted: RatioSums,
    /// Answered requests that connected late, of those that got a port and ended.
    pub delayed: RatioSums,
    /// Requests counted.
    pub requests: u64,
    /// Requests by [`Outcome::index`].
    pub outcomes: [u64; Outcome::COUNT],
    /// Failures by [`Cause::index`].
    pub causes: [u64; Cause::COUNT],
    /// Late connects by [`Cause::index`].
    pub delayed_causes: [u64; Cause::COUNT],
    /// Runs in which nothing was answered for longer than [`DEAD_AFTER_NS`].
    pub dead_runs: u64,
    /// Runs by their longest dead stretch in whole seconds.
    pub dead_seconds: BTreeMap<u64, u64>,
    /// Counts of every second, over all runs.
    pub timeline: Vec<SecondCounts>,
    /// Connections opened.
    pub connections: u64,
    /// Packets that crossed the node.
    pub packets: u64,
    /// The run with the most failures.
    pub worst: Option<Worst>,
}

/// The run with the most failures, for replaying it. Of equals, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Worst {
    /// Its number.
    pub run: u64,
    /// Its failures, above 0.
    pub failed: u64,
}

impl Tally {
    /// Adds run number `run`.
    pub fn add(&mut self, run: u64, summary: &RunSummary) {
        let failed = summary.failed();
        self.failure.add(failed, summary.decided());
        if let Some(parts) = summary.conditioned {
            self.conditioned.add(parts, summary.decided() * PARTS);
        }
        self.exhausted
            .add(summary.count(Outcome::PortsExhausted), summary.ended());
        self.delayed.add(summary.delayed_total(), summary.decided());
        self.requests += summary.requests;
        outcome::add_each(&mut self.outcomes, &summary.outcomes);
        outcome::add_each(&mut self.causes, &summary.causes);
        outcome::add_each(&mut self.delayed_causes, &summary.delayed);
        self.dead_runs += u64::from(summary.longest_dead_ns > DEAD_AFTER_NS);
        *self
            .dead_seconds
            .entry(summary.longest_dead_ns / NANOS_PER_SEC)
            .or_default() += 1;
        outcome::merge_timeline(&mut self.timeline, &summary.timeline);
        self.connections += summary.connections;
        self.packets += summary.packets;
        if failed > 0 {
            self.worst = worse(self.worst, Some(Worst { run, failed }));
        }
    }

    /// Adds the runs of another block.
    pub fn merge(&mut self, other: &Self) {
        self.failure.merge(&other.failure);
        self.conditioned.merge(&other.conditioned);
        self.exhausted.merge(&other.exhausted);
        self.delayed.merge(&other.delayed);
        self.requests += other.requests;
        outcome::add_each(&mut self.outcomes, &other.outcomes);
        outcome::add_each(&mut self.causes, &other.causes);
        outcome::add_each(&mut self.delayed_causes, &other.delayed_causes);
        self.dead_runs += other.dead_runs;
        for (seconds, runs) in &other.dead_seconds {
            *self.dead_seconds.entry(*seconds).or_default() += runs;
        }
        outcome::merge_timeline(&mut self.timeline, &other.timeline);
        self.connections += other.connections;
        self.packets += other.packets;
        self.worst = worse(self.worst, other.worst);
    }

    /// What the failure probability is estimated from: the conditioned failures if there are such, else the counted
    /// ones.
    pub const fn failures(&self) -> &RatioSums {
        if self.conditioned.runs > 0 {
            &self.conditioned
        } else {
            &self.failure
        }
    }

    /// Runs counted.
    pub fn runs(&self) -> u64 {
        self.failure.runs
    }

    /// Runs with at least one failure.
    pub fn failing_runs(&self) -> u64 {
        self.failure.hit_runs
    }

    /// The median over runs of the longest dead stretch, in whole seconds (the upper one of two middles).
    pub fn median_dead_seconds(&self) -> u64 {
        let middle = self.runs() / 2;
        let mut passed = 0;
        for (seconds, runs) in &self.dead_seconds {
            passed += runs;
            if passed > middle {
                return *seconds;
            }
        }
        0
    }

    /// The longest dead stretch of any run, in whole seconds.
    pub fn longest_dead_seconds(&self) -> u64 {
        self.dead_seconds
            .last_key_value()
            .map_or(0, |(seconds, _)| *seconds)
    }
}

fn worse(one: Option<Worst>, other: Option<Worst>) -> Option<Worst> {
    // More failures first, then the lower number.
    let rank = |worst: &Worst| (worst.failed, std::cmp::Reverse(worst.run));
    one.into_iter().chain(other).max_by_key(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(failed: u64, answered: u64, dead_seconds: u64) -> RunSummary {
        let mut summary = RunSummary {
            requests: failed + answered,
            ..RunSummary::default()
        };
        summary.outcomes[Outcome::Answered.index()] = answered;
        summary.outcomes[Outcome::ConnectTimeout.index()] = failed;
        summary.causes[Cause::PinnedToDrained.index()] = failed;
        summary.longest_dead_ns = dead_seconds * NANOS_PER_SEC + 1;
        summary
    }

    #[test]
    fn blocks_merge_to_the_same_tally_in_any_order() {
        let runs = [
            run(3, 9, 0),
            run(0, 12, 0),
            run(7, 1, 31),
            run(7, 2, 12),
            run(0, 5, 2),
        ];
        let tally = |range: std::ops::Range<usize>| {
            let mut tally = Tally::default();
            for i in range {
                tally.add(i as u64, &runs[i]);
            }
            tally
        };
        let whole = tally(0..5);
        for cut in 0..=5 {
            let mut forward = tally(0..cut);
            forward.merge(&tally(cut..5));
            let mut backward = tally(cut..5);
            backward.merge(&tally(0..cut));
            assert_eq!(forward, whole);
            assert_eq!(backward, whole);
        }
        assert_eq!(
            (whole.runs(), whole.failing_runs(), whole.dead_runs),
            (5, 3, 2)
        );
        assert_eq!(whole.worst, Some(Worst { run: 2, failed: 7 }));
        assert_eq!(
            (whole.median_dead_seconds(), whole.longest_dead_seconds()),
            (2, 31)
        );
    }

    #[test]
    fn dead_is_longer_than_ten_seconds_and_not_as_long() {
        let mut tally = Tally::default();
        tally.add(
            0,
            &RunSummary {
                longest_dead_ns: DEAD_AFTER_NS,
                ..RunSummary::default()
            },
        );
        assert_eq!(tally.dead_runs, 0);
        tally.add(
            1,
            &RunSummary {
                longest_dead_ns: DEAD_AFTER_NS + 1,
                ..RunSummary::default()
            },
        );
        assert_eq!(tally.dead_runs, 1);
    }
}
