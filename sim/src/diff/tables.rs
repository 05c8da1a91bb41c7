//! Listings of the two tables against the model's.

use std::collections::BTreeMap;

use ipvs_model::ipvs::Listed;
use ipvs_model::ipvs::state::State;
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::segment::{Endpoint, Proto, Tuple};

use super::ahead::Ahead;
use super::doubt::Doubt;
use super::missed::{MAYBE_CHANGED, UNSPOKEN};
use super::phase::Evidence;
use super::replay::{CHANGE_OF_RULES, CT, IPVS, Replay};
use super::report::Class;
use crate::capture::{Event, IpvsConnLine, ReadError, Table};

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
            if self.direct.contains_key(&(line.client, line.dest)) {
                let service = ipvs_model::ipvs::service::ServiceKey {
                    proto: line.proto,
                    addr: line.virt,
                };
                self.uncounted.insert((service, line.dest));
                self.report.not_checked(
                    "entry of a client on the node itself: no device shows its packets as they enter",
                );
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

    /// Compares the entries of one client's tuple. There may be two for a tick, and invalidated templates of all services
    /// have one tuple.
    fn ipvs_group(
        &mut self,
        event: &Event,
        tuple: Tuple,
        mut rows: Vec<Row>,
        mut lines: Vec<IpvsConnLine>,
        complete: bool,
        ahead: &mut Ahead,
    ) -> Result<(), ReadError> {
        // A row may agree with two whole seconds: taken in turn, as many agree as can.
        rows.sort_by_key(|row| row.left_ticks);
        lines.sort_by_key(|line| line.expires_s);
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
            if let Some(why) = quiet.or(self.ipvs_may_have_missed(row, line)) {
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

    /// Whether a packet that the capture missed explains a difference: it starts the timer anew, or ends the entry.
    fn ipvs_may_have_missed(
        &self,
        row: Option<&Row>,
        line: Option<&IpvsConnLine>,
    ) -> Option<&'static str> {
        let hz = u64::from(self.setup.hz);
        let explains = match (row, line) {
            (Some(row), Some(line)) => {
                // A template's timer starts anew when a connection under it goes.
                line.client.port == 0
                    || u64::from(line.expires_s) > row.left_ticks / hz
                    || row.state != line.state.name()
                    || row.dest != line.dest
            }
            _ => true,
        };
        (self.setup.lossy && explains).then_some(MAYBE_CHANGED)
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
        let service = ipvs_model::ipvs::service::ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        if self.is_unspoken(service) {
            return Ok(Some(UNSPOKEN));
        }
        for row in rows {
            if self.may_be_flushed(row.id, ahead)? {
                return Ok(Some(CHANGE_OF_RULES));
            }
        }
        if self.spoilt[IPVS].contains(&tuple) {
            return Ok(Some("entry that a divergence above has changed"));
        }
        self.straddles(event, tuple, ahead)
    }

    /// A packet of the connection at the very moment of the listing: which came first is not known.
    pub(super) fn straddles(
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
}
