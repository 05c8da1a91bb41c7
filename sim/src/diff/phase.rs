//! Where the node's jiffies lie on the time line of the capture. Unless the manifest says when the node booted,
//! nobody knows, and yet it decides when a timer fires: at the next boundary of its wheel level, up to 41 s
//! late. Every entry that is listed while it is overdue, or is gone by then, tells something about it; what
//! remains possible is kept as a list of candidates.

use ipvs_model::time::{Clock, Instant, Span, TimerEra};

/// How exact the recorded times are.
const NOISE: Span = Span::from_micros(200);
/// Places tried within a tick, in the fine search.
const PER_TICK: u64 = 20;
/// Ticks around the best coarse place in which the fine search looks.
const FINE_TICKS: u64 = 3;
/// Observations of each kind that a search uses; more would only cost time.
const USED_MAX: usize = 600;

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

/// The grid that agrees with the most observations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    pub clock: Clock,
    /// How many of the observations used disagree.
    #[cfg(test)]
    pub against: usize,
    /// How far the grid could be moved without disagreeing with more of them.
    pub uncertainty: Span,
}

/// A clock to begin with: where the manifest says, or anywhere.
pub(super) fn first_guess(hz: u32, era: TimerEra, uptime: Option<Span>) -> Clock {
    Clock::new(hz, era, uptime.unwrap_or(Span(DAY_NS)))
}

/// Finds the grid that agrees best: first by the deaths of timers, to a tick; then by everything, within a few
/// ticks. `uptime`: the node's at the origin, if recorded.
pub(super) fn fit(hz: u32, era: TimerEra, uptime: Option<Span>, evidence: &[Evidence]) -> Fit {
    let tick = 1_000_000_000 / u64::from(hz);
    let deaths = evidence
        .iter()
        .filter(|e| matches!(e, Evidence::Fired { .. }));
    let deaths = spread(deaths.copied().collect(), USED_MAX);
    let coarse = match uptime {
        Some(uptime) => uptime.0,
        None => {
            // The level of a 900 s timer is the coarsest that matters.
            let granule = Clock::new(hz, era, Span::ZERO).lateness_max(900 * u64::from(hz));
            let places = (0..granule.max(1)).map(|ticks| DAY_NS + ticks * tick);
            best(hz, era, places.collect(), &deaths, Span(tick)).0
        }
    };
    let around = coarse.saturating_sub(FINE_TICKS * tick)..coarse + FINE_TICKS * tick;
    let places = around.step_by((tick / PER_TICK).max(1) as usize).collect();
    let mut used = spread(evidence.to_vec(), USED_MAX * 4);
    used.extend(deaths);
    let (phase, _against, plateau) = best(hz, era, places, &used, NOISE);
    Fit {
        clock: Clock::new(hz, era, Span(phase)),
        #[cfg(test)]
        against: _against,
        uncertainty: Span(plateau * (tick / PER_TICK)),
    }
}

/// The place with the fewest observations against it, in the middle of the longest run of such; how many are
/// against it; how long the run is.
fn best(
    hz: u32,
    era: TimerEra,
    places: Vec<u64>,
    evidence: &[Evidence],
    noise: Span,
) -> (u64, usize, u64) {
    let against = |place: &u64| {
        let clock = Clock::new(hz, era, Span(*place));
        evidence.iter().filter(|e| !e.fits(&clock, noise)).count()
    };
    let scores = places.iter().map(against).collect::<Vec<_>>();
    let least = scores.iter().copied().min().unwrap_or(0);
    let (mut start, mut longest) = (0, 0..0);
    for at in 0..=scores.len() {
        if scores.get(at) != Some(&least) {
            if at - start > longest.len() {
                longest = start..at;
            }
            start = at + 1;
        }
    }
    let middle = longest.start + longest.len() / 2;
    let place = places.get(middle).copied().unwrap_or(DAY_NS);
    (place, least, longest.len() as u64)
}

/// At most `most` of the observations, evenly spread.
fn spread(evidence: Vec<Evidence>, most: usize) -> Vec<Evidence> {
    let step = evidence.len().div_ceil(most).max(1);
    evidence.into_iter().step_by(step).collect()
}

/// A day is longer than any timer: nothing that was armed before the origin matters.
const DAY_NS: u64 = 86_400 * 1_000_000_000;

impl Evidence {
    /// Whether the observation agrees with a clock.
    pub(super) fn agrees(&self, clock: &Clock) -> bool {
        self.fits(clock, NOISE)
    }

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

    /// Whether the observation agrees with a clock, if its time is right to `noise`.
    fn fits(&self, clock: &Clock, noise: Span) -> bool {
        let around = |at: Instant| [at - noise, at, at + noise];
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

    /// A node with a hidden grid: its timers tell where it lies.
    #[test]
    fn deaths_of_timers_give_the_grid_away() {
        let hidden = Clock::new(100, TimerEra::Wheel, Span(DAY_NS + 7_654_321_987));
        let mut evidence = Vec::new();
        for step in 0..150_u64 {
            let armed = Instant::from_millis(step * 3_517);
            for secs in [10, 60, 120, 900] {
                let ticks = hidden.ticks(secs);
                let deadline = hidden.deadline(hidden.jiffies(armed), ticks);
                let late = Span::from_millis(step * 7_919 % 45_000);
                let at = armed + Span::from_secs(secs) + late;
                let fired = hidden.jiffies(at) >= hidden.fires(deadline, ticks);
                evidence.push(Evidence::Fired {
                    armed,
                    ticks,
                    at,
                    fired,
                });
            }
        }
        let found = fit(100, TimerEra::Wheel, None, &evidence);
        assert_eq!(found.against, 0);
        let at = Instant::from_secs(100);
        let apart = found.clock.jiffies(at).0.abs_diff(hidden.jiffies(at).0) % 4096;
        assert!(apart.min(4096 - apart) < 30, "{apart}");
        let elsewhere = Clock::new(100, TimerEra::Wheel, Span(DAY_NS + 27_654_321_987));
        assert!(evidence.iter().any(|e| !e.agrees(&elsewhere)));
    }

    #[test]
    fn what_no_grid_explains_is_counted() {
        let armed = Instant::from_secs(5);
        let early = Evidence::Fired {
            armed,
            ticks: 2_500,
            at: armed + Span::from_secs(9),
            fired: true,
        };
        let found = fit(250, TimerEra::Wheel, None, &[early]);
        assert!(found.against > 0);
    }
}
