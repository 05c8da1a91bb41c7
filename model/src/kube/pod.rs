//! One pod: what its manifest says of its end, its phases, and the moments of its termination.
//!
//! Faithful to: the kubelet's `killPod` and `killContainer` (the hook first, then SIGTERM with what is left of the
//! grace period but at least 2 s, then SIGKILL) and its prober; facts, kube-proxy 6.
//! Leaves out: several containers, init and sidecar containers, startup and liveness probes, crashes, eviction.

use core::fmt;

use crate::time::{Instant, Span};

/// A pod, by the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub u32);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}", self.0)
    }
}

/// A readiness probe. The defaults are Kubernetes'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// `initialDelaySeconds` after the container started (0).
    pub initial_delay: Span,
    /// `periodSeconds` (10).
    pub period: Span,
    /// `timeoutSeconds` (1): how long a probe that gets no answer takes to fail.
    pub timeout: Span,
    /// `successThreshold` (1).
    pub success_threshold: u32,
    /// `failureThreshold` (3).
    pub failure_threshold: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            initial_delay: Span::ZERO,
            period: Span::from_secs(10),
            timeout: Span::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

/// What a probe meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answering {
    /// An answer.
    Yes,
    /// A refusal at once: nothing listens.
    Refuses,
    /// Silence until the probe's timeout.
    Hangs,
}

impl Probe {
    /// When the prober changes its mind if the application behaves like this from `since` on. `first` is the first
    /// probe; a probe at the very moment of the change already sees the new behaviour.
    pub fn verdict_at(&self, first: Instant, since: Instant, answering: Answering) -> Instant {
        let period = self.period.0.max(1);
        let past = since.since(first).0;
        let tick = first + Span(past.div_ceil(period).saturating_mul(period));
        let (threshold, takes) = match answering {
            Answering::Yes => (self.success_threshold, Span::ZERO),
            Answering::Refuses => (self.failure_threshold, Span::ZERO),
            Answering::Hangs => (self.failure_threshold, self.timeout),
        };
        let more = u64::from(threshold.max(1)) - 1;
        tick + Span(more.saturating_mul(period)) + takes
    }
}

/// The `preStop` hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreStop {
    /// None: SIGTERM at once.
    #[default]
    None,
    /// `sleep`: the application serves on meanwhile.
    Sleep(Span),
    /// Another command.
    Runs {
        /// How long it runs.
        takes: Span,
        /// When in it the application stops listening (`nginx -s quit`), if it does.
        listener_closes: Option<Span>,
    },
}

impl PreStop {
    /// How long the hook runs if it is let.
    pub const fn takes(self) -> Span {
        match self {
            Self::None => Span::ZERO,
            Self::Sleep(takes) | Self::Runs { takes, .. } => takes,
        }
    }
}

/// What the application does on SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTerm {
    /// Exits after this time, serving until then (nginx: 0.1 s).
    ExitsAfter(Span),
    /// Stops listening, then exits when its connections are done ([`super::Rollout::drained`]).
    Drains {
        /// Until it stops listening.
        closes_after: Span,
        /// The longest that it waits for its connections.
        at_most: Span,
    },
    /// Ignores it (a shell as process 1): SIGKILL ends it.
    Ignores,
}

/// What the manifest says of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// The readiness probe; without one a pod is ready as soon as its container runs.
    pub readiness: Option<Probe>,
    /// The hook before SIGTERM.
    pub pre_stop: PreStop,
    /// `terminationGracePeriodSeconds` (30).
    pub grace: Span,
    /// The application's reaction to SIGTERM.
    pub on_term: OnTerm,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            readiness: None,
            pre_stop: PreStop::None,
            grace: Span::from_secs(30),
            on_term: OnTerm::ExitsAfter(Span::from_millis(100)),
        }
    }
}

/// The least time between SIGTERM and SIGKILL (`minimumGracePeriodInSeconds`).
pub const MIN_GRACE: Span = Span::from_secs(2);

/// The moments of a termination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Whether a hook runs first.
    pub hook: bool,
    /// SIGTERM.
    pub term: Instant,
    /// When the application stops listening, if before it exits.
    pub listener_closes: Option<Instant>,
    /// SIGKILL, if the process still lives.
    pub kill: Instant,
    /// The exit, unless the application is done with its connections earlier.
    pub exit: Instant,
}

