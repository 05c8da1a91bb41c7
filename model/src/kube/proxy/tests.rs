use core::net::Ipv4Addr;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

use super::*;
use crate::kube::version::{ProxyBehaviours, ProxyVersion};

/// The kernel's destination lists: new ones at the head, deleted ones in the trash with their counters, from where
/// the same address revives them (facts, kernel 1.10).
#[derive(Clone, Debug, Default)]
struct FakeIpvs {
    services: Vec<Vec<RealServer>>,
    trash: Vec<(ServiceRef, RealServer)>,
    /// Changing calls, as text.
    calls: Vec<String>,
}

impl FakeIpvs {
    fn with(services: usize) -> Self {
        Self {
            services: vec![Vec::new(); services],
            ..Self::default()
        }
    }

    fn of(&mut self, service: ServiceRef, addr: Endpoint) -> Option<&mut RealServer> {
        self.services[usize::from(service.0)]
            .iter_mut()
            .find(|real| real.addr == addr)
    }

    fn load(&mut self, service: ServiceRef, addr: Endpoint, active: u32, inactive: u32) {
        let real = self.of(service, addr).expect("a real server to load");
        (real.active, real.inactive) = (active, inactive);
    }

    fn weight(&self, service: ServiceRef, addr: Endpoint) -> Option<u32> {
        self.list(service)
            .into_iter()
            .find(|real| real.addr == addr)
            .map(|real| real.weight)
    }

    fn weights(&self, service: ServiceRef) -> String {
        let texts: Vec<_> = self
            .list(service)
            .iter()
            .map(|real| format!("{}={}", real.addr.ip.octets()[3], real.weight))
            .collect();
        texts.join(" ")
    }
}

impl RealServers for FakeIpvs {
    fn list(&self, service: ServiceRef) -> Vec<RealServer> {
        self.services[usize::from(service.0)].clone()
    }

    fn add(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        if self.of(service, addr).is_some() {
            return false;
        }
        let revived = self
            .trash
            .iter()
            .position(|(owner, real)| *owner == service && real.addr == addr);
        let real = match revived {
            Some(index) => RealServer {
                weight,
                ..self.trash.remove(index).1
            },
            None => RealServer {
                addr,
                weight,
                active: 0,
                inactive: 0,
            },
        };
        self.services[usize::from(service.0)].insert(0, real);
        self.calls.push(format!("add {}", addr.ip.octets()[3]));
        true
    }

    fn set_weight(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let Some(real) = self.of(service, addr) else {
            return false;
        };
        real.weight = weight;
        self.calls
            .push(format!("{} at {weight}", addr.ip.octets()[3]));
        true
    }

    fn delete(&mut self, service: ServiceRef, addr: Endpoint) -> bool {
        let list = &mut self.services[usize::from(service.0)];
        let Some(index) = list.iter().position(|real| real.addr == addr) else {
            return false;
        };
        let real = list.remove(index);
        self.trash.push((service, real));
        self.calls.push(format!("delete {}", addr.ip.octets()[3]));
        true
    }
}

fn pod(last: u8) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(10, 0, 0, last), 80)
}

fn pods(lasts: &[u8]) -> Vec<Endpoint> {
    lasts.iter().map(|last| pod(*last)).collect()
}

fn behaviours(version: &str) -> ProxyBehaviours {
    version.parse::<ProxyVersion>().unwrap().behaviours()
}

const S: ServiceRef = ServiceRef(0);

/// One node: kube-proxy, IPVS, and delays that a test sets.
struct Node {
    proxy: Proxy,
    ipvs: FakeIpvs,
    rng: ChaCha8Rng,
    log: Vec<ProxyLog>,
    call: Span,
    received: Span,
    before: Span,
    after: Span,
}

impl Node {
    /// A node whose kube-proxy runs; the next check of its list is at 60 s, its next periodic sync far away.
    fn running(version: &str, proto: ServiceProto) -> Self {
        let config = ProxyConfig::of(behaviours(version));
        let mut proxy = Proxy::running(
            config,
            Instant::from_secs(60),
            Instant::from_secs(1_000_000),
        );
        proxy.add_service(proto);
        Self {
            proxy,
            ipvs: FakeIpvs::with(1),
            rng: ChaCha8Rng::seed_from_u64(1),
            log: Vec::new(),
            call: Span::ZERO,
            received: Span::from_secs(2),
            before: Span::ZERO,
            after: Span::ZERO,
        }
    }

