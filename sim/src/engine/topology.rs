//! Where clients stand: what is between them and the node, and whom kube-proxy masquerades for it.

use std::net::Ipv4Addr;

use ipvs_model::balancer::{LoadBalancer, PortOrder, SourcePool};
use ipvs_model::conntrack::SourceNat;
use ipvs_model::kube::{self, AddressKind, Origin, draws_ports, masquerades};
use ipvs_model::node::SourceRules;
use ipvs_model::segment::{Endpoint, Segment, Tuple};

use super::control::proxy_behaviours;
use super::world::{Event, Leg, World};
use crate::scenario::{self, DataPlane, Location, Masquerade, Scenario, ServiceKind};

/// Source NAT of balanced connections: for all, and for sources of which kube-proxy thinks otherwise.
pub fn source_nat(scenario: &Scenario) -> (SourceNat, SourceRules) {
    let ip = scenario.node.address;
    let all = |policy| (policy, SourceRules::default());
    match scenario.kube_proxy.masquerade {
        Masquerade::None => all(SourceNat::NullBinding),
        Masquerade::Masquerade => all(SourceNat::Masquerade { ip, random: false }),
        Masquerade::RandomFully => all(SourceNat::Masquerade { ip, random: true }),
        Masquerade::KubeProxy => {
            let random = draws_ports(proxy_behaviours(scenario.kube_proxy.version));
            let masquerade = SourceNat::Masquerade { ip, random };
            let rules = SourceRules {
                clients: seen_by_pods(scenario),
                hairpin: Some(masquerade),
            };
            (masquerade, rules)
        }
    }
}

/// The policy that governs the service's address.
pub const fn policy(scenario: &Scenario) -> kube::TrafficPolicy {
    match scenario.service.traffic_policy {
        scenario::TrafficPolicy::Cluster => kube::TrafficPolicy::Cluster,
        scenario::TrafficPolicy::Local => kube::TrafficPolicy::Local,
    }
}

/// The clients that kube-proxy does not masquerade, as the node sees them.
fn seen_by_pods(scenario: &Scenario) -> Vec<(Ipv4Addr, Ipv4Addr, SourceNat)> {
    let kind = match scenario.service.kind {
        ServiceKind::NodePort => AddressKind::Outside,
        ServiceKind::ClusterIp => AddressKind::Cluster,
    };
    let policy = policy(scenario);
    let mut seen = Vec::new();
    for client in &scenario.client {
        let origin = match client.location {
            Location::Pod => Origin::Pod,
            Location::Host => Origin::Host,
            Location::Remote => Origin::Remote,
        };
        if masquerades(kind, policy, origin) {
            continue;
        }
        let last = client.address.to_bits() + (client.count - 1);
        seen.push((client.address, last.into(), SourceNat::NullBinding));
    }
    // Behind full NAT the node sees the balancer's addresses instead, which are outside.
    if let scenario::LoadBalancer::Replace(pool) = &scenario.load_balancer
        && !masquerades(kind, policy, Origin::Remote)
    {
        let last = pool.source_address.to_bits() + (pool.sources - 1);
        seen.push((pool.source_address, last.into(), SourceNat::NullBinding));
    }
    seen
}

/// The load balancer of a scenario.
pub fn load_balancer(scenario: &Scenario) -> Option<LoadBalancer> {
    let node = scenario.service.address;
    match &scenario.load_balancer {
        scenario::LoadBalancer::None => None,
        scenario::LoadBalancer::Keep(keep) => Some(LoadBalancer::new(keep.address, node, None)),
        scenario::LoadBalancer::Replace(pool) => {
            let order = match pool.port_order {
                scenario::PortOrder::Sequential => PortOrder::Sequential,
                scenario::PortOrder::Random => PortOrder::Random,
            };
            let pool_of_ports = SourcePool {
                first: pool.source_address,
                count: pool.sources,
                ports: (pool.ports.low, pool.ports.high),
                order,
                hold: pool.hold,
            };
            Some(LoadBalancer::new(pool.address, node, Some(pool_of_ports)))
        }
    }
}

/// What a client of this location calls, and the address from which it calls it.
pub fn way(scenario: &Scenario, location: Location, address: Ipv4Addr) -> (Ipv4Addr, Endpoint) {
    let service = scenario.service.address;
    match location {
        // A process of the node itself: the source of the route to a local address, such as a virtual one of IPVS on
        // kube-ipvs0, is that address. In the other modes the node has no such address.
        Location::Host if scenario.node.mode == DataPlane::Ipvs => (service.ip, service),
        Location::Host => (scenario.node.address, service),
        Location::Pod => (address, service),
        Location::Remote => (address, called(scenario)),
    }
}

/// What remote clients call: the load balancer, or the service itself.
pub fn called(scenario: &Scenario) -> Endpoint {
    load_balancer(scenario).map_or(scenario.service.address, |lb| lb.address())
}

/// Whether a client is a pod of the service itself.
pub fn has_hairpin(scenario: &Scenario) -> bool {
    let first = scenario.server.old_address.to_bits();
    let pods = first..first.saturating_add(scenario.rollout.old_pods());
    scenario
        .client
        .iter()
        .any(|client| client.location == Location::Pod && pods.contains(&client.address.to_bits()))
}

impl World<'_> {
    /// A client's packet as the node gets it: through the load balancer if there is one and it is called. `None` if that
    /// has no port for it.
    pub(super) fn through_balancer(&mut self, segment: &Segment) -> Option<Segment> {
        match &mut self.balancer {
            Some(lb) if segment.tuple.dst == lb.address() => {
                lb.inward(self.now, segment, &mut self.balancer_rng)
            }
            _ => Some(*segment),
        }
    }

    /// The client's own tuple of one that the node knows.
    pub(super) fn before_balancer(&self, at_node: Tuple) -> Tuple {
        let client = self.balancer.as_ref().and_then(|lb| lb.client_of(at_node));
        client.unwrap_or(at_node)
    }

    /// A packet leaves the node: to a client, perhaps through the load balancer, or to a pod.
    pub(super) fn route(&mut self, segment: Segment) {
        if let Some(lb) = &mut self.balancer
            && let Some(out) = lb.outward(self.now, &segment)
        {
            return self.travel(Leg::ClientNode, Event::AtClient(out));
        }
        let to = segment.tuple.dst;
        // A pod that calls its own service is client and server under one address.
        let itself = self.hairpin && to.port == self.scenario.service.target_port;
        if self.hosts.at(to.ip).is_some() && !itself {
            self.travel(Leg::ClientNode, Event::AtClient(segment));
        } else {
            self.travel(Leg::NodePod, Event::AtPod(segment));
        }
    }
}
