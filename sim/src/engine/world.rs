//! The world of one run: hosts, node, pods and control plane, and the events that move them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ipvs_model::balancer::LoadBalancer;
use ipvs_model::icmp::IcmpLimiter;
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::{Persistence, ServiceKey};
use ipvs_model::kube::{ProxyBehaviours, RolloutEvent, SysctlConfig, sysctls_at_start};
use ipvs_model::node::{Node, NodeConfig};
use ipvs_model::segment::{Endpoint, IcmpError, Segment};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Span};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::control::{Control, proxy_behaviours};
use super::hosts::{Hosts, Pods};
use super::load::{Conns, Load, Manners, Requests};
use super::observe::Observer;
use super::planes::{self, Direct, Wanted};
use super::probe::Probe;
use super::queue::{Lane, Queue, Turn};
use super::quiet::Quiet;
use super::story::StoriesOf;
use super::streams::{Purpose, Streams};
use super::topology;
use super::trace::{RunTrace, TraceOptions};
use super::udp::Datagrams;
use crate::outcome::RunSummary;
use crate::scenario::{self, DataPlane, DeadEnd, Dist, Phase, ProxyVersion, Scenario};

/// The node keeps arrays for the ports of so many clients, each of 113 KB by default; a hash for the others.
const ARRAYS_MAX: usize = 256;

/// How long a run may go on after its load has ended, for requests that are still open.
const TAIL: Span = Span::from_secs(300);

/// What happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The next request of an open loop starts.
    Arrival(u16),
    /// A worker of a closed loop starts its next request.
    Worker(u16, u32),
    /// A packet reaches the node.
    AtNode(Segment),
    /// A packet reaches a client host.
    AtClient(Segment),
    /// A packet reaches the address of a pod.
    AtPod(Segment),
    /// An ICMP error reaches a client host.
    Icmp(IcmpError),
    /// A client socket's timer may be due.
    ClientTimer(u32, u16, Turn),
    /// A pod socket's timer may be due.
    PodTimer(u32, Endpoint),
    /// The application gives up a request: slot, serial, whether only if it is not connected.
    GiveUp(u32, u64, bool),
    /// A pod's response is ready.
    Respond(u32, Endpoint),
    /// A kept-alive connection has been idle; the number of responses served then.
    KeepAlive(u32, Endpoint, u32),
    /// A request's datagram has had no answer: slot, serial.
    Resend(u32, u64),
    /// A pod's answer to a datagram is ready.
    Datagram(Segment),
    /// The dead end of a pod's address has something to do.
    DeadEnd(u32),
    /// The rollout goes on.
    Rollout,
    /// New endpoints reach what balances in the place of IPVS.
    Rules(Box<Wanted>),
    /// kube-proxy has something to do.
    Proxy,
    /// Real servers are sampled.
    Sample,
    /// Tables are listed.
    List,
    /// The SYN of a request that goes the shortest way reaches the node.
    QuietSyn(u32),
    /// The SYN of a request that goes the shortest way is sent again.
    QuietResend(u32),
    /// The answer to the request in a slot, on the quiet path, leaves the node.
    QuietAnswer(u32),
    /// The answer to the request in a slot, on the quiet path, is complete.
    QuietEnd(u32),
    /// The last packet of a quiet connection leaves the node: host and port.
    QuietLast(u32, u16),
    /// The socket of a quiet connection closes.
    QuietClosed(u32, u16),
}

/// A way between two places, or through the server process, with the time that it takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Lane(Lane),
    Random(Dist),
}

/// Which way a packet takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    ClientNode,
    NodePod,
    /// From a pod past the node.
    PodClient,
}

