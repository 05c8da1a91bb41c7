//! Clients and servers of a UDP service: a datagram asks, a datagram answers.
//!
//! A datagram carries in `seq`, `ack` and `window` what stands in the payload of a real one: the request's slot, its
//! tenant's number (as a DNS identifier) and the number of the try. No rule of the node looks at them.

use ipvs_model::index::PortMap;
use ipvs_model::segment::{Endpoint, Flags, IcmpError, IcmpKind, Proto, Segment, Tuple};
use ipvs_model::time::Instant;
use ipvs_model::udp::UdpPorts;
use rand::rngs::ChaCha8Rng;

use super::load::Request;
use super::queue::Lane;
use super::streams::{Purpose, Streams, draw};
use super::world::{Event, Leg, Way, World};
use crate::outcome::{Cause, Outcome};
use crate::scenario::{PortChoice, RetryPort, Scenario};

/// The sockets of a client host.
#[derive(Debug)]
struct Sockets {
    ports: UdpPorts,
    /// Sockets that stay open; empty for one a request.
    kept: Vec<u16>,
    next: usize,
    /// Sockets of a request each, with the number of its datagrams that may still be answered there.
    own: PortMap<u32>,
    rng: ChaCha8Rng,
}

impl Sockets {
    fn open(&mut self) -> Option<u16> {
        if let Some(port) = self.kept.get(self.next % self.kept.len().max(1)) {
            self.next += 1;
            return Some(*port);
        }
        let port = self.ports.draw(&mut self.rng)?;
        self.own.get_or_insert(port, 0);
        Some(port)
    }

    fn close(&mut self, port: u16) {
        if self.own.remove(port).is_some() {
            self.ports.close(port);
        }
    }
}

/// What a request has sent.
#[derive(Clone, Copy, Debug)]
struct Tries {
    /// Datagrams sent.
    sent: u16,
    /// When the latest went out.
    at: Instant,
    /// Where it went.
    to: Endpoint,
}

/// The UDP side of a run.
#[derive(Debug)]
pub struct Datagrams {
    hosts: Vec<Sockets>,
    /// By the request's slot.
    tries: Vec<Tries>,
    /// The time to a repetition, for each kind of client.
    lanes: Vec<Lane>,
}

impl Datagrams {
    /// The sockets of a scenario's clients; `None` if its service speaks TCP.
    pub fn new(
        scenario: &Scenario,
        queue: &mut super::queue::Queue<Event>,
        streams: Streams,
    ) -> Option<Self> {
        if scenario.service.protocol != Proto::Udp {
            return None;
        }
        let mut hosts = Vec::new();
        let mut lanes = Vec::new();
        for table in &scenario.client {
            lanes.push(queue.lane(table.udp.retry_after));
            for _ in 0..table.count {
                let rng = streams.stream(Purpose::ClientPorts, hosts.len() as u32);
                let mut sockets = Sockets {
                    ports: UdpPorts::new(table.tcp().local_ports),
                    kept: Vec::new(),
                    next: 0,
                    own: PortMap::default(),
                    rng,
                };
                match &table.port_choice {
                    PortChoice::Fixed(ports) => {
                        for port in ports {
                            sockets.ports.bind(*port);
                        }
                        sockets.kept.clone_from(ports);
                    }
                    PortChoice::Pool(size) => {
                        sockets.kept = (0..*size)
                            .map_while(|_| sockets.ports.draw(&mut sockets.rng))
                            .collect();
                    }
                    PortChoice::Connect | PortChoice::Bind => {}
                }
                hosts.push(sockets);
            }
        }
        Some(Self {
            hosts,
            tries: Vec::new(),
            lanes,
        })
    }

    /// A request's socket is closed, if it is its own.
    pub fn close(&mut self, host: u32, port: u16) {
        self.hosts[host as usize].close(port);
    }

    fn begin(&mut self, slot: u32, now: Instant, to: Endpoint) {
        let (slot, fresh) = (
            slot as usize,
            Tries {
                sent: 0,
                at: now,
                to,
            },
        );
        if self.tries.len() <= slot {
            self.tries.resize(slot + 1, fresh);
        }
        self.tries[slot] = fresh;
    }
}

