//! A full conntrack table. It sacrifices an entry if its search meets one that is not assured; where it searches depends on
//! the node's hash seed. Where the tables are listed right after the packet, the listing tells which one it was, if any.

use ipvs_model::conntrack::{CtEntry, CtRule, Status};
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::Segment;

use super::ahead::{Ahead, Seen};
use super::doubt::COLLECTED;
use super::replay::Replay;
use super::verdict::{Match, compare};
use crate::capture::{Event, ReadError};

const SACRIFICED: &str =
    "entry that a full conntrack table sacrificed: the node's hash seed chose it";

impl Replay<'_> {
    /// Runs the model; around a full table, with the entries that the next listing lacks out of the way.
    pub(super) fn decide_in_crowd(
        &mut self,
        event: &Event,
        segment: &Segment,
        (inward, seen): (bool, Seen),
        ahead: &mut Ahead,
    ) -> Result<Decision, ReadError> {
        let max = self.setup.sysctls.ct.max as usize;
        let most = self.node.ct.count() as usize + self.tracked.len() / 2 + 1;
        if !self.setup.exact || most < max {
            return self.decide(segment, inward, seen, ahead);
        }
        let Some(listed) = ahead.listed_next(event.at)? else {
            return self.decide(segment, inward, seen, ahead);
        };
        let before = (self.node.clone(), self.schedulers.clone());
        let told = (self.armed.clone(), self.told.clone());
        let decision = self.decide(segment, inward, seen, ahead)?;
        let full = decision.rule == Rule::Conntrack(CtRule::TableFull);
        if !full && matches!(compare(&decision, seen), Match::Yes) {
            return Ok(decision);
        }
        let now = self.jiffies();
        let entries = before.0.ct.iter().map(|(_, entry)| entry);
        let alive =
            |entry: &&CtEntry| entry.status.has(Status::CONFIRMED) && !entry.is_expired(now);
        let alive = entries.filter(alive).collect::<Vec<_>>();
        let unassured = alive.iter().filter(|e| !e.status.has(Status::ASSURED));
        let victims = unassured.map(|entry| entry.orig);
        let victims = victims
            .filter(|orig| !listed.contains(orig))
            .collect::<Vec<_>>();
        // Expired entries count until the collector comes by or somebody lists the table.
        let lapsed = self.tracked.values().filter(|deadline| **deadline <= now);
        let lapsed = lapsed.count() / 2;
        let may_be_full = lapsed > 0 && alive.len() + lapsed >= max && seen == Seen::Nothing;
        let had_room = full && seen != Seen::Nothing;
        if victims.is_empty() && !had_room && (full || !may_be_full) {
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
            self.report.not_checked(COLLECTED);
        } else {
            self.report.not_checked(COLLECTED);
            return Ok(Decision {
                verdict: Verdict::Drop,
                rule: Rule::Conntrack(CtRule::TableFull),
                ct: Some(CtRule::TableFull),
                entry: None,
            });
        }
        self.decide(segment, inward, seen, ahead)
    }
}
