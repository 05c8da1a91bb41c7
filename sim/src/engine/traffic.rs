//! Packets and applications: what clients, node and pods do with each other.

use ipvs_model::icmp::{IcmpCause, IcmpVerdict};
use ipvs_model::ipvs;
use ipvs_model::kernel::Gate;
use ipvs_model::kube::PodId;
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Flags, IcmpError, IcmpKind, Proto, Segment, Tuple};
use ipvs_model::tcp::client::ConnId;
use ipvs_model::tcp::deadend::Answer;
use ipvs_model::tcp::rule::Rule as TcpRule;
use ipvs_model::tcp::socket::{ConnError, Event as SocketEvent, Outcome as TcpOutcome};
use ipvs_model::tcp::state::State;
use ipvs_model::time::{Instant, Span};
use std::net::Ipv4Addr;

use super::hosts::Peer;
use super::load::{ConnState, Request};
use super::planes;
use super::queue::{Lane, Turn};
use super::quiet::WAITS_FOR_NEIGHBOUR;
use super::story::{GoneAnswer, What};
use super::streams::draw;
use super::world::{Event, Leg, Way, World};
use crate::outcome::{Cause, Outcome};
use crate::scenario::{Location, Side};

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
    // The load.

    /// A request arrives, and so do those after it until something else comes between them, or it is after `last`.
    pub(super) fn on_arrivals(&mut self, kind: u16, last: Instant) {
        loop {
            let load = &mut self.loads[usize::from(kind)];
            let series = load.series;
            if let Some(next) = load.next_arrival() {
                self.queue.hold(next);
            }
            self.begin(kind, 0);
            let Some(at) = self.queue.take_held(last) else {
                return self.queue.file_held(series, Event::Arrival(kind));
            };
            self.now = at;
            self.events += 1;
        }
    }

    /// A request starts: on an idle connection, or on a new one.
    pub(super) fn begin(&mut self, kind: u16, worker: u32) {
        if self.now >= self.loads[usize::from(kind)].stop {
            return;
        }
        self.catch_up();
        let load = &self.loads[usize::from(kind)];
        let number = self.begun;
        self.begun += 1;
        let closed_loop = matches!(
            self.scenario.client[usize::from(kind)].arrivals,
            crate::scenario::Arrivals::Closed(_)
        );
        let host = load.host(if closed_loop {
            u64::from(worker)
        } else {
            number
        });
        let counted = self.now >= Instant::ZERO + self.scenario.warmup;
        let (now, requests) = (self.now, self.manners[usize::from(kind)].requests);
        // Most need none: those of the shortest way.
        let request = |host| Request {
            worker,
            left: requests.saturating_sub(1),
            ..Request::new(number, kind, host, now, counted)
        };
        if self.udp.is_some() {
            let request = request(host);
            if !self.begin_datagram(request) {
                let client = Endpoint::new(self.hosts.get(host).address(), 0);
                self.observer.no_port(self.now, &request, client);
                self.next_of_worker(kind, worker);
            }
            return;
        }
        let Some(host) = self.towards_a_pod(host) else {
            return self.no_pod(request(host));
        };
        let idle = self.hosts.get(host).idle.pop();
        if let Some((port, left, server)) = idle {
            let mut request = request(host);
            (request.port, request.left, request.connected) = (port, left, Some(self.now));
            request.server = server;
            self.enter(request);
            self.ask(host, port);
            return;
        }
        self.release_ports(host);
        let opened = if self.may_go_directly(kind) {
            let port = self.hosts.get(host).choose(self.now);
            if let Some(port) = port
                && self.port_is_quiet(host, port)
            {
                return self.begin_directly(number, kind, host, counted, port);
            }
            let client = self.hosts.get(host);
            port.map(|port| client.client.connect_from(self.now, client.to, port))
        } else {
            match self.before_port(number, host, counted) {
                Some(port) => self.hosts.get(host).connect_from(self.now, port),
                None => self.hosts.get(host).connect(self.now),
            }
        };
        let mut request = request(host);
        let Some((id, outcome)) = opened else {
            let client = Endpoint::new(self.hosts.get(host).address(), 0);
            self.observer.no_port(self.now, &request, client);
            self.next_of_worker(kind, worker);
            return;
        };
        (request.port, request.opened) = (id.port(), true);
        self.write_out_port(host, id.port());
        self.got_port(number, id.port());
        request.port_idle = self
            .conns
            .get(host, id.port())
            .map(|conn| self.now.since(conn.ended))
            .filter(|idle| *idle > Span::ZERO);
        self.observer.connection();
        self.enter(request);
        self.client_did(host, id.port(), &outcome);
    }

    /// Registers a request, its connection and its timeouts; its slot and the number of its tenancy.
    pub(super) fn enter(&mut self, request: Request) -> (u32, u64) {
        self.observer.attempt(request.start, request.counted);
        if self.observer.stories.wanted() && request.counted {
            let (port, idle) = (request.port, request.port_idle);
            let what = match request.opened {
                true => What::Opened { port, idle },
                false => What::KeptAlive { port },
            };
            self.observer.stories.begin(request.number, self.now, what);
        }
        self.take_slot(request, |world, lane, event| {
            world.queue.send(world.now, lane, event);
        })
    }

    /// The same for one that is registered as begun; `file` files what gives it up.
    pub(super) fn take_slot(
        &mut self,
        request: Request,
        file: impl Fn(&mut Self, Lane, Event),
    ) -> (u32, u64) {
        let manners = self.manners[usize::from(request.kind)];
        let (slot, serial) = self.requests.insert(request);
        let conn = self.conns.get_or_insert(request.host, request.port, slot);
        conn.request = slot;
        if request.opened {
            conn.filed = ConnState::NOT_FILED;
        }
        if let Some(timeout) = manners.timeout {
            file(self, timeout, Event::GiveUp(slot, serial, false));
        }
        if let (Some(timeout), true) = (manners.connect_timeout, request.opened) {
            file(self, timeout, Event::GiveUp(slot, serial, true));
        }
        (slot, serial)
    }

    fn next_of_worker(&mut self, kind: u16, worker: u32) {
        if let Some(think) = self.loads[usize::from(kind)].think_time() {
            // A worker whose request ended at once must not spin at one moment for ever.
            let pause = think.max(Span::from_micros(100));
            self.queue.at(self.now + pause, Event::Worker(kind, worker));
        }
    }

    pub(super) fn give_up(&mut self, slot: u32, serial: u64, connecting: bool) {
        let Some(request) = self.requests.tenant(slot, serial) else {
            return;
        };
        if connecting && request.connected.is_some() {
            return;
        }
        let outcome = match request.connected {
            Some(_) => Outcome::ResponseTimeout,
            None if self.udp.is_some() => Outcome::ResponseTimeout,
            None => Outcome::ConnectTimeout,
        };
        let (host, port) = (request.host, request.port);
        let connecting = outcome == Outcome::ConnectTimeout;
        self.tell(host, port, What::GaveUp { connecting });
        self.end(slot, outcome);
        self.close_client(host, port);
    }

    /// A request ends.
    pub(super) fn end(&mut self, slot: u32, outcome: Outcome) {
        self.catch_up_to(self.now);
        let Some(mut request) = self.requests.remove(slot) else {
            return;
        };
        if outcome != Outcome::Answered && request.trouble.is_none() {
            request.trouble = Some(self.blame(&request));
        }
        if let Some(conn) = self.conns.get_mut(request.host, request.port) {
            (conn.request, conn.ended) = (ConnState::IDLE, self.now);
        }
        if let Some(udp) = &mut self.udp {
            udp.close(request.host, request.port);
        }
        let client = Endpoint::new(self.hosts.get(request.host).address(), request.port);
        self.observer.ended(self.now, &request, outcome, client);
        self.ended_probed(request.number, outcome);
        self.next_of_worker(request.kind, request.worker);
    }

    /// Why a request failed that no rule had marked.
    fn blame(&self, request: &Request) -> Cause {
        let dead = request
            .server
            .is_some_and(|server| self.pods.is_dead(server));
        match (request.wrong_service, request.connected, dead) {
            (true, ..) => Cause::AddressReassigned,
            (false, Some(_), true) => Cause::ConnectionCut,
            (false, None, true) => Cause::EndpointLag,
            (false, _, false) => Cause::Other,
        }
    }

    // The client hosts.

    fn client_did(&mut self, host: u32, port: u16, outcome: &TcpOutcome) {
        for segment in outcome.segments() {
            self.travel(Leg::ClientNode, Event::AtNode(*segment));
        }
        for event in outcome.events() {
            match *event {
                SocketEvent::Connected => self.on_connected(host, port),
                SocketEvent::Data(bytes) => self.on_data(host, port, bytes),
                SocketEvent::PeerClosed => self.on_peer_closed(host, port),
                SocketEvent::Failed(error) => self.on_failed(host, port, error),
                SocketEvent::Accepted | SocketEvent::Closed => {}
            }
        }
        if outcome.timer_moved {
            self.file_client_timer(host, port);
        }
    }

    pub(super) fn conn_id(&mut self, host: u32, port: u16) -> Option<ConnId> {
        let host = self.hosts.get(host);
        let local = Endpoint::new(host.to.saddr, port);
        host.client
            .find(local, Endpoint::new(host.to.daddr, host.to.dport))
    }

    pub(super) fn file_client_timer(&mut self, host: u32, port: u16) {
        let turn = self.queue.turn();
        self.file_client_timer_in(turn, host, port);
    }

    /// The same with the turn that it had.
    pub(super) fn file_client_timer_in(&mut self, turn: Turn, host: u32, port: u16) {
        let Some(id) = self.conn_id(host, port) else {
            self.forget_conn(host, port);
            return;
        };
        let client = &self.hosts.get(host).client;
        let Some(tick) = client.timer(self.now, id) else {
            return;
        };
        let at = client.stack().clock.instant(tick).max(self.now);
        let conn = self.conns.get_or_insert(host, port, ConnState::IDLE);
        if at < conn.filed.0 {
            conn.filed = (at, turn);
            let timer = Event::ClientTimer(host, port, turn);
            self.queue.at_turn(at, turn, timer);
        }
    }

    /// The socket is gone. What is remembered of the port serves traces only.
    pub(super) fn forget_conn(&mut self, host: u32, port: u16) {
        if self.observer.options().requests_max > 0 || self.observer.stories.wanted() {
            return;
        }
        let conn = self.conns.get(host, port);
        if conn.is_some_and(|conn| conn.request == ConnState::IDLE) {
            self.conns.remove(host, port);
        }
    }

    pub(super) fn on_client_timer(&mut self, host: u32, port: u16, turn: Turn) {
        match self.conns.get_mut(host, port) {
            Some(conn) if conn.filed.1 == turn => conn.filed = ConnState::NOT_FILED,
            // Filed for an earlier use of the port.
            _ => return,
        }
        let Some(id) = self.conn_id(host, port) else {
            return;
        };
        let mut outcome = self.hosts.get(host).client.on_timer(self.now, id);
        // A timer that was filed too early is filed again.
        outcome.timer_moved = true;
        self.client_did(host, port, &outcome);
    }

    pub(super) fn at_client(&mut self, segment: &Segment) {
        if segment.tuple.proto == Proto::Udp {
            return self.datagram_at_client(segment);
        }
        self.touch(segment.tuple.dst);
        let Some(host) = self.hosts.of(segment.tuple.dst.ip, segment.tuple.src) else {
            return;
        };
        let (found, outcome) = self.hosts.get(host).client.on_segment(self.now, segment);
        let port = segment.tuple.dst.port;
        if found.is_none()
            && self.direct.is_none()
            && segment.tuple.src != self.hosts.called(host)
            && let Some((_, request)) = self.request_of(host, port)
        {
            request.trouble = Some(Cause::AnswerPastNode);
            let from = segment.tuple.src;
            self.tell(host, port, What::PastNode { from });
        }
        self.client_did(host, port, &outcome);
    }

    pub(super) fn icmp_at_client(&mut self, error: &IcmpError) {
        if error.about.proto == Proto::Udp {
            return self.icmp_at_datagram_socket(error);
        }
        self.touch(error.about.src);
        let Some(host) = self.hosts.of(error.about.src.ip, error.about.dst) else {
            return;
        };
        let port = error.about.src.port;
        let owned = self.holds_socket(host, port);
        let client = &mut self.hosts.get(host).client;
        let (_, outcome) = client.on_icmp(self.now, error, owned);
        self.client_did(host, port, &outcome);
    }

    /// Whether an ICMP error finds connect() at work on the socket: it is about the first SYN, the client is on the
    /// node's machine (itself, or a namespace on it) and the kernel does not put the error off.
    fn holds_socket(&mut self, host: u32, port: u16) -> bool {
        let kind = usize::from(self.hosts.get(host).kind);
        if self.scenario.client[kind].location == Location::Remote {
            return false;
        }
        let id = self.conn_id(host, port);
        let client = &self.hosts.get(host).client;
        let first_syn = id
            .and_then(|id| client.socket(id))
            .is_some_and(|socket| socket.state() == State::SynSent && socket.retransmits() == 0);
        first_syn && !client.stack().kernel.has(Gate::IcmpAfterConnect)
    }

    fn request_of(&mut self, host: u32, port: u16) -> Option<(u32, &mut Request)> {
        let slot = self.conns.get(host, port)?.request;
        self.requests.get_mut(slot).map(|request| (slot, request))
    }

    fn on_connected(&mut self, host: u32, port: u16) {
        let now = self.now;
        let Some((_, request)) = self.request_of(host, port) else {
            return;
        };
        request.connected = Some(now);
        self.tell(host, port, What::Connected);
        self.ask(host, port);
    }

    /// Sends the request's bytes.
    fn ask(&mut self, host: u32, port: u16) {
        let Some(id) = self.conn_id(host, port) else {
            return;
        };
        let now = self.now;
        let client = self.hosts.get(host);
        let bytes = self.manners[usize::from(client.kind)].request_bytes;
        let outcome = client.client.send(now, id, bytes);
        self.client_did(host, port, &outcome);
    }

    fn on_data(&mut self, host: u32, port: u16, bytes: u32) {
        let kind = usize::from(self.hosts.get(host).kind);
        let manners = self.manners[kind];
        let Some((slot, request)) = self.request_of(host, port) else {
            return;
        };
        request.received += bytes;
        if request.received < manners.response_bytes {
            return;
        }
        let (left, wrong) = (request.left, request.wrong_service);
        let server = request.server;
        self.end(
            slot,
            if wrong {
                Outcome::WrongService
            } else {
                Outcome::Answered
            },
        );
        if left > 0 {
            self.hosts.get(host).idle.push((port, left - 1, server));
        } else if manners.closes_first == Side::Client {
            self.close_client(host, port);
        }
    }

    fn on_peer_closed(&mut self, host: u32, port: u16) {
        let waiting = self.request_of(host, port).map(|(slot, _)| slot);
        self.hosts.get(host).idle.retain(|(idle, ..)| *idle != port);
        self.close_client(host, port);
        if let Some(slot) = waiting {
            self.end(slot, Outcome::Reset);
        }
    }

    fn on_failed(&mut self, host: u32, port: u16, error: ConnError) {
        self.hosts.get(host).idle.retain(|(idle, ..)| *idle != port);
        let Some((slot, request)) = self.request_of(host, port) else {
            return;
        };
        let outcome = match (error, request.connected) {
            (ConnError::Refused, None) => Outcome::Refused,
            (ConnError::HostUnreachable | ConnError::NetUnreachable, _) => Outcome::HostUnreachable,
            (ConnError::TimedOut, None) => Outcome::ConnectTimeout,
            (ConnError::TimedOut, Some(_)) => Outcome::ResponseTimeout,
            _ => Outcome::Reset,
        };
        self.end(slot, outcome);
    }

    fn close_client(&mut self, host: u32, port: u16) {
        let Some(id) = self.conn_id(host, port) else {
            return;
        };
        let outcome = self.hosts.get(host).client.close(self.now, id, false);
        self.client_did(host, port, &outcome);
    }

    // The node.

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
    fn tell(&mut self, host: u32, port: u16, what: What) {
        if !self.observer.stories.wanted() {
            return;
        }
        if let Some((_, request)) = self.request_of(host, port) {
            let number = request.number;
            self.observer.stories.tell(number, self.now, what);
        }
    }

    /// Something happens to the request of a packet on its way to a pod, if stories are kept.
    fn tell_at_pod(&mut self, segment: &Segment, what: What) {
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

    // The pods.

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
    fn original_of(&mut self, at_pod: Tuple) -> Option<Tuple> {
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