    fn io<T>(&mut self, act: impl FnOnce(&mut Proxy, &mut ProxyIo<'_>) -> T) -> T {
        let (call, received, before, after) = (self.call, self.received, self.before, self.after);
        let mut draw = move |kind| match kind {
            ProxyLatency::Received => received,
            ProxyLatency::Call => call,
            ProxyLatency::BeforeService => before,
            ProxyLatency::AfterServices => after,
        };
        let mut io = ProxyIo {
            ipvs: &mut self.ipvs,
            rng: &mut self.rng,
            draw: &mut draw,
            log: &mut self.log,
        };
        act(&mut self.proxy, &mut io)
    }

    fn sync(&mut self, now: Instant, lasts: &[u8]) {
        self.proxy
            .endpoints_changed(now, S, pods(lasts), Span::ZERO);
        self.io(|proxy, io| proxy.sync_now(now, io));
    }

    /// Polls at every moment that the proxy names, up to `end`.
    fn until(&mut self, end: Instant) {
        while let Some(at) = self.proxy.next().filter(|at| *at <= end) {
            self.io(|proxy, io| proxy.poll(at, io));
        }
    }

    fn rules(&self) -> Vec<ProxyRule> {
        self.log.iter().map(|entry| entry.rule).collect()
    }
}

fn secs(s: u64) -> Instant {
    Instant::from_secs(s)
}

#[test]
fn adds_come_first_and_in_the_order_of_their_text() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.sync(secs(0), &[1]);
    node.sync(secs(1), &[9, 10, 101]);
    // In "ip:port" text 101 comes before 10, because 1 comes before the colon. The old server goes last, and new
    // servers stand at the head of the kernel's list.
    assert_eq!(
        node.ipvs.calls,
        ["add 1", "add 101", "add 10", "add 9", "delete 1"]
    );
    assert_eq!(node.ipvs.weights(S), "9=1 10=1 101=1");
}

/// F3 U2 and F7: without connections it is deleted on the first pass.
#[test]
fn a_real_server_without_connections_is_deleted_at_once_and_never_has_weight_0() {
    for version in ["1.11.4", "1.13.0", "1.14.5", "1.20.0", "1.35.0"] {
        let mut node = Node::running(version, ServiceProto::Tcp);
        node.sync(secs(0), &[1, 2]);
        node.sync(secs(1), &[3, 4]);
        assert_eq!(node.ipvs.weights(S), "4=1 3=1", "{version}");
        assert!(
            node.log
                .iter()
                .all(|entry| entry.action != ProxyAction::WeightSet(0))
        );
    }
}

/// F3 U2: the record is per virtual service; the idle one drops the old pods at once, the NodePort one drains them.
#[test]
fn each_virtual_service_drains_by_its_own_connections() {
    let mut node = Node::running("1.14.5", ServiceProto::Tcp);
    let node_port = node.proxy.add_service(ServiceProto::Tcp);
    node.ipvs = FakeIpvs::with(2);
    let all = |node: &mut Node, now, lasts: &[u8]| {
        for service in [S, node_port] {
            node.proxy
                .endpoints_changed(now, service, pods(lasts), Span::ZERO);
        }
        node.io(|proxy, io| proxy.sync_now(now, io));
    };
    all(&mut node, secs(0), &[245, 246]);
    for last in [245, 246] {
        node.ipvs.load(node_port, pod(last), 0, 14_000);
    }
    all(&mut node, secs(1), &[248, 249]);
    assert_eq!(node.ipvs.weights(S), "249=1 248=1");
    assert_eq!(node.ipvs.weights(node_port), "249=1 248=1 246=0 245=0");
    assert!(node.proxy.is_draining(node_port, pod(245)) && !node.proxy.is_draining(S, pod(245)));
}

