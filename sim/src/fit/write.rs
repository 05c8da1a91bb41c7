//! Numbers into a scenario whose every value has a note.

use std::collections::BTreeSet;

use ipvs_model::kernel::Kernel;
use ipvs_model::segment::Endpoint;
use ipvs_model::sysctl::Sysctls;
use ipvs_model::tcp::ports::PortEra;
use ipvs_model::time::Span;

use super::Fitted;
use super::conns::Flows;
use super::estimate::{Allocation, ClientFit, PortFit, Quantiles};
use super::evidence::{DeadEvidence, KeptEvidence};
use super::scan::Scan;
use crate::capture::Capture;
use crate::engine;
use crate::scenario::annotate::{Origin, Provenance};
use crate::scenario::{
    Arrivals, Client, DeadEnd, Deployment, Dist, Hz, Location, Masquerade, OrKernel, PortChoice,
    Ports, ProxyVersion, Rate, Rollout, Scenario, Scheduler, Side, span_text,
};

/// The range of ports that kernels have had since 4.2.
const KERNEL_PORTS: Ports = Ports {
    low: 32_768,
    high: 60_999,
};
/// Below this, counts a second are at equal distances; above, at random moments.
const DISPERSION_EVEN: f64 = 0.5;
/// Above this they come in bursts, which no open loop of a scenario has.
const DISPERSION_BURSTS: f64 = 3.0;
/// Reused ports that stayed with their real server, from which on that is no chance.
const SAME_MIN: u64 = 5;

/// What the passes found.
pub(super) struct Found<'a> {
    pub capture: &'a Capture,
    pub scan: &'a Scan,
    pub service: Endpoint,
    pub flows: &'a Flows,
    pub source_nat: Option<(Masquerade, u64)>,
    pub clients: Vec<ClientFit>,
    pub dead: DeadEvidence,
    pub kept: KeptEvidence,
    pub clients_max: usize,
}

struct Draft<'a> {
    found: Found<'a>,
    scenario: Scenario,
    notes: Provenance,
    remarks: Vec<String>,
}

/// Writes the scenario.
pub(super) fn write(found: Found<'_>) -> Fitted {
    let mut draft = Draft {
        found,
        scenario: Scenario::default(),
        notes: Provenance::default(),
        remarks: Vec::new(),
    };
    draft.head();
    draft.service();
    draft.node();
    draft.server();
    draft.clients();
    draft.network();
    draft.rollout();
    let Draft {
        found,
        scenario,
        notes,
        remarks,
    } = draft;
    Fitted {
        scenario,
        notes,
        clients: found.clients,
        dead: found.dead,
        kept: found.kept,
        remarks,
    }
}

