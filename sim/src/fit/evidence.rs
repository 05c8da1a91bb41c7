//! What a recording tells of the node's rules: whether reused ports stayed with their old real server, and what
//! answered for pods that were gone.

use std::collections::BTreeMap;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::Span;

use super::conns::Conn;
use super::scan::Scan;
use super::tables::FromTables;
use crate::capture::Stamp;

/// A SYN without an answer for so long was not answered: longer than any way there and back.
const UNANSWERED: Span = Span::from_millis(900);
/// An ICMP error after so long is ARP that gave up; before, it is a route.
const ARP_GAVE_UP: Span = Span::from_secs(1);

/// What became of SYNs that no pod answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadEvidence {
    /// An RST came back.
    pub reset: u64,
    /// An ICMP error came at once.
    pub unreachable: u64,
    /// An ICMP error came after seconds.
    pub arp_failure: u64,
    /// Nothing came.
    pub silent: u64,
    /// Half-open entries of real servers that no rule has with a weight, from tables.
    pub half_open: u64,
    /// How long one of these had been without an answer, at most.
    pub waited: Span,
    told: BTreeMap<usize, Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Reset,
    Icmp(Span),
}

impl DeadEvidence {
    /// A connection's SYN was answered by an RST.
    pub(super) fn reset(&mut self, index: usize) {
        self.told.entry(index).or_insert(Told::Reset);
    }

    /// A connection's SYN was answered by an ICMP error.
    pub(super) fn icmp(&mut self, index: usize, after: Span) {
        self.told.entry(index).or_insert(Told::Icmp(after));
    }

    /// Counts, once all packets were seen.
    pub(super) fn settle<'c>(&mut self, conns: impl Iterator<Item = &'c Conn>, end: Stamp) {
        for (index, conn) in conns.enumerate() {
            if conn.answered || !conn.began {
                continue;
            }
            match self.told.get(&index) {
                Some(Told::Reset) => self.reset += 1,
                Some(Told::Icmp(after)) if *after >= ARP_GAVE_UP => self.arp_failure += 1,
                Some(Told::Icmp(_)) => self.unreachable += 1,
                None if end.since(conn.start) >= UNANSWERED => self.silent += 1,
                None => {}
            }
        }
        self.told.clear();
    }

    /// SYNs that packets show unanswered.
    pub const fn packets(&self) -> u64 {
        self.reset + self.unreachable + self.arp_failure + self.silent
    }
}

/// Half-open entries of real servers that no longer serve.
pub(super) fn dead_in_tables(
    tables: &FromTables,
    scan: &Scan,
    service: Endpoint,
    dead: &mut DeadEvidence,
) {
    for (real, waited) in &tables.half_open {
        if scan.serves(service, *real) == Some(false) {
            dead.half_open += 1;
            dead.waited = dead.waited.max(*waited);
        }
    }
}

/// What became of reused ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptEvidence {
    /// Ports reused while their entry lived.
    pub reuses: u64,
    /// Of these, those that stayed with their real server.
    pub same: u64,
    /// New connections that went to a real server without a weight or out of the rules: only a kept entry does that.
    pub to_drained: u64,
    /// An example of the last: the client, the real server, when.
    pub example: Option<(Endpoint, Endpoint, Stamp)>,
}

/// Looks at reused ports.
pub(super) fn kept(conns: &[Conn], scan: &Scan, service: Endpoint) -> KeptEvidence {
    let mut found = KeptEvidence::default();
    let drained = scan.rules_of(service).map(|(_, rules)| &rules.drained);
    for conn in conns {
        if let Some(reuse) = conn.reuse.filter(|reuse| reuse.idle < Span::from_secs(120)) {
            found.reuses += 1;
            found.same += u64::from(conn.real.is_some() && conn.real == reuse.real_before);
        }
        let Some(real) = conn.real.filter(|_| conn.began && !conn.answered) else {
            continue;
        };
        // It began after its real server had lost its weight; or that was never in the rules at all.
        let late = match drained.and_then(|drained| drained.get(&real)) {
            Some(at) => conn.start.0 > at.0 + Span::from_secs(1).0,
            None => scan.serves(service, real) == Some(false),
        };
        if late {
            found.to_drained += 1;
            found.example.get_or_insert((conn.client, real, conn.start));
        }
    }
    found
}
