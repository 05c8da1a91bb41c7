//! Source port choice: what connect() and bind() take, in every era of the kernel.
//!
//! Faithful to: `__inet_hash_connect` of 3.10 to 6.19 and `inet_csk_find_open_port` (before 4.6 the loop in
//! `inet_csk_get_port`), as facts 6.1 and 6.2 tabulate them. The order in which ports are tried is the
//! kernel's; only the walk over busy ports is shortened by [`PortBitmap`].
//! Leaves out: `IP_LOCAL_PORT_RANGE` of a socket, bind conflicts of sockets with `SO_REUSEPORT`,
//! `ip_autobind_reuse`, and failure of the hint to be updated in time when two processors connect at once.
//!
//! One [`PortChooser`] belongs to one *kernel*: up to 5.11 every connection of every pod of a node moves the
//! same hint (trap 11).

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use super::bitmap::{PortBitmap, Step};
pub use super::secret::Destination;
use super::secret::Secret;
use crate::kernel::{Behaviours, Gate};
use crate::time::{Clock, Instant};

/// The era of the port search in connect().
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortEra {
    /// Up to 4.1: one port after the other, one global hint.
    Sequential,
    /// 4.2 to 4.5 and RHEL 7: starts at an even offset, steps of one.
    EvenStart,
    /// 4.6 to 5.11: the half of the range with the parity of its low end, then the other half.
    TwoPass,
    /// 5.12 to 5.17: two passes, 256 hints, sometimes a port is skipped.
    Perturb256,
    /// 5.18 and later: two passes, 65536 hints, random steps, another start every ten seconds.
    RandomStep,
}

impl PortEra {
    /// The era of a kernel.
    pub const fn of(kernel: Behaviours) -> Self {
        if kernel.has(Gate::ConnectRandomStep) {
            Self::RandomStep
        } else if kernel.has(Gate::ConnectPerturb256) {
            Self::Perturb256
        } else if kernel.has(Gate::ConnectTwoPass) {
            Self::TwoPass
        } else if kernel.has(Gate::ConnectEven) {
            Self::EvenStart
        } else {
            Self::Sequential
        }
    }

    /// Whether the search tries one parity before the other.
    pub const fn two_passes(self) -> bool {
        matches!(self, Self::TwoPass | Self::Perturb256 | Self::RandomStep)
    }
}

/// `ip_local_port_range`, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    low: u32,
    /// The port after the last.
    end: u32,
}

impl PortRange {
    /// The ports `low` to `high`, both included. `None` if `low` is above `high`.
    pub const fn new(low: u16, high: u16) -> Option<Self> {
        if low > high {
            return None;
        }
        Some(Self {
            low: low as u32,
            end: high as u32 + 1,
        })
    }

    /// How many ports the range has, 1 to 65536.
    pub const fn size(self) -> u32 {
        self.end - self.low
    }

    /// Whether a port is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.low <= port as u32 && (port as u32) < self.end
    }

    /// `size` rounded down to even, as the two-pass search computes it.
    const fn even_size(self) -> u32 {
        let size = self.size();
        if size > 1 { size & !1 } else { size }
    }
}

/// The ports that the caller of a search may take.
pub trait PortSet {
    /// The first usable port in `from..to` (`to` at most 65536) on a walk with `step` from `from`.
    fn first_usable(&self, from: u32, to: u32, step: Step) -> Option<u16>;
}

/// The ports that are not in the bitmap.
impl PortSet for &PortBitmap {
    fn first_usable(&self, from: u32, to: u32, step: Step) -> Option<u16> {
        self.next_free(from, to, step)
    }
}

/// The usable ports by asking for each: for tests and rare cases.
pub struct OneByOne<F>(pub F);

impl<F: Fn(u16) -> bool> PortSet for OneByOne<F> {
    fn first_usable(&self, from: u32, to: u32, step: Step) -> Option<u16> {
        (from..to)
            .step_by(step.ports() as usize)
            .map(|port| port as u16)
            .find(|&port| (self.0)(port))
    }
}

