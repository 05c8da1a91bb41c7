//! How requests end, why they do not end well, and the counts of one run.
//!
//! Everything is an integer, so that runs, blocks and shards merge exactly and in any order. The engine
//! feeds a [`Recorder`]; experiments and reports read the [`RunSummary`] it leaves behind.
//!
//! Leaves out: latencies as a distribution (only "connected later than half a second" is counted).

use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};

/// A connect that took longer than this and was answered all the same counts as delayed. The first
/// retransmission of a SYN comes after 1 s, so anything between a round trip and 1 s separates the two.
pub const DELAYED_AFTER: Span = Span::from_millis(500);

/// How a request ended. Every counted request ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The whole answer arrived.
    Answered,
    /// No local port was free: `connect` gave EADDRNOTAVAIL. Not a failure of the service: reported apart.
    PortsExhausted,
    /// `connect` gave ECONNREFUSED (an RST, or an ICMP port unreachable, answered the SYN).
    Refused,
    /// `connect` gave EHOSTUNREACH (ICMP host unreachable, ARP failure behind the node).
    HostUnreachable,
    /// The connection was not established in time.
    ConnectTimeout,
    /// Established, but the answer did not come in time.
    ResponseTimeout,
    /// Established, then reset.
    Reset,
    /// Another workload answered: the pod's address had been given away.
    WrongService,
    /// Still open when the run ended. Excluded from the probabilities and counted apart.
    Unfinished,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// All of them, in the order of [`Outcome::index`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::Answered,
        Self::PortsExhausted,
        Self::Refused,
        Self::HostUnreachable,
        Self::ConnectTimeout,
        Self::ResponseTimeout,
        Self::Reset,
        Self::WrongService,
        Self::Unfinished,
    ];

    /// The place in [`RunSummary::outcomes`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the service failed the client: neither answered, nor out of ports, nor still open.
    pub const fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::Answered | Self::PortsExhausted | Self::Unfinished
        )
    }

    /// A short key for JSON and CSV.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::PortsExhausted => "ports_exhausted",
            Self::Refused => "refused",
            Self::HostUnreachable => "host_unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::ResponseTimeout => "response_timeout",
            Self::Reset => "reset",
            Self::WrongService => "wrong_service",
            Self::Unfinished => "unfinished",
        }
    }

    /// What the client saw, in words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::PortsExhausted => "no free local port (EADDRNOTAVAIL)",
            Self::Refused => "connection refused (ECONNREFUSED)",
            Self::HostUnreachable => "no route to host (EHOSTUNREACH)",
            Self::ConnectTimeout => "connect timed out",
            Self::ResponseTimeout => "no answer in time on an established connection",
            Self::Reset => "connection reset (ECONNRESET)",
            Self::WrongService => "answered by another workload",
            Self::Unfinished => "still open when the run ended",
        }
    }
}

/// Why a request did not go well: it failed, or connected late. A healthy request has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// A reused port met the IPVS entry of a real server at weight 0.
    PinnedToDrained,
    /// The IPVS entry's real server was deleted, and the SYN, or a packet of the connection, was dropped or refused.
    PinnedToDeleted,
    /// The conntrack entry alone kept the old pod: iptables mode, or an entry left in SYN_SENT.
    PinnedByConntrack,
    /// A new tuple was scheduled to a pod that was already gone.
    EndpointLag,
    /// The connection was established when its pod died.
    ConnectionCut,
    /// The virtual service had no real server with a weight.
    NoDestination,
    /// Reuse dropped the first SYN: the retransmission, 1 s later, went through.
    SynDroppedOnReuse,
    /// The pod's accept queue was full.
    ListenQueueFull,
    /// The pod still held a socket of the tuple's last use and answered the SYN with a bare ACK.
    StaleServerSocket,
    /// The conntrack table was full.
    ConntrackFull,
    /// Masquerading found no free source port.
    NatPortsExhausted,
    /// The client had no free local port.
    PortsExhausted,
    /// The pod's address belonged to another pod by then.
    AddressReassigned,
    /// The pod answered past the node, from an address that the client had not called.
    AnswerPastNode,
    /// The node had no entry any more for an established connection: it had been idle for longer than IPVS remembers one.
    SessionForgotten,
    /// None of the above.
    Other,
}

impl Cause {
    /// How many there are.
    pub const COUNT: usize = 16;

