//! Captures without packets: what must have happened between two listings.
//!
//! For each connection that is listed twice, the shortest sequence of packets is searched that leads the model from
//! the one listing to the other: the model's own node takes the packets, so no rule is told twice. What such a
//! sequence says of reused ports is put into words; where there is none, that is a divergence.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipvs_model::conntrack::{CtState, ListedCt, Status, timeout_of};
use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::sched::{Flags as SchedFlags, Kind};
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::node::{Node, Rule};
use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use ipvs_model::time::{Clock, Instant, Span};
use rand::rand_core::{Infallible, TryRng};

use super::report::{Class, Divergence, Finding, Report};
use super::setup::Setup;
use crate::capture::{Body, Capture, ConntrackLine, Event, IpvsConnLine, Place, ReadError, Stamp};

/// Packets in the longest sequence that is searched.
const STEPS_MAX: usize = 4;
/// Listings of one round are taken one after the other: they belong together within this.
const ROUND: Span = Span::from_millis(1_500);
/// By how many seconds a listing of a round may be late, besides the rounding to seconds.
const SKEW_S: u64 = 1;

/// A packet that a sequence may hold: who sends it, and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Client(Flags),
    Server(Flags),
}

const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
const FIN_ACK: Flags = Flags::FIN.with(Flags::ACK);

/// What may happen to a connection, the likely first.
const STEPS: [Step; 8] = [
    Step::Client(Flags::SYN),
    Step::Server(SYN_ACK),
    Step::Client(Flags::ACK),
    Step::Server(FIN_ACK),
    Step::Client(FIN_ACK),
    Step::Server(Flags::ACK),
    Step::Server(Flags::RST),
    Step::Client(Flags::RST),
];

/// What one round of listings shows of a connection.
#[derive(Clone, Copy, Debug, Default)]
struct Shown {
    ipvs: Option<IpvsConnLine>,
    ct: Option<ConntrackLine>,
}

/// A round of listings.
struct Round {
    at: Stamp,
    place: Place,
    file: std::sync::Arc<str>,
    shown: BTreeMap<Tuple, Shown>,
    /// Real servers that the round's rules and Endpoints list; `None` if it lists none.
    listed: Option<BTreeSet<Ipv4Addr>>,
    /// The pods that its Endpoints list.
    pods: BTreeSet<Ipv4Addr>,
}

/// A sequence that joins two listings.
struct Joined {
    steps: Vec<Step>,
    rules: Vec<Rule>,
    last_packet: Instant,
}

struct NoDraw;

impl TryRng for NoDraw {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(0)
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(0)
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}

/// Compares a capture without packets.
pub(super) fn diff(capture: &Capture, setup: &Setup) -> Result<Report, ReadError> {
    let mut report = Report::default();
    let mut events = capture.events()?;
    let mut before = None::<Round>;
    let mut current = None::<Round>;
    loop {
        let event = events.next_event()?;
        let joins = match (&event, &current) {
            (Some(event), Some(round)) => {
                !event.stepped_back && event.at.since(round.at) <= ROUND && !round.is_over(event)
            }
            _ => false,
        };
        if !joins && let Some(round) = current.take() {
            round.judge(before.as_ref(), setup, &mut report);
            before = Some(round);
        }
        let Some(event) = event else {
            break;
        };
        if event.stepped_back {
            report.not_checked("time across a clock that was set");
            before = None;
        }
        current
            .get_or_insert_with(|| Round::new(&event))
            .take(&event, &mut report);
    }
    report.skipped = events.skipped();
    Ok(report)
}

impl Round {
    fn new(event: &Event) -> Self {
        Self {
            at: event.at,
            place: event.place,
            file: event.file.clone(),
            shown: BTreeMap::new(),
            listed: None,
            pods: BTreeSet::new(),
        }
    }

    /// Whether the event shows a table that the round already has: then it belongs to the next.
    fn is_over(&self, event: &Event) -> bool {
        match &event.body {
            Body::Ipvs(_) => self.shown.values().any(|shown| shown.ipvs.is_some()),
            Body::Conntrack(_) => self.shown.values().any(|shown| shown.ct.is_some()),
            _ => event.at > self.at,
        }
    }

