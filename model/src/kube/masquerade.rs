//! Whom kube-proxy masquerades: whose packets reach the pods with the node's address.
//!
//! IPVS looks a packet up before source NAT, so this does not decide which entry a reused port meets. It decides what
//! conntrack and the pods see: one address for all clients, and ports that NAT chooses.
//!
//! Faithful to: `writeIptablesRules` of the IPVS proxier, 1.14 to 1.30 (facts kube-proxy.md 5): node ports and load
//! balancers always, unless externalTrafficPolicy is Local; cluster addresses only for sources outside of clusterCIDR
//! and for packets whose source is a virtual address, as those of the node's own processes; a pod that reaches itself
//! (`KUBE-LOOP-BACK`).
//! Leaves out: masqueradeAll, clusters without a clusterCIDR, a Local policy's short cut for pods.

use super::endpoints::TrafficPolicy;
use super::version::{ProxyBehaviours, ProxyGate};

/// What kind of address clients call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    /// A cluster address.
    Cluster,
    /// A port of every node, or a load balancer's address that kube-proxy knows.
    Outside,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A pod.
    Pod,
    /// The node's own network namespace.
    Host,
    /// Outside the cluster.
    Remote,
}

/// Whether packets of this origin to an address of this kind are masqueraded.
pub const fn masquerades(kind: AddressKind, policy: TrafficPolicy, origin: Origin) -> bool {
    match (kind, policy, origin) {
        (AddressKind::Cluster, _, Origin::Pod) => false,
        (AddressKind::Cluster, _, Origin::Host | Origin::Remote) => true,
        (AddressKind::Outside, TrafficPolicy::Cluster, _) => true,
        // The node's own processes call from the address that they call.
        (AddressKind::Outside, TrafficPolicy::Local, Origin::Host) => true,
        (AddressKind::Outside, TrafficPolicy::Local, _) => false,
    }
}

/// Whether MASQUERADE draws ports at random (`--random-fully`).
pub const fn draws_ports(proxy: ProxyBehaviours) -> bool {
    proxy.has(ProxyGate::RandomFully)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_the_pods_see() {
        use AddressKind::{Cluster, Outside};
        let rows = [
            (Cluster, TrafficPolicy::Cluster, Origin::Pod, false),
            (Cluster, TrafficPolicy::Local, Origin::Pod, false),
            (Cluster, TrafficPolicy::Cluster, Origin::Host, true),
            (Cluster, TrafficPolicy::Cluster, Origin::Remote, true),
            (Outside, TrafficPolicy::Cluster, Origin::Pod, true),
            (Outside, TrafficPolicy::Cluster, Origin::Remote, true),
            (Outside, TrafficPolicy::Local, Origin::Remote, false),
            (Outside, TrafficPolicy::Local, Origin::Host, true),
        ];
        for (kind, policy, origin, want) in rows {
            assert_eq!(
                masquerades(kind, policy, origin),
                want,
                "{kind:?} {policy:?} {origin:?}"
            );
        }
    }
}
