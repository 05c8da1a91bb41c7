//! Clients, node and pods: network namespaces joined by veth pairs. The node is the guest's first namespace and has a bridge
//! with the pods on it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use ipvs_model::conntrack::SourceNat;
use ipvs_model::kube::PodId;
use ipvs_model::segment::Proto;
use ipvs_sim::engine::source_nat;
use ipvs_sim::scenario::{Client, DeadEnd, Location, Scenario};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::fitness::emulates_ports;
use super::ip;
use crate::guest::{line, set_sysctl};

/// The clients' way to the node.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Where somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Node,
    Client(usize),
    Pod(usize),
}

/// A door of a pod.
#[derive(Debug)]
pub enum Door {
    /// Listens for connections.
    Tcp(TcpListener),
    /// Takes datagrams.
    Udp(UdpSocket),
}

/// The namespaces, open.
#[derive(Debug)]
pub struct Network {
    node: File,
    /// Of each client host, in the order of the tables; `None` is the node's.
    clients: Vec<Option<File>>,
    pods: Vec<File>,
    /// The namespace and the address of each pod.
    homes: BTreeMap<PodId, (usize, Ipv4Addr)>,
    here: Place,
    proto: Proto,
    port: u16,
    backlog: i32,
}

/// A listening socket with this backlog; the standard library's is always 128.
fn listener(at: SocketAddrV4, backlog: i32) -> std::io::Result<TcpListener> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, backlog)?;
    Ok(TcpListener::from(socket))
}

fn namespace(name: &str) -> Result<File> {
    ip(&format!("netns add {name}"))?;
    let path = format!("/run/netns/{name}");
    File::open(&path).with_context(|| format!("cannot open {path}"))
}

fn move_to(namespace: &File) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter a network namespace")
}

impl Network {
    /// Makes everything. The caller stays in the node's namespace.
    pub fn set_up(scenario: &Scenario) -> Result<Self> {
        let node = File::open("/proc/self/ns/net").context("cannot open our namespace")?;
        for key in ["all", "default"] {
            set_sysctl(&format!("net.ipv4.conf.{key}.rp_filter"), 0)?;
        }
        set_sysctl("net.ipv4.ip_forward", 1)?;
        // Packets from pod to pod are not what this is about; absent in kernels without bridge netfilter.
        let _ = set_sysctl("net.bridge.bridge-nf-call-iptables", 0);
        let (address, service) = (scenario.node.address, scenario.service.address.ip);
        ip("link add kube-ipvs0 type dummy")?;
        if service != address {
            ip(&format!("address add {service}/32 dev kube-ipvs0"))?;
        }
        ip("link set kube-ipvs0 up")?;
        ip("link add cni0 type bridge")?;
        ip(&format!("address add {address}/32 dev cni0"))?;
        ip("link set cni0 up")?;
        let mut this = Self {
            node,
            clients: Vec::new(),
            pods: Vec::new(),
            homes: BTreeMap::new(),
            here: Place::Node,
            proto: scenario.service.protocol,
            port: scenario.service.target_port,
            backlog: scenario.server.backlog as i32,
        };
        for table in &scenario.client {
            for address in table.addresses() {
                this.add_client(table, address)?;
            }
        }
        // Those of the start, those of the rollout, and heirs of addresses.
        let pods = scenario.rollout.old_pods() + scenario.rollout.new_pods();
        let heirs = match scenario.server.dead_end {
            DeadEnd::Reassigned(_) => scenario.rollout.old_pods(),
            _ => 0,
        };
        for number in 0..(pods + heirs) as usize {
            this.add_pod(number, address)?;
        }
        rules(scenario)?;
        // Ports of bridges forward at once, but carrier and addresses need a moment.
        std::thread::sleep(std::time::Duration::from_secs(2));
        Ok(this)
    }

    fn add_client(&mut self, table: &Client, address: Ipv4Addr) -> Result<()> {
        if table.location == Location::Host {
            self.clients.push(None);
            return tcp_sysctls(table);
        }
        let name = format!("client{}", self.clients.len());
        let space = namespace(&name)?;
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("address add {GATEWAY}/32 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("route add {address}/32 dev {name}"))?;
        for words in [
            format!("address add {address}/32 dev eth0"),
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("route add default via {GATEWAY} dev eth0 onlink"),
        ] {
            ip(&format!("-n {name} {words}"))?;
        }
        move_to(&space)?;
        let done = tcp_sysctls(table);
        move_to(&self.node)?;
        self.clients.push(Some(space));
        done
    }

    fn add_pod(&mut self, number: usize, node: Ipv4Addr) -> Result<()> {
        let name = format!("pod{number}");
        let space = namespace(&name)?;
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("link set {name} master cni0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!(
            "-n {name} route add default via {node} dev eth0 onlink"
        ))?;
        self.pods.push(space);
        Ok(())
    }

    fn go(&mut self, place: Place) -> Result<()> {
        if self.here == place {
            return Ok(());
        }
        move_to(match place {
            Place::Node => &self.node,
            Place::Client(host) => self.clients[host].as_ref().unwrap_or(&self.node),
            Place::Pod(number) => &self.pods[number],
        })?;
        self.here = place;
        Ok(())
    }

    /// Goes to the node.
    pub fn enter_node(&mut self) -> Result<()> {
        self.go(Place::Node)
    }

