//! The control plane of a run: the rollout, the endpoints, and kube-proxy's hand on the node.

use ipvs_model::ipvs::Ipvs;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::kube::{
    AddressPool, Deployment, IntOrPercent, Latencies, LatencyKind, OnTerm, PodSpec, PreStop, Probe,
    Proxy, ProxyConfig, ProxyIo, ProxyLatency, ProxyLog, ProxyVersion, RealServer, RealServers,
    Reuse, Rollout, RolloutEvent, Script, Scripted, ServiceProto, ServiceRef, TrafficPolicy,
    UpdateStrategy, usable,
};
use ipvs_model::kube::{EndpointState, PodId, ProxyBehaviours};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::{Instant, Span};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::load::sample;
use super::planes::Wanted;
use super::streams::{Purpose, Streams};
use crate::scenario::{self, Amount, OnSigterm, Phase, Scenario};

/// Where the rollout's events come from.
#[derive(Debug)]
enum Source {
    Deployment(Box<Rollout>),
    Script(Scripted),
}

/// Draws the delays of the Deployment's parts from the scenario's distributions.
#[derive(Debug)]
struct Delays {
    rng: ChaCha8Rng,
    container_start: scenario::Dist,
    endpoint_latency: scenario::Dist,
    address_gone_after: scenario::Dist,
    probe_period: Span,
}

impl Latencies for Delays {
    fn draw(&mut self, kind: LatencyKind) -> Span {
        match kind {
            LatencyKind::StartContainer => sample(&self.container_start, &mut self.rng),
            LatencyKind::SliceWrite => sample(&self.endpoint_latency, &mut self.rng),
            LatencyKind::TearDown => sample(&self.address_gone_after, &mut self.rng),
            LatencyKind::ProbePhase => Span(self.rng.random_range(0..=self.probe_period.0)),
            // Small against the others; the scenario's distributions hold the whole of each step.
            LatencyKind::Controller
            | LatencyKind::AssignAddress
            | LatencyKind::Listen
            | LatencyKind::ReportStatus
            | LatencyKind::KubeletDelete
            | LatencyKind::RemoveObject => Span::ZERO,
        }
    }
}

/// Rollout and kube-proxy.
#[derive(Debug)]
pub struct Control {
    source: Source,
    delays: Delays,
    proxy: Proxy,
    behaviours: ProxyBehaviours,
    service: ServiceRef,
    rng: ChaCha8Rng,
    sync_latency: scenario::Dist,
    target_port: u16,
    policy: TrafficPolicy,
    /// The first pod's address and the number of nodes, where pods have no node of their own.
    spread: Option<(u32, u32)>,
    log: Vec<ProxyLog>,
    /// When kube-proxy starts anew, and how long it then takes to its first sync.
    restart: (Instant, Span),
}

/// The node's IPVS as kube-proxy sees it.
struct NodeServers<'a> {
    ipvs: &'a mut Ipvs,
    key: ServiceKey,
    now: Instant,
}

impl RealServers for NodeServers<'_> {
    fn list(&self, _: ServiceRef) -> Vec<RealServer> {
        let servers = self.ipvs.real_servers(self.key);
        servers
            .map(|server| RealServer {
                addr: server.addr,
                weight: server.weight,
                active: server.active,
                inactive: server.inactive,
            })
            .collect()
    }

    fn add(&mut self, _: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        self.ipvs.add_dest(self.key, addr, weight).is_ok()
    }

    fn set_weight(&mut self, _: ServiceRef, addr: Endpoint, weight: u32) -> bool {
        self.ipvs.edit_dest(self.key, addr, weight).is_ok()
    }

    fn delete(&mut self, _: ServiceRef, addr: Endpoint) -> bool {
        self.ipvs.delete_dest(self.now, self.key, addr).is_ok()
    }
}

/// What a release of kube-proxy does; for the lab's script, what current releases do.
pub fn proxy_behaviours(version: scenario::ProxyVersion) -> ProxyBehaviours {
    let script = || "1.28.0".parse().ok();
    version
        .release()
        .or_else(script)
        .map_or_else(ProxyBehaviours::default, |release: ProxyVersion| {
            release.behaviours()
        })
}

fn amount(amount: Amount) -> IntOrPercent {
    match amount {
        Amount::Percent(percent) => IntOrPercent::Percent(percent),
        Amount::Count(count) => IntOrPercent::Int(count),
    }
}

