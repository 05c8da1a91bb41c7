//! A pod's part of a rollout: from its creation to the end of its object.

use super::{Due, Latencies, LatencyKind, Pod, Rollout, RolloutEvent};
use crate::kube::pod::{Answering, PodId, PodPhase, PodStep};
use crate::time::{Instant, Span};

impl Rollout {
    // A pod's beginning.

    pub(super) fn create(&mut self, now: Instant, revision: u32) -> PodId {
        let id = PodId(self.next_pod);
        let node = (self.next_pod % u32::from(self.deployment.nodes.max(1))) as u16;
        self.next_pod += 1;
        self.pods.push(Pod {
            id,
            revision,
            node,
            phase: PodPhase::Created,
            ip: None,
            deleted: false,
            listening: false,
            waiting: false,
            passing: false,
            passing_since: Instant::ZERO,
            available: false,
            first_probe: Instant::NEVER,
            epoch: 0,
        });
        self.emit(
            now,
            RolloutEvent::PodCreated {
                pod: id,
                revision,
                node,
            },
        );
        id
    }

    pub(super) fn assign(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        if self
            .pod(pod)
            .is_none_or(|record| record.phase != PodPhase::Created)
        {
            return;
        }
        let Some(ip) = self.pool.allocate(now) else {
            // The sandbox is tried again when an address has cooled down, or one is released.
            if let Some(record) = self.pod_mut(pod) {
                record.waiting = true;
            }
            if let Some(at) = self.pool.next_free().filter(|at| *at > now) {
                self.push(at, Due::Assign(pod));
            }
            return;
        };
        if let Some(record) = self.step(pod, PodStep::Assign) {
            record.ip = Some(ip);
        }
        self.emit(now, RolloutEvent::AddressAssigned { pod, ip });
        self.push(
            now + lat.draw(LatencyKind::StartContainer),
            Due::StartContainer(pod),
        );
        self.touch_slice(now, lat);
    }

    pub(super) fn start_container(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let probe = self.deployment.pod.readiness;
        let Some(record) = self.step(pod, PodStep::Start) else {
            return;
        };
        let epoch = record.epoch;
        match probe {
            Some(probe) => {
                let phase = lat.draw(LatencyKind::ProbePhase);
                record.first_probe = now + probe.initial_delay + phase;
            }
            // Without a probe a running container is ready.
            None => {
                self.push(
                    now + lat.draw(LatencyKind::ReportStatus),
                    Due::Verdict(pod, epoch, true),
                );
            }
        }
        self.emit(now, RolloutEvent::ContainerStarted { pod });
        self.push(now + lat.draw(LatencyKind::Listen), Due::Listen(pod));
    }

    pub(super) fn listen(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let Some(record) = self.pod_mut(pod).filter(|record| record.phase.alive()) else {
            return;
        };
        record.listening = true;
        self.emit(now, RolloutEvent::Listening { pod });
        self.answers(now, pod, Answering::Yes, lat);
    }

    /// The prober meets something new: the verdict falls when its threshold is reached, unless it changes again.
    pub(super) fn answers(
        &mut self,
        now: Instant,
        pod: PodId,
        answering: Answering,
        lat: &mut impl Latencies,
    ) {
        let Some(probe) = self.deployment.pod.readiness else {
            return;
        };
        let Some(record) = self.pod_mut(pod).filter(|record| record.phase.alive()) else {
            return;
        };
        record.epoch += 1;
        let epoch = record.epoch;
        let at = probe.verdict_at(record.first_probe, now, answering);
        let passing = answering == Answering::Yes;
        self.push(
            at + lat.draw(LatencyKind::ReportStatus),
            Due::Verdict(pod, epoch, passing),
        );
    }

    pub(super) fn verdict(
        &mut self,
        now: Instant,
        pod: PodId,
        epoch: u32,
        passing: bool,
        lat: &mut impl Latencies,
    ) {
        let min_ready = self.deployment.min_ready;
        let Some(record) = self.pod_mut(pod) else {
            return;
        };
        if record.epoch != epoch || record.passing == passing {
            return;
        }
        record.passing = passing;
        record.available = passing && min_ready == Span::ZERO && !record.deleted;
        if passing {
            record.passing_since = now;
        }
        let deleted = record.deleted;
        if passing && min_ready > Span::ZERO {
            self.push(now + min_ready, Due::Available(pod, now));
        }
        if !deleted {
            let event = if passing {
                RolloutEvent::PodReady { pod }
            } else {
                RolloutEvent::PodNotReady { pod }
            };
            self.emit(now, event);
            self.wake_deployment(now, lat);
        }
        self.touch_slice(now, lat);
    }

