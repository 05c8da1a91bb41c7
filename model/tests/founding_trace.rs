//! The founding trace, exactly: a connection closes, its port comes round 62 to 64 s later, and the SYN goes to the
//! real server that was drained meanwhile (founding case; F3, predictions U1 and U2).
//!
//! The article read its tables in four rounds, 17:58:22 to :27. Its figures fix when the packets came: the second
//! SYN, sent again a second after the first, restarts both entries just before the third reading, and the fourth
//! falls between the two tables' second two: 00:58 in one, 117 in the other.

mod common;

use std::fmt::Write as _;

use common::{A, ACK, B, CLIENT, Flow, Lab, RST, SYN_ACK, at};
use ipvs_model::conntrack::CtRule;
use ipvs_model::ipvs::Rule as Ipvs;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::kube::{
    Proxy, ProxyAction, ProxyConfig, ProxyIo, ProxyLog, ProxyVersion, RealServer, RealServers,
    ServiceProto, ServiceRef,
};
use ipvs_model::node::{Rule, Verdict};
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// Kernels of the article's time: before and after nothing that matters here.
const KERNELS: [&str; 2] = ["4.19.57", "5.4.30"];

/// What the article printed: clock, `ipvsadm -Lnc`, `/proc/net/nf_conntrack`.
const ARTICLE: [(&str, &str, &str); 4] = [
    (
        "17:58:22",
        "TCP 01:00  TIME_WAIT   10.23.31.87:58578  10.20.79.226:31199 10.27.1.249:80",
        "ipv4     2 tcp      6 60 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 [ASSURED] mark=0 zone=0 use=2",
    ),
    (
        "17:58:24",
        "TCP 00:58  TIME_WAIT   10.23.31.87:58578  10.20.79.226:31199 10.27.1.249:80",
        "ipv4     2 tcp      6 58 TIME_WAIT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 [ASSURED] mark=0 zone=0 use=2",
    ),
    (
        "17:58:26",
        "TCP 00:59  SYN_RECV    10.23.31.87:58578  10.20.79.226:31199 10.27.1.249:80",
        "ipv4     2 tcp      6 119 SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 [UNREPLIED] src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 mark=0 zone=0 use=2",
    ),
    (
        "17:58:27",
        "TCP 00:58  SYN_RECV    10.23.31.87:58578  10.20.79.226:31199 10.27.1.249:80",
        "ipv4     2 tcp      6 117 SYN_SENT src=10.23.31.87 dst=10.20.79.226 sport=58578 dport=31199 [UNREPLIED] src=10.27.1.249 dst=10.23.31.87 sport=80 dport=58578 mark=0 zone=0 use=2",
    ),
];

/// One round of the collection script: both tables, the second a moment after the first.
fn read(lab: &mut Lab) -> (String, Vec<String>) {
    let ipvs = lab.ipvsadm();
    lab.wait(Span::from_millis(20));
    (ipvs, lab.proc_conntrack())
}

/// The connection has closed with FINs, the old real server drains, its pod is gone: nobody answers.
fn closed(release: &str) -> (Lab, Flow, Instant) {
    let (mut lab, mut flow) = (Lab::new(release, 0, &[A]), Flow::new(CLIENT));
    lab.open(&mut flow);
    lab.client_closes(&mut flow);
    let closed = lab.now;
    lab.until(closed, Span::from_secs(10));
    lab.replace(A, B);
    (lab, flow, closed)
}

/// Founding case and F3 U1: both listings at the article's four moments, word for word.
#[test]
fn the_articles_four_readings() {
    for release in KERNELS {
        let (mut lab, mut flow, closed) = closed(release);
        assert_eq!(
            lab.ct_of(&flow),
            "TIME_WAIT 110 [ASSURED]",
            "120 s from the last packet"
        );
        let mut text = String::new();
        for (round, ms) in [59_970, 61_960, 63_950, 65_890].into_iter().enumerate() {
            if round == 2 {
                lab.until(closed, Span::from_millis(62_895));
                assert_eq!(
                    lab.syn(&mut flow),
                    Ok(at(A)),
                    "{release}: the port is reused"
                );
                lab.until(closed, Span::from_millis(63_900));
                lab.again(&mut flow);
            }
            lab.until(closed, Span::from_millis(ms));
            let (ipvs, conntrack) = read(&mut lab);
            let (clock, ipvs_line, ct_line) = ARTICLE[round];
            assert!(
                ipvs.lines().skip(2).eq([ipvs_line]),
                "{release} {clock}: {ipvs}"
            );
            assert_eq!(conntrack, [ct_line], "{release} {clock}");
            writeln!(text, "{clock}\n{ipvs}{}\n", conntrack.join("\n")).expect("text");
        }
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
        }, {
            insta::assert_snapshot!("founding_trace", text);
        });
    }
}