fn pod_spec(deployment: &scenario::Deployment) -> PodSpec {
    let readiness = &deployment.readiness;
    PodSpec {
        readiness: Some(Probe {
            initial_delay: readiness.initial_delay,
            period: readiness.period,
            timeout: readiness.timeout,
            success_threshold: readiness.success_threshold,
            failure_threshold: readiness.failure_threshold,
        }),
        pre_stop: match deployment.pre_stop {
            Span::ZERO => PreStop::None,
            sleep => PreStop::Sleep(sleep),
        },
        grace: deployment.termination_grace_period,
        on_term: match deployment.on_sigterm {
            OnSigterm::Exits(after) => OnTerm::ExitsAfter(after),
            OnSigterm::Drains => OnTerm::Drains {
                closes_after: Span::ZERO,
                at_most: Span::from_secs(86_400),
            },
            OnSigterm::Ignores => OnTerm::Ignores,
        },
    }
}

fn addresses(first: std::net::Ipv4Addr, count: u32) -> Vec<std::net::Ipv4Addr> {
    (0..count)
        .map(|n| std::net::Ipv4Addr::from_bits(first.to_bits().wrapping_add(n)))
        .collect()
}

fn published(pods: &[std::net::Ipv4Addr]) -> RolloutEvent {
    let serving = |ip: &std::net::Ipv4Addr| EndpointState {
        ip: *ip,
        node: 0,
        ready: true,
        serving: true,
        terminating: false,
    };
    let endpoints = pods.iter().map(serving).collect();
    RolloutEvent::EndpointsPublished { endpoints }
}

/// Pods that serve from a moment on, numbered from `first`.
fn serve(mut script: Script, first: usize, pods: &[std::net::Ipv4Addr], from: Instant) -> Script {
    for (number, &ip) in (first..).zip(pods) {
        let pod = PodId(number as u32);
        script = script
            .at(from, RolloutEvent::AddressAssigned { pod, ip })
            .at(from, RolloutEvent::Listening { pod });
        if from > Instant::ZERO {
            script = script.at(from, RolloutEvent::PodReady { pod });
        }
    }
    script
}

/// Pods that serve from the start and stay.
fn standing(pods: &[std::net::Ipv4Addr]) -> Script {
    serve(Script::new(), 0, pods, Instant::ZERO).at(Instant::ZERO, published(pods))
}

/// Pods added after, or taken away from, those of the start.
fn scaled(
    before: &[std::net::Ipv4Addr],
    added: &[std::net::Ipv4Addr],
    scale: &scenario::Scale,
    delays: &mut Delays,
) -> Script {
    let at = Instant::ZERO + scale.at;
    let killed = at + scale.killed_after;
    let kept = before.len().min(scale.to as usize);
    let after = [&before[..kept], added].concat();
    let mut script = serve(standing(before), before.len(), added, at)
        .at(at, RolloutEvent::Started { revision: 1 });
    for (number, &ip) in before.iter().enumerate().skip(kept) {
        let pod = PodId(number as u32);
        let gone = killed + delays.draw(LatencyKind::TearDown);
        script = script
            .at(at, RolloutEvent::PodTerminating { pod })
            .at(killed, RolloutEvent::ProcessExited { pod, killed: true })
            .at(gone, RolloutEvent::AddressGone { pod, ip })
            .at(gone, RolloutEvent::PodRemoved { pod });
    }
    script
        .at(at, published(&after))
        .at(at, RolloutEvent::Complete { revision: 1 })
}

/// Pods that leave the endpoints for a while and serve on.
fn flapping(pods: &[std::net::Ipv4Addr], flap: &scenario::Flap) -> Script {
    let at = Instant::ZERO + flap.at;
    let kept = pods.len().saturating_sub(flap.flapping as usize);
    let gone = (kept..pods.len()).map(|number| PodId(number as u32));
    let mut script = standing(pods).at(at, RolloutEvent::Started { revision: 1 });
    for pod in gone {
        script = script
            .at(at, RolloutEvent::PodNotReady { pod })
            .at(at + flap.lasts, RolloutEvent::PodReady { pod });
    }
    script
        .at(at, published(&pods[..kept]))
        .at(at + flap.lasts, published(pods))
        .at(at + flap.lasts, RolloutEvent::Complete { revision: 1 })
}