/// The release table of facts, kube-proxy 3: what an unwanted real server with these counts becomes.
#[test]
fn each_graceful_termination_release() {
    use ServiceProto::*;
    // Per row: version, protocol, and the weight left with (active, inactive) = (1, 0), (0, 1); None: deleted.
    let rows = [
        ("1.11.4", Tcp, [None, None]),
        ("1.12.1", Udp, [None, None]),
        ("1.13.0", Tcp, [Some(0), None]),
        ("1.13.0", Udp, [Some(0), None]),
        ("1.13.1", Tcp, [Some(0), Some(0)]),
        ("1.14.3", Udp, [Some(0), Some(0)]),
        ("1.14.4", Udp, [None, None]),
        ("1.16.0", Udp, [None, None]),
        ("1.18.6", Sctp, [Some(0), Some(0)]),
        ("1.20.0", Sctp, [None, None]),
        ("1.30.3", Tcp, [Some(0), Some(0)]),
    ];
    for (version, proto, want) in rows {
        for ((active, inactive), want) in [(1, 0), (0, 1)].into_iter().zip(want) {
            let mut node = Node::running(version, proto);
            node.sync(secs(0), &[1, 2]);
            node.ipvs.load(S, pod(1), active, inactive);
            node.sync(secs(1), &[2]);
            assert_eq!(
                node.ipvs.weight(S, pod(1)),
                want,
                "{version} {proto:?} {active}/{inactive}"
            );
            assert_eq!(node.proxy.is_draining(S, pod(1)), want.is_some());
        }
    }
}

/// Facts, kube-proxy 3: the check runs each minute from kube-proxy's start, whatever the rollout does.
#[test]
fn deletion_waits_for_both_counts_at_the_next_full_minute() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.load(S, pod(1), 2, 3);
    node.proxy
        .endpoints_changed(secs(10), S, pods(&[2]), Span::from_millis(300));
    node.until(secs(119));
    assert_eq!(node.ipvs.weights(S), "2=1 1=0");
    assert_eq!(
        node.log.last().map(|entry| (entry.at, entry.rule)),
        Some((secs(60), ProxyRule::CheckWaits))
    );
    node.ipvs.load(S, pod(1), 0, 1);
    node.until(secs(121));
    assert_eq!(
        node.ipvs.weight(S, pod(1)),
        Some(0),
        "an inactive connection keeps it"
    );
    node.ipvs.load(S, pod(1), 0, 0);
    node.until(secs(179));
    assert_eq!(
        node.ipvs.weight(S, pod(1)),
        Some(0),
        "nothing happens between the checks"
    );
    node.until(secs(180));
    assert_eq!(node.ipvs.weight(S, pod(1)), None);
    assert_eq!(node.proxy.draining(), 0);
}

/// F7: one pod with a keep-alive session, 1.14.5: weight 0 at the deletion, gone after the closing state and a check.
#[test]
fn f7_a_session_holds_the_real_server_at_weight_0() {
    let mut node = Node::running("1.14.5", ServiceProto::Tcp);
    node.sync(secs(0), &[1]);
    node.ipvs.load(S, pod(1), 1, 0);
    let t0 = 17;
    node.proxy
        .endpoints_changed(secs(t0), S, vec![], Span::from_millis(200));
    node.until(secs(t0 + 60));
    assert_eq!(
        node.ipvs.weights(S),
        "1=0",
        "no real server takes a new connection"
    );
    // The server resets at the end of the grace period: CLOSE for 10 s, then nothing.
    node.ipvs.load(S, pod(1), 0, 1);
    node.until(secs(t0 + 70));
    node.ipvs.load(S, pod(1), 0, 0);
    node.until(secs(t0 + 70 + 60));
    assert_eq!(
        node.ipvs.weight(S, pod(1)),
        None,
        "10 s + U(0, 60) later at most"
    );
}

