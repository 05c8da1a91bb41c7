//! What stands in the place of IPVS: its set-up, what its control plane writes, and the modes in which the client's side
//! chooses the pod.

use ipvs_model::dataplane::{
    Affinity, BackendState, Cilium, CiliumBehaviours, CiliumConfig, CiliumRule, IptablesRules,
};
use ipvs_model::kernel::Version;
use ipvs_model::kube::StaleUdp;
use ipvs_model::node::{Balancer, Rule};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Instant, Span};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::control::proxy_behaviours;
use super::load::Request;
use super::streams::{Purpose, Streams};
use super::trace::Happening;
use super::world::World;
use crate::outcome::{Cause, Outcome};
use crate::scenario::{DataPlane, Scenario};

/// The endpoints of the service, as a control plane wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// For new connections.
    pub active: Vec<Endpoint>,
    /// Terminating and still serving: for connections that they have.
    pub terminating: Vec<Endpoint>,
}

/// Whether kube-proxy in iptables mode drops what conntrack calls invalid: `KUBE-FORWARD`, from 1.16 on; from 1.30.3 on not where
/// conntrack is told to be liberal.
pub fn drops_invalid(scenario: &Scenario, sysctls: &Sysctls) -> bool {
    scenario.kube_proxy.version.number().is_some_and(|version| {
        let liberal = sysctls.ct.be_liberal && version >= Version(1, 30, 3);
        version >= Version(1, 16, 0) && !liberal
    })
}

/// The balancer of a scenario's node, without services.
pub fn balancer(scenario: &Scenario, sysctls: &Sysctls) -> Balancer {
    let affinity = scenario.service.session_affinity;
    match scenario.node.mode {
        DataPlane::Ipvs => Balancer::Ipvs,
        DataPlane::Iptables => {
            let drops = drops_invalid(scenario, sysctls);
            let rules = IptablesRules::default().dropping_invalid(drops);
            Balancer::Iptables(rules.with_affinity(affinity.map(Affinity::recent)))
        }
        DataPlane::Nftables => {
            let rules = IptablesRules::default();
            Balancer::Iptables(rules.with_affinity(affinity.map(Affinity::set)))
        }
        DataPlane::CiliumPacket => {
            let cilium = &scenario.cilium;
            Balancer::Cilium(Box::new(Cilium::new(CiliumConfig {
                behaviours: CiliumBehaviours::of(cilium.version.0),
                service_tcp: cilium.service_timeout,
                service_other: Span::from_secs(60),
                grace: cilium.service_grace,
                gc_interval: cilium.gc_interval,
                affinity,
            })))
        }
        DataPlane::CiliumSocket | DataPlane::Headless => Balancer::None,
    }
}

/// Whether netfilter tracks connections on the node. Cilium's own tables take its place.
pub const fn tracks(mode: DataPlane) -> bool {
    !matches!(mode, DataPlane::CiliumPacket | DataPlane::CiliumSocket)
}

/// What a rule other than IPVS's means for a request whose packet it decided on, should the request fail.
pub const fn trouble(rule: Rule, server_dead: bool) -> Option<Cause> {
    match rule {
        Rule::IptablesKept | Rule::Cilium(CiliumRule::Kept | CiliumRule::KeptInactive)
            if server_dead =>
        {
            Some(Cause::PinnedByConntrack)
        }
        Rule::IptablesNoEndpoint | Rule::Cilium(CiliumRule::NoBackend) => {
            Some(Cause::NoDestination)
        }
        _ => None,
    }
}

/// Who chooses the pod where clients connect to pods.
#[derive(Debug)]
enum Chooser {
    /// The node, at connect(): Cilium's socket load balancer.
    Socket,
    /// The client, from an answer of the name server that it keeps for so long.
    Dns(Span),
}

/// Clients that connect to pods: the choice is made once, before the first packet.
#[derive(Debug)]
pub struct Direct {
    chooser: Chooser,
    /// What the node's map, or the name server's answer, lists now.
    listed: Vec<Endpoint>,
    /// Pods that terminate and that the node's map still knows.
    terminating: Vec<Endpoint>,
    /// Session affinity of Cilium's, by the client's network namespace: how long, and where each host went last and when.
    affinity: Option<Span>,
    last: Vec<Option<(Endpoint, Instant)>>,
    /// The answers that hosts keep, and until when; by host.
    kept: Vec<(Instant, Vec<Endpoint>)>,
    rng: ChaCha8Rng,
}

impl Direct {
    /// For a scenario whose clients connect to pods; `None` for one whose node balances.
    pub fn new(scenario: &Scenario, streams: Streams) -> Option<Self> {
        let chooser = match scenario.node.mode {
            DataPlane::CiliumSocket => Chooser::Socket,
            DataPlane::Headless => Chooser::Dns(scenario.service.dns_ttl),
            _ => return None,
        };
        Some(Self {
            chooser,
            listed: Vec::new(),
            terminating: Vec::new(),
            affinity: match scenario.node.mode {
                DataPlane::CiliumSocket => scenario.service.session_affinity,
                _ => None,
            },
            last: Vec::new(),
            kept: Vec::new(),
            rng: streams.stream(Purpose::Node, 2),
        })
    }