/// F3 U1: the moment of the SYN itself. TIME_WAIT becomes SYN_RECV with 60 s in place, on the same real server; the
/// conntrack entry is killed and a new one made with the same reply source; each table has one entry before and after.
#[test]
fn one_entry_each_before_and_after() {
    for release in KERNELS {
        for secs in [62, 63, 64] {
            let (mut lab, mut flow, closed) = closed(release);
            lab.until(closed, Span::from_secs(secs));
            let old = lab.node.ct.iter().next().expect("one entry").1.serial;
            let left = 120 - secs;
            assert_eq!(
                lab.shows(&flow),
                format!("TIME_WAIT {left} | TIME_WAIT {left} [ASSURED] | 0/1")
            );
            flow.begin_again();
            let decision = lab.client(&mut flow, common::SYN);
            assert_eq!(
                decision.rule,
                Rule::Ipvs(Ipvs::SynKeptAtWeightZero),
                "{release}"
            );
            assert_eq!(decision.ct, Some(CtRule::Reopened), "{release}");
            assert_eq!(
                lab.shows(&flow),
                "SYN_RECV 60 | SYN_SENT 120 [UNREPLIED] | 1/0",
                "{release}"
            );
            assert_eq!(
                lab.server(A).as_deref(),
                Some("0 1/0"),
                "active, on the old one"
            );
            assert_eq!(lab.server(B).as_deref(), Some("1 0/0"));
            assert_eq!(lab.node.ipvs.table().len(), 1, "{release}");
            let entries: Vec<_> = lab.node.ct.iter().map(|(_, entry)| *entry).collect();
            assert_eq!(entries.len(), 1, "{release}");
            assert_ne!(entries[0].serial, old, "{release}: not the old one");
            assert_eq!(entries[0].reply().src, at(A), "{release}");
            assert_eq!(entries[0].reply().dst, flow.client, "{release}");
        }
    }
}

/// F3 U1, last sentence: unanswered, each SYN restarts both timers; since 5.14 only that of IPVS.
#[test]
fn retransmissions_restart_the_timers() {
    for (release, conntrack) in [
        ("4.19.57", ["120", "120", "120"]),
        ("5.4.30", ["120", "120", "120"]),
        ("5.10.44", ["120", "120", "120"]),
        ("5.15.5", ["118", "116", "112"]),
    ] {
        let (mut lab, mut flow, closed) = closed(release);
        lab.until(closed, Span::from_secs(63));
        lab.syn(&mut flow)
            .expect("kept: mode 0 and no fix of the weight-0 rule");
        // A tick more than the second, as the client's own timer is late.
        for (secs, left) in [1, 2, 4].into_iter().zip(conntrack) {
            lab.wait(Span::from_millis(secs * 1000 + 10));
            let retried = lab.again(&mut flow);
            assert_eq!(
                retried.rule,
                Rule::Ipvs(Ipvs::SynKeptAtWeightZero),
                "{release}"
            );
            assert_eq!(
                lab.shows(&flow),
                format!("SYN_RECV 60 | SYN_SENT {left} [UNREPLIED] | 1/0"),
                "{release} after {secs} s more"
            );
        }
    }
}

