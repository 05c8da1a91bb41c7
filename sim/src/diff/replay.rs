//! The model runs beside the node: every packet and every rule goes in, what comes out is compared.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipvs_model::conntrack::CtRule;
use ipvs_model::icmp::IcmpLimiter;
use ipvs_model::ipvs::Rule as IpvsRule;
use ipvs_model::ipvs::sched::Scheduler;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::node::{Decision, Node, Rule};
use ipvs_model::segment::{Endpoint, Flags, Segment, Tuple};
use ipvs_model::sysctl::Sysctls;
use ipvs_model::time::{Clock, Instant, Jiffies, Span};

use super::ahead::{Ahead, Seen};
use super::dead::SILENT;
use super::drawn::Drawn;
use super::phase::Evidence;
use super::report::Report;
use super::setup::Setup;
use super::verdict::{Match, compare};
use crate::capture::{Body, Content, Event, Packet, ReadError, RulesBlock, Stamp};

/// The place of the IPVS table in pairs of tables.
pub(super) const IPVS: usize = 0;
/// The place of the conntrack table.
pub(super) const CT: usize = 1;
/// Packets between two rounds of forgetting.
const FORGET_EVERY: u64 = 65_536;
/// Observations of timers that are kept for finding the node's tick grid.
const EVIDENCE_MAX: usize = 20_000;

/// Why nothing is said of what a change of the rules explains.
pub(super) const CHANGE_OF_RULES: &str =
    "moment of a change of the rules, which the next listing shows";

/// A change of the rules is looked for in the listing that follows within this.
pub(super) const LISTING_MAX: Span = Span::from_secs(2);

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

/// One packet of the recent past.
#[derive(Clone, Copy)]
pub(super) struct Past {
    pub at: Stamp,
    pub client: Endpoint,
    pub segment: Segment,
    pub seen: Seen,
    pub rule: Rule,
}

/// One run of the model beside a capture.
pub(super) struct Replay<'a> {
    pub setup: &'a Setup,
    pub node: Node,
    /// As they are now; `setup` has those of the beginning.
    pub sysctls: Sysctls,
    /// How many ICMP errors the node may send.
    pub icmp: IcmpLimiter,
    pub clock: Clock,
    pub report: Report,
    pub evidence: Vec<Evidence>,
    pub armed: BTreeMap<Tuple, Armed>,
    pub told: Vec<Told>,
    /// Addresses that are or were real servers.
    pub servers: BTreeSet<Endpoint>,
    vips: BTreeSet<Ipv4Addr>,
    /// Virtual services that are or were there.
    pub services: BTreeSet<ServiceKey>,
    /// Of them, those that a packet was seen for.
    pub spoken: BTreeSet<ServiceKey>,
    /// Other addresses of the node, as masquerading shows them.
    own: BTreeSet<Ipv4Addr>,
    /// The recording counts the conntrack entries before each packet: what the collector did is known.
    pub counted: bool,
    /// The node before the last count, and the count, if the collector had taken some of what had expired by then, until
    /// the next packet.
    pub partly: Option<Box<(Node, u32)>>,
    /// A look-up met an expired conntrack entry in its bucket, once.
    pub met_in_bucket: bool,
    /// The conntrack table was full since it was listed.
    pub full: bool,
    /// Clients' tuples whose conntrack or IPVS entry was taken from a listing: not all of it is known.
    pub adopted: BTreeSet<Tuple>,
    /// Clients' tuples that diverged since the last listing of each table: what follows is not a new fault.
    pub spoilt: [BTreeSet<Tuple>; 2],
    /// Real servers that a listing lacked, and when it was: they may have been deleted some time before.
    pub unlisted: Vec<(ServiceKey, Endpoint, Instant)>,
    /// Services whose scheduler may be in any of several states.
    pub schedulers: BTreeMap<ServiceKey, Vec<Scheduler>>,
    /// Which tables have been listed at least once.
    pub listed: [bool; 2],
    /// The clock was set: the next listing of each table is taken over without complaint.
    pub take_over: [bool; 2],
    /// Conversations with real servers that ask no service, with their last packet.
    pub direct: BTreeMap<(Endpoint, Endpoint), Instant>,
    /// Real servers, with their services, that have connections of which no packet is seen to enter.
    pub uncounted: BTreeSet<(ServiceKey, Endpoint)>,
    /// Real servers whose neighbour entry fails.
    pub silent: BTreeSet<Ipv4Addr>,
    /// Services that the model has no place for.
    pub foreign: BTreeSet<Endpoint>,
    /// Tuples of conntrack entries, in both directions, with their deadlines.
    pub tracked: BTreeMap<Tuple, Jiffies>,
    /// How often each rule decided.
    pub rules: BTreeMap<Rule, u64>,
    pub past: VecDeque<Past>,
    /// The time of the listing of rules whose real servers were taken note of ahead.
    met: Stamp,
    origin: Stamp,
    now: Instant,
}

