//! The search for a sequence of packets and timers that leads from one listing of a connection to the next.

use std::collections::BTreeSet;

use ipvs_model::conntrack::{
    CtEntry, CtState, ListedCt, Seen as Flagged, Status, TcpState, timeout_of,
};
use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::{Persistence, ServiceKey};
use ipvs_model::ipvs::state::State;
use ipvs_model::ipvs::table::Entry;
use ipvs_model::node::{Node, Rule};
use ipvs_model::segment::{Endpoint, Flags, Proto, Segment, Tuple};
use ipvs_model::time::{Clock, Instant, Jiffies, Span};

use super::known::Place;
use crate::capture::{ConntrackLine, IpvsConnLine};
use crate::diff::ahead::Seen;
use crate::diff::drawn::Drawn;
use crate::diff::setup::Setup;

/// Packets in the longest sequence that is searched: a whole connection on a port that was used before, and some.
pub(super) const STEPS_MAX: usize = 9;
/// Between two packets of a burst: more than a tick, so that an entry that was told to go is gone.
const SPACING: Span = Span::from_millis(20);
/// UDP entries of IPVS live so long.
const UDP_S: u32 = 300;
/// kube-proxy's session affinity, where templates are listed and the rules are not.
const PERSISTENCE_ASSUMED_S: u32 = 10_800;

/// A packet that a sequence may hold: who sends it, and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Client(Flags),
    Server(Flags),
}

const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
const FIN_ACK: Flags = Flags::FIN.with(Flags::ACK);

/// What may happen to a connection, the likely first.
const TCP_STEPS: [Step; 12] = [
    Step::Client(Flags::SYN),
    Step::Server(SYN_ACK),
    Step::Client(Flags::ACK),
    Step::Server(FIN_ACK),
    Step::Client(FIN_ACK),
    Step::Server(Flags::ACK),
    Step::Server(Flags::RST),
    Step::Client(Flags::RST),
    // What conntrack judges invalid, for whatever reason, and IPVS takes all the same.
    Step::Client(Flags::FIN),
    Step::Server(Flags::FIN),
    Step::Client(Flags::RST.with(Flags::FIN)),
    Step::Server(Flags::RST.with(Flags::FIN)),
];

/// Datagrams.
const UDP_STEPS: [Step; 2] = [Step::Client(Flags(0)), Step::Server(Flags(0))];

/// What a listing says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Says<T> {
    /// It is so.
    Row(T),
    /// There is none.
    Gone,
    /// Nothing: there was no listing, or not a whole one.
    Nothing,
}

impl<T: Copy> Says<T> {
    pub(super) const fn row(self) -> Option<T> {
        match self {
            Self::Row(row) => Some(row),
            Self::Gone | Self::Nothing => None,
        }
    }
}

/// What one round of listings says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shown {
    pub ipvs: Says<IpvsConnLine>,
    pub ct: Says<ConntrackLine>,
}

/// A sequence that joins two listings.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub steps: Vec<Step>,
    pub rules: Vec<Rule>,
    /// When its first and its last packet came, since the earlier listing.
    pub packets: Option<(Instant, Instant)>,
}

/// Two rounds of listings of a connection, between which something must have happened.
pub(super) struct Search<'a> {
    pub tuple: Tuple,
    pub earlier: Shown,
    pub later: Shown,
    /// The client's persistence template, as the earlier listing has it.
    pub template: Option<IpvsConnLine>,
    pub persistence: Option<Persistence>,
    /// Time between the two listings of IPVS entries, and between the first of these and the later conntrack listing.
    pub spans: [Span; 2],
    /// Where the earlier and the later real server may have stood meanwhile; nothing if no rules were listed.
    pub places: [BTreeSet<Place>; 2],
    /// `ipvsadm --set`: seconds of TCP, TCP after a FIN, and UDP.
    pub timeouts: Option<(u32, u32, u32)>,
    /// By how much a listing may be late, besides the rounding to seconds.
    pub slack: Span,
    pub setup: &'a Setup,
}

