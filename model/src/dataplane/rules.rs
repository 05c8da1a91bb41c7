//! DNAT rules in conntrack: kube-proxy's iptables and nftables modes.
//!
//! A new connection gets one of the endpoints, each as likely; its conntrack entry keeps it. A SYN on a finished
//! connection makes a new entry and is asked again; one on an entry in SYN_SENT or ESTABLISHED is not, so that a port
//! reused against those stays with a pod that may be gone (facts kube-proxy.md 7, F12).
//!
//! Faithful to: kube-proxy `proxier.go` of iptables mode, `KUBE-SVC-*` chains with `statistic --mode random`, as read
//! in 1.28; `KUBE-FORWARD` dropping invalid packets, as read in 1.16 to 1.30.3; nftables mode, `numgen random mod N vmap`,
//! as read in 1.30.3 (facts kube-proxy.md 5 and 7).
//! Session affinity: an endpoint remembers the addresses of its clients, and a new connection of one goes back to it as long as it is
//! listed and the last one is not older than the timeout. In iptables mode each endpoint has a list of the `recent` match, which
//! holds 100 addresses: with more clients the one longest unseen is forgotten (`xt_recent.c`, `ip_list_tot`). In nftables mode it is a set
//! of 65,535 elements with a timeout.
//! Leaves out: the interval of a second between two syncs, what nftables mode drops.

use core::net::Ipv4Addr;

use hashbrown::HashMap;
use rand::{Rng, RngExt};
use rustc_hash::FxBuildHasher;

use crate::ipvs::service::ServiceKey;
use crate::segment::{Endpoint, Tuple};
use crate::time::{Instant, Span};

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

/// Session affinity of DNAT rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// How long after its last new connection a client still goes to the same endpoint.
    pub timeout: Span,
    /// So many clients are remembered for each endpoint.
    pub clients: usize,
}

impl Affinity {
    /// By the `recent` match of iptables mode.
    pub const fn recent(timeout: Span) -> Self {
        Self {
            timeout,
            clients: 100,
        }
    }

    /// By the sets of nftables mode.
    pub const fn set(timeout: Span) -> Self {
        Self {
            timeout,
            clients: 65_535,
        }
    }
}

/// The services with their endpoints.
#[derive(Clone, Debug, Default)]
pub struct IptablesRules {
    services: Vec<(ServiceKey, Vec<Endpoint>)>,
    drops_invalid: bool,
    affinity: Option<Affinity>,
    /// Where a client of a service went last, and when.
    remembered: HashMap<(ServiceKey, Ipv4Addr), (Endpoint, Instant), FxBuildHasher>,
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

    /// The same rules with session affinity for all services.
    #[must_use]
    pub const fn with_affinity(mut self, affinity: Option<Affinity>) -> Self {
        self.affinity = affinity;
        self
    }

    /// Replaces the endpoints of a service. Existing connections live on in conntrack; what an endpoint remembers goes with it.
    pub fn set_endpoints(&mut self, key: ServiceKey, endpoints: Vec<Endpoint>) {
        self.remembered
            .retain(|(service, _), (to, _)| *service != key || endpoints.contains(to));
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

    /// Chooses an endpoint for a new connection with this tuple.
    pub fn pick(&mut self, now: Instant, tuple: &Tuple, rng: &mut impl Rng) -> Pick {
        let key = ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
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
        let Some(affinity) = self.affinity else {
            return Pick::Endpoint(endpoints[rng.random_range(0..endpoints.len())]);
        };
        let client = (key, tuple.src.ip);
        let known = self.remembered.get(&client);
        let to = match known {
            Some((to, last)) if now <= *last + affinity.timeout => *to,
            _ => endpoints[rng.random_range(0..endpoints.len())],
        };
        self.remember(client, to, now, affinity.clients);
        Pick::Endpoint(to)
    }

    fn remember(
        &mut self,
        client: (ServiceKey, Ipv4Addr),
        to: Endpoint,
        now: Instant,
        clients: usize,
    ) {
        let before = self.remembered.insert(client, (to, now));
        if before.is_some_and(|(before, _)| before == to) {
            return;
        }
        let others = self.remembered.iter();
        let others = others.filter(|((service, _), (at, _))| *service == client.0 && *at == to);
        if others.clone().count() > clients {
            // The order of addresses decides between those of one moment.
            let oldest = others.min_by_key(|((_, ip), (_, last))| (*last, *ip));
            if let Some(oldest) = oldest.map(|(who, _)| *who) {
                self.remembered.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Proto;
    use rand::SeedableRng;
    use rand::rngs::ChaCha8Rng;

    const SERVICE: &str = "10.96.0.1:80";

    fn at(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    fn rules(affinity: Affinity, endpoints: &[&str]) -> IptablesRules {
        let mut rules = IptablesRules::default().with_affinity(Some(affinity));
        let key = ServiceKey {
            proto: Proto::Tcp,
            addr: at(SERVICE),
        };
        rules.set_endpoints(key, endpoints.iter().map(|text| at(text)).collect());
        rules
    }

    fn pick(
        rules: &mut IptablesRules,
        secs: u64,
        client: Ipv4Addr,
        rng: &mut ChaCha8Rng,
    ) -> Endpoint {
        let tuple = Tuple::tcp(Endpoint::new(client, 40_000), at(SERVICE));
        match rules.pick(Instant::from_secs(secs), &tuple, rng) {
            Pick::Endpoint(to) => to,
            other => panic!("{other:?}"),
        }
    }

    /// A client stays for the timeout after its last connection, and no longer than its endpoint is listed.
    #[test]
    fn a_client_stays_with_its_endpoint() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let pods: Vec<String> = (1..=50).map(|n| format!("10.1.0.{n}:80")).collect();
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        for affinity in [
            Affinity::recent(Span::from_secs(60)),
            Affinity::set(Span::from_secs(60)),
        ] {
            let mut rules = rules(affinity, &pods);
            let client = Ipv4Addr::new(10, 9, 0, 1);
            let first = pick(&mut rules, 0, client, &mut rng);
            for secs in [60, 120, 180] {
                assert_eq!(pick(&mut rules, secs, client, &mut rng), first);
            }
            let draws: Vec<Endpoint> = (1..=20)
                .map(|n| pick(&mut rules, 180 + n * 61, client, &mut rng))
                .collect();
            assert!(draws.iter().any(|to| *to != first), "{draws:?}");
            let last = draws[19];
            let key = ServiceKey {
                proto: Proto::Tcp,
                addr: at(SERVICE),
            };
            let rest = pods.iter().map(|text| at(text)).filter(|to| *to != last);
            rules.set_endpoints(key, rest.collect());
            assert_ne!(pick(&mut rules, 1_401, client, &mut rng), last);
        }
    }

    /// `ip_list_tot`: the hundred and first client of an endpoint makes it forget the one longest unseen; sets have room.
    #[test]
    fn a_list_of_the_recent_match_holds_a_hundred_clients() {
        let hour = Span::from_secs(3_600);
        for (affinity, stays) in [(Affinity::recent(hour), 100), (Affinity::set(hour), 101)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let mut rules = rules(affinity, &["10.1.0.1:80"]);
            for n in 0..=100 {
                pick(
                    &mut rules,
                    n,
                    Ipv4Addr::from_bits(0x0a09_0000 + n as u32),
                    &mut rng,
                );
            }
            assert_eq!(rules.remembered.len(), stays);
            let first = rules
                .remembered
                .keys()
                .any(|(_, ip)| ip.to_bits() == 0x0a09_0000);
            assert_eq!(first, stays == 101);
        }
    }
}