/// Facts, kube-proxy 3: a wanted endpoint that drains is deleted and added; the kernel revives its counters.
#[test]
fn a_returning_endpoint_is_deleted_and_added_one_call_after_the_other() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.call = Span::from_millis(5);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.load(S, pod(1), 4, 7);
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[2]), Span::ZERO);
    node.until(secs(2));
    assert!(node.proxy.is_draining(S, pod(1)));
    node.ipvs.calls.clear();
    node.proxy
        .endpoints_changed(secs(3), S, pods(&[1, 2]), Span::ZERO);
    node.until(secs(3));
    assert_eq!(
        node.ipvs.calls,
        ["delete 1"],
        "between the calls the real server is gone"
    );
    assert!(node.proxy.is_syncing());
    node.until(secs(4));
    assert_eq!(node.ipvs.calls, ["delete 1", "add 1"]);
    assert!(!node.proxy.is_draining(S, pod(1)));
    let real = node.ipvs.list(S)[0];
    assert_eq!(
        (real.addr, real.weight, real.active, real.inactive),
        (pod(1), 1, 4, 7)
    );
    let at: Vec<_> = node
        .log
        .iter()
        .filter(|e| e.rule == ProxyRule::Returning)
        .map(|e| e.at)
        .collect();
    assert_eq!(
        at,
        [
            secs(3),
            secs(3) + Span::from_millis(5),
            secs(3) + Span::from_millis(5)
        ]
    );
}

#[test]
fn old_and_new_servers_share_the_traffic_until_the_last_call() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.sync(secs(0), &[1]);
    node.ipvs.load(S, pod(1), 1, 0);
    node.call = Span::from_millis(2);
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[2]), Span::ZERO);
    node.until(secs(1));
    assert_eq!(node.ipvs.weights(S), "2=1 1=1");
    node.until(secs(2));
    assert_eq!(node.ipvs.weights(S), "2=1 1=0");
}

#[test]
fn changes_during_a_sync_are_taken_by_one_sync_after_it() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.before = Span::from_millis(400);
    node.after = Span::from_millis(600);
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[1]), Span::ZERO);
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[1, 2]), Span::from_millis(100));
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[1, 2, 3]), Span::from_millis(50));
    node.until(secs(10));
    let at: Vec<_> = node
        .log
        .iter()
        .map(|entry| (entry.at.0 / 1_000_000, entry.server))
        .collect();
    assert_eq!(at, [(1_400, pod(1)), (2_400, pod(2)), (2_400, pod(3))]);
}

/// F13, #92019 and #108319: 2 of 3 real servers serve for ever up to 1.25, all three from 1.26.
#[test]
fn f13_a_wanted_server_at_weight_0_after_a_restart() {
    for (version, want) in [
        ("1.22.0", "3=1 2=1 1=0"),
        ("1.25.1", "3=1 2=1 1=0"),
        ("1.26.0", "3=1 2=1 1=1"),
    ] {
        let mut node = Node::running(version, ServiceProto::Tcp);
        node.sync(secs(0), &[1, 2, 3]);
        node.ipvs.load(S, pod(1), 1, 0);
        node.sync(secs(1), &[2, 3]);
        node.io(|proxy, io| proxy.restart(secs(2), io));
        node.proxy
            .endpoints_changed(secs(2), S, pods(&[1, 2, 3]), Span::ZERO);
        node.until(secs(4));
        assert_eq!(node.ipvs.weights(S), want, "{version}");
        // It does not heal: not with the connections gone, not in the periodic syncs.
        node.ipvs.load(S, pod(1), 0, 0);
        node.until(secs(1_000));
        assert_eq!(node.ipvs.weights(S), want, "{version}");
        assert_eq!(
            node.rules().contains(&ProxyRule::StaysStranded),
            version != "1.26.0"
        );
    }
}

/// #111635 as merged (kubernetes#131134): every wanted server is written once per server whose weight is not 1.
#[test]
fn the_first_sync_writes_every_wanted_server_once_per_odd_weight() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2, 3]);
    for last in [1, 2] {
        node.ipvs.set_weight(S, pod(last), 0);
    }
    node.ipvs.calls.clear();
    node.io(|proxy, io| proxy.restart(secs(2), io));
    node.until(secs(4));
    assert_eq!(
        node.ipvs.calls,
        ["1 at 1", "1 at 1", "2 at 1", "2 at 1", "3 at 1", "3 at 1"]
    );
    // Later syncs leave a weight that somebody else set.
    node.ipvs.set_weight(S, pod(1), 0);
    node.sync(secs(5), &[1, 2, 3]);
    assert_eq!(node.ipvs.weight(S, pod(1)), Some(0));
}