/// The ports that connect() may take towards one destination.
pub struct Usable<'a, F> {
    /// Ports whose four-tuple is in use, or in a TIME_WAIT that cannot be taken over.
    pub busy: Option<&'a PortBitmap>,
    /// Ports that bind() users own, and reserved ones (`ip_local_reserved_ports`): skipped for everyone.
    pub excluded: Option<&'a PortBitmap>,
    /// Ports whose four-tuple is in a TIME_WAIT that may perhaps be taken over now, and who decides that.
    pub waiting: Option<(&'a PortBitmap, F)>,
}

impl<F: Fn(u16) -> bool> PortSet for Usable<'_, F> {
    #[inline]
    fn first_usable(&self, mut from: u32, to: u32, step: Step) -> Option<u16> {
        let next = |map: Option<&PortBitmap>, from| match map {
            Some(map) => map.next_free(from, to, step).map(u32::from),
            None => (from < to).then_some(from),
        };
        loop {
            let port = next(self.busy, from)?;
            let free = next(self.excluded, port)?;
            if free != port {
                from = free;
                continue;
            }
            match &self.waiting {
                Some((map, reusable)) if map.contains(port as u16) && !reusable(port as u16) => {
                    from = port + step.ports();
                }
                _ => return Some(port as u16),
            }
        }
    }
}

/// A port that a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The port.
    pub port: u16,
    /// How far from its start the successful pass went, in ports.
    pub distance: u32,
    /// Whether the preferred parity was exhausted.
    pub second_pass: bool,
}

/// One walk of `count` ports from `start` that wraps at the end of the range.
struct Walk {
    start: u32,
    end: u32,
    wrap: u32,
    count: u32,
    step: Step,
}

impl Walk {
    #[inline]
    fn find(&self, usable: &impl PortSet) -> Option<(u16, u32)> {
        let step = self.step.ports();
        // A division by one or two.
        let before_wrap = ((self.end - self.start + step - 1) >> (step - 1)).min(self.count);
        let stop = (self.start + before_wrap * step).min(self.end);
        if let Some(port) = usable.first_usable(self.start, stop, self.step) {
            return Some((port, u32::from(port) - self.start));
        }
        let rest = self.count - before_wrap;
        if rest == 0 {
            return None;
        }
        let again = self.start + before_wrap * step - self.wrap;
        let stop = (again + rest * step).min(self.end);
        let port = usable.first_usable(again, stop, self.step)?;
        Some((port, before_wrap * step + u32::from(port) - again))
    }
}

/// The port search state of one kernel.
#[derive(Clone, Debug)]
pub struct PortChooser {
    era: PortEra,
    secret: Secret,
    clock: Clock,
    /// The global hint of the eras up to 5.11.
    hint: u32,
    /// How far each slot of `table_perturb` has moved since boot.
    moved: HashMap<u32, u32, FxBuildHasher>,
    /// The latest destination with its offset.
    offset: Option<(Destination, u32)>,
}

impl PortChooser {
    /// The state after boot: the hint is 0, the table is random.
    pub fn new(kernel: Behaviours, clock: Clock, secret: Secret) -> Self {
        Self {
            era: PortEra::of(kernel),
            secret,
            clock,
            hint: 0,
            moved: HashMap::default(),
            offset: None,
        }
    }

    /// The same, as if connections of the whole node had moved the hint to `hint` before the run.
    #[must_use]
    pub const fn with_hint(mut self, hint: u32) -> Self {
        self.hint = hint;
        self
    }

    /// The era of the search.
    pub const fn era(&self) -> PortEra {
        self.era
    }

    /// The offset of a destination's ports; most hosts have one destination.
    fn port_offset(&mut self, to: Destination) -> u32 {
        match self.offset {
            Some((known, offset)) if known.is(to) => offset,
            _ => {
                let offset = self.secret.port_offset(to);
                self.offset = Some((to, offset));
                offset
            }
        }
    }

