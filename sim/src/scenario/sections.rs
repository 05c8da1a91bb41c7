//! The sections of a scenario file.

use std::net::Ipv4Addr;

use ipvs_model::kernel::{Behaviours, Kernel};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::sysctl::TcpSysctls;
use ipvs_model::time::Span;

use super::field::{choice, section};
use super::rollout::Rollout;
use super::values::{
    CiliumVersion, Dist, GateTable, Hz, OrKernel, Phase, PortChoice, Ports, ProxyVersion,
    SysctlTable, kernel,
};

const fn ms(millis: u64) -> Span {
    Span::from_millis(millis)
}

const fn secs(secs: u64) -> Span {
    Span::from_secs(secs)
}

section! {
    /// A rollout behind one virtual service, as a file describes it. Every field has a default; together the
    /// defaults are the founding case: two nginx pods behind a NodePort, replaced while one client keeps calling.
    pub struct Scenario {
        /// Version of this format.
        schema: u32 = 1; in 1..=1,
        /// Name for reports.
        name: String = "founding-case".to_owned(),
        /// What the scenario shows, for people.
        description: String = "The rollout of the founding case: pods replaced behind a NodePort while one client \
                               reuses its ports."
            .to_owned(),
        /// Simulated time, from the start of the load to the end.
        duration: Span = secs(420); in secs(1)..=secs(86_400),
        /// Requests that start before this moment run but are not counted.
        warmup: Span = secs(0),
        /// The node that balances.
        node: Node = Node::default(),
        /// kube-proxy, or the script that plays it.
        kube_proxy: KubeProxy = KubeProxy::default(),
        /// Cilium, where it balances.
        cilium: Cilium = Cilium::default(),
        /// The virtual service.
        service: Service = Service::default(),
        /// What stands between remote clients and the node.
        load_balancer: LoadBalancer = LoadBalancer::None,
        /// Who calls: one table for each kind of client.
        client: Vec<Client> = vec![Client::default()],
        /// The pods behind the service.
        server: Server = Server::default(),
        /// Ways and their latencies.
        network: Network = Network::default(),
        /// What happens to the pods during the run.
        rollout: Rollout = Rollout::default(),
    }
}

section! {
    /// The node that balances: its kernel, data plane and sysctls.
    pub struct Node {
        /// Kernel release as `uname -r` prints it; the default is vanilla 4.19.57, of the branch that managed
        /// clusters ran in 2020, before every fix. `sim kernels RELEASE` tells what the model makes of it.
        kernel: Kernel = kernel("4.19.57"),
        /// Behaviours that differ from what the release says, by the names that `sim kernels` lists; for vendor
        /// kernels with patches of their own.
        kernel_gates: GateTable = GateTable::default(),
        /// Whether behaviours that the release does not tell (distribution and vendor kernels) count as present.
        assume_backports: bool = false,
        /// Timer interrupts a second, CONFIG_HZ; sets how late the kernel's timers fire. Debian and Ubuntu 250,
        /// RHEL 1000. Source: `kernel/time/timer.c`, `calc_wheel_index`.
        hz: Hz = Hz(250),
        /// How long the node had been up when the run starts; it sets the phase of the timer wheel. "random" draws
        /// up to ten days anew in every run.
        uptime: Phase = Phase::Random,
        /// What balances.
        mode: DataPlane = DataPlane::Ipvs,
        /// The node's own address: the source of masqueraded packets and of its ICMP errors.
        address: Ipv4Addr = Ipv4Addr::new(10, 20, 79, 226),
        /// Raw sysctls as in `sysctl -a`, applied last: over the kernel's defaults and what kube-proxy sets. Keys
        /// may stand in quotes or without. IPVS and conntrack keys act on the node, TCP keys on clients with location
        /// "host".
        sysctl: SysctlTable = SysctlTable::default(),
    }
}

