//! The alternative that a comparison needs most: kube-proxy's iptables mode.
//!
//! Faithful to: kube-proxy `proxier.go` of iptables mode, `KUBE-SVC-*` chains with `statistic --mode random`, as read
//! in 1.28 (facts kube-proxy.md 7). Each endpoint is equally likely.
//! Leaves out: session affinity by the `recent` match, local traffic policies.

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

/// The services of iptables mode with their endpoints.
#[derive(Clone, Debug, Default)]
pub struct IptablesRules {
    services: Vec<(ServiceKey, Vec<Endpoint>)>,
}

impl IptablesRules {
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