    /// The port of an unbound connect() at `now`, and the advance of the hint. `None` is EADDRNOTAVAIL: no
    /// port of the range is usable, and the hint stays.
    pub fn choose(
        &mut self,
        to: Destination,
        range: PortRange,
        now: Instant,
        rng: &mut impl rand::Rng,
        usable: &impl PortSet,
    ) -> Option<Choice> {
        match self.era {
            PortEra::Sequential => {
                let offset = self.hint.wrapping_add(self.port_offset(to));
                let choice = one_pass(offset.wrapping_add(1), range, usable)?;
                self.hint = self.hint.wrapping_add(choice.distance + 1);
                Some(choice)
            }
            PortEra::EvenStart => {
                let offset = self.hint.wrapping_add(self.port_offset(to)) & !1;
                let choice = one_pass(offset, range, usable)?;
                self.hint = self.hint.wrapping_add((choice.distance + 2) & !1);
                Some(choice)
            }
            PortEra::TwoPass => {
                let offset = self.hint.wrapping_add(self.port_offset(to));
                let choice = two_pass(offset, range, usable)?;
                self.hint = self.hint.wrapping_add(choice.distance + 2);
                Some(choice)
            }
            PortEra::Perturb256 => {
                let hash = self.port_offset(to);
                let slot = hash.wrapping_mul(0x61c8_8647) >> 24;
                let choice = two_pass(self.slot(slot).wrapping_add(hash), range, usable)?;
                let noisy = choice.distance == 0 && rng.next_u32().is_multiple_of(16);
                self.advance(slot, if noisy { 4 } else { choice.distance + 2 });
                Some(choice)
            }
            PortEra::RandomStep => {
                let tick = self.clock.jiffies(now);
                let hash = self.secret.salted_port_offset(to, tick, self.clock.hz());
                let slot = hash as u32 & 0xffff;
                let offset = self.slot(slot).wrapping_add((hash >> 32) as u32);
                let choice = two_pass(offset, range, usable)?;
                let step = choice.distance.max((rng.next_u32() & 7) * 2) + 2;
                self.advance(slot, step);
                Some(choice)
            }
        }
    }

    fn slot(&self, slot: u32) -> u32 {
        let moved = self.moved.get(&slot).copied().unwrap_or(0);
        self.secret.perturb(slot).wrapping_add(moved)
    }

    fn advance(&mut self, slot: u32, ports: u32) {
        let moved = self.moved.entry(slot).or_insert(0);
        *moved = moved.wrapping_add(ports);
    }

    /// The port of bind(addr, 0) (`inet_csk_find_open_port`): a random start, the odd offsets first; with
    /// `SO_REUSEADDR` (`reuse_addr`) the lower half of the range first. `None` is EADDRINUSE.
    ///
    /// `usable` are the ports that bind() may share or own: without `SO_REUSEADDR` those on which no socket
    /// of this address exists, TIME_WAIT included.
    pub fn find_open_port(
        &self,
        range: PortRange,
        reuse_addr: bool,
        rng: &mut impl rand::Rng,
        usable: &impl PortSet,
    ) -> Option<u16> {
        let halves = reuse_addr && self.era >= PortEra::EvenStart;
        for part in bind_parts(range, halves, self.era.two_passes()) {
            if !self.era.two_passes() {
                let start = below(rng, part.size());
                if let Some(choice) = one_pass(start, part, usable) {
                    return Some(choice.port);
                }
                continue;
            }
            let size = part.even_size();
            let odd = below(rng, size) | 1;
            for offset in [odd, odd - 1] {
                let found = Walk {
                    start: part.low + offset.min(part.size() - 1),
                    end: part.end,
                    wrap: size,
                    count: size.div_ceil(2),
                    step: Step::Two,
                }
                .find(usable);
                if let Some((port, _)) = found {
                    return Some(port);
                }
            }
        }
        None
    }
}

