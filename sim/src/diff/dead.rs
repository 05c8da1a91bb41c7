//! Real servers that cannot be reached from the node: no capture holds its routes and neighbours, so what the node's ICMP
//! errors say of them is an input to the model.
//!
//! A host without a route is refused at once, before the packet leaves the tables unconfirmed. A neighbour that does not
//! answer ARP is refused only after the kernel has asked three times, a second apart; until then its packets wait where no
//! capture sees them, and the errors may fall to the rate limit: a client is sent six at once and one a second, whichever
//! real server they are about, so that of two that die together one may never be named.

use std::net::Ipv4Addr;

use ipvs_model::node::{Decision, Verdict};
use ipvs_model::segment::{Endpoint, IcmpKind, Segment, Tuple};
use ipvs_model::time::Span;

use super::ahead::{Ahead, Seen};
use super::replay::Replay;
use super::verdict::{Match, compare};
use crate::capture::ReadError;

/// Three questions a second apart (`mcast_solicit`, `retrans_time_ms`), and a little.
const ASKS: Span = Span::from_millis(4_000);

pub(super) const SILENT: &str =
    "packet to a real server that does not answer ARP: no device shows whether the node sent it";

/// Why a real server is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dead {
    /// The node refuses at once.
    NoRoute,
    /// Its neighbour entry fails.
    Silent,
}

impl Replay<'_> {
    /// What the node was just seen to do tells that a real server is reached, or is not.
    pub(super) fn learn_of_routes(&mut self, segment: &Segment, inward: bool, seen: Seen) {
        if !inward || self.setup.exact {
            return;
        }
        match seen {
            Seen::Left(left) => {
                self.silent.remove(&left.tuple.dst.ip);
                self.node.set_unreachable(left.tuple.dst.ip, false);
            }
            Seen::Icmp(IcmpKind::HostUnreachable) => {
                if let Some((_, dest)) = self.entry_of(segment, true)
                    && !self.silent.contains(&dest.ip)
                {
                    self.node.set_unreachable(dest.ip, true);
                }
            }
            _ => {}
        }
    }

    /// Whether the packet, which found this entry, may go to a real server of which the node will say that it is not reached.
    pub(super) fn may_be_dead(
        &self,
        found: Option<(Tuple, Endpoint)>,
        inward: bool,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<bool, ReadError> {
        if !inward || self.setup.exact {
            return Ok(false);
        }
        if found.is_some_and(|(_, dest)| self.silent.contains(&dest.ip)) {
            return Ok(false);
        }
        match seen {
            Seen::Icmp(IcmpKind::HostUnreachable) => Ok(true),
            Seen::Nothing => {
                let at = self.stamp();
                Ok(!ahead.unreachable_within(at, ASKS)?.is_empty())
            }
            _ => Ok(false),
        }
    }

    /// Why the real server to which the model sends a packet is not reached, if the node says so soon.
    pub(super) fn why_dead(
        &self,
        client: Ipv4Addr,
        decision: &Decision,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<Option<Dead>, ReadError> {
        let Verdict::Forward(out) = decision.verdict else {
            return Ok(None);
        };
        let dest = out.tuple.dst;
        match seen {
            Seen::Nothing | Seen::Icmp(IcmpKind::HostUnreachable)
                if self.silent.contains(&dest.ip) =>
            {
                return Ok(Some(Dead::Silent));
            }
            Seen::Icmp(IcmpKind::HostUnreachable) => return Ok(Some(Dead::NoRoute)),
            Seen::Nothing => {}
            _ => return Ok(None),
        }
        let leads = |about: &Tuple| about.dst == dest || self.node.bound_to(about) == Some(dest);
        let errors = ahead.unreachable_within(self.stamp(), ASKS)?;
        if let Some(error) = errors.iter().find(|error| leads(&error.about)) {
            return Ok(Some(match error.at_once {
                true => Dead::NoRoute,
                false => Dead::Silent,
            }));
        }
        // The errors about it were withheld if the client's allowance went to another real server's.
        let mut others = errors.iter().filter(|error| !error.at_once);
        let spent = others.any(|error| error.about.src.ip == client);
        let silent = spent && !ahead.hears_of(self.stamp(), ASKS, dest.ip)?;
        Ok(silent.then_some(Dead::Silent))
    }

    /// Judges a packet that the model forwards and the capture does not show to leave, or that came just before its
    /// neighbour entry failed.
    pub(super) fn judge_silence(&self, decision: &Decision, seen: Seen, outcome: Match) -> Match {
        match decision.verdict {
            Verdict::Forward(out)
                if matches!(seen, Seen::Nothing | Seen::Icmp(IcmpKind::HostUnreachable))
                    && self.silent.contains(&out.tuple.dst.ip) =>
            {
                Match::Unknown(SILENT)
            }
            _ => outcome,
        }
    }

    /// Runs a packet whose real server may not be reached: once to learn where it goes, and again with what is known of that.
    pub(super) fn run_where_dead(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<Decision, ReadError> {
        let before = self.snapshot();
        let decision = self.run_packet(segment, inward, seen);
        if matches!(compare(&decision, seen), Match::Yes) {
            return Ok(decision);
        }
        let (Some(why), Verdict::Forward(out)) = (
            self.why_dead(segment.tuple.src.ip, &decision, seen, ahead)?,
            decision.verdict,
        ) else {
            return Ok(decision);
        };
        match why {
            Dead::Silent => {
                self.silent.insert(out.tuple.dst.ip);
                Ok(decision)
            }
            Dead::NoRoute => {
                self.put(before);
                self.node.set_unreachable(out.tuple.dst.ip, true);
                Ok(self.run_packet(segment, inward, seen))
            }
        }
    }
}
