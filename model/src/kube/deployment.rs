//! A Deployment's specification and its arithmetic: how many pods of which revision there should be.
//!
//! Faithful to: pkg/controller/deployment (`rolling.go`, `recreate.go`, `util/deployment_util.go`); facts, kube-proxy 6.
//! Leaves out: proportional scaling during a rollout, progress deadlines, pauses.

use super::pod::PodSpec;
use crate::time::Span;

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

/// A ReplicaSet as the Deployment controller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetStatus {
    /// `spec.replicas` of the set.
    pub desired: u32,
    /// Its available pods: ready for `minReadySeconds`, not terminating.
    pub available: u32,
}

impl SetStatus {
    /// Available pods that the set is not about to delete: what its status says once it has caught up.
    fn kept(&self) -> u32 {
        self.available.min(self.desired)
    }
}

impl Deployment {
    /// One look of the controller at its sets, the new one last: at most one of scaling up and scaling down. Says
    /// whether it changed a number. `old_left`: whether any pod of an old set still exists, terminating or not.
    pub fn rescale(&self, sets: &mut [SetStatus], old_left: bool) -> bool {
        match self.strategy {
            UpdateStrategy::RollingUpdate { .. } => {
                self.scale_up_new(sets) || self.scale_down_old(sets)
            }
            UpdateStrategy::Recreate => self.recreate(sets, old_left),
        }
    }

    /// `reconcileNewReplicaSet` and `NewRSNewReplicas`.
    fn scale_up_new(&self, sets: &mut [SetStatus]) -> bool {
        let (surge, _) = self.strategy.limits(self.replicas);
        let total = desired_sum(sets);
        let Some(new) = sets.last_mut() else {
            return false;
        };
        let before = new.desired;
        if new.desired > self.replicas {
            new.desired = self.replicas;
        } else {
            let room = self.replicas.saturating_add(surge).saturating_sub(total);
            new.desired += room.min(self.replicas - new.desired);
        }
        new.desired != before
    }

    /// `reconcileOldReplicaSets`: old pods that are not available first, then available ones while enough remain.
    fn scale_down_old(&self, sets: &mut [SetStatus]) -> bool {
        let (_, lacking) = self.strategy.limits(self.replicas);
        let min_available = self.replicas.saturating_sub(lacking);
        let total = desired_sum(sets);
        let Some((new, old)) = sets.split_last_mut() else {
            return false;
        };
        let new_unavailable = new.desired - new.kept();
        let mut cleanup = total
            .saturating_sub(min_available)
            .saturating_sub(new_unavailable);
        if cleanup == 0 {
            return false;
        }
        let before = desired_sum(old);
        for set in &mut *old {
            let count = cleanup.min(set.desired - set.kept());
            set.desired -= count;
            cleanup -= count;
        }
        let available = old
            .iter()
            .map(SetStatus::kept)
            .fold(new.kept(), u32::saturating_add);
        let mut spare = available.saturating_sub(min_available);
        for set in &mut *old {
            let count = spare.min(set.desired);
            set.desired -= count;
            spare -= count;
        }
        desired_sum(old) != before
    }

    /// `rolloutRecreate`: down, wait until the last old pod's object is gone, up.
    fn recreate(&self, sets: &mut [SetStatus], old_left: bool) -> bool {
        let Some((new, old)) = sets.split_last_mut() else {
            return false;
        };
        let lowered = desired_sum(old) > 0;
        for set in old {
            set.desired = 0;
        }
        if lowered || old_left {
            return lowered;
        }
        let raised = new.desired != self.replicas;
        new.desired = self.replicas;
        raised
    }
}

fn desired_sum(sets: &[SetStatus]) -> u32 {
    sets.iter()
        .map(|set| set.desired)
        .fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surge_rounds_up_and_unavailable_rounds_down() {
        use IntOrPercent::*;
        let rolling = |max_surge, max_unavailable| UpdateStrategy::RollingUpdate {
            max_surge,
            max_unavailable,
        };
        let rows = [
            (UpdateStrategy::default(), 2, (1, 0)),
            (UpdateStrategy::default(), 4, (1, 1)),
            (UpdateStrategy::default(), 10, (3, 2)),
            (rolling(Int(1), Int(1)), 2, (1, 1)),
            (rolling(Int(0), Percent(25)), 3, (0, 1)),
            (rolling(Int(0), Int(0)), 3, (0, 1)),
            (rolling(Percent(200), Int(0)), 3, (6, 0)),
            (rolling(Int(0), Int(9)), 3, (0, 3)),
            (
                rolling(Percent(100), Percent(100)),
                u32::MAX,
                (u32::MAX, u32::MAX),
            ),
        ];
        for (strategy, replicas, want) in rows {
            assert_eq!(
                strategy.limits(replicas),
                want,
                "{strategy:?} of {replicas}"
            );
        }
    }

    /// The worked example in the controller's own source: 10 replicas, 2 may lack, 3 may surge.
    #[test]
    fn ten_replicas_with_three_surging_and_two_lacking() {
        let deployment = Deployment {
            replicas: 10,
            strategy: UpdateStrategy::RollingUpdate {
                max_surge: IntOrPercent::Int(3),
                max_unavailable: IntOrPercent::Int(2),
            },
            ..Deployment::default()
        };
        let set = |desired, available| SetStatus { desired, available };
        let mut sets = [set(10, 10), set(0, 0)];
        let mut seen = Vec::new();
        while deployment.rescale(&mut sets, true) {
            seen.push((sets[0].desired, sets[1].desired));
        }
        assert_eq!(seen, [(10, 3), (8, 3), (8, 5)]);
        // The new pods never become available and an old one fails: nothing more goes.
        sets[0].available = 7;
        assert!(!deployment.rescale(&mut sets, true));
        // Rolling back: the old template is the new one again.
        let mut back = [set(5, 0), set(8, 7)];
        assert!(deployment.rescale(&mut back, true));
        assert_eq!((back[0].desired, back[1].desired), (1, 8));
    }
}