choice! {
    /// What balances on the node.
    #[derive(Copy)]
    pub enum DataPlane {
        /// IPVS with conntrack, as kube-proxy in IPVS mode.
        "ipvs" => Ipvs,
        /// DNAT rules chosen at random for each new connection, as kube-proxy in iptables mode.
        "iptables" => Iptables,
        /// The same in nftables, as kube-proxy in nftables mode.
        "nftables" => Nftables,
        /// Cilium's kube-proxy replacement, packet by packet: traffic from outside, or pods without socket load balancing.
        "cilium-packet" => CiliumPacket,
        /// Cilium's socket load balancer: connect() itself goes to a pod.
        "cilium-socket" => CiliumSocket,
        /// Nothing: a headless service. Clients resolve its name and connect to pods; with requests_per_connection, to
        /// each pod through a pool of its own.
        "headless" => Headless,
    }
}

section! {
    /// Cilium as the balancer, in mode "cilium-packet".
    #[derive(Copy)]
    pub struct Cilium {
        /// Its release. What depends on it: see docs/model.md. Backports to patch releases are not known.
        version: CiliumVersion = CiliumVersion(ipvs_model::kernel::Version(1, 11, 6)),
        /// bpf-ct-timeout-service-tcp: life of a TCP service entry after its last packet. Default: the flag's of 2022;
        /// 8000 s in current releases.
        service_timeout: Span = secs(21_600); in secs(1)..=secs(864_000),
        /// bpf-ct-timeout-service-tcp-grace: so long after its last packet a closed entry keeps its backend, from 1.12 on.
        service_grace: Span = secs(60); in secs(0)..=secs(864_000),
        /// conntrack-gc-interval: between two runs of the collector, which alone ends an entry. The default is the agent's
        /// first interval; its later ones adapt, which is not modelled.
        gc_interval: Span = secs(300); in secs(1)..=secs(86_400),
    }
}

section! {
    /// kube-proxy: what it sets, and when it follows the endpoints.
    #[derive(Copy)]
    pub struct KubeProxy {
        /// Release of kube-proxy, which decides the sysctls it sets and how it drains; "none" is a scripted controller
        /// that adds new pods, sets old ones to weight 0, deletes them at the check, and sets no sysctls.
        version: ProxyVersion = ProxyVersion::Release(ipvs_model::kernel::Version(1, 17, 0)),
        /// IPVS scheduler. Source: kube-proxy's default is rr.
        scheduler: Scheduler = Scheduler::Rr,
        /// From the change of a pod to the change of the endpoints that kube-proxy sees. The default is an assumption
        /// for an idle control plane (tens to hundreds of milliseconds; seconds under load).
        endpoint_latency: Dist = Dist::Uniform(ms(10), ms(200)),
        /// From endpoints seen to real servers changed. The default is an assumption for a small cluster; thousands
        /// of services take seconds.
        sync_latency: Dist = Dist::Uniform(ms(5), ms(50)),
        /// When the check that deletes drained real servers runs first; "random" draws one period anew in every run,
        /// because it depends on when kube-proxy started. Source: kube-proxy's graceful termination manager.
        first_check: Phase = Phase::Random,
        /// Time between two checks. Source: kube-proxy `tryDeleteRs`, every minute.
        check_period: Span = secs(60); in secs(1)..=secs(86_400),
        /// Whose address the pods see. Kube-proxy masquerades NodePort traffic unless externalTrafficPolicy is Local;
        /// in the founding case the pods saw the client.
        masquerade: Masquerade = Masquerade::None,
        /// kube-proxy starts anew at this moment: its list of draining real servers is lost. Source: kube-proxy's graceful
        /// termination manager, which keeps it in memory.
        restart_at: Option<Span> = None,
        /// From that start to its first sync: until Services and EndpointSlices have been received. The default is an
        /// assumption for a small cluster.
        restart_takes: Span = secs(2); in secs(0)..=secs(3_600),
        /// Whether kube-proxy sets its sysctls at start (conntrack, conn_reuse_mode, expire_nodest_conn, ...: which
        /// and to what depends on its version and the kernel).
        sets_sysctls: bool = true,
        /// IPVS's timeout of established TCP connections, as `--ipvs-tcp-timeout` or `ipvsadm --set` changes it; 0s leaves the
        /// kernel's 900 s. Source: `ip_vs_set_timeout`.
        tcp_timeout: Span = Span::ZERO; in secs(0)..=secs(864_000),
        /// The same of TCP connections in FIN_WAIT (`--ipvs-tcpfin-timeout`); 0s leaves 120 s. It does not reach TIME_WAIT, whose 120 s
        /// nothing changes.
        tcpfin_timeout: Span = Span::ZERO; in secs(0)..=secs(864_000),
        /// The same of UDP (`--ipvs-udp-timeout`); 0s leaves 300 s.
        udp_timeout: Span = Span::ZERO; in secs(0)..=secs(864_000),
    }
}