impl PortChooser {
    /// How many of how many equally likely starts lead [`PortChooser::find_open_port`] (without `SO_REUSEADDR`) to
    /// `port`: its chance, known before the draw. `None` if the port is outside the range.
    pub fn starts_leading_to(
        &self,
        range: PortRange,
        usable: &impl PortSet,
        port: u16,
    ) -> Option<(u32, u32)> {
        let port = u32::from(port);
        let offset = port.checked_sub(range.low).filter(|_| port < range.end)?;
        let free = |offset: u32| {
            let at = range.low + offset;
            usable.first_usable(at, at + 1, Step::One).is_some()
        };
        let (step, size) = if self.era.two_passes() {
            (2, range.even_size())
        } else {
            (1, range.size())
        };
        // The ports that the search tries first, and as many starts: of two passes, those with odd offsets.
        let starts = size / step;
        if starts == 0 || offset >= size {
            return Some((0, starts.max(1)));
        }
        let odd_used_up = || (0..starts).all(|number| !free(2 * number + 1));
        if !free(offset) || (step == 2 && offset.is_multiple_of(2) && !odd_used_up()) {
            return Some((0, starts));
        }
        // Each start goes upwards to the next free port: to this one, those behind the last free one before it.
        let before = (1..starts).take_while(|back| !free((offset + size - back * step) % size));
        Some((1 + before.count() as u32, starts))
    }
}

/// The ranges that bind() searches one after the other.
fn bind_parts(range: PortRange, halves: bool, even_half: bool) -> impl Iterator<Item = PortRange> {
    let split = halves && range.size() >= 4;
    let half = range.low
        + if even_half {
            (range.size() >> 2) << 1
        } else {
            (range.size() - 1) >> 1
        };
    let lower_end = if even_half { half } else { half + 1 };
    let lower = PortRange {
        low: range.low,
        end: lower_end,
    };
    let upper = PortRange {
        low: half,
        end: range.end,
    };
    let parts = if split {
        [Some(lower), Some(upper)]
    } else {
        [Some(range), None]
    };
    parts.into_iter().flatten()
}

/// A number below `limit` (at least 1), as `get_random_u32_below`: no bias.
fn below(rng: &mut impl rand::Rng, limit: u32) -> u32 {
    let mut product = u64::from(rng.next_u32()) * u64::from(limit);
    if (product as u32) < limit {
        let threshold = limit.wrapping_neg() % limit;
        while (product as u32) < threshold {
            product = u64::from(rng.next_u32()) * u64::from(limit);
        }
    }
    (product >> 32) as u32
}

/// Every port of the range once, from `offset` upwards: the search up to 4.5.
fn one_pass(offset: u32, range: PortRange, usable: &impl PortSet) -> Option<Choice> {
    let (port, distance) = Walk {
        start: range.low + offset % range.size(),
        end: range.end,
        wrap: range.size(),
        count: range.size(),
        step: Step::One,
    }
    .find(usable)?;
    Some(Choice {
        port,
        distance,
        second_pass: false,
    })
}

/// The ports of the low end's parity from `offset` on, then the others: the search since 4.6.
///
/// In a range of odd size the kernel's arithmetic never wraps to the very first port; so it is here.
fn two_pass(offset: u32, range: PortRange, usable: &impl PortSet) -> Option<Choice> {
    let size = range.even_size();
    let first = (offset % size) & !1;
    let passes = if size > 1 { 2 } else { 1 };
    (0..passes).find_map(|pass| {
        let (port, distance) = Walk {
            start: range.low + first + pass,
            end: range.end,
            wrap: size,
            count: size.div_ceil(2),
            step: Step::Two,
        }
        .find(usable)?;
        Some(Choice {
            port,
            distance,
            second_pass: pass == 1,
        })
    })
}

#[cfg(test)]
mod tests;
