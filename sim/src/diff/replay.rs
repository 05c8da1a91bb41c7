//! The model runs beside the node: every packet and every rule goes in, what comes out is compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipvs_model::conntrack::{CtEntry, CtRule, SourceNat, Status};
use ipvs_model::ipvs::Rule as IpvsRule;
use ipvs_model::ipvs::sched::Scheduler;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::node::{Decision, Node, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::time::{Clock, Instant, Jiffies, Span};
use rand::rand_core::{Infallible, TryRng};

use super::ahead::{Ahead, Seen};
use super::phase::Evidence;
use super::report::{Class, Divergence, Report};
use super::setup::Setup;
use crate::capture::{Body, Content, Event, Packet, ReadError, Stamp};

/// Packets kept for the circumstances of a divergence.
const HISTORY: usize = 512;
/// Of them, shown for one tuple.
const SHOWN_BEFORE: usize = 6;
/// Observations of timers that are kept for finding the node's tick grid.
const EVIDENCE_MAX: usize = 20_000;

/// The longest that an expired conntrack entry waits for the collector: a round of at most a minute, and the
/// minute's wait before it.
const COLLECTOR_MAX_S: u64 = 120;

const COLLECTOR: &str = "expired conntrack entry that the collector may or may not have taken";
const SACRIFICED: &str =
    "entry that a full conntrack table sacrificed: the node's hash seed chose it";

/// What is remembered of the last packet of an IPVS entry: how its timer was armed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Armed {
    pub at: Instant,
    pub ticks: u64,
    pub expires: Jiffies,
    pub dest: Endpoint,
    pub state: ipvs_model::ipvs::state::State,
}

/// An entry that was told to expire at the next tick.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub tuple: Tuple,
    pub dest: Endpoint,
    pub at: Instant,
}

/// The node's draw of a source port, as the packet that left shows it: NAT's choice is random, so what it drew is
/// an input. Whether it had to draw at all is the model's to say.
#[derive(Clone, Copy)]
struct Drawn {
    left: Option<Endpoint>,
}

impl Drawn {
    const fn of(seen: Seen) -> Self {
        let left = match seen {
            Seen::Left(left) => Some(left.tuple.src),
            _ => None,
        };
        Self { left }
    }

    /// The rule of source NAT that the packet met: no capture holds the rules, but the address tells.
    fn policy(self, segment: &Segment, inward: bool, otherwise: SourceNat) -> SourceNat {
        match self.left {
            Some(left) if inward && left.ip != segment.tuple.src.ip => SourceNat::Masquerade {
                ip: left.ip,
                random: left.port != segment.tuple.src.port,
            },
            _ => otherwise,
        }
    }
}

impl TryRng for Drawn {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let port = self.left.map_or(1024, |left| left.port);
        Ok(u32::from(port.wrapping_sub(1024)) << 16)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.try_next_u32().map(|word| u64::from(word) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        bytes.fill(0);
        Ok(())
    }
}

/// One packet of the recent past.
struct Past {
    at: Stamp,
    client: Endpoint,
    text: String,
    rule: Rule,
}

/// The two sides of a comparison of verdicts.
enum Match {
    Yes,
    No(Class),
    Unknown(&'static str),
}

/// One run of the model beside a capture.
pub(super) struct Replay<'a> {
    pub setup: &'a Setup,
    pub node: Node,
    pub clock: Clock,
    pub report: Report,
    pub evidence: Vec<Evidence>,
    pub armed: BTreeMap<Tuple, Armed>,
    pub told: Vec<Told>,
    /// Addresses that are or were real servers.
    pub servers: BTreeSet<Endpoint>,
    vips: BTreeSet<Ipv4Addr>,
    /// Addresses by which the node masquerades: its own.
    own: BTreeSet<Ipv4Addr>,
    /// Clients' tuples whose conntrack or IPVS entry was taken from a listing: not all of it is known.
    pub adopted: BTreeSet<Tuple>,
    /// Clients' tuples that diverged since the last listing of each table: what follows is not a new fault.
    pub spoilt: [BTreeSet<Tuple>; 2],
    /// Services whose scheduler may be in any of several states.
    pub schedulers: BTreeMap<ServiceKey, Vec<Scheduler>>,
    /// Which tables have been listed at least once.
    pub listed: [bool; 2],
    /// The clock was set: the next listing of each table is taken over without complaint.
    pub take_over: [bool; 2],
    /// Services that the model has no place for.
    pub foreign: BTreeSet<Endpoint>,
    /// Tuples of conntrack entries, in both directions, with their deadlines.
    tracked: BTreeMap<Tuple, Jiffies>,
    past: VecDeque<Past>,
    origin: Stamp,
    now: Instant,
}

