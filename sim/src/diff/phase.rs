//! Where the node's jiffies lie on the time line of the capture. Unless the manifest says when the node booted,
//! nobody knows, and yet it decides when a timer fires: at the next boundary of its wheel level, up to 41 s
//! late. Every entry that is listed while it is overdue, or is gone by then, tells something about it; what
//! remains possible is kept as a list of candidates.

use ipvs_model::time::{Clock, Instant, Span, TimerEra};

/// How exact the recorded times are.
const NOISE: Span = Span::from_micros(200);
/// Candidates for each tick.
const PER_TICK: u64 = 20;

/// What was seen of one timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// A timer armed at `armed` for `ticks` had fired (or not) at `at`.
    Fired {
        armed: Instant,
        ticks: u64,
        at: Instant,
        fired: bool,
    },
    /// An entry told at `told` to expire at the next tick had gone (or not) at `at`.
    Expired {
        told: Instant,
        at: Instant,
        fired: bool,
    },
    /// A timer armed at `armed` for `ticks` was listed at `at` with `secs` whole seconds left.
    Listed {
        armed: Instant,
        ticks: u64,
        at: Instant,
        secs: u64,
    },
}

/// What is known of the grid.
#[derive(Clone, Debug)]
pub(super) struct Phase {
    hz: u32,
    era: TimerEra,
    candidates: Vec<u64>,
    /// Observations that narrowed the candidates or agreed with them.
    pub agreeing: u64,
    /// Observations that no candidate explains together with the others.
    pub contradicting: u64,
}

impl Phase {
    /// Nothing known but the tick; `boot`: the node's uptime at the origin, if recorded.
    pub(super) fn new(hz: u32, era: TimerEra, uptime: Option<Span>) -> Self {
        let tick = 1_000_000_000 / u64::from(hz);
        let step = (tick / PER_TICK).max(1);
        // The level of a 900 s timer is the coarsest that matters.
        let granule = Clock::new(hz, era, Span::ZERO).lateness_max(900 * u64::from(hz)) * tick;
        let (first, last) = match uptime {
            Some(uptime) => (uptime.0.saturating_sub(tick * 4), uptime.0 + tick * 4),
            // A day is longer than any timer: nothing that was armed before the origin matters.
            None => (DAY_NS, DAY_NS + granule.max(tick)),
        };
        Self {
            hz,
            era,
            candidates: (first..last).step_by(step as usize).collect(),
            agreeing: 0,
            contradicting: 0,
        }
    }

    /// The clock in the middle of what is possible.
    pub(super) fn clock(&self) -> Clock {
        let middle = self.candidates.len() / 2;
        let phase = self.candidates.get(middle).copied().unwrap_or(DAY_NS);
        Clock::new(self.hz, self.era, Span(phase))
    }

    /// How much of the grid is still possible: the span of the candidates.
    pub(super) fn uncertainty(&self) -> Span {
        match (self.candidates.first(), self.candidates.last()) {
            (Some(first), Some(last)) => Span(last - first),
            _ => Span::ZERO,
        }
    }

    /// Takes an observation in. One that would leave no candidate is counted and ignored.
    pub(super) fn learn(&mut self, evidence: &Evidence) {
        let (hz, era) = (self.hz, self.era);
        let fits = |phase: &u64| evidence.fits(&Clock::new(hz, era, Span(*phase)));
        let kept = self.candidates.iter().copied().filter(fits);
        let kept = kept.collect::<Vec<_>>();
        if kept.is_empty() {
            self.contradicting += 1;
        } else {
            self.agreeing += 1;
            self.candidates = kept;
        }
    }

    /// Whether a clock agrees with an observation.
    pub(super) fn agrees(clock: &Clock, evidence: &Evidence) -> bool {
        evidence.fits(clock)
    }
}

const DAY_NS: u64 = 86_400 * 1_000_000_000;

impl Evidence {
    /// Whether the observation can tell one grid from another at all.
    pub(super) fn tells(&self, hz: u32) -> bool {
        match self {
            Self::Fired { .. } | Self::Expired { .. } => true,
            Self::Listed {
                armed, ticks, at, ..
            } => {
                let tick = 1_000_000_000 / u64::from(hz);
                let fewest = at.since(*armed).0 / tick;
                let left = |passed: u64| ticks.saturating_sub(passed) / u64::from(hz);
                left(fewest) != left(fewest + 1)
            }
        }
    }

    fn fits(&self, clock: &Clock) -> bool {
        let around = |at: Instant| [at - NOISE, at, at + NOISE];
        match *self {
            Self::Fired {
                armed,
                ticks,
                at,
                fired,
            } => {
                let deadline = clock.deadline(clock.jiffies(armed), ticks);
                let fires = clock.fires(deadline, ticks);
                around(at)
                    .iter()
                    .any(|at| (clock.jiffies(*at) >= fires) == fired)
            }
            Self::Expired { told, at, fired } => {
                let fires = clock.jiffies(told) + 1;
                around(at)
                    .iter()
                    .any(|at| (clock.jiffies(*at) >= fires) == fired)
            }
            Self::Listed {
                armed,
                ticks,
                at,
                secs,
            } => {
                let deadline = clock.deadline(clock.jiffies(armed), ticks);
                around(at).iter().any(|at| {
                    let left = clock.jiffies(*at).until(deadline);
                    left / u64::from(clock.hz()) == secs
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with a hidden grid: its timers tell where it lies, to a tick.
    #[test]
    fn deaths_of_timers_give_the_grid_away() {
        let hidden = Clock::new(100, TimerEra::Wheel, Span(DAY_NS + 7_654_321_987));
        let mut phase = Phase::new(100, TimerEra::Wheel, None);
        for step in 0..400_u64 {
            let armed = Instant::from_millis(step * 3_517);
            for secs in [10, 60, 120, 900] {
                let ticks = hidden.ticks(secs);
                let deadline = hidden.deadline(hidden.jiffies(armed), ticks);
                let at = armed + Span::from_secs(secs) + Span::from_millis(step * 37 % 45_000);
                let fired = hidden.jiffies(at) >= hidden.fires(deadline, ticks);
                phase.learn(&Evidence::Fired {
                    armed,
                    ticks,
                    at,
                    fired,
                });
            }
        }
        assert_eq!(phase.contradicting, 0);
        assert!(
            phase.uncertainty() < Span::from_millis(400),
            "{:?}",
            phase.uncertainty()
        );
        let found = phase.clock();
        let at = Instant::from_secs(100);
        let apart = found.jiffies(at).0.abs_diff(hidden.jiffies(at).0) % 4096;
        assert!(apart.min(4096 - apart) < 40, "{apart}");
    }

    #[test]
    fn what_cannot_be_is_counted_and_ignored() {
        let mut phase = Phase::new(250, TimerEra::Wheel, None);
        let armed = Instant::from_secs(5);
        let early = Evidence::Fired {
            armed,
            ticks: 2_500,
            at: armed + Span::from_secs(9),
            fired: true,
        };
        phase.learn(&early);
        assert_eq!((phase.agreeing, phase.contradicting), (0, 1));
        assert!(phase.uncertainty() > Span::from_secs(16));
    }
}
