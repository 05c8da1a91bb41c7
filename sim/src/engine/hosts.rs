//! The client hosts of a run and the pods that serve it.

use hashbrown::HashMap;
use ipvs_model::index::EndpointMap;
use ipvs_model::kube::PodId;
use ipvs_model::segment::Endpoint;
use ipvs_model::sysctl::TcpSysctls;
use ipvs_model::tcp::client::{Client, Source};
use ipvs_model::tcp::ports::PortChooser;
use ipvs_model::tcp::secret::{Destination, Secret};
use ipvs_model::tcp::server::Pod;
use ipvs_model::tcp::socket::Stack;
use ipvs_model::time::{Clock, Instant, Span};
use rand::rngs::ChaCha8Rng;
use rand::{Rng, RngExt};
use rustc_hash::FxBuildHasher;
use std::net::Ipv4Addr;

use super::streams::{Purpose, Streams};
use super::topology;
use crate::scenario::{Masquerade, Phase, PortChoice, Scenario};

/// Time for which any machine may have been up before the run: ten days.
const UPTIME_MAX: Span = Span::from_secs(864_000);

/// How long a machine had been up. The draw happens either way, so that fixing it reshuffles nothing else.
fn uptime(phase: Phase, rng: &mut impl Rng) -> Span {
    let drawn = Span(rng.random_range(0..UPTIME_MAX.0));
    match phase {
        Phase::Random => drawn,
        Phase::Fixed(uptime) => uptime,
    }
}

/// A host that opens connections: one network namespace with a kernel of its own.
#[derive(Debug)]
pub struct Host {
    /// Its sockets.
    pub client: Client,
    /// Which of the scenario's `[[client]]` tables it belongs to.
    pub kind: u16,
    /// What connect() goes to.
    pub to: Destination,
    /// Connections that wait for their next request, the latest first to be used: port, requests left, and the
    /// real server that its SYN went to.
    pub idle: Vec<(u16, u32, Option<Endpoint>)>,
    chooser: PortChooser,
    rng: ChaCha8Rng,
    fixed: Vec<u16>,
    next_fixed: usize,
    bind: bool,
}

impl Host {
    /// How the next connection gets its port.
    fn source(&mut self) -> Source {
        if self.bind {
            return Source::BindAny { reuse_addr: false };
        }
        if self.fixed.is_empty() {
            return Source::Unbound;
        }
        let port = self.fixed[self.next_fixed % self.fixed.len()];
        self.next_fixed += 1;
        Source::BindPort {
            port,
            reuse_addr: true,
        }
    }

    /// How many of how many equally likely draws give the next connection this port.
    pub fn starts_leading_to(&mut self, port: u16) -> Option<(u32, u32)> {
        self.client.starts_leading_to(&self.chooser, port)
    }

    /// Opens a connection to the service from `port`, as if it had been drawn.
    pub fn connect_from(
        &mut self,
        now: Instant,
        port: u16,
    ) -> Option<(
        ipvs_model::tcp::client::ConnId,
        ipvs_model::tcp::socket::Outcome,
    )> {
        let source = Source::BindPort {
            port,
            reuse_addr: false,
        };
        let opened = self
            .client
            .connect(now, self.to, source, &mut self.chooser, &mut self.rng);
        opened.ok()
    }

    /// The port of the next connection without bind().
    pub fn choose(&mut self, now: Instant) -> Option<u16> {
        let port = self
            .client
            .choose(now, self.to, &mut self.chooser, &mut self.rng);
        port.ok()
    }

    /// Opens a connection to the service.
    pub fn connect(
        &mut self,
        now: Instant,
    ) -> Option<(
        ipvs_model::tcp::client::ConnId,
        ipvs_model::tcp::socket::Outcome,
    )> {
        let source = self.source();
        let opened = self
            .client
            .connect(now, self.to, source, &mut self.chooser, &mut self.rng);
        opened.ok()
    }

