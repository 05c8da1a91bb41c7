//! Field cases that no scenario can say: restarts of kube-proxy, `ipvsadm -d` by hand, one pod behind two virtual
//! services. kube-proxy's own model works on the model's IPVS here.

use std::net::Ipv4Addr;

use ipvs_model::conntrack::SourceNat;
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::ipvs::{Ipvs, Rule as IpvsRule};
use ipvs_model::kernel::Kernel;
use ipvs_model::kube::{
    Proxy, ProxyAction, ProxyConfig, ProxyIo, ProxyLatency, ProxyLog, ProxyVersion, RealServer,
    RealServers, ServiceProto, ServiceRef,
};
use ipvs_model::node::{Balancer, Decision, Node, NodeConfig, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Flags, IcmpKind, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Span};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

const SERVICE: ServiceRef = ServiceRef(0);
const OTHER: ServiceRef = ServiceRef(1);

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

fn at(secs: u64) -> Instant {
    Instant::from_secs(secs)
}

fn pod(number: u8) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(10, 27, 1, number), 80)
}

/// A node with kube-proxy and two virtual services.
struct Cluster {
    node: Node,
    proxy: Proxy,
    keys: [ServiceKey; 2],
    rng: ChaCha8Rng,
    log: Vec<ProxyLog>,
    now: Instant,
}

/// The node's IPVS as kube-proxy sees it.
struct Servers<'a> {
    ipvs: &'a mut Ipvs,
    keys: [ServiceKey; 2],
    now: Instant,
}

impl Servers<'_> {
    fn key(&self, service: ServiceRef) -> ServiceKey {
        self.keys[usize::from(service.0)]
    }
}

impl RealServers for Servers<'_> {
    fn list(&self, service: ServiceRef) -> Vec<RealServer> {
        let servers = self.ipvs.real_servers(self.key(service));
        servers
            .map(|server| RealServer {
                addr: server.addr,
                weight: server.weight,
                active: server.active,
                inactive: server.inactive,
            })
            .collect()
    }

    fn add(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let key = self.key(service);
        self.ipvs.add_dest(key, addr, weight).is_ok()
    }

    fn set_weight(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let key = self.key(service);
        self.ipvs.edit_dest(key, addr, weight).is_ok()
    }

    fn delete(&mut self, service: ServiceRef, addr: Endpoint) -> bool {
        let key = self.key(service);
        self.ipvs.delete_dest(self.now, key, addr).is_ok()
    }
}

impl Cluster {
    /// Pods `.1` to `.n` behind both services; kube-proxy has run for long and checks every whole minute.
    fn new(kernel: &str, proxy: &str, pods: u8) -> Self {
        let kernel = kernel.parse::<Kernel>().unwrap().behaviours();
        let mut sysctls = Sysctls::of(kernel);
        (sysctls.vs.conntrack, sysctls.vs.expire_nodest_conn) = (true, true);
        sysctls.vs.conn_reuse_mode = 0;
        let clock = Clock::new(250, kernel.timer_era(), Span::ZERO);
        let mut node = Node::new(NodeConfig {
            kernel,
            clock,
            sysctls,
            balancer: Balancer::Ipvs,
            source_nat: SourceNat::NullBinding,
            tracking: true,
        });
        let config = ProxyConfig::of(proxy.parse::<ProxyVersion>().unwrap().behaviours());
        let mut proxy = Proxy::running(config, at(60), at(3_600));
        let keys =
            ["10.20.79.226:31199", "10.27.255.42:80"].map(|text| ServiceKey::tcp(endpoint(text)));
        for key in keys {
            let added = node
                .ipvs
                .add_service(key, Kind::Rr, SchedFlags::default(), None);
            added.unwrap();
            node.add_local(key.addr.ip);
            proxy.add_service(ServiceProto::Tcp);
        }
        let mut cluster = Self {
            node,
            proxy,
            keys,
            rng: ChaCha8Rng::seed_from_u64(1),
            log: Vec::new(),
            now: Instant::ZERO,
        };
        cluster.want(&(1..=pods).map(pod).collect::<Vec<_>>());
        cluster
    }

