//! What an observed run keeps beside its counts: the timeline of servers and events, tables at asked moments, and every
//! request that failed or was late.
//!
//! Collecting a trace never changes the run: the counts are the same to the bit with and without it.

use core::fmt;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::{Instant, Span};

use super::pins::Pins;
use super::story::{StoriesOf, Story};
use crate::outcome::{Cause, Outcome};

/// What to keep.
#[derive(Clone, Debug, Default)]
pub struct TraceOptions {
    /// Sample real servers this often; `None` for not at all.
    pub sample_every: Option<Span>,
    /// ... so long after the start and each later moment, the end of the run excepted: a nanosecond shows what has come of what happens
    /// at the moment itself.
    pub sample_after: Span,
    /// With each sample, note which real server each port of the first client is pinned to.
    pub pins: bool,
    /// Moments at which the tables are listed.
    pub tables_at: Vec<Instant>,
    /// Keep this many failed or late requests.
    pub requests_max: usize,
    /// Keep the start, end and outcome of every request.
    pub attempts: bool,
    /// Whose stories to keep: every decision about a request's packets.
    pub stories: StoriesOf,
    /// Take every packet one by one. Nothing but the speed changes: the quiet path gives the same, to the bit.
    pub no_quiet: bool,
}

impl TraceOptions {
    /// Whether what happens to pods and rules is kept.
    pub(super) const fn keeps_events(&self) -> bool {
        self.sample_every.is_some() || !matches!(self.stories, StoriesOf::Nobody)
    }
}

/// A real server at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerSample {
    /// When.
    pub at: Instant,
    /// Pod address and port.
    pub server: Endpoint,
    /// Weight; `None` if it is not in the service's list (deleted, or not yet added). Always `Some(1)` or `None` in
    /// iptables mode.
    pub weight: Option<u32>,
    /// Entries in an active state (ActiveConn); 0 in iptables mode.
    pub active: u32,
    /// Entries in another state (InActConn).
    pub inactive: u32,
    /// Connections forwarded to it by a SYN since the sample before.
    pub syns: u32,
}

/// How much there is of what can run out, at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauges {
    /// When.
    pub at: Instant,
    /// Entries of the IPVS table, templates included.
    pub ipvs_entries: u32,
    /// Entries of the conntrack table.
    pub conntrack_entries: u32,
    /// Ports that the client host with the fewest left holds towards the service.
    pub ports_held: u32,
    /// Ports of that client's range.
    pub ports_of: u32,
}

/// What happens to pods and to the rules that lead to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The rollout began.
    RolloutStarted,
    /// The Deployment controller is done.
    RolloutComplete,
    /// The pod is ready.
    PodReady,
    /// The pod is not ready any more.
    PodNotReady,
    /// The pod was deleted: its deletionTimestamp is set.
    PodTerminating,
    /// Its preStop hook began.
    PreStopStarted,
    /// Its process got SIGTERM.
    SigTerm,
    /// Its process closed its listener.
    ListenerClosed,
    /// Its process ended.
    ProcessExited,
    /// Its process was killed.
    ProcessKilled,
    /// Its address is gone.
    AddressGone,
    /// kube-proxy added the real server.
    ServerAdded,
    /// kube-proxy set the real server's weight.
    WeightSet(u32),
    /// kube-proxy deleted the real server.
    ServerDeleted,
    /// The rules of a data plane without real servers list these endpoints.
    RulesList(Vec<Endpoint>),
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RolloutStarted => "rollout started",
            Self::RolloutComplete => "rollout complete",
            Self::PodReady => "pod ready",
            Self::PodNotReady => "pod not ready",
            Self::PodTerminating => "pod terminating",
            Self::PreStopStarted => "preStop started",
            Self::SigTerm => "SIGTERM",
            Self::ListenerClosed => "listener closed",
            Self::ProcessExited => "process exited",
            Self::ProcessKilled => "process killed",
            Self::AddressGone => "address gone",
            Self::ServerAdded => "real server added",
            Self::WeightSet(weight) => return write!(f, "weight set to {weight}"),
            Self::ServerDeleted => "real server deleted",
            Self::RulesList(endpoints) => {
                f.write_str("rules list")?;
                return endpoints
                    .iter()
                    .try_for_each(|endpoint| write!(f, " {endpoint}"));
            }
        })
    }
}

/// Something that happened to pods, kube-proxy or the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEvent {
    /// When.
    pub at: Instant,
    /// The pod it happened to, if to one.
    pub pod: Option<Endpoint>,
    /// What, in a few words: "pod terminating", "weight set to 0", "real server deleted", "address gone".
    pub what: String,
    /// The same, for machines.
    pub kind: Happening,
}

/// The tables at a moment, in the kernel's own formats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// When.
    pub at: Instant,
    /// As `ipvsadm -Ln`; empty in iptables mode.
    pub services: String,
    /// As `ipvsadm -Lnc`; empty in iptables mode.
    pub connections: String,
    /// As `/proc/net/nf_conntrack`.
    pub conntrack: String,
}

/// A request that did not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TroubledRequest {
    /// Number of the request in the run, from 0.
    pub number: u64,
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// The client's address and port.
    pub client: Endpoint,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub cause: Cause,
    /// The real server that its first SYN went to, if it went to one.
    pub server: Option<Endpoint>,
    /// The rule of the node that decided on its first SYN, in words.
    pub rule: &'static str,
    /// Age of the port's last use when the SYN came: time since the last connection on it ended.
    pub port_idle: Option<Span>,
}

/// One request, whatever became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// Local port, 0 if there was none.
    pub port: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// How long the connect took, if it succeeded.
    pub connect: Option<Span>,
}

/// Everything that an observed run kept.
#[derive(Clone, Debug, Default)]
pub struct RunTrace {
    /// Real servers over time, in the order of time, then of address.
    pub servers: Vec<ServerSample>,
    /// Sizes over time, as often as the real servers are sampled.
    pub gauges: Vec<Gauges>,
    /// What the first client's ports are pinned to, with each sample, if asked for; empty in iptables mode.
    pub pins: Vec<Pins>,
    /// Events of rollout and control plane, in the order of time.
    pub events: Vec<TimelineEvent>,
    /// Tables at the moments asked for.
    pub tables: Vec<Tables>,
    /// Requests that did not go well, up to the limit, in the order of their end and beginning.
    pub troubled: Vec<TroubledRequest>,
    /// Every request, if asked for, in the order of their end and beginning.
    pub attempts: Vec<Attempt>,
    /// The stories that were asked for, in the order of their end.
    pub stories: Vec<Story>,
}