    /// The same host for connections to a pod.
    fn towards(&self, pod: Endpoint, mut rng: ChaCha8Rng) -> Self {
        let stack = *self.client.stack();
        let to = Destination {
            daddr: pod.ip,
            dport: pod.port,
            ..self.to
        };
        Self {
            client: Client::new(stack, &[]),
            kind: self.kind,
            to,
            idle: Vec::new(),
            chooser: PortChooser::new(stack.kernel, stack.clock, stack.secret)
                .with_hint(rng.next_u32()),
            rng,
            fixed: self.fixed.clone(),
            next_fixed: 0,
            bind: self.bind,
        }
    }

    /// Its address as the service sees it.
    pub const fn address(&self) -> Ipv4Addr {
        self.to.saddr
    }
}

/// All client hosts, in the order of the tables, with the way from an address to its host.
#[derive(Debug)]
pub struct Hosts {
    all: Vec<Host>,
    by_address: HashMap<Ipv4Addr, u32, FxBuildHasher>,
    /// Hosts as they talk to one pod, where clients choose pods: by client and pod.
    by_pod: HashMap<(Ipv4Addr, Endpoint), u32, FxBuildHasher>,
    /// The twins of each host, in the order of their making.
    twins: Vec<Vec<u32>>,
    streams: Streams,
}

impl Hosts {
    /// The hosts of a scenario.
    pub fn new(scenario: &Scenario, streams: Streams) -> Self {
        let mut hosts = Self {
            all: Vec::new(),
            by_address: HashMap::default(),
            by_pod: HashMap::default(),
            twins: Vec::new(),
            streams,
        };
        for (kind, table) in scenario.client.iter().enumerate() {
            let kernel = table.behaviours();
            for address in table.addresses() {
                let number = hosts.all.len() as u32;
                let mut rng = streams.stream(Purpose::ClientKernel, number);
                let uptime = uptime(table.uptime, &mut rng);
                let clock = Clock::new(table.hz.0, kernel.timer_era(), uptime);
                let secret = Secret::from_seed(rng.next_u64());
                let stack = Stack {
                    kernel,
                    clock,
                    sysctls: table.tcp(),
                    secret,
                };
                let (saddr, to) = topology::way(scenario, table.location, address);
                let fixed = match &table.port_choice {
                    PortChoice::Fixed(ports) => ports.clone(),
                    _ => Vec::new(),
                };
                hosts.by_address.insert(saddr, number);
                hosts.all.push(Host {
                    client: Client::new(stack, &[]),
                    kind: kind as u16,
                    to: Destination {
                        saddr,
                        daddr: to.ip,
                        dport: to.port,
                    },
                    idle: Vec::new(),
                    chooser: PortChooser::new(kernel, clock, secret).with_hint(rng.next_u32()),
                    rng,
                    fixed,
                    next_fixed: 0,
                    bind: table.port_choice == PortChoice::Bind,
                });
            }
        }
        hosts
    }

    /// The host of a number, to look at.
    pub fn peek(&self, number: u32) -> &Host {
        &self.all[number as usize]
    }

    /// The host of a number.
    pub fn get(&mut self, number: u32) -> &mut Host {
        &mut self.all[number as usize]
    }

    /// The host that has an address.
    pub fn at(&self, address: Ipv4Addr) -> Option<u32> {
        match self.all.as_slice() {
            [only] => (only.to.saddr == address).then_some(0),
            _ => self.by_address.get(&address).copied(),
        }
    }

    /// How many ports the host with the fewest left holds towards the service, and how many its range has.
    pub fn ports_held_most(&self) -> (u32, u32) {
        let each = self.all.iter().map(|host| {
            let (low, high) = host.client.stack().sysctls.local_ports;
            let range = u32::from(high.saturating_sub(low)) + 1;
            (host.client.ports_taken(host.to), range)
        });
        // The first of equals.
        each.rev()
            .min_by_key(|(held, range)| range.saturating_sub(*held))
            .unwrap_or_default()
    }

    /// What a host calls.
    pub fn called(&self, host: u32) -> Endpoint {
        let to = self.all[host as usize].to;
        Endpoint::new(to.daddr, to.dport)
    }