impl<'a> Replay<'a> {
    pub(super) fn new(setup: &'a Setup, clock: Clock) -> Self {
        Self {
            setup,
            node: Node::new(setup.node_config(clock)),
            clock,
            report: Report {
                coverage: setup.coverage.then(BTreeMap::new),
                ..Report::default()
            },
            evidence: Vec::new(),
            armed: BTreeMap::new(),
            told: Vec::new(),
            servers: BTreeSet::new(),
            vips: BTreeSet::new(),
            own: BTreeSet::new(),
            adopted: BTreeSet::new(),
            spoilt: [BTreeSet::new(), BTreeSet::new()],
            schedulers: BTreeMap::new(),
            listed: [false; 2],
            take_over: [false; 2],
            foreign: BTreeSet::new(),
            tracked: BTreeMap::new(),
            past: VecDeque::new(),
            origin: setup.origin,
            now: Instant::ZERO,
        }
    }

    /// Takes the capture from its beginning to its end.
    pub(super) fn run(&mut self, ahead: &mut Ahead) -> Result<(), ReadError> {
        while let Some(event) = ahead.next()? {
            self.tell_time(&event);
            match &event.body {
                Body::Packet(packet) => self.packet(&event, packet, ahead)?,
                Body::Rules(block) => self.rules(&event, block),
                Body::Ipvs(table) => self.ipvs_table(&event, table, ahead)?,
                Body::Conntrack(table) => self.ct_table(&event, table, ahead)?,
                Body::ConntrackEvent(change) => self.ct_event(&event, change, ahead)?,
                Body::Pods(_) | Body::Endpoints(_) => {}
            }
        }
        Ok(())
    }

    pub(super) const fn now(&self) -> Instant {
        self.now
    }

    pub(super) const fn jiffies(&self) -> Jiffies {
        self.clock.jiffies(self.now)
    }

    /// Moves the model's time to an event. A clock that is set back does not move it.
    fn tell_time(&mut self, event: &Event) {
        if event.stepped_back {
            self.origin = Stamp(event.at.0.saturating_sub(self.now.0));
            self.take_over = [true; 2];
            self.report.not_checked("time across a clock that was set");
        }
        self.now = self.now.max(event.at.from_origin(self.origin));
    }

    pub(super) fn learn(&mut self, evidence: Evidence) {
        if self.evidence.len() < EVIDENCE_MAX && evidence.tells(self.setup.hz) {
            self.evidence.push(evidence);
        }
    }

    pub(super) fn add_service(&mut self, key: ServiceKey) {
        self.vips.insert(key.addr.ip);
        self.node.add_local(key.addr.ip);
    }

