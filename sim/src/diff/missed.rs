//! Packets that the capture missed on their way into the node, and packets that have nothing to do with a service.
//!
//! A packet that left tells what must have entered: the model gets that, so that it stays beside the node. A capture that
//! proves in this way to have missed packets proves nothing by a packet's absence: then it is compared once more, and what
//! a missed packet would explain is named and not blamed on the node.

use ipvs_model::conntrack::CtEntry;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::node::Decision;
use ipvs_model::segment::{Endpoint, Flags, Proto, Segment, Tuple};
use ipvs_model::time::Span;

use super::ahead::{Ahead, Seen};
use super::replay::Replay;
use super::verdict::{Match, compare};
use crate::capture::{Event, ReadError};

/// A client whose first SYN was missed sends its next packet within this: an answer comes, or it tries again.
const NEXT_PACKET: Span = Span::from_millis(3_500);

const ENTERED_UNSEEN: &str =
    "packet that the capture missed on its way in: taken to have entered, from how it left";
const LEFT_UNSEEN: &str = "packet that left without having been seen to enter";
const DIRECT: &str = "packet between a real server and a peer that does not ask a service";
const OTHER_STATE: &str =
    "packet whose way another one explains that the capture may have missed: it missed others";
const MAYBE_LEFT: &str =
    "packet that was not seen to leave, in a capture that missed others which did";
pub(super) const UNSPOKEN: &str = "entry of a service of which the capture has shown no packet";
pub(super) const MAYBE_CHANGED: &str =
    "entry that differs as packets explain which the capture may have missed: it missed others";