/// The founding case's three remedies at this SYN: another port has no entry; mode 1 costs a second on these kernels
/// and then reaches the new pod; the fixed kernels reach it at once even in mode 0.
#[test]
fn the_remedies_at_this_syn() {
    let (mut lab, _, closed_at) = closed("4.19.57");
    lab.until(closed_at, Span::from_secs(63));
    let mut other_port = Flow::new("10.23.31.87:58580");
    assert_eq!(lab.syn(&mut other_port), Ok(at(B)));

    let (mut lab, mut flow, closed_at) = closed("4.19.57");
    lab.sysctl(|all| all.vs.conn_reuse_mode = 1);
    lab.until(closed_at, Span::from_secs(63));
    let dropped = (Verdict::Drop, Rule::Ipvs(Ipvs::DroppedWeightZero));
    assert_eq!(lab.syn(&mut flow), Err(dropped));
    lab.wait_s(1);
    lab.again(&mut flow);
    assert_eq!(lab.node.bound_to(&flow.tuple()), Some(at(B)));

    for fixed in ["4.19.219", "5.4.163", "6.12.117"] {
        let (mut lab, mut flow, closed_at) = closed(fixed);
        lab.until(closed_at, Span::from_secs(63));
        assert_eq!(lab.syn(&mut flow), Ok(at(B)), "{fixed}");
    }
}

/// The first collection, 15:14:28: an idle SYN_RECV of a client whose connect() was refused in the end, and a pod that
/// is still there and answers with RST: both end as the facts say.
#[test]
fn what_ends_the_old_real_servers_entries() {
    let (mut lab, mut flow, closed_at) = closed("4.19.57");
    lab.until(closed_at, Span::from_secs(63));
    lab.syn(&mut flow).expect("kept");
    lab.wait_s(51);
    assert_eq!(lab.ipvs_of(&flow), "SYN_RECV 9", "as 00:09 in the article");
    assert_eq!(lab.ct_of(&flow), "SYN_SENT 69 [UNREPLIED]");
    lab.wait_s(12);
    assert_eq!(lab.shows(&flow), "- | - | 0/0");

    let (mut lab, mut flow, closed_at) = closed("4.19.57");
    lab.until(closed_at, Span::from_secs(63));
    lab.syn(&mut flow).expect("kept");
    flow.pod_next = 0;
    lab.pod(&mut flow, RST.with(ACK));
    assert_eq!(lab.shows(&flow), "CLOSE 10 | - | 0/1");
    // And if it still serves, the connection is as good as any.
    lab.syn(&mut flow).expect("kept");
    lab.pod(&mut flow, SYN_ACK);
    lab.client(&mut flow, ACK);
    assert_eq!(
        lab.shows(&flow),
        "ESTABLISHED 900 | ESTABLISHED 432000 [ASSURED] | 1/0"
    );
}

/// The services of the founding case, as kube-proxy numbers them here.
struct Kernel<'a> {
    lab: &'a mut Lab,
    keys: Vec<ServiceKey>,
}

impl RealServers for Kernel<'_> {
    fn list(&self, service: ServiceRef) -> Vec<RealServer> {
        let servers = self
            .lab
            .node
            .ipvs
            .real_servers(self.keys[usize::from(service.0)]);
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
        let key = self.keys[usize::from(service.0)];
        self.lab.node.ipvs.add_dest(key, addr, weight).is_ok()
    }

    fn set_weight(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let key = self.keys[usize::from(service.0)];
        self.lab.node.ipvs.edit_dest(key, addr, weight).is_ok()
    }

    fn delete(&mut self, service: ServiceRef, addr: Endpoint) -> bool {
        let (key, now) = (self.keys[usize::from(service.0)], self.lab.now);
        self.lab.node.ipvs.delete_dest(now, key, addr).is_ok()
    }
}

const OLD: [&str; 2] = ["10.27.1.245:80", "10.27.1.246:80"];
const NEW: [&str; 2] = ["10.27.1.248:80", "10.27.1.249:80"];
/// NodePort, load balancer, ClusterIP: only the first has traffic.
const SERVICES: [&str; 3] = [common::NODE_PORT, "10.20.81.251:80", "10.27.255.42:80"];

/// kube-proxy and the kernel of one node.
struct Drain {
    lab: Lab,
    keys: Vec<ServiceKey>,
    proxy: Proxy,
    log: Vec<ProxyLog>,
}