impl Source {
    fn of(scenario: &Scenario, delays: &mut Delays) -> Self {
        let server = &scenario.server;
        match &scenario.rollout {
            scenario::Rollout::None(steady) => {
                let pods = addresses(server.old_address, steady.pods);
                Self::Script(Scripted::new(standing(&pods)))
            }
            scenario::Rollout::Scripted(script) => {
                let old = addresses(server.old_address, script.old_pods);
                let new = addresses(scenario.new_address(), script.new_pods);
                let at = Instant::ZERO + script.at;
                let die = Instant::ZERO + script.old_die_at;
                Self::Script(Scripted::new(Script::swap(&old, &new, at, die)))
            }
            scenario::Rollout::Scale(scale) => {
                let before = addresses(server.old_address, scale.from);
                let added = addresses(scenario.new_address(), scale.to.saturating_sub(scale.from));
                Self::Script(Scripted::new(scaled(&before, &added, scale, delays)))
            }
            scenario::Rollout::Flap(flap) => {
                let pods = addresses(server.old_address, flap.pods);
                Self::Script(Scripted::new(flapping(&pods, flap)))
            }
            scenario::Rollout::Deployment(deployment) => {
                let strategy = UpdateStrategy::RollingUpdate {
                    max_surge: amount(deployment.max_surge),
                    max_unavailable: amount(deployment.max_unavailable),
                };
                let spec = Deployment {
                    replicas: deployment.replicas,
                    strategy,
                    min_ready: deployment.min_ready,
                    pod: pod_spec(deployment),
                    nodes: server.nodes as u16,
                };
                let mut pool = AddressPool::new(
                    server.old_address,
                    1 << 16,
                    Reuse::RoundRobin,
                    Span::from_secs(30),
                );
                // What lies between the old pods and the new ones belongs to other workloads.
                let (old, new) = (
                    server.old_address.to_bits(),
                    scenario.new_address().to_bits(),
                );
                for ip in old.saturating_add(deployment.replicas)..new {
                    pool.reserve(ip.into());
                }
                let mut rollout = Rollout::new(spec, pool, Instant::ZERO);
                rollout.start(Instant::ZERO + deployment.start);
                Self::Deployment(Box::new(rollout))
            }
        }
    }
}

impl Control {
    /// The control plane of a scenario, at rest before the rollout.
    pub fn new(scenario: &Scenario, streams: Streams) -> Self {
        let (kube_proxy, server) = (&scenario.kube_proxy, &scenario.server);
        let behaviours = proxy_behaviours(kube_proxy.version);
        let mut phases = streams.stream(Purpose::Phases, 1);
        let period = kube_proxy.check_period;
        let drawn = Span(phases.random_range(0..period.0.max(1)));
        let check_at = Instant::ZERO
            + match kube_proxy.first_check {
                Phase::Random => drawn,
                Phase::Fixed(at) => at,
            };
        let config = ProxyConfig {
            check_interval: period,
            ..ProxyConfig::of(behaviours)
        };
        let mut proxy = Proxy::running(config, check_at, Instant::ZERO + config.sync_period);
        let proto = scenario.service.protocol;
        let service = proxy.add_service(match proto {
            Proto::Tcp => ServiceProto::Tcp,
            Proto::Udp => ServiceProto::Udp,
        });
        let mut delays = Delays {
            rng: streams.stream(Purpose::Rollout, 0),
            container_start: match &scenario.rollout {
                scenario::Rollout::Deployment(deployment) => deployment.container_start,
                _ => scenario::Dist::Constant(Span::ZERO),
            },
            endpoint_latency: kube_proxy.endpoint_latency,
            address_gone_after: scenario.server.address_gone_after,
            probe_period: match &scenario.rollout {
                scenario::Rollout::Deployment(deployment) => deployment.readiness.period,
                _ => Span::ZERO,
            },
        };
        Self {
            source: Source::of(scenario, &mut delays),
            delays,
            proxy,
            behaviours,
            service,
            rng: streams.stream(Purpose::Proxy, 0),
            sync_latency: kube_proxy.sync_latency,
            target_port: scenario.service.target_port,
            policy: super::topology::policy(scenario),
            spread: match scenario.rollout {
                scenario::Rollout::Deployment(_) => None,
                _ => Some((server.old_address.to_bits(), server.nodes)),
            },
            log: Vec::new(),
            restart: (
                kube_proxy
                    .restart_at
                    .map_or(Instant::NEVER, |at| Instant::ZERO + at),
                kube_proxy.restart_takes,
            ),
        }
    }