    fn take(&mut self, event: &Event, report: &mut Report) {
        match &event.body {
            Body::Ipvs(table) => {
                report.snapshots += 1;
                for line in &table.rows {
                    report.entries += 1;
                    let tuple = Tuple {
                        proto: line.proto,
                        src: line.client,
                        dst: line.virt,
                    };
                    self.shown.entry(tuple).or_default().ipvs = Some(*line);
                }
            }
            Body::Conntrack(table) => {
                report.snapshots += 1;
                for line in &table.rows {
                    report.entries += 1;
                    self.shown.entry(line.orig).or_default().ct = Some(*line);
                }
            }
            Body::Rules(rules) => {
                let listing = rules.listing.iter().flatten();
                let servers = self.listed.get_or_insert_default();
                for service in listing {
                    let weighted = service.dests.iter().filter(|dest| dest.weight > 0);
                    servers.extend(weighted.map(|dest| dest.real.ip));
                }
            }
            Body::Endpoints(objects) => {
                let servers = self.listed.get_or_insert_default();
                for object in objects {
                    servers.extend(object.addresses.iter().chain(&object.not_ready));
                    self.pods.extend(&object.addresses);
                }
            }
            Body::Pods(_) | Body::Sysctls(_) | Body::Packet(_) | Body::ConntrackEvent(_) => {}
        }
    }

    fn judge(&self, before: Option<&Self>, setup: &Setup, report: &mut Report) {
        for (tuple, shown) in &self.shown {
            if let (Some(line), Some(listed)) = (shown.ipvs, &self.listed) {
                self.stale_server(*tuple, &line, listed, setup, report);
            }
            let earlier = before.and_then(|round| Some((round, *round.shown.get(tuple)?)));
            let Some((round, earlier)) = earlier else {
                report.not_checked("entry listed once: nothing to join it to");
                continue;
            };
            if earlier.ipvs.is_none() || shown.ipvs.is_none() {
                report.not_checked("conntrack entry without its IPVS entry in both listings");
                continue;
            }
            report.trajectories += 1;
            let span = self.at.since(round.at);
            match join(*tuple, &earlier, shown, span, setup) {
                Some(joined) => {
                    self.put_into_words(round, *tuple, &earlier, shown, &joined, report)
                }
                None => self.no_way(*tuple, &earlier, shown, report),
            }
        }
    }

    /// An entry whose SYN has just come, and whose real server neither rules nor Endpoints list any more: only an
    /// entry of an earlier connection can have led it there.
    fn stale_server(
        &self,
        tuple: Tuple,
        line: &IpvsConnLine,
        listed: &BTreeSet<Ipv4Addr>,
        setup: &Setup,
        report: &mut Report,
    ) {
        if listed.contains(&line.dest.ip) || line.state.name() != State::Sr.name() {
            return;
        }
        let age_s = u64::from(State::Sr.timeout_s()).saturating_sub(u64::from(line.expires_s));
        let (who, names) = match self.pods.is_empty() {
            true => ("rules list only", listed),
            false => ("rules and Endpoints list only the new pods", &self.pods),
        };
        let names = names.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>();
        let rule = keeping_rule(tuple, line.dest, listed, setup);
        report.findings.push(Finding {
            at: wall(self.at),
            subject: tuple.to_string(),
            text: format!(
                "a SYN came {age_s} s before and went to {}, although {who} {}: the port was reused while the entry of its \
                 earlier connection was there. {rule}",
                line.dest,
                names.join(", "),
            ),
        });
    }

