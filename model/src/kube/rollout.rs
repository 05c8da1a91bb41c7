//! A Deployment's rollout: which pods exist, listen, are ready, terminate, and what the EndpointSlice says.
//!
//! Faithful to: `rolloutRolling`, `rolloutRecreate` and `NewRSNewReplicas` of the Deployment controller, the
//! ReplicaSet controller's choice of what to delete, the kubelet's order of termination (module [`super::pod`]), the
//! EndpointSlice controller's batching (facts, kube-proxy 6).
//! Leaves out: proportional scaling during a rollout, progress deadlines, pauses, pods spread by node when one is
//! chosen for deletion, the coarse and partly random age ranks of 1.22 and later, crashes. The controllers see the
//! pods as they are, one delay late, never an outdated count.
//!
//! Contract: poll at the moment that [`Rollout::next`] names until nothing more comes. Every delay is drawn from
//! the caller when the step begins that takes it.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use super::addresses::AddressPool;
use super::deployment::Deployment;
use super::endpoints::EndpointState;
use super::pod::{Answering, OnTerm, PodId, PodPhase, PodStep};
use crate::time::Instant;

mod controllers;
mod events;
mod lifecycle;

pub use events::{Latencies, LatencyKind, RolloutEvent};

/// A pod as the rollout keeps it.
#[derive(Clone, Debug)]
struct Pod {
    id: PodId,
    revision: u32,
    node: u16,
    phase: PodPhase,
    ip: Option<Ipv4Addr>,
    deleted: bool,
    listening: bool,
    /// Found no free address.
    waiting: bool,
    /// The prober's verdict as the API knows it.
    passing: bool,
    passing_since: Instant,
    available: bool,
    first_probe: Instant,
    /// Counts the changes of what the prober meets: an older verdict is void.
    epoch: u32,
}

impl Pod {
    /// `Ready` as the API shows it.
    const fn ready(&self) -> bool {
        self.passing && !self.deleted
    }

    const fn active(&self) -> bool {
        !self.deleted && !matches!(self.phase, PodPhase::Removed)
    }
}

/// One ReplicaSet: a revision and how many pods it should have.
#[derive(Clone, Copy, Debug)]
struct ReplicaSet {
    revision: u32,
    desired: u32,
}

/// Something that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Start,
    Scale(u32),
    Reconcile,
    Replicas,
    DeletePod(PodId),
    Assign(PodId),
    StartContainer(PodId),
    Listen(PodId),
    Answers(PodId, Answering),
    Verdict(PodId, u32, bool),
    Available(PodId, Instant),
    Kubelet(PodId),
    Signal(PodId),
    CloseListener(PodId),
    Exit(PodId, bool),
    TearDown(PodId),
    Remove(PodId),
    Slice,
}

/// Why a change of scale was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutInProgress;

impl core::fmt::Display for RolloutInProgress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("a rollout is in progress; scaling during a rollout is not modelled, wait until it is complete")
    }
}

impl core::error::Error for RolloutInProgress {}

/// A Deployment with its pods.
#[derive(Clone, Debug)]
pub struct Rollout {
    deployment: Deployment,
    pool: AddressPool,
    /// Oldest first; the last one is the current template's.
    sets: Vec<ReplicaSet>,
    pods: Vec<Pod>,
    next_pod: u32,
    due: BTreeMap<(Instant, u64), Due>,
    sequence: u64,
    out: VecDeque<(Instant, RolloutEvent)>,
    reconcile_pending: bool,
    replicas_pending: bool,
    slice_pending: bool,
    published: Vec<EndpointState>,
    complete: bool,
}