    /// When the rollout goes on.
    pub fn next_rollout(&self) -> Option<Instant> {
        match &self.source {
            Source::Deployment(rollout) => rollout.next(),
            Source::Script(script) => script.next(),
        }
    }

    /// The next event of the rollout up to `now`.
    pub fn poll_rollout(&mut self, now: Instant) -> Option<RolloutEvent> {
        match &mut self.source {
            Source::Deployment(rollout) => {
                rollout.poll(now, &mut self.delays).map(|(_, event)| event)
            }
            Source::Script(script) => script.poll(now).map(|(_, event)| event),
        }
    }

    /// A pod that drains has no connections left.
    pub fn drained(&mut self, now: Instant, pod: PodId) {
        if let Source::Deployment(rollout) = &mut self.source {
            rollout.drained(now, pod);
        }
    }

    /// The endpoints that kube-proxy uses out of those published, and those beside them that still serve.
    pub fn wanted(&self, published: &[EndpointState]) -> Wanted {
        let mut placed = published.to_vec();
        if let Some((first, nodes)) = self.spread {
            for endpoint in &mut placed {
                let place = endpoint.ip.to_bits().wrapping_sub(first) % nodes;
                endpoint.node = place as u16;
            }
        }
        let (ips, _) = usable(&placed, self.policy, 0, self.behaviours);
        let at = |ip| Endpoint::new(ip, self.target_port);
        let rest = published.iter().filter(|endpoint| {
            endpoint.terminating && endpoint.serving && !ips.contains(&endpoint.ip)
        });
        Wanted {
            terminating: rest.map(|endpoint| at(endpoint.ip)).collect(),
            active: ips.into_iter().map(at).collect(),
        }
    }

    /// How long kube-proxy takes from the endpoints' change to its first change of the node.
    pub fn draw_sync_latency(&mut self) -> Span {
        sample(&self.sync_latency, &mut self.rng)
    }

    /// The endpoints changed; kube-proxy hears of them `watch` later.
    pub fn endpoints_changed(&mut self, now: Instant, endpoints: Vec<Endpoint>, watch: Span) {
        self.proxy
            .endpoints_changed(now, self.service, endpoints, watch);
    }

    /// When kube-proxy has something to do.
    pub fn next_proxy(&self) -> Option<Instant> {
        let restart = (self.restart.0 < Instant::NEVER).then_some(self.restart.0);
        [self.proxy.next(), restart].into_iter().flatten().min()
    }

    /// Whether kube-proxy, polled at `now`, would neither change a real server nor count the connections of one.
    pub fn proxy_changes_nothing(&self, now: Instant, ipvs: &mut Ipvs, key: ServiceKey) -> bool {
        let servers = NodeServers { ipvs, key, now };
        self.restart.0 > now && self.proxy.changes_nothing(now, &servers)
    }

    /// Lets kube-proxy do what is due; returns what it did. With `at_once` a whole sync happens now.
    pub fn poll_proxy(
        &mut self,
        now: Instant,
        ipvs: &mut Ipvs,
        key: ServiceKey,
        at_once: bool,
    ) -> std::vec::Drain<'_, ProxyLog> {
        let mut servers = NodeServers { ipvs, key, now };
        self.poll_proxy_on(now, &mut servers, at_once)
    }

    /// The same on real servers of the caller's: the lab has those of a real kernel.
    pub fn poll_proxy_on(
        &mut self,
        now: Instant,
        servers: &mut dyn RealServers,
        at_once: bool,
    ) -> std::vec::Drain<'_, ProxyLog> {
        let (restart_at, takes) = self.restart;
        // The whole of a sync's latency lies before its first change; calls take no time of their own.
        let mut draw = |kind: ProxyLatency| match kind {
            ProxyLatency::Received => takes,
            _ => Span::ZERO,
        };
        let mut io = ProxyIo {
            ipvs: servers,
            rng: &mut self.rng,
            draw: &mut draw,
            log: &mut self.log,
        };
        if at_once {
            self.proxy.sync_now(now, &mut io);
        } else if restart_at <= now {
            self.restart.0 = Instant::NEVER;
            self.proxy.restart(now, &mut io);
        } else {
            self.proxy.poll(now, &mut io);
        }
        self.log.drain(..)
    }
}
