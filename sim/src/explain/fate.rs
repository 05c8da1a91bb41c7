//! What happened to pods and rules before a moment, and what of it followed from what.

use ipvs_model::segment::Endpoint;
use ipvs_model::time::Instant;

use crate::engine::trace::{Happening, TimelineEvent};

/// The events of a run, in order.
pub struct Fates<'a> {
    events: &'a [TimelineEvent],
}

impl<'a> Fates<'a> {
    /// Of a run's events.
    pub const fn new(events: &'a [TimelineEvent]) -> Self {
        Self { events }
    }

    /// An event.
    pub fn get(&self, event: usize) -> &TimelineEvent {
        &self.events[event]
    }

    /// The last event up to `at` that is wanted, of one pod or of any.
    pub fn last(
        &self,
        pod: Option<Endpoint>,
        at: Instant,
        wanted: impl Fn(&Happening) -> bool,
    ) -> Option<usize> {
        let fits = |event: &TimelineEvent| {
            event.at <= at && (pod.is_none() || event.pod == pod) && wanted(&event.kind)
        };
        self.events.iter().rposition(fits)
    }

    /// Whether an event is the end of a process or an address.
    pub fn is_end(&self, event: usize) -> bool {
        matches!(
            self.events[event].kind,
            Happening::ProcessExited | Happening::ProcessKilled | Happening::AddressGone
        )
    }

    /// The event that another followed from: of the same pod where the lifecycle says so, or the rollout's beginning.
    pub fn reason(&self, event: usize) -> Option<usize> {
        let pod = self.events[event].pod;
        let before = |wanted: &dyn Fn(&Happening) -> bool| {
            let fits = |event: &TimelineEvent| event.pod == pod && wanted(&event.kind);
            self.events[..event].iter().rposition(fits)
        };
        let terminating = |kind: &Happening| matches!(kind, Happening::PodTerminating);
        let rollout = || {
            let started = |event: &TimelineEvent| matches!(event.kind, Happening::RolloutStarted);
            self.events[..event].iter().rposition(started)
        };
        let found = match self.events[event].kind {
            Happening::RolloutStarted => return None,
            Happening::AddressGone => {
                before(&|kind| matches!(kind, Happening::ProcessExited | Happening::ProcessKilled))
            }
            Happening::ProcessExited | Happening::ListenerClosed => {
                before(&|kind| matches!(kind, Happening::SigTerm))
            }
            Happening::ServerDeleted => before(&|kind| matches!(kind, Happening::WeightSet(0))),
            _ => None,
        };
        let unready =
            |kind: &Happening| matches!(kind, Happening::PodTerminating | Happening::PodNotReady);
        match self.events[event].kind {
            Happening::PodTerminating | Happening::PodNotReady | Happening::RulesList(_) => {
                rollout()
            }
            Happening::WeightSet(_) => before(&unready).or_else(rollout),
            _ => found.or_else(|| before(&terminating)).or_else(rollout),
        }
    }
}
