//! The guest's clocks. Time stands still while the guest computes; every reading costs a microsecond.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A reading of CLOCK_REALTIME, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub i64);

impl Instant {
    /// Now.
    pub fn now() -> Self {
        Self(nanoseconds(clock_gettime(ClockId::Realtime)))
    }

    /// Whole seconds.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// Microseconds within the second.
    pub fn micros(self) -> u32 {
        (self.0.rem_euclid(1_000_000_000) / 1000) as u32
    }
}

fn nanoseconds(t: Timespec) -> i64 {
    t.tv_sec * 1_000_000_000 + t.tv_nsec
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic() -> i64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// How the clocks and the tick relate.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    /// CLOCK_REALTIME at the moment when CLOCK_MONOTONIC was zero.
    pub boot: i64,
    /// jiffies at the moment when CLOCK_MONOTONIC was zero, extrapolated.
    pub jiffies: u64,
    /// Nanoseconds of a tick.
    pub tick: i64,
}

impl Phase {
    /// Measures the phase: the kernel prints its jiffies and its clock in `/proc/timer_list`.
    pub fn measure(hz: u32) -> Result<Self> {
        let tick = 1_000_000_000 / i64::from(hz);
        let (before, real) = (monotonic(), Instant::now().0);
        let boot = real - before - (monotonic() - before) / 2;
        // Wake just after a tick, when jiffies are up to date.
        sleep_to_tick(tick, tick / 4);
        let text = std::fs::read_to_string("/proc/timer_list").context("no /proc/timer_list")?;
        let number = |start: &str, end: &str| {
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(start))?;
            line.strip_suffix(end)?.trim().parse::<u64>().ok()
        };
        let now = number("now at", "nsecs").context("/proc/timer_list does not say now")?;
        let jiffies = number("jiffies:", "").context("/proc/timer_list does not say jiffies")?;
        Ok(Self {
            boot,
            jiffies: jiffies.wrapping_sub(now / tick as u64),
            tick,
        })
    }
}

/// Sleeps until the monotonic clock is this far into a tick.
pub fn sleep_to_tick(tick: i64, into: i64) {
    let ahead = (into - monotonic()).rem_euclid(tick);
    std::thread::sleep(Duration::from_nanos(ahead as u64));
}