    fn packet(
        &mut self,
        event: &Event,
        packet: &Packet,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.report.packets += 1;
        let segment = match &packet.content {
            Content::Segment { segment, .. } => *segment,
            Content::Icmp { .. } => {
                self.report
                    .not_checked("ICMP error that no packet before it explains");
                return Ok(());
            }
            Content::Skipped(why) => {
                self.report.not_checked(why);
                return Ok(());
            }
        };
        let Tuple { src, dst, .. } = segment.tuple;
        if self.foreign.contains(&src) || self.foreign.contains(&dst) {
            self.report
                .not_checked("packet of a service that is not modelled");
            return Ok(());
        }
        let inward = self.vips.contains(&dst.ip);
        let outward = self.servers.contains(&src);
        if !inward && !outward {
            let ours = self.vips.contains(&src.ip) || self.servers.contains(&dst);
            self.report.not_checked(if ours {
                "packet that left without having been seen to enter"
            } else {
                "packet of no known service"
            });
            return Ok(());
        }
        let servers = &self.servers;
        let local = inward || self.own.contains(&dst.ip);
        let seen = ahead.exit_of(packet, &segment, (inward, local), |end| {
            servers.contains(&end)
        })?;
        self.node.advance(self.now);
        let met = self.met(&segment, inward);
        let decision = self.decide_in_crowd(event, &segment, inward, seen, ahead)?;
        self.cover(met, &segment, &decision);
        self.judge(event, &segment, inward, &decision, seen);
        Ok(())
    }