impl<'a> Replay<'a> {
    pub(super) fn new(setup: &'a Setup, clock: Clock) -> Self {
        Self {
            setup,
            node: Node::new(setup.node_config(clock)),
            sysctls: setup.sysctls,
            icmp: IcmpLimiter::new(setup.behaviours, clock, setup.sysctls.icmp),
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
            services: BTreeSet::new(),
            spoken: BTreeSet::new(),
            own: BTreeSet::new(),
            counted: false,
            partly: None,
            met_in_bucket: false,
            full: false,
            adopted: BTreeSet::new(),
            spoilt: [BTreeSet::new(), BTreeSet::new()],
            unlisted: Vec::new(),
            schedulers: BTreeMap::new(),
            listed: [false; 2],
            take_over: [false; 2],
            direct: BTreeMap::new(),
            uncounted: BTreeSet::new(),
            silent: BTreeSet::new(),
            foreign: BTreeSet::new(),
            tracked: BTreeMap::new(),
            rules: BTreeMap::new(),
            past: VecDeque::new(),
            met: Stamp(0),
            origin: setup.origin,
            now: Instant::ZERO,
        }
    }

    /// Takes the capture from its beginning to its end, or to a moment.
    pub(super) fn run(&mut self, ahead: &mut Ahead, until: Option<Stamp>) -> Result<(), ReadError> {
        while let Some(event) = ahead.next()? {
            if until.is_some_and(|until| event.at > until) {
                break;
            }
            if ahead
                .events()
                .broken_off()
                .is_some_and(|end| event.at > end)
            {
                self.report.not_checked(
                    "what the capture shows after the end of its packets or its rules, which broke off",
                );
                continue;
            }
            self.tell_time(&event);
            match &event.body {
                Body::Packet(packet) => self.packet(&event, packet, ahead)?,
                Body::Rules(block) => self.rules(&event, block),
                Body::Sysctls(rows) => self.take_sysctls(&event, rows),
                Body::Ipvs(table) => self.ipvs_table(&event, table, ahead)?,
                Body::Conntrack(table) => self.ct_table(&event, table, ahead)?,
                Body::ConntrackEvent(change) => self.ct_event(&event, change, ahead)?,
                Body::Pods(_) | Body::Endpoints(_) => {}
            }
        }
        let rules = self
            .rules
            .iter()
            .map(|(rule, count)| (format!("{rule:?}"), *count));
        self.report.rules = rules.collect();
        Ok(())
    }

    /// The present moment on the node's clock.
    pub(super) const fn stamp(&self) -> Stamp {
        Stamp(self.origin.0.saturating_add(self.now.0))
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
        self.now = self.now.max(event.at.after(self.origin));
    }

    pub(super) fn learn(&mut self, evidence: Evidence) {
        if self.evidence.len() < EVIDENCE_MAX && evidence.tells(self.setup.hz) {
            self.evidence.push(evidence);
        }
    }