    /// Whether an idle connection to any pod serves the next request, because the client does not know the pods apart.
    const fn hides_pods(&self) -> bool {
        matches!(self.chooser, Chooser::Socket)
    }

    /// The pod of a host's next connection; `None` if no pod is listed.
    pub fn choose(&mut self, now: Instant, host: u32) -> Option<Endpoint> {
        let list = match self.chooser {
            Chooser::Socket => &self.listed,
            Chooser::Dns(ttl) => {
                let host = host as usize;
                if self.kept.len() <= host {
                    self.kept.resize(host + 1, (Instant::ZERO, Vec::new()));
                }
                let (until, answer) = &mut self.kept[host];
                if *until <= now || answer.is_empty() {
                    answer.clone_from(&self.listed);
                    *until = now + ttl;
                }
                answer
            }
        };
        let host = host as usize;
        if let Some(affinity) = self.affinity {
            if self.last.len() <= host {
                self.last.resize(host + 1, None);
            }
            // A pod that terminates counts, too: cilium#27096.
            if let Some((pod, used)) = self.last[host]
                && now < used + affinity
                && (list.contains(&pod) || self.terminating.contains(&pod))
            {
                self.last[host] = Some((pod, now));
                return Some(pod);
            }
        }
        let count = list.len();
        let chosen = (count > 0).then(|| list[self.rng.random_range(0..count)]);
        if let (Some(pod), true) = (chosen, self.affinity.is_some()) {
            self.last[host] = Some((pod, now));
        }
        chosen
    }
}

impl World<'_> {
    /// The endpoints reach the node's rules, its maps, or the name server.
    pub(super) fn apply_wanted(&mut self, wanted: Wanted) {
        let key = self.key;
        if self.scenario.node.mode == DataPlane::Ipvs {
            return;
        }
        let listed = Happening::RulesList(wanted.active.clone());
        self.observer.event(self.now, None, listed);
        if let Some(direct) = &mut self.direct {
            direct.listed = wanted.active;
            direct.terminating = wanted.terminating;
            return;
        }
        match self.node.balancer_mut() {
            Balancer::Iptables(rules) => {
                let before = rules.endpoints(key).to_vec();
                rules.set_endpoints(key, wanted.active.clone());
                self.clean_stale_udp(&before, &wanted.active);
            }
            Balancer::Cilium(cilium) => {
                let active = wanted.active.iter().map(|at| (*at, BackendState::Active));
                let rest = wanted.terminating.iter();
                let rest = rest.map(|at| (*at, BackendState::Terminating));
                cilium.set_backends(key, active.chain(rest).collect());
            }
            Balancer::Ipvs | Balancer::None => {}
        }
    }

    /// kube-proxy has written new rules, and deletes conntrack entries of UDP.
    pub(super) fn clean_stale_udp(&mut self, before: &[Endpoint], after: &[Endpoint]) {
        if self.key.proto != Proto::Udp {
            return;
        }
        let stale = StaleUdp {
            proxy: proxy_behaviours(self.scenario.kube_proxy.version),
            service: self.key.addr,
            before,
            after,
        };
        self.node.ct.delete_matching(|entry| stale.deletes(entry));
    }

    /// The endpoints that the node offers to new connections, where it is not IPVS that does.
    pub(super) fn offered(&mut self) -> Vec<Endpoint> {
        let key = self.key;
        if let Some(direct) = &self.direct {
            return direct.listed.clone();
        }
        match self.node.balancer_mut() {
            Balancer::Iptables(rules) => rules.endpoints(key).to_vec(),
            Balancer::Cilium(cilium) => {
                let backends = cilium.backends(key).iter();
                let active = backends.filter(|(_, state)| *state == BackendState::Active);
                active.map(|(backend, _)| *backend).collect()
            }
            Balancer::Ipvs | Balancer::None => Vec::new(),
        }
    }

    /// Where clients connect to pods: the host, as it talks to the pod of the next request. `None` if there is no pod.
    pub(super) fn towards_a_pod(&mut self, host: u32) -> Option<u32> {
        let Some(direct) = &mut self.direct else {
            return Some(host);
        };
        if direct.hides_pods()
            && let Some(idle) = self.hosts.idle_twin(host)
        {
            return Some(idle);
        }
        let pod = direct.choose(self.now, host)?;
        Some(self.hosts.twin(host, pod))
    }

    /// A request finds no pod to connect to: the name does not resolve, or connect() fails at once.
    pub(super) fn no_pod(&mut self, mut request: Request) {
        request.trouble = Some(Cause::NoDestination);
        let (slot, _) = self.enter(request);
        self.end(slot, Outcome::HostUnreachable);
    }
}
