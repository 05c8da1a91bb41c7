//! The quiet path: a connection that meets nothing on its way is taken to its end at once.
//!
//! Port, entry, real server and NAT of a connection are always decided by the model's rules. If it goes to a pod that serves,
//! and nothing can happen to it before its last packet has arrived, then all packets after the SYN are known: they are
//! those of a connection alike. That one was played, packet by packet, in a small world of its own ([`Healthy::learn`]); a
//! second one, whose first SYN is lost, likewise. What it left in the tables is moved to the new connection's addresses,
//! sequence numbers and moments.
//!
//! A request of which all this can be expected when it begins goes the shortest way ([`direct`]): it never has a socket, and
//! where no table knows its port not even a SYN. Others are taken up when their SYN has passed the node.
//!
//! Declined, and so left to the packet path, is every connection
//! - during which a control event, a scan of conntrack or the end of the run falls (`World::next_control`);
//! - whose port or pod still has packets, sockets (other than in TIME_WAIT) or an application's work from an earlier use;
//! - that is near a limit: table, TIME_WAIT sockets;
//! - of a scenario in which the way of a connection is random, or depends on other connections (see [`permits`]).
//!
//! `tests/quiet.rs` holds the proof: counts, requests, samples and tables are those of the packet path, to the bit.

mod direct;
mod left;
mod lesson;
mod passing;

use std::cmp::Reverse;

use direct::Direct;
use ipvs_model::conntrack::{self, CtRule};
use ipvs_model::ipvs::state::State as EntryState;
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::kernel::Gate;
use ipvs_model::node::{Decision, Foreseen, Node, Verdict};
use ipvs_model::segment::{Endpoint, Proto, Segment};
use ipvs_model::sysctl::TcpSysctls;
use ipvs_model::tcp::foreseen::{Begin, Rest};
use ipvs_model::tcp::server::Phase;
use ipvs_model::tcp::socket::Socket;
use ipvs_model::tcp::state::State;
use ipvs_model::time::{Instant, Jiffies, NANOS_PER_SEC, Span};
use left::LeftBy;

use super::hosts::{Hosts, Peer, Pods};
use super::queue::{Lane, Queue};
use super::world::{Event, Leg, World};
use crate::outcome::{DELAYED_AFTER, Outcome};
use crate::scenario::{
    Arrivals, Client as ClientTable, DataPlane, Dist, LoadBalancer, Location, Masquerade,
    PortChoice, ReturnPath, Scenario, Scheduler,
};

/// So far from a limit the quiet path keeps; more connections than this are not on it at once.
const MARGIN: u32 = 4096;
/// So long a packet waits at most for a neighbour who is not there: three seconds of search, with room.
pub(super) const WAITS_FOR_NEIGHBOUR: Span = Span::from_secs(10);
/// A socket in TIME_WAIT lives for 60 s, and its timer is late by less than a seventh.
const FORGOTTEN: Span = Span::from_secs(70);

/// Where a connection leaves the client or the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resting {
    /// From the SYN at the node until the socket is in TIME_WAIT.
    after: Span,
    rest: Rest,
}

/// What the client's socket comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientEnd {
    Rests(Resting),
    /// It closes so long after the SYN was at the node, and its port is free.
    Closes(Span),
}

/// A healthy connection: everything after its SYN has passed the node. Times count from there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Healthy {
    /// Packets at the node that still move the entry's timer, with its state after each.
    steps: Vec<(Span, EntryState)>,
    /// All packets at the node after the SYN.
    packets: u64,
    /// The last of them.
    last: Span,
    ct: conntrack::Foreseen,
    /// When connect() succeeds.
    connected: Span,
    /// When the answer is complete.
    answered: Span,
    client: ClientEnd,
    /// Whether connect() may take the client's socket over while it rests.
    taken_over: bool,
    pod: Option<(Resting, Peer)>,
    /// When nothing more happens.
    over: Span,
}

impl Healthy {
    /// Whether both leave the same at the pod, and the client has its answer as soon.
    fn ends_like(&self, other: &Self) -> bool {
        (self.pod, self.answered, self.taken_over) == (other.pod, other.answered, other.taken_over)
    }