    /// Goes to a client host, by its place among all of them.
    pub fn enter_client(&mut self, host: usize) -> Result<()> {
        self.go(Place::Client(host))
    }

    fn home(&self, pod: PodId) -> Result<(usize, Ipv4Addr)> {
        let home = self.homes.get(&pod).copied();
        home.with_context(|| format!("{pod} has no address"))
    }

    /// A pod gets its address.
    pub fn assign(&mut self, pod: PodId, address: Ipv4Addr) -> Result<()> {
        let number = self.homes.len();
        if number >= self.pods.len() {
            bail!("the rollout makes more pods than the scenario says");
        }
        self.enter_node()?;
        ip(&format!("-n pod{number} address add {address}/32 dev eth0"))?;
        ip(&format!("route replace {address}/32 dev cni0"))?;
        self.homes.insert(pod, (number, address));
        Ok(())
    }

    fn door(&mut self, number: usize, address: Ipv4Addr) -> Result<Door> {
        self.go(Place::Pod(number))?;
        let at = SocketAddrV4::new(address, self.port);
        let door = match self.proto {
            Proto::Tcp => listener(at, self.backlog).map(Door::Tcp),
            Proto::Udp => UdpSocket::bind(at).map(Door::Udp),
        };
        door.context("a pod cannot listen")
    }

    /// A listening socket in a pod.
    pub fn listen(&mut self, pod: PodId) -> Result<Door> {
        let (number, address) = self.home(pod)?;
        self.door(number, address)
    }

    /// The end of a pod's address as the node sees it.
    pub fn bury(&mut self, pod: PodId, end: &DeadEnd) -> Result<()> {
        let (number, address) = self.home(pod)?;
        self.enter_node()?;
        // A pod that is gone sends nothing more either: no FIN again, which would re-arm its entry.
        if !matches!(end, DeadEnd::Reset | DeadEnd::ArpFailure) {
            ip(&format!("-n pod{number} link set eth0 down"))?;
        }
        match end {
            DeadEnd::Unreachable => ip(&format!("route replace unreachable {address}/32")),
            // A neighbour that does not exist: the bridge floods the frame and everybody ignores it.
            DeadEnd::Blackhole | DeadEnd::Reassigned(_) => ip(&format!(
                "neighbour replace {address} lladdr 02:00:00:00:00:{number:02x} dev cni0 nud permanent"
            )),
            // The peer of a deleted end goes with it, and the namespace has nothing else.
            DeadEnd::ArpFailure => ip(&format!("link del pod{number}")),
            DeadEnd::Reset => Ok(()),
        }
    }

    /// Another pod gets the address of one that is gone; with `open` it has a door like that of the service.
    pub fn inherit(&mut self, pod: PodId, open: bool) -> Result<Option<Door>> {
        let (_, address) = self.home(pod)?;
        let heir = self.homes.len() + self.homes.keys().take_while(|other| **other != pod).count();
        if heir >= self.pods.len() {
            bail!("no namespace is left for the heir of {address}");
        }
        self.enter_node()?;
        ip(&format!("-n pod{heir} address add {address}/32 dev eth0"))?;
        ip(&format!("neighbour del {address} dev cni0"))?;
        if open {
            return self.door(heir, address).map(Some);
        }
        Ok(None)
    }
}

/// What the client hosts of a table are told.
fn tcp_sysctls(table: &Client) -> Result<()> {
    let tcp = table.tcp();
    let (first, last) = tcp.local_ports;
    set_sysctl("net.ipv4.ip_local_port_range", format!("{first} {last}"))?;
    set_sysctl("net.ipv4.tcp_tw_reuse", tcp.tw_reuse)?;
    set_sysctl("net.ipv4.tcp_timestamps", u8::from(tcp.timestamps))?;
    set_sysctl("net.ipv4.tcp_syn_retries", tcp.syn_retries)?;
    if emulates_ports(table.behaviours()) {
        // Before 6.5 the times between SYNs double from the first on; older kernels of the lab do not have it.
        let _ = set_sysctl("net.ipv4.tcp_syn_linear_timeouts", 0);
    }
    Ok(())
}

/// The rules that a node with kube-proxy has, as far as they matter: something that makes conntrack track, a nat table.
fn rules(scenario: &Scenario) -> Result<()> {
    let track = "-w -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT";
    line("iptables-legacy", track)?;
    let append = |rule: &str| {
        line(
            "iptables-legacy",
            &format!("-w -t nat -A POSTROUTING {rule}"),
        )
    };
    let (policy, sources) = source_nat(scenario);
    for (first, last, theirs) in sources.clients {
        if theirs != SourceNat::NullBinding {
            bail!("the lab does not play different masquerading for different clients");
        }
        for client in first.to_bits()..=last.to_bits() {
            append(&format!(
                "-s {} -o cni0 -j ACCEPT",
                Ipv4Addr::from_bits(client)
            ))?;
        }
    }
    append(match policy {
        SourceNat::Inactive | SourceNat::NullBinding => "-s 192.0.2.1 -j ACCEPT",
        SourceNat::Masquerade { random: false, .. } => "-o cni0 -j MASQUERADE",
        SourceNat::Masquerade { random: true, .. } => "-o cni0 -j MASQUERADE --random-fully",
    })
}
