//! The events of a capture with a view of the moments just ahead: which packet leaving the node is the one that
//! entered it, and whether a listing straddles a packet.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Flags, IcmpKind, Segment, Tuple};
use ipvs_model::time::Span;

use crate::capture::{Body, Content, Event, Events, Packet, ReadError, RulesBlock, Stamp};

/// A packet leaves the node within this after it entered, on a machine that is not overloaded.
const TRANSIT_MAX: Span = Span::from_millis(5);
/// No more events are held, whatever the rate.
const HELD_MAX: usize = 16_384;

/// What the node was seen to do with a packet that entered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It left as this segment.
    Left(Segment),
    /// The node answered with this RST.
    Reset(Segment),
    /// The node answered with an ICMP error.
    Icmp(IcmpKind),
    /// Nothing left.
    Nothing,
    /// Nothing left before the capture ended or broke off: too early to say.
    TooEarly,
}

/// A host that the node says it cannot reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unreachable {
    /// The packet that the error quotes.
    pub about: Tuple,
    /// The error came within a packet's transit of that packet, and no other came with it that quotes an older one.
    pub at_once: bool,
}

/// An ICMP error "host unreachable" among the events ahead.
#[derive(Clone, Copy)]
struct Told {
    at: Stamp,
    about: Tuple,
    /// Its packet entered within a packet's transit before.
    fresh: bool,
}

/// Events with a look-ahead.
pub(super) struct Ahead {
    events: Events,
    held: VecDeque<Event>,
    /// The blocks of rules among them.
    rules: VecDeque<(Stamp, RulesBlock)>,
    /// Numbers of packets that were recognised as another packet's exit.
    taken: BTreeSet<u64>,
    ended: bool,
    /// How long a packet takes through the node at most.
    transit: Span,
    /// Longest time seen between a packet and its exit.
    pub transit_max: Span,
}

impl Ahead {
    /// `transit`: how long a packet takes through the node at most, if the capture says.
    pub(super) fn new(events: Events, transit: Option<Span>) -> Self {
        Self {
            events,
            held: VecDeque::new(),
            rules: VecDeque::new(),
            taken: BTreeSet::new(),
            ended: false,
            transit: transit.unwrap_or(TRANSIT_MAX),
            transit_max: Span::ZERO,
        }
    }

    pub(super) const fn events(&self) -> &Events {
        &self.events
    }

    /// The next event that is not another packet's exit.
    pub(super) fn next(&mut self) -> Result<Option<Event>, ReadError> {
        loop {
            if self.held.is_empty() {
                self.pull()?;
            }
            let Some(event) = self.held.pop_front() else {
                return Ok(None);
            };
            match &event.body {
                Body::Rules(_) => {
                    self.rules.pop_front();
                    return Ok(Some(event));
                }
                Body::Packet(packet) if self.taken.remove(&packet.number) => {}
                _ => return Ok(Some(event)),
            }
        }
    }

    fn pull(&mut self) -> Result<bool, ReadError> {
        if self.ended {
            return Ok(false);
        }
        match self.events.next_event()? {
            Some(event) => {
                if let Body::Rules(block) = &event.body {
                    self.rules.push_back((event.at, block.clone()));
                }
                self.held.push_back(event);
            }
            None => self.ended = true,
        }
        Ok(!self.ended)
    }

    /// Reads ahead until the last event held is later than `until`. False if the capture ends before.
    fn reach(&mut self, until: Stamp) -> Result<bool, ReadError> {
        loop {
            let reached = |event: &Event| event.at > until || event.stepped_back;
            if self.held.back().is_some_and(reached) || self.held.len() >= HELD_MAX {
                return Ok(true);
            }
            if !self.pull()? {
                return Ok(false);
            }
        }
    }

    /// The node's ICMP errors "host unreachable" that follow within `span`.
    ///
    /// A host without a route is refused packet by packet. A neighbour that fails gives up all that waited for it in one
    /// moment: the oldest first, and rarely one that had only just come.
    pub(super) fn unreachable_within(
        &mut self,
        at: Stamp,
        span: Span,
    ) -> Result<Vec<Unreachable>, ReadError> {
        let until = Stamp(at.0.saturating_add(span.0));
        self.reach(until)?;
        let ahead = |event: &&Event| event.at <= until && !event.stepped_back;
        let mut told = Vec::<Told>::new();
        for event in self.held.iter().take_while(ahead) {
            let Body::Packet(packet) = &event.body else {
                continue;
            };
            if let Content::Icmp { error, quoted, .. } = &packet.content
                && error.kind == IcmpKind::HostUnreachable
            {
                let about = error.about;
                let asked = |event: &Event| match &event.body {
                    Body::Packet(other) => is_quoted(other, &about, *quoted),
                    _ => false,
                };
                let recent = |event: &&Event| packet.at.since(event.at) <= self.transit;
                let before = self.held.iter().take_while(ahead);
                let mut before = before.filter(|event| event.at <= packet.at).filter(recent);
                told.push(Told {
                    at: packet.at,
                    about,
                    fresh: before.any(asked),
                });
            }
        }
        let beside = |one: &Told, other: &Told| one.at.0.abs_diff(other.at.0) <= self.transit.0;
        let errors = told.iter().map(|one| Unreachable {
            about: one.about,
            at_once: told.iter().all(|other| other.fresh || !beside(one, other)),
        });
        Ok(errors.collect())
    }