impl Replay<'_> {
    /// A packet that is neither a client's nor, to be judged, a real server's: it left the node without having been seen to
    /// enter, or it has nothing to do with a service.
    pub(super) fn unexplained(
        &mut self,
        event: &Event,
        left: &Segment,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        let Tuple { src, dst, .. } = left.tuple;
        let key = ServiceKey {
            proto: left.tuple.proto,
            addr: src,
        };
        let from_service = self.services.contains(&key);
        if !from_service && !self.servers.contains(&dst) {
            self.report.not_checked("packet of no known service");
            return Ok(());
        }
        let entered = match from_service {
            true => self.sent_by_server(left),
            false => self.sent_by_client(left, ahead)?,
        };
        let Some(entered) = entered else {
            // From the service: an answer of the node itself, whose cause was missed, or of a connection older than the
            // capture. To a real server: perhaps from the node itself, a probe.
            if !from_service {
                self.direct.insert((src, dst), self.now());
            }
            self.report.not_checked(LEFT_UNSEEN);
            return Ok(());
        };
        self.report.missed += 1;
        self.report.not_checked(ENTERED_UNSEEN);
        let (inward, seen) = (!from_service, Seen::Left(*left));
        self.decide_in_crowd(event, &entered, (inward, seen), ahead)?;
        Ok(())
    }

    /// What a real server sent, if this left the node towards the client.
    fn sent_by_server(&mut self, left: &Segment) -> Option<Segment> {
        let client = left.tuple.reversed();
        let dest = self.node.bound_to(&client)?;
        let now = self.jiffies();
        let tracked = self.node.ct.find(now, &client);
        let peer = tracked.map_or(client.src, |ct| self.node.ct.entry(ct.slot).reply().dst);
        let tuple = Tuple {
            src: dest,
            dst: peer,
            ..left.tuple
        };
        Some(Segment { tuple, ..*left })
    }

    /// What a client sent, if this left the node towards a real server.
    fn sent_by_client(
        &mut self,
        left: &Segment,
        ahead: &mut Ahead,
    ) -> Result<Option<Segment>, ReadError> {
        let back = Segment::new(left.tuple.reversed(), left.flags);
        let (now, reply) = (self.jiffies(), back.tuple);
        let tracked = self.node.ct.find(now, &reply);
        let tracked = tracked.map(|ct| self.node.ct.entry(ct.slot));
        // An entry that begins with the real server's address has no service in it.
        let tracked = tracked
            .filter(|entry| entry.reply() == reply && entry.orig().dst != left.tuple.dst)
            .map(CtEntry::orig);
        let bound = self.entry_of(&back, false).map(|(tuple, _)| tuple);
        let mut tuple = tracked.or(bound);
        let opens = left.tuple.proto == Proto::Udp || left.flags.has(Flags::SYN);
        if tuple.is_none() && opens {
            let (services, proto) = (&self.services, left.tuple.proto);
            let is_service = |addr: Endpoint| services.contains(&ServiceKey { proto, addr });
            let at = self.stamp();
            let virt = ahead.next_towards(at, NEXT_PACKET, left.tuple.src, is_service)?;
            tuple = virt.map(|virt| Tuple {
                dst: virt,
                ..left.tuple
            });
        }
        Ok(tuple.map(|tuple| Segment { tuple, ..*left }))
    }

    /// Whether a real server's packet belongs to a conversation without a service, such as a probe of the node's: nothing is
    /// said of it.
    pub(super) fn is_direct(&mut self, segment: &Segment) -> bool {
        let Tuple { src, dst, .. } = segment.tuple;
        let is = self.direct.contains_key(&(dst, src)) && self.entry_of(segment, false).is_none();
        if is {
            self.report.not_checked(DIRECT);
        }
        is
    }

    /// Whether a conntrack entry is of such a conversation.
    pub(super) fn tracks_direct(&self, orig: &Tuple) -> bool {
        self.direct.contains_key(&(orig.src, orig.dst))
            || self.direct.contains_key(&(orig.dst, orig.src))
    }

    /// Lets go of conversations that are over.
    pub(super) fn forget_direct(&mut self) {
        let recent = self.now() - Span::from_secs(600);
        self.direct.retain(|_, at| *at >= recent);
    }

    /// What the node did with a packet tells the state that it had of the connection, if a packet that the capture missed led
    /// there: then the model takes that state, and the packet once more.
    pub(super) fn with_what_was_missed(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        decision: Decision,
    ) -> Decision {
        if !self.setup.lossy || !matches!(compare(&decision, seen), Match::No(_)) {
            return decision;
        }
        let client = match (inward, seen) {
            (true, _) => segment.tuple,
            (false, Seen::Left(left)) => left.tuple.reversed(),
            (false, _) => return decision,
        };
        let bound_to = match (inward, seen) {
            (true, Seen::Left(left)) => Some(left.tuple.dst),
            (true, _) => None,
            (false, _) => Some(segment.tuple.src),
        };
        for tracked in [true, false] {
            let before = self.snapshot();
            let assume = |replay: &mut Self| {
                replay.assume(&client, bound_to, tracked);
                true
            };
            let packet = (segment, inward, seen);
            if let Some(again) = self.explained_from(before, assume, packet, OTHER_STATE) {
                self.adopted.insert(client);
                return again;
            }
        }
        decision
    }

    /// Takes it that the node has an entry of the client's tuple to this real server, or none, and that conntrack knows the
    /// connection as it does, or not at all.
    fn assume(&mut self, client: &Tuple, bound_to: Option<Endpoint>, tracked: bool) {
        if !tracked {
            let tick = self.jiffies();
            self.node.ct.delete_tuple(tick, client);
            if let Some(dest) = bound_to {
                let reply = Tuple {
                    src: dest,
                    dst: client.src,
                    ..*client
                };
                self.node.ct.delete_tuple(tick, &reply);
            }
        }
        if self.node.bound_to(client) == bound_to {
            return;
        }
        if let Some(id) = self.node.ipvs.table().find_in(client) {
            self.node.ipvs.forget(self.now(), id);
        }
        if let Some(dest) = bound_to {
            let state = match client.proto {
                Proto::Tcp => State::Es,
                Proto::Udp => State::No,
            };
            self.enter(client, (dest, state), 1);
        }
    }

    /// Judges a packet that was not seen to leave, in a capture that misses some.
    pub(super) fn judge_absence(&self, seen: Seen, outcome: Match) -> Match {
        match outcome {
            Match::No(_) if seen == Seen::Nothing && self.setup.lossy => Match::Unknown(MAYBE_LEFT),
            other => other,
        }
    }
}
