//! The only clock of an experiment: how long it has been running.
//!
//! It decides when a sweep stops and what a progress line says, never what a run gives: a sweep that time ended
//! after N runs is repeated to the byte by asking for N runs.

#![expect(
    clippy::disallowed_types,
    reason = "ends a sweep by its budget and feeds the progress line; no part of any result"
)]

use std::time::Duration;

/// What may end a sweep from outside: time, and whoever waits for it.
pub trait Stopwatch: Sync {
    /// Time since the start.
    fn elapsed(&self) -> Duration;

    /// Whether no further run is to begin, although there is time.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Real time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    start: std::time::Instant,
}

impl WallClock {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            start: std::time::Instant::now(),
        }
    }
}

impl Stopwatch for WallClock {
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