    /// What it leaves in the node's tables.
    fn foreseen(&self) -> Foreseen<'_> {
        Foreseen {
            steps: &self.steps,
            ct: &self.ct,
            last: self.last,
        }
    }
}

/// A kind of client with its healthy connection.
#[derive(Debug)]
struct Kind {
    healthy: Healthy,
    /// The same for one whose first SYN was lost, and that goes on from the second.
    resent: Option<Healthy>,
    /// Whether its requests may go the shortest way: see [`direct`].
    direct: bool,
    /// Until the answer leaves the node.
    answer: Lane,
    /// From the answer at the client until the last packet leaves the node, if the client's socket closes.
    farewell: Option<Lane>,
}

/// The quiet path of a run.
#[derive(Debug)]
pub(super) struct Quiet {
    kinds: Vec<Option<Kind>>,
    client_node: Span,
    node_pod: Span,
    /// A port is settled so long after its last packet on the packet path was anywhere: an answer may be on its way.
    settles: Span,
    /// For each host and port, until when packets of the packet path may come to it, in units of 2^20 ns; 0 for none ever.
    touched: Vec<Vec<u32>>,
    /// Nothing is quiet before.
    from: Instant,
    /// Connections on the path.
    open: u32,
    /// The end of the load.
    end: Instant,
    /// The next scan of conntrack: the tick as it is known, and its moment.
    gc: (Jiffies, Instant),
    /// Whether what ends at the moment of an arrival comes before it.
    ends_first: bool,
    /// So long after a SYN nobody remembers anything of a connection at its pod.
    forgotten: Span,
    direct: Direct,
    left: LeftBy,
}

/// Where sockets in TIME_WAIT can never come near their limit.
struct Room {
    /// At the clients, each of whose ports has one.
    at_clients: bool,
    /// At a pod that has one for every port of every client.
    at_pods: bool,
}

impl Room {
    fn of(scenario: &Scenario, hosts: &Hosts) -> Self {
        let ports = || {
            let ranges = hosts.port_ranges();
            ranges.map(|(_, (low, high))| u64::from(high.saturating_sub(low)) + 1)
        };
        let fits = |ports: u64, most: u32| ports + u64::from(MARGIN) < u64::from(most);
        let of_clients = scenario.client.iter();
        let of_clients = of_clients.map(|table| table.tcp().max_tw_buckets);
        let of_pods = TcpSysctls::of(scenario.server.behaviours()).max_tw_buckets;
        Self {
            at_clients: fits(ports().max().unwrap_or(0), of_clients.min().unwrap_or(0)),
            at_pods: fits(ports().sum(), of_pods),
        }
    }
}

const fn constant(dist: &Dist) -> Option<Span> {
    match dist {
        Dist::Constant(span) => Some(*span),
        _ => None,
    }
}

/// Whether connections of a scenario can be alike at all: all delays are constant; where a connection goes does not
/// depend on how far others have got.
fn permits(scenario: &Scenario) -> Option<(Span, Span, Span)> {
    let proxy = &scenario.kube_proxy;
    let blind = matches!(
        proxy.scheduler,
        Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Mh
    );
    let ordinary = scenario.node.mode == DataPlane::Ipvs
        && scenario.service.protocol == Proto::Tcp
        && proxy.masquerade == Masquerade::None
        && scenario.network.return_path == ReturnPath::Node
        && scenario.service.session_affinity.is_none()
        && scenario.load_balancer == LoadBalancer::None
        && scenario.node.behaviours().has(Gate::ConntrackGc);
    if !blind || !ordinary {
        return None;
    }
    Some((
        constant(&scenario.network.client_node)?,
        constant(&scenario.network.node_pod)?,
        constant(&scenario.server.service_time)?,
    ))
}

