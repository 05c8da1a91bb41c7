//! From the Deployment to the real servers: rollout, EndpointSlice and kube-proxy together.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipvs_model::kube::{
    AddressPool, Deployment, LatencyKind, PodSpec, PreStop, Probe, Proxy, ProxyAction, ProxyConfig,
    ProxyIo, ProxyLatency, ProxyLog, ProxyVersion, RealServer, RealServers, Reuse, Rollout,
    RolloutEvent, Script, Scripted, ServiceProto, ServiceRef, TrafficPolicy, as_published, usable,
};
use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;

/// The kernel's destination lists; real servers of a busy service get inactive connections when they are added.
#[derive(Default)]
struct Ipvs {
    services: Vec<(u32, Vec<RealServer>)>,
}

impl Ipvs {
    fn list_mut(&mut self, service: ServiceRef) -> &mut Vec<RealServer> {
        &mut self.services[usize::from(service.0)].1
    }

    fn text(&self, service: ServiceRef) -> String {
        let mut texts: Vec<_> = self
            .list(service)
            .iter()
            .map(|real| format!("{}={}", real.addr.ip.octets()[3], real.weight))
            .collect();
        texts.sort();
        texts.join(" ")
    }
}

impl RealServers for Ipvs {
    fn list(&self, service: ServiceRef) -> Vec<RealServer> {
        self.services[usize::from(service.0)].1.clone()
    }

    fn add(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let (inactive, list) = &mut self.services[usize::from(service.0)];
        if list.iter().any(|real| real.addr == addr) {
            return false;
        }
        list.insert(
            0,
            RealServer {
                addr,
                weight,
                active: 0,
                inactive: *inactive,
            },
        );
        true
    }

    fn set_weight(&mut self, service: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        let real = self
            .list_mut(service)
            .iter_mut()
            .find(|real| real.addr == addr);
        real.map(|real| real.weight = weight).is_some()
    }

    fn delete(&mut self, service: ServiceRef, addr: Endpoint) -> bool {
        let list = self.list_mut(service);
        let before = list.len();
        list.retain(|real| real.addr != addr);
        list.len() < before
    }
}

/// kube-proxy's delays on a small node, in milliseconds.
fn node_delay(kind: ProxyLatency) -> Span {
    Span::from_millis(match kind {
        ProxyLatency::Received => 2_000,
        ProxyLatency::BeforeService => 15,
        ProxyLatency::Call => 1,
        ProxyLatency::AfterServices => 60,
    })
}

struct Node {
    proxy: Proxy,
    ipvs: Ipvs,
    rng: ChaCha8Rng,
    log: Vec<ProxyLog>,
}

impl Node {
    /// One service for each entry, with that many inactive connections on every real server.
    fn new(version: &str, check_at: Instant, inactive: &[u32]) -> Self {
        let config = ProxyConfig::of(version.parse::<ProxyVersion>().unwrap().behaviours());
        let mut proxy = Proxy::running(config, check_at, check_at);
        let mut ipvs = Ipvs::default();
        for inactive in inactive {
            proxy.add_service(ServiceProto::Tcp);
            ipvs.services.push((*inactive, Vec::new()));
        }
        Self {
            proxy,
            ipvs,
            rng: ChaCha8Rng::seed_from_u64(7),
            log: Vec::new(),
        }
    }

    fn poll(&mut self, now: Instant) {
        let mut io = ProxyIo {
            ipvs: &mut self.ipvs,
            rng: &mut self.rng,
            draw: &mut node_delay,
            log: &mut self.log,
        };
        self.proxy.poll(now, &mut io);
    }

    fn hear(&mut self, now: Instant, event: &RolloutEvent, version: &str, watch: Span) {
        let RolloutEvent::EndpointsPublished { endpoints } = event else {
            return;
        };
        let proxy = version.parse::<ProxyVersion>().unwrap().behaviours();
        let slice = as_published(endpoints, proxy);
        let (ips, _) = usable(&slice, TrafficPolicy::Cluster, 0, proxy);
        let set: Vec<_> = ips.iter().map(|ip| Endpoint::new(*ip, 80)).collect();
        for service in 0..self.ipvs.services.len() {
            let service = ServiceRef(service as u16);
            self.proxy
                .endpoints_changed(now, service, set.clone(), watch);
        }
    }
}