    /// The host of a client that talks to `peer`.
    pub fn of(&self, client: Ipv4Addr, peer: Endpoint) -> Option<u32> {
        if self.by_pod.is_empty() {
            return self.at(client);
        }
        self.by_pod.get(&(client, peer)).copied()
    }

    /// A host as it talks to a pod: the same network namespace and kernel, but with a table of connections of its own,
    /// because ports are chosen for each destination. That the kernel's hint is shared by all destinations is left
    /// out.
    pub fn twin(&mut self, base: u32, pod: Endpoint) -> u32 {
        let client = self.all[base as usize].address();
        if let Some(number) = self.by_pod.get(&(client, pod)) {
            return *number;
        }
        let number = self.all.len() as u32;
        let rng = self.streams.stream(Purpose::ClientKernel, number);
        let twin = self.all[base as usize].towards(pod, rng);
        self.all.push(twin);
        self.by_pod.insert((client, pod), number);
        let base = base as usize;
        if self.twins.len() <= base {
            self.twins.resize(base + 1, Vec::new());
        }
        self.twins[base].push(number);
        number
    }

    /// A twin of a host that has an idle connection.
    pub fn idle_twin(&self, base: u32) -> Option<u32> {
        let twins = self.twins.get(base as usize)?.iter();
        let idle = |number: &&u32| !self.all[**number as usize].idle.is_empty();
        twins.rev().find(idle).copied()
    }

    /// Addresses and port ranges, so that the node can keep its entries in arrays.
    pub fn port_ranges(&self) -> impl Iterator<Item = (Ipv4Addr, (u16, u16))> + '_ {
        self.all
            .iter()
            .map(|host| (host.address(), host.client.stack().sysctls.local_ports))
    }
}

/// What the server process knows of a connection, and its filed timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The moment for which a timer event waits in the queue.
    pub filed: Instant,
    /// Bytes of the request being read.
    pub received: u32,
    /// Requests read.
    pub requests: u32,
    /// Responses written.
    pub served: u32,
    /// The process has closed it.
    pub closed: bool,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            filed: Instant::NEVER,
            received: 0,
            requests: 0,
            served: 0,
            closed: false,
        }
    }
}

/// A pod with an address.
#[derive(Debug)]
pub struct PodHost {
    /// Its number in the rollout.
    pub id: PodId,
    /// Its network stack; `None` until it listens.
    pub pod: Option<Pod>,
    /// Address and port.
    pub address: Endpoint,
    /// When the process ended.
    pub exited: Option<Instant>,
    /// When the address went.
    pub gone: Option<Instant>,
    /// Whether it answers past the node.
    pub direct: bool,
    /// It belongs to another service and has the address of a pod that is gone.
    pub stranger: bool,
    /// It stops listening and waits for its connections.
    pub draining: bool,
    /// Connections.
    pub peers: EndpointMap<Peer>,
    /// Connections that the process has not closed.
    pub open: u32,
}

/// All pods there have been, newest last.
#[derive(Debug, Default)]
pub struct Pods {
    all: Vec<PodHost>,
    stack: Option<Stack>,
    backlog: u32,
    /// The addresses and ports that packets come from.
    peers: Vec<(Ipv4Addr, (u16, u16))>,
}

/// So many arrays for the ports of one address, each of 113 KB by default, all pods may have together.
const ARRAYS_MAX: usize = 64;

impl Pods {
    /// No pods yet, on nodes with the scenario's server kernel.
    pub fn new(scenario: &Scenario, hosts: &Hosts, streams: Streams) -> Self {
        let mut rng = streams.stream(Purpose::PodKernel, 0);
        let kernel = scenario.server.behaviours();
        let uptime = uptime(scenario.server.uptime, &mut rng);
        let clock = Clock::new(scenario.server.hz.0, kernel.timer_era(), uptime);
        let secret = Secret::from_seed(rng.next_u64());
        let stack = Stack {
            kernel,
            clock,
            sysctls: TcpSysctls::of(kernel),
            secret,
        };
        Self {
            all: Vec::new(),
            stack: Some(stack),
            backlog: scenario.server.backlog,
            peers: match scenario.kube_proxy.masquerade {
                Masquerade::None => hosts.port_ranges().take(ARRAYS_MAX).collect(),
                _ => vec![(scenario.node.address, (1024, u16::MAX))],
            },
        }
    }