    /// Whether anything goes to a host or comes from it within `span`, as the node sees it.
    pub(super) fn hears_of(
        &mut self,
        at: Stamp,
        span: Span,
        host: Ipv4Addr,
    ) -> Result<bool, ReadError> {
        self.touches(at, span, |tuple| {
            tuple.dst.ip == host || tuple.src.ip == host
        })
    }

    /// Where the next packet goes that `from` sends within `span` to a receiver that `is_wanted`.
    pub(super) fn next_towards(
        &mut self,
        at: Stamp,
        span: Span,
        from: Endpoint,
        is_wanted: impl Fn(Endpoint) -> bool,
    ) -> Result<Option<Endpoint>, ReadError> {
        let until = Stamp(at.0.saturating_add(span.0));
        self.reach(until)?;
        let events = self.held.iter().take_while(|event| event.at <= until);
        let mut receivers = events.filter_map(|event| match &event.body {
            Body::Packet(packet) => match &packet.content {
                Content::Segment { segment, .. } if segment.tuple.src == from => {
                    Some(segment.tuple.dst)
                }
                _ => None,
            },
            _ => None,
        });
        Ok(receivers.find(|to| is_wanted(*to)))
    }

    /// Whether a packet of the tuple, in either direction, follows within `span`.
    pub(super) fn touches(
        &mut self,
        at: Stamp,
        span: Span,
        is_of: impl Fn(&Tuple) -> bool,
    ) -> Result<bool, ReadError> {
        let until = Stamp(at.0.saturating_add(span.0));
        self.reach(until)?;
        Ok(self
            .held
            .iter()
            .take_while(|event| event.at <= until)
            .any(|event| match &event.body {
                Body::Packet(packet) => match &packet.content {
                    Content::Segment { segment, .. } => is_of(&segment.tuple),
                    _ => false,
                },
                _ => false,
            }))
    }

    /// The next block of rules within `span`, if it is a state and no commands.
    pub(super) fn rules_after(
        &mut self,
        at: Stamp,
        span: Span,
    ) -> Result<Option<(Stamp, &RulesBlock)>, ReadError> {
        let until = Stamp(at.0.saturating_add(span.0));
        self.reach(until)?;
        let next = self
            .rules
            .front()
            .filter(|(at, block)| *at <= until && block.commands.is_empty());
        Ok(next.map(|(at, block)| (*at, block)))
    }

