//! A connection that is known to come, entered into both tables at once.
//!
//! Nothing is decided here but by the scheduler, which is asked as for every new connection.

use super::Node;
use crate::conntrack;
use crate::ipvs::service::DestId;
use crate::ipvs::state::State;
use crate::ipvs::table::EntryId;
use crate::segment::Tuple;
use crate::time::{Clock, Instant, Jiffies, NANOS_PER_SEC, Span};

/// What all packets of a connection leave in a node's tables. Times count from its first SYN.
#[derive(Clone, Copy, Debug)]
pub struct Foreseen<'a> {
    /// Packets that still move the IPVS entry's timer, with its state after each.
    pub steps: &'a [(Span, State)],
    /// The conntrack entry.
    pub ct: &'a conntrack::Foreseen,
    /// The last packet.
    pub last: Span,
}

impl Foreseen<'_> {
    /// The deadline of the conntrack entry of the one whose SYN is at the node at `syn`.
    #[inline]
    pub fn ct_deadline(&self, clock: &Clock, syn: Instant) -> Jiffies {
        self.ct.deadline(clock.jiffies(syn + self.last))
    }
}

/// When the tables forget a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The tick at which the IPVS entry's timer fires, and takes the conntrack entry with it.
    pub ipvs: Jiffies,
    /// The conntrack entry's deadline.
    pub ct: Jiffies,
}

/// When the tables forget connections that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Forgetting<'a> {
    clock: Clock,
    last_step: Span,
    ticks: u64,
    foreseen: Foreseen<'a>,
}

impl Forgetting<'_> {
    /// So long after the SYN no table knows a connection any more.
    pub fn longest(&self) -> Span {
        let ticks = self.ticks + self.clock.lateness_max(self.ticks) + 2;
        let hz = u64::from(self.clock.hz());
        self.last_step + Span(ticks * (NANOS_PER_SEC / hz + 1))
    }

    /// For so long after the SYN both tables know a connection.
    pub fn shortest(&self) -> Span {
        // Of its first tick a timer may have less than the whole.
        let within = |ticks: u64| {
            let hz = u64::from(self.clock.hz());
            Span(ticks.saturating_sub(1).saturating_mul(NANOS_PER_SEC / hz))
        };
        let Foreseen { ct, last, .. } = self.foreseen;
        let in_conntrack = ct.deadline(Jiffies(0)).0;
        (self.last_step + within(self.ticks)).min(last + within(in_conntrack))
    }

    /// The first moment for a SYN whose connection IPVS still knows at a tick, at or after `from`, whose connection it does not.
    /// A connection that began later is known longer.
    pub fn known_since(&self, tick: Jiffies, from: Instant, now: Instant) -> Instant {
        let (mut gone, mut known) = (from.0, now.0 + 1);
        while gone + 1 < known {
            let middle = gone + (known - gone) / 2;
            if self.of(Instant(middle)).ipvs > tick {
                known = middle;
            } else {
                gone = middle;
            }
        }
        Instant(known)
    }

    /// The deadline of the conntrack entry of the one whose SYN is at the node at `syn`.
    #[inline]
    pub fn ct_deadline(&self, syn: Instant) -> Jiffies {
        self.foreseen.ct_deadline(&self.clock, syn)
    }

    /// When the tables forget the one whose SYN is at the node at `syn`.
    #[inline]
    pub fn of(&self, syn: Instant) -> Forgotten {
        let tick = self.clock.jiffies(syn + self.last_step);
        Forgotten {
            ipvs: self.clock.fires_after(tick, self.ticks),
            ct: self.ct_deadline(syn),
        }
    }
}

impl Node {
    /// When the tables forget connections that are alike, as long as the timeouts of IPVS stay.
    pub fn forgetting<'a>(&self, foreseen: &Foreseen<'a>) -> Forgetting<'a> {
        let last = foreseen.steps.last().copied();
        let (last_step, state) = last.unwrap_or((Span::ZERO, State::No));
        Forgetting {
            clock: self.config.clock,
            last_step,
            ticks: self.ipvs.lifetime_in(state),
            foreseen: *foreseen,
        }
    }

    /// Runs the collector's scans that are due at `now`, after the timers, beside entries that are not written out
    /// ([`Conntrack::gc_beside`](crate::conntrack::Conntrack::gc_beside)).
    pub fn collect_beside(&mut self, now: Instant, owed: conntrack::Owed<'_>) {
        self.advance(now);
        let tick = self.config.clock.jiffies(now);
        self.ct.gc_beside(tick, &self.config.sysctls.ct, owed);
    }

    /// Enters a connection into both tables whose SYN was at the node at `syn`, as far as they would still know it at `now`.
    /// `dest` is what [`Ipvs::choose_foreseen`](crate::ipvs::Ipvs::choose_foreseen) told then. Runs the timers first.
    pub fn enter_foreseen(
        &mut self,
        now: Instant,
        syn: Instant,
        tuple: &Tuple,
        dest: DestId,
        foreseen: &Foreseen<'_>,
    ) {
        self.advance(now);
        let clock = self.config.clock;
        let tick = clock.jiffies(now);
        let forgotten = self.forgetting(foreseen).of(syn);
        if forgotten.ipvs <= tick {
            return;
        }
        let steps = foreseen.steps.iter();
        let steps = steps.map(|(after, state)| (syn + *after, *state));
        self.ipvs.enter_foreseen(tuple, dest, steps);
        if forgotten.ct > self.ct.last_gc() {
            let to = self.ipvs.dests().get(dest).addr;
            let last = clock.jiffies(syn + foreseen.last);
            let sysctls = &self.config.sysctls.ct;
            let entered = self
                .ct
                .enter_foreseen(tick, tuple, to, foreseen.ct, last, sysctls);
            debug_assert!(entered.is_some(), "there was room");
        }
    }

    /// Takes a connection out of both tables again that [`Node::enter_foreseen`] can write as it is.
    pub fn take_back(&mut self, entry: EntryId, ct: u32) {
        self.ipvs.take_back(entry);
        self.ct.take_back(ct);
    }
}