/// All of a search that its result depends on: searches that agree in it have the same result.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Case {
    proto: Proto,
    facts: [Facts; 2],
    template: Option<(&'static str, u32, bool)>,
    persistence: Option<u32>,
    tenths: [u64; 2],
    places: [BTreeSet<Place>; 2],
    same_dest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Facts {
    ipvs: Says<(&'static str, u32)>,
    ct: Says<CtFacts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct CtFacts {
    state: Option<&'static str>,
    timeout_s: Option<u32>,
    flags: [bool; 3],
    /// Answered by the earlier or the later real server; the client's address and port are kept.
    reply: [bool; 4],
}

/// What became of an entry whose deadline passes between two listings: nobody knows when its timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overdue {
    /// The model's timer grid is the node's.
    AsModelled,
    /// It has gone before the first packet.
    Gone,
    /// It lives as long as a timer may be late.
    Late,
}

/// What neither a listing nor the next packet tells apart.
#[derive(PartialEq)]
struct Situation {
    phase: usize,
    split: bool,
    ipvs: Option<(State, Endpoint, u64)>,
    ct: Option<(Status, Tuple, Option<TcpState>, u64)>,
}

/// A node after some packets.
#[derive(Clone)]
struct Branch {
    node: Node,
    steps: Vec<Step>,
    rules: Vec<Rule>,
    /// The next sequence numbers of both sides, far above those of the connection before.
    client: u32,
    server: u32,
    phase: usize,
    /// The later listing of IPVS entries came before the next packet.
    split: bool,
    packets: Option<(Instant, Instant)>,
}

impl Search<'_> {
    /// The shortest sequence of packets that leads from one listing to the next.
    pub(super) fn join(&self) -> Option<Joined> {
        if self.is_untouched() {
            return Some(Joined {
                steps: Vec::new(),
                rules: Vec::new(),
                packets: None,
            });
        }
        let starts = self.starts();
        if let Some(start) = starts.iter().find(|start| self.reaches(start)) {
            return Some(start.clone().joined());
        }
        for (phases, straddling) in self.attempts() {
            let mut best = None::<Joined>;
            for start in &starts {
                let most = best.as_ref().map_or(STEPS_MAX, |b| b.steps.len() - 1);
                let found = self.walk(start.clone(), &phases, straddling, most);
                best = found.or(best);
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    /// What the result depends on.
    pub(super) fn case(&self) -> Case {
        let dests = [self.earlier, self.later].map(|shown| shown.ipvs.row().map(|row| row.dest));
        let facts = |shown: &Shown| Facts {
            ipvs: match shown.ipvs {
                Says::Row(row) => Says::Row((row.state.name(), row.expires_s)),
                Says::Gone => Says::Gone,
                Says::Nothing => Says::Nothing,
            },
            ct: match shown.ct {
                Says::Row(row) => Says::Row(CtFacts {
                    state: row.state.map(|state| state.name()),
                    timeout_s: row.timeout_s,
                    flags: [row.unreplied, row.assured, row.offload],
                    reply: [
                        Some(row.reply.src) == dests[0],
                        Some(row.reply.src) == dests[1],
                        row.reply.dst.ip == self.tuple.src.ip,
                        row.reply.dst.port == self.tuple.src.port,
                    ],
                }),
                Says::Gone => Says::Gone,
                Says::Nothing => Says::Nothing,
            },
        };
        let template = self.template.map(|row| {
            let leads = Some(row.dest) == dests[1];
            (row.state.name(), row.expires_s, leads)
        });
        Case {
            proto: self.tuple.proto,
            facts: [facts(&self.earlier), facts(&self.later)],
            template,
            persistence: self.persistence.map(|persistence| persistence.timeout_s),
            tenths: self.spans.map(|span| span.0 / 100_000_000),
            places: self.places.clone(),
            same_dest: dests[0] == dests[1],
        }
    }

    fn slack_ms(&self) -> u64 {
        self.slack.0 / 1_000_000
    }

    /// How late a timer of a state fires at most.
    fn lateness_ms(&self, state: State) -> u64 {
        let clock = self.clock();
        let ticks = clock.ticks(u64::from(state.timeout_s()));
        clock.lateness_max(ticks) * 1_000 / u64::from(clock.hz())
    }

    fn clock(&self) -> Clock {
        let era = self.setup.behaviours.timer_era();
        Clock::new(self.setup.hz, era, Span::from_secs(86_400))
    }

    /// Whether the later listing is the earlier one with less time left, or none: most connections of a large table.
    fn is_untouched(&self) -> bool {
        let slack = self.slack_ms() as i64;
        let left = |secs: u32, span: Span| i64::from(secs) * 1_000 - (span.0 / 1_000_000) as i64;
        // Shown in whole seconds, a time has up to a second more.
        let runs_on = |before: u32, after: u32, span: Span| {
            let left = left(before, span);
            left - i64::from(after) * 1_000 <= slack
                && i64::from(after) * 1_000 - left <= 1_000 + slack
        };
        let (mut may_be_gone, mut is_gone) = (false, false);
        let ipvs = match (self.earlier.ipvs, self.later.ipvs) {
            (Says::Row(a), Says::Row(b)) => {
                let state = State::from_name(a.state.name()).unwrap_or(State::Tw);
                let late = left(a.expires_s, self.spans[0]) + (self.lateness_ms(state) as i64);
                let fading = b.expires_s == 0 && late + 1_000 + slack >= 0;
                (a.state, a.dest) == (b.state, b.dest)
                    && (runs_on(a.expires_s, b.expires_s, self.spans[0])
                        || fading && left(a.expires_s, self.spans[0]) < 0)
            }
            (Says::Row(a), Says::Gone) => {
                is_gone = left(a.expires_s, self.spans[0]) <= slack;
                is_gone
            }
            (Says::Gone, Says::Gone) => true,
            (_, Says::Nothing) => true,
            _ => false,
        };
        if let Says::Row(a) = self.earlier.ipvs {
            // It may have gone between the two listings of the round.
            may_be_gone = is_gone || left(a.expires_s, self.spans[1]) <= slack;
        }
        let twins = self.setup.sysctls.vs.conntrack && may_be_gone;
        let ct = match (self.earlier.ct, self.later.ct) {
            (Says::Row(a), Says::Row(b)) => {
                let time = match (a.timeout_s, b.timeout_s) {
                    (Some(a), Some(b)) => runs_on(a, b, self.spans[1]),
                    _ => true,
                };
                (a.state, a.reply, a.unreplied, a.assured)
                    == (b.state, b.reply, b.unreplied, b.assured)
                    && time
            }
            (Says::Row(a), Says::Gone) => {
                twins || a.timeout_s.is_some_and(|s| left(s, self.spans[1]) <= slack)
            }
            (Says::Gone, Says::Gone) => true,
            (_, Says::Nothing) => true,
            _ => false,
        };
        ipvs && ct
    }

    /// When packets may have come: in bursts, each as long before the later listing as its timers have run; and, where that
    /// tells nothing, at its beginning and at its end. The simple first.
    fn attempts(&self) -> Vec<(Vec<Instant>, bool)> {
        let mut told = Vec::new();
        let mut at = |timeout_s: u32, listed_s: u32, span: Span| {
            if let Some(age_s) = timeout_s.checked_sub(listed_s) {
                // Half a second for the rounding.
                let age = Span(
                    Span::from_secs(u64::from(age_s))
                        .0
                        .saturating_sub(500_000_000),
                );
                let before = span.0.saturating_sub(age.0);
                if before > 0 || age_s <= 1 {
                    told.push(Instant(before.max(1_000_000)));
                }
            }
        };
        if let Says::Row(line) = self.later.ipvs {
            let timeout = match self.tuple.proto {
                Proto::Udp => Some(UDP_S),
                Proto::Tcp => State::from_name(line.state.name()).map(State::timeout_s),
            };
            if let Some(timeout) = timeout {
                at(timeout, line.expires_s, self.spans[0]);
            }
        }
        if let Says::Row(ConntrackLine {
            timeout_s: Some(left_s),
            state,
            ..
        }) = self.later.ct
        {
            let sysctls = &self.setup.sysctls.ct;
            let state = state.and_then(|name| {
                CtState::ALL
                    .into_iter()
                    .find(|state| state.name() == name.name())
            });
            let timeouts = match (self.tuple.proto, state) {
                (Proto::Udp, _) => vec![sysctls.udp, sysctls.udp_stream],
                (Proto::Tcp, Some(state)) => vec![
                    timeout_of(state, sysctls),
                    sysctls.max_retrans_timeout,
                    sysctls.unacknowledged,
                ],
                (Proto::Tcp, None) => Vec::new(),
            };
            for timeout in timeouts {
                at(timeout, left_s, self.spans[1]);
            }
        }
        told.sort_unstable();
        told.dedup_by(|b, a| b.since(*a) < Span::from_secs(1));
        let end = Instant(self.spans[0].0.saturating_sub(SPACING.0 * STEPS_MAX as u64));
        let (early, late) = (Instant(1_000_000), Instant(end.0.max(2_000_000)));
        let mut attempts = told
            .iter()
            .rev()
            .map(|at| (vec![*at], false))
            .collect::<Vec<_>>();
        let mut all = told.clone();
        all.extend([early, late]);
        all.sort_unstable();
        all.dedup();
        if told.is_empty() {
            attempts.extend([(vec![early], false), (vec![late], false)]);
        } else if told.len() > 1 {
            attempts.push((told, false));
        }
        attempts.push((all.clone(), false));
        attempts.push((all, true));
        attempts
    }

    /// Nodes whose tables hold what the earlier listing shows, one for each of the places in which the real servers may
    /// have stood.
    fn starts(&self) -> Vec<Branch> {
        let dests = [self.earlier, self.later].map(|shown| shown.ipvs.row().map(|row| row.dest));
        // Where the log lists no rules, an old real server is taken to be drained: a connection that it keeps then says the
        // most. A new one has weight.
        let or = |places: &BTreeSet<Place>, otherwise: &[Place]| match places.is_empty() {
            true => otherwise.to_vec(),
            false => places.iter().copied().collect::<Vec<_>>(),
        };
        let old = or(&self.places[0], &[Place::Drained, Place::Weighted]);
        let new = or(&self.places[1], &[Place::Weighted]);
        let mut all = Vec::new();
        match dests {
            [Some(old_dest), Some(new_dest)] if old_dest != new_dest => {
                for old in old {
                    for new in &new {
                        all.push(vec![(old_dest, old), (new_dest, *new)]);
                    }
                }
            }
            [Some(dest), _] => all.extend(old.into_iter().map(|place| vec![(dest, place)])),
            [None, Some(dest)] => all.extend(new.into_iter().map(|place| vec![(dest, place)])),
            [None, None] => all.push(Vec::new()),
        }
        let runs_out = self.earlier.ipvs.row().is_some_and(|line| {
            u64::from(line.expires_s) * 1_000 <= self.spans[0].0 / 1_000_000 + self.slack_ms()
        });
        let fates: &[Overdue] = match runs_out {
            true => &[Overdue::AsModelled, Overdue::Gone, Overdue::Late],
            false => &[Overdue::AsModelled],
        };
        let with = |fate: &Overdue| all.iter().map(|dests| self.start(dests, *fate)).collect();
        fates
            .iter()
            .flat_map(|fate| -> Vec<Branch> { with(fate) })
            .collect()
    }

    fn start(&self, dests: &[(Endpoint, Place)], fate: Overdue) -> Branch {
        let clock = self.clock();
        let tuple = self.tuple;
        let mut node = Node::new(self.setup.node_config(clock));
        let key = ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        node.add_local(tuple.dst.ip);
        if let Some((tcp_s, tcpfin_s, udp_s)) = self.timeouts {
            node.ipvs.set_timeouts(tcp_s, tcpfin_s, udp_s);
        }
        let persistence = self.persistence.or_else(|| {
            self.template.map(|_| Persistence {
                timeout_s: PERSISTENCE_ASSUMED_S,
                netmask: u32::MAX,
            })
        });
        let _ = node
            .ipvs
            .add_service(key, Kind::Rr, SchedFlags::default(), persistence);
        // The newest comes first in turn: the later real server.
        for (dest, place) in dests {
            let _ = node
                .ipvs
                .add_dest(key, *dest, u32::from(*place == Place::Weighted));
        }
        if let Some(line) = self.template {
            node.ipvs.adopt(Instant::ZERO, &listed(&line, &clock));
        }
        if let Some(line) = self.earlier.ipvs.row()
            && fate != Overdue::Gone
        {
            let mut listed = listed(&line, &clock);
            if fate == Overdue::Late {
                let timeout_s = listed.state.timeout_s();
                listed.left_ticks += clock.lateness_max(clock.ticks(u64::from(timeout_s)));
            }
            node.ipvs.adopt(Instant::ZERO, &listed);
        }
        for (dest, place) in dests {
            if *place == Place::Deleted {
                let _ = node.ipvs.delete_dest(Instant::ZERO, key, *dest);
            }
        }
        for line in [self.earlier.ct, self.later.ct]
            .into_iter()
            .filter_map(Says::row)
        {
            if line.reply.dst.ip != tuple.src.ip {
                // It masquerades with this address, which is its own.
                node.add_local(line.reply.dst.ip);
            }
        }
        // An entry of IPVS takes its conntrack twin with it.
        let twin_gone = fate == Overdue::Gone && self.setup.sysctls.vs.conntrack;
        if let Says::Row(line) = self.earlier.ct
            && !twin_gone
        {
            let name = line.state.map(|state| state.name());
            let state = CtState::ALL.into_iter().find(|s| Some(s.name()) == name);
            node.ct.adopt(
                clock.jiffies(Instant::ZERO),
                &ListedCt {
                    orig: line.orig,
                    reply: line.reply,
                    state: state.unwrap_or_default(),
                    seen_reply: !line.unreplied,
                    assured: line.assured,
                    left_ticks: u64::from(line.timeout_s.unwrap_or(0)) * u64::from(self.setup.hz),
                },
            );
        }
        Branch {
            node,
            steps: Vec::new(),
            rules: Vec::new(),
            client: 1_000_000,
            server: 5_000_000,
            phase: 0,
            split: false,
            packets: None,
        }
    }

    /// Breadth first through the situations that up to `most` packets lead to. `phases`: when bursts of them begin.
    /// `straddling`: some may have come between the two listings of the later round.
    fn walk(
        &self,
        start: Branch,
        phases: &[Instant],
        straddling: bool,
        most: usize,
    ) -> Option<Joined> {
        let steps: &[Step] = match self.tuple.proto {
            Proto::Tcp => &TCP_STEPS,
            Proto::Udp => &UDP_STEPS,
        };
        let mut met = Vec::new();
        let mut layer = self.variants(start, phases, straddling);
        for _ in 1..=most {
            let mut next = Vec::new();
            for branch in &layer {
                for step in steps {
                    let mut branch = branch.clone();
                    branch.take(*step, phases, self);
                    let situation = branch.situation(self.tuple);
                    if met.contains(&situation) {
                        continue;
                    }
                    met.push(situation);
                    if self.reaches(&branch) {
                        return Some(branch.joined());
                    }
                    next.extend(self.variants(branch, phases, straddling));
                }
            }
            layer = next;
        }
        None
    }

    /// The branch as it is, and as it is after waiting for each of the later bursts.
    fn variants(&self, branch: Branch, phases: &[Instant], straddling: bool) -> Vec<Branch> {
        let mut all = Vec::new();
        if !branch.split {
            for phase in branch.phase + 1..phases.len() {
                let mut later = branch.clone();
                later.phase = phase;
                all.push(later);
            }
            if straddling && self.ipvs_agrees(&branch.node) {
                let mut later = branch.clone();
                later.split = true;
                all.push(later);
            }
        }
        all.insert(0, branch);
        all
    }

    /// Whether a branch, left alone, shows the later listing.
    fn reaches(&self, branch: &Branch) -> bool {
        (branch.split || self.ipvs_agrees(&branch.node)) && self.ct_agrees(&branch.node)
    }

    /// The entry of IPVS that a packet would follow.
    fn entry<'n>(&self, node: &'n Node) -> Option<&'n Entry> {
        let table = node.ipvs.table();
        table.find_in(&self.tuple).map(|id| table.get(id))
    }

    /// Milliseconds left of a deadline at a moment, negative when it is over.
    fn left_ms(&self, node: &Node, deadline: Jiffies, at: Span) -> i64 {
        let clock = node.config().clock;
        let now = clock.jiffies(Instant::ZERO + at);
        let ticks =
            i64::try_from(deadline.0).unwrap_or(i64::MAX) - i64::try_from(now.0).unwrap_or(0);
        ticks.saturating_mul(1_000) / i64::from(clock.hz())
    }

    fn ipvs_agrees(&self, node: &Node) -> bool {
        let slack = self.slack_ms() as i64;
        let entry = self.entry(node);
        let left = |entry: &Entry| self.left_ms(node, entry.expires(), self.spans[0]);
        match self.later.ipvs {
            Says::Nothing => true,
            Says::Gone => entry.is_none_or(|entry| left(entry) <= slack),
            Says::Row(line) => entry.is_some_and(|entry| {
                let name = match entry.proto() {
                    Proto::Udp => "UDP",
                    Proto::Tcp => entry.state().name(),
                };
                let left = left(entry);
                let listed = i64::from(line.expires_s) * 1_000;
                let overdue = left < 0
                    && line.expires_s == 0
                    && left + self.lateness_ms(entry.state()) as i64 + 1_000 + slack >= 0;
                name == line.state.name()
                    && node.ipvs.dests().get(entry.dest()).addr == line.dest
                    && (left.abs_diff(listed) <= 1_000 + slack.unsigned_abs() || overdue)
            }),
        }
    }

    fn ct_agrees(&self, node: &Node) -> bool {
        let slack = self.slack_ms() as i64;
        let found = self.tracked(node);
        let left = |entry: &CtEntry| self.left_ms(node, entry.deadline, self.spans[1]);
        // An entry of IPVS takes its conntrack twin with it; when exactly its timer fires is not known.
        let twin = self.entry(node).filter(|entry| entry.keeps_conntrack());
        let twin = twin.map(|entry| {
            let left = self.left_ms(node, entry.expires(), self.spans[1]);
            (left, self.lateness_ms(entry.state()) as i64)
        });
        let twin_dead = twin.is_some_and(|(left, late)| left + late + 1_000 + slack < 0);
        let twin_may_be_dead = twin.is_some_and(|(left, _)| left <= slack);
        match self.later.ct {
            Says::Nothing => true,
            Says::Gone => twin_may_be_dead || found.is_none_or(|entry| left(entry) <= slack),
            Says::Row(line) => found.is_some_and(|entry| {
                let state = entry.tcp().map(|tcp| tcp.state.name());
                let time = line.timeout_s.is_none_or(|listed| {
                    let listed = i64::from(listed) * 1_000;
                    left(entry).abs_diff(listed) <= 1_000 + slack.unsigned_abs()
                });
                let assured = line.offload || entry.status.has(Status::ASSURED) == line.assured;
                (line.state.is_none() || state == line.state.map(|state| state.name()))
                    && entry.reply() == line.reply
                    && entry.status.has(Status::SEEN_REPLY) != line.unreplied
                    && assured
                    && time
                    && !twin_dead
            }),
        }
    }

    /// The conntrack entry that begins with the client's packets.
    fn tracked<'n>(&self, node: &'n Node) -> Option<&'n CtEntry> {
        let mut entries = node.ct.iter().map(|(_, entry)| entry);
        entries.find(|entry| entry.orig() == self.tuple && entry.status.has(Status::CONFIRMED))
    }

    /// How the node was seen to send the connection on: for what source NAT drew.
    fn seen(&self) -> Seen {
        let line = self.later.ct.row().or(self.earlier.ct.row());
        line.map_or(Seen::Nothing, |line| {
            let out = Tuple {
                proto: self.tuple.proto,
                src: line.reply.dst,
                dst: line.reply.src,
            };
            Seen::Left(Segment::new(out, Flags::SYN))
        })
    }
}

