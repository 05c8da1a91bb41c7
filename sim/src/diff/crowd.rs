//! A full conntrack table. It sacrifices an entry if its search meets one that is not assured; where it searches depends on
//! the node's hash seed. Where the tables are listed right after the packet, the listing tells which one it was, if any:
//! the model is told, and says itself whether and when it had to.

use std::collections::BTreeSet;

use ipvs_model::conntrack::{CtEntry, Status};
use ipvs_model::node::Decision;
use ipvs_model::segment::{Segment, Tuple};

use super::ahead::{Ahead, Seen};
use super::replay::Replay;
use crate::capture::{Event, ReadError};

const SACRIFICED: &str =
    "entry that a full conntrack table sacrificed: the node's hash seed chose it";

impl Replay<'_> {
    /// Runs the model; around a full table, with the entries that the next listing lacks as those that may have to go.
    pub(super) fn decide_in_crowd(
        &mut self,
        event: &Event,
        segment: &Segment,
        (inward, seen): (bool, Seen),
        ahead: &mut Ahead,
    ) -> Result<Decision, ReadError> {
        if !self.counted || self.node.ct.count() + 1 < self.sysctls.ct.max {
            return self.decide(segment, inward, seen, ahead);
        }
        let victims = ahead
            .listed_next(event.at)?
            .map_or_else(Vec::new, |listed| self.unlisted_victims(&listed));
        let foretold = victims.len();
        self.node.ct.foretell_sacrifice(victims);
        let decision = self.decide(segment, inward, seen, ahead)?;
        for _ in self.node.ct.spared()..foretold {
            self.report.not_checked(SACRIFICED);
        }
        self.node.ct.foretell_sacrifice(Vec::new());
        Ok(decision)
    }

    /// Entries that may be sacrificed and that a listing lacks.
    fn unlisted_victims(&self, listed: &BTreeSet<Tuple>) -> Vec<Tuple> {
        let now = self.jiffies();
        let may_go = |entry: &&CtEntry| {
            entry.status.has(Status::CONFIRMED)
                && !entry.status.has(Status::ASSURED)
                && !entry.is_expired(now)
                && !listed.contains(&entry.orig())
        };
        let entries = self.node.ct.iter().map(|(_, entry)| entry);
        entries.filter(may_go).map(|entry| entry.orig()).collect()
    }
}