    /// Runs the model. A full conntrack table sacrifices an entry if its search meets one that is not assured; where it
    /// searches depends on the node's hash seed, so the next listing tells which one it was, if any.
    fn decide_in_crowd(
        &mut self,
        event: &Event,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<Decision, ReadError> {
        let max = self.setup.sysctls.ct.max as usize;
        if self.node.ct.count() as usize + self.tracked.len() / 2 + 1 < max {
            return Ok(self.decide(segment, inward, seen));
        }
        let before = (self.node.clone(), self.schedulers.clone());
        let told = (self.armed.clone(), self.told.clone());
        let decision = self.decide(segment, inward, seen);
        let full = decision.rule == Rule::Conntrack(CtRule::TableFull);
        if !full && matches!(compare(&decision, seen), Match::Yes) {
            return Ok(decision);
        }
        let Some(listed) = ahead.listed_next(event.at)? else {
            return Ok(decision);
        };
        let now = self.jiffies();
        let alive =
            |entry: &&CtEntry| entry.status.has(Status::CONFIRMED) && !entry.is_expired(now);
        let entries = before.0.ct.iter().map(|(_, entry)| entry);
        let alive = entries.filter(alive).collect::<Vec<_>>();
        let victims = alive
            .iter()
            .filter(|entry| !entry.status.has(Status::ASSURED) && !listed.contains(&entry.orig));
        let victims = victims.map(|entry| entry.orig).collect::<Vec<_>>();
        // Expired entries count until the collector comes by or somebody lists the table.
        let lapsed = self
            .tracked
            .values()
            .filter(|deadline| **deadline <= now)
            .count()
            / 2;
        let may_be_full = lapsed > 0 && alive.len() + lapsed >= max;
        if victims.is_empty() && !(full || may_be_full && seen == Seen::Nothing) {
            return Ok(decision);
        }
        if full && victims.is_empty() && seen == Seen::Nothing {
            return Ok(decision);
        }
        (self.node, self.schedulers) = before;
        (self.armed, self.told) = told;
        if !victims.is_empty() {
            for victim in victims {
                self.node.ct.delete_tuple(now, &victim);
            }
            self.report.not_checked(SACRIFICED);
        } else if full {
            self.node.ct.delete_expired(now);
            self.report.not_checked(COLLECTOR);
        } else {
            self.report.not_checked(COLLECTOR);
            return Ok(Decision {
                verdict: Verdict::Drop,
                rule: Rule::Conntrack(CtRule::TableFull),
                ct: Some(CtRule::TableFull),
                entry: None,
            });
        }
        Ok(self.decide(segment, inward, seen))
    }

    /// Runs the model. Where it is in doubt about something that no capture shows, what the node did decides.
    fn decide(&mut self, segment: &Segment, inward: bool, seen: Seen) -> Decision {
        self.node.advance(self.now);
        let doubt = self.doubt(segment, inward);
        let before = doubt.map(|_| (self.node.clone(), self.schedulers.clone()));
        let found = self.entry_of(segment, inward);
        let mut decision = self.run_packet(segment, inward, seen);
        if let (Some(doubt), Some((node, schedulers))) = (doubt, before)
            && !matches!(compare(&decision, seen), Match::Yes)
            && !matches!(seen, Seen::TooEarly)
        {
            let undo = std::mem::replace(&mut self.node, node);
            let undo_schedulers = std::mem::replace(&mut self.schedulers, schedulers);
            self.flip(&doubt);
            let other = self.run_packet(segment, inward, seen);
            if matches!(compare(&other, seen), Match::Yes) {
                self.report
                    .not_checked("death of an entry inside the timer granule");
                let (at, armed, ticks) = (self.now, doubt.armed.at, doubt.armed.ticks);
                self.learn(Evidence::Fired {
                    armed,
                    ticks,
                    at,
                    fired: doubt.alive,
                });
                decision = other;
            } else {
                self.node = undo;
                self.schedulers = undo_schedulers;
            }
        }
        let decision = self.collector(segment, inward, seen, decision);
        self.remember(segment, &decision, found);
        decision
    }

    /// An expired conntrack entry holds its tuples until the collector comes by: when that was, no capture
    /// shows. A new entry that clashes with one is dropped, or not.
    fn collector(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        decision: Decision,
    ) -> Decision {
        let now = self.jiffies();
        let why = COLLECTOR;
        match (decision.rule, decision.verdict, seen) {
            (Rule::Conntrack(CtRule::Clash), Verdict::Drop, Seen::Left(left)) => {
                for tuple in [segment.tuple, left.tuple, left.tuple.reversed()] {
                    // Looking an expired entry up deletes it.
                    self.node.ct.find(now, &tuple);
                }
                let again = self.run_packet(segment, inward, seen);
                if matches!(compare(&again, seen), Match::Yes) {
                    self.report.not_checked(why);
                    return again;
                }
                decision
            }
            (_, Verdict::Forward(out), Seen::Nothing)
                if made_entry(decision.ct) && self.lapsed_lately(&out.tuple) =>
            {
                self.node.ct.delete_tuple(now, &segment.tuple);
                self.node.ct.delete_tuple(now, &out.tuple);
                self.report.not_checked(why);
                Decision {
                    verdict: Verdict::Drop,
                    rule: Rule::Conntrack(CtRule::Clash),
                    ..decision
                }
            }
            _ => decision,
        }
    }

    /// Whether a conntrack entry that owned the tuple, in either direction, has expired less than a collector's
    /// round ago.
    fn lapsed_lately(&self, tuple: &Tuple) -> bool {
        [*tuple, tuple.reversed()].iter().any(|tuple| {
            self.tracked.get(tuple).is_some_and(|deadline| {
                *deadline <= self.jiffies()
                    && deadline.until(self.jiffies()) < self.clock.ticks(COLLECTOR_MAX_S)
            })
        })
    }

    /// Remembers until when the conntrack entries live. After a whole listing no expired one is left.
    pub(super) fn note_tracked(&mut self, listed: bool) {
        let now = self.jiffies();
        let round = if listed {
            0
        } else {
            self.clock.ticks(COLLECTOR_MAX_S)
        };
        self.tracked.retain(|_, deadline| *deadline + round > now);
        let entries = self
            .node
            .ct
            .iter()
            .filter(|(_, e)| e.status.has(Status::CONFIRMED));
        for (_, entry) in entries {
            self.tracked.insert(entry.orig, entry.deadline);
            self.tracked.insert(entry.reply, entry.deadline);
        }
    }

    /// The entry that a packet would follow, by its client's tuple.
    fn entry_of(&self, segment: &Segment, inward: bool) -> Option<(Tuple, Endpoint)> {
        let table = self.node.ipvs.table();
        let dests = self.node.ipvs.dests();
        let id = if inward {
            table.find_in(&segment.tuple)
        } else {
            table.find_out(&segment.tuple, |dest| dests.get(dest).addr)
        }?;
        let entry = table.get(id);
        Some((entry.tuple(), dests.get(entry.dest()).addr))
    }

    /// Notes how the entry's timer was armed, and which entry was told to go.
    fn remember(
        &mut self,
        segment: &Segment,
        decision: &Decision,
        found: Option<(Tuple, Endpoint)>,
    ) {
        if let Rule::Ipvs(
            IpvsRule::DroppedWeightZero
            | IpvsRule::DroppedReuse
            | IpvsRule::DroppedDeleted
            | IpvsRule::RescheduledWeightZero
            | IpvsRule::RescheduledReuse
            | IpvsRule::RescheduledDeleted,
        ) = decision.rule
            && let Some((tuple, dest)) = found
        {
            self.armed.remove(&tuple);
            self.told.push(Told {
                tuple,
                dest,
                at: self.now,
            });
        }
        if matches!(decision.ct, Some(CtRule::NewSyn | CtRule::Reopened)) {
            self.adopted.remove(&segment.tuple);
        }
        if let Some(id) = decision.entry {
            self.note_armed(id, self.now);
        }
    }

    pub(super) fn note_armed(&mut self, id: ipvs_model::ipvs::table::EntryId, at: Instant) {
        let entry = self.node.ipvs.table().get(id);
        let armed = Armed {
            at,
            ticks: u64::from(entry.timeout_ticks()),
            expires: entry.expires(),
            dest: self.node.ipvs.dests().get(entry.dest()).addr,
            state: entry.state(),
        };
        self.armed.insert(entry.tuple(), armed);
    }

    /// Gives the packet to the model; a scheduler of unknown state takes one that fits what the node did.
    fn run_packet(&mut self, segment: &Segment, inward: bool, seen: Seen) -> Decision {
        let key = ServiceKey {
            proto: segment.tuple.proto,
            addr: segment.tuple.dst,
        };
        let mut drawn = Drawn::of(seen);
        let policy = drawn.policy(segment, inward, self.setup.null_binding());
        if let SourceNat::Masquerade { ip, .. } = policy
            && self.own.insert(ip)
        {
            self.node.add_local(ip);
        }
        self.node.set_source_nat(policy);
        let possible = self.schedulers.get(&key).filter(|_| inward).cloned();
        let Some(possible) = possible else {
            return self.node.packet(self.now, segment, &mut drawn);
        };
        let wanted = match seen {
            Seen::Left(left) => Some(left.tuple.dst),
            _ => None,
        };
        // Each state with the choice that it would lead to, and the state after it.
        let choices = possible.iter().map(|before| {
            let mut after = before.clone();
            let pick = self
                .node
                .ipvs
                .would_pick(key, &mut after, segment.tuple.src);
            (before.clone(), pick, after)
        });
        let choices = choices.collect::<Vec<_>>();
        let fitting = choices.iter().filter(|(_, pick, _)| *pick == wanted);
        let fitting = fitting.cloned().collect::<Vec<_>>();
        let chosen = fitting.first().or(choices.first()).cloned();
        if let Some((before, ..)) = &chosen {
            self.node.ipvs.set_scheduler(key, before.clone());
        }
        let decision = self.node.packet(self.now, segment, &mut drawn);
        let moved = matches!(decision.rule, Rule::Ipvs(rule) if rule.schedules());
        if moved {
            let known = if fitting.is_empty() { choices } else { fitting };
            let mut after = Vec::new();
            for (_, _, state) in known {
                if !after.contains(&state) {
                    after.push(state);
                }
            }
            if let [only] = &after[..] {
                self.node.ipvs.set_scheduler(key, only.clone());
                self.schedulers.remove(&key);
            } else {
                self.schedulers.insert(key, after);
            }
            if wanted.is_some() {
                self.report
                    .not_checked("choice of a scheduler whose state is not known yet");
            }
        }
        decision
    }

    fn judge(
        &mut self,
        event: &Event,
        segment: &Segment,
        inward: bool,
        decision: &Decision,
        seen: Seen,
    ) {
        let client = if inward {
            segment.tuple.src
        } else {
            segment.tuple.dst
        };
        let outcome = compare(decision, seen);
        let rule = decision.rule;
        *self.report.rules.entry(format!("{rule:?}")).or_default() += 1;
        match outcome {
            Match::Yes => self.report.verdicts += 1,
            Match::Unknown(why) => self.report.not_checked(why),
            Match::No(class) => self.disagree(event, segment, client, decision, seen, class),
        }
        let text = format!("{segment}: {}", seen_text(seen));
        self.past.push_back(Past {
            at: event.at,
            client,
            text,
            rule,
        });
        if self.past.len() > HISTORY {
            self.past.pop_front();
        }
    }

    fn disagree(
        &mut self,
        event: &Event,
        segment: &Segment,
        client: Endpoint,
        decision: &Decision,
        seen: Seen,
        class: Class,
    ) {
        let tuple = self.client_tuple(segment, client);
        if self.adopted.contains(&tuple) {
            self.report.not_checked(
                "packet of a connection older than the capture, or taken from a listing",
            );
        } else if self.spoilt.iter().any(|spoilt| spoilt.contains(&tuple)) {
            self.report.not_checked(
                "packet after a divergence of its connection, before the next listing",
            );
        } else {
            self.report.verdicts += 1;
            let model = verdict_text(&decision.verdict);
            let text = rule_text(decision);
            let node = seen_text(seen);
            self.diverged(event, class, tuple, segment.to_string(), model, node, text);
        }
        for spoilt in &mut self.spoilt {
            spoilt.insert(tuple);
        }
        // The scheduler's place is doubtful after a wrong choice.
        if let Seen::Left(left) = seen {
            let key = ServiceKey {
                proto: tuple.proto,
                addr: tuple.dst,
            };
            let states = self.node.ipvs.possible_schedulers(key);
            if states.len() > 1 && self.servers.contains(&left.tuple.dst) {
                self.schedulers.insert(key, states);
            }
        }
    }

    /// The tuple by which a connection is known: the client's packets to the virtual service.
    fn client_tuple(&self, segment: &Segment, client: Endpoint) -> Tuple {
        if segment.tuple.src == client {
            return segment.tuple;
        }
        let from_entry = self.entry_of(segment, false).map(|(tuple, _)| tuple);
        from_entry.unwrap_or_else(|| segment.tuple.reversed())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a divergence has many circumstances"
    )]
    pub(super) fn diverged(
        &mut self,
        event: &Event,
        class: Class,
        tuple: Tuple,
        subject: String,
        model: String,
        node: String,
        rule: String,
    ) {
        let mine = self.past.iter().filter(|past| past.client == tuple.src);
        let mut before = mine
            .rev()
            .take(SHOWN_BEFORE)
            .map(|past| format!("{}  {}", past.at, past.text))
            .collect::<Vec<_>>();
        before.reverse();
        self.report.diverged(Divergence {
            at: event.at,
            file: event.file.clone(),
            place: event.place,
            class,
            subject,
            model,
            node,
            rule,
            before,
        });
    }

