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
use super::endpoints::EndpointState;
use super::pod::{Answering, OnTerm, PodId, PodPhase, PodSpec, PodStep};
use crate::time::{Instant, Span};

/// An absolute number or a percentage of the replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntOrPercent {
    /// So many pods.
    Int(u32),
    /// So many percent of the replicas.
    Percent(u32),
}

impl IntOrPercent {
    /// The number of pods; percentages round up or down.
    pub const fn of(self, replicas: u32, round_up: bool) -> u32 {
        match self {
            Self::Int(number) => number,
            Self::Percent(percent) => {
                let hundredths = replicas as u64 * percent as u64;
                let pods = if round_up {
                    hundredths.div_ceil(100)
                } else {
                    hundredths / 100
                };
                if pods > u32::MAX as u64 {
                    u32::MAX
                } else {
                    pods as u32
                }
            }
        }
    }
}

/// `spec.strategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateStrategy {
    /// New pods before, while and after old ones go.
    RollingUpdate {
        /// `maxSurge`: pods above the replicas (25%, rounded up).
        max_surge: IntOrPercent,
        /// `maxUnavailable`: pods that may lack (25%, rounded down).
        max_unavailable: IntOrPercent,
    },
    /// All old pods go before a new one comes.
    Recreate,
}

impl Default for UpdateStrategy {
    fn default() -> Self {
        Self::RollingUpdate {
            max_surge: IntOrPercent::Percent(25),
            max_unavailable: IntOrPercent::Percent(25),
        }
    }
}

impl UpdateStrategy {
    /// Surge and unavailability in pods. If both come out as 0, one pod may be unavailable
    /// (`ResolveFenceposts`); never more than all.
    pub const fn limits(self, replicas: u32) -> (u32, u32) {
        match self {
            Self::Recreate => (0, replicas),
            Self::RollingUpdate {
                max_surge,
                max_unavailable,
            } => {
                let surge = max_surge.of(replicas, true);
                let lacking = max_unavailable.of(replicas, false);
                let lacking = if surge == 0 && lacking == 0 {
                    1
                } else {
                    lacking
                };
                (
                    surge,
                    if lacking > replicas {
                        replicas
                    } else {
                        lacking
                    },
                )
            }
        }
    }
}

/// The Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// `spec.replicas`.
    pub replicas: u32,
    /// `spec.strategy`.
    pub strategy: UpdateStrategy,
    /// `spec.minReadySeconds` (0).
    pub min_ready: Span,
    /// The pod template, the same before and after.
    pub pod: PodSpec,
    /// Nodes that the pods are spread over in turn (at least 1).
    pub nodes: u16,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            replicas: 1,
            strategy: UpdateStrategy::default(),
            min_ready: Span::ZERO,
            pod: PodSpec::default(),
            nodes: 1,
        }
    }
}

/// A delay that the caller draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LatencyKind {
    /// A controller's reaction to a change (Deployment or ReplicaSet controller).
    Controller,
    /// Pod created to its address: scheduling, sandbox, CNI ADD.
    AssignAddress,
    /// Address to running container: image pull and start.
    StartContainer,
    /// Running container to listening application.
    Listen,
    /// The first probe after start and initial delay: uniform up to the period, as a rule.
    ProbePhase,
    /// A verdict of the prober, or an exit, to the pod's status in the API.
    ReportStatus,
    /// A pod's change to the EndpointSlice.
    SliceWrite,
    /// A deletion to the kubelet's beginning with it.
    KubeletDelete,
    /// The last exit to the address being gone: noticing (up to 1 s) and CNI DEL (0.1 to 3 s and more).
    TearDown,
    /// The address being gone to the object being gone.
    RemoveObject,
}

/// Where the delays come from.
pub trait Latencies {
    /// The delay of one step.
    fn draw(&mut self, kind: LatencyKind) -> Span;
}

impl<F: FnMut(LatencyKind) -> Span> Latencies for F {
    fn draw(&mut self, kind: LatencyKind) -> Span {
        self(kind)
    }
}