    fn put_into_words(
        &self,
        before: &Self,
        tuple: Tuple,
        earlier: &Shown,
        shown: &Shown,
        joined: &Joined,
        report: &mut Report,
    ) {
        for rule in &joined.rules {
            *report.rules.entry(format!("{rule:?}")).or_default() += 1;
        }
        let (Some(old), Some(new)) = (earlier.ipvs, shown.ipvs) else {
            return;
        };
        let reused = joined.steps.contains(&Step::Client(Flags::SYN))
            && old.state.name() == State::Tw.name()
            && !joined.rules.is_empty();
        if !reused {
            return;
        }
        // It entered TIME_WAIT so long before the first listing, and the SYN came so long after it.
        let idle_s = u64::from(State::Tw.timeout_s()).saturating_sub(u64::from(old.expires_s));
        let since = Span(joined.last_packet.0);
        let (least, most) = (idle_s + since.as_secs(), idle_s + since.as_secs() + 1);
        let rule = joined.rules.first().copied().unwrap_or(Rule::Plain);
        let kept = if old.dest == new.dest {
            format!("it kept the real server {}", new.dest)
        } else {
            format!("it went from {} to {}", old.dest, new.dest)
        };
        let tracked = match (earlier.ct, shown.ct) {
            (Some(old), Some(new)) => format!(
                "; conntrack went from {} to {}, its answers still expected from {}{}",
                old.state.map_or("?", |state| state.name()),
                new.state.map_or("?", |state| state.name()),
                new.reply.src,
                if new.unreplied { ", none has come" } else { "" },
            ),
            _ => String::new(),
        };
        let text = format!(
            "between {} and {} a SYN reused the port {least}-{most} s after close: TIME_WAIT became {}, {kept} \
             ({rule:?}: {}){tracked}. {}",
            wall(before.at),
            wall(self.at),
            new.state,
            rule.describe(),
            settings_that_keep(tuple, new.dest, old.dest == new.dest),
        );
        report.findings.push(Finding {
            at: wall(self.at),
            subject: tuple.to_string(),
            text,
        });
    }

    fn no_way(&self, tuple: Tuple, earlier: &Shown, shown: &Shown, report: &mut Report) {
        let text = |shown: &Shown| {
            let ipvs = shown.ipvs.map_or_else(String::new, |line| {
                format!("{} {} s -> {}", line.state, line.expires_s, line.dest)
            });
            let ct = shown.ct.map_or_else(String::new, |line| {
                let state = line.state.map_or("?", |state| state.name());
                format!(", conntrack {state} {} s", line.timeout_s.unwrap_or(0))
            });
            ipvs + &ct
        };
        report.diverged(Divergence {
            at: self.at,
            file: self.file.clone(),
            place: self.place,
            class: Class::Trajectory,
            subject: tuple.to_string(),
            model: format!(
                "no sequence of up to {STEPS_MAX} packets leads there from {}",
                text(earlier)
            ),
            node: text(shown),
            rule: String::new(),
            before: Vec::new(),
        });
    }
}

/// The shortest sequence of packets that leads from one listing to the next.
fn join(tuple: Tuple, earlier: &Shown, shown: &Shown, span: Span, setup: &Setup) -> Option<Joined> {
    let clock = Clock::new(
        setup.hz,
        setup.behaviours.timer_era(),
        Span::from_secs(86_400),
    );
    let start = start_node(tuple, earlier, shown, setup, clock);
    let end = Instant::ZERO + span;
    for count in 0..=STEPS_MAX {
        let mut index = vec![0; count];
        loop {
            let steps = index.iter().map(|at| STEPS[*at]).collect::<Vec<_>>();
            for last in last_packets(shown, span, setup, count) {
                let mut node = start.clone();
                let rules = play(&mut node, tuple, earlier, &steps, last);
                node.advance(end);
                if agrees(&mut node, tuple, shown, &clock, end) {
                    return Some(Joined {
                        steps,
                        rules,
                        last_packet: last,
                    });
                }
            }
            if !next_index(&mut index) {
                break;
            }
        }
    }
    None
}

/// Counts through all sequences of a length; false after the last.
fn next_index(index: &mut [usize]) -> bool {
    for digit in index.iter_mut().rev() {
        *digit += 1;
        if *digit < STEPS.len() {
            return true;
        }
        *digit = 0;
    }
    false
}

