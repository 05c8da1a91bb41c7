//! What answers for the address of a pod that is gone (facts 7.6).
//!
//! Faithful to: `neigh_timer_handler`, `__neigh_event_send`, `neigh_invalidate`, `arp_error_report` with the
//! defaults of `arp_tbl` (3.10 to 6.12), `ipv4_link_failure`, `tcp_v4_send_reset`, `__udp4_lib_rcv` without a socket.
//! Leaves out: proxy ARP, gratuitous ARP of the address's next owner, garbage collection of neighbours,
//! `mcast_resolicit` other than 0. The limit on ICMP errors is [`crate::icmp::IcmpLimiter`]'s: an error named
//! here is one that the node tries to send.

use std::collections::VecDeque;

use super::socket::reset_for;
use crate::segment::{IcmpKind, Proto, Segment, Tuple};
use crate::time::{Clock, Instant, Jiffies};

/// `delay_first_probe_time`, seconds.
const DELAY_SECS: u64 = 5;
/// `ucast_solicit`.
const UNICAST_PROBES: u8 = 3;
/// `mcast_solicit`.
const MULTICAST_PROBES: u8 = 3;
/// `base_reachable_time`, milliseconds.
const REACHABLE_MS: u64 = 30_000;
/// `unres_qlen_bytes` of 212 992 in SYNs of 832 bytes `truesize` each.
pub const QUEUE_LIMIT: usize = 256;

/// What becomes of a packet for a dead address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is lost.
    Lost,
    /// It waits for the neighbour; an error for it may come from [`DeadEnd::on_timer`].
    Queued,
    /// The node tries to send this error to the packet's sender, at once.
    Icmp(IcmpKind),
    /// This comes back.
    Segment(Segment),
    /// Somebody else answers: hand it to the pod that has the address now.
    NewOwner,
}

/// What answers.
#[derive(Clone, Debug)]
pub enum DeadEnd {
    /// Nobody, ever.
    Blackhole,
    /// A route that says so: the node that looks it up sends ICMP at once. Also TTL or prohibition.
    Unreachable(IcmpKind),
    /// The last node on the way asks for the address by ARP in vain.
    ArpFailure(Neighbour),
    /// The network namespace still exists, but nothing listens.
    Reset,
    /// Another pod has the address.
    Reassigned {
        /// Whether it listens on the port: then a wrong service answers, else a RST.
        listening: bool,
    },
}

impl DeadEnd {
    /// A packet arrives.
    pub fn on_segment(&mut self, now: Instant, clock: &Clock, segment: &Segment) -> Answer {
        match self {
            Self::Blackhole => Answer::Lost,
            Self::Unreachable(kind) => Answer::Icmp(*kind),
            Self::ArpFailure(neighbour) => neighbour.on_packet(now, clock, segment.tuple),
            Self::Reset | Self::Reassigned { listening: false }
                if segment.tuple.proto == Proto::Udp =>
            {
                Answer::Icmp(IcmpKind::PortUnreachable)
            }
            Self::Reset | Self::Reassigned { listening: false } => {
                reset_for(segment).map_or(Answer::Lost, Answer::Segment)
            }
            Self::Reassigned { listening: true } => Answer::NewOwner,
        }
    }

    /// The tick at which [`Self::on_timer`] has something to do.
    pub const fn timer(&self) -> Option<Jiffies> {
        match self {
            Self::ArpFailure(neighbour) => neighbour.timer,
            _ => None,
        }
    }

    /// The timer may be due. Returns the packets for each of which the node now tries to send ICMP host
    /// unreachable, oldest first.
    pub fn on_timer(&mut self, now: Instant, clock: &Clock) -> Vec<Tuple> {
        match self {
            Self::ArpFailure(neighbour) => neighbour.on_timer(now, clock),
            _ => Vec::new(),
        }
    }
}

/// The state of a neighbour entry (`NUD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nud {
    /// No entry, or one that has failed.
    Failed,
    /// Packets wait, ARP requests are broadcast.
    Incomplete,
    /// Confirmed a while ago: packets are sent, to nobody.
    Reachable,
    /// No longer confirmed; the next packet is sent and starts the delay.
    Stale,
    /// Packets are sent while the stack waits for a confirmation from above.
    Delay,
    /// Packets are sent while ARP requests go to the old address.
    Probe,
}