/// The world of one run.
pub struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) queue: Queue<Event>,
    pub(super) now: Instant,
    pub(super) node: Node,
    pub(super) node_rng: ChaCha8Rng,
    pub(super) icmp: IcmpLimiter,
    pub(super) key: ServiceKey,
    pub(super) control: Control,
    pub(super) hosts: Hosts,
    pub(super) loads: Vec<Load>,
    pub(super) manners: Vec<Manners>,
    pub(super) requests: Requests,
    pub(super) conns: Conns,
    /// The clients' side of a UDP service; `None` for TCP.
    pub(super) udp: Option<Datagrams>,
    /// Clients that connect to pods; `None` if the node balances.
    pub(super) direct: Option<Direct>,
    /// What stands between remote clients and the node.
    pub(super) balancer: Option<LoadBalancer>,
    pub(super) balancer_rng: ChaCha8Rng,
    /// Whether a client is a pod of the service.
    pub(super) hairpin: bool,
    pub(super) pods: Pods,
    pub(super) observer: Observer,
    pub(super) service: Way,
    pub(super) service_rng: ChaCha8Rng,
    pub(super) begun: u64,
    pub(super) dead_ends: super::deadends::DeadEnds,
    network_rng: ChaCha8Rng,
    client_node: Way,
    node_pod: Way,
    pub(super) generation: Vec<u32>,
    pub(super) rollout_filed: Instant,
    pub(super) proxy_filed: Instant,
    /// The latest change of rules on its way: a later one does not overtake it.
    pub(super) rules_at: Instant,
    pub(super) events: u64,
    /// The tables are checked after every so many packets; 0 for never.
    check_every: u64,
    pub(super) packets: u64,
    broken: Option<String>,
    /// When the control plane acts or somebody looks at the tables.
    pub(super) controls: BinaryHeap<Reverse<Instant>>,
    pub(super) quiet: Option<Box<Quiet>>,
    /// What looks at the chances of ports before they are drawn, if anything does.
    pub(super) probe: Option<Box<Probe>>,
}

/// Sysctls of the node: kernel, then kube-proxy, then the scenario.
///
/// # Errors
/// If kube-proxy does not start on this kernel, or a sysctl cannot have its value.
pub fn node_sysctls(scenario: &Scenario) -> Result<Sysctls, String> {
    let mut sysctls = Sysctls::of(scenario.node.behaviours());
    let kube_proxy = &scenario.kube_proxy;
    if kube_proxy.sets_sysctls && kube_proxy.version != ProxyVersion::None {
        let behaviours: ProxyBehaviours = proxy_behaviours(kube_proxy.version);
        let config = SysctlConfig::default();
        sysctls_at_start(behaviours, &scenario.node.kernel, &config, &mut sysctls)
            .map_err(|error| error.to_string())?;
    }
    for (key, value) in scenario.node_sysctl_overrides() {
        sysctls.set(key, value).map_err(|error| error.to_string())?;
    }
    Ok(sysctls)
}

fn build_node(scenario: &Scenario, sysctls: Sysctls, streams: Streams) -> Node {
    let kernel = scenario.node.behaviours();
    let mut phases = streams.stream(Purpose::Phases, 0);
    let drawn = Span(phases.random_range(0..864_000 * 1_000_000_000));
    let uptime = match scenario.node.uptime {
        Phase::Random => drawn,
        Phase::Fixed(uptime) => uptime,
    };
    let ip = scenario.node.address;
    let balancer = planes::balancer(scenario, &sysctls);
    let (source_nat, sources) = topology::source_nat(scenario);
    let clock = Clock::new(scenario.node.hz.0, kernel.timer_era(), uptime);
    let config = NodeConfig {
        kernel,
        clock,
        sysctls,
        balancer,
        source_nat,
        tracking: planes::tracks(scenario.node.mode),
    };
    let mut node = Node::new(config);
    node.set_source_rules(sources);
    let proxy = &scenario.kube_proxy;
    let [tcp, tcp_fin, udp] = [proxy.tcp_timeout, proxy.tcpfin_timeout, proxy.udp_timeout]
        .map(|timeout| timeout.as_secs() as u32);
    node.ipvs.set_timeouts(tcp, tcp_fin, udp);
    node.add_local(ip);
    node.add_local(scenario.service.address.ip);
    node
}