    /// Whether the capture may lack a service's packets, because it was taken of others: none of its own has been seen.
    pub(super) fn is_unspoken(&self, key: ServiceKey) -> bool {
        let invalid = key.addr.port == u16::MAX;
        !self.setup.exact && !invalid && !self.spoken.contains(&key)
    }

    pub(super) fn add_service(&mut self, key: ServiceKey) {
        self.vips.insert(key.addr.ip);
        self.services.insert(key);
        self.node.add_local(key.addr.ip);
    }

    fn packet(
        &mut self,
        event: &Event,
        packet: &Packet,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.report.packets += 1;
        self.meet_servers(ahead)?;
        if self.report.packets.is_multiple_of(FORGET_EVERY) {
            self.forget_dead();
        }
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
        // A reply to a masqueraded connection is addressed to the node, which may be the virtual address too.
        let outward = self.servers.contains(&src);
        let key = ServiceKey {
            proto: segment.tuple.proto,
            addr: dst,
        };
        let to_service = self.node.ipvs.service(key).is_some();
        if to_service {
            self.spoken.insert(key);
        }
        let to_node = self.vips.contains(&dst.ip) || self.own.contains(&dst.ip);
        let inward = to_service || to_node && !outward;
        if !inward && !outward {
            return self.unexplained(event, &segment, ahead);
        }
        if outward && !to_node && self.is_direct(&segment) {
            return Ok(());
        }
        let servers = &self.servers;
        let seen = ahead.exit_of(packet, &segment, (inward, to_node), |end| {
            servers.contains(&end)
        })?;
        self.note_own_address(&segment, inward, seen);
        self.node.advance(self.now);
        self.learn_of_routes(&segment, inward, seen);
        let meets = self.meets(&segment, inward);
        let decision = self.decide_in_crowd(event, &segment, (inward, seen), ahead)?;
        self.cover(meets, &segment, &decision);
        self.judge(event, &segment, inward, &decision, seen);
        Ok(())
    }

    /// Lets go of what is remembered of entries that are long dead, so that memory follows the table and not the
    /// capture's length.
    fn forget_dead(&mut self) {
        let now = self.jiffies();
        let clock = self.clock;
        self.armed
            .retain(|_, armed| armed.expires + clock.lateness_max(armed.ticks) + 1 >= now);
        let recent = self.now - Span::from_secs(60);
        self.told.retain(|told| told.at >= recent);
        self.forget_direct();
    }

    /// An address with which the node masquerades is its own: what comes back to it and belongs to no connection
    /// is the node's to answer.
    fn note_own_address(&mut self, segment: &Segment, inward: bool, seen: Seen) {
        if let Seen::Left(left) = seen
            && inward
            && left.tuple.src.ip != segment.tuple.src.ip
            && self.own.insert(left.tuple.src.ip)
        {
            self.node.add_local(left.tuple.src.ip);
        }
    }

