//! Time: nanoseconds for packets, jiffies for the kernel's tables, and how late its timers fire.
//!
//! Faithful to: `kernel/time/timer.c` `calc_wheel_index` (4.8 and later) and `apply_slack` (before 4.8).
//! Leaves out: deferrable timers, timers of other processors, the processing delay of a busy softirq.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// Nanoseconds in a second.
pub const NANOS_PER_SEC: u64 = 1_000_000_000;

/// A moment of simulated time, in nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

/// A length of simulated time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

impl Instant {
    /// The start of the run.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `secs` seconds after the start.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * NANOS_PER_SEC)
    }

    /// The moment `millis` milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// The time since `earlier`, or zero if that is in the future.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds since the start.
    pub const fn as_secs(self) -> u64 {
        self.0 / NANOS_PER_SEC
    }

    /// Seconds since the start, for display.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / NANOS_PER_SEC as f64
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// `secs` seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs * NANOS_PER_SEC)
    }

    /// `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// `micros` microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros * 1_000)
    }

    /// Whole seconds.
    pub const fn as_secs(self) -> u64 {
        self.0 / NANOS_PER_SEC
    }

    /// Seconds, for display.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / NANOS_PER_SEC as f64
    }
}

impl Add<Span> for Instant {
    type Output = Self;
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl AddAssign<Span> for Instant {
    fn add_assign(&mut self, span: Span) {
        *self = *self + span;
    }
}

impl Sub<Span> for Instant {
    type Output = Self;
    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

impl Add for Span {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}",
            self.0 / NANOS_PER_SEC,
            self.0 % NANOS_PER_SEC / 1_000
        )
    }
}

/// A count of the kernel's timer interrupts. Absolute: the wheel's rounding depends on the count itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jiffies(pub u64);

impl Jiffies {
    /// A tick that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Ticks from `self` until `later`; zero if that has passed.
    pub const fn until(self, later: Self) -> u64 {
        later.0.saturating_sub(self.0)
    }
}

impl Add<u64> for Jiffies {
    type Output = Self;
    fn add(self, ticks: u64) -> Self {
        Self(self.0.saturating_add(ticks))
    }
}

/// A moment with the node's tick at it, which is computed once for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The moment.
    pub at: Instant,
    /// What the counter shows then.
    pub tick: Jiffies,
}

/// How a kernel's timers round the moment at which they fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerEra {
    /// Before 4.8: `mod_timer` moves the deadline up to 1/256 of the delay later and then fires exactly.
    Slack,
    /// 4.8 and later: the deadline is kept, the timer fires at the next boundary of its wheel level.
    Wheel,
}

/// The node's tick: converts simulated time to jiffies and tells when a timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    hz: u32,
    era: TimerEra,
    base: u64,
    phase_ns: u64,
    ns_per_tick: u64,
    /// 2^64 divided by `ns_per_tick`, rounded down: a multiplication is much faster than a division.
    ticks_per_2_64_ns: u64,
}

impl Clock {
    /// The counter's value at boot: five minutes before it would wrap as a 32-bit number (`INITIAL_JIFFIES`).
    pub const fn initial_jiffies(hz: u32) -> u64 {
        (1 << 32) - 300 * hz as u64
    }

    /// A clock of `hz` ticks a second (1 to 1000) on a node that had been up for `uptime` when the run began.
    ///
    /// # Panics
    /// If `hz` does not divide a second into whole nanoseconds' worth of ticks up to 1000 (0 or above 1000).
    pub const fn new(hz: u32, era: TimerEra, uptime: Span) -> Self {
        assert!(hz > 0 && hz <= 1000, "HZ is 1 to 1000");
        let ns_per_tick = NANOS_PER_SEC / hz as u64;
        Self {
            hz,
            era,
            base: Self::initial_jiffies(hz),
            phase_ns: uptime.0,
            ns_per_tick,
            ticks_per_2_64_ns: u64::MAX / ns_per_tick,
        }
    }

    /// Ticks a second.
    pub const fn hz(&self) -> u32 {
        self.hz
    }

    /// The rounding of this kernel's timers.
    pub const fn era(&self) -> TimerEra {
        self.era
    }

    /// The tick counter at `now`.
    #[inline]
    pub const fn jiffies(&self, now: Instant) -> Jiffies {
        let since_boot = now.0 + self.phase_ns;
        let product = since_boot as u128 * self.ticks_per_2_64_ns as u128;
        // The quotient or one less: the divisor's reciprocal was rounded down.
        let ticks = (product >> 64) as u64;
        let rest = since_boot - ticks * self.ns_per_tick;
        Jiffies(self.base + ticks + (rest >= self.ns_per_tick) as u64)
    }

    /// A moment with its tick.
    #[inline]
    pub const fn moment(&self, at: Instant) -> Moment {
        Moment {
            at,
            tick: self.jiffies(at),
        }
    }

    /// The first moment at which the counter shows `tick`; the start of the run for ticks before it.
    pub const fn instant(&self, tick: Jiffies) -> Instant {
        Instant(
            (tick.0.saturating_sub(self.base))
                .saturating_mul(self.ns_per_tick)
                .saturating_sub(self.phase_ns),
        )
    }

    /// `secs` seconds in ticks.
    #[inline]
    pub const fn ticks(&self, secs: u64) -> u64 {
        secs * self.hz as u64
    }

