//! The node's clocks. This is the one part of the simulator that asks what time it is: a recording is of now.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::capture::Stamp;

/// The wall clock, as packets and block headers carry it.
pub fn wall() -> Stamp {
    Stamp(read(ClockId::CLOCK_REALTIME))
}

/// Nanoseconds since boot without time asleep: the clock of the kernel's timers. Does not jump.
pub fn monotonic() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_MONOTONIC))
}

/// When the monotonic clock stood at zero. The two clocks are read in one go; what lies between is below a microsecond.
pub fn boot() -> Stamp {
    let before = monotonic();
    let wall = wall();
    let since = before + (monotonic() - before) / 2;
    Stamp(
        wall.0
            .saturating_sub(u64::try_from(since.as_nanos()).unwrap_or(0)),
    )
}

fn read(clock: ClockId) -> u64 {
    // The two clocks exist in every Linux; a time before 1970 is not one that any table of ours could carry.
    let time = clock_gettime(clock).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
