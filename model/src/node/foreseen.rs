//! A connection that is known to come, entered into both tables at once.
//!
//! Nothing is decided here but by the scheduler, which is asked as for every new connection.

use super::Node;
use crate::conntrack;
use crate::ipvs::state::State;
use crate::segment::{Endpoint, Tuple};
use crate::time::{Instant, Span};

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

impl Node {
    /// Enters a connection whose first SYN comes at `now`, and to whose packets nothing but the rules of every healthy
    /// connection happens; its real server's address. `None`, with nothing changed but timers run, if one of the tables knows the
    /// tuple, or if more than the scheduler has a say.
    ///
    /// The node must track, without source NAT, and have a route to every real server with a weight.
    pub fn foresee(
        &mut self,
        now: Instant,
        tuple: &Tuple,
        foreseen: &Foreseen<'_>,
    ) -> Option<Endpoint> {
        self.advance(now);
        let clock = self.config.clock;
        let tick = clock.jiffies(now);
        let sysctls = &self.config.sysctls.ct;
        if self.ipvs.table().find_in(tuple).is_some()
            || self.ct.count() >= sysctls.max
            || self.ct.find(tick, tuple).is_some()
        {
            return None;
        }
        let steps = foreseen.steps.iter();
        let steps = steps.map(|(after, state)| (now + *after, *state));
        let (_, to) = self.ipvs.enter_foreseen(tuple, steps)?;
        let last = clock.jiffies(now + foreseen.last);
        let entered = self
            .ct
            .enter_foreseen(tick, tuple, to, foreseen.ct, last, sysctls);
        debug_assert!(entered.is_some(), "there was room");
        Some(to)
    }
}