    // A pod's end.

    /// t0: the API accepts the deletion.
    pub(super) fn delete(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let Some(record) = self.pod_mut(pod).filter(|record| record.active()) else {
            return;
        };
        record.deleted = true;
        record.available = false;
        let phase = record.phase;
        self.emit(now, RolloutEvent::PodTerminating { pod });
        if phase == PodPhase::Created {
            self.remove(now, pod, lat);
        } else {
            self.push(
                now + lat.draw(LatencyKind::KubeletDelete),
                Due::Kubelet(pod),
            );
            self.touch_slice(now, lat);
        }
        // Whoever deleted it: its ReplicaSet counts again, and so does the Deployment.
        self.wake_replicas(now, lat);
        self.wake_deployment(now, lat);
    }

    /// The kubelet begins: the hook, SIGTERM, SIGKILL.
    pub(super) fn terminate(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let plan = self.deployment.pod.termination(now);
        match self.pod(pod).map(|record| record.phase) {
            Some(PodPhase::Assigned) => return self.exit(now, pod, false, lat),
            Some(PodPhase::Running) => {}
            _ => return,
        }
        if plan.hook && self.step(pod, PodStep::Hook).is_some() {
            self.emit(now, RolloutEvent::PreStopStarted { pod });
        }
        self.push(plan.term, Due::Signal(pod));
        if let Some(at) = plan.listener_closes {
            self.push(at, Due::CloseListener(pod));
        }
        self.push(plan.exit, Due::Exit(pod, plan.exit == plan.kill));
    }

    pub(super) fn close_listener(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let listens = |record: &&mut Pod| record.listening && record.phase.alive();
        if let Some(record) = self.pod_mut(pod).filter(listens) {
            record.listening = false;
            self.emit(now, RolloutEvent::ListenerClosed { pod });
            self.answers(now, pod, Answering::Refuses, lat);
        }
    }

    pub(super) fn exit(
        &mut self,
        now: Instant,
        pod: PodId,
        killed: bool,
        lat: &mut impl Latencies,
    ) {
        let lived = self.pod(pod).is_some_and(|record| record.phase.alive());
        let Some(record) = self.step(pod, PodStep::Exit) else {
            return;
        };
        record.listening = false;
        record.epoch += 1;
        let epoch = record.epoch;
        if lived {
            self.emit(now, RolloutEvent::ProcessExited { pod, killed });
        }
        // A container that has ended is not ready, whatever the prober would say.
        self.push(
            now + lat.draw(LatencyKind::ReportStatus),
            Due::Verdict(pod, epoch, false),
        );
        self.push(now + lat.draw(LatencyKind::TearDown), Due::TearDown(pod));
    }

    pub(super) fn tear_down(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let Some(ip) = self
            .step(pod, PodStep::TearDown)
            .and_then(|record| record.ip)
        else {
            return;
        };
        self.emit(now, RolloutEvent::AddressGone { pod, ip });
        self.pool.release(ip, now);
        // Pods that wait for an address try again.
        let waiting: Vec<_> = self
            .pods
            .iter()
            .filter(|record| record.phase == PodPhase::Created && record.waiting)
            .map(|record| record.id)
            .collect();
        if let Some(at) = self.pool.next_free() {
            for pod in waiting {
                self.push(at.max(now), Due::Assign(pod));
            }
        }
        self.push(now + lat.draw(LatencyKind::RemoveObject), Due::Remove(pod));
    }

    pub(super) fn remove(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        if self.step(pod, PodStep::Remove).is_none() {
            return;
        }
        self.pods.retain(|record| record.id != pod);
        self.emit(now, RolloutEvent::PodRemoved { pod });
        self.touch_slice(now, lat);
        self.wake_deployment(now, lat);
    }
}