    /// The rule that decided last on a client's packets.
    pub(super) fn last_rule(&self, client: Endpoint) -> String {
        self.past
            .iter()
            .rev()
            .find(|past| past.client == client)
            .map_or_else(String::new, |past| {
                format!("{:?}: {}", past.rule, past.rule.describe())
            })
    }
}

/// A doubt about an entry whose deadline has passed: whether its timer has fired.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub tuple: Tuple,
    pub armed: Armed,
    /// What the model believes.
    pub alive: bool,
}

impl Replay<'_> {
    /// Whether the packet meets an entry, or the place of one, whose timer may or may not have fired.
    fn doubt(&self, segment: &Segment, inward: bool) -> Option<Doubt> {
        if let Some((tuple, _)) = self.entry_of(segment, inward) {
            let armed = *self.armed.get(&tuple)?;
            return (armed.expires <= self.jiffies()).then_some(Doubt {
                tuple,
                armed,
                alive: true,
            });
        }
        let (tuple, armed) = if inward {
            (segment.tuple, *self.armed.get(&segment.tuple)?)
        } else {
            let mine = |(tuple, armed): &(&Tuple, &Armed)| {
                tuple.src == segment.tuple.dst && armed.dest == segment.tuple.src
            };
            let (tuple, armed) = self.armed.iter().find(mine)?;
            (*tuple, *armed)
        };
        self.may_live(&armed).then_some(Doubt {
            tuple,
            armed,
            alive: false,
        })
    }

    /// Whether an entry that the model has let go may still be there on a grid of another phase.
    pub(super) fn may_live(&self, armed: &Armed) -> bool {
        let latest = armed.expires + self.clock.lateness_max(armed.ticks) + 1;
        let slack = Span(self.setup.slack().0.min(1_000_000));
        self.jiffies() >= armed.expires && self.clock.jiffies(self.now - slack) <= latest
    }

    /// Lets the entry of a doubt die, or live again.
    pub(super) fn flip(&mut self, doubt: &Doubt) {
        if doubt.alive {
            if let Some(id) = self.node.ipvs.table().find_in(&doubt.tuple) {
                self.node.expire_entry(self.now, id);
            }
            return;
        }
        let listed = ipvs_model::ipvs::Listed {
            proto: doubt.tuple.proto,
            client: doubt.tuple.src,
            virt: doubt.tuple.dst,
            dest: doubt.armed.dest,
            state: doubt.armed.state,
            assured: false,
            left_ticks: 0,
        };
        self.node.ipvs.adopt(self.now, &listed);
    }
}