const fn scheduler(scheduler: scenario::Scheduler) -> Kind {
    match scheduler {
        scenario::Scheduler::Rr => Kind::Rr,
        scenario::Scheduler::Wrr => Kind::Wrr,
        scenario::Scheduler::Lc => Kind::Lc,
        scenario::Scheduler::Wlc => Kind::Wlc,
        scenario::Scheduler::Sed => Kind::Sed,
        scenario::Scheduler::Nq => Kind::Nq,
        scenario::Scheduler::Sh => Kind::Sh,
        scenario::Scheduler::Mh => Kind::Mh,
    }
}

impl<'a> World<'a> {
    /// The world of a scenario and seed at the start of the run.
    ///
    /// # Errors
    /// If the scenario cannot be run; the text says why and what to change.
    pub fn new(scenario: &'a Scenario, seed: u64, options: &TraceOptions) -> Result<Self, String> {
        let streams = Streams::new(seed);
        let sysctls = node_sysctls(scenario)?;
        let mut node = build_node(scenario, sysctls, streams);
        let key = ServiceKey {
            proto: scenario.service.protocol,
            addr: scenario.service.address,
        };
        let persistence = scenario
            .service
            .session_affinity
            .map(|timeout| Persistence::per_client(timeout.as_secs().clamp(1, 31 * 86_400) as u32));
        let kind = scheduler(scenario.kube_proxy.scheduler);
        node.ipvs
            .add_service(key, kind, SchedFlags::default(), persistence)
            .map_err(|error| error.to_string())?;
        let hosts = Hosts::new(scenario, streams);
        for (ip, ports) in hosts.port_ranges().take(ARRAYS_MAX) {
            node.reserve(key.proto, ip, ports);
        }
        let end = Instant::ZERO + scenario.duration;
        let mut queue = Queue::default();
        let mut first_host = 0;
        let mut loads = Vec::new();
        for (kind, table) in scenario.client.iter().enumerate() {
            let series = queue.series();
            loads.push(Load::new(
                kind as u16,
                table,
                first_host,
                end,
                series,
                streams,
            ));
            first_host += table.count;
        }
        let clock = *node.ipvs.clock();
        let way = |dist: Dist, queue: &mut Queue<Event>| match dist {
            Dist::Constant(delay) => Way::Lane(queue.lane(delay)),
            other => Way::Random(other),
        };
        let client_node = way(scenario.network.client_node, &mut queue);
        let node_pod = way(scenario.network.node_pod, &mut queue);
        let service = way(scenario.server.service_time, &mut queue);
        let manners = scenario.client.iter();
        let manners = manners
            .map(|table| Manners::of(table, &mut queue))
            .collect();
        let pods = Pods::new(scenario, &hosts, streams);
        let udp = Datagrams::new(scenario, &mut queue, streams);
        // Stories tell of every packet.
        let quiet = (!options.no_quiet && matches!(options.stories, StoriesOf::Nobody))
            .then(|| Quiet::new(scenario, seed, (&node, &hosts), &mut queue))
            .flatten();
        let mut world = Self {
            scenario,
            queue,
            now: Instant::ZERO,
            node,
            node_rng: streams.stream(Purpose::Node, 0),
            icmp: IcmpLimiter::new(scenario.node.behaviours(), clock, sysctls.icmp),
            key,
            control: Control::new(scenario, streams),
            hosts,
            loads,
            manners,
            requests: Requests::default(),
            conns: Conns::default(),
            udp,
            direct: Direct::new(scenario, streams),
            balancer: topology::load_balancer(scenario),
            balancer_rng: streams.stream(Purpose::Balancer, 0),
            hairpin: topology::has_hairpin(scenario),
            pods,
            observer: Observer::new(options),
            service,
            service_rng: streams.stream(Purpose::Service, 0),
            begun: 0,
            dead_ends: super::deadends::DeadEnds::new(scenario, clock, streams),
            network_rng: streams.stream(Purpose::Network, 0),
            client_node,
            node_pod,
            generation: Vec::new(),
            rollout_filed: Instant::NEVER,
            proxy_filed: Instant::NEVER,
            rules_at: Instant::ZERO,
            events: 0,
            check_every: 0,
            packets: 0,
            broken: None,
            controls: BinaryHeap::new(),
            quiet,
            probe: None,
        };
        world.start();
        Ok(world)
    }