    /// All of them, in the order of [`Cause::index`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::PinnedToDrained,
        Self::PinnedToDeleted,
        Self::PinnedByConntrack,
        Self::EndpointLag,
        Self::ConnectionCut,
        Self::NoDestination,
        Self::SynDroppedOnReuse,
        Self::ListenQueueFull,
        Self::StaleServerSocket,
        Self::ConntrackFull,
        Self::NatPortsExhausted,
        Self::PortsExhausted,
        Self::AddressReassigned,
        Self::AnswerPastNode,
        Self::SessionForgotten,
        Self::Other,
    ];

    /// The place in [`RunSummary::causes`] and [`RunSummary::delayed`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A short key for JSON and CSV.
    pub const fn key(self) -> &'static str {
        match self {
            Self::PinnedToDrained => "pinned_to_drained",
            Self::PinnedToDeleted => "pinned_to_deleted",
            Self::PinnedByConntrack => "pinned_by_conntrack",
            Self::EndpointLag => "endpoint_lag",
            Self::ConnectionCut => "connection_cut",
            Self::NoDestination => "no_destination",
            Self::SynDroppedOnReuse => "syn_dropped_on_reuse",
            Self::ListenQueueFull => "listen_queue_full",
            Self::StaleServerSocket => "stale_server_socket",
            Self::ConntrackFull => "conntrack_full",
            Self::NatPortsExhausted => "nat_ports_exhausted",
            Self::PortsExhausted => "ports_exhausted",
            Self::AddressReassigned => "address_reassigned",
            Self::AnswerPastNode => "answer_past_node",
            Self::SessionForgotten => "session_forgotten",
            Self::Other => "other",
        }
    }

    /// What happened, in words.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::PinnedToDrained => "a reused port met an entry of a real server at weight 0",
            Self::PinnedToDeleted => {
                "the entry's real server was deleted: its packets were dropped or refused"
            }
            Self::PinnedByConntrack => "a conntrack entry kept a reused port on the old pod",
            Self::EndpointLag => "a new tuple was scheduled to a pod that was already gone",
            Self::ConnectionCut => "the connection was established when its pod died",
            Self::NoDestination => "the virtual service had no real server with a weight",
            Self::SynDroppedOnReuse => "port reuse dropped the first SYN (1 s to the next)",
            Self::ListenQueueFull => "the pod's accept queue was full",
            Self::StaleServerSocket => "a socket of the port's last use answered with a bare ACK",
            Self::ConntrackFull => "the conntrack table was full",
            Self::NatPortsExhausted => "masquerading found no free source port",
            Self::PortsExhausted => "the client had no free local port",
            Self::AddressReassigned => "the pod's address had been given to another pod",
            Self::AnswerPastNode => {
                "the pod answered past the node, from an address that the client had not called"
            }
            Self::SessionForgotten => {
                "the node had no entry any more for a connection that had been idle for too long"
            }
            Self::Other => "another cause",
        }
    }
}

/// The counts of one second. Each thing counts in the second in which it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecondCounts {
    /// Requests begun.
    pub attempts: u64,
    /// Requests answered (in this second, whenever they began).
    pub answered: u64,
    /// Requests that failed (in this second, whenever they began).
    pub failed: u64,
    /// Requests that found no free local port.
    pub ports_exhausted: u64,
    /// Requests answered after a connect of more than [`DELAYED_AFTER`].
    pub delayed: u64,
}

impl SecondCounts {
    fn merge(&mut self, other: &Self) {
        self.attempts += other.attempts;
        self.answered += other.answered;
        self.failed += other.failed;
        self.ports_exhausted += other.ports_exhausted;
        self.delayed += other.delayed;
    }
}

/// The counts of one run (one rollout, one seed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunSummary {
    /// Requests counted; equals the sum of [`RunSummary::outcomes`].
    pub requests: u64,
    /// Requests by [`Outcome::index`].
    pub outcomes: [u64; Outcome::COUNT],
    /// Failed requests by [`Cause::index`]; the sum equals [`RunSummary::failed`]. Requests that found no
    /// free port are not in it.
    pub causes: [u64; Cause::COUNT],
    /// Answered requests whose connect took longer than [`DELAYED_AFTER`], by [`Cause::index`].
    pub delayed: [u64; Cause::COUNT],
    /// The longest stretch, in nanoseconds, in which requests were attempted and none was answered: from the
    /// first attempt after an answer to the next answer (or the end of the run).
    pub longest_dead_ns: u64,
    /// When the first failure was seen by the client, in nanoseconds since the start of the run.
    pub first_failure_ns: Option<u64>,
    /// Counts of every second since the start of the run.
    pub timeline: Vec<SecondCounts>,
    /// Connections opened (SYNs of new sockets; a keep-alive connection serves several requests).
    pub connections: u64,
    /// Packets that crossed the node.
    pub packets: u64,
    /// Events the engine handled.
    pub events: u64,
    /// Failed requests expected given what was known before each draw of a port, in billionths of a request: see
    /// `experiment::rare`. None where that was not asked.
    pub conditioned: Option<u64>,
}

