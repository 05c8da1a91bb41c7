//! What no capture shows, and what is done about it: whether an overdue timer has fired, whether the collector has
//! taken an expired conntrack entry, which entry a full table gave up. What the node did decides; it is counted.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipvs_model::conntrack::{CtEntry, CtRule, Status};
use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::sched::Scheduler;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::State;
use ipvs_model::node::{Decision, Node, Rule, Verdict};
use ipvs_model::segment::{Endpoint, Segment, Tuple};
use ipvs_model::time::Span;

use super::ahead::Seen;
use super::replay::{Armed, Replay};
use super::verdict::{Match, compare, made_entry};

/// The longest that an expired conntrack entry waits for the collector: a round of at most a minute, and the
/// minute's wait before it.
const COLLECTOR_MAX_S: u64 = 120;

/// Why nothing is said of a clash with an entry that has expired.
pub(super) const COLLECTED: &str =
    "expired conntrack entry that the collector may or may not have taken";
/// Why nothing is said of which expired entries were taken where their number is known.
pub(super) const WHICH_COLLECTED: &str = "expired conntrack entries, of which the collector had taken some: the count does not say which";
/// Why a packet passed in spite of an expired entry that nobody had collected.
pub(super) const SAME_BUCKET: &str = "expired conntrack entry in the bucket of a packet's look-up, which deleted it: the node's hash seed put it there";
/// Why nothing is said of entries that come and go in a full table.
pub(super) const WHICH_EVICTED: &str =
    "conntrack table full: which entry gives way is its hash's choice";

/// The model's node, and the states that schedulers may be in.
pub(super) type Snapshot = (Node, BTreeMap<ServiceKey, Vec<Scheduler>>);

/// A doubt about an entry whose deadline has passed: whether its timer has fired.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub tuple: Tuple,
    pub armed: Armed,
    /// What the model believes.
    pub alive: bool,
}

/// The tuples that the conntrack entry of a forwarded packet would have.
const fn owned(entered: &Segment, left: &Segment) -> [Tuple; 3] {
    [entered.tuple, left.tuple, left.tuple.reversed()]
}