fn pod_delay(kind: LatencyKind) -> Span {
    Span::from_millis(match kind {
        LatencyKind::Controller => 20,
        LatencyKind::AssignAddress => 700,
        LatencyKind::StartContainer => 900,
        LatencyKind::Listen => 50,
        LatencyKind::ProbePhase => 1_700,
        LatencyKind::ReportStatus => 40,
        LatencyKind::SliceWrite => 80,
        LatencyKind::KubeletDelete => 25,
        LatencyKind::TearDown => 1_400,
        LatencyKind::RemoveObject => 900,
    })
}

fn founding() -> Deployment {
    Deployment {
        replicas: 2,
        pod: PodSpec {
            readiness: Some(Probe {
                initial_delay: Span::from_secs(5),
                period: Span::from_secs(5),
                failure_threshold: 5,
                ..Probe::default()
            }),
            pre_stop: PreStop::Sleep(Span::from_secs(20)),
            ..PodSpec::default()
        },
        ..Deployment::default()
    }
}

/// The founding case: the ClusterIP service has no traffic, the NodePort service has 14,000 entries on each real
/// server that never go away. As in the snapshot of the case, the rules list only the new pods, the NodePort
/// service keeps the old ones at weight 0, and every check finds them busy.
#[test]
fn the_founding_rollout() {
    let version = "1.16.0";
    let mut node = Node::new(version, Instant::from_secs(47), &[0, 14_000]);
    let pool = AddressPool::new(
        Ipv4Addr::new(10, 27, 1, 245),
        10,
        Reuse::RoundRobin,
        Span::from_secs(30),
    );
    let mut rollout = Rollout::new(founding(), pool, Instant::ZERO);
    rollout.start(Instant::from_secs(10));
    let mut text = String::new();
    let mut shown = 0;
    while let Some(now) = [rollout.next(), node.proxy.next()]
        .into_iter()
        .flatten()
        .min()
        && now <= Instant::from_secs(170)
    {
        while let Some((at, event)) = rollout.poll(now, &mut pod_delay) {
            node.hear(at, &event, version, Span::from_millis(30));
            writeln!(text, "{at} {event}").unwrap();
        }
        node.poll(now);
        for entry in &node.log[shown..] {
            let service = ["ClusterIP", "NodePort"][usize::from(entry.service.0)];
            writeln!(text, "{}   {service}: {entry}", entry.at).unwrap();
        }
        shown = node.log.len();
    }
    assert_eq!(node.ipvs.text(ServiceRef(0)), "247=1 248=1");
    assert_eq!(node.ipvs.text(ServiceRef(1)), "245=0 246=0 247=1 248=1");
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!("kube_founding_rollout", text);
    });
}

/// The recorded rollouts: swap at 150 s, death at 180 s, checks from 210 s on; here the entries of the old pods end
/// at 300 s, so the check at 330 s deletes them.
#[test]
fn a_recorded_rollout_by_the_clock() {
    let old = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let new = [Ipv4Addr::new(10, 0, 0, 3), Ipv4Addr::new(10, 0, 0, 4)];
    let secs = Instant::from_secs;
    let mut play = Scripted::new(Script::swap(&old, &new, secs(150), secs(180)));
    let mut node = Node::new("1.28.3", secs(210), &[250]);
    let service = ServiceRef(0);
    while let Some(now) = [play.next(), node.proxy.next()].into_iter().flatten().min()
        && now <= secs(400)
    {
        while let Some((at, event)) = play.poll(now) {
            node.hear(at, &event, "1.28.3", Span::ZERO);
        }
        if now >= secs(300) {
            for real in node.ipvs.list_mut(service) {
                real.inactive = 0;
            }
        }
        node.poll(now);
        if now > secs(151) && now < secs(330) {
            assert_eq!(node.ipvs.text(service), "1=0 2=0 3=1 4=1", "{now}");
        }
    }
    assert_eq!(node.ipvs.text(service), "3=1 4=1");
    let deleted = node
        .log
        .iter()
        .filter(|entry| entry.action == ProxyAction::Deleted);
    assert!(deleted.clone().all(|entry| entry.at == secs(330)));
    assert_eq!(deleted.count(), 2);
}
