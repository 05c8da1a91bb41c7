//! The pods: their sockets, and what the processes in them do.

use ipvs_model::kube::PodId;
use ipvs_model::segment::{Endpoint, Flags, IcmpKind, Proto, Segment, Tuple};
use ipvs_model::tcp::deadend::Answer;
use ipvs_model::tcp::rule::Rule as TcpRule;
use ipvs_model::tcp::socket::{Event as SocketEvent, Outcome as TcpOutcome};
use ipvs_model::time::Instant;
use std::net::Ipv4Addr;

use super::hosts::Peer;
use super::quiet::WAITS_FOR_NEIGHBOUR;
use super::story::{GoneAnswer, What};
use super::streams::draw;
use super::world::{Event, Leg, Way, World};
use crate::outcome::Cause;
use crate::scenario::Side;

impl World<'_> {
    pub(super) fn at_pod(&mut self, segment: &Segment) {
        self.touch(segment.tuple.src);
        let ip = segment.tuple.dst.ip;
        // A packet from an address of its own is a martian source to a pod (`fib_validate_source`).
        if segment.tuple.src.ip == ip {
            return;
        }
        if let Some(place) = self.dead_ends.place(ip) {
            self.touch_for(segment.tuple.src, WAITS_FOR_NEIGHBOUR);
            let answer = self.dead_ends.on_segment(place, self.now, segment);
            if let Some(at) = self.dead_ends.file(place) {
                self.queue.at(at, Event::DeadEnd(place));
            }
            return self.dead_end_answers(answer, segment);
        }
        let Some(place) = self.pods.at(ip) else {
            return;
        };
        if segment.tuple.proto == Proto::Udp {
            return self.datagram_at_pod(place, segment);
        }
        self.at_process(place, segment);
    }

    /// A segment reaches the TCP of the pod at a place.
    fn at_process(&mut self, place: u32, segment: &Segment) {
        let now = self.now;
        let host = self.pods.get(place);
        let outcome = match &mut host.pod {
            Some(pod) => pod.on_segment(now, segment),
            // The container has not begun to listen.
            None => {
                let answer = ipvs_model::tcp::socket::reset_for(segment);
                self.tell_at_pod(
                    segment,
                    What::Pod {
                        server: segment.tuple.dst,
                        rule: TcpRule::NoSocket,
                        syn: segment.flags.is_plain_syn(),
                    },
                );
                if let Some(answer) = answer {
                    self.pod_sends(place, answer);
                }
                return;
            }
        };
        let syn = segment.flags.is_plain_syn();
        if syn {
            self.note_pods_answer(segment, &outcome);
        }
        let resets = |sent: &Segment| sent.flags.has(Flags::RST);
        let told = self.observer.stories.wanted();
        if told && (syn || outcome.segments().iter().any(resets)) {
            let (server, rule) = (segment.tuple.dst, outcome.rule);
            self.tell_at_pod(segment, What::Pod { server, rule, syn });
        }
        self.pod_did(place, segment.tuple.src, &outcome);
    }

    fn dead_end_answers(&mut self, answer: Answer, segment: &Segment) {
        let told = match answer {
            Answer::Lost => GoneAnswer::Nothing,
            Answer::Queued => GoneAnswer::Arp,
            Answer::Icmp(kind) => GoneAnswer::Icmp(kind),
            Answer::Segment(_) => GoneAnswer::Reset,
            Answer::NewOwner => GoneAnswer::NewOwner,
        };
        self.tell_at_pod(
            segment,
            What::Gone {
                server: segment.tuple.dst,
                answer: told,
                syn: segment.tuple.proto == Proto::Udp || segment.flags.is_plain_syn(),
            },
        );
        match answer {
            Answer::Lost | Answer::Queued => {}
            Answer::Icmp(kind) => self.icmp_from_network(kind, segment.tuple),
            Answer::Segment(answer) => self.travel(Leg::NodePod, Event::AtNode(answer)),
            Answer::NewOwner if segment.tuple.proto == Proto::Udp => {
                self.datagram_at_stranger(segment);
            }
            Answer::NewOwner => self.new_owner(segment),
        }
    }

    /// Another service on the address takes the connection: a pod with a TCP of its own, whose answers are wrong.
    fn new_owner(&mut self, segment: &Segment) {
        let place = self.pods.stranger(segment.tuple.dst);
        self.at_process(place, segment);
    }

    /// The answer on its way to the client is not that of the service.
    fn mark_wrong_service(&mut self, about: Tuple) {
        let client = self.client_of(about);
        let Some(host) = self.hosts.of(client.ip, about.dst) else {
            return;
        };
        if let Some((_, request)) = self.request_of(host, client.port) {
            request.wrong_service = true;
            request.trouble = Some(Cause::AddressReassigned);
        }
    }

    pub(super) fn dead_end_timer(&mut self, place: u32) {
        for about in self.dead_ends.on_timer(place, self.now) {
            self.icmp_from_network(IcmpKind::HostUnreachable, about);
        }
        if let Some(at) = self.dead_ends.file(place) {
            self.queue.at(at, Event::DeadEnd(place));
        }
    }

    /// Whether a pod's answer to a SYN explains a failure to come.
    fn note_pods_answer(&mut self, segment: &Segment, outcome: &TcpOutcome) {
        let cause = match outcome.rule {
            TcpRule::AcceptQueueFull => Cause::ListenQueueFull,
            TcpRule::ChallengeAck
            | TcpRule::ChallengeLimited
            | TcpRule::TimeWaitAck
            | TcpRule::TimeWaitAckLimited => Cause::StaleServerSocket,
            _ => return,
        };
        let client = self.client_of(segment.tuple);
        let Some(host) = self.hosts.of(client.ip, segment.tuple.dst) else {
            return;
        };
        if let Some((_, request)) = self.request_of(host, client.port) {
            request.trouble = Some(cause);
        }
    }

    /// The client whose packet a pod got, behind masquerading.
    pub(super) fn client_of(&mut self, at_pod: Tuple) -> Endpoint {
        let at_node = self.original_of(at_pod).unwrap_or(at_pod);
        self.before_balancer(at_node).src
    }

    /// The tuple with which a packet on its way to a pod had reached the node, if conntrack knows it.
    pub(super) fn original_of(&mut self, at_pod: Tuple) -> Option<Tuple> {
        // An IPVS entry that has run out takes its conntrack entry along: timers first, as for a packet.
        self.node.advance(self.now);
        let tick = self.node.ipvs.clock().jiffies(self.now);
        let ct = self.node.ct.find(tick, &at_pod.reversed())?;
        Some(self.node.ct.entry(ct.slot).orig())
    }

    /// A pod's packet leaves: through the node, or past it.
    pub(super) fn pod_sends(&mut self, place: u32, segment: Segment) {
        if self.pods.get(place).direct {
            self.travel(Leg::PodClient, Event::AtClient(segment));
        } else {
            self.travel(Leg::NodePod, Event::AtNode(segment));
        }
    }

    fn pod_did(&mut self, place: u32, peer: Endpoint, outcome: &TcpOutcome) {
        for segment in outcome.segments() {
            self.pod_sends(place, *segment);
        }
        for event in outcome.events() {
            match *event {
                SocketEvent::Accepted => {
                    let host = self.pods.get(place);
                    host.peers.insert(peer, Peer::default());
                    host.open += 1;
                }
                SocketEvent::Data(bytes) => self.pod_reads(place, peer, bytes),
                SocketEvent::PeerClosed => self.pod_closes(place, peer),
                SocketEvent::Closed | SocketEvent::Failed(_) => self.pod_forgets(place, peer),
                SocketEvent::Connected => {}
            }
        }
        if outcome.timer_moved {
            self.file_pod_timer(place, peer);
        }
    }

    fn pod_forgets(&mut self, place: u32, peer: Endpoint) {
        let host = self.pods.get(place);
        if let Some(gone) = host.peers.remove(peer)
            && !gone.closed
        {
            host.open -= 1;
        }
        self.maybe_drained(place);
    }

    fn maybe_drained(&mut self, place: u32) {
        let host = self.pods.get(place);
        if host.draining && host.open == 0 {
            let id = host.id;
            self.control.drained(self.now, id);
            self.control_at(self.now, Event::Rollout);
        }
    }

    fn file_pod_timer(&mut self, place: u32, peer: Endpoint) {
        let now = self.now;
        let host = self.pods.get(place);
        let Some(pod) = &host.pod else { return };
        let Some(tick) = pod.timer(now, peer) else {
            return;
        };
        let Some(stack) = self.pods.stack() else {
            return;
        };
        let at = stack.clock.instant(tick).max(now);
        let host = self.pods.get(place);
        let unknown = Peer {
            closed: true,
            ..Peer::default()
        };
        let state = host.peers.get_or_insert(peer, unknown);
        if at < state.filed {
            state.filed = at;
            self.queue.at(at, Event::PodTimer(place, peer));
        }
    }

    pub(super) fn on_pod_timer(&mut self, place: u32, peer: Endpoint) {
        let now = self.now;
        let host = self.pods.get(place);
        match host.peers.get_mut(peer) {
            Some(state) if state.filed == now => state.filed = Instant::NEVER,
            _ => return,
        }
        let Some(pod) = &mut host.pod else { return };
        let mut outcome = pod.on_timer(now, peer);
        // A timer that was filed too early is filed again.
        outcome.timer_moved = true;
        self.pod_did(place, peer, &outcome);
    }

    /// The kind of client that a peer is, as far as its address tells; masqueraded peers count as the first kind.
    pub(super) fn kind_of(&mut self, peer: Ipv4Addr) -> usize {
        match self.hosts.at(peer) {
            Some(host) => usize::from(self.hosts.get(host).kind),
            None => 0,
        }
    }

    fn pod_reads(&mut self, place: u32, peer: Endpoint, bytes: u32) {
        let kind = self.kind_of(peer.ip);
        let wanted = self.manners[kind].request_bytes;
        let Some(state) = self.pods.get(place).peers.get_mut(peer) else {
            return;
        };
        state.received += bytes;
        if state.received < wanted {
            return;
        }
        state.received -= wanted;
        state.requests += 1;
        let event = Event::Respond(place, peer);
        match self.service {
            Way::Lane(lane) => self.queue.send(self.now, lane, event),
            Way::Random(dist) => {
                let delay = draw(&mut self.service_rng, &dist);
                self.queue.at(self.now + delay, event);
            }
        }
    }

    pub(super) fn respond(&mut self, place: u32, peer: Endpoint) {
        let now = self.now;
        let kind = self.kind_of(peer.ip);
        let manners = self.manners[kind];
        let host = self.pods.get(place);
        if host.exited.is_some() {
            return;
        }
        let Some(state) = host.peers.get_mut(peer) else {
            return;
        };
        state.served += 1;
        let served = state.served;
        if host.stranger {
            let about = Tuple::tcp(peer, host.address);
            self.mark_wrong_service(about);
        }
        let Some(pod) = &mut self.pods.get(place).pod else {
            return;
        };
        let outcome = pod.send(now, peer, manners.response_bytes);
        self.pod_did(place, peer, &outcome);
        if served >= manners.requests {
            if manners.closes_first == Side::Server {
                self.pod_closes(place, peer);
            }
        } else {
            let idle = self.scenario.server.keep_alive_timeout;
            self.queue
                .at(now + idle, Event::KeepAlive(place, peer, served));
        }
    }

    pub(super) fn keep_alive_over(&mut self, place: u32, peer: Endpoint, served: u32) {
        let idle = self.pods.get(place).peers.get(peer).is_some_and(|state| {
            state.served == served && state.requests == served && !state.closed
        });
        if idle {
            self.pod_closes(place, peer);
        }
    }

    /// The server process closes a connection.
    fn pod_closes(&mut self, place: u32, peer: Endpoint) {
        let now = self.now;
        let host = self.pods.get(place);
        let Some(state) = host.peers.get_mut(peer) else {
            return;
        };
        if state.closed || host.exited.is_some() {
            return;
        }
        state.closed = true;
        host.open -= 1;
        let Some(pod) = &mut host.pod else { return };
        let outcome = pod.close(now, peer, false);
        self.pod_did(place, peer, &outcome);
        self.maybe_drained(place);
    }

    pub(super) fn pod_closes_listener(&mut self, id: PodId) {
        self.no_quiet_for_now();
        let now = self.now;
        let Some(place) = self.pods.place(id) else {
            return;
        };
        let host = self.pods.get(place);
        host.draining = true;
        let outcomes = host
            .pod
            .as_mut()
            .map(|pod| pod.close_listener(now))
            .unwrap_or_default();
        for (peer, outcome) in outcomes {
            self.pod_did(place, peer, &outcome);
        }
        self.maybe_drained(place);
    }

    pub(super) fn pod_exits(&mut self, id: PodId) {
        self.no_quiet_for_now();
        let now = self.now;
        let Some(place) = self.pods.place(id) else {
            return;
        };
        let host = self.pods.get(place);
        host.exited = Some(now);
        host.draining = false;
        let outcomes = host
            .pod
            .as_mut()
            .map(|pod| pod.exit(now, false))
            .unwrap_or_default();
        for (peer, outcome) in outcomes {
            self.tell_left(place, peer, !outcome.segments().is_empty());
            self.pod_did(place, peer, &outcome);
        }
    }

    pub(super) fn pod_vanishes(&mut self, id: PodId, ip: Ipv4Addr) {
        let now = self.now;
        if let Some(host) = self.pods.by_id(id) {
            host.gone = Some(now);
            host.exited.get_or_insert(now);
            if let Some(pod) = &mut host.pod {
                pod.destroy();
            }
            host.peers.clear();
        }
        self.dead_ends.bury(ip, now);
        let unreachable = *self.dead_end_kind() == crate::scenario::DeadEnd::Unreachable;
        self.node.set_unreachable(ip, unreachable);
    }
    /// A pod's process ends while a connection of its is there.
    fn tell_left(&mut self, place: u32, peer: Endpoint, said: bool) {
        if !self.observer.stories.wanted() {
            return;
        }
        let server = self.pods.get(place).address;
        let client = self.client_of(Tuple {
            src: peer,
            dst: server,
            proto: self.key.proto,
        });
        if let Some(host) = self.hosts.of(client.ip, server) {
            self.tell(host, client.port, What::ServerLeft { server, said });
        }
    }
}