/// A node whose tables hold what the earlier listing shows. Services that the log does not list are taken to be
/// there, with their real server drained.
fn start_node(tuple: Tuple, earlier: &Shown, shown: &Shown, setup: &Setup, clock: Clock) -> Node {
    let mut node = Node::new(setup.node_config(clock));
    let key = ServiceKey {
        proto: tuple.proto,
        addr: tuple.dst,
    };
    node.add_local(tuple.dst.ip);
    let _ = node
        .ipvs
        .add_service(key, Kind::Rr, SchedFlags::default(), None);
    let hz = u64::from(setup.hz);
    if let Some(line) = &earlier.ipvs {
        let now_at = shown.ipvs.map(|line| line.dest);
        if let Some(other) = now_at.filter(|dest| *dest != line.dest) {
            let _ = node.ipvs.add_dest(key, other, 1);
        }
        let _ = node.ipvs.add_dest(key, line.dest, 0);
        node.ipvs.adopt(
            Instant::ZERO,
            &Listed {
                proto: line.proto,
                client: line.client,
                virt: line.virt,
                dest: line.dest,
                state: State::from_name(line.state.name()).unwrap_or(State::No),
                assured: false,
                left_ticks: u64::from(line.expires_s) * hz,
            },
        );
    }
    if let Some(line) = &earlier.ct {
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
                left_ticks: u64::from(line.timeout_s.unwrap_or(0)) * hz,
            },
        );
    }
    node
}

/// When the last packet may have come: so long before the later listing as its timers have run.
fn last_packets(shown: &Shown, span: Span, setup: &Setup, count: usize) -> Vec<Instant> {
    if count == 0 {
        return vec![Instant::ZERO];
    }
    let ipvs = shown.ipvs.and_then(|line| {
        let timeout_s = State::from_name(line.state.name())?.timeout_s();
        timeout_s.checked_sub(line.expires_s)
    });
    let ct = shown.ct.and_then(|line| {
        let name = line.state?.name();
        let state = CtState::ALL.into_iter().find(|s| s.name() == name)?;
        timeout_of(state, &setup.sysctls.ct).checked_sub(line.timeout_s?)
    });
    let at = |age: u32| {
        let age = Span::from_secs(u64::from(age));
        let at = span.0.saturating_sub(age.0);
        Instant(at.max(1_000_000))
    };
    let mut times = [ipvs, ct].into_iter().flatten().map(at).collect::<Vec<_>>();
    times.dedup();
    times
}

/// Sends the packets, a millisecond apart, the last one at `last`; the rules that decided.
fn play(
    node: &mut Node,
    tuple: Tuple,
    earlier: &Shown,
    steps: &[Step],
    last: Instant,
) -> Vec<Rule> {
    let Some(line) = earlier.ipvs else {
        return Vec::new();
    };
    // Numbers far above those of the connection before, in step with each other.
    let (mut client, mut server) = (1_000_000_u32, 5_000_000_u32);
    let mut rules = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let before = Span::from_millis((steps.len() - 1 - at) as u64);
        let mut segment = match step {
            Step::Client(flags) => {
                let mut segment = Segment::new(tuple, *flags);
                (segment.seq, segment.ack) = (client, server);
                client = segment.end_seq();
                segment
            }
            Step::Server(flags) => {
                let dest = node.bound_to(&tuple).unwrap_or(line.dest);
                let towards = Tuple {
                    proto: tuple.proto,
                    src: dest,
                    dst: tuple.src,
                };
                let mut segment = Segment::new(towards, *flags);
                (segment.seq, segment.ack) = (server, client);
                server = segment.end_seq();
                segment
            }
        };
        if !segment.flags.has(Flags::ACK) {
            segment.ack = 0;
        }
        rules.push(node.packet(last - before, &segment, &mut NoDraw).rule);
    }
    rules
}

