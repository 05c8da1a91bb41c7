//! Packets at the node: where they go, and what is noted of them.

use ipvs_model::icmp::{IcmpCause, IcmpVerdict};
use ipvs_model::ipvs;
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::{Endpoint, IcmpError, IcmpKind, Proto, Segment, Tuple};

use super::planes;
use super::story::What;
use super::world::{Event, Leg, World};
use crate::outcome::Cause;

/// What a rule of the node means for a request whose SYN it decided on, should the request fail.
pub(super) fn trouble(rule: Rule, server_dead: bool) -> Option<Cause> {
    match rule {
        Rule::Ipvs(ipvs::Rule::SynKeptAtWeightZero | ipvs::Rule::DatagramKeptAtWeightZero) => {
            Some(Cause::PinnedToDrained)
        }
        Rule::Ipvs(ipvs::Rule::DroppedWeightZero | ipvs::Rule::DroppedReuse) => {
            Some(Cause::SynDroppedOnReuse)
        }
        Rule::Ipvs(ipvs::Rule::DroppedDeleted | ipvs::Rule::BlackholedDeleted) => {
            Some(Cause::PinnedToDeleted)
        }
        Rule::Ipvs(ipvs::Rule::NoDestination) => Some(Cause::NoDestination),
        Rule::Conntrack(ipvs_model::conntrack::CtRule::TableFull) => Some(Cause::ConntrackFull),
        Rule::Conntrack(_) => Some(Cause::NatPortsExhausted),
        rule if let Some(cause) = planes::trouble(rule, server_dead) => Some(cause),
        _ if server_dead => Some(Cause::EndpointLag),
        _ => None,
    }
}

