//! Listings of the two tables against the model's.

use std::collections::{BTreeMap, BTreeSet};

use ipvs_model::conntrack::{CtState, ListedCt, Status};
use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::state::State;
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::segment::{Endpoint, Proto, Tuple};

use super::ahead::Ahead;
use super::phase::Evidence;
use super::replay::{Doubt, Replay};
use super::report::Class;
use crate::capture::{
    ConntrackChange, ConntrackEvent, ConntrackLine, Event, IpvsConnLine, ReadError, Table,
};

const IPVS: usize = 0;
const CT: usize = 1;

/// The model's side of a row of the IPVS table.
#[derive(Clone, Copy, Debug)]
struct Row {
    id: EntryId,
    dest: Endpoint,
    state: &'static str,
    left_ticks: u64,
    /// It may go, or may be gone, at any tick from now on.
    overdue: bool,
}

impl Replay<'_> {
    /// Compares a listing of IPVS entries.
    pub(super) fn ipvs_table(
        &mut self,
        event: &Event,
        table: &Table<IpvsConnLine>,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        self.node.advance(self.now());
        self.report.snapshots += 1;
        let mut groups = BTreeMap::<Tuple, (Vec<Row>, Vec<IpvsConnLine>)>::new();
        for (tuple, row) in self.ipvs_rows() {
            groups.entry(tuple).or_default().0.push(row);
        }
        for line in &table.rows {
            let tuple = Tuple {
                proto: line.proto,
                src: line.client,
                dst: line.virt,
            };
            if self.foreign.contains(&line.virt) {
                self.report
                    .not_checked("entry of a service that is not modelled");
                continue;
            }
            groups.entry(tuple).or_default().1.push(*line);
        }
        self.learn_of_deaths(&groups);
        for (tuple, (rows, lines)) in groups {
            self.ipvs_group(event, tuple, rows, lines, table.complete, ahead)?;
        }
        self.spoilt[IPVS].clear();
        self.take_over[IPVS] = false;
        self.listed[IPVS] = true;
        Ok(())
    }

    fn ipvs_rows(&self) -> Vec<(Tuple, Row)> {
        let now = self.jiffies();
        let dests = self.node.ipvs.dests();
        let row = |(id, entry): (EntryId, &ipvs_model::ipvs::table::Entry)| {
            let (invalid, dest) = (entry.is_invalid(), dests.get(entry.dest()).addr);
            let shown = |end: Endpoint| match invalid {
                true => Endpoint::new(end.ip, u16::MAX),
                false => end,
            };
            let state = match (entry.is_template(), entry.proto()) {
                (true, _) if entry.is_assured() => "ASSURED",
                (true, _) => "NONE",
                (false, Proto::Udp) => "UDP",
                (false, Proto::Tcp) => entry.state().name(),
            };
            let tuple = Tuple {
                proto: entry.proto(),
                src: entry.client(),
                dst: shown(entry.virt()),
            };
            let row = Row {
                id,
                dest: shown(dest),
                state,
                left_ticks: now.until(entry.expires()),
                overdue: entry.expires() <= now,
            };
            (tuple, row)
        };
        self.node.ipvs.table().iter().map(row).collect()
    }

    /// Entries whose deadline has passed tell, by being listed or not, where the node's tick grid lies.
    fn learn_of_deaths(&mut self, groups: &BTreeMap<Tuple, (Vec<Row>, Vec<IpvsConnLine>)>) {
        let (now, at) = (self.jiffies(), self.now());
        let mut gone = Vec::new();
        let mut learnt = Vec::new();
        for (tuple, armed) in &self.armed {
            let listed = groups.get(tuple);
            let lines = listed.map_or(&[][..], |(_, lines)| lines);
            let line = lines.iter().find(|line| line.dest == armed.dest);
            let known = listed.is_some_and(|(rows, _)| !rows.is_empty());
            match line {
                _ if armed.expires > now => {
                    // Gone before its time in the model: flushed, not timed out.
                    if !known {
                        gone.push(*tuple);
                    } else if let Some(line) = line {
                        learnt.push(Evidence::Listed {
                            armed: armed.at,
                            ticks: armed.ticks,
                            at,
                            secs: u64::from(line.expires_s),
                        });
                    }
                }
                Some(_) => learnt.push(Evidence::Fired {
                    armed: armed.at,
                    ticks: armed.ticks,
                    at,
                    fired: false,
                }),
                None => {
                    if self.may_live(armed) {
                        learnt.push(Evidence::Fired {
                            armed: armed.at,
                            ticks: armed.ticks,
                            at,
                            fired: true,
                        });
                    }
                    gone.push(*tuple);
                }
            }
        }
        for told in std::mem::take(&mut self.told) {
            let lines = groups.get(&told.tuple).map_or(&[][..], |(_, lines)| lines);
            let newer = self.armed.get(&told.tuple).map(|armed| armed.dest);
            let mine = lines.iter().filter(|line| line.dest == told.dest).count();
            let fired = mine <= usize::from(newer == Some(told.dest));
            learnt.push(Evidence::Expired {
                told: told.at,
                at,
                fired,
            });
            if !fired {
                self.told.push(told);
            }
        }
        for tuple in gone {
            let listed = groups.get(&tuple);
            if listed.is_none_or(|(rows, lines)| rows.is_empty() && lines.is_empty()) {
                self.armed.remove(&tuple);
            }
        }
        for evidence in learnt {
            self.learn(evidence);
        }
    }

    /// Compares the entries of one client's tuple. There may be two for a tick.
    fn ipvs_group(
        &mut self,
        event: &Event,
        tuple: Tuple,
        mut rows: Vec<Row>,
        lines: Vec<IpvsConnLine>,
        complete: bool,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        let mut left = Vec::new();
        for line in lines {
            self.report.entries += 1;
            let agrees = |row: &Row| {
                row.dest == line.dest
                    && row.state == line.state.name()
                    && self
                        .setup
                        .time_agrees(row.left_ticks, u64::from(line.expires_s))
            };
            match rows.iter().position(agrees) {
                Some(at) => {
                    rows.remove(at);
                }
                None => left.push(line),
            }
        }
        // What the model has too much and what may be gone already is gone.
        rows.retain(|row| {
            let spare = row.overdue || !complete;
            if row.overdue && complete {
                self.report
                    .not_checked("death of an entry inside the timer granule");
                self.node.expire_entry(self.now(), row.id);
            }
            !spare || !left.is_empty() && !row.overdue
        });
        left.retain(|line| !self.revive(tuple, line));
        if rows.is_empty() && left.is_empty() {
            return Ok(());
        }
        let quiet = self.ipvs_quiet(event, tuple, &rows, ahead)?;
        for index in 0..rows.len().max(left.len()) {
            let (row, line) = (rows.get(index), left.get(index));
            if let Some(why) = quiet {
                self.report.not_checked(why);
            } else {
                self.ipvs_diverged(event, tuple, row, line);
            }
            if let Some(row) = row {
                self.node.ipvs.forget(self.now(), row.id);
            }
            if let Some(line) = line {
                self.adopt_ipvs(tuple, line);
            }
        }
        Ok(())
    }

    /// Why a difference of an IPVS row is no divergence, if it is none.
    fn ipvs_quiet(
        &mut self,
        event: &Event,
        tuple: Tuple,
        rows: &[Row],
        ahead: &mut Ahead,
    ) -> Result<Option<&'static str>, ReadError> {
        if self.take_over[IPVS] {
            return Ok(Some("entry listed first after the clock was set"));
        }
        if !self.listed[IPVS] && rows.is_empty() {
            return Ok(Some(
                "entry older than the capture, taken from its first listing",
            ));
        }
        if self.spoilt[IPVS].contains(&tuple) {
            return Ok(Some("entry that a divergence above has changed"));
        }
        self.straddles(event, tuple, ahead)
    }

    /// A packet of the connection at the very moment of the listing: which came first is not known.
    fn straddles(
        &mut self,
        event: &Event,
        tuple: Tuple,
        ahead: &mut Ahead,
    ) -> Result<Option<&'static str>, ReadError> {
        let slack = ipvs_model::time::Span(self.setup.slack().0.min(1_000_000));
        let of = |other: &Tuple| other.src == tuple.src || other.dst == tuple.src;
        Ok(ahead
            .touches(event.at, slack, of)?
            .then_some("entry whose listing straddles a packet"))
    }

    fn ipvs_diverged(
        &mut self,
        event: &Event,
        tuple: Tuple,
        row: Option<&Row>,
        line: Option<&IpvsConnLine>,
    ) {
        let hz = u64::from(self.setup.hz);
        let model = row.map_or_else(
            || "no such entry".to_owned(),
            |row| format!("{} {} s -> {}", row.state, row.left_ticks / hz, row.dest),
        );
        let node = line.map_or_else(
            || "no such entry".to_owned(),
            |line| format!("{} {} s -> {}", line.state, line.expires_s, line.dest),
        );
        let class = match (row, line) {
            (None, _) => Class::IpvsMissing,
            (_, None) => Class::IpvsExtra,
            (Some(row), Some(line)) if row.dest != line.dest => Class::IpvsDest,
            (Some(row), Some(line)) if row.state != line.state.name() => Class::IpvsState,
            _ => Class::IpvsTime,
        };
        let rule = self.last_rule(tuple.src);
        self.diverged(event, class, tuple, format!("{tuple}"), model, node, rule);
        self.spoilt[CT].insert(tuple);
    }

    /// An entry that the model's timer took, and that a grid of another phase would have left, lives again.
    fn revive(&mut self, tuple: Tuple, line: &IpvsConnLine) -> bool {
        let Some(armed) = self.armed.get(&tuple).copied() else {
            return false;
        };
        if armed.dest != line.dest || line.expires_s > 0 || !self.may_live(&armed) {
            return false;
        }
        if self.node.ipvs.table().find_in(&tuple).is_some() {
            return false;
        }
        self.report
            .not_checked("death of an entry inside the timer granule");
        self.flip(&Doubt {
            tuple,
            armed,
            alive: false,
        });
        true
    }

    fn adopt_ipvs(&mut self, tuple: Tuple, line: &IpvsConnLine) {
        self.servers.insert(line.dest);
        self.add_service(ipvs_model::ipvs::service::ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        });
        let id = self.node.ipvs.adopt(
            self.now(),
            &Listed {
                proto: line.proto,
                client: line.client,
                virt: line.virt,
                dest: line.dest,
                state: State::from_name(line.state.name()).unwrap_or(State::No),
                assured: line.state.name() == "ASSURED",
                left_ticks: u64::from(line.expires_s) * u64::from(self.setup.hz),
            },
        );
        if !line.is_template() {
            self.note_armed(id, self.now());
        }
        self.adopted.insert(tuple);
    }

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
            for tuple in self.ct_unlisted(&listed) {
                self.ct_extra(event, tuple, ahead)?;
            }
        }
        if table.complete {
            // Whoever lists the table deletes what has expired (`ct_seq_show`, `ctnetlink_dump_table`).
            let now = self.jiffies();
            self.node.ct.delete_expired(now);
        }
        self.note_tracked(table.complete);
        self.spoilt[CT].clear();
        self.take_over[CT] = false;
        self.listed[CT] = true;
        Ok(())
    }

    /// Whether a conntrack entry belongs to a service or a real server of this capture.
    fn concerns(&self, line: &ConntrackLine) -> bool {
        let service = ipvs_model::ipvs::service::ServiceKey {
            proto: line.orig.proto,
            addr: line.orig.dst,
        };
        self.node.ipvs.service(service).is_some()
            || self.servers.contains(&line.reply.src)
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
            .map(|(_, entry)| entry.orig)
            .filter(|orig| !listed.contains(orig))
            .collect()
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
        if self.adopted.contains(&tuple) {
            return Ok(Some(
                "conntrack entry of a connection older than the capture",
            ));
        }
        if self.spoilt[CT].contains(&tuple) {
            return Ok(Some("entry that a divergence above has changed"));
        }
        self.straddles(event, tuple, ahead)
    }

    /// In what a conntrack row differs from the model's entry, if it does.
    fn ct_difference(&mut self, line: &ConntrackLine) -> Option<Class> {
        let now = self.jiffies();
        let found = self.node.ct.find(now, &line.orig);
        let Some(entry) = found.map(|ct| self.node.ct.entry(ct.slot)) else {
            return Some(Class::CtMissing);
        };
        let state = entry.tcp().map(|tcp| tcp.state.name());
        if entry.orig != line.orig || entry.reply != line.reply {
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
            entry.reply.src,
            entry.reply.dst,
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

fn line_text(line: &ConntrackLine) -> String {
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