choice! {
    /// IPVS scheduler.
    #[derive(Copy)]
    pub enum Scheduler {
        /// Round robin.
        "rr" => Rr,
        /// Weighted round robin.
        "wrr" => Wrr,
        /// Least connections.
        "lc" => Lc,
        /// Weighted least connections.
        "wlc" => Wlc,
        /// Shortest expected delay.
        "sed" => Sed,
        /// Never queue.
        "nq" => Nq,
        /// Source hashing.
        "sh" => Sh,
        /// Maglev hashing.
        "mh" => Mh,
    }
}

choice! {
    /// Source NAT of balanced packets.
    #[derive(Copy)]
    pub enum Masquerade {
        /// The pods see the client's address and port.
        "none" => None,
        /// MASQUERADE: the node's address, the client's port if it is free.
        "masquerade" => Masquerade,
        /// MASQUERADE --random-fully: the node's address, a random port.
        "random-fully" => RandomFully,
        /// What kube-proxy of this version does with this kind of service, policy and client: the node's own processes and
        /// a pod that reaches itself included; --random-fully from 1.16 on. Source: `writeIptablesRules`.
        "kube-proxy" => KubeProxy,
    }
}

choice! {
    /// What kind of address clients call.
    #[derive(Copy)]
    pub enum ServiceKind {
        /// A port of the node, called directly or through a load balancer.
        "node-port" => NodePort,
        /// A cluster address.
        "cluster-ip" => ClusterIp,
    }
}

choice! {
    /// Which endpoints the node uses.
    #[derive(Copy)]
    pub enum TrafficPolicy {
        /// All of the cluster.
        "cluster" => Cluster,
        /// Those on the node. Without any, kube-proxy in IPVS mode falls back to all of the cluster from 1.21 on.
        "local" => Local,
    }
}

choice! {
    /// A load balancer in front of the node. Health checks, and several nodes that balance, are not modelled.
    #[derive(Copy)]
    pub enum LoadBalancer {
        /// None: clients call the service's address.
        "none" => None,
        /// One that keeps the client's address and port.
        "keep" => Keep(KeepingBalancer),
        /// One with full NAT: the node sees the balancer's addresses, and all clients share its ports.
        "replace" => Replace(ReplacingBalancer),
    }
}

section! {
    /// A load balancer that keeps the client's address and port.
    #[derive(Copy)]
    pub struct KeepingBalancer {
        /// What clients call. Default: the founding case's.
        address: Endpoint = Endpoint::new(Ipv4Addr::new(10, 20, 81, 251), 80),
    }
}

section! {
    /// A load balancer with full NAT. How products take their ports is not published: the defaults are assumptions.
    #[derive(Copy)]
    pub struct ReplacingBalancer {
        /// What clients call. Default: the founding case's.
        address: Endpoint = Endpoint::new(Ipv4Addr::new(10, 20, 81, 251), 80),
        /// The first address that the node sees. Default: one of the founding case's.
        source_address: Ipv4Addr = Ipv4Addr::new(100, 97, 130, 6),
        /// How many addresses follow one another.
        sources: u32 = 1; in 1..=256,
        /// Ports of each of them.
        ports: Ports = Ports { low: 1024, high: u16::MAX },
        /// In which order they are taken.
        port_order: PortOrder = PortOrder::Sequential,
        /// How long a closed connection holds its port.
        hold: Span = secs(0); in secs(0)..=secs(3_600),
    }
}

choice! {
    /// In which order a load balancer takes its ports.
    #[derive(Copy)]
    pub enum PortOrder {
        /// Round and round.
        "sequential" => Sequential,
        /// Any that is free.
        "random" => Random,
    }
}