/// What happens in a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutEvent {
    /// The new template was accepted.
    Started {
        /// The revision that begins.
        revision: u32,
    },
    /// A pod object was created.
    PodCreated {
        /// The pod.
        pod: PodId,
        /// Its revision; 0 existed before the first rollout.
        revision: u32,
        /// Its node.
        node: u16,
    },
    /// A pod got its address.
    AddressAssigned {
        /// The pod.
        pod: PodId,
        /// Its address.
        ip: Ipv4Addr,
    },
    /// A pod's container runs; connections are refused.
    ContainerStarted {
        /// The pod.
        pod: PodId,
    },
    /// A pod's application listens.
    Listening {
        /// The pod.
        pod: PodId,
    },
    /// The API says that a pod is ready.
    PodReady {
        /// The pod.
        pod: PodId,
    },
    /// The API says that a pod's probe fails.
    PodNotReady {
        /// The pod.
        pod: PodId,
    },
    /// A pod's deletion was accepted: t0 of its termination.
    PodTerminating {
        /// The pod.
        pod: PodId,
    },
    /// A pod's `preStop` hook began.
    PreStopStarted {
        /// The pod.
        pod: PodId,
    },
    /// A pod's application got SIGTERM.
    SigTerm {
        /// The pod.
        pod: PodId,
    },
    /// A pod's application stopped listening and lives on: new connections are refused.
    ListenerClosed {
        /// The pod.
        pod: PodId,
    },
    /// A pod's process ended: connections are closed or reset, new ones refused.
    ProcessExited {
        /// The pod.
        pod: PodId,
        /// Whether SIGKILL ended it.
        killed: bool,
    },
    /// A pod's address is gone: what answers now depends on the network.
    AddressGone {
        /// The pod.
        pod: PodId,
        /// The address that was its.
        ip: Ipv4Addr,
    },
    /// A pod's object is gone.
    PodRemoved {
        /// The pod.
        pod: PodId,
    },
    /// The EndpointSlice was written; each kube-proxy hears of it after its own watch delay.
    EndpointsPublished {
        /// All endpoints with an address.
        endpoints: Vec<EndpointState>,
    },
    /// All replicas are of this revision and available; old pods may still terminate.
    Complete {
        /// The revision.
        revision: u32,
    },
}

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

    // The controllers.

    fn begin(&mut self, now: Instant, lat: &mut impl Latencies) {
        let revision = self.sets.last().map_or(0, |set| set.revision + 1);
        self.sets.push(ReplicaSet {
            revision,
            desired: 0,
        });
        self.complete = false;
        self.emit(now, RolloutEvent::Started { revision });
        self.wake_deployment(now, lat);
    }

    /// The Deployment controller looks one reaction later; changes until then are one look.
    fn wake_deployment(&mut self, now: Instant, lat: &mut impl Latencies) {
        if !self.reconcile_pending {
            self.reconcile_pending = true;
            self.push(now + lat.draw(LatencyKind::Controller), Due::Reconcile);
        }
    }

    fn wake_replicas(&mut self, now: Instant, lat: &mut impl Latencies) {
        if !self.replicas_pending {
            self.replicas_pending = true;
            self.push(now + lat.draw(LatencyKind::Controller), Due::Replicas);
        }
    }

    /// One look of the Deployment controller: one change at most, then another look.
    fn reconcile(&mut self, now: Instant, lat: &mut impl Latencies) {
        self.reconcile_pending = false;
        let changed = match self.deployment.strategy {
            UpdateStrategy::RollingUpdate { .. } => self.scale_up_new() || self.scale_down_old(),
            UpdateStrategy::Recreate => self.recreate(),
        };
        if changed {
            self.wake_replicas(now, lat);
            self.wake_deployment(now, lat);
        } else if !self.complete && self.settled() {
            self.complete = true;
            let revision = self.sets.last().map_or(0, |set| set.revision);
            self.sets.retain(|set| set.revision == revision);
            self.emit(now, RolloutEvent::Complete { revision });
        }
    }

    /// All replicas are new, up and available, and nothing old is left that is not terminating.
    fn settled(&self) -> bool {
        let replicas = self.deployment.replicas;
        let Some(new) = self.sets.last() else {
            return true;
        };
        new.desired == replicas
            && self.available(new.revision) == replicas
            && self.active() == replicas as usize
    }

    fn available(&self, revision: u32) -> u32 {
        let counts = |pod: &&Pod| pod.revision == revision && pod.active() && pod.available;
        self.pods.iter().filter(counts).count() as u32
    }

    /// Available pods of a set that it is not about to delete: what its status says once it has caught up.
    fn kept_available(&self, set: &ReplicaSet) -> u32 {
        self.available(set.revision).min(set.desired)
    }

    fn desired_sum(&self) -> u32 {
        self.sets
            .iter()
            .map(|set| set.desired)
            .fold(0, u32::saturating_add)
    }

    /// `reconcileNewReplicaSet` and `NewRSNewReplicas`.
    fn scale_up_new(&mut self) -> bool {
        let replicas = self.deployment.replicas;
        let (surge, _) = self.deployment.strategy.limits(replicas);
        let total = self.desired_sum();
        let Some(new) = self.sets.last_mut() else {
            return false;
        };
        let before = new.desired;
        if new.desired > replicas {
            new.desired = replicas;
        } else {
            let room = replicas.saturating_add(surge).saturating_sub(total);
            new.desired += room.min(replicas - new.desired);
        }
        new.desired != before
    }

    /// `reconcileOldReplicaSets`: old pods that are not available first, then available ones while enough remain.
    fn scale_down_old(&mut self) -> bool {
        let replicas = self.deployment.replicas;
        let (_, lacking) = self.deployment.strategy.limits(replicas);
        let min_available = replicas.saturating_sub(lacking);
        let Some((new, old)) = self.sets.split_last() else {
            return false;
        };
        let new_unavailable = new.desired - self.kept_available(new);
        let total = self.desired_sum();
        let mut cleanup = total
            .saturating_sub(min_available)
            .saturating_sub(new_unavailable);
        if cleanup == 0 || old.iter().all(|set| set.desired == 0) {
            return false;
        }
        let mut desired: Vec<_> = old.iter().map(|set| set.desired).collect();
        for (set, desired) in old.iter().zip(&mut desired) {
            let count = cleanup.min(set.desired - self.kept_available(set));
            *desired -= count;
            cleanup -= count;
        }
        let available: u32 = self.sets.iter().map(|set| self.kept_available(set)).sum();
        let mut spare = available.saturating_sub(min_available);
        for desired in &mut desired {
            let count = spare.min(*desired);
            *desired -= count;
            spare -= count;
        }
        let mut changed = false;
        for (set, desired) in self.sets.iter_mut().zip(desired) {
            changed |= set.desired != desired;
            set.desired = desired;
        }
        changed
    }

    /// `rolloutRecreate`: down, wait until the last old pod's object is gone, up.
    fn recreate(&mut self) -> bool {
        let Some((new, old)) = self.sets.split_last_mut() else {
            return false;
        };
        let mut changed = false;
        for set in old {
            changed |= set.desired != 0;
            set.desired = 0;
        }
        let old_left = self.pods.iter().any(|pod| pod.revision != new.revision);
        if changed || old_left {
            return changed;
        }
        changed = new.desired != self.deployment.replicas;
        new.desired = self.deployment.replicas;
        changed
    }

    /// The ReplicaSet controllers create and delete pods until the numbers are right.
    fn sync_replicas(&mut self, now: Instant, lat: &mut impl Latencies) {
        self.replicas_pending = false;
        for index in 0..self.sets.len() {
            let ReplicaSet { revision, desired } = self.sets[index];
            let mut active: Vec<_> = self
                .pods
                .iter()
                .filter(|pod| pod.revision == revision && pod.active())
                .collect();
            // What goes first: without address, not ready, ready most recently, youngest.
            active.sort_by_key(|pod| {
                let age = core::cmp::Reverse((pod.passing_since, pod.id));
                (pod.phase > PodPhase::Created, pod.passing, age)
            });
            let excess = active.len().saturating_sub(desired as usize);
            let victims: Vec<_> = active.iter().take(excess).map(|pod| pod.id).collect();
            let missing = (desired as usize).saturating_sub(active.len());
            for pod in victims {
                self.delete(now, pod, lat);
            }
            for _ in 0..missing {
                let pod = self.create(now, revision);
                self.push(now + lat.draw(LatencyKind::AssignAddress), Due::Assign(pod));
            }
        }
        self.wake_deployment(now, lat);
    }

    // A pod's beginning.

    fn create(&mut self, now: Instant, revision: u32) -> PodId {
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

    fn assign(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
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

    fn start_container(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
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

    fn listen(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let Some(record) = self.pod_mut(pod).filter(|record| record.phase.alive()) else {
            return;
        };
        record.listening = true;
        self.emit(now, RolloutEvent::Listening { pod });
        self.answers(now, pod, Answering::Yes, lat);
    }

    /// The prober meets something new: the verdict falls when its threshold is reached, unless it changes again.
    fn answers(
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

    fn verdict(
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
    fn delete(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
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
    fn terminate(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
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

    fn close_listener(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        let listens = |record: &&mut Pod| record.listening && record.phase.alive();
        if let Some(record) = self.pod_mut(pod).filter(listens) {
            record.listening = false;
            self.emit(now, RolloutEvent::ListenerClosed { pod });
            self.answers(now, pod, Answering::Refuses, lat);
        }
    }

    fn exit(&mut self, now: Instant, pod: PodId, killed: bool, lat: &mut impl Latencies) {
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

    fn tear_down(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
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

    fn remove(&mut self, now: Instant, pod: PodId, lat: &mut impl Latencies) {
        if self.step(pod, PodStep::Remove).is_none() {
            return;
        }
        self.pods.retain(|record| record.id != pod);
        self.emit(now, RolloutEvent::PodRemoved { pod });
        self.touch_slice(now, lat);
        self.wake_deployment(now, lat);
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