impl Rollout {
    /// A Deployment that has been settled for long: all replicas of revision 0 exist and are ready. The events that
    /// introduce them, and the EndpointSlice that lists them, are ready to poll at `now`.
    ///
    /// If the pool is too small, the pods that get no address are not created.
    pub fn new(deployment: Deployment, pool: AddressPool, now: Instant) -> Self {
        let mut rollout = Self {
            deployment,
            pool,
            sets: vec![ReplicaSet {
                revision: 0,
                desired: deployment.replicas,
            }],
            pods: Vec::new(),
            next_pod: 0,
            due: BTreeMap::new(),
            sequence: 0,
            out: VecDeque::new(),
            reconcile_pending: false,
            replicas_pending: false,
            slice_pending: false,
            published: Vec::new(),
            complete: true,
        };
        for _ in 0..deployment.replicas {
            let Some(ip) = rollout.pool.allocate(now) else {
                break;
            };
            let pod = rollout.create(now, 0);
            let record = rollout.pods.last_mut().expect("the pod just created");
            record.ip = Some(ip);
            record.phase = PodPhase::Running;
            (record.listening, record.passing, record.available) = (true, true, true);
            (record.first_probe, record.passing_since) = (now, now);
            rollout.emit(now, RolloutEvent::AddressAssigned { pod, ip });
            rollout.emit(now, RolloutEvent::ContainerStarted { pod });
            rollout.emit(now, RolloutEvent::Listening { pod });
            rollout.emit(now, RolloutEvent::PodReady { pod });
        }
        rollout.publish(now);
        rollout
    }

    /// A new template is applied (`kubectl rollout restart`, a new image). During a rollout it rolls over.
    pub fn start(&mut self, now: Instant) {
        self.complete = false;
        self.push(now, Due::Start);
    }

    /// `kubectl scale`.
    ///
    /// # Errors
    /// While a rollout is in progress: proportional scaling is not modelled.
    pub fn scale(&mut self, now: Instant, replicas: u32) -> Result<(), RolloutInProgress> {
        if !self.complete {
            return Err(RolloutInProgress);
        }
        self.complete = false;
        self.push(now, Due::Scale(replicas));
        Ok(())
    }

    /// `kubectl delete pod`; its ReplicaSet replaces it at once. Unknown and terminating pods are ignored.
    pub fn delete_pod(&mut self, now: Instant, pod: PodId) {
        self.push(now, Due::DeletePod(pod));
    }

    /// What the readiness probe meets changes (a pod that hangs, or recovers).
    pub fn set_answering(&mut self, now: Instant, pod: PodId, answering: Answering) {
        self.push(now, Due::Answers(pod, answering));
    }

    /// The application of a pod that drains has no connections left: it exits. Other pods are not affected.
    pub fn drained(&mut self, now: Instant, pod: PodId) {
        let drains = matches!(self.deployment.pod.on_term, OnTerm::Drains { .. });
        if drains
            && self
                .pod(pod)
                .is_some_and(|p| p.phase == PodPhase::Signalled && !p.listening)
        {
            self.push(now, Due::Exit(pod, false));
        }
    }

    /// When to poll next; `None` if nothing will happen by itself.
    pub fn next(&self) -> Option<Instant> {
        let out = self.out.front().map(|(at, _)| *at);
        out.or_else(|| self.due.first_key_value().map(|((at, _), _)| *at))
    }