/// Whether the connections of a table can be quiet. Two events of one nanosecond have an order, that of their scheduling;
/// what could tie with the end of a quiet connection in another order than on the packet path is declined here.
fn permits_table(scenario: &Scenario, table: &ClientTable, ways: [Span; 3]) -> bool {
    let constant_tables = scenario
        .client
        .iter()
        .filter(|table| !matches!(table.arrivals, Arrivals::Poisson(_)));
    let apart = match table.arrivals {
        Arrivals::Constant(rate) => {
            let gap = NANOS_PER_SEC as f64 / rate.rate;
            let ties = |way: &Span| (gap - way.0 as f64).abs() < 2.0;
            rate.rate >= 1.0 && rate.rate < 1e8 && !ways.iter().any(ties)
        }
        Arrivals::Poisson(rate) => rate.rate >= 1.0,
        Arrivals::Closed(_) => false,
    };
    apart
        && constant_tables.count() <= 1
        && table.requests_per_connection == 1
        && table.port_choice == PortChoice::Connect
        && table.location == Location::Remote
}

impl Quiet {
    /// The quiet path of a scenario; `None` if no connection can be quiet.
    pub(super) fn new(
        scenario: &Scenario,
        seed: u64,
        (node, hosts): (&Node, &Hosts),
        queue: &mut Queue<Event>,
    ) -> Option<Box<Self>> {
        let (client_node, node_pod, service) = permits(scenario)?;
        let ways = [client_node, node_pod, service];
        let room = Room::of(scenario, hosts);
        let kinds: Vec<_> = scenario
            .client
            .iter()
            .enumerate()
            .map(|(kind, table)| {
                let healthy = permits_table(scenario, table, ways)
                    .then(|| Healthy::known(scenario, kind, seed, ways, false))??;
                let resent = Healthy::known(scenario, kind, seed, ways, true)
                    .filter(|resent| resent.ends_like(&healthy));
                let answer = queue.lane(Span(healthy.answered.0.checked_sub(client_node.0)?));
                let farewell = match healthy.client {
                    ClientEnd::Rests(_) => None,
                    ClientEnd::Closes(after) => {
                        let way = after
                            .0
                            .checked_sub(healthy.answered.0)?
                            .checked_sub(client_node.0)?;
                        Some(queue.lane(Span(way)))
                    }
                };
                let rests_here = matches!(healthy.client, ClientEnd::Rests(_));
                let rests_there = healthy.pod.is_some();
                Some(Kind {
                    direct: (room.at_clients || !rests_here)
                        && (room.at_pods || !rests_there)
                        && !healthy.taken_over
                        && client_node + healthy.connected <= DELAYED_AFTER,
                    healthy,
                    resent,
                    answer,
                    farewell,
                })
            })
            .collect();
        let over = kinds.iter().flatten().map(|kind| kind.healthy.over);
        let over = over.max()?;
        let gaps = scenario
            .client
            .iter()
            .filter_map(|table| match table.arrivals {
                Arrivals::Constant(rate) => Some(NANOS_PER_SEC as f64 / rate.rate),
                _ => None,
            });
        let ends_first = gaps.fold(f64::MAX, f64::min) < client_node.0 as f64;
        let lessons = kinds.iter().flatten();
        let lessons = lessons.flat_map(|kind| [Some(&kind.healthy), kind.resent.as_ref()]);
        let forgetting = lessons
            .flatten()
            .map(|healthy| node.forgetting(&healthy.foreseen()));
        let kept = forgetting.clone().map(|known| known.shortest()).min()?;
        let forgotten_at_node = forgetting.map(|known| known.longest()).max()?;
        let count = kinds.len();
        kinds.iter().any(Option::is_some).then(|| {
            Box::new(Self {
                kinds,
                end: Instant::ZERO + scenario.duration,
                gc: (Jiffies::NEVER, Instant::NEVER),
                ends_first,
                forgotten: FORGOTTEN + over,
                direct: Direct::new(count),
                left: LeftBy::new(node, hosts, kept, forgotten_at_node),
                client_node,
                node_pod,
                settles: service + client_node + client_node + node_pod + node_pod,
                touched: Vec::new(),
                from: Instant::ZERO,
                open: 0,
            })
        })
    }

    const fn stamp(at: Instant) -> u32 {
        (at.0 >> 20) as u32 + 1
    }

    fn touch(&mut self, host: u32, port: u16, until: Instant) {
        let host = host as usize;
        if self.touched.len() <= host {
            self.touched.resize_with(host + 1, Vec::new);
        }
        let ports = &mut self.touched[host];
        if ports.len() <= usize::from(port) {
            ports.resize(usize::from(port) + 1, 0);
        }
        let busy = &mut ports[usize::from(port)];
        *busy = Self::stamp(until).max(*busy);
    }