    /// Sets up the pods of the start, with their real servers, and files the first events.
    fn start(&mut self) {
        while self.control.next_rollout() == Some(Instant::ZERO) {
            let Some(event) = self.control.poll_rollout(Instant::ZERO) else {
                break;
            };
            if let RolloutEvent::EndpointsPublished { endpoints } = &event {
                let wanted = self.control.wanted(endpoints);
                self.apply_wanted(wanted.clone());
                self.control
                    .endpoints_changed(Instant::ZERO, wanted.active, Span::ZERO);
            } else {
                self.on_rollout(event);
            }
        }
        if self.scenario.node.mode == DataPlane::Ipvs {
            drop(
                self.control
                    .poll_proxy(Instant::ZERO, &mut self.node.ipvs, self.key, true),
            );
        }
        for kind in 0..self.loads.len() {
            for (at, worker) in self.loads[kind].initial() {
                let closed = self.loads[kind].think_time().is_some();
                let kind = kind as u16;
                if closed {
                    self.queue.at(at, Event::Worker(kind, worker));
                } else {
                    let series = self.loads[usize::from(kind)].series;
                    self.queue.next(series, at, Event::Arrival(kind));
                }
            }
        }
        if self.observer.options().sample_every.is_some() {
            let first = Instant::ZERO + self.observer.options().sample_after;
            self.control_at(first, Event::Sample);
        }
        for at in self.observer.options().tables_at.clone() {
            self.control_at(at, Event::List);
        }
        self.file_rollout();
        self.file_proxy();
    }

    /// Checks the node's tables after every so many packets from now on.
    pub const fn check_every(&mut self, packets: u64) {
        self.check_every = packets;
    }

    /// More packets have crossed the node.
    pub(super) fn note_packets(&mut self, count: u64) {
        self.observer.packets(count);
        let before = self.packets;
        self.packets += count;
        if self.check_every > 0
            && self.packets / self.check_every > before / self.check_every
            && self.broken.is_none()
        {
            self.node.advance(self.now);
            if let Err(what) = self.node.check_invariants(self.now) {
                self.broken = Some(format!(
                    "at {} after {} packets: {what}",
                    self.now, self.packets
                ));
            }
        }
    }

    /// Runs to the end.
    pub fn run(mut self) -> (RunSummary, RunTrace) {
        let end = self.play();
        self.observer.finish(end, self.events)
    }

    /// Runs to the end; with what the probe found.
    pub fn run_probed(mut self) -> (RunSummary, RunTrace, Option<Box<Probe>>) {
        let end = self.play();
        let (summary, trace) = self.observer.finish(end, self.events);
        (summary, trace, self.probe)
    }

    /// Runs to the end; fails if a check of the tables did.
    pub fn run_checked(mut self) -> Result<(RunSummary, RunTrace), String> {
        let end = self.play();
        match self.broken {
            Some(what) => Err(what),
            None => Ok(self.observer.finish(end, self.events)),
        }
    }