    /// Arms a timer at `now` for `ticks` later: the deadline the kernel stores, as its listings show it.
    #[inline]
    pub const fn deadline(&self, now: Jiffies, ticks: u64) -> Jiffies {
        let exact = now.0 + ticks;
        match self.era {
            TimerEra::Wheel => Jiffies(exact),
            TimerEra::Slack => {
                if ticks < 256 {
                    return Jiffies(exact);
                }
                let limit = exact + ticks / 256;
                let differing = exact ^ limit;
                if differing == 0 {
                    return Jiffies(exact);
                }
                let lowest_kept = differing.ilog2();
                Jiffies(limit & !((1 << lowest_kept) - 1))
            }
        }
    }

    /// The tick at which a timer fires that was armed `ticks` before its deadline `expires`.
    ///
    /// Level n of the wheel takes delays of at least 63 * 8^(n-1) ticks and has a granularity of 8^n ticks;
    /// the deadline is rounded up past the next boundary, so a timer never fires early.
    #[inline]
    pub const fn fires(&self, expires: Jiffies, ticks: u64) -> Jiffies {
        match self.era {
            TimerEra::Slack => expires,
            TimerEra::Wheel => {
                let shift = 3 * wheel_level(ticks);
                Jiffies(((expires.0 >> shift) + 1) << shift)
            }
        }
    }

    /// The tick at which a timer fires that is armed at `now` for `ticks`.
    #[inline]
    pub const fn fires_after(&self, now: Jiffies, ticks: u64) -> Jiffies {
        self.fires(self.deadline(now, ticks), ticks)
    }

    /// The largest delay past its deadline, in ticks, of a timer armed for `ticks`.
    #[inline]
    pub const fn lateness_max(&self, ticks: u64) -> u64 {
        match self.era {
            TimerEra::Slack => 0,
            TimerEra::Wheel => 1 << (3 * wheel_level(ticks)),
        }
    }

    /// The level of the wheel in which a timer waits that is armed for `ticks`, 0 to 8; 0 where there are no levels.
    #[inline]
    pub const fn level(&self, ticks: u64) -> u8 {
        match self.era {
            TimerEra::Slack => 0,
            TimerEra::Wheel => wheel_level(ticks) as u8,
        }
    }
}

/// The wheel level of a delay: the first n below 8 with a delay under 63 * 8^n, else 8. Nine levels: the kernel has eight with
/// HZ up to 100 and nine above.
#[inline]
const fn wheel_level(ticks: u64) -> u32 {
    match (ticks / 63).checked_ilog2() {
        None => 0,
        Some(log) if log < 24 => log / 3 + 1,
        Some(_) => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of extra lifetimes by timeout and HZ: facts 2.4.
    #[test]
    fn wheel_granularity_matches_the_table() {
        let granule_ms = |hz: u32, secs: u64| {
            let clock = Clock::new(hz, TimerEra::Wheel, Span::ZERO);
            clock.lateness_max(clock.ticks(secs)) * 1_000_000 / u64::from(hz) / 1_000
        };
        let expected = [
            (10, [640, 256, 213, 512]),
            (30, [640, 2048, 1706, 512]),
            (60, [5120, 2048, 1706, 4096]),
            (120, [5120, 2048, 13653, 4096]),
            (900, [40960, 16384, 109226, 32768]),
        ];
        for (secs, row) in expected {
            for (hz, want) in [100, 250, 300, 1000].into_iter().zip(row) {
                assert_eq!(granule_ms(hz, secs), want, "{secs} s at HZ={hz}");
            }
        }
    }

    #[test]
    fn a_timer_never_fires_early_and_at_most_a_granule_late() {
        for era in [TimerEra::Wheel, TimerEra::Slack] {
            let clock = Clock::new(250, era, Span::from_secs(77));
            for start in 0..2000 {
                for ticks in [1, 62, 63, 64, 503, 504, 2500, 15_000, 30_000, 225_000] {
                    let now = Jiffies(4_294_000_000 + start);
                    let expires = clock.deadline(now, ticks);
                    let fires = clock.fires(expires, ticks);
                    assert!(fires.0 >= now.0 + ticks);
                    assert!(fires.0 <= now.0 + ticks + clock.lateness_max(ticks) + ticks / 256);
                }
            }
        }
    }

    #[test]
    fn a_level_ends_at_63_of_its_granules() {
        for level in 0..8 {
            let limit = 63 << (3 * level);
            assert_eq!(wheel_level(limit - 1), level);
            assert_eq!(wheel_level(limit), level + 1);
        }
        assert_eq!((wheel_level(0), wheel_level(u64::MAX)), (0, 8));
    }

    #[test]
    fn ticks_are_whole_divisions() {
        for hz in [1, 100, 250, 300, 1000] {
            let clock = Clock::new(hz, TimerEra::Wheel, Span(0));
            let length = NANOS_PER_SEC / u64::from(hz);
            let base = Clock::initial_jiffies(hz);
            for ticks in [0, 1, 7, 1_000_003, (1 << 62) / length, (1 << 63) / length] {
                for offset in [0, 1, length / 2, length - 1] {
                    let now = Instant(ticks * length + offset);
                    assert_eq!(clock.jiffies(now), Jiffies(base + ticks), "{hz} {now}");
                }
            }
        }
    }

    #[test]
    fn ticks_and_instants_agree() {
        let clock = Clock::new(250, TimerEra::Wheel, Span::from_millis(12_345));
        for ms in [0, 1, 3, 4, 1000, 4_000_001] {
            let now = Instant::from_millis(ms);
            let tick = clock.jiffies(now);
            assert!(clock.instant(tick) <= now);
            assert!(clock.instant(tick + 1) > now);
        }
    }
}