    /// Whether conntrack's next scan comes after a moment.
    fn scan_is_after(&mut self, node: &Node, at: Instant) -> bool {
        let next = node.ct.next_gc();
        if self.gc.0 != next {
            self.gc = (next, node.ipvs.clock().instant(next));
        }
        at < self.gc.1
    }

    /// Until when packets of the packet path may come to a port, in units of [`Quiet::stamp`]; 0 for none since its last quiet
    /// connection.
    fn touched(&self, host: u32, port: u16) -> u32 {
        let touched = self.touched.get(host as usize);
        touched
            .and_then(|ports| ports.get(usize::from(port)))
            .copied()
            .unwrap_or(0)
    }

    /// Nothing of a port's packets is left anywhere.
    fn untouch(&mut self, host: u32, port: u16) {
        if let Some(ports) = self.touched.get_mut(host as usize)
            && let Some(at) = ports.get_mut(usize::from(port))
        {
            *at = 0;
        }
    }

    fn settled(&self, host: u32, port: u16, now: Instant) -> bool {
        Self::stamp(now) > self.touched(host, port)
    }
}

impl World<'_> {
    /// Files an event of the control plane, or of whoever looks at the tables.
    pub(super) fn control_at(&mut self, when: Instant, event: Event) {
        self.controls.push(Reverse(when));
        self.queue.at(when, event);
    }

    /// The next moment at which the control plane acts or somebody looks; now, if that is now.
    fn next_control(&mut self) -> Instant {
        while let Some(Reverse(at)) = self.controls.peek() {
            if *at >= self.now {
                return *at;
            }
            self.controls.pop();
        }
        Instant::NEVER
    }

    /// A process ends or stops to listen: what it sends last may meet any connection.
    pub(super) fn no_quiet_for_now(&mut self) {
        if let Some(quiet) = &mut self.quiet {
            quiet.from = self.now + quiet.settles;
        }
    }

    /// A packet of a client's port is on the packet path.
    pub(super) fn touch(&mut self, client: Endpoint) {
        self.touch_for(client, Span::ZERO);
    }

    /// The same of a packet that may wait so long before it goes on.
    pub(super) fn touch_for(&mut self, client: Endpoint, waits: Span) {
        if let Some(quiet) = &mut self.quiet
            && let Some(host) = self.hosts.at(client.ip)
        {
            let until = self.now + waits + quiet.settles;
            quiet.touch(host, client.port, until);
        }
    }

    /// Takes the connection whose first SYN the node has just forwarded to its end, if nothing can come in its way.
    pub(super) fn goes_quietly(&mut self, segment: &Segment, decision: &Decision) -> bool {
        let Some(mut quiet) = self.quiet.take() else {
            return false;
        };
        let taken = self.take_quietly(&mut quiet, segment, decision).is_some();
        self.quiet = Some(quiet);
        taken
    }

    fn take_quietly(
        &mut self,
        quiet: &mut Quiet,
        segment: &Segment,
        decision: &Decision,
    ) -> Option<()> {
        let now = self.now;
        let peer = segment.tuple.src;
        if quiet.open >= MARGIN || now < quiet.from {
            return None;
        }
        let (entry, ct, out) = self.forwarded_quietly(segment, decision)?;
        let number = self.hosts.at(peer.ip)?;
        let host = self.hosts.get(number);
        let kind = quiet.kinds[usize::from(host.kind)].as_ref()?;
        let healthy = &kind.healthy;
        let over = now + healthy.over;
        let end = Instant::ZERO + self.scenario.duration;
        if over >= end || !quiet.settled(number, peer.port, now) || self.next_control() <= over {
            return None;
        }
        // The client: its first SYN, sent when the request began.
        let slot = self.conns.get(number, peer.port)?.request;
        let request = self.requests.get_mut(slot)?;
        if !request.opened || request.start + quiet.client_node != now {
            return None;
        }
        let client = &mut self.hosts.get(number).client;
        let id = client.find(peer, segment.tuple.dst)?;
        let socket = client.socket(id)?;
        let own = Begin::of(socket);
        let tw_max = client.stack().sysctls.max_tw_buckets;
        if socket.state() != State::SynSent
            || socket.retransmits() != 0
            || own.isn != segment.seq
            || client.time_waits().saturating_add(MARGIN) >= tw_max
        {
            return None;
        }
        // The node.
        let clock = *self.node.ipvs.clock();
        let ct_max = self.node.config().sysctls.ct.max;
        if self.node.ct.next_gc() <= clock.jiffies(over)
            || self.node.ct.count().saturating_add(MARGIN) >= ct_max
        {
            return None;
        }
        // The pod.
        let place = self.pods.at(out.tuple.dst.ip)?;
        let rests = healthy.pod.is_some();
        let theirs = self
            .pods
            .expect_quiet(place, now + quiet.node_pod, &out, rests, None)?;

        // Nothing is in the way.
        let request = self.requests.get_mut(slot)?;
        request.connected = Some(now + healthy.connected);
        self.foresee_at_node(healthy, entry, ct, [own.isn, theirs.isn]);
        let age = quiet.client_node + quiet.node_pod;
        if let ClientEnd::Rests(resting) = &healthy.client {
            let client = &mut self.hosts.get(number).client;
            client.foresee_rest(now + resting.after, id, &resting.rest, theirs, age);
        }
        if let Some((resting, known)) = &healthy.pod {
            let at = now + resting.after;
            let fires =
                self.pods
                    .rest_quietly(place, peer, at, (&resting.rest, own, theirs), *known, age);
            if let Some(fires) = fires {
                self.queue.at(fires, Event::PodTimer(place, peer));
            }
        }
        self.queue.send(now, kind.answer, Event::QuietAnswer(slot));
        self.note_packets(healthy.packets);
        quiet.open += 1;
        Some(())
    }

    /// What a SYN was forwarded by, if the node did with it what it does with the SYN of a healthy connection: IPVS entry,
    /// conntrack entry, and the packet as it left.
    fn forwarded_quietly(
        &self,
        segment: &Segment,
        decision: &Decision,
    ) -> Option<(EntryId, u32, Segment)> {
        let (Verdict::Forward(out), Some(entry)) = (decision.verdict, decision.entry) else {
            return None;
        };
        let fresh = matches!(decision.ct, Some(CtRule::NewSyn | CtRule::Reopened));
        let table = self.node.ipvs.table().get(entry);
        let plain = table.state() == EntryState::Sr && !table.is_controlled();
        let gone = self.dead_ends.place(out.tuple.dst.ip).is_some();
        if !fresh
            || out.tuple.src != segment.tuple.src
            || !plain
            || !table.keeps_conntrack()
            || gone
        {
            return None;
        }
        let ct = self.node.ct.latest_fresh(&segment.tuple)?;
        Some((entry, ct, out))
    }

    /// Leaves in the node's tables what the packets of a healthy connection will leave whose SYN has just passed.
    fn foresee_at_node(&mut self, healthy: &Healthy, entry: EntryId, ct: u32, isns: [u32; 2]) {
        let now = self.now;
        let steps = healthy.steps.iter();
        self.node
            .ipvs
            .foresee(entry, steps.map(|(after, state)| (now + *after, *state)));
        let last = self.node.ipvs.clock().jiffies(now + healthy.last);
        self.node.ct.foresee(ct, &healthy.ct, isns, last);
    }

    /// The control plane acts.
    pub(super) fn quiet_looks_again(&mut self) {
        if let Some(quiet) = &mut self.quiet {
            quiet.direct.look_again();
        }
    }

    /// The answer of a quiet connection leaves the node.
    pub(super) fn quiet_answer(&mut self, slot: u32) {
        self.travel(Leg::ClientNode, Event::QuietEnd(slot));
    }

    /// The answer of a quiet connection is complete.
    pub(super) fn quiet_end(&mut self, slot: u32) {
        let Some(request) = self.requests.get_mut(slot) else {
            return;
        };
        let (host, port, kind) = (request.host, request.port, usize::from(request.kind));
        self.end(slot, Outcome::Answered);
        let Some(quiet) = &mut self.quiet else { return };
        quiet.open -= 1;
        if let Some(Some(Kind {
            farewell: Some(lane),
            ..
        })) = quiet.kinds.get(kind)
        {
            let lane = *lane;
            self.queue
                .send(self.now, lane, Event::QuietLast(host, port));
        }
    }

    /// The last packet of a quiet connection leaves the node.
    pub(super) fn quiet_last(&mut self, host: u32, port: u16) {
        self.travel(Leg::ClientNode, Event::QuietClosed(host, port));
    }

    /// The socket of a quiet connection closes.
    pub(super) fn quiet_closed(&mut self, host: u32, port: u16) {
        if let Some(id) = self.conn_id(host, port) {
            self.hosts.get(host).client.foresee_end(self.now, id);
        }
        self.forget_conn(host, port);
    }
}

