//! Which cells of which tables a comparison exercised: the IPVS transition tables, conntrack's, the decision on a packet that
//! finds an entry, and the rules by name. Counted beside the model, from what a packet meets before the model judges it.
//! Only kept when asked for; meant for tables of a few dozen entries.

use std::collections::BTreeMap;

use ipvs_model::conntrack::{CtRule, CtState, Dir, FlagClass, Status};
use ipvs_model::ipvs::Rule as IpvsRule;
use ipvs_model::ipvs::service::ServiceKey;
use ipvs_model::ipvs::state::{Class, State};
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::node::{Decision, Rule, Verdict};
use ipvs_model::segment::{Flags, Proto, Segment};

use super::replay::Replay;

/// Counts by the name of the cell: `ipvs/plain/input/syn/TIME_WAIT`, `conntrack/reply/rst/ESTABLISHED`, ...
pub type Coverage = BTreeMap<String, u64>;

/// What a packet meets.
pub(super) struct Met {
    /// The state of every entry, by its place.
    states: Vec<(EntryId, State)>,
    /// The entry of the client's tuple: its state, and what of its real server matters.
    found: Option<(State, &'static str)>,
    /// The conntrack entry of the tuple.
    ct: Option<(Dir, Option<CtState>)>,
}

/// Lower-case name of a row of the IPVS tables.
pub const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Syn => "syn",
        Class::Fin => "fin",
        Class::Ack => "ack",
        Class::Rst => "rst",
        Class::Other => "other",
    }
}

const fn dir_name(dir: Dir) -> &'static str {
    match dir {
        Dir::Original => "original",
        Dir::Reply => "reply",
    }
}

/// Every cell of the transition tables that a masquerading node has, by name.
pub fn all_cells() -> Vec<String> {
    let mut cells = Vec::new();
    for table in ["plain", "secure"] {
        for direction in ["input", "output"] {
            for class in Class::ALL.map(class_name) {
                for state in State::ALL.map(State::name) {
                    cells.push(format!("ipvs/{table}/{direction}/{class}/{state}"));
                }
            }
        }
    }
    for dir in [Dir::Original, Dir::Reply].map(dir_name) {
        for class in FlagClass::ALL.map(FlagClass::name) {
            for state in CtState::ALL.map(CtState::name) {
                cells.push(format!("conntrack/{dir}/{class}/{state}"));
            }
        }
    }
    cells
}

impl Replay<'_> {
    /// What the packet meets; `None` if nobody counts.
    pub(super) fn meets(&self, segment: &Segment, inward: bool) -> Option<Met> {
        self.report.coverage.as_ref()?;
        let (table, now) = (self.node.ipvs.table(), self.jiffies());
        let found = table.find_in(&segment.tuple).filter(|_| inward).map(|id| {
            let entry = table.get(id);
            let dest = self.node.ipvs.dests().get(entry.dest());
            let server = match (dest.available, dest.weight) {
                (false, _) => "deleted",
                (true, 0) => "weight-0",
                (true, _) => "weighted",
            };
            (entry.state(), server)
        });
        let ct = self.node.ct.iter().find_map(|(_, entry)| {
            let lives = entry.status.has(Status::CONFIRMED) && !entry.is_expired(now);
            let dir = [Dir::Original, Dir::Reply]
                .into_iter()
                .find(|dir| lives && entry.tuple(*dir) == segment.tuple)?;
            Some((dir, entry.tcp().map(|tcp| tcp.state)))
        });
        Some(Met {
            states: table
                .iter()
                .map(|(id, entry)| (id, entry.state()))
                .collect(),
            found,
            ct,
        })
    }

    /// Counts the cells that the decision went through.
    pub(super) fn cover(&mut self, met: Option<Met>, segment: &Segment, decision: &Decision) {
        let Some(met) = met else { return };
        let vs = self.sysctls.vs;
        let mut cells = Vec::new();
        let tcp = segment.tuple.proto == Proto::Tcp;
        if let (Some(id), Rule::Ipvs(rule), true) = (decision.entry, decision.rule, tcp) {
            let known = met.states.iter().find(|(other, _)| *other == id);
            let before = match known {
                Some((_, state)) if !rule.schedules() && rule != IpvsRule::ScheduledByTemplate => {
                    *state
                }
                _ => State::No,
            };
            let table = if vs.secure_tcp == 3 {
                "secure"
            } else {
                "plain"
            };
            let direction = if rule == IpvsRule::Translated {
                "output"
            } else {
                "input"
            };
            let class = class_name(Class::of(segment.flags));
            cells.push(format!(
                "ipvs/{table}/{direction}/{class}/{}",
                before.name()
            ));
        }
        if let (Some((state, server)), Rule::Ipvs(rule)) = (met.found, decision.rule)
            && (segment.flags.has(Flags::SYN) || server == "deleted")
            && tcp
        {
            cells.push(format!(
                "reuse/mode{} expire{}/{server}/{}/{rule:?}",
                vs.conn_reuse_mode,
                u8::from(vs.expire_nodest_conn),
                state.name()
            ));
        }
        match decision.rule {
            Rule::Ipvs(rule) => {
                cells.push(format!("rule/{rule:?}"));
                let key = ServiceKey {
                    proto: segment.tuple.proto,
                    addr: segment.tuple.dst,
                };
                if let Some(service) = self.node.ipvs.service(key).filter(|_| rule.schedules()) {
                    cells.push(format!("scheduler/{:?}/{rule:?}", service.scheduler.kind));
                }
            }
            Rule::Conntrack(rule) => cells.push(format!("verdict-of-conntrack/{rule:?}")),
            other => cells.push(format!("rule/{other:?}")),
        }
        conntrack_cells(&met, segment, decision, &mut cells);
        if let Some(coverage) = &mut self.report.coverage {
            for cell in cells {
                *coverage.entry(cell).or_default() += 1;
            }
        }
    }
}

fn conntrack_cells(met: &Met, segment: &Segment, decision: &Decision, cells: &mut Vec<String>) {
    let Some(rule) = decision.ct else { return };
    cells.push(format!("conntrack-rule/{rule:?}"));
    let fresh = met.ct.is_none() || rule == CtRule::Reopened;
    let reached = !matches!(rule, CtRule::InvalidFlags | CtRule::TableFull);
    if segment.tuple.proto == Proto::Tcp && reached {
        let class = FlagClass::of(segment.flags).name();
        let none = Some((Dir::Original, Some(CtState::None)));
        let fresh_cell = if fresh { none } else { None };
        for (dir, state) in met.ct.into_iter().chain(fresh_cell) {
            if let Some(state) = state {
                cells.push(format!(
                    "conntrack/{}/{class}/{}",
                    dir_name(dir),
                    state.name()
                ));
            }
        }
    }
    if let (true, Verdict::Forward(out)) = (fresh, decision.verdict)
        && decision.rule != Rule::Ipvs(IpvsRule::Translated)
    {
        let (from, to) = (segment.tuple.src, out.tuple.src);
        let name = match (from.ip == to.ip, from.port == to.port) {
            (true, true) => "kept",
            (true, false) => "another port",
            (false, true) => "masqueraded, port kept",
            (false, false) => "masqueraded, another port",
        };
        cells.push(format!("nat/{name}"));
    }
}