impl PodSpec {
    /// The moments of a termination that the kubelet begins at `begins`.
    pub fn termination(&self, begins: Instant) -> Termination {
        // Without a grace period the hook is skipped; a hook that overruns it is cut off.
        let hook = self.pre_stop != PreStop::None && self.grace > Span::ZERO;
        let in_hook = if hook {
            self.pre_stop.takes().min(self.grace)
        } else {
            Span::ZERO
        };
        let term = begins + in_hook;
        let left = Span(self.grace.0.saturating_sub(in_hook.0));
        let kill = term + left.max(MIN_GRACE);
        let in_hook_closes = match self.pre_stop {
            PreStop::Runs {
                listener_closes: Some(after),
                ..
            } if hook && after <= in_hook => Some(begins + after),
            _ => None,
        };
        let (on_term_closes, exit) = match self.on_term {
            OnTerm::ExitsAfter(after) => (None, (term + after).min(kill)),
            OnTerm::Drains {
                closes_after,
                at_most,
            } => {
                let exit = (term + at_most.max(closes_after)).min(kill);
                (
                    Some(term + closes_after).filter(|closes| *closes < exit),
                    exit,
                )
            }
            OnTerm::Ignores => (None, kill),
        };
        Termination {
            hook,
            term,
            listener_closes: in_hook_closes.or(on_term_closes),
            kill,
            exit,
        }
    }
}

/// Where a pod is in its life. Whether it is being deleted, listens or is ready are facts beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodPhase {
    /// The object exists.
    Created,
    /// Its sandbox and address exist.
    Assigned,
    /// Its container runs.
    Running,
    /// Its `preStop` hook runs.
    InHook,
    /// It got SIGTERM.
    Signalled,
    /// Its process has ended; the address still exists.
    Exited,
    /// Its address is gone.
    Gone,
    /// The object is gone.
    Removed,
}

impl PodPhase {
    /// All phases.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Assigned,
        Self::Running,
        Self::InHook,
        Self::Signalled,
        Self::Exited,
        Self::Gone,
        Self::Removed,
    ];

    /// The phase after a step; `None` if the step does not fit the phase.
    pub fn after(self, step: PodStep) -> Option<Self> {
        POD_STEPS
            .iter()
            .find(|row| row.0 == self && row.1 == step)
            .map(|row| row.2)
    }

    /// Whether the container's process lives.
    pub const fn alive(self) -> bool {
        matches!(self, Self::Running | Self::InHook | Self::Signalled)
    }
}

/// A step in a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodStep {
    /// Sandbox and address are there.
    Assign,
    /// The container starts.
    Start,
    /// The hook starts.
    Hook,
    /// SIGTERM.
    Signal,
    /// The process ends, or none has been started.
    Exit,
    /// Sandbox and address go.
    TearDown,
    /// The object goes.
    Remove,
}