impl World<'_> {
    /// A request starts: its first datagram leaves. False if no port is free.
    pub(super) fn begin_datagram(&mut self, mut request: Request) -> bool {
        let host = request.host;
        let Some(udp) = &mut self.udp else {
            return false;
        };
        let sockets = &mut udp.hosts[host as usize];
        let Some(port) = sockets.open() else {
            return false;
        };
        let own = sockets.kept.is_empty();
        (request.port, request.opened) = (port, true);
        if own {
            self.observer.connection();
        }
        let (slot, serial) = self.enter(request);
        if let Some(udp) = &mut self.udp {
            udp.begin(slot, self.now, self.key.addr);
        }
        self.send_datagram(slot, serial);
        true
    }

    /// Sends the datagram of a request, and files its repetition.
    fn send_datagram(&mut self, slot: u32, serial: u64) {
        let Some(request) = self.requests.tenant(slot, serial) else {
            return;
        };
        let (host, port, kind) = (request.host, request.port, usize::from(request.kind));
        // Where clients call pods, each datagram looks for one anew, as an unconnected socket's.
        let to = match &mut self.direct {
            None => self.hosts.called(host),
            Some(direct) => match direct.choose(self.now, host) {
                Some(pod) => pod,
                None => {
                    request.trouble = Some(Cause::NoDestination);
                    return self.end(slot, Outcome::HostUnreachable);
                }
            },
        };
        let Some(udp) = &mut self.udp else { return };
        let tries = &mut udp.tries[slot as usize];
        (tries.sent, tries.at, tries.to) = (tries.sent + 1, self.now, to);
        let number = tries.sent;
        let again = u32::from(number) <= self.scenario.client[kind].udp.retries;
        if again {
            let lane = udp.lanes[kind];
            self.queue.send(self.now, lane, Event::Resend(slot, serial));
        }
        let local = Endpoint::new(self.hosts.get(host).address(), port);
        let tuple = Tuple {
            proto: Proto::Udp,
            src: local,
            dst: to,
        };
        let mut segment = Segment::new(tuple, Flags::default());
        (segment.seq, segment.ack, segment.window) = (slot, serial as u32, number);
        segment.len = self.manners[kind].request_bytes as u16;
        self.travel(Leg::ClientNode, Event::AtNode(segment));
    }

    /// No answer in time: the datagram is sent again.
    pub(super) fn resend(&mut self, slot: u32, serial: u64) {
        let Some(request) = self.requests.tenant(slot, serial) else {
            return;
        };
        let (host, port, kind) = (request.host, request.port, usize::from(request.kind));
        if self.scenario.client[kind].udp.retry_port == RetryPort::New {
            let Some(udp) = &mut self.udp else { return };
            let sockets = &mut udp.hosts[host as usize];
            sockets.close(port);
            let Some(fresh) = sockets.open() else {
                return;
            };
            if let Some(request) = self.requests.get_mut(slot) {
                request.port = fresh;
            }
            self.conns.get_or_insert(host, fresh, slot).request = slot;
        }
        self.send_datagram(slot, serial);
    }

    /// The request that a datagram asks for or answers, if it is still open and its socket is this one.
    pub(super) fn request_of_datagram(
        &mut self,
        segment: &Segment,
        port: u16,
    ) -> Option<&mut Request> {
        let (slot, serial) = (segment.seq, segment.ack);
        let request = self.requests.get_mut(slot)?;
        (request.serial as u32 == serial && request.port == port).then_some(request)
    }

    /// A datagram reaches a client host.
    pub(super) fn datagram_at_client(&mut self, segment: &Segment) {
        let (from, now, slot) = (segment.tuple.src, self.now, segment.seq);
        let tries = self.udp.as_ref().map(|udp| &udp.tries);
        let direct = self.direct.is_some();
        let Some(Tries { at, to, .. }) = tries.and_then(|all| all.get(slot as usize)).copied()
        else {
            return;
        };
        let Some(request) = self.request_of_datagram(segment, segment.tuple.dst.port) else {
            return;
        };
        if from != to && !direct {
            request.trouble = Some(Cause::AnswerPastNode);
            return;
        }
        // The application saw a delay if this is not the answer to the first datagram.
        let start = request.start;
        let sent = if segment.window <= 1 {
            start
        } else {
            at.min(now)
        };
        if let Some(request) = self.requests.get_mut(slot) {
            request.connected = Some(sent);
        }
        self.end(slot, Outcome::Answered);
    }

    /// An ICMP error reaches a client host: a connected socket fails.
    pub(super) fn icmp_at_datagram_socket(&mut self, error: &IcmpError) {
        let Some(host) = self.hosts.at(error.about.src.ip) else {
            return;
        };
        let kind = usize::from(self.hosts.get(host).kind);
        if !self.scenario.client[kind].udp.connected {
            return;
        }
        let outcome = match error.kind {
            IcmpKind::PortUnreachable => Outcome::Refused,
            _ => Outcome::HostUnreachable,
        };
        // The error names no payload: the socket's latest request gets it.
        let Some(conn) = self.conns.get(host, error.about.src.port) else {
            return;
        };
        let slot = conn.request;
        if self.requests.get_mut(slot).is_some() {
            self.end(slot, outcome);
        }
    }

    /// A datagram reaches a pod that has its address.
    pub(super) fn datagram_at_pod(&mut self, place: u32, segment: &Segment) {
        let host = self.pods.get(place);
        if host.pod.is_none() || host.exited.is_some() || host.draining {
            return self.icmp_from_network(IcmpKind::PortUnreachable, segment.tuple);
        }
        let kind = self.kind_of(segment.tuple.src.ip);
        let mut answer = *segment;
        answer.tuple = segment.tuple.reversed();
        answer.len = self.manners[kind].response_bytes as u16;
        let event = Event::Datagram(answer);
        match self.service {
            Way::Lane(lane) => self.queue.send(self.now, lane, event),
            Way::Random(dist) => {
                let delay = draw(&mut self.service_rng, &dist);
                self.queue.at(self.now + delay, event);
            }
        }
    }

    /// A pod's answer is ready.
    pub(super) fn datagram_from_pod(&mut self, segment: Segment) {
        let Some(place) = self.pods.at(segment.tuple.src.ip) else {
            return;
        };
        if self.pods.get(place).exited.is_none() {
            self.pod_sends(place, segment);
        }
    }

    /// Another workload has the address and the port.
    pub(super) fn datagram_at_stranger(&mut self, segment: &Segment) {
        let client = self.client_of(segment.tuple);
        let slot = segment.seq;
        if let Some(request) = self.request_of_datagram(segment, client.port) {
            request.wrong_service = true;
            request.trouble = Some(Cause::AddressReassigned);
            self.end(slot, Outcome::WrongService);
        }
    }
}