impl RunSummary {
    /// Requests that ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()]
    }

    /// Requests that the service failed: neither answered, nor without a port, nor unfinished.
    pub fn failed(&self) -> u64 {
        let failures = Outcome::ALL.iter().filter(|outcome| outcome.is_failure());
        failures.map(|outcome| self.count(*outcome)).sum()
    }

    /// Requests that got a local port and ended: the denominator of the failure probability.
    pub fn decided(&self) -> u64 {
        self.count(Outcome::Answered) + self.failed()
    }

    /// Requests that ended, with a port or without: the denominator of the port exhaustion probability.
    pub fn ended(&self) -> u64 {
        self.decided() + self.count(Outcome::PortsExhausted)
    }

    /// Requests answered after a connect of more than [`DELAYED_AFTER`].
    pub fn delayed_total(&self) -> u64 {
        self.delayed.iter().sum()
    }

    /// Adds the counts of a part that ran beside this one (other clients of the same rollout). The longest
    /// dead stretch is the longer of the two.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        add_each(&mut self.outcomes, &other.outcomes);
        add_each(&mut self.causes, &other.causes);
        add_each(&mut self.delayed, &other.delayed);
        self.longest_dead_ns = self.longest_dead_ns.max(other.longest_dead_ns);
        self.first_failure_ns = match (self.first_failure_ns, other.first_failure_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        merge_timeline(&mut self.timeline, &other.timeline);
        self.connections += other.connections;
        self.packets += other.packets;
        self.events += other.events;
        self.conditioned = match (self.conditioned, other.conditioned) {
            (Some(a), Some(b)) => Some(a + b),
            _ => None,
        };
    }
}

/// Adds `from` to `into`, place by place.
pub fn add_each(into: &mut [u64], from: &[u64]) {
    for (a, b) in into.iter_mut().zip(from) {
        *a += b;
    }
}

/// Adds the timeline `from` to `into`, second by second; `into` grows where `from` is longer.
pub fn merge_timeline(into: &mut Vec<SecondCounts>, from: &[SecondCounts]) {
    if into.len() < from.len() {
        into.resize(from.len(), SecondCounts::default());
    }
    for (a, b) in into.iter_mut().zip(from) {
        a.merge(b);
    }
}

/// Builds a [`RunSummary`] from what happens to the counted requests, in the order of simulated time.
///
/// The engine decides which requests count (those of the warm-up do not). For each it calls either
/// [`Recorder::no_port`], or [`Recorder::attempt`] when it begins and one of [`Recorder::answered`] and
/// [`Recorder::failed`] when it ends; and [`Recorder::finish`] once. What has not ended by then is unfinished.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    summary: RunSummary,
    /// The first attempt since the last answer.
    unanswered_since: Option<Instant>,
}

impl Recorder {
    /// Nothing recorded yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request begins at `at`.
    pub fn attempt(&mut self, at: Instant) {
        self.summary.requests += 1;
        self.second(at).attempts += 1;
        self.unanswered_since.get_or_insert(at);
    }

    /// A request begins and ends at `at`, because no local port is free (instead of [`Recorder::attempt`]).
    /// Running out of ports is the client's trouble: it does not make the service dead.
    pub fn no_port(&mut self, at: Instant) {
        self.summary.requests += 1;
        self.summary.outcomes[Outcome::PortsExhausted.index()] += 1;
        let second = self.second(at);
        second.attempts += 1;
        second.ports_exhausted += 1;
    }

    /// A request was answered at `at`; its connection (if it had to open one) took `connect`. `cause` says what
    /// made it late and is ignored if it was not.
    pub fn answered(&mut self, at: Instant, connect: Span, cause: Option<Cause>) {
        self.summary.outcomes[Outcome::Answered.index()] += 1;
        let late = connect > DELAYED_AFTER;
        let second = self.second(at);
        second.answered += 1;
        second.delayed += u64::from(late);
        if late {
            self.summary.delayed[cause.unwrap_or(Cause::Other).index()] += 1;
        }
        if let Some(since) = self.unanswered_since.take() {
            self.dead(since, at);
        }
    }

    /// A request failed at `at`.
    ///
    /// # Panics
    /// In debug builds, if `outcome` is not a failure.
    pub fn failed(&mut self, at: Instant, outcome: Outcome, cause: Cause) {
        debug_assert!(outcome.is_failure(), "{outcome:?} is no failure");
        self.summary.outcomes[outcome.index()] += 1;
        self.summary.causes[cause.index()] += 1;
        self.summary.first_failure_ns.get_or_insert(at.0);
        self.second(at).failed += 1;
    }

    /// A connection was opened.
    pub fn connection(&mut self) {
        self.summary.connections += 1;
    }

    /// `count` packets crossed the node.
    pub fn packets(&mut self, count: u64) {
        self.summary.packets += count;
    }