section! {
    /// The virtual service.
    #[derive(Copy)]
    pub struct Service {
        /// Virtual address and port: for a NodePort the node's address and the port.
        address: Endpoint = Endpoint::new(Ipv4Addr::new(10, 20, 79, 226), 31_199),
        /// Port of the pods.
        target_port: u16 = 80; in 1..=65_535,
        /// Transport protocol.
        protocol: Proto = Proto::Tcp,
        /// What kind of address it is: it decides, with the policy, whom masquerade = "kube-proxy" masquerades.
        kind: ServiceKind = ServiceKind::NodePort,
        /// Which endpoints the node uses: spec.externalTrafficPolicy of a node port, spec.internalTrafficPolicy of a cluster
        /// address. "local" needs `server.nodes` to tell.
        traffic_policy: TrafficPolicy = TrafficPolicy::Cluster,
        /// Session affinity by client address: how long a client stays with its pod; Kubernetes' default is 10800 s
        /// when it is switched on.
        session_affinity: Option<Span> = None,
        /// How long clients of a headless service keep a name server's answer. Default: the ttl of CoreDNS's kubernetes
        /// plugin; many runtimes keep it longer.
        dns_ttl: Span = secs(5); in secs(0)..=secs(86_400),
    }
}

section! {
    /// A kind of client: hosts that call the service.
    pub struct Client {
        /// Address of the first of them.
        address: Ipv4Addr = Ipv4Addr::new(10, 23, 31, 87),
        /// How many there are, with consecutive addresses. They share the arrivals evenly, in turn.
        count: u32 = 1; in 1..=65_536,
        /// Kernel release; decides how connect() chooses ports and repeats a SYN.
        kernel: Kernel = kernel("4.19.57"),
        /// Timer interrupts a second, CONFIG_HZ.
        hz: Hz = Hz(250),
        /// How long the hosts had been up when the run starts: the phase of their timers, and from 5.18 on of the
        /// ten seconds after which connect() searches its ports from another start. "random" draws up to ten days anew
        /// in every run, for each host.
        uptime: Phase = Phase::Random,
        /// Ephemeral ports, net.ipv4.ip_local_port_range: both ends, or a number of ports from 32768 on. "kernel" is
        /// 32768-60999 since 4.2, 28232 ports, of which connect() prefers the 14116 even ones. Source:
        /// `__inet_hash_connect`.
        ports: OrKernel<Ports> = OrKernel(None),
        /// Who chooses the source port: connect(), bind() to port 0, or the application from a list. Of a UDP service:
        /// "connect" is a new socket on a random port for each request (source: `udp_lib_get_port`); a list is bound once
        /// and used in turn; `{ pool = N }` is N sockets that stay open, used in turn.
        port_choice: PortChoice = PortChoice::Connect,
        /// net.ipv4.tcp_tw_reuse, 0 to 2: whether connect() may take a port in TIME_WAIT. "kernel" is 2 (loopback
        /// only) since 4.19, before 0. Source: `tcp_twsk_unique`.
        tcp_tw_reuse: OrKernel<u8> = OrKernel(None),
        /// net.ipv4.tcp_timestamps.
        tcp_timestamps: bool = true,
        /// net.ipv4.tcp_syn_retries, 1 to 127: how often a SYN is repeated. "kernel" is 6: the
        /// connect() fails after 127 s, or 131 s from 6.5 on.
        syn_retries: OrKernel<u8> = OrKernel(None),
        /// Where the clients run.
        location: Location = Location::Remote,
        /// When requests start. The rate and the concurrency are of all clients of this table together.
        arrivals: Arrivals = Arrivals::Constant(Rate::default()),
        /// When the load starts.
        start: Span = secs(0),
        /// When the load ends; "none" is the end of the run.
        stop: Option<Span> = None,
        /// Requests on one connection before it is closed; 1 is no keep-alive.
        requests_per_connection: u32 = 1; in 1..=1_000_000,
        /// Who sends the first FIN. It decides which side keeps TIME_WAIT, and so how soon a port comes round: with the
        /// server first, the client may reuse it at once.
        closes_first: Side = Side::Server,
        /// Bytes of a request.
        request_bytes: u32 = 80; in 1..=1_000_000_000,
        /// Bytes of a response; the default is nginx's welcome page with its headers, about.
        response_bytes: u32 = 850; in 1..=1_000_000_000,
        /// The application gives up a connect() after this time; "none" leaves it to the kernel.
        connect_timeout: Option<Span> = None,
        /// The application gives up a request, connecting included, after this time. It does not try again.
        timeout: Option<Span> = Some(secs(5)),
        /// How a client of a UDP service asks.
        udp: Udp = Udp::default(),
    }
}