impl Replay<'_> {
    /// Whether the packet meets an entry, or the place of one, whose timer may or may not have fired.
    pub(super) fn doubt(&self, segment: &Segment, inward: bool) -> Option<Doubt> {
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
            let client = Tuple {
                proto: segment.tuple.proto,
                src: segment.tuple.dst,
                dst: Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
            };
            let of_client = self.armed.range(client..);
            let mut of_client = of_client.take_while(|(tuple, _)| tuple.src == client.src);
            let (tuple, armed) = of_client.find(|(_, armed)| armed.dest == segment.tuple.src)?;
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
        self.jiffies() >= armed.expires && self.clock.jiffies(self.now() - slack) <= latest
    }

    /// Lets the entry of a doubt die, or live again.
    pub(super) fn flip(&mut self, doubt: &Doubt) {
        if doubt.alive {
            if let Some(id) = self.node.ipvs.table().find_in(&doubt.tuple) {
                self.node.expire_entry(self.now(), id);
            }
            return;
        }
        self.enter(&doubt.tuple, (doubt.armed.dest, doubt.armed.state), 0);
    }

    /// Gives the model the IPVS entry of a client's tuple to a real server, with so many ticks left.
    pub(super) fn enter(
        &mut self,
        client: &Tuple,
        (dest, state): (Endpoint, State),
        left_ticks: u64,
    ) {
        let listed = Listed {
            proto: client.proto,
            client: client.src,
            virt: client.dst,
            dest,
            state,
            assured: false,
            left_ticks,
        };
        self.node.ipvs.adopt(self.now(), &listed);
    }

    /// Runs the packet once more, with what was assumed of the tables meanwhile: the decision if that explains what the node
    /// did, which is counted as not checked.
    pub(super) fn explained(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        why: &'static str,
    ) -> Option<Decision> {
        let again = self.run_packet(segment, inward, seen);
        let explains = matches!(compare(&again, seen), Match::Yes);
        explains.then(|| {
            self.report.not_checked(why);
            again
        })
    }

    /// A copy of the model's state, which costs as much as the tables are long.
    pub(super) fn snapshot(&self) -> Snapshot {
        (self.node.clone(), self.schedulers.clone())
    }

    /// Puts the model into a state; the one that it was in.
    pub(super) fn put(&mut self, (node, schedulers): Snapshot) -> Snapshot {
        (
            std::mem::replace(&mut self.node, node),
            std::mem::replace(&mut self.schedulers, schedulers),
        )
    }

    /// [`Self::explained`] from an earlier state, in which something is assumed. If that explains nothing, nothing has changed.
    pub(super) fn explained_from(
        &mut self,
        before: Snapshot,
        assume: impl FnOnce(&mut Self) -> bool,
        (segment, inward, seen): (&Segment, bool, Seen),
        why: &'static str,
    ) -> Option<Decision> {
        let undo = self.put(before);
        let again = match assume(self) {
            true => self.explained(segment, inward, seen, why),
            false => None,
        };
        if again.is_none() {
            self.put(undo);
        }
        again
    }

    /// The same if a look-up has deleted these expired entries, which it met in its bucket. That is the hash seed's choice, and so
    /// rare that a second time in one recording is none.
    fn explained_by_bucket(
        &mut self,
        before: Snapshot,
        met: &[Tuple],
        packet: (&Segment, bool, Seen),
    ) -> Option<Decision> {
        let assume = |replay: &mut Self| {
            replay.look_up(met);
            true
        };
        let again = self.explained_from(before, assume, packet, SAME_BUCKET);
        self.met_in_bucket |= again.is_some();
        again
    }

    /// Looks tuples up in conntrack, which deletes the expired entries that have them.
    fn look_up(&mut self, tuples: &[Tuple]) {
        let now = self.jiffies();
        for tuple in tuples {
            self.node.ct.find(now, tuple);
        }
    }

    /// An expired conntrack entry holds its tuples until the collector comes by: when that was, no capture
    /// shows. A new entry that clashes with one is dropped, or not.
    pub(super) fn collector(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        decision: Decision,
    ) -> Decision {
        let now = self.jiffies();
        if self.counted {
            return match self.others_collected(segment, inward, seen, decision) {
                Some(again) => again,
                None => self.bucket(segment, inward, seen, decision),
            };
        }
        let why = COLLECTED;
        match (decision.rule, decision.verdict, seen) {
            (Rule::Conntrack(CtRule::Clash), Verdict::Drop, Seen::Left(left)) => {
                self.look_up(&owned(segment, &left));
                self.explained(segment, inward, seen, why)
                    .unwrap_or(decision)
            }
            (Rule::Conntrack(CtRule::TableFull), Verdict::Drop, _) if seen != Seen::Nothing => {
                self.make_room();
                let again = self.run_packet(segment, inward, seen);
                self.report.not_checked(WHICH_EVICTED);
                again
            }
            (_, Verdict::Forward(out), Seen::Nothing)
                if made_entry(decision.ct)
                    && !self.silent.contains(&out.tuple.dst.ip)
                    && self.lapsed_lately(&out.tuple) =>
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

    /// A count says how many expired entries the collector had taken, not which: a scan stops and goes on elsewhere. The
    /// decision with others taken, if what the node did is only explained by that.
    fn others_collected(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        decision: Decision,
    ) -> Option<Decision> {
        let (before, count) = *self.partly.take()?;
        // Those that it turns on are taken before all others, or after.
        let (tuples, turn) = match (decision.rule, decision.verdict, seen) {
            (Rule::Conntrack(CtRule::Clash), Verdict::Drop, Seen::Left(left)) => {
                (owned(segment, &left), 0)
            }
            (_, Verdict::Forward(out), Seen::Nothing) if made_entry(decision.ct) => {
                (owned(segment, &out), 2)
            }
            (_, Verdict::Forward(out), Seen::Left(left))
                if made_entry(decision.ct) && out.tuple.src != left.tuple.src =>
            {
                (owned(segment, &left), 0)
            }
            _ => return None,
        };
        // Masquerading gives a source the port that it has in another entry (`find_appropriate_src`).
        let masquerades = matches!(decision.verdict, Verdict::Forward(_)) && turn == 0;
        let order = |entry: &CtEntry| {
            let meant = tuples.contains(&entry.orig())
                || tuples.contains(&entry.reply())
                || masquerades && entry.orig().src == segment.tuple.src;
            if meant { turn } else { 1 }
        };
        let before = (before, self.schedulers.clone());
        let assume = |replay: &mut Self| {
            let now = replay.jiffies();
            replay.node.ct.collect_to(now, count, order).is_ok()
        };
        self.explained_from(before, assume, (segment, inward, seen), WHICH_COLLECTED)
    }

    /// A look-up deletes every expired entry that it meets in its bucket, whatever its tuple (`____nf_conntrack_find`).
    fn bucket(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
        decision: Decision,
    ) -> Decision {
        if decision.verdict != Verdict::Drop || self.met_in_bucket {
            return decision;
        }
        // A full table's drop may have been any packet that makes an entry, of one that the node answers itself too.
        let met = match (decision.rule, seen) {
            (Rule::Conntrack(CtRule::Clash), Seen::Left(left)) => owned(segment, &left).to_vec(),
            (
                Rule::Conntrack(CtRule::TableFull),
                Seen::Left(_) | Seen::Reset(_) | Seen::Icmp(_),
            ) => self.expired().take(1).collect(),
            _ => return decision,
        };
        let before = self.snapshot();
        self.explained_by_bucket(before, &met, (segment, inward, seen))
            .unwrap_or(decision)
    }

    /// Runs the packet. Masquerading gives a source the port that it has in another entry (`find_appropriate_src`), unless a
    /// look-up has met that one, expired, in its bucket.
    pub(super) fn run_with_its_port(
        &mut self,
        segment: &Segment,
        inward: bool,
        seen: Seen,
    ) -> Decision {
        let lost = self.of_lost_port(segment, inward, seen);
        if lost.is_empty() {
            return self.run_packet(segment, inward, seen);
        }
        let before = self.snapshot();
        let decision = self.run_packet(segment, inward, seen);
        if matches!(compare(&decision, seen), Match::Yes) {
            return decision;
        }
        self.explained_by_bucket(before, &lost, (segment, inward, seen))
            .unwrap_or(decision)
    }

    /// Expired entries of the packet's source with another port than the one it left with. Where the count leaves open which
    /// entries were collected, that is asked first ([`Self::others_collected`]).
    fn of_lost_port(&self, segment: &Segment, inward: bool, seen: Seen) -> Vec<Tuple> {
        let Seen::Left(left) = seen else {
            return Vec::new();
        };
        let (from, to) = (segment.tuple.src, left.tuple.src);
        let asked = self.counted && self.partly.is_none() && !self.met_in_bucket;
        if !asked || !inward || from.ip == to.ip {
            return Vec::new();
        }
        let now = self.jiffies();
        let entries = self.node.ct.iter().map(|(_, entry)| entry);
        let lost = entries.filter(|entry| {
            let source = entry.reply().dst;
            entry.is_expired(now)
                && entry.orig().src == from
                && source.ip == to.ip
                && source.port != to.port
        });
        lost.map(CtEntry::orig).collect()
    }

    /// Expired conntrack entries that are still there.
    pub(super) fn expired(&self) -> impl Iterator<Item = Tuple> + '_ {
        let now = self.jiffies();
        let expired = self.node.ct.iter().filter(move |(_, e)| e.is_expired(now));
        expired.map(|(_, entry)| entry.orig())
    }

    /// Frees a place in the conntrack table: which entry a full table gives up is its hash's choice.
    fn make_room(&mut self) {
        let now = self.jiffies();
        let expired = self.expired().collect::<Vec<_>>();
        self.look_up(&expired);
        if expired.is_empty() {
            let unassured = |e: &CtEntry| !e.status.has(Status::ASSURED);
            let victim = self
                .node
                .ct
                .iter()
                .find(|(_, e)| unassured(e))
                .map(|(_, e)| e.orig());
            if let Some(tuple) = victim {
                self.node.ct.delete_tuple(now, &tuple);
            }
        }
    }

    /// Whether a conntrack entry that owned the tuple, in either direction, has expired less than a collector's
    /// round ago.
    pub(super) fn lapsed_lately(&self, tuple: &Tuple) -> bool {
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
            self.tracked.insert(entry.orig(), entry.deadline);
            self.tracked.insert(entry.reply(), entry.deadline);
        }
    }
}
