//! Which endpoints kube-proxy turns into real servers.
//!
//! Faithful to: `CategorizeEndpoints` in pkg/proxy/topology.go (1.24 to 1.30) and its use in `syncEndpoint` of the
//! IPVS proxier; before 1.24 the same rules spread over the proxier (facts, kube-proxy 5).
//! Leaves out: topology hints, publishNotReadyAddresses, named ports (the caller adds the target port).

use core::net::Ipv4Addr;

use super::version::{ProxyBehaviours, ProxyGate};

/// One endpoint as an EndpointSlice lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointState {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The node that runs the pod.
    pub node: u16,
    /// Passes its readiness probe and is not being deleted.
    pub ready: bool,
    /// Passes its readiness probe, being deleted or not.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
}

/// `externalTrafficPolicy` or `internalTrafficPolicy`, whichever governs the virtual service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Those on the node that the packet entered.
    Local,
}

/// Why these endpoints are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointRule {
    /// All ready endpoints.
    Ready,
    /// No endpoint is ready, so those that terminate but still serve.
    ServingTerminating,
    /// The ready endpoints on this node.
    LocalReady,
    /// No endpoint on this node is ready, so those on it that terminate but still serve.
    LocalServingTerminating,
    /// Policy Local without a usable endpoint on this node: what policy Cluster would use (#97081).
    LocalFallsBack,
    /// Nothing is usable.
    Nothing,
}

/// The addresses that kube-proxy on `node` uses for a virtual service, in the order given, and why these.
pub fn usable(
    endpoints: &[EndpointState],
    policy: TrafficPolicy,
    node: u16,
    proxy: ProxyBehaviours,
) -> (Vec<Ipv4Addr>, EndpointRule) {
    let pick = |keep: &dyn Fn(&EndpointState) -> bool| -> Vec<Ipv4Addr> {
        endpoints
            .iter()
            .filter(|ep| keep(ep))
            .map(|ep| ep.ip)
            .collect()
    };
    let lingers = |ep: &EndpointState| ep.serving && ep.terminating;
    let local = |ep: &EndpointState| ep.node == node;
    let cluster = || {
        let ready = pick(&|ep| ep.ready);
        if !ready.is_empty() {
            return (ready, EndpointRule::Ready);
        }
        if proxy.has(ProxyGate::TerminatingCluster) {
            let last = pick(&lingers);
            if !last.is_empty() {
                return (last, EndpointRule::ServingTerminating);
            }
        }
        (Vec::new(), EndpointRule::Nothing)
    };
    if policy == TrafficPolicy::Cluster {
        return cluster();
    }
    let ready = pick(&|ep| local(ep) && ep.ready);
    if !ready.is_empty() {
        return (ready, EndpointRule::LocalReady);
    }
    if proxy.has(ProxyGate::TerminatingLocal) {
        let last = pick(&|ep| local(ep) && lingers(ep));
        if !last.is_empty() {
            return (last, EndpointRule::LocalServingTerminating);
        }
    }
    if !proxy.has(ProxyGate::LocalFallsBack) {
        return (Vec::new(), EndpointRule::Nothing);
    }
    match cluster() {
        (_, EndpointRule::Nothing) => (Vec::new(), EndpointRule::Nothing),
        (all, _) => (all, EndpointRule::LocalFallsBack),
    }
}

/// The slice as this release's control plane writes it: before EndpointSlices knew terminating endpoints, a deleted
/// pod vanishes from them.
pub fn as_published(endpoints: &[EndpointState], proxy: ProxyBehaviours) -> Vec<EndpointState> {
    endpoints
        .iter()
        .copied()
        .filter(|ep| !ep.terminating || proxy.has(ProxyGate::SliceTerminating))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::version::ProxyVersion;

    const READY: EndpointState = EndpointState {
        ip: Ipv4Addr::new(10, 0, 0, 1),
        node: 1,
        ready: true,
        serving: true,
        terminating: false,
    };

    fn proxy(version: &str) -> ProxyBehaviours {
        version.parse::<ProxyVersion>().unwrap().behaviours()
    }

    fn lingering(last: u8, node: u16) -> EndpointState {
        EndpointState {
            ip: Ipv4Addr::new(10, 0, 0, last),
            node,
            ready: false,
            serving: true,
            terminating: true,
        }
    }

    #[test]
    fn a_terminating_endpoint_is_not_used_beside_a_ready_one() {
        for version in ["1.14.0", "1.22.0", "1.28.3"] {
            let (ips, rule) = usable(
                &[lingering(2, 1), READY],
                TrafficPolicy::Cluster,
                1,
                proxy(version),
            );
            assert_eq!(
                (ips, rule),
                (vec![READY.ip], EndpointRule::Ready),
                "{version}"
            );
        }
    }

    /// One replica, nothing else ready: 1.26 and later keep the terminating pod at weight 1 (facts, kube-proxy 5).
    #[test]
    fn the_last_serving_pod_is_used_from_1_26() {
        let only = [lingering(2, 1)];
        let old = usable(&only, TrafficPolicy::Cluster, 1, proxy("1.25.1"));
        assert_eq!(old, (vec![], EndpointRule::Nothing));
        let new = usable(&only, TrafficPolicy::Cluster, 1, proxy("1.26.0"));
        assert_eq!(new, (vec![only[0].ip], EndpointRule::ServingTerminating));
        let dead = [EndpointState {
            serving: false,
            ..only[0]
        }];
        let none = usable(&dead, TrafficPolicy::Cluster, 1, proxy("1.26.0"));
        assert_eq!(none, (vec![], EndpointRule::Nothing));
    }

    #[test]
    fn policy_local_takes_its_own_node_and_falls_back_from_1_21() {
        let there = EndpointState { node: 2, ..READY };
        let on_node = |version| usable(&[there], TrafficPolicy::Local, 1, proxy(version));
        assert_eq!(on_node("1.20.0"), (vec![], EndpointRule::Nothing));
        assert_eq!(
            on_node("1.21.0"),
            (vec![READY.ip], EndpointRule::LocalFallsBack)
        );
        let both = [
            there,
            EndpointState {
                ip: Ipv4Addr::new(10, 0, 0, 9),
                ..READY
            },
        ];
        let (ips, rule) = usable(&both, TrafficPolicy::Local, 1, proxy("1.30.0"));
        assert_eq!((ips, rule), (vec![both[1].ip], EndpointRule::LocalReady));
    }

    #[test]
    fn policy_local_prefers_its_own_lingering_pod_to_ready_ones_elsewhere() {
        let slice = [EndpointState { node: 2, ..READY }, lingering(7, 1)];
        let (ips, rule) = usable(&slice, TrafficPolicy::Local, 1, proxy("1.28.3"));
        assert_eq!(
            (ips, rule),
            (vec![slice[1].ip], EndpointRule::LocalServingTerminating)
        );
        // The alpha of 1.22, switched on by hand, did this for Local only.
        let alpha = proxy("1.22.0").with(ProxyGate::TerminatingLocal, true);
        assert_eq!(
            usable(&slice[1..], TrafficPolicy::Local, 1, alpha).0,
            vec![slice[1].ip]
        );
        assert_eq!(
            usable(&slice[1..], TrafficPolicy::Cluster, 1, alpha).1,
            EndpointRule::Nothing
        );
    }

    #[test]
    fn before_1_22_a_deleted_pod_vanishes_from_the_slice() {
        let slice = [READY, lingering(2, 1)];
        assert_eq!(as_published(&slice, proxy("1.21.0")), vec![READY]);
        assert_eq!(as_published(&slice, proxy("1.22.0")), slice);
    }
}
