//! Real servers that cannot be reached from the node: no capture holds its routes and neighbours, so what the node's ICMP
//! errors say of them is an input to the model.
//!
//! A host without a route is refused at once, before the packet leaves the tables unconfirmed. A neighbour that does not
//! answer ARP is refused only after the kernel has asked three times, a second apart; until then its packets wait where no
//! capture sees them, and the error may fall to the rate limit.

use ipvs_model::node::{Decision, Verdict};
use ipvs_model::segment::{IcmpKind, Segment, Tuple};
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
                if let Some((_, dest)) = self.entry_of(segment, true) {
                    self.node.set_unreachable(dest.ip, true);
                }
            }
            _ => {}
        }
    }

    /// Whether the packet may go to a real server of which the node will say that it is not reached.
    pub(super) fn may_be_dead(
        &self,
        inward: bool,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<bool, ReadError> {
        if !inward || self.setup.exact {
            return Ok(false);
        }
        match seen {
            Seen::Icmp(IcmpKind::HostUnreachable) => Ok(true),
            Seen::Nothing => {
                let at = self.stamp();
                Ok(ahead.unreachable_within(at, ASKS)?.next().is_some())
            }
            _ => Ok(false),
        }
    }

    /// Why the real server to which the model sends a packet is not reached, if the node says so soon.
    pub(super) fn why_dead(
        &self,
        decision: &Decision,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<Option<Dead>, ReadError> {
        let Verdict::Forward(out) = decision.verdict else {
            return Ok(None);
        };
        if seen == Seen::Icmp(IcmpKind::HostUnreachable) {
            return Ok(Some(Dead::NoRoute));
        }
        if seen != Seen::Nothing {
            return Ok(None);
        }
        let dest = out.tuple.dst;
        let leads = |about: &Tuple| about.dst == dest || self.node.bound_to(about) == Some(dest);
        let mut errors = ahead.unreachable_within(self.stamp(), ASKS)?;
        let found = errors.find(|error| leads(&error.about));
        Ok(found.map(|error| match error.at_once {
            true => Dead::NoRoute,
            false => Dead::Silent,
        }))
    }

    /// Judges a packet that the model forwards and the capture does not show to leave.
    pub(super) fn judge_silence(&self, decision: &Decision, seen: Seen, outcome: Match) -> Match {
        match decision.verdict {
            Verdict::Forward(out)
                if seen == Seen::Nothing && self.silent.contains(&out.tuple.dst.ip) =>
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
        let before = (self.node.clone(), self.schedulers.clone());
        let decision = self.run_packet(segment, inward, seen);
        if matches!(compare(&decision, seen), Match::Yes) {
            return Ok(decision);
        }
        let (Some(why), Verdict::Forward(out)) =
            (self.why_dead(&decision, seen, ahead)?, decision.verdict)
        else {
            return Ok(decision);
        };
        match why {
            Dead::Silent => {
                self.silent.insert(out.tuple.dst.ip);
                Ok(decision)
            }
            Dead::NoRoute => {
                (self.node, self.schedulers) = before;
                self.node.set_unreachable(out.tuple.dst.ip, true);
                Ok(self.run_packet(segment, inward, seen))
            }
        }
    }
}