/// The life of a pod: phase, step, next phase.
#[rustfmt::skip]
pub const POD_STEPS: &[(PodPhase, PodStep, PodPhase)] = {
    use PodPhase::*;
    use PodStep::*;
    &[
        (Created,   Assign,   Assigned),
        (Created,   Remove,   Removed),
        (Assigned,  Start,    Running),
        (Assigned,  Exit,     Exited),
        (Running,   Hook,     InHook),
        (Running,   Signal,   Signalled),
        (InHook,    Signal,   Signalled),
        (Signalled, Exit,     Exited),
        (Exited,    TearDown, Gone),
        (Gone,      Remove,   Removed),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;
    use petgraph::algo::{has_path_connecting, is_cyclic_directed};
    use petgraph::dot::{Config, Dot};
    use petgraph::graph::{DiGraph, NodeIndex};

    const STEPS: [PodStep; 7] = [
        PodStep::Assign,
        PodStep::Start,
        PodStep::Hook,
        PodStep::Signal,
        PodStep::Exit,
        PodStep::TearDown,
        PodStep::Remove,
    ];

    fn secs(s: u64) -> Span {
        Span::from_secs(s)
    }

    fn at(s: u64) -> Instant {
        Instant::from_secs(s)
    }

    #[test]
    fn every_phase_is_reached_and_leads_to_the_end() {
        let mut graph = DiGraph::new();
        for phase in PodPhase::ALL {
            graph.add_node(format!("{phase:?}"));
        }
        for (from, phase) in PodPhase::ALL.into_iter().enumerate() {
            for step in STEPS {
                if let Some(to) = phase.after(step) {
                    let (from, to) = (NodeIndex::new(from), NodeIndex::new(to as usize));
                    graph.add_edge(from, to, format!("{step:?}"));
                }
            }
        }
        let end = NodeIndex::new(PodPhase::Removed as usize);
        for phase in graph.node_indices() {
            assert!(has_path_connecting(&graph, NodeIndex::new(0), phase, None));
            assert!(has_path_connecting(&graph, phase, end, None));
        }
        assert!(
            !is_cyclic_directed(&graph),
            "a pod does not come back to life"
        );
        let dot = Dot::with_config(&graph, &[Config::GraphContentOnly]);
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
        }, {
            insta::assert_snapshot!("kube_pod", format!("digraph pod {{\n{dot}}}"));
        });
    }

    /// The founding case: `preStop: sleep 20`, grace 30, nginx 1.18 exits 0.1 s after SIGTERM.
    #[test]
    fn nginx_with_a_sleep_of_20_exits_20_seconds_after_its_deletion_not_30() {
        let spec = PodSpec {
            pre_stop: PreStop::Sleep(secs(20)),
            ..PodSpec::default()
        };
        let plan = spec.termination(at(100));
        assert!(plan.hook);
        assert_eq!(plan.term, at(120));
        assert_eq!(plan.exit, at(120) + Span::from_millis(100));
        assert_eq!(plan.kill, at(130));
        assert_eq!(plan.listener_closes, None);
    }

    #[test]
    fn a_hook_that_overruns_is_cut_off_and_two_seconds_follow() {
        let spec = PodSpec {
            pre_stop: PreStop::Sleep(secs(60)),
            on_term: OnTerm::Ignores,
            ..PodSpec::default()
        };
        let plan = spec.termination(at(0));
        assert_eq!((plan.term, plan.kill, plan.exit), (at(30), at(32), at(32)));
    }

    #[test]
    fn without_grace_there_is_no_hook() {
        let spec = PodSpec {
            pre_stop: PreStop::Sleep(secs(5)),
            grace: Span::ZERO,
            ..PodSpec::default()
        };
        let plan = spec.termination(at(0));
        assert_eq!((plan.hook, plan.term, plan.kill), (false, at(0), at(2)));
    }

    #[test]
    fn an_application_that_ignores_sigterm_dies_at_the_end_of_the_grace_period() {
        let spec = PodSpec {
            on_term: OnTerm::Ignores,
            ..PodSpec::default()
        };
        assert_eq!(spec.termination(at(7)).exit, at(37));
    }

    #[test]
    fn a_draining_application_closes_its_listener_first() {
        let drains = OnTerm::Drains {
            closes_after: secs(1),
            at_most: secs(300),
        };
        let spec = PodSpec {
            on_term: drains,
            ..PodSpec::default()
        };
        let plan = spec.termination(at(0));
        assert_eq!((plan.listener_closes, plan.exit), (Some(at(1)), at(30)));
        let quits = PreStop::Runs {
            takes: secs(10),
            listener_closes: Some(secs(2)),
        };
        let plan = PodSpec {
            pre_stop: quits,
            ..spec
        }
        .termination(at(0));
        assert_eq!(
            (plan.listener_closes, plan.term, plan.exit),
            (Some(at(2)), at(10), at(30))
        );
    }

    #[test]
    fn the_prober_changes_its_mind_at_a_tick() {
        let probe = Probe {
            period: secs(5),
            failure_threshold: 5,
            ..Probe::default()
        };
        // The founding case: probes at 7, 12, 17, ...
        assert_eq!(probe.verdict_at(at(7), at(3), Answering::Yes), at(7));
        assert_eq!(probe.verdict_at(at(7), at(8), Answering::Yes), at(12));
        assert_eq!(probe.verdict_at(at(7), at(12), Answering::Yes), at(12));
        assert_eq!(probe.verdict_at(at(7), at(13), Answering::Refuses), at(37));
        assert_eq!(probe.verdict_at(at(7), at(13), Answering::Hangs), at(38));
        let slow = Probe {
            success_threshold: 3,
            ..probe
        };
        assert_eq!(slow.verdict_at(at(7), at(0), Answering::Yes), at(17));
    }
}