section! {
    /// A client of a UDP service: one datagram asks, one answers, as in DNS. `timeout` ends a request that has no answer.
    #[derive(Copy)]
    pub struct Udp {
        /// How often a datagram without an answer is sent again. Default: musl's resolver; glibc's is once too.
        retries: u32 = 1; in 0..=1_000,
        /// From a datagram to its repetition. Default: musl's 2.5 s; glibc: 5 s, with a `timeout` of 10 s.
        retry_after: Span = ms(2_500); in ms(1)..=secs(3_600),
        /// The source port of a repetition.
        retry_port: RetryPort = RetryPort::Same,
        /// Whether the socket is connected, so that ICMP errors reach the application and end the request (glibc, dig,
        /// Go); an unconnected one never hears of them (musl).
        connected: bool = true,
    }
}

choice! {
    /// The source port of a repeated datagram.
    #[derive(Copy)]
    pub enum RetryPort {
        /// The request's own, from the same socket (glibc, musl, dig).
        "same" => Same,
        /// Another one, from a new socket (Go's resolver).
        "new" => New,
    }
}

choice! {
    /// Where a client runs: which hooks its packets pass, and whether the fabric is between it and the node.
    #[derive(Copy)]
    pub enum Location {
        /// Another machine.
        "remote" => Remote,
        /// The node's own network namespace: source address is the virtual address.
        "host" => Host,
        /// A pod on the node.
        "pod" => Pod,
    }
}

choice! {
    /// When requests start.
    #[derive(Copy)]
    pub enum Arrivals {
        /// At equal distances, whether or not earlier ones were answered.
        "constant" => Constant(Rate),
        /// At random moments with a mean rate, whether or not earlier ones were answered.
        "poisson" => Poisson(Rate),
        /// Each of a number of workers starts its next request after its last one ended.
        "closed" => Closed(Closed),
    }
}

section! {
    /// An open loop's rate.
    #[derive(Copy)]
    pub struct Rate {
        /// Requests a second, of all clients of the table together.
        rate: f64 = 500.0; in 0.001..=10_000_000.0,
    }
}

section! {
    /// A closed loop.
    #[derive(Copy)]
    pub struct Closed {
        /// Workers, of all clients of the table together.
        concurrency: u32 = 50; in 1..=1_000_000,
        /// From the end of a request to the start of the worker's next one.
        think_time: Dist = Dist::Constant(secs(0)),
    }
}

choice! {
    /// One end of a connection.
    #[derive(Copy)]
    pub enum Side {
        /// The pod.
        "server" => Server,
        /// The caller.
        "client" => Client,
    }
}

section! {
    /// The pods: their kernel, their server process, their addresses and what becomes of these.
    pub struct Server {
        /// Kernel release of the nodes that the pods run on.
        kernel: Kernel = kernel("4.19.57"),
        /// Timer interrupts a second, CONFIG_HZ.
        hz: Hz = Hz(250),
        /// How long the pods' nodes had been up when the run starts; "random" draws up to ten days anew in every run.
        uptime: Phase = Phase::Random,
        /// The backlog that the server gives to listen(); the kernel caps it at net.core.somaxconn. Default: nginx.
        backlog: u32 = 511; in 1..=1_000_000,
        /// From a request read to its response written.
        service_time: Dist = Dist::Constant(ms(1)),
        /// The server closes a kept-alive connection that was idle for this time. Default: nginx keepalive_timeout.
        keep_alive_timeout: Span = secs(75),
        /// Nodes that the pods run on, in turn; the first is the one that balances. It matters for traffic_policy "local".
        nodes: u32 = 1; in 1..=1_000,
        /// Address of the first pod that runs at the start; the others follow.
        old_address: Ipv4Addr = Ipv4Addr::new(10, 27, 1, 245),
        /// Address of the first pod that the rollout starts; the others follow. "none" is the address after the old pods'.
        new_address: Option<Ipv4Addr> = None,
        /// From the exit of the last container to the moment at which its address is gone; until then its node answers
        /// with RST. The default is an assumption (container runtime and CNI, 0.1 to 3 s).
        address_gone_after: Dist = Dist::Uniform(ms(100), secs(3)),
        /// What answers for an address that is gone.
        dead_end: DeadEnd = DeadEnd::Blackhole,
    }
}

