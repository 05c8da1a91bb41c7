//! What a rollout reports, and the delays that it asks for.

use core::fmt;
use std::net::Ipv4Addr;

use crate::kube::endpoints::EndpointState;
use crate::kube::pod::PodId;
use crate::time::Span;

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

impl fmt::Display for RolloutEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { revision } => write!(f, "rollout of revision {revision} starts"),
            Self::PodCreated {
                pod,
                revision,
                node,
            } => {
                write!(f, "{pod} created (revision {revision}, node {node})")
            }
            Self::AddressAssigned { pod, ip } => write!(f, "{pod} gets {ip}"),
            Self::ContainerStarted { pod } => write!(f, "{pod} runs"),
            Self::Listening { pod } => write!(f, "{pod} listens"),
            Self::PodReady { pod } => write!(f, "{pod} ready"),
            Self::PodNotReady { pod } => write!(f, "{pod} not ready"),
            Self::PodTerminating { pod } => write!(f, "{pod} terminating"),
            Self::PreStopStarted { pod } => write!(f, "{pod} preStop"),
            Self::SigTerm { pod } => write!(f, "{pod} SIGTERM"),
            Self::ListenerClosed { pod } => write!(f, "{pod} stops listening"),
            Self::ProcessExited { pod, killed: false } => write!(f, "{pod} exits"),
            Self::ProcessExited { pod, killed: true } => write!(f, "{pod} killed"),
            Self::AddressGone { pod, ip } => write!(f, "{pod} loses {ip}"),
            Self::PodRemoved { pod } => write!(f, "{pod} removed"),
            Self::EndpointsPublished { endpoints } => {
                f.write_str("endpoints:")?;
                for ep in endpoints {
                    let state = match (ep.ready, ep.serving, ep.terminating) {
                        (true, ..) => "ready",
                        (false, true, true) => "terminating, serving",
                        (false, false, true) => "terminating",
                        (false, ..) => "not ready",
                    };
                    write!(f, " {} ({state})", ep.ip)?;
                }
                Ok(())
            }
            Self::Complete { revision } => write!(f, "rollout of revision {revision} complete"),
        }
    }
}
