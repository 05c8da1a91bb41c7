//! DNAT rules in conntrack: kube-proxy's iptables and nftables modes.
//!
//! A new connection gets one of the endpoints, each as likely; its conntrack entry keeps it. A SYN on a finished
//! connection makes a new entry and is asked again; one on an entry in SYN_SENT or ESTABLISHED is not, so that a port
//! reused against those stays with a pod that may be gone (facts kube-proxy.md 7, F12).
//!
//! Faithful to: kube-proxy `proxier.go` of iptables mode, `KUBE-SVC-*` chains with `statistic --mode random`, as read
//! in 1.28; `KUBE-FORWARD` dropping invalid packets, as read in 1.16 to 1.30.3; nftables mode, `numgen random mod N vmap`,
//! as read in 1.30.3 (facts kube-proxy.md 5 and 7).
//! Leaves out: session affinity by the `recent` match or a set, the interval of a second between two syncs, what
//! nftables mode drops.

use rand::{Rng, RngExt};

use crate::ipvs::service::ServiceKey;
use crate::segment::{Endpoint, Proto};

/// What the rules say about a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// To this endpoint.
    Endpoint(Endpoint),
    /// The service has no endpoint.
    NoEndpoint,
    /// No service at this address.
    NoService,
}

/// The services with their endpoints.
#[derive(Clone, Debug, Default)]
pub struct IptablesRules {
    services: Vec<(ServiceKey, Vec<Endpoint>)>,
    drops_invalid: bool,
}

impl IptablesRules {
    /// The same rules with one more that drops forwarded packets which conntrack calls invalid: `KUBE-FORWARD`, absent
    /// in 1.14, present from 1.16 on, and again left out from 1.30.3 on where tcp_be_liberal is set.
    #[must_use]
    pub const fn dropping_invalid(mut self, drops: bool) -> Self {
        self.drops_invalid = drops;
        self
    }

    /// Whether forwarded packets which conntrack calls invalid are dropped.
    pub const fn drops_invalid(&self) -> bool {
        self.drops_invalid
    }

    /// Replaces the endpoints of a service. Existing connections live on in conntrack.
    pub fn set_endpoints(&mut self, key: ServiceKey, endpoints: Vec<Endpoint>) {
        match self
            .services
            .binary_search_by_key(&key, |(service, _)| *service)
        {
            Ok(at) => self.services[at].1 = endpoints,
            Err(at) => self.services.insert(at, (key, endpoints)),
        }
    }

    /// The endpoints of a service.
    pub fn endpoints(&self, key: ServiceKey) -> &[Endpoint] {
        self.services
            .binary_search_by_key(&key, |(service, _)| *service)
            .map_or(&[], |at| &self.services[at].1)
    }

    /// Chooses an endpoint for a new connection.
    pub fn pick(&self, proto: Proto, addr: Endpoint, rng: &mut impl Rng) -> Pick {
        let key = ServiceKey { proto, addr };
        let Ok(at) = self
            .services
            .binary_search_by_key(&key, |(service, _)| *service)
        else {
            return Pick::NoService;
        };
        let endpoints = &self.services[at].1;
        if endpoints.is_empty() {
            return Pick::NoEndpoint;
        }
        Pick::Endpoint(endpoints[rng.random_range(0..endpoints.len())])
    }
}