    fn with_io<T>(&mut self, act: impl FnOnce(&mut Proxy, Instant, &mut ProxyIo<'_>) -> T) -> T {
        let mut servers = Servers {
            ipvs: &mut self.node.ipvs,
            keys: self.keys,
            now: self.now,
        };
        let mut draw = |kind: ProxyLatency| match kind {
            // The lists arrive two seconds after the start.
            ProxyLatency::Received => Span::from_secs(2),
            _ => Span::ZERO,
        };
        let mut io = ProxyIo {
            ipvs: &mut servers,
            rng: &mut self.rng,
            draw: &mut draw,
            log: &mut self.log,
        };
        act(&mut self.proxy, self.now, &mut io)
    }

    /// The endpoints change, and kube-proxy follows at once.
    fn want(&mut self, pods: &[Endpoint]) {
        for service in [SERVICE, OTHER] {
            self.proxy
                .endpoints_changed(self.now, service, pods.to_vec(), Span::ZERO);
        }
        self.with_io(|proxy, now, io| proxy.sync_now(now, io));
    }

    /// Time goes on to `until`; kube-proxy does what it does.
    fn run(&mut self, until: Instant) {
        while let Some(next) = self.proxy.next().filter(|next| *next <= until) {
            self.now = next.max(self.now);
            self.node.advance(self.now);
            self.with_io(|proxy, now, io| proxy.poll(now, io));
        }
        self.now = until;
        self.node.advance(until);
        self.node.check_invariants(until).unwrap();
    }

    fn client_sends(&mut self, port: u16, flags: Flags) -> Decision {
        let client = Endpoint::new(Ipv4Addr::new(10, 23, 31, 87), port);
        let segment = Segment::new(Tuple::tcp(client, self.keys[0].addr), flags);
        self.node.packet(self.now, &segment, &mut self.rng)
    }

    fn pod_sends(&mut self, server: Endpoint, port: u16, flags: Flags) {
        let client = Endpoint::new(Ipv4Addr::new(10, 23, 31, 87), port);
        let segment = Segment::new(Tuple::tcp(server, client), flags);
        self.node.packet(self.now, &segment, &mut self.rng);
    }

    /// A client connects; the pod that got the connection.
    fn connect(&mut self, port: u16) -> Endpoint {
        let Verdict::Forward(out) = self.client_sends(port, Flags::SYN).verdict else {
            panic!("no destination for port {port}");
        };
        let server = out.tuple.dst;
        self.pod_sends(server, port, Flags::SYN.with(Flags::ACK));
        self.client_sends(port, Flags::ACK);
        server
    }

    /// Weight, active and inactive connections of a real server; `None` if it is not listed.
    fn server(&mut self, service: usize, server: Endpoint) -> Option<(u32, u32, u32)> {
        let mut servers = self.node.ipvs.real_servers(self.keys[service]);
        let found = servers.find(|real| real.addr == server)?;
        Some((found.weight, found.active, found.inactive))
    }
}

/// F3, U2: what kube-proxy does is decided for each virtual service and real server: the service without traffic
/// loses the old pod on the spot and never shows weight 0, the one with traffic keeps it.
#[test]
fn f03_a_service_without_traffic_drops_the_pod_at_once() {
    let mut cluster = Cluster::new("4.19.57", "1.17.0", 1);
    cluster.run(at(10));
    assert_eq!(cluster.connect(30_000), pod(1));
    cluster.want(&[pod(2)]);
    assert_eq!(cluster.server(0, pod(1)), Some((0, 1, 0)));
    assert_eq!(cluster.server(1, pod(1)), None);
    let zeroed: Vec<_> = cluster
        .log
        .iter()
        .filter(|entry| entry.action == ProxyAction::WeightSet(0))
        .map(|entry| entry.service)
        .collect();
    assert_eq!(zeroed, [SERVICE]);
}

/// F7: `ipvsadm -d` by hand cuts the session: with expire_nodest_conn 1 the next packet finds no entry to follow.
#[test]
fn f07_deleting_the_real_server_by_hand_ends_the_session() {
    let mut cluster = Cluster::new("4.19.57", "1.14.5", 1);
    cluster.run(at(10));
    assert_eq!(cluster.connect(30_000), pod(1));
    cluster.want(&[]);
    cluster.run(at(40));
    assert_eq!(cluster.server(0, pod(1)), Some((0, 1, 0)));
    let kept = cluster.client_sends(30_000, Flags::ACK.with(Flags::PSH));
    assert!(matches!(kept.verdict, Verdict::Forward(out) if out.tuple.dst == pod(1)));
    let refused = cluster.client_sends(30_001, Flags::SYN);
    assert_eq!(refused.verdict, Verdict::Reject(IcmpKind::PortUnreachable));
    assert_eq!(refused.rule, Rule::Ipvs(IpvsRule::NoDestination));

    let (now, key) = (cluster.now, cluster.keys[0]);
    cluster.node.ipvs.delete_dest(now, key, pod(1)).unwrap();
    let cut = cluster.client_sends(30_000, Flags::ACK.with(Flags::PSH));
    assert_eq!(cut.verdict, Verdict::Drop);
    assert_eq!(cut.rule, Rule::Ipvs(IpvsRule::DroppedDeleted));
    cluster.run(at(41));
    assert!(cluster.node.ipvs.table().is_empty());
}

/// F7: a session that ends leaves the real server for as long as its closing state lasts: 10 s after a RST, 120 s
/// after FINs, then until the next check.
#[test]
fn f07_the_closing_state_decides_how_long_the_server_stays() {
    for (flags, state, first, last) in [
        (Flags::RST, State::Cl, 10, 120),
        (Flags::FIN.with(Flags::ACK), State::Fw, 120, 240),
    ] {
        let mut cluster = Cluster::new("4.19.57", "1.14.5", 1);
        cluster.run(at(10));
        let server = cluster.connect(30_000);
        cluster.want(&[]);
        cluster.run(at(70));
        cluster.pod_sends(server, 30_000, flags);
        let (_, entry) = cluster.node.ipvs.table().iter().next().unwrap();
        assert_eq!(entry.state(), state);
        assert_eq!(cluster.server(0, pod(1)), Some((0, 0, 1)));
        cluster.run(at(70 + first));
        assert!(cluster.server(0, pod(1)).is_some(), "{state:?}");
        cluster.run(at(70 + last));
        assert_eq!(cluster.server(0, pod(1)), None, "{state:?}");
    }
}

/// Three pods of which the first drains when kube-proxy starts again and finds it wanted.
fn restarted(proxy: &str) -> Cluster {
    let mut cluster = Cluster::new("4.19.57", proxy, 3);
    cluster.run(at(10));
    for port in 0..3 {
        cluster.connect(30_000 + port);
    }
    cluster.want(&[pod(2), pod(3)]);
    assert_eq!(cluster.server(0, pod(1)), Some((0, 1, 0)));
    cluster.run(at(20));
    for service in [SERVICE, OTHER] {
        let wanted = vec![pod(1), pod(2), pod(3)];
        cluster
            .proxy
            .endpoints_changed(at(20), service, wanted, Span::ZERO);
    }
    cluster.with_io(|proxy, now, io| proxy.restart(now, io));
    cluster
}

/// F13: up to 1.25 a real server that kube-proxy finds at weight 0 when it starts stays there for ever, wanted or not:
/// two of three serve. From 1.26 on the first sync puts that right.
#[test]
fn f13_a_restart_strands_a_real_server_at_weight_0_until_1_26() {
    for (version, weight) in [
        ("1.17.0", 0),
        ("1.22.0", 0),
        ("1.25.0", 0),
        ("1.26.0", 1),
        ("1.28.0", 1),
    ] {
        let mut cluster = restarted(version);
        cluster.run(at(600));
        let found = cluster.server(0, pod(1)).map(|server| server.0);
        assert_eq!(found, Some(weight), "{version}");
        for wanted in [pod(2), pod(3)] {
            assert_eq!(
                cluster.server(0, wanted).map(|server| server.0),
                Some(1),
                "{version}"
            );
        }
        // Of three new connections one a real server that serves.
        let got: Vec<_> = (0..6).map(|n| cluster.connect(31_000 + n)).collect();
        assert_eq!(got.contains(&pod(1)), weight == 1, "{version}");
    }
}

/// F13, all at zero: nobody is served at all ("no destination available", #108319).
#[test]
fn f13_with_every_server_stranded_every_connect_is_refused() {
    let mut cluster = Cluster::new("4.19.57", "1.22.0", 1);
    cluster.run(at(10));
    cluster.connect(30_000);
    cluster.want(&[]);
    cluster.run(at(20));
    cluster
        .proxy
        .endpoints_changed(at(20), SERVICE, vec![pod(1)], Span::ZERO);
    cluster.with_io(|proxy, now, io| proxy.restart(now, io));
    cluster.run(at(600));
    assert_eq!(cluster.server(0, pod(1)).map(|server| server.0), Some(0));
    let refused = cluster.client_sends(31_000, Flags::SYN);
    assert_eq!(refused.verdict, Verdict::Reject(IcmpKind::PortUnreachable));
}

/// F13: 1.13 and 1.14.0 delete or drain every real server when they start; until the first sync nobody serves.
#[test]
fn f13_early_releases_drain_everything_at_start() {
    for version in ["1.13.0", "1.14.0"] {
        let mut cluster = Cluster::new("4.19.57", version, 2);
        cluster.run(at(10));
        let busy = cluster.connect(30_000);
        let idle = if busy == pod(1) { pod(2) } else { pod(1) };
        for service in [SERVICE, OTHER] {
            let wanted = vec![pod(1), pod(2)];
            cluster
                .proxy
                .endpoints_changed(cluster.now, service, wanted, Span::ZERO);
        }
        cluster.with_io(|proxy, now, io| proxy.restart(now, io));
        assert_eq!(
            cluster.server(0, idle),
            None,
            "{version}: without connections it vanishes"
        );
        assert_eq!(
            cluster.server(0, busy).map(|server| server.0),
            Some(0),
            "{version}"
        );
        let refused = cluster.client_sends(30_001, Flags::SYN);
        assert_eq!(
            refused.rule,
            Rule::Ipvs(IpvsRule::NoDestination),
            "{version}"
        );
        // The lists arrive after two seconds, and the first sync puts it all back.
        cluster.run(at(13));
        for server in [busy, idle] {
            assert_eq!(
                cluster.server(0, server).map(|server| server.0),
                Some(1),
                "{version}"
            );
        }
        assert_eq!(cluster.connect(30_002).port, 80);
    }
}
