//! The clients: their sockets, and what their applications do.

use ipvs_model::kernel::Gate;
use ipvs_model::segment::{Endpoint, IcmpError, Proto, Segment};
use ipvs_model::tcp::client::ConnId;
use ipvs_model::tcp::socket::{ConnError, Event as SocketEvent, Outcome as TcpOutcome};
use ipvs_model::tcp::state::State;

use super::load::{ConnState, Request};
use super::queue::Turn;
use super::story::What;
use super::world::{Event, Leg, World};
use crate::outcome::{Cause, Outcome};
use crate::scenario::{Location, Side};

impl World<'_> {
    pub(super) fn client_did(&mut self, host: u32, port: u16, outcome: &TcpOutcome) {
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

    fn file_client_timer(&mut self, host: u32, port: u16) {
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

    pub(super) fn request_of(&mut self, host: u32, port: u16) -> Option<(u32, &mut Request)> {
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
    pub(super) fn ask(&mut self, host: u32, port: u16) {
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

    pub(super) fn close_client(&mut self, host: u32, port: u16) {
        let Some(id) = self.conn_id(host, port) else {
            return;
        };
        let outcome = self.hosts.get(host).client.close(self.now, id, false);
        self.client_did(host, port, &outcome);
    }
}