/// A row of the IPVS table as the model adopts it.
fn listed(line: &IpvsConnLine, clock: &Clock) -> Listed {
    Listed {
        proto: line.proto,
        client: line.client,
        virt: line.virt,
        dest: line.dest,
        state: State::from_name(line.state.name()).unwrap_or(State::No),
        assured: line.state.name() == "ASSURED",
        left_ticks: clock.ticks(u64::from(line.expires_s)),
    }
}

impl Branch {
    fn joined(self) -> Joined {
        Joined {
            steps: self.steps,
            rules: self.rules,
            packets: self.packets,
        }
    }

    fn take(&mut self, step: Step, phases: &[Instant], search: &Search<'_>) {
        let begins = match self.split {
            true => Instant::ZERO + search.spans[0],
            false => phases[self.phase],
        };
        let at = match self.packets {
            Some((_, last)) => begins.max(last + SPACING),
            None => begins,
        };
        self.packets = Some((self.packets.map_or(at, |(first, _)| first), at));
        let tuple = search.tuple;
        let mut segment = match step {
            Step::Client(flags) => {
                let mut segment = Segment::new(tuple, flags);
                (segment.seq, segment.ack) = (self.client, self.server);
                self.client = segment.end_seq();
                segment
            }
            Step::Server(flags) => {
                let tracked = search.tracked(&self.node).map(CtEntry::reply);
                let bound = self.node.bound_to(&tuple);
                let dest = bound.or(tracked.map(|reply| reply.src));
                let towards = Tuple {
                    proto: tuple.proto,
                    src: dest.unwrap_or(tuple.dst),
                    dst: tracked.map_or(tuple.src, |reply| reply.dst),
                };
                let mut segment = Segment::new(towards, flags);
                (segment.seq, segment.ack) = (self.server, self.client);
                self.server = segment.end_seq();
                segment
            }
        };
        if !segment.flags.has(Flags::ACK) {
            segment.ack = 0;
        }
        let mut drawn = Drawn::of(search.seen());
        let inward = matches!(step, Step::Client(_));
        let policy = drawn.policy(&segment, inward, search.setup.null_binding());
        self.node.set_source_nat(policy);
        let rule = self.node.packet(at, &segment, &mut drawn).rule;
        self.steps.push(step);
        self.rules.push(rule);
    }

    fn situation(&self, tuple: Tuple) -> Situation {
        let clock = self.node.config().clock;
        let (_, at) = self.packets.unwrap_or_default();
        let now = clock.jiffies(at);
        let left_s = |deadline: Jiffies| now.until(deadline) / u64::from(clock.hz());
        let table = self.node.ipvs.table();
        let ipvs = table.find_in(&tuple).map(|id| {
            let entry = table.get(id);
            let dest = self.node.ipvs.dests().get(entry.dest()).addr;
            (entry.state(), dest, left_s(entry.expires()))
        });
        let mut entries = self.node.ct.iter().map(|(_, entry)| entry);
        let ct = entries.find(|entry| entry.orig() == tuple).map(|entry| {
            // Numbers apart.
            let tcp = entry.tcp().map(|tcp| TcpState {
                seen: tcp.seen.map(|seen| Flagged {
                    flags: seen.flags,
                    ..Flagged::default()
                }),
                state: tcp.state,
                last_dir: tcp.last_dir,
                last_class: tcp.last_class,
                ..TcpState::default()
            });
            (entry.status, entry.reply(), tcp, left_s(entry.deadline))
        });
        Situation {
            phase: self.phase,
            split: self.split,
            ipvs,
            ct,
        }
    }
}