    /// What has been recorded so far.
    pub fn so_far(&self) -> &RunSummary {
        &self.summary
    }

    /// The run ended at `end`, after `events` events.
    pub fn finish(mut self, end: Instant, events: u64) -> RunSummary {
        if let Some(since) = self.unanswered_since.take() {
            self.dead(since, end);
        }
        let ended: u64 = self.summary.outcomes.iter().sum();
        let open = self.summary.requests.saturating_sub(ended);
        self.summary.outcomes[Outcome::Unfinished.index()] = open;
        self.summary.events = events;
        self.summary
    }

    fn dead(&mut self, since: Instant, until: Instant) {
        let stretch = until.since(since).0;
        self.summary.longest_dead_ns = self.summary.longest_dead_ns.max(stretch);
    }

    fn second(&mut self, at: Instant) -> &mut SecondCounts {
        let second = usize::try_from(at.0 / NANOS_PER_SEC).unwrap_or(usize::MAX);
        if second >= self.summary.timeline.len() {
            self.summary
                .timeline
                .resize(second + 1, SecondCounts::default());
        }
        &mut self.summary.timeline[second]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Span = Span::from_millis(1);

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    #[test]
    fn all_and_index_agree() {
        for (place, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(outcome.index(), place);
        }
        for (place, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(cause.index(), place);
        }
    }

    #[test]
    fn every_request_ends_in_exactly_one_outcome() {
        let mut recorder = Recorder::new();
        for i in 0..4 {
            recorder.attempt(ms(i));
        }
        recorder.no_port(ms(4));
        recorder.answered(ms(6), QUICK, None);
        recorder.failed(ms(900), Outcome::Refused, Cause::NoDestination);
        recorder.answered(
            ms(1_100),
            Span::from_secs(1),
            Some(Cause::SynDroppedOnReuse),
        );
        let run = recorder.finish(ms(2_000), 17);

        assert_eq!(run.requests, 5);
        assert_eq!(run.outcomes.iter().sum::<u64>(), 5);
        assert_eq!(run.count(Outcome::Unfinished), 1);
        assert_eq!((run.failed(), run.decided(), run.ended()), (1, 3, 4));
        assert_eq!(run.causes[Cause::NoDestination.index()], 1);
        assert_eq!(run.delayed[Cause::SynDroppedOnReuse.index()], 1);
        assert_eq!(run.first_failure_ns, Some(900_000_000));
        assert_eq!(run.timeline.len(), 2);
        assert_eq!((run.timeline[0].attempts, run.timeline[1].answered), (5, 1));
    }

    #[test]
    fn dead_lasts_from_the_first_unanswered_attempt_to_the_next_answer() {
        let mut recorder = Recorder::new();
        recorder.attempt(ms(0));
        recorder.answered(ms(1), QUICK, None);
        // Nobody asks for 9 s: that is no failure of the service.
        recorder.attempt(ms(9_000));
        recorder.attempt(ms(10_000));
        recorder.failed(ms(11_000), Outcome::ConnectTimeout, Cause::PinnedToDrained);
        recorder.answered(ms(14_000), QUICK, None);
        assert_eq!(recorder.so_far().longest_dead_ns, 5_000_000_000);
        recorder.attempt(ms(20_000));
        let run = recorder.finish(ms(27_000), 0);
        assert_eq!(run.longest_dead_ns, 7_000_000_000);
    }

    #[test]
    fn a_client_without_ports_does_not_make_the_service_dead() {
        let mut recorder = Recorder::new();
        for i in 0..40 {
            recorder.no_port(ms(i * 1_000));
        }
        recorder.attempt(ms(40_000));
        recorder.answered(ms(40_001), QUICK, None);
        let run = recorder.finish(ms(41_000), 0);
        assert_eq!(run.longest_dead_ns, 1_000_000);
        assert_eq!((run.failed(), run.decided(), run.ended()), (0, 1, 41));
    }

    #[test]
    fn merging_parts_adds_counts_and_keeps_extremes() {
        let mut first = Recorder::new();
        first.attempt(ms(0));
        first.failed(ms(3_500), Outcome::Reset, Cause::ConnectionCut);
        let mut a = first.finish(ms(4_000), 2);
        let mut second = Recorder::new();
        second.attempt(ms(500));
        second.failed(ms(900), Outcome::Refused, Cause::NoDestination);
        let b = second.finish(ms(1_000), 3);

        let mut other_way = b.clone();
        other_way.merge(&a);
        a.merge(&b);
        assert_eq!(a, other_way);
        assert_eq!((a.requests, a.failed(), a.events), (2, 2, 5));
        assert_eq!(a.first_failure_ns, Some(900_000_000));
        assert_eq!(a.longest_dead_ns, 4_000_000_000);
        assert_eq!(a.timeline[0].attempts, 2);
    }
}