/// Whether the model's decision is what the node was seen to do.
fn compare(decision: &Decision, seen: Seen) -> Match {
    match (&decision.verdict, seen) {
        (_, Seen::TooEarly) => Match::Unknown("packet at the end of the capture"),
        (Verdict::Forward(out), Seen::Left(left)) if out.tuple == left.tuple => Match::Yes,
        (Verdict::Forward(out), Seen::Left(left)) if out.tuple.dst == left.tuple.dst => {
            Match::Unknown("source address and port chosen by NAT on the node")
        }
        (Verdict::Local { answer: None } | Verdict::Drop, Seen::Nothing) => Match::Yes,
        (
            Verdict::Local {
                answer: Some(answer),
            },
            Seen::Reset(reset),
        ) => {
            let same =
                |a: &Segment, b: &Segment| (a.flags, a.seq, a.ack) == (b.flags, b.seq, b.ack);
            if same(answer, &reset) {
                Match::Yes
            } else {
                Match::No(Class::Answer)
            }
        }
        (Verdict::Local { .. }, Seen::Nothing) => Match::No(Class::Answer),
        (Verdict::Reject(kind), Seen::Icmp(seen)) if *kind == seen => Match::Yes,
        (Verdict::Reject(_), Seen::Nothing) => {
            Match::Unknown("ICMP error that the node may have withheld by its rate limit")
        }
        _ => Match::No(Class::Verdict),
    }
}