    /// Lets everything happen: no request starts after the scenario's duration; those that are open may end.
    fn play(&mut self) -> Instant {
        let end = Instant::ZERO + self.scenario.duration;
        let last = end + TAIL;
        while let Some((at, event)) = self.queue.pop(last) {
            if at > end && !self.requests.any_open() && !self.quiet_waits() {
                break;
            }
            self.now = at;
            self.events += 1;
            match event {
                Event::Arrival(kind) => self.on_arrivals(kind, last),
                event => self.handle(event),
            }
        }
        self.catch_up_to(Instant::NEVER);
        end
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival(kind) => self.on_arrivals(kind, self.now),
            Event::Worker(kind, worker) => self.begin(kind, worker),
            Event::AtNode(segment) => self.at_node(&segment),
            Event::AtClient(segment) => self.at_client(&segment),
            Event::AtPod(segment) => self.at_pod(&segment),
            Event::Icmp(error) => self.icmp_at_client(&error),
            Event::ClientTimer(host, port, turn) => self.on_client_timer(host, port, turn),
            Event::PodTimer(pod, peer) => self.on_pod_timer(pod, peer),
            Event::GiveUp(slot, serial, connecting) => self.give_up(slot, serial, connecting),
            Event::Respond(pod, peer) => self.respond(pod, peer),
            Event::KeepAlive(pod, peer, served) => self.keep_alive_over(pod, peer, served),
            Event::Resend(slot, serial) => self.resend(slot, serial),
            Event::Datagram(segment) => self.datagram_from_pod(segment),
            Event::DeadEnd(place) => self.dead_end_timer(place),
            Event::Rollout => {
                self.rollout_filed = Instant::NEVER;
                while let Some(event) = self.control.poll_rollout(self.now) {
                    self.on_rollout(event);
                }
                self.file_rollout();
                self.file_proxy();
            }
            Event::Rules(wanted) => self.apply_wanted(*wanted),
            Event::Proxy => self.on_proxy(),
            Event::Sample => self.sample(),
            Event::List => self.list(),
            Event::QuietSyn(place) => self.quiet_syn(place),
            Event::QuietResend(place) => self.quiet_resend(place),
            Event::QuietAnswer(slot) => self.quiet_answer(slot),
            Event::QuietEnd(slot) => self.quiet_end(slot),
            Event::QuietLast(host, port) => self.quiet_last(host, port),
            Event::QuietClosed(host, port) => self.quiet_closed(host, port),
        }
    }

    /// Moves on to the moment at which what leaves a client now reaches the node, if nothing comes before that: the caller
    /// handles it at once.
    #[inline]
    pub(super) fn passes_time_to_node(&mut self) -> bool {
        let Way::Lane(lane) = self.client_node else {
            return false;
        };
        let Some(at) = self.queue.comes_next(self.now, lane) else {
            return false;
        };
        self.now = at;
        self.events += 1;
        true
    }

    /// Sends an event down a leg of the network.
    pub(super) fn travel(&mut self, leg: Leg, event: Event) {
        let draw = |way: Way, world: &mut Self| match way {
            Way::Lane(_) => Span::ZERO,
            Way::Random(dist) => super::streams::draw(&mut world.network_rng, &dist),
        };
        match (leg, self.client_node, self.node_pod) {
            (Leg::ClientNode, Way::Lane(lane), _) | (Leg::NodePod, _, Way::Lane(lane)) => {
                self.queue.send(self.now, lane, event);
            }
            (Leg::ClientNode, way, _) | (Leg::NodePod, _, way) => {
                let delay = draw(way, self);
                self.queue.at(self.now + delay, event);
            }
            (Leg::PodClient, ..) => {
                let delays = [
                    self.scenario.network.client_node,
                    self.scenario.network.node_pod,
                ];
                let delay = delays
                    .iter()
                    .map(|dist| super::load::sample(dist, &mut self.network_rng))
                    .fold(Span::ZERO, |sum, span| sum + span);
                self.queue.at(self.now + delay, event);
            }
        }
    }

    /// What answers for addresses that are gone.
    pub(super) const fn dead_end_kind(&self) -> &DeadEnd {
        &self.scenario.server.dead_end
    }
}