    /// The next event that has happened by `now`, with its moment; call until nothing comes.
    pub fn poll(
        &mut self,
        now: Instant,
        latencies: &mut impl Latencies,
    ) -> Option<(Instant, RolloutEvent)> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Some(event);
            }
            let entry = self
                .due
                .first_entry()
                .filter(|entry| entry.key().0 <= now)?;
            let ((at, _), due) = entry.remove_entry();
            self.handle(at, due, latencies);
        }
    }

    /// Whether all replicas are of the current revision and available.
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Pods that are ready and not terminating.
    pub fn ready(&self) -> usize {
        self.pods.iter().filter(|pod| pod.ready()).count()
    }

    /// Pods that are not terminating.
    pub fn active(&self) -> usize {
        self.pods.iter().filter(|pod| pod.active()).count()
    }

    /// The pods whose objects exist: id, revision, address, phase, ready.
    pub fn pods(
        &self,
    ) -> impl Iterator<Item = (PodId, u32, Option<Ipv4Addr>, PodPhase, bool)> + '_ {
        self.pods
            .iter()
            .map(|pod| (pod.id, pod.revision, pod.ip, pod.phase, pod.ready()))
    }

    fn push(&mut self, at: Instant, due: Due) {
        self.due.insert((at, self.sequence), due);
        self.sequence += 1;
    }

    fn emit(&mut self, at: Instant, event: RolloutEvent) {
        self.out.push_back((at, event));
    }

    fn pod(&self, id: PodId) -> Option<&Pod> {
        self.pods.iter().find(|pod| pod.id == id)
    }

    fn pod_mut(&mut self, id: PodId) -> Option<&mut Pod> {
        self.pods.iter_mut().find(|pod| pod.id == id)
    }

    /// Takes a pod's step if it fits its phase.
    fn step(&mut self, id: PodId, step: PodStep) -> Option<&mut Pod> {
        let pod = self.pod_mut(id)?;
        pod.phase = pod.phase.after(step)?;
        Some(pod)
    }

    fn handle(&mut self, now: Instant, due: Due, lat: &mut impl Latencies) {
        match due {
            Due::Start => self.begin(now, lat),
            Due::Scale(replicas) => {
                self.deployment.replicas = replicas;
                self.wake_deployment(now, lat);
            }
            Due::Reconcile => self.reconcile(now, lat),
            Due::Replicas => self.sync_replicas(now, lat),
            Due::DeletePod(pod) => self.delete(now, pod, lat),
            Due::Assign(pod) => self.assign(now, pod, lat),
            Due::StartContainer(pod) => self.start_container(now, pod, lat),
            Due::Listen(pod) => self.listen(now, pod, lat),
            Due::Answers(pod, answering) => self.answers(now, pod, answering, lat),
            Due::Verdict(pod, epoch, passing) => self.verdict(now, pod, epoch, passing, lat),
            Due::Available(pod, since) => {
                if let Some(pod) = self.pod_mut(pod)
                    && pod.passing_since == since
                    && pod.ready()
                {
                    pod.available = true;
                    self.wake_deployment(now, lat);
                }
            }
            Due::Kubelet(pod) => self.terminate(now, pod, lat),
            Due::Signal(pod) => {
                if self.step(pod, PodStep::Signal).is_some() {
                    self.emit(now, RolloutEvent::SigTerm { pod });
                }
            }
            Due::CloseListener(pod) => self.close_listener(now, pod, lat),
            Due::Exit(pod, killed) => self.exit(now, pod, killed, lat),
            Due::TearDown(pod) => self.tear_down(now, pod, lat),
            Due::Remove(pod) => self.remove(now, pod, lat),
            Due::Slice => {
                self.slice_pending = false;
                self.publish(now);
            }
        }
    }

    // The EndpointSlice.

    /// A pod changed: the slice is written one delay later, with what is true then.
    fn touch_slice(&mut self, now: Instant, lat: &mut impl Latencies) {
        if !self.slice_pending {
            self.slice_pending = true;
            self.push(now + lat.draw(LatencyKind::SliceWrite), Due::Slice);
        }
    }

    fn publish(&mut self, now: Instant) {
        let endpoints: Vec<_> = self
            .pods
            .iter()
            .filter_map(|pod| {
                Some(EndpointState {
                    ip: pod.ip?,
                    node: pod.node,
                    ready: pod.ready(),
                    serving: pod.passing,
                    terminating: pod.deleted,
                })
            })
            .collect();
        if endpoints != self.published {
            self.published.clone_from(&endpoints);
            self.emit(now, RolloutEvent::EndpointsPublished { endpoints });
        }
    }
}

#[cfg(test)]
mod tests;