impl Drain {
    fn new() -> Self {
        let mut lab = Lab::new("4.19.57", 0, &[]);
        let others = [SERVICES[1], SERVICES[2]].map(|addr| lab.add_service(addr, None));
        let keys = vec![lab.key, others[0], others[1]];
        let release: ProxyVersion = "1.17.0".parse().expect("release");
        let minute = Instant::from_secs(60);
        let mut proxy = Proxy::running(
            ProxyConfig::of(release.behaviours()),
            minute,
            Instant::NEVER,
        );
        for _ in SERVICES {
            proxy.add_service(ServiceProto::Tcp);
        }
        Self {
            lab,
            keys,
            proxy,
            log: Vec::new(),
        }
    }

    /// The endpoints of all three services are now these.
    fn endpoints(&mut self, pods: &[&str]) {
        let wanted: Vec<Endpoint> = pods.iter().map(|pod| at(pod)).collect();
        for service in 0..SERVICES.len() {
            let service = ServiceRef(u16::try_from(service).expect("three"));
            self.proxy
                .endpoints_changed(self.lab.now, service, wanted.clone(), Span::ZERO);
        }
        let now = self.lab.now;
        self.io(|proxy, io| proxy.sync_now(now, io));
    }

    /// Lets kube-proxy check its list until `secs`.
    fn until(&mut self, secs: u64) {
        while let Some(next) = self.proxy.next()
            && next <= Instant::from_secs(secs)
        {
            self.lab.until(next, Span::ZERO);
            self.io(|proxy, io| proxy.poll(next, io));
        }
        self.lab.until(Instant::from_secs(secs), Span::ZERO);
    }

    fn io(&mut self, act: impl FnOnce(&mut Proxy, &mut ProxyIo<'_>)) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut kernel = Kernel {
            lab: &mut self.lab,
            keys: self.keys.clone(),
        };
        let mut io = ProxyIo {
            ipvs: &mut kernel,
            rng: &mut rng,
            draw: &mut |_| Span::ZERO,
            log: &mut self.log,
        };
        act(&mut self.proxy, &mut io);
    }

    /// `last octet=weight` of each real server, by service.
    fn weights(&self) -> Vec<String> {
        let of = |key: &ServiceKey| {
            let mut all: Vec<_> = self
                .lab
                .node
                .ipvs
                .real_servers(*key)
                .map(|server| format!("{}={}", server.addr.ip.octets()[3], server.weight))
                .collect();
            all.sort();
            all.join(" ")
        };
        self.keys.iter().map(of).collect()
    }
}

/// F3 U2 and the article's first collection: the real servers are drained per virtual service. The ClusterIP and the
/// load balancer's address had no traffic and drop the old pods in the first pass, without weight 0 in between; the
/// NodePort keeps them at weight 0 while it has entries, and entries of other services do not count.
#[test]
fn an_idle_virtual_service_drops_the_old_real_servers_at_once() {
    let mut drain = Drain::new();
    drain.endpoints(&OLD);
    for port in [27307, 26633, 59462] {
        let mut flow = Flow::new(&format!("10.23.31.87:{port}"));
        drain.lab.open(&mut flow);
        drain.lab.server_closes(&mut flow);
    }
    drain.lab.until(Instant::from_secs(5), Span::ZERO);
    drain.endpoints(&NEW);
    assert_eq!(
        drain.weights(),
        ["245=0 246=0 248=1 249=1", "248=1 249=1", "248=1 249=1"]
    );
    let zeroed: Vec<_> = drain
        .log
        .iter()
        .filter(|entry| entry.action == ProxyAction::WeightSet(0))
        .map(|entry| entry.service)
        .collect();
    assert_eq!(
        zeroed,
        [ServiceRef(0); 2],
        "never weight 0 without connections"
    );

    // The reused port holds one of the two; the other goes at the first check after its entries.
    drain.until(70);
    let mut flow = Flow::new("10.23.31.87:59462");
    let held = drain.lab.syn(&mut flow).expect("kept").ip.octets()[3];
    assert!([245, 246].contains(&held));
    drain.until(125);
    drain.lab.again(&mut flow);
    drain.until(181);
    assert_eq!(
        drain.weights(),
        [
            &format!("{held}=0 248=1 249=1"),
            "248=1 249=1",
            "248=1 249=1"
        ]
    );
    drain.until(241);
    assert_eq!(drain.weights(), ["248=1 249=1"; 3]);
}