choice! {
    /// What answers for the address of a pod that is gone.
    #[derive(Copy)]
    pub enum DeadEnd {
        /// Nothing: cloud interfaces and some overlays drop silently. Clients see timeouts.
        "blackhole" => Blackhole,
        /// ICMP host unreachable at once, from a route of type unreachable. Clients see "No route to host".
        "unreachable" => Unreachable,
        /// ICMP host unreachable after three seconds of unanswered ARP: bridge networks.
        "arp-failure" => ArpFailure,
        /// RST: something owns the address and nothing listens.
        "reset" => Reset,
        /// Silence, then another pod on the same address.
        "reassigned" => Reassigned(Reassigned),
    }
}

section! {
    /// An address that is given to another pod.
    #[derive(Copy)]
    pub struct Reassigned {
        /// From the address being gone to its new owner being up. Default: cooldown of the AWS VPC CNI.
        after: Span = secs(30),
        /// What the new owner does with connections to the service's port.
        port: NewOwner = NewOwner::Closed,
    }
}

choice! {
    /// What the new owner of an address does with connections to the service's port.
    #[derive(Copy)]
    pub enum NewOwner {
        /// Nothing listens: RST.
        "closed" => Closed,
        /// Another service listens and answers: wrong, but answered.
        "open" => Open,
    }
}

section! {
    /// Ways between clients, node and pods.
    #[derive(Copy)]
    pub struct Network {
        /// One-way latency between client and node.
        client_node: Dist = Dist::Constant(Span::from_micros(250)),
        /// One-way latency between node and pod.
        node_pod: Dist = Dist::Constant(Span::from_micros(100)),
        /// Which way the pods' answers take.
        return_path: ReturnPath = ReturnPath::Node,
    }
}

choice! {
    /// Which way the pods' answers take.
    #[derive(Copy)]
    pub enum ReturnPath {
        /// Back through the node, which restores the virtual address.
        "node" => Node,
        /// Straight to the client, past the node: the client sees an answer from an address that it did not call.
        "direct" => Direct,
        /// The first so many pods of each generation answer straight, the others through the node: pods with a cloud
        /// interface of their own next to pods on the node.
        "first_pods_direct" => FirstPodsDirect(u32),
    }
}

impl Node {
    /// What the node's kernel does: its release, then the overrides.
    pub fn behaviours(&self) -> Behaviours {
        let start = self.kernel.behaviours_assuming(self.assume_backports);
        let set = |set: Behaviours, (gate, present): (&_, &bool)| set.with(*gate, *present);
        self.kernel_gates.0.iter().fold(start, set)
    }
}

impl Client {
    /// What the clients' kernel does.
    pub fn behaviours(&self) -> Behaviours {
        self.kernel.behaviours()
    }

    /// The clients' TCP sysctls: the kernel's defaults, then what the scenario says.
    pub fn tcp(&self) -> TcpSysctls {
        let mut tcp = TcpSysctls::of(self.behaviours());
        if let Some(ports) = self.ports.0 {
            tcp.local_ports = (ports.low, ports.high);
        }
        if let Some(tw_reuse) = self.tcp_tw_reuse.0 {
            tcp.tw_reuse = tw_reuse;
        }
        if let Some(retries) = self.syn_retries.0 {
            tcp.syn_retries = retries;
        }
        tcp.timestamps = self.tcp_timestamps;
        tcp
    }

    /// The addresses of all clients of this table.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = self.address.to_bits();
        (0..self.count).map(move |index| Ipv4Addr::from_bits(first.wrapping_add(index)))
    }
}

impl Scenario {
    /// Address of the first pod that the rollout starts.
    pub fn new_address(&self) -> Ipv4Addr {
        let after_old = self
            .server
            .old_address
            .to_bits()
            .wrapping_add(self.rollout.old_pods());
        self.server
            .new_address
            .unwrap_or(Ipv4Addr::from_bits(after_old))
    }
}

impl Server {
    /// What the pods' kernel does.
    pub fn behaviours(&self) -> Behaviours {
        self.kernel.behaviours()
    }
}