/// The neighbour entry of a dead address.
#[derive(Clone, Debug)]
pub struct Neighbour {
    state: Nud,
    timer: Option<Jiffies>,
    probes: u8,
    used: Jiffies,
    waiting: VecDeque<Tuple>,
    limit: usize,
}

impl Neighbour {
    /// No entry: the first packet starts asking.
    pub fn unknown() -> Self {
        Self {
            state: Nud::Failed,
            timer: None,
            probes: 0,
            used: Jiffies(0),
            waiting: VecDeque::new(),
            limit: QUEUE_LIMIT,
        }
    }

    /// An entry that was last confirmed long ago.
    pub fn stale() -> Self {
        Self {
            state: Nud::Stale,
            ..Self::unknown()
        }
    }

    /// An entry that was confirmed at `confirmed` and stays believed for `reachable` ticks from then.
    pub fn reachable(clock: &Clock, confirmed: Instant, reachable: u64) -> Self {
        let expires = clock.jiffies(confirmed) + reachable;
        Self {
            state: Nud::Reachable,
            timer: Some(clock.fires(expires, reachable)),
            ..Self::unknown()
        }
    }

    /// How long a confirmation is believed, in ticks: 15 to 45 s (`neigh_rand_reach_time`).
    pub fn random_reachable(clock: &Clock, rng: &mut impl rand::Rng) -> u64 {
        let base = REACHABLE_MS * u64::from(clock.hz()) / 1000;
        base / 2 + u64::from(rng.next_u32()) * base / (1 << 32)
    }

    /// The same entry with room for `limit` waiting packets (at least 1) instead of [`QUEUE_LIMIT`].
    #[must_use]
    pub fn with_queue_limit(mut self, limit: usize) -> Self {
        self.limit = limit.max(1);
        self
    }

    /// The state.
    pub const fn state(&self) -> Nud {
        self.state
    }

    fn arm(&mut self, now: Jiffies, clock: &Clock, secs: u64) {
        let ticks = clock.ticks(secs);
        self.timer = Some(clock.fires_after(now, ticks));
    }

    fn on_packet(&mut self, now: Instant, clock: &Clock, tuple: Tuple) -> Answer {
        let tick = clock.jiffies(now);
        match self.state {
            // A confirmed entry is used without a look at it.
            Nud::Reachable => return Answer::Lost,
            Nud::Delay | Nud::Probe => {
                self.used = tick;
                return Answer::Lost;
            }
            Nud::Stale => {
                self.used = tick;
                self.state = Nud::Delay;
                self.arm(tick, clock, DELAY_SECS);
                return Answer::Lost;
            }
            Nud::Failed => {
                self.state = Nud::Incomplete;
                self.probes = UNICAST_PROBES + 1;
                self.arm(tick, clock, 1);
            }
            Nud::Incomplete => {}
        }
        self.used = tick;
        if self.waiting.len() >= self.limit {
            self.waiting.pop_front();
        }
        self.waiting.push_back(tuple);
        Answer::Queued
    }

    fn on_timer(&mut self, now: Instant, clock: &Clock) -> Vec<Tuple> {
        let tick = clock.jiffies(now);
        if self.timer.is_none_or(|due| due > tick) {
            return Vec::new();
        }
        self.timer = None;
        match self.state {
            Nud::Failed | Nud::Stale => {}
            Nud::Reachable if tick.0 <= self.used.0 + clock.ticks(DELAY_SECS) => {
                self.state = Nud::Delay;
                self.arm(tick, clock, DELAY_SECS);
            }
            Nud::Reachable => self.state = Nud::Stale,
            Nud::Delay => {
                self.state = Nud::Probe;
                self.probes = 1;
                self.arm(tick, clock, 1);
            }
            Nud::Probe | Nud::Incomplete => {
                let multicast = match self.state {
                    Nud::Probe => 0,
                    _ => MULTICAST_PROBES,
                };
                if self.probes >= UNICAST_PROBES + multicast {
                    self.state = Nud::Failed;
                    return self.waiting.drain(..).collect();
                }
                self.probes += 1;
                self.arm(tick, clock, 1);
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests;