/// Whether the packet made a conntrack entry, on its way in or, judged invalid there, on its way out.
const fn made_entry(ct: Option<CtRule>) -> bool {
    !matches!(
        ct,
        Some(CtRule::InWindow | CtRule::LiberalWindow | CtRule::SynRetransmitted)
    )
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Forward(out) => format!("forwarded as {}", out.tuple),
        Verdict::Local {
            answer: Some(answer),
        } => format!("taken by the node itself, which answers {answer}"),
        Verdict::Local { answer: None } => "taken by the node itself, without an answer".to_owned(),
        Verdict::Drop => "dropped".to_owned(),
        Verdict::Reject(kind) => format!("refused by ICMP ({kind:?})"),
    }
}

fn seen_text(seen: Seen) -> String {
    match seen {
        Seen::Left(left) => format!("forwarded as {}", left.tuple),
        Seen::Reset(answer) => format!("answered by the node: {answer}"),
        Seen::Icmp(kind) => format!("refused by ICMP ({kind:?})"),
        Seen::Nothing => "nothing left the node".to_owned(),
        Seen::TooEarly => "the capture ends".to_owned(),
    }
}

fn rule_text(decision: &Decision) -> String {
    let rule = decision.rule;
    let tracked = decision
        .ct
        .map_or_else(String::new, |ct| format!("; conntrack: {}", ct.describe()));
    format!("{rule:?}: {}{tracked}", rule.describe())
}