impl Pods {
    /// Whether any pod has a socket towards a peer.
    fn have_a_socket_towards(&self, peer: Endpoint) -> bool {
        let mut pods = self.each().filter_map(|host| host.pod.as_ref());
        pods.any(|pod| !pod.is_empty() && pod.socket(peer).is_some())
    }

    /// Whether the pod at a place serves on an address, and answers through the node.
    fn serves(&self, place: u32, address: Endpoint) -> bool {
        self.each().nth(place as usize).is_some_and(|host| {
            let serving = |pod: &ipvs_model::tcp::server::Pod| pod.phase() == Phase::Serving;
            host.address == address
                && !host.direct
                && host.exited.is_none()
                && host.pod.as_ref().is_some_and(serving)
        })
    }

    /// What the pod at a place will choose for the connection of a SYN that comes at `at`, if that connection goes its way: the
    /// pod serves, and nothing but TIME_WAITs is left of the peer's port anywhere. `rests`: it will end in TIME_WAIT there.
    /// `left`: a socket of the peer's that is not in the pod's table.
    fn expect_quiet(
        &mut self,
        place: u32,
        at: Instant,
        syn: &Segment,
        rests: bool,
        left: Option<&Socket>,
    ) -> Option<Begin> {
        let peer = syn.tuple.src;
        let mut waits_here = left.is_some();
        for (number, host) in self.each().enumerate() {
            if host.draining {
                return None;
            }
            let socket = host.pod.as_ref().and_then(|pod| pod.socket(peer));
            if let Some(socket) = socket {
                if socket.state() != State::TimeWait {
                    return None;
                }
                waits_here |= number == place as usize;
            }
        }
        let host = self.get(place);
        let pod = host.pod.as_ref()?;
        let full = pod.time_waits().saturating_add(MARGIN) >= pod.stack().sysctls.max_tw_buckets;
        // What the process knew of the port's last use goes with its socket.
        let known = host.peers.get(peer);
        let forgotten = known.is_none_or(|known| waits_here && known.closed);
        if host.direct || host.exited.is_some() || full || !forgotten || (waits_here && !rests) {
            return None;
        }
        match left {
            Some(_) => pod.expect_after(at, syn, left),
            None => pod.expect(at, syn),
        }
    }

    /// Leaves a connection in TIME_WAIT at a pod; when its timer fires.
    fn rest_quietly(
        &mut self,
        place: u32,
        peer: Endpoint,
        at: Instant,
        (rest, client, own): (&Rest, Begin, Begin),
        known: Peer,
        age: Span,
    ) -> Option<Instant> {
        let pod = self.get(place).pod.as_ref()?;
        let socket = pod.resting(at, peer, rest, (own, client), age);
        self.enter_rest(place, peer, at, socket, known)
    }

    /// The same with the socket that it has.
    fn enter_rest(
        &mut self,
        place: u32,
        peer: Endpoint,
        at: Instant,
        socket: Socket,
        known: Peer,
    ) -> Option<Instant> {
        let clock = self.stack()?.clock;
        let host = self.get(place);
        let pod = host.pod.as_mut()?;
        pod.enter_rest(peer, socket);
        let filed = clock.instant(pod.timer(at, peer)?);
        host.peers.insert(peer, Peer { filed, ..known });
        Some(filed)
    }
}