/// Whether the node's tables show what the listing shows.
fn agrees(node: &mut Node, tuple: Tuple, shown: &Shown, clock: &Clock, end: Instant) -> bool {
    let now = clock.jiffies(end);
    let hz = u64::from(clock.hz());
    let close = |left: u64, listed_s: u32| (left / hz).abs_diff(u64::from(listed_s)) <= 1 + SKEW_S;
    if let Some(line) = &shown.ipvs {
        let Some(id) = node.ipvs.table().find_in(&tuple) else {
            return false;
        };
        let entry = node.ipvs.table().get(id);
        let dest = node.ipvs.dests().get(entry.dest()).addr;
        if entry.state().name() != line.state.name()
            || dest != line.dest
            || !close(now.until(entry.expires()), line.expires_s)
        {
            return false;
        }
    }
    if let Some(line) = &shown.ct {
        let Some(ct) = node.ct.find(now, &tuple) else {
            return false;
        };
        let entry = node.ct.entry(ct.slot);
        let state = entry.tcp().map(|tcp| tcp.state.name());
        let time = line
            .timeout_s
            .is_none_or(|listed| close(now.until(entry.deadline), listed));
        if state != line.state.map(|state| state.name())
            || entry.reply() != line.reply
            || entry.status.has(Status::SEEN_REPLY) == line.unreplied
            || !time
        {
            return false;
        }
    }
    true
}

/// The model's rule that leads a SYN on a finished connection's entry to its old, drained real server.
fn keeping_rule(
    tuple: Tuple,
    dest: Endpoint,
    listed: &BTreeSet<Ipv4Addr>,
    setup: &Setup,
) -> String {
    let rule = syn_on_time_wait(tuple, dest, listed, setup);
    format!(
        "{rule:?}: {}. {}",
        rule.describe(),
        settings_that_keep(tuple, dest, true)
    )
}

/// Runs a SYN into a TIME_WAIT entry of a drained real server.
fn syn_on_time_wait(
    tuple: Tuple,
    dest: Endpoint,
    listed: &BTreeSet<Ipv4Addr>,
    setup: &Setup,
) -> Rule {
    let clock = Clock::new(
        setup.hz,
        setup.behaviours.timer_era(),
        Span::from_secs(86_400),
    );
    let line = IpvsConnLine {
        proto: tuple.proto,
        client: tuple.src,
        virt: tuple.dst,
        dest,
        state: crate::capture::StateName::of(State::Tw.name()).expect("a state's own name"),
        expires_s: 60,
    };
    let shown = Shown {
        ipvs: Some(line),
        ct: None,
    };
    let mut node = start_node(tuple, &shown, &shown, setup, clock);
    let key = ServiceKey {
        proto: tuple.proto,
        addr: tuple.dst,
    };
    for ip in listed {
        let _ = node.ipvs.add_dest(key, Endpoint::new(*ip, dest.port), 1);
    }
    let syn = Segment::new(tuple, Flags::SYN);
    node.packet(Instant::from_millis(1), &syn, &mut NoDraw).rule
}

/// Under which settings and kernels a SYN on a finished connection's entry of a drained real server stays with it.
fn settings_that_keep(tuple: Tuple, dest: Endpoint, kept: bool) -> String {
    use ipvs_model::ipvs::Rule as IpvsRule;
    use ipvs_model::kernel::Gate;
    if !kept {
        return String::new();
    }
    let mut words = Vec::new();
    for (mode, any_mode) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut setup = Setup::assumed();
        setup.behaviours = setup.behaviours.with(Gate::WeightZeroAnyMode, any_mode);
        setup.sysctls.vs.conn_reuse_mode = mode;
        let others = BTreeSet::from([Ipv4Addr::UNSPECIFIED]);
        let rule = syn_on_time_wait(tuple, dest, &others, &setup);
        if rule == Rule::Ipvs(IpvsRule::SynKeptAtWeightZero) {
            let fix = if any_mode { "with" } else { "without" };
            words.push(format!(
                "conn_reuse_mode={mode} on a kernel {fix} c95c07836fa4"
            ));
        }
    }
    format!(
        "With expire_nodest_conn=1 a drained real server is kept by {} only",
        words.join(" or ")
    )
}

fn wall(at: Stamp) -> String {
    let second = i64::try_from(at.0 / 1_000_000_000).unwrap_or(0);
    jiff::Timestamp::from_second(second).map_or_else(
        |_| at.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}