/// F13, #73154: up to 1.14.0 the start leaves nothing that takes connections until the first sync.
#[test]
fn f13_the_start_of_old_releases_clears_the_service() {
    for version in ["1.13.0", "1.13.1", "1.14.0"] {
        let mut node = Node::running(version, ServiceProto::Tcp);
        node.sync(secs(0), &[1, 2]);
        node.ipvs.load(S, pod(2), 1, 0);
        node.io(|proxy, io| proxy.restart(secs(10), io));
        assert_eq!(
            node.ipvs.weights(S),
            "2=0",
            "{version}: without connections gone, with connections drained"
        );
        node.until(Instant::from_millis(11_999));
        assert_eq!(node.ipvs.weights(S), "2=0");
        node.until(secs(12));
        assert_eq!(
            node.ipvs.weights(S),
            "2=1 1=1",
            "{version}: the returning path gives weight 1 again"
        );
    }
    let mut node = Node::running("1.15.0", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.calls.clear();
    node.io(|proxy, io| proxy.restart(secs(10), io));
    node.until(secs(100));
    assert!(
        node.ipvs.calls.is_empty(),
        "from 1.15 a restart changes nothing"
    );
}

#[test]
fn a_restart_forgets_who_drains_and_the_first_sync_drains_them_again() {
    let mut node = Node::running("1.20.0", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.load(S, pod(1), 0, 1);
    node.sync(secs(1), &[2]);
    node.io(|proxy, io| proxy.restart(secs(5), io));
    assert_eq!(node.proxy.draining(), 0);
    node.until(secs(7));
    assert!(node.proxy.is_draining(S, pod(1)));
    node.ipvs.load(S, pod(1), 0, 0);
    node.until(secs(64));
    assert_eq!(node.ipvs.weight(S, pod(1)), Some(0));
    node.until(secs(65));
    assert_eq!(
        node.ipvs.weight(S, pod(1)),
        None,
        "the check's phase is that of the new start"
    );
}

/// #71071: in 1.13.0 nothing leaves the list, so the check deletes a server that has come back, and the next
/// periodic sync adds it again, for ever.
#[test]
fn the_list_that_never_forgets_deletes_a_server_in_use() {
    let mut node = Node::running("1.13.0", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.load(S, pod(1), 1, 0);
    node.sync(secs(1), &[2]);
    node.sync(secs(2), &[1, 2]);
    assert_eq!(node.ipvs.weight(S, pod(1)), Some(1));
    node.ipvs.load(S, pod(1), 0, 5);
    for minute in [60, 120, 180] {
        node.until(secs(minute));
        assert_eq!(
            node.ipvs.weight(S, pod(1)),
            None,
            "wanted, and deleted all the same"
        );
        node.until(secs(minute + 32));
        assert_eq!(node.ipvs.weight(S, pod(1)), Some(1));
    }
    node.sync(secs(220), &[2]);
    node.until(secs(300));
    assert_eq!(
        node.rules().last(),
        Some(&ProxyRule::CheckFindsNothing),
        "the log spam"
    );
}

/// F7: a manual `ipvsadm -d` of a draining server; the check forgets it, the next sync does not miss it.
#[test]
fn a_server_deleted_by_hand_is_forgotten() {
    let mut node = Node::running("1.14.5", ServiceProto::Tcp);
    node.sync(secs(0), &[1, 2]);
    node.ipvs.load(S, pod(1), 1, 0);
    node.sync(secs(1), &[2]);
    node.ipvs.delete(S, pod(1));
    node.until(secs(60));
    assert_eq!(node.proxy.draining(), 0);
    node.ipvs.delete(S, pod(2));
    node.sync(secs(61), &[2]);
    assert_eq!(
        node.ipvs.weights(S),
        "2=1",
        "a wanted one comes back with any sync"
    );
}

#[test]
fn a_stopped_proxy_does_nothing() {
    let mut node = Node::running("1.28.3", ServiceProto::Tcp);
    node.sync(secs(0), &[1]);
    node.proxy.stop();
    node.proxy
        .endpoints_changed(secs(1), S, pods(&[2]), Span::ZERO);
    assert_eq!(node.proxy.next(), None);
    node.io(|proxy, io| proxy.poll(secs(100), io));
    assert_eq!(node.ipvs.weights(S), "1=1");
}

/// What may happen to a node.
#[derive(Clone, Debug)]
enum Op {
    Endpoints(Vec<u8>),
    Load(u8, u32, u32),
    Wait(u64),
    Restart,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => proptest::collection::vec(1..6u8, 0..5).prop_map(Op::Endpoints),
        3 => (1..6u8, 0..2u32, 0..3u32).prop_map(|(last, a, i)| Op::Load(last, a, i)),
        3 => (1..90u64).prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ];
    proptest::collection::vec(op, 1..40)
}

const VERSIONS: [&str; 9] = [
    "1.11.4", "1.13.0", "1.13.1", "1.14.3", "1.14.8", "1.18.6", "1.20.0", "1.25.1", "1.30.3",
];

/// Plays the operations and checks after each call that no rule of the release is broken.
fn play(version: &str, ops: &[Op]) -> Result<(), TestCaseError> {
    let gates = behaviours(version);
    let wait = WaitFor::of(gates, ServiceProto::Tcp);
    let mut node = Node::running(version, ServiceProto::Tcp);
    let mut now = secs(0);
    for op in ops {
        let before = node.ipvs.clone();
        let logged = node.log.len();
        match op {
            Op::Endpoints(lasts) => {
                node.sync(now, lasts);
                let wanted = pods(lasts);
                for addr in &wanted {
                    let weight = node.ipvs.weight(S, *addr);
                    let stranded = node.log[logged..]
                        .iter()
                        .any(|e| e.server == *addr && e.rule == ProxyRule::StaysStranded);
                    prop_assert_eq!(weight, Some(u32::from(!stranded)), "{} {:?}", version, addr);
                }
                for real in node.ipvs.list(S) {
                    let spared =
                        wanted.contains(&real.addr) || node.proxy.is_draining(S, real.addr);
                    prop_assert!(
                        spared,
                        "{version}: {} is neither wanted nor draining",
                        real.addr
                    );
                }
            }
            Op::Load(last, active, inactive) => {
                if let Some(real) = node.ipvs.of(S, pod(*last)) {
                    (real.active, real.inactive) = (*active, *inactive);
                }
                continue;
            }
            Op::Wait(span) => {
                now += Span::from_secs(*span);
                node.until(now);
            }
            Op::Restart => node.io(|proxy, io| proxy.restart(now, io)),
        }
        for entry in &node.log[logged..] {
            let counts = before
                .list(S)
                .into_iter()
                .find(|real| real.addr == entry.server);
            if let (ProxyAction::Deleted, Some(real)) = (entry.action, counts) {
                prop_assert!(
                    entry.rule == ProxyRule::Returning || wait.idle(real.active, real.inactive),
                    "{} deleted {} with {}/{}",
                    version,
                    real.addr,
                    real.active,
                    real.inactive
                );
            }
            prop_assert!(entry.accepted, "{version}: {entry:?} was refused");
        }
    }
    Ok(())
}

proptest! {
    /// Conservation: after a sync every wanted endpoint is listed with weight 1 (or known to be stranded), everything
    /// else drains; and nothing is deleted with connections that the release waits for, except to return.
    #[test]
    fn every_release_keeps_its_rules(ops in ops(), version in proptest::sample::select(&VERSIONS[..])) {
        play(version, &ops)?;
    }

    #[test]
    fn the_same_seed_gives_the_same_log(ops in ops()) {
        let run = || {
            let mut node = Node::running("1.25.1", ServiceProto::Tcp);
            let mut now = secs(0);
            for op in &ops {
                match op {
                    Op::Endpoints(lasts) => node.sync(now, lasts),
                    Op::Load(last, a, i) => if let Some(real) = node.ipvs.of(S, pod(*last)) {
                        (real.active, real.inactive) = (*a, *i);
                    },
                    Op::Wait(span) => { now += Span::from_secs(*span); node.until(now); }
                    Op::Restart => node.io(|proxy, io| proxy.restart(now, io)),
                }
            }
            node.log
        };
        prop_assert_eq!(run(), run());
    }
}