/// "12 connections", "1 connection".
fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl Draft<'_> {
    fn note(&mut self, path: &str, origin: Origin, text: impl Into<String>) {
        self.notes.note(path, origin, text);
    }

    fn head(&mut self) {
        self.scenario.name = "fitted".to_owned();
        self.scenario.description = format!("What a recording of {} shows.", self.found.service);
        let flows = self.found.flows;
        let span = self
            .found
            .scan
            .span
            .map_or(Span::ZERO, |(first, last)| last.since(first));
        self.remarks.push(format!(
            "{} of {} seen in {} of recording, {}",
            many(flows.conns.len() as u64, "connection"),
            self.found.service,
            span_text(Span::from_secs(span.as_secs())),
            if flows.exact {
                "packet by packet"
            } else {
                "in listings of the tables"
            },
        ));
    }

    fn service(&mut self) {
        let Found {
            scan,
            service,
            source_nat,
            ..
        } = self.found;
        self.scenario.service.address = service;
        let called = scan.called.get(&service).copied().unwrap_or(0);
        let others = scan.called.len().saturating_sub(1);
        let text = match others {
            0 => format!("the only service with entries or SYNs ({called})"),
            _ => format!(
                "chosen of {} services with entries or SYNs, with {called} of them; --service takes another",
                others + 1
            ),
        };
        self.note("service.address", Origin::Measured, text);
        if let Some(port) = scan.target_port(service) {
            self.scenario.service.target_port = port;
            self.note(
                "service.target_port",
                Origin::Measured,
                "port of the real servers",
            );
        }
        match source_nat {
            Some((kind, entries)) => {
                self.scenario.kube_proxy.masquerade = kind;
                self.note(
                    "kube_proxy.masquerade",
                    Origin::Measured,
                    format!(
                        "whom the pods answer to, in {} of conntrack",
                        many(entries, "row")
                    ),
                );
            }
            None => self.note(
                "kube_proxy.masquerade",
                Origin::Assumed,
                "no conntrack entry of the service was recorded",
            ),
        }
        let Some((listed, rules)) = scan.rules_of(service) else {
            self.note(
                "kube_proxy.scheduler",
                Origin::Assumed,
                "no rules were recorded",
            );
            self.note(
                "service.session_affinity",
                Origin::Assumed,
                "no rules were recorded",
            );
            return;
        };
        let whose = match listed == service {
            true => "the service's rule".to_owned(),
            false => format!(
                "the rule of {listed}, which has the same real servers; the service's own was not recorded"
            ),
        };
        let persistent = rules.persistent_s;
        match scheduler(&rules.scheduler) {
            Some(known) => {
                self.scenario.kube_proxy.scheduler = known;
                self.note("kube_proxy.scheduler", Origin::Measured, whose.clone());
            }
            None => {
                let text = format!(
                    "{whose} says `{}`, which is not modelled: rr is taken",
                    rules.scheduler
                );
                self.remarks.push(text.clone());
                self.note("kube_proxy.scheduler", Origin::Assumed, text);
            }
        }
        self.scenario.service.session_affinity =
            persistent.map(|seconds| Span::from_secs(seconds.into()));
        self.note("service.session_affinity", Origin::Measured, whose);
    }

    fn node(&mut self) {
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

    fn server(&mut self) {
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

    fn clients(&mut self) {
        let fits = self.found.clients.clone();
        let mut tables = Vec::new();
        let (mut left_out, mut left_rate) = (Vec::new(), 0.0);
        for fit in &fits {
            let rate = self.rate_of(fit);
            match rate {
                Some(rate) if tables.len() < self.found.clients_max => {
                    let client = self.client(tables.len(), fit, rate);
                    tables.push(client);
                }
                Some((rate, ..)) => {
                    left_rate += rate;
                    left_out.push(fit.address.to_string());
                }
                None => left_out.push(fit.address.to_string()),
            }
        }
        if tables.is_empty() {
            // Nobody's rate is known: the busiest, with the default's.
            if let Some(fit) = fits.first() {
                let rate = (Rate::default().rate, Origin::Assumed, "the recording does not tell how often it connects: too few connections, or listings that are filtered".to_owned());
                left_out.retain(|address| *address != fit.address.to_string());
                tables.push(self.client(0, fit, rate));
            }
        }
        if !left_out.is_empty() {
            let shown = left_out
                .iter()
                .take(8)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            let more = if left_out.len() > 8 { ", ..." } else { "" };
            self.remarks.push(format!("{} left out ({shown}{more}): too few connections for a rate, or not among the busiest; {left_rate:.1} connections/s together", many(left_out.len() as u64, "client")));
        }
        self.scenario.client = tables;
    }

    /// A client's rate, how it is known, and from what.
    fn rate_of(&self, fit: &ClientFit) -> Option<(f64, Origin, String)> {
        if let Some(rate) = fit.rate {
            let error = 1.96 / (rate.samples as f64).sqrt() * 100.0;
            let text = format!(
                "{} began in {:.1} s{}; if they come at random, within {error:.1} %",
                many(rate.samples as u64, "connection"),
                rate.window.as_secs_f64(),
                match rate.dispersion {
                    Some(d) => format!(", counts a second have variance / mean {d:.2}"),
                    None => String::new(),
                }
            );
            return Some((rounded(rate.per_s), Origin::Measured, text));
        }
        // Ports that come round tell the rate: the whole cycle of ports in the time between two uses of one.
        let reuse = fit.reuse?;
        let all_even = fit.ports.even == fit.ports.distinct;
        let (range, _) = Self::range_of(&fit.ports);
        let cycle = if all_even {
            range.count().div_ceil(2)
        } else {
            range.count()
        };
        let rate = f64::from(cycle) / reuse.median.as_secs_f64().max(1.0);
        Some((
            rounded(rate),
            Origin::Derived,
            format!(
                "a port was used again {} after its last connection ({}), and {cycle} ports come before it again ({}): the cycle over the time. Holds if the ports are taken in turn and are free at once; with the client closing first it may be more",
                span_text(Span::from_secs(reuse.median.as_secs())),
                many(reuse.count as u64, "time"),
                if all_even {
                    "the even half of the range, all ports seen are even"
                } else {
                    "the range"
                },
            ),
        ))
    }

    fn client(&mut self, index: usize, fit: &ClientFit, rate: (f64, Origin, String)) -> Client {
        let path = |field: &str| format!("client.{index}.{field}");
        let mut client = Client {
            address: fit.address,
            ..Client::default()
        };
        let lifetime = fit.lifetime.map_or(String::new(), |l| {
            format!("; they lasted {}", quantiles(&l))
        });
        self.note(
            &path("address"),
            Origin::Measured,
            format!("{}{lifetime}", many(fit.conns as u64, "connection")),
        );
        if fit.address == self.found.service.ip {
            client.location = Location::Host;
            self.note(
                &path("location"),
                Origin::Measured,
                "it calls from the virtual address",
            );
        }
        let (per_s, origin, text) = rate;
        let value = Rate { rate: per_s };
        let dispersion = fit.rate.and_then(|rate| rate.dispersion);
        client.arrivals = match dispersion {
            Some(d) if d >= DISPERSION_EVEN => Arrivals::Poisson(value),
            _ => Arrivals::Constant(value),
        };
        let kind = match dispersion {
            Some(d) if d >= DISPERSION_BURSTS => {
                "; they come in bursts, which no open loop has: Poisson is the nearest"
            }
            Some(d) if d >= DISPERSION_EVEN => "; at random: Poisson",
            Some(_) => "; at equal distances",
            None => "; too few to tell how they arrive: equal distances are assumed",
        };
        self.note(&path("arrivals"), origin, format!("{text}{kind}"));
        self.ports(index, fit, &mut client);
        self.closing(index, fit, &mut client);
        if let Some((requests, sent, got)) = fit.requests {
            client.requests_per_connection = requests;
            (client.request_bytes, client.response_bytes) = (sent, got);
            for field in ["requests_per_connection", "request_bytes", "response_bytes"] {
                self.note(
                    &path(field),
                    Origin::Measured,
                    "mean of the connections whose beginning and end were recorded",
                );
            }
        } else {
            self.note(
                &path("requests_per_connection"),
                Origin::Assumed,
                "listings do not show requests",
            );
        }
        self.note(
            &path("timeout"),
            Origin::Assumed,
            "when the application gives up is in no recording",
        );
        client
    }

    /// The range, and how it is known.
    fn range_of(fit: &PortFit) -> (Ports, Origin) {
        let inside = KERNEL_PORTS.low <= fit.low && fit.high <= KERNEL_PORTS.high;
        let width = u32::from(fit.high - fit.low) + 1;
        // Ports came round and nearly all of one parity were seen: both ends are among them, or next to them.
        if fit.came_round && fit.distinct as u32 * 20 >= width * 9 {
            let one_parity = fit.even == fit.distinct && fit.high < u16::MAX;
            let high = fit.high + u16::from(one_parity);
            let near =
                fit.low.abs_diff(KERNEL_PORTS.low) <= 64 && high.abs_diff(KERNEL_PORTS.high) <= 64;
            let seen = Ports { low: fit.low, high };
            return (if near { KERNEL_PORTS } else { seen }, Origin::Measured);
        }
        if inside {
            return (KERNEL_PORTS, Origin::Assumed);
        }
        let wider = Ports {
            low: fit.low.min(KERNEL_PORTS.low),
            high: fit.high.max(KERNEL_PORTS.high),
        };
        (wider, Origin::Derived)
    }

    fn ports(&mut self, index: usize, fit: &ClientFit, client: &mut Client) {
        let path = |field: &str| format!("client.{index}.{field}");
        let ports = fit.ports;
        let (range, origin) = Self::range_of(&ports);
        client.ports = OrKernel(Some(range));
        let seen = format!(
            "{} different ports seen, {} to {}, {} of them even",
            ports.distinct, ports.low, ports.high, ports.even
        );
        let text = match origin {
            Origin::Measured => format!("{seen}; ports came round, so all of them were seen"),
            Origin::Assumed => format!("{seen}: all in the kernel's range, which is taken"),
            _ => format!(
                "{seen}: outside of the kernel's range, so it is wider; both ends may be wider still"
            ),
        };
        self.note(&path("ports"), origin, text);
        let (choice, want, text) = match ports.allocation {
            Allocation::EvenSteps => (
                PortChoice::Connect,
                Some(PortEra::TwoPass),
                "connect() chooses, every second port in turn: a kernel of 4.6 to 5.17",
            ),
            Allocation::EvenRandomSteps => (
                PortChoice::Connect,
                Some(PortEra::RandomStep),
                "connect() chooses, of one parity in small random steps: a kernel of 5.18 or later",
            ),
            Allocation::Steps => (
                PortChoice::Connect,
                Some(PortEra::Sequential),
                "one port after the other: connect() of a kernel up to 4.1",
            ),
            Allocation::Random => (
                PortChoice::Bind,
                None,
                "bind() to port 0, which prefers the parity that connect() does not, or an application's own choice",
            ),
            Allocation::Unknown => (
                PortChoice::Connect,
                None,
                "too few connections to tell the order: connect() is assumed",
            ),
        };
        client.port_choice = choice;
        let origin = if ports.allocation == Allocation::Unknown {
            Origin::Assumed
        } else {
            Origin::Measured
        };
        self.note(&path("port_choice"), origin, text);
        let node = &self.scenario.node.kernel;
        let fits = |kernel: &Kernel| want.is_none_or(|era| PortEra::of(kernel.behaviours()) == era);
        let representative = match want {
            Some(PortEra::RandomStep) => "6.1.0",
            Some(PortEra::Sequential) => "3.10.0",
            _ => "4.19.57",
        };
        let (kernel, why) = match fits(node) {
            true => (
                node.clone(),
                "the node's, which takes ports in the order seen",
            ),
            false => (
                representative.parse().unwrap_or_else(|_| node.clone()),
                "not the node's: a release that takes ports in the order seen",
            ),
        };
        client.kernel = kernel;
        self.note(&path("kernel"), Origin::Assumed, why);
    }

    fn closing(&mut self, index: usize, fit: &ClientFit, client: &mut Client) {
        let path = format!("client.{index}.closes_first");
        let (server, by_client) = fit.first_fins;
        let held = Span::from_secs(60);
        match fit.reuse.filter(|reuse| reuse.min < held) {
            _ if server + by_client > 0 => {
                client.closes_first = if server >= by_client { Side::Server } else { Side::Client };
                self.note(&path, Origin::Measured, format!("the server sent the first FIN {server} times, the client {by_client} times"));
            }
            Some(reuse) => self.note(&path, Origin::Derived, format!("ports were used again from {} on ({}): the client held none of them in TIME_WAIT for 60 s, so it closes last (or has tcp_tw_reuse)", span_text(Span::from_millis(reuse.min.0 / 1_000_000)), many(reuse.count as u64, "time"))),
            None => self.note(&path, Origin::Assumed, "who sends the first FIN was not seen; record with --packets"),
        }
        if let Some(reuse) = &fit.reuse {
            self.remarks.push(format!(
                "{}: a port is used again {} after its last connection",
                fit.address,
                quantiles(reuse)
            ));
        }
    }

    fn network(&mut self) {
        let Some(busiest) = self.found.clients.first().cloned() else {
            return;
        };
        let [to_server, to_client, service] = busiest.latencies;
        let half = |q: &Quantiles| Span(q.median.0 / 2);
        let whole = |q: &Quantiles| format!("half of {} at the node", quantiles(q));
        if let Some(q) = &to_client {
            self.scenario.network.client_node = Dist::Constant(half(q));
            self.note(
                "network.client_node",
                Origin::Measured,
                format!("SYN-ACK to ACK, {}", whole(q)),
            );
        }
        if let Some(q) = &to_server {
            self.scenario.network.node_pod = Dist::Constant(half(q));
            self.note(
                "network.node_pod",
                Origin::Measured,
                format!("SYN to SYN-ACK, {}", whole(q)),
            );
        }
        if let Some(q) = &service {
            let way = to_server.map_or(0, |q| q.median.0);
            self.scenario.server.service_time =
                Dist::Constant(Span(q.median.0.saturating_sub(way)));
            self.note(
                "server.service_time",
                Origin::Measured,
                format!(
                    "request to response at the node, {}, less the way to the pod",
                    quantiles(q)
                ),
            );
        }
    }

    fn rollout(&mut self) {
        let Found { scan, service, .. } = self.found;
        let count = scan.rules_of(service).map_or(0, |(_, rules)| {
            rules.reals.values().filter(|real| real.weight > 0).count()
        });
        let mut deployment = Deployment::default();
        self.note("rollout.deployment", Origin::Assumed, "a rollout of a Deployment with the founding case's probe and preStop. `sim fit CAPTURE --deployment FILE` takes yours");
        match u32::try_from(count) {
            Ok(count @ 1..=1_000) => {
                deployment.replicas = count;
                self.note(
                    "rollout.deployment.replicas",
                    Origin::Measured,
                    "real servers with a weight in the last rules",
                );
            }
            _ => self.note(
                "rollout.deployment.replicas",
                Origin::Assumed,
                "no rule with real servers was recorded",
            ),
        }
        self.scenario.rollout = Rollout::Deployment(deployment);
    }
}

fn scheduler(name: &str) -> Option<Scheduler> {
    Some(match name {
        "rr" => Scheduler::Rr,
        "wrr" => Scheduler::Wrr,
        "lc" => Scheduler::Lc,
        "wlc" => Scheduler::Wlc,
        "sed" => Scheduler::Sed,
        "nq" => Scheduler::Nq,
        "sh" => Scheduler::Sh,
        "mh" => Scheduler::Mh,
        _ => return None,
    })
}

/// Four digits: more would be noise.
fn rounded(rate: f64) -> f64 {
    let mut scale = 1.0;
    while rate * scale < 1_000.0 && scale < 1e6 {
        scale *= 10.0;
    }
    (rate * scale).round() / scale
}

fn quantiles(q: &Quantiles) -> String {
    if q.min == q.max {
        return format!("{} ({})", short(q.median), many(q.count as u64, "sample"));
    }
    format!(
        "{} (median of {}; {} to {}, 10 % below {}, 10 % above {})",
        short(q.median),
        many(q.count as u64, "sample"),
        short(q.min),
        short(q.max),
        short(q.low),
        short(q.high)
    )
}

/// A time with three digits or so.
fn short(span: Span) -> String {
    let unit = match span.0 {
        0..10_000_000 => 1_000,
        10_000_000..10_000_000_000 => 1_000_000,
        _ => 100_000_000,
    };
    span_text(Span((span.0 + unit / 2) / unit * unit))
}
