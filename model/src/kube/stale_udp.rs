//! Which conntrack entries of UDP kube-proxy deletes after it has written new rules. It never deletes those of TCP.
//!
//! Faithful to: `conntrack.CleanStaleEntries` and its forerunners `deleteEndpointConnections` and
//! `cleanStaleServices`, 1.11 to 1.31: entries of removed endpoints, and all of a service that gets its first one; the
//! reconciler of 1.32 (#127318), which passes over services without endpoints (#139628), as read in issue text.
//! Leaves out: the time that the clean-up takes, SCTP, services that lose an address, the fix #139629.

use super::version::{ProxyBehaviours, ProxyGate};
use crate::conntrack::CtEntry;
use crate::segment::{Endpoint, Proto};

/// A change of one service's endpoints, as the clean-up after the sync looks at it.
#[derive(Clone, Copy, Debug)]
pub struct StaleUdp<'a> {
    /// The release.
    pub proxy: ProxyBehaviours,
    /// The service's address.
    pub service: Endpoint,
    /// Endpoints before the sync.
    pub before: &'a [Endpoint],
    /// Endpoints after it.
    pub after: &'a [Endpoint],
}

impl StaleUdp<'_> {
    /// Whether the clean-up deletes this entry.
    pub fn deletes(&self, entry: &CtEntry) -> bool {
        if entry.proto() != Proto::Udp || entry.orig().dst != self.service {
            return false;
        }
        let server = entry.reply().src;
        if self.proxy.has(ProxyGate::UdpReconciler) {
            return !self.after.is_empty() && !self.after.contains(&server);
        }
        let removed = self.before.contains(&server) && !self.after.contains(&server);
        let newly_active = self.before.is_empty() && !self.after.is_empty();
        removed || newly_active
    }
}

#[cfg(test)]
mod tests {
    use super::super::version::ProxyVersion;
    use super::*;
    use crate::conntrack::{Conntrack, Incoming};
    use crate::kernel::Kernel;
    use crate::segment::{Flags, Segment, Tuple};
    use crate::sysctl::Sysctls;
    use crate::time::{Clock, Jiffies, Span};

    fn at(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    /// Entries of two clients of a UDP service, one at each of two servers, and one of the same service's TCP port.
    fn table() -> Conntrack {
        let kernel = "5.15.6".parse::<Kernel>().unwrap().behaviours();
        let clock = Clock::new(250, kernel.timer_era(), Span::ZERO);
        let mut table = Conntrack::new(clock, kernel);
        let (now, sysctls) = (Jiffies(75_000), Sysctls::of(kernel).ct);
        for (proto, port, server) in [
            (Proto::Udp, 1, "10.0.1.1:53"),
            (Proto::Udp, 2, "10.0.1.2:53"),
            (Proto::Tcp, 3, "10.0.1.1:53"),
        ] {
            let src = Endpoint::new([10, 0, 0, 9].into(), 40_000 + port);
            let tuple = Tuple {
                proto,
                src,
                dst: at("10.96.0.10:53"),
            };
            let segment = Segment::new(tuple, Flags::SYN);
            let Incoming::Tracked(ct, _) = table.incoming(now, &segment, &sysctls) else {
                panic!("not tracked");
            };
            table.destination_nat(ct, Some(at(server)));
            table.confirm(now, ct).unwrap();
        }
        table
    }

    fn left(release: &str, before: &[&str], after: &[&str]) -> Vec<String> {
        let proxy = release.parse::<ProxyVersion>().unwrap().behaviours();
        let (before, after): (Vec<_>, Vec<_>) = (
            before.iter().map(|text| at(text)).collect(),
            after.iter().map(|text| at(text)).collect(),
        );
        let stale = StaleUdp {
            proxy,
            service: at("10.96.0.10:53"),
            before: &before,
            after: &after,
        };
        let mut table = table();
        table.delete_matching(|entry| stale.deletes(entry));
        let mut left: Vec<String> = table
            .iter()
            .map(|(_, entry)| format!("{} {}", entry.proto().name(), entry.reply().src))
            .collect();
        left.sort();
        left
    }

    const BOTH: &[&str] = &["10.0.1.1:53", "10.0.1.2:53"];

    #[test]
    fn the_entries_of_a_removed_endpoint_go_and_never_those_of_tcp() {
        for release in ["1.14.5", "1.28.3", "1.32.0"] {
            let left = left(release, BOTH, &["10.0.1.2:53"]);
            assert_eq!(left, ["TCP 10.0.1.1:53", "UDP 10.0.1.2:53"], "{release}");
        }
    }

    /// F14, kubernetes#139628: from 1.32 on a service without endpoints keeps its entries.
    #[test]
    fn the_reconciler_passes_over_a_service_without_endpoints() {
        assert_eq!(left("1.31.0", BOTH, &[]), ["TCP 10.0.1.1:53"]);
        assert_eq!(left("1.32.0", BOTH, &[]).len(), 3);
    }

    #[test]
    fn a_service_with_its_first_endpoint_loses_all_older_entries() {
        assert_eq!(left("1.28.3", &[], &["10.0.1.2:53"]), ["TCP 10.0.1.1:53"]);
    }
}