    /// The conntrack entries of a whole listing that comes before the next packet and within a packet's transit.
    pub(super) fn listed_next(&mut self, at: Stamp) -> Result<Option<BTreeSet<Tuple>>, ReadError> {
        let until = Stamp(at.0.saturating_add(self.transit.0));
        self.reach(until)?;
        for event in self.held.iter().take_while(|event| event.at <= until) {
            match &event.body {
                Body::Conntrack(table) if table.complete => {
                    return Ok(Some(table.rows.iter().map(|row| row.orig).collect()));
                }
                Body::Packet(packet) if !self.taken.contains(&packet.number) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Finds and takes what the node did with `entered`. The flags: it came from the client's side; its receiver is
    /// the node, which may answer.
    pub(super) fn exit_of(
        &mut self,
        entered: &Packet,
        segment: &Segment,
        (inward, local): (bool, bool),
        is_server: impl Fn(Endpoint) -> bool,
    ) -> Result<Seen, ReadError> {
        let until = Stamp(entered.at.0.saturating_add(self.transit.0));
        let whole = self.reach(until)?;
        // What fits, and how many packets before the first of it ask for the same: a copy sent again within the
        // window, or another packet that it would fit too. If fewer fit than ask, the later ones were served.
        let asks = |packet: &Packet, other: &Segment, exit: &Packet| {
            let from_client = !is_server(other.tuple.src);
            fate(packet, other, exit, (from_client, true), &is_server) != Seen::Nothing
        };
        let (mut of_tuple, mut askers, mut fitting, mut first) = (1, 1, 0, None);
        let mut between = Vec::<(&Packet, &Segment)>::new();
        for event in &self.held {
            if event.at > until || event.stepped_back {
                break;
            }
            let Body::Packet(packet) = &event.body else {
                continue;
            };
            if self.taken.contains(&packet.number) {
                continue;
            }
            let seen = fate(entered, segment, packet, (inward, local), &is_server);
            if seen != Seen::Nothing {
                fitting += 1;
                if first.is_none() {
                    first = Some((packet.number, packet.at, seen));
                    // An ICMP error quotes tuple and identification: any packet that has both may be meant.
                    askers = match seen {
                        Seen::Icmp(_) => of_tuple,
                        _ => 1 + between.iter().filter(|(p, s)| asks(p, s, packet)).count(),
                    };
                }
                if askers == 1 {
                    break;
                }
            } else if first.is_none() && packet.ttl == entered.ttl {
                let other = match &packet.content {
                    Content::Segment { segment, .. } => Some(segment),
                    _ => None,
                };
                let copy =
                    |other: &Segment| other.tuple == segment.tuple && packet.ip_id == entered.ip_id;
                of_tuple += usize::from(other.is_some_and(copy));
                between.extend(other.map(|other| (packet, other)));
            }
        }
        match first {
            Some((number, at, seen)) if fitting >= askers => {
                self.taken.insert(number);
                self.transit_max = self.transit_max.max(at.since(entered.at));
                Ok(seen)
            }
            // What would have left after a file's broken end is not in it.
            _ if self.events.broken_off().is_some_and(|end| until > end) => Ok(Seen::TooEarly),
            _ if whole => Ok(Seen::Nothing),
            _ => Ok(Seen::TooEarly),
        }
    }
}

/// Whether an ICMP error that quotes this tuple and identification is about the packet.
fn is_quoted(packet: &Packet, tuple: &Tuple, ip_id: u16) -> bool {
    packet.ip_id == ip_id
        && matches!(&packet.content, Content::Segment { segment, .. } if segment.tuple == *tuple)
}

/// What `packet` says of the fate of `segment`, if anything.
fn fate(
    entered: &Packet,
    segment: &Segment,
    packet: &Packet,
    (inward, local): (bool, bool),
    is_server: impl Fn(Endpoint) -> bool,
) -> Seen {
    match &packet.content {
        Content::Segment { segment: left, .. } => {
            if is_exit(entered, segment, packet, left, (inward, local), &is_server) {
                Seen::Left(*left)
            } else if local && is_answer(segment, left) {
                Seen::Reset(*left)
            } else {
                Seen::Nothing
            }
        }
        Content::Icmp { error, to, quoted }
            if *quoted == entered.ip_id
                && is_about(segment, *to, &error.about, &is_server, inward) =>
        {
            Seen::Icmp(error.kind)
        }
        _ => Seen::Nothing,
    }
}

/// Whether `left` is `segment` after the node forwarded it: the same numbers, one hop further, one end rewritten.
fn is_exit(
    entered: &Packet,
    segment: &Segment,
    packet: &Packet,
    left: &Segment,
    (inward, local): (bool, bool),
    is_server: impl Fn(Endpoint) -> bool,
) -> bool {
    let same = left.seq == segment.seq
        && left.ack == segment.ack
        && left.flags == segment.flags
        && left.len == segment.len
        && left.tuple.proto == segment.tuple.proto
        && packet.ip_id == entered.ip_id;
    let hop = entered.ttl.checked_sub(1) == Some(packet.ttl);
    let ends = if inward {
        is_server(left.tuple.dst) && left.tuple != segment.tuple
    } else {
        // A packet to the node's own address may get its client back and keep its source.
        local || left.tuple.dst == segment.tuple.dst || left.tuple.src != segment.tuple.src
    };
    same && hop && ends
}

/// Whether `answer` is the RST that a host without a socket sends for `segment`.
fn is_answer(segment: &Segment, answer: &Segment) -> bool {
    let numbers = if segment.flags.has(Flags::ACK) {
        answer.seq == segment.ack
    } else {
        answer.ack == segment.end_seq()
    };
    let asked = !segment.flags.has(Flags::RST) && answer.flags.has(Flags::RST);
    answer.tuple == segment.tuple.reversed() && asked && numbers
}

/// Whether an ICMP error to `to` is about `segment`, as its sender or its receiver knows it.
fn is_about(
    segment: &Segment,
    to: Ipv4Addr,
    about: &Tuple,
    is_server: impl Fn(Endpoint) -> bool,
    inward: bool,
) -> bool {
    to == segment.tuple.src.ip
        && about.src == segment.tuple.src
        && (about.dst == segment.tuple.dst || (inward && is_server(about.dst)))
}
