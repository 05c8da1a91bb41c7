//! What the control plane does to the world: pods of a rollout, kube-proxy, rules.

use ipvs_model::kube::{ProxyAction, RolloutEvent};
use ipvs_model::segment::{Endpoint, Proto};
use ipvs_model::time::Instant;

use super::hosts::answers_directly;
use super::observe::Observer;
use super::trace::Happening;
use super::world::{Event, World};
use crate::scenario::DataPlane;

impl World<'_> {
    /// Files the next step of the rollout, if it comes before the one that is filed.
    pub(super) fn file_rollout(&mut self) {
        if let Some(at) = self.control.next_rollout()
            && at < self.rollout_filed
        {
            self.rollout_filed = at;
            self.control_at(at.max(self.now), Event::Rollout);
        }
    }

    /// The same for kube-proxy.
    pub(super) fn file_proxy(&mut self) {
        if self.scenario.node.mode != DataPlane::Ipvs {
            return;
        }
        if let Some(at) = self.control.next_proxy()
            && at < self.proxy_filed
        {
            self.proxy_filed = at;
            self.control_at(at.max(self.now), Event::Proxy);
        }
    }

    /// Something happens to the pods of a rollout.
    pub(super) fn on_rollout(&mut self, event: RolloutEvent) {
        self.quiet_looks_again();
        let port = self.scenario.service.target_port;
        let pods = &mut self.pods;
        let mut at_pod = |pod, what: Happening, observer: &mut Observer, now| {
            let address = pods.by_id(pod).map(|host| host.address);
            observer.event(now, address, what);
        };
        let (now, observer) = (self.now, &mut self.observer);
        match event {
            RolloutEvent::Started { .. } => observer.event(now, None, Happening::RolloutStarted),
            RolloutEvent::Complete { .. } => observer.event(now, None, Happening::RolloutComplete),
            RolloutEvent::PodCreated { revision, .. } => self.generation.push(revision),
            RolloutEvent::AddressAssigned { pod, ip } => {
                let revision = self.generation.get(pod.0 as usize).copied().unwrap_or(0);
                let before = (0..pod.0 as usize)
                    .filter(|number| self.generation.get(*number).copied().unwrap_or(0) == revision)
                    .count();
                let direct = answers_directly(self.scenario.network.return_path, before as u32);
                pods.add(pod, Endpoint::new(ip, port), direct);
                self.dead_ends.revive(ip);
                self.node.set_unreachable(ip, false);
            }
            RolloutEvent::Listening { pod } => pods.listen(pod),
            RolloutEvent::PodReady { pod } => at_pod(pod, Happening::PodReady, observer, now),
            RolloutEvent::PodNotReady { pod } => at_pod(pod, Happening::PodNotReady, observer, now),
            RolloutEvent::PodTerminating { pod } => {
                at_pod(pod, Happening::PodTerminating, observer, now)
            }
            RolloutEvent::PreStopStarted { pod } => {
                at_pod(pod, Happening::PreStopStarted, observer, now)
            }
            RolloutEvent::SigTerm { pod } => at_pod(pod, Happening::SigTerm, observer, now),
            RolloutEvent::ListenerClosed { pod } => {
                at_pod(pod, Happening::ListenerClosed, observer, now);
                self.pod_closes_listener(pod);
            }
            RolloutEvent::ProcessExited { pod, killed } => {
                let what = if killed {
                    Happening::ProcessKilled
                } else {
                    Happening::ProcessExited
                };
                at_pod(pod, what, observer, now);
                self.pod_exits(pod);
            }
            RolloutEvent::AddressGone { pod, ip } => {
                at_pod(pod, Happening::AddressGone, observer, now);
                self.pod_vanishes(pod, ip);
            }
            RolloutEvent::EndpointsPublished { endpoints } => {
                let wanted = self.control.wanted(&endpoints);
                let watch = self.control.draw_sync_latency();
                if self.scenario.node.mode == DataPlane::Ipvs {
                    self.control.endpoints_changed(now, wanted.active, watch);
                } else {
                    let at = (now + watch).max(self.rules_at);
                    self.rules_at = at;
                    self.control_at(at, Event::Rules(Box::new(wanted)));
                }
            }
            RolloutEvent::ContainerStarted { .. } | RolloutEvent::PodRemoved { .. } => {}
        }
    }

    /// The real servers that kube-proxy wants, drained ones left out.
    fn weighted_servers(&self) -> Vec<Endpoint> {
        let servers = self.node.ipvs.real_servers(self.key);
        servers
            .filter(|server| server.weight > 0)
            .map(|server| server.addr)
            .collect()
    }

    /// kube-proxy acts on what it has seen.
    pub(super) fn on_proxy(&mut self) {
        self.proxy_filed = Instant::NEVER;
        self.quiet_looks_again();
        if !self
            .control
            .proxy_changes_nothing(self.now, &mut self.node.ipvs, self.key)
        {
            self.pay_all();
        }
        self.node.advance(self.now);
        let before = match self.key.proto {
            Proto::Udp => self.weighted_servers(),
            Proto::Tcp => Vec::new(),
        };
        let (now, observer) = (self.now, &mut self.observer);
        for entry in self
            .control
            .poll_proxy(now, &mut self.node.ipvs, self.key, false)
        {
            let what = match entry.action {
                ProxyAction::Added => Happening::ServerAdded,
                ProxyAction::WeightSet(weight) => Happening::WeightSet(weight),
                ProxyAction::Deleted => Happening::ServerDeleted,
                ProxyAction::Listed | ProxyAction::Unlisted | ProxyAction::Kept => continue,
            };
            observer.event(entry.at, Some(entry.server), what);
        }
        if self.key.proto == Proto::Udp {
            let after = self.weighted_servers();
            self.clean_stale_udp(&before, &after);
        }
        self.file_proxy();
    }
}