impl World<'_> {
    pub(super) fn at_node(&mut self, segment: &Segment) {
        let Some(arriving) = self.through_balancer(segment) else {
            return self.refused_by_balancer(segment);
        };
        self.collect_if_due();
        let decision = self.node.packet(self.now, &arriving, &mut self.node_rng);
        self.note_packets(1);
        if self.observer.stories.wanted() {
            self.note_decision(segment, &decision);
        }
        let asks =
            segment.tuple.proto == Proto::Udp && self.hosts.at(segment.tuple.src.ip).is_some();
        if asks || segment.flags.is_plain_syn() {
            self.note_syn(segment, &decision);
            if self.goes_quietly(segment, &decision) {
                return;
            }
        }
        if let Rule::Ipvs(
            ipvs::Rule::NotSchedulable | ipvs::Rule::DroppedDeleted | ipvs::Rule::BlackholedDeleted,
        ) = decision.rule
        {
            self.note_lost(segment);
        }
        self.touch(segment.tuple.src);
        self.follow(decision, arriving.tuple);
    }

    /// What the node decided on a packet with a tuple happens.
    pub(super) fn follow(&mut self, decision: Decision, tuple: Tuple) {
        match decision.verdict {
            Verdict::Forward(out) => self.route(out),
            Verdict::Local {
                answer: Some(answer),
            } => self.route(answer),
            Verdict::Local { answer: None } | Verdict::Drop => {}
            Verdict::Reject(kind) => self.send_icmp(kind, tuple),
        }
    }

    /// Something happens to the request on a client's port, if stories are kept.
    pub(super) fn tell(&mut self, host: u32, port: u16, what: What) {
        if !self.observer.stories.wanted() {
            return;
        }
        if let Some((_, request)) = self.request_of(host, port) {
            let number = request.number;
            self.observer.stories.tell(number, self.now, what);
        }
    }

    /// Something happens to the request of a packet on its way to a pod, if stories are kept.
    pub(super) fn tell_at_pod(&mut self, segment: &Segment, what: What) {
        if !self.observer.stories.wanted() {
            return;
        }
        let client = self.client_of(segment.tuple);
        if let Some(number) = self.number_of(segment, client) {
            self.observer.stories.tell(number, self.now, what);
        }
    }

    /// The number of the request that a client's packet belongs to, if it is open.
    fn number_of(&mut self, segment: &Segment, client: Endpoint) -> Option<u64> {
        if segment.tuple.proto == Proto::Udp {
            let request = self.request_of_datagram(segment, client.port);
            return request.map(|request| request.number);
        }
        let host = self.hosts.of(client.ip, segment.tuple.dst)?;
        let (_, request) = self.request_of(host, client.port)?;
        Some(request.number)
    }

    /// Writes down what the node did with a packet of a client, for stories.
    fn note_decision(&mut self, segment: &Segment, decision: &Decision) {
        let client = segment.tuple.src;
        let Some(host) = self.hosts.of(client.ip, segment.tuple.dst) else {
            return;
        };
        let number = self.number_of(segment, client);
        let server = self.server_of(decision);
        let weight = server.and_then(|server| {
            let mut listed = self.node.ipvs.real_servers(self.key);
            let found = listed.find(|listed| listed.addr == server);
            found.map(|listed| listed.weight)
        });
        let opens = segment.tuple.proto == Proto::Udp || segment.flags.is_plain_syn();
        let place = (host, client.port);
        let stories = &mut self.observer.stories;
        stories.at_node(place, self.now, number, (opens, decision), (server, weight));
    }

    /// The real server that a decision is about.
    pub(super) fn server_of(&self, decision: &Decision) -> Option<Endpoint> {
        match decision.verdict {
            Verdict::Forward(out) => Some(out.tuple.dst),
            _ => decision.entry.map(|entry| {
                let dest = self.node.ipvs.table().get(entry).dest();
                self.node.ipvs.dests().get(dest).addr
            }),
        }
    }

    /// Writes down what the node did with the SYN, or the datagram, of a request.
    pub(super) fn note_syn(&mut self, segment: &Segment, decision: &Decision) {
        let server = self.server_of(decision);
        if let Some(server) = server {
            self.observer.syn(server);
        }
        let dead = server.is_some_and(|server| self.pods.is_dead(server));
        let Some(host) = self.hosts.of(segment.tuple.src.ip, segment.tuple.dst) else {
            return;
        };
        let Some((_, request)) = self.request_of(host, segment.tuple.src.port) else {
            return;
        };
        if server.is_some() {
            request.server = server;
        }
        if request.rule.is_empty() {
            request.rule = decision.rule.describe();
        }
        let repeated = decision.rule == Rule::Ipvs(ipvs::Rule::SynKept);
        match trouble(decision.rule, dead) {
            // A repeated SYN on its own entry tells nothing new.
            Some(_) if repeated && request.trouble.is_some() => {}
            // Nor does what becomes of the SYN sent again when the first one went to a pod that was gone: conntrack keeps it
            // there, or it is dropped because the pod has weight 0 by now.
            Some(_) if request.trouble == Some(Cause::EndpointLag) => {}
            Some(cause) => request.trouble = Some(cause),
            None => {}
        }
    }

    /// The node no longer knows the established connection of a client's packet, or its real server is deleted.
    fn note_lost(&mut self, segment: &Segment) {
        let tuple = segment.tuple;
        let Some(host) = self.hosts.of(tuple.src.ip, tuple.dst) else {
            return;
        };
        let Some((_, request)) = self.request_of(host, tuple.src.port) else {
            return;
        };
        if request.connected.is_none() || request.trouble.is_some() {
            return;
        }
        let server = request.server;
        let deleted = server.is_some_and(|server| {
            let mut listed = self.node.ipvs.real_servers(self.key);
            listed.all(|listed| listed.addr != server)
        });
        let cause = if deleted {
            Cause::PinnedToDeleted
        } else {
            Cause::SessionForgotten
        };
        if let Some((_, request)) = self.request_of(host, tuple.src.port) {
            request.trouble = Some(cause);
        }
    }

    /// The load balancer has no port left for a client's packet: it is lost.
    fn refused_by_balancer(&mut self, segment: &Segment) {
        let Some(host) = self.hosts.at(segment.tuple.src.ip) else {
            return;
        };
        if let Some((_, request)) = self.request_of(host, segment.tuple.src.port) {
            request.trouble = Some(Cause::NatPortsExhausted);
        }
    }

    /// The node tries to send an ICMP error about a client's packet, named as the client knows it.
    fn send_icmp(&mut self, kind: IcmpKind, about: Tuple) {
        let verdict = self.icmp.allow(
            self.now,
            about.src.ip,
            IcmpCause::Direct,
            &mut self.node_rng,
        );
        let sent = verdict == IcmpVerdict::Sent;
        let about = self.before_balancer(about);
        if let Some(host) = self.hosts.of(about.src.ip, about.dst) {
            self.tell(host, about.src.port, What::Icmp { kind, sent });
        }
        if sent {
            let error = IcmpError {
                kind,
                from: self.scenario.node.address,
                about,
            };
            self.travel(Leg::ClientNode, Event::Icmp(error));
        }
    }

    /// An error about a packet that had left the node for a pod goes back through the node, which translates it.
    pub(super) fn icmp_from_network(&mut self, kind: IcmpKind, about: Tuple) {
        // Without conntrack it is Cilium that translates; where clients call pods there is nothing to translate.
        let called = match self.direct {
            Some(_) => about,
            None => Tuple {
                dst: self.key.addr,
                ..about
            },
        };
        let about = self.original_of(about).unwrap_or(called);
        self.send_icmp(kind, about);
    }
}
