//! Listings and events of conntrack against the model's table.

use std::collections::BTreeSet;

use ipvs_model::conntrack::{CtEntry, CtState, ListedCt, Status};
use ipvs_model::segment::{Proto, Tuple};

use super::ahead::Ahead;
use super::doubt::{COLLECTED, WHICH_EVICTED};
use super::missed::{MAYBE_CHANGED, UNSPOKEN};
use super::replay::{CT, Replay};
use super::report::Class;
use crate::capture::{ConntrackChange, ConntrackEvent, ConntrackLine, Event, ReadError, Table};

/// Rows that fill a page, which is what one read of the file gives: no row is longer than 215 bytes.
const ROWS_OF_A_READ: usize = 19;
/// Why nothing is said of an entry that a listing lacks.
pub(super) const SKIPPED: &str =
    "conntrack entry that a listing of several reads may have skipped, for it deleted expired ones";

impl Replay<'_> {
    /// Compares a listing of conntrack entries.
    pub(super) fn ct_table(
        &mut self,
        event: &Event,
        table: &Table<ConntrackLine>,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.node.advance(self.now());
        self.report.snapshots += 1;
        let mut listed = BTreeSet::new();
        for line in &table.rows {
            if self.concerns(line) {
                listed.insert(line.orig);
                self.ct_row(event, line, ahead)?;
            } else {
                self.report
                    .not_checked("conntrack entry of no known service");
            }
        }
        if table.complete {
            let mut skipped = self.may_be_skipped(table.rows.len());
            for tuple in self.ct_unlisted(&listed) {
                if skipped > 0 {
                    skipped -= 1;
                    self.report.not_checked(SKIPPED);
                } else {
                    self.ct_extra(event, tuple, ahead)?;
                }
            }
        }
        if table.complete {
            // Whoever lists the table deletes what has expired (`ct_seq_show`, `ctnetlink_dump_table`).
            let now = self.jiffies();
            self.node.ct.delete_expired(now);
            self.partly = None;
        }
        self.note_tracked(table.complete);
        self.full = !self.counted && self.node.ct.count() >= self.sysctls.ct.max;
        self.spoilt[CT].clear();
        self.take_over[CT] = false;
        self.listed[CT] = true;
        Ok(())
    }

    /// Whether a conntrack entry belongs to a service, if only a deleted one, or begins or ends at a real server of this capture.
    /// Other services may have the same real servers.
    fn concerns(&self, line: &ConntrackLine) -> bool {
        let service = ipvs_model::ipvs::service::ServiceKey {
            proto: line.orig.proto,
            addr: line.orig.dst,
        };
        if self.tracks_direct(&line.orig) || self.tracks_direct(&line.reply) {
            return false;
        }
        self.services.contains(&service)
            || self.servers.contains(&line.orig.dst)
            || self.servers.contains(&line.orig.src)
    }

    fn ct_unlisted(&self, listed: &BTreeSet<Tuple>) -> Vec<Tuple> {
        let now = self.jiffies();
        let slack = self.clock.ticks(1) * self.setup.slack().0 / 1_000_000_000 + 1;
        self.node
            .ct
            .iter()
            .filter(|(_, entry)| {
                entry.status.has(Status::CONFIRMED) && !entry.is_expired(now + slack)
            })
            .map(|(_, entry)| entry.orig())
            .filter(|orig| !listed.contains(orig))
            .collect()
    }

    /// How many entries that live a listing of so many rows may lack. Each read of the file counts from the table's
    /// beginning to where the last one ended (`ct_get_idx`), and what that one deleted, because it had expired
    /// (`ct_seq_show`), counts no more.
    fn may_be_skipped(&self, rows: usize) -> usize {
        if rows < ROWS_OF_A_READ {
            return 0;
        }
        self.expired().count()
    }

    fn ct_extra(
        &mut self,
        event: &Event,
        tuple: Tuple,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        if let Some(why) = self.ct_quiet(event, tuple, true, ahead)? {
            self.report.not_checked(why);
        } else {
            let model = self.ct_text(tuple);
            let rule = self.last_rule(tuple.src);
            let node = "no such entry".to_owned();
            self.diverged(
                event,
                Class::CtExtra,
                tuple,
                tuple.to_string(),
                model,
                node,
                rule,
            );
        }
        let now = self.jiffies();
        self.node.ct.delete_tuple(now, &tuple);
        Ok(())
    }

    fn ct_row(
        &mut self,
        event: &Event,
        line: &ConntrackLine,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.report.entries += 1;
        self.report.tracked += 1;
        let class = self.ct_difference(line);
        let Some(class) = class else {
            return Ok(());
        };
        let known = class != Class::CtMissing;
        if !known && line.timeout_s == Some(0) {
            self.report
                .not_checked("conntrack entry listed in its last second");
            return Ok(());
        }
        let direct = self.servers.contains(&line.orig.dst) || self.servers.contains(&line.orig.src);
        if !known && direct && !self.setup.exact {
            // Nothing says that its packets, such as a probe's, are in the capture.
            self.report.not_checked(
                "conntrack entry of a real server and a peer that does not ask a service",
            );
            return Ok(());
        }
        if let Some(why) = self.ct_quiet(event, line.orig, known, ahead)? {
            self.report.not_checked(why);
        } else {
            let model = self.ct_text(line.orig);
            let node = line_text(line);
            let rule = self.last_rule(line.orig.src);
            let subject = line.orig.to_string();
            self.diverged(event, class, line.orig, subject, model, node, rule);
        }
        self.adopt_ct(line);
        Ok(())
    }

    fn ct_quiet(
        &mut self,
        event: &Event,
        tuple: Tuple,
        known: bool,
        ahead: &mut Ahead,
    ) -> Result<Option<&'static str>, ReadError> {
        if self.take_over[CT] {
            return Ok(Some("entry listed first after the clock was set"));
        }
        if !self.listed[CT] && !known {
            return Ok(Some(
                "entry older than the capture, taken from its first listing",
            ));
        }
        let service = ipvs_model::ipvs::service::ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        if self.services.contains(&service) && self.is_unspoken(service) {
            return Ok(Some(UNSPOKEN));
        }
        if self.adopted.contains(&tuple) {
            return Ok(Some(
                "conntrack entry of a connection older than the capture",
            ));
        }
        if !self.counted && self.may_have_merged(tuple) {
            return Ok(Some(COLLECTED));
        }
        if self.setup.lossy {
            return Ok(Some(MAYBE_CHANGED));
        }
        if self.full {
            return Ok(Some(WHICH_EVICTED));
        }
        if self.spoilt[CT].contains(&tuple) {
            return Ok(Some("entry that a divergence above has changed"));
        }
        self.straddles(event, tuple, ahead)
    }

    /// A datagram merges with an expired entry that the collector has not taken, instead of making its own.
    fn may_have_merged(&self, tuple: Tuple) -> bool {
        let now = self.jiffies();
        let mut entries = self.node.ct.iter();
        let expired =
            |entry: &CtEntry| entry.is_expired(now) && entry.status.has(Status::CONFIRMED);
        let twin = |entry: &CtEntry| {
            entry.orig().src.port == tuple.src.port || entry.orig().dst == tuple.src
        };
        tuple.proto == Proto::Udp
            && (entries
                .any(|(_, entry)| expired(entry) && twin(entry) && entry.proto() == Proto::Udp)
                || self.lapsed_lately(&tuple))
    }

    /// In what a conntrack row differs from the model's entry, if it does.
    fn ct_difference(&mut self, line: &ConntrackLine) -> Option<Class> {
        let now = self.jiffies();
        let found = self.node.ct.find(now, &line.orig);
        let Some(entry) = found.map(|ct| self.node.ct.entry(ct.slot)) else {
            return Some(Class::CtMissing);
        };
        let state = entry.tcp().map(|tcp| tcp.state.name());
        if entry.orig() != line.orig || entry.reply() != line.reply {
            Some(Class::CtReply)
        } else if line.state.is_some() && state != line.state.map(|state| state.name()) {
            Some(Class::CtState)
        } else if entry.status.has(Status::SEEN_REPLY) == line.unreplied
            || !line.offload && entry.status.has(Status::ASSURED) != line.assured
        {
            Some(Class::CtFlags)
        } else if let Some(listed_s) = line.timeout_s
            && !self
                .setup
                .time_agrees(now.until(entry.deadline), u64::from(listed_s))
        {
            Some(Class::CtTime)
        } else {
            None
        }
    }

    fn ct_text(&mut self, tuple: Tuple) -> String {
        let now = self.jiffies();
        let Some(ct) = self.node.ct.find(now, &tuple) else {
            return "no such entry".to_owned();
        };
        let entry = self.node.ct.entry(ct.slot);
        let mark = |bit, text| if entry.status.has(bit) { text } else { "" };
        format!(
            "{} {} s, reply from {} to {}{}{}",
            entry.tcp().map_or("UDP", |tcp| tcp.state.name()),
            now.until(entry.deadline) / u64::from(self.setup.hz),
            entry.reply().src,
            entry.reply().dst,
            if entry.status.has(Status::SEEN_REPLY) {
                ""
            } else {
                " [UNREPLIED]"
            },
            mark(Status::ASSURED, " [ASSURED]"),
        )
    }

    fn adopt_ct(&mut self, line: &ConntrackLine) {
        let now = self.jiffies();
        let name = line.state.map(|state| state.name());
        let state = CtState::ALL.into_iter().find(|s| Some(s.name()) == name);
        self.node.ct.adopt(
            now,
            &ListedCt {
                orig: line.orig,
                reply: line.reply,
                state: state.unwrap_or_default(),
                seen_reply: !line.unreplied,
                assured: line.assured,
                left_ticks: u64::from(line.timeout_s.unwrap_or(u32::MAX))
                    * u64::from(self.setup.hz),
            },
        );
        self.adopted.insert(line.orig);
    }

    /// One change of the conntrack table, as the node told it at once.
    pub(super) fn ct_event(
        &mut self,
        event: &Event,
        change: &ConntrackEvent,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.node.advance(self.now());
        if !self.concerns(&change.entry) {
            self.report
                .not_checked("conntrack event of no known service");
            return Ok(());
        }
        match change.change {
            ConntrackChange::Destroy => {
                self.report
                    .not_checked("conntrack event DESTROY: its moment is the collector's");
                Ok(())
            }
            ConntrackChange::New | ConntrackChange::Update => {
                self.ct_row(event, &change.entry, ahead)
            }
        }
    }
}

pub(super) fn line_text(line: &ConntrackLine) -> String {
    format!(
        "{} {} s, reply from {} to {}{}{}",
        line.state.map_or("UDP", |state| state.name()),
        line.timeout_s.unwrap_or(0),
        line.reply.src,
        line.reply.dst,
        if line.unreplied { " [UNREPLIED]" } else { "" },
        if line.assured { " [ASSURED]" } else { "" },
    )
}
