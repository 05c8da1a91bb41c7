//! The node and the pods: kernels, sysctls, what answers for pods that are gone.

use std::collections::BTreeSet;

use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::Span;

use super::{Draft, Found, many};
use crate::engine;
use crate::scenario::annotate::Origin;
use crate::scenario::{DeadEnd, Hz, ProxyVersion, span_text};

/// Reused ports that stayed with their real server, from which on that is no chance.
const SAME_MIN: u64 = 5;

impl Draft<'_> {
    pub(super) fn node(&mut self) {
        let manifest = &self.found.capture.manifest;
        match &manifest.kernel {
            Some(kernel) => {
                self.scenario.node.kernel = kernel.clone();
                self.note(
                    "node.kernel",
                    Origin::Read,
                    "manifest of the recording (uname -r)",
                );
            }
            None => {
                let text = match self.keeps_at_weight_zero() {
                    true => {
                        "the recording does not say; a release without the fix of 5.16 (c95c07836fa4), since reused ports kept a \
                             real server without a weight. Write what uname -r prints on the node"
                    }
                    false => {
                        "the recording does not say. Write what uname -r prints on the node: most depends on it"
                    }
                };
                self.note("node.kernel", Origin::Assumed, text);
            }
        }
        match manifest.hz.filter(|hz| [100, 250, 300, 1000].contains(hz)) {
            Some(hz) => {
                self.scenario.node.hz = Hz(hz);
                self.note("node.hz", Origin::Read, "manifest of the recording");
            }
            None => self.note(
                "node.hz",
                Origin::Assumed,
                "CONFIG_HZ of Debian's and Ubuntu's kernels; RHEL has 1000",
            ),
        }
        self.scenario.node.address = self.found.service.ip;
        self.note(
            "node.address",
            Origin::Assumed,
            "the virtual address: right for a node port",
        );
        match manifest.kube_proxy.get("version").map(|text| (text, ProxyVersion::parse(text))) {
            Some((_, Some(version))) => {
                self.scenario.kube_proxy.version = version;
                self.note("kube_proxy.version", Origin::Read, "manifest of the recording");
            }
            _ => self.note("kube_proxy.version", Origin::Assumed, "the recording does not say; it decides how real servers are drained and deleted. `kubectl version` tells"),
        }
        self.sysctls();
    }

    /// Sysctls that differ from what kernel and kube-proxy would set, and the four that decide about reused ports.
    fn sysctls(&mut self) {
        let manifest = &self.found.capture.manifest;
        if manifest.sysctl.is_empty() {
            self.assumed_sysctls();
            return;
        }
        let Ok(base) = engine::node_sysctls(&self.scenario) else {
            return;
        };
        let always = [
            "conntrack",
            "conn_reuse_mode",
            "expire_nodest_conn",
            "expire_quiescent_template",
        ];
        let mut kept = Vec::new();
        for (key, value) in &manifest.sysctl {
            let mut with: Sysctls = base;
            let node_key = ["net.ipv4.vs.", "net.netfilter.", "net.ipv4.icmp_"]
                .iter()
                .any(|p| key.starts_with(p));
            if node_key && with.set(key, value) == Ok(true) {
                let deciding = key
                    .strip_prefix("net.ipv4.vs.")
                    .is_some_and(|name| always.contains(&name));
                if deciding || with != base {
                    kept.push((
                        key.clone(),
                        value.split_whitespace().collect::<Vec<_>>().join(" "),
                    ));
                }
            }
        }
        self.scenario.node.sysctl.0 = kept;
        self.note("node.sysctl", Origin::Read, "manifest of the recording: those that decide about reused ports, and those that differ from what this kernel and kube-proxy would set");
    }

    fn keeps_at_weight_zero(&self) -> bool {
        self.found.kept.to_drained > 0
    }

    fn assumed_sysctls(&mut self) {
        let kept = &self.found.kept;
        let path = "node.sysctl";
        let mode = "net.ipv4.vs.conn_reuse_mode".to_owned();
        if kept.to_drained > 0 {
            self.scenario.node.sysctl.0 = vec![(mode, "0".to_owned())];
            let example = kept.example.map_or(String::new(), |(client, real, _)| {
                format!(", {client} to {real} for one")
            });
            self.note(path, Origin::Derived, format!("{}{example} went unanswered to a real server that has no weight or is in no rule: only an entry that kept its real server sends a SYN there, and that is conn_reuse_mode 0", many(kept.to_drained, "connection")));
        } else if kept.same == kept.reuses && kept.reuses >= SAME_MIN {
            self.scenario.node.sysctl.0 = vec![(mode, "0".to_owned())];
            self.note(
                path,
                Origin::Derived,
                format!(
                    "all {} reused ports stayed with their real server: conn_reuse_mode 0",
                    kept.reuses
                ),
            );
        } else {
            self.remarks.push("the recording has no sysctls: those of kernel and kube-proxy are assumed (`sysctl -a > sysctl.txt` on the node tells)".to_owned());
        }
    }

    pub(super) fn server(&mut self) {
        let Found { scan, service, .. } = self.found;
        let kernel = self.scenario.node.kernel.clone();
        self.scenario.server.kernel = kernel;
        self.note(
            "server.kernel",
            Origin::Assumed,
            "the node's: pods run on nodes like it",
        );
        self.dead_end();
        let serving = scan.rules_of(service).map(|(_, rules)| {
            let reals = rules.reals.iter().filter(|(_, real)| real.weight > 0);
            reals.map(|(at, _)| at.ip).collect::<BTreeSet<_>>()
        });
        let (reals, how) = match serving.filter(|reals| !reals.is_empty()) {
            Some(reals) => (reals, "real servers with a weight in the last rules"),
            None => {
                let entries = scan.entry_reals.keys().filter(|(virt, _)| *virt == service);
                (
                    entries.map(|(_, real)| real.ip).collect(),
                    "real servers of entries",
                )
            }
        };
        let Some(first) = reals.first() else {
            return;
        };
        self.scenario.server.old_address = *first;
        let listed = reals
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        self.note(
            "server.old_address",
            Origin::Measured,
            format!(
                "the lowest of {} {how} ({listed}); a scenario numbers its pods from it on",
                reals.len()
            ),
        );
    }

    fn dead_end(&mut self) {
        let dead = self.found.dead.clone();
        let path = "server.dead_end";
        let most = [
            (dead.reset, DeadEnd::Reset),
            (dead.unreachable, DeadEnd::Unreachable),
            (dead.arp_failure, DeadEnd::ArpFailure),
            (dead.silent, DeadEnd::Blackhole),
        ];
        let (count, kind) = most
            .into_iter()
            .fold((0, DeadEnd::Blackhole), |best, next| {
                if next.0 > best.0 { next } else { best }
            });
        if count > 0 {
            self.scenario.server.dead_end = kind;
            self.note(path, Origin::Measured, format!("of {} without an answer: {} got nothing, {} an RST, {} an ICMP error at once, {} one after seconds", many(dead.packets(), "connection"), dead.silent, dead.reset, dead.unreachable, dead.arp_failure));
        } else if dead.half_open > 0 {
            self.scenario.server.dead_end = DeadEnd::Blackhole;
            self.note(path, Origin::Derived, format!("{} to real servers that are gone were half open, up to {} without an answer: no RST came (an RST closes the entry); an ICMP error would not show in the tables", many(dead.half_open, "connection"), span_text(Span::from_secs(dead.waited.as_secs()))));
        } else {
            self.note(path, Origin::Assumed, "no connection to a pod that was gone was recorded: silence, as of cloud interfaces. \"reset\", \"unreachable\" and \"arp-failure\" are the others: try `--dead-end`");
        }
    }
}