    /// Runs the model. Where it is in doubt about something that no capture shows, what the node did decides.
    pub(super) fn decide(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        ahead: &mut Ahead,
    ) -> Result<Decision, ReadError> {
        self.node.advance(self.now);
        self.full |= !self.counted && self.node.ct.count() >= self.sysctls.ct.max;
        let doubt = self.doubt(segment, inward);
        let rules = match doubt {
            None => self.rules_in_doubt(segment, inward, ahead)?,
            Some(_) => None,
        };
        // A copy of the tables costs as much as they are long: only where it may be needed.
        let in_doubt = doubt.is_some() || rules.is_some();
        let before = in_doubt.then(|| self.snapshot());
        let found = self.entry_of(segment, inward);
        let mut decision = match self.may_be_dead(found, inward, seen, ahead)? {
            true => self.run_where_dead(segment, inward, seen, ahead)?,
            false => self.run_with_its_port(segment, inward, seen),
        };
        let outcome = self.judge_silence(&decision, seen, compare(&decision, seen));
        if let Some(before) = before
            && !matches!(outcome, Match::Yes | Match::Unknown(SILENT))
            && !matches!(seen, Seen::TooEarly)
        {
            let undo = self.put(before);
            match (&doubt, &rules) {
                (Some(doubt), _) => self.flip(doubt),
                (None, Some(rules)) => self.rules_ahead(rules),
                (None, None) => {}
            }
            let other = self.run_packet(segment, inward, seen);
            if matches!(compare(&other, seen), Match::Yes) {
                if let Some(doubt) = doubt {
                    self.report
                        .not_checked("death of an entry inside the timer granule");
                    let (at, armed, ticks) = (self.now, doubt.armed.at, doubt.armed.ticks);
                    self.learn(Evidence::Fired {
                        armed,
                        ticks,
                        at,
                        fired: doubt.alive,
                    });
                } else {
                    self.report.not_checked(CHANGE_OF_RULES);
                }
                decision = other;
            } else {
                self.put(undo);
            }
        }
        let decision = self.collector(segment, inward, seen, decision);
        let decision = self.with_what_was_missed(segment, inward, seen, decision);
        self.remember(segment, &decision, found);
        Ok(decision)
    }

    /// Real servers of the next listing may get packets before it.
    fn meet_servers(&mut self, ahead: &mut Ahead) -> Result<(), ReadError> {
        let now = self.stamp();
        if let Some((at, block)) = ahead.rules_after(now, LISTING_MAX)?
            && at != self.met
        {
            self.met = at;
            for end in Self::listed_servers(block) {
                self.servers.insert(end);
            }
        }
        Ok(())
    }

    /// The state of the rules that the next listing shows, if it may already hold for this packet: nobody sees when
    /// between two listings a rule changes.
    fn rules_in_doubt(
        &self,
        segment: &Segment,
        inward: bool,
        ahead: &mut Ahead,
    ) -> Result<Option<RulesBlock>, ReadError> {
        let at = self.stamp();
        let Some((_, block)) = ahead.rules_after(at, LISTING_MAX)?.filter(|_| inward) else {
            return Ok(None);
        };
        let opens = segment.flags.has(Flags::SYN) && !segment.flags.has(Flags::ACK);
        let touched = opens
            || self
                .entry_of(segment, inward)
                .is_none_or(|(_, dest)| Self::listed_servers(block).all(|end| end != dest));
        let key = ServiceKey {
            proto: segment.tuple.proto,
            addr: segment.tuple.dst,
        };
        Ok((touched && self.differs(block, key)).then(|| block.clone()))
    }

    /// The entry that a packet would follow, by its client's tuple.
    pub(super) fn entry_of(&self, segment: &Segment, inward: bool) -> Option<(Tuple, Endpoint)> {
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
            self.untell(tuple, dest);
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
            let entry = self.node.ipvs.table().get(id);
            let dest = self.node.ipvs.dests().get(entry.dest()).addr;
            if found == Some((entry.tuple(), dest)) {
                // A packet within the tick starts the timer anew: the entry lives on.
                self.untell(entry.tuple(), dest);
            }
            self.note_armed(id, self.now);
        }
    }

    fn untell(&mut self, tuple: Tuple, dest: Endpoint) {
        self.told
            .retain(|told| (told.tuple, told.dest) != (tuple, dest));
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
    pub(super) fn run_packet(&mut self, segment: &Segment, inward: bool, seen: Seen) -> Decision {
        let key = ServiceKey {
            proto: segment.tuple.proto,
            addr: segment.tuple.dst,
        };
        let mut drawn = Drawn::of(seen);
        let policy = drawn.policy(segment, inward, self.setup.null_binding());
        self.node.set_source_nat(policy);
        let mut possible = self.schedulers.get(&key).filter(|_| inward).cloned();
        if self.setup.lossy && inward && possible.is_none() {
            // A connection that was missed has moved it on.
            let states = self.node.ipvs.possible_schedulers(key);
            possible = Some(states).filter(|states| states.len() > 1);
        }
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
}
