//! The controllers' part of a rollout: Deployment and ReplicaSets.

use super::{Due, Latencies, LatencyKind, Pod, ReplicaSet, Rollout, RolloutEvent};
use crate::kube::deployment::SetStatus;
use crate::kube::pod::PodPhase;
use crate::time::Instant;

impl Rollout {
    pub(super) fn begin(&mut self, now: Instant, lat: &mut impl Latencies) {
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
    pub(super) fn wake_deployment(&mut self, now: Instant, lat: &mut impl Latencies) {
        if !self.reconcile_pending {
            self.reconcile_pending = true;
            self.push(now + lat.draw(LatencyKind::Controller), Due::Reconcile);
        }
    }

    pub(super) fn wake_replicas(&mut self, now: Instant, lat: &mut impl Latencies) {
        if !self.replicas_pending {
            self.replicas_pending = true;
            self.push(now + lat.draw(LatencyKind::Controller), Due::Replicas);
        }
    }

    /// One look of the Deployment controller: one change at most, then another look.
    pub(super) fn reconcile(&mut self, now: Instant, lat: &mut impl Latencies) {
        self.reconcile_pending = false;
        let changed = self.rescale();
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
    pub(super) fn settled(&self) -> bool {
        let replicas = self.deployment.replicas;
        let Some(new) = self.sets.last() else {
            return true;
        };
        new.desired == replicas
            && self.available(new.revision) == replicas
            && self.active() == replicas as usize
    }

    pub(super) fn available(&self, revision: u32) -> u32 {
        let counts = |pod: &&Pod| pod.revision == revision && pod.active() && pod.available;
        self.pods.iter().filter(counts).count() as u32
    }

    /// Lets the Deployment's rule change the desired numbers; whether it did.
    pub(super) fn rescale(&mut self) -> bool {
        let mut sets: Vec<_> = self
            .sets
            .iter()
            .map(|set| SetStatus {
                desired: set.desired,
                available: self.available(set.revision),
            })
            .collect();
        let new = self.sets.last().map(|set| set.revision);
        let old_left = self.pods.iter().any(|pod| Some(pod.revision) != new);
        let changed = self.deployment.rescale(&mut sets, old_left);
        for (set, status) in self.sets.iter_mut().zip(sets) {
            set.desired = status.desired;
        }
        changed
    }

    /// The ReplicaSet controllers create and delete pods until the numbers are right.
    pub(super) fn sync_replicas(&mut self, now: Instant, lat: &mut impl Latencies) {
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
}