    /// The peers for which the pod at a place keeps arrays: all of them, or none if there are too many.
    fn reserved(&self, place: usize) -> &[(Ipv4Addr, (u16, u16))] {
        if (place + 1) * self.peers.len() <= ARRAYS_MAX {
            &self.peers
        } else {
            &[]
        }
    }

    /// A pod got its address. `direct`: it answers past the node.
    pub fn add(&mut self, id: PodId, address: Endpoint, direct: bool) {
        let mut peers = EndpointMap::default();
        for (ip, ports) in self.reserved(self.all.len()) {
            peers.reserve(*ip, *ports);
        }
        self.all.push(PodHost {
            id,
            pod: None,
            address,
            exited: None,
            gone: None,
            direct,
            stranger: false,
            draining: false,
            peers,
            open: 0,
        });
    }

    /// The place of the pod of another service that listens on the address of one that is gone; there from its first
    /// packet on.
    pub fn stranger(&mut self, address: Endpoint) -> u32 {
        let known = self.at(address.ip);
        if let Some(place) = known.filter(|place| self.all[*place as usize].stranger) {
            return place;
        }
        let place = self.all.len() as u32;
        // The rollout counts its pods from 0.
        let id = PodId(u32::MAX - place);
        let direct = known.is_some_and(|old| self.all[old as usize].direct);
        self.add(id, address, direct);
        self.all[place as usize].stranger = true;
        self.listen(id);
        place
    }

    /// A pod's application listens.
    pub fn listen(&mut self, id: PodId) {
        let (stack, backlog) = (self.stack, self.backlog);
        if let (Some(place), Some(stack)) = (self.place(id), stack) {
            let mut pod = Pod::new(stack, self.all[place as usize].address, backlog);
            for (ip, ports) in self.reserved(place as usize) {
                pod.reserve(*ip, *ports);
            }
            self.all[place as usize].pod = Some(pod);
        }
    }

    /// The place of a pod by its number.
    pub fn place(&self, id: PodId) -> Option<u32> {
        self.all
            .iter()
            .position(|host| host.id == id)
            .map(|at| at as u32)
    }

    /// A pod by its number.
    pub fn by_id(&mut self, id: PodId) -> Option<&mut PodHost> {
        self.all.iter_mut().find(|host| host.id == id)
    }

    /// The place of the newest pod that has or had an address.
    pub fn at(&self, ip: Ipv4Addr) -> Option<u32> {
        self.all
            .iter()
            .rposition(|host| host.address.ip == ip)
            .map(|at| at as u32)
    }

    /// The pod at a place.
    pub fn get(&mut self, place: u32) -> &mut PodHost {
        &mut self.all[place as usize]
    }

    /// Every pod there has been, by place.
    pub fn each(&self) -> impl Iterator<Item = &PodHost> {
        self.all.iter()
    }

    /// The pods' network stack.
    pub const fn stack(&self) -> Option<&Stack> {
        self.stack.as_ref()
    }

    /// Whether the pod of an address cannot answer any more at `now`.
    pub fn is_dead(&self, address: Endpoint) -> bool {
        self.at(address.ip)
            .map(|place| &self.all[place as usize])
            .is_none_or(|host| host.exited.is_some() || host.stranger)
    }
}

/// A new pod's place among those of its generation decides whether it answers past the node.
pub const fn answers_directly(path: crate::scenario::ReturnPath, place: u32) -> bool {
    match path {
        crate::scenario::ReturnPath::Node => false,
        crate::scenario::ReturnPath::Direct => true,
        crate::scenario::ReturnPath::FirstPodsDirect(count) => place < count,
    }
}
